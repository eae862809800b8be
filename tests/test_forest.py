"""Boosted symmetric trees."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.proposals.forest import Forest, fit, predict

FIT = {"trees": 20, "depth": 3, "rate": 0.3, "bins": 32, "share": 0.5, "seed": 0}


def test_a_leaf_is_made_of_the_answers_as_bits():
    forest = Forest(
        features=np.array([[0, 1]], np.uint8),
        thresholds=np.array([[0, 5]], np.float32),
        leaves=np.array([[0, 1, 2, 3]], np.float32),
        bias=np.array(-1, np.float32),
    )
    rows = np.array([[0, 1, 0, 1], [5, 5, 6, 6]], np.float32)  # not above; above; ...
    logits = np.array([-1, 0, 1, 2])
    np.testing.assert_allclose(predict(forest, rows), 1 / (1 + np.exp(-logits)), rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 1100), st.integers(1, 8))
def test_predicts_what_walking_down_each_tree_gives(seed, count, depth):
    rng = np.random.default_rng(seed)
    forest = Forest(
        rng.integers(0, 5, (7, depth)).astype(np.uint8),
        rng.normal(size=(7, depth)).astype(np.float32),
        rng.normal(size=(7, 1 << depth)).astype(np.float32),
        np.array(rng.normal(), np.float32),
    )
    rows = rng.normal(size=(5, count)).astype(np.float32)
    logits = np.full(count, float(forest.bias))
    for tree in range(7):
        answers = rows[forest.features[tree]] > forest.thresholds[tree][:, None]  # (D, N)
        logits += forest.leaves[tree][(answers << np.arange(depth)[:, None]).sum(axis=0)]
    np.testing.assert_allclose(predict(forest, rows), 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_learns_a_product_that_no_single_question_tells():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 4000)).astype(np.float32)
    targets = (rows[1] * rows[2] > 0).astype(float)
    forest = fit(rows, targets, np.ones(4000), **FIT | {"trees": 60})
    assert ((predict(forest, rows) > 0.5) == targets).mean() > 0.95
    assert set(forest.features[0]) & {1, 2}


def test_fits_a_probability_and_not_only_an_order():
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 2, (1, 20000)).astype(np.float32)
    targets = rng.random(20000) < np.where(rows[0] > 0, 0.7, 0.1)
    forest = fit(rows, targets.astype(float), np.ones(20000), **FIT | {"trees": 40})
    found = predict(forest, np.array([[0, 1]], np.float32))
    truth = [targets[rows[0] == value].mean() for value in (0, 1)]
    np.testing.assert_allclose(found, truth, atol=0.01)


def test_a_row_of_weight_three_is_three_rows():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(3, 500)).astype(np.float32)
    targets = rng.random(500)
    alone = FIT | {"share": 1.0}
    weighted = fit(rows, targets, np.full(500, 3.0), **alone)
    plain = fit(rows, targets, np.ones(500), **alone)
    np.testing.assert_array_equal(weighted.leaves, plain.leaves)
    heavy = fit(rows, targets, np.where(targets > 0.5, 3.0, 1.0), **alone)
    assert predict(heavy, rows).mean() > predict(plain, rows).mean() + 0.1


def test_the_same_seed_gives_the_same_forest_and_another_one_another():
    rng = np.random.default_rng(3)
    rows, targets = rng.normal(size=(3, 500)).astype(np.float32), rng.random(500)
    one, same, other = (
        fit(rows, targets, np.ones(500), **FIT | {"seed": seed}) for seed in (0, 0, 1)
    )
    for name, array in asdict(one).items():
        np.testing.assert_array_equal(array, getattr(same, name))
    assert not np.array_equal(one.leaves, other.leaves)


@pytest.mark.parametrize(
    "change",
    [
        {"features": np.zeros((2, 3), np.int64)},
        {"features": np.zeros(3, np.uint8)},
        {"thresholds": np.zeros((2, 2), np.float32)},
        {"leaves": np.zeros((2, 4), np.float32)},
        {"leaves": np.full((2, 8), np.nan, np.float32)},
        {"bias": np.zeros(1, np.float32)},
    ],
)
def test_arrays_that_are_no_forest_are_refused(change):
    good = Forest(
        np.zeros((2, 3), np.uint8),
        np.zeros((2, 3), np.float32),
        np.zeros((2, 8), np.float32),
        np.zeros((), np.float32),
    )
    with pytest.raises(ValueError):
        replace(good, **change)
