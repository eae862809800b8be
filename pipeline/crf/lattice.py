"""Gaussian filtering in few dimensions on the permutohedral lattice.

Its points are the integer ones of D + 1 coordinates that sum to 0 and leave the same remainder when
divided by D + 1; they cut the D-dimensional plane of such sums into equal simplices. Each pixel
gives its value to the D + 1 corners of its simplex (splat), the corners are blurred along the D + 1
axes, each pixel takes its value back from its corners (slice).

N pixels, D dimensions of their features, M corners that some pixel touches ("cells").
"""

import math
from dataclasses import dataclass

import numba
import numpy as np

from pipeline.crf.lanes import WIDTH, load, plus, spread, store, times_plus
from pipeline.errors import BadInput

_HALF = np.float32(0.5)
_BATCH = 64  # pixels whose simplices are found together, so that compiled loops work on many
_EMPTY = np.int32(-1)
_SPREADER = np.uint64(0x9E3779B97F4A7C15)  # an odd number whose products fill the upper bits


@dataclass(frozen=True)
class Lattice:
    """Where N pixels stand on the lattice.

    Attributes:
        vertices: (N, D + 1) uint32, the cells at the corners of each pixel's simplex.
        weights: (N, D + 1) float32, its barycentric coordinates there, 0..1, each row sums to 1.
        neighbours: (D + 1, M, 2) uint32, the cells before and after each cell along each axis, M
            where no pixel touches that corner.
    """

    vertices: np.ndarray
    weights: np.ndarray
    neighbours: np.ndarray


def lattice_of(features: np.ndarray) -> Lattice:
    """The lattice under pixels whose kernel is exp(-|f_i - f_j|^2 / 2).

    Lattice and filter are those of Adams, Baek and Davis 2010.

    Args:
        features: (N, D) float32, finite, N >= 1.

    Raises:
        BadInput: the features span more cells than 62 bits can number.
    """
    dims = features.shape[1]
    planes = np.ascontiguousarray(features.T)
    # So scaled, the blur by (1/2, 1, 1/2) along all axes and both interpolations have variance 1.
    # Rounded early, as pydensecrf2 has it: noise of whole numbers lies on faces of the simplices.
    steps = np.sqrt(np.arange(1, dims + 1) * np.arange(2.0, dims + 2))
    scales = (1 / steps * np.float32(math.sqrt(2 / 3) * (dims + 1))).astype(np.float32)
    reach = np.abs(planes).max(axis=1).astype(np.float64) * scales
    beyond = [reach[j:].sum() + (j * reach[j - 1] if j else 0) for j in range(dims)]
    lowest = -np.ceil(beyond).astype(np.int64) - 3 * (dims + 1)  # room for corners and neighbours
    sizes = 1 - 2 * lowest
    if math.prod(map(float, sizes)) > 2.0**62:
        raise BadInput("the CRF's thetas are too small for an image of this size: make them larger")
    strides = np.append(np.cumprod(np.append(1, sizes[:-1])), 0)
    vertices, weights, keys, table = _simplices(planes, scales, lowest, strides)
    return Lattice(vertices, weights, _neighbours(keys, table, strides))


@numba.njit(cache=True, nogil=True)
def filtered(vertices, weights, neighbours, values):
    """One number of each pixel, filtered; the sum over all pixels, itself included, up to a scale.

    Args:
        vertices, weights, neighbours: of a Lattice.
        values: (N,) float32.

    Returns:
        (N,) float32: sum over j of k(i, j) values[j], times a factor that depends on D alone.
    """
    axes, cells = neighbours.shape[:2]
    grid, spare = np.zeros(cells + 1, np.float32), np.zeros(cells + 1, np.float32)
    for p in range(len(vertices)):
        for v in range(axes):
            grid[vertices[p, v]] += weights[p, v] * values[p]
    for axis in range(axes):
        for cell in range(cells):
            below, above = neighbours[axis, cell, 0], neighbours[axis, cell, 1]
            spare[cell] = grid[cell] + _HALF * (grid[below] + grid[above])
        grid, spare = spare, grid
    result = np.zeros(len(vertices), np.float32)
    for p in range(len(vertices)):
        for v in range(axes):
            result[p] += weights[p, v] * grid[vertices[p, v]]
    return result


@numba.njit(cache=True, nogil=True)
def blurred(grid, spare, neighbours):
    """Blur all cells along all axes.

    Args:
        grid, spare: (M + 1, R) float32, R a multiple of WIDTH; both are written, but for their
            last rows, which are 0: they stand for cells that no pixel touches.
        neighbours: of a Lattice.

    Returns:
        The blurred array and the other one: `grid` and `spare`, in one order or the other.
    """
    axes, cells = neighbours.shape[:2]
    row, half = grid.shape[1], spread(_HALF)
    for axis in range(axes):
        for cell in range(cells):
            here = cell * row
            below = np.int64(neighbours[axis, cell, 0]) * row
            above = np.int64(neighbours[axis, cell, 1]) * row
            for k in range(0, row, WIDTH):
                sides = plus(load(grid, below + k), load(grid, above + k))
                store(spare, here + k, times_plus(half, sides, load(grid, here + k)))
        grid, spare = spare, grid
    return grid, spare


@numba.njit(cache=True, nogil=True)
def _slot(table, keys, key, shift):
    """Where in the table the cell of this key is, or would be."""
    slot = np.int64((np.uint64(key) * _SPREADER) >> shift)
    while table[slot] >= 0 and keys[table[slot]] != key:
        slot = (slot + 1) & (len(table) - 1)
    return slot


@numba.njit(cache=True, nogil=True)
def _shift(table):
    """By how much a 64-bit product is shifted to number the slots of a table of 2**n."""
    bits, size = 64, len(table)
    while size > 1:
        bits, size = bits - 1, size >> 1
    return np.uint64(bits)


@numba.njit(cache=True, nogil=True)
def _doubled(table, keys, cells):
    """Both with twice the room."""
    larger = np.full(2 * len(table), _EMPTY, np.int32)
    shift = _shift(larger)
    for cell in range(cells):
        larger[_slot(larger, keys, keys[cell], shift)] = cell
    return larger, np.append(keys, np.empty_like(keys))


@numba.njit(cache=True, nogil=True)
def _simplices(features, scales, lowest, strides):
    """The simplex of each pixel, cells numbered as they are met.

    A cell's key is its first D coordinates as one number of mixed radix, so that a step on the
    lattice is a sum of strides.

    Returns:
        vertices, weights: of a Lattice.
        keys: (M,) int64, of each cell.
        table: int32, a hash table of cells by key, -1 where empty, at most half full.
    """
    dims, n = features.shape
    corners = dims + 1
    vertices = np.empty((n, corners), np.uint32)
    weights = np.empty((n, corners), np.float32)
    table = np.full(1 << 14, _EMPTY, np.int32)
    keys = np.empty(1 << 13, np.int64)
    offset, rank = np.empty((corners, _BATCH), np.float32), np.empty((corners, _BATCH), np.int32)
    origin, cells = np.empty(_BATCH, np.int64), 0
    for start in range(0, n, _BATCH):
        end = min(start + _BATCH, n)
        if cells + _BATCH * corners > len(keys):
            table, keys = _doubled(table, keys, cells)
        _place(features[:, start:end], scales, lowest, strides, offset, rank, origin)
        cells = _number(
            offset,
            rank,
            origin,
            strides,
            keys,
            table,
            cells,
            vertices[start:end],
            weights[start:end],
        )
    return vertices, weights, keys[:cells].copy(), table


@numba.njit(cache=True, nogil=True)
def _number(offset, rank, origin, strides, keys, table, cells, vertices, weights):
    """Cells and weights of the pixels of a batch: fills vertices and weights, and what is met first
    into keys and table, which must have room. Returns the number of cells now."""
    n, corners = vertices.shape
    dims, all_axes, shift = corners - 1, strides.sum(), _shift(table)
    descending, falling = np.empty(corners, np.float32), np.empty(corners, np.int64)
    for p in range(n):
        for j in range(corners):
            descending[dims - rank[j, p]] = offset[j, p]
            falling[dims - rank[j, p]] = strides[j]
        key, before = origin[p], descending[dims] - np.float32(1)
        for v in range(corners):
            weights[p, v] = descending[v] - before
            before = descending[v]
            slot = _slot(table, keys, key, shift)
            if table[slot] < 0:
                keys[cells] = key
                table[slot] = cells
                cells += 1
            vertices[p, v] = table[slot]
            key += all_axes - corners * falling[v]
    return cells


@numba.njit(cache=True, nogil=True)
def _place(features, scales, lowest, strides, offset, rank, origin):
    """The simplices of some pixels; its loops over pixels have no branches.

    Args:
        features: (D, B) float32.
        scales, lowest, strides: of D, D and D + 1 coordinates.
        offset: (D + 1, B) float32, written: from the simplex's first corner to the pixel, in
            steps of the lattice.
        rank: (D + 1, B) int32, written: how many coordinates have a larger offset.
        origin: (B,) int64, written: key of the first corner.
    """
    dims, n = features.shape
    corners = dims + 1
    nearest = np.empty((corners, _BATCH), np.float32)
    rest, excess = np.zeros(_BATCH, np.float32), np.zeros(_BATCH, np.int32)
    size, part = np.float32(corners), np.float32(1) / np.float32(corners)
    for j in range(dims, 0, -1):
        for p in range(n):
            along = features[j - 1, p] * scales[j - 1]
            offset[j, p] = rest[p] - np.float32(j) * along
            rest[p] += along
    offset[0] = rest
    for j in range(corners):
        for p in range(n):
            nearest[j, p] = np.rint(offset[j, p] * part)
            offset[j, p] -= nearest[j, p] * size
            excess[p] += np.int32(nearest[j, p])
    for j in range(corners):
        rank[j] = excess
    for i in range(corners):
        for j in range(i + 1, corners):
            for p in range(n):
                less = np.int32(offset[i, p] < offset[j, p])
                rank[i, p] += less
                rank[j, p] += np.int32(1) - less
    origin[:] = 0
    for j in range(corners):
        for p in range(n):
            turn = np.int32(rank[j, p] < 0) - np.int32(rank[j, p] > dims)
            rank[j, p] += turn * corners
            offset[j, p] = offset[j, p] * part - np.float32(turn)
            if j < dims:
                steps = np.int64(nearest[j, p]) + turn
                origin[p] += (steps * corners - lowest[j]) * strides[j]


@numba.njit(cache=True, nogil=True)
def _neighbours(keys, table, strides):
    """The cells beside each cell, as `neighbours` of a Lattice."""
    cells, corners, shift = len(keys), len(strides), _shift(table)
    result = np.full((corners, cells, 2), cells, np.uint32)
    for axis in range(corners):
        step = corners * strides[axis] - strides.sum()
        for cell in range(cells):
            other = table[_slot(table, keys, keys[cell] + step, shift)]
            if other >= 0:
                result[axis, cell, 1] = other
                result[axis, other, 0] = cell
    return result
