"""Proposals as COCO results JSON, or as .mat files in the form of MCG.

    coco    [{"image_id": 9, "category_id": 1, "segmentation": {"size": [H, W], "counts": "..."},
              "score": 0.5}, ...], the candidates of each image best first
    mcg     <image_id>.mat: superpixels (H, W) uint32, from 1
                            labels (P, 1) cells, (1, k) uint32: the superpixels of a candidate
                            scores (P, 1) float64
                            bboxes (P, 4) float64: top, left, bottom, right, from 1, inclusive

H x W pixels, S superpixels, P candidates.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numba
import numpy as np
from tqdm import tqdm

from pipeline.datasets.coco_json import LONGEST_COUNT, ZERO
from pipeline.datasets.coco_results import read_truth
from pipeline.datasets.lists import is_image_id
from pipeline.datasets.matfile import encode_variables
from pipeline.datasets.processes import in_processes, processors
from pipeline.datasets.proposal_table import ProposalTable
from pipeline.datasets.published_proposals import COCO_NAME
from pipeline.errors import BadFile, BadInput, some
from pipeline.exports.places import new_file, new_folder

WORTH_A_PROCESS = 200  # images: a new process needs a second or two before its first
ANY = 1  # the category of a candidate, which may be any object

Arrays = dict[str, np.ndarray]
Item = TypeVar("Item")
Result = TypeVar("Result")


def export_proposals(
    folder: Path, out: Path, *, kind: str, truth: Path | None = None, most: int | None = None
) -> str:
    """Write a table of proposals in a form that other tools read.

    Args:
        folder: holds part-*.parquet.
        out: a new file for coco, a new folder for mcg.
        kind: coco or mcg.
        truth: for coco, COCO instances JSON: gives the ids of images, and which are wanted. Without
            it an image of COCO has its number, another one its image_id as text.
        most: candidates of an image, the first ones; None: all.

    Returns:
        what was written, for the user.

    Raises:
        BadInput: `out` is not new, a table is not readable or damaged, or lacks an image of the
            truth. Nothing is written then.
    """
    if most is not None and most < 1:
        raise BadInput(f"{most} candidates of an image; ask for one or more")
    match kind:
        case "coco":
            return _export_coco(folder, out, truth, most)
        case "mcg":
            return _export_mcg(folder, out, most)
    raise BadInput(f"no form {kind!r} of proposals; choose coco or mcg")


# --- COCO -----------------------------------------------------------------------------------------
def _export_coco(folder: Path, out: Path, truth: Path | None, most: int | None) -> str:
    table = ProposalTable(folder)
    images = _numbered(table.ids, folder, truth)
    items = ((number, _firsts(table.of(image_id), most)) for image_id, number in images)
    count = 0
    with new_file(out) as place, place.open("w", encoding="ascii") as file:
        file.write("[")
        for entries in _progress(_entries, items, len(images)):
            for entry in entries:
                file.write((",\n" if count else "\n") + entry)
                count += 1
        file.write("\n]\n")
    return f"{count} candidates of {len(images)} images in {out}"


def _numbered(ids: list[str], folder: Path, truth: Path | None) -> list[tuple[str, int | str]]:
    """The images to write, in the order of the table, and the id that the file gives each.

    Raises:
        BadInput: the truth is no COCO JSON, or the table lacks one of its images.
    """
    if truth is None:
        found = ((image_id, COCO_NAME.fullmatch(image_id)) for image_id in ids)
        return [(image_id, int(name[1]) if name else image_id) for image_id, name in found]
    known = {image.name: image.number for image in read_truth(truth).images.values()}
    if missing := sorted(known.keys() - set(ids)):
        problem = f"no proposals of {len(missing)} of {len(known)} images: {some(missing)}"
        raise BadFile(folder, problem, f"make them, or take these images out of {truth}")
    return [(image_id, known[image_id]) for image_id in ids if image_id in known]


def _entries(item: tuple[int | str, Arrays]) -> list[str]:
    """The JSON of each candidate of an image."""
    number, arrays = item
    size = list(arrays["superpixels"].shape)
    return [
        json.dumps(
            {
                "image_id": number,
                "category_id": ANY,
                "segmentation": {"size": size, "counts": counts},
                "score": score,
            }
        )
        for counts, score in zip(run_lengths(arrays), arrays["scores"].tolist(), strict=True)
    ]


def run_lengths(arrays: Arrays) -> Iterator[str]:
    """COCO's compressed run-lengths of each candidate.

    Its runs are put together from those of superpixels, from its first to its last one.
    """
    members, offsets = arrays["members"], arrays["offsets"]
    flat = arrays["superpixels"].ravel(order="F")  # run-lengths go down the columns
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    values = flat[starts[:-1]]
    runs = np.arange(len(values))
    chosen = np.zeros(int(flat.max()) + 1, np.bool_)
    first, behind = np.full(len(chosen), len(values)), np.zeros(len(chosen), np.int64)
    np.minimum.at(first, values, runs)
    np.maximum.at(behind, values, runs + 1)
    text = np.zeros(LONGEST_COUNT * (len(starts) + 1), np.uint8)
    for i in range(len(offsets) - 1):
        ids = members[offsets[i] : offsets[i + 1]]
        chosen[ids] = True
        used = _write_counts(values, starts, first[ids].min(), behind[ids].max(), chosen, text)
        chosen[ids] = False
        yield text[:used].tobytes().decode("ascii")


@numba.njit(cache=True, nogil=True)
def _write_counts(values, starts, first, behind, chosen, text):
    """Write the counts of the runs first..behind - 1 that are chosen, of all pixels; the length."""
    at, on, used, number = 0, False, 0, 0
    older, old = 0, 0  # the two counts before
    for run in range(first, behind + 2):
        if run < behind:
            here, stop = chosen[values[run]], starts[run]
        elif run == behind:  # behind the last one no run is chosen
            here, stop = False, starts[behind]
        else:
            here, stop = True, starts[-1]
        if here == on or (run > behind and stop == at):
            continue
        count = stop - at
        rest = count - older if number > 2 else count
        more = True
        while more:
            code = rest & 31
            rest >>= 5
            more = rest != (-1 if code & 16 else 0)
            text[used] = ZERO + (code | 32 if more else code)
            used += 1
        older, old, number = old, count, number + 1
        at, on = stop, here
    return used


# --- MCG ------------------------------------------------------------------------------------------
def _export_mcg(folder: Path, out: Path, most: int | None) -> str:
    table = ProposalTable(folder)
    if wrong := [image_id for image_id in table.ids if not is_image_id(image_id)]:
        problem = f"ids that cannot name a file: {some(wrong)}"
        raise BadFile(folder, problem, "use letters, digits, _ and - only")
    items = ((image_id, _firsts(table.of(image_id), most)) for image_id in table.ids)
    with new_folder(out) as place:
        for image_id, content in _progress(_mat, items, len(table.ids)):
            (place / f"{image_id}.mat").write_bytes(content)
    return f"candidates of {len(table.ids)} images in {out}"


def _mat(item: tuple[str, Arrays]) -> tuple[str, bytes]:
    image_id, arrays = item
    labels = np.empty((len(arrays["areas"]), 1), object)
    members = arrays["members"].astype(np.uint32) + 1
    for i, ids in enumerate(np.split(members, arrays["offsets"][1:-1]) if len(labels) else []):
        labels[i, 0] = ids[None]
    boxes = arrays["boxes"][:, [1, 0, 3, 2]].astype(np.float64)
    boxes[:, :2] += 1
    content = {
        "superpixels": arrays["superpixels"].astype(np.uint32) + 1,
        "labels": labels,
        "scores": arrays["scores"].astype(np.float64)[:, None],
        "bboxes": boxes,
    }
    return image_id, encode_variables(content)


# --- reading --------------------------------------------------------------------------------------
def _progress(
    function: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Iterator[Result]:
    workers = min(processors(), count // WORTH_A_PROCESS)
    results = in_processes(function, items, workers)
    return iter(tqdm(results, total=count, desc="exporting", unit="image", disable=None))


def _firsts(arrays: Arrays, most: int | None) -> Arrays:
    """The first candidates of an image; None: all."""
    kept = {name: arrays[name][:most] for name in ("scores", "boxes", "areas")}
    offsets = arrays["offsets"][: len(kept["areas"]) + 1]
    return arrays | kept | {"offsets": offsets, "members": arrays["members"][: offsets[-1]]}
