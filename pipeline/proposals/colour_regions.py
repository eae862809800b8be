"""Regions of like colour, in several colour spaces (Felzenszwalb and Huttenlocher 2004).

H x W pixels, R regions, E pairs of pixels.
"""

import cv2
import numba
import numpy as np

SMOOTHING = 0.8  # sigma of the Gaussian before the regions, pixels (the paper's code)
LEVELS = np.float32(64)  # of a difference of one step of 0..255
NEIGHBOURS = (  # the pixels that have one, and that one: right, below, and below on either side
    (np.s_[:, :-1], np.s_[:, 1:]),
    (np.s_[:-1], np.s_[1:]),
    (np.s_[:-1, :-1], np.s_[1:, 1:]),
    (np.s_[:-1, 1:], np.s_[1:, :-1]),
)


def channels_of(image: np.ndarray, colour: str) -> np.ndarray:
    """The image (H, W, 3) uint8 in another colour space, every channel over 0..255."""
    match colour:
        case "hsv":
            return cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        case "lab":
            return cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
        case "rgb":
            return image
    raise ValueError(f"colours: {colour!r} is none of hsv, lab, rgb")


def first_regions(channels: np.ndarray, scales: tuple[int, ...]) -> list[np.ndarray]:
    """Regions of like colour (Felzenszwalb and Huttenlocher 2004).

    Each pixel is joined to its eight neighbours, the most alike first, while their difference is
    no more than what each one's region has within, plus the scale over the region's area. Regions
    of less than `scale` pixels then join a neighbour in the same order.

    Args:
        channels: (H, W, 3) uint8.

    Returns:
        for each scale (H, W) int32, ids 0..R-1 in the order of the first pixels.
    """
    height, width = channels.shape[:2]
    smooth = cv2.GaussianBlur(channels.astype(np.float32), (0, 0), SMOOTHING)
    pixels = np.arange(height * width, dtype=np.int32).reshape(height, width)
    ends, steps = [], []
    for here, there in NEIGHBOURS:
        ends.append(np.stack([pixels[here].ravel(), pixels[there].ravel()], axis=1))
        steps.append(np.sqrt(((smooth[here] - smooth[there]) ** 2).sum(axis=2)).ravel())
    # Sixteen bits are sorted in one pass, and a stable order is the same on every machine.
    levels = (np.concatenate(steps) * LEVELS).astype(np.uint16)
    order = np.argsort(levels, kind="stable")
    sorted_ends = np.concatenate(ends)[order]
    differences = levels[order].astype(np.float32) / LEVELS
    return [_joined(sorted_ends, differences, scale, height, width) for scale in scales]


@numba.njit(cache=True, nogil=True)
def _joined(ends, differences, scale, height, width):
    up = np.arange(height * width).astype(np.int32)
    sizes = np.ones(height * width, np.int32)
    allowed = np.full(height * width, np.float32(scale))  # of the region of each root
    for least in (0, scale):  # by difference, then those that are too small
        for e in range(len(ends)):
            a, b = _root(up, ends[e, 0]), _root(up, ends[e, 1])
            if a == b:
                continue
            alike = differences[e] <= allowed[a] and differences[e] <= allowed[b]
            if alike if least == 0 else min(sizes[a], sizes[b]) < least:
                a, b = min(a, b), max(a, b)
                up[b] = a
                sizes[a] += sizes[b]
                allowed[a] = differences[e] + np.float32(scale) / sizes[a]
    labels = np.empty(height * width, np.int32)
    count = 0
    for p in range(height * width):
        root = _root(up, p)
        if root == p:  # roots are the first pixels of their regions
            labels[p] = count
            count += 1
        else:
            labels[p] = labels[root]
    return labels.reshape(height, width)


@numba.njit(cache=True, nogil=True)
def _root(up, p):
    while up[p] != p:
        up[p] = up[up[p]]
        p = up[p]
    return p
