"""The drawn sample in the layout of PASCAL-Context on VOC 2010.

Each kind of object is one of the 59 names, the ground is sky and floor and, on the left, something
that is none of the 59. Void borders have the authors' 0: no label. The numbers of the names differ
from the authors', many lie above 255, and three names are written as in their labels.txt.

H x W pixels.
"""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.categories import CONTEXT, CONTEXT_ALIASES, NUM_CONTEXT_LABELS
from pipeline.datasets.matfile import encode_variables
from pipeline.datasets.processes import map_in_order
from pipeline.datasets.sample import JPEG_QUALITY, Drawn, draw, image_id

# By the category of the sample, 1..8: names that are written otherwise, and names of high numbers.
KINDS = ("", "diningtable", "clothes", "bedcloth", "aeroplane", "person", "track", "window", "wood")
STEP = 7  # between the numbers of two of the 59 names
OTHER = 3  # the number of a name that is none of them


def write_context(root: Path, train: int, val: int) -> None:
    """Draw the sample into `root`: labels, and the images in VOC2010/ beside.

    Args:
        train, val: number of images.
    """
    voc = root / "VOC2010"
    for folder in (voc / "JPEGImages", voc / "ImageSets" / "Main", root / "trainval"):
        folder.mkdir(parents=True, exist_ok=True)
    numbered = sorted((number, name) for name, number in names().items())
    _write_lines(root / "labels.txt", [f"{number}: {name}" for number, name in numbered])
    _write_lines(root / "59_labels.txt", [f"{i}: {name}" for i, name in enumerate(CONTEXT) if i])
    for split, count in (("train", train), ("val", val)):
        ids = [image_id(split, i) for i in range(count)]
        _write_lines(voc / "ImageSets" / "Main" / f"{split}.txt", ids)
        jobs = [(split, i) for i in range(count)]
        for _ in map_in_order(partial(_write_image, root), jobs, "drawing"):
            pass


def names() -> dict[str, int]:
    """The numbers of the 459 names: 7, 14, ..., 413 for the 59."""
    ours = {CONTEXT_ALIASES.get(name, name): STEP * i for i, name in enumerate(CONTEXT) if i}
    free = sorted({*range(1, NUM_CONTEXT_LABELS + 1)} - {*ours.values()})
    return ours | {f"thing {number}": number for number in free}


def label_map(drawn: Drawn) -> np.ndarray:
    """The LabelMap (H, W) uint16 of a drawn image."""
    numbers = names()
    kinds = [numbers[CONTEXT_ALIASES.get(name, name)] for name in KINDS[1:]]
    height, width = drawn.label_map.shape
    ground = np.full((height, width), numbers["floor"], np.uint16)
    ground[: height // 3] = numbers["sky"]
    ground[:, : width // 5] = OTHER
    table = np.zeros(256, np.uint16)
    table[1 : len(KINDS)] = kinds
    return np.where(drawn.label_map == 0, ground, table[drawn.label_map])


def _write_image(root: Path, job: tuple[str, int]) -> None:
    """Draw one image (split, index) and write its files."""
    drawn, name = draw(*job), image_id(*job)
    image = root / "VOC2010" / "JPEGImages" / f"{name}.jpg"
    Image.fromarray(drawn.image).save(image, quality=JPEG_QUALITY)
    mat = encode_variables({"LabelMap": label_map(drawn)})
    (root / "trainval" / f"{name}.mat").write_bytes(mat)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
