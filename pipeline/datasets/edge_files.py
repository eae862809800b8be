"""What contours are found with, as files: forests, strength maps, a structured forest of OpenCV's.

    <forest>.npz        features, thresholds, leaves, bias: the arrays of a trained forest
    <image id>.npy      (H, W) numbers from 0 to 1
    <image id>.png      (H, W) grey, of 8 or 16 bits; white is 1
    <image id>.mat      ucm2, (2 H + 1, 2 W + 1) strengths of a hierarchy between the pixels
    model.yml(.gz)      the structured forest of Dollar and Zitnick 2013, in OpenCV's form

H x W pixels.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.datasets.bsds import read_ucm
from pipeline.errors import BadFile, PlaceByHand, need_file, some

SAVED = (".npy", ".png", ".mat")
FOREST = ("features", "thresholds", "leaves", "bias")
SIZES = (  # and lists, as OpenCV's form names them
    "stride", "shrinkNumber", "patchSize", "patchInnerSize", "numberOfTrees",
    "numberOfTreesToEvaluate", "selfsimilarityGridSize", "numberOfGradientOrientations",
)  # fmt: skip
LISTS = ("childs", "featureIds", "thresholds", "edgeBoundaries", "edgeBins")
MODEL = (
    "the structured forest of OpenCV (model.yml.gz of opencv_extra, testdata/cv/ximgproc), which "
    "is for research only and not downloaded"
)


def write_forest(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """The arrays of a forest, by name, as an .npz: the same bytes for the same numbers."""
    unfinished = path.with_name(f".{path.name}.partial")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FOREST:
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(arrays[name]), allow_pickle=False)
            # No time of day, unlike np.savez.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())
    os.replace(unfinished, path)


def read_forest(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a forest, by name.

    Raises:
        BadFile: the file is missing or damaged, or is no forest.
    """
    remedy = "make it with `python -m pipeline train-edges`"
    if not path.exists():
        raise BadFile(path, "not there", remedy)
    need_file(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in FOREST}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadFile(path, "no forest of this project", remedy) from error


def check_strengths(folder: Path, image_ids: Sequence[str]) -> None:
    """BadFile unless the folder has a file of saved strengths for each image."""
    there = set(os.listdir(folder))
    missing = [i for i in image_ids if not any(f"{i}{suffix}" in there for suffix in SAVED)]
    if missing:
        problem = f"no saved contours of {len(missing)} of {len(image_ids)} images: {some(missing)}"
        raise BadFile(folder, problem, "put <image>.npy, .png or .mat of each there")


def read_strength(folder: Path, image_id: str) -> np.ndarray:
    """The saved strengths of an image: <image id>.npy, .png or .mat, the first that is there.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        BadFile: no such file is there, or it is damaged or holds something else.
    """
    paths = [folder / f"{image_id}{suffix}" for suffix in SAVED]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise BadFile(paths[0], "not there, nor .png or .mat", "save the strengths of this image")
    need_file(path)
    if path.suffix == ".mat":
        strength = ucm_strength(read_ucm(path))
    else:
        try:
            with path.open("rb") as file:
                strength = _array(file) if path.suffix == ".npy" else _grey(file)
        except (OSError, ValueError, EOFError, SyntaxError, UnidentifiedImageError) as error:
            raise BadFile(path, f"no map of strengths ({error})", "save it anew") from error
    if strength.ndim != 2 or strength.size == 0 or strength.dtype.kind not in "fiub":
        raise BadFile(
            path, f"{strength.shape} {strength.dtype}, not (H, W) numbers", "save it anew"
        )
    if not (np.min(strength) >= 0 and np.max(strength) <= 1):
        raise BadFile(path, "strengths outside of 0 to 1", "divide them by their largest value")
    return strength.astype(np.float32)


def ucm_strength(ucm: np.ndarray) -> np.ndarray:
    """(H, W) strength of each pixel: of the strongest of the contours on its four sides.

    Args:
        ucm: (2 H + 1, 2 W + 1).
    """
    sides = (ucm[:-2:2, 1::2], ucm[2::2, 1::2], ucm[1::2, :-2:2], ucm[1::2, 2::2])
    return np.maximum.reduce(sides)


def open_structured_edges(path: Path) -> Any:
    """OpenCV's detector with the model of a file.

    Raises:
        PlaceByHand: the file is not there.
        BadFile: OpenCV was built without the detector, or the file is no such model.
    """
    if not path.exists():
        raise PlaceByHand(f"{path}: not there; put {MODEL} there")
    need_file(path)
    if not hasattr(cv2, "ximgproc"):
        raise BadFile(
            path,
            "this OpenCV has no structured edges",
            "install opencv-contrib-python-headless in the place of opencv-python-headless",
        )
    _check_model(path)
    try:
        return cv2.ximgproc.createStructuredEdgeDetection(str(path))
    except cv2.error as error:
        raise BadFile(path, f"OpenCV refuses it ({error.err})", f"put {MODEL} there") from error


def _check_model(path: Path) -> None:
    """BadFile for a file of another kind: OpenCV divides by its zeros, which ends the process."""
    remedy = f"put {MODEL} there"
    try:
        file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
        options = file.getNode("options")
        missing = [n for n in SIZES if options.empty() or not options.getNode(n).real() > 0]
        missing += [name for name in LISTS if file.getNode(name).size() == 0]
        file.release()
    except (cv2.error, SystemError) as error:
        raise BadFile(path, f"no structured forest ({error})", remedy) from error
    if missing:
        raise BadFile(path, f"no structured forest: no {', '.join(missing)} in it", remedy)


def _array(file: BinaryIO) -> np.ndarray:
    array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("several arrays")
    return array


def _grey(file: BinaryIO) -> np.ndarray:
    """(H, W) float64 in [0, 1]."""
    with Image.open(file) as image:
        if image.mode not in ("1", "L", "I;16", "I;16B", "I"):
            raise ValueError(f"mode {image.mode}: not grey")
        largest = {"1": 1, "L": 255}.get(image.mode, 65535)
        return np.array(image).astype(np.float64) / largest
