"""Which function makes the candidates of which algorithm."""

import sys
from dataclasses import replace

import numpy as np

from pipeline.params_proposals import Gop, Mcg, Scg, SelectiveSearch
from pipeline.proposals.edges import Edges
from pipeline.proposals.forest import Forest
from pipeline.proposals.form import Proposals
from pipeline.proposals.gop import gop
from pipeline.proposals.mcg import mcg
from pipeline.proposals.ranking import ranked, reordered
from pipeline.proposals.scg import scg
from pipeline.proposals.selective_search import selective_search

Native = Scg | Mcg | SelectiveSearch | Gop  # from the image alone


def propose(
    image: np.ndarray, algorithm: Native, edges: Edges | None, ranker: Forest | None
) -> Proposals:
    """The candidates of an image.

    Args:
        image: (H, W, 3) uint8, RGB.
        edges: the strength of its contours, of the kind that `algorithm` names; None where it
            names none.
        ranker: a forest fitted to candidates of the same contours; None: the algorithm's own order.

    Returns:
        The first `max_candidates` of that order.
    """
    if ranker is not None and edges is not None:
        every = propose(image, replace(algorithm, max_candidates=sys.maxsize), edges, None)
        return first(ranked(every, edges(image), ranker), algorithm.max_candidates)
    match algorithm:
        case Scg() if edges:
            return scg(image, algorithm, edges)
        case Mcg() if edges:
            return mcg(image, algorithm, edges)
        case SelectiveSearch():
            return selective_search(
                image,
                colours=algorithm.colours,
                scales=algorithm.scales,
                likeness=algorithm.likeness,
                max_overlap=algorithm.max_overlap,
                max_candidates=algorithm.max_candidates,
                fill_holes=algorithm.fill_holes,
            )
        case Gop() if edges:
            return gop(
                image,
                edges=edges,
                min_area=algorithm.min_area,
                max_superpixels=algorithm.max_superpixels,
                colour=algorithm.colour,
                seeds=algorithm.seeds,
                levels=algorithm.levels,
                max_overlap=algorithm.max_overlap,
                max_candidates=algorithm.max_candidates,
                fill_holes=algorithm.fill_holes,
            )
    raise ValueError(f"{algorithm.kind} needs the edges that it names")


def first(proposals: Proposals, count: int) -> Proposals:
    """The first candidates, scored by their place."""
    return reordered(proposals, np.arange(min(count, len(proposals))))
