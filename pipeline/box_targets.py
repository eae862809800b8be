"""What a localisation network says at a pixel of an object: where that object's box is.

h x w score cells, H x W pixels. Boxes are corners x0, y0, x1, y1 in continuous pixels: pixel i
covers [i, i + 1), its centre is at i + 1/2. Targets come in the order of `raw_targets`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.params_networks import Grid
from pipeline.params_training import LogSizeTargets, ScaledTargets, Targets

MAX_LOG_SIZE = math.log(1e6)  # of a side; larger ones cannot be told apart, and areas stay finite
LEAST_DEVIATION = 1e-3  # below it sizes differ by rounding only


class Standard(NamedTuple):
    """What targets are brought to mean 0 and deviation 1 with. Each (4,) float32, in pixels.

    With `LogSizeTargets` the last two are those of logarithms.
    """

    mean: Tensor
    deviation: Tensor


def cell_centres(
    height: int, width: int, *, stride: int, grid: Grid, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Where the h x w score cells of a network look.

    Returns:
        xs (w,) and ys (h,) float32 in pixels. centres: stride j + stride / 2, the middle of a
        cell's pixels. corners: stride j + 1/2, the middle of its first pixel.
    """
    first = stride / 2 if grid == "centres" else 0.5
    xs, ys = (
        torch.arange(cells, device=device, dtype=torch.float32) * stride + first
        for cells in (width, height)
    )
    return xs, ys


def raw_targets(boxes: Tensor, xs: Tensor, ys: Tensor, targets: Targets) -> Tensor:
    """From each cell to its box: (cx - x, cy - y, h, w), offsets to the box's centre and its sides.

    Implements: Wu2016 Sec. 2.1 (the four regression targets).

    Args:
        boxes: (..., 4, h, w) corners. xs, ys: (w,) and (h,), from `cell_centres`.
        targets: with `LogSizeTargets` it is (cx - x, cy - y, log h, log w), of sides > 0.

    Returns:
        (..., 4, h, w) in pixels.
    """
    x0, y0, x1, y1 = boxes.unbind(-3)
    sizes = torch.stack([y1 - y0, x1 - x0], dim=-3)
    if isinstance(targets, LogSizeTargets):
        sizes = sizes.log()
    offsets = torch.stack([(x0 + x1) / 2 - xs, (y0 + y1) / 2 - ys[:, None]], dim=-3)
    return torch.cat([offsets, sizes], dim=-3)


def normalise_targets(raw: Tensor, standard: Standard) -> Tensor:
    """(raw - mean) / deviation, target by target of (..., 4, h, w). On the device of `raw`."""
    mean, deviation = _beside(raw, standard)
    return (raw - mean) / deviation


def restore_targets(normalised: Tensor, standard: Standard) -> Tensor:
    """What `normalise_targets` was given: normalised * deviation + mean. Half precision widens."""
    mean, deviation = _beside(normalised, standard)
    return normalised * deviation + mean


def _beside(values: Tensor, standard: Standard) -> tuple[Tensor, ...]:
    return tuple(
        number.to(values.device, non_blocking=True)[:, None, None] for number in standard
    )  # (4, 1, 1)


def boxes_of(
    outputs: Tensor, xs: Tensor, ys: Tensor, targets: Targets, standard: Standard
) -> Tensor:
    """The boxes that a network says.

    Args:
        outputs: (..., 4, h, w) normalised targets, any float type.
        xs, ys, targets: see `raw_targets`. standard: what the network was trained with.

    Returns:
        (..., 4, h, w) corners in pixels, float32 (of float64: float64). A side is at least 1 pixel,
        with `LogSizeTargets` at most a million. Where an output is NaN, so is its box.
    """
    offset_x, offset_y, height, width = restore_targets(outputs, standard).unbind(-3)
    if isinstance(targets, LogSizeTargets):
        height, width = (side.clamp(0, MAX_LOG_SIZE).exp() for side in (height, width))
    else:
        height, width = (side.clamp(min=1) for side in (height, width))
    cx, cy = xs + offset_x, ys[:, None] + offset_y
    corners = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
    return torch.stack(corners, dim=-3)


def box_iou(a: Tensor, b: Tensor, *, dim: int) -> Tensor:
    """Intersection over union of each box of a with that in its place in b.

    Args:
        a, b: corners along axis `dim`, of 4; float.

    Returns:
        Their shape without that axis, in [0, 1]: 0 where the union is empty, NaN where a corner is.
    """
    ax0, ay0, ax1, ay1 = a.unbind(dim)
    bx0, by0, bx1, by1 = b.unbind(dim)
    shared_width = torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)
    shared_height = torch.minimum(ay1, by1) - torch.maximum(ay0, by0)
    shared = shared_width.clamp(min=0) * shared_height.clamp(min=0)
    areas = [
        (x1 - x0).clamp(min=0) * (y1 - y0).clamp(min=0)
        for x0, y0, x1, y1 in ((ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1))
    ]
    union = areas[0] + areas[1] - shared
    return shared / torch.where(union > 0, union, 1)


@dataclass(frozen=True, eq=False)
class TargetSums:
    """What mean and deviation of raw targets are made of; those of several images add up."""

    pixels: int
    sums: np.ndarray  # (4,) float64
    squares: np.ndarray  # (4,) float64, sums of squares

    @staticmethod
    def none() -> "TargetSums":
        """Of no pixel: where adding up starts."""
        return TargetSums(0, np.zeros(4), np.zeros(4))

    def __add__(self, other: "TargetSums") -> "TargetSums":
        return TargetSums(
            self.pixels + other.pixels, self.sums + other.sums, self.squares + other.squares
        )


def sums_of_objects(numbers: np.ndarray, boxes: np.ndarray, targets: Targets) -> TargetSums:
    """Sums over all pixels of all objects of an image.

    Args:
        numbers: (H, W) integers, number of the object + 1, 0 for none.
        boxes: (N, 4) corners around the objects, in pixels of the image.
        targets: see `raw_targets`.

    Returns:
        As if `raw_targets` were added up pixel by pixel: exact where corners are whole pixels and
        sizes no logarithms. An object without pixels adds nothing, whatever its box.

    Raises:
        ValueError: a pixel is outside the box of its object, or a corner is no finite number.
    """
    if not np.isfinite(boxes).all():
        raise ValueError("the box of an object has a corner that is no finite number")
    height, width = numbers.shape
    total = TargetSums.none()
    for number, box in enumerate(np.asarray(boxes, np.float64), start=1):
        corners = np.clip(box, 0, [width, height, width, height])
        x0, y0 = np.floor(corners[:2]).astype(int)
        x1, y1 = np.ceil(corners[2:]).astype(int)
        mask = numbers[y0:y1, x0:x1] == number
        total += _sums_of_object(mask, box - (x0, y0, x0, y0), targets)
    if total.pixels != np.count_nonzero(numbers):
        raise ValueError("a pixel is outside the box of its object")
    return total


def _sums_of_object(mask: np.ndarray, box: np.ndarray, targets: Targets) -> TargetSums:
    """Of the part (h, w) of an image that holds the object; the box (4,) in pixels of the part.

    Offsets and their squares need only how many pixels of the object each column and row has.
    """
    columns, rows = (np.count_nonzero(mask, axis=axis) for axis in (0, 1))
    pixels = int(columns.sum())
    if pixels == 0:
        return TargetSums.none()
    x0, y0, x1, y1 = box
    dx = (x0 + x1) / 2 - (np.arange(len(columns)) + 0.5)
    dy = (y0 + y1) / 2 - (np.arange(len(rows)) + 0.5)
    sizes = np.array([y1 - y0, x1 - x0])
    if isinstance(targets, LogSizeTargets):
        sizes = np.log(sizes)
    return TargetSums(
        pixels,
        np.array([columns @ dx, rows @ dy, *(pixels * sizes)]),
        np.array([columns @ dx**2, rows @ dy**2, *(pixels * sizes**2)]),
    )


def standard_from(sums: TargetSums, targets: Targets) -> Standard:
    """Mean and deviation of the training pixels; with `ScaledTargets`, 0 and so many pixels.

    Every pixel of every object counts once, at its image's own scale. A target that does not vary
    (all objects are of one height) has deviation 1.

    Reading: the paper does not say in which units its smooth L1 loss is taken. Standardised, all
    four targets weigh alike.

    Raises:
        ValueError: there is no pixel.
    """
    if isinstance(targets, ScaledTargets):
        return Standard(torch.zeros(4), torch.full((4,), float(targets.pixels)))
    if sums.pixels == 0:
        raise ValueError("no pixel of an object to learn from")
    mean = sums.sums / sums.pixels
    variance = sums.squares / sums.pixels - mean**2
    deviation = np.sqrt(np.maximum(variance, 0))
    deviation[deviation < LEAST_DEVIATION] = 1
    return Standard(*(torch.tensor(values, dtype=torch.float32) for values in (mean, deviation)))
