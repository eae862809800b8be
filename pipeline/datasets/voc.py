"""PASCAL VOC 2007 and 2012, the latter with the masks of SBD, and any data in their layout.

Published layout, below VOC<year>/ (SBD's is in sbd.py):

    ImageSets/Segmentation/{train,val,trainval}.txt   ids of the images with masks
    ImageSets/Main/{train,val,trainval,test}.txt      ids of the images with boxes
    JPEGImages/<id>.jpg
    Annotations/<id>.xml           boxes: 1-based, the last pixel included
    SegmentationClass/<id>.png     category of each pixel, 255 on borders and unclear parts
    SegmentationObject/<id>.png    number of the object, from 1; 255 likewise

Accepted instead of SBD's files, as many copies have it: SegmentationClassAug/<id>.png with
ImageSets/Segmentation/train_aug.txt.

Splits of 2012: train, val, trainval; train_aug = (SBD + VOC train) without VOC val, with VOC's
masks where VOC has them; held_out, the 100 images of val on which Dai et al. choose
hyper-parameters, and val_rest, the others; val_since_2008, the images of val that are not in VOC
2007. Of 2007, whose boxes alone are read: train, val, trainval, test and all. H x W pixels.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.categories import IGNORE, VOC
from pipeline.datasets import lists, sbd
from pipeline.datasets.checks import check_agreement, check_labels, check_size
from pipeline.datasets.form import AnnotatedObject, Sample, image_size, objects_of_masks
from pipeline.datasets.lists import check_apart, read_ids
from pipeline.datasets.tree import ImageFiles, Place, Problems, Tree
from pipeline.datasets.voc_boxes import join, read_boxes
from pipeline.errors import BadFile
from pipeline.masks import decode_index_png, encode_numbers

OFFICIAL = {
    "train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582, "held_out": 100,
    "val_rest": 1349, "val_since_2008": 1128,
}  # fmt: skip
OFFICIAL_2007 = {"train": 2501, "val": 2510, "trainval": 5011, "test": 4952, "all": 9963}
SINCE_2008 = re.compile(r"20(08|09|1\d)_\d{6}")  # ids; those of VOC 2007's images begin with 2007_
TARS = {
    2007: "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar",
    2012: "VOCtrainval_11-May-2012.tar",
}


@dataclass(frozen=True)
class Files:
    """One image and its annotation, as published."""

    image_id: str
    name: str  # of the image's file
    image: Path
    xml: Path
    xml_must: bool
    labels: Path | None = None  # category of each pixel
    objects: Path | None = None  # number of the object; may be absent
    source: str = "voc"


# --- the lists ------------------------------------------------------------------------------------
def open_tree(
    place: Place, problems: Problems, *, sbd_place: Place | None, categories: tuple[str, ...]
) -> Tree:
    """A copy of VOC2012, with SBD's masks where they are.

    Args:
        sbd_place: where SBD may lie if not beside VOC2012/.
        categories: names, background first.

    Raises:
        BadFile: a folder or list is missing; says what to put where.
    """
    with problems.noted():
        sbd_place = find_sbd(place, sbd_place)
        paths = _list_paths(place, sbd_place)
        ids = {what: read_ids(path, problems) for what, (_, path) in paths.items()}
        check_apart(ids, {what: path for what, (_, path) in paths.items()}, problems)
        _check_trainval(ids, paths["trainval"][1], problems)
        splits = _splits(ids)
        record = partial(
            _record,
            place,
            sbd_place,
            frozenset(ids["train"] + ids["val"] + ids["trainval"]),
            frozenset(ids.get("with boxes", ())),
        )
        return Tree(
            categories=categories,
            splits=splits,
            official=OFFICIAL if categories == VOC else {},
            lists={where.name_of(path): path for where, path in paths.values()},
            files_of=lambda image_id: _published_files((place, sbd_place), record(image_id)),
            record=record,
            read=partial(read_sample, categories),
            notes=_notes(place, splits, ids),
        )
    return Tree.nothing(categories)


def _list_paths(place: Place, sbd_place: Place | None) -> dict[str, tuple[Place, Path]]:
    """The lists of a copy, each with its place."""
    image_sets = find_lists(place, 2012)
    segmentation, main = image_sets / "Segmentation", image_sets / "Main" / "trainval.txt"
    paths = {n: (place, segmentation / f"{n}.txt") for n in ("train", "val", "trainval")}
    if sbd_place:
        base = sbd_place.folder / sbd.INNER
        paths |= {f"sbd {n}": (sbd_place, base / f"{n}.txt") for n in ("train", "val")}
    elif has_aug_masks(place):
        paths["sbd"] = (place, segmentation / "train_aug.txt")
    if os.path.lexists(main):
        paths["with boxes"] = (place, main)
    return paths


def _check_trainval(ids: dict[str, list[str]], path: Path, problems: Problems) -> None:
    with problems.noted():
        if odd := set(ids["trainval"]) ^ {*ids["train"], *ids["val"]}:
            raise BadFile(
                path,
                f"not train and val together: {len(odd)} images differ, {min(odd)} among them",
                "copy the three lists anew",
            )


def _notes(
    place: Place, splits: Mapping[str, list[str]], ids: Mapping[str, list[str]]
) -> tuple[str, ...]:
    notes = []
    if of_val := set(ids.get("sbd", ())) & set(ids["val"]):
        notes.append(f"train_aug.txt: {len(of_val)} images of val in it, left out")
    if "train_aug" not in splits:
        notes.append("no train_aug: no masks of SBD, no SegmentationClassAug/")
    if not os.path.lexists(place.folder / "VOC2012" / "SegmentationObject"):
        notes.append("no SegmentationObject/: VOC's images have no object masks")
    return tuple(notes)


def _splits(ids: dict[str, list[str]]) -> dict[str, list[str]]:
    splits = {name: ids[name] for name in ("train", "val", "trainval")}
    extra = [
        image_id for what, listed in ids.items() if what.startswith("sbd") for image_id in listed
    ]
    if extra:
        splits["train_aug"] = train_aug(splits["train"], splits["val"], extra)
    return splits | held_out(splits["val"]) | since_2008(splits["val"])


def _record(
    place: Place,
    sbd_place: Place | None,
    voc_ids: frozenset[str],
    with_boxes: frozenset[str],
    image_id: str,
) -> Files:
    """The files of an image: VOC's masks where VOC has them, else SBD's."""
    voc = place.folder / "VOC2012"
    files = _files(place, voc, image_id, xml_must=image_id in with_boxes)
    if image_id in voc_ids:
        labels = voc / "SegmentationClass" / f"{image_id}.png"
        return replace(files, labels=labels, objects=voc / "SegmentationObject" / f"{image_id}.png")
    if sbd_place is None:
        labels = voc / "SegmentationClassAug" / f"{image_id}.png"
        return replace(files, labels=labels, source="sbd")
    labels, objects = (
        sbd_place.folder / sbd.INNER / folder / f"{image_id}.mat" for folder in ("cls", "inst")
    )
    return replace(files, labels=labels, objects=objects, source="sbd")


def open_tree_2007(place: Place, problems: Problems) -> Tree:
    """A copy of VOC2007: its boxes.

    Raises:
        BadFile: a folder or list is missing; says what to put where.
    """
    voc = place.folder / "VOC2007"
    with problems.noted():
        folder = find_lists(place, 2007) / "Main"
        paths = {n: folder / f"{n}.txt" for n in ("train", "val", "trainval", "test")}
        splits = {name: read_ids(path, problems) for name, path in paths.items()}
        check_apart(splits, paths, problems)
        _check_trainval(splits, paths["trainval"], problems)
        splits["all"] = splits["trainval"] + splits["test"]

        def record(image_id: str) -> Files:
            return _files(place, voc, image_id, xml_must=True)

        return Tree(
            categories=VOC,
            splits=splits,
            official=OFFICIAL_2007,
            lists={place.name_of(path): path for path in paths.values()},
            files_of=lambda image_id: _published_files((place,), record(image_id)),
            record=record,
            read=partial(read_sample, VOC),
            notes=("its 632 segmented images are read for their boxes only",),
        )
    return Tree.nothing(VOC)


def find_lists(place: Place, year: int) -> Path:
    """The folder VOC<year>/ImageSets. BadFile if it is not there; says what to do."""
    base, name = place.folder, f"VOC{year}"
    image_sets = base / name / "ImageSets"
    if os.path.isdir(image_sets):
        return image_sets
    hint = ""
    if os.path.isdir(base / "VOCdevkit" / name):
        hint = " (it is in VOCdevkit/ there: name that folder)"
    elif os.path.isdir(base / "ImageSets"):
        hint = f" (this is {name} itself: name the folder above, {base.parent})"
    raise BadFile(
        image_sets,
        f"not there{hint}",
        f"unpack {TARS[year]} so that {name}/ lies in {base}, or name the folder that holds "
        f"{name}/ in PIPELINE_DATA_{place.name.upper()}",
    )


def find_sbd(place: Place, apart: Place | None) -> Place | None:
    """Where SBD's folder is: beside VOC2012/ or apart; None if in neither."""
    return next((p for p in (place, apart) if p and os.path.lexists(p.folder / sbd.INNER)), None)


def has_aug_masks(place: Place) -> bool:
    """Whether SBD's masks are there as PNGs with their list."""
    voc = place.folder / "VOC2012"
    aug_list = voc / "ImageSets" / "Segmentation" / "train_aug.txt"
    return os.path.lexists(voc / "SegmentationClassAug") and os.path.lexists(aug_list)


def train_aug(train: list[str], val: list[str], extra: list[str]) -> list[str]:
    """All images with masks that val leaves for training, sorted: 10,582 of VOC and SBD."""
    return sorted({*train, *extra} - {*val})


def held_out(val: list[str]) -> dict[str, list[str]]:
    """The published choice of 100 images within val, and val without them."""
    chosen = set(lists.published("dai2015_held_out"))
    inside = [image_id for image_id in val if image_id in chosen]
    if not inside:
        return {}
    return {"held_out": inside, "val_rest": [i for i in val if i not in chosen]}


def since_2008(val: list[str]) -> dict[str, list[str]]:
    """What of val can be measured after learning from the boxes of all images of VOC 2007."""
    later = [image_id for image_id in val if SINCE_2008.fullmatch(image_id)]
    return {"val_since_2008": later} if later else {}


def _files(place: Place, voc: Path, image_id: str, *, xml_must: bool) -> Files:
    image, xml = voc / "JPEGImages" / f"{image_id}.jpg", voc / "Annotations" / f"{image_id}.xml"
    return Files(image_id, place.name_of(image), image, xml, xml_must)


def _published_files(places: Iterable[Place | None], record: Files) -> ImageFiles:
    def name_of(path: Path) -> str:
        return next(p.name_of(path) for p in places if p and path.is_relative_to(p.folder))

    must = [record.image]
    may: list[Path] = []
    (must if record.xml_must else may).append(record.xml)
    if record.labels:
        must.append(record.labels)
    if record.objects:  # some copies have no object masks at all
        (must if os.path.lexists(record.objects.parent) else may).append(record.objects)
    return ImageFiles({name_of(p): p for p in must}, {name_of(p): p for p in may})


# --- one image ------------------------------------------------------------------------------------
def read_sample(categories: tuple[str, ...], record: Files, problems: Problems) -> Sample:
    """An image with its label map and objects.

    Args:
        categories: names, background first.

    Raises:
        BadFile: a file is missing, damaged or contradicts another; names it and the remedy.
    """
    shape = image_size(record.image)
    label_map = None
    masks: list[tuple[int, str]] = []
    if record.labels:
        with problems.noted():
            label_map = read_label_map(record.labels, shape, categories)
    if record.objects and os.path.lexists(record.objects.parent):
        with problems.noted():
            masks = _read_object_masks(record.objects, label_map, shape, categories)
    objects: tuple[AnnotatedObject, ...] | None = None
    if record.xml_must or os.path.lexists(record.xml):
        with problems.noted():
            boxes = read_boxes(record.xml, shape, categories, problems, of=record.image_id)
            objects = join(boxes, masks, shape)
    elif masks:
        objects = objects_of_masks(masks, shape)
    return Sample(
        image_id=record.image_id,
        path=record.name,
        size=shape,
        source=record.source,
        label_map=label_map,
        objects=objects,
    )


def read_label_map(path: Path, shape: tuple[int, int], categories: tuple[str, ...]) -> np.ndarray:
    """The category of each pixel (H, W) uint8, from a PNG or SBD's .mat.

    Raises:
        BadFile: not readable, another size than the image's, a label outside the categories.
    """
    mat = path.suffix == ".mat"
    label_map = sbd.read_label_map(path) if mat else decode_index_png(path)
    check_size(path, label_map, shape)
    check_labels(path, label_map, categories)
    if not ((label_map > 0) & (label_map != IGNORE)).any():
        raise BadFile(path, "no object in it, all is background", "copy the original file there")
    return label_map


def _read_object_masks(
    path: Path, label_map: np.ndarray | None, shape: tuple[int, int], categories: tuple[str, ...]
) -> list[tuple[int, str]]:
    """The objects of an image as category and run-lengths."""
    if path.suffix == ".mat":
        return sbd.read_object_masks(path, shape, len(categories), label_map)
    numbers = decode_index_png(path)
    check_size(path, numbers, shape)
    if label_map is None:
        return []
    numbers = np.where(numbers == IGNORE, 0, numbers)
    check_agreement(path, numbers > 0, label_map > 0)
    masks = []
    for number, counts in encode_numbers(numbers).items():
        labels = label_map[numbers == number]
        votes = np.bincount(labels[labels != IGNORE], minlength=1)
        if votes[1:].any():
            masks.append((int(votes[1:].argmax()) + 1, counts))
    return masks
