"""Contour strength of an image, from one of four sources on one scale.

The scale is the square root of the probability that a person draws a contour there, so that a
threshold means the same whatever the source. The root, because regions are merged by the mean
along a contour: on the scale of the probability itself a few strong pixels decide it.

H x W pixels.
"""

from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np

from pipeline.proposals.boosted import boosted_edges
from pipeline.proposals.forest import Forest

Edges = Callable[[np.ndarray], np.ndarray]  # image (H, W, 3) uint8, RGB -> (H, W) float32 in [0, 1]
STRONGEST, POWER = 0.56, 1.6  # of a calibrated gradient; see `calibrated_gradient`
ASIDE = np.float32(0.25)  # of its probability is left to a pixel beside the ridge of a contour
SMALLEST = 32  # pixels on a side: a patch of the structured forest


def edges(
    kind: Literal["gradient", "boosted", "file", "sf"],
    *,
    sigma: float | None = None,
    forest: Forest | None = None,
    saved: np.ndarray | None = None,
    detector: Any = None,
) -> Edges:
    """The function from an image, at any scale, to its contour strength.

    Args:
        kind: gradient needs `sigma`, boosted `forest`, file `saved`, sf `detector`.
        sigma: of the Gaussian before the gradient, pixels.
        forest: trained on `boosted.edge_features`.
        saved: (H, W) float32 in [0, 1], the strengths of the one image, taken as they are; at
            another scale of it they are resized.
        detector: OpenCV's StructuredEdgeDetection with a model.

    Raises:
        ValueError: what the kind needs is not given, or there is no such kind.
    """
    match kind:
        case "gradient" if sigma is not None:
            return lambda image: on_one_scale(calibrated_gradient(image, sigma=sigma))
        case "boosted" if forest is not None:
            return lambda image: on_one_scale(boosted_edges(image, forest))
        case "file" if saved is not None:
            return lambda image: _resized(saved, *image.shape[:2])
        case "sf" if detector is not None:
            return lambda image: on_one_scale(structured_edges(image, detector))
    raise ValueError(f"edges: {kind!r} is unknown, or what it needs is not given")


def on_one_scale(probability: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1]: root of the probability (H, W), a quarter of it beside the ridges.

    Contours are found some pixels wide; where exactly they are is where they are strongest.
    """
    return np.sqrt(np.maximum(thin_contours(probability), ASIDE * probability))


def thin_contours(strength: np.ndarray) -> np.ndarray:
    """Strengths (H, W) float32 kept where they are highest across their contour, else 0.

    The direction across is that in which the smoothed strengths bend most, up or down: a ridge
    bends down at its top and up at its feet. Both neighbours a pixel away in it are interpolated.
    """
    smooth = cv2.GaussianBlur(strength.astype(np.float32), (0, 0), 2, borderType=cv2.BORDER_REFLECT)
    dxx = cv2.Sobel(smooth, cv2.CV_32F, 2, 0)
    dyy = cv2.Sobel(smooth, cv2.CV_32F, 0, 2)
    dxy = cv2.Sobel(smooth, cv2.CV_32F, 1, 1)
    upward = 0.5 * np.arctan2(2 * dxy, dxx - dyy)  # the direction of the most positive bend
    angle = np.where(dxx + dyy < 0, upward + np.pi / 2, upward)
    y, x = np.mgrid[: strength.shape[0], : strength.shape[1]].astype(np.float32)
    across, down = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    strength = strength.astype(np.float32)
    highest = strength > 0
    for sign in (-1, 1):
        beside = cv2.remap(
            strength, x + sign * across, y + sign * down, cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        highest &= strength >= beside
    return np.where(highest, strength, np.float32(0))


def calibrated_gradient(image: np.ndarray, *, sigma: float) -> np.ndarray:
    """`gradient_edges` on the scale of the boosted probability: 0.56 s ** 1.6.

    Two numbers that bring the quantiles of both together, fitted on BSDS500 images at sigma 1.5.
    The gradient tells contours from texture badly: it is no probability, but as many pixels are as
    strong.

    Returns:
        (H, W) float32 in [0, 0.56].
    """
    return np.float32(STRONGEST) * gradient_edges(image, sigma=sigma) ** np.float32(POWER)


def structured_edges(image: np.ndarray, detector: Any) -> np.ndarray:
    """(H, W) float32 in [0, 1]: the strengths of OpenCV's structured forest.

    A smaller image than its patch is continued at the right and the bottom.
    """
    height, width = image.shape[:2]
    below, right = max(0, SMALLEST - height), max(0, SMALLEST - width)
    padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    strength = detector.detectEdges(padded.astype(np.float32) / np.float32(255))
    return np.clip(strength[:height, :width], 0, 1)


def _resized(strength: np.ndarray, height: int, width: int) -> np.ndarray:
    if strength.shape == (height, width):
        return strength
    smaller = height * width < strength.size
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(strength, (width, height), interpolation=method)


def gradient_edges(image: np.ndarray, *, sigma: float) -> np.ndarray:
    """Length of the colour gradient in Lab, as a strength of contours.

    Nothing here is learnt, so nothing but the image decides.

    Args:
        image: (H, W, 3) uint8, RGB.
        sigma: of the Gaussian that smooths each channel first, pixels; the larger it is, the less
            texture counts.

    Returns:
        (H, W) float32 in [0, 1]; 1 from the 99th percentile on. All 0 for a plain image.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    if sigma > 0:
        lab = cv2.GaussianBlur(lab, (0, 0), sigma)
    across = cv2.Sobel(lab, cv2.CV_32F, 1, 0)  # (H, W, 3)
    down = cv2.Sobel(lab, cv2.CV_32F, 0, 1)
    strength = np.sqrt((across * across + down * down).sum(axis=2))  # (H, W)
    # A thin contour on a plain image fills less than 1 % of it: then the maximum is the scale.
    scale = np.percentile(strength, 99) or strength.max()
    if scale < 1e-3:  # Lab units: rounding, no contour
        return np.zeros_like(strength)
    return np.minimum(strength / np.float32(scale), np.float32(1))
