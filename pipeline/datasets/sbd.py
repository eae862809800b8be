"""The Semantic Boundaries Dataset: masks for 11,355 images of VOC 2011.

Published layout, below benchmark_RELEASE/dataset/:

    train.txt, val.txt    8,498 and 2,857 image ids
    cls/<id>.mat          struct GTcls:  Segmentation (H, W), category of each pixel
    inst/<id>.mat         struct GTinst: Segmentation (H, W), number of the object, from 1;
                                         Categories (N, 1), the category of each object
    img/<id>.jpg          the same pixels as VOC's JPEGImages; not needed

There is no void border (255) in these masks. H x W pixels, N objects.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from pipeline.errors import BadInput

INNER = "benchmark_RELEASE/dataset"  # of the archive, and of the names in the manifest


def read_label_map(path: Path) -> np.ndarray:
    """The category of each pixel. Returns (H, W) uint8. Raises BadInput naming the file."""
    return _segmentation(path, _struct(path, "GTcls"))


def read_object_masks(path: Path) -> list[tuple[int, np.ndarray]]:
    """The objects of an image as (category, mask (H, W) bool); one without pixels is left out.

    Raises:
        BadInput: the file is unreadable, or holds an object without a category.
    """
    struct = _struct(path, "GTinst")
    numbers = _segmentation(path, struct)
    categories = np.atleast_1d(getattr(struct, "Categories", np.zeros(0)))
    if numbers.max(initial=0) > categories.size:
        raise BadInput(
            f"{path}: object {numbers.max()} in Segmentation, but {categories.size} Categories; "
            "copy the file anew"
        )
    present = [n for n in np.unique(numbers) if n > 0]
    return [(int(categories[n - 1]), numbers == n) for n in present]


def _struct(path: Path, name: str) -> Any:
    """One struct of a MATLAB v5 file, as an object with its fields as attributes."""
    if not path.is_file():
        raise BadInput(f"{path}: not there; the copy of SBD is incomplete")
    try:
        content = loadmat(path, struct_as_record=False, squeeze_me=True, variable_names=[name])
        return content[name]
    except KeyError:
        raise BadInput(f"{path}: no {name} in it; this is not SBD's file") from None
    except (
        MatReadError,
        NotImplementedError,
        OSError,
        TypeError,
        ValueError,
        zlib.error,
    ) as error:
        raise BadInput(f"{path}: not a readable .mat file ({error}); copy it anew") from error


def _segmentation(path: Path, struct: Any) -> np.ndarray:
    numbers = getattr(struct, "Segmentation", None)
    if not isinstance(numbers, np.ndarray) or numbers.ndim != 2:
        raise BadInput(f"{path}: its Segmentation is no map (H, W); copy the file anew")
    if numbers.size and not (0 <= numbers.min() and numbers.max() <= 255):
        raise BadInput(f"{path}: its Segmentation holds numbers outside 0..255")
    return numbers.astype(np.uint8)
