"""What proposals are for: labels by true masks beat those by MCG, and these rectangles."""

from pathlib import Path

import numpy as np

from pipeline.categories import SAMPLE
from pipeline.datasets.sample import Drawn, draw
from pipeline.labels import choose, label_map_of, overlap_costs
from pipeline.metrics.semantic import confusion_matrix, scores
from pipeline.params_file import load_params
from pipeline.proposals.edges import edges
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.methods import propose

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 16


def true_masks(drawn: Drawn) -> Proposals:
    """The objects themselves as the candidates."""
    count = len(drawn.boxes)
    return from_membership(drawn.visible.astype(np.uint16), np.eye(count + 1, dtype=bool)[1:])


def grouped(drawn: Drawn) -> Proposals:
    algorithm = load_params(ROOT / "params.yaml").proposals["mcg_sample"].algorithm
    source = edges("gradient", sigma=algorithm.edges.sigma)
    return propose(drawn.image, algorithm, source, None)


def nothing(drawn: Drawn) -> Proposals:
    return from_membership(np.zeros(drawn.visible.shape, np.uint16), np.zeros((0, 1), bool))


def first_labels(drawn: Drawn, proposals: Proposals) -> np.ndarray:
    """The labels of the first round, which knows boxes and candidates and no network."""
    costs = overlap_costs(proposals, drawn.boxes)
    settings = {"lam": 0.0, "top_k": 1, "min_box_iou": 0.6, "fallback_box_iou": 0.3}
    settings |= {"fallback": "rectangle"}
    rng = np.random.default_rng(0)
    choices = [choose(cost, np.full_like(cost, np.nan), **settings, rng=rng) for cost in costs]
    return label_map_of(choices, proposals, drawn.boxes, drawn.categories)


def test_true_masks_make_better_labels_than_mcg_and_mcg_than_rectangles():
    counts = {source: 0 for source in (true_masks, grouped, nothing)}
    for index in range(IMAGES):
        drawn = draw("extra", index)
        for source in counts:
            labels = first_labels(drawn, source(drawn))
            counts[source] = counts[source] + confusion_matrix(labels, drawn.label_map, len(SAMPLE))
    quality = {source: scores(count).mean_iou for source, count in counts.items()}
    assert quality[true_masks] > 0.99
    assert quality[true_masks] > quality[grouped] + 0.05
    assert quality[grouped] > quality[nothing] + 0.2
