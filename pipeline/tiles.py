"""Label maps of images too large for one pass: tiles that overlap, their probabilities blended.

Along an axis an overlap of o pixels is divided in four: in its outermost quarter a tile counts
nothing, over the two in the middle it passes linearly into the next, in the last it counts in full.
So no border shows, and where the network sees at most o / 4 pixels to each side, the result is that
of the whole image.

C categories, H x W pixels of the image, h x w pixels of a tile.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.checkpoints import SemanticNetwork
from pipeline.errors import BadInput
from pipeline.inference import for_inference, predict_label_map, predict_probabilities
from pipeline.params import Views
from pipeline.params_networks import Precision
from pipeline.training import use_threads

Span = tuple[int, int]  # half-open, pixels along one axis

SMALLEST_TILE = 256  # pixels; what does not fit in these does not fit
ALIGNED_CELLS = 4  # tiles start at every fourth score cell: on whole ones at scales in quarters
# Of a CPU's memory, which no failure tells the end of: what one pass may take, and what it takes by
# pixel: of a view, the layers; of the image and each category, the probabilities. FCRN-14, 50 and
# 101 at 1/8 took 290 to 1020 bytes a pixel where this rule says 650 to 1370.
CPU_ROOM, VIEW_BYTES, CATEGORY_BYTES = 3 << 30, 400, 12
GPU_NUMBERS = (1 << 31) - 1  # in one array: kernels count them in 32 bits


# --- what fits ------------------------------------------------------------------------------------
@dataclass
class Segmenter:
    """A trained network, the views it is given, and how much of an image fits at a time.

    Attributes:
        network: in `eval()`, on `device`, as `for_inference` gives it.
        stride: pixels per score cell; field_of_view: pixels that its classifier sees.
        views, precision: as of `predict_probabilities`.
        tile: an image of more than tile x tile pixels goes in tiles of that side. What runs out of
            memory is done again in tiles of half of it, and so is all that comes later.
        tiled: images that went in tiles so far.
    """

    network: nn.Module
    stride: int
    field_of_view: int
    views: Views
    device: torch.device
    precision: Precision
    tile: int
    tiled: int = 0

    def label_map(self, image: np.ndarray, notes: list[str]) -> np.ndarray:
        """The most probable category of every pixel.

        Args:
            image: (H, W, 3) uint8 RGB.
            notes: gets a line for the user where memory was short.

        Returns:
            (H, W) uint8.

        Raises:
            BadInput: the smallest tiles do not fit.
        """
        area = image.shape[0] * image.shape[1]
        while True:
            whole = area <= self.tile**2
            try:
                label_map = self._whole(image) if whole else self._in_tiles(image)
                self.tiled += not whole
                return label_map
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if self.device.type == "cuda":  # here, where the exception holds no arrays any more
                torch.cuda.empty_cache()
            side = min(self.tile, math.isqrt(area))
            if side <= SMALLEST_TILE:
                problem = f"out of memory on {self.device}, even for {side} x {side} pixels"
                raise BadInput(f"{problem}; give smaller --scales, or a device with more")
            self.tile = max(side // 2, SMALLEST_TILE)
            notes.append(f"out of memory on {self.device}: tiles of {self.tile} from here on")

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """The mean over all views, of an image in one pass: for a CRF, which takes no tiles.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (C, H, W) float32.

        Raises:
            BadInput: the image is larger than a tile, or does not fit in memory.
        """
        height, width = image.shape[:2]
        if height * width <= self.tile**2:
            try:
                return self._probabilities(image).cpu().numpy()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        raise BadInput(
            f"{height} x {width} pixels do not fit in one pass on {self.device}, and a CRF takes "
            "an image whole; give a smaller image or smaller scales, or leave the CRF out"
        )

    def _whole(self, image: np.ndarray) -> np.ndarray:
        return predict_label_map(
            self.network,
            image,
            views=self.views,
            device=self.device,
            precision=self.precision,
        )

    def _in_tiles(self, image: np.ndarray) -> np.ndarray:
        align = ALIGNED_CELLS * self.stride
        tile = self.tile // align * align
        wanted = max(self.field_of_view / min(self.views.scales), tile / 4)
        overlap = min(math.ceil(wanted / align), tile // 2 // align) * align
        return label_map_of_tiles(
            self._probabilities, image, tile=tile, overlap=overlap, align=align
        )

    def _probabilities(self, image: np.ndarray) -> Tensor:
        return predict_probabilities(
            self.network,
            image,
            views=self.views,
            device=self.device,
            precision=self.precision,
        )


def segmenter_of(
    network: SemanticNetwork,
    saved: dict[str, Any],
    *,
    views: Views,
    device: torch.device,
    tile: int | None = None,
) -> Segmenter:
    """A trained network, made ready as its run computed: in its threads and precision.

    Args:
        network, saved: as `load_model` gives them.
        tile: see `Segmenter`; None: what fits.
    """
    use_threads(saved["run"]["threads"])
    precision = saved["run"]["precision"]
    return Segmenter(
        for_inference(network, precision=precision),
        stride=network.stride,
        field_of_view=network.field_of_view,
        views=views,
        device=device,
        precision=precision,
        tile=tile or largest_tile(device, num_categories=len(saved["categories"]), views=views),
    )


def largest_tile(device: torch.device, *, num_categories: int, views: Views) -> int:
    """The side, in pixels, of what is tried in one pass."""
    area = max(*views.scales, 1) ** 2 * (1 + views.flip)  # of what goes through at once
    if device.type == "cuda":
        return math.isqrt(int(GPU_NUMBERS / (num_categories * area)))
    return math.isqrt(int(CPU_ROOM / (VIEW_BYTES * area + CATEGORY_BYTES * num_categories)))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception of numpy or torch says that there is not enough memory."""
    said = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")  # torch has no class for all
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        text in str(error) for text in said
    )


# --- tiles ----------------------------------------------------------------------------------------


def spans(length: int, *, tile: int, overlap: int, align: int) -> list[Span]:
    """Tiles along one axis: as few as there can be, spread evenly.

    Args:
        length: of the image.
        tile, overlap: of each tile at most, of two neighbours at least; multiples of `align`.
        align: every tile starts at a multiple of it, as the whole image's score cells do.

    Returns:
        the first starts at 0, the last ends at `length`; all but the last are `tile` long.

    Raises:
        ValueError: the tile or the overlap is no multiple of `align`, or no tile would move on.
    """
    if tile % align or overlap % align or not 0 <= overlap < tile:
        raise ValueError(
            f"tiles of {tile}, {overlap} overlapping, are none of multiples of {align}"
        )
    if length <= tile:
        return [(0, length)]
    steps = -(-(length - tile) // (tile - overlap))
    starts = [-(-(length - tile) * i // (steps * align)) * align for i in range(steps + 1)]
    return [(start, min(start + tile, length)) for start in starts]


def weights(length: int, tiles: list[Span], *, overlap: int) -> list[np.ndarray]:
    """How much each tile counts at each of its pixels along one axis: (h,) float32.

    All that count at one pixel sum to 1.
    """
    quarter = overlap / 4
    raw = []
    for start, stop in tiles:
        centres = np.arange(start, stop) + 0.5
        before = np.full(len(centres), np.inf) if start == 0 else centres - start
        after = np.full(len(centres), np.inf) if stop == length else stop - centres
        raw.append(np.clip((np.minimum(before, after) - quarter) / max(2 * quarter, 1), 0, 1))
    total = np.zeros(length)
    for (start, stop), weight in zip(tiles, raw, strict=True):
        total[start:stop] += weight
    pairs = zip(tiles, raw, strict=True)
    return [(weight / total[start:stop]).astype(np.float32) for (start, stop), weight in pairs]


def label_map_of_tiles(
    probabilities_of: Callable[[np.ndarray], Tensor],
    image: np.ndarray,
    *,
    tile: int,
    overlap: int,
    align: int,
) -> np.ndarray:
    """The most probable category of every pixel; scores are kept for little more than one tile.

    Args:
        probabilities_of: a part (h, w, 3) uint8 of the image to (C, h, w) float32.
        image: (H, W, 3) uint8.
        tile, overlap, align: as of `spans`.

    Returns:
        (H, W) uint8.
    """
    height, width = image.shape[:2]
    if width > height:  # what is kept is a band along a row: let the rows be the shorter ones

        def turned(part: np.ndarray) -> Tensor:
            return probabilities_of(part.swapaxes(0, 1)).swapaxes(1, 2)

        upright = image.swapaxes(0, 1)
        label_map = label_map_of_tiles(turned, upright, tile=tile, overlap=overlap, align=align)
        return np.ascontiguousarray(label_map.T)
    label_map = np.zeros((height, width), np.uint8)
    rows = spans(height, tile=tile, overlap=overlap, align=align)
    row_weights = weights(height, rows, overlap=overlap)
    below: list[Tensor] = []  # (C, rows, columns): what the tiles above count below their own rows
    for row, (top, bottom) in enumerate(rows):
        final = rows[row + 1][0] if row + 1 < len(rows) else bottom  # later tiles start here
        part = image[top:bottom]
        columns = _blend_columns(probabilities_of, part, row_weights[row], tile, overlap, align)
        left, kept = 0, []
        for number, scores in enumerate(columns):  # (C, h, columns)
            if below:
                scores[:, : below[number].shape[1]] += below[number]
            right = left + scores.shape[2]
            labels = scores[:, : final - top].argmax(0).to(torch.uint8)
            label_map[top:final, left:right] = labels.cpu().numpy()
            kept.append(scores[:, final - top :].clone())
            left = right
        below = kept
    return label_map


def _blend_columns(
    probabilities_of: Callable[[np.ndarray], Tensor],
    part: np.ndarray,
    row_weight: np.ndarray,
    tile: int,
    overlap: int,
    align: int,
) -> Iterator[Tensor]:
    """The weighted scores of one row of tiles (h, W, 3), as (C, h, columns) from left to right."""
    width = part.shape[1]
    columns = spans(width, tile=tile, overlap=overlap, align=align)
    column_weights = weights(width, columns, overlap=overlap)
    beside: Tensor | None = None  # (C, h, columns): what the tiles before count right of their own
    for number, (left, right) in enumerate(columns):
        scores = probabilities_of(part[:, left:right])  # (C, h, w)
        weight = np.outer(row_weight, column_weights[number])
        scores = scores * torch.from_numpy(weight).to(scores.device)
        if beside is not None:
            scores[:, :, : beside.shape[2]] += beside
        final = columns[number + 1][0] if number + 1 < len(columns) else right
        beside = scores[:, :, final - left :].clone()
        yield scores[:, :, : final - left]
