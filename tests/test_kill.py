"""Killed at any moment and run again, the pipeline ends with the bits of an unbroken run."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from scratch import PARAMS, dvc, kill_group, make_project, repro, start

pytestmark = pytest.mark.slow

BOXSUP = PARAMS.replace(
    "boxsup: {}",
    """boxsup:
  boxes:
    <<: *run
    proposals: scg
    mask_split: train
    difficult: box
    crowd: ignore
    estimator: {kind: boxsup, top_k: 3, lam: 1.0, lam_start: 2, round_epochs: 2, costs: averaged,
      min_box_iou: 0.5, fallback_box_iou: 0.3, fallback: rectangle}""",
).replace(
    "weights:",
    """  scg_sample: {method: scg, dataset: sample, contours: none, ranker: none,
    algorithm: {kind: scg, edges: {kind: gradient, sigma: 2.0}, min_area: 20, singletons: 100,
      pairs: 100, triplets: 100, quadruplets: 0, max_overlap: 0.95, max_candidates: 200,
      fill_holes: false}}
weights:""",
)

# Imported by every Python of the project under test: kills the whole group at the n-th renaming of
# a finished file to a name that ends so - after the file is written, before it is in its place.
ASSASSIN = """
import os, pathlib, signal
ending, count = os.environ["KILL_AT"].split(":")
real, seen = os.replace, []
def replace(source, target, **rest):
    if str(target).endswith(ending):
        seen.append(target)
        if len(seen) == int(count):
            os.killpg(0, signal.SIGKILL)
    return real(source, target, **rest)
os.replace = replace
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A project brought up to the training, and the digests of an unbroken run."""
    folder = make_project(tmp_path_factory.mktemp("kill") / "template", BOXSUP)
    repro(folder, "propose@scg_sample", "weights@none")
    complete = folder.with_name("unbroken")
    shutil.copytree(folder, complete, symlinks=True)
    began = time.monotonic()
    repro(complete, "boxsup@boxes")
    return folder, digests(complete), time.monotonic() - began


def digests(folder: Path) -> dict[str, str]:
    names = ("boxes.pt", "boxes.history.parquet", "boxes.choices.parquet")
    files = [folder / "data" / "models" / name for name in names]
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.parametrize(
    "moment",
    [
        "checkpoint.pt:1",
        "checkpoint.pt:4",
        "labels-0002.parquet:1",
        "choices-0002.parquet:1",
        "history.parquet:3",
        "models/boxes.pt:1",
        "models/boxes.choices.parquet:1",
    ],
)
def test_killed_while_a_file_is_put_in_its_place(unbroken, tmp_path, moment):
    template, expected, _ = unbroken
    folder = tmp_path / "project"
    shutil.copytree(template, folder, symlinks=True)
    (tmp_path / "assassin").mkdir()
    (tmp_path / "assassin" / "sitecustomize.py").write_text(ASSASSIN)
    process = start(folder, "boxsup@boxes", KILL_AT=moment, PYTHONPATH=str(tmp_path / "assassin"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, output
    assert not (folder / "data" / "models" / "boxes.choices.parquet").exists()
    repro(folder, "boxsup@boxes")
    assert digests(folder) == expected


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_a_random_moment(unbroken, tmp_path, seed):
    template, expected, seconds = unbroken
    folder = tmp_path / "project"
    shutil.copytree(template, folder, symlinks=True)
    process = start(folder, "boxsup@boxes")
    time.sleep(random.Random(seed).uniform(0.2, 1.0) * seconds)
    kill_group(process)
    repro(folder, "boxsup@boxes")
    assert digests(folder) == expected


def test_a_training_told_to_stop_keeps_its_work_and_goes_on(unbroken, tmp_path):
    template, expected, _ = unbroken
    folder = tmp_path / "project"
    shutil.copytree(template, folder, symlinks=True)
    process = start(folder, "boxsup@boxes")
    checkpoint = wait_for(folder, "work/boxsup/boxes-*/checkpoint.pt")
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert checkpoint.exists()
    before = checkpoint.stat().st_mtime_ns
    repro(folder, "boxsup@boxes")
    assert checkpoint.stat().st_mtime_ns > before
    assert digests(folder) == expected


def test_killing_dvc_alone_leaves_no_second_writer(unbroken, tmp_path):
    template, expected, _ = unbroken
    folder = tmp_path / "project"
    shutil.copytree(template, folder, symlinks=True)
    process = start(folder, "boxsup@boxes")
    try:
        wait_for(folder, "work/boxsup/boxes-*/depends_on.json")
        trainers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "pipeline" in child.cmdline()
        ]
        os.kill(process.pid, signal.SIGKILL)  # dvc itself; its stage lives on
        process.wait(30)  # or DVC takes the dead process for one that holds its lock
        again = dvc(folder, "repro", "boxsup@boxes")
        if any(trainer.is_running() for trainer in trainers):
            assert again.returncode != 0
            assert "is at work on boxsup boxes" in again.stdout
        psutil.wait_procs(trainers, timeout=300)
        repro(folder, "boxsup@boxes")
        assert digests(folder) == expected
    finally:
        kill_group(process)


def test_parameters_edited_while_a_stage_runs(unbroken, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(unbroken[0], folder, symlinks=True)
    process = start(folder, "boxsup@boxes")
    try:
        wait_for(folder, "work/boxsup/boxes-*/checkpoint.pt")
        params = folder / "params.yaml"
        params.write_text(params.read_text().replace("lr: 0.1", "lr: 0.09"))
        output, _ = process.communicate(timeout=300)
    finally:
        kill_group(process)
    assert process.returncode != 0
    assert "params.yaml boxsup.boxes.lr" in output or "params.yaml semantic" in output
    assert not (folder / "data" / "models" / "boxes.pt").exists()


def wait_for(folder: Path, pattern: str) -> Path:
    """The first file that appears under a pattern."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if found := list(folder.glob(pattern)):
            return found[0]
        time.sleep(0.01)
    raise AssertionError(f"{pattern} did not appear")


def test_nothing_is_left_running(unbroken):
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(unbroken[0].parent) not in listed.stdout
