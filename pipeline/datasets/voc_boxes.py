"""VOC's XML annotations, and which of an image's masks belongs to which of its boxes.

H x W pixels.
"""

import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline import boxes
from pipeline.datasets.form import AnnotatedObject
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
    if not objects or not masks:
        return tuple(objects)
    object_boxes = np.array([o.box for o in objects])
    mask_boxes = np.array([rle_box(counts, *shape) for _, counts in masks])
    iou = boxes.iou(object_boxes, mask_boxes)
    same = np.array([o.category for o in objects])[:, None] == np.array([c for c, _ in masks])
    iou = np.where(same, iou, 0)
    joined = list(objects)
    while iou.max() >= MIN_BOX_IOU:
        i, j = np.unravel_index(iou.argmax(), iou.shape)
        joined[i] = replace(objects[i], mask_rle=masks[j][1])
        iou[i, :] = iou[:, j] = 0
    return tuple(joined)
