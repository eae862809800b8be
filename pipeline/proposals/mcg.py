"""Multiscale combinatorial grouping: four hierarchies, their regions and their neighbours.

H x W pixels, S superpixels, C candidates before and P after duplicates are taken out, B words.
"""

import numpy as np
from PIL import Image

from pipeline.params_proposals import Mcg, Scg
from pipeline.proposals.edges import Edges
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.grouping import (
    distinct,
    in_turns,
    leaves_for,
    membership,
    tuples,
    unpacked,
)
from pipeline.proposals.hierarchy import Hierarchy, Tree, boundary_tree, combined, resampled, top
from pipeline.proposals.scg import check_image, scg

SCALES = (0.5, 1.0, 2.0)  # Arbelaez et al. 2014; the coarsest first
MIN_SIDE = 15  # pixels; a smaller image is one region (the same)
MAX_PIXELS = 2_500_000  # a larger image has one scale only (the same)
SCG_SIZES = (700, 4000, 6000, 3000)  # singletons to quadruplets of that one scale (the same)
MAX_SUPERPIXELS = 1 << 16  # ids are 16 bits


def mcg(image: np.ndarray, settings: Mcg, edges: Edges) -> Proposals:
    """Candidates for any object in an image, from its contours at three scales.

    Args:
        image: (H, W, 3) uint8, RGB, of any size from 1 x 1.
        edges: the strength of an image's contours, of the kind that `settings` names; asked for at
            each scale.

    Returns:
        The candidates: regions, pairs, triplets and quadruplets of each hierarchy take turns, each
        list from the top down. A higher score is an earlier place; no score compares between
        images.

    Implements: Dai2015 Sec. 4.1 (region proposals).
    Reading: contours are as they come, without globalisation and without weighing by their
    direction; lists take turns, where MCG's follow one another until they are ranked: without
    a ranking the first candidates are better so.
    """
    check_image(image)
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        return from_membership(np.zeros((height, width), np.uint16), np.ones((1, 1), bool))
    if height * width > MAX_PIXELS:
        return scg(image, single_scale(settings), edges)
    trees = scale_trees(image, edges, min_area=settings.min_area)
    return grouped([combined(trees, cut=settings.align_cut), *trees], settings)


def scale_trees(image: np.ndarray, edges: Edges, *, min_area: float) -> list[Tree]:
    """The tree of each scale over the image's own pixels, the coarsest scale first.

    Args:
        min_area: at scale s, regions of less than `min_area` s of its pixels, which are
            `min_area` / s of the image's, are merged away: the finer scale is for smaller regions.
    """
    height, width = image.shape[:2]
    trees = []
    for scale in SCALES:
        size = (round(width * scale), round(height * scale))
        scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        tree = boundary_tree(edges(scaled), min_area=min_area * scale)
        trees.append(resampled(tree, height, width))
    return trees


def grouped(trees: list[Tree], settings: Mcg) -> Proposals:
    """The candidates of four trees over the same pixels."""
    hierarchies = [
        top(tree, max_leaves=leaves_for(singletons))
        for tree, singletons in zip(trees, settings.singletons, strict=True)
    ]
    superpixels, places = fused(hierarchies)
    nodes = [
        tuples(
            hierarchy,
            singletons=settings.singletons[i],
            pairs=settings.pairs[i],
            triplets=settings.triplets[i],
            quadruplets=settings.quadruplets[i],
        )
        for i, hierarchy in enumerate(hierarchies)
    ]
    words = np.concatenate(
        [
            membership(hierarchy, of_one, within, fill_holes=settings.fill_holes)
            for hierarchy, of_one, within in zip(hierarchies, nodes, places, strict=True)
        ]
    )[in_turns(nodes)]  # (C, B)
    kept = distinct(
        words, superpixels, max_overlap=settings.max_overlap, limit=settings.max_candidates
    )
    return from_membership(superpixels, unpacked(words[kept], places.shape[1]))


def fused(hierarchies: list[Hierarchy]) -> tuple[np.ndarray, np.ndarray]:
    """The superpixels that those of all hierarchies cut each other into.

    They are numbered along the first hierarchy's tree, so its nodes stay runs.

    Returns:
        superpixels (H, W) uint16, and (hierarchies, S): the hierarchy's own superpixel that each
        lies in.

    Raises:
        ValueError: there are more than 65,536.
    """
    shape = hierarchies[0].superpixels.shape
    places = np.zeros((0, 1), np.int64)
    superpixels = np.zeros(shape, np.int64)
    for hierarchy in hierarchies:
        own = hierarchy.superpixels
        size = int(own.max()) + 1
        keys = superpixels * size + own
        present = np.flatnonzero(np.bincount(keys.ravel()))
        rank = np.zeros(int(present[-1]) + 1, np.int64)
        rank[present] = np.arange(len(present))
        superpixels = rank[keys]
        places = np.concatenate([places[:, present // size], (present % size)[None]])
    if places.shape[1] > MAX_SUPERPIXELS:
        raise ValueError(f"{places.shape[1]} superpixels; at most {MAX_SUPERPIXELS} have ids")
    return superpixels.astype(np.uint16), places


def single_scale(settings: Mcg) -> Scg:
    singletons, pairs, triplets, quadruplets = SCG_SIZES
    return Scg(
        kind="scg",
        edges=settings.edges,
        min_area=settings.min_area,
        singletons=singletons,
        pairs=pairs,
        triplets=triplets,
        quadruplets=quadruplets,
        max_overlap=settings.max_overlap,
        max_candidates=settings.max_candidates,
        fill_holes=settings.fill_holes,
    )
