"""MATLAB files of version 5 (save -v6, -v7): arrays of numbers, and structs that hold such.

    header      128 bytes; the last two tell the byte order
    elements    type, size, content; a variable is a MATRIX, or COMPRESSED around one
    MATRIX      elements again: class and flags, dimensions, name, then the numbers column by
                column; of a struct: the length of field names, the names, a MATRIX for each field

Read here and not by scipy: its reader ends the whole process (a segmentation fault, scipy 1.17.1)
where the type of an element is damaged, and that cannot be noted as a fault of a file.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import BadFile, need_file

HEADER = 128
HDF5 = b"\x89HDF\r\n\x1a\n"  # what begins after the header of version 7.3
MATRIX, COMPRESSED = 14, 15  # types of elements
STORED = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
STRUCT = 2  # classes of arrays
NUMBERS = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
COMPLEX = 0x0800  # a flag
LARGEST = 1 << 28  # bytes of an unpacked variable: more is no annotation of an image

Element = tuple[int, memoryview]  # type, content
Variable = np.ndarray | dict[str, np.ndarray]


def read_variable(path: Path, name: str) -> Variable:
    """A variable of a file.

    Returns:
        An array of numbers with MATLAB's dimensions (two or more), or for a struct its fields that
        are such arrays, by name; other fields are left out.

    Raises:
        BadFile: the file is missing, damaged, of another version, or has no such variable.
    """
    need_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadFile(path, f"not a readable file ({error})", "copy it anew") from error
    if HDF5 in data[: 5 * HEADER]:
        raise BadFile(path, "a .mat file of version 7.3", "save it with -v7, or copy the original")
    try:
        for found, value in _variables(data):
            if found == name:
                if value is None:
                    raise ValueError(f"{name} is neither numbers nor a struct")
                return value
    except (ValueError, FloatingPointError, struct.error, zlib.error) as error:
        raise BadFile(path, f"not a readable .mat file ({error})", "copy it anew") from error
    raise BadFile(path, f"no {name} in it", "copy the original there")


def encode_variables(content: Mapping[str, object]) -> bytes:
    """A compressed file of variables, by name. The same bytes always: no time of day in it."""
    from scipy.io import savemat  # here, so that reading does not wait for it

    buffer = io.BytesIO()
    savemat(buffer, dict(content), do_compression=True)
    data = bytearray(buffer.getvalue())
    data[:116] = b"MATLAB 5.0 MAT-file".ljust(116)
    return bytes(data)


def _variables(data: bytes) -> Iterator[tuple[str, Variable | None]]:
    """The name of each variable and its value: None where that is none of what we read."""
    order = {b"IM": "<", b"MI": ">"}.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("its header is not that of version 5")
    for kind, content in _elements(memoryview(data)[HEADER:], order):
        if kind == COMPRESSED:
            kind, content = next(_elements(memoryview(_unpacked(content)), order), (0, content))
        if kind == MATRIX:
            yield _variable(content, order)


def _unpacked(content: memoryview) -> bytes:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(content, LARGEST)
    if not unpacker.eof:
        raise ValueError("a variable is cut off or too large")
    return data


def _elements(data: memoryview, order: str) -> Iterator[Element]:
    """Elements one after another. Raises ValueError or struct.error where they are cut off."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, after = at + 8, at + 8 + size
        if kind >> 16:  # a small one: size and type share four bytes, the content has the others
            kind, size, start, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        elif kind != COMPRESSED:
            after += -size % 8
        if start + size > min(len(data), max(after, start)):
            raise ValueError("it is cut off")
        yield kind, data[start : start + size]
        at = after


def _variable(content: memoryview, order: str) -> tuple[str, Variable | None]:
    kind, size, name, rest = _head(content, order)
    if kind != STRUCT:
        return name, _numbers(kind, size, rest, order)
    if math.prod(size) != 1 or len(rest) < 2:
        return name, None
    (length,) = _plain(rest[0], order).tolist()
    names = bytes(rest[1][1])
    if length < 1:
        raise ValueError("a struct's field names have no length")
    fields = {}
    for number, (_, field) in enumerate(rest[2:]):
        label = names[number * length : (number + 1) * length].rstrip(b"\0").decode("latin-1")
        if len(field):
            kind, size, _, inner = _head(field, order)
            value = _numbers(kind, size, inner, order)
            if value is not None:
                fields[label] = value
    return name, fields


def _head(content: memoryview, order: str) -> tuple[int, list[int], str, list[Element]]:
    """Class (0 for complex numbers), dimensions and name of a MATRIX, and what follows."""
    parts = list(_elements(content, order))
    if len(parts) < 3 or parts[0][0] != 6 or len(parts[0][1]) != 8:
        raise ValueError("a variable without class, dimensions and name")
    flags = int(_plain(parts[0], order)[0])
    size = _plain(parts[1], order).tolist()
    kind = 0 if flags & COMPLEX else flags & 0xFF
    return kind, size, bytes(parts[2][1]).decode("latin-1"), parts[3:]


def _numbers(kind: int, size: list[int], rest: list[Element], order: str) -> np.ndarray | None:
    """The numbers of an array; None for one of another class."""
    if kind not in NUMBERS:
        return None
    flat = _plain(rest[0], order) if rest else np.zeros(0)
    if min(size, default=0) < 0 or math.prod(size) != flat.size:
        raise ValueError(f"{flat.size} numbers where its dimensions say {size}")
    with np.errstate(invalid="raise"):  # no whole number is NaN
        return flat.astype(NUMBERS[kind]).reshape(size, order="F")


def _plain(element: Element, order: str) -> np.ndarray:
    """The numbers of an element, in the type in which they are stored."""
    kind, content = element
    if kind not in STORED:
        raise ValueError(f"numbers of the unknown type {kind}")
    return np.frombuffer(content, np.dtype(order + STORED[kind]))
