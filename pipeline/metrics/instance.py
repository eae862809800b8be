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


class ImageOverlaps(NamedTuple):
    """What one image has of one category: (D, G), either of which may be 0."""

    scores: np.ndarray  # (D,) finite
    places: np.ndarray  # (D,) whole numbers: of equal scores the lower place is first
    overlaps: np.ndarray  # (D, G) float64, IoU of each detection with each object


def average_precision(
    images: Sequence[ImageOverlaps], thresholds: Sequence[float], protocol: Protocol
) -> np.ndarray:
    """The average precision of one category at each threshold.

    Detections of all images are gone through by falling score; each is right if it can be given to
    an object of its image, else wrong. Where there is no object all are wrong.

    Implements: Wu2016 Sec. 3.2.
    Reading: the protocol is not stated there; `sds` is that of the benchmark it names.

    Args:
        images: those that have a detection or an object of the category; others change nothing.

    Returns:
        (T,) float64 in [0, 1]; without any object NaN (sds) or 0 (mnc11).

    Raises:
        ValueError: arrays that do not fit together, or an unknown protocol.
    """
    if protocol not in ("sds", "mnc11"):
        raise ValueError(f"protocol {protocol!r} is neither sds nor mnc11")
    _check(images)
    num_objects = sum(image.overlaps.shape[1] for image in images)
    if num_objects == 0:
        return np.full(len(thresholds), np.nan if protocol == "sds" else 0.0)
    right = true_positives(images, thresholds, protocol)
    hits = np.cumsum(right, axis=1)  # (T, D)
    precision = hits / np.arange(1, right.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    if protocol == "sds":
        return (envelope * right).sum(axis=1) / num_objects  # each hit adds 1 / G of recall
    return np.array(
        [_eleven_points(*row) for row in zip(hits / num_objects, envelope, strict=True)]
    )


def true_positives(
    images: Sequence[ImageOverlaps], thresholds: Sequence[float], protocol: Protocol
) -> np.ndarray:
    """Which detections are right at each threshold: (T, D) bool, by falling score.

    Args:
        images: of one category, D detections together.
    """
    if not images:
        return np.zeros((len(thresholds), 0), np.bool_)
    found = np.array([image.overlaps.shape for image in images], np.int64)  # (images, 2): D, G
    scores = np.concatenate([image.scores for image in images])
    places = np.concatenate([image.places for image in images])
    overlaps = np.concatenate([image.overlaps.ravel() for image in images]).astype(np.float64)
    near = np.repeat(found[:, 1], found[:, 0])  # objects in the image of each detection
    first_overlap = np.cumsum(near) - near
    first_object = np.repeat(np.cumsum(found[:, 1]) - found[:, 1], found[:, 0])
    order = np.lexsort((places, -scores))
    return _match(
        first_overlap[order],
        first_object[order],
        near[order],
        overlaps,
        int(found[:, 1].sum()),
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


def _check(images: Sequence[ImageOverlaps]) -> None:
    for scores, places, overlaps in images:
        if overlaps.ndim != 2 or not len(scores) == len(places) == len(overlaps):
            raise ValueError(
                f"{len(scores)} scores, {len(places)} places and overlaps {overlaps.shape}: "
                "want (D,), (D,) and (D, G)"
            )
        if not np.isfinite(scores).all():
            raise ValueError("a score is no finite number")
