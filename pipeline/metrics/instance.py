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

# Pixels of a mask, least and most, as COCO has them: what is on a limit is of both classes.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
WRONG, RIGHT, LEFT_OUT = 0, 1, 2  # what a detection is

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
    areas: np.ndarray | None = None  # (D,) pixels of the masks; only the sizes of objects need them
    object_areas: np.ndarray | None = None  # (G,)


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
    if protocol == "sds":
        return _areas(right, pool.num_objects)
    recall = np.cumsum(right, axis=1) / pool.num_objects
    envelope = _envelopes(right)
    return np.array([_eleven_points(*row) for row in zip(recall, envelope, strict=True)])


def _envelopes(right: np.ndarray) -> np.ndarray:
    """(T, D): at each detection the best precision from there on, of detections by falling score.

    Args:
        right: (T, D) bool.
    """
    precision = np.cumsum(right, axis=1) / np.arange(1, right.shape[1] + 1)
    return np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


def _areas(right: np.ndarray, num_objects: int) -> np.ndarray:
    """The areas (T,) under the envelopes of precision over recall."""
    return (_envelopes(right) * right).sum(axis=1) / num_objects  # each hit adds 1 / G of recall


def precision_recall(pool: Pool, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The curve whose area is the average precision of `sds` at a threshold.

    Returns:
        recall (D,) and precision (D,), float64, one point after each detection by falling score:
        recall rises, and precision is the best that is reached with that recall or more. Without
        any object both are empty.

    Raises:
        ValueError: arrays that do not fit together.
    """
    _check(pool)
    if pool.num_objects == 0:
        return np.zeros(0), np.zeros(0)
    right = true_positives(pool, [threshold], "sds")
    return np.cumsum(right[0]) / pool.num_objects, _envelopes(right)[0]


def true_positives(pool: Pool, thresholds: Sequence[float], protocol: Protocol) -> np.ndarray:
    """Which detections are right at each threshold: (T, D) bool, by falling score."""
    every = np.ones(pool.num_objects, np.bool_)
    return _verdicts(pool, every, thresholds, protocol) == RIGHT


def _verdicts(
    pool: Pool, wanted: np.ndarray, thresholds: Sequence[float], protocol: Protocol
) -> np.ndarray:
    """(T, D) int8, by falling score: `RIGHT`, `WRONG`, or `LEFT_OUT` of an unwanted object."""
    first_overlap = np.cumsum(pool.near) - pool.near
    order = falling(pool.scores)
    return _match(
        first_overlap[order],
        pool.first[order],
        pool.near[order],
        pool.overlaps,
        wanted,
        np.array(thresholds, np.float64),
        protocol == "sds",
    )


def falling(scores: np.ndarray) -> np.ndarray:
    """The order of detections by falling score, of equals the earlier first."""
    return np.argsort(-scores, kind="stable")


@numba.njit(nogil=True, cache=True)
def _match(first_overlap, first_object, near, overlaps, wanted, thresholds, sds):
    """(T, D) int8: give the detections, in this order, to objects, to unwanted ones (G,) last."""
    verdicts = np.zeros((thresholds.size, first_overlap.size), np.int8)
    taken = np.zeros((thresholds.size, wanted.size), np.bool_)
    for d in range(first_overlap.size):
        mine = overlaps[first_overlap[d] : first_overlap[d] + near[d]]
        if mine.size == 0:
            continue
        most = mine.max()
        for t in range(thresholds.size):
            threshold = thresholds[t]
            if most < threshold or (sds and most == threshold):
                continue  # nearly all end here
            for verdict in (RIGHT, LEFT_OUT):
                best, overlap = -1, -1.0
                for g in range(mine.size):
                    place = first_object[d] + g
                    if wanted[place] != (verdict == RIGHT) or (sds and taken[t, place]):
                        continue
                    if mine[g] > overlap:
                        best, overlap = place, mine[g]
                if best < 0 or taken[t, best]:
                    continue
                if overlap > threshold or (overlap == threshold and not sds):
                    taken[t, best] = True
                    verdicts[t, d] = verdict
                    break
    return verdicts


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
    scores, first, near, overlaps, num_objects, areas, object_areas = pool
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
    if areas is not None and areas.shape != scores.shape:
        raise ValueError(f"areas {areas.shape} of {scores.shape} detections")
    if object_areas is not None and object_areas.shape != (num_objects,):
        raise ValueError(f"areas {object_areas.shape} of {num_objects} objects")


# --- by the size of objects -----------------------------------------------------------------------
def average_precision_of_size(
    pool: Pool, limits: tuple[float, float], thresholds: Sequence[float]
) -> np.ndarray:
    """The average precision of `sds` at each threshold, for the objects of one class of sizes.

    A detection is given to the best object of the class not yet taken, if it overlaps that enough;
    else, with the same rule, to an object of another class, and then it is neither right nor wrong.
    What is given to none is left out too where its own mask is of another class. So COCO's areas
    are evaluated, but for what makes `sds` (more than the threshold, the area under the envelope).

    Args:
        pool: with areas.
        limits: least and largest area of the class, both in it (see `SIZES`).

    Returns:
        (T,) float64 in [0, 1]; without any object of the class NaN.

    Raises:
        ValueError: no areas, or arrays that do not fit together.
    """
    _check(pool)
    if pool.areas is None or pool.object_areas is None:
        raise ValueError("the areas of the masks are not given")
    of_class, wanted = (
        (limits[0] <= areas) & (areas <= limits[1]) for areas in (pool.areas, pool.object_areas)
    )
    if not wanted.any():
        return np.full(len(thresholds), np.nan)
    verdicts = _verdicts(pool, wanted, thresholds, "sds")
    counts = (verdicts != LEFT_OUT) & ((verdicts == RIGHT) | of_class[falling(pool.scores)])
    found = [
        _areas((row == RIGHT)[None, counted], int(wanted.sum()))[0]
        for row, counted in zip(verdicts, counts, strict=True)
    ]
    return np.array(found)


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
