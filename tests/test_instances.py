"""Object masks from votes: by hand, and what is no fair input."""

import numpy as np
import pytest

from pipeline.instances import find_instances, find_votes
from pipeline.instances.suppression import suppress
from pipeline.instances.votes import by_score
from pipeline.masks import decode_rle
from pipeline.params import AnyOverlap, BoxInstances, RegionIou


def rule(
    *, top_masks=1, min_probability=0.0, nms_iou=0.5, region_nms=None, min_pixels=0
) -> BoxInstances:
    return BoxInstances(
        kind="boxes",
        vote_stride=1,
        top_masks=top_masks,
        min_probability=min_probability,
        nms_iou=nms_iou,
        region_nms=region_nms or RegionIou(kind="iou", iou=0.3),
        min_pixels=min_pixels,
    )


def of_one(scores, boxes, *, stride=1, size=None, **settings):
    """What is found of category 1, of which alone there are scores (h, w), and boxes (h, w, 4)."""
    scores = np.array(scores, np.float32)
    boxes = np.array(boxes, np.float32).transpose(2, 0, 1)[None]
    probabilities = np.stack([0 * scores, scores])
    size = size or tuple(side * stride for side in scores.shape)
    return find_instances(
        probabilities, boxes, np.array([1]), size=size, stride=stride, rule=rule(**settings)
    )


def masks(found, size):
    return [decode_rle(rle, *size).astype(int).tolist() for rle in found.rles]


A, B = (0, 0, 2, 1), (2, 0, 4, 1)


# --- by hand --------------------------------------------------------------------------------------
def test_cells_that_vote_for_the_same_box_are_one_object():
    found = of_one([[0.75, 0.5, 0.25, 0.125]], [[A, A, B, B]])
    assert found.categories.tolist() == [1, 1]
    assert found.scores.tolist() == [(0.75 + 0.5) / 2, (0.25 + 0.125) / 2]
    assert found.votes.tolist() == [list(A), list(B)]
    assert found.peaks.tolist() == [[0, 0], [2, 0]]
    assert found.boxes.tolist() == [[0, 0, 2, 1], [2, 0, 4, 1]]
    assert masks(found, (1, 4)) == [[[1, 1, 0, 0]], [[0, 0, 1, 1]]]


def test_parts_that_do_not_touch_are_one_mask():
    found = of_one([[0.5, 0.0, 0.25]], [[(0, 0, 3, 1)] * 3])
    assert masks(found, (1, 3)) == [[[1, 0, 1]]]
    assert found.boxes.tolist() == [[0, 0, 3, 1]]
    assert found.scores.tolist() == [(0.5 + 0.25) / 2]


def test_a_box_is_suppressed_at_the_threshold_itself():
    near = (0, 0, 1, 1)  # 1 / 2 of A
    assert len(of_one([[0.5, 0.25]], [[A, near]], nms_iou=0.5).scores) == 1
    assert len(of_one([[0.5, 0.25]], [[A, near]], nms_iou=0.51).scores) == 2


def test_the_k_th_mask_is_where_a_category_is_among_the_k_best_of_all():
    # Categories: background, 1, 2, 3. Cell by cell, 1 is best, second, third, equal best.
    probabilities = np.array(
        [
            [[0.125, 0.5, 0.5, 0.375]],
            [[0.5, 0.25, 0.125, 0.375]],
            [[0.25, 0.125, 0.25, 0.125]],
            [[0.125, 0.125, 0.125, 0.125]],
        ],
        np.float32,
    )
    boxes = np.array([(0, 0, 4, 1)] * 4, np.float32).T.reshape(4, 1, 4)
    settings = rule(top_masks=3)
    votes = find_votes(probabilities, boxes, 1, stride=1, rule=settings)
    columns = [sorted(part.cells[:, 1].tolist()) for part in votes]
    assert columns == [[0, 3], [0, 1, 3], [0, 1, 2, 3]]
    confidences = [part.confidences().tolist() for part in votes]
    assert confidences == [[0.875 / 2], [1.125 / 3], [1.25 / 4]]
    # All three masks overlap by more than 0.3: the first, of highest confidence, stays.
    found = find_instances(
        probabilities, boxes[None], np.array([1]), size=(1, 4), stride=1, rule=settings
    )
    assert masks(found, (1, 4)) == [[[1, 0, 0, 1]]]


def test_cells_of_little_probability_do_not_vote():
    found = of_one([[0.75, 0.25]], [[A, A]], min_probability=0.5)
    assert masks(found, (1, 2)) == [[[1, 0]]]
    assert found.scores.tolist() == [0.75]
    assert len(of_one([[0.75, 0.25]], [[A, A]], min_probability=0.25).scores) == 1


def test_a_least_probability_is_as_exact_as_probabilities_are():
    assert of_one([[0.7]], [[A]], min_probability=0.7).scores.tolist() == [np.float32(0.7)]


@pytest.mark.parametrize(
    ("nms_iou", "expected"),
    [(0.5, [[1, 0, 0, 0], [0, 0, 0, 1]]), (0.3, [[1, 1, 0, 0], [0, 0, 1, 1]])],
)
def test_pixels_are_traced_back_by_their_own_interpolated_boxes(nms_iou, expected):
    # Two cells of 2 x 2 pixels: at the second column the box is (2, 0, 6, 4), 8 / 24 of the first.
    boxes = [[(0, 0, 4, 4), (8, 0, 12, 4)]]
    found = of_one([[0.5, 0.5]], boxes, stride=2, nms_iou=nms_iou)
    assert masks(found, (2, 4)) == [[row, row] for row in expected]


def test_pixels_of_a_mask_are_those_where_the_interpolated_probability_leads():
    # 3/4, 9/16, 3/16, 0 across: half and more in the first two columns.
    probabilities = np.array([[[0.25, 1]], [[0.75, 0]]], np.float32)
    boxes = np.array([(0, 0, 4, 2)] * 2, np.float32).T.reshape(1, 4, 1, 2)
    found = find_instances(probabilities, boxes, np.array([1]), size=(2, 4), stride=2, rule=rule())
    assert masks(found, (2, 4)) == [[[1, 1, 0, 0]] * 2]
    assert found.scores.tolist() == [0.75]  # of the cells alone


def test_a_pixel_goes_to_the_hypothesis_that_was_found_first():
    # The middle one overlaps both others by 1 / 2, these each other by 1 / 5.
    boxes = [[(0, 0, 3, 1), (1, 0, 4, 1), (2, 0, 5, 1)]]
    found = of_one([[0.25, 0.125, 0.5]], boxes)
    assert masks(found, (1, 3)) == [[[0, 1, 1]], [[1, 0, 0]]]
    assert found.scores.tolist() == [(0.5 + 0.125) / 2, 0.25]


def test_of_equal_scores_the_vote_nearest_to_the_centre_of_its_box_is_first():
    boxes = [[(0, 0, 3, 1), (0, 0, 3, 1), (0, 0, 3, 1)]]
    found = of_one([[0.5, 0.5, 0.5]], boxes)
    assert found.peaks.tolist() == [[1, 0]]


def test_distance_from_the_centre_is_counted_in_sides_of_the_box():
    # 1 px of 4 is nearer than 1 px of 3; in pixels the two are equal.
    order = by_score(
        np.array([0.5, 0.5], np.float32),
        np.array([(0, 0, 3, 3), (0, 0, 4, 4)], np.float32),
        np.array([(0.5, 1.5), (1.0, 2.0)]),
    )
    assert order.tolist() == [1, 0]


def test_of_equal_scores_and_distances_the_first_in_raster_order_is_first():
    order = by_score(
        np.array([0.5, 1.0, 0.5], np.float32),
        np.array([(0, 0, 2, 2)] * 3, np.float32),
        np.array([(0.5, 1), (0.5, 1), (1.5, 1)]),
    )
    assert order.tolist() == [1, 0, 2]


def test_small_masks_are_dropped():
    scores, boxes = [[0.75, 0.5, 0.25]], [[A, A, B]]
    assert len(of_one(scores, boxes, min_pixels=1).scores) == 2
    assert len(of_one(scores, boxes, min_pixels=2).scores) == 1
    assert len(of_one(scores, boxes, min_pixels=3).scores) == 0


def nested(region_nms):
    """A category whose second mask has one hypothesis more, around the first one's."""
    probabilities = np.array([[[0.25, 0.5, 0.5, 0.5]], [[0.5, 0.25, 0.25, 0.25]]], np.float32)
    boxes = np.array([(0, 0, 2, 1)] * 4, np.float32).T.reshape(1, 4, 1, 4)
    settings = rule(top_masks=2, region_nms=region_nms)
    return find_instances(probabilities, boxes, np.array([1]), size=(1, 4), stride=1, rule=settings)


def test_masks_of_one_category_that_overlap_are_one_object():
    # The second mask holds the first one's pixel, 1 of 4.
    first, both = [[[1, 0, 0, 0]]], [[[1, 0, 0, 0]], [[1, 1, 1, 1]]]
    assert masks(nested(RegionIou("iou", iou=0.25)), (1, 4)) == first
    assert masks(nested(RegionIou("iou", iou=0.26)), (1, 4)) == both
    assert masks(nested(AnyOverlap("any_overlap")), (1, 4)) == first


def test_categories_do_not_suppress_each_other():
    probabilities = np.array([[[0.25]], [[0.5]], [[0.25]]], np.float32)
    boxes = np.array([(0, 0, 1, 1)] * 2, np.float32).reshape(2, 4, 1, 1)
    found = find_instances(
        probabilities, boxes, np.array([1, 2]), size=(1, 1), stride=1, rule=rule(top_masks=2)
    )
    assert found.categories.tolist() == [1, 2]
    assert found.scores.tolist() == [0.5, 0.25]


def test_of_equal_objects_the_category_that_is_named_first_is_first():
    probabilities = np.full((3, 1, 1), 0.25, np.float32)
    boxes = np.array([(0, 0, 1, 1)] * 2, np.float32).reshape(2, 4, 1, 1)
    for things in ([1, 2], [2, 1]):
        found = find_instances(
            probabilities, boxes, np.array(things), size=(1, 1), stride=1, rule=rule()
        )
        assert found.categories.tolist() == things


def test_peaks_are_pixels_of_the_image():
    found = of_one(np.full((2, 2), 0.5), [[(-4, -4, 14, 14)] * 2] * 2, stride=8, size=(9, 12))
    assert len(found.peaks) == 1
    assert (found.peaks < [12, 9]).all()


# --- what a figure shows --------------------------------------------------------------------------
def test_votes_stand_by_falling_score_with_the_maximum_of_each():
    scores = np.array([[0.125, 0.5], [0.25, 0.75]], np.float32)
    boxes = np.array([[B, A], [A, B]], np.float32).transpose(2, 0, 1)
    votes = find_votes(np.stack([0 * scores, scores]), boxes, 1, stride=8, rule=rule())[0]
    assert votes.cells.tolist() == [[1, 1], [0, 1], [1, 0], [0, 0]]
    assert votes.scores.tolist() == [0.75, 0.5, 0.25, 0.125]
    assert votes.boxes.tolist() == [list(B), list(A), list(A), list(B)]
    assert votes.kept.tolist() == [0, 1]
    assert votes.cluster.tolist() == [0, 1, 1, 0]
    assert votes.confidences().tolist() == [0.875 / 2, 0.75 / 2]


def test_one_category_alone_votes_as_among_the_others():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), (6, 7)).transpose(2, 0, 1).astype(np.float32)
    low = generator.uniform(0, 30, (3, 2, 6, 7))
    boxes = np.concatenate([low, low + generator.uniform(5, 30, low.shape)], axis=1)
    settings = rule(region_nms=RegionIou("iou", 1.0))
    boxes = boxes.astype(np.float32)
    found = find_instances(
        probabilities, boxes, np.array([1, 2, 3]), size=(6, 7), stride=1, rule=settings
    )
    for t in range(3):
        votes = find_votes(probabilities, boxes[t], t + 1, stride=1, rule=settings)[0]
        mine = found.categories == t + 1
        assert sorted(found.scores[mine]) == sorted(votes.confidences())
        assert sorted(found.votes[mine].tolist()) == sorted(votes.boxes[votes.kept].tolist())


# --- no fair input --------------------------------------------------------------------------------
def assert_nothing(found):
    assert found.rles == []
    shapes = [getattr(found, name).shape for name in ("categories", "scores", "boxes", "votes")]
    assert shapes == [(0,), (0,), (0, 4), (0, 4)]
    assert found.peaks.shape == (0, 2)


def test_no_foreground_is_no_object():
    assert_nothing(of_one(np.zeros((3, 4)), np.full((3, 4, 4), 5.0)))


def test_nothing_to_look_for_is_no_object():
    found = find_instances(
        np.ones((2, 3, 4), np.float32),
        np.zeros((0, 4, 3, 4), np.float32),
        np.zeros(0, int),
        size=(3, 4),
        stride=1,
        rule=rule(),
    )
    assert_nothing(found)


def test_a_category_that_is_nowhere_is_not_found_though_it_ties_at_zero():
    probabilities = np.zeros((3, 2, 2), np.float32)
    boxes = np.tile(np.array([0, 0, 2, 2], np.float32)[:, None, None], (2, 1, 2, 2))
    found = find_instances(
        probabilities, boxes, np.array([1, 2]), size=(2, 2), stride=1, rule=rule(top_masks=3)
    )
    assert_nothing(found)


def test_an_image_of_one_pixel():
    found = of_one([[1.0]], [[(0, 0, 1, 1)]])
    assert (found.scores.tolist(), found.boxes.tolist()) == ([1.0], [[0, 0, 1, 1]])
    assert masks(found, (1, 1)) == [[[1]]]


def test_one_pixel_of_a_cell():
    found = of_one([[1.0]], [[(0, 0, 1, 1)]], stride=8, size=(1, 1))
    assert masks(found, (1, 1)) == [[[1]]]
    assert found.peaks.tolist() == [[0, 0]]


def test_boxes_may_lie_outside_the_image():
    found = of_one([[0.5, 0.25]], [[(-90, -90, -10, -10), (500, 500, 600, 600)]])
    assert masks(found, (1, 2)) == [[[1, 0]], [[0, 1]]]
    assert found.votes.tolist() == [[-90, -90, -10, -10], [500, 500, 600, 600]]


@pytest.mark.parametrize(
    "box",
    [
        (np.nan, 0, 2, 1),
        (0, 0, np.nan, 1),
        (0, 0, np.inf, 1),
        (-np.inf, 0, 2, 1),
        (np.inf, 0, np.inf, 1),
        (-3e38, -3e38, 3e38, 3e38),
        (1e-30, 1e-30, 2e-30, 2e-30),
        (0, 0, 0, 1),
        (0, 0, 2, 0),
        (2, 0, 0, 1),
        (2, 1, 0, 0),
    ],
)
def test_a_box_that_is_not_finite_or_has_no_area_is_no_vote(box):
    assert_nothing(of_one([[0.5]], [[box]]))
    found = of_one([[0.5, 0.75, 0.25]], [[A, box, A]])
    assert masks(found, (1, 3)) == [[[1, 0, 1]]]
    assert found.scores.tolist() == [(0.5 + 0.25) / 2]


def test_pixels_beside_a_cell_without_a_box_are_left_out():
    boxes = np.tile(np.array([0, 0, 6, 2], float), (1, 3, 1))
    boxes[0, 2] = np.nan
    found = of_one([[0.5, 0.5, 0.5]], boxes, stride=2)
    assert masks(found, (2, 6)) == [[[1, 1, 1, 0, 0, 0]] * 2]


def test_a_probability_that_is_no_number_is_in_no_mask():
    probabilities = np.array([[[np.nan, 0.5]], [[0.5, np.nan]]], np.float32)
    boxes = np.array([(0, 0, 2, 1)] * 2, np.float32).T.reshape(1, 4, 1, 2)
    found = find_instances(
        probabilities, boxes, np.array([1]), size=(1, 2), stride=1, rule=rule(top_masks=2)
    )
    assert masks(found, (1, 2)) == [[[1, 0]]]


def test_ten_thousand_votes_for_one_place():
    scores = np.random.default_rng(0).permutation(10_000).reshape(100, 100) / 20_000 + 0.25
    found = of_one(scores, np.tile([10.0, 10, 90, 90], (100, 100, 1)))
    assert len(found.rles) == 1
    assert found.boxes.tolist() == [[0, 0, 100, 100]]
    assert found.scores[0] == pytest.approx(scores.mean(), rel=1e-7)


def test_ten_thousand_votes_for_different_places():
    corners = np.stack(np.meshgrid(np.arange(100), np.arange(100)), axis=-1)
    found = of_one(np.full((100, 100), 0.5), np.concatenate([corners, corners + 1], axis=-1))
    assert len(found.rles) == 10_000
    assert found.boxes.tolist() == found.votes.astype(int).tolist()


def test_the_confidence_of_many_votes_is_their_mean_to_the_last_bits():
    scores = np.random.default_rng(1).uniform(1e-3, 1, (100, 100)).astype(np.float32)
    found = of_one(scores, np.tile([10.0, 10, 90, 90], (100, 100, 1)))
    exact = sum(int(s) for s in scores.ravel().astype(np.float64) * 2**60) / 2**60 / scores.size
    assert found.scores[0] == pytest.approx(exact, rel=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": np.ones((3, 4), np.float32)}, "probabilities"),
        ({"probabilities": np.ones((2, 3, 4))}, "float32"),
        ({"probabilities": np.ones((2, 0, 4), np.float32)}, "probabilities"),
        ({"boxes": np.ones((1, 4, 3, 5), np.float32)}, "boxes"),
        ({"boxes": np.ones((2, 4, 3, 4), np.float32)}, "boxes"),
        ({"boxes": np.ones((1, 4, 3, 4))}, "float32"),
        ({"things": np.array([2])}, "things"),
        ({"things": np.array([-1])}, "things"),
        ({"things": np.array([1, 1])}, "different"),
        ({"things": np.array([[1]])}, "things"),
        ({"size": (3, 5)}, "cells"),
        ({"size": (2, 4)}, "cells"),
        ({"stride": 0}, "cells"),
        ({"stride": 2}, "cells"),
        ({"rule": rule(top_masks=0)}, "top_masks"),
        ({"rule": rule(top_masks=256)}, "top_masks"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    fitting = {
        "probabilities": np.ones((2, 3, 4), np.float32),
        "boxes": np.ones((1, 4, 3, 4), np.float32),
        "things": np.array([1]),
        "size": (3, 4),
        "stride": 1,
        "rule": rule(),
    }
    find_instances(**fitting)
    with pytest.raises(ValueError, match=message):
        find_instances(**(fitting | change))


@pytest.mark.parametrize("overlap", [0.0, -0.1, 1.1, np.nan])
def test_a_threshold_at_which_a_box_would_not_suppress_itself_is_refused(overlap):
    with pytest.raises(ValueError, match="IoU"):
        of_one([[0.5]], [[A]], nms_iou=overlap)


def test_no_vote_has_no_maximum():
    kept, cluster = suppress(np.zeros((0, 4), np.float32), 0.5)
    assert kept.size == cluster.size == 0
