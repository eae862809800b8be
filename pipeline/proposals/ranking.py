"""The order of candidates: how much each looks like an object, and how little like those before it.

H x W pixels, S superpixels, E pairs of them, P candidates, N objects, R runs, F = 17 features.
"""

import heapq
from dataclasses import dataclass

import higra as hg
import numba
import numpy as np

from pipeline.proposals.forest import Forest, fit, predict
from pipeline.proposals.form import Proposals

FEATURES = 17
SAMPLES = 100  # per image; measured: 30 and 300 are no better, 1,500 are worse
DIVERSE = 2000  # first candidates, which are those that are kept; comparing more takes longer


def ranked(proposals: Proposals, strength: np.ndarray, forest: Forest) -> Proposals:
    """The same candidates, best first.

    Args:
        strength: (H, W) contour strength, from the source that the forest was fitted with.
        forest: fitted with `fit_ranker`.

    Returns:
        Proposals whose score is their place, as methods give them.

    Implements: Dai2015 Sec. 4.1 (region proposals; MCG ranks its candidates).
    Reading: features are of whole candidates, not of the parts they were joined from, so that
    those of any method can be ranked; where MCG subtracts the overlap from the score, the score is
    multiplied by 1 - overlap here: no weight has to be found for each forest.
    """
    return reordered(proposals, rank(proposals, strength, forest))


def rank(proposals: Proposals, strength: np.ndarray, forest: Forest) -> np.ndarray:
    """Indices (P,) of the candidates, best first. Arguments as of `ranked`."""
    if len(proposals) < 2:
        return np.arange(len(proposals))
    around = borders(proposals.superpixels, strength)
    return diverse(proposals, predict(forest, features(proposals, around)), first=DIVERSE)


def reordered(proposals: Proposals, order: np.ndarray) -> Proposals:
    """The candidates that `order` names, in its order, scored by their place."""
    lengths = np.diff(proposals.offsets)[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # Where each member comes from: its candidate's first one, and how far it is behind that.
    source = np.repeat(proposals.offsets[order] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Proposals(
        superpixels=proposals.superpixels,
        members=proposals.members[source],
        offsets=offsets.astype(np.int32),
        scores=(1 - np.arange(len(order)) / max(len(order), 1)).astype(np.float32),
        boxes=proposals.boxes[order],
        areas=proposals.areas[order],
    )


# --- the forest --------------------------------------------------------------------------------
def ranking_samples(
    proposals: Proposals, strength: np.ndarray, overlaps: np.ndarray, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of one image to fit a forest on: SAMPLES at random, and the best for each object.

    More at random would make the forest better at telling them apart on average and worse at
    finding the few that matter.

    Args:
        overlaps: (P, N) Jaccard indices with objects.

    Returns:
        Features (F, n) float32, and targets (n,): the best overlap of each with any object.
    """
    drawn = rng.choice(len(proposals), min(SAMPLES, len(proposals)), replace=False)
    chosen = np.union1d(drawn, overlaps.argmax(axis=0))
    found = features(proposals, borders(proposals.superpixels, strength))
    return found[:, chosen], overlaps[chosen].max(axis=1)


def fit_ranker(rows: np.ndarray, targets: np.ndarray, *, seed: int) -> Forest:
    """A forest that predicts the best overlap with an object, for `ranked`.

    Args:
        rows, targets: of `ranking_samples`, of all images one after another.
    """
    weights = np.ones(len(targets))
    return fit(rows, targets, weights, trees=200, depth=6, rate=0.08, bins=64, share=0.5, seed=seed)


def check_ranker(forest: Forest) -> Forest:
    """The forest itself. Raises ValueError for one that looks at features which are not here."""
    if forest.features.size and int(forest.features.max()) >= FEATURES:
        raise ValueError(f"it looks at feature {forest.features.max()} of {FEATURES}")
    return forest


# --- what it looks at --------------------------------------------------------------------------
@dataclass(frozen=True)
class Borders:
    """What lies between superpixels that touch."""

    pairs: np.ndarray  # (E, 2) int64, superpixels, the lower first
    lengths: np.ndarray  # (E,) float64, steps from a pixel to one beside or below it
    strengths: np.ndarray  # (E,) float64: where the two join, of the mean contours between regions


def borders(superpixels: np.ndarray, strength: np.ndarray) -> Borders:
    """The borders of superpixels (H, W), from the contour strength (H, W) of each pixel.

    A single weak pixel does not open a contour: superpixels are merged across the weakest mean
    contour again and again, and a border is as strong as the merge that ends it.
    """
    ends, values = [], []
    for before, behind in (
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
    ):
        crossing = superpixels[before] != superpixels[behind]
        ends.append(np.stack([superpixels[before][crossing], superpixels[behind][crossing]]))
        values.append((strength[before][crossing] + strength[behind][crossing]) / 2)
    sides = np.sort(np.concatenate(ends, axis=1).astype(np.int64), axis=0)
    keys, place = np.unique((sides[0] << 32) | sides[1], return_inverse=True)
    pairs = np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1)
    lengths = np.bincount(place).astype(np.float64)
    means = np.bincount(place, np.concatenate(values)) / np.maximum(lengths, 1)
    if len(pairs) == 0:
        return Borders(pairs, lengths, means)
    present, places = np.unique(pairs, return_inverse=True)  # an id may have no pixel
    graph = hg.UndirectedGraph(len(present))
    graph.add_edges(*np.ascontiguousarray(places.reshape(-1, 2).T))
    tree, altitudes = hg.binary_partition_tree_average_linkage(graph, means, lengths)
    return Borders(pairs, lengths, np.asarray(hg.saliency(tree, altitudes)))


def features(proposals: Proposals, around: Borders) -> np.ndarray:
    """What the forest looks at.

    Returns:
        (F, P) float32: the weakest border around a candidate and the strongest inside it; the share
        of its largest run of superpixels; its share of the image; the length of its outline, the
        sum of the strengths along it, their mean; outline squared by area, sum by the root of the
        area; the tight box, x0, y0, x1, y1 from 0 to 1; the box's share of the image, the
        candidate's share of the box, and width by width and height; the logarithm of its place in
        the list, from 1. Lengths are in units of the root of the image's pixels.
    """
    height, width = proposals.superpixels.shape
    pixels = float(height * width)
    start, far, length, strength = _both_ways(around, proposals.num_superpixels)
    outline, total, weakest, strongest = _outlines(
        proposals.members, proposals.offsets, start, far, length, strength
    )
    on_border = np.zeros(proposals.num_superpixels)
    for side in (0, -1):
        for line in (proposals.superpixels[side], proposals.superpixels[:, side]):
            on_border += np.bincount(line, minlength=len(on_border))
    whole = outline + proposals.sums(on_border)
    areas = proposals.areas.astype(np.float64)
    x0, y0, x1, y1 = proposals.boxes.T.astype(np.float64)
    across, down = x1 - x0, y1 - y0
    columns = (
        weakest,
        strongest,
        _largest_run(proposals) / areas,
        areas / pixels,
        whole / np.sqrt(pixels),
        total / np.sqrt(pixels),
        total / np.maximum(outline, 1),
        whole**2 / areas,
        total / np.sqrt(areas),
        x0 / width,
        y0 / height,
        x1 / width,
        y1 / height,
        across * down / pixels,
        areas / (across * down),
        across / (across + down),
        np.log1p(np.arange(len(proposals))),
    )
    return np.array(columns, np.float32)


def _both_ways(
    around: Borders, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours by superpixel: those of s, with their borders, are start[s]..start[s + 1] - 1."""
    near = np.concatenate([around.pairs[:, 0], around.pairs[:, 1]])
    far = np.concatenate([around.pairs[:, 1], around.pairs[:, 0]])
    order = np.argsort(near, kind="stable")
    start = np.searchsorted(near[order], np.arange(count + 1))
    length, strength = np.tile(around.lengths, 2)[order], np.tile(around.strengths, 2)[order]
    return start, far[order], length, strength


@numba.njit(cache=True, nogil=True)
def _outlines(members, offsets, start, far, length, strength):
    """Of each candidate (P,): length and strength along its outline, weakest there, strongest
    inside. 1 is the weakest where nothing is around, 0 the strongest where nothing is inside."""
    count = len(offsets) - 1
    outline, total = np.zeros(count), np.zeros(count)
    weakest, strongest = np.ones(count), np.zeros(count)
    owner = np.full(len(start) - 1, -1)
    for p in range(count):
        for i in range(offsets[p], offsets[p + 1]):
            owner[members[i]] = p
        for i in range(offsets[p], offsets[p + 1]):
            s = members[i]
            for e in range(start[s], start[s + 1]):
                if owner[far[e]] == p:
                    strongest[p] = max(strongest[p], strength[e])
                else:
                    outline[p] += length[e]
                    total[p] += length[e] * strength[e]
                    weakest[p] = min(weakest[p], strength[e])
    return outline, total, weakest, strongest


def _largest_run(proposals: Proposals) -> np.ndarray:
    """(P,) pixels of the largest run of consecutive superpixels of each candidate."""
    begins, ends, first, before = runs(proposals)
    return np.maximum.reduceat(before[ends] - before[begins], first[:-1])


def runs(proposals: Proposals) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Candidates as runs of consecutive superpixels.

    Returns:
        begins and ends (R,); first (P + 1,): candidate p's are first[p]..first[p + 1] - 1;
        and (S + 1,) pixels in the superpixels before each. All int64.
    """
    members = proposals.members.astype(np.int64)
    new = np.ones(len(members) + 1, bool)
    new[1:-1] = np.diff(members) != 1
    new[proposals.offsets] = True
    places = np.flatnonzero(new)  # of the first member of each run, and behind the last
    sizes = np.bincount(proposals.superpixels.ravel(), minlength=proposals.num_superpixels)
    begins, ends = members[places[:-1]], members[places[1:] - 1] + 1
    first = np.searchsorted(places, proposals.offsets)
    return begins, ends, first, np.concatenate([[0], np.cumsum(sizes)])


# --- the order ---------------------------------------------------------------------------------
def diverse(proposals: Proposals, scores: np.ndarray, *, first: int) -> np.ndarray:
    """An order in which each next candidate is the best of score (1 - overlap).

    Args:
        scores: (P,), at least 0, of each candidate alone. The overlap is the largest Jaccard index
            with a candidate that stands before.
        first: so many are chosen in this way; the others follow by their score alone.

    Returns:
        Indices (P,); of equal candidates the first stands before.
    """
    scores = np.ascontiguousarray(scores, np.float64)
    areas = proposals.areas.astype(np.int64)
    boxes = proposals.boxes.astype(np.int64)
    chosen = _diverse(scores, areas, boxes, *runs(proposals), min(first, len(scores)))
    left = np.setdiff1d(np.arange(len(scores)), chosen)
    return np.concatenate([chosen, left[np.argsort(-scores[left], kind="stable")]])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _diverse(scores, areas, boxes, begins, ends, starts, before, wanted):
    """The first `wanted` candidates. Overlaps are found when they are needed.

    The value of a candidate can only fall as others are chosen, so an old value is an upper bound:
    the highest is brought up to date until it is not the highest any more, or is up to date and
    therefore the next. Two sets share no more pixels than the smaller has, or both of their boxes.
    """
    chosen = np.empty(wanted, np.int64)
    overlap = np.zeros(len(scores))
    compared = np.zeros(len(scores), np.int64)  # with so many of the chosen
    queue = [(-scores[p], p) for p in range(len(scores))]
    heapq.heapify(queue)
    picked = 0
    while picked < wanted:
        value, p = heapq.heappop(queue)
        while compared[p] < picked:
            k = chosen[compared[p]]
            compared[p] += 1
            low, high = min(areas[p], areas[k]), max(areas[p], areas[k])
            if low / high <= overlap[p]:
                continue
            across = min(boxes[p, 2], boxes[k, 2]) - max(boxes[p, 0], boxes[k, 0])
            down = min(boxes[p, 3], boxes[k, 3]) - max(boxes[p, 1], boxes[k, 1])
            if across <= 0 or down <= 0:
                continue
            most = min(low, across * down)
            if most / (low + high - most) <= overlap[p]:
                continue
            shared = _shared(begins, ends, before, starts[p : p + 2], starts[k : k + 2])
            found = shared / (low + high - shared)
            if found > overlap[p]:
                overlap[p] = found
                value = -scores[p] * (1 - found)
                if len(queue) > 0 and (value, p) > queue[0]:
                    break
        if len(queue) > 0 and (value, p) > queue[0]:
            heapq.heappush(queue, (value, p))
        else:
            chosen[picked] = p
            picked += 1
    return chosen


@numba.njit(cache=True, nogil=True)
def _shared(begins, ends, before, one, other):
    """Pixels in both of two sets, of runs one[0]..one[1] - 1 and other[0]..other[1] - 1."""
    shared = 0
    a, b = one[0], other[0]
    while a < one[1] and b < other[1]:
        low, high = max(begins[a], begins[b]), min(ends[a], ends[b])
        if low < high:
            shared += before[high] - before[low]
        if ends[a] < ends[b]:
            a += 1
        else:
            b += 1
    return shared
