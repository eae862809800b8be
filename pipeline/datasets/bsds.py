"""BSDS500: photographs whose contours several people have drawn (Arbelaez et al. 2011).

Published layout, below BSDS500/:

    data/images/{train,val,test}/<id>.jpg
    data/groundTruth/{train,val,test}/<id>.mat   groundTruth, a cell for each person: a struct of
                                                 Segmentation (numbers from 1) and Boundaries
    ucm2/{train,val,test}/<id>.mat               gPb-UCM: ucm2, strengths between the pixels

H x W pixels, K people.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.datasets import matfile
from pipeline.datasets.form import read_image
from pipeline.errors import BadFile

SPLITS = ("train", "val", "test")
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
        people = _people(path)

        def drawn(name: str) -> np.ndarray:
            maps = [person[name] for person in people if name in person]
            sound = [m for m in maps if isinstance(m, np.ndarray) and m.shape == image.shape[:2]]
            if len(sound) < len(people):
                raise BadFile(path, f"no {name} of the image's size", "copy it anew")
            return np.stack(sound)

        return Drawn(image, drawn("Segmentation").astype(np.uint16), drawn("Boundaries") > 0)

    def read_ucm(self, image_id: str) -> np.ndarray:
        """The published gPb-UCM (2 H + 1, 2 W + 1) float64. Raises BadFile."""
        path = self.folder / "ucm2" / self._split(image_id) / f"{image_id}.mat"
        return read_ucm(path)

    def _split(self, image_id: str) -> str:
        return next(split for split, ids in self.ids.items() if image_id in ids)


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
    return ucm.astype(np.float64)


def open_bsds(root: Path) -> Bsds:
    """A copy at `root` or below it in BSDS500/ or BSR/BSDS500/; or its data/ is `root`.

    Raises:
        BadFile: no folder of images with drawings is there.
    """
    around = [root, root / "BSDS500", root / "BSR" / "BSDS500"]
    if root.name == "data":
        around.append(root.parent)
    folder = next((place for place in around if (place / "data" / "images").is_dir()), None)
    if folder is None:
        raise BadFile(root, "no BSDS500/data/images in it", WHERE)
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


def _stems(folder: Path, suffix: str) -> set[str]:
    if not folder.is_dir():
        return set()
    return {Path(name).stem for name in os.listdir(folder) if name.endswith(suffix)}


def _people(path: Path) -> list[dict[str, matfile.Value]]:
    """The fields of the struct in each cell of groundTruth. Raises BadFile."""
    people = matfile.read_cells(path, "groundTruth")
    fields = [person for person in people if isinstance(person, dict)]
    if not fields or len(fields) < len(people):
        raise BadFile(path, "no groundTruth of people's drawings in it", "copy it anew")
    return fields
