"""Label maps out of PNGs, some times faster than general decoders.

In a PNG of a label map nearly every byte repeats the row above. libdeflate unpacks the data, and of
a row only what differs from the row above is looked at; general decoders filter byte by byte.

Read are 8-bit palette and 8- or 16-bit grey PNGs, not interlaced. For every other file, and for one
that is damaged by its check sums or its contents, the answer is None: Pillow then reads it or says
what is wrong with it.
H x W pixels.
"""

import struct
import zlib
from pathlib import Path

import deflate
import numba
import numpy as np

from pipeline.errors import need_file

START = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE = 0, 3  # types of colour
LARGEST = 1 << 26  # pixels


def read(path: Path) -> np.ndarray | None:
    """The numbers in a PNG file; see `decode`. Raises BadFile if no regular file is there."""
    need_file(path)
    try:
        return decode(path.read_bytes())
    except OSError:
        return None


def decode(data: bytes) -> np.ndarray | None:
    """The numbers in a PNG of grey or palette pixels.

    Returns:
        (H, W) uint8 or uint16; None if it is another kind of PNG, or damaged.
    """
    parts = _parts(data)
    if parts is None:
        return None
    height, width, size, packed = parts
    total = height * (1 + width * size)  # each row starts with its filter
    try:
        rows = np.frombuffer(deflate.zlib_decompress(packed, total), np.uint8)
    except deflate.DeflateError:
        return None
    if len(rows) != total:
        return None
    words = rows[: total & ~7].view(np.int64)
    pixels = np.empty((height, width * size), np.uint8)
    if not _unfilter(rows, words, size, pixels):
        return None
    return pixels if size == 1 else pixels.view(">u2").astype(np.uint16)


def _parts(data: bytes) -> tuple[int, int, int, bytes] | None:
    """Height, width, bytes a pixel and the packed rows; None unless all is as it should be."""
    if not data.startswith(START):
        return None
    at, header, packed = len(START), None, []
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            return None
        if struct.unpack_from(">I", data, end)[0] != zlib.crc32(memoryview(data)[at + 4 : end]):
            return None
        match kind:
            case b"IHDR" if length == 13:
                header = struct.unpack_from(">IIBBBBB", data, at + 8)
            case b"IDAT":
                packed.append(data[at + 8 : end])
            case b"acTL":  # several images
                return None
            case b"IEND":
                break
        at = end + 4
    else:
        return None
    if header is None or not packed:
        return None
    width, height, bits, colour, *rest = header
    known = (bits, colour) in ((8, GREY), (8, PALETTE), (16, GREY)) and rest == [0, 0, 0]
    if not known or not 0 < width * height <= LARGEST:
        return None
    return height, width, bits // 8, b"".join(packed)


# --- filters --------------------------------------------------------------------------------------
@numba.njit(nogil=True, cache=True)
def _unfilter(rows, words, size, pixels):
    """Undo the filters of rows into `pixels` (H, W * size); False if one is unknown."""
    length = pixels.shape[1]
    above = np.zeros(length, np.uint8)
    for y in range(len(pixels)):
        start = y * (1 + length) + 1
        kind, raw, row = rows[start - 1], rows[start : start + length], pixels[y]
        if kind == 0:
            for x in range(length):
                row[x] = raw[x]
        elif kind == 1:
            _unfilter_sub(rows, words, start, size, row)
        elif kind == 2:
            for x in range(length):
                row[x] = raw[x] + above[x]
        elif kind == 3:
            for x in range(length):
                left = np.int64(row[x - size]) if x >= size else 0
                row[x] = raw[x] + ((left + above[x]) >> 1)
        elif kind == 4:
            for x in range(length):  # a loop is copied in blocks, a slice is not
                row[x] = above[x]
            _unfilter_paeth(rows, words, start, size, above, row)
        else:
            return False
        above = row
    return True


@numba.njit(nogil=True, cache=True)
def _unfilter_sub(rows, words, start, size, row):
    """Each byte is predicted by the one to the left, `size` bytes before."""
    row[:size] = rows[start : start + size]
    x = size
    while x < len(row):
        change = _next_change(rows, words, start + x, start + len(row)) - start
        if size == 1:
            row[x:change] = row[x - 1]
        else:
            for k in range(size):
                value = row[x + k - size]
                for i in range(x + k, change, size):
                    row[i] = value
        if change < len(row):
            row[change] = rows[start + change] + row[change - size]
        x = change + 1


@numba.njit(nogil=True, cache=True)
def _unfilter_paeth(rows, words, start, size, above, row):
    """Each byte is predicted by the nearest of left, above, above left to left + above - the last.

    Where the pixel to the left is as the one above it, that is the byte above, as `row` holds it.
    """
    same = size  # bytes up to x that are as above, one after another
    x = 0
    while True:
        if same >= size:
            x = _next_change(rows, words, start + x, start + len(row)) - start
        if x == len(row):
            return
        a = np.int64(row[x - size]) if x >= size else 0
        c = np.int64(above[x - size]) if x >= size else 0
        b = np.int64(above[x])
        from_a, from_b, from_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
        if from_a <= from_b and from_a <= from_c:
            value = a
        elif from_b <= from_c:
            value = b
        else:
            value = c
        row[x] = rows[start + x] + value
        same = same + 1 if row[x] == above[x] else 0
        x += 1


@numba.njit(nogil=True, cache=True)
def _next_change(rows, words, at, end):
    """The first byte from `at` on that is not 0, or `end`; eight at a time where they are 0."""
    while at < end and rows[at] == 0:
        at += 1
        if at & 7 == 0:
            while at + 8 <= end and words[at >> 3] == 0:
                at += 8
    return at
