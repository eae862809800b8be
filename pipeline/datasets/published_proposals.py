"""Proposals that other people made: a .mat file for each image, best candidate first.

    superpixels, labels             MCG, SCG, COB: a map (H, W) of superpixels from 1, and P cells
                                    with the superpixels of each candidate; scores (P,) if any
    superpixels, labels             LPO: cells of such maps, and a cell of labels for each map
    superpixels, indicator_matrix   RIGOR, GOP: (S, P), whether a superpixel is in a candidate;
                                    GOP's map is transposed
    hBlobs                          Selective Search: P cells, each with a mask in its box and
                                    rect [top, left, bottom, right] from 1, inclusive
    masks                           (H, W, P)

All of it may lie in a struct `proposals`. Files of version 7.3 need h5py.
Boxes in the files are not read but for the place of a blob: those of MCG are fewer than its masks.
H x W pixels, S superpixels, P candidates.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numba
import numpy as np

from pipeline.datasets import matfile, matfile_hdf5
from pipeline.datasets.matfile import Value
from pipeline.errors import BadFile, some
from pipeline.superpixels import boxes_and_areas

DEEPEST = 3  # cells of structs in a struct
LARGEST = 1 << 30  # bytes of an unpacked variable: thousands of masks are some hundred megabytes
MOST_SUPERPIXELS = 1 << 16
COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})")  # of 2014, of 2017

Arrays = dict[str, np.ndarray]
Placed = tuple[int, int, np.ndarray]  # a mask (h, w) bool, and the row and column of its corner
Fields = Mapping[str, Value]


def find_published(folder: Path, image_ids: Sequence[str]) -> dict[str, Path]:
    """The file of each image that has one, by image id.

    A file is named by its image's id and lies in the folder or below it; of COCO the number counts,
    so that COCO_val2014_000000000042.mat is found for 000000000042 too.

    Raises:
        BadFile: no image has a file, or an image has two.
    """
    files: dict[str, list[Path]] = {}
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".mat"):
                files.setdefault(_key(name.removesuffix(".mat")), []).append(Path(place, name))
    if not files:
        raise BadFile(folder, "no .mat file in it", "unpack the published proposals there")
    found = {image_id: files[key] for image_id in image_ids if (key := _key(image_id)) in files}
    if not found:
        there = some([paths[0].stem for paths in files.values()])
        problem = f"no proposals of any image; wanted: {some(image_ids)}; there: {there}"
        raise BadFile(folder, problem, "name the folder of this dataset's proposals")
    for image_id, paths in found.items():
        if len(paths) > 1:
            problem = f"a second file of image {image_id}, as {paths[0]}"
            raise BadFile(paths[1], problem, "name a folder with one method's proposals")
    return {image_id: paths[0] for image_id, paths in found.items()}


def _key(image_id: str) -> str:
    number = COCO_NAME.fullmatch(image_id)
    return number[1] if number else image_id


def read_published(path: Path, size: tuple[int, int]) -> Arrays:
    """The candidates of one image, in the order of the file.

    Args:
        size: H, W of the image.

    Returns:
        superpixels (H, W) uint16, members uint16, offsets (P + 1,) int32, scores (P,) float32,
        boxes (P, 4) int32 and areas (P,) int32: what `proposals.form.Proposals` takes. Masks are
        exactly those of the file. Scores are the file's where they fall, else 1 - place / P.

    Raises:
        BadFile: the file is missing, damaged, of another image, has no masks, or an empty one.
    """
    read = matfile_hdf5.read_values if matfile.is_hdf5(path) else matfile.read_values
    content: Fields = read(path, depth=DEEPEST, largest=LARGEST)
    wrapped = content.get("proposals")
    fields = wrapped if isinstance(wrapped, dict) else content
    if not fields.keys() & {"labels", "indicator_matrix", "hBlobs", "masks"}:
        if "boxes" in fields or "bboxes" in fields:
            remedy = "masks are needed: take the archive of segmented proposals"
            raise BadFile(path, "only boxes in it", remedy)
        names = ", ".join(fields) or "nothing"
        remedy = "labels, indicator_matrix, hBlobs or masks are read: give a file with one of them"
        raise BadFile(path, f"no proposals in it, but {names}", remedy)
    try:
        superpixels, sets = _candidates(fields, size)
        return _common_form(superpixels, sets, _numbers(fields.get("scores"), "scores", none=True))
    except ValueError as error:
        raise BadFile(path, str(error), "copy the original of this image there") from error


def _candidates(fields: Fields, size: tuple[int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Superpixels (H, W) from 0, and those of each candidate, once each and rising."""
    if "labels" in fields:
        maps, labels = fields.get("superpixels"), _cells(fields["labels"], "labels")
        if isinstance(maps, list):
            return _of_several(maps, labels, size)
        return _of_labels(maps, labels, size)
    if "indicator_matrix" in fields:
        return _of_indicators(fields.get("superpixels"), fields["indicator_matrix"], size)
    if "hBlobs" in fields:
        return cut(size, list(_blobs(_cells(fields["hBlobs"], "hBlobs"), size)))
    masks = _numbers(fields["masks"], "masks")
    masks = masks[:, :, None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or masks.shape[:2] != size:
        raise ValueError(f"masks are {_by(masks.shape)}, the image is {_by(size)}")
    return cut(size, [(0, 0, masks[:, :, i] != 0) for i in range(masks.shape[2])])


# --- the forms of files ---------------------------------------------------------------------------
def _of_labels(
    raw: Value | None, labels: Sequence[Value | None], size: tuple[int, int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    superpixels = _superpixels(raw, size)
    highest = int(superpixels.max())
    each = [_numbers(cell, f"labels of candidate {i + 1}").ravel() for i, cell in enumerate(labels)]
    owner = np.repeat(np.arange(len(each)), [len(ids) for ids in each])
    ids = _whole(np.concatenate([np.zeros(0, np.uint8), *each]), "labels")
    if (wrong := np.flatnonzero((ids < 1) | (ids > highest))).size:
        who, what = owner[wrong[0]] + 1, ids[wrong[0]]
        raise ValueError(f"candidate {who} has superpixel {what} of 1 to {highest}")
    # Not np.unique: it hashes the keys, many times slower than sorting what nearly is in order.
    key = np.sort(owner * highest + ids - 1, kind="stable")
    owner, ids = np.divmod(key[np.diff(key, prepend=-1) > 0], highest)
    ends = np.searchsorted(owner, np.arange(1, len(each)))
    return superpixels - 1, np.split(ids, ends) if each else []


def _of_several(
    maps: Sequence[Value | None], labels: Sequence[Value | None], size: tuple[int, int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Candidates of several maps, on the superpixels into which these cut each other."""
    if not maps or len(maps) != len(labels):
        raise ValueError(f"{len(maps)} maps of superpixels, but labels for {len(labels)}")
    both = [
        _of_labels(raw, _cells(cells, "labels"), size)
        for raw, cells in zip(maps, labels, strict=True)
    ]
    fused = np.zeros(size, np.int64)
    for superpixels, _ in both:  # numbers stay below the pixels squared
        key = fused * (superpixels.max() + 1) + superpixels
        fused = np.unique(key, return_inverse=True)[1].reshape(size)
    sets = []
    for superpixels, own in both:
        place = np.zeros(fused.max() + 1, np.int64)  # the map's superpixel of each fused one
        place[fused] = superpixels
        sets += [np.flatnonzero(np.isin(place, ids)) for ids in own]
    return fused, sets


def _of_indicators(
    raw: Value | None, indicators: Value, size: tuple[int, int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Of a square image only the type tells GOP's map from RIGOR's, which is uint16."""
    superpixels, inside = _numbers(raw, "superpixels"), _numbers(indicators, "indicator_matrix")
    turned = superpixels.shape == size[::-1]
    if turned and (size[0] != size[1] or superpixels.dtype != np.uint16):
        superpixels = superpixels.T
    superpixels = _superpixels(superpixels, size, lowest=0)
    superpixels = superpixels - superpixels.min()
    if inside.ndim != 2 or len(inside) != superpixels.max() + 1:
        count = superpixels.max() + 1
        raise ValueError(f"indicator_matrix is {_by(inside.shape)} for {count} superpixels")
    if not np.isin(inside, (0, 1)).all():
        raise ValueError("indicator_matrix holds other numbers than 0 and 1")
    return superpixels, [np.flatnonzero(column) for column in inside.T]


def _blobs(blobs: Sequence[Value | None], size: tuple[int, int]) -> Iterator[Placed]:
    for number, blob in enumerate(blobs, start=1):
        if not isinstance(blob, dict):
            raise ValueError(f"blob {number} is no struct")
        rect = _whole(blob.get("rect"), f"rect of blob {number}").ravel()
        mask = _numbers(blob.get("mask"), f"mask of blob {number}")
        if len(rect) != 4:
            raise ValueError(f"rect of blob {number} has {len(rect)} numbers")
        top, left, bottom, right = (int(side) for side in rect)
        if not (1 <= top <= bottom <= size[0] and 1 <= left <= right <= size[1]):
            raise ValueError(f"rect of blob {number}, {rect.tolist()}, is not in {_by(size)}")
        if mask.shape != (bottom - top + 1, right - left + 1):
            raise ValueError(f"mask of blob {number} is {_by(mask.shape)}, not as its rect")
        yield top - 1, left - 1, mask != 0


def cut(size: tuple[int, int], masks: Sequence[Placed]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The fewest superpixels of which every mask is made, and those of each mask.

    Args:
        size: H, W of the image.
        masks: P masks, each with the row and column where it lies; all in the image.

    Returns:
        superpixels (H, W) int64 from 0, and P rising lists of them.
    """
    superpixels = np.zeros(size, np.int64)
    sizes = np.zeros(superpixels.size, np.int64)
    sizes[:1] = superpixels.size
    work = np.zeros((3, superpixels.size), np.int64)
    placed = [(top, left, np.ascontiguousarray(mask)) for top, left, mask in masks]
    count = 1
    for top, left, mask in placed:
        count = _cut_along(superpixels, sizes, count, mask, top, left, work)
    sets = []
    for top, left, mask in placed:
        window = superpixels[top : top + mask.shape[0], left : left + mask.shape[1]]
        sets.append(np.flatnonzero(np.bincount(window[mask], minlength=count)))
    return superpixels, sets


@numba.njit(cache=True)
def _cut_along(superpixels, sizes, count, mask, top, left, work):
    """Cut superpixels along a mask; how many there are then. `work` is 0 before and after."""
    inside, number, touched = work
    several = 0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x]:
                one = superpixels[top + y, left + x]
                if inside[one] == 0:
                    touched[several] = one
                    several += 1
                inside[one] += 1
    for one in touched[:several]:
        number[one] = one
        if inside[one] < sizes[one]:
            number[one] = count
            sizes[one] -= inside[one]
            sizes[count] = inside[one]
            count += 1
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x]:
                superpixels[top + y, left + x] = number[superpixels[top + y, left + x]]
    inside[touched[:several]] = 0
    return count


# --- the common form ------------------------------------------------------------------------------
def _common_form(superpixels: np.ndarray, sets: list[np.ndarray], scores: np.ndarray) -> Arrays:
    """The arrays of the common form.

    Args:
        superpixels: (H, W), numbers from 0; some may have no pixel.
        sets: (P,) of the superpixels of each candidate, rising.
        scores: (P,) or none.
    """
    sizes = np.bincount(superpixels.ravel())
    present = sizes > 0
    if present.sum() > MOST_SUPERPIXELS:
        raise ValueError(f"{present.sum()} superpixels, more than {MOST_SUPERPIXELS}")
    new = np.cumsum(present) - 1
    sets = [new[ids[present[ids]]] for ids in sets]
    lengths = np.array([len(ids) for ids in sets], np.int64)
    if not lengths.all():
        raise ValueError(f"candidate {1 + int(np.argmin(lengths))} has no pixel")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    members = np.concatenate([*sets, np.zeros(0, np.int64)]).astype(np.uint16)
    superpixels = new[superpixels].astype(np.uint16, order="C")
    boxes, areas = boxes_and_areas(superpixels, members, offsets)
    return {
        "superpixels": superpixels,
        "members": members,
        "offsets": offsets,
        "scores": _falling(scores, len(sets)),
        "boxes": boxes,
        "areas": areas,
    }


def _falling(scores: np.ndarray, count: int) -> np.ndarray:
    """The scores (P,) float32 of candidates whose order is given."""
    if scores.size not in (0, count):
        raise ValueError(f"{scores.size} scores of {count} candidates")
    with np.errstate(over="ignore"):  # too large for float32 is infinite, and so not taken
        scores = scores.ravel().astype(np.float32)
    if len(scores) == count and np.isfinite(scores).all() and (np.diff(scores) <= 0).all():
        return scores
    return (1 - np.arange(count) / max(count, 1)).astype(np.float32)


# --- numbers --------------------------------------------------------------------------------------
def _superpixels(raw: Value | None, size: tuple[int, int], lowest: int = 1) -> np.ndarray:
    """A map (H, W) int64 of superpixels from `lowest` or 1 on."""
    found = _whole(raw, "superpixels")
    if found.shape != size:
        raise ValueError(f"superpixels are {_by(found.shape)}, the image is {_by(size)}")
    if found.min() < lowest or found.max() > found.size:
        wrong = found.min() if found.min() < lowest else found.max()
        raise ValueError(f"superpixel {wrong}, where they are numbered from 1 on")
    return found


def _whole(raw: Value | None, what: str) -> np.ndarray:
    """Whole numbers as int64."""
    found = _numbers(raw, what)
    if found.dtype.kind == "f" and not (np.isfinite(found) & (found == np.rint(found))).all():
        raise ValueError(f"{what}: not whole numbers")
    if found.size and not -(2**31) <= found.min() <= found.max() < 2**31:
        raise ValueError(f"{what}: numbers beyond all sense")
    return found.astype(np.int64)


def _numbers(raw: Value | None, what: str, *, none: bool = False) -> np.ndarray:
    """Numbers as they are stored; where `none` is allowed, no numbers for what is not there."""
    if isinstance(raw, np.ndarray):
        return raw
    if none:
        return np.zeros(0)
    raise ValueError(f"{what}: no numbers")


def _cells(raw: Value | None, what: str) -> list[Value | None]:
    if not isinstance(raw, list):
        raise ValueError(f"{what}: no array of cells")
    return raw


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
