"""Boxes and segmentations of somebody's own images, in the form of COCO's instances.

    images         id, file_name (any folder; its stem is the image id), height and width if known
    categories     id, name: found in categories.txt by their names
    annotations    image_id, category_id, bbox [x, y, width, height] or segmentation or both;
                   iscrowd, 0 where it is not told

A box without a segmentation is rounded to whole pixels; where there is a segmentation, the box is
tight around it. H x W pixels.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec
import numpy as np
from pycocotools import mask as coco

from pipeline.datasets.coco import Region, painted
from pipeline.datasets.coco_json import (
    INSTANCES,
    OVERSHOOT,
    Annotation,
    CategoryEntry,
    decode,
    number_of,
    read_json,
    run_lengths,
)
from pipeline.datasets.folder_files import list_some
from pipeline.datasets.form import AnnotatedObject, Box
from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile
from pipeline.masks import rle_box

NOTHING = (b"", b"null", b"[]")  # segmentations of an annotation that has none
CORRECT = "correct the file"


class OwnImage(msgspec.Struct, gc=False):
    id: int | str
    file_name: str
    height: int | None = None
    width: int | None = None


class OwnAnnotation(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int
    id: int | None = None
    iscrowd: Literal[0, 1] = 0
    bbox: list[float] | None = None  # some write [] for none
    segmentation: msgspec.Raw = msgspec.Raw(b"")


IMAGE = msgspec.json.Decoder(OwnImage)
CATEGORY = msgspec.json.Decoder(CategoryEntry)
ANNOTATION = msgspec.json.Decoder(OwnAnnotation)


@dataclass(frozen=True)
class Entry:
    """An annotation of an image."""

    number: int  # its id; its place in the file where it has none
    category: int  # ours
    crowd: bool
    bbox: tuple[float, ...]  # x, y, width, height; () where there is none
    segmentation: bytes  # JSON; b"" where there is none


@dataclass(frozen=True)
class Boxes:
    """What a JSON file says of an image."""

    json: Path
    size: tuple[int | None, int | None]  # H, W
    entries: tuple[Entry, ...]
    drawn: bool  # whether all annotations of the file have segmentations


# --- the files ------------------------------------------------------------------------------------
def read_files(
    paths: list[Path],
    categories: tuple[str, ...],
    image_ids: set[str],
    problems: Problems,
    notes: list[str],
) -> dict[str, Boxes]:
    """What the JSON files say, by image id.

    Args:
        categories: names, background first.
        image_ids: of the images that are there; others are passed over, and noted.

    Raises:
        BadFile: through `problems`: no JSON of that form, unknown categories, an image twice.
    """
    boxes: dict[str, Boxes] = {}
    for path in paths:
        with problems.noted():
            for image_id, its_boxes in _read_file(path, categories, problems).items():
                with problems.noted():
                    if image_id in boxes:
                        problem = f"image {image_id} is in {boxes[image_id].json.name} too"
                        raise BadFile(path, problem, "list each image once")
                    boxes[image_id] = its_boxes
    if absent := sorted({*boxes} - image_ids):
        notes.append(f"boxes of images that are not there: {list_some(absent)}")
    return {image_id: found for image_id, found in boxes.items() if image_id in image_ids}


def _read_file(path: Path, categories: tuple[str, ...], problems: Problems) -> dict[str, Boxes]:
    contents = decode(INSTANCES, read_json(path), path, "")
    images, refused = _read_images(path, contents.images, problems)
    names: dict[int, str] = {}
    for number, raw in enumerate(contents.categories):
        with problems.noted():
            category = decode(CATEGORY, raw, path, f"categories[{number}]: ")
            if category.id in names:
                raise BadFile(path, f"category {category.id} again", "list each category once")
            names[category.id] = category.name.strip()
    entries = _read_entries(
        path, contents.annotations, images, refused, names, categories, problems
    )
    every = [entry for its in entries.values() for entry in its]
    drawn = bool(every) and all(entry.segmentation for entry in every)
    by_id: dict[str, Boxes] = {}
    for image in images.values():
        with problems.noted():
            image_id = PurePosixPath(image.file_name.replace("\\", "/")).stem
            if image_id in by_id:
                raise BadFile(path, f"{image.file_name} again", "list each image once")
            size = (image.height, image.width)
            by_id[image_id] = Boxes(path, size, tuple(entries[image.id]), drawn)
    return by_id


def _read_images(
    path: Path, raws: list[msgspec.Raw], problems: Problems
) -> tuple[dict[int | str, OwnImage], set[int | str | None]]:
    """The images by their numbers in the file, and the numbers of those that are faulty."""
    images: dict[int | str, OwnImage] = {}
    refused = set()
    for place, raw in enumerate(raws):
        number = number_of(raw)
        with problems.noted():
            refused.add(number)
            image = decode(IMAGE, raw, path, f"images[{place}]: ")
            if image.id in images:
                raise BadFile(path, f"image {image.id} again", "list each image once")
            images[image.id] = image
            refused.discard(number)
    return images, refused


def _read_entries(
    path: Path,
    annotations: list[msgspec.Raw],
    images: dict[int | str, OwnImage],
    refused: set[int | str | None],
    names: dict[int, str],
    categories: tuple[str, ...],
    problems: Problems,
) -> dict[int | str, list[Entry]]:
    """The annotations of each image, by the image's number in the file."""
    entries: dict[int | str, list[Entry]] = {number: [] for number in images}
    unknown: Counter[str] = Counter()
    for place, raw in enumerate(annotations):
        with problems.noted():
            read = decode(ANNOTATION, raw, path, f"annotations[{place}]: ")
            number = place if read.id is None else read.id
            if read.image_id in refused and read.image_id not in images:
                continue  # the fault is the image's
            if read.image_id not in images:
                problem = f"annotation {number} is of image {read.image_id}, which is not listed"
                raise BadFile(path, problem, "list the image or take the annotation out")
            name = names.get(read.category_id, f"number {read.category_id}")
            if name not in categories[1:]:
                unknown[name] += 1
                continue
            segmentation = bytes(read.segmentation)
            entry = Entry(
                number=number,
                category=categories.index(name),
                crowd=read.iscrowd == 1,
                bbox=tuple(read.bbox or ()),
                segmentation=b"" if segmentation.strip() in NOTHING else segmentation,
            )
            entries[read.image_id].append(entry)
    for name, count in unknown.items():
        with problems.noted():
            problem = f"category {name!r} of {count} annotations is not in categories.txt"
            raise BadFile(path, problem, "add it there, or take these annotations out")
    return entries


# --- one image ------------------------------------------------------------------------------------
def read_objects(
    boxes: Boxes, size: tuple[int, int], problems: Problems
) -> tuple[list[AnnotatedObject], np.ndarray | None]:
    """The objects of an image, and its label map (H, W) uint8 if they are all drawn.

    Raises:
        BadFile: another size than the image's; through `problems`, faulty boxes or segmentations.
    """
    for said, side in zip(boxes.size, size, strict=True):
        if said not in (None, side):
            problem = f"the image is {boxes.size[1]}x{boxes.size[0]} here, but {size[1]}x{size[0]}"
            problem += " in its file"
            raise BadFile(boxes.json, problem, "one of them is another image's or was resized")
    objects = []
    regions = []
    for entry in boxes.entries:
        with problems.noted():
            box, rle = _box_of(entry, size, boxes.json)
            counts = rle["counts"].decode("ascii") if rle else None
            objects.append(AnnotatedObject(entry.category, box, False, entry.crowd, counts))
            if rle:
                area = int(coco.area(rle))
                regions.append(Region(entry.category, entry.crowd, area=area, rle=rle, box=box))
    whole = boxes.drawn and len(regions) == len(boxes.entries)
    return objects, painted(regions, size) if whole else None


def _box_of(entry: Entry, size: tuple[int, int], path: Path) -> tuple[Box, dict | None]:
    """The box of an annotation and its mask as pycocotools' run-lengths, if it has one."""
    what = f"annotation {entry.number}"
    if entry.segmentation:
        raw = msgspec.Raw(entry.segmentation)
        annotation = Annotation(entry.number, 0, 0, 0, 0.0, (0.0, 0.0, 0.0, 0.0), raw)
        rle = run_lengths(annotation, size, path)
        if int(coco.area(rle)) == 0:
            raise BadFile(path, f"{what}: its segmentation holds no pixel", CORRECT)
        return rle_box(rle["counts"].decode("ascii"), *size), rle
    if len(entry.bbox) != 4:
        problem = f"{what}: {len(entry.bbox)} numbers for a box, and no segmentation"
        raise BadFile(path, problem, CORRECT)
    x, y, w, h = entry.bbox
    height, width = size
    if min(x, y) >= -OVERSHOOT and x + w <= width + OVERSHOOT and y + h <= height + OVERSHOOT:
        x0, x1 = (min(max(round(at), 0), width) for at in (x, x + w))
        y0, y1 = (min(max(round(at), 0), height) for at in (y, y + h))
        if x0 < x1 and y0 < y1:
            return (x0, y0, x1, y1), None
    raise BadFile(
        path,
        f"{what}: the box x {x:g}, y {y:g}, width {w:g}, height {h:g} holds no pixel or is not "
        f"inside the image of {width}x{height}",
        CORRECT,
    )
