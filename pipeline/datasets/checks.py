"""What must agree between the files of one image. H x W pixels."""

from pathlib import Path

import numpy as np

from pipeline.categories import IGNORE
from pipeline.errors import BadFile


def check_size(path: Path, numbers: np.ndarray, shape: tuple[int, int]) -> None:
    """BadFile if a map (h, w) has not the image's height and width."""
    if numbers.shape != shape:
        turned = " (its rows and columns are exchanged)" if numbers.shape == shape[::-1] else ""
        raise BadFile(
            path,
            f"{numbers.shape[1]}x{numbers.shape[0]} pixels, but the image has "
            f"{shape[1]}x{shape[0]}{turned}",
            "one of them is another image's or was resized",
        )


def check_labels(path: Path, label_map: np.ndarray, categories: tuple[str, ...]) -> None:
    """BadFile if a label map (H, W) uint8 holds what is neither a category nor 255."""
    largest = int((label_map + np.uint8(1)).max(initial=0)) - 1  # 255 becomes 0 on the way
    if largest >= len(categories):
        raise BadFile(
            path,
            f"label {largest}, but the categories go to {len(categories) - 1} "
            f"({categories[-1]}), and {IGNORE} for ignored pixels",
            "put the original file there",
        )


MIN_AGREEMENT = 0.5  # part of the objects' pixels that must be object in the label map, too


def check_agreement(path: Path, objects: np.ndarray, labelled: np.ndarray) -> None:
    """BadFile if an object map is not of the same image as the label map.

    Args:
        objects: (H, W) bool: pixels of any object.
        labelled: (H, W) bool: those to which the label map gives a category, or none (255).
    """
    count = np.count_nonzero(objects)
    if not count:
        raise BadFile(path, "no object in it", "copy the original file there")
    agreement = np.count_nonzero(objects & labelled) / count
    if agreement < MIN_AGREEMENT:
        raise BadFile(
            path,
            f"only {agreement:.0%} of its objects' pixels are objects in the label map",
            "one of the two is another image's",
        )
