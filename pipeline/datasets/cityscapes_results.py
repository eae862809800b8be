"""Label maps to score by Cityscapes' rules: the truth, anybody's predictions, maps of objects.

Files are found by name, in folders of cities or below any others:

    truth        <city>_<seq>_<frame>_gtFine_labelIds.png        published id of each pixel
                                      _gtFine_labelTrainIds.png  or train ids
    predictions  <city>_<seq>_<frame>*.png                       one file an image, 8 bit
    objects      <city>_<seq>_<frame>_gtFine_instanceIds.png     16 bit; see `cityscapes`

Published ids are 0..33, train ids 0..18 and 255 for what is not trained. H x W pixels.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import cv2
import numpy as np

from pipeline.categories import CITYSCAPES, CITYSCAPES_IDS, CITYSCAPES_LABELS, IGNORE
from pipeline.datasets import png
from pipeline.datasets.checks import check_size
from pipeline.datasets.cityscapes import INSTANCES, read_numbers, train_id_of_label
from pipeline.datasets.label_maps import Pairs, files_below, join, read_label_map
from pipeline.errors import BadFile, some

FRAME = re.compile(r"[^_]+_[0-9]+_[0-9]+")  # how the name of a file starts: the image's id
LABEL_IDS, TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


# --- which files ----------------------------------------------------------------------------------
def pair_cityscapes(
    truth: Path, predicted: Path, *, ids: Path | None, allow_missing: bool, train_ids: bool
) -> Pairs:
    """Each image's two label maps.

    Args:
        truth, predicted: folders, for example gtFine/val; files may lie in folders of cities.
        ids: a list of the images to score, <city>_<seq>_<frame>; None: all that have a truth.
        allow_missing: missing predictions, and files without a truth, are told and not refused.
        train_ids: the truth is in ..._gtFine_labelTrainIds.png where there are such files; see
            also `holds_train_ids`.

    Raises:
        BadFile: as `label_maps.join`, `find_truth` and `find_predictions`.
    """
    labels = find_truth(truth, train_ids)
    return join(
        labels,
        find_predictions(predicted, labels),
        ids=ids,
        allow_missing=allow_missing,
        truth_folder=truth,
        predicted_folder=predicted,
    )


def find_truth(folder: Path, train_ids: bool) -> dict[str, Path]:
    """The true label maps below a folder by image id.

    Raises:
        BadFile: none there, an image has two, or a name is not as published.
    """
    by_label, by_train_id = _find_ending(folder, LABEL_IDS), _find_ending(folder, TRAIN_IDS)
    found = by_train_id or by_label if train_ids else by_label
    if not found:
        remedy = "name the folder of the truth, for example gtFine/val"
        if by_train_id:
            remedy = f"there are files ...{TRAIN_IDS}: score with --train-ids"
        raise BadFile(folder, f"no file ...{LABEL_IDS} in it or below", remedy)
    return found


def find_instances(folder: Path, image_ids: Collection[str]) -> dict[str, Path]:
    """The maps of objects of some images, below a folder.

    Raises:
        BadFile: an image has none or two.
    """
    found = _find_ending(folder, f"_gtFine_{INSTANCES}")
    if missing := [image_id for image_id in image_ids if image_id not in found]:
        raise BadFile(
            folder,
            f"no ..._gtFine_{INSTANCES} of {len(missing)} of {len(image_ids)} images: "
            f"{some(missing)}",
            "copy the published files there, or score without --instances",
        )
    return {image_id: found[image_id] for image_id in image_ids}


def find_predictions(folder: Path, image_ids: Collection[str]) -> dict[str, Path]:
    """The PNGs below a folder by image id; one whose name starts with no image id by its name.

    Args:
        image_ids: of these, only one file each may be there.

    Raises:
        BadFile: two files of one image, or no folder.
    """
    found: dict[str, Path] = {}
    for path in files_below(folder):
        if path.suffix.lower() == ".png":
            start = FRAME.match(path.name)
            image_id = start[0] if start else path.name
            if image_id in found and image_id in image_ids:
                raise BadFile(
                    path,
                    f"a second prediction of image {image_id}, beside {found[image_id]}",
                    "leave one of them there",
                )
            found[image_id] = path
    return found


def _find_ending(folder: Path, ending: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files_below(folder):
        if path.name.endswith(ending):
            image_id = path.name.removesuffix(ending)
            if not FRAME.fullmatch(image_id):
                remedy = "give it the published name"
                raise BadFile(path, f"its name is not <city>_<seq>_<frame>{ending}", remedy)
            if image_id in found:
                raise BadFile(path, f"{found[image_id]} is there, too", "leave one of them there")
            found[image_id] = path
    return found


# --- one file -------------------------------------------------------------------------------------
def holds_train_ids(paths: Iterable[Path]) -> bool:
    """Whether true label maps hold train ids, where predictions do.

    Files ..._labelTrainIds.png do. Of others the first value decides that only one kind has: 19 to
    33 published ids, 255 train ids; if there is none they are as the predictions.

    Raises:
        BadFile: as `read_label_map`.
    """
    highest = len(CITYSCAPES) - 1
    for path in paths:
        if path.name.endswith(TRAIN_IDS):
            return True
        values = read_label_map(path)
        if ((values > highest) & (values < len(CITYSCAPES_LABELS))).any():
            return False
        if (values == IGNORE).any():
            return True
    return True


def read_truth(path: Path, train_ids: bool) -> np.ndarray:
    """The published id of each pixel, 255 where there is none. Returns (H, W) uint8.

    Raises:
        BadFile: as `read_label_map`, or a value that has no meaning.
    """
    values = read_label_map(path)
    known = len(CITYSCAPES if train_ids else CITYSCAPES_LABELS)
    if values.max() >= known:
        unknown = values[(values >= known) & (values != IGNORE)]
        if unknown.size:
            kind = "train ids" if train_ids else "published ids"
            raise BadFile(
                path,
                f"value {unknown[0]}, but {kind} are 0..{known - 1} and {IGNORE}",
                "put the original file there",
            )
    return cv2.LUT(values, label_of_train_id()) if train_ids else values


def read_predicted(path: Path, train_ids: bool) -> np.ndarray:
    """The predicted published id of each pixel; other values mean none. Returns (H, W) uint8.

    Raises:
        BadFile: as `read_label_map`.
    """
    values = read_label_map(path)
    return cv2.LUT(values, label_of_train_id()) if train_ids else values


def categories_of_labels(labels: np.ndarray) -> np.ndarray:
    """Train ids of published ids, 255 for labels that are not scored. (H, W) uint8 both."""
    return cv2.LUT(labels, train_id_of_label())


def read_objects(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The number of the object or the published id of each pixel. Returns (H, W) uint16.

    Raises:
        BadFile: as `read_numbers`.
    """
    numbers = png.read(path)
    if numbers is None or numbers.dtype != np.uint16:
        return read_numbers(path, shape)
    check_size(path, numbers, shape)
    return numbers


def label_of_train_id(none: int = IGNORE) -> np.ndarray:
    """(256,) uint8: the published id of a train id, `none` for every other value."""
    table = np.full(256, none, np.uint8)
    table[: len(CITYSCAPES_IDS)] = CITYSCAPES_IDS
    return table
