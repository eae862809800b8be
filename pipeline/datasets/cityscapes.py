"""Cityscapes: street scenes with fine annotation.

Published layout:

    leftImg8bit/<split>/<city>/<city>_<seq>_<frame>_leftImg8bit.png      (.jpg is read, too)
    gtFine/<split>/<city>/<city>_<seq>_<frame>_gtFine_labelIds.png       published id of each pixel
                                              ..._gtFine_instanceIds.png 16 bit; see below
                                              ..._gtFine_polygons.json   what both were drawn from
                                              ..._gtFine_color.png       to look at; not needed

Splits are the folders train, val and test, 2,975, 500 and 1,525 images. The labels that are
published for test are dummies: its images are read alone. Annotation without its image is a fault.

A pixel of instanceIds is id * 1000 + n in object number n of a label whose instances are told
apart, the id alone elsewhere; so the bare id of such a label is a group of objects (a crowd). Label
maps hold the 19 train ids, 255 where the label is none of them. H x W pixels.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.categories import (
    CITYSCAPES,
    CITYSCAPES_IDS,
    CITYSCAPES_LABELS,
    CITYSCAPES_THINGS,
    IGNORE,
)
from pipeline.datasets.checks import MIN_AGREEMENT, check_size
from pipeline.datasets.cityscapes_polygons import PER_LABEL, draw, read_polygons
from pipeline.datasets.form import AnnotatedObject, Sample, image_size
from pipeline.datasets.tree import ImageFiles, Place, Problems, Tree
from pipeline.errors import BadFile, need_file
from pipeline.masks import decode_index_png, encode_numbers, rle_box, verify_png

OFFICIAL = {"train": 2975, "val": 500, "test": 1525}
ANNOTATED = ("train", "val")
IMAGE = re.compile(r"([A-Za-z0-9-]+_[0-9]+_[0-9]+)_leftImg8bit\.(png|jpg|jpeg)")
LABELS, INSTANCES, POLYGONS = "labelIds.png", "instanceIds.png", "polygons.json"
ANNOTATION = re.compile(rf"(.+)_gtFine_({LABELS}|{INSTANCES}|{POLYGONS})")
SUFFIXES = {".png", ".jpg", ".jpeg"}

UNKNOWN = 255  # stands for the published id where a number of instanceIds has none


@dataclass(frozen=True)
class Files:
    """One image and what is read of its annotation."""

    image_id: str
    name: str  # of the image's file
    image: Path
    labels: Path | None  # None: drawn from the polygons, if there are any
    instances: Path | None  # the same
    polygons: Path | None  # None: not needed
    beside: Path  # where polygons may lie that are not needed


# --- the folders ----------------------------------------------------------------------------------
def open_tree(place: Place, problems: Problems, *, instances: Literal["maps", "polygons"]) -> Tree:
    """A copy of Cityscapes.

    Args:
        instances: where objects come from: instanceIds (the polygons where there are none), or
            always the polygons.

    Raises:
        BadFile: a folder is missing, or its files are not named as published.
    """
    with problems.noted():
        images = find_images(place, problems)
        base = place.folder / "gtFine"
        cities = {p.parts[-3:-1] for split in ANNOTATED for p in images[split].values()}
        sources: frozenset[str] = frozenset()
        notes: tuple[str, ...] = ()
        with problems.noted():
            if cities:
                sources, notes = choose(base, sorted(cities), instances)
            check_for_images(place, images, problems)
        where = {i: path for paths in images.values() for i, path in paths.items()}
        if images["test"]:
            notes += ("test: its images alone are read, for its published labels are dummies",)

        def record(image_id: str) -> Files:
            image = where[image_id]
            split, city = image.parts[-3:-1]
            labels, objects, polygons = (
                base / split / city / f"{image_id}_gtFine_{kind}"
                if split in ANNOTATED and kind in sources
                else None
                for kind in (LABELS, INSTANCES, POLYGONS)
            )
            beside = base / split / city / f"{image_id}_gtFine_{POLYGONS}"
            return Files(image_id, place.name_of(image), image, labels, objects, polygons, beside)

        def files_of(image_id: str) -> ImageFiles:
            files = record(image_id)
            must = (files.image, files.labels, files.instances, files.polygons)
            return ImageFiles({place.name_of(path): path for path in must if path})

        return Tree(
            categories=CITYSCAPES,
            splits={split: sorted(paths) for split, paths in images.items() if paths},
            official=OFFICIAL,
            lists={},
            files_of=files_of,
            record=record,
            read=read_sample,
            notes=notes,
        )
    return Tree.nothing(CITYSCAPES)


def find_images(place: Place, problems: Problems) -> dict[str, dict[str, Path]]:
    """The images of each split by id, from the folders."""
    base = place.folder / "leftImg8bit"
    if not os.path.isdir(base):
        raise BadFile(
            base,
            "not there",
            "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip so that leftImg8bit/ "
            f"and gtFine/ lie in {place.folder}, or name the folder that holds them in "
            f"PIPELINE_DATA_{place.name.upper()}",
        )
    images: dict[str, dict[str, Path]] = {split: {} for split in OFFICIAL}
    seen: dict[str, Path] = {}
    for split in sorted({*OFFICIAL}.intersection(_names(base))):
        for path in _files_of_cities(base / split, problems):
            with problems.noted():
                image_id = _id_of(path)
                if image_id in seen:
                    raise BadFile(path, f"{seen[image_id]} is there, too", "remove one of them")
                images[split][image_id] = seen[image_id] = path
    if not seen:
        raise BadFile(base, "no image in train/, val/ or test/", "copy the published files there")
    return images


def choose(
    base: Path, cities: list[tuple[str, ...]], instances: str
) -> tuple[frozenset[str], tuple[str, ...]]:
    """Which files of the annotation are read, and what a user should know about it.

    Args:
        base: the folder gtFine.
        cities: (split, city) of the folders in it.

    Raises:
        BadFile: there are no labels, or no polygons where they are asked for.
    """
    if not os.path.isdir(base):
        raise BadFile(base, "not there", "unpack gtFine_trainvaltest.zip beside leftImg8bit/")
    folders = [base.joinpath(*city) for city in cities]
    names = [name for folder in folders if os.path.isdir(folder) for name in _names(folder)]
    there = {kind for kind in (LABELS, INSTANCES, POLYGONS) if any(n.endswith(kind) for n in names)}
    if not there & {LABELS, POLYGONS}:
        raise BadFile(base, f"neither {LABELS} nor {POLYGONS} in it", "copy the published files")
    if instances == "polygons" and POLYGONS not in there and INSTANCES in there:
        raise BadFile(base, f"no {POLYGONS} in it", "copy them there, or take instances: maps")
    labels = LABELS if LABELS in there else POLYGONS
    objects = INSTANCES if instances == "maps" and INSTANCES in there else POLYGONS
    notes = []
    if labels == POLYGONS:
        notes.append("no labelIds: label maps are drawn from the polygons")
    if objects not in there:
        notes.append("neither instanceIds nor polygons: no objects")
    elif instances == "maps" and objects == POLYGONS:
        notes.append("no instanceIds: objects are drawn from the polygons")
    return frozenset({labels, objects} & there), tuple(notes)


def check_for_images(place: Place, images: dict[str, dict[str, Path]], problems: Problems) -> None:
    """BadFile, through `problems`, for each file of annotation, or whole city, without images."""
    for split in ANNOTATED:
        base = place.folder / "gtFine" / split
        for city in _names(base) if os.path.isdir(base) else ():
            with problems.noted():
                folder = base / city
                names = [] if os.path.isfile(folder) else _names(folder)
                matches = [its for name in names if (its := ANNOTATION.fullmatch(name))]
                where = f"leftImg8bit/{split}/{city}"
                if matches and not os.path.isdir(place.folder / where):
                    problem = f"{len(matches)} files of annotation, but {where}/ is not there"
                    raise BadFile(folder, problem, "unpack leftImg8bit_trainvaltest.zip anew")
                for its in matches:
                    with problems.noted():
                        if its[1] not in images[split]:
                            problem = f"its image is not in {where}/"
                            raise BadFile(folder / its[0], problem, "copy the image there")


def _files_of_cities(split: Path, problems: Problems) -> list[Path]:
    """The images in the folders of a split; other files are none of ours."""
    paths: list[Path] = []
    with problems.noted():
        for city in _names(split):
            with problems.noted():
                if not os.path.isfile(split / city):
                    its = [split / city / name for name in _names(split / city)]
                    if not any(path.suffix.lower() in SUFFIXES for path in its):
                        raise BadFile(split / city, "no image in it", "unpack it anew")
                    paths += its
    return [path for path in paths if path.suffix.lower() in SUFFIXES]


def _id_of(path: Path) -> str:
    found = IMAGE.fullmatch(path.name)
    if found is None:
        raise BadFile(
            path, "its name is not <city>_<seq>_<frame>_leftImg8bit.png", "give it that name"
        )
    return found[1]


def _names(folder: Path) -> list[str]:
    """What lies in a folder, sorted, without hidden files."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise BadFile(folder, f"not a readable folder ({error})", "copy it anew") from error


# --- one image ------------------------------------------------------------------------------------
def read_sample(record: Files, problems: Problems) -> Sample:
    """An image with its label map and its objects.

    Raises:
        BadFile: a file is missing, damaged or contradicts another; names it and the remedy.
    """
    shape = image_size(record.image)
    drawn = labels = label_map = objects = None
    with problems.noted():
        if record.polygons:
            polygons = read_polygons(record.polygons, shape, problems)
            drawn = None if polygons is None else draw(polygons, shape)
        elif problems.collect and os.path.lexists(record.beside):  # not used, but looked at
            read_polygons(record.beside, shape, problems)
    with problems.noted():
        if record.labels:
            labels = read_labels(record.labels, shape)
        elif drawn is not None:
            labels = label_of_number()[drawn]
        if labels is not None:
            label_map = train_id_of_label()[labels]
    with problems.noted():
        source = record.instances or record.polygons
        numbers = read_numbers(record.instances, shape) if record.instances else drawn
        if source and numbers is not None:
            objects = objects_of(source, numbers, labels)
    return Sample(record.image_id, record.name, shape, "cityscapes", label_map, objects)


def read_labels(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The published id of each pixel. Returns (H, W) uint8 in 0..33. Raises BadFile."""
    labels = decode_index_png(path)
    check_size(path, labels, shape)
    if labels.max(initial=0) >= len(CITYSCAPES_LABELS):
        raise BadFile(
            path,
            f"label {labels.max()}, but published ids go to {len(CITYSCAPES_LABELS) - 1}",
            "put the original labelIds.png there",
        )
    return labels


def read_numbers(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The number of the object or the published id of each pixel. Returns (H, W) uint16.

    Raises:
        BadFile: unreadable, not of the image's size, or not 16-bit.
    """
    need_file(path)
    try:
        verify_png(path)
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("I;16", "I"):
                raise BadFile(
                    path,
                    f"mode {image.mode} instead of a grey 16-bit PNG",
                    "put the original instanceIds.png there",
                )
            numbers = np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile(path, f"not a readable PNG ({error})", "replace the file") from error
    check_size(path, numbers, shape)
    return numbers.astype(np.uint16, copy=False)  # 16 bits are in the file, whatever Pillow says


def objects_of(
    path: Path, numbers: np.ndarray, labels: np.ndarray | None
) -> tuple[AnnotatedObject, ...]:
    """The objects, groups first; those of labels that are not trained have the category 255.

    Args:
        path: the file that the numbers came from.
        numbers: (H, W) uint16, as in instanceIds.
        labels: (H, W) uint8 published ids, to compare with.

    Raises:
        BadFile: a number means nothing, or the numbers are not of the same image as the labels.
    """
    label = label_of_number()[numbers]
    if label.max(initial=0) == UNKNOWN:
        raise BadFile(
            path,
            f"number {numbers[label == UNKNOWN][0]}, which is neither a published id nor "
            f"{PER_LABEL} * id + n of a label whose objects are told apart",
            "put the original instanceIds.png there",
        )
    train_id = train_id_of_label()
    counted = np.isin(np.arange(256), CITYSCAPES_THINGS)[label]
    if labels is not None:
        _check_agreement(path, label, labels, counted)
    objects = []
    for number, counts in encode_numbers(np.where(counted, numbers, 0)).items():
        crowd = number < PER_LABEL
        category = int(train_id[number if crowd else number // PER_LABEL])
        box = rle_box(counts, *numbers.shape)
        objects.append(AnnotatedObject(category, box, False, crowd, counts))
    return tuple(objects)


def _check_agreement(
    path: Path, label: np.ndarray, labels: np.ndarray, counted: np.ndarray
) -> None:
    """BadFile unless objects are where labelIds has labels whose objects are told apart.

    Args:
        label, labels: (H, W) uint8 published ids, by the numbers of the objects and by labelIds.
        counted: (H, W) bool: objects and groups.
    """
    expected = np.isin(np.arange(256), CITYSCAPES_THINGS)[labels]
    here, there, both, same = (
        np.count_nonzero(pixels)
        for pixels in (counted, expected, counted & expected, counted & (label == labels))
    )
    if same < MIN_AGREEMENT * here:
        problem = f"only {same} of its objects' {here} pixels have the same label in labelIds"
        raise BadFile(path, problem, "one of the two is another image's")
    if both < MIN_AGREEMENT * there:
        problem = f"objects in {both} of {there} pixels whose label in labelIds has objects"
        raise BadFile(path, problem, "put the original instanceIds.png there")


def train_id_of_label() -> np.ndarray:
    """(256,) uint8: from a published id to the train id, 255 for what is not trained."""
    table = np.full(256, IGNORE, np.uint8)
    table[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
    return table


def label_of_number() -> np.ndarray:
    """(65536,) uint8: from a number of instanceIds to the published id, UNKNOWN where none is."""
    table = np.full(1 << 16, UNKNOWN, np.uint8)
    table[: len(CITYSCAPES_LABELS)] = np.arange(len(CITYSCAPES_LABELS))
    for label in CITYSCAPES_THINGS:
        table[label * PER_LABEL : (label + 1) * PER_LABEL] = label
    return table
