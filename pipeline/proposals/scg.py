"""Single-scale combinatorial grouping: contours, one hierarchy, its regions and their neighbours.

H x W pixels, S superpixels, P candidates.
"""

import numpy as np

from pipeline.params import ScgProposals
from pipeline.proposals.edges import gradient_edges
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.grouping import distinct, fill_holes, membership, tuples
from pipeline.proposals.hierarchy import boundary_hierarchy


def scg(image: np.ndarray, settings: ScgProposals) -> Proposals:
    """Candidates for any object in an image, from its contours alone.

    Args:
        image: (H, W, 3) uint8, RGB, of any size from 1 x 1.

    Returns:
        The candidates; the first is the whole image, unless `singletons` is 0. A higher score is
        an earlier place in the list; no score compares between images.

    Implements: Dai2015 Sec. 4.1 (region proposals; single-scale grouping in the place of MCG).
    Reading: candidates keep the order of the enumeration; nothing here is trained, where MCG's
    ranking is trained with masks.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"an image is (H, W, 3) uint8, not {image.shape} {image.dtype}")
    strength = gradient_edges(image, sigma=settings.sigma)
    # So many leaves make a tree of max(singletons, 255) nodes; ids are 16 bits.
    leaves = min(max((settings.singletons + 1) // 2, 128), 1 << 16)
    hierarchy = boundary_hierarchy(strength, min_area=settings.min_area, max_leaves=leaves)
    nodes = tuples(
        hierarchy,
        singletons=settings.singletons,
        pairs=settings.pairs,
        triplets=settings.triplets,
    )
    members = membership(hierarchy, nodes)  # (C, S)
    superpixels = hierarchy.superpixels
    if settings.fill_holes:
        on_border = np.zeros(members.shape[1], bool)
        for side in (superpixels[0], superpixels[-1], superpixels[:, 0], superpixels[:, -1]):
            on_border[side] = True
        members = fill_holes(members, hierarchy.neighbours, on_border)
    areas = np.bincount(superpixels.ravel())
    kept = distinct(members, areas, max_overlap=settings.max_overlap, limit=settings.max_candidates)
    return from_membership(superpixels, members[kept])
