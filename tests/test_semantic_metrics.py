"""Scores of label maps, by hand, against a loop, against another library, on published outputs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.metrics.semantic import confusion_matrix, scores

PUBLISHED = Path(__file__).resolve().parents[1].parent / "shared/real/published_outputs"


def maps(*rows):
    return np.array(rows, np.uint8)


def counted_by_loop(predicted, truth, num_categories):
    counts = [[0] * (num_categories + 1) for _ in range(num_categories)]
    for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t != 255:
            counts[t][min(p, num_categories)] += 1
    return counts


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


def test_agrees_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 6, 3000).astype(np.uint8)
    predicted = np.where(rng.random(3000) < 0.6, truth, rng.integers(0, 6, 3000)).astype(np.uint8)
    found = scores(confusion_matrix(predicted[None], truth[None], 6))
    assert np.allclose(found.iou, sklearn.jaccard_score(truth, predicted, average=None))
    assert found.pixel_accuracy == pytest.approx(sklearn.accuracy_score(truth, predicted))
    balanced = sklearn.balanced_accuracy_score(truth, predicted)
    assert found.mean_accuracy == pytest.approx(balanced)


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
    for path in (PUBLISHED / "deeplab_iclr2015/gt").glob("*.png"):
        counts += confusion_matrix(read(folder / path.name), read(path), 21)
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
