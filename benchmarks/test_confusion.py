"""Counting pixels by truth and prediction: ours, numpy as FCN does it, torchmetrics.

Sizes of VOC and of Cityscapes; `coherent` maps have regions, borders of 255 and a prediction that
is wrong near them and in patches, `noise` is drawn pixel by pixel. Then the counts in bands around
the border against one dilation for each width. One thread; equal results are asserted before.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/test_confusion.py \
        --benchmark-columns=min,median,rounds --benchmark-timer=time.process_time
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.functional import confusion_matrix as torchmetrics_matrix

from pipeline.metrics.boundary import band_confusions
from pipeline.metrics.semantic import confusion_matrix

SIZES = {"500x500x21": (500, 500, 21), "1024x2048x19": (1024, 2048, 19)}
Maps = tuple[np.ndarray, np.ndarray]  # predicted, truth


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def coherent(height: int, width: int, num_categories: int) -> Maps:
    """Regions about 100 pixels wide with a border of 255, about 5 pixels wide."""
    rng = np.random.default_rng(0)

    def regions(spacing: int) -> np.ndarray:
        heights = rng.normal(size=(num_categories, height // spacing + 2, width // spacing + 2))
        size = (width, height)
        smooth = [cv2.resize(h, size, interpolation=cv2.INTER_CUBIC) for h in heights]
        return np.argmax(smooth, axis=0).astype(np.uint8)

    labels = regions(100)
    predicted = np.where(regions(50) == 0, regions(100), np.roll(labels, 3, axis=1))
    border = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    return predicted, np.where(border, np.uint8(255), labels)


def noise(height: int, width: int, num_categories: int) -> Maps:
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, num_categories, (2, height, width), np.uint8)
    truth[rng.random(truth.shape) < 0.05] = 255
    return predicted, truth


def counted_by_bincount(predicted: np.ndarray, truth: np.ndarray, num_categories: int):
    """As FCN's score.py does it: a mask of what counts, one number for each pair, one bincount."""
    a, b = truth.flatten(), predicted.flatten()
    counted = (a >= 0) & (a < num_categories)
    pairs = num_categories * a[counted].astype(int) + b[counted]
    return np.bincount(pairs, minlength=num_categories**2).reshape(num_categories, num_categories)


def torchmetrics_counter(maps: Maps, num_categories: int, checks: bool) -> Callable[[], Any]:
    """It takes int64 tensors (of uint8 its sums overflow): made before it is timed."""
    predicted, truth = (torch.from_numpy(m.astype(np.int64)) for m in maps)
    return lambda: torchmetrics_matrix(
        predicted,
        truth,
        task="multiclass",
        num_classes=num_categories,
        ignore_index=255,
        validate_args=checks,
    ).numpy()


COUNTERS: dict[str, Callable[[Maps, int], Callable[[], Any]]] = {
    "ours": lambda maps, n: lambda: confusion_matrix(*maps, n)[:, :n],
    "numpy bincount": lambda maps, n: lambda: counted_by_bincount(*maps, n),
    "torchmetrics": lambda maps, n: torchmetrics_counter(maps, n, checks=True),
    "torchmetrics, arguments unchecked": lambda maps, n: torchmetrics_counter(maps, n, False),
}


@pytest.mark.parametrize("name", COUNTERS)
@pytest.mark.parametrize("kind", [coherent, noise], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("size", SIZES)
def test_confusion_matrix(benchmark, size, kind, name):
    maps, num_categories = kind(*SIZES[size]), SIZES[size][2]
    run = COUNTERS[name](maps, num_categories)
    assert np.array_equal(run(), counted_by_bincount(*maps, num_categories))
    benchmark.group = f"confusion matrix, {size}, {kind.__name__}"
    rounds = 30 if name.startswith("torch") else 200
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=3)


# --- bands around the border ---------------------------------------------------------------------
def bands_by_dilation(
    predicted: np.ndarray, truth: np.ndarray, widths: Sequence[int], num_categories: int
) -> np.ndarray:
    """Each width by itself: dilate the border by a square, count inside and outside of it."""
    border, counts = truth == 255, []
    for width in widths:
        square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        near = cv2.dilate(border.astype(np.uint8), square) > 0
        for region in (near & ~border, ~near):
            part = predicted[region], truth[region], num_categories
            counts.append(counted_by_bincount(*part))
    return np.reshape(counts, (len(widths), 2, num_categories, num_categories))


COUNTED_BANDS = {
    "ours": lambda *arguments: band_confusions(*arguments)[..., :-1],
    "a dilation for each width": bands_by_dilation,
}


@pytest.mark.parametrize("name", COUNTED_BANDS)
@pytest.mark.parametrize("widths", [(1, 2, 5), range(1, 41)], ids=["1, 2, 5", "1 to 40"])
@pytest.mark.parametrize("size", SIZES)
def test_bands(benchmark, size, widths, name):
    maps, num_categories = coherent(*SIZES[size]), SIZES[size][2]
    count = COUNTED_BANDS[name]
    expected = bands_by_dilation(*maps, widths, num_categories)
    assert np.array_equal(count(*maps, widths, num_categories), expected)
    benchmark.group = f"bands of widths {widths}, {size}, coherent"
    rounds = 20 if size == "500x500x21" else 5
    benchmark.pedantic(lambda: count(*maps, widths, num_categories), rounds=rounds)
