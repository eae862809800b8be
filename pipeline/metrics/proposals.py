"""How well the first proposals of each image cover its objects.

P proposals of an image, best first; N objects in it, which may overlap; K budgets: numbers of
proposals that may be used; C categories. Crowd regions are no objects and are not passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numba
import numpy as np

RECALL_AT = (0.5, 0.7, 0.85)  # overlaps
GRID = np.linspace(0.5, 0.95, 10)  # COCO's overlaps, to the last bit
SIDES = (32**2, 96**2)  # pixels: small objects up to the first, large ones from the second on
SIZES = ("", "_small", "_medium", "_large")  # "": objects of every size
AUC_TO = 1000  # proposals, where the area under average recall ends


@dataclass(frozen=True)
class ProposalCounts:
    """What is added up over images; its size does not grow with their number."""

    num_images: int
    proposals: np.ndarray  # (K,) int64, used with each budget
    best: np.ndarray  # (K,) float64, sum over objects of the best overlap
    recalled: np.ndarray  # (3, K) int64, objects whose best overlap is at least that of RECALL_AT
    shared: np.ndarray  # (C, K) int64, pixels in both objects and their best proposals
    union: np.ndarray  # (C, K) int64, pixels in either
    objects: np.ndarray  # (4,) int64, of each of SIZES
    matched: np.ndarray  # (4, R) int64, pairs of object and overlap of GRID matched at each rank

    def __add__(self, other: "ProposalCounts") -> "ProposalCounts":
        names = [field.name for field in fields(self)]
        return ProposalCounts(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True)
class ProposalScores:
    """Fractions; NaN where there is no object."""

    jaccard_instance: np.ndarray  # (K,)
    jaccard_class: np.ndarray  # (K,)
    recall: np.ndarray  # (3, K), at RECALL_AT
    average_recall: np.ndarray  # (4, K), of SIZES
    auc: np.ndarray  # (4,), of SIZES
    mean_num: np.ndarray  # (K,) proposals an image


# --- one image ------------------------------------------------------------------------------------
def count_proposals(
    shared: np.ndarray,
    sizes: np.ndarray,
    pixels: np.ndarray,
    category: np.ndarray,
    area: np.ndarray,
    *,
    budgets: Sequence[int],
    num_categories: int,
) -> ProposalCounts:
    """The counts of one image; add those of all images.

    Args:
        shared: (P, N), pixels in both of each proposal and object.
        sizes, pixels: (P,) of each proposal and (N,) of each object; void pixels are in none.
        category: (N,) integers from 0 to C - 1.
        area: (N,) pixels as annotated, which say whether an object is small, medium or large.
        budgets: K, each at least 1.
        num_categories: C.

    Raises:
        ValueError: shapes that do not fit, a category out of range or a budget under 1.

    Reading: where all overlaps of an object are 0, its best proposal is the first one; without
        proposals the union is the object.
    """
    _check(shared, sizes, pixels, category, area, budgets, num_categories)
    num_proposals, num_objects = shared.shape
    union = sizes[:, None] + pixels - shared  # (P, N)
    overlap = np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)
    both, either = np.zeros((2, num_categories, len(budgets)), np.int64)
    best = np.zeros((len(budgets), num_objects))
    columns = np.arange(num_objects)
    for k, budget in enumerate(budgets):
        if num_proposals == 0:
            np.add.at(either[:, k], category, pixels.astype(np.int64))
            continue
        first = overlap[:budget].argmax(axis=0)  # (N,)
        best[k] = overlap[first, columns]
        np.add.at(both[:, k], category, shared[first, columns].astype(np.int64))
        np.add.at(either[:, k], category, union[first, columns].astype(np.int64))
    ranks = max(AUC_TO, *budgets)
    chosen = in_size(area)
    return ProposalCounts(
        num_images=1,
        proposals=np.minimum(np.array(budgets, np.int64), num_proposals),
        best=best.sum(axis=1),
        recalled=np.array([(best >= t).sum(axis=1) for t in RECALL_AT], np.int64),
        shared=both,
        union=either,
        objects=chosen.sum(axis=1),
        matched=_matched(np.ascontiguousarray(overlap[:ranks]), chosen, GRID, ranks),
    )


def in_size(area: np.ndarray) -> np.ndarray:
    """Which objects are of each of SIZES, bounds in both. area (N,) -> (4, N) bool."""
    small, large = SIDES
    medium = (area >= small) & (area <= large)
    return np.array([np.ones(len(area), bool), area <= small, medium, area >= large])


def _check(shared, sizes, pixels, category, area, budgets, num_categories) -> None:
    num_proposals, num_objects = shared.shape
    if sizes.shape != (num_proposals,) or any(
        a.shape != (num_objects,) for a in (pixels, category, area)
    ):
        raise ValueError(
            f"shared {shared.shape} is (P, N), but sizes {sizes.shape}, pixels {pixels.shape}, "
            f"category {category.shape}, area {area.shape}"
        )
    if not all(0 <= number < num_categories for number in category):
        raise ValueError(f"categories are 0 to {num_categories - 1}, not {category.tolist()}")
    if not budgets or min(budgets) < 1:
        raise ValueError(f"budgets are whole numbers from 1 on, not {list(budgets)}")


@numba.njit(cache=True, nogil=True)
def _matched(overlap, chosen, grid, ranks):
    """Matches at each rank, for objects of each size: overlap (P, N), chosen (4, N) -> (4, R).

    Proposals choose in the order of their rank, at each overlap of the grid for itself: the object
    that they overlap most of those still free, of equal ones the last, as pycocotools does.
    """
    num_proposals, num_objects = overlap.shape
    free = np.ones((len(chosen), len(grid), num_objects), np.bool_)
    found = np.zeros((len(chosen), ranks), np.int64)
    near = np.empty(num_objects, np.int64)
    for p in range(num_proposals):
        count = 0
        for n in range(num_objects):
            if overlap[p, n] >= grid[0]:
                near[count] = n
                count += 1
        if count == 0:
            continue
        for s in range(len(chosen)):
            for t in range(len(grid)):
                best, place = grid[t], -1
                for n in near[:count]:
                    if chosen[s, n] and free[s, t, n] and overlap[p, n] >= best:
                        best, place = overlap[p, n], n
                if place >= 0:
                    free[s, t, place] = False
                    found[s, p] += 1
    return found


# --- all images -----------------------------------------------------------------------------------
def proposal_scores(counts: ProposalCounts, budgets: Sequence[int]) -> ProposalScores:
    """The scores of the counts of all images.

    jaccard_instance is the mean over objects of the best overlap, jaccard_class the mean over
    categories with objects of shared / union; recall is the part of objects whose best overlap is
    at least RECALL_AT. Average recall is COCO's: the mean over GRID of the part of objects that are
    matched, each proposal with one object at most.
    """
    curve = recall_curve(counts)
    used = counts.union.any(axis=1)
    parts = _over(counts.shared[used], counts.union[used])
    at = np.array(budgets)
    return ProposalScores(
        jaccard_instance=_over(counts.best, counts.objects[0]),
        jaccard_class=parts.mean(axis=0) if used.any() else np.full(len(budgets), np.nan),
        recall=_over(counts.recalled, counts.objects[0]),
        average_recall=curve[:, at - 1],
        auc=np.array([area_under(line[:AUC_TO]) for line in curve]),
        mean_num=counts.proposals / counts.num_images,
    )


def recall_curve(counts: ProposalCounts) -> np.ndarray:
    """Average recall with 1, 2, ... proposals. Returns (4, R); NaN for a size without objects."""
    return _over(counts.matched.cumsum(axis=1), len(GRID) * counts.objects[:, None])


def area_under(recall: np.ndarray) -> float:
    """The area under average recall against the logarithm of the number of proposals.

    Args:
        recall: (R,), with 1, 2, ..., R proposals; R at least 2.

    Returns:
        The area by trapezia, over that of recall 1 everywhere: in [0, 1].

    Reading: the tables print an AUC and no definition. With 1 to 1000 proposals on a logarithmic
        axis the columns AR@10, AR@100, AR@1000 and AUC of the SharpMask table fit together; with
        10 to 1000, or as the mean of the three, they do not.
    """
    steps = np.log10(np.arange(1, len(recall) + 1))
    return float(np.trapezoid(recall, steps) / steps[-1])


def _over(part: np.ndarray, whole: np.ndarray | np.int64) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
