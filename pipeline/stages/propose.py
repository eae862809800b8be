"""Stage `propose`: candidates for every training image of a dataset."""

import csv
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from pipeline.datasets.form import read_image
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import map_in_order
from pipeline.datasets.proposal_table import to_row
from pipeline.errors import BadInput
from pipeline.params import McgProposals, NoProposals, Params, ScgProposals
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.mcg import mcg
from pipeline.proposals.scg import scg
from pipeline.tables import write_table
from pipeline.work import open_work

IMAGES_PER_PART = 100
TIMINGS = ("image_id", "seconds", "candidates", "error")

log = logging.getLogger(__name__)


Settings = NoProposals | ScgProposals | McgProposals


class Image(NamedTuple):
    image_id: str
    path: Path
    height: int  # as when the dataset was prepared
    width: int


class Proposed(NamedTuple):
    row: dict[str, Any]  # of the table "proposals"
    seconds: float
    error: str  # empty, or why the image got one whole-image candidate

    def timing(self) -> dict[str, str]:
        image_id, candidates = self.row["image_id"], len(self.row["areas"])
        values = (image_id, f"{self.seconds:.4f}", str(candidates), self.error)
        return dict(zip(TIMINGS, values, strict=True))


def propose(root: Path, params: Params, method: str, dataset: str) -> None:
    """Write data/proposals/<method>/<dataset>/ and the seconds per image beside it.

    Images are those of train_aug, in a dataset without it all. Parts that a killed run had finished
    are not made again; parts and bytes do not depend on the number of processes.

    Raises:
        BadInput: params.yaml has no such proposals, or the dataset is not prepared.
    """
    key = f"{method}_{dataset}"
    prepared = Path("data") / "prepared" / dataset
    published = root / "data" / "proposals" / method / dataset
    timings = published.with_name(f"{dataset}.timings.csv")
    if key not in params.proposals:
        known = ", ".join(params.proposals)
        raise BadInput(f"params.yaml: proposals.{key} is not there; choose one of: {known}")
    with open_work(
        root, stage="propose", key=key, sections=["proposals"], inputs=[prepared]
    ) as work:
        images = training_images(Prepared(root, dataset))
        if not images:
            raise BadInput(f"{root / prepared}: holds no image; prepare the dataset again")
        write_parts(work.folder, images, params.proposals[key])
        rows = join_timings(work.folder, images)
        work.publish({work.folder / "parts": published, work.folder / "timings.csv": timings})
    failed = sum(bool(row["error"]) for row in rows)
    mean = sum(int(row["candidates"]) for row in rows) / len(rows)
    print(f"{key}: {len(rows)} images, {mean:.0f} candidates on average, {failed} images failed")


def training_images(data: Prepared) -> list[Image]:
    """The images that need candidates, each once, by image id."""
    rows = data.images
    for largest in ("mixed", "train_aug"):  # what is trained on, where the dataset has these splits
        if (rows["split"] == largest).any():
            rows = rows[rows["split"] == largest]
            break
    rows = rows.drop_duplicates("image_id").sort_values("image_id")
    return [
        Image(image_id, data.image_path(image_id), int(height), int(width))
        for image_id, height, width in zip(
            rows["image_id"], rows["height"], rows["width"], strict=True
        )
    ]


def write_parts(folder: Path, images: list[Image], settings: Settings) -> None:
    """Write folder/parts/part-*.parquet and folder/timings/part-*.csv, those that are not there."""
    waiting = [(path, part) for path, part in parts_of(folder, images).items() if not path.exists()]
    wanted = [image for _, part in waiting for image in part]
    results: list[Proposed] = []
    propose_one = partial(proposed, settings)
    if isinstance(settings, NoProposals):  # nothing to spread over processes
        made: Iterator[Proposed] = map(propose_one, wanted)
    else:
        made = map_in_order(propose_one, wanted, "proposing")
    for result in made:
        results.append(result)
        if result.error:
            log.warning("%s gets the whole image: %s", result.row["image_id"], result.error)
        if len(results) == len(waiting[0][1]):
            path, _ = waiting.pop(0)
            _write_csv(_timings(path), [r.timing() for r in results])
            # The part last: where it lies, its timings lie too.
            write_table(path, "proposals", [r.row for r in results])
            results = []


def parts_of(folder: Path, images: list[Image]) -> dict[Path, list[Image]]:
    """Which images go into which file."""
    return {
        folder / "parts" / f"part-{number:03d}.parquet": images[start : start + IMAGES_PER_PART]
        for number, start in enumerate(range(0, len(images), IMAGES_PER_PART))
    }


def proposed(settings: Settings, image: Image) -> Proposed:
    """The candidates of one image; the whole image as the only one where it cannot be read."""
    cv2.setNumThreads(1)  # there is a process for every core
    begin = time.perf_counter()
    whole = np.zeros((image.height, image.width), np.uint16)
    error = ""
    if isinstance(settings, NoProposals):
        candidates = from_membership(whole, np.zeros((0, 1), bool))
    else:
        try:
            candidates = _candidates(_read(image), settings)
        except BadInput as problem:
            candidates, error = from_membership(whole, np.ones((1, 1), bool)), str(problem)
    arrays = {f.name: getattr(candidates, f.name) for f in fields(Proposals)}
    row = to_row(image.image_id, _digest(image.path), settings.method, **arrays)
    return Proposed(row, time.perf_counter() - begin, error)


def _candidates(array: np.ndarray, settings: ScgProposals | McgProposals) -> Proposals:
    return scg(array, settings) if isinstance(settings, ScgProposals) else mcg(array, settings)


def _read(image: Image) -> np.ndarray:
    array = read_image(image.path)
    if array.shape[:2] != (image.height, image.width):
        height, width = array.shape[:2]
        raise BadInput(
            f"{image.path}: {height} x {width} pixels, but {image.height} x {image.width} when the "
            "dataset was prepared; prepare it again"
        )
    return array


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def join_timings(folder: Path, images: list[Image]) -> list[dict[str, str]]:
    """Write folder/timings.csv, of all parts. Returns its rows."""
    rows = []
    for part in parts_of(folder, images):
        with _timings(part).open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    _write_csv(folder / "timings.csv", rows)
    return rows


def _timings(part: Path) -> Path:
    return part.parents[1] / "timings" / f"{part.stem}.csv"


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.partial")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, TIMINGS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(unfinished, path)
