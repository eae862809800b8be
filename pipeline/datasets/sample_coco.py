"""The drawn sample in COCO's layout (see coco.py), its eight kinds as eight of COCO's categories.

Every object is polygons around its visible parts; holes are filled, for polygons have none. The
first two images of a split end with a crowd: as a list of counts, and as compressed text.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.boxes import tight_box
from pipeline.categories import COCO_NAMES, SAMPLE
from pipeline.datasets.processes import map_in_order
from pipeline.datasets.sample import JPEG_QUALITY, draw
from pipeline.masks import encode_rle

# Four of VOC's, four that are not; the ids have gaps.
COCO_OF_SAMPLE = {
    "ring": 62, "star": 17, "crescent": 52, "plus": 72, "rod": 44, "fork": 48, "triangle": 59,
    "disc": 85,
}  # fmt: skip
FIRST_NUMBER = {"train": 1, "val": 500001}  # of the images of a split
OBJECTS_PER_IMAGE = 100  # at most: annotation ids are image ids times this, and more
FINER = 4  # outlines are traced on a grid finer than the pixels, so that they enclose their centres


def write_coco(root: Path, train: int, val: int, year: int) -> None:
    """Draw the sample into `root`, in the layout of COCO.

    Args:
        train, val: number of images.
        year: 2014 or 2017; decides about names only.
    """
    for half, count in (("train", train), ("val", val)):
        split = f"{half}{year}"
        (root / split).mkdir(parents=True, exist_ok=True)
        write = partial(_write_image, root / split, half, year)
        drawn = list(map_in_order(write, range(count), "drawing"))
        content = {
            "info": {"description": "drawn sample in COCO's layout", "year": year},
            "licenses": [],
            "images": [image for image, _ in drawn],
            "annotations": [annotation for _, its_own in drawn for annotation in its_own],
            "categories": [{"id": number, "name": name} for number, name in COCO_NAMES.items()],
        }
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, separators=(",", ":")), encoding="ascii")


def file_name(half: str, index: int, year: int) -> str:
    """The name of an image's file: ``000000000009.jpg``, ``COCO_train2014_000000000009.jpg``."""
    prefix = f"COCO_{half}{year}_" if year == 2014 else ""
    return f"{prefix}{FIRST_NUMBER[half] + index:012d}.jpg"


def _write_image(
    folder: Path, half: str, year: int, index: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw one image and write it. Returns its entry and its annotations'."""
    drawn, name, number = (
        draw(half, index),
        file_name(half, index, year),
        FIRST_NUMBER[half] + index,
    )
    Image.fromarray(drawn.image).save(folder / name, quality=JPEG_QUALITY)
    height, width = drawn.visible.shape
    annotations = []
    for n, kind in enumerate(drawn.categories.tolist()):
        mask = drawn.visible == n + 1
        crowd = index < 2 and n == len(drawn.categories) - 1
        x0, y0, x1, y1 = tight_box(mask).tolist()
        segmentation = _run_lengths(mask, compressed=index == 1) if crowd else polygons(mask)
        annotations.append(
            {
                "segmentation": segmentation,
                "area": int(mask.sum()),
                "iscrowd": int(crowd),
                "image_id": number,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "category_id": COCO_OF_SAMPLE[SAMPLE[kind]],
                "id": number * OBJECTS_PER_IMAGE + n,
            }
        )
    return {"id": number, "file_name": name, "height": height, "width": width}, annotations


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines of the parts of a mask (H, W) bool: [x, y, x, y, ...] each, holes left out.

    Drawn by pycocotools they give the same pixels, and those of the holes.
    """
    fine = mask.astype(np.uint8).repeat(FINER, axis=0).repeat(FINER, axis=1)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    centres = [(contour[:, 0] + 0.5) / FINER for contour in contours]
    return [np.round(points, 2).ravel().tolist() for points in centres]


def _run_lengths(mask: np.ndarray, *, compressed: bool) -> dict[str, Any]:
    height, width = mask.shape
    if compressed:
        return {"size": [height, width], "counts": encode_rle(mask)}
    columns = mask.ravel(order="F")
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    edges = [0, 0, *changes] if columns[0] else [0, *changes]  # the first run is off
    return {"size": [height, width], "counts": np.diff(edges, append=columns.size).tolist()}
