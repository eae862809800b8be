"""Votes of the cells of one mask, and the maxima that greedy suppression finds among them.

V votes, K maxima; h x w cells. Boxes are half-open corners x0, y0, x1, y1 in pixels, not clipped.
"""

from typing import NamedTuple

import numpy as np

from pipeline.instances.suppression import areas_of, suppress


class Votes(NamedTuple):
    """The votes of a mask, by falling score, each with the maximum that it belongs to."""

    cells: np.ndarray  # (V, 2) int64: row, column
    scores: np.ndarray  # (V,) float32, above 0
    boxes: np.ndarray  # (V, 4) float32, of positive finite area
    kept: np.ndarray  # (K,) int64, rising: which votes are the maxima
    cluster: np.ndarray  # (V,) int64, 0..K-1: which maximum each was suppressed by, or is

    def confidences(self) -> np.ndarray:
        """The mean score of each cluster, (K,) float64.

        Implements: Wu2016 Sec. 2.1 (step 5: the confidence of a hypothesis).
        """
        sums = np.bincount(self.cluster, weights=self.scores, minlength=len(self.kept))
        return sums / self.support()

    def support(self) -> np.ndarray:
        """How many votes each cluster has, (K,) int64."""
        return np.bincount(self.cluster, minlength=len(self.kept))


def votes_of(
    mask: np.ndarray, scores: np.ndarray, boxes: np.ndarray, *, stride: float, overlap: float
) -> Votes:
    """What the cells of a mask vote for, and the maxima among these boxes.

    Implements: Wu2016 Sec. 2.1 (steps 3 and 4).
    Reading: of votes with equal scores the one nearest to the centre of its own box is taken first,
        each distance in sides of that box, then the first in raster order.

    Args:
        mask: (h, w) bool. scores: (h, w) float32, above 0 in the mask. boxes: (4, h, w) float32;
            one whose area is no positive finite number is no vote.
        stride: pixels per cell. overlap: in (0, 1], the IoU from which on a better box suppresses.
    """
    rows, columns = np.nonzero(mask & (areas_of(boxes) > 0))
    voted = np.ascontiguousarray(boxes[:, rows, columns].T)  # (V, 4)
    weights = scores[rows, columns]
    centres = np.stack([columns, rows], axis=1) * stride + stride / 2
    order = by_score(weights, voted, centres)
    voted = voted[order]
    kept, cluster = suppress(voted, overlap)
    cells = np.stack([rows[order], columns[order]], axis=1)
    return Votes(cells, weights[order], voted, kept, cluster)


def by_score(scores: np.ndarray, boxes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The order in which votes are taken: see the reading of `votes_of`.

    Args:
        scores: (V,) float32, above 0, in raster order. boxes: (V, 4) float32.
        places: (V, 2), the x and y from which each is cast.

    Returns:
        (V,) int64.
    """
    # A positive float32 rises with its bits. With the number behind them one plain sort is enough,
    # several times as fast as sorting numbers by scores.
    falling = (~scores.view(np.uint32)).astype(np.uint64) << np.uint64(32)
    keys = np.sort(falling | np.arange(len(scores), dtype=np.uint64))
    order = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    falling = keys >> np.uint64(32)
    equal = falling[1:] == falling[:-1]
    if equal.any():
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
        some = order[tied]  # of equals in raster order, which sorting keeps
        distance = _off_centre(boxes[some], places[some])
        order[tied] = some[np.lexsort((distance, falling[tied]))]
    return order


def _off_centre(boxes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Squared distance of places (V, 2) from the centres of boxes (V, 4), in sides of these."""
    squared = np.zeros(len(boxes))
    for axis in (0, 1):
        low, high = boxes[:, axis].astype(np.float64), boxes[:, axis + 2].astype(np.float64)
        squared += ((places[:, axis] - (low + high) / 2) / (high - low)) ** 2
    return squared
