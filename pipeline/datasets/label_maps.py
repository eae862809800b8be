"""Folders of label maps: each prediction joined with its truth, files read and checked.

A label map (H, W) uint8 is an index PNG named by its image: <image_id>.png. H x W pixels.
"""

import json
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.categories import CATEGORIES, IGNORE
from pipeline.datasets import png
from pipeline.datasets.lists import read_lines
from pipeline.errors import BadFile, BadInput, need_file, some
from pipeline.masks import decode_index_png

Read = Callable[[Path], np.ndarray]  # a file -> its label map (H, W) uint8

A_FOLDER = "a folder"
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".mat", ".xml"}  # in lists


@dataclass(frozen=True)
class Pair:
    """The files of one image."""

    image_id: str
    truth: Path
    predicted: Path | None  # None: missing, counted as wrong in every pixel


@dataclass(frozen=True)
class Pairs:
    """The images to score, by image id, and what did not fit."""

    pairs: list[Pair]
    missing: list[str]  # images without a prediction
    extra: list[str]  # predictions without a truth, or not listed: left out

    def notes(self) -> list[str]:
        """What a reader of the scores must know of the files."""
        notes = []
        if self.missing:
            notes.append(
                f"{len(self.missing)} of {len(self.pairs)} predictions are missing and count as "
                f"wrong in every pixel: {some(self.missing)}"
            )
        if self.extra:
            notes.append(
                f"{len(self.extra)} predictions are of none of these images and are left out: "
                f"{some(self.extra)}"
            )
        return notes


def join(
    truth: Mapping[str, Path],
    predicted: Mapping[str, Path],
    *,
    ids: Path | None,
    allow_missing: bool,
    truth_folder: Path,
    predicted_folder: Path,
) -> Pairs:
    """Each image's two files.

    Args:
        truth, predicted: the files by image id.
        ids: a list of the images to score, one a line; None: every image that has a truth.
            Predictions that are not listed are left out.
        allow_missing: images without a prediction, and predictions without a truth, are told and
            not refused.
        truth_folder, predicted_folder: where the files are, for messages.

    Raises:
        BadFile: a folder or the list is empty, a listed image has no truth, predictions are missing
            or too many, or there is no prediction of any image.
    """
    need_some(truth, truth_folder)
    need_some(predicted, predicted_folder)
    chosen = sorted(truth if ids is None else listed(ids, truth))
    if unknown := [image_id for image_id in chosen if image_id not in truth]:
        raise BadFile(
            ids or truth_folder,
            f"{len(unknown)} of {len(chosen)} images have no truth in {truth_folder}: "
            f"{some(unknown)}",
            "list images whose truth is there",
        )
    missing = [image_id for image_id in chosen if image_id not in predicted]
    extra = sorted(set(predicted) - set(chosen))
    if len(missing) == len(chosen):
        raise BadFile(
            predicted_folder,
            f"no prediction of any of the {len(chosen)} images; wanted: {some(missing)}; "
            f"there: {some(sorted(predicted))}",
            "name predictions like the truth, by image id",
        )
    if not allow_missing:
        _refuse(missing, extra if ids is None else [], len(chosen), predicted_folder)
    pairs = [Pair(image_id, truth[image_id], predicted.get(image_id)) for image_id in chosen]
    return Pairs(pairs, missing, extra)


def _refuse(missing: list[str], extra: list[str], wanted: int, folder: Path) -> None:
    """BadFile if predictions are missing or too many; both are told at once."""
    problems = []
    if missing:
        others = some(sorted(_other_kinds(folder) - {A_FOLDER}))
        seen = f" (only PNGs are read; there is {others} too)" if others else ""
        problems.append(f"{len(missing)} of {wanted} predictions missing: {some(missing)}{seen}")
    if extra:
        problems.append(f"{len(extra)} predictions without a truth: {some(extra)}")
    if problems:
        raise BadFile(
            folder,
            "; ".join(problems),
            "list the images to score with --ids FILE, or give --allow-missing: missing ones count "
            "as wrong in every pixel, those without a truth are left out",
        )


def pair_label_maps(
    truth: Path, predicted: Path, *, ids: Path | None, allow_missing: bool
) -> Pairs:
    """The label maps <image_id>.png that lie directly in two folders; see `join`.

    Raises:
        BadFile: as `join`; or a folder is not there, or holds an image twice.
    """
    return join(
        find_label_maps(truth),
        find_label_maps(predicted),
        ids=ids,
        allow_missing=allow_missing,
        truth_folder=truth,
        predicted_folder=predicted,
    )


def find_label_maps(folder: Path) -> dict[str, Path]:
    """The PNGs that lie directly in a folder, by file name without its ending; other files aside.

    Raises:
        BadFile: no folder, or two files of one image (a.png and a.PNG).
    """
    found: dict[str, Path] = {}
    for name in _files(folder):
        path = folder / name
        if path.suffix.lower() == ".png" and not os.path.isdir(path):
            image_id = unicodedata.normalize("NFC", path.stem)  # as Linux types it: a Mac's differ
            if image_id in found:
                raise BadFile(path, f"a second file of image {image_id}", "keep one of them")
            found[image_id] = path
    return found


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and below, through links too, in the order of their names.

    Hidden files and folders are left out, and a folder to which several links lead is seen once.
    """

    def refuse(error: OSError) -> None:
        problem = f"not a readable folder ({error.strerror})"
        raise BadFile(Path(error.filename), problem, "name a folder that can be read") from error

    seen = set()
    for base, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(base)
        folders[:] = sorted(f for f in folders if real not in seen and not f.startswith("."))
        if real not in seen:
            yield from (Path(base, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def listed(ids: Path, known: Collection[str]) -> list[str]:
    """The images of a list, one a line, in order.

    A line is an image id or the name of one of the image's files, with or without folders.

    Args:
        known: the image ids that there are; a line that is one is taken as it is.

    Raises:
        BadFile: the list is missing or empty, or has an image twice.
    """
    found: dict[str, None] = {}
    for line in filter(None, (line.strip() for line in read_lines(ids))):
        image_id = unicodedata.normalize("NFC", line)
        if image_id not in known:
            name = PurePosixPath(image_id.split()[0])
            image_id = name.stem if name.suffix.lower() in IMAGE_ENDINGS else name.name
            image_id = re.sub("_(leftImg8bit|gtFine_labelIds|gtFine_labelTrainIds)$", "", image_id)
        if image_id in found:
            raise BadFile(ids, f"{image_id} again", "list each image once")
        found[image_id] = None
    if not found:
        raise BadFile(ids, "no image in it", "write the image ids there, one a line")
    return list(found)


def read_label_map(path: Path) -> np.ndarray:
    """The category numbers of an index PNG: (H, W) uint8, never its colours.

    Raises:
        BadFile: missing or damaged, colours instead of numbers, or not 8 bits a pixel.
    """
    numbers = png.read(path)
    if numbers is not None and numbers.dtype == np.uint8:
        return numbers
    return decode_index_png(path)


def read_pair(
    pair: Pair, read_truth: Read = read_label_map, read_predicted: Read = read_label_map
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth of an image, both (H, W) uint8; a missing prediction is 255 everywhere.

    Raises:
        BadFile: as the readers; or the two are not of one size.
    """
    truth = read_truth(pair.truth)
    if pair.predicted is None:
        return np.full_like(truth, IGNORE), truth  # of no category, so wrong everywhere
    predicted = read_predicted(pair.predicted)
    check_sizes(pair, predicted, truth)
    return predicted, truth


def check_sizes(pair: Pair, predicted: np.ndarray, truth: np.ndarray) -> None:
    """BadFile, with both files and sizes, unless an image's two maps are of one size."""
    if predicted.shape != truth.shape:
        sizes = [f"{h} x {w}" for h, w in (predicted.shape, truth.shape)]
        raise BadFile(
            pair.predicted or pair.truth,
            f"{sizes[0]} pixels (height x width), but its truth {pair.truth} has {sizes[1]}",
            "predict at the size of the image",
        )


def categories_of(text: str) -> tuple[str, ...]:
    """The categories that were asked for, in the order of their numbers.

    Args:
        text: the name of a known list (voc, coco, cityscapes, context, sample), or a file: a JSON
            list of names, such as data/prepared/<dataset>/categories.json, or a name a line. The
            first is number 0.

    Raises:
        BadInput: neither, or a list that is empty, too long, or repeats a name.
    """
    if text in CATEGORIES:
        return CATEGORIES[text]
    path = Path(text)
    if not text or not os.path.exists(path):  # not there too if it can be no name
        raise BadInput(f"{text!r}: no file, and none of the known lists: {', '.join(CATEGORIES)}")
    names = _names(path)
    again = sorted({name for name in names if names.count(name) > 1})
    if again:
        raise BadFile(path, f"names more than once: {some(again)}", "name each category once")
    if not 1 <= len(names) <= IGNORE:
        raise BadFile(path, f"{len(names)} categories", f"give 1 to {IGNORE}; {IGNORE} is ignored")
    return tuple(names)


def _names(path: Path) -> list[str]:
    need_file(path)
    remedy = "write a JSON list of names, or a name a line"
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
        names = json.loads(text) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(path, f"not a readable list ({error})", remedy) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadFile(path, "not a list of names", remedy)
    names = [name.strip() for name in names]
    if "" in names:
        raise BadFile(path, f"category {names.index('')} has no name", remedy)
    return names


def _files(folder: Path) -> list[str]:
    """Names in a folder, sorted; hidden files (a Mac leaves ._a.png beside a.png) aside."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise BadFile(folder, f"no readable folder ({error.strerror})", "name a folder") from error


def _other_kinds(folder: Path) -> set[str]:
    """What lies in a folder beside PNGs, in words."""
    names = _files(folder)
    kinds = {A_FOLDER if os.path.isdir(folder / n) else Path(n).suffix or n for n in names}
    return {kind for kind in kinds if kind.lower() != ".png"}


def need_some(files: Mapping[str, Path], folder: Path) -> None:
    """BadFile, with what is there instead, unless there are label maps."""
    if not files:
        others = some(sorted(_other_kinds(folder)))
        seen = f", only {others}" if others else ""
        raise BadFile(folder, f"no label maps in it{seen}", "name the folder in which the PNGs lie")
