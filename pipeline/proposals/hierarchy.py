"""One image, cut into regions and grouped into a tree by the strength of its contours.

H x W pixels, R regions, S superpixels, M nodes of a tree, E pairs of neighbours.
"""

from dataclasses import dataclass

import higra as hg
import numba
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True)
class Tree:
    """All regions of an image and the order in which they join, two at a time.

    Nodes 0..R-1 are the regions; every other node joins two that have smaller numbers, so the last
    one is the whole image.
    """

    regions: np.ndarray  # (H, W) int32, ids 0..R-1
    parents: np.ndarray  # (2 R - 1,) int64; the root's is itself
    altitudes: np.ndarray  # (2 R - 1,) float64, never falling: contour strength where a node joins


@dataclass(frozen=True)
class Hierarchy:
    """A binary tree of regions whose superpixels are numbered along the tree.

    Every node is therefore a run of consecutive superpixels. Nodes stand in the order in which
    they appear when the image is split from the top: node 0 is the whole image, and the splits,
    strongest contour first, give nodes 1 and 2, 3 and 4, ...
    """

    superpixels: np.ndarray  # (H, W) uint16, ids 0..S-1
    first: np.ndarray  # (M,) int32: node n holds superpixels first[n] .. last[n] - 1
    last: np.ndarray  # (M,) int32
    parent: np.ndarray  # (M,) int32, -1 for the root
    neighbours: np.ndarray  # (E, 2) int32, pairs of superpixels that touch


def boundary_hierarchy(strength: np.ndarray, *, min_area: int, max_leaves: int) -> Hierarchy:
    """The top of `boundary_tree`, of at most `max_leaves` (up to 65,536) leaves."""
    return top(boundary_tree(strength, min_area=min_area), max_leaves=max_leaves)


def boundary_tree(strength: np.ndarray, *, min_area: float) -> Tree:
    """Watershed regions, merged two by two across the weakest mean contour between them.

    Args:
        strength: (H, W) float, contour strength of each pixel.
        min_area: pixels; a smaller region first joins its neighbour across its weakest contour.
    """
    strength = np.ascontiguousarray(strength, np.float32)
    regions, count = _watershed(strength)
    pairs, lengths, sums = _borders(regions, strength)
    sizes = np.bincount(regions.ravel(), minlength=count)
    absorbed, (pairs, lengths, sums) = _absorb_small(pairs, lengths, sums, sizes, min_area)
    regions = absorbed[regions]
    return Tree(regions, *_average_linkage(int(absorbed.max()) + 1, pairs, lengths, sums))


def resampled(tree: Tree, height: int, width: int) -> Tree:
    """The same tree over another grid: each pixel takes the region of the nearest one.

    Regions that get no pixel are left out; two regions join where they did before.
    """
    old_height, old_width = tree.regions.shape
    rows = ((np.arange(height) + 0.5) * old_height / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * old_width / width).astype(np.int64)
    regions = tree.regions[rows[:, None], columns]
    kept = np.flatnonzero(np.bincount(regions.ravel()))
    place = np.zeros(len(tree.parents), np.int32)
    place[kept] = np.arange(len(kept))
    regions = place[regions]
    pairs = _borders(regions, np.zeros((height, width), np.float32))[0]
    altitudes = _joined_at(tree, kept[pairs])
    return Tree(regions, *_by_altitude(len(kept), pairs, altitudes))


def combined(trees: list[Tree], *, cut: float) -> Tree:
    """One tree over the regions of the finest, by the mean of the contours of all.

    A coarser tree is carried to the next finer one's regions by majority, step by step, so that
    its contours come to lie where the finer scale has them.

    Args:
        trees: of one image size, the coarsest first.
        cut: regions of a tree that join below this strength are one when a coarser tree is
            carried to them.
    """
    # leaves[i][r]: the region of tree i that region r of the present grid lies in
    grid, leaves = trees[0].regions, [np.arange(int(trees[0].regions.max()) + 1)]
    for tree in trees[1:]:
        node_of, finer = _cut(tree, cut)
        nearest = _majority(finer, grid)
        leaves = [leaf[nearest] for leaf in leaves] + [node_of]
        grid = finer
    pairs, lengths, _ = _borders(grid, np.zeros(grid.shape, np.float32))
    means = np.zeros(len(pairs))
    for tree, leaf in zip(trees, leaves, strict=True):
        means += _joined_at(tree, leaf[pairs]) / len(trees)
    return Tree(grid, *_average_linkage(int(grid.max()) + 1, pairs, lengths, means * lengths))


def top(tree: Tree, *, max_leaves: int) -> Hierarchy:
    """The tree cut at its strongest splits, so that it has at most so many leaves."""
    superpixel_of, first, last, parent = _split_from_top(tree.parents, max_leaves)
    superpixels = superpixel_of[tree.regions].astype(np.uint16)
    pairs = _borders(superpixels.astype(np.int32), np.zeros(superpixels.shape, np.float32))[0]
    return Hierarchy(superpixels, first, last, parent, pairs.astype(np.int32))


def _split_from_top(
    parents: np.ndarray, max_leaves: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The top of a binary tree in which every parent has a larger number than its children.

    Returns:
        superpixel (R,) of each leaf of the full tree; first (M,), last (M,) and parent (M,) as in
        `Hierarchy`.
    """
    root = len(parents) - 1
    leaves = (root + 2) // 2
    children = np.argsort(parents[:root], kind="stable").reshape(-1, 2)  # row i: of leaves + i
    split = np.arange(root, root - min(leaves, max_leaves) + 1, -1)  # strongest first
    nodes = np.concatenate([[root], children[split - leaves].ravel()])  # (M,)
    place = np.full(root + 1, -1)  # of a node of the full tree among the M, -1: cut off
    place[nodes] = np.arange(len(nodes))
    parent = place[parents[nodes]].astype(np.int32)
    parent[0] = -1

    size = np.ones(len(nodes), np.int32)  # superpixels in each node
    size[place[split]] = 0
    for node in range(len(nodes) - 1, 0, -1):
        size[parent[node]] += size[node]
    first = np.zeros(len(nodes), np.int32)
    for node in range(1, len(nodes), 2):  # a node and its sibling stand side by side
        first[node] = first[parent[node]]
        first[node + 1] = first[node] + size[node]

    for node in range(root - 1, -1, -1):  # what is cut off belongs to its nearest kept ancestor
        if place[node] < 0:
            place[node] = place[parents[node]]
    return first[place[:leaves]], first, first + size, parent


# --- from neighbours to trees ------------------------------------------------------------------
def _average_linkage(
    count: int, pairs: np.ndarray, lengths: np.ndarray, sums: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Parents and altitudes of merging across the weakest mean contour, again and again."""
    if count == 1:
        return np.zeros(1, np.int64), np.zeros(1)
    graph = hg.UndirectedGraph(count)
    graph.add_edges(pairs[:, 0].copy(), pairs[:, 1].copy())
    means, lengths = sums / lengths, lengths.astype(np.float64)
    tree, altitudes = hg.binary_partition_tree_average_linkage(graph, means, lengths)
    return tree.parents(), altitudes


def _by_altitude(
    count: int, pairs: np.ndarray, altitudes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Parents and altitudes of the tree in which neighbours join at given altitudes."""
    if count == 1:
        return np.zeros(1, np.int64), np.zeros(1)
    graph = hg.UndirectedGraph(count)
    graph.add_edges(pairs[:, 0].copy(), pairs[:, 1].copy())
    tree, altitudes = hg.bpt_canonical(graph, altitudes)
    return tree.parents(), altitudes


def _absorb_small(
    pairs: np.ndarray, lengths: np.ndarray, sums: np.ndarray, sizes: np.ndarray, min_area: float
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The region that each (R,) belongs to after every one under `min_area` has joined another.

    Each small region points at its neighbour across the weakest mean contour (the lower id on a
    tie) and all that hang together become one. As only small regions point, no two large ones are
    joined. Repeated until none is small. Also returns pairs, lengths and sums of what is left.
    """
    absorbed = np.arange(len(sizes), dtype=np.int32)
    while len(sizes) > 1 and (sizes < min_area).any():
        target = _weakest(pairs, sums / lengths, sizes < min_area)
        pointing = np.flatnonzero(target >= 0)
        links = coo_array(
            (np.ones(len(pointing)), (pointing, target[pointing])), shape=(len(sizes), len(sizes))
        )
        joined = connected_components(links, directed=False)[1].astype(np.int32)  # (R,)
        absorbed = joined[absorbed]
        sizes = np.bincount(joined, weights=sizes)
        ends = joined[pairs]
        crossing = ends[:, 0] != ends[:, 1]
        pairs, lengths, sums = _gathered(ends[crossing], lengths[crossing], sums[crossing])
    return absorbed, (pairs, lengths, sums)


@numba.njit(cache=True, nogil=True)
def _weakest(pairs, means, small):
    """(R,): the neighbour across the weakest contour of each small region, -1 for the others."""
    target = np.full(len(small), -1, np.int64)
    lowest = np.full(len(small), np.inf)
    for i in range(len(pairs)):
        for side in range(2):
            here, there = pairs[i, side], pairs[i, 1 - side]
            if small[here] and (
                means[i] < lowest[here] or (means[i] == lowest[here] and there < target[here])
            ):
                lowest[here], target[here] = means[i], there
    return target


# --- from pixels to neighbours -----------------------------------------------------------------
@numba.njit(cache=True, nogil=True)
def _watershed(strength):
    """Regions (H, W) int32 in raster order, and how many: each the basin of one local minimum.

    Every pixel joins its weakest neighbour, which is where water on it would run. Pixels without
    any strength join each other, so that a plain area is one region.
    """
    height, width = strength.shape
    flat = strength.ravel()
    up = np.arange(height * width).astype(np.int32)
    for p in range(height * width):
        y, x = p // width, p % width
        lowest, best = np.inf, p
        for q, inside in (
            (p - width, y > 0),
            (p - 1, x > 0),
            (p + 1, x + 1 < width),
            (p + width, y + 1 < height),
        ):
            if not inside:
                continue
            if flat[q] < lowest:
                lowest, best = flat[q], q
            if flat[p] == 0 and flat[q] == 0 and q < p:
                _join(up, p, q)
        _join(up, p, best)
    regions = np.empty(height * width, np.int32)
    count = 0
    for p in range(height * width):
        root = _root(up, p)
        if root == p:  # roots are the smallest of their region
            regions[p] = count
            count += 1
        else:
            regions[p] = regions[root]
    return regions.reshape(height, width), count


@numba.njit(cache=True, nogil=True)
def _root(up, p):
    while up[p] != p:
        up[p] = up[up[p]]
        p = up[p]
    return p


@numba.njit(cache=True, nogil=True)
def _join(up, p, q):
    p, q = _root(up, p), _root(up, q)
    if p < q:
        up[q] = p
    else:
        up[p] = q


def _borders(
    regions: np.ndarray, strength: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (E, 2) of regions that touch, lengths (E,) of their borders and sums (E,) of strength.

    A border is made of the steps from a pixel to one beside or below it; the strength of a step is
    the mean of both pixels.
    """
    return _gathered(*_steps(regions, strength))


def _gathered(
    ends: np.ndarray, lengths: np.ndarray, sums: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the same two ends, in whichever order, as one: the lower end first, sorted."""
    low, high = ends.min(axis=1).astype(np.int64), ends.max(axis=1).astype(np.int64)
    keys, place = np.unique((low << 32) | high, return_inverse=True)
    pairs = np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1)
    return pairs, np.bincount(place, lengths), np.bincount(place, sums)


@numba.njit(cache=True, nogil=True)
def _steps(regions, strength):
    """Ends (N, 2), lengths (N,) of 1 and strengths (N,) of all steps that cross a border."""
    height, width = regions.shape
    count = 0
    for y in range(height):
        for x in range(width):
            if x + 1 < width and regions[y, x] != regions[y, x + 1]:
                count += 1
            if y + 1 < height and regions[y, x] != regions[y + 1, x]:
                count += 1
    ends = np.empty((count, 2), np.int32)
    sums = np.empty(count)
    count = 0
    for y in range(height):
        for x in range(width):
            for v, u in ((y, x + 1), (y + 1, x)):
                if v < height and u < width and regions[y, x] != regions[v, u]:
                    ends[count] = regions[y, x], regions[v, u]
                    sums[count] = (strength[y, x] + strength[v, u]) / 2
                    count += 1
    return ends, np.ones(count), sums


# --- questions about trees ---------------------------------------------------------------------
def _joined_at(tree: Tree, pairs: np.ndarray) -> np.ndarray:
    """Altitudes (E,) at which pairs (E, 2) of nodes become one."""
    return _lowest_common(tree.parents, tree.altitudes, np.ascontiguousarray(pairs, np.int64))


@numba.njit(cache=True, nogil=True)
def _lowest_common(parents, altitudes, pairs):
    found = np.empty(len(pairs))
    for i in range(len(pairs)):
        a, b = pairs[i]
        while a != b:  # a parent has a larger number than its children
            if a < b:
                a = parents[a]
            else:
                b = parents[b]
        found[i] = altitudes[a]
    return found


def _cut(tree: Tree, altitude: float) -> tuple[np.ndarray, np.ndarray]:
    """The regions that are left when all that join below an altitude have.

    Returns:
        nodes (K,) of the tree, and (H, W) int32 which of them each pixel is in.
    """
    node = np.arange(len(tree.parents))
    for n in range(len(node) - 2, -1, -1):  # parents come before their children
        if tree.altitudes[tree.parents[n]] < altitude:
            node[n] = node[tree.parents[n]]
    leaves = (len(node) + 1) // 2
    nodes, place = np.unique(node[:leaves], return_inverse=True)
    return nodes, place.astype(np.int32)[tree.regions]


def _majority(finer: np.ndarray, coarser: np.ndarray) -> np.ndarray:
    """The coarser region that most pixels of each finer one lie in, the lower id on a tie."""
    keys, counts = np.unique(
        (finer.astype(np.int64) << 32) | coarser.astype(np.int64), return_counts=True
    )
    order = np.lexsort((keys, -counts, keys >> 32))
    starts = np.searchsorted(keys[order] >> 32, np.arange(int(finer.max()) + 1))
    return keys[order][starts] & 0xFFFFFFFF
