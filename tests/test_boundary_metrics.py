"""Counts near the border of objects: by hand, as laws, and against scipy's dilation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_dilation
from sklearn.metrics import confusion_matrix as counted_by_sklearn

from pipeline.metrics.boundary import band_confusions, border_distance
from pipeline.metrics.semantic import confusion_matrix

CATEGORIES = 4


def maps(*rows):
    return np.array(rows, np.uint8)


def counted_by_dilation(predicted, truth, widths, num_categories):
    """As the protocol says it: dilate by a square, take the pixels, count, once for each width."""
    counts = np.zeros((len(widths), 2, num_categories, num_categories + 1), np.int64)
    border, labels = truth == 255, range(num_categories + 1)
    for i, width in enumerate(widths):
        square = np.ones((2 * width + 1, 2 * width + 1))
        near = binary_dilation(border, square)
        for j, region in enumerate([near & ~border, ~near & ~border]):
            if region.any():
                t, p = truth[region], np.minimum(predicted[region], num_categories)
                counts[i, j] = counted_by_sklearn(t, p, labels=labels)[:num_categories]
    return counts


@st.composite
def pairs_of_maps(draw):
    """(predicted, truth): all borders or none, one pixel or more, long and thin, few categories."""
    shape = draw(st.tuples(st.integers(1, 13), st.integers(1, 13)))
    truth = draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 3]), fill=st.just(0)))
    border = draw(arrays(bool, shape, elements=st.booleans(), fill=st.just(draw(st.booleans()))))
    values = st.sampled_from([0, 1, 2, 3, 4, 254, 255])
    return draw(arrays(np.uint8, shape, elements=values)), np.where(border, 255, truth)


def test_the_band_holds_the_pixels_within_the_width_and_not_the_border_itself():
    truth = maps([0, 0, 255, 1, 1, 1])
    predicted = maps([0, 1, 1, 1, 0, 7])
    (band, interior), (wide, far) = band_confusions(predicted, truth, [1, 2], 2)
    assert band.tolist() == [[0, 1, 0], [0, 1, 0]]  # pixels 1 and 3
    assert interior.tolist() == [[1, 0, 0], [1, 0, 1]]  # pixels 0, 4 and 5
    assert wide.tolist() == [[1, 1, 0], [1, 1, 0]]  # pixels 0, 1, 3 and 4
    assert far.tolist() == [[0, 0, 0], [0, 0, 1]]  # pixel 5


def test_a_diagonal_step_is_one_step():
    truth = np.zeros((5, 5), np.uint8)
    truth[2, 2] = 255
    counts = band_confusions(truth * 0, truth, [1, 2], 1)[:, :, 0, 0]
    assert counts.tolist() == [[8, 16], [24, 0]]


def test_distances_are_counted_in_steps():
    truth = np.zeros((4, 7), np.uint8)
    truth[0, 1] = 255
    assert border_distance(truth).tolist() == [
        [1, 0, 1, 2, 3, 4, 5],
        [1, 1, 1, 2, 3, 4, 5],
        [2, 2, 2, 2, 3, 4, 5],
        [3, 3, 3, 3, 3, 4, 5],
    ]
    assert (border_distance(truth[1:]) == np.inf).all()


def test_distances_are_exact_across_a_large_map():
    truth = np.zeros((2, 20000), np.uint8)
    truth[1, 0] = 255
    assert border_distance(truth)[0].tolist() == [1, *range(1, 20000)]


@settings(max_examples=150, deadline=None)
@given(pairs_of_maps(), st.lists(st.integers(1, 15), min_size=1, max_size=5, unique=True))
def test_counts_equal_a_dilation_for_each_width(pair, widths):
    predicted, truth = pair
    found = band_confusions(predicted, truth, widths, CATEGORIES)
    assert found.dtype == np.int64
    assert np.array_equal(found, counted_by_dilation(predicted, truth, widths, CATEGORIES))


@settings(max_examples=50, deadline=None)
@given(pairs_of_maps(), st.integers(1, 15))
def test_band_and_interior_together_are_all_labelled_pixels(pair, width):
    together = band_confusions(*pair, [width], CATEGORIES)[0].sum(axis=0)
    assert np.array_equal(together, confusion_matrix(*pair, CATEGORIES))


def test_bands_grow_with_their_width_whatever_the_order_of_the_widths():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CATEGORIES, (60, 45), np.uint8)
    truth[rng.random(truth.shape) < 0.002] = 255
    predicted = rng.integers(0, CATEGORIES, truth.shape, np.uint8)
    ascending = band_confusions(predicted, truth, [1, 2, 5, 40], CATEGORIES)
    assert (np.diff(ascending[:, 0], axis=0) >= 0).all()
    assert (np.diff(ascending[:, 0].sum(axis=(1, 2))) > 0).all()
    assert np.array_equal(
        band_confusions(predicted, truth, (40, 1, 5, 2), CATEGORIES), ascending[[3, 0, 2, 1]]
    )


def test_without_a_border_all_is_interior_at_any_width():
    truth = maps([0, 1], [1, 0])
    for width in (1, 10**12):
        band, interior = band_confusions(truth, truth, [width], 2)[0]
        assert band.sum() == 0
        assert interior.tolist() == [[2, 0, 0], [0, 2, 0]]


def test_a_width_beyond_the_image_takes_all_of_it():
    truth = np.zeros((1, 9), np.uint8)
    truth[0, 0] = 255
    widths = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 10**12]  # more than the image is long
    counts = band_confusions(truth, truth, widths, 1)[:, :, 0]
    assert counts[:, 0].sum(axis=1).tolist() == [7] + [8] * 11
    assert counts[:, 1].sum(axis=1).tolist() == [1] + [0] * 11


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_maps_without_a_pixel_count_nothing(shape):
    empty = np.zeros(shape, np.uint8)
    assert band_confusions(empty, empty, [1, 2], 3).tolist() == np.zeros((2, 2, 3, 4)).tolist()


@pytest.mark.parametrize("view", [np.s_[::2, ::-1], np.s_[1:, 3:-2]])
@pytest.mark.parametrize("order", ["C", "F"])
def test_strided_and_read_only_maps_count_as_their_copies(view, order):
    rng = np.random.default_rng(1)
    truth = rng.choice(np.array([0, 1, 2, 255], np.uint8), (31, 27), p=[0.5, 0.3, 0.17, 0.03])
    predicted = rng.integers(0, 5, truth.shape, np.uint8)
    copies = predicted[view].copy(), truth[view].copy()
    predicted, truth = np.array(predicted, order=order), np.array(truth, order=order)
    truth.flags.writeable = False
    found = band_confusions(predicted[view], truth[view], [1, 3], 3)
    assert np.array_equal(found, band_confusions(*copies, [1, 3], 3))
    assert np.array_equal(found, counted_by_dilation(*copies, [1, 3], 3))


@pytest.mark.parametrize("widths", [[], [0], [2, -1], [3, 3]])
def test_widths_that_make_no_sense_are_refused(widths):
    with pytest.raises(ValueError, match="distinct and at least 1"):
        band_confusions(maps([0]), maps([0]), widths, 2)


def test_maps_are_refused_as_the_confusion_matrix_refuses_them():
    with pytest.raises(ValueError, match="uint8 maps of one shape"):
        band_confusions(maps([0]), maps([0, 0]), [1], 2)
    with pytest.raises(ValueError, match=r"\[2, 9\]"):
        band_confusions(maps([0, 0, 0]), maps([2, 255, 9]), [1], 2)
    with pytest.raises(ValueError, match="two dimensions"):
        band_confusions(np.zeros(3, np.uint8), np.zeros(3, np.uint8), [1], 2)
