"""`segment`: label maps of any photographs, by a trained network.

    OUT/labels/<image>.png     the category of each pixel, as an index PNG in the network's colours
    OUT/overlays/<image>.png   the photograph under these colours, where they are asked for
    OUT/segment.json           which network and views made them; categories and their colours

Folders of images are kept. What is there is not made again, so what was stopped goes on.
H x W pixels.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.checkpoints import load_model
from pipeline.crf.dense import PUBLISHED, DenseCrf
from pipeline.datasets.folder_files import IMAGE_SUFFIXES, list_files
from pipeline.datasets.processes import processors
from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile, BadInput, some
from pipeline.figures import blend, colours_of
from pipeline.machine import chosen_device
from pipeline.masks import FAST, decode_index_png
from pipeline.params import Views
from pipeline.photographs import read_photograph
from pipeline.places import write_text
from pipeline.post_processing import bytes_of_crf, crf_label_map, in_two_steps
from pipeline.tiles import SMALLEST_TILE, Segmenter, segmenter_of

SETTINGS = "segment.json"
SUFFIXES = IMAGE_SUFFIXES | {".gif"}
SCALES = (0.05, 8.0)  # least and largest
STRIP = 256  # rows that are coloured at a time


@dataclass(frozen=True)
class Job:
    """What is made of every image."""

    segmenter: Segmenter
    colours: np.ndarray  # (256, 3) uint8, by category number
    num_categories: int
    out: Path
    overlay: bool
    crf: DenseCrf | None
    workers: int  # threads for CRFs

    def labels(self, name: str) -> Path:
        """The label map of an image."""
        return self.out / "labels" / f"{name}.png"

    def drawn(self, name: str) -> Path:
        """The overlay of an image."""
        return self.out / "overlays" / f"{name}.png"


@dataclass(frozen=True)
class Photograph:
    """An image that was given."""

    name: str  # its path below the folder without ending
    path: Path
    notes: list[str] = field(default_factory=list)  # for the user


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
        given: model (a run, or the file of a checkpoint), images, out, overlay, scales, flip,
            shifts, crf, tile, device, again.

    Returns:
        what was made, for the user.

    Raises:
        BadInput: what is given is wrong, and nothing is changed; or images were left out, and all
            others are finished.
    """
    images, clashes, others = _images(given.images, given.out)
    job = _job(given)
    for path in clashes:
        print(f"not segmented: {path}: another image has its name; rename one", file=sys.stderr)
    begin, made, failed = time.perf_counter(), 0, len(clashes)
    photographs = [Photograph(name, path) for name, path in images.items()]
    with tqdm(desc="segment", total=len(images), unit="image", disable=None) as bar:
        for photograph, outcome in _segmented(job, photographs):
            notes = photograph.notes
            try:
                made += outcome.result()
            except BadInput as problem:
                failed += 1
                named = problem if isinstance(problem, BadFile) else f"{photograph.path}: {problem}"
                notes.append(f"not segmented: {named}")
            for note in notes:
                tqdm.write(note, file=sys.stderr)
            bar.update()
    number = len(images) + len(clashes)
    text = f"{job.out}: label maps of {number - failed} images, {made} made now"
    if made:
        text += f" in {(time.perf_counter() - begin) / made:.2f} s each"
    if job.segmenter.tiled:
        text += f", {job.segmenter.tiled} of them in tiles (the last by {job.segmenter.tile})"
    if others:
        text += f"\nnote: passed over, no images by their names: {some(others)}"
    if failed:
        raise BadInput(f"{failed} of {number} images are not segmented, see above. {text}")
    return text


def _segmented(
    job: Job, photographs: list[Photograph]
) -> Iterator[tuple[Photograph, Future[bool]]]:
    """Write what is not there of each image. Gives whether its label map was made now."""

    def begin(photograph: Photograph) -> Begun:
        new = not job.labels(photograph.name).exists()
        draw = job.overlay and (new or not job.drawn(photograph.name).exists())
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


def _finish(job: Job, photograph: Photograph, begun: Begun) -> bool:
    """The second step: the CRF, if there is one, and the files."""
    image, scores, labels = begun.image, begun.scores, job.labels(photograph.name)
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
        _save(labels, indices)
    if begun.draw:
        _save(job.drawn(photograph.name), _overlay(image, label_map, job.colours))
    return scores is not None


def _overlay(image: np.ndarray, label_map: np.ndarray, colours: np.ndarray) -> Image.Image:
    blended = np.empty_like(image)
    for top in range(0, len(image), STRIP):
        rows = slice(top, top + STRIP)
        blended[rows] = blend(image[rows], label_map[rows], colours)
    return Image.fromarray(blended)


def _save(path: Path, picture: Image.Image) -> None:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    picture.save(partial, format="PNG", compress_level=FAST)
    os.replace(partial, path)


# --- what is asked for ----------------------------------------------------------------------------
def _images(folder: Path, out: Path) -> tuple[dict[str, Path], list[Path], list[str]]:
    """The images below a folder by path without ending, clashes, and the names of other files.

    Images that differ in their endings alone, whose label maps would have one name, are clashes.
    What lies in `out` is none of all these. Raises BadInput.
    """
    if not folder.is_dir():
        raise BadFile(folder, "no folder", "name a folder with images")
    own = out.resolve()
    found: dict[str, list[Path]] = {}
    others: list[str] = []
    for path in list_files(folder, Problems(collect=False), []):
        if own in path.resolve().parents:
            continue
        name = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES:
            others.append(name.as_posix())
            continue
        found.setdefault(name.with_suffix("").as_posix(), []).append(path)
    if not found:
        endings = ", ".join(sorted(SUFFIXES))
        raise BadFile(folder, f"no image in it ({endings})", "name a folder with images")
    images = {stem: paths[0] for stem, paths in found.items() if len(paths) == 1}
    return images, [path for paths in found.values() if len(paths) > 1 for path in paths], others


def _job(given: argparse.Namespace) -> Job:
    """Load the network, and take OUT. Raises BadInput."""
    views = Views(scales=_scales(given.scales), flip=given.flip, shifts=given.shifts)
    if given.tile is not None and given.tile < SMALLEST_TILE:
        raise BadInput(f"--tile {given.tile}: give {SMALLEST_TILE} pixels or more")
    if given.tile is not None and given.crf is not None:
        raise BadInput("--tile and --crf: a CRF takes an image whole; give one of them")
    if given.crf is not None and given.crf not in PUBLISHED:
        raise BadInput(f"--crf {given.crf}: choose one of: {', '.join(PUBLISHED)}")
    crf = None if given.crf is None else PUBLISHED[given.crf]
    device = chosen_device("" if given.device == "auto" else given.device)
    file = _model_file(given.model)
    network, saved = load_model(file, device)
    categories = saved["categories"]
    segmenter = segmenter_of(network, saved, views=views, device=device, tile=given.tile)
    colours = colours_of(categories)
    settings = {
        "model": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        **asdict(views),
        **({} if crf is None else {"crf": asdict(crf)}),
        "tile": given.tile,
        "categories": [
            {"number": number, "name": name, "colour": colours[number].tolist()}
            for number, name in enumerate(categories)
        ],
    }
    _claim(given.out, settings, given.again)
    workers = saved["run"]["threads"] or processors()
    return Job(segmenter, colours, len(categories), given.out, given.overlay, crf, workers)


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


def _model_file(model: str) -> Path:
    """The checkpoint that is named by its path, or by its run. Raises BadInput."""
    path = Path(model)
    if path.suffix or len(path.parts) != 1:
        return path
    models = Path("data") / "models"
    file = models / f"{model}.pt"
    if not file.is_file():
        there = some(sorted(path.stem for path in models.glob("*.pt"))) or "none"
        problem = f"not there; name a trained run (here: {there}) or the file of a checkpoint"
        raise BadInput(f"{file}: {problem}")
    return file


def _claim(out: Path, settings: dict, again: bool) -> None:
    """Take `out`: new, empty, or begun with these settings; emptied, with `again`. BadInput."""
    told = out / SETTINGS
    text = json.dumps(settings, indent=1) + "\n"
    if out.exists() and not out.is_dir():
        raise BadFile(out, "is there and no folder", "name another place")
    if told.is_file():
        if not again and told.read_text(encoding="utf-8") != text:
            problem = "label maps of another network or of other settings are there"
            raise BadFile(told, problem, "name a new folder, or give --again to remove them")
    elif out.is_dir() and any(out.iterdir()):
        raise BadFile(out, "not empty, and not begun by this command", "name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for folder in ("labels", "overlays") if again else ():
        shutil.rmtree(out / folder, ignore_errors=True)
    write_text(told, text)
