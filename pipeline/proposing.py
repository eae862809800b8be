"""Candidates of many images: what makes them, and the files that they are written to.

    <parts>/part-000.parquet, ...   schema "proposals", a hundred images each
    <timings>/part-000.csv, ...     image_id, seconds, candidates, error

A part that is there is not made again, nor a piece of ten images of one: what was stopped goes on.
Bytes of the parts do not depend on the number of processes or machines.
"""

import csv
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from pipeline.datasets.edge_files import open_structured_edges, read_strength
from pipeline.datasets.form import read_image
from pipeline.datasets.places import dataset_root
from pipeline.datasets.proposal_table import to_row
from pipeline.datasets.published_proposals import read_published
from pipeline.errors import BadFile, BadInput
from pipeline.forests import forest_path, open_contours, open_ranker
from pipeline.params_proposals import (
    Algorithm,
    BoostedEdges,
    GradientEdges,
    Mcg,
    NoCandidates,
    Published,
    SavedEdges,
    StructuredEdges,
)
from pipeline.proposals.edges import Edges, edges
from pipeline.proposals.forest import Forest
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.mcg import single_scale
from pipeline.proposals.methods import first, propose
from pipeline.shards import map_shards
from pipeline.tables import read_arrow, write_table

IMAGES_PER_PART = 100
IMAGES_PER_SHARD = 10  # some seconds of work: what is done again where a process dies
STRUCTURED_FOREST = "model.yml.gz"  # OpenCV's name of it
TIMINGS = ("image_id", "seconds", "candidates", "error")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """All that candidates depend on but the image; small, for it goes to other processes.

    Raises BadInput or PlaceByHand where the place of the contours is no good for any image.
    """

    algorithm: Algorithm
    contours: Forest | None = None  # finds contours
    ranker: Forest | None = None
    place: Path | None = None  # a folder of saved strengths, or the file of a structured forest

    def __post_init__(self) -> None:
        match getattr(self.algorithm, "edges", None):
            case SavedEdges() if self.place and not self.place.is_dir():
                raise BadFile(self.place, "no folder of saved contours", "put it there")
            case StructuredEdges() if self.place:
                _detector(self.place)

    def edges_of(self, image_id: str, size: tuple[int, int] | None = None) -> Edges | None:
        """The contours that the algorithm names.

        Args:
            size: H, W of the image, which saved strengths must have; None: any.

        Raises:
            BadInput: a file of theirs is missing or bad.
        """
        match getattr(self.algorithm, "edges", None):
            case GradientEdges(sigma=sigma):
                return edges("gradient", sigma=sigma)
            case BoostedEdges():
                return edges("boosted", forest=self.contours)
            case SavedEdges() if self.place:
                saved = read_strength(self.place, image_id)
                if size and saved.shape != size:
                    problem = f"strengths {saved.shape[0]} x {saved.shape[1]}"
                    problem += f" of an image {size[0]} x {size[1]}"
                    raise BadFile(self.place / image_id, problem, "save them anew")
                return edges("file", saved=saved)
            case StructuredEdges() if self.place:
                return edges("sf", detector=_detector(self.place))
        return None


def recipe_of(root: Path, algorithm: Algorithm, *, contours: str, ranker: str) -> Recipe:
    """A recipe with the forests and places that params.yaml names.

    Args:
        root: the project folder.
        contours, ranker: forests, or none.

    Raises:
        BadInput: a forest is not made, or damaged; a folder is missing.
        PlaceByHand: the structured forest is missing.
    """
    place = None
    match getattr(algorithm, "edges", None):
        case SavedEdges(place=name):
            place = dataset_root(root, name)
        case StructuredEdges(place=name):
            place = dataset_root(root, name) / STRUCTURED_FOREST
    return Recipe(
        algorithm,
        None if contours == "none" else open_contours(root / forest_path(contours)),
        None if ranker == "none" else open_ranker(root / forest_path(ranker)),
        place,
    )


@cache
def _detector(model: Path) -> Any:
    return open_structured_edges(model)


class Image(NamedTuple):
    image_id: str
    path: Path
    size: tuple[int, int] | None = None  # H, W when the dataset was prepared; None: any
    published: Path | None = None  # candidates that others made of it


class Proposed(NamedTuple):
    row: dict[str, Any] | None  # of the table "proposals"; None: not even the image's size is known
    timing: dict[str, str]


# --- one image -----------------------------------------------------------------------------------
def proposed(recipe: Recipe, image: Image) -> Proposed:
    """The candidates of one image.

    Where the algorithm fails its single scale is tried, then the whole image is the only candidate.
    """
    cv2.setNumThreads(1)  # there is a process for every core
    begin = time.perf_counter()
    found: Proposals | None
    try:
        found, error = _candidates(recipe, image)
    except BadInput as problem:
        found, error = image.size and _whole(image.size), str(problem)
    except MemoryError as problem:  # too large to be read
        found, error = image.size and _whole(image.size), f"{image.path}: MemoryError: {problem}"
    row = None
    if found is not None:
        row = _row(image.image_id, _digest(image.path), recipe.algorithm.kind, found)
    seconds, count = f"{time.perf_counter() - begin:.4f}", str(0 if found is None else len(found))
    timing = dict(zip(TIMINGS, (image.image_id, seconds, count, error), strict=True))
    return Proposed(row, timing)


def _row(image_id: str, digest: str, method: str, found: Proposals) -> dict[str, Any]:
    return to_row(
        image_id, digest, method, **{f.name: getattr(found, f.name) for f in fields(Proposals)}
    )


def _candidates(recipe: Recipe, image: Image) -> tuple[Proposals, str]:
    """Candidates, and why they are not those of the algorithm, if so. BadInput for a bad file.

    MemoryError where not even the image can be read.
    """
    algorithm = recipe.algorithm
    if isinstance(algorithm, NoCandidates):
        size = image.size or read_image(image.path).shape[:2]
        return from_membership(np.zeros(size, np.uint16), np.zeros((0, 1), bool)), ""
    array = _read(image)
    if isinstance(algorithm, Published):
        if image.published is None:
            raise BadInput(f"no published candidates of {image.image_id}")
        arrays = read_published(image.published, array.shape[:2])
        return first(Proposals(**arrays), algorithm.max_candidates), ""
    source = recipe.edges_of(image.image_id, array.shape[:2])
    try:
        return propose(array, algorithm, source, recipe.ranker), ""
    except (MemoryError, ValueError, cv2.error) as error:
        problem = f"{type(error).__name__}: {error}"
    if isinstance(algorithm, Mcg):
        try:
            return propose(array, single_scale(algorithm), source, recipe.ranker), problem
        except (MemoryError, ValueError, cv2.error) as error:
            problem += f"; at a single scale {type(error).__name__}: {error}"
    return _whole(array.shape[:2]), problem


def _whole(size: tuple[int, int]) -> Proposals:
    """The whole image as its only candidate."""
    return from_membership(np.zeros(size, np.uint16), np.ones((1, 1), bool))


def _read(image: Image) -> np.ndarray:
    array = read_image(image.path)
    height, width = array.shape[:2]
    if image.size and image.size != (height, width):
        was = f"{image.size[0]} x {image.size[1]} when the dataset was prepared"
        raise BadFile(image.path, f"{height} x {width} pixels, but {was}", "prepare it again")
    return array


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


# --- many ----------------------------------------------------------------------------------------
def write_parts(
    parts: Path, timings: Path, images: Sequence[Image], recipe: Recipe, scheduler: str | None
) -> list[dict[str, str]]:
    """Write those parts that are not there. Returns the timings of all images.

    Args:
        parts, timings: folders. Pieces of the part at work lie in `timings` too.
        scheduler: address of a dask scheduler whose workers see the images under the same paths;
            None: processes on this machine.
    """
    paths = {
        parts / f"part-{number:03d}.parquet": images[start : start + IMAGES_PER_PART]
        for number, start in enumerate(range(0, len(images), IMAGES_PER_PART))
    }
    unfinished = {
        path: _pieces(timings, path, part)
        for path, part in paths.items()
        if not (path.exists() and _timings(timings, path).exists())
    }
    wanted = [
        image
        for pieces in unfinished.values()
        for piece, some in pieces.items()
        if not piece.exists()
        for image in some
    ]
    none = isinstance(recipe.algorithm, NoCandidates)  # not worth a process
    shard = len(wanted) or 1 if none else IMAGES_PER_SHARD
    if wanted:
        _compile(recipe)
    one = partial(proposed, recipe)
    with closing(map_shards(one, wanted, "proposing", shard=shard, scheduler=scheduler)) as made:
        for path, pieces in unfinished.items():
            for piece, some in pieces.items():
                if not piece.exists():
                    _write_piece(piece, list(islice(made, len(some))))
            _join(path, timings, list(pieces))
    return [row for path in paths for row in _read_csv(_timings(timings, path))]


def _pieces(timings: Path, path: Path, part: Sequence[Image]) -> dict[Path, Sequence[Image]]:
    """What a part is put together from: the shards, as files."""
    return {
        timings / f"{path.stem}-{number}.parquet": part[start : start + IMAGES_PER_SHARD]
        for number, start in enumerate(range(0, len(part), IMAGES_PER_SHARD))
    }


def _write_piece(piece: Path, results: Sequence[Proposed]) -> None:
    for result in results:
        if result.timing["error"]:
            log.warning("%s: %s", result.timing["image_id"], result.timing["error"])
    write_timings(piece.with_suffix(".csv"), [r.timing for r in results])
    # The table last: where it lies, its timings lie too.
    write_table(piece, "proposals", [r.row for r in results if r.row is not None])


def _join(path: Path, timings: Path, pieces: Sequence[Path]) -> None:
    """Make the pieces one part; they are gone when it is there."""
    rows = [row for piece in pieces for row in read_arrow(piece, "proposals").to_pylist()]
    told = [row for piece in pieces for row in _read_csv(piece.with_suffix(".csv"))]
    write_timings(_timings(timings, path), told)
    write_table(path, "proposals", rows)
    for piece in pieces:
        piece.unlink()
        piece.with_suffix(".csv").unlink()


def _compile(recipe: Recipe) -> None:
    """Have all code compiled, here and on the disk, before many processes want it at once."""
    algorithm = recipe.algorithm
    if isinstance(algorithm, NoCandidates | Published):
        return
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    saved = isinstance(getattr(algorithm, "edges", None), SavedEdges)
    source = edges("gradient", sigma=1.0) if saved else recipe.edges_of("")
    _row("", "", algorithm.kind, propose(noise, algorithm, source, recipe.ranker))


def _timings(timings: Path, path: Path) -> Path:
    return timings / f"{path.stem}.csv"


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_timings(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.partial")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, TIMINGS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(unfinished, path)
