"""The Semantic Boundaries Dataset: masks for 11,355 images of VOC 2011.

Published layout, below benchmark_RELEASE/dataset/:

    train.txt, val.txt    8,498 and 2,857 image ids
    img/<id>.jpg          the same pictures as VOC's JPEGImages
    cls/<id>.mat          struct GTcls:  Segmentation (H, W), category of each pixel
    inst/<id>.mat         struct GTinst: Segmentation (H, W), number of the object, from 1;
                                         Categories (N, 1), the category of each object

There is no void border (255) in these masks, and there are no boxes but those of the masks.

Splits: train and val as published; instance_train and instance_val, the 5,623 and 5,732 images on
which instance segmentation is trained and measured (Hariharan et al. 2014). H x W pixels.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from pipeline.categories import IGNORE, VOC
from pipeline.datasets import lists
from pipeline.datasets.checks import check_agreement, check_labels, check_size
from pipeline.datasets.form import Sample, image_size, objects_of_masks
from pipeline.datasets.lists import check_apart, read_ids
from pipeline.datasets.matfile import read_variable
from pipeline.datasets.tree import ImageFiles, Place, Problems, Tree
from pipeline.errors import BadFile
from pipeline.masks import encode_numbers

INNER = "benchmark_RELEASE/dataset"  # of the archive, and of the names in the manifest
OFFICIAL = {"train": 8498, "val": 2857, "instance_train": 5623, "instance_val": 5732}


@dataclass(frozen=True)
class Files:
    """One image of SBD, as published."""

    image_id: str
    name: str  # of the image's file
    image: Path
    labels: Path
    objects: Path


# --- the lists ------------------------------------------------------------------------------------
def open_tree(place: Place, problems: Problems, *, categories: tuple[str, ...] = VOC) -> Tree:
    """A copy of SBD.

    Raises:
        BadFile: a folder or list is missing; says what to put where.
    """
    base = place.folder / INNER
    with problems.noted():
        if not os.path.isdir(base):
            raise BadFile(
                base,
                "not there",
                f"unpack benchmark.tgz so that {INNER}/ lies in {place.folder}, or name the "
                f"folder that holds it in PIPELINE_DATA_{place.name.upper()}",
            )
        paths = {name: base / f"{name}.txt" for name in ("train", "val")}
        splits = {name: read_ids(path, problems) for name, path in paths.items()}
        check_apart(splits, paths, problems)
        here = {image_id for ids in splits.values() for image_id in ids}
        for name in ("instance_train", "instance_val"):
            if ids := [i for i in lists.published(f"sbd_{name}") if i in here]:
                splits[name] = ids

        def record(image_id: str) -> Files:
            image = base / "img" / f"{image_id}.jpg"
            mats = (base / folder / f"{image_id}.mat" for folder in ("cls", "inst"))
            return Files(image_id, place.name_of(image), image, *mats)

        def files_of(image_id: str) -> ImageFiles:
            files = record(image_id)
            must = (files.image, files.labels, files.objects)
            return ImageFiles({place.name_of(path): path for path in must})

        return Tree(
            categories=categories,
            splits=splits,
            official=OFFICIAL,
            lists={place.name_of(path): path for path in paths.values()},
            files_of=files_of,
            record=record,
            read=partial(read_sample, categories),
        )
    return Tree.nothing(categories)


# --- one image ------------------------------------------------------------------------------------
def read_sample(categories: tuple[str, ...], record: Files, problems: Problems) -> Sample:
    """An image with its label map and its objects.

    Raises:
        BadFile: a file is missing, damaged or contradicts another; names it and the remedy.
    """
    shape = image_size(record.image)
    label_map, objects = None, None
    with problems.noted():
        found = read_label_map(record.labels)
        check_size(record.labels, found, shape)
        check_labels(record.labels, found, categories)
        label_map = found
    with problems.noted():
        objects = objects_of_masks(
            read_object_masks(record.objects, shape, len(categories), label_map), shape
        )
    return Sample(record.image_id, record.name, shape, "sbd", label_map, objects)


def read_label_map(path: Path) -> np.ndarray:
    """The category of each pixel. Returns (H, W) uint8. Raises BadFile.

    Maps of .mat files lie column by column, which is slow for all that works by rows.
    """
    return cv2.transpose(_segmentation(path, _struct(path, "GTcls")).T)


def read_object_masks(
    path: Path, shape: tuple[int, int], num_categories: int, label_map: np.ndarray | None
) -> list[tuple[int, str]]:
    """The objects of an image as category and run-lengths; one without pixels is left out.

    Args:
        label_map: (H, W) uint8 of the same image, to compare with.

    Raises:
        BadFile: unreadable, not of the image's height and width, an object without a category.
    """
    struct = _struct(path, "GTinst")
    numbers = _segmentation(path, struct)
    check_size(path, numbers, shape)
    categories = struct.get("Categories", np.zeros(0)).ravel()
    if numbers.max(initial=0) > categories.size:
        raise BadFile(
            path,
            f"object {numbers.max()} in Segmentation, but {categories.size} Categories",
            "copy the file anew",
        )
    masks = []
    for number, counts in encode_numbers(numbers).items():
        category = categories[number - 1]
        if not 1 <= category < num_categories:
            raise BadFile(
                path,
                f"object {number} of category {category}, but the categories go from 1 to "
                f"{num_categories - 1}",
                "put the original file there",
            )
        masks.append((int(category), counts))
    if label_map is not None:
        category_of = np.zeros(256, np.uint8)
        category_of[1 : categories.size + 1] = categories[:255]
        named = cv2.transpose(cv2.LUT(numbers.T, category_of))
        check_agreement(path, named > 0, (named == label_map) | (label_map == IGNORE))
    return masks


def _struct(path: Path, name: str) -> dict[str, np.ndarray]:
    fields = read_variable(path, name)
    if not isinstance(fields, dict):
        raise BadFile(path, f"its {name} is no struct", "this is not SBD's file")
    return fields


def _segmentation(path: Path, struct: dict[str, np.ndarray]) -> np.ndarray:
    numbers = struct.get("Segmentation")
    if numbers is None or numbers.ndim != 2 or not numbers.size:
        raise BadFile(path, "its Segmentation is no map (H, W)", "copy the file anew")
    whole = numbers.astype(np.uint8, copy=False)
    if whole is not numbers and not np.array_equal(whole, numbers):
        problem = "its Segmentation holds numbers that are not whole or not in 0..255"
        raise BadFile(path, problem, "copy the file anew")
    return whole
