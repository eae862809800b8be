"""Scores of label maps: counts of truth against prediction, and one division at the end.

C categories; H x W pixels. Counts of images are added up before anything is divided: every score
is of a whole split, never a mean over images.
"""

from dataclasses import dataclass

import numba
import numpy as np

from pipeline.categories import IGNORE
from pipeline.errors import some


@dataclass(frozen=True)
class SemanticScores:
    """Scores of one confusion matrix, fractions in [0, 1]; NaN where nothing can be said."""

    iou: np.ndarray  # (C,) float64; NaN for a category in neither truth nor prediction
    mean_iou: float  # over the categories whose IoU is a number
    pixel_accuracy: float  # right pixels of all labelled pixels
    mean_accuracy: float  # mean, over the categories that the truth holds, of their right pixels


def confusion_matrix(predicted: np.ndarray, truth: np.ndarray, num_categories: int) -> np.ndarray:
    """Pixels by true and predicted category; matrices of several images are added.

    Pixels whose truth is 255 are not counted.

    Args:
        predicted: (H, W) uint8, any values: one outside the categories, 255 too, is an error of
            its pixel and goes to the last column, so that leaving pixels out never pays.
        truth: (H, W) uint8, categories 0..C-1 or 255.
        num_categories: C, 1..255, also where some category does not occur.

    Returns:
        (C, C + 1) int64, row = truth, column = prediction.

    Raises:
        ValueError: shapes differ, a map is not uint8, the truth holds another value, or C is not
            1..255.
    """
    if predicted.shape != truth.shape or predicted.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(
            f"two uint8 maps of one shape are compared, not {predicted.shape} {predicted.dtype} "
            f"and {truth.shape} {truth.dtype}"
        )
    if not 1 <= num_categories <= IGNORE:
        raise ValueError(f"there are 1 to {IGNORE} categories, not {num_categories}")
    counts = _fold(_joint_histogram(pixels(predicted), pixels(truth)), num_categories)
    if counts[num_categories:IGNORE].any():
        unknown = np.flatnonzero(counts[num_categories:IGNORE].any(axis=1)) + num_categories
        raise ValueError(
            f"the truth holds [{some(unknown.tolist())}], outside the {num_categories} categories "
            f"and {IGNORE}"
        )
    return counts[:num_categories].copy()  # without the row of 255, nor a hold on it


def pixels(label_map: np.ndarray) -> np.ndarray:
    """The pixels of a map in a form for which loops are compiled once, copied only if they must be.

    Returns:
        (H * W,) uint8, read-only, row after row without gaps, beginning at a multiple of 8 bytes.
    """
    flat = np.ascontiguousarray(label_map).reshape(-1)  # a new view: the caller's stays writable
    if flat.ctypes.data % 8:
        flat = flat.copy()
    flat.flags.writeable = False
    return flat


def _joint_histogram(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels by true and predicted byte, of two maps as `pixels` gives them. (256, 256) int64."""
    whole = len(truth) // 8 * 8
    words = predicted[:whole].view(np.uint64), truth[:whole].view(np.uint64)
    return _count_words(*words, predicted[whole:], truth[whole:])


@numba.njit(nogil=True, cache=True)
def _count_words(predicted, truth, predicted_rest, truth_rest):
    """Pixels by true and predicted byte, eight at a time where the maps stay the same.

    A run of one pair of bytes goes on while both words hold nothing else. Any other word is counted
    pixel by pixel, and the pair counted last begins the next run.

    Args:
        predicted, truth: (N,) uint64, eight pixels each.
        predicted_rest, truth_rest: (R,) uint8, the pixels after the last whole word.

    Returns:
        (256, 256) int64, row = truth, column = prediction.
    """
    counts = np.zeros((256, 256), np.int64)
    low, byte, everywhere = np.uint64(0xFF), np.uint64(8), np.uint64(0x0101010101010101)
    p = t = p_run = t_run = np.uint64(0)  # the pair of the run, and words full of it
    start = 0  # of the run
    for i in range(len(truth)):
        p_word, t_word = predicted[i], truth[i]
        if (p_word ^ p_run) | (t_word ^ t_run):
            counts[t, p] += 8 * (i - start)
            for _ in range(8):
                p, t = p_word & low, t_word & low
                counts[t, p] += 1
                p_word >>= byte
                t_word >>= byte
            p_run, t_run = p * everywhere, t * everywhere
            start = i + 1
    counts[t, p] += 8 * (len(truth) - start)
    for i in range(len(truth_rest)):
        counts[truth_rest[i], predicted_rest[i]] += 1
    return counts


@numba.njit(nogil=True, cache=True)
def _fold(pairs, num_categories):
    """Predictions outside the categories in one column. (256, 256) to (256, C + 1) int64."""
    counts = np.zeros((256, num_categories + 1), np.int64)
    for t in range(256):
        rest = np.int64(0)
        for p in range(256):  # all, then take away: loops from a variable on are not vectorised
            rest += pairs[t, p]
        if rest:
            for p in range(num_categories):
                counts[t, p] = pairs[t, p]
                rest -= pairs[t, p]
            counts[t, num_categories] = rest
    return counts


def scores(confusion: np.ndarray) -> SemanticScores:
    """The scores of all pixels counted in a confusion matrix (C, C + 1).

    With n_ij the pixels of category i predicted as j and t_i = sum_j n_ij:
    pixel accuracy sum_i n_ii / sum_i t_i; mean accuracy mean_i n_ii / t_i;
    IoU_i = n_ii / (t_i + sum_j n_ji - n_ii).

    Implements: Wu2016 Sec. 3.1 (pixel accuracy, mean accuracy, mean IoU).
    Reading: the paper leaves open what a category without a pixel counts; it is left out of the
        mean (of accuracy: no true pixel; of IoU: neither true nor predicted), not taken as 0.
    """
    num_categories = len(confusion)
    right = np.diagonal(confusion).astype(np.float64)  # (C,)
    true = confusion.sum(axis=1)
    predicted = confusion[:, :num_categories].sum(axis=0)
    iou = _divide(right, true + predicted - right)
    labelled = confusion.sum()
    return SemanticScores(
        iou=iou,
        mean_iou=mean_of(iou),
        pixel_accuracy=float(right.sum() / labelled) if labelled else float("nan"),
        mean_accuracy=mean_of(_divide(right, true)),
    )


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)


def mean_of(values: np.ndarray) -> float:
    """The mean of the numbers among the values; NaN where there are none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else float("nan")
