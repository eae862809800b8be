"""Files of weights, by whomever: what torch or safetensors wrote. No file can run code."""

import json
import math
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import BadFile, need_file

WRAPPERS = ("state_dict", "model")  # under which training programs keep a state dict
SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without a wrapper and the prefix of parallel training.

    Raises:
        BadFile: not there, damaged, or it holds something else than tensors.
    """
    need_file(path)
    with path.open("rb") as file:
        begin = file.read(9)
    state: Any
    if begin[8:] == b"{":
        state = _read_safetensors(path)
    elif begin.startswith((b"PK", b"\x80")):  # archives of torch, and pickles as it once wrote them
        state = read_torch_file(path, torch.device("cpu"))
    else:
        raise BadFile(path, "neither torch's nor a safetensors file", "put weights there")
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not state:
        raise BadFile(path, "no state dict", "save one: torch.save(model.state_dict(), FILE)")
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise BadFile(path, f"{odd[0]} in it is no tensor", "save the model's state dict alone")
    for name, value in state.items():
        if not value.isfinite().all():
            raise BadFile(path, f"{name} in it is not finite", "copy or train it anew")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def read_torch_file(path: Path, device: torch.device) -> Any:
    """What `torch.save` put into a file, as far as it is tensors and plain containers.

    Objects of a program, and the code that would make them, are not taken: no file runs anything.

    Raises:
        BadFile: not there, not torch's, damaged, or with such objects in it.
    """
    need_file(path)
    try:
        with path.open("rb") as file:
            if not file.read(2).startswith((b"PK", b"\x80")):  # an archive, or an older pickle
                raise ValueError("not a file of torch's")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch itself looks at no checksum
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
        with warnings.catch_warnings(action="ignore"):  # of pickles by other programs
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        problem = "holds more than weights: objects of a program, or code, which is not run"
        remedy = "save its state dict alone: torch.save(model.state_dict(), FILE)"
        raise BadFile(path, problem, remedy) from error
    except Exception as error:  # each kind of damage has an exception of its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadFile(path, f"not a readable file of weights ({reason})", "copy it anew") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Eight bytes, the length of a header; the header, JSON: for each name dtype, shape and the first
    and the last + 1 byte of what follows; the bytes, little-endian.
    """
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    try:
        if begin > len(content):
            raise ValueError("cut off in its header")
        header = json.loads(content[8:begin])
        header.pop("__metadata__", None)
        body = memoryview(content)[begin:]
        return {name: _tensor(body, **entry) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problem = f"not a readable safetensors file ({error})"
        raise BadFile(path, problem, "copy it anew") from error


def _tensor(body: memoryview, *, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    first, last = data_offsets
    kind = SAFETENSORS[dtype]
    if min(shape, default=0) < 0 or not 0 <= first <= last <= len(body):
        raise ValueError(f"bytes {first} to {last} of {len(body)}, shape {shape}")
    if last - first != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{last - first} bytes for {dtype} {shape}")
    if first == last:
        return torch.zeros(shape, dtype=kind)
    return torch.frombuffer(bytearray(body[first:last]), dtype=kind).reshape(shape)
