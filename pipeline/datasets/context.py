"""PASCAL-Context: every pixel of VOC 2010's train and val images labelled with one of 459 names.

Published layout of the labels:

    trainval/<id>.mat     LabelMap (H, W) uint16: number of the name, 1..459
    labels.txt            the 459 names, lines like "1: accordion"
    59_labels.txt         the 59 that are trained and scored; checked where it is there

and of VOC 2010, in the same folder or in one of its own:

    VOC2010/JPEGImages/<id>.jpg
    VOC2010/ImageSets/Main/{train,val}.txt     4,998 and 5,105 image ids

Categories are background and the 59. Background is what has another of the 459 names, and what has
none: 0, where the authors left a pixel without label. It is a category like any other, trained and
scored; no pixel is ignored. There are no objects. H x W pixels.
"""

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.categories import CONTEXT, CONTEXT_ALIASES, NUM_CONTEXT_LABELS
from pipeline.datasets.checks import check_size
from pipeline.datasets.form import Sample, image_size
from pipeline.datasets.lists import check_apart, read_ids
from pipeline.datasets.matfile import read_variable
from pipeline.datasets.tree import ImageFiles, Place, Problems, Tree
from pipeline.errors import BadFile, need_file

OFFICIAL = {"train": 4998, "val": 5105}
NAME_LINE = re.compile(r"\s*(\d{1,4})\s*:\s*(\S.*)")


@dataclass(frozen=True)
class Files:
    """One image and its label map, as published."""

    image_id: str
    name: str  # of the image's file
    image: Path
    labels: Path


# --- the lists ------------------------------------------------------------------------------------
def open_tree(labels: Place, images: Place, problems: Problems) -> Tree:
    """A copy of PASCAL-Context.

    Args:
        labels: where trainval/ and the names are.
        images: where VOC2010/ is; not asked if it lies beside trainval/.

    Raises:
        BadFile: a folder or list is missing or faulty; says what to put where.
    """
    with problems.noted():
        maps = labels.folder / "trainval"
        if not os.path.isdir(maps):
            raise BadFile(
                maps,
                "not there",
                "unpack trainval.tar.gz of PASCAL-Context and put labels.txt beside trainval/, or "
                f"name the folder that holds them in PIPELINE_DATA_{labels.name.upper()}",
            )
        images = _place_of_images(labels, images)
        voc = images.folder / "VOC2010"
        names = {n: labels.folder / n for n in ("labels.txt", "59_labels.txt")}
        table = category_of_label(names["labels.txt"])
        listed = {labels.name_of(path): path for path in names.values() if os.path.lexists(path)}
        with problems.noted():
            if os.path.lexists(names["59_labels.txt"]):
                check_names(names["59_labels.txt"])
        paths = {name: voc / "ImageSets" / "Main" / f"{name}.txt" for name in OFFICIAL}
        splits = {name: read_ids(path, problems) for name, path in paths.items()}
        check_apart(splits, paths, problems)

        def record(image_id: str) -> Files:
            image = voc / "JPEGImages" / f"{image_id}.jpg"
            return Files(image_id, images.name_of(image), image, maps / f"{image_id}.mat")

        def files_of(image_id: str) -> ImageFiles:
            files = record(image_id)
            return ImageFiles({files.name: files.image, labels.name_of(files.labels): files.labels})

        return Tree(
            categories=CONTEXT,
            splits=splits,
            official=OFFICIAL,
            lists=listed | {images.name_of(path): path for path in paths.values()},
            files_of=files_of,
            record=record,
            read=partial(read_sample, table),
        )
    return Tree.nothing(CONTEXT)


def category_of_label(path: Path) -> np.ndarray:
    """From the authors' numbers to our categories, by the names of a copy's labels.txt.

    Returns:
        (460,) uint8: 0, background, for 0 and for every name that is none of the 59.

    Raises:
        BadFile: not the 459 names, or one of the 59 is not among them.
    """
    names = _read_names(path)
    if sorted(names) != list(range(1, NUM_CONTEXT_LABELS + 1)):
        raise BadFile(
            path,
            f"{len(names)} names, which are not numbered 1..{NUM_CONTEXT_LABELS}",
            "copy the authors' labels.txt",
        )
    numbers = {name: number for number, name in names.items()}
    table = np.zeros(NUM_CONTEXT_LABELS + 1, np.uint8)
    for category, name in enumerate(CONTEXT[1:], start=1):
        written = name if name in numbers else CONTEXT_ALIASES.get(name, name)
        if written not in numbers:
            raise BadFile(path, f"{written} is not in it", "copy the authors' labels.txt")
        table[numbers[written]] = category
    return table


def check_names(path: Path) -> None:
    """BadFile if a copy's 59_labels.txt has not our names in our order."""
    for number, name in _read_names(path).items():
        ours = CONTEXT[number] if number < len(CONTEXT) else "none"
        if name not in (ours, CONTEXT_ALIASES.get(ours)):
            raise BadFile(
                path,
                f"{number} is {name}, but {ours} is expected",
                "another selection of names has other categories: copy the authors' file",
            )


def _read_names(path: Path) -> dict[int, str]:
    """The names by their numbers, without the spaces in them."""
    need_file(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(path, f"not a readable list ({error})", "copy it anew") from error
    names: dict[int, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = NAME_LINE.fullmatch(line)
        if found is None:
            raise BadFile(path, f"line {number} is not like '1: accordion'", "copy it anew")
        name = re.sub(r"\s", "", found[2])
        if int(found[1]) in names or name in names.values():
            raise BadFile(path, f"line {number}: {line.strip()!r} again", "copy it anew")
        names[int(found[1])] = name
    return names


def _place_of_images(labels: Place, images: Place) -> Place:
    """The place that has VOC2010/: that of the labels, or one of its own."""
    for place in (labels, images):
        if os.path.isdir(place.folder / "VOC2010"):
            return place
    missing = images.folder / "VOC2010"
    inner = images.folder / "VOCdevkit" / "VOC2010"
    hint = " (it is in VOCdevkit/ there: name that folder)" if os.path.isdir(inner) else ""
    raise BadFile(
        missing,
        f"not there{hint}",
        "unpack VOCtrainval_03-May-2010.tar so that VOC2010/ lies there, or name the folder that "
        f"holds VOC2010/ in PIPELINE_DATA_{images.name.upper()}",
    )


# --- one image ------------------------------------------------------------------------------------
def read_sample(table: np.ndarray, record: Files, problems: Problems) -> Sample:
    """An image with its label map.

    Args:
        table: of `category_of_label`.

    Raises:
        BadFile: a file is missing, damaged or contradicts another; names it and the remedy.
    """
    shape = image_size(record.image)
    label_map = None
    with problems.noted():
        label_map = table[read_labels(record.labels, shape)]
    return Sample(record.image_id, record.name, shape, "context", label_map, None)


def read_labels(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The authors' number of each pixel. Returns (H, W) of integers in 0..459.

    Args:
        shape: height and width of the image.

    Raises:
        BadFile: unreadable, not of the image's size, not 16-bit numbers, out of range, or all 0.
    """
    numbers = read_variable(path, "LabelMap")
    remedy = "copy the authors' file"
    if not isinstance(numbers, np.ndarray) or numbers.ndim != 2:
        raise BadFile(path, "its LabelMap is no map (H, W)", remedy)
    if numbers.dtype.kind not in "iu" or numbers.dtype.itemsize < 2:
        raise BadFile(
            path, f"{numbers.dtype} numbers, but labels go to {NUM_CONTEXT_LABELS}", remedy
        )
    check_size(path, numbers, shape)
    low, high = numbers.min(initial=0), numbers.max(initial=0)
    if low < 0 or high > NUM_CONTEXT_LABELS:
        wrong = low if low < 0 else high
        raise BadFile(path, f"label {wrong}, but labels go from 1 to {NUM_CONTEXT_LABELS}", remedy)
    if high == 0:
        raise BadFile(path, "no pixel has a label", remedy)
    return np.ascontiguousarray(numbers)  # MATLAB keeps columns together
