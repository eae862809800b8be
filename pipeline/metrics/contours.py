"""Contours against the contours that several people drew (Martin et al. 2004).

H x W pixels, K people, T thresholds.
"""

import numba
import numpy as np
from skimage.morphology import thin

TOLERANCE = 0.0075  # of the image's diagonal: the benchmark's


def count_matches(
    strength: np.ndarray,
    boundaries: np.ndarray,
    thresholds: np.ndarray,
    *,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """Pixels of thinned contours that have a partner, for one image.

    At each threshold the contours are matched one to one with those of each person, as many as can
    be, no partner further away than the tolerance. A pixel of ours counts as right if it has a
    partner with anybody.

    Args:
        strength: (H, W) float, suppressed to thin contours (`edges.thin_contours`).
        boundaries: (K, H, W) bool.
        thresholds: (T,) float; a contour is where the strength is at least so high, and above 0.
        tolerance: largest distance of partners, as a fraction of the image's diagonal.

    Returns:
        (T, 4) int64: drawn pixels with a partner, drawn pixels, found pixels with a partner, found
        pixels; the drawn ones summed over the people.

    Reading: the benchmark takes the matching of least total distance among outliers; we take any
    of the most pairs, which the numbers here are made of.
    """
    reach = tolerance * float(np.hypot(*strength.shape))
    counts = np.zeros((len(thresholds), 4), np.int64)
    for row, threshold in zip(counts, thresholds, strict=True):
        found = thin((strength >= threshold) & (strength > 0))
        right = np.zeros(int(found.sum()), bool)
        for drawn in boundaries:
            partner = _partners(found, drawn, reach)
            right |= partner >= 0
            row[0] += np.count_nonzero(partner >= 0)
            row[1] += np.count_nonzero(drawn)
        row[2:] = right.sum(), right.size
    return counts


def f_measures(counts: np.ndarray) -> np.ndarray:
    """(T,) harmonic mean of precision and recall, 0 where nothing is right.

    Args:
        counts: (T, 4), of `count_matches`, summed over images.
    """
    recall = counts[:, 0] / np.maximum(counts[:, 1], 1)
    precision = counts[:, 2] / np.maximum(counts[:, 3], 1)
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)


def _partners(found: np.ndarray, drawn: np.ndarray, reach: float) -> np.ndarray:
    """For each pixel of `found`, row by row, the number of its partner in `drawn`, or -1."""
    number = np.full(drawn.shape, -1)
    number[drawn] = np.arange(np.count_nonzero(drawn))
    margin = int(reach)
    number = np.pad(number, margin, constant_values=-1)
    y, x = np.nonzero(found)
    down, right = np.mgrid[-margin : margin + 1, -margin : margin + 1]
    near = down**2 + right**2 <= reach**2
    order = np.argsort(down[near] ** 2 + right[near] ** 2, kind="stable")  # the nearest first
    down, right = down[near][order], right[near][order]
    partners = number[y[:, None] + margin + down, x[:, None] + margin + right]  # (found, places)
    close = partners >= 0
    ends = np.concatenate([[0], np.cumsum(close.sum(axis=1))])
    return _matching(ends, partners[close], int(np.count_nonzero(drawn)))


@numba.njit(cache=True, nogil=True)
def _matching(ends, partners, columns):
    """As many one-to-one pairs as there can be: the column of each row, or -1.

    Row r may go with the columns partners[ends[r] : ends[r + 1]]. Each row first takes the first
    that is free. For each row left, breadth first, a path is sought along which partners can be
    passed on to a free column. What an unsuccessful search has seen can be of no use to a later
    one, so it stays marked. (SciPy's matching takes minutes for some of these graphs.)
    """
    rows = len(ends) - 1
    column_of = np.full(rows, -1, np.int64)
    row_of = np.full(columns, -1, np.int64)
    for row in range(rows):
        for column in partners[ends[row] : ends[row + 1]]:
            if row_of[column] < 0:
                row_of[column], column_of[row] = row, column
                break
    came_from = np.full(columns, -1, np.int64)  # the row that offers to take a column; -1: unseen
    queue = np.empty(rows, np.int64)
    seen = np.empty(columns, np.int64)
    for start in range(rows):
        if column_of[start] >= 0:
            continue
        queue[0], head, tail, met, free = start, 0, 1, 0, -1
        while head < tail and free < 0:
            row = queue[head]
            head += 1
            for column in partners[ends[row] : ends[row + 1]]:
                if came_from[column] < 0:
                    came_from[column] = row
                    seen[met] = column
                    met += 1
                    if row_of[column] < 0:
                        free = column
                        break
                    queue[tail] = row_of[column]
                    tail += 1
        if free >= 0:
            column = free
            while column >= 0:
                row = came_from[column]
                row_of[column], column, column_of[row] = row, column_of[row], column
            came_from[seen[:met]] = -1
    return column_of
