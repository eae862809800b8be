"""From an image to its probabilities or its label map, over scales, flips and shifts.

B views, C categories, H x W pixels, h x w score cells.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.models.fast import merge_batch_norms, sum_taps
from pipeline.params import Views
from pipeline.params_networks import Grid, Precision
from pipeline.transforms import normalise

Size = tuple[int, int]  # pixels down and right

DIVERGED = "its training has diverged. Train it anew with a lower lr, or from other weights"


# --- probabilities --------------------------------------------------------------------------------
@torch.inference_mode()
def predict_probabilities(
    network: nn.Module,
    image: np.ndarray,
    *,
    views: Views,
    device: torch.device,
    precision: Precision,
) -> Tensor:
    """The mean of the probabilities over all views of an image.

    Implements: Wu2016 Sec. 3.1 (whole image, no resizing: one view).

    Args:
        network: in `eval()`, on `device`, with an attribute `stride`; and `grid`, "corners" where
            its score cells lie as DeepLab's do.
        image: (H, W, 3) uint8 RGB, of any size.
        views: `scales`: the image is resized to each; `flip`: and mirrored left to right too;
            `shifts` n: and each of these moved down and right by every multiple of 1 / n of a
            score cell, n x n in all.
        precision: "bf16" computes the network, and nothing else, under autocast.

    Returns:
        (C, H, W) float32 on `device`; each pixel sums to 1.

    Reading: "multi-view" testing is not spelled out; every view counts the same, its probabilities
    (not its logits) are brought to the image's grid, and their arithmetic mean is taken.

    Raises:
        BadInput: what the network says is no number.
        ValueError: the network is in training mode.
    """
    size = image.shape[:2]
    total = torch.zeros((), device=device)
    for pixels in _scaled(image, views, device):
        for moved in _moves(views.shifts, stride_of(network)):
            mean = view_probabilities(network, pixels, precision=precision, moved=moved)
            if views.flip:
                mean = (mean[:1] + mean[1:].flip(3)) / 2
            total = total + _resize(mean, size)
    refuse_nan(total)  # waits for a GPU once for each image, as bringing the next one there does
    return (total / (len(views.scales) * views.shifts**2))[0]


def refuse_nan(said: Tensor) -> None:
    """BadInput where any number that a network gave is NaN."""
    if said.sum().isnan():  # a sum needs no room, and one NaN is enough
        raise BadInput(f"the network says NaN: {DIVERGED}")


def _scaled(image: np.ndarray, views: Views, device: torch.device) -> Iterator[Tensor]:
    """At each scale (1 or 2, 3, H, W) float32, normalised; the mirrored one last."""
    height, width = image.shape[:2]
    pixels = normalise(torch.from_numpy(np.array(image[None], order="C")).to(device))
    for scale in views.scales:
        scaled = _resize(pixels, (max(round(height * scale), 1), max(round(width * scale), 1)))
        yield torch.cat([scaled, scaled.flip(3)]) if views.flip else scaled


def _moves(shifts: int, stride: int) -> list[Size]:
    """By how many pixels down and right a view is moved, once for each of `shifts` x `shifts`."""
    moves = [stride * number // shifts for number in range(shifts)]
    return [(down, right) for down in moves for right in moves]


@torch.inference_mode()
def view_probabilities(
    network: nn.Module, pixels: Tensor, *, precision: Precision, moved: Size = (0, 0)
) -> Tensor:
    """Probabilities for each pixel of a batch of views of one size, in one forward pass.

    Args:
        network: see `predict_probabilities`.
        pixels: (B, 3, H, W) float32, normalised, on the network's device.
        moved: pixels down and right, so that score cells lie elsewhere.

    Returns:
        (B, C, H, W) float32.

    Reading: sizes are brought to a multiple of the stride (on corners: and 1 more) by the mean
    colour below and to the right; where a view is moved, above and to the left too. Probabilities,
    not logits, are enlarged, with half-pixel centres or aligned corners as in `labels_on_grid`.
    """
    cells = _cell_probabilities(network, pixels, precision, moved)
    enlarged = _enlarge(cells, stride_of(network), grid_of(network))
    (down, right), (height, width) = moved, pixels.shape[2:]
    return enlarged[:, :, down : down + height, right : right + width]  # what was padded is cut off


def _cell_probabilities(
    network: nn.Module, pixels: Tensor, precision: Precision, moved: Size
) -> Tensor:
    """Views (B, 3, H, W) to the probabilities of their score cells (B, C, h, w) float32."""
    return _cell_outputs(network, pixels, precision, moved).softmax(dim=1)


def _cell_outputs(network: nn.Module, pixels: Tensor, precision: Precision, moved: Size) -> Tensor:
    """What a network says of views (B, 3, H, W), cell by cell: (B, C, h, w) float32."""
    if network.training:
        raise ValueError("the network is in training mode; call network.eval() first")
    stride, (down, right) = stride_of(network), moved
    height, width = pixels.shape[2] + down, pixels.shape[3] + right
    beyond = 1 if grid_of(network) == "corners" else 0  # the last cell's corner
    below, after = (beyond - height) % stride, (beyond - width) % stride
    padded = F.pad(pixels, (right, after, down, below))  # 0 is the mean colour
    padded = padded.contiguous(memory_format=torch.channels_last)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = network(padded)
    return outputs.float()


@dataclass(frozen=True)
class Cells:
    """Numbers of the score cells of a view, and of the mirrored one if there is one."""

    values: Tensor  # (1 or 2, C, h, w) float32, the mirrored one last
    view: Size  # its pixels, H and W
    moved: Size  # before it was given to the network


def cells_of_views(
    network: nn.Module,
    image: np.ndarray,
    *,
    views: Views,
    device: torch.device,
    precision: Precision,
) -> Iterator[Cells]:
    """What a network says of each view of an image, before any softmax.

    All arguments are those of `predict_probabilities`.

    Raises:
        ValueError: the network is in training mode.
    """
    for pixels in _scaled(image, views, device):
        for moved in _moves(views.shifts, stride_of(network)):
            values = _cell_outputs(network, pixels, precision, moved)
            yield Cells(values, (pixels.shape[2], pixels.shape[3]), moved)


def stride_of(network: nn.Module) -> int:
    """Pixels per score cell of a network."""
    return int(network.stride)  # type: ignore[arg-type]


def grid_of(network: nn.Module) -> Grid:
    """Where a network's score cells lie: on centres, where it does not say."""
    return "corners" if getattr(network, "grid", "centres") == "corners" else "centres"


def _enlarge(cells: Tensor, stride: int, grid: Grid) -> Tensor:
    """Along all axes but the first two, cells to the pixels that they stand for, between them too.

    Args:
        cells: (B, C, h, w), or (B, C, h).
    """
    mode = "bilinear" if cells.ndim == 4 else "linear"
    if grid == "corners":
        whole = [(number - 1) * stride + 1 for number in cells.shape[2:]]
        return F.interpolate(cells, size=whole, mode=mode, align_corners=True)
    return F.interpolate(cells, size=[n * stride for n in cells.shape[2:]], mode=mode)


def _resize(maps: Tensor, size: Size) -> Tensor:
    """(B, C, H, W) to another size; what is made smaller is smoothed first."""
    if maps.shape[2:] == size:
        return maps
    if size[1] == 1:  # which torch 2.15 gets wrong: it takes the nearest rows
        row = F.interpolate(maps.mT, size=(1, size[0]), mode="bilinear", antialias=True)
        return row.mT
    return F.interpolate(maps, size=size, mode="bilinear", antialias=True)


# --- label maps -----------------------------------------------------------------------------------
@torch.inference_mode()
def predict_label_map(
    network: nn.Module,
    image: np.ndarray,
    *,
    views: Views,
    device: torch.device,
    precision: Precision,
) -> np.ndarray:
    """The most probable category of every pixel: `predict_probabilities(...).argmax(0)`.

    All arguments are those of `predict_probabilities`. On a CPU no probabilities of pixels are
    kept, and sums are rounded in another order: where the two highest probabilities differ by some
    1e-7, either may win.

    Returns:
        (H, W) uint8.

    Raises:
        BadInput, ValueError: as `predict_probabilities`.
    """
    if device.type != "cpu":
        probabilities = predict_probabilities(
            network, image, views=views, device=device, precision=precision
        )
        return probabilities.argmax(0).to(torch.uint8).cpu().numpy()
    said = cells_of_views(network, image, views=views, device=device, precision=precision)
    cells = [replace(view, values=view.values.softmax(dim=1)) for view in said]
    for view in cells:
        refuse_nan(view.values)
    grid = grid_of(network)
    return label_map_of_cells(cells, stride=stride_of(network), grid=grid, size=image.shape[:2])


@torch.inference_mode()
def label_map_of_cells(
    all_views: Sequence[Cells], *, stride: int, grid: Grid = "centres", size: Size
) -> np.ndarray:
    """The category that is best at every pixel of the image by the mean over all views, on a CPU.

    Bringing the probabilities of cells to the pixels of the image is linear, rows and columns
    apart: a matrix for either side of every view. Columns are done first, then each row of the
    image is summed and compared, so that (C, H, W) numbers are never kept.

    Args:
        all_views: probabilities of each view of the image; each counts the same.
        stride: pixels of a view per cell. grid: where these lie. size: H, W of the image.

    Returns:
        (H, W) uint8, the first of equals.
    """
    wide, rows = [], []
    for cells in all_views:
        # (W, w), (H, h)
        across, down = (_to_image(cells, axis, stride, grid, size) for axis in (1, 0))
        by_row = cells.values.transpose(1, 2).contiguous()  # (1 or 2, h, C, w)
        expanded = by_row[0] @ across.T  # (h, C, W)
        if len(by_row) == 2:
            expanded = (expanded + by_row[1] @ across.flip(0).T) / 2
        wide.append(expanded)
        rows.append(down)
    index, weight = _taps(torch.cat(rows, dim=1))
    return _best_categories(torch.cat(wide).numpy(), index, weight)


def _to_image(cells: Cells, axis: int, stride: int, grid: Grid, size: Size) -> Tensor:
    """Along one axis, what each score cell of a view counts at each pixel of the image.

    Args:
        axis: 0 downwards, 1 to the right. stride, grid, size: as of `label_map_of_cells`.

    Returns:
        (pixels of the image, cells) float32; each row sums to 1.
    """
    number, begin = cells.values.shape[2 + axis], cells.moved[axis]
    unit = torch.eye(number)[None]  # a channel for each cell, which alone is 1 there
    pixels = _enlarge(unit, stride, grid)
    pixels = pixels[:, :, begin : begin + cells.view[axis], None]
    return _resize(pixels, (size[axis], 1))[0, :, :, 0].T


def _taps(matrix: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The columns of each row that are not 0, and what is there: (rows, T) int64 and float32.

    T is even and the same for all; what a row has fewer are zeros.
    """
    most = int((matrix != 0).sum(1).max())
    matrix = F.pad(matrix, (0, 1))  # a column of zeros, so that there are T of them
    weight, index = matrix.topk(most + most % 2, dim=1)
    return index.clamp_(max=matrix.shape[1] - 2).numpy(), weight.numpy()


@numba.njit(cache=True, nogil=True)
def _best_categories(scores: np.ndarray, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The category with the highest weighted sum of rows, the first of equals.

    Args:
        scores: (R, C, W) float32, rows of all views. index, weight: (H, T), T even: row y of the
            image is the sum over t of weight[y, t] scores[index[y, t]].

    Returns:
        (H, W) uint8.
    """
    (height, taps), (categories, width) = index.shape, scores.shape[1:]
    best = np.empty((height, width), np.uint8)
    category_of = np.empty(width, np.int32)  # as wide as a float, so that both go in one step
    highest, before = np.empty(width, np.float32), np.zeros(width, np.float32)
    for y in range(height):
        highest[:] = -np.inf
        category_of[:] = 0
        for category in range(categories):
            for t in range(0, taps - 2, 2):
                if t == 0:
                    before[:] = 0
                a, b = scores[index[y, t], category], scores[index[y, t + 1], category]
                for x in range(width):
                    before[x] += weight[y, t] * a[x] + weight[y, t + 1] * b[x]
            a, b = scores[index[y, taps - 2], category], scores[index[y, taps - 1], category]
            of_a, of_b = weight[y, taps - 2], weight[y, taps - 1]
            for x in range(width):
                value = before[x] + of_a * a[x] + of_b * b[x]
                better = value > highest[x]
                category_of[x] = category if better else category_of[x]
                highest[x] = value if better else highest[x]
        for x in range(width):
            best[y, x] = category_of[x]
    return best


# --- networks -------------------------------------------------------------------------------------
def for_inference(network: nn.Module, *, precision: Precision) -> nn.Module:
    """A copy that gives the same outputs but for rounding, in less time; never to be saved.

    Each BatchNorm is merged into the convolution before it, a classifier to few categories is
    computed in another form where that is faster, and weights are kept channels-last and in the
    precision they are used in. The given network must be in `eval()`, and stays as it is.
    """
    fast = copy.deepcopy(network)
    merge_batch_norms(fast)
    on_cpu = all(parameter.device.type == "cpu" for parameter in fast.parameters())
    if on_cpu and precision == "bf16":
        sum_taps(fast)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return fast.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
