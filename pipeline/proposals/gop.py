"""Geodesic object proposals (Kraehenbuehl & Koltun 2014): what is near a seed, seen along contours.

H x W pixels, S superpixels, E pairs of neighbours, K seeds, B backgrounds, C candidates before and
P after duplicates are taken out.
"""

import heapq
from typing import NamedTuple

import cv2
import numba
import numpy as np

from pipeline.proposals.edges import Edges
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.grouping import distinct, packed, unpacked
from pipeline.proposals.hierarchy import boundary_hierarchy
from pipeline.proposals.ranking import borders
from pipeline.proposals.scg import check_image
from pipeline.proposals.sizes import enlarged, reduced

POWER = 2.5  # of what a step crosses: one strong contour is farther than many weak ones
SHORTEST = 1e-6  # of a step, so that no two superpixels lie at one place
LEAST_GAP = 1e-9  # between distances that are not equal but for rounding
NESTED = 0.9  # share of the larger one's area above which two level sets of one seed are alike
MAX_PIXELS = 320_000  # a larger image is reduced to so many; 640 x 480 is not


class Graph(NamedTuple):
    """Superpixels and the length of the step to each neighbour, row by row as in a CSR matrix."""

    starts: np.ndarray  # (S + 1,) int64: the neighbours of s are those starts[s]..starts[s + 1]
    neighbours: np.ndarray  # (2 E,) int64
    lengths: np.ndarray  # (2 E,) float64, > 0


def gop(
    image: np.ndarray,
    *,
    edges: Edges,
    min_area: int = 200,
    max_superpixels: int = 300,
    colour: float = 30.0,
    seeds: int = 100,
    levels: int = 12,
    max_overlap: float = 0.85,
    max_candidates: int = 650,
    fill_holes: bool = True,
) -> Proposals:
    """Candidates for any object in an image: all that is nearer to a seed than to a background.

    Args:
        image: (H, W, 3) uint8, RGB, of any size from 1 x 1.
        edges: the strength of an image's contours; asked for once, at most `MAX_PIXELS` large.
        min_area: smaller regions are merged away, pixels of the image that `edges` sees.
        max_superpixels: at most so many superpixels.
        colour: distance in Lab between mean colours that counts as much as a contour of strength
            1; the larger it is, the less colour counts.
        seeds: at most so many superpixels that candidates grow from.
        levels: at most so many candidates for each seed and background.
        max_overlap: Jaccard index from which a later candidate is a duplicate.
        max_candidates: at most so many; published figures are of 650.

    Returns:
        The candidates; the first is the whole image, then come the clearest of each seed and
        background, then the next clearest. All are connected. A higher score is an earlier place
        in the list; no score compares between images.

    Implements: Dai2015 Table 3 (GOP).
    Reading: nothing is learnt. Seeds are far from each other, and a seed is one superpixel, where
    GOP learns both from masks; steps are also as long as colours differ.
    """
    check_image(image)
    small = reduced(image, MAX_PIXELS)
    strength = edges(small)
    hierarchy = boundary_hierarchy(strength, min_area=min_area, max_leaves=max_superpixels)
    superpixels = hierarchy.superpixels
    graph = geodesic_graph(small, superpixels, strength, colour=colour)
    sizes = np.bincount(superpixels.ravel())  # (S,)
    signed = signed_distances(graph, superpixels, seeds)
    found = level_sets(signed, sizes, levels)
    members = np.concatenate([np.ones((1, len(sizes)), bool), found])  # (C, S)
    if fill_holes:
        on_border = sides(superpixels).any(axis=0)
        _add_holes(members, graph.starts, graph.neighbours, on_border)
    superpixels = enlarged(superpixels, *image.shape[:2])
    words = packed(members)
    kept = distinct(words, superpixels, max_overlap=max_overlap, limit=max_candidates)
    return from_membership(superpixels, unpacked(words[kept], len(sizes)))


# --- distances ---------------------------------------------------------------------------------
def geodesic_graph(
    image: np.ndarray, superpixels: np.ndarray, strength: np.ndarray, *, colour: float
) -> Graph:
    """The steps between neighbours: across a contour and from one mean colour to another.

    A step is as long as both together, to the power `POWER`.

    Args:
        image: (H, W, 3) uint8, RGB.
        superpixels: (H, W), ids 0..S-1.
        strength: (H, W), of contours, in [0, 1].
        colour: Lab units that count as much as a contour of strength 1.
    """
    between = borders(superpixels, strength)
    lab = mean_colours(image, superpixels)
    a, b = between.pairs.T
    apart = np.linalg.norm(lab[a] - lab[b], axis=1) / colour
    length = (between.strengths + apart) ** POWER + SHORTEST
    here, there = np.concatenate([a, b]), np.concatenate([b, a])
    order = np.lexsort((there, here))
    starts = np.searchsorted(here[order], np.arange(len(lab) + 1))
    return Graph(starts, there[order], np.concatenate([length, length])[order])


def signed_distances(graph: Graph, superpixels: np.ndarray, seeds: int) -> np.ndarray:
    """Distances (K B, S) from each seed, as they are and less those from each background.

    The first seed is in the middle of the image.
    """
    count = len(graph.starts) - 1
    height, width = superpixels.shape
    middle = int(superpixels[height // 2, width // 2])
    near = from_seeds(graph, middle, min(seeds, count))  # (K, S)
    far = distances(graph, backgrounds(superpixels))
    none = np.zeros((1, count))
    return (near[:, None] - np.concatenate([none, far])).reshape(-1, count)


def mean_colours(image: np.ndarray, superpixels: np.ndarray) -> np.ndarray:
    """Mean Lab colour (S, 3) float64 of each superpixel."""
    lab = cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    ids = superpixels.ravel()
    sums = [np.bincount(ids, lab[:, :, c].ravel()) for c in range(3)]
    return np.stack(sums, axis=1) / np.bincount(ids)[:, None]


def from_seeds(graph: Graph, first: int, count: int) -> np.ndarray:
    """Distances (count, S) from seeds, each the farthest from those before it.

    The seed of a row is where its distance is 0.

    Args:
        first: the superpixel of the first seed.
        count: of seeds, at most S.
    """
    return _from_seeds(*graph, first, count)


def distances(graph: Graph, sources: np.ndarray) -> np.ndarray:
    """Distances (N, S) from the nearest superpixel of each set of sources (N, S) bool."""
    found = np.where(sources, 0.0, np.inf)
    for row in found:
        _shorten(*graph, row)
    return found


def sides(superpixels: np.ndarray) -> np.ndarray:
    """(4, S) bool: superpixels at the top, the right, the bottom and the left of the image."""
    found = np.zeros((4, int(superpixels.max()) + 1), bool)
    ends = (superpixels[0], superpixels[:, -1], superpixels[-1], superpixels[:, 0])
    for row, ids in zip(found, ends, strict=True):
        row[ids] = True
    return found


def backgrounds(superpixels: np.ndarray) -> np.ndarray:
    """(5, S) bool: superpixels at the image's border, and at three sides of it.

    Many objects are cut off at one side.
    """
    at = sides(superpixels)
    three = [np.delete(at, side, axis=0).any(axis=0) for side in range(4)]
    return np.stack([at.any(axis=0), *three])


@numba.njit(cache=True, nogil=True)
def _from_seeds(starts, neighbours, lengths, first, count):
    size = len(starts) - 1
    found = np.full((count, size), np.inf)
    nearest = np.full(size, np.inf)
    seed = first
    for k in range(count):
        found[k, seed] = 0
        _shorten(starts, neighbours, lengths, found[k])
        nearest = np.minimum(nearest, found[k])
        seed = np.argmax(nearest)
    return found


@numba.njit(cache=True, nogil=True)
def _shorten(starts, neighbours, lengths, distance):
    """Dijkstra's algorithm, in place, from all superpixels whose distance (S,) is finite."""
    heap = [(distance[s], s) for s in range(len(distance)) if distance[s] < np.inf]
    heapq.heapify(heap)
    while len(heap) > 0:
        so_far, s = heapq.heappop(heap)
        if so_far > distance[s]:
            continue
        for i in range(starts[s], starts[s + 1]):
            other, there = neighbours[i], so_far + lengths[i]
            if there < distance[other]:
                distance[other] = there
                heapq.heappush(heap, (there, other))


# --- candidates --------------------------------------------------------------------------------
def level_sets(signed: np.ndarray, sizes: np.ndarray, levels: int) -> np.ndarray:
    """The superpixels up to the widest gaps in the distances of each row.

    A level that can move far without meeting a superpixel is the outline of something. Of two
    levels whose sets are alike, that of the wider gap is taken.

    Args:
        signed: (N, S), distances from a seed less those from a background.
        sizes: (S,) pixels.
        levels: at most so many of each row.

    Returns:
        (C, S) bool: the widest gaps of all rows, then the second widest, and so on.
    """
    order = np.argsort(signed, axis=1, kind="stable")  # (N, S)
    gaps = np.diff(np.take_along_axis(signed, order, axis=1), axis=1)  # (N, S - 1)
    areas = np.cumsum(sizes[order], axis=1)
    widest = np.argsort(-gaps, axis=1, kind="stable")
    chosen = _critical(gaps, areas, widest, levels)  # (N, levels)
    place = np.argsort(order, axis=1, kind="stable")  # of each superpixel in its row's order
    turn, row = np.nonzero(chosen.T >= 0)
    return place[row] <= chosen[row, turn][:, None]


@numba.njit(cache=True, nogil=True)
def _critical(gaps, areas, widest, levels):
    """(N, levels): after which place in its order each row is cut, -1 where gaps run out."""
    chosen = np.full((len(gaps), levels), -1, np.int64)
    for n in range(len(gaps)):
        count = 0
        for cut in widest[n]:
            if count == levels or gaps[n, cut] < LEAST_GAP:
                break
            alike = False
            for other in chosen[n, :count]:
                small, large = areas[n, min(cut, other)], areas[n, max(cut, other)]
                alike = alike or small > NESTED * large
            if not alike:
                chosen[n, count] = cut
                count += 1
    return chosen


@numba.njit(cache=True, nogil=True)
def _add_holes(members, starts, neighbours, on_border):
    """Adds to each row of `members` (C, S) what the image's border cannot be reached from."""
    size = members.shape[1]
    queue = np.empty(size, np.int64)
    for row in members:
        outside = on_border & ~row
        count = 0
        for s in range(size):
            if outside[s]:
                queue[count] = s
                count += 1
        while count > 0:
            count -= 1
            s = queue[count]
            for i in range(starts[s], starts[s + 1]):
                other = neighbours[i]
                if not (outside[other] or row[other]):
                    outside[other] = True
                    queue[count] = other
                    count += 1
        row[:] = ~outside
