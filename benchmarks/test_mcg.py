"""What MCG and SCG cost, whole and by part, and duplicates against a loop in numpy.

    pytest benchmarks/test_mcg.py --benchmark-columns=min,median,rounds

One thread, one picture of 321 x 481 pixels of smooth colours and texture, gradient contours, list
sizes as published. The loop for duplicates is the procedure as it is described: each candidate is
compared with those kept whose area is near enough, by one product of a matrix of memberships.
"""

import cv2
import numpy as np
import pytest

from pipeline.params_proposals import GradientEdges, Mcg, Scg
from pipeline.proposals.edges import edges
from pipeline.proposals.grouping import distinct, leaves_for, membership, tuples, unpacked
from pipeline.proposals.hierarchy import combined, top
from pipeline.proposals.mcg import fused, grouped, mcg, scale_trees
from pipeline.proposals.scg import scg

HEIGHT, WIDTH = 321, 481
EDGES = edges("gradient", sigma=2.0)
MCG = Mcg(
    kind="mcg",
    edges=GradientEdges("gradient", sigma=2.0),
    min_area=200,
    align_cut=0.1,
    singletons=(90, 500, 200, 900),
    pairs=(2000, 3000, 5000, 700),
    triplets=(300, 10000, 5000, 700),
    quadruplets=(300, 4000, 300, 200),
    max_overlap=0.95,
    max_candidates=20000,
    fill_holes=True,
)
SCG = Scg(
    kind="scg",
    edges=GradientEdges("gradient", sigma=2.0),
    min_area=200,
    singletons=700,
    pairs=4000,
    triplets=6000,
    quadruplets=3000,
    max_overlap=0.95,
    max_candidates=20000,
    fill_holes=True,
)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    layers = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for period, weight in ((90, 60), (40, 40), (15, 25), (4, 10)):
        coarse = rng.normal(0, 1, (HEIGHT // period + 2, WIDTH // period + 2, 3))
        layers += weight * cv2.resize(coarse.astype(np.float32), (WIDTH, HEIGHT))
    steps = np.round(layers / 40) * 40  # plains with contours between them
    return np.clip(128 + 0.7 * steps + 0.3 * layers, 0, 255).astype(np.uint8)


@pytest.mark.benchmark(group="one image, 321 x 481")
def test_mcg(benchmark, image):
    assert len(benchmark(mcg, image, MCG, EDGES)) > 1000


@pytest.mark.benchmark(group="one image, 321 x 481")
def test_scg(benchmark, image):
    assert len(benchmark(scg, image, SCG, EDGES)) > 300


@pytest.mark.benchmark(group="parts of MCG")
def test_hierarchies(benchmark, image):
    def hierarchies() -> int:
        trees = scale_trees(image, EDGES, min_area=200)
        return len(combined(trees, cut=0.1).parents)

    assert benchmark(hierarchies) > 100


@pytest.mark.benchmark(group="parts of MCG")
def test_candidates_from_hierarchies(benchmark, image):
    trees = scale_trees(image, EDGES, min_area=200)
    four = [combined(trees, cut=0.1), *trees]
    assert len(benchmark(grouped, four, MCG)) > 1000


# --- duplicates --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def candidates(image) -> tuple[np.ndarray, np.ndarray]:
    """Words (C, B) of every eighth candidate, and the superpixels."""
    trees = scale_trees(image, EDGES, min_area=200)
    four = [combined(trees, cut=0.1), *trees]
    hierarchies = [
        top(tree, max_leaves=leaves_for(count))
        for tree, count in zip(four, MCG.singletons, strict=True)
    ]
    superpixels, places = fused(hierarchies)
    words = []
    for i, hierarchy in enumerate(hierarchies):
        nodes = tuples(
            hierarchy,
            singletons=MCG.singletons[i],
            pairs=MCG.pairs[i],
            triplets=MCG.triplets[i],
            quadruplets=MCG.quadruplets[i],
        )
        words.append(membership(hierarchy, nodes, places[i], fill_holes=True))
    return np.ascontiguousarray(np.concatenate(words)[::8]), superpixels


def by_products(members: np.ndarray, areas: np.ndarray, max_overlap: float) -> np.ndarray:
    sizes = members @ areas
    kept: list[int] = []
    weighted = np.empty((len(members), len(areas)), np.float32)
    kept_sizes = np.empty(len(members))
    for i, row in enumerate(members):
        near = kept_sizes[: len(kept)]
        rows = np.flatnonzero((near >= max_overlap * sizes[i]) & (sizes[i] >= max_overlap * near))
        shared = weighted[rows] @ row.astype(np.float32)
        if (shared >= max_overlap * (near[rows] + sizes[i] - shared)).any():
            continue
        weighted[len(kept)] = row * areas
        kept_sizes[len(kept)] = sizes[i]
        kept.append(i)
    return np.array(kept)


@pytest.mark.benchmark(group="duplicates, every eighth candidate")
def test_duplicates_by_words(benchmark, candidates):
    words, superpixels = candidates
    members = unpacked(words, int(superpixels.max()) + 1)
    expected = by_products(members, np.bincount(superpixels.ravel()), 0.95)
    kept = benchmark(distinct, words, superpixels, max_overlap=0.95, limit=100_000)
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.benchmark(group="duplicates, every eighth candidate")
def test_duplicates_by_products(benchmark, candidates):
    words, superpixels = candidates
    members = unpacked(words, int(superpixels.max()) + 1)
    areas = np.bincount(superpixels.ravel())
    benchmark.pedantic(by_products, (members, areas, 0.95), rounds=3)
