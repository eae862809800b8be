"""The label step in superpixels against a loop over the candidates' masks.

    pytest benchmarks/test_label_step.py --benchmark-columns=min,median,rounds

The loop is written as well as such a loop can be: masks are cropped to their boxes beforehand, and
each sum touches the crop only. Both are asked for all costs of all boxes of one image, 375 x 500
with 2,000 candidates, from the arrays as they are in memory (the superpixel form from a fresh
`Proposals`, as it is read from disk).
"""

import cv2
import numpy as np
import pytest

from pipeline.labels import image_costs, overlap_costs
from pipeline.params import GradientEdges, Scg
from pipeline.proposals.edges import edges
from pipeline.proposals.form import Proposals
from pipeline.proposals.scg import scg

HEIGHT, WIDTH, CATEGORIES, CLIP = 375, 500, 21, 10.0
BOXES = np.array([[40, 60, 200, 250], [150, 100, 460, 350], [300, 20, 380, 120]])
OF_BOXES = np.array([5, 15, 5])
SETTINGS = Scg(
    kind="scg",
    edges=GradientEdges("gradient", sigma=1.5),
    min_area=100,
    singletons=1500,
    pairs=20000,
    triplets=5000,
    quadruplets=0,
    max_overlap=0.95,
    max_candidates=2000,
    fill_holes=False,
)


def noise(seed: int, channels: int, period: int) -> np.ndarray:
    """Smooth noise (H, W, channels) float32 with blobs of about `period` pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (HEIGHT // period + 1, WIDTH // period + 1, channels))
    bands = [
        cv2.resize(band, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        for band in np.moveaxis(coarse, 2, 0)
    ]
    return np.stack(bands, axis=2).astype(np.float32)


@pytest.fixture(scope="module")
def inputs() -> tuple[Proposals, np.ndarray]:
    image = np.clip(128 + 60 * noise(0, 3, 12), 0, 255).astype(np.uint8)
    proposals = scg(image, SETTINGS, edges("gradient", sigma=1.5))
    assert len(proposals) == 2000
    logits = 3 * np.moveaxis(noise(1, CATEGORIES, 40), 2, 0)
    return proposals, logits - np.log(np.exp(logits).sum(axis=0))


def loop_costs(
    proposals: Proposals, crops: list[np.ndarray], logs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Costs (N, P) by visiting every candidate's cropped mask for every box."""
    regression = np.empty((len(BOXES), len(crops)))
    v = np.minimum(-logs[0], CLIP)
    for n, ((x0, y0, x1, y1), category) in enumerate(zip(BOXES, OF_BOXES, strict=True)):
        u = np.minimum(-logs[category], CLIP)
        v_of_box = v[y0:y1, x0:x1].sum(dtype=np.float64)
        for p, crop in enumerate(crops):
            left, top, right, bottom = proposals.boxes[p]
            inside = u[top:bottom, left:right].sum(where=crop, dtype=np.float64)
            l, t, r, b = max(left, x0), max(top, y0), min(right, x1), min(bottom, y1)
            shared, pixels = 0.0, 0
            if l < r and t < b:
                part = crop[t - top : b - top, l - left : r - left]
                shared = v[t:b, l:r].sum(where=part, dtype=np.float64)
                pixels = np.count_nonzero(part)
            area = (x1 - x0) * (y1 - y0) + proposals.areas[p] - pixels
            regression[n, p] = (inside + v_of_box - shared) / area
    return overlap_costs(proposals, BOXES), regression


def fresh(proposals: Proposals) -> Proposals:
    """The same candidates with nothing remembered from earlier questions."""
    return Proposals(
        proposals.superpixels,
        proposals.members,
        proposals.offsets,
        proposals.scores,
        proposals.boxes,
        proposals.areas,
    )


def cropped(proposals: Proposals) -> list[np.ndarray]:
    return [
        np.ascontiguousarray(proposals.mask(i)[y0:y1, x0:x1])
        for i, (x0, y0, x1, y1) in enumerate(proposals.boxes)
    ]


@pytest.mark.benchmark(group="label step, 375x500, 2,000 candidates, 3 boxes")
def test_superpixels(benchmark, inputs):
    proposals, logs = inputs
    expected = loop_costs(proposals, cropped(proposals), logs)
    found = benchmark(lambda: image_costs(fresh(proposals), BOXES, OF_BOXES, logs, clip=CLIP))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-7)


@pytest.mark.benchmark(group="label step, 375x500, 2,000 candidates, 3 boxes")
def test_loop_over_masks(benchmark, inputs):
    proposals, logs = inputs
    crops = cropped(proposals)
    expected = image_costs(proposals, BOXES, OF_BOXES, logs, clip=CLIP)
    np.testing.assert_allclose(loop_costs(proposals, crops, logs)[1], expected[1], rtol=1e-7)
    benchmark(loop_costs, proposals, crops, logs)
