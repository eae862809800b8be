"""One image, cut into superpixels and grouped into a tree of regions.

H x W pixels, S superpixels, M = 2 S - 1 nodes of the tree, R regions of the watershed, E pairs of
neighbours.
"""

from dataclasses import dataclass

import higra as hg
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


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
    """Watershed regions, merged two by two across the weakest mean contour between them.

    Args:
        strength: (H, W) float, contour strength of each pixel.
        min_area: pixels; a smaller region first joins its neighbour across its weakest contour.
        max_leaves: the tree is cut at its strongest splits, so that it has at most so many leaves.
    """
    height, width = strength.shape
    pixels = hg.get_4_adjacency_graph((height, width))
    weights = hg.weight_graph(pixels, strength.astype(np.float64), hg.WeightFunction.mean)
    regions = _absorb_small(pixels, hg.labelisation_watershed(pixels, weights), weights, min_area)
    graph = hg.make_region_adjacency_graph_from_labelisation(pixels, regions)
    regions = hg.rag_back_project_vertex_weights(graph, np.arange(graph.num_vertices()))
    regions = regions.reshape(height, width)
    if graph.num_vertices() == 1:
        return Hierarchy(
            superpixels=np.zeros((height, width), np.uint16),
            first=np.zeros(1, np.int32),
            last=np.ones(1, np.int32),
            parent=np.full(1, -1, np.int32),
            neighbours=np.zeros((0, 2), np.int32),
        )
    lengths = hg.rag_accumulate_on_edges(graph, hg.Accumulators.sum, np.ones_like(weights))
    means = hg.rag_accumulate_on_edges(graph, hg.Accumulators.mean, weights)
    tree, _ = hg.binary_partition_tree_average_linkage(graph, means, lengths)
    superpixel_of, first, last, parent = _split_from_top(tree, max_leaves)
    source, target = graph.edge_list()[:2]
    pairs = np.sort(np.stack([superpixel_of[source], superpixel_of[target]], axis=1), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    superpixels = superpixel_of[regions].astype(np.uint16)
    return Hierarchy(superpixels, first, last, parent, pairs.astype(np.int32))


def _absorb_small(
    pixels: hg.UndirectedGraph, regions: np.ndarray, weights: np.ndarray, min_area: int
) -> np.ndarray:
    """Regions (H, W) after every one under `min_area` pixels has joined a neighbour.

    Each small region points at its neighbour across the weakest mean contour (the lower id on a
    tie) and all that hang together become one. As only small regions point, no two large ones are
    joined. Repeated until none is small.
    """
    while True:
        graph = hg.make_region_adjacency_graph_from_labelisation(pixels, regions)
        count = graph.num_vertices()
        regions = hg.rag_back_project_vertex_weights(graph, np.arange(count))
        small = np.bincount(regions.ravel(), minlength=count) < min_area  # (R,)
        if count == 1 or not small.any():
            return regions
        means = hg.rag_accumulate_on_edges(graph, hg.Accumulators.mean, weights)
        a, b = graph.edge_list()[:2]
        sources, targets = np.concatenate([a, b]), np.concatenate([b, a])
        order = np.lexsort((targets, np.concatenate([means, means]), sources))
        order = order[small[sources[order]]]
        pointing, first = np.unique(sources[order], return_index=True)
        joined = targets[order][first]
        links = coo_array((np.ones(len(joined)), (pointing, joined)), shape=(count, count))
        regions = connected_components(links, directed=False)[1][regions]


def _split_from_top(
    tree: hg.Tree, max_leaves: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The top of a binary tree in which every parent has a larger number than its children.

    Returns:
        superpixel (R,) of each leaf of the full tree; first (M,), last (M,) and parent (M,) as in
        `Hierarchy`.
    """
    leaves, root, parents = tree.num_leaves(), tree.root(), tree.parents()
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
