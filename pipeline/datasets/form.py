"""The common form: one image with its annotation, the same for every dataset.

H x W pixels.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import BadInput

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"  # markers


@dataclass(frozen=True)
class AnnotatedObject:
    category: int  # ours: contiguous, 0 is background
    box: tuple[int, int, int, int]  # half-open [x0, y0, x1, y1), pixels from 0
    difficult: bool
    crowd: bool
    mask: np.ndarray | None  # (H, W) bool


@dataclass(frozen=True)
class Sample:
    image_id: str
    path: str  # of the image, below the dataset's root
    image: np.ndarray  # (H, W, 3) uint8 RGB
    source: str  # whose masks these are: voc or sbd
    label_map: np.ndarray | None  # (H, W) uint8, 255 = ignore
    objects: tuple[AnnotatedObject, ...] | None  # None: not annotated, which is not "no objects"


def read_image(path: Path) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB.

    Raises:
        BadInput: the file is missing, truncated or no image.
    """
    try:
        data = path.read_bytes()
        if data.startswith(JPEG_START) and data.rfind(JPEG_END) < data.rfind(JPEG_SCAN):
            raise ValueError("its JPEG data have no end")  # Pillow takes padding for grey pixels
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise BadInput(f"{path}: not there; the copy of the dataset is incomplete") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(
            f"{path}: not a readable image ({error}); the file is damaged or cut off: copy it anew"
        ) from error
