"""The categories of every dataset, in the order of our contiguous numbers. 0 is background."""

import numpy as np

IGNORE = 255  # the value of a pixel that has no label: not trained on, not scored

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

SAMPLE = ("background", "ring", "star", "crescent", "plus", "rod", "fork", "triangle", "disc")

CATEGORIES = {"voc": VOC, "sample": SAMPLE}


def colour_map() -> np.ndarray:
    """VOC's palette: (256, 3) uint8, the colour of each index.

    Bit j of the index goes to bit 7 - j // 3 of the colour channel j % 3.
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= (((index >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours
