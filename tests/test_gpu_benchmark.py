"""The GPU benchmark runs line by line on a CPU, on a machine that has only what computing needs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# what a GPU machine may lack: orchestration, proposals, files of parameters
LACKING = {
    "prefect", "dvc", "higra", "pycocotools", "msgspec", "ruamel", "dask", "distributed",
    "fastapi", "deflate", "cryptography",
}  # fmt: skip
USED_THERE = [
    "models.fcrn", "models.resnet", "models.fast", "models.frozen", "losses", "gradients",
    "training", "inference", "checkpoints", "fitting", "parallel",
]  # fmt: skip
PROGRAM = """
import importlib, importlib.abc, runpy, sys

class Lacking(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in LACKING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Lacking())
for name in USED_THERE:
    importlib.import_module(f"pipeline.{name}")
print("imported")
sys.path.insert(0, "benchmarks")
sys.argv[1:] = ARGUMENTS
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """The whole script at tiny sizes, in a process that can import nothing of LACKING."""
    out = tmp_path_factory.mktemp("gpu") / "small.json"
    arguments = ["--out", str(out), "--device", "cpu", "--small"]
    values = {"LACKING": LACKING, "USED_THERE": USED_THERE, "ARGUMENTS": arguments}
    given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    command = [sys.executable, "-c", given + PROGRAM]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280), out


@pytest.fixture
def gpu(monkeypatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def test_networks_learn_and_predict_without_what_a_gpu_machine_may_lack(small):
    done, _ = small
    assert done.stdout.startswith("imported"), done.stderr


def test_every_row_is_run(small):
    done, out = small
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    rows = content["rows"]
    assert content["machine"]["gpu"] == "none"
    assert not [row["note"] for row in rows if row["way"] == "-"]
    timed = [row for row in rows if "ms" in row]
    assert len(timed) >= 14 and all(row["ms"] > 0 for row in timed)
    assert all("times_TF32" in row for row in timed if row["way"] == "ours")
    memory = [row for row in rows if "of_peer" in row]
    assert len(memory) == 4 and all(row["megabytes_per_image"] > 0 for row in memory)
    assert done.stdout.count("\n| ") == len(rows) + 2  # the heads, and a rule below them


def test_fast_and_plain_training_agree(small):
    rows = json.loads(small[1].read_text())["rows"]
    curves = next(row for row in rows if "curves" in row)
    assert curves["met"] and curves["largest_relative_difference"] < 0.01
    ours, peer = curves["curves"]["ours"], curves["curves"]["peer"]
    assert len(ours) == len(peer) == 3 and ours != peer
    assert ours[-1] < ours[0]


def test_a_row_that_fails_says_so_and_the_others_go_on(gpu, tmp_path):
    def fails(session):
        raise torch.OutOfMemoryError("CUDA out of memory\nby a lot")

    session = gpu.Session(torch.device("cpu"), gpu.SMALL)
    jobs = [("first", fails, 1), ("late", fails, 100), ("product", gpu.JOBS[0][1], 1)]
    gpu.measure(session, jobs, tmp_path / "x.json", seconds=50)
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert rows[0]["note"] == "failed: OutOfMemoryError: CUDA out of memory"
    assert rows[1]["note"] == "not measured: no time was left"
    assert rows[2]["ms"] > 0 and len(rows) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_there_is_no_gpu_it_says_so(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "x.json")])
    assert gpu.main() == 2
    said = "error: no GPU here; use --device cpu --small to try the script\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())
