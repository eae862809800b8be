"""Contour strength as the probability of a human contour, from boosted trees.

Every pixel is described by 31 numbers that do not change when the image is turned by a step of the
filters: how fast lightness, colour and texture change across it at four sizes, how well one
direction explains that, and how far it stands out among its neighbours.

H x W pixels, C channels, A directions, F = 31 features.
"""

import cv2
import numba
import numpy as np

from pipeline.proposals.forest import Forest, predict

DIRECTIONS = 8
LEVELS = 4  # of the pyramid, each half as large as the one before
PER_LEVEL = 7
FEATURES = LEVELS * PER_LEVEL + 3
ROWS = 768  # of an image at a time: 31 features of a large one do not fit into the memory
MARGIN = 256  # rows around them, more than any feature sees; both are multiples of the last level
RADIUS = 4  # of the filters, pixels
ACROSS, ALONG = 1.0, 2.2  # sigmas of the filters, pixels
REACH = 1.5  # pixels from a drawn contour that count as on it: it and its eight neighbours
NEAR = 8.0  # pixels
SHARES = (0.45, 0.25, 0.3)  # of the samples: on a contour, near one, elsewhere


def boosted_edges(image: np.ndarray, forest: Forest) -> np.ndarray:
    """The probability that a person draws a contour through a pixel or a neighbour of it.

    Args:
        image: (H, W, 3) uint8, RGB.
        forest: of features as below.

    Returns:
        (H, W) float32 in [0, 1].
    """
    strength = np.empty(image.shape[:2], np.float32)
    for start in range(0, len(image), ROWS):
        top = max(0, start - MARGIN)
        features = edge_features(image[top : start + ROWS + MARGIN])[:, start - top :][:, :ROWS]
        found = predict(forest, features.reshape(FEATURES, -1))
        strength[start : start + ROWS] = found.reshape(features.shape[1:])
    return strength


def check_features(forest: Forest) -> Forest:
    """The forest itself. Raises ValueError for one that looks at features which are not here."""
    if forest.features.size and int(forest.features.max()) >= FEATURES:
        raise ValueError(f"it looks at feature {forest.features.max()} of {FEATURES}")
    return forest


def edge_features(image: np.ndarray) -> np.ndarray:
    """What the trees look at.

    Returns:
        (F, H, W) float32: for each level of the pyramid the change of lightness, colour, texture
        and of all of them, the share of the weakest direction, the change relative to the
        surroundings and to the places two pixels to both sides; then the plain gradient of the
        finest level, of lightness and colour, and the texture itself.
    """
    height, width = image.shape[:2]
    lab = cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    fine = lab[:, :, 0] - cv2.GaussianBlur(lab[:, :, 0], (0, 0), 2)
    texture = np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 2))  # (H, W)
    channels = np.dstack([lab, texture])  # (H, W, 4)
    features = np.empty((FEATURES, height, width), np.float32)
    bank = _bank()
    level = channels
    for number in range(LEVELS):
        if number:
            size = (-(-level.shape[1] // 2), -(-level.shape[0] // 2))
            level = cv2.resize(level, size, interpolation=cv2.INTER_AREA)
        for place, found in enumerate(_level_features(level, bank), number * PER_LEVEL):
            features[place] = cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR)
    across, down = cv2.Sobel(lab, cv2.CV_32F, 1, 0), cv2.Sobel(lab, cv2.CV_32F, 0, 1)
    squares = across * across + down * down  # (H, W, 3)
    features[-3] = np.sqrt(squares[:, :, 0])
    features[-2] = np.sqrt(squares[:, :, 1] + squares[:, :, 2])
    features[-1] = texture
    return features


def edge_samples(
    image: np.ndarray, boundaries: np.ndarray, *, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of one image to fit a forest on.

    Drawn from three kinds of pixels, with weights that make the three as large as in the image:
    with a contour drawn there or on a neighbour; within NEAR pixels of one, which teach where
    exactly a contour is; and all others.

    Args:
        image: (H, W, 3) uint8, RGB.
        boundaries: (K, H, W) bool, contours that K people drew.
        count: pixels, at most.

    Returns:
        Features (F, N) float32; targets (N,), the share of the people who drew there; weights (N,).
    """
    distances = np.stack([_distance(drawn) for drawn in boundaries])  # (K, H, W)
    targets = (distances <= REACH).mean(axis=0).ravel()
    nearest = distances.min(axis=0).ravel()
    features = edge_features(image).reshape(FEATURES, -1)
    kinds = (nearest <= REACH, (nearest > REACH) & (nearest <= NEAR), nearest > NEAR)
    drawn, weights = [], []
    for pixels, share in zip(map(np.flatnonzero, kinds), SHARES, strict=True):
        wanted = min(len(pixels), int(share * count))
        drawn.append(rng.choice(pixels, wanted, replace=False))
        weights.append(np.full(wanted, len(pixels) / max(wanted, 1)))
    pixels = np.concatenate(drawn)
    return features[:, pixels], targets[pixels], np.concatenate(weights)


def _distance(drawn: np.ndarray) -> np.ndarray:
    """(H, W) float32, pixels to the nearest of `drawn`; far where nothing is drawn."""
    if not drawn.any():
        return np.full(drawn.shape, np.inf, np.float32)
    return cv2.distanceTransform((~drawn).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _level_features(level: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """(7, H, W) of one level (H, W, C) of the pyramid."""
    largest = np.zeros((3, *level.shape[:2]), np.float32)  # of lightness, colour and texture
    total = np.empty((DIRECTIONS, *level.shape[:2]), np.float32)
    for number, kernel in enumerate(bank):
        change = cv2.filter2D(level, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT)
        light, red, blue, texture = cv2.split(change * change)
        for place, energy in enumerate((light, red + blue, texture)):
            np.maximum(largest[place], energy, out=largest[place])
        total[number] = light + red + blue + texture
    best = total.argmax(axis=0)
    strongest = np.sqrt(total.max(axis=0))
    around = cv2.GaussianBlur(strongest, (0, 0), 6, borderType=cv2.BORDER_REFLECT)
    return np.stack(
        [
            *np.sqrt(largest),
            strongest,
            np.sqrt(total.min(axis=0)) / (strongest + 1),
            strongest / (around + 1),
            _standing_out(total, best, _steps()),
        ]
    )


def _bank() -> np.ndarray:
    """(A, 9, 9) float32: slopes of a long Gaussian, one for each direction of the normal."""
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1].astype(float)
    kernels = []
    for angle in np.arange(DIRECTIONS) * np.pi / DIRECTIONS:
        normal = x * np.cos(angle) + y * np.sin(angle)
        tangent = y * np.cos(angle) - x * np.sin(angle)
        kernel = normal * np.exp(-((normal / ACROSS) ** 2 + (tangent / ALONG) ** 2) / 2)
        kernels.append(kernel / np.abs(kernel).sum())
    return np.array(kernels, np.float32)


def _steps() -> np.ndarray:
    """(A, 2) int64: two pixels along the normal of each direction, as (down, right)."""
    angles = np.arange(DIRECTIONS) * np.pi / DIRECTIONS
    return np.rint(2 * np.stack([np.sin(angles), np.cos(angles)], axis=1)).astype(np.int64)


@numba.njit(cache=True, nogil=True)
def _standing_out(energy, best, steps):
    """(H, W): strength over the mean of its two neighbours across the contour, 0.5 added to both.

    The roots of energy (A, H, W) float32 are compared in the direction best (H, W) of each pixel.
    """
    _, height, width = energy.shape
    out = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            a = best[y, x]
            dy, dx = steps[a]
            y0, y1 = max(0, min(height - 1, y - dy)), max(0, min(height - 1, y + dy))
            x0, x1 = max(0, min(width - 1, x - dx)), max(0, min(width - 1, x + dx))
            beside = (np.sqrt(energy[a, y0, x0]) + np.sqrt(energy[a, y1, x1])) / 2
            out[y, x] = (np.sqrt(energy[a, y, x]) + 0.5) / (beside + 0.5)
    return out
