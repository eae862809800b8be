"""Masks as runs of pixels: traced back from hypotheses, compared with each other, and encoded.

h x w cells, H x W pixels; n masks per category, K hypotheses, R runs. Maps of pixels are (W, H)
here, for run-lengths go down the columns.
"""

from typing import NamedTuple

import numba
import numpy as np

from pipeline.instances.pixel_masks import Taps, taps
from pipeline.instances.suppression import nearest_first

COLUMNS = 64  # of pixels, which are traced back at a time
ZERO = ord("0")  # the first letter of run-lengths


class Regions(NamedTuple):
    """Masks as runs of pixels, which are numbered down the columns: pixel y of column x is x H + y.

    The runs of mask k are bounds[offsets[k]:offsets[k + 1]], rising, with gaps between.
    """

    bounds: np.ndarray  # (R, 2) int64, begin and end
    offsets: np.ndarray  # (K + 1,) int64
    areas: np.ndarray  # (K,) int64, pixels
    boxes: np.ndarray  # (K, 4) int64, tight; of no meaning where there is no pixel


def trace_back(
    numbers: np.ndarray,
    boxes: np.ndarray,
    hypotheses: np.ndarray,
    firsts: np.ndarray,
    *,
    stride: int,
    overlap: float,
) -> Regions:
    """The mask of each hypothesis of a category.

    Implements: Wu2016 Sec. 2.1 (step 5: recover a mask for each hypothesis).
    Reading: traced back are pixels of the image, not cells: each pixel of the k-th mask goes to the
        first hypothesis of that mask whose box its own, interpolated, overlaps enough, if any.
        First is the one that suppression found first, so at stride 1 masks are clusters.

    Args:
        numbers: (W, H) uint8, of one category, from `mask_numbers`.
        boxes: (4, h, w) float32. A pixel beside a cell whose box is not finite goes to none.
        hypotheses: (K, 4) float32, those of the first mask, then of the second, ...
        firsts: (n + 1,) int64: those of mask k are hypotheses[firsts[k - 1]:firsts[k]].
        stride: pixels per cell. overlap: least IoU, in (0, 1].
    """
    across = taps(numbers.shape[0], boxes.shape[2], stride)
    down = taps(numbers.shape[1], boxes.shape[1], stride)
    corners = np.ascontiguousarray(boxes.transpose(2, 1, 0))  # (w, h, 4)
    return _trace_back(numbers, corners, hypotheses, firsts, across, down, stride, overlap)


@numba.njit(cache=True, nogil=True)
def _trace_back(numbers, corners, hypotheses, firsts, across, down, stride, overlap):
    masks, (width, height) = len(firsts) - 1, numbers.shape
    most = masks * np.count_nonzero(numbers)  # runs; what is not used of these takes no memory
    owners, bounds = np.empty(most, np.int64), np.empty((most, 2), np.int64)
    last = np.full(len(hypotheses), -1)  # the run of each hypothesis that may still grow
    runs = 0
    for x in range(0, width, COLUMNS):
        columns = slice(x, min(x + COLUMNS, width))
        part = Taps(
            across.first[columns], across.second[columns], across.near[columns], across.far[columns]
        )
        pixels, boxes = _pixel_boxes(numbers[columns], corners, part, down, 4.0 * stride * stride)
        mask_of = numbers[columns].ravel()[pixels]
        for k in range(masks):
            mine = np.flatnonzero(mask_of <= k + 1)
            found = nearest_first(boxes[mine], hypotheses[firsts[k] : firsts[k + 1]], overlap)
            for i in range(len(mine)):
                if found[i] >= 0:
                    owner, pixel = firsts[k] + found[i], x * height + pixels[mine[i]]
                    runs = _append(owners, bounds, last, runs, owner, pixel)
    return _grouped(owners[:runs], bounds[:runs], len(hypotheses), height)


@numba.njit(cache=True, nogil=True)
def _pixel_boxes(numbers, corners, across, down, units):
    """The pixels (P,) in any mask that have a box of positive finite area, and it, (P, 4)."""
    width, height = numbers.shape
    pixels = np.empty(np.count_nonzero(numbers), np.int64)
    boxes = np.empty((pixels.size, 4), np.float32)
    count = 0
    for x in range(width):
        if not numbers[x].any():
            continue
        left, right = corners[across.first[x]], corners[across.second[x]]
        between = across.near[x] * left + across.far[x] * right  # (h, 4)
        for y in range(height):
            if numbers[x, y] > 0:
                above, below, box = between[down.first[y]], between[down.second[y]], boxes[count]
                for i in range(4):
                    box[i] = (down.near[y] * above[i] + down.far[y] * below[i]) / units
                area = (box[2] - box[0]) * (box[3] - box[1])
                pixels[count] = x * height + y
                count += box[2] > box[0] and box[3] > box[1] and 0 < area < np.inf
    return pixels[:count], boxes[:count]


@numba.njit(cache=True, nogil=True)
def _append(owners, bounds, last, runs, owner, pixel):
    """Add a pixel to the runs of a mask; pixels come in order. Returns the number of runs."""
    if last[owner] >= 0 and bounds[last[owner], 1] == pixel:
        bounds[last[owner], 1] = pixel + 1
        return runs
    owners[runs], last[owner] = owner, runs
    bounds[runs, 0], bounds[runs, 1] = pixel, pixel + 1
    return runs + 1


@numba.njit(cache=True, nogil=True)
def _grouped(owners, bounds, masks, height):
    """Runs in order of their pixels as `Regions`."""
    offsets = np.zeros(masks + 1, np.int64)
    for owner in owners:
        offsets[owner + 1] += 1
    offsets = np.cumsum(offsets)
    at = offsets[:-1].copy()
    sorted_bounds = np.empty_like(bounds)
    areas = np.zeros(masks, np.int64)
    boxes = np.empty((masks, 4), np.int64)
    boxes[:, :2], boxes[:, 2:] = np.iinfo(np.int64).max, 0
    for r in range(len(owners)):
        k, begin, end = owners[r], bounds[r, 0], bounds[r, 1]
        sorted_bounds[at[k]] = bounds[r]
        at[k] += 1
        areas[k] += end - begin
        x, until = begin // height, (end - 1) // height
        whole = x != until  # such a run ends one column and begins the next
        boxes[k, 0], boxes[k, 2] = min(boxes[k, 0], x), max(boxes[k, 2], until + 1)
        boxes[k, 1] = min(boxes[k, 1], 0 if whole else begin % height)
        boxes[k, 3] = max(boxes[k, 3], height if whole else (end - 1) % height + 1)
    return Regions(sorted_bounds, offsets, areas, boxes)


@numba.njit(cache=True, nogil=True)
def regions_of(numbers: np.ndarray, masks: int) -> Regions:
    """The masks 0..masks-1 of a map (W, H) of numbers of masks, -1 for none."""
    owners = np.empty(numbers.size, np.int64)
    bounds = np.empty((numbers.size, 2), np.int64)
    last = np.full(masks, -1)
    runs = 0
    for x in range(numbers.shape[0]):
        for y in range(numbers.shape[1]):
            if numbers[x, y] >= 0:
                pixel = x * numbers.shape[1] + y
                runs = _append(owners, bounds, last, runs, numbers[x, y], pixel)
    return _grouped(owners[:runs], bounds[:runs], masks, numbers.shape[1])


# --- which masks stay -----------------------------------------------------------------------------
@numba.njit(cache=True, nogil=True)
def distinct(regions: Regions, order: np.ndarray, overlap: float) -> np.ndarray:
    """Greedy suppression among masks.

    Implements: Wu2016 Sec. 2.1 (step 6: region based NMS).

    Args:
        order: (M,) int64, the masks that take part, the best first.
        overlap: a mask is dropped where a better one that is kept shares a pixel with it and has
            an IoU of this or more with it; 0 asks for the pixel alone.

    Returns:
        (N,) int64, those of them that are kept, in order.
    """
    kept = np.empty(order.size, np.int64)
    count = 0
    for mask in order:
        box, free = regions.boxes[mask], True
        for other in kept[:count]:
            near = regions.boxes[other]
            apart = box[0] >= near[2] or near[0] >= box[2] or box[1] >= near[3] or near[1] >= box[3]
            if apart:
                continue
            both = _shared(regions, mask, other)
            union = regions.areas[mask] + regions.areas[other] - both
            if both > 0 and both / union >= overlap:
                free = False
                break
        if free:
            kept[count] = mask
            count += 1
    return kept[:count].copy()


@numba.njit(cache=True, nogil=True)
def _shared(regions, a, b):
    """How many pixels two masks have in common."""
    bounds, both = regions.bounds, 0
    i, j = regions.offsets[a], regions.offsets[b]
    while i < regions.offsets[a + 1] and j < regions.offsets[b + 1]:
        begin, end = max(bounds[i, 0], bounds[j, 0]), min(bounds[i, 1], bounds[j, 1])
        both += max(0, end - begin)
        first_ends = bounds[i, 1] <= bounds[j, 1]
        i += first_ends
        j += not first_ends
    return both


# --- run-lengths ----------------------------------------------------------------------------------
def encode_regions(regions: Regions, chosen: np.ndarray, pixels: int) -> list[str]:
    """COCO's compressed run-lengths of some masks (N,) of an image with so many pixels."""
    letters, ends = _encode(regions, chosen, pixels)
    text = letters.tobytes().decode("ascii")
    begins = [0, *ends.tolist()]
    return [text[begin:end] for begin, end in zip(begins[:-1], begins[1:], strict=True)]


@numba.njit(cache=True, nogil=True)
def _encode(regions, chosen, pixels):
    """The letters of all masks, and where each one's end."""
    most = 0
    for mask in chosen:
        most += 2 * (regions.offsets[mask + 1] - regions.offsets[mask]) + 1
    letters = np.empty(13 * most, np.uint8)  # five bits each, of 64
    ends = np.empty(chosen.size, np.int64)
    used = 0
    for i in range(chosen.size):
        at, before = 0, np.zeros(2, np.int64)  # the counts one and two places before
        number = 0
        for r in range(regions.offsets[chosen[i]], regions.offsets[chosen[i] + 1]):
            for bound in regions.bounds[r]:
                used = _write(letters, used, bound - at, before[1] if number > 2 else 0)
                before[0], before[1] = bound - at, before[0]
                at = bound
                number += 1
        if at < pixels:
            used = _write(letters, used, pixels - at, before[1] if number > 2 else 0)
        ends[i] = used
    return letters[:used], ends


@numba.njit(cache=True, nogil=True)
def _write(letters, used, count, before):
    """Append a count as its difference from another, five bits a letter, the lowest first."""
    left, more = count - before, True
    while more:
        bits = left & 31
        left >>= 5
        more = left != -1 if bits & 16 else left != 0
        letters[used] = ZERO + bits + (32 if more else 0)
        used += 1
    return used
