"""PASCAL VOC 2012 with the masks of SBD, and any data in their layout.

Published layout, below VOC2012/ (SBD's is in sbd.py):

    ImageSets/Segmentation/{train,val,trainval}.txt   ids of the images with masks
    ImageSets/Main/{train,val,trainval}.txt           ids of the images with boxes
    JPEGImages/<id>.jpg
    Annotations/<id>.xml           boxes: 1-based, the last pixel included
    SegmentationClass/<id>.png     category of each pixel, 255 on borders and unclear parts
    SegmentationObject/<id>.png    number of the object, from 1; 255 likewise

Accepted instead of SBD's files, as many copies have it: SegmentationClassAug/<id>.png with
ImageSets/Segmentation/train_aug.txt.

Splits: train, val, trainval, and train_aug = (SBD + VOC train) without VOC val, with VOC's masks
where VOC has them. H x W pixels.
"""

import re
import xml.etree.ElementTree as xml
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline import boxes
from pipeline.categories import IGNORE
from pipeline.datasets import sbd
from pipeline.datasets.form import AnnotatedObject, Sample, read_image
from pipeline.datasets.places import dataset_root
from pipeline.errors import BadInput
from pipeline.masks import decode_index_png

MIN_BOX_IOU = 0.5  # of an object's box and its mask's box, to say that they are one object
IMAGE_ID = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Tree:
    """A copy of VOC2012 with or without SBD, and its lists. Made by `open_tree`."""

    voc: Path  # the folder VOC2012
    sbd: Path | None  # the folder benchmark_RELEASE/dataset
    splits: dict[str, list[str]]
    voc_ids: frozenset[str]  # ids whose masks are VOC's
    with_boxes: frozenset[str]  # ids whose XML must be there


# --- the lists ------------------------------------------------------------------------------------
def open_tree(root: Path, dataset: str) -> Tree:
    """Find a dataset's folders and read its lists.

    Args:
        root: the project folder.

    Raises:
        BadInput: a folder or list is missing; says what to put where.
    """
    base = dataset_root(root, dataset)
    voc = base / "VOC2012"
    lists = find_lists(root, dataset)
    splits = {name: read_ids(lists / f"{name}.txt") for name in ("train", "val", "trainval")}
    if empty := [name for name, ids in splits.items() if not ids]:
        raise BadInput(f"{lists / empty[0]}.txt: empty; copy the published list there")
    sbd_folder = find_sbd(root, dataset)
    if sbd_folder:
        extra = read_ids(sbd_folder / "train.txt") + read_ids(sbd_folder / "val.txt")
        splits["train_aug"] = train_aug(splits["train"], splits["val"], extra)
    elif has_aug_masks(base):
        listed = read_ids(lists / "train_aug.txt")
        splits["train_aug"] = train_aug(splits["train"], splits["val"], listed)
    else:
        raise BadInput(
            f"{base}: VOC2012 without SBD's masks. Unpack benchmark.tgz so that {sbd.INNER}/ lies "
            f"in {dataset_root(root, 'sbd')}, or name the folder that holds it in "
            "PIPELINE_DATA_SBD; or add VOC2012/SegmentationClassAug/ and "
            "VOC2012/ImageSets/Segmentation/train_aug.txt"
        )
    main = voc / "ImageSets" / "Main" / "trainval.txt"
    with_boxes = frozenset(read_ids(main) if main.exists() else ())
    voc_ids = frozenset({*splits["train"], *splits["val"], *splits["trainval"]})
    return Tree(voc, sbd_folder, splits, voc_ids, with_boxes)


def find_lists(root: Path, dataset: str) -> Path:
    """The folder of VOC's segmentation lists. BadInput if it is not there; says what to do."""
    base = dataset_root(root, dataset)
    lists = base / "VOC2012" / "ImageSets" / "Segmentation"
    if lists.is_dir():
        return lists
    hint = ""
    if (base / "VOCdevkit" / "VOC2012").is_dir():
        hint = " (it is in VOCdevkit/ there: name that folder)"
    elif (base / "ImageSets").is_dir():
        hint = f" (this is VOC2012 itself: name the folder above, {base.parent})"
    raise BadInput(
        f"{lists}: not there{hint}. Unpack VOCtrainval_11-May-2012.tar so that VOC2012/ lies "
        f"in {base}, or name the folder that holds VOC2012/ in PIPELINE_DATA_{dataset.upper()}"
    )


def find_sbd(root: Path, dataset: str) -> Path | None:
    """SBD's folder `dataset`, beside VOC2012/ or in SBD's own place; None if in neither."""
    beside = dataset_root(root, dataset) / sbd.INNER
    if beside.is_dir():
        return beside
    apart = dataset_root(root, "sbd") / sbd.INNER
    return apart if apart.is_dir() else None


def has_aug_masks(base: Path) -> bool:
    """Whether SBD's masks are there as PNGs with their list."""
    voc = base / "VOC2012"
    lists = voc / "ImageSets" / "Segmentation"
    return (voc / "SegmentationClassAug").is_dir() and (lists / "train_aug.txt").is_file()


def train_aug(train: list[str], val: list[str], extra: list[str]) -> list[str]:
    """All images with masks that val leaves for training, sorted: 10,582 of VOC and SBD."""
    return sorted({*train, *extra} - {*val})


def read_ids(path: Path) -> list[str]:
    """The image ids of a list, one a line, in order and once each.

    Lists of SegmentationClassAug often have the image's and the mask's path for the id.

    Raises:
        BadInput: the list is missing, or holds something that is no image id.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise BadInput(f"{path}: not there; the copy of the dataset is incomplete") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not a text file ({error}); copy it anew") from error
    ids = [PurePosixPath(line.split()[0]).stem for line in lines if line.strip()]
    for image_id in ids:
        if not IMAGE_ID.fullmatch(image_id):
            raise BadInput(f"{path}: {image_id!r} is no image id")
    return list(dict.fromkeys(ids))


# --- the files ------------------------------------------------------------------------------------
def all_ids(tree: Tree) -> list[str]:
    """Every image of the splits once, sorted."""
    return sorted({image_id for ids in tree.splits.values() for image_id in ids})


def published_name(tree: Tree, path: Path) -> str:
    """The name of a file wherever the tree lies: VOC2012/... or benchmark_RELEASE/dataset/..."""
    if tree.sbd and path.is_relative_to(tree.sbd):
        return f"{sbd.INNER}/{path.relative_to(tree.sbd).as_posix()}"
    return f"VOC2012/{path.relative_to(tree.voc).as_posix()}"


def place(tree: Tree, name: str) -> Path:
    """The file of a published name: the inverse of `published_name`."""
    inner = name.removeprefix(f"{sbd.INNER}/")
    if tree.sbd and inner != name:
        return tree.sbd / inner
    return tree.voc / name.removeprefix("VOC2012/")


def files(tree: Tree) -> list[Path]:
    """All files of the tree that are read, sorted by their published names.

    Raises:
        BadInput: files of listed images are missing; names the first and counts them.
    """
    lists = tree.voc / "ImageSets"
    found = [lists / "Segmentation" / f"{n}.txt" for n in ("train", "val", "trainval")]
    found += [p for p in [lists / "Main" / "trainval.txt"] if p.exists()]
    if tree.sbd:
        found += [tree.sbd / "train.txt", tree.sbd / "val.txt"]
    else:
        found.append(lists / "Segmentation" / "train_aug.txt")
    missing: list[Path] = []
    for image_id in all_ids(tree):
        for path, required in _files_of(tree, image_id):
            if path.is_file():
                found.append(path)
            elif required:
                missing.append(path)
    if missing:
        first = ", ".join(published_name(tree, p) for p in missing[:3])
        raise BadInput(
            f"{tree.voc.parent}: the copy is incomplete: {len(missing)} files of listed images are "
            f"missing: {first}{', ...' if len(missing) > 3 else ''}. Copy or unpack it again"
        )
    return sorted(found, key=lambda path: published_name(tree, path))


def _files_of(tree: Tree, image_id: str) -> Iterable[tuple[Path, bool]]:
    """The files of one image, and whether each must be there."""
    yield tree.voc / "JPEGImages" / f"{image_id}.jpg", True
    yield tree.voc / "Annotations" / f"{image_id}.xml", image_id in tree.with_boxes
    yield _label_file(tree, image_id), True
    object_file = _object_file(tree, image_id)
    if object_file:
        yield object_file, object_file.parent.is_dir()


def _label_file(tree: Tree, image_id: str) -> Path:
    if image_id in tree.voc_ids:
        return tree.voc / "SegmentationClass" / f"{image_id}.png"
    if tree.sbd:
        return tree.sbd / "cls" / f"{image_id}.mat"
    return tree.voc / "SegmentationClassAug" / f"{image_id}.png"


def _object_file(tree: Tree, image_id: str) -> Path | None:
    if image_id in tree.voc_ids:
        return tree.voc / "SegmentationObject" / f"{image_id}.png"
    return tree.sbd / "inst" / f"{image_id}.mat" if tree.sbd else None


# --- one image ------------------------------------------------------------------------------------
def read_sample(tree: Tree, categories: tuple[str, ...], image_id: str) -> Sample:
    """An image with its label map and objects.

    Args:
        categories: names, background first.

    Raises:
        BadInput: a file is missing, damaged or contradicts another; names it and the remedy.
    """
    path = tree.voc / "JPEGImages" / f"{image_id}.jpg"
    image = read_image(path)
    shape = (image.shape[0], image.shape[1])
    label_map = _read_label_map(_label_file(tree, image_id), shape, categories)
    object_file = _object_file(tree, image_id)
    masks: list[tuple[int, np.ndarray]] = []
    if object_file and object_file.is_file():
        masks = _read_object_masks(object_file, label_map, categories)
    annotation = tree.voc / "Annotations" / f"{image_id}.xml"
    objects: tuple[AnnotatedObject, ...] | None = None
    if annotation.is_file():
        objects = join(read_boxes(annotation, shape, categories), masks)
    elif masks:
        objects = tuple(
            AnnotatedObject(category, _box_of(mask), difficult=False, crowd=False, mask=mask)
            for category, mask in masks
        )
    return Sample(
        image_id=image_id,
        path=published_name(tree, path),
        image=image,
        source="voc" if image_id in tree.voc_ids else "sbd",
        label_map=label_map,
        objects=objects,
    )


def _read_label_map(path: Path, shape: tuple[int, int], categories: tuple[str, ...]) -> np.ndarray:
    if path.suffix == ".mat":
        label_map = sbd.read_label_map(path)
    elif path.is_file():
        label_map = decode_index_png(path)
    else:
        raise BadInput(f"{path}: not there; the copy of the dataset is incomplete")
    _check_size(path, label_map, shape)
    largest = label_map[label_map != IGNORE].max(initial=0)
    if largest >= len(categories):
        raise BadInput(
            f"{path}: label {largest}, but the categories go to {len(categories) - 1} "
            f"({categories[-1]}), and {IGNORE} for ignored pixels; put the original file there"
        )
    return label_map


def _check_size(path: Path, numbers: np.ndarray, shape: tuple[int, int]) -> None:
    if numbers.shape != shape:
        raise BadInput(
            f"{path}: {numbers.shape[1]}x{numbers.shape[0]} pixels, but the image has "
            f"{shape[1]}x{shape[0]}; one of them is another image's or was resized"
        )


def _read_object_masks(
    path: Path, label_map: np.ndarray, categories: tuple[str, ...]
) -> list[tuple[int, np.ndarray]]:
    """The objects of an image as (category, mask (H, W) bool)."""
    if path.suffix == ".mat":
        masks = sbd.read_object_masks(path)
        for category, mask in masks:
            _check_size(path, mask, label_map.shape)
            if not 1 <= category < len(categories):
                raise BadInput(
                    f"{path}: an object of category {category}, but the categories go from 1 to "
                    f"{len(categories) - 1}; put the original file there"
                )
        return masks
    numbers = decode_index_png(path)
    _check_size(path, numbers, label_map.shape)
    masks = []
    for number in np.unique(numbers):
        if number not in (0, IGNORE):
            mask = numbers == number
            labels = label_map[mask]
            votes = np.bincount(labels[labels != IGNORE], minlength=1)
            if votes[1:].any():
                masks.append((int(votes[1:].argmax()) + 1, mask))
    return masks


def _box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = boxes.tight_box(mask).tolist()
    return x0, y0, x1, y1


def read_boxes(
    path: Path, shape: tuple[int, int], categories: tuple[str, ...]
) -> list[AnnotatedObject]:
    """The objects of an XML annotation, without masks.

    Args:
        shape: height and width of the image.

    Raises:
        BadInput: not XML, a category that is unknown, a box without area or outside the image.
    """
    try:
        entries = xml.parse(path).getroot().findall("object")
    except (xml.ParseError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(f"{path}: not readable XML ({error}); copy the file anew") from error
    return [_read_object(path, entry, shape, categories) for entry in entries]


def _read_object(
    path: Path, entry: xml.Element, shape: tuple[int, int], categories: tuple[str, ...]
) -> AnnotatedObject:
    name = (entry.findtext("name") or "").strip()
    if name not in categories[1:]:
        raise BadInput(f"{path}: unknown category {name!r}; known: {', '.join(categories[1:])}")
    try:
        # Some of VOC's coordinates have a fraction.
        xmin, ymin, xmax, ymax = (
            round(float(entry.findtext(f"bndbox/{side}") or ""))
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = int(entry.findtext("difficult") or 0) != 0
    except (ValueError, OverflowError) as error:
        raise BadInput(
            f"{path}: a {name} whose box or difficult flag is no number ({error}); correct the file"
        ) from error
    height, width = shape
    if not (1 <= xmin <= xmax <= width and 1 <= ymin <= ymax <= height):
        raise BadInput(
            f"{path}: the box ({xmin}, {ymin}, {xmax}, {ymax}) of a {name} is empty or not inside "
            f"the image of {width}x{height} (coordinates count from 1); correct the file"
        )
    box = (xmin - 1, ymin - 1, xmax, ymax)
    return AnnotatedObject(categories.index(name), box, difficult, crowd=False, mask=None)


def join(
    objects: list[AnnotatedObject], masks: list[tuple[int, np.ndarray]]
) -> tuple[AnnotatedObject, ...]:
    """Give each object the mask of its category whose box is nearest to its own.

    Pairs are taken from the highest IoU of boxes down to 0.5; each object and each mask once.
    Masks that are left over are dropped, objects that are left over stay without a mask.
    """
    if not objects or not masks:
        return tuple(objects)
    object_boxes = np.array([o.box for o in objects])
    mask_boxes = np.array([boxes.tight_box(mask) for _, mask in masks])
    iou = boxes.iou(object_boxes, mask_boxes)
    same = np.array([o.category for o in objects])[:, None] == np.array([c for c, _ in masks])
    iou = np.where(same, iou, 0)
    joined = list(objects)
    while iou.max() >= MIN_BOX_IOU:
        i, j = np.unravel_index(iou.argmax(), iou.shape)
        o = objects[i]
        joined[i] = AnnotatedObject(o.category, o.box, o.difficult, o.crowd, masks[j][1])
        iou[i, :] = iou[:, j] = 0
    return tuple(joined)
