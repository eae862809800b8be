"""mAP^r: average precision of predicted object masks, one category at a time.

D detections, G objects, T thresholds of overlap (IoU). The two protocols differ in four points:

                                    sds (Hariharan et al.)        mnc11 (Dai et al.'s MNC)
    overlap a match needs           more than the threshold       the threshold or more
    object a detection is given to  best one not yet taken        best one; if taken, it is wrong
    average precision               area under the envelope       mean of 11 points
    category without any object     no value (NaN)                0

COCO's average precision is not here: that is pycocotools itself.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numba
import numpy as np

Protocol = Literal["sds", "mnc11"]
VOLUME = tuple(tenth / 10 for tenth in range(1, 10))  # the thresholds of mAP^r_vol

# As the original writes its 11 points: 0.1 + 0.2 is above 0.3, so a recall of 3/10 is not enough.
RECALLS = np.arange(0.0, 1.1, 0.1)


# N masks: the bounds of their runs (R,) uint32, where in these each mask ends (N,), areas (N,).
Runs = tuple[np.ndarray, np.ndarray, np.ndarray]


class Pool(NamedTuple):
    """The detections of one category in all images, and its objects, image by image."""

    scores: np.ndarray  # (D,) finite; of equal scores the earlier is first
    first: np.ndarray  # (D,) number of the first object in the image of each detection
    near: np.ndarray  # (D,) how many objects are there
    overlaps: np.ndarray  # (sum of near,) float64: IoU of each detection with these
    num_objects: int  # G


def average_precision(pool: Pool, thresholds: Sequence[float], protocol: Protocol) -> np.ndarray:
    """The average precision of one category at each threshold.

    Detections of all images are gone through by falling score; each is right if it can be given to
    an object of its image, else wrong. Where there is no object all are wrong.

    Implements: Wu2016 Sec. 3.2.
    Reading: the protocol is not stated there; `sds` is that of the benchmark it names.

    Returns:
        (T,) float64 in [0, 1]; without any object NaN (sds) or 0 (mnc11).

    Raises:
        ValueError: arrays that do not fit together, or an unknown protocol.
    """
    if protocol not in ("sds", "mnc11"):
        raise ValueError(f"protocol {protocol!r} is neither sds nor mnc11")
    _check(pool)
    if pool.num_objects == 0:
        return np.full(len(thresholds), np.nan if protocol == "sds" else 0.0)
    right = true_positives(pool, thresholds, protocol)
    hits = np.cumsum(right, axis=1)  # (T, D)
    precision = hits / np.arange(1, right.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    if protocol == "sds":
        return (envelope * right).sum(axis=1) / pool.num_objects  # each hit adds 1 / G of recall
    return np.array(
        [_eleven_points(*row) for row in zip(hits / pool.num_objects, envelope, strict=True)]
    )


def true_positives(pool: Pool, thresholds: Sequence[float], protocol: Protocol) -> np.ndarray:
    """Which detections are right at each threshold: (T, D) bool, by falling score."""
    first_overlap = np.cumsum(pool.near) - pool.near
    order = np.argsort(-pool.scores, kind="stable")
    return _match(
        first_overlap[order],
        pool.first[order],
        pool.near[order],
        pool.overlaps,
        pool.num_objects,
        np.array(thresholds, np.float64),
        protocol == "sds",
    )


@numba.njit(nogil=True, cache=True)
def _match(first_overlap, first_object, near, overlaps, num_objects, thresholds, sds):
    """(T, D) bool: give the detections, in this order, to objects."""
    right = np.zeros((thresholds.size, first_overlap.size), np.bool_)
    taken = np.zeros((thresholds.size, num_objects), np.bool_)
    for d in range(first_overlap.size):
        mine = overlaps[first_overlap[d] : first_overlap[d] + near[d]]
        if mine.size == 0:
            continue
        most = mine.max()
        for t in range(thresholds.size):
            threshold = thresholds[t]
            if most < threshold or (sds and most == threshold):
                continue  # nearly all end here
            best, overlap = -1, -1.0
            for g in range(mine.size):
                if mine[g] > overlap and not (sds and taken[t, first_object[d] + g]):
                    best, overlap = g, mine[g]
            if best < 0 or taken[t, first_object[d] + best]:
                continue
            if overlap > threshold or (overlap == threshold and not sds):
                right[t, d] = taken[t, first_object[d] + best] = True
    return right


def mean_over_categories(precisions: np.ndarray) -> np.ndarray:
    """The mean of (C, ...) over the categories that have a value; NaN where none has."""
    valued = ~np.isnan(precisions)
    with np.errstate(invalid="ignore"):
        return np.where(valued, precisions, 0.0).sum(axis=0) / valued.sum(axis=0)


def _eleven_points(recall: np.ndarray, envelope: np.ndarray) -> float:
    """The mean, over the 11 recalls, of the best precision from there on; 0 if not reached."""
    reached = np.searchsorted(recall, RECALLS)  # the first detection with that recall or more
    return float(np.append(envelope, 0.0)[reached].sum() / RECALLS.size)


def _check(pool: Pool) -> None:
    scores, first, near, overlaps, num_objects = pool
    if not scores.shape == first.shape == near.shape == (len(scores),):
        raise ValueError(f"{scores.shape} scores, {first.shape} first objects, {near.shape} counts")
    if overlaps.shape != (near.sum(),):
        raise ValueError(f"overlaps {overlaps.shape} of {near.sum()} pairs")
    if near.min(initial=0) < 0 or first.min(initial=0) < 0:
        raise ValueError("a number below 0")
    if (first + near).max(initial=0) > num_objects:
        raise ValueError(f"an object beyond the {num_objects}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is no finite number")


# --- overlaps -------------------------------------------------------------------------------------
def overlaps_of_runs(
    detections: Runs, objects: Runs, chosen: np.ndarray, first: np.ndarray, near: np.ndarray
) -> np.ndarray:
    """IoU of masks as runs: of each chosen detection with objects of its image that follow.

    The same to the last bit as pycocotools' (whole numbers, divided once); 0 where both are empty.

    Args:
        chosen: (D,) int64, numbers of detections.
        first: (D,) int64, number of the first object for each.
        near: (D,) int64, how many objects each is compared to.

    Returns:
        (sum of near,) float64.
    """
    return _overlaps(*detections, *objects, chosen, first, near)


@numba.njit(nogil=True, cache=True)
def _overlaps(bounds, ends, areas, of_bounds, of_ends, of_areas, chosen, first, near):
    overlaps = np.zeros(near.sum())
    pair = 0
    for place in range(chosen.size):
        d = chosen[place]
        start = ends[d - 1] if d > 0 else 0
        for g in range(first[place], first[place] + near[place]):
            of_start = of_ends[g - 1] if g > 0 else 0
            both = _shared(bounds[start : ends[d]], of_bounds[of_start : of_ends[g]])
            if both > 0:
                overlaps[pair] = both / (areas[d] + of_areas[g] - both)
            pair += 1
    return overlaps


@numba.njit(nogil=True, cache=True)
def _shared(a, b):
    """How many pixels two masks have in common, from the bounds of their runs."""
    both, i, j = 0, 0, 0
    while i < a.size and j < b.size:
        until, of_until = np.int64(a[i + 1]), np.int64(b[j + 1])
        both += max(0, min(until, of_until) - max(np.int64(a[i]), np.int64(b[j])))
        a_ends = until <= of_until
        i += 2 * a_ends
        j += 2 * (not a_ends)
    return both
