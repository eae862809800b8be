"""COCO 2014 and 2017, and any data in their layout.

Published layout:

    annotations/instances_{train,val}<year>.json
    {train,val}<year>/<file_name>.jpg        2014: COCO_train2014_000000000009.jpg

A JSON file lists images (id, file_name, height, width), categories (id, name) and annotations (id,
image_id, category_id, iscrowd, area, bbox, segmentation). A box is x, y, width, height with
fractions. A segmentation is a list of polygons [x, y, x, y, ...], or run-lengths down the columns
for crowds: a list of counts, or COCO's compressed text.

Splits: train<year>, val<year> and, where both are there, trainval<year>. H x W pixels.

Published oddities, which are no faults: images without annotations stay, without objects; an
annotation whose polygons hold no pixel (ids 918 and 2206849 of 2017 have boxes of height 0) cannot
be an object, is left out and counted in the notes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as coco

from pipeline.categories import COCO, COCO_NAMES, COCO_OF_VOC, IGNORE, VOC
from pipeline.datasets.coco_json import (
    ANNOTATION,
    COPY_ANEW,
    OVERSHOOT,
    Annotation,
    Listed,
    decode,
    decode_counts,
    is_tiny,
    read_instances,
    run_lengths,
)
from pipeline.datasets.form import AnnotatedObject, Box, Sample, image_size
from pipeline.datasets.tree import ImageFiles, Place, Problems, Tree
from pipeline.errors import BadFile

OFFICIAL = {
    "train2014": 82783, "val2014": 40504, "trainval2014": 123287,
    "train2017": 118287, "val2017": 5000, "trainval2017": 123287,
}  # fmt: skip


# --- the lists ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Record:
    """What `read` needs of one image."""

    image_id: str
    json: Path
    name: str  # of the image's file, published
    image: Path
    size: tuple[int, int]  # H, W by the JSON file
    annotations: tuple[bytes, ...]  # JSON


def open_tree(
    place: Place,
    problems: Problems,
    *,
    years: tuple[int, ...],
    categories: Literal["voc", "coco"],
    others: Literal["background", "ignore"],
) -> Tree:
    """A copy of COCO: all that its annotation files list.

    Args:
        years: 2014, 2017 or both.
        categories: the 80 of COCO in the order of their ids, or the 20 of VOC.
        others: what the pixels of COCO's other 60 are if the categories are VOC's.

    Raises:
        BadFile: a folder or file is missing, an annotation file is no JSON or contradicts itself.
    """
    images: dict[str, Listed] = {}
    splits: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    notes: list[str] = []
    with problems.noted():
        _check_place(place, years)
    for split in (f"{half}{year}" for year in years for half in ("train", "val")):
        path = _instances(place, split)
        if os.path.lexists(path):
            files[place.name_of(path)] = path
            with problems.noted():
                splits[split] = _read_split(place, split, images, problems, notes)
        elif os.path.isdir(place.folder / split):
            notes.append(f"{split}/ has no annotations ({path.name} is not there): left out")
    for year in years:
        if (train := f"train{year}") in splits and (val := f"val{year}") in splits:
            splits[f"trainval{year}"] = splits[train] + splits[val]

    def path_of(image_id: str) -> Path:
        return place.folder / images[image_id].split / images[image_id].entry.file_name

    def record(image_id: str) -> Record:
        image, path = images[image_id], path_of(image_id)
        size = (image.entry.height, image.entry.width)
        entries = tuple(bytes(annotation) for annotation in image.annotations)
        return Record(image_id, image.json, place.name_of(path), path, size, entries)

    def files_of(image_id: str) -> ImageFiles:
        path = path_of(image_id)
        return ImageFiles(must={place.name_of(path): path})

    return Tree(
        categories=VOC if categories == "voc" else COCO,
        splits=splits,
        official={name: OFFICIAL[name] for name in splits},
        lists=files,
        files_of=files_of,
        record=record,
        read=partial(read, values_of(categories, others)),
        notes=tuple(notes),
        counts_crowds=True,
    )


def values_of(
    categories: Literal["voc", "coco"], others: Literal["background", "ignore"]
) -> dict[int, int]:
    """The value in the label map of each published category id: ours, or what `others` says."""
    if categories == "coco":
        return {number: rank for rank, number in enumerate(COCO_NAMES, start=1)}
    rest = {"background": 0, "ignore": IGNORE}[others]
    ours = {number: rank for rank, number in enumerate(COCO_OF_VOC, start=1)}
    return {number: ours.get(number, rest) for number in COCO_NAMES}


def _instances(place: Place, split: str) -> Path:
    return place.folder / "annotations" / f"instances_{split}.json"


def _check_place(place: Place, years: tuple[int, ...]) -> None:
    paths = [_instances(place, f"{half}{year}") for year in years for half in ("train", "val")]
    if any(os.path.lexists(path) for path in paths):
        return
    hint = ""
    for inner in ("coco", "COCO", *(f"coco{year}" for year in years)):
        if os.path.isdir(place.folder / inner / "annotations"):
            hint = f" (they may be in {inner}/ there: name that folder)"
    if paths[0].parent.name == place.folder.name:
        hint = f" (this is that folder itself: name the one above, {place.folder.parent})"
    raise BadFile(
        paths[0].parent,
        f"neither {' nor '.join(path.name for path in paths)} is there{hint}",
        f"unpack annotations_trainval{years[0]}.zip and train{years[0]}.zip or val{years[0]}.zip "
        f"in {place.folder}, or name the folder that holds them in "
        f"PIPELINE_DATA_{place.name.upper()}",
    )


def _read_split(
    place: Place, split: str, images: dict[str, Listed], problems: Problems, notes: list[str]
) -> list[str]:
    """The ids of the images of an annotation file; they and their annotations go into `images`."""
    path = _instances(place, split)
    if not os.path.isdir(place.folder / split):
        raise BadFile(
            place.folder / split,
            f"not there, but {path.name} lists its images",
            f"unpack {split}.zip there, or move that file away if the split is not wanted",
        )
    ids, empty = read_instances(path, split, images, problems)
    if empty:
        first = ", ".join(str(number) for number in empty[:5])
        more = ", ..." if len(empty) > 5 else ""
        notes.append(
            f"{split}: annotations without a pixel, left out: {len(empty)} ({first}{more})"
        )
    return ids


# --- one image ------------------------------------------------------------------------------------
class Region(NamedTuple):
    value: int  # in the label map
    crowd: bool
    area: int
    rle: dict[str, Any]  # pycocotools' form: size [H, W], counts compressed
    box: Box  # tight around it


def read(values: Mapping[int, int], record: Record, problems: Problems) -> Sample:
    """An image with its label map and objects.

    In the label map smaller objects lie over larger ones, and all over crowds, which are ignored.

    Implements: Dai2015 Sec. 5.1 (COCO's boxes are tight around its masks; the published ones are
    only checked).

    Args:
        values: of each published category id in the label map (`values_of`).

    Raises:
        BadFile: the image is missing or unreadable; through `problems`, any fault of its entries.

    Reading: the papers do not say what lies in front where masks overlap; a small object is rarely
    behind a large one.
    """
    size = image_size(record.image)
    agreed = False
    with problems.noted():
        _check_size(record, size)
        agreed = True
    regions: list[Region] = []
    for raw in record.annotations if agreed else ():
        with problems.noted():
            regions.append(_region(raw, record, values))
    whole = agreed and len(regions) == len(record.annotations)
    return Sample(
        image_id=record.image_id,
        path=record.name,
        size=size,
        source="coco",
        label_map=painted(regions, size) if whole else None,
        objects=_objects(regions) if agreed else None,
    )


def _check_size(record: Record, size: tuple[int, int]) -> None:
    if record.size != size:
        raise BadFile(
            record.json,
            f"image {record.image_id} is {record.size[1]}x{record.size[0]} here, but "
            f"{size[1]}x{size[0]} in its file",
            "one of them is another image's or was resized",
        )


def _region(raw: bytes, record: Record, values: Mapping[int, int]) -> Region:
    annotation = decode(ANNOTATION, raw, record.json, f"image {record.image_id}: ")
    what = f"annotation {annotation.id} of image {record.image_id}"
    if annotation.category_id not in values:
        problem = f"{what}: category {annotation.category_id} is none of COCO's 80"
        raise BadFile(record.json, problem, "use the published category ids")
    _check_box(annotation, record, what)
    rle = run_lengths(annotation, record.size, record.json)
    area = int(coco.area(rle))
    if area == 0:
        problem = f"{what}: its area is {annotation.area:g}, but its mask holds no pixel"
        raise BadFile(record.json, problem, COPY_ANEW)
    tight = _tight_box(rle)
    if not is_tiny(annotation):
        _check_place_of_box(annotation, tight, record.json, what)
    return Region(values[annotation.category_id], annotation.iscrowd == 1, area, rle, tight)


def _tight_box(rle: dict[str, Any]) -> Box:
    x, y, w, h = (int(side) for side in coco.toBbox(rle).tolist())
    return (x, y, x + w, y + h)


def _check_place_of_box(annotation: Annotation, tight: Box, path: Path, what: str) -> None:
    """BadFile if a published box, rounded to pixels, has none in common with the mask's own box."""
    x, y, w, h = annotation.bbox
    width = min(round(x + w), tight[2]) - max(round(x), tight[0])
    height = min(round(y + h), tight[3]) - max(round(y), tight[1])
    if width <= 0 or height <= 0:
        raise BadFile(
            path,
            f"{what}: the box x {x:g}, y {y:g}, width {w:g}, height {h:g} does not touch its mask, "
            f"which lies in x {tight[0]} to {tight[2]}, y {tight[1]} to {tight[3]}",
            COPY_ANEW,
        )


def _check_box(annotation: Annotation, record: Record, what: str) -> None:
    x, y, w, h = annotation.bbox
    height, width = record.size
    inside = min(x, y) >= -OVERSHOOT and x + w <= width + OVERSHOOT and y + h <= height + OVERSHOOT
    if not (inside and w > 0 and h > 0):
        raise BadFile(
            record.json,
            f"{what}: the box x {x:g}, y {y:g}, width {w:g}, height {h:g} has no area or is not "
            f"inside the image of {width}x{height}",
            COPY_ANEW,
        )


def _objects(regions: list[Region]) -> tuple[AnnotatedObject, ...]:
    ours = [region for region in regions if 0 < region.value < IGNORE]
    return tuple(
        AnnotatedObject(
            category=region.value,
            box=region.box,
            difficult=False,
            crowd=region.crowd,
            mask_rle=region.rle["counts"].decode("ascii"),
        )
        for region in ours
    )


def painted(regions: list[Region], size: tuple[int, int]) -> np.ndarray:
    """The regions painted: crowds, then objects from the largest to the smallest. (H, W) uint8."""
    layers = [(r.rle["counts"], IGNORE) for r in regions if r.crowd and r.value != 0]
    plain = sorted((r for r in regions if not r.crowd), key=lambda region: -region.area)
    layers += [(r.rle["counts"], r.value) for r in plain]
    columns = np.zeros(size[0] * size[1], np.uint8)  # run-lengths go down the columns
    all_counts = decode_counts([text for text, _ in layers])
    for counts, (_, value) in zip(all_counts, layers, strict=True):
        ends = np.cumsum(counts).tolist()
        for start, end in zip(ends[0::2], ends[1::2], strict=False):
            columns[start:end] = value
    return np.ascontiguousarray(columns.reshape(size[1], size[0]).T)
