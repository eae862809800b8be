"""A photograph under its objects: each in a colour of its own, with an outline; with names too.

H x W pixels, N objects.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.datasets.run_lengths import read_texts

DIMMED = 0.5  # what is left of the photograph where there is no object
SEEN = 0.55  # what is left of it under an object's colour
LINES = 300  # outlines to the shorter side of an image, side by side
TEXTS = 40  # lines of text to it
SMALLEST_TEXT = 10  # pixels: smaller letters cannot be read
MARGIN = 2  # pixels around a text
GOLDEN = 0.618034  # of the circle of hues, from one object to the next: neighbours differ most
BRIGHT = 140  # of 255: on brighter colours text is black

Span = tuple[int, int, int, int]  # half-open x0, y0, x1, y1


class Drawn(NamedTuple):
    """An object to draw."""

    rle: str  # COCO's compressed run-lengths of its mask
    box: Span  # the smallest around its mask


def named_overlay(image: np.ndarray, objects: Sequence[Drawn], texts: Sequence[str]) -> Image.Image:
    """`object_overlay`, with a text for each object.

    A text stands above its object's box, else within it, else below, wherever it is inside the
    image and covers no other; else it is left out.

    Args:
        texts: (N,), placed in this order.
    """
    picture = Image.fromarray(object_overlay(image, objects))
    _write_texts(picture, [one.box for one in objects], texts)
    return picture


def object_overlay(image: np.ndarray, objects: Sequence[Drawn]) -> np.ndarray:
    """A photograph, dimmed, under the colours of its objects.

    Args:
        image: (H, W, 3) uint8 RGB.
        objects: (N,), the best first: it lies over the others.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    canvas = (image * np.float32(DIMMED)).astype(np.uint8)
    colours = object_colours(len(objects))
    line = max(1, round(min(height, width) / LINES))
    for one, colour in reversed(list(zip(objects, colours, strict=True))):
        x0, y0, x1, y1 = one.box
        mask = _mask_in_box(one, (height, width))
        inside = _without_outline(mask, line)
        region = canvas[y0:y1, x0:x1]
        region[mask] = colour
        below = image[y0:y1, x0:x1][inside]
        region[inside] = (SEEN * below + (1 - SEEN) * colour).astype(np.uint8)
    return canvas


def object_colours(count: int) -> np.ndarray:
    """(N, 3) uint8, each unlike those before it."""
    hues = (GOLDEN * np.arange(count)) % 1
    values = (1.0, 0.8)  # in turn, and so is the saturation
    saturations = (0.9, 0.9, 0.6)
    colours = [
        colorsys.hsv_to_rgb(hue, saturations[i % 3], values[i % 2])
        for i, hue in enumerate(hues.tolist())
    ]
    return np.round(255 * np.array(colours).reshape(count, 3)).astype(np.uint8)


def _mask_in_box(one: Drawn, size: tuple[int, int]) -> np.ndarray:
    """The mask of an object in its box alone, (h, w) bool: an image may be far larger."""
    height = size[0]
    x0, y0, x1, y1 = one.box
    runs, _ = read_texts([one.rle], [size])
    bounds = runs.bounds.astype(np.int64) - x0 * height  # down the columns of the box
    changes = np.zeros((x1 - x0) * height + 1, np.int8)
    changes[bounds[0::2]] = 1
    changes[bounds[1::2]] = -1
    columns = np.cumsum(changes[:-1], dtype=np.int8).reshape(x1 - x0, height)
    return columns.T[y0:y1].astype(bool)


def _without_outline(mask: np.ndarray, line: int) -> np.ndarray:
    """A mask (h, w) bool less its pixels within `line` of its border, or of its array's."""
    padded = np.pad(mask.astype(np.uint8), line)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=line)
    return eroded[line:-line, line:-line].astype(bool)


def _write_texts(picture: Image.Image, boxes: Sequence[Span], texts: Sequence[str]) -> None:
    """Write the text of each object (N,) where there is a place for it by its box."""
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(SMALLEST_TEXT, min(picture.size) // TEXTS))
    taken: list[Span] = []
    for box, text, colour in zip(boxes, texts, object_colours(len(boxes)), strict=True):
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        size = (int(right - left) + 2 * MARGIN, int(bottom - top) + 2 * MARGIN)
        place = _place(box, size, picture.size, taken)
        if place is None:
            continue
        taken.append(place)
        fill = tuple(colour.tolist())
        pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=fill)
        ink = "black" if colour @ np.array([0.299, 0.587, 0.114]) > BRIGHT else "white"
        start = (place[0] + MARGIN - left, place[1] + MARGIN - top)
        pen.text(start, text, fill=ink, font=font)


def _place(
    box: Span, size: tuple[int, int], image: tuple[int, int], taken: Sequence[Span]
) -> Span | None:
    """Where a text of that width and height stands; None: nowhere."""
    x0, y0, _, y1 = box
    left = min(x0, image[0] - size[0])
    for top in (y0 - size[1], y0, y1):
        place = (left, top, left + size[0], top + size[1])
        within = left >= 0 and 0 <= top and place[3] <= image[1]
        if within and not any(_meet(place, other) for other in taken):
            return place
    return None


def _meet(a: Span, b: Span) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
