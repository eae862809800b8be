"""Single-scale combinatorial grouping: contours, one hierarchy, its regions and their neighbours.

H x W pixels, S superpixels, P candidates.
"""

import numpy as np

from pipeline.params_proposals import Scg
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
from pipeline.proposals.hierarchy import boundary_hierarchy


def scg(image: np.ndarray, settings: Scg, edges: Edges) -> Proposals:
    """Candidates for any object in an image, from its contours alone.

    Args:
        image: (H, W, 3) uint8, RGB, of any size from 1 x 1.
        edges: the strength of an image's contours, of the kind that `settings` names.

    Returns:
        The candidates: regions, pairs, triplets and quadruplets take turns, each list from the top
        down; the first is the whole image, unless `singletons` is 0. A higher score is an earlier
        place; no score compares between images.

    Implements: Dai2015 Sec. 4.1 (region proposals; single-scale grouping in the place of MCG).
    Reading: lists take turns, as in `mcg`; nothing here is trained, where MCG's
    ranking is trained with masks.
    """
    check_image(image)
    hierarchy = boundary_hierarchy(
        edges(image), min_area=settings.min_area, max_leaves=leaves_for(settings.singletons)
    )
    nodes = tuples(
        hierarchy,
        singletons=settings.singletons,
        pairs=settings.pairs,
        triplets=settings.triplets,
        quadruplets=settings.quadruplets,
    )
    superpixels = hierarchy.superpixels
    count = int(hierarchy.last[0])
    words = membership(hierarchy, nodes, np.arange(count), fill_holes=settings.fill_holes)
    words = words[in_turns([nodes])]
    kept = distinct(
        words, superpixels, max_overlap=settings.max_overlap, limit=settings.max_candidates
    )
    return from_membership(superpixels, unpacked(words[kept], count))


def check_image(image: np.ndarray) -> None:
    """Raises ValueError for what is no image (H, W, 3) uint8."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"an image is (H, W, 3) uint8, not {image.shape} {image.dtype}")
