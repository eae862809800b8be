"""Which pixels of an image are in which of its categories' masks: probabilities between cells.

C categories, T of them with objects; h x w cells, H x W pixels; n masks per category. Maps of
pixels are (W, H) here, for run-lengths go down the columns.
"""

from typing import NamedTuple

import numba
import numpy as np


class Taps(NamedTuple):
    """Along one axis, the two cells that a pixel lies between.

    A pixel's value is (near value[first] + far value[second]) / (2 stride). The weights are whole
    numbers: in float64 sums of float32 values are then exact, in whatever order they are added.
    """

    first: np.ndarray  # (pixels,) int64
    second: np.ndarray  # (pixels,) int64; the same as first where far is 0
    near: np.ndarray  # (pixels,) float64
    far: np.ndarray  # (pixels,) float64


def taps(pixels: int, cells: int, stride: int) -> Taps:
    """Bilinear, of half-pixel centres: pixel i lies at (i + 1/2) / stride - 1/2, clamped."""
    place = np.clip(2 * np.arange(pixels) + 1 - stride, 0, 2 * stride * (cells - 1))
    first, far = place // (2 * stride), place % (2 * stride)
    return Taps(first, first + (far > 0), (2 * stride - far) * 1.0, far * 1.0)


def mask_numbers(
    probabilities: np.ndarray,
    categories: np.ndarray,
    *,
    size: tuple[int, int],
    stride: int,
    top_masks: int,
    min_probability: float,
) -> np.ndarray:
    """The first of its category's masks that each pixel is in; the later ones hold it too.

    Implements: Wu2016 Sec. 2.1 (step 3, the top-n masks).
    Reading: a pixel is in the k-th mask where fewer than k of all categories, background included,
        are more probable, and the category itself is probable enough and not impossible.

    Args:
        probabilities: (C, h, w) float32. A category that is not a number somewhere is in no mask
            there. categories: (T,) int64, of which masks are wanted.
        size: H, W. stride: pixels per cell; probabilities of pixels are interpolated.
        top_masks: n. min_probability: in [0, 1].

    Returns:
        (T, W, H) uint8: 1..n, or 0 where it is in none.

    Raises:
        ValueError: n is not in 1..255.
    """
    if not 1 <= top_masks <= 255:
        raise ValueError(f"top_masks {top_masks} is not in 1..255")
    _, h, w = probabilities.shape
    columns = np.ascontiguousarray(probabilities.transpose(0, 2, 1))
    across, down = taps(size[1], w, stride), taps(size[0], h, stride)
    least = np.float64(np.float32(min_probability)) * (2 * stride) ** 2
    top = min(top_masks, len(probabilities))
    return _mask_numbers(columns, categories, across, down, top, least)


@numba.njit(cache=True, nogil=True)
def _mask_numbers(columns, categories, across, down, top, least):
    """As `mask_numbers`, of probabilities (C, w, h); `least` is in units of the taps' weights."""
    width, height = across.first.size, down.first.size
    found = np.zeros((categories.size, width, height), np.uint8)
    values = np.empty((columns.shape[0], height))  # of a column of pixels
    highest = np.empty((top, height))  # of all categories, falling
    carried = np.empty(height)
    for x in range(width):
        highest[:] = -np.inf
        left, right = columns[:, across.first[x]], columns[:, across.second[x]]
        for c in range(len(columns)):
            _interpolate(values[c], left[c], right[c], across.near[x], across.far[x], down)
            carried[:] = values[c]
            for k in range(top):  # each takes its place, the one there goes on to the next
                row = highest[k]
                for y in range(height):
                    value, before = carried[y], row[y]
                    row[y] = value if value > before else before
                    carried[y] = before if value > before else value
        for t in range(categories.size):
            mine, numbers = values[categories[t]], found[t, x]
            for k in range(top, 0, -1):
                row = highest[k - 1]
                for y in range(height):
                    numbers[y] = k if mine[y] >= row[y] else numbers[y]
            for y in range(height):
                numbers[y] = numbers[y] if mine[y] >= least and mine[y] > 0 else 0
    return found


@numba.njit(cache=True, nogil=True)
def _interpolate(values, left, right, near, far, down):
    """A column of pixels (H,) between two columns of cells (h,), in units of the taps' weights."""
    between = near * left + far * right
    for y in range(len(values)):
        values[y] = down.near[y] * between[down.first[y]] + down.far[y] * between[down.second[y]]


def most_probable(
    probabilities: np.ndarray, *, size: tuple[int, int], stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable category of each pixel and its probability.

    Args: as of `mask_numbers`.

    Returns:
        (W, H) int64, the first of equals, and (W, H) float64.
    """
    _, h, w = probabilities.shape
    columns = np.ascontiguousarray(probabilities.transpose(0, 2, 1))
    best, values = _most_probable(columns, taps(size[1], w, stride), taps(size[0], h, stride))
    return best, values / (2 * stride) ** 2


@numba.njit(cache=True, nogil=True)
def _most_probable(columns, across, down):
    width, height = across.first.size, down.first.size
    best = np.zeros((width, height), np.int64)
    highest = np.full((width, height), -np.inf)
    values = np.empty(height)
    for x in range(width):
        left, right = columns[:, across.first[x]], columns[:, across.second[x]]
        for c in range(len(columns)):
            _interpolate(values, left[c], right[c], across.near[x], across.far[x], down)
            for y in range(height):
                if values[y] > highest[x, y]:
                    best[x, y], highest[x, y] = c, values[y]
    return best, highest
