"""MATLAB files of version 7.3, which are HDF5: numbers, and structs and cells that hold such.

    dataset     numbers, their dimensions the other way round; cells: references to what they hold
    group       a struct, a dataset or group for each field
    #refs#      what the references point at

Read by h5py, which is not installed with this project. H5py trusts a file more than our reader of
version 5 does: damaged bytes may end the process.
"""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.matfile import REMEDY, Value
from pipeline.errors import BadFile

NO_NUMBERS = ("char", "function_handle", "struct", "canonical empty")  # classes of datasets


def read_values(path: Path, *, depth: int, largest: int) -> dict[str, Value]:
    """All variables of a file that are numbers, structs or cells, by name.

    Args:
        depth: so many structs and cells lie around the innermost numbers, at most.
        largest: bytes of an array of numbers; a larger one is refused.

    Raises:
        BadFile: h5py is not installed, or the file is damaged.
    """
    try:
        import h5py
    except ImportError:
        problem = "a .mat file of version 7.3, which only h5py can read"
        raise BadFile(path, problem, "`pip install h5py`, or save the file with -v7") from None
    try:
        with h5py.File(path, "r") as file:
            return _fields(file, depth, largest)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BadFile(path, f"not a readable .mat file ({error})", REMEDY) from error


def _fields(group: Any, depth: int, largest: int) -> dict[str, Value]:
    """What lies in a file or group, without what links to other places."""
    import h5py

    fields = {}
    for name in group:
        hard = isinstance(group.get(name, getlink=True), h5py.HardLink)
        if hard and not name.startswith("#"):
            value = _value(group[name], depth, largest)
            if value is not None:
                fields[name] = value
    return fields


def _value(item: Any, depth: int, largest: int) -> Value | None:
    """Numbers, a struct or cells; None for another kind, or for what lies deeper than `depth`."""
    import h5py

    kind = _class_of(item)
    if isinstance(item, h5py.Group):
        sparse = "MATLAB_sparse" in item.attrs
        return _fields(item, depth - 1, largest) if depth and not sparse else None
    if not isinstance(item, h5py.Dataset) or item.shape is None or kind in NO_NUMBERS:
        return None
    if item.external or item.is_virtual:
        raise ValueError(f"{item.name} lies in another file")
    if item.nbytes > largest:
        raise ValueError(f"{item.name} is too large")
    if "MATLAB_empty" in item.attrs:  # the dataset holds the dimensions
        return [] if kind == "cell" else np.zeros((0, 0))
    if kind == "cell":
        cells = [item.file[reference] for reference in item[()].ravel()]
        return [_value(cell, depth - 1, largest) for cell in cells] if depth else None
    return np.asarray(item[()]).T if item.dtype.kind in "biuf" else None


def _class_of(item: Any) -> str:
    kind = item.attrs.get("MATLAB_class", b"")
    return kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
