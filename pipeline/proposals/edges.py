"""Contour strength of an image.

H x W pixels.
"""

import cv2
import numpy as np


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
