"""From images and label maps to what a network takes.

B images, H x W pixels of an image, h x w pixels of a view. Pixel i covers [i, i + 1): its centre
is at i + 1/2, so a view twice as large has its pixel v at image pixel (v + 1/2) / 2 - 1/2.
"""

from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.categories import IGNORE
from pipeline.params import Augmentation, Grid

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's R, G, B in [0, 1]
STD = (0.229, 0.224, 0.225)
PADDING = (124, 116, 104)  # MEAN as a colour

Array = TypeVar("Array", np.ndarray, Tensor)


def draw_view(
    shape: tuple[int, int], augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Draw a scale, a position and flips.

    Args:
        shape: H, W of the image.
        augmentation: size of the view, range of the scale, which flips (each with chance 1/2).
        rng: five numbers are drawn from it, whatever the augmentation.

    Returns:
        (2, 3) float64: the affine map from pixel (x, y) of the view to that of the image. Where
        the scaled image is larger than the view, the view lies inside it, else around it.
    """
    scale = rng.uniform(*augmentation.scale)
    flips = rng.random(2) < 0.5  # top to bottom, left to right
    flips &= (augmentation.flip == "both", augmentation.flip != "none")
    view_to_image = np.zeros((2, 3))
    for axis in (0, 1):
        size = augmentation.crop[axis]
        slack = size - max(round(shape[axis] * scale), 1)
        corner = rng.integers(min(slack, 0), max(slack, 0), endpoint=True)  # of the image, in view
        sign, first = (-1, size - 0.5) if flips[axis] else (1, 0.5)  # centre of the view's pixel 0
        row = 1 - axis  # x first
        view_to_image[row, row] = sign / scale
        view_to_image[row, 2] = (first - corner) / scale - 0.5
    return view_to_image


def random_view(
    image: np.ndarray,
    label_map: np.ndarray,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """One randomly scaled, placed and flipped view of an image and of its label map.

    Args:
        image: (H, W, 3) uint8. label_map: (H, W) uint8.
        augmentation, rng: see `draw_view`.

    Returns:
        (h, w, 3) uint8, interpolated linearly, and (h, w) uint8, the nearest label. Outside the
        image: the mean colour, and 255.
    """
    view_to_image = draw_view(label_map.shape, augmentation, rng)
    height, width = augmentation.crop
    view = cv2.warpAffine(
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA),  # four channels are warped faster than three
        view_to_image,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=PADDING,
    )
    labels = cv2.warpAffine(
        label_map,
        view_to_image,
        (width, height),
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=IGNORE,
    )
    return cv2.cvtColor(view, cv2.COLOR_RGBA2RGB), labels


def labels_on_grid(label_map: Array, stride: int, grid: Grid = "centres") -> Array:
    """The labels (..., H, W) at the score cells of a network, (..., h, w).

    centres: h = H / stride. corners: h = (H - 1) / stride + 1.

    Reading: of FCRN, cell i stands for the pixels [stride i, stride (i + 1)), so its label is that
    of pixel stride i + stride / 2, and scores are enlarged by half-pixel interpolation. Of DeepLab,
    it stands for pixel stride i, and scores are enlarged with aligned corners.

    Raises:
        ValueError: a side is no multiple of the stride (corners: no such multiple and 1 more).
    """
    if grid == "corners":
        if any((side - 1) % stride for side in label_map.shape[-2:]):
            raise ValueError(
                f"{label_map.shape[-2]}x{label_map.shape[-1]} pixels have no cells of {stride} on "
                "their corners; choose a crop whose sides are multiples of the stride, and 1 more"
            )
        return label_map[..., ::stride, ::stride]
    if label_map.shape[-2] % stride or label_map.shape[-1] % stride:
        raise ValueError(
            f"{label_map.shape[-2]}x{label_map.shape[-1]} pixels do not divide into cells of "
            f"{stride}; choose a crop whose sides are multiples of the stride"
        )
    return label_map[..., stride // 2 :: stride, stride // 2 :: stride]


def normalise(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 RGB to (B, 3, H, W) float32 of ImageNet's mean 0 and deviation 1.

    On the device of `images`. The result lies channels-last in memory; 0 is the mean colour.
    """
    width = images.shape[2]
    mean, std = (
        (torch.tensor(values) * 255).repeat(width).to(images.device, non_blocking=True)
        for values in (MEAN, STD)
    )
    rows = images.flatten(2).float()  # (B, H, 3 W): long rows go six times as fast as triples
    return rows.sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)
