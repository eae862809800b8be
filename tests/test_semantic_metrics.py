"""Scores of label maps, by hand, against a loop, against another library, on published outputs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as sklearn
from torchmetrics import functional as torchmetrics

from pipeline.metrics.semantic import confusion_matrix, pixels, scores

PUBLISHED = Path(__file__).resolve().parents[1].parent / "shared/real/published_outputs"


def maps(*rows):
    return np.array(rows, np.uint8)


def counted_by_loop(predicted, truth, num_categories):
    counts = [[0] * (num_categories + 1) for _ in range(num_categories)]
    for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t != 255:
            counts[t][min(p, num_categories)] += 1
    return counts


@st.composite
def pairs_of_maps(draw, truth_values, predicted_values):
    """(predicted, truth) (1, N): runs of one value and of single pixels, cut to the shorter."""

    def runs(values):
        # Eight pixels are counted at a time: runs end within a word, at its end, and after many.
        lengths = st.one_of(st.integers(1, 20), st.sampled_from([8, 16, 64, 65]))
        drawn = draw(st.lists(st.tuples(st.sampled_from(values), lengths), min_size=1, max_size=12))
        values, lengths = zip(*drawn, strict=True)
        return np.repeat(np.array(values, np.uint8), lengths)

    predicted, truth = runs(predicted_values), runs(truth_values)
    size = min(len(predicted), len(truth))
    return predicted[None, :size], truth[None, :size]


def test_counts_pixels_by_truth_and_prediction():
    predicted = maps([0, 1, 1], [1, 0, 2])
    truth = maps([0, 1, 0], [1, 1, 2])
    assert confusion_matrix(predicted, truth, 3).tolist() == [
        [1, 1, 0, 0],
        [1, 2, 0, 0],
        [0, 0, 1, 0],
    ]


def test_scores_are_the_fractions_worked_by_hand():
    found = scores(np.array([[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0]]))
    assert found.iou.tolist() == [1 / 3, 2 / 4, 1 / 1]
    assert found.mean_iou == pytest.approx((1 / 3 + 2 / 4 + 1) / 3)
    assert found.pixel_accuracy == 4 / 6
    assert found.mean_accuracy == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def test_unlabelled_truth_is_dropped_whatever_was_predicted():
    predicted = maps([0, 1, 255])
    assert confusion_matrix(predicted, maps([255, 255, 255]), 2).sum() == 0


@pytest.mark.parametrize("outside", [2, 200, 255])
def test_a_prediction_outside_the_categories_is_an_error_not_a_gap(outside):
    counts = confusion_matrix(maps([0, outside]), maps([0, 0]), 2)
    assert counts.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert scores(counts).pixel_accuracy == 1 / 2
    assert scores(counts).iou[0] == 1 / 2


def test_unknown_truth_is_refused_by_its_value():
    with pytest.raises(ValueError, match=r"\[2, 7\]"):
        confusion_matrix(maps([0, 0, 0]), maps([7, 2, 255]), 2)


@pytest.mark.parametrize(
    ("predicted", "truth"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)),
        (np.zeros((2, 3), np.int64), np.zeros((2, 3), np.uint8)),
        (np.zeros((2, 3), np.uint8), np.full((2, 3), -1)),
    ],
)
def test_maps_of_another_shape_or_type_are_refused(predicted, truth):
    with pytest.raises(ValueError, match="uint8 maps of one shape"):
        confusion_matrix(predicted, truth, 2)


def test_a_category_in_neither_map_has_no_score_and_is_left_out_of_the_means():
    found = scores(confusion_matrix(maps([0, 0, 2]), maps([0, 0, 2]), 4))
    assert np.isnan(found.iou).tolist() == [False, True, False, True]
    assert found.mean_iou == 1 and found.mean_accuracy == 1


def test_a_category_only_predicted_scores_zero_and_counts():
    found = scores(confusion_matrix(maps([0, 1]), maps([0, 0]), 3))
    assert found.iou[:2].tolist() == [1 / 2, 0]
    assert found.mean_iou == 1 / 4
    assert found.mean_accuracy == 1 / 2  # only category 0 has true pixels


def test_nothing_labelled_gives_no_number_and_no_warning():
    found = scores(confusion_matrix(maps([0, 1]), maps([255, 255]), 2))
    assert np.isnan(found.iou).all()
    assert np.isnan([found.mean_iou, found.pixel_accuracy, found.mean_accuracy]).all()


@pytest.mark.parametrize("num_categories", [1, 9, 21, 255])
def test_counts_equal_a_plain_double_loop(num_categories):
    rng = np.random.default_rng(num_categories)
    truth = rng.integers(0, num_categories, (40, 50), np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    predicted = rng.integers(0, 256, (40, 50), np.uint8)
    found = confusion_matrix(predicted, truth, num_categories)
    assert found.dtype == np.int64
    assert found.tolist() == counted_by_loop(predicted, truth, num_categories)


def test_strided_maps_count_as_their_copies():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, (2, 20, 30), np.uint8)
    flipped = confusion_matrix(predicted[:, ::-2], truth[:, ::-2], 3)
    copied = confusion_matrix(predicted[:, ::-2].copy(), truth[:, ::-2].copy(), 3)
    assert np.array_equal(flipped, copied)


def test_counts_of_images_add_up_to_the_counts_of_all_pixels():
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 4, (2, 6, 8, 9), np.uint8)
    summed = sum(confusion_matrix(p, t, 4) for p, t in zip(predicted, truth, strict=True))
    whole = confusion_matrix(predicted.reshape(6, -1), truth.reshape(6, -1), 4)
    assert np.array_equal(summed, whole)


def test_a_perfect_prediction_scores_one():
    truth = np.random.default_rng(2).integers(0, 5, (30, 30), np.uint8)
    found = scores(confusion_matrix(truth, truth, 5))
    assert found.iou.tolist() == [1.0] * 5
    assert (found.mean_iou, found.pixel_accuracy, found.mean_accuracy) == (1, 1, 1)


def test_iou_is_the_same_when_truth_and_prediction_change_places():
    a, b = np.random.default_rng(3).integers(0, 4, (2, 30, 30), np.uint8)
    ab, ba = scores(confusion_matrix(a, b, 4)), scores(confusion_matrix(b, a, 4))
    assert np.allclose(ab.iou, ba.iou) and ab.pixel_accuracy == ba.pixel_accuracy


# --- every way a map can lie in memory ---------------------------------------------------------
@pytest.mark.parametrize("start", range(9))
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 40, 67])
def test_maps_that_begin_and_end_anywhere_in_memory_are_counted_right(start, size):
    rng = np.random.default_rng(start * 100 + size)
    truth, predicted = np.repeat(rng.integers(0, 3, (2, 40), np.uint8), 2, axis=1)
    t, p = truth[None, start : start + size], predicted[None, 8 - start : 8 - start + size]
    assert confusion_matrix(p, t, 3).tolist() == counted_by_loop(p, t, 3)


@pytest.mark.parametrize("order", ["C", "F"])
def test_read_only_maps_are_taken_and_writable_ones_stay_so(order):
    truth = np.array([[0, 1, 0], [1, 1, 2]], np.uint8, order=order)
    predicted = truth.copy(order)
    predicted.flags.writeable = False
    assert np.trace(confusion_matrix(predicted, truth, 3)) == 6
    assert truth.flags.writeable and not predicted.flags.writeable


def test_pixels_are_given_row_after_row_and_not_copied_without_need():
    rows = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert np.shares_memory(pixels(rows), rows)
    assert pixels(rows.T).tolist() == rows.T.ravel().tolist()
    assert pixels(rows[:, 1:3]).tolist() == rows[:, 1:3].ravel().tolist()
    assert not pixels(rows).flags.writeable
    assert [pixels(rows.ravel()[start:]).ctypes.data % 8 for start in range(8)] == [0] * 8


def test_threads_count_at_once_what_one_counts():
    rng = np.random.default_rng(5)
    pairs = list(np.repeat(rng.integers(0, 4, (12, 2, 40, 9), np.uint8), 5, axis=3))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda pair: confusion_matrix(*pair, 4), pairs))
    assert [f.tolist() for f in found] == [counted_by_loop(*pair, 4) for pair in pairs]


@pytest.mark.parametrize("num_categories", [0, -1, 256])
def test_a_number_of_categories_that_bytes_cannot_hold_is_refused(num_categories):
    with pytest.raises(ValueError, match="1 to 255 categories"):
        confusion_matrix(maps([0]), maps([0]), num_categories)


# --- other tools on the same maps: categories 3 and 6 are in no truth, 5 and 6 in no prediction --
NUM_CATEGORIES = 7
TRUTH, PREDICTED = [0, 1, 2, 4, 5, 255], [0, 1, 2, 3, 4]
OUTSIDE = [7, 8, 128, 254, 255]


@settings(max_examples=200, deadline=None)
@given(pairs_of_maps(TRUTH, PREDICTED + OUTSIDE))
def test_counts_of_runs_equal_a_plain_double_loop(pair):
    found = confusion_matrix(*pair, NUM_CATEGORIES)
    assert found.tolist() == counted_by_loop(*pair, NUM_CATEGORIES)


@settings(max_examples=100, deadline=None)
@given(pairs_of_maps(TRUTH, PREDICTED + OUTSIDE))
def test_counts_and_scores_equal_those_of_scikit_learn(pair):
    confusion = confusion_matrix(*pair, NUM_CATEGORIES)
    predicted, truth = (m[pair[1] != 255] for m in pair)
    if not truth.size:  # scikit-learn refuses what has nothing labelled
        assert not confusion.any()
        return
    predicted = np.minimum(predicted, NUM_CATEGORIES)
    labels = range(NUM_CATEGORIES)
    full = sklearn.confusion_matrix(truth, predicted, labels=range(NUM_CATEGORIES + 1))
    assert np.array_equal(confusion, full[:NUM_CATEGORIES])
    found = scores(confusion)
    for category in labels:
        t, p = truth == category, predicted == category
        expected = sklearn.jaccard_score(t, p) if (t | p).any() else np.nan
        np.testing.assert_allclose(found.iou[category], expected, rtol=1e-12)
    recalls = sklearn.recall_score(truth, predicted, labels=np.unique(truth), average="macro")
    assert found.mean_accuracy == pytest.approx(recalls)
    assert found.pixel_accuracy == pytest.approx(sklearn.accuracy_score(truth, predicted))


@settings(max_examples=100, deadline=None)
@given(pairs_of_maps(TRUTH, PREDICTED))
def test_counts_and_scores_equal_those_of_torchmetrics(pair):
    confusion = confusion_matrix(*pair, NUM_CATEGORIES)
    predicted, truth = (torch.from_numpy(m.astype(np.int64)) for m in pair)
    how = {"task": "multiclass", "num_classes": NUM_CATEGORIES, "ignore_index": 255}
    counted = torchmetrics.confusion_matrix(predicted, truth, **how)
    assert np.array_equal(confusion[:, :NUM_CATEGORIES], counted.numpy())
    assert not confusion[:, NUM_CATEGORIES].any()
    assume((truth != 255).any())
    found = scores(confusion)
    iou = torchmetrics.jaccard_index(predicted, truth, average="none", **how).numpy()  # float32
    there = ~np.isnan(found.iou)
    np.testing.assert_allclose(found.iou[there], iou[there], rtol=1e-6)
    assert not iou[~there].any()  # torchmetrics has 0 there, and leaves them out of its mean too
    mean = torchmetrics.jaccard_index(predicted, truth, average="macro", **how)
    assert found.mean_iou == pytest.approx(mean.item(), rel=1e-6)
    accuracy = torchmetrics.accuracy(predicted, truth, average="micro", **how)
    assert found.pixel_accuracy == pytest.approx(accuracy.item(), rel=1e-6)


# --- real predictions of DeepLab (ICLR 2015), before and after its CRF -------------------------
def read(path):
    with Image.open(path) as image:
        return np.array(image)


def iou_by_sets(folder, category):
    """Pixel sets of one category, image by image; no confusion matrix anywhere."""
    shared = union = true = 0
    for path in sorted((PUBLISHED / "deeplab_iclr2015/gt").glob("*.png")):
        truth, predicted = read(path), read(folder / path.name)
        labelled = truth != 255
        a, b = (predicted == category) & labelled, truth == category
        shared, union = shared + int((a & b).sum()), union + int((a | b).sum())
        true += int(b.sum())
    return shared, union, true


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published outputs beside the checkout")
@pytest.mark.parametrize("which", ["res_none", "res_crf"])
def test_scores_of_published_outputs_equal_an_independent_count(which):
    folder = PUBLISHED / "deeplab_iclr2015" / which
    counts = np.zeros((21, 22), np.int64)
    by_torchmetrics = np.zeros((21, 21), np.int64)
    for path in (PUBLISHED / "deeplab_iclr2015/gt").glob("*.png"):
        predicted, truth = read(folder / path.name), read(path)
        counts += confusion_matrix(predicted, truth, 21)
        tensors = (torch.from_numpy(m.astype(np.int64)) for m in (predicted, truth))
        by_torchmetrics += torchmetrics.confusion_matrix(
            *tensors, task="multiclass", num_classes=21, ignore_index=255
        ).numpy()
    assert np.array_equal(counts[:, :21], by_torchmetrics)
    assert not counts[:, 21].any()
    found = scores(counts)
    sets = [iou_by_sets(folder, category) for category in range(21)]
    expected = [shared / union if union else np.nan for shared, union, _ in sets]
    assert np.array_equal(found.iou, expected, equal_nan=True)
    assert found.mean_iou == pytest.approx(np.nanmean(expected))
    total = sum(true for _, _, true in sets)
    assert found.pixel_accuracy == pytest.approx(sum(s for s, _, _ in sets) / total)
    recalls = [shared / true for shared, _, true in sets if true]
    assert found.mean_accuracy == pytest.approx(np.mean(recalls))


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published outputs beside the checkout")
def test_the_crf_gains_on_published_outputs_as_it_is_known_to():
    found = {}
    for which in ("res_none", "res_crf"):
        folder = PUBLISHED / "deeplab_iclr2015" / which
        pairs = [(p, folder / p.name) for p in (PUBLISHED / "deeplab_iclr2015/gt").glob("*.png")]
        counts = sum(confusion_matrix(read(b), read(a), 21) for a, b in pairs)
        found[which] = scores(counts)
    before, after = found["res_none"], found["res_crf"]
    # Over all 25 images, of which these are 17, the known answer is .592 -> .654 for the mean over
    # the categories in the truth and .888 -> .918 for pixels.
    true = counts.sum(axis=1) > 0
    assert 0.02 < after.iou[true].mean() - before.iou[true].mean() < 0.10
    assert 0.02 < after.pixel_accuracy - before.pixel_accuracy < 0.04
