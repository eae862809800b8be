"""mAP^r by hand, and beside plain double loops over the same overlaps."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from pipeline.metrics.instance import (
    VOLUME,
    Pool,
    average_precision,
    mean_over_categories,
    overlaps_of_runs,
    true_positives,
)


class Image(NamedTuple):
    scores: list[float]  # (D,)
    overlaps: list[list[float]]  # (D, G)
    places: list[int]  # (D,) in the order that breaks ties
    num_objects: int  # G


def image(scores, overlaps, places=None, num_objects=0):
    count = len(overlaps[0]) if overlaps else num_objects
    return Image(scores, overlaps, places or list(range(len(scores))), count)


def pooled(images):
    rows, total = [], 0
    for one in images:
        for place, score, overlaps in zip(one.places, one.scores, one.overlaps, strict=True):
            rows.append((place, score, total, overlaps))
        total += one.num_objects
    rows.sort(key=lambda row: row[0])
    return Pool(
        np.array([score for _, score, _, _ in rows], np.float64),
        np.array([first for _, _, first, _ in rows], np.int64),
        np.array([len(overlaps) for *_, overlaps in rows], np.int64),
        np.array([overlap for *_, overlaps in rows for overlap in overlaps], np.float64),
        total,
    )


# --- by hand --------------------------------------------------------------------------------------
def test_area_under_the_envelope():
    # right, wrong, right of three objects: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3
    found = [image([0.9, 0.8, 0.7], [[0.6, 0, 0], [0.1, 0, 0], [0, 0.6, 0]])]
    assert average_precision(pooled(found), [0.5], "sds")[0] == pytest.approx(
        1 / 3 * 1 + 1 / 3 * 2 / 3
    )


def test_eleven_points():
    # recall 1/3 with precision 1 reaches 0, 0.1, 0.2, 0.3; 2/3 with 2/3 reaches 0.4, 0.5, 0.6
    found = [image([0.9, 0.8, 0.7], [[0.6, 0, 0], [0.1, 0, 0], [0, 0.6, 0]])]
    expected = (4 * 1 + 3 * 2 / 3) / 11
    assert average_precision(pooled(found), [0.5], "mnc11")[0] == pytest.approx(expected)


def test_a_recall_of_three_tenths_does_not_reach_the_fourth_of_the_eleven_points():
    overlaps = np.zeros((3, 10))
    overlaps[[0, 1, 2], [0, 1, 2]] = 1
    found = [image([0.9, 0.8, 0.7], overlaps.tolist())]
    assert average_precision(pooled(found), [0.5], "mnc11")[0] == pytest.approx(3 / 11)


def test_an_overlap_equal_to_the_threshold_is_enough_for_mnc11_only():
    found = [image([1], [[0.5]])]
    assert average_precision(pooled(found), [0.5], "sds")[0] == 0
    assert average_precision(pooled(found), [0.5], "mnc11")[0] == pytest.approx(1)
    assert average_precision(pooled(found), [0.4], "sds")[0] == 1


def test_sds_gives_the_second_best_object_where_the_best_is_taken_and_mnc11_does_not():
    found = [image([0.9, 0.8], [[0.9, 0], [0.8, 0.6]])]
    assert true_positives(pooled(found), [0.5], "sds").tolist() == [[True, True]]
    assert true_positives(pooled(found), [0.5], "mnc11").tolist() == [[True, False]]


def test_what_is_taken_at_one_threshold_is_free_at_another():
    found = [image([0.9, 0.8], [[0.6], [0.8]])]
    assert true_positives(pooled(found), [0.5, 0.7], "sds").tolist() == [
        [True, False],
        [False, True],
    ]


def test_of_equal_scores_the_earlier_place_is_first():
    first = image([0.5], [[0.9]], places=[7])
    second = image([0.5], [[0.0]], places=[3])
    assert true_positives(pooled([first, second]), [0.5], "sds").tolist() == [[False, True]]
    swapped = [first._replace(places=[3]), second._replace(places=[7])]
    assert true_positives(pooled(swapped), [0.5], "sds").tolist() == [[True, False]]


def test_detections_in_images_without_the_category_are_wrong():
    found = [image([0.9], [[]]), image([0.8], [[0.9]])]
    assert average_precision(pooled(found), [0.5], "sds")[0] == pytest.approx(1 / 2)


def test_a_category_without_an_object_has_no_value_or_0():
    for found in ([], [image([0.9], [[]])]):
        assert np.isnan(average_precision(pooled(found), [0.5, 0.7], "sds")).all()
        assert average_precision(pooled(found), [0.5, 0.7], "mnc11").tolist() == [0, 0]


def test_objects_without_a_detection_have_0():
    found = [image([], [], num_objects=3)]
    for protocol in ("sds", "mnc11"):
        assert average_precision(pooled(found), [0.5], protocol).tolist() == [0]


def test_the_mean_leaves_out_categories_without_a_value():
    nan = np.nan
    means = mean_over_categories(np.array([[1, nan, nan], [0.5, 0.5, nan]]))
    assert means[:2].tolist() == [0.75, 0.5]
    assert np.isnan(means[2])


def test_the_volume_is_of_nine_thresholds():
    assert VOLUME == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


SOUND = pooled([image([0.9, 0.8], [[0.6, 0.1], [0.1, 0.7]])])


@pytest.mark.parametrize(
    "change, said",
    [
        ({"scores": np.zeros(3)}, "scores, .*first objects"),
        ({"first": np.zeros((2, 1), int)}, "first objects"),
        ({"overlaps": np.zeros(3)}, r"overlaps \(3,\) of 4 pairs"),
        ({"near": np.array([5, -1])}, "a number below 0"),
        ({"first": np.array([-1, 0])}, "a number below 0"),
        ({"first": np.array([0, 1])}, "beyond the 2"),
        ({"scores": np.array([np.nan, 1])}, "finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, said):
    assert average_precision(SOUND, [0.5], "sds").tolist() == [1]
    with pytest.raises(ValueError, match=said):
        average_precision(SOUND._replace(**change), [0.5], "sds")


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="neither sds nor mnc11"):
        average_precision(SOUND, [0.5], "voc")


# --- overlaps -------------------------------------------------------------------------------------
def runs(masks):
    """Masks (N, H, W) as the bounds of their runs, down the columns."""
    bounds, ends, areas = [], [], []
    for mask in masks:
        flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
        bounds += np.flatnonzero(flat[1:] != flat[:-1]).tolist()
        ends.append(len(bounds))
        areas.append(int(mask.sum()))
    return np.array(bounds, np.uint32), np.array(ends, np.int64), np.array(areas, np.int64)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_overlaps_are_those_of_pycocotools_to_the_last_bit(data):
    height, width = data.draw(st.sampled_from([(1, 1), (3, 2), (7, 9), (20, 30)]))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shares = data.draw(st.lists(st.sampled_from([0, 0.03, 0.5, 0.9, 1]), min_size=2, max_size=9))
    masks = np.stack([generator.random((height, width)) < share for share in shares])
    split = data.draw(st.integers(1, len(masks) - 1))
    detections, objects = masks[:split], masks[split:]
    chosen = np.array(data.draw(st.permutations(range(split))), np.int64)
    first = generator.integers(0, len(objects) + 1, split)
    near = generator.integers(0, len(objects) + 1 - first)
    found = overlaps_of_runs(runs(detections), runs(objects), chosen, first, near)
    encoded = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    full = coco.iou(encoded[:split], encoded[split:], [False] * len(objects))
    pairs = zip(chosen, first, near, strict=True)
    expected = np.concatenate([full[d, start : start + n] for d, start, n in pairs])
    assert found.tolist() == expected.tolist()


def test_a_run_may_end_at_the_last_pixel_of_the_largest_image():
    last = np.uint32(65535**2)
    one = (np.array([1, 5, last - 9, last], np.uint32), np.array([4]), np.array([13]))
    other = (np.array([last - 3, last], np.uint32), np.array([2]), np.array([3]))
    where = np.array([0])
    assert overlaps_of_runs(one, other, where, where, np.array([1])).tolist() == [3 / 13]


# --- beside plain loops ---------------------------------------------------------------------------
@st.composite
def images(draw):
    """Few scores and overlaps, so that both tie; images without objects or detections."""
    found = []
    place = 0
    for _ in range(draw(st.integers(0, 4))):
        num_detections, num_objects = draw(st.integers(0, 6)), draw(st.integers(0, 4))
        scores = draw(st.lists(st.sampled_from([0.1, 0.5, 0.5, 0.9]), min_size=num_detections,
                               max_size=num_detections))  # fmt: skip
        tenths = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 1.0])
        cells = num_detections * num_objects
        overlaps = draw(st.lists(tenths, min_size=cells, max_size=cells))
        places = np.arange(place, place + num_detections)
        place += num_detections
        shape = (num_detections, num_objects)
        rows = np.reshape(overlaps, shape).tolist()
        found.append(Image(scores, rows, places.tolist(), num_objects))
    order = draw(st.permutations(range(place)))
    return [one._replace(places=[order[p] for p in one.places]) for one in found]


def plain(found, threshold, protocol):
    """Average precision from the description, a detection at a time."""
    detections = []
    for number, one in enumerate(found):
        for d in range(len(one.scores)):
            detections.append((-one.scores[d], one.places[d], number, one.overlaps[d]))
    total = sum(one.num_objects for one in found)
    if total == 0:
        return float("nan") if protocol == "sds" else 0.0
    taken = set()
    points = []  # (recall, precision)
    hits = 0
    for rank, (_, _, number, overlaps) in enumerate(sorted(detections, key=lambda d: d[:2]), 1):
        objects = list(range(len(overlaps)))
        if protocol == "sds":
            objects = [g for g in objects if (number, g) not in taken]
        best = max(objects, key=lambda g: overlaps[g], default=None)
        if best is not None and (number, best) not in taken:
            enough = (
                overlaps[best] > threshold if protocol == "sds" else overlaps[best] >= threshold
            )
            if enough:
                taken.add((number, best))
                hits += 1
        points.append((hits / total, hits / rank))
    if protocol == "mnc11":
        tops = [max((p for r, p in points if r >= t), default=0) for t in np.arange(0, 1.1, 0.1)]
        return sum(tops) / 11
    area = last = 0.0
    for recall, _ in points:
        if recall > last:
            area += (recall - last) * max(p for r, p in points if r >= recall)
            last = recall
    return area


@settings(max_examples=200, deadline=None)
@given(images(), st.sampled_from(["sds", "mnc11"]))
def test_equal_to_a_plain_loop_at_every_threshold(found, protocol):
    thresholds = [0.0, *VOLUME, 1.0]
    expected = [plain(found, t, protocol) for t in thresholds]
    np.testing.assert_allclose(
        average_precision(pooled(found), thresholds, protocol), expected, atol=1e-12
    )


@settings(max_examples=50, deadline=None)
@given(images(), st.sampled_from(["sds", "mnc11"]), st.randoms(use_true_random=False))
def test_neither_the_order_of_images_nor_rising_maps_of_scores_change_anything(
    found, protocol, random
):
    before = average_precision(pooled(found), VOLUME, protocol)
    changed = [one._replace(scores=[3 * score - 7 for score in one.scores]) for one in found]
    random.shuffle(changed)
    assert np.array_equal(
        average_precision(pooled(changed), VOLUME, protocol), before, equal_nan=True
    )
