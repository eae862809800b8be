"""MATLAB files of version 5 (save -v6, -v7): numbers, and structs and cells that hold such.

    header      128 bytes; the last two tell the byte order
    elements    type, size, content; a variable is a MATRIX, or COMPRESSED around one
    MATRIX      elements again: class and flags, dimensions, name, then the numbers column by
                column; of a struct: the length of field names, the names, a MATRIX for each field;
                of cells: a MATRIX for each

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
CELLS, STRUCT = 1, 2  # classes of arrays
NUMBERS = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
COMPLEX = 0x0800  # a flag
LARGEST = 1 << 28  # bytes of an unpacked variable: more is no annotation of an image
REMEDY = "copy it anew"

Element = tuple[int, memoryview]  # type, content
Variable = np.ndarray | dict[str, np.ndarray]
Value = np.ndarray | dict[str, "Value"] | list["Value | None"]  # numbers, a struct, cells


def read_variable(path: Path, name: str) -> Variable:
    """A variable of a file.

    Returns:
        An array of numbers with MATLAB's dimensions (two or more), or for a struct its fields that
        are such arrays, by name; other fields are left out.

    Raises:
        BadFile: the file is missing, damaged, of another version, or has no such variable.
    """
    values = _read(path, depth=1, largest=LARGEST)
    value = _wanted(path, name, values)
    if value is None or isinstance(value, list):
        raise BadFile(path, f"{name} in it is neither numbers nor a struct", REMEDY)
    if isinstance(value, dict):
        return {label: field for label, field in value.items() if isinstance(field, np.ndarray)}
    return value


def read_cells(path: Path, name: str) -> list[Value | None]:
    """The cells of a variable, column by column.

    Returns:
        for each cell its numbers, or its struct's fields that are numbers; None for another kind.

    Raises:
        BadFile: as `read_variable` does; the variable is no array of cells.
    """
    value = _wanted(path, name, _read(path, depth=2, largest=LARGEST))
    if not isinstance(value, list):
        raise BadFile(path, f"no {name} in it that is an array of cells", "copy the original there")
    return value


def read_values(path: Path, *, depth: int, largest: int) -> dict[str, Value]:
    """All variables of a file that are numbers, structs or cells, by name.

    Args:
        depth: so many structs and cells lie around the innermost numbers, at most; what lies
            deeper is left out of structs, and None in cells.
        largest: bytes of an unpacked variable; a larger one is refused.

    Raises:
        BadFile: the file is missing, damaged or of another version.
    """
    values = _read(path, depth=depth, largest=largest)
    return {name: value for name, value in values if value is not None}


def encode_variables(content: Mapping[str, object]) -> bytes:
    """A compressed file of variables, by name. The same bytes always: no time of day in it."""
    from scipy.io import savemat  # here, so that reading does not wait for it

    buffer = io.BytesIO()
    savemat(buffer, dict(content), do_compression=True)
    data = bytearray(buffer.getvalue())
    data[:116] = b"MATLAB 5.0 MAT-file".ljust(116)
    return bytes(data)


def is_hdf5(path: Path) -> bool:
    """Whether a file is of version 7.3, another format. Raises BadFile if none is there."""
    need_file(path)
    try:
        with path.open("rb") as file:
            return HDF5 in file.read(5 * HEADER)
    except OSError as error:
        raise BadFile(path, f"not a readable file ({error})", REMEDY) from error


def _read(path: Path, *, depth: int, largest: int) -> Iterator[tuple[str, Value | None]]:
    """Each variable as `_variables` gives it. BadFile for all that can be wrong with the file."""
    if is_hdf5(path):
        raise BadFile(path, "a .mat file of version 7.3", "save it with -v7, or copy the original")
    try:
        yield from _variables(path.read_bytes(), depth, largest)
    except (OSError, ValueError, FloatingPointError, struct.error, zlib.error) as error:
        raise BadFile(path, f"not a readable .mat file ({error})", REMEDY) from error


def _wanted(path: Path, name: str, values: Iterator[tuple[str, Value | None]]) -> Value | None:
    for found, value in values:
        if found == name:
            return value
    raise BadFile(path, f"no {name} in it", "copy the original there")


def _variables(data: bytes, depth: int, largest: int) -> Iterator[tuple[str, Value | None]]:
    """The name of each variable and its value: None where that is none of what we read."""
    order = {b"IM": "<", b"MI": ">"}.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("its header is not that of version 5")
    for kind, content in _elements(memoryview(data)[HEADER:], order):
        if kind == COMPRESSED:
            kind, content = next(
                _elements(memoryview(_unpacked(content, largest)), order), (0, content)
            )
        if kind == MATRIX:
            yield _value(content, order, depth)


def _unpacked(content: memoryview, largest: int) -> bytes:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(content, largest)
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


def _value(content: memoryview, order: str, depth: int) -> tuple[str, Value | None]:
    """Name and value of a MATRIX; None where structs or cells lie deeper than `depth`."""
    kind, size, name, rest = _head(content, order)
    if kind == STRUCT and depth:
        return name, _fields(size, rest, order, depth - 1)
    if kind == CELLS and depth:
        if math.prod(size) != len(rest):
            raise ValueError(f"{len(rest)} cells where its dimensions say {size}")
        return name, [_inner(cell, order, depth - 1) for _, cell in rest]
    return name, _numbers(kind, size, rest, order)


def _fields(
    size: list[int], rest: list[Element], order: str, depth: int
) -> dict[str, Value] | None:
    """The fields of a struct that can be read; None for an array of several structs."""
    if math.prod(size) != 1 or len(rest) < 2:
        return None
    (length,) = _sizes(rest[0], order)
    names = bytes(rest[1][1])
    if length < 1:
        raise ValueError("a struct's field names have no length")
    fields = {}
    for number, (_, field) in enumerate(rest[2:]):
        label = names[number * length : (number + 1) * length].rstrip(b"\0").decode("latin-1")
        value = _inner(field, order, depth)
        if value is not None:
            fields[label] = value
    return fields


def _inner(content: memoryview, order: str, depth: int) -> Value | None:
    """The value of a MATRIX in another one; None for an empty one without a class."""
    return _value(content, order, depth)[1] if len(content) else None


def _head(content: memoryview, order: str) -> tuple[int, list[int], str, list[Element]]:
    """Class (0 for complex numbers), dimensions and name of a MATRIX, and what follows."""
    parts = list(_elements(content, order))
    if len(parts) < 3 or parts[0][0] != 6 or len(parts[0][1]) != 8:
        raise ValueError("a variable without class, dimensions and name")
    flags = int(_plain(parts[0], order)[0])
    size = _sizes(parts[1], order)
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


def _sizes(element: Element, order: str) -> list[int]:
    if STORED.get(element[0]) not in ("i4", "u4"):
        raise ValueError(f"sizes of the unknown type {element[0]}")
    return _plain(element, order).tolist()


def _plain(element: Element, order: str) -> np.ndarray:
    """The numbers of an element, in the type in which they are stored."""
    kind, content = element
    if kind not in STORED:
        raise ValueError(f"numbers of the unknown type {kind}")
    return np.frombuffer(content, np.dtype(order + STORED[kind]))
