"""Scores of label maps: counts of truth against prediction, and one division at the end.

C categories; H x W pixels. Counts of images are added up before anything is divided: every score
is of a whole split, never a mean over images.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.categories import IGNORE


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
        ValueError: shapes differ, a map is not uint8, or the truth holds another value.
    """
    if predicted.shape != truth.shape or predicted.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(
            f"two uint8 maps of one shape are compared, not {predicted.shape} {predicted.dtype} "
            f"and {truth.shape} {truth.dtype}"
        )
    # One key for each pair of bytes: unlabelled pixels get a row of their own, no mask is needed.
    key = (truth.astype(np.uint16) << 8) | predicted
    pairs = np.bincount(key.ravel(), minlength=1 << 16).reshape(256, 256)
    unknown = np.flatnonzero(pairs[num_categories:IGNORE].any(axis=1)) + num_categories
    if unknown.size:
        raise ValueError(
            f"the truth holds {unknown.tolist()}, outside the {num_categories} categories and "
            f"{IGNORE}"
        )
    counts = pairs[:num_categories, : num_categories + 1].astype(np.int64)  # (C, C + 1)
    counts[:, num_categories] = pairs[:num_categories, num_categories:].sum(axis=1)
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
        mean_iou=_mean(iou),
        pixel_accuracy=float(right.sum() / labelled) if labelled else float("nan"),
        mean_accuracy=_mean(_divide(right, true)),
    )


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)


def _mean(values: np.ndarray) -> float:
    """The mean of the numbers among the values; NaN where there are none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else float("nan")
