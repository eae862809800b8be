"""Object masks from what two networks say: categories, and boxes of the objects they are of.

C categories, T of them with objects; h x w cells, H x W pixels, N objects found.
"""

from typing import NamedTuple

import numpy as np

from pipeline.instances.pixel_masks import mask_numbers
from pipeline.instances.regions import Regions, distinct, encode_regions, trace_back
from pipeline.instances.votes import Votes, votes_of
from pipeline.params import AnyOverlap, BoxInstances


class Instances(NamedTuple):
    """The objects of an image, best first: see `best_first`."""

    categories: np.ndarray  # (N,) int64
    scores: np.ndarray  # (N,) float64
    support: np.ndarray  # (N,) int64, the number of votes or pixels that the score is the mean of
    boxes: np.ndarray  # (N, 4) int64, half-open and tight around the masks
    rles: list[str]  # COCO's compressed run-lengths of the masks
    votes: np.ndarray  # (N, 4) float32, the box that was voted for
    peaks: np.ndarray  # (N, 2) int64, x and y of the pixel with the best vote


def find_instances(
    probabilities: np.ndarray,
    boxes: np.ndarray,
    things: np.ndarray,
    *,
    size: tuple[int, int],
    stride: int,
    rule: BoxInstances,
) -> Instances:
    """Objects as the modes of the boxes that the pixels of each category vote for.

    Implements: Wu2016 Sec. 2.1 (steps 3 to 6), Fig. 1.
    Reading: cells vote, pixels are traced back. Hypotheses of all n masks of a category meet in
        step 6; of equal confidence the one that more votes found is better, of equals in this too
        the one from the smaller mask. What is equal in the result stands in the order of `things`.

    Args:
        probabilities: (C, h, w) float32. boxes: (T, 4, h, w) float32, x0, y0, x1, y1 in pixels, as
            far outside the image as they like; one that is not finite or has no area is no vote.
        things: (T,) the category of each row of boxes, all different.
        size: H, W. stride: pixels per cell; cell i, j is centred at
            x = stride (j + 1/2), y = stride (i + 1/2), and h, w are H, W over it, rounded up.

    Raises:
        ValueError: arrays that do not fit together, or a rule no box can fulfil.
    """
    things = np.asarray(things, np.int64)
    check_maps(probabilities, things, size, stride)
    _check_boxes(boxes, (len(things), 4, *probabilities.shape[1:]), rule)
    cells = _numbers(probabilities, things, probabilities.shape[1:], 1, rule)  # (T, w, h)
    seen = np.flatnonzero(cells.any(axis=(1, 2)))
    pixels = cells[seen]
    if stride != 1:
        pixels = _numbers(probabilities, things[seen], size, stride, rule)  # (T, W, H)
    found = []
    for t, numbers in zip(seen.tolist(), pixels, strict=True):
        votes = _votes(cells[t].T, probabilities[things[t]], boxes[t], stride, rule)
        found.append(_instances(int(things[t]), votes, numbers, boxes[t], size, stride, rule))
    return join(found)


def find_votes(
    probabilities: np.ndarray,
    boxes: np.ndarray,
    category: int,
    *,
    stride: int,
    rule: BoxInstances,
) -> list[Votes]:
    """The votes and maxima of each of a category's n masks, before any mask is traced back.

    Args: as of `find_instances`, boxes (4, h, w) of this category alone.
    """
    things, grid = np.array([category]), probabilities.shape[1:]
    check_maps(probabilities, things, grid, 1)
    _check_boxes(boxes, (4, *grid), rule)
    cells = _numbers(probabilities, things, grid, 1, rule)
    return _votes(cells[0].T, probabilities[category], boxes, stride, rule)


def join(parts: list[Instances]) -> Instances:
    """The objects of several categories, best first; of equals those of earlier parts."""
    parts = [none(), *parts]
    categories, scores, support, boxes, rles, votes, peaks = zip(*parts, strict=True)
    order = best_first(np.concatenate(scores), np.concatenate(support))
    texts = [rle for part in rles for rle in part]
    return Instances(
        np.concatenate(categories)[order],
        np.concatenate(scores)[order],
        np.concatenate(support)[order],
        np.concatenate(boxes)[order],
        [texts[i] for i in order],
        np.concatenate(votes)[order],
        np.concatenate(peaks)[order],
    )


def best_first(scores: np.ndarray, support: np.ndarray) -> np.ndarray:
    """The order of objects (N,) by falling score, of equal scores by falling support.

    Equal in both they stay as they are.

    Reading: the paper ranks by confidence alone. With true masks every confidence is 1, and average
        precision would hang on the order of the images.
    """
    return np.lexsort((-support, -scores))


def none() -> Instances:
    """No object."""
    return Instances(
        np.zeros(0, np.int64),
        np.zeros(0),
        np.zeros(0, np.int64),
        np.zeros((0, 4), np.int64),
        [],
        np.zeros((0, 4), np.float32),
        np.zeros((0, 2), np.int64),
    )


def _numbers(
    probabilities: np.ndarray,
    things: np.ndarray,
    size: tuple[int, ...],
    stride: int,
    rule: BoxInstances,
) -> np.ndarray:
    return mask_numbers(
        probabilities,
        things,
        size=(size[0], size[1]),
        stride=stride,
        top_masks=rule.top_masks,
        min_probability=rule.min_probability,
    )


def _votes(
    numbers: np.ndarray, scores: np.ndarray, boxes: np.ndarray, stride: int, rule: BoxInstances
) -> list[Votes]:
    """Of the masks (h, w) of a category, `Votes` of each; equal masks are gone through once."""
    found: list[Votes] = []
    before = -1
    for k in range(1, rule.top_masks + 1):
        mask = (numbers > 0) & (numbers <= k)
        area = int(np.count_nonzero(mask))
        if area == before:  # masks hold the ones before
            found.append(found[-1])
        else:
            found.append(votes_of(mask, scores, boxes, stride=stride, overlap=rule.nms_iou))
        before = area
    return found


def _instances(
    category: int,
    votes: list[Votes],
    numbers: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int],
    stride: int,
    rule: BoxInstances,
) -> Instances:
    """The objects of one category."""
    confidences = np.concatenate([part.confidences() for part in votes])
    support = np.concatenate([part.support() for part in votes])
    hypotheses = np.concatenate([part.boxes[part.kept] for part in votes])
    firsts = np.cumsum([0, *(len(part.kept) for part in votes)])
    regions = trace_back(numbers, boxes, hypotheses, firsts, stride=stride, overlap=rule.nms_iou)
    kept = _kept(regions, best_first(confidences, support), rule)
    cells = np.concatenate([part.cells[part.kept] for part in votes])[kept]
    peaks = np.minimum(cells[:, ::-1] * stride + stride // 2, (size[1] - 1, size[0] - 1))
    return Instances(
        np.full(len(kept), category, np.int64),
        confidences[kept],
        support[kept],
        regions.boxes[kept],
        encode_regions(regions, kept, size[0] * size[1]),
        hypotheses[kept],
        peaks,
    )


def _kept(regions: Regions, order: np.ndarray, rule: BoxInstances) -> np.ndarray:
    """Which masks, best first, are large enough and not the same object as a better one: (N,)."""
    order = order[regions.areas[order] >= max(rule.min_pixels, 1)]
    overlap = 0.0 if isinstance(rule.region_nms, AnyOverlap) else rule.region_nms.iou
    return distinct(regions, order, overlap)


def check_maps(
    probabilities: np.ndarray, things: np.ndarray, size: tuple[int, int], stride: int
) -> None:
    """ValueError for maps, categories, a size and a stride that do not fit together."""
    if probabilities.ndim != 3 or 0 in probabilities.shape or probabilities.dtype != np.float32:
        raise ValueError(
            f"probabilities are (C, h, w) float32, not {probabilities.shape} {probabilities.dtype}"
        )
    if things.ndim != 1 or len(np.unique(things)) != len(things):
        raise ValueError(f"things are different categories, not {things.tolist()}")
    if things.size and not 0 <= things.min() <= things.max() < len(probabilities):
        raise ValueError(f"things {things.tolist()} of {len(probabilities)} categories")
    cells = probabilities.shape[1:]
    if stride < 1 or cells != tuple(-(-side // stride) for side in size):
        raise ValueError(f"{cells} cells of {stride} pixels for an image of {tuple(size)}")


def _check_boxes(boxes: np.ndarray, shape: tuple[int, ...], rule: BoxInstances) -> None:
    if not 0 < rule.nms_iou <= 1:
        raise ValueError(f"nms_iou {rule.nms_iou} is no IoU above 0")
    if boxes.shape != shape or boxes.dtype != np.float32:
        raise ValueError(f"boxes are {shape} float32, not {boxes.shape} {boxes.dtype}")
