"""A copy of the project in a folder of its own, with a miniature of the sample, to run DVC in."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline.params_file import build, read_yaml
from pipeline.params_training import SemanticRun
from pipeline.stages.code import code

PROJECT = Path(__file__).resolve().parents[1]
COPIED = (
    "pipeline", "flows", "params", "dvc.yaml", ".dvcignore", "pyproject.toml", "prefect.toml",
    "prefect.yaml",
)  # fmt: skip

PARAMS = """\
datasets:
  sample: {kind: sample, train: 2, extra: 6, more: 0, val: 3}
forests: {}
proposals:
  none_sample:
    {method: none, dataset: sample, contours: none, ranker: none, algorithm: {kind: none}}
weights:
  none: {kind: none}
semantic:
  mask: &run
    dataset: sample
    split: train_aug
    init: none
    network: {kind: fcrn, depth: 14, stride: 8, kernel: 3, dilation: 2}
    augmentation: {crop: [64, 64], scale: [0.8, 1.25], flip: both}
    bootstrapping: {kind: "off"}
    batch: 2
    epochs: 8
    lr: 0.1
    schedule: {kind: linear, warmup: 2}
    momentum: 0.9
    nesterov: true
    weight_decay: 0.0005
    bias_lr_factor: 1.0
    batch_norm: train
    seed: 0
    precision: fp32
    threads: 1
boxsup: {}
instance: {}
evaluations:
  mask: &evaluation
    model: mask
    localization: none
    dataset: sample
    split: val
    views: {scales: [1.0], flip: false, shifts: 1}
    crf: none
    instances: none
    stands_for: []
"""


IDS = [f"image{i}" for i in range(5)]


def tiny_run(folder: Path) -> SemanticRun:
    """The run of `PARAMS`, shorter, on crops of 32 pixels. Writes params.yaml into the folder."""
    (folder / "params.yaml").write_text(PARAMS)
    entry = read_yaml(folder / "params.yaml")["semantic"]["mask"]
    entry |= {"epochs": 4, "augmentation": entry["augmentation"] | {"crop": [32, 32]}}
    return build(SemanticRun, entry, "params.yaml", "semantic.mask")


def image_of(image_id: str) -> np.ndarray:
    """Noise, the same each time: (40, 40, 3)."""
    return np.random.default_rng(int(image_id[-1])).integers(0, 255, (40, 40, 3), np.uint8)


def environment(**extra: str) -> dict[str, str]:
    """The tests' own Python first on PATH, one thread, and no data of the user's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PIPELINE_DATA_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"} | extra


def make_project(folder: Path, params: str = PARAMS) -> Path:
    """Copy the project's code and graph to `folder`, with `params` as params.yaml, under git."""
    folder.mkdir(parents=True)
    for name in COPIED:
        source = PROJECT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        elif source.exists():
            shutil.copyfile(source, folder / name)
    (folder / "reports").mkdir()
    for table in (PROJECT / "reports").glob("*.csv"):
        shutil.copyfile(table, folder / "reports" / table.name)
    code(folder)  # for the stages that are run by hand
    (folder / ".dvc").mkdir()
    shutil.copyfile(PROJECT / ".dvc" / "config", folder / ".dvc" / "config")
    shutil.copyfile(PROJECT / ".dvc" / ".gitignore", folder / ".dvc" / ".gitignore")
    (folder / ".gitignore").write_text("/data/*\n/work/\n__pycache__/\n")
    (folder / "params.yaml").write_text(params)
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    return folder


def dvc(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a DVC command in a project to its end. Output, with errors, is in `stdout`."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=environment(**extra),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=False,
    )


def repro(folder: Path, *targets: str, **extra: str) -> str:
    """`dvc repro` that must succeed. Returns its output."""
    done = dvc(folder, "repro", *targets, **extra)
    assert done.returncode == 0, done.stdout
    return done.stdout


def stages_run(output: str) -> list[str]:
    """The stages that an output of `dvc repro` says it ran."""
    marked = [line for line in output.splitlines() if line.startswith("Running stage ")]
    return [line.split("'")[1] for line in marked]


def start(folder: Path, *targets: str, **extra: str) -> subprocess.Popen[str]:
    """`dvc repro` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *targets],
        cwd=folder,
        env=environment(**extra),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def kill_group(process: subprocess.Popen[str]) -> None:
    """kill -9 of a started process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.communicate()
