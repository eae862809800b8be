"""VOC's XML annotations, and which of an image's masks belongs to which of its boxes.

H x W pixels.
"""

import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

from pipeline.datasets.form import AnnotatedObject, Box
from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile, need_file
from pipeline.masks import rle_box

MIN_BOX_IOU = 0.5  # of an object's box and its mask's box, to say that they are one object


def read_boxes(
    path: Path,
    shape: tuple[int, int],
    categories: tuple[str, ...],
    problems: Problems,
    *,
    of: str | None = None,
) -> list[AnnotatedObject]:
    """The objects of an XML annotation, without masks.

    Args:
        shape: height and width of the image.
        categories: names; the first, background, has no objects.
        of: the id of a published image: its annotation says so, and has an object at least.

    Raises:
        BadFile: missing, not XML, another size than the image's, a category that is unknown, a box
            without area or outside the image.
    """
    entries = _annotation(path)
    with problems.noted():
        _check_size(path, entries, shape)
    found = entries.findall("object")
    if of is not None:
        with problems.noted():
            _check_published(path, entries.findtext("filename"), of, len(found))
    objects = []
    for entry in found:
        with problems.noted():
            objects.append(_read_object(path, entry, shape, categories))
    return objects


def _annotation(path: Path) -> xml.Element:
    need_file(path)
    try:
        top = xml.parse(path).getroot()
    except (OSError, xml.ParseError, UnicodeDecodeError, ValueError, LookupError) as error:
        raise BadFile(path, f"not readable XML ({error})", "copy the file anew") from error
    if top.tag != "annotation":
        raise BadFile(path, f"<{top.tag}> instead of <annotation>", "copy the file anew")
    return top


def _check_size(path: Path, top: xml.Element, shape: tuple[int, int]) -> None:
    said = (top.findtext("size/height"), top.findtext("size/width"))
    if any(said) and [(s or "").strip() for s in said] != [str(side) for side in shape]:
        raise BadFile(
            path,
            f"says {said[1]}x{said[0]} pixels, but the image has {shape[1]}x{shape[0]}",
            "one of them is another image's or was resized",
        )


def _check_published(path: Path, filename: str | None, of: str, objects: int) -> None:
    if filename and Path(filename.strip()).stem != of:
        raise BadFile(path, f"is of {filename.strip()}, another image", "copy the file anew")
    if not objects:
        raise BadFile(path, "no object in it", "copy the file anew")


def _read_object(
    path: Path, entry: xml.Element, shape: tuple[int, int], categories: tuple[str, ...]
) -> AnnotatedObject:
    name = (entry.findtext("name") or "").strip()
    if name not in categories[1:]:
        raise BadFile(path, f"unknown category {name!r}", f"known: {', '.join(categories[1:])}")
    try:
        # Some of VOC's coordinates have a fraction.
        xmin, ymin, xmax, ymax = (
            round(float(entry.findtext(f"bndbox/{side}") or ""))
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = int(entry.findtext("difficult") or 0) != 0
    except (ValueError, OverflowError) as error:
        raise BadFile(
            path, f"a {name} whose box or difficult flag is no number ({error})", "correct the file"
        ) from error
    height, width = shape
    if not (1 <= xmin <= xmax <= width and 1 <= ymin <= ymax <= height):
        raise BadFile(
            path,
            f"the box ({xmin}, {ymin}, {xmax}, {ymax}) of a {name} is empty or not inside "
            f"the image of {width}x{height} (coordinates count from 1)",
            "correct the file",
        )
    box = (xmin - 1, ymin - 1, xmax, ymax)
    return AnnotatedObject(categories.index(name), box, difficult, crowd=False, mask_rle=None)


def join(
    objects: list[AnnotatedObject], masks: list[tuple[int, str]], shape: tuple[int, int]
) -> tuple[AnnotatedObject, ...]:
    """Give each object the mask of its category whose box is nearest to its own.

    Pairs are taken from the highest IoU of boxes down to 0.5; each object and each mask once.
    Masks that are left over are dropped, objects that are left over stay without a mask.

    Args:
        masks: category and run-lengths of each.
        shape: height and width of the image.
    """
    mask_boxes = [rle_box(counts, *shape) for _, counts in masks]
    pairs = [
        (overlap, -i, -j)
        for i, o in enumerate(objects)
        for j, (category, _) in enumerate(masks)
        if category == o.category and (overlap := _iou(o.box, mask_boxes[j])) >= MIN_BOX_IOU
    ]
    joined, taken = list(objects), set[int]()
    for _, i, j in sorted(pairs, reverse=True):  # of equal pairs, the first in the lists
        if joined[-i].mask_rle is None and j not in taken:
            joined[-i] = replace(joined[-i], mask_rle=masks[-j][1])
            taken.add(j)
    return tuple(joined)


def _iou(a: Box, b: Box) -> float:
    """`boxes.iou` of two boxes with area, without the cost of arrays for so few numbers."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (areas - shared)
