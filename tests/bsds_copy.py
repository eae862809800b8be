"""A drawn BSDS500 of a few images, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.datasets.matfile import encode_variables

H, W = 12, 17


def segmentations(number: int) -> list[np.ndarray]:
    """What two people drew on an image: halves, and thirds."""
    columns = np.arange(W)[None].repeat(H, axis=0)
    return [
        (1 + (columns >= 8 + number % 3)).astype(np.uint16),
        (1 + columns // 6).astype(np.uint16),
    ]


def borders(segmentation: np.ndarray) -> np.ndarray:
    """True left of where the region changes."""
    return np.diff(segmentation, axis=1, append=segmentation[:, -1:]) != 0


def write_drawn(folder: Path, split: str, image_id: str, number: int = 0, *, ucm: bool) -> None:
    """One image, what two people drew on it, and a hierarchy, if wanted, below BSDS500/."""
    drawn = segmentations(number)
    people = np.empty((1, len(drawn)), object)
    for place, segmentation in enumerate(drawn):
        people[0, place] = {
            "Segmentation": segmentation,
            "Boundaries": borders(segmentation).astype(np.uint8),
        }
    path = folder / "data" / "images" / split / f"{image_id}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.dstack([drawn[0] * 100] * 3).astype(np.uint8)
    Image.fromarray(image).save(path, quality=95)
    write_mat(folder / "data" / "groundTruth" / split / f"{image_id}.mat", groundTruth=people)
    if ucm:
        grid = np.zeros((2 * H + 1, 2 * W + 1))
        grid[:, 16] = 0.5
        write_mat(folder / "ucm2" / split / f"{image_id}.mat", ucm2=grid)


def write_mat(path: Path, **content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_variables(content))


def write_bsds(root: Path, train: int, val: int, test: int) -> None:
    """A copy as its archive unpacks; the first image of each split has a hierarchy."""
    for first, (split, count) in enumerate({"train": train, "val": val, "test": test}.items()):
        for number in range(count):
            name = f"{first + 1}{number:03}"
            write_drawn(root / "BSR" / "BSDS500", split, name, number, ucm=number == 0)
