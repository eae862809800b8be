"""COCO instances JSON as the truth, of any categories, and COCO results JSON as predictions.

    truth    {"images": [{"id", "file_name", "height", "width"}, ...],
              "categories": [{"id", "name"}, ...],
              "annotations": [{"id", "image_id", "category_id", "segmentation", "area", "iscrowd"},
                              ...]}
    results  [{"image_id", "category_id", "segmentation", "score"}, ...]

A segmentation is polygons or run-lengths, an image id a number or a text. An annotation without
`area` has its mask's, without `iscrowd` it is no crowd. Boxes are not read. H x W pixels.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
import numba
import numpy as np
from pycocotools import mask as coco

from pipeline.datasets.coco_json import (
    COPY_ANEW,
    LONGEST_COUNT,
    ZERO,
    RunLengths,
    Side,
    checked_mask,
    decode,
    read_json,
)
from pipeline.datasets.lists import read_ids
from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile, some

NO_NUMBER = re.compile(rb'"score"\s*:\s*"?(-?(?:NaN|Infinity))')  # as Python's json writes them
BATCH = 4096  # masks that are checked at once

Drawn = list[list[float]] | RunLengths


@dataclass(frozen=True, slots=True)
class TruthObject:
    """An annotated object."""

    category: int  # published id
    area: float  # pixels, as the annotation says
    crowd: bool
    rle: dict[str, Any]  # pycocotools' run-lengths, checked


@dataclass(frozen=True, slots=True)
class TruthImage:
    """An image and its objects, in the order of the file."""

    number: int | str  # published id
    name: str  # stem of its file name, or the id as text
    size: tuple[int, int]  # H, W
    objects: list[TruthObject]


@dataclass(frozen=True)
class InstanceTruth:
    """The chosen images of a file."""

    path: Path
    categories: dict[int, str]  # name by published id, in the order of the file
    images: dict[int | str, TruthImage]  # by published id
    left_out: frozenset[int | str] = frozenset()  # images of the file that were not chosen


@dataclass(frozen=True, slots=True)
class Detection:
    """A predicted object."""

    image: int | str  # published id
    category: int  # published id
    score: float  # finite
    rle: dict[str, Any]  # pycocotools' run-lengths, checked


class ImageEntry(msgspec.Struct, gc=False):
    id: int | str
    height: Side
    width: Side
    file_name: str | None = None


class CategoryEntry(msgspec.Struct, gc=False):
    id: int
    name: str


class AnnotationEntry(msgspec.Struct):
    image_id: int | str
    category_id: int
    segmentation: Drawn | None = None
    id: int | str | None = None
    area: Annotated[float, msgspec.Meta(ge=0)] | None = None
    iscrowd: Literal[0, 1] = 0


class TruthFile(msgspec.Struct):
    images: list[ImageEntry]
    annotations: list[AnnotationEntry]
    categories: list[CategoryEntry]


class ResultEntry(msgspec.Struct):
    image_id: int | str
    category_id: int
    score: float
    segmentation: Drawn | None = None


TRUTH = msgspec.json.Decoder(TruthFile)
RESULTS = msgspec.json.Decoder(list[ResultEntry])


# --- the truth ------------------------------------------------------------------------------------
def read_truth(path: Path, ids: Path | None = None) -> InstanceTruth:
    """Read COCO instances JSON.

    Args:
        ids: a list of images, by published id or by name, one a line; None: all of the file.

    Raises:
        BadFile: no JSON of that form, ids or names that are there twice, an object of an unknown
            image or category or without a mask of its image; a listed image is not in the file.
    """
    contents = decode(TRUTH, read_json(path), path, "")
    categories = {entry.id: entry.name for entry in contents.categories}
    _need_distinct("category", [entry.id for entry in contents.categories], path)
    _need_distinct("category", [entry.name for entry in contents.categories], path)
    if not categories:
        raise BadFile(path, "no category in it", COPY_ANEW)
    every = _images(contents.images, path)
    chosen = every if ids is None else _chosen(every, ids, path)
    _add_objects(contents.annotations, every, chosen, categories, path)
    return InstanceTruth(path, categories, chosen, frozenset(every.keys() - chosen.keys()))


def _images(entries: list[ImageEntry], path: Path) -> dict[int | str, TruthImage]:
    """The images by id, still without objects."""
    if not entries:
        raise BadFile(path, "no image in it", COPY_ANEW)
    images = {}
    for entry in entries:
        name = PurePosixPath(entry.file_name or "").stem or str(entry.id)
        images[entry.id] = TruthImage(entry.id, name, (entry.height, entry.width), [])
    _need_distinct("image", [entry.id for entry in entries], path)
    _need_distinct("image", [image.name for image in images.values()], path)
    return images


def _need_distinct(what: str, names: Sequence[int | str], path: Path) -> None:
    seen: set[int | str] = set()
    for name in names:
        if name in seen:
            raise BadFile(path, f"{what} {name} again", f"list each {what} once")
        seen.add(name)


def _chosen(
    images: dict[int | str, TruthImage], ids: Path, path: Path
) -> dict[int | str, TruthImage]:
    """The images of a list, in the order of the file."""
    wanted = read_ids(ids, Problems(collect=False))
    by_text = {str(number): number for number in images}
    by_text |= {image.name: image.number for image in images.values()}
    if unknown := [text for text in wanted if text not in by_text]:
        raise BadFile(
            ids,
            f"{len(unknown)} of {len(wanted)} images are not in {path}: {some(unknown)}",
            "list images of that file, by id or by name",
        )
    numbers = {by_text[text] for text in wanted}
    return {number: image for number, image in images.items() if number in numbers}


def _add_objects(
    entries: list[AnnotationEntry],
    every: dict[int | str, TruthImage],
    chosen: dict[int | str, TruthImage],
    categories: dict[int, str],
    path: Path,
) -> None:
    """Give the objects to the chosen images. BadFile for objects of unknown images, too."""
    wheres = []
    for number, entry in enumerate(entries):
        where = f"annotation {number if entry.id is None else entry.id}: "
        wheres.append(where)
        if entry.image_id not in every:
            problem = f"{where}of image {entry.image_id!r}, which is none"
            raise BadFile(path, problem, "list the image or take the annotation out")
        _need_category(entry.category_id, categories, where, path, path)
    _need_distinct("annotation", [entry.id for entry in entries if entry.id is not None], path)
    kept = [number for number, entry in enumerate(entries) if entry.image_id in chosen]
    drawn = [(wheres[n], entries[n].segmentation, every[entries[n].image_id].size) for n in kept]
    for number, rle in zip(kept, _masks(drawn, path), strict=True):
        entry = entries[number]
        area = float(coco.area(rle)) if entry.area is None else entry.area
        new = TruthObject(entry.category_id, area, entry.iscrowd == 1, rle)
        chosen[entry.image_id].objects.append(new)


def _need_category(
    category: int, categories: dict[int, str], where: str, path: Path, truth: Path
) -> None:
    if category not in categories:
        known = some([f"{number} {name}" for number, name in categories.items()])
        problem = f"{where}category {category}, but the categories of {truth} are {known}"
        raise BadFile(path, problem, "use the ids of those categories")


# --- the results ----------------------------------------------------------------------------------
def read_results(path: Path, truth: InstanceTruth) -> list[Detection]:
    """Read COCO results JSON, in the order of the file.

    Results of images that the truth holds but that were not chosen are left out.

    Raises:
        BadFile: no JSON of that form, a result of an unknown image or category, without a finite
            score, without a mask (boxes alone cannot be scored) or with one of another image.
    """
    kept = []
    drawn = []
    for number, entry in enumerate(_entries(path)):
        where = f"result {number}: "
        if entry.image_id in truth.left_out:
            continue
        image = truth.images.get(entry.image_id)
        if image is None:
            problem = f"{where}image {entry.image_id!r} is not in {truth.path}"
            raise BadFile(path, problem, "use the ids of the images there, of the same type")
        _need_category(entry.category_id, truth.categories, where, path, truth.path)
        if not math.isfinite(entry.score):
            raise BadFile(path, f"{where}the score {entry.score} is no number", "correct it")
        kept.append(entry)
        drawn.append((where, entry.segmentation, image.size))
    masks = _masks(drawn, path)
    return [
        Detection(entry.image_id, entry.category_id, entry.score, rle)
        for entry, rle in zip(kept, masks, strict=True)
    ]


def _entries(path: Path) -> list[ResultEntry]:
    """The entries of a results file, not checked against the truth."""
    data = read_json(path)
    try:
        return RESULTS.decode(data)
    except (ValueError, RecursionError) as error:
        if found := NO_NUMBER.search(data):
            number = data.count(b'"score"', 0, found.start())
            problem = f"result {number}: the score {found[1].decode()} is no number"
            raise BadFile(path, problem, "correct it") from error
        raise BadFile(
            path,
            f"no COCO results ({error})",
            "they are a list of {image_id, category_id, segmentation, score}",
        ) from error


# --- masks ----------------------------------------------------------------------------------------
def _masks(
    drawn: Sequence[tuple[str, Drawn | None, tuple[int, int]]], path: Path
) -> Iterator[dict[str, Any]]:
    """The run-lengths of each (where, segmentation, size), checked. Raises BadFile, with where."""
    for start in range(0, len(drawn), BATCH):
        batch = drawn[start : start + BATCH]
        sound = _sound(batch)
        for (where, segmentation, size), as_is in zip(batch, sound, strict=True):
            if as_is and isinstance(segmentation, RunLengths):
                assert isinstance(segmentation.counts, str)
                yield {"size": list(size), "counts": segmentation.counts.encode("ascii")}
                continue
            if segmentation is None:
                problem, remedy = f"{where}no mask", "only masks can be scored, boxes cannot"
                raise BadFile(path, problem, remedy)
            try:
                rle = checked_mask(segmentation, size)
            except ValueError as error:
                raise BadFile(path, f"{where}{error}", "correct the mask") from error
            yield rle


def _sound(batch: Sequence[tuple[str, Drawn | None, tuple[int, int]]]) -> list[bool]:
    """Which segmentations are compressed run-lengths that pycocotools takes as they are.

    That is nearly all there are, so they are checked together; the others one by one.
    """
    sound = [False] * len(batch)
    texts, places, pixels = [], [], []
    for place, (_, segmentation, size) in enumerate(batch):
        if isinstance(segmentation, RunLengths) and segmentation.size == size:
            if isinstance(segmentation.counts, str) and segmentation.counts.isascii():
                texts.append(segmentation.counts.encode("ascii"))
                places.append(place)
                pixels.append(size[0] * size[1])
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    codes = np.frombuffer(b"".join(texts), np.uint8)
    if texts:
        found = _are_sound(codes, ends, np.array(pixels, np.int64))
        for place, is_sound in zip(places, found.tolist(), strict=True):
            sound[place] = is_sound
    return sound


@numba.njit(nogil=True, cache=True)
def _are_sound(codes, ends, pixels):
    """(N,) bool: which texts, each up to its end in `codes`, are run-lengths of so many pixels.

    `decode_counts` says how they are written. A run of 0 pixels is fine only as the first one:
    pycocotools miscounts others.
    """
    sound = np.zeros(ends.size, np.bool_)
    start = 0
    for n in range(ends.size):
        number, left = 0, pixels[n]
        before, last = 0, 0  # the two counts before this one
        count, shift = 0, 0
        for place in range(start, ends[n]):
            code = np.int64(codes[place]) - ZERO
            if not 0 <= code < 64 or shift == 5 * LONGEST_COUNT:
                left = -1
                break
            count |= (code & 31) << shift
            shift += 5
            if code < 32:
                if code & 16:
                    count -= 1 << shift
                if number > 2:
                    count += before
                if count < 0 or (count == 0 and number > 0):
                    left = -1
                    break
                before, last = last, count
                left -= count
                number += 1
                count, shift = 0, 0
        sound[n] = left == 0 and number > 0 and shift == 0
        start = ends[n]
    return sound
