"""The fully connected CRF that sharpens score maps: every pixel beside every other.

C categories, H x W pixels, N = H * W.
"""

from dataclasses import dataclass, fields, replace

import numba
import numpy as np

from pipeline.crf.lanes import (
    WIDTH,
    exponential,
    larger,
    largest,
    load,
    minus,
    plus,
    spread,
    store,
    times,
    times_plus,
    total,
)
from pipeline.crf.lattice import Lattice, blurred, filtered, lattice_of
from pipeline.errors import BadInput

FLOOR = np.float32(1e-5)  # a probability below it counts as this, so that others can be heard
_NEVER = np.float32(-1e4)  # the logarithm of lanes that stand for no category
_ONE, _ZERO = np.float32(1), np.float32(0)


@dataclass(frozen=True)
class DenseCrf:
    """The two kernels of a dense CRF and how it is solved.

    The cost of two pixels of different categories is
    bilateral_weight * exp(-|xy|^2 / 2 bilateral_xy^2 - |rgb|^2 / 2 bilateral_rgb^2)
    + gaussian_weight * exp(-|xy|^2 / 2 gaussian_xy^2), xy and rgb their differences.

    Attributes:
        bilateral_weight, gaussian_weight: >= 0.
        bilateral_xy, gaussian_xy: pixels, > 0.
        bilateral_rgb: levels of 0..255, > 0.
        iterations: rounds of mean field, >= 0.
        prune: 0..1; categories whose probability is below it everywhere are left out and get Q = 0.
            0 leaves out none. What that changes, `label_agreement` tells.
    """

    bilateral_weight: float
    bilateral_xy: float
    bilateral_rgb: float
    gaussian_weight: float = 3.0
    gaussian_xy: float = 3.0
    iterations: int = 10
    prune: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, is_width = getattr(self, field.name), field.name.endswith(("xy", "rgb"))
            lowest = 1e-3 if is_width else 0
            if not lowest <= value <= 1e6:
                raise BadInput(f"CRF: {field.name} is {value}; give a number from {lowest} to 1e6")
        if self.iterations != int(self.iterations):
            raise BadInput(f"CRF: iterations is {self.iterations}; give a whole number")
        if self.prune > 1:
            raise BadInput(f"CRF: prune is {self.prune}; give a probability, 0 to 1")


PUBLISHED = {  # by network; Dai2015's baseline is "deeplab", to be tuned on held-out images
    "deeplab": DenseCrf(5, 50, 10),
    "deeplab_largefov": DenseCrf(4, 121, 5),
    "deeplab_msc": DenseCrf(3, 95, 3),
    "deeplab_msc_largefov": DenseCrf(4, 83, 5),
    "deeplab_coco": DenseCrf(5, 67, 3),
    "deeplab_coco_largefov": DenseCrf(5, 69, 5),
    "deeplab_v2_vgg": DenseCrf(4, 49, 5),
    "sec": DenseCrf(10, 80, 13),
}


def mean_field(probabilities: np.ndarray, image: np.ndarray, crf: DenseCrf) -> np.ndarray:
    """What each pixel is, once all pixels have been heard.

    Implements: Dai2015 Sec. 3 (the CRF that post-processes scores).

    It is that of Kraehenbuehl and Koltun 2011: mean field whose messages are filtered Q, Potts
    compatibility, kernels normalised symmetrically (D^-1/2 K D^-1/2, D the row sums of K).

    Reading: the sum over j != i of the paper includes i here, as in its authors' program: a pixel
    supports its own categories a little.

    Args:
        probabilities: (C, H, W) float32, 0..1; a pixel's need not sum to 1.
        image: (H, W, 3) uint8, RGB.
        crf: kernels and iterations.

    Returns:
        (C, H, W) float32: Q, 0..1, sums to 1 over categories. The same bits on every run.

    Raises:
        BadInput: shapes or types other than these, no category, no pixel, a probability that is
            NaN, below 0 or above 1, thetas too small for the image.
    """
    _check(probabilities, image)
    num_categories, height, width = probabilities.shape
    flat = np.ascontiguousarray(probabilities).reshape(num_categories, -1)
    kept = _kept(flat, crf.prune)
    if len(kept) == num_categories:
        return _solved(flat, image, crf).reshape(probabilities.shape)
    q = np.zeros((num_categories, height * width), np.float32)
    q[kept] = _solved(flat[kept], image, crf)
    return q.reshape(probabilities.shape)


def label_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The fraction of pixels whose best category is the same in two (C, H, W) maps. 0..1."""
    return float(np.mean(a.argmax(axis=0) == b.argmax(axis=0)))


def _check(probabilities: np.ndarray, image: np.ndarray) -> None:
    if probabilities.ndim != 3 or probabilities.dtype != np.float32:
        found = f"{probabilities.shape} {probabilities.dtype}"
        raise BadInput(f"CRF: probabilities are {found}; give (categories, height, width) float32")
    if image.shape != (*probabilities.shape[1:], 3) or image.dtype != np.uint8:
        found = f"{image.shape} {image.dtype}, probabilities {probabilities.shape}"
        raise BadInput(f"CRF: the image is {found}; give (height, width, 3) uint8 of the same size")
    if probabilities.size == 0:
        raise BadInput(f"CRF: probabilities are {probabilities.shape}; give a category and a pixel")
    lowest, highest = probabilities.min(), probabilities.max()
    if not (lowest >= 0 and highest <= 1.001):  # a mean of softmaxes may exceed 1 by rounding
        found = "NaN" if np.isnan(lowest) else f"from {lowest} to {highest}"
        raise BadInput(f"CRF: probabilities hold {found}; give 0 to 1, such as a softmax")


def _kept(flat: np.ndarray, prune: float) -> np.ndarray:
    """Which categories take part: those that reach `prune` somewhere, at least the best one."""
    if prune == 0:
        return np.arange(len(flat))
    peaks = flat.max(axis=1)
    return np.flatnonzero(peaks >= min(prune, peaks.max()))


def _solved(flat: np.ndarray, image: np.ndarray, crf: DenseCrf) -> np.ndarray:
    """Q of (C, N) probabilities that were checked. Returns (C, N) float32."""
    kernels = _kernels(image, crf)
    row = -(-len(flat) // WIDTH) * WIDTH
    unary = _pixel_rows(np.log(np.maximum(flat, FLOOR)), row)
    heard = [np.zeros((k.neighbours.shape[1] + 1, row), np.float32) for k in kernels]
    told = [np.zeros_like(h) for h in heard]
    q = np.empty(flat.shape, np.float32)
    for iteration in range(crf.iterations + 1):
        bilateral, gaussian = (
            (kernels[i].vertices, kernels[i].weights, heard[i], told[i]) for i in range(2)
        )
        _update(unary, bilateral, gaussian, q, iteration == crf.iterations)
        if iteration < crf.iterations:
            for i in range(2):
                heard[i], told[i] = blurred(told[i], heard[i], kernels[i].neighbours)
    return q


def _kernels(image: np.ndarray, crf: DenseCrf) -> tuple[Lattice, Lattice]:
    """The lattices of both kernels, weighted and normalised."""
    height, width = image.shape[:2]
    places = np.empty((height, width, 5), np.float32)
    places[..., 0], places[..., 1] = np.arange(width), np.arange(height)[:, None]
    gaussian = np.ascontiguousarray(places[..., :2] / np.float32(crf.gaussian_xy))
    places[..., :2] /= np.float32(crf.bilateral_xy)
    np.divide(image, np.float32(crf.bilateral_rgb), out=places[..., 2:])
    return (
        _weighted(lattice_of(places.reshape(-1, 5)), crf.bilateral_weight),
        _weighted(lattice_of(gaussian.reshape(-1, 2)), crf.gaussian_weight),
    )


def _weighted(lattice: Lattice, weight: float) -> Lattice:
    """The lattice of the normalised kernel times `weight`: the root of both goes to splat and to
    slice."""
    ones = np.ones(len(lattice.vertices), np.float32)
    sums = filtered(lattice.vertices, lattice.weights, lattice.neighbours, ones)
    roots = np.sqrt(np.float32(weight) / sums)
    return replace(lattice, weights=lattice.weights * roots[:, None])


@numba.njit(cache=True, nogil=True)
def _pixel_rows(flat, row):
    """(C, N) float32 as (N, row): the categories of a pixel side by side, padded."""
    num_categories, n = flat.shape
    result = np.empty((n, row), np.float32)
    for start in range(0, n, 64):  # so many rows stay in the cache until they are full
        for c in range(row):
            for p in range(start, min(n, start + 64)):
                result[p, c] = flat[c, p] if c < num_categories else _NEVER
    return result


@numba.njit(nogil=True)
def _sliced(lanes, p, k, kernel, corners):
    """`lanes` and what pixel p hears from the corners of its simplex."""
    vertices, weights, heard, _ = kernel
    for v in range(corners):
        at = np.int64(vertices[p, v]) * heard.shape[1] + k
        lanes = times_plus(spread(weights[p, v]), load(heard, at), lanes)
    return lanes


@numba.njit(nogil=True)
def _splat(lanes, p, k, kernel, corners):
    """Pixel p tells `lanes` to the corners of its simplex."""
    vertices, weights, _, told = kernel
    for v in range(corners):
        at = np.int64(vertices[p, v]) * told.shape[1] + k
        store(told, at, times_plus(spread(weights[p, v]), lanes, load(told, at)))


@numba.njit(cache=True, nogil=True)
def _update(unary, bilateral, gaussian, q, last):
    """Slice, softmax and splat, pixel by pixel: Q itself is only written in the last round.

    Args:
        unary: (N, R) float32, logarithms of probabilities.
        bilateral, gaussian: vertices and weights of a Lattice, what was heard, and what is told,
            both (cells + 1, R) float32; `told` is overwritten unless it is the last round.
        q: (C, N) float32, written in the last round.
        last: bool.
    """
    n, row = unary.shape
    scores = np.empty(row, np.float32)
    if not last:
        bilateral[3][:] = 0
        gaussian[3][:] = 0
    for p in range(n):
        best, mass = spread(_NEVER), spread(_ZERO)
        for k in range(0, row, WIDTH):
            lanes = _sliced(load(unary, p * row + k), p, k, bilateral, 6)
            lanes = _sliced(lanes, p, k, gaussian, 3)
            store(scores, k, lanes)
            best = larger(best, lanes)
        peak = spread(largest(best))
        for k in range(0, row, WIDTH):
            lanes = exponential(minus(load(scores, k), peak))
            store(scores, k, lanes)
            mass = plus(mass, lanes)
        share = _ONE / total(mass)
        if last:
            for c in range(len(q)):
                q[c, p] = scores[c] * share
            continue
        for k in range(0, row, WIDTH):
            lanes = times(load(scores, k), spread(share))
            _splat(lanes, p, k, bilateral, 6)
            _splat(lanes, p, k, gaussian, 3)
