"""Boxes: half-open ``[x0, y0, x1, y1)`` in pixels from 0.

N, M boxes; H x W pixels.
"""

import numpy as np


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes (..., 4), zero for an empty box. Returns (...)."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Shared area of every pair of boxes a (N, 4) and b (M, 4). Returns (N, M)."""
    corners_low = np.maximum(a[:, None, :2], b[None, :, :2])
    corners_high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return area(np.concatenate([corners_low, corners_high], axis=-1))


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of boxes a (N, 4) and b (M, 4).

    Returns (N, M) float64 in [0, 1]; 0 where both boxes are empty.
    """
    shared = intersection(a, b).astype(np.float64)
    union = area(a)[:, None] + area(b)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def tight_box(mask: np.ndarray) -> np.ndarray:
    """The smallest box around the true pixels of a mask (H, W). Returns (4,) int64.

    An empty mask has the empty box (0, 0, 0, 0).
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return np.zeros(4, np.int64)
    columns = np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.int64)


def box_mask(box: np.ndarray, height: int, width: int) -> np.ndarray:
    """The filled box (4,), clipped to the image, as a mask (H, W) bool."""
    mask = np.zeros((height, width), bool)
    x0, y0, x1, y1 = (int(v) for v in box)
    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return mask
