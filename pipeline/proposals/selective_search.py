"""Selective Search (Uijlings et al. 2013): regions merge by likeness, each union is a candidate.

H x W pixels, R regions, E pairs of neighbours, M nodes of a tree, P candidates.
"""

from dataclasses import replace
from typing import NamedTuple

import cv2
import numba
import numpy as np
from scipy.ndimage import distance_transform_edt

from pipeline.proposals.colour_regions import channels_of, first_regions
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.grouping import distinct, membership, unpacked
from pipeline.proposals.hierarchy import Hierarchy, Tree, top
from pipeline.proposals.mcg import fused
from pipeline.proposals.scg import check_image
from pipeline.proposals.sizes import enlarged, reduced

COLOUR_BINS, TEXTURE_BINS = 25, 10  # of each channel; of each channel and direction (the paper)
DIRECTIONS = 8  # of the texture's derivatives, around the circle (the paper)
MAX_PIXELS = 500_000  # a larger image is searched at this size
MIN_PIECE = 30  # pixels; smaller ones lie along borders, say nothing and fill the disk
MAX_LEAVES = 2000  # of a tree; only noise has more
GROUPED_BY = {  # what the likeness of two regions is the sum of: colour, texture, size, fill
    "ctsf": (1, 1, 1, 1),
    "tsf": (0, 1, 1, 1),
    "sf": (0, 0, 1, 1),
    "f": (0, 0, 0, 1),
    "s": (0, 0, 1, 0),
}
FAST_COLOURS, FAST_SCALES, FAST_LIKENESS = ("hsv", "lab"), (50, 100), ("ctsf", "tsf")


class Regions(NamedTuple):
    """What the likeness of regions is computed from; every row a region."""

    sizes: np.ndarray  # (R,) float32, pixels
    boxes: np.ndarray  # (R, 4) float32, x0 y0 x1 y1, tight, ends excluded
    colours: np.ndarray  # (R, 3 * COLOUR_BINS) float32, sums to 1
    textures: np.ndarray  # (R, 3 * DIRECTIONS * TEXTURE_BINS) float32, sums to 1


def selective_search(
    image: np.ndarray,
    *,
    colours: tuple[str, ...] = FAST_COLOURS,
    scales: tuple[int, ...] = FAST_SCALES,
    likeness: tuple[str, ...] = FAST_LIKENESS,
    max_overlap: float = 0.95,
    max_candidates: int = 10000,
    fill_holes: bool = True,
) -> Proposals:
    """Candidates for any object in an image, by grouping in several colour spaces and ways.

    Args:
        image: (H, W, 3) uint8, RGB, of any size from 1 x 1.
        colours: of "hsv", "lab", "rgb".
        scales: of the first regions; the larger the number, the larger they are. Also their least
            area in pixels.
        likeness: of the keys of `GROUPED_BY`. Each colour space, scale and likeness is one tree.
        max_overlap: Jaccard index from which a later candidate is a duplicate.

    Returns:
        The candidates, those near the tops of the trees first. A higher score is an earlier place
        in the list; no score compares between images.

    Implements: Dai2015 Table 3 (Selective Search; its candidates as masks).
    Reading: the published order is drawn at random within each tree; here the trees take turns,
    from their tops down. Neither is learnt.
    """
    check_image(image)
    trees = []
    for colour in colours:
        channels = channels_of(reduced(image, MAX_PIXELS), colour)
        for labels in first_regions(channels, scales):
            regions, pairs = described(labels, channels)
            trees += [likeness_tree(labels, regions, pairs, GROUPED_BY[way]) for way in likeness]
    superpixels, words = _all_nodes(trees, fill_holes=fill_holes)
    superpixels = enlarged(superpixels, *image.shape[:2])
    kept = distinct(words, superpixels, max_overlap=max_overlap, limit=max_candidates)
    return from_membership(superpixels, unpacked(words[kept], int(superpixels.max()) + 1))


# --- what regions look like ---------------------------------------------------------------------
def described(labels: np.ndarray, channels: np.ndarray) -> tuple[Regions, np.ndarray]:
    """Size, box, colours and textures of all regions, and the pairs (E, 2) that touch.

    Args:
        labels: (H, W) int32, ids 0..R-1.
        channels: (H, W, 3) uint8.
    """
    count = int(labels.max()) + 1
    sizes, boxes, colours = _outlines(labels, channels, count)
    textures = _textures(labels, *_derivatives(channels), count)
    sizes = sizes.astype(np.float32)
    regions = Regions(
        sizes,
        boxes.astype(np.float32),
        (colours / (3 * sizes[:, None])).astype(np.float32),
        (textures / (3 * DIRECTIONS * sizes[:, None])).astype(np.float32),
    )
    return regions, _touching(labels)


def _derivatives(channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of a Gaussian of sigma 1 across and down, (H, W, 3) float32.

    Divided by the steepest slope of each channel, so that every one is in [-1, 1].
    """
    smooth = cv2.GaussianBlur(channels.astype(np.float32), (0, 0), 1)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    steepest = np.sqrt((across**2 + down**2).max(axis=(0, 1)))
    scale = np.where(steepest > 0, 1 / np.maximum(steepest, np.float32(1e-6)), np.float32(0))
    return across * scale, down * scale


def _touching(labels: np.ndarray) -> np.ndarray:
    """Pairs (E, 2) int32 of regions that have pixels side by side, the lower id first, sorted."""
    keys = []
    for here, there in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        crossing = here != there
        a, b = here[crossing].astype(np.int64), there[crossing].astype(np.int64)
        keys.append((np.minimum(a, b) << 32) | np.maximum(a, b))
    found = np.unique(np.concatenate(keys))
    return np.stack([found >> 32, found & 0xFFFFFFFF], axis=1).astype(np.int32)


@numba.njit(cache=True, nogil=True)
def _outlines(labels, channels, count):
    """Sizes (R,), boxes (R, 4) and how many pixels of each colour (R, 3 * COLOUR_BINS)."""
    height, width = labels.shape
    sizes = np.zeros(count, np.int64)
    boxes = np.empty((count, 4), np.int64)
    boxes[:, :2] = max(height, width)
    boxes[:, 2:] = 0
    colours = np.zeros((count, 3 * COLOUR_BINS), np.int64)
    for y in range(height):
        for x in range(width):
            r = labels[y, x]
            sizes[r] += 1
            boxes[r, 0] = min(boxes[r, 0], x)
            boxes[r, 1] = min(boxes[r, 1], y)
            boxes[r, 2] = max(boxes[r, 2], x + 1)
            boxes[r, 3] = max(boxes[r, 3], y + 1)
            for c in range(3):
                colours[r, c * COLOUR_BINS + channels[y, x, c] * COLOUR_BINS // 256] += 1
    return sizes, boxes, colours


@numba.njit(cache=True, nogil=True)
def _textures(labels, across, down, count):
    """How many slopes of each channel, direction and steepness (R, 3 * DIRECTIONS * TEXTURE_BINS).

    A slope counts in the directions in which it rises; in the others it is 0.
    """
    found = np.zeros((count, 3 * DIRECTIONS * TEXTURE_BINS), np.int64)
    cosines = np.cos(np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS).astype(np.float32)
    sines = np.sin(np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS).astype(np.float32)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            r = labels[y, x]
            for c in range(3):
                for d in range(DIRECTIONS):
                    slope = max(cosines[d] * across[y, x, c] + sines[d] * down[y, x, c], 0)
                    place = min(int(slope * TEXTURE_BINS), TEXTURE_BINS - 1)
                    found[r, (c * DIRECTIONS + d) * TEXTURE_BINS + place] += 1
    return found


# --- grouping ----------------------------------------------------------------------------------
def likeness_tree(
    labels: np.ndarray, regions: Regions, pairs: np.ndarray, use: tuple[int, int, int, int]
) -> Tree:
    """The most alike neighbours become one, again and again, until the image is one region.

    Args:
        use: weights of colour, texture, size and fill in the likeness.

    Returns:
        The tree; its altitudes are the numbers of the merges, 1 for the first.
    """
    parents = _merged(
        pairs, *regions, np.array(use, np.float32), np.float32(labels.size)
    )  # (2 R - 1,)
    count = len(regions.sizes)
    altitudes = np.maximum(np.arange(len(parents)) - count + 1, 0).astype(np.float64)
    return Tree(labels, parents, altitudes)


@numba.njit(cache=True, nogil=True)
def _merged(pairs, leaf_sizes, leaf_boxes, leaf_colours, leaf_textures, use, total):
    """Parents (2 R - 1,) int64 of merging the most alike pair, the earlier one on a tie."""
    leaves = len(leaf_sizes)
    nodes = 2 * leaves - 1
    sizes = np.zeros(nodes, np.float32)
    boxes = np.zeros((nodes, 4), np.float32)
    colours = np.zeros((nodes, leaf_colours.shape[1]), np.float32)
    textures = np.zeros((nodes, leaf_textures.shape[1]), np.float32)
    sizes[:leaves], boxes[:leaves] = leaf_sizes, leaf_boxes
    colours[:leaves], textures[:leaves] = leaf_colours, leaf_textures
    parents = np.arange(nodes)
    ends = pairs.copy()
    alike = np.empty(len(ends), np.float32)
    for e in range(len(ends)):
        alike[e] = _alike(ends[e, 0], ends[e, 1], sizes, boxes, colours, textures, use, total)
    seen = np.full(nodes, -1, np.int64)  # the last new node that each has been paired with
    left = len(ends)
    for new in range(leaves, nodes):
        best = 0
        for e in range(1, left):
            if alike[e] > alike[best]:
                best = e
        a, b = ends[best]
        parents[a] = parents[b] = new
        _join(new, a, b, sizes, boxes, colours, textures)
        kept = 0
        for e in range(left):
            c, d = ends[e]
            value = alike[e]
            if c == a or c == b or d == a or d == b:
                other = d if c == a or c == b else c
                if other == a or other == b or seen[other] == new:
                    continue  # the pair itself, or a neighbour of both for the second time
                seen[other] = new
                c, d = other, new
                value = _alike(c, d, sizes, boxes, colours, textures, use, total)
            ends[kept, 0], ends[kept, 1], alike[kept] = c, d, value
            kept += 1
        left = kept
    return parents


@numba.njit(cache=True, nogil=True)
def _join(new, a, b, sizes, boxes, colours, textures):
    sizes[new] = sizes[a] + sizes[b]
    for i in range(2):
        boxes[new, i] = min(boxes[a, i], boxes[b, i])
        boxes[new, i + 2] = max(boxes[a, i + 2], boxes[b, i + 2])
    share = sizes[a] / sizes[new]
    for i in range(colours.shape[1]):
        colours[new, i] = share * colours[a, i] + (1 - share) * colours[b, i]
    for i in range(textures.shape[1]):
        textures[new, i] = share * textures[a, i] + (1 - share) * textures[b, i]


@numba.njit(cache=True, nogil=True)
def _alike(a, b, sizes, boxes, colours, textures, use, total):
    """Common colours and textures, how small both are, and how well they fill their common box."""
    value = np.float32(0)
    if use[0] > 0:
        for i in range(colours.shape[1]):
            value += use[0] * min(colours[a, i], colours[b, i])
    if use[1] > 0:
        for i in range(textures.shape[1]):
            value += use[1] * min(textures[a, i], textures[b, i])
    both = sizes[a] + sizes[b]
    width = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
    height = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
    value += use[2] * (1 - both / total)
    return value + use[3] * (1 - (width * height - both) / total)


# --- candidates --------------------------------------------------------------------------------
def _all_nodes(trees: list[Tree], *, fill_holes: bool) -> tuple[np.ndarray, np.ndarray]:
    """Common superpixels (H, W) uint16 and every node as a set of them (C, B), the tops first."""
    hierarchies, superpixels, places = _common(trees)
    words, depths = [], []
    for hierarchy, within in zip(hierarchies, places, strict=True):
        count = len(hierarchy.first)
        nodes = np.full((count, 4), -1, np.int32)
        nodes[:, 0] = np.arange(count)
        words.append(membership(hierarchy, nodes, within, fill_holes=fill_holes))
        depths.append(np.arange(count))
    order = np.argsort(np.concatenate(depths), kind="stable")
    return superpixels, np.concatenate(words)[order]


def _common(trees: list[Tree]) -> tuple[list[Hierarchy], np.ndarray, np.ndarray]:
    """The tops of the trees over common superpixels, at most 65,536; and as `fused` these."""
    leaves = MAX_LEAVES
    while True:
        hierarchies = [top(tree, max_leaves=leaves) for tree in trees]
        try:
            superpixels, places = _without_slivers(*fused(hierarchies))
            break
        except ValueError:  # noise: too many pieces for 16 bits
            leaves //= 2
    for i, hierarchy in enumerate(hierarchies):
        own = places[i][superpixels].astype(np.uint16)  # its pixels now
        hierarchies[i] = replace(hierarchy, superpixels=own, neighbours=_touching(own))
    return hierarchies, superpixels, places


def _without_slivers(superpixels: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of pieces under `MIN_PIECE` go to the nearest larger piece; ids keep their order.

    Args:
        superpixels: (H, W) ids 0..S-1.
        places: (trees, S) as of `fused`; both are returned without the small pieces.
    """
    large = np.bincount(superpixels.ravel()) >= MIN_PIECE
    if large.all() or large[superpixels].mean() < 0.5:  # noise is nothing but small pieces
        return superpixels, places
    y, x = distance_transform_edt(~large[superpixels], return_distances=False, return_indices=True)
    number = (np.cumsum(large) - 1).astype(np.uint16)
    return number[superpixels[y, x]], places[:, large]
