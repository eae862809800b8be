"""`segment`: label maps of any photographs, by a trained network.

    OUT/labels/<image>.png     the category of each pixel, as an index PNG in the network's colours
    OUT/overlays/<image>.png   the photograph under these colours, where they are asked for
    OUT/segment.json           which networks and views made them; categories and their colours

With --instances objects too: see `pipeline.segmenting_instances`. Folders of images are kept. What
is there is not made again, so what was stopped goes on. H x W pixels.
"""

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline.checkpoints import SemanticNetwork, load_model
from pipeline.crf.dense import PUBLISHED, DenseCrf
from pipeline.datasets.processes import processors
from pipeline.errors import BadFile, BadInput, some
from pipeline.figures import blend, colours_of
from pipeline.instance_finding import Finder, asked
from pipeline.machine import chosen_device
from pipeline.masks import decode_index_png
from pipeline.params import Views
from pipeline.photographs import read_photograph
from pipeline.post_processing import bytes_of_crf, crf_label_map, in_two_steps
from pipeline.segmenting_files import Photograph, Places, claim, images_in, model_file, save_png
from pipeline.segmenting_instances import (
    ObjectJob,
    find_objects,
    number_of,
    refuse_options,
    rule_of,
    write_all,
)
from pipeline.tiles import SMALLEST_TILE, Segmenter, segmenter_of

SCALES = (0.05, 8.0)  # least and largest
STRIP = 256  # rows that are coloured at a time

Loaded = tuple[SemanticNetwork, dict[str, Any]]  # as `load_model` gives it
Outcomes = Iterable[tuple[Photograph, Future[bool]]]  # of each image, whether it was made now


@dataclass(frozen=True)
class LabelJob:
    """What is made of every image."""

    segmenter: Segmenter
    colours: np.ndarray  # (256, 3) uint8, by category number
    num_categories: int
    places: Places
    overlay: bool
    crf: DenseCrf | None
    workers: int  # threads for CRFs


@dataclass(frozen=True)
class Begun:
    """What the first step found: nothing of an image that is finished."""

    image: np.ndarray | None = None  # (H, W, 3) uint8
    scores: np.ndarray | None = None  # its label map, or before a CRF (C, H, W) probabilities
    draw: bool = False  # the overlay


# --- the command ----------------------------------------------------------------------------------
def segment(given: argparse.Namespace) -> str:
    """Segment all images of a folder.

    An image that cannot be segmented is told and left out; the others go on.

    Args:
        given: what `pipeline.segment_arguments` adds.

    Returns:
        what was made, for the user.

    Raises:
        BadInput: what is given is wrong, and nothing is changed; or images were left out, and all
            others are finished.
    """
    images, clashes, others = images_in(given.images, given.out)
    job = _job(given)
    for path in clashes:
        print(f"not segmented: {path}: another image has its name; rename one", file=sys.stderr)
    photographs = [Photograph(name, path) for name, path in images.items()]
    begin = time.perf_counter()
    outcomes: Outcomes
    if isinstance(job, ObjectJob):
        outcomes = find_objects(job, photographs)
    else:
        outcomes = _segmented(job, photographs)
    done, made = _go_through(outcomes, len(photographs))
    number = len(photographs) + len(clashes)
    text = f"{given.out}: label maps of {len(done)} images, {made} made now"
    if made:
        text += f" in {(time.perf_counter() - begin) / made:.2f} s each"
    if isinstance(job, ObjectJob):
        objects = write_all(job, done)
        text += f"; {objects} objects in {job.places.all_objects()}"
    elif job.segmenter.tiled:
        text += f", {job.segmenter.tiled} of them in tiles (the last by {job.segmenter.tile})"
    if others:
        text += f"\nnote: passed over, no images by their names: {some(others)}"
    if failed := number - len(done):
        raise BadInput(f"{failed} of {number} images are not segmented, see above. {text}")
    return text


def _go_through(outcomes: Outcomes, total: int) -> tuple[list[Photograph], int]:
    """Take the outcomes of all images; tell those that failed.

    Returns:
        the images that are finished, and how many of them were made now.
    """
    done, made = [], 0
    with tqdm(desc="segment", total=total, unit="image", disable=None) as bar:
        for photograph, outcome in outcomes:
            notes = photograph.notes
            try:
                made += outcome.result()
                done.append(photograph)
            except BadInput as problem:
                named = problem if isinstance(problem, BadFile) else f"{photograph.path}: {problem}"
                notes.append(f"not segmented: {named}")
            for note in notes:
                tqdm.write(note, file=sys.stderr)
            bar.update()
    return done, made


# --- label maps -----------------------------------------------------------------------------------
def _segmented(
    job: LabelJob, photographs: list[Photograph]
) -> Iterator[tuple[Photograph, Future[bool]]]:
    """Write what is not there of each image. Gives whether its label map was made now."""

    def begin(photograph: Photograph) -> Begun:
        new = not job.places.labels(photograph.name).exists()
        draw = job.overlay and (new or not job.places.drawn(photograph.name).exists())
        if not new and not draw:
            return Begun()
        image = read_photograph(photograph.path, photograph.notes)
        if not new:
            return Begun(image, draw=draw)
        if job.crf is not None:
            return Begun(image, job.segmenter.probabilities(image), draw)
        return Begun(image, job.segmenter.label_map(image, photograph.notes), draw)

    return in_two_steps(
        photographs,
        begin,
        partial(_finish, job),
        size=lambda begun: bytes_of_crf(
            job.num_categories, 0 if begun.image is None else begun.image[..., 0].size
        ),
        workers=0 if job.crf is None else job.workers,
    )


def _finish(job: LabelJob, photograph: Photograph, begun: Begun) -> bool:
    """The second step: the CRF, if there is one, and the files."""
    image, scores, labels = begun.image, begun.scores, job.places.labels(photograph.name)
    if image is None:
        return False
    if scores is None:
        label_map = decode_index_png(labels)
        if label_map.shape != image.shape[:2]:
            problem = f"{photograph.path} has another size, it was changed since"
            raise BadFile(labels, problem, "remove this file, or give --again")
    else:
        label_map = scores if job.crf is None else crf_label_map(scores, image, job.crf)
        indices = Image.fromarray(label_map)
        indices.putpalette(job.colours.tobytes())
        save_png(labels, indices)
    if begun.draw:
        save_png(job.places.drawn(photograph.name), _overlay(image, label_map, job.colours))
    return scores is not None


def _overlay(image: np.ndarray, label_map: np.ndarray, colours: np.ndarray) -> Image.Image:
    blended = np.empty_like(image)
    for top in range(0, len(image), STRIP):
        rows = slice(top, top + STRIP)
        blended[rows] = blend(image[rows], label_map[rows], colours)
    return Image.fromarray(blended)


# --- what is asked for ----------------------------------------------------------------------------
def _job(given: argparse.Namespace) -> LabelJob | ObjectJob:
    """Load the networks, and take OUT. Raises BadInput."""
    views = Views(scales=_scales(given.scales), flip=given.flip, shifts=given.shifts)
    if given.tile is not None and given.tile < SMALLEST_TILE:
        raise BadInput(f"--tile {given.tile}: give {SMALLEST_TILE} pixels or more")
    if given.tile is not None and given.crf is not None:
        raise BadInput("--tile and --crf: a CRF takes an image whole; give one of them")
    if given.crf is not None and given.crf not in PUBLISHED:
        raise BadInput(f"--crf {given.crf}: choose one of: {', '.join(PUBLISHED)}")
    refuse_options(given)
    device = chosen_device("" if given.device == "auto" else given.device)
    file = model_file(given.model)
    loaded = load_model(file, device)
    if "targets" in loaded[1]["run"]:
        raise BadInput(
            f"{file}: a localisation network, which knows boxes and no categories; name a semantic "
            "one first, and this one after --instances"
        )
    if given.instances is None:
        return _label_job(given, loaded, file, views, device)
    return _object_job(given, loaded, file, views, device)


def _label_job(
    given: argparse.Namespace, loaded: Loaded, file: Path, views: Views, device: torch.device
) -> LabelJob:
    crf = None if given.crf is None else PUBLISHED[given.crf]
    segmenter = segmenter_of(*loaded, views=views, device=device, tile=given.tile)
    categories, places = loaded[1]["categories"], Places(given.out)
    settings = {
        **_digest(file, "model", "sha256"),
        **asdict(views),
        **({} if crf is None else {"crf": asdict(crf)}),
        "tile": given.tile,
        "categories": _coloured(categories),
    }
    claim(places, settings, given.again)
    workers = loaded[1]["run"]["threads"] or processors()
    colours = colours_of(categories)
    return LabelJob(segmenter, colours, len(categories), places, given.overlay, crf, workers)


def _object_job(
    given: argparse.Namespace, loaded: Loaded, file: Path, views: Views, device: torch.device
) -> ObjectJob:
    rule = rule_of(given, loaded[0].stride)
    min_score = number_of(given, "min_score") if given.overlay else None
    box_file = model_file(given.instances)
    of_boxes = load_model(box_file, device)
    _need_pair(file, loaded[1], box_file, of_boxes[1])
    semantic, localizer = asked(*loaded, device), asked(*of_boxes, device)
    categories, places = loaded[1]["categories"], Places(given.out)
    settings = {
        **_digest(file, "model", "sha256"),
        **_digest(box_file, "localization", "localization_sha256"),
        **asdict(views),
        "instances": asdict(rule),
        "categories": _coloured(categories),
    }
    claim(places, settings, given.again, min_score=min_score)
    finder = Finder(tuple(categories), rule, views, semantic, localizer)
    workers = max(semantic.threads, localizer.threads)
    return ObjectJob(finder, colours_of(categories), places, min_score, workers)


def _need_pair(
    file: Path, saved: dict[str, Any], box_file: Path, saved_boxes: dict[str, Any]
) -> None:
    """BadInput unless the second is a localisation network of the categories of the first."""
    if "targets" not in saved_boxes["run"]:
        raise BadInput(
            f"--instances {box_file}: a semantic network, which knows no boxes; name a "
            "localisation network"
        )
    one, other = saved["categories"], saved_boxes["categories"]
    if one != other:
        raise BadInput(
            f"--instances {box_file}: knows other categories ({some(other)}) than {file} "
            f"({some(one)}); name two networks that were trained on the same ones"
        )


def _digest(file: Path, name: str, digest: str) -> dict[str, str]:
    return {name: file.name, digest: hashlib.sha256(file.read_bytes()).hexdigest()}


def _coloured(categories: list[str]) -> list[dict[str, Any]]:
    colours = colours_of(categories)
    return [
        {"number": number, "name": name, "colour": colours[number].tolist()}
        for number, name in enumerate(categories)
    ]


def _scales(text: str) -> tuple[float, ...]:
    """The numbers of "0.8,1,1.2". Raises BadInput."""
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = (math.nan,)
    if not all(SCALES[0] <= scale <= SCALES[1] for scale in scales):
        raise BadInput(
            f"--scales {text}: give numbers from {SCALES[0]} to {SCALES[1]} with commas between "
            "them, as 0.8,1,1.2"
        )
    return scales
