"""What machine this is, in words for a report."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import BadInput

if TYPE_CHECKING:
    import torch


def chosen_device(named: str = "") -> torch.device:
    """A GPU where there is one, else the CPU; or "cpu" or "cuda", named here or by PIPELINE_DEVICE.

    Raises:
        BadInput: a GPU is asked for and torch finds none, or PIPELINE_DEVICE is something else.
    """
    import torch  # slow to import

    asked, there = named or os.environ.get("PIPELINE_DEVICE", ""), torch.cuda.is_available()
    if asked not in ("", "cpu", "cuda"):
        raise BadInput(f"PIPELINE_DEVICE is {asked!r}; choose one of: cpu, cuda")
    if asked == "cuda" and not there:
        reason = "" if torch.version.cuda else ", which was built without CUDA"
        raise BadInput(
            f"{'--device' if named else 'PIPELINE_DEVICE'} is cuda, but torch {torch.__version__}"
            f"{reason} finds no GPU; look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or choose cpu"
        )
    return torch.device(asked or ("cuda" if there else "cpu"))


def machine() -> str:
    """Processor, cores, GPU if there is one, and torch version, in words."""
    from torch import cuda  # slow to import

    names = [platform.processor() or platform.machine()]
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8").splitlines()
        names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")][
            :1
        ] or names
    names.append(f"{os.cpu_count()} cores")
    if cuda.is_available():
        names.append(cuda.get_device_name(0))
    return ", ".join([*names, f"torch {version('torch')}"])
