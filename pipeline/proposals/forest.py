"""Boosted symmetric trees: a probability from some tens of numbers, fast enough for every pixel.

In a symmetric tree all nodes of a level ask the same question, so a leaf's number is made of the
answers as bits, and a block of rows goes down a tree without a branch.

N rows, F features, T trees, D levels, B bins.
"""

from dataclasses import dataclass

import numba
import numpy as np

BLOCK = 512  # rows that go through the trees together: their features stay in the cache


@dataclass(frozen=True)
class Forest:
    """Trees whose leaves add up to the logit of a probability."""

    features: np.ndarray  # (T, D) uint8, which feature a level looks at
    thresholds: np.ndarray  # (T, D) float32; bit d of the leaf is: feature > threshold
    leaves: np.ndarray  # (T, 2 ** D) float32
    bias: np.ndarray  # () float32

    def __post_init__(self) -> None:
        """Raises ValueError for arrays that are no forest."""
        trees, depth = self.features.shape if self.features.ndim == 2 else (-1, -1)
        expected = {
            "features": ((trees, depth), np.uint8),
            "thresholds": ((trees, depth), np.float32),
            "leaves": ((trees, 1 << max(depth, 0)), np.float32),
            "bias": ((), np.float32),
        }
        for name, (shape, kind) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != kind:
                raise ValueError(f"{name} is {array.shape} {array.dtype}, not {shape} {kind}")
        if depth > 8:
            raise ValueError(f"trees of {depth} levels, not 8 at most")
        for name in ("thresholds", "leaves", "bias"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} holds numbers that are not finite")


def predict(forest: Forest, rows: np.ndarray) -> np.ndarray:
    """The probability of each row.

    Args:
        rows: (F, N) float32, one feature after another.

    Returns:
        (N,) float32 in [0, 1].

    Raises:
        ValueError: the forest looks at a feature that is not there.
    """
    if forest.features.size and int(forest.features.max()) >= len(rows):
        raise ValueError(f"the forest looks at feature {forest.features.max()} of {len(rows)}")
    logits = _logits(
        np.ascontiguousarray(rows),
        forest.features,
        forest.thresholds,
        forest.leaves,
        np.float32(forest.bias[()]),
    )
    return 1 / (1 + np.exp(-logits))


def fit(
    rows: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    *,
    trees: int,
    depth: int,
    rate: float,
    bins: int,
    share: float,
    seed: int,
) -> Forest:
    """Trees that lower the weighted cross entropy one after another, each by a Newton step.

    Args:
        rows: (F, N) float32.
        targets: (N,) float in [0, 1], the probability that is wanted.
        weights: (N,) float, above 0.
        rate: of the Newton step that is taken.
        bins: of each feature, between quantiles; thresholds are chosen among their borders.
        share: of the rows that each tree sees, drawn anew.
        seed: of the drawing.

    Returns:
        The forest: the same for the same arguments, bit for bit.
    """
    borders = _borders(rows, bins)  # (F, B - 1)
    binned = np.stack([np.searchsorted(b, r) for b, r in zip(borders, rows, strict=True)])
    binned = np.ascontiguousarray(binned.astype(np.uint8).T)  # (N, F): a row is one cache line
    weights = weights / weights.mean()
    mean = float((weights * targets).mean())
    bias = np.log(mean / (1 - mean))
    logits = np.full(len(targets), bias)
    rng = np.random.default_rng(seed)
    features = np.zeros((trees, depth), np.uint8)
    thresholds = np.zeros((trees, depth), np.float32)
    leaves = np.zeros((trees, 1 << depth), np.float32)
    for tree in range(trees):
        probability = 1 / (1 + np.exp(-logits))
        slope = weights * (probability - targets)
        bend = weights * probability * (1 - probability)
        seen = np.sort(rng.permutation(len(targets))[: max(1, round(share * len(targets)))])
        leaf, seen_leaf = np.zeros(len(targets), np.uint8), np.zeros(len(seen), np.uint8)
        seen_rows, seen_slope, seen_bend = binned[seen], slope[seen], bend[seen]
        for level in range(depth):
            feature, border = _best_question(
                seen_rows, seen_leaf, seen_slope, seen_bend, 1 << level, bins
            )
            features[tree, level], thresholds[tree, level] = feature, borders[feature, border]
            leaf |= (binned[:, feature] > border).astype(np.uint8) << level
            seen_leaf = leaf[seen]
        slopes = np.bincount(seen_leaf, seen_slope, 1 << depth)
        bends = np.bincount(seen_leaf, seen_bend, 1 << depth)
        leaves[tree] = -rate * slopes / (bends + 1)
        logits += leaves[tree][leaf]
    return Forest(features, thresholds, leaves, np.array(bias, np.float32))


def _borders(rows: np.ndarray, bins: int) -> np.ndarray:
    """(F, B - 1) float32 quantiles of each feature, the last repeated where few differ."""
    borders = np.empty((len(rows), bins - 1), np.float32)
    for feature, values in enumerate(rows):
        found = np.unique(np.quantile(values, np.arange(1, bins) / bins).astype(np.float32))
        borders[feature, : len(found)] = found
        borders[feature, len(found) :] = found[-1]
    return borders


@numba.njit(cache=True)
def _best_question(rows, leaf, slope, bend, leaves, bins):
    """The (feature, border) whose answers, asked in every leaf, lower the loss most."""
    count, width = rows.shape
    slopes = np.zeros((width, leaves, bins))
    bends = np.zeros((width, leaves, bins))
    for n in range(count):
        l, g, h = leaf[n], slope[n], bend[n]
        for f in range(width):
            slopes[f, l, rows[n, f]] += g
            bends[f, l, rows[n, f]] += h
    best, best_feature, best_border = -1.0, 0, 0
    gains = np.empty(bins - 1)
    for f in range(width):
        gains[:] = 0
        for l in range(leaves):
            all_g, all_h = slopes[f, l].sum(), bends[f, l].sum()
            low_g, low_h = 0.0, 0.0
            for k in range(bins - 1):
                low_g += slopes[f, l, k]
                low_h += bends[f, l, k]
                high_g, high_h = all_g - low_g, all_h - low_h
                # One is added to each curvature, so that a leaf of few rows moves little.
                gains[k] += low_g * low_g / (low_h + 1) + high_g * high_g / (high_h + 1)
        for k in range(bins - 1):
            if gains[k] > best:
                best, best_feature, best_border = gains[k], f, k
    return best_feature, best_border


@numba.njit(cache=True, nogil=True)
def _logits(rows, features, thresholds, leaves, bias):
    count = rows.shape[1]
    trees, depth = features.shape
    out = np.empty(count, np.float32)
    leaf = np.empty(BLOCK, np.uint8)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        block = out[start : start + size]
        block[:] = bias
        for tree in range(trees):
            leaf[:] = 0
            for level in range(depth):
                values = rows[features[tree, level], start : start + size]
                threshold = thresholds[tree, level]
                for n in range(size):
                    leaf[n] |= np.uint8(values[n] > threshold) << np.uint8(level)
            values = leaves[tree]
            for n in range(size):
                block[n] += values[leaf[n]]
    return out
