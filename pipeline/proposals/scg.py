"""Single-scale combinatorial grouping: contours, one hierarchy, its regions and their neighbours.

H x W pixels, S superpixels, P candidates.
"""

from collections.abc import Callable

import numpy as np

from pipeline.params import ScgProposals
from pipeline.proposals.edges import gradient_edges
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.grouping import distinct, leaves_for, membership, tuples, unpacked
from pipeline.proposals.hierarchy import boundary_hierarchy

Edges = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 to strengths (H, W) float32 in [0, 1]


def scg(image: np.ndarray, settings: ScgProposals, edges: Edges | None = None) -> Proposals:
    """Candidates for any object in an image, from its contours alone.

    Args:
        image: (H, W, 3) uint8, RGB, of any size from 1 x 1.
        edges: the strength of an image's contours; none: the gradient that `settings` names.

    Returns:
        The candidates; the first is the whole image, unless `singletons` is 0. A higher score is
        an earlier place in the list; no score compares between images.

    Implements: Dai2015 Sec. 4.1 (region proposals; single-scale grouping in the place of MCG).
    Reading: candidates keep the order of the enumeration; nothing here is trained, where MCG's
    ranking is trained with masks.
    """
    check_image(image)
    strength = edges(image) if edges else gradient_edges(image, sigma=settings.sigma)
    hierarchy = boundary_hierarchy(
        strength, min_area=settings.min_area, max_leaves=leaves_for(settings.singletons)
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
    kept = distinct(
        words, superpixels, max_overlap=settings.max_overlap, limit=settings.max_candidates
    )
    return from_membership(superpixels, unpacked(words[kept], count))


def check_image(image: np.ndarray) -> None:
    """Raises ValueError for what is no image (H, W, 3) uint8."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"an image is (H, W, 3) uint8, not {image.shape} {image.dtype}")
