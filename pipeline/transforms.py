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
from pipeline.params_networks import Grid
from pipeline.params_training import Augmentation

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
    view = _warp_image(image, view_to_image, augmentation.crop)
    return view, _warp_labels(label_map, view_to_image, augmentation.crop, outside=IGNORE)


def random_object_view(
    image: np.ndarray,
    objects: np.ndarray,
    boxes: np.ndarray,
    things: np.ndarray,
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    stride: int,
    grid: Grid,
) -> tuple[np.ndarray, np.ndarray]:
    """One view as of `random_view`, and whose pixel each score cell has.

    Implements: Wu2016 Sec. 2.1 (each pixel is told the box of the object it belongs to).

    Args:
        image: (H, W, 3) uint8. objects: (H, W) uint16, number of the object + 1, 0 for none.
        boxes: (N, 4) corners around the whole objects, in pixels of the image.
        things: (N,) integers, which of the categories that have objects each is of.
        augmentation, rng: see `draw_view`; the same generator gives the view of `random_view`.
        stride, grid: of the network's score cells; see `labels_on_grid`.

    Returns:
        (h, w, 3) uint8, and (5, h / stride, w / stride) float32: thing + 1 and the corners
        x0, y0, x1, y1 in pixels of the view, or five zeros where no object is. An object that no
        cell falls on is in none.

    Reading: a box is that of the whole object also where the view cuts it. A network that learnt
    boxes cut at borders would say too small ones in whole images.

    Raises:
        ValueError: more than 65,535 objects, or boxes and things that are not one for each.
    """
    if len(boxes) > np.iinfo(np.uint16).max:
        raise ValueError(f"{len(boxes)} objects in an image; at most 65,535 can be told apart")
    if not len(boxes) == len(things) >= objects.max(initial=0):
        raise ValueError(
            f"{len(boxes)} boxes and {len(things)} things for {objects.max(initial=0)} objects"
        )
    view_to_image = draw_view(objects.shape, augmentation, rng)
    view = _warp_image(image, view_to_image, augmentation.crop)
    numbers = _warp_labels(objects, view_to_image, augmentation.crop, outside=0)
    told = np.zeros((len(boxes) + 1, 5), np.float32)  # row 0: no object
    told[1:, 0] = things + 1
    told[1:, 1:] = boxes_in_view(boxes, view_to_image)
    truth = told[labels_on_grid(numbers, stride, grid)]  # (h / stride, w / stride, 5)
    return view, np.ascontiguousarray(truth.transpose(2, 0, 1))


def boxes_in_view(boxes: np.ndarray, view_to_image: np.ndarray) -> np.ndarray:
    """Corners (N, 4) in pixels of the image as corners in pixels of the view, float64, not clipped.

    view_to_image: from `draw_view`. It maps numbers of pixels, whose centres are at i + 1/2.
    """
    factors, shifts = view_to_image.diagonal(), view_to_image[:, 2]
    ends = (boxes.reshape(-1, 2, 2) - (shifts + 0.5)) / factors + 0.5  # x, y of two corners
    return np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1)


def _warp_image(image: np.ndarray, view_to_image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 to size[0] x size[1] pixels, linearly; the mean colour outside."""
    view = cv2.warpAffine(
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA),  # four channels are warped faster than three
        view_to_image,
        size[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=PADDING,
    )
    return cv2.cvtColor(view, cv2.COLOR_RGBA2RGB)


def _warp_labels(
    label_map: np.ndarray, view_to_image: np.ndarray, size: tuple[int, int], *, outside: int
) -> np.ndarray:
    """(H, W) uint8 or uint16 to size[0] x size[1] pixels, each that of the nearest."""
    return cv2.warpAffine(
        label_map,
        view_to_image,
        size[::-1],
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=outside,
    )


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
