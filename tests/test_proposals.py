"""Candidates: regions of a tree and their unions, in the form of lists of superpixels."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes

from pipeline.boxes import tight_box
from pipeline.params_proposals import GradientEdges, Scg
from pipeline.proposals.edges import edges, gradient_edges
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.methods import propose

SETTINGS = Scg(
    kind="scg",
    edges=GradientEdges("gradient", sigma=1.0),
    min_area=10,
    singletons=300,
    pairs=500,
    triplets=500,
    quadruplets=500,
    max_overlap=0.95,
    max_candidates=2000,
    fill_holes=False,
)


def scg(image: np.ndarray, settings: Scg) -> Proposals:
    return propose(image, settings, edges("gradient", sigma=settings.edges.sigma), None)


def drawn(seed: int, height: int = 60, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """A disc and a two-coloured block on noise. Returns the image and an object map (1, 2)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    disc = (x - 20) ** 2 + (y - 25) ** 2 < 14**2
    block = (abs(x - 55) < 12) & (abs(y - 30) < 9)
    image = np.full((height, width, 3), 110.0)
    image[disc] = 200, 40, 40
    image[block & (x < 55)] = 40, 190, 60
    image[block & (x >= 55)] = 240, 230, 60
    image += rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), disc + 2 * block.astype(np.uint8)


@pytest.fixture(scope="module")
def found() -> Proposals:
    return scg(drawn(0)[0], SETTINGS)


@pytest.fixture(scope="module")
def masks(found) -> np.ndarray:
    return np.array([found.mask(i) for i in range(len(found))])


# --- contours ----------------------------------------------------------------------------------
def test_the_contour_of_two_halves_is_strongest_between_them():
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 15:] = 255
    strength = gradient_edges(image, sigma=1.0)
    assert strength.dtype == np.float32 and strength.shape == (20, 30)
    assert set(strength.argmax(axis=1)) <= {14, 15}
    assert strength.max() == 1
    assert strength[:, :8].max() < 0.01


def test_a_plain_image_has_no_contour():
    assert not gradient_edges(np.full((9, 7, 3), 130, np.uint8), sigma=2.0).any()


def test_a_contour_on_less_than_one_percent_of_an_image_still_counts():
    image = np.full((100, 100, 3), 90, np.uint8)
    image[50, 50] = 255
    assert gradient_edges(image, sigma=0.0).max() == 1


# --- candidates of an image --------------------------------------------------------------------
def test_every_candidate_is_a_union_of_superpixels_with_its_box_and_area(found, masks):
    assert 50 < len(found) <= SETTINGS.max_candidates
    for i, mask in enumerate(masks):
        ids = found.members[found.offsets[i] : found.offsets[i + 1]]
        np.testing.assert_array_equal(mask, np.isin(found.superpixels, ids))
        np.testing.assert_array_equal(found.boxes[i], tight_box(mask))
        assert found.areas[i] == mask.sum() > 0


def test_the_form_has_the_types_that_it_says(found):
    kinds = [found.superpixels, found.members, found.offsets]
    assert [a.dtype for a in kinds] == [np.uint16, np.uint16, np.int32]
    kinds = [found.scores, found.boxes, found.areas]
    assert [a.dtype for a in kinds] == [np.float32, np.int32, np.int32]
    assert found.boxes.shape == (len(found), 4)
    assert (np.diff(found.scores) < 0).all() and found.scores[-1] > 0


def test_no_two_candidates_are_duplicates(found, masks):
    overlaps = found.iou_with_masks(masks)
    np.fill_diagonal(overlaps, 0)
    assert overlaps.max() < SETTINGS.max_overlap


def test_the_whole_image_comes_first(found):
    assert found.mask(0).all()


def test_drawn_objects_are_found():
    for seed in range(3):
        image, objects = drawn(seed)
        best = scg(image, SETTINGS).iou_with_objects(objects, 2).max(axis=0)
        assert (best > 0.9).all()


def test_an_object_split_early_needs_pairs():
    # The left part resembles the ground, so it is split from it last: no region is both parts.
    image = np.full((40, 60, 3), 100, np.uint8)
    image[10:30, 15:30] = 125, 100, 100
    image[10:30, 30:45] = 250, 250, 40
    image = np.clip(image + np.random.default_rng(0).normal(0, 1.5, image.shape), 0, 255).astype(
        np.uint8
    )
    truth = np.zeros((1, 40, 60), bool)
    truth[0, 10:30, 15:45] = True
    alone = (
        scg(image, replace(SETTINGS, pairs=0, triplets=0, quadruplets=0))
        .iou_with_masks(truth)
        .max()
    )
    paired = scg(image, replace(SETTINGS, triplets=0, quadruplets=0)).iou_with_masks(truth).max()
    assert alone < 0.8 and paired > 0.9


def test_a_ring_is_filled_only_when_asked():
    y, x = np.mgrid[:60, :60]
    distance = np.hypot(x - 30, y - 30)
    ring = (distance > 10) & (distance < 20)
    image = np.full((60, 60, 3), 60, np.uint8)
    image[distance <= 10] = 40, 160, 90
    image[ring] = 230, 90, 40
    found, filled = scg(image, SETTINGS), scg(image, replace(SETTINGS, fill_holes=True))
    assert found.iou_with_masks(ring[None]).max() > 0.85
    assert holed(found).any() and not holed(filled).any()


def holed(proposals: Proposals) -> np.ndarray:
    masks = [proposals.mask(i) for i in range(len(proposals))]
    return np.array([(binary_fill_holes(mask) != mask).any() for mask in masks])


def test_the_same_image_gives_the_same_bytes():
    image = drawn(5)[0]
    first, again = scg(image, SETTINGS), scg(image.copy(), SETTINGS)
    for name in ("superpixels", "members", "offsets", "scores", "boxes", "areas"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (2, 2), (20, 30)])
def test_a_plain_image_is_one_region(shape):
    only = scg(np.full((*shape, 3), 77, np.uint8), replace(SETTINGS, fill_holes=True))
    assert len(only) == 1 and only.mask(0).all()
    assert only.boxes.tolist() == [[0, 0, shape[1], shape[0]]]


@pytest.mark.parametrize("shape", [(1, 40), (3, 3), (2, 50), (17, 4)])
def test_tiny_and_grey_images_have_candidates(shape):
    grey = np.random.default_rng(0).integers(0, 256, (*shape, 1), np.uint8).repeat(3, axis=2)
    some = scg(
        grey, replace(SETTINGS, min_area=1, singletons=0, edges=GradientEdges("gradient", 0.0))
    )
    assert len(some) == 0 or some.areas.min() > 0
    some = scg(grey, replace(SETTINGS, min_area=1, edges=GradientEdges("gradient", 0.5)))
    assert len(some) >= 1 and some.mask(0).all()


def test_what_is_no_image_is_refused():
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(ValueError, match="an image is"):
            scg(wrong, SETTINGS)


# --- arithmetic over all candidates ------------------------------------------------------------
def test_sums_equal_a_loop_over_the_members(found):
    numbers = np.random.default_rng(0).random((found.num_superpixels, 3))
    expected = [
        numbers[found.members[a:b]].sum(axis=0)
        for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)
    ]
    np.testing.assert_allclose(found.sums(numbers), expected, atol=1e-11)
    np.testing.assert_allclose(found.sums(numbers[:, 0]), np.array(expected)[:, 0], atol=1e-11)


def test_sums_of_whole_numbers_are_exact(found):
    pixels = np.bincount(found.superpixels.ravel())
    np.testing.assert_array_equal(found.sums(pixels), found.areas)


def test_no_candidate_has_empty_answers():
    nothing = from_membership(np.zeros((4, 5), np.uint16), np.zeros((0, 1), bool))
    assert len(nothing) == 0
    assert nothing.sums(np.ones(1)).shape == (0,)
    assert nothing.sums(np.ones((1, 2))).shape == (0, 2)
    assert nothing.iou_with_boxes(np.array([[0, 0, 2, 2]])).shape == (0, 1)
    assert nothing.iou_with_masks(np.ones((3, 4, 5), bool)).shape == (0, 3)
    assert nothing.iou_with_objects(np.ones((4, 5), np.uint8), 1).shape == (0, 1)


HALVES = from_membership(
    np.array([[0, 0, 1, 1], [0, 0, 1, 2]], np.uint16),
    np.array([[True, False, False], [False, True, True], [False, False, True]]),
)


def test_overlaps_by_hand():
    assert HALVES.boxes.tolist() == [[0, 0, 2, 2], [2, 0, 4, 2], [3, 1, 4, 2]]
    assert HALVES.areas.tolist() == [4, 4, 1]
    box = np.array([[1, 0, 4, 2]])  # 6 pixels
    np.testing.assert_allclose(HALVES.iou_with_boxes(box), [[2 / 8], [4 / 6], [1 / 6]])
    mask = np.array([[[0, 0, 1, 0], [1, 0, 1, 1]]], bool)  # 4 pixels
    np.testing.assert_allclose(HALVES.iou_with_masks(mask), [[1 / 7], [3 / 5], [1 / 4]])
    assert HALVES.iou_with_masks(np.zeros((0, 2, 4), bool)).shape == (3, 0)


def test_ignored_pixels_are_in_no_overlap():
    objects = np.array([[1, 1, 255, 2], [1, 255, 2, 2]], np.uint8)
    by_hand = [[3 / 3, 0], [0, 3 / 3], [0, 1 / 3]]
    np.testing.assert_allclose(HALVES.iou_with_objects(objects, 2), by_hand)


def test_overlaps_equal_those_of_masks(found, masks):
    rng = np.random.default_rng(2)
    shapes = rng.random((3, *found.superpixels.shape)) < [[[0.1]], [[0.5]], [[0.9]]]
    expected = [[(m & s).sum() / (m | s).sum() for s in shapes] for m in masks]
    np.testing.assert_allclose(found.iou_with_masks(shapes), expected, rtol=1e-12)


def test_overlaps_with_proposals_by_hand():
    same = [[1, 0, 0], [0, 1, 1 / 4], [0, 1 / 4, 1]]
    np.testing.assert_allclose(HALVES.iou_with_proposals(HALVES), same)
    rows = from_membership(
        np.array([[0, 0, 0, 0], [1, 1, 1, 1]], np.uint16),
        np.array([[True, False], [True, True]]),
    )
    by_hand = [[2 / 6, 4 / 8], [2 / 6, 4 / 8], [0, 1 / 8]]
    np.testing.assert_allclose(HALVES.iou_with_proposals(rows), by_hand)
    np.testing.assert_allclose(rows.iou_with_proposals(HALVES), np.transpose(by_hand))


def test_overlaps_with_proposals_equal_those_with_their_masks(found, masks):
    expected = found.iou_with_masks(masks)
    assert (found.iou_with_proposals(found) == expected).all()
    copied = replace(found, superpixels=found.superpixels.copy())
    assert (found.iou_with_proposals(copied) == expected).all()
    other = scg(drawn(1)[0], SETTINGS)
    theirs = np.array([other.mask(i) for i in range(len(other))])
    assert (found.iou_with_proposals(other) == found.iou_with_masks(theirs)).all()


def test_overlaps_with_no_proposals_are_empty(found):
    nothing = from_membership(np.zeros(found.superpixels.shape, np.uint16), np.zeros((0, 1), bool))
    assert found.iou_with_proposals(nothing).shape == (len(found), 0)
    assert nothing.iou_with_proposals(found).shape == (0, len(found))
    assert nothing.iou_with_proposals(nothing).shape == (0, 0)


def test_proposals_of_an_image_of_another_size_are_refused(found):
    with pytest.raises(ValueError, match="of one image"):
        found.iou_with_proposals(HALVES)


def test_void_pixels_are_in_no_overlap_with_masks(found, masks):
    rng = np.random.default_rng(3)
    shapes = rng.random((3, *found.superpixels.shape)) < [[[0.1]], [[0.5]], [[0.9]]]
    void = rng.random(found.superpixels.shape) < 0.3
    valid = ~void
    expected = [[(m & s & valid).sum() / ((m | s) & valid).sum() for s in shapes] for m in masks]
    np.testing.assert_allclose(found.iou_with_masks(shapes, void), expected, rtol=1e-12)
    shared, sizes, pixels = found.pixels_in_masks(shapes, void)
    np.testing.assert_array_equal(sizes, (masks & valid).sum(axis=(1, 2)))
    np.testing.assert_array_equal(pixels, (shapes & valid).sum(axis=(1, 2)))
    np.testing.assert_array_equal(shared[:, 1], (masks & shapes[1] & valid).sum(axis=(1, 2)))


def test_where_all_is_void_nothing_overlaps():
    mask = np.ones((1, 2, 4), bool)
    assert HALVES.iou_with_masks(mask, np.ones((2, 4), bool)).tolist() == [[0], [0], [0]]
