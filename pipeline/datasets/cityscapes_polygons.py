"""Cityscapes' polygons: what its maps were drawn from.

    {"imgHeight": 1024, "imgWidth": 2048,
     "objects": [{"label": "car", "polygon": [[x, y], ...], "deleted": 0}, ...]}

Later polygons lie over earlier ones. A label that ends in "group" and is none without that ending
is a region of several objects. H x W pixels.
"""

import codecs
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image, ImageDraw

from pipeline.categories import CITYSCAPES_LABELS, CITYSCAPES_THINGS
from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile, need_file

PER_LABEL = 1000  # numbers of objects that each label has
LICENSE_PLATE = "license plate"  # annotated, but not drawn: its published id is -1
FARTHEST = 100_000  # pixels from the corner of the image to a polygon's point

Point = tuple[float, float]  # x, y in pixels


class _Entry(msgspec.Struct):
    label: str
    polygon: list[Point]
    deleted: int | bool = 0


class _Annotation(msgspec.Struct):
    height: int = msgspec.field(name="imgHeight")
    width: int = msgspec.field(name="imgWidth")
    entries: list[_Entry] = msgspec.field(name="objects")


def read_polygons(
    path: Path, shape: tuple[int, int], problems: Problems
) -> list[tuple[int, list[Point]]] | None:
    """The polygons of an image in the order in which they are drawn, as numbers and points.

    Numbers are those of instanceIds: objects of a label count up in the order of the file. Deleted
    polygons and license plates are left out. None if a polygon is faulty.

    Args:
        shape: height and width of the image.

    Raises:
        BadFile: the file is missing, unreadable or another image's.
    """
    need_file(path)
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        annotation = msgspec.json.decode(data, type=_Annotation)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise BadFile(path, f"not readable polygons ({error})", "copy the file anew") from error
    if (annotation.height, annotation.width) != shape:
        raise BadFile(
            path,
            f"of an image of {annotation.width}x{annotation.height}, but the image has "
            f"{shape[1]}x{shape[0]}",
            "one of them is another image's or was resized",
        )
    entries = [entry for entry in annotation.entries if not entry.deleted]
    counts = dict.fromkeys(CITYSCAPES_THINGS, 0)
    polygons = []
    faultless = 0
    for entry in entries:
        with problems.noted():
            number = _number(path, entry, counts)
            if number is not None:
                polygons.append((number, entry.polygon))
            faultless += 1
    return polygons if faultless == len(entries) else None


def _number(path: Path, entry: _Entry, counts: dict[int, int]) -> int | None:
    """The number of a polygon, counting objects up; None for what is not drawn."""
    name, group = entry.label, False
    known = (*CITYSCAPES_LABELS, LICENSE_PLATE)
    if name not in known and name.endswith("group"):
        name, group = name.removesuffix("group"), True
    if name not in known:
        raise BadFile(path, f"unknown label {entry.label!r}", "put the original file there")
    if len(entry.polygon) < 2:  # of two points a line is drawn
        raise BadFile(
            path, f"a {entry.label} of {len(entry.polygon)} points", "put the original file there"
        )
    if any(abs(value) > FARTHEST for point in entry.polygon for value in point):
        raise BadFile(
            path, f"a {entry.label} that is far outside the image", "put the original file there"
        )
    if name == LICENSE_PLATE:
        return None
    label = CITYSCAPES_LABELS.index(name)
    if group or label not in counts:
        return label
    counts[label] += 1
    if counts[label] > PER_LABEL:
        raise BadFile(path, f"more than {PER_LABEL} of {name}", "put the original file there")
    return label * PER_LABEL + counts[label] - 1


def draw(polygons: list[tuple[int, list[Point]]], shape: tuple[int, int]) -> np.ndarray:
    """Polygons over each other as numbers, like instanceIds. Returns (H, W) uint16, 0 elsewhere.

    Pillow draws them, as it did for the published maps: which pixels an edge has is its rule, and
    so is that what lies outside the image is not drawn.
    """
    height, width = shape
    canvas = Image.new("I", (width, height))
    drawer = ImageDraw.Draw(canvas)
    for number, points in polygons:
        drawer.polygon(points, fill=number)
    return np.array(canvas).astype(np.uint16)
