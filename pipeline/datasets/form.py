"""The common form: one image with its annotation, the same for every dataset.

H x W pixels.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import BadFile
from pipeline.masks import rle_box

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"  # markers
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
TAIL = 1 << 16  # bytes at the end of a file in which a whole image has its end marker

Box = tuple[int, int, int, int]  # half-open [x0, y0, x1, y1), pixels from 0


@dataclass(frozen=True)
class AnnotatedObject:
    category: int  # ours: contiguous; 255 for none of them: counted, but not prepared
    box: Box
    difficult: bool
    crowd: bool  # a region of many: not one object
    mask_rle: str | None  # COCO's compressed run-lengths over the whole image


@dataclass(frozen=True)
class Sample:
    image_id: str
    path: str  # of the image: the name of its place, then its path there
    size: tuple[int, int]  # H, W
    source: str  # who drew the annotation: voc, sbd, coco, ...
    label_map: np.ndarray | None  # (H, W) uint8, 255 = ignore
    objects: tuple[AnnotatedObject, ...] | None  # None: not annotated, which is not "no objects"


def objects_of_masks(
    masks: list[tuple[int, str]], size: tuple[int, int]
) -> tuple[AnnotatedObject, ...]:
    """Objects whose boxes are the tight boxes of their masks (category, run-lengths)."""
    return tuple(
        AnnotatedObject(category, rle_box(counts, *size), False, False, counts)
        for category, counts in masks
    )


def read_image(path: Path) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB.

    Raises:
        BadFile: the file is missing, truncated or no image.
    """
    try:
        data = path.read_bytes()
        _check_end(data)
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _bad_image(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, from its first bytes and its last; pixels stay undecoded.

    Raises:
        BadFile: the file is missing, cut off or no image.
    """
    try:
        with path.open("rb") as file:
            with Image.open(file) as image:
                width, height = image.size
            file.seek(0)
            start = file.read(len(PNG_START))
            file.seek(max(0, path.stat().st_size - TAIL))
            _check_end(start + file.read())
            return height, width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _bad_image(path, error) from error


def _check_end(data: bytes) -> None:
    """ValueError for an image that is cut off: Pillow takes a JPEG's padding for grey pixels."""
    if data.startswith(JPEG_START) and data.rfind(JPEG_END) <= data.rfind(JPEG_SCAN):
        raise ValueError("its JPEG data have no end")
    if data.startswith(PNG_START) and PNG_END not in data:
        raise ValueError("its PNG data have no end")


def _bad_image(path: Path, error: Exception) -> BadFile:
    if isinstance(error, FileNotFoundError):
        return BadFile(path, "not there", "the copy of the dataset is incomplete")
    said = "it is empty" if "<_io." in str(error) else str(error)
    return BadFile(
        path, f"not a readable image ({said})", "the file is damaged or cut off: copy it anew"
    )
