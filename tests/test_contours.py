"""Contours against contours that people drew."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from skimage.morphology import thin

from pipeline.metrics.contours import count_matches, f_measures
from pipeline.proposals.edges import thin_contours


def line(column: int) -> np.ndarray:
    array = np.zeros((30, 40), bool)
    array[:, column] = True
    return array


def test_a_contour_within_the_tolerance_of_a_drawn_one_is_right():
    # The diagonal is 50: 0.041 of it is 2.05 pixels.
    strength = line(10).astype(np.float32)
    for column, partners in ((10, 30), (12, 30), (13, 0)):
        counts = count_matches(strength, line(column)[None], np.array([0.5]), tolerance=0.041)
        assert counts.tolist() == [[partners, 30, partners, 30]]


def test_one_drawn_pixel_makes_only_one_of_ours_right():
    strength = (line(10) | line(12)).astype(np.float32)
    counts = count_matches(strength, line(11)[None], np.array([0.5]), tolerance=0.041)
    assert counts.tolist() == [[30, 30, 30, 60]]
    assert f_measures(counts) == pytest.approx([2 * 0.5 * 1 / 1.5])


def test_any_persons_contour_makes_ours_right_and_each_counts_for_recall():
    people = np.stack([line(10), line(30), np.zeros((30, 40), bool)])
    counts = count_matches(line(10) * 0.7, people, np.array([0.5, 0.7, 0.8]))
    assert counts.tolist() == [[30, 60, 30, 30]] * 2 + [[0, 60, 0, 0]]
    np.testing.assert_allclose(f_measures(counts), [2 / 3, 2 / 3, 0])


@pytest.mark.parametrize("seed", range(30))
def test_as_many_pixels_are_matched_as_can_be(seed):
    rng = np.random.default_rng(seed)
    found, drawn_pixels = (rng.random((13, 17)) < rng.random() * 0.5 for _ in range(2))
    reach = rng.choice([1.0, 1.5, 2.9])
    counts = count_matches(
        found.astype(np.float32), drawn_pixels[None], np.array([0.5]),
        tolerance=reach / np.hypot(13, 17),
    )  # fmt: skip
    ours, theirs = np.argwhere(thin(found)), np.argwhere(drawn_pixels)
    close = ((ours[:, None] - theirs[None]) ** 2).sum(axis=2) <= reach**2 + 1e-9
    expected = (maximum_bipartite_matching(csr_array(close)) >= 0).sum() if close.size else 0
    assert counts.tolist() == [[expected, len(theirs), expected, len(ours)]]


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 135])
def test_a_smooth_ridge_is_thinned_to_its_line(angle):
    y, x = np.mgrid[-30:31, -30:31]
    away = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
    ridge = np.exp(-((away / 3) ** 2) / 2).astype(np.float32)
    kept = thin_contours(ridge)[5:-5, 5:-5] > 0.05
    assert np.abs(away[5:-5, 5:-5][kept]).max() <= 1
    assert 51 <= kept.sum() <= 110
