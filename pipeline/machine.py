"""What machine this is, in words for a report."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


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
