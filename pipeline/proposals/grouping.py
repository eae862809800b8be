"""Candidates made by joining neighbouring regions of hierarchies.

S superpixels, M nodes of a tree, L its leaves, C candidates before and P after duplicates are taken
out, B words: a set of superpixels is a row of 64-bit words, superpixel s is bit s % 64 of word
s // 64.
"""

import numba
import numpy as np

from pipeline.proposals.hierarchy import Hierarchy

GRID = 4  # cells of a coarse grid on each side, over which the pixels of a set are counted


def leaves_for(singletons: int) -> int:
    """Leaves of a tree that has max(singletons, 255) nodes; ids are 16 bits."""
    return min(max((singletons + 1) // 2, 128), 1 << 16)


def adjacency(hierarchy: Hierarchy) -> np.ndarray:
    """Which nodes touch without one holding the other. Returns (M, M) bool, symmetric."""
    first, last, parent = hierarchy.first, hierarchy.last, hierarchy.parent
    touches = np.zeros((len(first), int(last[0])), np.int32)  # (M, S)
    leaf_of = _leaf_nodes(hierarchy)
    a, b = hierarchy.neighbours.T
    touches[leaf_of[a], b] = touches[leaf_of[b], a] = 1
    for node in range(len(first) - 1, 0, -1):
        touches[parent[node]] |= touches[node]
    before = np.zeros((touches.shape[0], touches.shape[1] + 1), np.int32)
    np.cumsum(touches, axis=1, out=before[:, 1:])
    return (before[:, last] > before[:, first]) & _disjoint(hierarchy)


def _disjoint(hierarchy: Hierarchy) -> np.ndarray:
    """(M, M) bool: neither node holds the other."""
    first, last = hierarchy.first, hierarchy.last
    return (last[:, None] <= first) | (last <= first[:, None])


def _leaf_nodes(hierarchy: Hierarchy) -> np.ndarray:
    """(S,): the node that is superpixel s alone."""
    leaves = np.flatnonzero(hierarchy.last - hierarchy.first == 1)
    nodes = np.empty(len(leaves), np.int64)
    nodes[hierarchy.first[leaves]] = leaves
    return nodes


def tuples(
    hierarchy: Hierarchy, *, singletons: int, pairs: int, triplets: int, quadruplets: int
) -> np.ndarray:
    """Sets of one to four nodes that hang together, each list from the top down.

    The newest node of a set (the one that the latest split made) decides its place, so a smaller
    budget gives the beginning of the same list. Two children of one node are not joined: their
    union is that node.

    Args:
        singletons, pairs, triplets, quadruplets: at most so many of each.

    Returns:
        (C, 4) int32 nodes, the newest first; -1 where a set has fewer than four.
    """
    touching = adjacency(hierarchy)
    allowed = _disjoint(hierarchy) & (hierarchy.parent[:, None] != hierarchy.parent)
    lists = [np.full((min(singletons, len(touching)), 4), -1, np.int32)]
    lists[0][:, 0] = np.arange(len(lists[0]))
    for size, limit in ((2, pairs), (3, triplets), (4, quadruplets)):
        lists.append(_connected(touching, allowed, size, limit))
    return np.concatenate(lists)


def in_turns(lists: list[np.ndarray]) -> np.ndarray:
    """Order in which lists of sets take turns: the first of each, the second of each, ...

    Args:
        lists: of sets (C, 4) as `tuples` gives them: of each hierarchy those of one node, of two,
            of three and of four take turns too.

    Returns:
        Indices of all sets, one list after another.
    """
    lengths = [np.bincount((nodes >= 0).sum(axis=1), minlength=5)[1:] for nodes in lists]
    places = np.concatenate([np.arange(n) for n in np.concatenate(lengths)])
    return np.argsort(places, kind="stable")


@numba.njit(cache=True, nogil=True)
def _connected(touching, allowed, size, limit):
    """The first `limit` connected sets of `size` nodes, all two of which are `allowed` together.

    Sets grow from their newest node by one neighbour at a time. `choices` holds what may still join
    at each step: what is left of the step before, and the neighbours that only the node that joined
    last has. So every set is met once.
    """
    count = len(touching)
    found = np.full((limit, 4), -1, np.int32)
    rows = 0
    chosen = np.empty(size, np.int64)
    choices = np.empty((size, count), np.int64)
    left = np.zeros(size, np.int64)  # of the choices at each step; taken from the end
    for newest in range(count):
        chosen[0] = newest
        depth = 1
        left[1] = 0
        for node in range(newest - 1, -1, -1):
            if touching[newest, node] and allowed[newest, node]:
                choices[1, left[1]] = node
                left[1] += 1
        while depth > 0 and rows < limit:
            if left[depth] == 0:
                depth -= 1
                continue
            left[depth] -= 1
            node = choices[depth, left[depth]]
            chosen[depth] = node
            if depth + 1 == size:
                for i in range(size):
                    found[rows, i] = chosen[i]
                rows += 1
                continue
            fresh = 0
            for other in range(newest - 1, -1, -1):
                if not (touching[node, other] and allowed[node, other]):
                    continue
                new = True
                for i in range(depth):
                    new = new and allowed[chosen[i], other] and not touching[chosen[i], other]
                if new:
                    choices[depth + 1, fresh] = other
                    fresh += 1
            for i in range(left[depth]):
                if allowed[node, choices[depth, i]]:
                    choices[depth + 1, fresh] = choices[depth, i]
                    fresh += 1
            depth += 1
            left[depth] = fresh
        if rows == limit:
            break
    return found[:rows]


# --- sets of superpixels -----------------------------------------------------------------------
def packed(members: np.ndarray) -> np.ndarray:
    """Sets (C, S) bool as words (C, B) uint64."""
    words = -(-members.shape[1] // 64)
    padded = np.zeros((len(members), words * 64), bool)
    padded[:, : members.shape[1]] = members
    return np.packbits(padded, axis=1, bitorder="little").view("<u8")


def unpacked(words: np.ndarray, count: int) -> np.ndarray:
    """Words (C, B) as sets (C, S) bool of `count` superpixels."""
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=count)
    return bits.view(bool)


def membership(
    hierarchy: Hierarchy, nodes: np.ndarray, within: np.ndarray, *, fill_holes: bool
) -> np.ndarray:
    """The superpixels of sets of disjoint nodes.

    Args:
        nodes: (C, 4) of the hierarchy, -1 for none.
        within: (S,) the hierarchy's own superpixel that each of the finer superpixels lies in.
        fill_holes: add the superpixels from which the image's border cannot be reached.

    Returns:
        (C, B) uint64.
    """
    first, last = hierarchy.first[:, None], hierarchy.last[:, None]
    runs = np.arange(int(hierarchy.last[0]))  # (L,)
    of_leaves = packed((first <= runs) & (runs < last))  # (M, words of L)
    of_nodes = packed((first <= within) & (within < last))  # (M, B)
    found = _unions(nodes, of_nodes)
    if fill_holes:
        leaf_of = _leaf_nodes(hierarchy)
        touching = np.zeros((len(runs), len(runs)), bool)
        a, b = hierarchy.neighbours.T
        touching[a, b] = touching[b, a] = True
        on_border = packed(_on_border(hierarchy.superpixels, len(runs))[None])[0]
        everything = packed(np.ones((1, len(runs)), bool))[0]
        covered = _unions(nodes, of_leaves)
        _add_holes(found, covered, packed(touching), on_border, everything, of_nodes[leaf_of])
    return found


def _on_border(superpixels: np.ndarray, count: int) -> np.ndarray:
    """(count,) bool: superpixels with a pixel on the image's border."""
    on_border = np.zeros(count, bool)
    for side in (superpixels[0], superpixels[-1], superpixels[:, 0], superpixels[:, -1]):
        on_border[side] = True
    return on_border


@numba.njit(cache=True, nogil=True)
def _unions(nodes, of_nodes):
    """(C, B): the words of all nodes of each row together."""
    count, words = len(nodes), of_nodes.shape[1]
    found = np.zeros((count, words), np.uint64)
    for c in range(count):
        for i in range(nodes.shape[1]):
            if nodes[c, i] >= 0:
                for w in range(words):
                    found[c, w] |= of_nodes[nodes[c, i], w]
    return found


@numba.njit(cache=True, nogil=True)
def _add_holes(found, covered, touching, on_border, everything, of_leaves):
    """Adds to each row of `found` the leaves that cannot be reached from the border outside it.

    covered (C, words of L): the leaves of each row; touching (L, words of L); of_leaves (L, B).
    """
    words = covered.shape[1]
    hidden = np.empty(words, np.uint64)  # neither covered nor reached yet
    reached = np.empty(words, np.uint64)  # and not yet left again
    for c in range(len(covered)):
        for w in range(words):
            reached[w] = on_border[w] & ~covered[c, w]
            hidden[w] = everything[w] & ~covered[c, w] & ~reached[w]
        w = 0
        while w < words:
            if reached[w] == 0:
                w += 1
                continue
            leaf = w * 64 + _lowest_bit(reached[w])
            reached[w] &= reached[w] - np.uint64(1)
            some_hidden = np.uint64(0)
            for v in range(words):
                new = touching[leaf, v] & hidden[v]
                if new != 0:
                    reached[v] |= new
                    hidden[v] ^= new
                    w = min(w, v)
                some_hidden |= hidden[v]
            if some_hidden == 0:
                break
        for w in range(words):
            while hidden[w] != 0:
                leaf = w * 64 + _lowest_bit(hidden[w])
                hidden[w] &= hidden[w] - np.uint64(1)
                for v in range(found.shape[1]):
                    found[c, v] |= of_leaves[leaf, v]


@numba.njit(cache=True, nogil=True)
def _lowest_bit(word):
    """The place of the lowest bit that is set, by halves."""
    place = 0
    for step in (32, 16, 8, 4, 2, 1):
        if word & ((np.uint64(1) << np.uint64(step)) - np.uint64(1)) == 0:
            word >>= np.uint64(step)
            place += step
    return place


# --- duplicates --------------------------------------------------------------------------------
def distinct(
    words: np.ndarray, superpixels: np.ndarray, *, max_overlap: float, limit: int
) -> np.ndarray:
    """The first `limit` candidates that are no duplicates of an earlier one that was kept.

    Args:
        words: (C, B) uint64.
        superpixels: (H, W) ids 0..S-1.
        max_overlap: Jaccard index from which a candidate is a duplicate.

    Returns:
        indices (P,), rising; empty candidates are left out.
    """
    bytes_ = words.view(np.uint8)  # (C, 8 B)
    count = bytes_.shape[1] * 8
    height, width = superpixels.shape
    cell = (np.arange(height) * GRID // height)[:, None] * GRID + np.arange(width) * GRID // width
    keys = superpixels.astype(np.int64) * GRID**2 + cell
    counts = np.bincount(keys.ravel(), minlength=count * GRID**2)
    counts = counts.reshape(count, GRID**2).astype(np.int32)
    areas = _byte_sums(counts.sum(axis=1, keepdims=True, dtype=np.int32))[:, :, 0]
    cells = _sums(bytes_, _byte_sums(counts))
    return _distinct(words, cells, np.ascontiguousarray(areas), max_overlap, limit)


def _byte_sums(counts: np.ndarray) -> np.ndarray:
    """Sums (S / 8, 256, K) of counts (S, K) over the superpixels that each byte's value stands for.

    With it a set is summed eight superpixels at a time.
    """
    eights = counts.reshape(-1, 8, counts.shape[1])
    sums = np.zeros((len(eights), 256, counts.shape[1]), counts.dtype)
    for bit in range(8):
        size = 1 << bit
        sums[:, size : 2 * size] = sums[:, :size] + eights[:, bit, None]
    return sums


@numba.njit(cache=True, nogil=True)
def _sums(bytes_, byte_sums):
    """(C, K) sums of each set."""
    found = np.zeros((len(bytes_), byte_sums.shape[2]), byte_sums.dtype)
    for c in range(len(bytes_)):
        for i in range(bytes_.shape[1]):
            value = bytes_[c, i]
            if value != 0:
                for k in range(byte_sums.shape[2]):
                    found[c, k] += byte_sums[i, value, k]
    return found


@numba.njit(cache=True, nogil=True)
def _distinct(words, cells, areas, max_overlap, limit):
    """Two sets that differ in d of a + b pixels overlap by (a + b - d) / (a + b + d).

    The smaller of two duplicates has at least `max_overlap` times the larger one's area, so kept
    ones are found by the logarithm of their area. The differences of the counts in the grid's cells
    are a lower bound of d, and cheap.
    """
    sizes = np.zeros(len(cells), np.int64)
    for c in range(len(cells)):
        sizes[c] = cells[c].sum()
    width = max(-np.log(max(max_overlap, 1e-9)), 1e-3) / 4
    slots = int(np.log(max(sizes.max(), 1)) / width) + 1 if len(sizes) else 0
    newest = np.full(slots, -1, np.int64)  # the last one kept in each slot
    previous = np.full(len(sizes), -1, np.int64)  # the one kept before it in the same slot
    kept = np.empty(min(limit, len(sizes)), np.int64)
    count = 0
    for c in range(len(sizes)):
        if count == limit:
            break
        if sizes[c] == 0:
            continue
        slot = int(np.log(sizes[c]) / width)
        duplicate = False
        for near in range(max(slot - 5, 0), min(slot + 6, slots)):
            k = newest[near]
            while k >= 0 and not duplicate:
                most = sizes[c] + sizes[k]
                differ = 0
                for g in range(cells.shape[1]):
                    differ += abs(cells[c, g] - cells[k, g])
                if most - differ >= max_overlap * (most + differ):
                    differ = _difference(words[c], words[k], areas, max_overlap, most)
                    duplicate = most - differ >= max_overlap * (most + differ)
                k = previous[k]
        if not duplicate:
            previous[c] = newest[slot]
            newest[slot] = c
            kept[count] = c
            count += 1
    return kept[:count]


@numba.njit(cache=True, nogil=True)
def _difference(one, other, areas, max_overlap, most):
    """Pixels in one of two sets but not both; less where they are too many already."""
    differ = 0
    for w in range(len(one)):
        word = one[w] ^ other[w]
        i = w * 8
        while word != 0:
            differ += areas[i, word & np.uint64(255)]
            word >>= np.uint64(8)
            i += 1
        if most - differ < max_overlap * (most + differ):
            break
    return differ
