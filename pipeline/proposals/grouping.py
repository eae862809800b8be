"""Candidates made by joining neighbouring regions of a hierarchy.

S superpixels, M nodes of the tree, C candidates before and P after duplicates are taken out.
"""

import numba
import numpy as np

from pipeline.proposals.hierarchy import Hierarchy


def adjacency(hierarchy: Hierarchy) -> np.ndarray:
    """Which nodes touch without one holding the other. Returns (M, M) bool, symmetric."""
    first, last, parent = hierarchy.first, hierarchy.last, hierarchy.parent
    touches = np.zeros((len(first), int(last[0])), np.int32)  # (M, S)
    leaf_of = np.empty(int(last[0]), np.int64)
    leaves = np.flatnonzero(last - first == 1)
    leaf_of[first[leaves]] = leaves
    a, b = hierarchy.neighbours.T
    touches[leaf_of[a], b] = touches[leaf_of[b], a] = 1
    for node in range(len(first) - 1, 0, -1):
        touches[parent[node]] |= touches[node]
    before = np.zeros((touches.shape[0], touches.shape[1] + 1), np.int32)
    np.cumsum(touches, axis=1, out=before[:, 1:])
    disjoint = (last[:, None] <= first) | (last <= first[:, None])
    return (before[:, last] > before[:, first]) & disjoint


def tuples(hierarchy: Hierarchy, *, singletons: int, pairs: int, triplets: int) -> np.ndarray:
    """Single nodes, pairs and triplets of nodes that hang together, each list from the top down.

    The newest node of a tuple (the one that the latest split made) decides its place, so a smaller
    budget gives the beginning of the same list. Two children of one node are not joined: their
    union is that node.

    Args:
        singletons, pairs, triplets: at most so many of each.

    Returns:
        (C, 3) int32 nodes; -1 where a tuple has fewer than three.
    """
    touching = adjacency(hierarchy)
    siblings = hierarchy.parent[:, None] == hierarchy.parent
    single = np.full((min(singletons, len(touching)), 3), -1, np.int32)
    single[:, 0] = np.arange(len(single))
    newer, older = np.nonzero(np.tril(touching & ~siblings))
    double = np.stack([newer, older, np.full_like(newer, -1)], axis=1)[:pairs].astype(np.int32)
    triple = _triplets(touching, siblings, hierarchy.first, hierarchy.last, triplets)
    return np.concatenate([single, double, triple])


@numba.njit(cache=True)
def _triplets(touching, siblings, first, last, limit):
    """The first `limit` triplets (newest, z, y), newest first, z over y. Returns (T, 3) int32."""
    found = np.empty((limit, 3), np.int32)
    count = 0
    for x in range(len(first)):
        for z in range(x):
            if last[x] > first[z] and last[z] > first[x]:
                continue  # nested
            if siblings[x, z]:
                continue
            for y in range(z):
                links = int(touching[x, z]) + int(touching[x, y]) + int(touching[z, y])
                if links < 2 or siblings[x, y] or siblings[z, y]:
                    continue
                if last[x] > first[y] and last[y] > first[x]:
                    continue
                if last[z] > first[y] and last[y] > first[z]:
                    continue
                if count == limit:
                    return found
                found[count, 0], found[count, 1], found[count, 2] = x, z, y
                count += 1
    return found[:count]


def membership(hierarchy: Hierarchy, nodes: np.ndarray) -> np.ndarray:
    """The superpixels of tuples of disjoint nodes (C, 3), -1 for none. Returns (C, S) bool."""
    steps = np.zeros((len(nodes), int(hierarchy.last[0]) + 1), np.int8)
    for column in nodes.T:
        rows = np.flatnonzero(column >= 0)
        steps[rows, hierarchy.first[column[rows]]] += 1
        steps[rows, hierarchy.last[column[rows]]] -= 1
    return np.cumsum(steps[:, :-1], axis=1, dtype=np.int8) > 0


def fill_holes(members: np.ndarray, neighbours: np.ndarray, on_border: np.ndarray) -> np.ndarray:
    """Candidates with the superpixels added from which the image's border cannot be reached.

    Args:
        members: (C, S) bool.
        neighbours: (E, 2) pairs of superpixels that touch.
        on_border: (S,) bool, superpixels with a pixel on the image's border.
    """
    both = np.concatenate([neighbours, neighbours[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    starts = np.searchsorted(both[:, 0], np.arange(members.shape[1] + 1))
    return ~_outside(members, starts, both[:, 1], on_border)


@numba.njit(cache=True)
def _outside(members, starts, targets, on_border):
    count, size = members.shape
    outside = np.zeros((count, size), np.bool_)
    stack = np.empty(size, np.int64)
    for c in range(count):
        height = 0
        for s in range(size):
            if on_border[s] and not members[c, s]:
                outside[c, s] = True
                stack[height] = s
                height += 1
        while height > 0:
            height -= 1
            s = stack[height]
            for t in targets[starts[s] : starts[s + 1]]:
                if not members[c, t] and not outside[c, t]:
                    outside[c, t] = True
                    stack[height] = t
                    height += 1
    return outside


def distinct(
    members: np.ndarray, areas: np.ndarray, *, max_overlap: float, limit: int
) -> np.ndarray:
    """The first `limit` candidates that are no duplicates of an earlier one that was kept.

    Args:
        members: (C, S) bool.
        areas: (S,) pixels of each superpixel.
        max_overlap: Jaccard index from which a candidate is a duplicate.

    Returns:
        indices (P,), rising.
    """
    edges = np.diff(np.pad(members, ((0, 0), (1, 1))).astype(np.int8), axis=1)  # (C, S + 1)
    row, begins = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    offsets = np.searchsorted(row, np.arange(len(members) + 1))
    below = np.concatenate([[0], np.cumsum(areas)])  # pixels of all superpixels before one
    sizes = members @ areas
    return _distinct(below[begins], below[ends], offsets, sizes, max_overlap, limit)


@numba.njit(cache=True)
def _distinct(begins, ends, offsets, sizes, max_overlap, limit):
    """Candidates as runs [begin, end) on a line on which each superpixel is as long as its area.

    Two sets can only overlap by J if the smaller has J times the larger's size, so kept ones are
    found by the logarithm of their size: a slot and its two neighbours hold all that matter.
    """
    width = max(-np.log(max(max_overlap, 1e-9)), 1e-3)
    slots = int(np.log(max(sizes.max(), 1)) / width) + 3 if len(sizes) else 0
    newest = np.full(slots, -1, np.int64)  # the last one kept in each slot
    previous = np.full(len(sizes), -1, np.int64)  # the one kept before it in the same slot
    kept = np.empty(min(limit, len(sizes)), np.int64)
    count = 0
    for c in range(len(sizes)):
        if count == limit:
            break
        if sizes[c] == 0:
            continue
        slot = int(np.log(sizes[c]) / width) + 1
        duplicate = False
        for near in (slot, slot - 1, slot + 1):
            k = newest[near]
            while k >= 0 and not duplicate:
                shared = 0
                i, j = offsets[c], offsets[k]
                while i < offsets[c + 1] and j < offsets[k + 1]:
                    shared += max(0, min(ends[i], ends[j]) - max(begins[i], begins[j]))
                    if ends[i] < ends[j]:
                        i += 1
                    else:
                        j += 1
                duplicate = shared >= max_overlap * (sizes[c] + sizes[k] - shared)
                k = previous[k]
        if not duplicate:
            previous[c] = newest[slot]
            newest[slot] = c
            kept[count] = c
            count += 1
    return kept[:count]
