"""Boxes that overlap a better one enough are dropped, or given to it.

V boxes, half-open corners x0, y0, x1, y1, not clipped; K of them are kept. One pass over the boxes
that are left for each that is kept: O(V K) time at most, O(V) memory. IoU is computed in float32.
"""

from typing import NamedTuple

import numba
import numpy as np

BLOCK = 64  # boxes that are compared at a time; where none of them is near, nothing else is done
GONE = np.float32(-np.inf)  # x1 of a box that is dropped and not yet taken out: it overlaps nothing


class _Left(NamedTuple):
    """The boxes that are left, column by column, and the number that each had at first."""

    x0: np.ndarray  # (V,) float32, as all of them
    y0: np.ndarray
    x1: np.ndarray
    y1: np.ndarray
    area: np.ndarray
    number: np.ndarray  # (V,) int64


def areas_of(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes (4, ...) float32 in float32; 0 where that is no positive finite number."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        width, height = boxes[2] - boxes[0], boxes[3] - boxes[1]
        area = width * height
        return np.where((width > 0) & (height > 0) & (area < np.inf), area, np.float32(0))


@numba.njit(cache=True, nogil=True)
def suppress(boxes: np.ndarray, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Greedy non-maximum suppression: the best box left drops all that it overlaps enough.

    Implements: Wu2016 Sec. 2.1 (step 4).

    Args:
        boxes: (V, 4) float32, the best first, of positive finite area.
        overlap: in (0, 1]; an IoU of that or more suppresses.

    Returns:
        kept: (K,) int64, rising. cluster: (V,) int64, 0..K-1, which kept one dropped each.
    """
    left = _columns(boxes)
    kept, cluster = np.empty(len(boxes), np.int64), np.empty(len(boxes), np.int64)
    maxima, first, count, dropped = 0, 0, len(boxes), 0
    while first < count:
        if left.x1[first] == GONE:
            first += 1
            dropped -= 1
            continue
        if 4 * dropped > count - first:
            first, count, dropped = 0, _take_out(left, first, count), 0
        best = left.number[first]
        kept[maxima] = best
        dropped += _drop(left, first, count, boxes[best], np.float32(overlap), cluster, maxima)
        maxima += 1
    return kept[:maxima].copy(), cluster


@numba.njit(cache=True, nogil=True)
def nearest_first(boxes: np.ndarray, better: np.ndarray, overlap: float) -> np.ndarray:
    """Which of other boxes would drop each box, were they to come one after another.

    Args:
        boxes: (V, 4) float32. better: (K, 4) float32, the best first; both of positive finite area.
        overlap: as of `suppress`.

    Returns:
        (V,) int64, 0..K-1, or -1 where none overlaps enough.
    """
    left = _columns(boxes)
    owners = np.full(len(boxes), -1)
    count, dropped = len(boxes), 0
    for number in range(len(better)):
        if 4 * dropped > count:
            count, dropped = _take_out(left, 0, count), 0
        dropped += _drop(left, 0, count, better[number], np.float32(overlap), owners, number)
    return owners


@numba.njit(cache=True, nogil=True)
def _columns(boxes):
    x0, y0, x1, y1 = (
        boxes[:, 0].copy(), boxes[:, 1].copy(), boxes[:, 2].copy(), boxes[:, 3].copy(),
    )  # fmt: skip
    return _Left(x0, y0, x1, y1, (x1 - x0) * (y1 - y0), np.arange(len(boxes)))


@numba.njit(cache=True, nogil=True)
def _take_out(left, first, count):
    """Move the boxes from `first` on that are not dropped to the front. Returns their number."""
    x0, y0, x1, y1, area, number = left
    to = 0
    for i in range(first, count):
        x0[to], y0[to], area[to], number[to] = x0[i], y0[i], area[i], number[i]
        y1[to], x1[to] = y1[i], x1[i]
        to += x1[i] != GONE
    return to


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _drop(left, first, count, box, least, owners, owner):
    """Drop what is near a box, write down whose it is. Returns how many."""
    a, b, c, d = box[0], box[1], box[2], box[3]
    area, zero = (c - a) * (d - b), np.float32(0)
    near = np.empty(BLOCK, np.bool_)
    dropped = 0
    for start in range(first, count, BLOCK):
        stop = min(start + BLOCK, count)
        x0, y0, x1 = left.x0[start:stop], left.y0[start:stop], left.x1[start:stop]
        y1, areas = left.y1[start:stop], left.area[start:stop]
        hits = 0
        for i in range(stop - start):
            width = (x1[i] if x1[i] < c else c) - (x0[i] if x0[i] > a else a)
            height = (y1[i] if y1[i] < d else d) - (y0[i] if y0[i] > b else b)
            shared = (width if width > zero else zero) * (height if height > zero else zero)
            near[i] = shared / (area + areas[i] - shared) >= least
            hits += near[i]
        if hits > 0:
            dropped += hits
            for i in range(stop - start):
                if near[i]:
                    owners[left.number[start + i]] = owner
                    x1[i] = GONE
    return dropped
