"""Boxes to label maps: the costs and choices of BoxSup, painting, rectangles, GrabCut."""

import math

import numpy as np
import pytest

from pipeline.boxes import box_mask, iou, tight_box
from pipeline.labels import (
    Choice,
    choose,
    grabcut_mask,
    image_costs,
    label_map_of,
    left_out,
    literal_regression_costs,
    paint,
    rectangle_labels,
)
from pipeline.proposals.form import Proposals, from_membership
from pipeline.superpixels import Runs

NO_COST = np.full(10, np.nan)


def candidate_costs(proposals, box, category, logs, costs="averaged") -> list[np.ndarray]:
    """Both costs (P,) of all candidates for one box."""
    one = np.asarray(box)[None], np.array([category])
    both = image_costs(proposals, *one, logs, clip=10, costs=costs)
    return [cost[0] for cost in both]


def some_proposals(seed: int, count: int = 40) -> Proposals:
    """Candidates of 12 blocks of pixels that are numbered without any order."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(12).reshape(3, 4)
    superpixels = np.kron(names, np.ones((5, 6), int)).astype(np.uint16)  # (15, 24)
    members = rng.random((count, 12)) < 0.4
    return from_membership(superpixels, members[members.any(axis=1)])


def log_probabilities(seed: int, num_categories: int, height: int, width: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 4, (num_categories, height, width))
    logits -= np.log(np.exp(logits).sum(axis=0))
    return logits.astype(np.float32)


def chosen_once(overlap, regression=NO_COST, seed=0, **settings) -> Choice:
    usual = dict(lam=0.0, top_k=1, min_box_iou=0.0, fallback_box_iou=0.0, fallback="rectangle")
    rng = np.random.default_rng(seed)
    return choose(np.array(overlap), np.array(regression), rng=rng, **(usual | settings))


# --- costs -------------------------------------------------------------------------------------
def test_costs_by_hand():
    # Superpixels: the left and the right half of 2 x 4 pixels; a candidate of each.
    halves = from_membership(
        np.array([[0, 0, 1, 1]] * 2, np.uint16), np.array([[True, False], [False, True]])
    )
    probabilities = np.full((2, 2, 4), 0.5, np.float32)
    probabilities[:, 0, 0] = 0.25, 0.75  # background, object
    box = np.array([0, 0, 3, 2])
    overlap, regression = candidate_costs(halves, box, 1, np.log(probabilities))
    half, quarter, three = math.log(2), math.log(4), math.log(4 / 3)
    np.testing.assert_allclose(overlap, [1 - 4 / 6, 1 - 2 / 8])
    # Left: 6 pixels, 4 of the object. Right: 8 pixels, of which background holds the 4 on the left.
    expected = [(three + 5 * half) / 6, (quarter + 7 * half) / 8]
    np.testing.assert_allclose(regression, expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_costs_equal_a_loop_over_candidates_and_pixels(seed):
    proposals = some_proposals(seed)
    logs = log_probabilities(seed, 4, 15, 24)
    logs[:, 3, 5] = -np.inf
    boxes = np.array([[2, 1, 9, 12], [0, 0, 24, 15], [7, 7, 8, 8], [6, 5, 18, 10]])
    categories = np.array([3, 1, 3, 2])
    overlap, regression = image_costs(
        proposals, boxes, categories, logs, clip=3.0, costs="averaged"
    )
    for n, (box, category) in enumerate(zip(boxes, categories, strict=True)):
        inside = box_mask(box, 15, 24)
        for p in range(len(proposals)):
            mask = proposals.mask(p)
            losses = [
                min(-float(logs[category if mask[y, x] else 0, y, x]), 3.0)
                for y in range(15)
                for x in range(24)
                if mask[y, x] or inside[y, x]
            ]
            assert regression[n, p] == pytest.approx(sum(losses) / len(losses), rel=1e-9)
            best = iou(tight_box(mask)[None], box[None])[0, 0]
            assert overlap[n, p] == pytest.approx(1 - best)


def test_one_box_costs_what_it_costs_among_others():
    proposals, logs = some_proposals(3), log_probabilities(3, 3, 15, 24)
    boxes, categories = np.array([[2, 1, 9, 12], [3, 0, 20, 15]]), np.array([2, 1])
    together = image_costs(proposals, boxes, categories, logs, clip=10, costs="averaged")
    for n in range(2):
        alone = candidate_costs(proposals, boxes[n], int(categories[n]), logs)
        np.testing.assert_array_equal(alone[0], together[0][n])
        np.testing.assert_allclose(alone[1], together[1][n], rtol=1e-12)


def test_without_a_network_there_is_no_regression_cost():
    boxes = np.array([[2, 1, 9, 12]])
    overlap, regression = image_costs(
        some_proposals(4), boxes, np.array([1]), None, clip=10, costs="averaged"
    )
    assert np.isnan(regression).all() and regression.shape == overlap.shape


def test_an_image_without_boxes_or_candidates_has_empty_costs():
    proposals, logs = some_proposals(5), log_probabilities(5, 3, 15, 24)
    none = np.zeros((0, 4), int)
    for costs in image_costs(proposals, none, np.zeros(0, int), logs, clip=10, costs="averaged"):
        assert costs.shape == (0, len(proposals))
    empty = from_membership(np.zeros((15, 24), np.uint16), np.zeros((0, 1), bool))
    for costs in candidate_costs(empty, np.array([0, 0, 5, 5]), 1, logs):
        assert costs.shape == (0,)


def test_literal_costs_equal_a_loop_over_all_pixels():
    proposals, logs = some_proposals(7), log_probabilities(7, 3, 15, 24)
    logs[0, 2, 3] = -np.inf
    found = literal_regression_costs(proposals, np.array([2, 1, 2]), logs, clip=6.0)
    for n, category in enumerate([2, 1, 2]):
        for p in range(len(proposals)):
            mask = proposals.mask(p)
            losses = [
                min(-float(logs[category if mask[y, x] else 0, y, x]), 6.0)
                for y in range(15)
                for x in range(24)
            ]
            assert found[n, p] == pytest.approx(sum(losses), rel=1e-9)


def test_literal_costs_rank_as_the_printed_sum_does():
    proposals, logs = some_proposals(8), log_probabilities(8, 3, 15, 24)
    box, lam, count = [2, 1, 9, 12], 3.0, len(some_proposals(8))
    overlap, regression = candidate_costs(proposals, box, 2, logs, costs="literal")
    summed = literal_regression_costs(proposals, np.array([2]), logs, clip=10)[0]
    printed = overlap / count + lam * summed  # Eq. 4 of Eqs. 2 and 3
    order = np.argsort(overlap + lam * regression)
    assert (np.diff(printed[order]) >= -1e-9 * printed.max()).all()


def as_runs(proposals: Proposals) -> Runs:
    """The same candidates, one superpixel after another as long as ids follow each other."""
    edges, offsets = [], [0]
    for begin, end in zip(proposals.offsets[:-1], proposals.offsets[1:], strict=True):
        ids = proposals.members[begin:end].astype(int)
        breaks = np.flatnonzero(np.diff(ids) != 1)
        firsts, lasts = ids[np.r_[0, breaks + 1]], ids[np.r_[breaks, len(ids) - 1]]
        edges.append(np.stack([firsts, lasts + 1], axis=1).ravel())
        offsets.append(offsets[-1] + edges[-1].size)
    return Runs(
        superpixels=proposals.superpixels,
        edges=np.concatenate(edges).astype(np.int32),
        offsets=np.array(offsets, np.int32),
        boxes=proposals.boxes,
        areas=proposals.areas,
    )


@pytest.mark.parametrize("costs", ["averaged", "literal"])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 6])
def test_runs_cost_and_are_painted_as_lists_are_bit_for_bit(costs, number):
    proposals, logs = some_proposals(9), log_probabilities(9, 6, 15, 24)
    logs[2, 4, 7] = -np.inf
    runs, rng = as_runs(proposals), np.random.default_rng(9)
    corners = np.sort(rng.integers(0, 14, (number, 2, 2)), axis=1)
    boxes = np.concatenate([corners[:, 0], corners[:, 1] + 1], axis=1)
    categories = 1 + np.arange(number) % 5
    settings = dict(clip=4.0, costs=costs)
    of_lists = image_costs(proposals, boxes, categories, logs, **settings)
    of_runs = image_costs(runs, boxes, categories, logs, **settings)
    for first, second in zip(of_lists, of_runs, strict=True):
        np.testing.assert_array_equal(first, second)
    choices = [Choice(n, 0, 0.0, 0.0, 1, "candidate", "chosen") for n in range(number)]
    painted = [label_map_of(choices, form, boxes, categories) for form in (proposals, runs)]
    np.testing.assert_array_equal(*painted)


def test_a_sure_network_makes_the_true_mask_cheapest():
    proposals = some_proposals(6)
    truth = proposals.mask(7)
    logs = np.log(np.where(np.stack([~truth, truth]), 0.99, 0.01)).astype(np.float32)
    _, regression = candidate_costs(proposals, tight_box(truth), 1, logs)
    same = np.flatnonzero([(proposals.mask(p) == truth).all() for p in range(len(proposals))])
    assert regression.argmin() in same
    assert regression.min() == pytest.approx(-math.log(0.99), rel=1e-5)


# --- choices -----------------------------------------------------------------------------------
def test_the_smallest_cost_is_chosen():
    nan = pytest.approx(math.nan, nan_ok=True)
    assert chosen_once([0.5, 0.2, 0.4]) == (1, 0, 0.2, nan, 3, "candidate", "chosen")


def test_lambda_weighs_the_feedback_of_the_network():
    overlap, regression = [0.1, 0.2], [0.5, 0.4]
    assert chosen_once(overlap, regression, lam=0.9).proposal == 0  # .55 and .56
    assert chosen_once(overlap, regression, lam=1.1).proposal == 1  # .65 and .64
    assert chosen_once(overlap, regression, lam=1.1).regression_cost == 0.4


def test_each_of_the_k_cheapest_is_drawn_equally():
    overlap = np.array([0.5, 0.1, 0.9, 0.3, 0.2])
    rng = np.random.default_rng(0)
    settings = dict(lam=0.0, top_k=3, min_box_iou=0, fallback_box_iou=0, fallback="rectangle")
    draws = [choose(overlap, NO_COST, **settings, rng=rng) for _ in range(3000)]
    counts = np.bincount([d.proposal for d in draws], minlength=5)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert (abs(counts[[1, 3, 4]] - 1000) < 130).all()
    assert {(d.proposal, d.rank) for d in draws} == {(1, 0), (4, 1), (3, 2)}


def test_of_equal_costs_the_earlier_candidate_goes_first():
    assert chosen_once([0.3, 0.2, 0.2, 0.2]).proposal == 1
    drawn = {chosen_once([0.3, 0.2, 0.2, 0.2], top_k=2, seed=s).proposal for s in range(50)}
    assert drawn == {1, 2}


def test_a_cheap_candidate_that_misses_the_box_does_not_compete():
    overlap, regression = [0.7, 0.4, 0.3], [0.0, 0.2, 2.0]
    assert chosen_once(overlap, regression, lam=3.0).proposal == 0
    assert chosen_once(overlap, regression, lam=3.0, min_box_iou=0.6).proposal == 1


def test_an_overlap_at_the_threshold_is_admissible():
    fractions = [(3, 5), (7, 10), (1, 3), (6, 11)]
    for a, b in fractions:
        costs = [1 - a / b, 0.999]
        regression = [1.0, 0.0]
        kept = chosen_once(costs, regression, lam=9.0, min_box_iou=a / b, fallback_box_iou=a / b)
        assert kept.proposal == 0


def test_where_too_few_are_admissible_the_best_by_overlap_compete():
    overlap, regression = np.array([0.3, 0.6, 0.8, 0.7]), [5.0, 1.0, 0.0, 0.5]
    drawn = {
        chosen_once(overlap, regression, lam=1.0, top_k=3, min_box_iou=0.6, seed=s)[:2]
        for s in range(60)
    }
    assert drawn == {(3, 0), (1, 1), (0, 2)}


def test_a_candidate_without_overlap_is_never_chosen():
    overlap = [1.0, 0.9, 1.0]
    drawn = {chosen_once(overlap, top_k=3, seed=s).proposal for s in range(30)}
    assert drawn == {1}
    assert chosen_once([1.0, 1.0])[:3] == (-1, 0, 1.0)


def test_without_a_fitting_candidate_the_box_gets_its_rectangle():
    assert chosen_once([0.8, 0.75], fallback_box_iou=0.3)[:3] == (-1, 0, 0.75)
    assert chosen_once([0.8, 0.65], fallback_box_iou=0.3).proposal == 1
    nothing = chosen_once([], [], fallback_box_iou=0.3)
    assert nothing[:3] == (-1, 0, 1.0) and math.isnan(nothing.regression_cost)


def test_a_box_without_a_fitting_candidate_may_be_ignored_instead():
    found = chosen_once([0.8, 0.75], fallback_box_iou=0.3, min_box_iou=0.22, fallback="ignore")
    assert (found.label, found.reason, found.admissible) == ("ignore", "unfit", 1)
    fits = chosen_once([0.8, 0.75], fallback_box_iou=0.2, fallback="ignore")
    assert (fits.label, fits.reason, fits.admissible) == ("candidate", "chosen", 2)


@pytest.mark.parametrize("seed", range(20))
def test_the_k_cheapest_are_the_first_of_a_stable_sorting(seed):
    rng = np.random.default_rng(seed)
    overlap = rng.integers(0, 4, 30) / 5
    for k in (1, 5, 29, 30, 31):
        expected = np.argsort(overlap, kind="stable")[:k]
        found = chosen_once(overlap, np.zeros(30), top_k=k, seed=seed)
        assert found.proposal == expected[found.rank]


def test_the_same_generator_gives_the_same_choice():
    overlap = np.linspace(0.1, 0.5, 30)
    many = [chosen_once(overlap, np.zeros(30), top_k=20, seed=s) for s in (1, 1, 2, 3)]
    assert many[0] == many[1] and len(set(many)) > 1


def test_lambda_without_a_network_is_an_error():
    with pytest.raises(ValueError, match="no network was asked"):
        chosen_once([0.1, 0.2], [np.nan, np.nan], lam=1.0)


# --- painting ----------------------------------------------------------------------------------
def test_the_smaller_object_is_on_top():
    boxes = np.array([[1, 0, 3, 1], [0, 0, 4, 2]])
    painted = rectangle_labels(boxes, np.array([5, 7]), 2, 5)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[7, 5, 5, 7, 0], [7, 7, 7, 7, 0]]


def test_of_equal_boxes_the_later_is_on_top():
    boxes = np.array([[0, 0, 2, 1], [1, 0, 3, 1]])
    assert rectangle_labels(boxes, np.array([3, 4]), 1, 3).tolist() == [[3, 4, 4]]


def test_the_box_and_not_the_mask_decides_who_is_on_top():
    thin = np.array([[True, False, False], [True, True, True]])
    small = np.array([[False, False, False], [True, True, False]])
    boxes = np.array([[0, 1, 2, 2], [0, 0, 3, 2]])
    assert paint([small, thin], boxes, np.array([1, 2]), 2, 3).tolist() == [[2, 0, 0], [1, 1, 2]]


def test_no_box_paints_nothing():
    assert not rectangle_labels(np.zeros((0, 4), int), np.zeros(0, int), 3, 4).any()
    assert not paint([], np.zeros((0, 4), int), np.zeros(0, int), 3, 4).any()


def test_a_choice_is_painted_as_its_candidate_or_its_rectangle():
    halves = from_membership(
        np.array([[0, 0, 1, 1]] * 2, np.uint16), np.array([[True, False], [False, True]])
    )
    choices = [
        Choice(1, 0, 0.2, math.nan, 1, "candidate", "chosen"),
        Choice(-1, 0, 0.9, math.nan, 0, "rectangle", "unfit"),
    ]
    boxes = np.array([[1, 0, 4, 2], [0, 1, 2, 2]])
    painted = label_map_of(choices, halves, boxes, np.array([6, 2]))
    assert painted.tolist() == [[0, 0, 6, 6], [2, 2, 6, 6]]


def test_a_box_may_be_ignored_or_left_to_the_background():
    halves = from_membership(
        np.array([[0, 0, 1, 1]] * 2, np.uint16), np.array([[True, False], [False, True]])
    )
    choices = [
        left_out("ignore", "crowd"),
        Choice(1, 0, 0.2, math.nan, 1, "candidate", "chosen"),
        left_out("background", "difficult"),
    ]
    boxes = np.array([[0, 0, 4, 2], [2, 0, 3, 2], [0, 0, 1, 1]])
    painted = label_map_of(choices, halves, boxes, np.array([6, 2, 3]))
    assert painted.tolist() == [[255, 255, 2, 2], [255, 255, 2, 2]]


@pytest.mark.parametrize("seed", range(3))
def test_a_map_of_choices_equals_painting_whole_masks(seed):
    proposals, rng = some_proposals(seed), np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, 12, (8, 2, 2)), axis=1)
    boxes = np.concatenate([corners[:, 0], corners[:, 1] + 1], axis=1)
    categories = np.arange(1, 9)
    choices = [Choice(int(p), 0, 0.0, 0.0, 1, "candidate", "chosen") for p in range(6)]
    choices += [left_out("rectangle", "unfit"), left_out("ignore", "unfit")]
    masks = [proposals.mask(p) for p in range(6)] + [box_mask(box, 15, 24) for box in boxes[6:]]
    expected = paint(masks, boxes, np.where(categories == 8, 255, categories), 15, 24)
    found = label_map_of(choices, proposals, boxes, categories)
    np.testing.assert_array_equal(found, expected)


# --- GrabCut -----------------------------------------------------------------------------------
def disc_on_ground(noise: float = 12) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:50, :60]
    disc = (x - 30) ** 2 + (y - 25) ** 2 < 15**2
    image = np.where(disc[..., None], (200, 60, 40), (70, 110, 160)).astype(float)
    image += np.random.default_rng(0).normal(0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), disc


def test_grabcut_finds_a_disc_in_its_box():
    image, disc = disc_on_ground()
    found = grabcut_mask(image, tight_box(disc), iterations=5, min_area=0.05)
    assert (found & disc).sum() / (found | disc).sum() > 0.95


def test_grabcut_stays_in_the_box_and_gives_the_same_again():
    image, disc = disc_on_ground(noise=60)
    box = np.array([20, 12, 38, 33])
    first = grabcut_mask(image, box, iterations=3, min_area=0.05)
    assert first.any() and not (first & ~box_mask(box, 50, 60)).any()
    np.testing.assert_array_equal(first, grabcut_mask(image, box, iterations=3, min_area=0.05))


def test_a_result_too_small_for_its_box_is_the_rectangle():
    image, disc = disc_on_ground()
    box = tight_box(disc)
    whole = grabcut_mask(image, box, iterations=5, min_area=0.99)
    np.testing.assert_array_equal(whole, box_mask(box, 50, 60))


@pytest.mark.parametrize(
    "box", [(0, 0, 60, 50), (0, 0, 60, 49), (5, 5, 6, 6), (59, 49, 60, 50), (0, 0, 2, 50)]
)
@pytest.mark.parametrize("flat", [True, False])
def test_grabcut_stands_whole_tiny_and_flat_boxes(box, flat):
    image = np.full((50, 60, 3), 9, np.uint8) if flat else disc_on_ground()[0]
    found = grabcut_mask(image, np.array(box), iterations=2, min_area=0.05)
    assert found.any() and not (found & ~box_mask(np.array(box), 50, 60)).any()
