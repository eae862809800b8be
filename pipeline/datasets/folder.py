"""Somebody's own images, laid out by hand as docs/OWN_IMAGES.md says.

    categories.txt   a name a line: line n, from 0, names the pixels of value n; the word `ignore`
                     stands for a value without label, and takes no category number
    images/...       JPEG, PNG, TIFF, BMP, WebP; an image's id is its name without .jpg, .png, ...
    masks/...        8-bit index PNGs: line of categories.txt per pixel, 255 = no label
    objects/...      8- or 16-bit index PNGs: number of the object per pixel, 0 = none; in 8-bit
                     ones 255 = unclear
    boxes/...        an XML per image in VOC's form, or JSON files in the form of COCO's instances
    <split>.txt      image ids or paths

Masks, objects and boxes are optional, one of them must be there. Annotations lie at any depth; they
are named as their image is, or as it is with one and the same ending: `x_mask.png` for `x.jpg`.

An object has the category of most of its pixels in the mask; without masks there must be one
category beside background, and label maps follow from the objects. JSON files in which every
annotation has a segmentation give label maps too. Pixels are taken as they are stored: an image
that is to be turned by its EXIF tag is refused. H x W pixels, N objects.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.categories import IGNORE
from pipeline.datasets import folder_boxes
from pipeline.datasets.checks import check_size
from pipeline.datasets.folder_boxes import Boxes
from pipeline.datasets.folder_files import (
    find_images,
    find_maps,
    find_named,
    list_files,
    list_some,
    names_in,
)
from pipeline.datasets.folder_lists import (
    BACKGROUND,
    Names,
    drawn_splits,
    find_lists,
    folder_splits,
    listed_splits,
    read_names,
)
from pipeline.datasets.form import AnnotatedObject, Sample, image_size, objects_of_masks
from pipeline.datasets.tree import ImageFiles, Place, Problems, Tree
from pipeline.datasets.voc_boxes import join, read_boxes
from pipeline.errors import BadFile, need_file
from pipeline.masks import decode_index_png, encode_numbers

MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "YCbCr"}  # 8 bits a channel, or fewer
WIDE_MODES = {"I", "I;16", "I;16B"}  # Pillow's for 16-bit PNGs
EXIF_ORIENTATION, UPRIGHT = 0x0112, 1


@dataclass
class Annotation:
    """What is annotated, by image id."""

    jsons: list[Path] = field(default_factory=list)
    masks: dict[str, Path] = field(default_factory=dict)
    objects: dict[str, Path] = field(default_factory=dict)
    xmls: dict[str, Path] = field(default_factory=dict)
    boxes: dict[str, Boxes] = field(default_factory=dict)  # what the JSON files say


@dataclass(frozen=True)
class Record:
    """One image and its annotation."""

    image_id: str
    name: str  # of the image's file
    image: Path
    mask: Path | None
    objects: Path | None
    xml: Path | None
    boxes: Boxes | None


# --- the lists ------------------------------------------------------------------------------------
def open_tree(place: Place, problems: Problems, *, val_fraction: float, seed: int) -> Tree:
    """A folder of somebody's own images.

    Args:
        val_fraction: part of the images, 0..1, that become `val` in a folder without splits.
        seed: of that choice.

    Raises:
        BadFile: a file is missing, contradicts another or has an unusable name.
    """
    base, notes = place.folder, list[str]()
    names: Names | None = None
    lists: dict[str, Path] = {}
    images: dict[str, Path] = {}
    with problems.noted():
        if not os.path.isdir(base):
            raise BadFile(base, "not there", "docs/OWN_IMAGES.md shows how a folder is laid out")
        with problems.noted():
            names = read_names(base / "categories.txt")
        lists = find_lists(base)
        images = find_images(base, problems, notes)
    splits = listed_splits(lists, images, problems, notes)
    if not lists:
        splits = folder_splits(base / "images", images, notes) or drawn_splits(
            sorted(images), val_fraction, seed, notes
        )
    if names is None or not any(splits.values()):
        return Tree.nothing(names.categories if names else ())
    found = _find_annotation(base, images, names, problems, notes)
    _check_annotated(splits, images, found, problems, notes)

    together = (base / "categories.txt", *lists.values(), *found.jsons)

    def record(image_id: str) -> Record:
        path = images[image_id]
        kinds = (found.masks, found.objects, found.xmls)
        mask, objects, xml = (kind.get(image_id) for kind in kinds)
        boxes = found.boxes.get(image_id)
        return Record(image_id, place.name_of(path), path, mask, objects, xml, boxes)

    def files_of(image_id: str) -> ImageFiles:
        r = record(image_id)
        files = [path for path in (r.image, r.mask, r.objects, r.xml) if path]
        return ImageFiles(must={place.name_of(path): path for path in files})

    return Tree(
        categories=names.categories,
        splits=splits,
        official={},
        lists={place.name_of(path): path for path in together},
        files_of=files_of,
        record=record,
        read=partial(read, names),
        notes=tuple(notes),
    )


# --- the annotation -------------------------------------------------------------------------------
def _find_annotation(
    base: Path, images: Mapping[str, Path], names: Names, problems: Problems, notes: list[str]
) -> Annotation:
    found = Annotation()
    with problems.noted():
        found.masks = find_maps(base / "masks", images, problems, notes)
    with problems.noted():
        found.objects = find_maps(base / "objects", images, problems, notes)
    files = list_files(base / "boxes", problems, notes)
    with problems.noted():
        found.xmls = find_named(base / "boxes", files, ".xml", images, problems, notes)
    here = [base / "annotations.json", base / "boxes.json"]
    found.jsons = [path for path in here if os.path.lexists(path)]
    found.jsons += [path for path in files if path.suffix.lower() == ".json"]
    with problems.noted():
        _check_kinds(base, names, found)
        found.boxes = folder_boxes.read_files(
            found.jsons, names.categories, {*images}, problems, notes
        )
    return found


def _check_kinds(base: Path, names: Names, found: Annotation) -> None:
    """BadFile for annotation that cannot mean anything together."""
    boxes = {*found.xmls, *found.jsons}
    if not (found.masks or found.objects or boxes):
        problem = "no annotation of its images in masks/, objects/ or boxes/; it holds "
        problem += ", ".join(names_in(base))
        raise BadFile(base, problem, "docs/OWN_IMAGES.md shows how a folder is laid out")
    if found.xmls and found.jsons:
        problem = f"XML files, and {found.jsons[0].name} as well"
        raise BadFile(base / "boxes", problem, "keep the boxes in one form")
    unmasked = sorted({*found.objects} - {*found.masks})
    if (boxes or unmasked) and not names.has_background:
        raise BadFile(
            base / "categories.txt",
            f"the first category is {names.categories[0]!r}, but pixels outside all boxes and "
            "objects are of none of these",
            f"write {BACKGROUND} in the first line",
        )
    if unmasked and len(names.categories) > 2:
        problem = f"nothing tells which of {len(names.categories) - 1} categories an object has"
        remedy = f"add the masks of {list_some(unmasked)}"
        raise BadFile(base / "objects", problem, remedy)


def _check_annotated(
    splits: Mapping[str, list[str]],
    images: Mapping[str, Path],
    found: Annotation,
    problems: Problems,
    notes: list[str],
) -> None:
    """BadFile for each image without any annotation; a note for those that lack one kind."""
    used = sorted({image_id for ids in splits.values() for image_id in ids})
    kinds = {"masks": {*found.masks}, "objects": {*found.objects}}
    kinds["boxes"] = {*found.xmls, *found.boxes}
    there = {kind: ids for kind, ids in kinds.items() if ids}
    annotated = {image_id for ids in there.values() for image_id in ids}
    for image_id in used if there else []:
        if image_id not in annotated:
            with problems.noted():
                problem = f"not annotated: nothing of its name in {', '.join(there)}"
                raise BadFile(images[image_id], problem, "annotate it, or take it out of its split")
    for kind, ids in there.items():
        if without := [i for i in used if i in annotated and i not in ids]:
            notes.append(f"no {kind} for {len(without)} of {len(used)}: {list_some(without)}")


# --- one image ------------------------------------------------------------------------------------
def read(names: Names, record: Record, problems: Problems) -> Sample:
    """An image with its label map and objects.

    Raises:
        BadFile: the image is missing or unreadable; through `problems`, any other fault.
    """
    size = image_size(record.image)
    with problems.noted():
        _check_image(record.image)
    label_map: np.ndarray | None = None
    masks: list[tuple[int, str]] | None = None
    objects: tuple[AnnotatedObject, ...] | None = None
    if record.mask:
        with problems.noted():
            label_map = _read_mask(record.mask, size, names)
    if record.objects:
        with problems.noted():
            numbers, unclear = _read_numbers(record.objects, size)
            if not record.mask and len(names.categories) == 2:
                label_map = np.where(unclear, IGNORE, numbers > 0).astype(np.uint8)
            if label_map is not None:
                masks = _categories_of(record.objects, numbers, label_map, names, problems)
    if record.xml:
        with problems.noted():
            found = read_boxes(record.xml, size, names.categories, problems)
            objects = join(found, masks or [], size)
    elif record.boxes:
        with problems.noted():
            found, drawn = folder_boxes.read_objects(record.boxes, size, problems)
            objects = join(found, masks or [], size)
            if not (record.mask or record.objects):
                label_map = drawn
    elif masks is not None:
        objects = objects_of_masks(masks, size)
    return Sample(record.image_id, record.name, size, "folder", label_map, objects)


def _check_image(path: Path) -> None:
    """BadFile for an image that other programs read otherwise than this one."""
    mode, pages, turned = _header(path)
    if mode not in MODES:
        problem = f"mode {mode} instead of RGB or grey of 8 bits"
        raise BadFile(path, problem, "convert it to 8-bit RGB")
    if pages > 1:
        raise BadFile(path, f"{pages} images in one file", "save each in a file of its own")
    if turned not in (0, UPRIGHT):
        raise BadFile(
            path,
            f"its EXIF tag turns it (orientation {turned}), which not all programs obey",
            "if its annotation was drawn on the image as it is seen, turn the pixels "
            "(`mogrify -auto-orient`), else remove the tag (`exiftool -Orientation=`)",
        )


def _header(path: Path) -> tuple[str, int, int]:
    """Mode, number of images and EXIF orientation of an image's file."""
    pages, turned = 1, UPRIGHT
    need_file(path)
    try:
        with Image.open(path) as image:
            if image.format in ("TIFF", "WEBP"):
                pages = getattr(image, "n_frames", 1)
            # A TIFF is turned by Pillow itself, and a PNG's tag may lie behind its pixels.
            if image.format in ("JPEG", "MPO", "WEBP"):
                turned = image.getexif().get(EXIF_ORIENTATION, UPRIGHT)
            return image.mode, pages, turned
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        problem = f"a damaged header ({error})"
        raise BadFile(
            path, problem, "copy it anew, or save it again with an image program"
        ) from error


def _read_mask(path: Path, size: tuple[int, int], names: Names) -> np.ndarray:
    """The label of each pixel (H, W) uint8."""
    values = decode_index_png(path)
    check_size(path, values, size)
    counts = np.bincount(values.ravel(), minlength=256)
    largest = int(np.flatnonzero(counts[:IGNORE]).max(initial=0))
    if largest >= names.lines:
        problem = f"value {largest}, but categories.txt has the lines 0 to {names.lines - 1}"
        raise BadFile(path, problem, "name the value there, or write the line's number in the mask")
    if counts[0] and counts[IGNORE] and counts[0] + counts[IGNORE] == values.size:
        problem = f"nothing but 0 and {IGNORE}, which means without label"
        raise BadFile(path, problem, "write 1 for the category of line 1; or take the image out")
    return np.frombuffer(names.label_of, np.uint8)[values]


def _read_numbers(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The number of each pixel's object (H, W) int32, 0 = none, and where it is unclear (bool)."""
    numbers, unclear_number = _decode_numbers(path)
    check_size(path, numbers, size)
    unclear = numbers == unclear_number
    numbers[unclear] = 0
    if unclear.any() and not numbers.any():
        problem = f"nothing but 0 and {IGNORE}, which means unclear"
        raise BadFile(path, problem, "number the objects from 1; or take the image out")
    return numbers, unclear


def _decode_numbers(path: Path) -> tuple[np.ndarray, int]:
    """The values of a PNG (H, W) int32, and which of them means unclear; -1 where none does."""
    need_file(path)
    try:
        with Image.open(path) as image:
            if image.mode in WIDE_MODES:
                return np.array(image).astype(np.int32), -1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile(path, f"not a readable PNG ({error})", "replace the file") from error
    return decode_index_png(path).astype(np.int32), IGNORE


def _categories_of(
    path: Path, numbers: np.ndarray, label_map: np.ndarray, names: Names, problems: Problems
) -> list[tuple[int, str]]:
    """The objects as category and run-lengths; those without any label are left out."""
    first = int(names.has_background)
    known, index = np.unique(numbers, return_inverse=True)
    votes = np.bincount(index.ravel() * 256 + label_map.ravel(), minlength=256 * known.size)
    votes = votes.reshape(known.size, 256)[:, :IGNORE]  # (N + 1, 255)
    votes_of = dict(zip(known.tolist(), votes, strict=True))
    masks = []
    for number, counts in encode_numbers(numbers).items():
        with problems.noted():
            its_votes = votes_of[number]
            if its_votes[first:].any():
                masks.append((int(its_votes[first:].argmax()) + first, counts))
            elif its_votes.any():
                problem = f"object {number} lies on nothing but {BACKGROUND} in the mask"
                raise BadFile(path, problem, "correct the mask or take the object out")
    return masks
