"""Large images are searched at a smaller size."""

import cv2
import numpy as np


def reduced(image: np.ndarray, max_pixels: int) -> np.ndarray:
    """An image (H, W, 3) uint8 of at most about so many pixels, its sides in proportion."""
    height, width = image.shape[:2]
    factor = (max_pixels / (height * width)) ** 0.5
    if factor >= 1:
        return image
    size = (max(int(width * factor), 1), max(int(height * factor), 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def enlarged(superpixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Superpixels (h, w) at a size no smaller: each pixel's is the nearest one, and none is lost.

    Returns (height, width).
    """
    rows = np.arange(height) * superpixels.shape[0] // height
    columns = np.arange(width) * superpixels.shape[1] // width
    return superpixels[rows[:, None], columns]
