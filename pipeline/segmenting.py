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
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from pipeline.checkpoints import load_model
from pipeline.datasets.folder_files import IMAGE_SUFFIXES, list_files
from pipeline.datasets.form import image_size
from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile, BadInput, need_file, some
from pipeline.figures import blend, colours_of
from pipeline.machine import chosen_device
from pipeline.masks import FAST, decode_index_png
from pipeline.params import Views
from pipeline.places import write_text
from pipeline.tiles import SMALLEST_TILE, Segmenter, segmenter_of

SETTINGS = "segment.json"
SUFFIXES = IMAGE_SUFFIXES | {".gif"}
SCALES = (0.05, 8.0)  # least and largest
STRIP = 256  # rows that are coloured at a time
WHITE = 65535  # in 16 bits


@dataclass(frozen=True)
class Job:
    """What is made of every image."""

    segmenter: Segmenter
    colours: np.ndarray  # (256, 3) uint8, by category number
    out: Path
    overlay: bool


# --- the command ----------------------------------------------------------------------------------
def segment(given: argparse.Namespace) -> str:
    """Segment all images of a folder.

    An image that cannot be segmented is told and left out; the others go on.

    Args:
        given: model (a run, or the file of a checkpoint), images, out, overlay, scales, flip,
            shifts, tile, device, again.

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
    for name, path in tqdm(images.items(), desc="segment", unit="image", disable=None):
        notes: list[str] = []
        try:
            made += _segment_file(job, name, path, notes)
        except BadInput as problem:
            failed += 1
            named = problem if isinstance(problem, BadFile) else f"{path}: {problem}"
            notes.append(f"not segmented: {named}")
        for note in notes:
            tqdm.write(note, file=sys.stderr)
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


def _segment_file(job: Job, name: str, path: Path, notes: list[str]) -> bool:
    """Write what is not there of one image. Returns whether its label map was made now."""
    labels = job.out / "labels" / f"{name}.png"
    overlay = job.out / "overlays" / f"{name}.png"
    new = not labels.exists()
    draw = job.overlay and (new or not overlay.exists())
    if not new and not draw:
        return False
    image = read_photograph(path, notes)
    if new:
        label_map = job.segmenter.label_map(image, notes)
        indices = Image.fromarray(label_map)
        indices.putpalette(job.colours.tobytes())
        _save(labels, indices)
    else:
        label_map = decode_index_png(labels)
        if label_map.shape != image.shape[:2]:
            problem = f"{path} has another size, it was changed since"
            raise BadFile(labels, problem, "remove this file, or give --again")
    if draw:
        _save(overlay, _overlay(image, label_map, job.colours))
    return new


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
        "tile": given.tile,
        "categories": [
            {"number": number, "name": name, "colour": colours[number].tolist()}
            for number, name in enumerate(categories)
        ],
    }
    _claim(given.out, settings, given.again)
    return Job(segmenter, colours, given.out, given.overlay)


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


# --- photographs ----------------------------------------------------------------------------------
def read_photograph(path: Path, notes: list[str]) -> np.ndarray:
    """An image file as people see it: (H, W, 3) uint8 RGB.

    Turned as its EXIF tag says. 16-bit grey is brought to 8 bits, CMYK to RGB without its colour
    profile, transparency dropped; of several pictures in one file the first is taken.

    Args:
        notes: gets a line for the user where a file holds more than is taken.

    Raises:
        BadFile: missing, damaged, no image, of a kind without a defined range, or too large.
    """
    need_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: a large image, strange EXIF data
            with Image.open(path) as image:
                return _pixels(image, path, notes)
    except BadFile:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadFile(path, f"more than {limit:,} pixels", "make it smaller or cut it") from error
    except Exception as error:  # each kind of damage has an exception of its own
        problem = f"not a readable image ({str(error) or type(error).__name__})"
        raise BadFile(path, problem, "copy it anew, or save it as JPEG or PNG") from error


def _pixels(image: Image.Image, path: Path, notes: list[str]) -> np.ndarray:
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != "MPO":  # that holds a camera's previews
        notes.append(f"{path}: {pages} pictures in one file, the first is taken")
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):
        wide = np.array(ImageOps.exif_transpose(image)).astype(np.float32)  # (H, W)
        grey = (wide * (255 / WHITE) + 0.5).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        problem = f"numbers without a range (mode {image.mode})"
        raise BadFile(path, problem, "convert it to 8-bit RGB")
    image_size(path)  # refuses what is cut off, which Pillow fills with grey
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))
