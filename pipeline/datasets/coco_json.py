"""What the JSON files of COCO hold: entries, and masks as polygons or run-lengths. H x W pixels."""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from pycocotools import mask as coco

from pipeline.categories import COCO_NAMES
from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile, need_file

FILE_NAME = re.compile(r"([A-Za-z0-9_-]+)\.(jpg|jpeg|png)", re.IGNORECASE)
TINY_AREA, TINY_SIDE = 64.0, 2.0  # pixels: a smaller annotation may fall between the pixels
OVERSHOOT = 2.0  # pixels outside the image that a coordinate may lie; no published one seen does
ZERO = ord("0")  # the first character of compressed run-lengths
MORE_FOLLOW = ZERO + 32  # from this one on a count goes on
LONGEST_COUNT = 7  # characters of 5 bits: more than any image has pixels
COPY_ANEW = "the file is damaged or was edited: copy it anew"

Side = Annotated[int, msgspec.Meta(ge=1, le=65535)]  # as long as a JPEG's may be


class ImageEntry(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: Side
    width: Side


class CategoryEntry(msgspec.Struct, gc=False):
    id: int
    name: str


class Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    iscrowd: Literal[0, 1]
    area: Annotated[float, msgspec.Meta(ge=0)]
    bbox: tuple[float, float, float, float]
    segmentation: msgspec.Raw


class Numbered(msgspec.Struct, gc=False):
    id: int | str


class RunLengths(msgspec.Struct, gc=False):
    size: tuple[int, int]
    counts: list[int] | str


class Instances(msgspec.Struct, gc=False):
    """The file, its entries still undecoded: a fault of one is not a fault of all."""

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


INSTANCES = msgspec.json.Decoder(Instances)
IMAGE = msgspec.json.Decoder(ImageEntry)
CATEGORY = msgspec.json.Decoder(CategoryEntry)
ANNOTATION = msgspec.json.Decoder(Annotation)
NUMBERED = msgspec.json.Decoder(Numbered)
SEGMENTATION = msgspec.json.Decoder(list[list[float]] | RunLengths)


def decode(decoder: msgspec.json.Decoder[Any], data: Any, path: Path, where: str) -> Any:
    """BadFile, with the byte or the key that msgspec names, for what is no JSON of that form."""
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as error:  # ValueError: msgspec's own, and bad UTF-8
        raise BadFile(path, f"{where}not as COCO writes it ({error})", COPY_ANEW) from error


# --- the file -------------------------------------------------------------------------------------
def read_json(path: Path) -> bytes:
    """The bytes of a file without the mark that some programs begin UTF-8 with. Raises BadFile."""
    need_file(path)
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise BadFile(path, f"not readable ({error})", "copy it anew") from error


def number_of(raw: msgspec.Raw) -> int | str | None:
    """The id of an entry that may be faulty otherwise; None if that is faulty, too."""
    try:
        return NUMBERED.decode(raw).id
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class Listed:
    """An image of a JSON file, and its annotations as they stand there."""

    json: Path
    split: str
    entry: ImageEntry
    annotations: list[msgspec.Raw] = field(default_factory=list)


def read_instances(
    path: Path, split: str, images: dict[str, Listed], problems: Problems
) -> tuple[list[str], list[int]]:
    """Read an annotation file; its images, with their annotations, go into `images` by id.

    Returns:
        the ids of its images, and of the annotations that hold no pixel, which are left out.

    Raises:
        BadFile: no JSON of COCO's form, or no image in it; through `problems`, faulty entries.
    """
    contents = decode(INSTANCES, read_json(path), path, "")
    with problems.noted():
        if not contents.categories:
            raise BadFile(path, "no category in it", COPY_ANEW)
    for number, raw in enumerate(contents.categories):
        with problems.noted():
            _check_category(decode(CATEGORY, raw, path, f"categories[{number}]: "), path)
    by_number: dict[int, Listed] = {}
    ids = []
    refused = set()  # their annotations are no faults of their own
    for number, raw in enumerate(contents.images):
        image_id = ""
        with problems.noted():
            entry = decode(IMAGE, raw, path, f"images[{number}]: ")
            image_id = _add_image(Listed(path, split, entry), by_number, images)
            ids.append(image_id)
        if not image_id:
            refused.add(number_of(raw))
    if not contents.images:
        raise BadFile(path, "no image in it", COPY_ANEW)
    return ids, _add_annotations(contents.annotations, by_number, refused, path, problems)


def _check_category(entry: CategoryEntry, path: Path) -> None:
    if COCO_NAMES.get(entry.id) != entry.name:
        raise BadFile(
            path,
            f"category {entry.id} is {entry.name!r}, in COCO it is {COCO_NAMES.get(entry.id)!r}",
            "only COCO's own categories can be read",
        )


def _add_image(listed: Listed, by_number: dict[int, Listed], images: dict[str, Listed]) -> str:
    """Note an image and return its id. BadFile if its file name is none or it is there already."""
    entry, path = listed.entry, listed.json
    name = FILE_NAME.fullmatch(entry.file_name)
    if name is None:
        problem = f"image {entry.id}: {entry.file_name!r} is no name of an image file"
        raise BadFile(path, problem, "use letters, digits, _ and -, no folders, and .jpg")
    image_id = name[1]
    if entry.id in by_number:
        raise BadFile(path, f"image {entry.id} again", "list each image once")
    if image_id in images:
        problem = f"image {entry.id}: {image_id} is the name of another one already"
        raise BadFile(path, problem, f"list each image once (see {images[image_id].json.name} too)")
    by_number[entry.id] = images[image_id] = listed
    return image_id


def _add_annotations(
    raws: list[msgspec.Raw],
    by_number: dict[int, Listed],
    refused: set[int | str | None],
    path: Path,
    problems: Problems,
) -> list[int]:
    """Give each annotation to its image. Returns the ids of those without pixels, left out."""
    seen: set[int] = set()
    empty: list[int] = []
    for number, raw in enumerate(raws):
        try:
            annotation = ANNOTATION.decode(raw)
            image = by_number[annotation.image_id]
            again = annotation.id in seen
        except (ValueError, RecursionError, KeyError):
            again = True
        if again:  # apart, for a file has a million annotations and hardly a fault
            with problems.noted():
                _refuse(raw, number, by_number, refused, path)
            continue
        seen.add(annotation.id)
        if is_tiny(annotation) and _is_empty(annotation, image):
            empty.append(annotation.id)
        else:
            image.annotations.append(raw)
    return empty


def _refuse(
    raw: msgspec.Raw,
    number: int,
    by_number: dict[int, Listed],
    refused: set[int | str | None],
    path: Path,
) -> None:
    """BadFile for an annotation that is faulty, unless it only belongs to a refused image."""
    annotation = decode(ANNOTATION, raw, path, f"annotations[{number}]: ")
    if annotation.image_id not in by_number:
        if annotation.image_id in refused:
            return
        problem = f"annotation {annotation.id} is of image {annotation.image_id}, which is none"
        raise BadFile(path, problem, "list the image or take the annotation out")
    raise BadFile(path, f"annotation {annotation.id} again", "list each annotation once")


def is_tiny(annotation: Annotation) -> bool:
    """Whether an annotation is so small that pixels may miss it."""
    return annotation.area < TINY_AREA or min(annotation.bbox[2:]) < TINY_SIDE


def _is_empty(annotation: Annotation, image: Listed) -> bool:
    try:
        rle = run_lengths(annotation, (image.entry.height, image.entry.width), image.json)
    except BadFile:
        return False  # a fault of its own, which `read` tells
    return int(coco.area(rle)) == 0


# --- masks ----------------------------------------------------------------------------------------
def run_lengths(annotation: Annotation, size: tuple[int, int], path: Path) -> dict[str, Any]:
    """An annotation's mask as pycocotools' run-lengths, never as pixels.

    pycocotools believes what it is given, and reads or writes past its memory if that is wrong:
    nothing goes there unchecked.

    Raises:
        BadFile: neither polygons nor run-lengths of this image.
    """
    where = f"annotation {annotation.id}: "
    drawn = decode(SEGMENTATION, annotation.segmentation, path, where)
    try:
        return checked_mask(drawn, size)
    except ValueError as error:
        raise BadFile(path, f"{where}{error}", COPY_ANEW) from error


def checked_mask(drawn: list[list[float]] | RunLengths, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons or run-lengths as pycocotools' run-lengths of an image of that size (H, W).

    Raises:
        ValueError: they are no mask of such an image.
    """
    if isinstance(drawn, RunLengths):
        counts = _without_empty_runs(_checked_counts(drawn, size))
        return coco.frPyObjects({"size": size, "counts": counts}, *size)
    _check_polygons(drawn, size)
    return coco.merge(coco.frPyObjects(drawn, *size))


def _check_polygons(polygons: list[list[float]], size: tuple[int, int]) -> None:
    """ValueError for polygons that cannot be drawn into the image."""
    if not polygons:
        raise ValueError("it has no polygon")
    height, width = size
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers instead of 6, 8, ...")
        xs, ys = polygon[0::2], polygon[1::2]
        low, right, below = min(min(xs), min(ys)), max(xs) - width, max(ys) - height
        if not (low >= -OVERSHOOT and right <= OVERSHOOT and below <= OVERSHOOT):
            raise ValueError(
                f"a polygon from ({min(xs):g}, {min(ys):g}) to ({max(xs):g}, {max(ys):g}) is not "
                f"inside the image of {width}x{height}"
            )


def _checked_counts(drawn: RunLengths, size: tuple[int, int]) -> list[int]:
    """The counts of run-lengths. ValueError if they are not those of a mask of the image."""
    height, width = size
    if drawn.size != size:
        raise ValueError(
            f"run-lengths of {drawn.size[1]}x{drawn.size[0]} pixels, but the image has "
            f"{width}x{height}"
        )
    counts = drawn.counts
    if isinstance(counts, str):
        counts = decode_counts([counts.encode("ascii")])[0].tolist()
    if min(counts, default=0) < 0:
        raise ValueError(f"a run of {min(counts)} pixels")
    if sum(counts) != height * width:
        raise ValueError(f"runs of {sum(counts)} pixels together instead of {height * width}")
    return counts


def _without_empty_runs(counts: list[int]) -> list[int]:
    """The same mask, its runs joined across runs of 0 pixels, which pycocotools miscounts."""
    joined = [0]  # off
    for position, count in enumerate(counts):
        if position % 2 == (len(joined) - 1) % 2:
            joined[-1] += count
        elif count:
            joined.append(count)
    return joined


def decode_counts(texts: Sequence[bytes]) -> list[np.ndarray]:
    """The counts of COCO's compressed run-lengths: pixels off, on, off, ..., (N,) int64 of each.

    A count is written in characters of 5 bits, the lowest first, from "0" on; the sixth bit tells
    that more follow, the fifth of the last one is the sign. From the fourth count on it is the
    difference from the count two before. Many texts at once take little longer than one.

    Raises:
        ValueError: a text is not of that form. Counts may still be negative.
    """
    if not texts:
        return []
    if not all(texts) or any(text[-1] >= MORE_FOLLOW for text in texts):
        raise ValueError("its compressed run-lengths are cut off")
    codes = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - ZERO
    if not 0 <= codes.min() <= codes.max() < 64:
        raise ValueError("its compressed run-lengths hold other characters than theirs")
    last = np.flatnonzero(codes < 32)  # character of each count
    first = np.zeros_like(last)
    first[1:] = last[:-1] + 1
    lengths = last - first + 1
    if lengths.max() > LONGEST_COUNT:
        raise ValueError("its compressed run-lengths hold a count that no image has")
    digit = np.arange(codes.size) - np.repeat(first, lengths)
    counts = np.add.reduceat((codes & 31) << (5 * digit), first)
    counts -= ((codes[last] >> 4) & 1) << (5 * lengths)  # the sign
    ends = np.searchsorted(last, np.cumsum([len(text) for text in texts]))
    each = np.split(counts, ends[:-1])
    for one in each:
        one[1::2] = np.cumsum(one[1::2])
        one[2::2] = np.cumsum(one[2::2])
    return each
