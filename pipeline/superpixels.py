"""Sets of superpixels, whoever made them: boxes, areas, masks and sums.

H x W pixels, S superpixels, P sets, R runs of consecutive ids in all of them, K columns of numbers.
"""

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np


@dataclass(frozen=True)
class Runs:
    """Sets of superpixels, each a few runs of ids: much shorter than its list where it is large."""

    superpixels: np.ndarray  # (H, W) uint16, ids 0..S-1
    edges: np.ndarray  # (2 R,) int32: where runs begin and end by turns, rising in each set
    offsets: np.ndarray  # (P + 1,) int32: the runs of set i are edges[offsets[i]:offsets[i + 1]]
    boxes: np.ndarray  # (P, 4) int32, tight
    areas: np.ndarray  # (P,) int32, pixels

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def num_superpixels(self) -> int:
        return int(self.superpixels.max()) + 1

    def mask(self, i: int) -> np.ndarray:
        """Set i as a mask (H, W) bool."""
        edges = self.edges[self.offsets[i] : self.offsets[i + 1]]
        x0, y0, x1, y1 = self.boxes[i].tolist()
        inside = np.zeros(self.num_superpixels, bool)
        for begin, end in edges.reshape(-1, 2).tolist():
            inside[begin:end] = True
        mask = np.zeros(self.superpixels.shape, bool)
        mask[y0:y1, x0:x1] = inside[self.superpixels[y0:y1, x0:x1]]
        return mask

    def sums(self, per_superpixel: np.ndarray) -> np.ndarray:
        """Each set's sums of K numbers that every superpixel has, (S, K). Returns (P, K) float64.

        They are differences of running totals: exact where the numbers are whole, else to the
        rounding of the sum over all superpixels.
        """
        total = np.zeros((self.num_superpixels + 1, per_superpixel.shape[1]))
        np.cumsum(per_superpixel, axis=0, dtype=np.float64, out=total[1:])
        return _differences(total, self.edges, self.offsets)


@numba.njit(cache=True, nogil=True)
def _differences(total, edges, offsets):
    """(P, K): over the runs of each set, the running totals (S + 1, K) behind less those before."""
    columns = total.shape[1]
    found = np.zeros((len(offsets) - 1, columns))
    for p in range(len(found)):
        for e in range(offsets[p], offsets[p + 1], 2):
            before, behind = total[edges[e]], total[edges[e + 1]]
            for k in range(columns):
                found[p, k] = found[p, k] - before[k] + behind[k]
    return found


@numba.njit(cache=True, nogil=True)
def lists(edges, offsets):
    """The superpixels of all sets one after another, and where each set's begin.

    Args:
        edges, offsets: as in `Runs`.

    Returns:
        members uint16, and (P + 1,) int32.
    """
    begins = np.zeros(len(offsets), np.int32)
    for p in range(len(offsets) - 1):
        begins[p + 1] = begins[p]
        for e in range(offsets[p], offsets[p + 1], 2):
            begins[p + 1] += edges[e + 1] - edges[e]
    members = np.empty(begins[-1], np.uint16)
    number = 0
    for e in range(0, len(edges), 2):
        for superpixel in range(edges[e], edges[e + 1]):
            members[number] = superpixel
            number += 1
    return members, begins


@numba.njit(cache=True, nogil=True)
def runs_of_lists(members, offsets):
    """Edges and offsets as in `Runs` from `members` and `offsets` as of `boxes_and_areas`."""
    edges = np.empty(2 * len(members), np.int32)
    begins = np.zeros_like(offsets)
    number = 0
    for p in range(len(offsets) - 1):
        for m in range(offsets[p], offsets[p + 1]):
            if m == offsets[p] or members[m] != edges[number - 1]:
                edges[number] = members[m]
                number += 2
            edges[number - 1] = members[m] + 1
        begins[p + 1] = number
    return edges[:number], begins


def boxes_and_areas(
    superpixels: np.ndarray, members: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The tight box and the pixels of each set.

    Args:
        superpixels: (H, W) uint16, the superpixel of each pixel.
        members: uint16, the superpixels of all sets one after another, once each.
        offsets: (P + 1,) int32, set i is members[offsets[i]:offsets[i + 1]].

    Returns:
        (P, 4) int32 and (P,) int32. Of a set without pixels the area is 0, the box of no meaning.
    """
    return boxes_and_areas_of_runs(superpixels, *runs_of_lists(members, offsets))


@numba.njit(cache=True, nogil=True)
def boxes_and_areas_of_runs(superpixels, edges, offsets):
    """`boxes_and_areas` of sets that are given as in `Runs`.

    A run has the corners of the two longest stretches of 2**n ids at its begin and its end; where
    sets have thousands of superpixels that is a third of the time of asking each.
    """
    corners, sizes = _corners(superpixels)
    least, total = _least_of_stretches(corners), np.zeros(len(sizes) + 1, np.int32)
    total[1:] = np.cumsum(sizes)
    level = np.zeros(len(total), np.int8)  # of a stretch as long as fits into so many ids
    for length in range(2, len(total)):
        level[length] = level[length // 2] + 1
    boxes = np.full((len(offsets) - 1, 4), np.iinfo(np.int32).max, np.int32)
    areas = np.zeros(len(boxes), np.int32)
    for p in range(len(boxes)):
        for e in range(offsets[p], offsets[p + 1], 2):
            begin, end = edges[e], edges[e + 1]
            n = level[end - begin]
            first, last = least[n, begin], least[n, end - (1 << n)]
            for k in range(4):
                boxes[p, k] = min(boxes[p, k], first[k], last[k])
            areas[p] += total[end] - total[begin]
    boxes[:, 2:] *= -1
    return boxes, areas


@numba.njit(cache=True, nogil=True)
def _least_of_stretches(corners):
    """(levels, S, 4): at n, s the least of each column of corners[s:s + 2**n], where that is."""
    count, levels = len(corners), 1
    while 1 << levels <= count:
        levels += 1
    least = np.empty((levels, count, 4), np.int32)
    least[0] = corners
    for n in range(1, levels):
        half = 1 << (n - 1)
        for s in range(count - 2 * half + 1):
            for k in range(4):
                least[n, s, k] = min(least[n - 1, s, k], least[n - 1, s + half, k])
    return least


@numba.njit(cache=True, nogil=True)
def _corners(superpixels):
    """Of each superpixel x0, y0, -x1, -y1, of all of which a box has the least, and its pixels.

    Returns:
        (S, 4) int32 and (S,) int32.
    """
    height, width = superpixels.shape
    corners = np.zeros((superpixels.max() + 1, 4), np.int32)
    corners[:, 0], corners[:, 1] = width, height
    sizes = np.zeros(len(corners), np.int32)
    ends = np.empty(width, np.int32)  # of a row's stretches; collected first, without a branch
    for y in range(height):
        row, number = superpixels[y], 0
        for x in range(1, width):
            ends[number] = x
            number += row[x] != row[x - 1]
        ends[number] = width
        first = 0
        for end in ends[: number + 1]:
            corner = corners[row[first]]
            corner[0], corner[1] = min(corner[0], first), min(corner[1], y)
            corner[2], corner[3] = min(corner[2], -end), -y - 1
            sizes[row[first]] += end - first
            first = end
    return corners, sizes
