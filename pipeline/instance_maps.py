"""What networks, or the truth, say on the grid of votes, in which objects are looked for.

A grid has a cell for every `vote_stride` pixels of the image, the first one at its corner; the last
ones may reach beyond it: h = ceil(H / vote_stride). Cell (i, j) is centred at continuous
(x, y) = ((j + 1/2) vote_stride, (i + 1/2) vote_stride).

C categories, T of them with objects ("things"), N objects, H x W pixels, h x w cells of the grid.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.box_targets import Standard, boxes_of, cell_centres
from pipeline.categories import things_of
from pipeline.inference import Cells, Size, cells_of_views, grid_of, refuse_nan, stride_of
from pipeline.object_maps import ObjectMap
from pipeline.params import Views
from pipeline.params_networks import Precision
from pipeline.params_training import Targets


# --- of networks ----------------------------------------------------------------------------------
@torch.inference_mode()
def semantic_maps(
    network: nn.Module,
    image: np.ndarray,
    *,
    views: Views,
    vote_stride: int,
    device: torch.device,
    precision: Precision,
) -> np.ndarray:
    """The mean of the probabilities over all views of an image, on the grid of votes.

    Args:
        network, image, views, device, precision: as of `predict_probabilities`.
        vote_stride: pixels from one cell of the grid to the next.

    Returns:
        (C, h, w) float32. Of one view of a network of this stride, whose cells lie on centres, they
        are its own cells; else they lie between cells, see `_on_grid`.

    Raises:
        BadInput: what the network says is no number.
        ValueError: the network is in training mode.
    """
    total = torch.zeros((), device=device)
    for cells in cells_of_views(network, image, views=views, device=device, precision=precision):
        both = cells.values.softmax(dim=1)  # (1 or 2, C, cells down, cells across)
        total = total + _mean_on_grid(both, network, cells, vote_stride, image.shape[:2])
    return _to_host(total, views)


@torch.inference_mode()
def box_maps(
    network: nn.Module,
    image: np.ndarray,
    *,
    targets: Targets,
    standard: Standard,
    views: Views,
    vote_stride: int,
    device: torch.device,
    precision: Precision,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """The mean over all views of the boxes that a localisation network says, on the grid of votes.

    Args:
        network: with 4 T outputs; else as `semantic_maps`.
        targets, standard: those of its training. `for_inference` rounds what a network keeps of
            the standard: take it before.
        rows: which of the T things are asked for; None: all.

    Returns:
        (T, 4, h, w) float32, or of the rows that are asked for: corners x0, y0, x1, y1 in pixels of
        the image, which may lie outside it.

    Reading: of several views the mean of each corner is taken, after each view's boxes are brought
    to the image: mirrored, moved and scaled back.

    Raises:
        BadInput, ValueError: as `semantic_maps`; also where an output is infinite.
    """
    total = torch.zeros((), device=device)
    for cells in cells_of_views(network, image, views=views, device=device, precision=precision):
        refuse_nan(cells.values * 0)  # 0 times infinity is none either
        outputs = cells.values.unflatten(1, (-1, 4))  # (1 or 2, T, 4, cells down, cells across)
        if rows is not None:
            outputs = outputs[:, torch.tensor(rows, dtype=torch.int64, device=device)]
        xs, ys = cell_centres(
            *outputs.shape[-2:], stride=stride_of(network), grid=grid_of(network), device=device
        )
        down, right = cells.moved
        boxes = boxes_of(outputs, xs - right, ys - down, targets, standard)  # pixels of the view
        both = _in_image(boxes, cells.view, image.shape[:2])
        total = total + _mean_on_grid(both, network, cells, vote_stride, image.shape[:2])
    return _to_host(total, views)


def _to_host(total: Tensor, views: Views) -> np.ndarray:
    refuse_nan(total)
    mean = total / (len(views.scales) * views.shifts**2)
    return np.ascontiguousarray(mean.cpu().numpy())


def _in_image(boxes: Tensor, view: Size, size: Size) -> Tensor:
    """Boxes (1 or 2, T, 4, h, w) in pixels of a view, the mirrored one last, in the image's."""
    x0, y0, x1, y1 = boxes.unbind(2)
    if len(boxes) == 2:
        x0, x1 = (torch.stack([a[0], view[1] - b[1]]) for a, b in ((x0, x1), (x1, x0)))
    down, across = (pixels / of_view for pixels, of_view in zip(size, view, strict=True))
    return torch.stack([x0 * across, y0 * down, x1 * across, y1 * down], dim=2)


# --- on the grid ----------------------------------------------------------------------------------
def _mean_on_grid(
    both: Tensor, network: nn.Module, cells: Cells, vote_stride: int, size: Size
) -> Tensor:
    """A view's numbers, and those of the mirrored one if there is one, to their mean on the grid.

    Between a network's cells they are linear, beyond the outermost ones constant.

    Args:
        both: (1 or 2, ..., cells down, cells across) of the view `cells`, the mirrored one last.

    Returns:
        (..., h, w).
    """
    down, across = (_places(network, cells, axis, vote_stride, size) for axis in (0, 1))
    on_grid = _between(_between(both[0], -1, across), -2, down)
    if len(both) == 1:
        return on_grid
    # What is at x in the view is at its width less x in the mirrored one, both moved alike.
    moved = cells.moved[1] - _first_centre(network)
    across = (cells.view[1] + 2 * moved) / stride_of(network) - across
    return (on_grid + _between(_between(both[1], -1, across), -2, down)) / 2


def _places(
    network: nn.Module, cells: Cells, axis: int, vote_stride: int, size: Size
) -> np.ndarray:
    """Along one axis, where the grid's centres lie among the cells of a view.

    Args:
        axis: 0 downwards, 1 to the right. size: of the image.

    Returns:
        (cells of the grid,) float64: 0 is the centre of the view's first cell, 1 of its second.
    """
    of_image = (np.arange(math.ceil(size[axis] / vote_stride)) + 0.5) * vote_stride
    of_view = of_image * (cells.view[axis] / size[axis]) + cells.moved[axis]
    return (of_view - _first_centre(network)) / stride_of(network)


def _first_centre(network: nn.Module) -> float:
    """Pixels from a view's corner to the centre of its first cell, along either axis."""
    xs, _ = cell_centres(1, 1, stride=stride_of(network), grid=grid_of(network))
    return float(xs)


def _between(values: Tensor, axis: int, places: np.ndarray) -> Tensor:
    """Along one axis, the numbers at places (P,) among the cells. What is at a cell stays as it is.

    Args:
        axis: -1 or -2.
    """
    last = values.shape[axis] - 1
    places = np.clip(places, 0, last)
    below = np.floor(places)
    device = values.device
    lower = torch.from_numpy(below.astype(np.int64)).to(device)
    at_lower = values.index_select(axis, lower)
    if (places == below).all():
        return at_lower
    part = torch.from_numpy((places - below).astype(np.float32)).to(device)
    at_upper = values.index_select(axis, (lower + 1).clamp_(max=last))
    return torch.lerp(at_lower, at_upper, part if axis == -1 else part[:, None])


# --- of the truth ---------------------------------------------------------------------------------
def true_semantic_maps(objects: ObjectMap, categories: Sequence[str]) -> np.ndarray:
    """The true category of each pixel, as a network would say it that is never in doubt.

    Args:
        categories: names; background is there, or it is not.

    Returns:
        (C, H, W) float32, of stride 1: 1 for the category of the object there, for background where
        there is none, and 0 for all others; without background 0 for all where there is no object.
    """
    nowhere = categories.index("background") if "background" in categories else -1
    of_object = np.array(things_of(categories), np.int64)[objects.things]
    label_map = np.concatenate([[nowhere], of_object])[objects.numbers]  # (H, W)
    return (label_map == np.arange(len(categories))[:, None, None]).astype(np.float32)


def true_box_maps(objects: ObjectMap, rows: Sequence[int]) -> np.ndarray:
    """At each pixel of an object its true box, as a localisation network would say it.

    Args:
        rows: which of the T things are asked for.

    Returns:
        (rows, 4, H, W) float32, of stride 1: corners in pixels; NaN where the thing is not.
    """
    nowhere = np.full((1, 4), np.nan, np.float32)
    boxes = np.concatenate([nowhere, objects.boxes])  # (N + 1, 4)
    maps = np.empty((len(rows), 4, *objects.numbers.shape), np.float32)
    for place, row in enumerate(rows):
        of_thing = np.concatenate([[False], objects.things == row])
        maps[place] = np.where(of_thing[:, None], boxes, nowhere).T[:, objects.numbers]
    return maps
