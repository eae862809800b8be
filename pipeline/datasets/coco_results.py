"""COCO instances JSON as the truth, of any categories, and COCO results JSON as predictions.

    truth    {"images": [{"id", "file_name", "height", "width"}, ...],
              "categories": [{"id", "name"}, ...],
              "annotations": [{"id", "image_id", "category_id", "segmentation", "area", "iscrowd"},
                              ...]}
    results  [{"image_id", "category_id", "segmentation", "score"}, ...]

A segmentation is polygons or run-lengths, an image id a number or a text. An annotation without
`area` has its mask's, without `iscrowd` it is no crowd. A result may have a `bbox`, and may name an
image whose id is a number by its file (`_images_by_file`). H x W pixels.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np

from pipeline.datasets.coco_json import COPY_ANEW, Side, decode, read_json
from pipeline.datasets.label_maps import listed
from pipeline.datasets.run_lengths import Drawn, Runs, read_masks
from pipeline.errors import BadFile, some

NO_NUMBER = re.compile(rb'"score"\s*:\s*"?(-?(?:NaN|Infinity))')  # as Python's json writes them


@dataclass(frozen=True, slots=True)
class TruthObject:
    """An annotated object."""

    category: int  # published id
    area: float  # pixels, as the annotation says
    crowd: bool
    rle: dict[str, Any]  # pycocotools' run-lengths, checked
    number: int | str | None = None  # published id


@dataclass(frozen=True, slots=True)
class TruthImage:
    """An image and its objects, in the order of the file."""

    number: int | str  # published id
    name: str  # see `_names`
    size: tuple[int, int]  # H, W
    objects: list[TruthObject]


@dataclass(frozen=True)
class InstanceTruth:
    """The chosen images of a file."""

    path: Path
    categories: dict[int, str]  # name by published id, in the order of the file
    images: dict[int | str, TruthImage]  # by published id
    left_out: frozenset[int | str] = frozenset()  # images of the file that were not chosen
    # Published ids that are numbers, of left out images too, by file name without its ending.
    files: dict[str, int] = field(default_factory=dict)


class Detection(NamedTuple):
    """A predicted object."""

    image: int | str  # published id
    category: int  # published id
    score: float  # finite
    rle: dict[str, Any]  # pycocotools' run-lengths, checked
    area: float  # as pycocotools takes it: that of the box if there are boxes, else of the mask


@dataclass(frozen=True)
class Results:
    """N detections, in the order of their file, as columns; or one after the other."""

    images: list[int | str]  # published ids
    categories: list[int]  # published ids
    scores: np.ndarray  # (N,) float64, finite
    texts: list[str]  # compressed run-lengths, checked
    sizes: list[tuple[int, int]]  # of their images, H, W
    runs: Runs
    areas: np.ndarray  # (N,) float64, see Detection
    num_boxes: int  # how many detections have their area from a box

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Detection]:
        columns = (self.images, self.categories, self.scores.tolist(), self.texts, self.sizes)
        for image, category, score, text, size, area in zip(
            *columns, self.areas.tolist(), strict=True
        ):
            yield Detection(image, category, score, _rle(text, size), area)


class ImageEntry(msgspec.Struct, gc=False):
    id: int | str
    height: Side
    width: Side
    file_name: str | None = None


class CategoryEntry(msgspec.Struct, gc=False):
    id: int
    name: str


class AnnotationEntry(msgspec.Struct, gc=False):
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


class ResultEntry(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int
    score: float
    segmentation: Drawn | None = None
    bbox: list[float] | None = None


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
    data = read_json(path)
    if data.lstrip()[:1] == b"[":
        problem = "a list, the form of results, not of the truth"
        raise BadFile(path, problem, "name COCO instances JSON: {images, annotations, categories}")
    contents = decode(TRUTH, data, path, "")
    categories = {entry.id: entry.name for entry in contents.categories}
    _need_distinct("category", [entry.id for entry in contents.categories], path)
    _need_distinct("category", [entry.name for entry in contents.categories], path)
    if not categories:
        raise BadFile(path, "no category in it", COPY_ANEW)
    every = _images(contents.images, path)
    chosen = every if ids is None else _chosen(every, ids, path)
    _add_objects(contents.annotations, every, chosen, categories, path)
    files = {
        str(PurePosixPath(entry.file_name).with_suffix("")): entry.id
        for entry in contents.images
        if isinstance(entry.id, int) and PurePosixPath(entry.file_name or "").stem
    }
    left_out = frozenset(every.keys() - chosen.keys())
    return InstanceTruth(path, categories, chosen, left_out, files)


def _images(entries: list[ImageEntry], path: Path) -> dict[int | str, TruthImage]:
    """The images by id, still without objects."""
    if not entries:
        raise BadFile(path, "no image in it", COPY_ANEW)
    names = _names(entries)
    _need_distinct("image", [entry.id for entry in entries], path)
    _need_distinct("image", names, path)
    return {
        entry.id: TruthImage(entry.id, name, (entry.height, entry.width), [])
        for entry, name in zip(entries, names, strict=True)
    }


def _names(entries: list[ImageEntry]) -> list[str]:
    """The stem of each file name; of those whose stems are equal the path without its ending.

    Without a file name the id as text.
    """
    files = [PurePosixPath(entry.file_name or "") for entry in entries]
    count = Counter(file.stem for file in files)
    names = []
    for entry, file in zip(entries, files, strict=True):
        unlike = file.stem if count[file.stem] == 1 else str(file.parent / file.stem)
        names.append(unlike if file.stem else str(entry.id))
    return names


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
    by_text = {str(number): number for number in images}
    by_text |= {image.name: image.number for image in images.values()}
    wanted = listed(ids, by_text)
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
    drawn = [entries[number].segmentation for number in kept]
    sizes = [every[entries[number].image_id].size for number in kept]
    texts, runs = read_masks(drawn, sizes, [wheres[number] for number in kept], path)
    for number, text, size, pixels in zip(kept, texts, sizes, runs.areas.tolist(), strict=True):
        entry = entries[number]
        area = float(pixels) if entry.area is None else entry.area
        crowd = entry.iscrowd == 1
        new = TruthObject(entry.category_id, area, crowd, _rle(text, size), entry.id)
        chosen[entry.image_id].objects.append(new)


def _rle(text: str, size: tuple[int, int]) -> dict[str, Any]:
    return {"size": list(size), "counts": text.encode("ascii")}


def _need_category(
    category: int, categories: dict[int, str], where: str, path: Path, truth: Path
) -> None:
    if category not in categories:
        known = some([f"{number} {name}" for number, name in categories.items()])
        problem = f"{where}category {category}, but the categories of {truth} are {known}"
        raise BadFile(path, problem, "use the ids of those categories")


# --- the results ----------------------------------------------------------------------------------
def read_results(path: Path, truth: InstanceTruth) -> Results:
    """Read COCO results JSON, of the chosen images of a truth.

    As pycocotools does it, the areas are those of the boxes if the first result has one.

    Raises:
        BadFile: no JSON of that form, a result of an unknown image or category, without a finite
            score, without a mask (boxes alone cannot be scored) or with one of another image, or
            with a box that is not four finite numbers; a text that fits several images, or several
            that fit one (see `_images_by_file`).
    """
    entries = _entries(path)
    named = _images_by_file([entry.image_id for entry in entries], truth, path)
    kept, images, wheres = [], [], []
    for number, entry in enumerate(entries):
        where = f"result {number}: "
        image_id = named.get(entry.image_id, entry.image_id)
        if image_id in truth.left_out:
            continue
        image = truth.images.get(image_id)
        if image is None:
            problem = f"{where}image {entry.image_id!r} is not in {truth.path}"
            remedy = "use the ids of the images there, or names of their files without ending"
            raise BadFile(path, problem, remedy)
        _need_category(entry.category_id, truth.categories, where, path, truth.path)
        if entry.bbox and len(entry.bbox) != 4:
            problem = f"{where}the box {entry.bbox} is not four numbers"
            raise BadFile(path, problem, "write x, y, width, height, or leave bbox out")
        kept.append(entry)
        images.append(image)
        wheres.append(where)
    sizes = [image.size for image in images]
    texts, runs = read_masks([entry.segmentation for entry in kept], sizes, wheres, path)
    boxes = [entry.bbox if entries[0].bbox else None for entry in kept]
    pairs = zip(boxes, runs.areas.tolist(), strict=True)
    areas = [box[2] * box[3] if box else pixels for box, pixels in pairs]
    return Results(
        [image.number for image in images],
        [entry.category_id for entry in kept],
        np.array([entry.score for entry in kept], np.float64),
        texts,
        sizes,
        runs,
        np.array(areas, np.float64),
        sum(map(bool, boxes)),
    )


def _images_by_file(
    ids: Sequence[int | str], truth: InstanceTruth, path: Path
) -> dict[int | str, int]:
    """The images, by id, that results name by their files, where ids are numbers in the truth.

    A text that is the path of one file without its ending is that image. If there is none, it is
    the one whose path ends as the text does: "trip/a" is a.jpg or 2016/trip/a.jpg.

    Raises:
        BadFile: more than one image fits a text, or more than one text an image.
    """
    ends = defaultdict(list)
    for file in truth.files:
        ends[file.rpartition("/")[2]].append(file)
    named: dict[int | str, int] = {}
    first: dict[int, str] = {}  # text that named an image
    for text in dict.fromkeys(ids):
        if not isinstance(text, str) or text in truth.images or text in truth.left_out:
            continue
        near = ends[text.rpartition("/")[2]]
        fit = [text] if text in truth.files else [file for file in near if _one_end(file, text)]
        if len(fit) > 1:
            problem = f"image {text!r} may be each of {some(fit)} in {truth.path}"
            raise BadFile(path, problem, "use ids, or whole paths without ending")
        if fit:
            number = named[text] = truth.files[fit[0]]
            if first.setdefault(number, text) != text:
                problem = f"images {first[number]!r} and {text!r} may both be {fit[0]}"
                raise BadFile(path, f"{problem} in {truth.path}", "use the ids there")
    return named


def _one_end(path: str, other: str) -> bool:
    """Whether one path is the end of the other, folder by folder."""
    return f"/{path}".endswith(f"/{other}") or f"/{other}".endswith(f"/{path}")


def _entries(path: Path) -> list[ResultEntry]:
    """The entries of a results file, not checked against the truth. All numbers are finite."""
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
