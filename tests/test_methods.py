"""Which function makes the candidates of which algorithm, and the order that a ranker gives."""

from dataclasses import replace

import numpy as np
import pytest
from candidates import same

from pipeline.params_proposals import Gop, GradientEdges, Mcg, Scg, SelectiveSearch
from pipeline.proposals.edges import edges
from pipeline.proposals.forest import Forest
from pipeline.proposals.form import from_membership
from pipeline.proposals.gop import gop
from pipeline.proposals.mcg import mcg
from pipeline.proposals.methods import first, propose
from pipeline.proposals.ranking import rank
from pipeline.proposals.scg import scg
from pipeline.proposals.selective_search import selective_search

SIZES = {"singletons": 60, "pairs": 60, "triplets": 20, "quadruplets": 0}
REST = {"min_area": 12, "max_overlap": 0.95, "max_candidates": 200, "fill_holes": True}
SCG = Scg("scg", edges=GradientEdges("gradient", 1.0), **SIZES, **REST)
MCG = Mcg(
    "mcg",
    edges=GradientEdges("gradient", 1.0),
    align_cut=0.1,
    **{name: (size,) * 4 for name, size in SIZES.items()},
    **REST,
)
SEARCH = SelectiveSearch("ss", ("lab",), (50,), ("tsf",), 0.9, 150, False)
GOP = Gop("gop", GradientEdges("gradient", 1.0), 12, 80, 30.0, 15, 4, 0.8, 60, True)
EDGES = edges("gradient", sigma=1.0)
# Small candidates are better than those of more than a tenth of the image.
BY_AREA = Forest(
    np.array([[3]], np.uint8),
    np.array([[0.1]], np.float32),
    np.array([[0.3, 0.2]], np.float32),
    np.array(0, np.float32),
)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    found = np.full((48, 64, 3), 100.0)
    for colour in rng.integers(0, 256, (9, 3)):
        y, x = rng.integers(0, 40), rng.integers(0, 52)
        found[y : y + 14, x : x + 18] = colour
    return np.clip(found + rng.normal(0, 4, found.shape), 0, 255).astype(np.uint8)


# --- each algorithm ----------------------------------------------------------------------------
@pytest.mark.parametrize("settings", [SCG, MCG], ids=["scg", "mcg"])
def test_grouping_makes_the_candidates_of_its_settings(image, settings):
    alone = {"scg": scg, "mcg": mcg}[settings.kind](image, settings, EDGES)
    assert len(alone) > 20
    assert same(propose(image, settings, EDGES, None), alone)


def test_selective_search_makes_its_own_and_needs_no_edges(image):
    given = {"colours": ("lab",), "scales": (50,), "likeness": ("tsf",)}
    alone = selective_search(image, **given, max_overlap=0.9, max_candidates=150, fill_holes=False)
    assert same(propose(image, SEARCH, None, None), alone)


def test_geodesic_proposals_have_the_numbers_of_the_settings(image):
    alone = gop(
        image,
        edges=EDGES,
        min_area=12,
        max_superpixels=80,
        colour=30.0,
        seeds=15,
        levels=4,
        max_overlap=0.8,
        max_candidates=60,
        fill_holes=True,
    )
    assert same(propose(image, GOP, EDGES, None), alone) and len(alone) > 10


@pytest.mark.parametrize("settings", [SCG, MCG, GOP], ids=["scg", "mcg", "gop"])
def test_grouping_without_edges_is_refused(image, settings):
    with pytest.raises(ValueError, match=f"{settings.kind} needs the edges"):
        propose(image, settings, None, None)


# --- the order of a ranker ---------------------------------------------------------------------
@pytest.mark.parametrize("settings", [SCG, MCG], ids=["scg", "mcg"])
def test_of_all_candidates_the_first_in_the_rankers_order_are_kept(image, settings):
    every = propose(image, replace(settings, max_candidates=10_000), EDGES, None)
    order = rank(every, EDGES(image), BY_AREA)[:12]
    assert order.max() >= 12  # those that the algorithm itself has first are others
    found = propose(image, replace(settings, max_candidates=12), EDGES, BY_AREA)
    assert len(found) == 12 and found.scores[0] == 1 and (np.diff(found.scores) < 0).all()
    for place, number in enumerate(order):
        np.testing.assert_array_equal(found.mask(place), every.mask(number))
        assert found.areas[place] == every.areas[number]
    assert (found.areas <= 0.1 * found.superpixels.size).any()


def test_a_ranker_loses_no_candidate_where_all_are_wanted(image):
    ranked = propose(image, SCG, EDGES, BY_AREA)
    alone = propose(image, SCG, EDGES, None)
    assert len(alone) < SCG.max_candidates
    masks = [{p.mask(i).tobytes() for i in range(len(p))} for p in (ranked, alone)]
    assert masks[0] == masks[1]


@pytest.mark.parametrize("count", [0, 2, 3, 5])
def test_the_first_candidates_are_scored_by_their_place(count):
    superpixels = np.array([[0, 1, 2]], np.uint16)
    three = from_membership(superpixels, np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0]], bool))
    kept = first(replace(three, scores=np.array([9, 4, 2], np.float32)), count)
    assert kept.areas.tolist() == [3, 2, 1][:count]
    expected = 1 - np.arange(len(kept), dtype=np.float32) / max(1, len(kept))
    np.testing.assert_allclose(kept.scores, expected, rtol=1e-6)
