"""GOP: distances and level sets by hand, laws on drawn pictures, photographs."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from candidates import check_boxes_and_areas, same
from PIL import Image
from scipy.ndimage import binary_fill_holes, label
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra

from pipeline.proposals import gop as module
from pipeline.proposals.edges import edges
from pipeline.proposals.form import Proposals
from pipeline.proposals.gop import (
    POWER,
    SHORTEST,
    Graph,
    backgrounds,
    distances,
    from_seeds,
    geodesic_graph,
    gop,
    level_sets,
    mean_colours,
    sides,
    signed_distances,
)

BSDS = Path(__file__).resolve().parents[1].parent / "shared" / "real" / "bsds500" / "BSDS500"
EDGES = edges("gradient", sigma=1.5)


def drawn(seed: int, height: int = 120, width: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A disc, a block at the border and a ring on noise. Returns the image and masks (3, H, W)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    disc = (x - 35) ** 2 + (y - 40) ** 2 < 22**2
    block = (x > 130) & (abs(y - 40) < 20)
    distance = np.hypot(x - 90, y - 85)
    image = np.full((height, width, 3), 110.0)
    image[disc] = 200, 40, 40
    image[block] = 40, 190, 60
    image[(distance < 25) & (distance > 12)] = 40, 60, 220
    image += rng.normal(0, 6, image.shape)
    masks = np.array([disc, block, distance < 25])
    return np.clip(image, 0, 255).astype(np.uint8), masks


def found_in(image: np.ndarray, **numbers) -> Proposals:
    return gop(image, edges=EDGES, **({"min_area": 40} | numbers))


def graph_of(pairs: np.ndarray, lengths: np.ndarray, count: int) -> Graph:
    ends = np.concatenate([pairs, pairs[:, ::-1]])
    both = np.concatenate([lengths, lengths])
    matrix = csr_array(coo_array((both, (ends[:, 0], ends[:, 1])), shape=(count, count)))
    return Graph(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data)


def random_graph(seed: int, count: int = 40) -> Graph:
    """A tree and some more edges, of random lengths."""
    rng = np.random.default_rng(seed)
    pairs = {(int(rng.integers(n)), n) for n in range(1, count)}
    pairs |= {tuple(sorted(rng.choice(count, 2, replace=False).tolist())) for _ in range(count)}
    sorted_pairs = np.array(sorted(pairs))
    return graph_of(sorted_pairs, rng.uniform(0.01, 1, len(sorted_pairs)), count)


def matrix_of(graph: Graph) -> csr_array:
    count = len(graph.starts) - 1
    return csr_array((graph.lengths, graph.neighbours, graph.starts), shape=(count, count))


@pytest.fixture(scope="module")
def found() -> Proposals:
    return found_in(drawn(0)[0])


@pytest.fixture(scope="module")
def masks(found) -> np.ndarray:
    return np.array([found.mask(i) for i in range(len(found))])


# --- laws --------------------------------------------------------------------------------------
def test_every_candidate_has_its_tight_box_and_area(found, masks):
    assert len(found) > 10
    check_boxes_and_areas(found, masks)


def test_the_first_candidate_is_the_whole_image(masks):
    assert masks[0].all()


def test_every_candidate_is_connected_and_has_no_hole(masks):
    for mask in masks:
        assert label(mask)[1] == 1
        np.testing.assert_array_equal(binary_fill_holes(mask), mask)


def test_without_filling_there_are_holes_but_all_is_still_connected():
    image = drawn(0)[0]
    some = found_in(image, fill_holes=False)
    masks = [some.mask(i) for i in range(len(some))]
    assert all(label(mask)[1] == 1 for mask in masks)
    assert any((binary_fill_holes(mask) != mask).any() for mask in masks)


@pytest.mark.parametrize("max_overlap", [0.6, 0.95])
def test_no_two_candidates_are_duplicates(max_overlap):
    some = found_in(drawn(1)[0], max_overlap=max_overlap)
    overlaps = some.iou_with_proposals(some)
    np.fill_diagonal(overlaps, 0)
    assert overlaps.max() < max_overlap


def test_fewer_candidates_are_the_first_of_more(found):
    few = found_in(drawn(0)[0], max_candidates=7)
    assert len(few) == 7
    assert few.areas.tolist() == found.areas[:7].tolist()
    np.testing.assert_array_equal(few.mask(6), found.mask(6))


def test_superpixels_are_as_many_as_allowed():
    some = found_in(drawn(2)[0], max_superpixels=9)
    assert some.num_superpixels == 9
    alone = found_in(drawn(2)[0], max_superpixels=1)
    assert len(alone) == 1 and alone.mask(0).all()


def test_the_same_image_gives_the_same_candidates(found):
    assert same(found, found_in(drawn(0)[0]))


def test_scores_fall(found):
    assert (np.diff(found.scores) < 0).all()


# --- what is found -----------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_finds_a_disc_a_block_at_the_border_and_a_filled_ring(seed):
    image, objects = drawn(seed)
    some = found_in(image)
    assert some.iou_with_masks(objects).max(axis=0).min() > 0.9
    first = some.iou_with_masks(objects[:1])[:20]
    assert first.max() > 0.9  # a plain disc is among the first


def test_two_colours_that_touch_are_found_apart_and_together():
    image = np.full((90, 120, 3), 100, np.uint8)
    image[30:60, 30:50], image[30:60, 50:80] = (220, 120, 60), (220, 60, 60)
    image = np.clip(image + np.random.default_rng(0).normal(0, 4, image.shape), 0, 255)
    apart = np.zeros((3, 90, 120), bool)
    apart[0, 30:60, 30:50] = apart[1, 30:60, 50:80] = apart[2, 30:60, 30:80] = True
    some = found_in(image.astype(np.uint8))
    assert some.iou_with_masks(apart).max(axis=0).min() > 0.88


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 4), (40, 30)])
def test_a_plain_image_of_any_size_gives_itself(shape):
    only = found_in(np.full((*shape, 3), 77, np.uint8))
    assert len(only) == 1 and only.mask(0).all()
    assert only.boxes.tolist() == [[0, 0, shape[1], shape[0]]]


@pytest.mark.parametrize("shape", [(2, 3), (1, 30), (16, 97), (61, 40)])
def test_noise_of_any_size_has_candidates(shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    some = found_in(noise, min_area=3)
    assert some.mask(0).all() and some.superpixels.shape == shape


def test_a_large_image_is_looked_at_at_a_smaller_size(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 5000)
    seen = []

    def remembered(image):
        seen.append(image.shape)
        return EDGES(image)

    image, objects = drawn(0, 301, 203)
    some = gop(image, edges=remembered, min_area=10)
    assert seen == [(86, 58, 3)]
    assert some.superpixels.shape == (301, 203)
    assert set(np.unique(some.superpixels)) == set(range(some.num_superpixels))
    masks = np.array([some.mask(i) for i in range(len(some))])
    check_boxes_and_areas(some, masks)
    assert all(label(mask)[1] == 1 for mask in masks)
    assert some.iou_with_masks(objects[:1]).max() > 0.85


def test_what_is_no_image_is_refused():
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(ValueError, match="an image is"):
            gop(wrong, edges=EDGES)


# --- distances ---------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(8))
def test_distances_from_sets_are_those_of_scipy(seed):
    graph = random_graph(seed)
    sources = np.random.default_rng(seed).random((5, 40)) < [[0.03], [0.1], [0.3], [1], [-1]]
    for row, found in zip(sources, distances(graph, sources), strict=True):
        if not row.any():
            assert np.isinf(found).all()
            continue
        wanted = dijkstra(matrix_of(graph), indices=np.flatnonzero(row), min_only=True)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_each_seed_is_the_farthest_from_those_before_it(seed):
    graph = random_graph(seed)
    everywhere = dijkstra(matrix_of(graph))
    found = from_seeds(graph, 3, 10)
    seeds = found.argmin(axis=1)
    np.testing.assert_allclose(found, everywhere[seeds], rtol=1e-12)
    assert seeds[0] == 3
    for k in range(1, 10):
        assert seeds[k] == everywhere[seeds[:k]].min(axis=0).argmax()


def test_as_many_seeds_as_superpixels_are_all_of_them():
    seeds = from_seeds(random_graph(0, 12), 0, 12).argmin(axis=1)
    assert sorted(seeds) == list(range(12))


def test_a_step_is_as_long_as_its_contour_and_its_colours_say():
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 2:4], image[:, 4:] = 255, (255, 0, 0)
    superpixels = np.repeat([0, 1, 2], 2)[None].repeat(4, axis=0).astype(np.uint16)
    strength = np.zeros((4, 6), np.float32)
    strength[:, 1:3] = 0.5  # between the first two; none between the others
    graph = geodesic_graph(image, superpixels, strength, colour=50)
    assert graph.starts.tolist() == [0, 1, 3, 4]
    assert graph.neighbours.tolist() == [1, 0, 2, 1]
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0, ::2]
    np.testing.assert_allclose(mean_colours(image, superpixels), lab, atol=1e-4)
    apart = np.linalg.norm(np.diff(lab.astype(np.float64), axis=0), axis=1) / 50
    wanted = (np.array([0.5, 0]) + apart) ** POWER + SHORTEST
    np.testing.assert_allclose(graph.lengths, wanted[[0, 0, 1, 1]], rtol=1e-6)


def test_distances_are_those_from_the_seed_less_those_from_the_background():
    superpixels = np.arange(5, dtype=np.uint16).repeat(2)[None].repeat(4, axis=0)
    graph = graph_of(np.array([[0, 1], [1, 2], [2, 3], [3, 4]]), np.array([1.0, 2, 4, 8]), 5)
    found = signed_distances(graph, superpixels, 1).round(6)
    assert len(found) == 6  # one seed, in the middle; no background, the border, three sides of it
    assert found[0].tolist() == [3, 2, 0, 4, 12]
    # all touch the top and the bottom: every background that has one of them holds all
    np.testing.assert_array_equal(found, np.repeat(found[:1], 6, axis=0))
    framed = np.zeros((3, 3), np.uint16)
    framed[1, 1] = 1
    inside = signed_distances(graph_of(np.array([[0, 1]]), np.array([2.0]), 2), framed, 2)
    assert inside[:2].tolist() == [[2, 0], [2, -2]]  # the first seed is the one inside
    assert inside[6:8].tolist() == [[0, 2], [0, 0]]


def test_backgrounds_are_the_border_and_all_but_one_side_of_it():
    superpixels = np.array([[0, 0, 0], [1, 2, 3], [4, 4, 4]], np.uint16)
    assert sides(superpixels).astype(int).tolist() == [
        [1, 0, 0, 0, 0],  # top
        [1, 0, 0, 1, 1],  # right
        [0, 0, 0, 0, 1],
        [1, 1, 0, 0, 1],
    ]
    found = backgrounds(superpixels)
    assert found[:, 2].tolist() == [False] * 5  # inside
    assert found[0].tolist() == [True, True, False, True, True]
    assert found[2].tolist() == [True, True, False, False, True]  # without the right side


# --- level sets --------------------------------------------------------------------------------
def test_level_sets_end_at_the_widest_gaps_first():
    signed = np.array([[0.0, 0.1, 0.9, 1.0, 3.0], [5.0, 2.0, 1.0, 0.0, 0.0]])
    sizes = np.full(5, 10)
    assert level_sets(signed, sizes, 2).astype(int).tolist() == [
        [1, 1, 1, 1, 0],  # the gap of 2.0
        [0, 1, 1, 1, 1],  # the gap of 3.0
        [1, 1, 0, 0, 0],  # the gap of 0.8
        [0, 0, 0, 1, 1],  # the first of the two of 1.0
    ]


def test_equal_distances_are_never_parted():
    signed = np.array([[0.0, 0.0, 1.0, 1.0]])
    assert level_sets(signed, np.ones(4, np.int64), 3).astype(int).tolist() == [[1, 1, 0, 0]]
    assert level_sets(signed * 0, np.ones(4, np.int64), 3).shape == (0, 4)


def test_of_two_level_sets_that_are_alike_the_one_with_the_wider_gap_is_taken():
    signed = np.array([[0.0, 3.0, 5.0, 9.0]])
    sizes = np.array([100, 5, 5, 100])  # 100, 105 and 110 pixels
    assert level_sets(signed, sizes, 3).astype(int).tolist() == [[1, 1, 1, 0]]
    sizes = np.array([100, 100, 5, 100])  # 100, 200 and 205
    assert level_sets(signed, sizes, 3).astype(int).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


# --- photographs -------------------------------------------------------------------------------
@pytest.mark.skipif(not BSDS.is_dir(), reason="needs photographs of BSDS500")
def test_photographs_have_candidates_that_keep_the_laws():
    folder = BSDS / "data" / "images" / "train"
    for path in sorted(folder.glob("*.jpg"))[:2]:
        image = np.asarray(Image.open(path))
        some = gop(image, edges=edges("gradient", sigma=2.0))
        assert 400 < len(some) <= 650
        masks = [some.mask(i) for i in range(0, len(some), 9)]
        assert all(label(mask)[1] == 1 for mask in masks)
        overlaps = some.iou_with_proposals(some)
        np.fill_diagonal(overlaps, 0)
        assert overlaps.max() < 0.85
