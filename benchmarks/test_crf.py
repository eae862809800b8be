"""Dense CRF of a VOC-sized image, 375 x 500 x 21, ten rounds: ours, ours with pruning, pydensecrf2.

`coherent`: regions of five categories, the others nowhere above 0.11, and an image that follows
them. `photograph`: the same probabilities under a real image, where there is one. `noise`: both
drawn pixel by pixel, so that hardly two pixels share a cell of the colour lattice. One thread;
equal Q (1e-3) is asserted before, and the labels that pruning leaves equal are in the results as
`agreement`, beside the largest difference in Q. pydensecrf2 is not among the packages of this
project; where it is absent, its rows are skipped.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/test_crf.py \
        --benchmark-columns=min,median,rounds --benchmark-timer=time.process_time
"""

import dataclasses
import functools
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.crf.dense import PUBLISHED, DenseCrf, label_agreement, mean_field

PHOTOS = Path(__file__).resolve().parents[1].parent / "shared/real/VOCdevkit/VOC2012/JPEGImages"
HEIGHT, WIDTH, CATEGORIES = 375, 500, 21
CRF = PUBLISHED["deeplab"]
PRUNED = dataclasses.replace(CRF, prune=0.1)
Maps = tuple[np.ndarray, np.ndarray]  # probabilities, image


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=0))
    return (e / e.sum(axis=0)).astype(np.float32)


def coherent() -> Maps:
    """Five categories in regions about 100 pixels wide, the scores of all wavering over 40."""
    rng = np.random.default_rng(0)

    def smooth(n: int, spacing: int) -> np.ndarray:
        coarse = rng.normal(size=(n, HEIGHT // spacing + 2, WIDTH // spacing + 2))
        size = (WIDTH, HEIGHT)
        return np.array([cv2.resize(c, size, interpolation=cv2.INTER_CUBIC) for c in coarse])

    regions = smooth(5, 100)
    colours = rng.uniform(30, 225, (5, 3))[regions.argmax(axis=0)]
    shades = 8 * smooth(3, 60).transpose(1, 2, 0) + rng.normal(0, 3, colours.shape)
    scores = 0.7 * smooth(CATEGORIES, 40) - 6
    scores[:5] += 3 * regions + 1.5 * smooth(5, 25) + 3
    return softmax(scores), np.clip(colours + shades, 0, 255).astype(np.uint8)


def photograph() -> Maps:
    paths = sorted(PHOTOS.glob("*.jpg"))
    if not paths:
        pytest.skip("no photograph at hand")
    image = cv2.resize(cv2.imread(str(paths[0])), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return coherent()[0], np.ascontiguousarray(image[..., ::-1])


def noise() -> Maps:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return softmax(rng.normal(size=(CATEGORIES, HEIGHT, WIDTH))), image


def by_pydensecrf(probabilities: np.ndarray, image: np.ndarray, crf: DenseCrf) -> np.ndarray:
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    num_categories, height, width = probabilities.shape
    peer = densecrf.DenseCRF2D(width, height, num_categories)
    unary = -np.log(np.maximum(probabilities, np.float32(1e-5)))
    peer.setUnaryEnergy(unary.reshape(num_categories, -1))
    peer.addPairwiseGaussian(sxy=crf.gaussian_xy, compat=crf.gaussian_weight)
    peer.addPairwiseBilateral(
        sxy=crf.bilateral_xy, srgb=crf.bilateral_rgb, rgbim=image, compat=crf.bilateral_weight
    )
    return np.array(peer.inference(crf.iterations)).reshape(probabilities.shape)


SOLVERS = {
    "ours": (mean_field, CRF),
    "ours, pruned": (mean_field, PRUNED),
    "pydensecrf2": (by_pydensecrf, CRF),
}


@functools.cache
def full(kind) -> np.ndarray:
    return mean_field(*kind(), CRF)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("kind", [coherent, photograph, noise], ids=lambda kind: kind.__name__)
def test_dense_crf(benchmark, kind, name):
    maps, (solve, crf) = kind(), SOLVERS[name]
    q = solve(*maps, crf)
    difference = float(np.abs(q - full(kind)).max())
    assert crf != CRF or difference <= 1e-3
    benchmark.extra_info["largest difference in Q"] = difference
    benchmark.extra_info["agreement"] = label_agreement(q, full(kind))
    benchmark.extra_info["labels moved by the CRF"] = 1 - label_agreement(full(kind), maps[0])
    benchmark.group = f"dense CRF, {HEIGHT}x{WIDTH}x{CATEGORIES}, {kind.__name__}"
    benchmark.pedantic(lambda: solve(*maps, crf), rounds=3 if kind is noise else 7)
