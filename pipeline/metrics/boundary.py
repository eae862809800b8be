"""Counts near the border of objects and away from it: the trimap analysis.

C categories; H x W pixels; W bands. Maps like VOC's mark the border of objects with 255: a band of
width w holds the labelled pixels at most w steps from such a pixel, diagonal steps counted as one.
"""

from collections.abc import Sequence

import cv2
import numba
import numpy as np

from pipeline.categories import IGNORE
from pipeline.metrics.semantic import confusion_matrix, pixels


def band_confusions(
    predicted: np.ndarray, truth: np.ndarray, widths: Sequence[int], num_categories: int
) -> np.ndarray:
    """Pixels by true and predicted category, inside a band around the 255 of the truth and outside.

    Pixels whose truth is 255 are in neither. The matrices of several images are added, and
    `semantic.scores` takes what was added.

    Implements: Dai2015 Fig. 4 (boundary and interior at each width).
    Reading: the paper gives no widths and says of its bands only that they surround the boundaries;
        as in the released code of DeepLab, {truth = 255} is dilated by a square of 2w + 1 pixels a
        side.

    Args:
        predicted: (H, W) uint8, any values, as `semantic.confusion_matrix` takes them.
        truth: (H, W) uint8, categories 0..C-1 or 255; without any 255, all of it is interior.
        widths: pixels, distinct, from 1 on, in any order.
        num_categories: C, 1..255.

    Returns:
        (W, 2, C, C + 1) int64 in the order of the widths; of each, first the band, then the
        interior.

    Raises:
        ValueError: as `confusion_matrix`; the maps have not two dimensions, or the widths are none,
            repeated or below 1.
    """
    if truth.ndim != 2:
        raise ValueError(f"bands are of maps with two dimensions, not {truth.ndim}")
    if not widths or min(widths) < 1 or len(set(widths)) < len(widths):
        raise ValueError(f"widths {list(widths)}: they must be distinct and at least 1")
    everywhere = confusion_matrix(predicted, truth, num_categories)
    ascending = sorted(widths)
    widest = min(ascending[-1], max(truth.shape))  # no two pixels are farther apart
    # A pixel is in all bands from the first that is wide enough on: count it once, add up after.
    first_band = np.searchsorted(ascending, np.arange(widest + 1))  # by distance
    distance = border_distance(truth).reshape(-1)
    counts = np.zeros((len(widths), num_categories, num_categories + 1), np.int64)
    _count_near(pixels(predicted), pixels(truth), distance, first_band, counts)
    bands = np.cumsum(counts, axis=0)
    return np.stack([bands, everywhere - bands], axis=1)[[ascending.index(w) for w in widths]]


def border_distance(truth: np.ndarray) -> np.ndarray:
    """Steps, diagonal ones too, from each pixel of a (H, W) uint8 map to the nearest 255 in it.

    Returns:
        (H, W) float32 of whole numbers, or of infinity where the map has no 255.
    """
    labelled = np.ascontiguousarray(truth != IGNORE)
    if labelled.all():  # how far OpenCV says they are then depends on its version
        return np.full(truth.shape, np.inf, np.float32)
    # A mask of 3 x 3 is exact for such steps.
    return cv2.distanceTransform(labelled.view(np.uint8), cv2.DIST_C, cv2.DIST_MASK_3)


@numba.njit(nogil=True, cache=True)
def _count_near(predicted, truth, distance, first_band, counts):
    """Add the pixels to `counts` of which the distance is more than 0 and has a band.

    Args:
        predicted, truth: (H * W,) uint8; a truth outside the categories is at distance 0.
        distance: (H * W,) float32, whole numbers or infinity.
        first_band: (D,) int64, the band of each distance.
        counts: (W, C, C + 1) int64.
    """
    last = counts.shape[2] - 1
    for i in range(len(truth)):
        d = distance[i]
        if 0 < d < len(first_band):
            counts[first_band[int(d)], truth[i], min(predicted[i], last)] += 1
