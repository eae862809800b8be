"""The common form: one image with its annotation, the same for every dataset.

H x W pixels.
"""

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import BadFile, need_file
from pipeline.masks import rle_box

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # but restarts, which have no length
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
TAIL = 1 << 10  # bytes at the end of a file that are looked at first
WIDE_MODES = ("I", "F")  # Pillow's, with variants such as I;16: more than 8 bits a channel

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
        BadFile: the file is missing, truncated, no image, or has more than 8 bits a channel.
    """
    need_file(path)
    try:
        data = path.read_bytes()
        _check_end(data)
        with Image.open(io.BytesIO(data)) as image:
            _check_mode(image)
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _bad_image(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image; its pixels stay undecoded.

    Raises:
        BadFile: the file is missing, cut off, no image, or has more than 8 bits a channel.
    """
    need_file(path)
    try:
        with path.open("rb") as file:
            with Image.open(file) as image:
                width, height = image.size
                _check_mode(image)
            file.seek(0)
            start = file.read(len(PNG_START))
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            tail = file.read()
        if not (start.startswith(JPEG_START) and tail.endswith(JPEG_END)) and PNG_END not in tail:
            _check_end(path.read_bytes())
        return height, width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _bad_image(path, error) from error


def _check_mode(image: Image.Image) -> None:
    """ValueError for what Pillow would turn into white where it is not black."""
    if image.mode.split(";")[0] in WIDE_MODES:
        raise ValueError(f"mode {image.mode}: more than 8 bits a channel")


def _check_end(data: bytes) -> None:
    """ValueError for an image that is cut off: Pillow takes a JPEG's padding for grey pixels."""
    if data.startswith(JPEG_START) and not (data.endswith(JPEG_END) or _has_jpeg_end(data)):
        raise ValueError("its JPEG data have no end")
    if data.startswith(PNG_START) and PNG_END not in data:
        raise ValueError("its PNG data have no end")


def _has_jpeg_end(data: bytes) -> bool:
    """Whether the end marker follows the segments and scans; anything may lie behind it."""
    at = len(JPEG_START)
    while marker := JPEG_MARKER.search(data, at):
        if marker[1] == JPEG_END[1:]:
            return True
        length = data[marker.end() : marker.end() + 2]
        at = marker.end() + int.from_bytes(length)  # of the segment, these two bytes included
    return False


def _bad_image(path: Path, error: Exception) -> BadFile:
    if isinstance(error, PermissionError):
        return BadFile(path, "not readable (Permission denied)", "let this user read it")
    said = str(error)
    if isinstance(error, UnidentifiedImageError):
        said = "in no known format" if path.stat().st_size else "it is empty"
    return BadFile(
        path, f"not a readable image ({said})", "the file is damaged or cut off: copy it anew"
    )
