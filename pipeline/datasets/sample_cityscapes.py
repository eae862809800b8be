"""The drawn sample in the layout of Cityscapes.

Each kind of object is one of the eight trained labels whose objects are told apart; the ground is
sky, building, road and, as a label that is ignored, ego vehicle; void borders are unlabeled. What
is cut off from an object by another in front is a group, and every second image has a group
besides. All maps are drawn from the polygons.

H x W pixels. Points are (x, y), the middles of pixels.
"""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipeline.categories import IGNORE
from pipeline.datasets.cityscapes import label_of_number
from pipeline.datasets.cityscapes_polygons import draw as draw_polygons
from pipeline.datasets.cityscapes_polygons import read_polygons
from pipeline.datasets.processes import map_in_order
from pipeline.datasets.sample import Drawn, draw
from pipeline.datasets.tree import Problems
from pipeline.masks import FAST

CITIES = {"train": ("ringstadt", "sternburg"), "val": ("gabelheim",)}
FRAME = 19  # each sequence of 30 frames has its 20th annotated

# By the category of the sample, 1..8.
KINDS = ("", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
GROUND = (("sky", 0, 0.3), ("building", 0.3, 0.5), ("road", 0.5, 0.95), ("ego vehicle", 0.95, 1))
GROUP = ("persongroup", (8, 40, 28, 64))  # x0, y0, x1, y1; objects may lie over it


def image_id(split: str, index: int) -> str:
    """The name of an image: ``sternburg_000003_000019``."""
    cities = CITIES[split]
    return f"{cities[index % len(cities)]}_{index:06d}_{FRAME:06d}"


def write_cityscapes(root: Path, train: int, val: int) -> None:
    """Draw the sample into `root`.

    Args:
        train, val: number of images.
    """
    jobs = [(split, i) for split, n in (("train", train), ("val", val)) for i in range(n)]
    for _ in map_in_order(partial(_write_image, root), jobs, "drawing"):
        pass


def annotation(drawn: Drawn, *, with_group: bool) -> list[tuple[str, list[tuple[int, int]]]]:
    """Labels and polygons of a drawn image, in the order in which they are drawn."""
    height, width = drawn.object_map.shape
    entries = [
        (label, _rectangle(0, round(top * height), width, round(bottom * height)))
        for label, top, bottom in GROUND
    ]
    if with_group:
        entries.append((GROUP[0], _rectangle(*GROUP[1])))
    entries += [("unlabeled", part) for part in outlines(drawn.object_map == IGNORE)]
    for number, category in enumerate(drawn.categories.tolist(), start=1):
        largest, *others = outlines(drawn.object_map == number)
        entries.append((KINDS[category], largest))
        entries += [(f"{KINDS[category]}group", part) for part in others]
    return entries


def outlines(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """One polygon for each connected part of a mask (H, W) bool, the largest part first.

    A hole is joined to the rest of its polygon where the two are nearest, there and back.
    """
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = stats[:, cv2.CC_STAT_AREA]
    order = sorted(range(1, count), key=lambda part: -areas[part])
    return [_outline((parts == part).astype(np.uint8)) for part in order]


def _outline(part: np.ndarray) -> list[tuple[int, int]]:
    contours, hierarchy = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [contour[:, 0] for contour in contours]  # (n, 2)
    outer = next(i for i, links in enumerate(hierarchy[0]) if links[3] < 0)
    polygon = contours.pop(outer)
    while contours:
        apart = [np.square(polygon[:, None] - hole[None]).sum(axis=2) for hole in contours]
        nearest = min(range(len(contours)), key=lambda i: apart[i].min())
        here, there = np.unravel_index(apart[nearest].argmin(), apart[nearest].shape)
        hole = np.roll(contours.pop(nearest), -there, axis=0)
        polygon = np.concatenate([polygon[: here + 1], hole, hole[:1], polygon[here:]])
    closed = [*polygon.tolist(), *polygon[:2].tolist()]  # a single pixel has too few points
    return [(x, y) for x, y in closed]


def _rectangle(x0: int, y0: int, x1: int, y1: int) -> list[tuple[int, int]]:
    """The polygon of the pixels of a half-open box."""
    return [(x0, y0), (x1 - 1, y0), (x1 - 1, y1 - 1), (x0, y1 - 1)]


def _write_image(root: Path, job: tuple[str, int]) -> None:
    """Draw one image (split, index) and write its files."""
    split, index = job
    drawn, name = draw(split, index), image_id(split, index)
    city = Path(split, name.split("_")[0])
    for folder in ("leftImg8bit", "gtFine"):
        (root / folder / city).mkdir(parents=True, exist_ok=True)
    image = root / "leftImg8bit" / city / f"{name}_leftImg8bit.png"
    Image.fromarray(drawn.image).save(image, compress_level=FAST)
    start = root / "gtFine" / city / f"{name}_gtFine_"
    height, width = drawn.image.shape[:2]
    entries = annotation(drawn, with_group=index % 2 == 0)
    content = {
        "imgHeight": height,
        "imgWidth": width,
        "objects": [{"label": label, "polygon": points} for label, points in entries],
    }
    polygons = Path(f"{start}polygons.json")
    polygons.write_text(json.dumps(content), encoding="utf-8")
    read = read_polygons(polygons, (height, width), Problems(collect=False)) or []
    numbers = draw_polygons(read, (height, width))
    Image.fromarray(numbers).save(f"{start}instanceIds.png", compress_level=FAST)
    labels = label_of_number()[numbers]
    Image.fromarray(labels).save(f"{start}labelIds.png", compress_level=FAST)
