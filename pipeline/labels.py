"""From boxes to label maps: the estimates of BoxSup, rectangles and GrabCut.

N boxes, P candidates, C categories, H x W pixels, S superpixels. Boxes are half-open
``[x0, y0, x1, y1)``, inside the image; category 0 is background.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numba
import numpy as np

from pipeline.boxes import area, box_mask, iou
from pipeline.categories import IGNORE
from pipeline.proposals.form import Proposals
from pipeline.superpixels import Runs

Candidates = Proposals | Runs  # of an image; stored ones are read as runs in less time
Label = Literal["candidate", "rectangle", "ignore", "background"]
Reason = Literal["chosen", "unfit", "difficult", "crowd", "empty"]


class Choice(NamedTuple):
    """What the label step decided for one box."""

    proposal: int  # index of the candidate; -1: none
    rank: int  # its place among the candidates by cost, 0 is the cheapest
    overlap_cost: float  # in [0, 1]; of the best candidate where none was chosen, NaN for no try
    regression_cost: float  # NaN where the network was not asked
    admissible: int  # candidates whose box fits by `min_box_iou`
    label: Label  # what the box gives the label map: a mask, all of it, 255 in all of it, nothing
    reason: Reason  # chosen; no candidate fits; not one object; no area


def left_out(label: Label, reason: Reason) -> Choice:
    """The choice for a box that is not to get a candidate."""
    return Choice(-1, 0, math.nan, math.nan, 0, label, reason)


def overlap_costs(proposals: Candidates, boxes: np.ndarray) -> np.ndarray:
    """1 - IoU between each box (N, 4) and the tight box of each candidate. Returns (N, P).

    Implements: Dai2015 Eq. 2 (the term of one box and one candidate of its category).
    Reading: IoU is of two boxes, for the annotation is only a box. The paper's 1 / N, the same for
    all candidates of a box, is left out, which keeps the cost in [0, 1].
    """
    return 1 - iou(boxes, proposals.boxes)


def regression_costs(
    proposals: Candidates,
    boxes: np.ndarray,
    categories: np.ndarray,
    log_probabilities: np.ndarray,
    *,
    clip: float,
) -> np.ndarray:
    """What the network thinks of labelling each box by each candidate.

    Implements: Dai2015 Eq. 3 (for one box at a time).
    Reading: the paper sums over all pixels, up to 1e5 of them, beside an overlap cost of at most 1.
    This is the mean of -log P over box and candidate together, with the box's category inside the
    candidate and background in the rest of the box; elsewhere candidates do not differ.

    With u = -log P of the category and v = -log P of background, for a box B and a candidate S

        sum over B and S = sum_S u + sum_B v - sum_{S and B} v,

    so two sums in each superpixel, u everywhere and v inside B, serve all candidates.

    Args:
        boxes: (N, 4).
        categories: (N,) uint8, rows of `log_probabilities` from 1.
        log_probabilities: (C, H, W) float32, natural logarithm; row 0 is background.
        clip: the largest -log P that one pixel counts.

    Returns:
        (N, P) float64 in [0, clip].
    """
    number = len(boxes)
    wanted, column = np.unique(categories, return_inverse=True)
    table = np.zeros((proposals.num_superpixels, len(wanted) + 2 * number))
    _add_losses(proposals.superpixels, log_probabilities, wanted, clip, table)
    outside_all = np.empty(number)  # sum_B v
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        v = -log_probabilities[0, y0:y1, x0:x1]
        np.minimum(v, clip, out=v)
        outside_all[i] = v.ravel().sum(dtype=np.float64)
        _add_in_box(proposals.superpixels, v, x0, y0, table, len(wanted) + i, i - number)
    inside, overlap, shared = np.split(
        proposals.sums(table), [len(wanted), len(wanted) + number], axis=1
    )  # (P, categories), (P, N), (P, N)
    union = area(boxes) + proposals.areas[:, None] - shared  # (P, N)
    return ((inside[:, column] + outside_all - overlap) / union).T


def literal_regression_costs(
    proposals: Candidates, categories: np.ndarray, log_probabilities: np.ndarray, *, clip: float
) -> np.ndarray:
    """The sum over all pixels of the image, as printed, of labelling it by one candidate alone.

    For boxes that do not overlap this ranks candidates as the sum over the whole label map does:
    what other boxes add is the same for all of them. Arguments as for `regression_costs`.

    Returns:
        (N, P) float64 in [0, clip x H x W]: sum v + sum_S (u - v).
    """
    wanted, column = np.unique(categories, return_inverse=True)
    table = np.zeros((proposals.num_superpixels, 1 + len(wanted)))
    rows = np.array([0, *wanted])
    _add_losses(proposals.superpixels, log_probabilities, rows, clip, table)
    inside = proposals.sums(table)  # (P, columns)
    return (table[:, 0].copy().sum() + inside[:, 1:] - inside[:, :1])[:, column].T


@numba.njit(cache=True, nogil=True)
def _add_losses(superpixels, logs, rows, clip, table):
    """Add min(-logs, clip) of each pixel to its superpixel's sum, in reading order.

    Neighbours are mostly of one superpixel, whose sum then stays in a register. Two maps are read
    together, since a sum waits for its last addition. The last of an odd number is its own pair.

    Args:
        logs: (C, H, W) float32. rows: (K,), which of them. table: (S, K or more), a row's sums in
            its column.
    """
    limit = np.float32(clip)
    height, width = superpixels.shape
    for i in range(0, len(rows), 2):
        j = min(i + 1, len(rows) - 1)
        a, b = logs[rows[i]], logs[rows[j]]
        for y in range(height):
            current = superpixels[y, 0]
            of_a, of_b = table[current, i], table[current, j]
            for x in range(width):
                if superpixels[y, x] != current:
                    table[current, i], table[current, j] = of_a, of_b
                    current = superpixels[y, x]
                    of_a, of_b = table[current, i], table[current, j]
                of_a += min(-a[y, x], limit)
                of_b += min(-b[y, x], limit)
            table[current, i], table[current, j] = of_a, of_b


@numba.njit(cache=True, nogil=True)
def _add_in_box(superpixels, values, x0, y0, table, of_values, of_pixels):
    """Add the values (h, w) of a box's pixels, and their number, to two columns of (S, K) sums."""
    height, width = values.shape
    for y in range(height):
        row = superpixels[y0 + y, x0 : x0 + width]
        first, current = 0, row[0]
        total = table[current, of_values]
        for x in range(width):
            if row[x] != current:
                table[current, of_values] = total
                table[current, of_pixels] += x - first
                first, current = x, row[x]
                total = table[current, of_values]
            total += values[y, x]
        table[current, of_values] = total
        table[current, of_pixels] += width - first


def image_costs(
    proposals: Candidates,
    boxes: np.ndarray,
    categories: np.ndarray,
    log_probabilities: np.ndarray | None,
    *,
    clip: float,
    costs: Literal["averaged", "literal"],
) -> tuple[np.ndarray, np.ndarray]:
    """Both costs of every candidate for every box of an image.

    Args:
        log_probabilities: as in `regression_costs`; None asks no network.
        costs: averaged: `regression_costs`; literal: `literal_regression_costs`, P times.

    Returns:
        overlap costs (N, P) in [0, 1], and regression costs (N, P), NaN for None.

    Reading: Eq. 2 divides the overlap by P. For the literal costs the other one is multiplied by P
    instead, which ranks candidates alike and keeps the overlap in [0, 1].
    """
    overlap = overlap_costs(proposals, boxes)
    if log_probabilities is None:
        return overlap, np.full_like(overlap, np.nan)
    if costs == "literal":
        sums = literal_regression_costs(proposals, categories, log_probabilities, clip=clip)
        return overlap, len(proposals) * sums
    return overlap, regression_costs(proposals, boxes, categories, log_probabilities, clip=clip)


def choose(
    overlap_cost: np.ndarray,
    regression_cost: np.ndarray,
    *,
    lam: float,
    top_k: int,
    min_box_iou: float,
    fallback_box_iou: float,
    fallback: Literal["rectangle", "ignore"],
    rng: np.random.Generator,
) -> Choice:
    """Draw one of the `top_k` cheapest candidates for a box, each as likely as the others.

    Implements: Dai2015 Eq. 4, Dai2015 Sec. 4.3 (random sampling).
    Reading: the paper picks the smallest cost, then samples from the k "largest"; both costs are to
    be minimised, so it is the k smallest here.
    Reading: the first label step meets a network whose last layer is new. Its feedback says nothing
    and the caller starts with lam = 0: the overlap alone decides.
    Reading: a young network that says background everywhere finds tiny masks cheap and learns still
    less foreground from them. So only candidates whose box fits by `min_box_iou` compete; where
    fewer than `top_k` do, the `top_k` that fit best. 0 lets all compete, as the paper does.
    Reading: the paper does not say what becomes of a box without a fitting candidate. Under
    `fallback_box_iou`, or without any overlap, it gets its rectangle, or 255 in all of it.

    Args:
        overlap_cost: (P,) in [0, 1].
        regression_cost: (P,); not looked at while lam is 0.
        lam: weight of the regression cost.
        min_box_iou, fallback_box_iou: in [0, 1].
        fallback: what a box without a fitting candidate gives.
    """
    best = float(overlap_cost.min(initial=1))
    # Thresholds are compared as costs: 1 - (1 - 0.6) need not be 0.6.
    admissible = np.flatnonzero((overlap_cost <= 1 - min_box_iou) & (overlap_cost < 1))
    number = len(admissible)
    if best >= 1 or best > 1 - fallback_box_iou:
        return Choice(-1, 0, best, math.nan, number, fallback, "unfit")
    if number < top_k:
        closest = _least(overlap_cost, top_k)
        admissible = closest[overlap_cost[closest] < 1]
    cost = overlap_cost[admissible]
    if lam > 0:
        cost = cost + lam * regression_cost[admissible]
        if np.isnan(cost).any():
            raise ValueError("lambda counts, but no network was asked: regression costs are NaN")
    cheapest = admissible[_least(cost, top_k)]
    rank = int(rng.integers(len(cheapest)))
    chosen = int(cheapest[rank])
    costs = float(overlap_cost[chosen]), float(regression_cost[chosen])
    return Choice(chosen, rank, *costs, number, "candidate", "chosen")


def _least(costs: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` least of costs (P,), rising; of equal ones the first. None is NaN.

    Sorting all takes ten times as long.
    """
    if count < len(costs):
        low = np.flatnonzero(costs <= np.partition(costs, count - 1)[count - 1])
    else:
        low = np.arange(len(costs))
    return low[np.argsort(costs[low], kind="stable")[:count]]


def label_map_of(
    choices: Sequence[Choice], proposals: Candidates, boxes: np.ndarray, categories: np.ndarray
) -> np.ndarray:
    """The label map of an image whose boxes have their choices. Returns (H, W) uint8.

    Implements: Dai2015 Sec. 4.3 (one candidate for each box, all other pixels background).
    """
    label_map = np.zeros(proposals.superpixels.shape, np.uint8)
    for i in painting_order(boxes):
        choice, category = choices[i], categories[i]
        x0, y0, x1, y1 = boxes[i]
        if choice.label == "candidate":
            x0, y0, x1, y1 = proposals.boxes[choice.proposal]
            inside = proposals.mask(choice.proposal)[y0:y1, x0:x1]
            label_map[y0:y1, x0:x1][inside] = category
        elif choice.label != "background":
            label_map[y0:y1, x0:x1] = IGNORE if choice.label == "ignore" else category
    return label_map


def painting_order(boxes: np.ndarray) -> np.ndarray:
    """The places (N,) of boxes (N, 4) in the order in which they are painted.

    Reading: the papers do not say which object wins a pixel that two masks share. The object with
    the smaller box does, as in the public code for box labels of DeepLab's authors; of two equal
    ones the later. A box that is to be ignored takes its turn like the others.
    """
    return np.argsort(-area(np.reshape(boxes, (-1, 4))), kind="stable")


def paint(
    masks: Sequence[np.ndarray],
    boxes: np.ndarray,
    categories: np.ndarray,
    height: int,
    width: int,
) -> np.ndarray:
    """Masks (H, W) bool with their categories, on background. Returns (H, W) uint8."""
    label_map = np.zeros((height, width), np.uint8)
    for i in painting_order(boxes):
        label_map[masks[i]] = categories[i]
    return label_map


def rectangle_labels(
    boxes: np.ndarray, categories: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Every box (N, 4) filled with its category (N,), 255 too. Returns (H, W) uint8.

    Implements: Dai2015 Table 2 (rectangles).
    """
    masks = [box_mask(box, height, width) for box in boxes]
    return paint(masks, boxes, categories, height, width)


def grabcut_mask(
    image: np.ndarray, box: np.ndarray, *, iterations: int, min_area: float
) -> np.ndarray:
    """The object that GrabCut finds in a box. Returns (H, W) bool, never outside the box.

    Implements: Dai2015 Table 2 (GrabCut).
    Reading: the paper gives no settings. The whole image is the context, all outside the box is
    background for good, and a result that fills too little of the box is replaced by the rectangle.

    Args:
        image: (H, W, 3) uint8, RGB.
        box: (4,).
        iterations: rounds of fitting colours and cutting.
        min_area: fraction of the box under which the rectangle is taken.
    """
    height, width = image.shape[:2]
    rectangle = box_mask(box, height, width)
    inside = int(rectangle.sum())
    components = 5  # Gaussians that OpenCV fits to each side; it fails on fewer pixels
    if min(inside, rectangle.size - inside) < components:
        return rectangle
    mask = np.where(rectangle, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    cv2.setRNGSeed(0)  # OpenCV's k-means draws from a generator of the process
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))  # 13 numbers a Gaussian
    unused = (0, 0, width, height)  # the mask, not a rectangle, says where to begin
    cv2.grabCut(image, mask, unused, background, foreground, iterations, cv2.GC_INIT_WITH_MASK)
    found = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)) & rectangle
    return found if found.sum() >= max(min_area * inside, 1) else rectangle
