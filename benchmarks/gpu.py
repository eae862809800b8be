"""The GPU rows of the speed table, from one session on one GPU: times, memory, equal curves.

    python benchmarks/gpu.py --out gpu.json          # and a table, gpu.md
    python benchmarks/gpu.py --out x.json --device cpu --small

The second runs every line and measures nothing. What is run is in gpu_jobs.py.

The peer is torchvision's network in fp32, default layout, uncompiled, with cuDNN's search for the
fastest algorithm on; once with TF32 in its convolutions, which is how torch comes, once without.
Ours is what `fit` trains: bf16, channels-last, compiled, algorithms of fixed bits, and frozen
BatchNorms as part of their convolutions. Both get the same uint8 batches, those of training from
pinned memory. Times are medians between CUDA events, after warm-up; rates are set against a
product of matrices measured first. A row that fails says so, and the others go on; what would not
end in time is left out and says that. All rows so far are on the disk after each.

Where there is no GPU: exit code 2.
"""

import argparse
import gc
import json
import os
import platform
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where the project is not installed
from gpu_jobs import JOBS, Job  # noqa: E402
from gpu_session import SMALL, Session, Sizes  # noqa: E402

COLUMNS = {  # of the table: heading -> (key of a row, format)
    "ms": ("ms", "{:.2f}"),
    "img/s": ("images_per_s", "{:.1f}"),
    "TFLOP/s": ("tflops", "{:.1f}"),
    "% of product": ("percent_of_product", "{:.0f}"),
    "x TF32": ("times_TF32", "{:.2f}"),
    "x fp32": ("times_fp32", "{:.2f}"),
    "MB per image": ("megabytes_per_image", "{:.0f}"),
    "of peer": ("of_peer", "{:.2f}"),
    "difference": ("largest_relative_difference", "{:.4f}"),
    "met": ("met", "{}"),
    "must": ("must", "{}"),
    "stretch": ("stretch", "{}"),
    "note": ("note", "{}"),
}


def measure(session: Session, jobs: list[tuple[str, Job, int]], out: Path, seconds: float) -> None:
    """Run the jobs, each with the seconds that it may take; none begins that would end too late."""
    ends = time.monotonic() + seconds
    for name, job, wanted in jobs:
        begin, count = time.monotonic(), len(session.rows)
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        if begin + wanted > ends:
            session.add(name, "-", note="not measured: no time was left")
        else:
            try:
                job(session)
            except Exception as error:  # whatever one row meets, the others go on
                traceback.print_exc()
                reason = str(error).strip().partition("\n")[0][:200]
                session.add(name, "-", note=f"failed: {type(error).__name__}: {reason}")
        taken = time.monotonic() - begin
        print(f"{taken:.0f} s", file=sys.stderr, flush=True)
        for row in session.rows[count:]:
            row["seconds"] = taken
            if session.sizes == SMALL:  # tried, not measured
                for key in ("percent_of_product", "must", "stretch"):
                    row.pop(key, None)
        write(session, out)
        if session.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def machine(device: torch.device) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "none"
    cores = len(os.sched_getaffinity(0))
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"gpu": gpu, "cuda": torch.version.cuda, "cores": cores, **versions}


def write(session: Session, out: Path) -> None:
    """FILE.json, and the same as a table beside it; whole or not at all."""
    described = machine(session.device)
    content = {"machine": described, "sizes": asdict(session.sizes), "rows": session.rows}
    told = ", ".join(f"{name} {value}" for name, value in described.items())
    heads = ["job", "way", *COLUMNS]
    lines = [told, "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in session.rows:
        cells = [form.format(row[key]) if key in row else "" for key, form in COLUMNS.values()]
        lines.append("| " + " | ".join([row["job"], row["way"], *cells]) + " |")
    for path, text in ((out, json.dumps(content, indent=1)), (out.with_suffix(".md"), lines)):
        partial_file = path.with_name(f".{path.name}.partial")
        partial_file.write_text(text if isinstance(text, str) else "\n".join(text) + "\n")
        os.replace(partial_file, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="FILE.json")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--minutes", type=float, default=5.0, help="no row begins that ends later")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: no GPU here; use --device cpu --small to try the script", file=sys.stderr)
        return 2
    session = Session(torch.device(given.device), SMALL if given.small else Sizes())
    measure(session, JOBS, given.out, 60 * given.minutes)
    print(given.out.with_suffix(".md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
