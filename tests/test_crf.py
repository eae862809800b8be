"""The dense CRF against all pairs in float64, against pydensecrf2, and the filter by itself."""

import dataclasses
import threading
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crf.dense import PUBLISHED, DenseCrf, label_agreement, mean_field
from pipeline.crf.lattice import filtered, lattice_of
from pipeline.errors import BadInput

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
SMALL = DenseCrf(2, 4, 30, gaussian_weight=1, gaussian_xy=2)


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=0))
    return (e / e.sum(axis=0)).astype(np.float32)


def picture(seed: int, height: int, width: int, num_categories: int = 4):
    """Unsure probabilities of regions, and an image whose colours follow them loosely."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_categories, height // 5 + 2, width // 5 + 2))
    smooth = np.array(
        [cv2.resize(s, (width, height), interpolation=cv2.INTER_CUBIC) for s in scores]
    )
    colours = rng.uniform(40, 215, (num_categories, 3))[smooth.argmax(axis=0)]
    image = np.clip(colours + rng.normal(0, 10, colours.shape), 0, 255).astype(np.uint8)
    return softmax(1.5 * smooth + rng.normal(size=smooth.shape)), image


# --- all pairs -----------------------------------------------------------------------------------
def features_of(image: np.ndarray, xy: float, rgb: float | None) -> np.ndarray:
    """(N, 2 or 5) float64, what the kernel exp(-|f_i - f_j|^2 / 2) is of."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    places = np.stack([x, y], axis=-1) / xy
    if rgb is None:
        return places.reshape(-1, 2)
    return np.concatenate([places, image / rgb], axis=-1).reshape(-1, 5)


def all_pairs(features: np.ndarray) -> np.ndarray:
    distances = ((features[:, None] - features[None]) ** 2).sum(axis=-1)
    return np.exp(-distances / 2)


def exact(probabilities: np.ndarray, image: np.ndarray, crf: DenseCrf) -> np.ndarray:
    """Mean field over all pairs of pixels, in float64."""
    kernel = 0.0
    for weight, xy, rgb in (
        (crf.bilateral_weight, crf.bilateral_xy, crf.bilateral_rgb),
        (crf.gaussian_weight, crf.gaussian_xy, None),
    ):
        pairs = all_pairs(features_of(image, xy, rgb))
        root = np.sqrt(pairs.sum(axis=1))
        kernel = kernel + weight * pairs / root / root[:, None]
    unary = np.log(np.maximum(probabilities.astype(np.float64), 1e-5))
    unary = unary.reshape(len(probabilities), -1)
    q = np.exp(unary) / np.exp(unary).sum(axis=0)
    for _ in range(crf.iterations):
        scores = unary + q @ kernel
        q = np.exp(scores - scores.max(axis=0))
        q /= q.sum(axis=0)
    return q.reshape(probabilities.shape)


@pytest.mark.parametrize("seed", range(6))
def test_one_round_is_that_of_all_pairs_within_the_error_of_the_lattice(seed):
    """The mean error was 0.002 to 0.003, the largest 0.04, where the CRF moves Q by 0.05 to 0.1."""
    probabilities, image = picture(seed, 14, 17)
    crf = dataclasses.replace(SMALL, iterations=1)
    difference = np.abs(mean_field(probabilities, image, crf) - exact(probabilities, image, crf))
    assert difference.mean() < 0.005
    assert difference.max() < 0.08


@pytest.mark.parametrize("seed", range(6))
def test_ten_rounds_are_those_of_all_pairs_within_the_error_of_the_lattice(seed):
    """The mean error was 0.003 to 0.006, the largest 0.13: pixels that two categories contest."""
    probabilities, image = picture(seed, 14, 17)
    q, truth = mean_field(probabilities, image, SMALL), exact(probabilities, image, SMALL)
    difference = np.abs(q - truth)
    assert difference.mean() < 0.1 * np.abs(probabilities - truth).mean()
    assert difference.max() < 0.25
    assert label_agreement(q, truth) > 0.98 > label_agreement(q, probabilities)


def test_all_pairs_of_noise_where_the_table_of_cells_must_grow():
    """The mean error was 0.03: in noise most cells lack neighbours, and their share is lost."""
    rng = np.random.default_rng(0)
    probabilities = softmax(rng.normal(size=(3, 40, 45)))
    image = rng.integers(0, 256, (40, 45, 3), np.uint8)
    crf = DenseCrf(2, 10, 20, iterations=3)
    features = features_of(image, crf.bilateral_xy, crf.bilateral_rgb).astype(np.float32)
    assert lattice_of(features).neighbours.shape[1] > 9000
    difference = mean_field(probabilities, image, crf) - exact(probabilities, image, crf)
    assert np.abs(difference).mean() < 0.05


# --- the filter by itself ------------------------------------------------------------------------
def lattice_filter(features: np.ndarray):
    lattice = lattice_of(np.ascontiguousarray(features, np.float32))
    parts = lattice.vertices, lattice.weights, lattice.neighbours
    return lambda values: filtered(*parts, values.astype(np.float32))


def as_matrix(features: np.ndarray) -> np.ndarray:
    run = lattice_filter(features)
    return np.array([run(unit) for unit in np.eye(len(features), dtype=np.float32)]).T


@pytest.mark.parametrize(("rgb", "most", "mean"), [(None, 0.2, 0.1), (30, 0.6, 0.16)])
def test_rows_of_the_filter_are_gaussians_within_the_error_of_the_lattice(rgb, most, mean):
    """Each row divided by its sum, the sum of what differs: 0 for equal, 2 for disjoint."""
    features = features_of(picture(0, 24, 30)[1], 4, rgb)
    ours, true = as_matrix(features), all_pairs(features)
    rows = [kernel / kernel.sum(axis=1, keepdims=True) for kernel in (ours, true)]
    difference = np.abs(rows[0] - rows[1]).sum(axis=1)
    assert difference.max() < most
    assert difference.mean() < mean


def test_far_from_the_border_the_filter_is_symmetric_and_gives_each_pixel_the_same_mass():
    grey = np.zeros((40, 40, 3), np.uint8)
    matrix = as_matrix(features_of(grey, 2, None)).reshape(40, 40, 40, 40)
    middle = slice(17, 23)
    square = matrix[middle, middle, middle, middle].reshape(36, 36)
    assert np.abs(square - square.T).max() < 1e-6 * square.max()
    heard = matrix[middle, middle].sum(axis=(2, 3))  # a constant stays one
    told = matrix[:, :, middle, middle].sum(axis=(0, 1))
    assert np.allclose(heard, heard.mean(), rtol=0.03)
    assert np.allclose(told, heard, rtol=1e-5)


def test_cells_that_no_pixel_touches_cost_little_symmetry():
    features = features_of(picture(0, 24, 30)[1], 4, 30)
    matrix = as_matrix(features)
    assert np.abs(matrix - matrix.T).sum() < 0.15 * matrix.sum()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 40), st.floats(0.01, 20))
def test_the_filter_is_linear_and_of_any_dimension(seed, dims, n, spread):
    rng = np.random.default_rng(seed)
    run = lattice_filter(spread * rng.normal(size=(n, dims)))
    a, b = rng.normal(size=(2, n))
    together, apart = run(2 * a - 3 * b), 2 * run(a) - 3 * run(b)
    assert np.allclose(together, apart, atol=1e-4 * run(np.ones(n)).max())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 200), st.floats(0.01, 20))
def test_pixels_lie_inside_their_simplices_and_neighbours_are_mutual(seed, dims, n, spread):
    rng = np.random.default_rng(seed)
    lattice = lattice_of((spread * rng.normal(size=(n, dims))).astype(np.float32))
    cells = lattice.neighbours.shape[1]
    assert np.array_equal(np.unique(lattice.vertices), np.arange(cells))
    assert lattice.weights.min() > -1e-4
    assert np.allclose(lattice.weights.sum(axis=1), 1, atol=1e-4)
    for axis in lattice.neighbours:
        below, above = axis[:, 0], axis[:, 1]
        there = np.flatnonzero(above < cells)
        assert np.array_equal(below[above[there]], there)
        assert np.count_nonzero(below < cells) == len(there)


# --- pydensecrf2 ---------------------------------------------------------------------------------
def by_pydensecrf(probabilities: np.ndarray, image: np.ndarray, crf: DenseCrf) -> np.ndarray:
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    num_categories, height, width = probabilities.shape
    peer = densecrf.DenseCRF2D(width, height, num_categories)
    unary = -np.log(np.maximum(probabilities, np.float32(1e-5)))
    peer.setUnaryEnergy(np.ascontiguousarray(unary.reshape(num_categories, -1)))
    peer.addPairwiseGaussian(sxy=crf.gaussian_xy, compat=crf.gaussian_weight)
    peer.addPairwiseBilateral(
        sxy=crf.bilateral_xy, srgb=crf.bilateral_rgb, rgbim=image, compat=crf.bilateral_weight
    )
    return np.array(peer.inference(crf.iterations)).reshape(probabilities.shape)


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_pydensecrf(name):
    probabilities, image = picture(1, 60, 75, 21)
    crf = PUBLISHED[name]
    q = mean_field(probabilities, image, crf)
    assert np.abs(q - by_pydensecrf(probabilities, image, crf)).max() < 1e-3


def test_equals_pydensecrf_on_noise():
    rng = np.random.default_rng(0)
    probabilities = softmax(rng.normal(size=(5, 90, 120)))
    image = rng.integers(0, 256, (90, 120, 3), np.uint8)
    q = mean_field(probabilities, image, PUBLISHED["deeplab"])
    expected = by_pydensecrf(probabilities, image, PUBLISHED["deeplab"])
    assert np.abs(q - expected).max() < 1e-3


@pytest.mark.skipif(not REAL.exists(), reason="real data not at hand")
def test_equals_pydensecrf_on_a_photograph():
    path = sorted((REAL / "VOCdevkit" / "VOC2012" / "JPEGImages").glob("*.jpg"))[0]
    image = np.ascontiguousarray(cv2.imread(str(path))[::2, ::2, ::-1])
    probabilities, _ = picture(0, *image.shape[:2], 21)
    q = mean_field(probabilities, image, PUBLISHED["deeplab"])
    expected = by_pydensecrf(probabilities, image, PUBLISHED["deeplab"])
    assert np.abs(q - expected).max() < 1e-3


@pytest.mark.skipif(not REAL.exists(), reason="real data not at hand")
def test_moves_published_labels_towards_the_truth_as_their_own_crf_did():
    """Of 17 images: 0.88 of the pixels right before, 0.90 by ours, 0.91 by the published CRF."""
    published, photos = REAL / "published_outputs/deeplab_iclr2015", REAL / "VOCdevkit/VOC2012"
    right, counted = np.zeros(3), 0
    for path in sorted((published / "gt").glob("*.png"))[:4]:
        truth, before, after = (
            np.array(PIL.Image.open(published / kind / path.name))
            for kind in ("gt", "res_none", "res_crf")
        )
        image = np.array(PIL.Image.open(photos / "JPEGImages" / f"{path.stem}.jpg"))
        hot = (before == np.arange(21)[:, None, None]).astype(np.float32)
        soft = np.array([cv2.GaussianBlur(h, (0, 0), 8) for h in hot])
        ours = mean_field(0.95 * soft + np.float32(0.05 / 21), image, PUBLISHED["deeplab"])
        for i, labels in enumerate((before, ours.argmax(axis=0), after)):
            right[i] += np.count_nonzero((labels == truth) & (truth != 255))
        counted += np.count_nonzero(truth != 255)
    without, with_ours, with_theirs = right / counted
    assert without + 0.005 < with_ours
    assert without < with_theirs


# --- what always holds ---------------------------------------------------------------------------
@pytest.mark.parametrize("num_categories", [1, 2, 7, 8, 9, 16, 17, 60])
def test_q_sums_to_one_for_any_number_of_categories(num_categories):
    probabilities, image = picture(0, 9, 11, num_categories)
    q = mean_field(probabilities, image, SMALL)
    assert q.shape == probabilities.shape and q.dtype == np.float32
    assert q.min() >= 0
    assert np.allclose(q.sum(axis=0), 1, atol=1e-5)


def test_the_order_of_categories_does_not_matter():
    probabilities, image = picture(0, 20, 20, 13)
    order = np.random.default_rng(0).permutation(13)
    shuffled = mean_field(np.ascontiguousarray(probabilities[order]), image, SMALL)
    assert np.allclose(shuffled, mean_field(probabilities, image, SMALL)[order], atol=1e-5)


def test_without_rounds_or_weights_q_is_the_probabilities():
    probabilities, image = picture(0, 10, 12)
    for crf in (DenseCrf(4, 9, 9, iterations=0), DenseCrf(0, 9, 9, gaussian_weight=0)):
        assert np.allclose(mean_field(probabilities, image, crf), probabilities, atol=1e-6)


def test_equal_categories_stay_equal():
    _, image = picture(0, 10, 12)
    q = mean_field(np.full((5, 10, 12), 0.2, np.float32), image, SMALL)
    assert np.allclose(q, 0.2, atol=1e-6)


def test_a_lone_doubter_takes_the_category_of_its_colour():
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = 200
    left = np.full((20, 20), 0.9, np.float32)
    left[:, 10:] = 0.1
    left[5, 5], left[5, 10] = 0.4, 0.6
    q = mean_field(np.stack([left, 1 - left]), image, DenseCrf(5, 10, 10))
    assert np.array_equal(q.argmax(axis=0), np.broadcast_to(np.arange(20) >= 10, (20, 20)))


def test_a_lone_pixel_supports_itself():
    probabilities, image = np.array([[[0.5]], [[0.3]], [[0.2]]], np.float32), np.full((1, 1, 3), 7)
    q = mean_field(probabilities, image.astype(np.uint8), SMALL)
    assert np.allclose(q, exact(probabilities, image, SMALL), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 30), (30, 1)])
def test_images_of_one_row_or_one_column(shape):
    """On a line the lattice is coarser: the mean error was 0.01 and 0.04."""
    probabilities = softmax(np.random.default_rng(0).normal(size=(3, *shape)))
    image = np.full((*shape, 3), 7, np.uint8)
    difference = mean_field(probabilities, image, SMALL) - exact(probabilities, image, SMALL)
    assert np.abs(difference).mean() < 0.1


def test_a_pixel_of_no_probability_at_all_listens_to_the_others():
    probabilities, image = picture(0, 10, 12, 2)
    probabilities[:] = np.array([0.9, 0.1], np.float32)[:, None, None]
    probabilities[:, 4, 4] = 0
    q = mean_field(probabilities, np.zeros_like(image), SMALL)
    assert q[0, 4, 4] > 0.9


def test_weights_of_any_size_give_numbers():
    probabilities, image = picture(0, 10, 12)
    q = mean_field(probabilities, image, DenseCrf(1e6, 9, 9, gaussian_weight=1e6))
    assert np.allclose(q.sum(axis=0), 1, atol=1e-5)


def test_the_same_bits_on_every_run_and_in_every_thread():
    probabilities, image = picture(0, 40, 50, 21)
    expected, found = mean_field(probabilities, image, SMALL), []
    threads = [
        threading.Thread(target=lambda: found.append(mean_field(probabilities, image, SMALL)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [q.tobytes() for q in found] == [expected.tobytes()] * 3


# --- leaving out categories ----------------------------------------------------------------------
def test_categories_that_nobody_believes_in_are_left_out():
    probabilities, image = picture(0, 20, 20, 3)
    padded = np.zeros((12, 20, 20), np.float32)
    padded[[2, 5, 11]] = probabilities
    padded[7] = 0.01
    pruned = mean_field(padded, image, dataclasses.replace(SMALL, prune=0.05))
    assert pruned[[2, 5, 11]].tobytes() == mean_field(probabilities, image, SMALL).tobytes()
    assert not pruned[[0, 1, 3, 4, 6, 7, 8, 9, 10]].any()
    assert label_agreement(pruned, mean_field(padded, image, SMALL)) == 1


def test_the_likeliest_category_is_never_left_out():
    probabilities = np.full((4, 5, 6), 0.2, np.float32)
    probabilities[2] = 0.3
    crf = dataclasses.replace(SMALL, prune=0.5)
    q = mean_field(probabilities, np.zeros((5, 6, 3), np.uint8), crf)
    assert np.allclose(q[2], 1) and not q[[0, 1, 3]].any()


def test_agreement_counts_pixels_with_the_same_best_category():
    a = np.eye(4, dtype=np.float32).reshape(4, 2, 2)
    assert label_agreement(a, a) == 1
    assert label_agreement(a, a[::-1]) == 0
    assert label_agreement(a, np.roll(a, 1, axis=1)) == 0
    assert label_agreement(a, a[[0, 1, 3, 2]]) == 0.5


# --- bad input -----------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [np.nan, -0.1, np.inf, 3.0])
def test_refuses_what_is_no_probability(value):
    probabilities, image = picture(0, 8, 9)
    probabilities[1, 3, 3] = value
    with pytest.raises(BadInput, match="such as a softmax"):
        mean_field(probabilities, image, SMALL)


@pytest.mark.parametrize(
    ("shape", "dtype", "of_image", "type_of_image"),
    [
        ((4, 8), np.float32, (8, 9, 3), np.uint8),
        ((4, 8, 9), np.float64, (8, 9, 3), np.uint8),
        ((4, 8, 9), np.float32, (9, 8, 3), np.uint8),
        ((4, 8, 9), np.float32, (8, 9), np.uint8),
        ((4, 8, 9), np.float32, (8, 9, 4), np.uint8),
        ((4, 8, 9), np.float32, (8, 9, 3), np.float32),
        ((4, 0, 9), np.float32, (0, 9, 3), np.uint8),
        ((0, 8, 9), np.float32, (8, 9, 3), np.uint8),
    ],
)
def test_refuses_other_shapes_and_types(shape, dtype, of_image, type_of_image):
    with pytest.raises(BadInput, match="give"):
        mean_field(np.zeros(shape, dtype), np.zeros(of_image, type_of_image), SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bilateral_weight": -1},
        {"gaussian_weight": np.nan},
        {"bilateral_xy": 0},
        {"bilateral_rgb": 0},
        {"gaussian_xy": np.inf},
        {"iterations": -1},
        {"iterations": 2.5},
        {"prune": 1.5},
    ],
)
def test_refuses_parameters_that_mean_nothing(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        dataclasses.replace(SMALL, **wrong)


def test_refuses_thetas_too_small_to_number_the_cells():
    probabilities, image = picture(0, 20, 20)
    with pytest.raises(BadInput, match="thetas are too small"):
        mean_field(probabilities, image, DenseCrf(1, 1e-3, 1e-3))


def test_arrays_may_be_views():
    probabilities, image = picture(0, 20, 24)
    expected = mean_field(
        np.ascontiguousarray(probabilities[:, ::2, ::-1]),
        np.ascontiguousarray(image[::2, ::-1]),
        SMALL,
    )
    found = mean_field(probabilities[:, ::2, ::-1], image[::2, ::-1], SMALL)
    assert found.tobytes() == expected.tobytes()
