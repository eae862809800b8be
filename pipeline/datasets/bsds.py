"""BSDS500: photographs whose contours several people have drawn (Arbelaez et al. 2011).

Published layout, in BSR/ of the archive:

    BSDS500/data/images/{train,val,test}/<id>.jpg
    BSDS500/data/groundTruth/{train,val,test}/<id>.mat
                                      groundTruth, a cell for each person: a struct of Segmentation
                                      (numbers from 1) and Boundaries
    BSDS500/ucm2/{train,val,test}/<id>.mat
                                      gPb-UCM: ucm2, strengths between the pixels; may be absent

Nothing drawn has a category: there are no label maps and no objects, so no network is trained on
this dataset. Forests learn contours and regions from it, and candidates are made of its images.
H x W pixels, K people.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.datasets import matfile
from pipeline.datasets.checks import check_size
from pipeline.datasets.form import Sample, image_size, read_image
from pipeline.datasets.lists import check_apart, is_image_id
from pipeline.datasets.tree import ImageFiles, Place, Problems, Tree
from pipeline.errors import BadFile

OFFICIAL = {"train": 200, "val": 100, "test": 200}
SPLITS = tuple(OFFICIAL)
WHERE = "put BSDS500 there (BSR_bsds500.tgz of the Berkeley segmentation data set, unpacked)"


@dataclass(frozen=True)
class Drawn:
    """One image and what people drew on it."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    segmentations: np.ndarray  # (K, H, W) uint16, regions numbered from 1
    boundaries: np.ndarray  # (K, H, W) bool, contours one pixel wide


@dataclass(frozen=True)
class Bsds:
    """A copy of BSDS500, or of a part of it."""

    folder: Path  # that holds data/
    ids: dict[str, tuple[str, ...]]  # of each split that is there, sorted as text
    with_ucm: frozenset[str]

    def read(self, image_id: str) -> Drawn:
        """Raises BadFile where a file is missing, damaged or contradicts another."""
        split = self._split(image_id)
        image = read_image(self.folder / "data" / "images" / split / f"{image_id}.jpg")
        path = self.folder / "data" / "groundTruth" / split / f"{image_id}.mat"
        height, width = image.shape[:2]
        return Drawn(image, *read_drawings(path, (height, width)))

    def read_ucm(self, image_id: str) -> np.ndarray:
        """The published gPb-UCM (2 H + 1, 2 W + 1) float64. Raises BadFile."""
        path = self.folder / "ucm2" / self._split(image_id) / f"{image_id}.mat"
        return read_ucm(path)

    def _split(self, image_id: str) -> str:
        return next(split for split, ids in self.ids.items() if image_id in ids)


# --- files ----------------------------------------------------------------------------------------
def read_drawings(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What people drew on an image of H x W pixels.

    Returns:
        Segmentations (K, H, W) uint16 and boundaries (K, H, W) bool.

    Raises:
        BadFile: the file is missing or damaged, or a drawing in it is not of the image's size.
    """
    people = matfile.read_cells(path, "groundTruth")
    if not people:
        raise BadFile(path, "no person's drawing in it", "copy the original there")

    def drawn(name: str) -> np.ndarray:
        maps = []
        for number, person in enumerate(people, start=1):
            found = person.get(name) if isinstance(person, dict) else None
            if not isinstance(found, np.ndarray) or found.ndim != 2:
                raise BadFile(path, f"no {name} in cell {number} of groundTruth", "copy it anew")
            check_size(path, found, shape)
            maps.append(found)
        return np.stack(maps)

    regions, boundaries = drawn("Segmentation"), drawn("Boundaries")
    if not ((regions >= 0) & (regions <= 65535) & (regions == np.rint(regions))).all():
        raise BadFile(path, "a Segmentation holds what are no numbers of regions", "copy it anew")
    return regions.astype(np.uint16), boundaries > 0


def count_drawings(path: Path) -> int:
    """How many people drew on an image; 0 for a file that cannot be read."""
    try:
        return len(matfile.read_cells(path, "groundTruth"))
    except BadFile:
        return 0


def read_ucm(path: Path) -> np.ndarray:
    """ucm2 of a file, strengths on the grid of pixels and the places between them.

    Raises:
        BadFile: the file is missing or damaged, or holds no such grid.
    """
    ucm = matfile.read_variable(path, "ucm2")
    if (
        isinstance(ucm, dict)
        or ucm.ndim != 2
        or min(ucm.shape) < 3
        or 0 in [n % 2 for n in ucm.shape]
    ):
        raise BadFile(path, "ucm2 is no grid of 2 H + 1 by 2 W + 1", "copy it anew")
    if not (np.isfinite(ucm) & (ucm >= 0)).all():
        raise BadFile(path, "ucm2 holds what are no strengths", "copy it anew")
    return ucm.astype(np.float64)


def _check_ucm(path: Path, shape: tuple[int, int]) -> None:
    """BadFile unless a published hierarchy is one of an image of H x W pixels."""
    height, width = ((n - 1) // 2 for n in read_ucm(path).shape)
    if (height, width) != shape:
        raise BadFile(
            path,
            f"ucm2 of an image of {width}x{height} pixels, but the image has {shape[1]}x{shape[0]}",
            "one of them is another image's or was resized",
        )


# --- a copy to learn from -------------------------------------------------------------------------
def open_bsds(root: Path) -> Bsds:
    """A copy at `root` or below it in BSDS500/ or BSR/BSDS500/; or its data/ is `root`.

    Raises:
        BadFile: no folder of images with drawings is there.
    """
    folder = _find(root)
    ids, with_ucm = {}, set()
    for split in SPLITS:
        images = _stems(folder / "data" / "images" / split, ".jpg")
        drawn = _stems(folder / "data" / "groundTruth" / split, ".mat")
        if images & drawn:
            ids[split] = tuple(sorted(images & drawn))
            with_ucm |= _stems(folder / "ucm2" / split, ".mat") & images & drawn
    if not ids:
        raise BadFile(folder / "data", "no image with a groundTruth", WHERE)
    return Bsds(folder, ids, frozenset(with_ucm))


def fitting_and_reporting(data: Bsds) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids to fit on, and ids that are only for reporting.

    With the images of `test`, the published split: train and val, and test. Of a part that lacks
    them, every fourth image is for reporting, and where less than half have a published hierarchy,
    these too, so that both can be compared.
    """
    ids = sorted(i for split in ("train", "val") for i in data.ids.get(split, ()))
    if "test" in data.ids:
        return tuple(ids), data.ids["test"]
    reporting = set(ids[::4])
    if len(data.with_ucm) < len(ids) / 2:
        reporting |= data.with_ucm
    return tuple(i for i in ids if i not in reporting), tuple(i for i in ids if i in reporting)


def _find(root: Path) -> Path:
    """The folder BSDS500, whatever it is called. Raises BadFile where there is none."""
    around = [root, root / "BSDS500", root / "BSR" / "BSDS500"]
    if root.name == "data":
        around.append(root.parent)
    for place in around:
        if (place / "data" / "images").is_dir():
            return place
    raise BadFile(root, "no BSDS500/data/images in it", WHERE)


def _stems(folder: Path, suffix: str) -> set[str]:
    if not folder.is_dir():
        return set()
    names = (name for name in os.listdir(folder) if not name.startswith("."))
    return {Path(name).stem for name in names if name.endswith(suffix)}


# --- a dataset of the pipeline --------------------------------------------------------------------
@dataclass(frozen=True)
class Files:
    """One image and its annotation, as published."""

    image_id: str
    name: str  # of the image's file
    image: Path
    drawings: Path
    hierarchy: Path  # may be absent


def open_tree(place: Place, problems: Problems) -> Tree:
    """A copy of BSDS500, or of a part of it: images, drawings, hierarchies where they are there.

    An image is one that has a file in data/images or in data/groundTruth; it must have both.

    Raises:
        BadFile: no image is there, an image is in two splits, or a file is called by no id.
    """
    with problems.noted():
        folder = _find(place.folder)
        if not folder.is_relative_to(place.folder):
            raise BadFile(place.folder, "the folder data/ of BSDS500", "name the folder around it")
        splits = {name: ids for name in SPLITS if (ids := _ids(folder, name, problems))}
        if not splits:
            raise BadFile(folder / "data" / "images", "no image in train/, val/ or test/", WHERE)
        _check_apart(folder, splits, problems)
        split_of = {i: name for name in reversed(splits) for i in splits[name]}

        def record(image_id: str) -> Files:
            split, mat = split_of[image_id], f"{image_id}.mat"
            image = folder / "data" / "images" / split / f"{image_id}.jpg"
            drawings = folder / "data" / "groundTruth" / split / mat
            hierarchy = folder / "ucm2" / split / mat
            return Files(image_id, place.name_of(image), image, drawings, hierarchy)

        def files_of(image_id: str) -> ImageFiles:
            files = record(image_id)
            must = {files.name: files.image, place.name_of(files.drawings): files.drawings}
            return ImageFiles(must, {place.name_of(files.hierarchy): files.hierarchy})

        return Tree(
            categories=(),
            splits=splits,
            official=OFFICIAL,
            lists={},
            files_of=files_of,
            record=record,
            read=read_sample,
            notes=_notes(folder, splits),
        )
    return Tree.nothing(())


def _ids(folder: Path, split: str, problems: Problems) -> list[str]:
    """The images of a split, sorted as text."""
    ids = set()
    for inner, suffix in (("images", ".jpg"), ("groundTruth", ".mat")):
        below = folder / "data" / inner / split
        for image_id in _stems(below, suffix):
            with problems.noted():
                if not is_image_id(image_id):
                    remedy = "call it by letters, digits, _ and -"
                    raise BadFile(below / f"{image_id}{suffix}", "its name is no image id", remedy)
                ids.add(image_id)
    return sorted(ids)


def _check_apart(folder: Path, splits: dict[str, list[str]], problems: Problems) -> None:
    """BadFile for an image that is in two splits."""
    paths = {name: folder / "data" / "images" / name for name in SPLITS}
    check_apart(splits, paths, problems)
    if "val" in splits and "test" in splits:
        learnt, measured = {"trainval": splits["val"]}, {"test": splits["test"]}
        check_apart(learnt | measured, {**paths, "trainval": paths["val"]}, problems)


def _notes(folder: Path, splits: dict[str, list[str]]) -> tuple[str, ...]:
    notes = [
        f"no images of {name}; officially {n}" for name, n in OFFICIAL.items() if name not in splits
    ]
    for name, ids in splits.items():
        count = len(_stems(folder / "ucm2" / name, ".mat").intersection(ids))
        notes.append(f"{name}: published hierarchies (ucm2) of {count} of {len(ids)} images")
    return tuple(notes)


def read_sample(record: Files, problems: Problems) -> Sample:
    """An image; what people drew on it, and its published hierarchy, are only checked.

    Raises:
        BadFile: a file is missing, damaged or contradicts another; names it and the remedy.
    """
    shape = image_size(record.image)
    with problems.noted():
        read_drawings(record.drawings, shape)
    with problems.noted():
        if os.path.lexists(record.hierarchy):
            _check_ucm(record.hierarchy, shape)
    return Sample(record.image_id, record.name, shape, "bsds500", label_map=None, objects=None)
