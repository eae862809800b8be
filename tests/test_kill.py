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
# a finished file to a name that ends so - after the file is written, before it is in its place -
# or, for "image", when the n-th image of the label steps is begun, which draws by its id's CRC.
ASSASSIN = """
import os, signal, zlib
ending, count = os.environ["KILL_AT"].split(":")
real, crc32, seen = os.replace, zlib.crc32, []
def at(name):
    if name.endswith(ending):
        seen.append(name)
        if len(seen) == int(count):
            os.killpg(0, signal.SIGKILL)
def replace(source, target, **rest):
    at(str(target))
    return real(source, target, **rest)
def drawn(data, *rest):
    if bytes(data[:4]) == b"2101":
        at("image")
    return crc32(data, *rest)
os.replace, zlib.crc32 = replace, drawn
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
        "image:3",
        "image:10",
        "labels-0000.parquet:1",
        "choices-0000.parquet:1",
        "labels-0002.parquet:1",
        "choices-0002.parquet:1",
        "history.parquet:3",
        "models/boxes.pt:1",
        "models/boxes.choices.parquet:1",
    ],
)
def test_killed_while_a_file_is_put_in_its_place_or_an_image_labelled(unbroken, tmp_path, moment):
    template, expected, _ = unbroken
    folder = killed(template, tmp_path, moment)
    assert not (folder / "data" / "models" / "boxes.choices.parquet").exists()
    repro(folder, "boxsup@boxes")
    assert digests(folder) == expected


def killed(template: Path, tmp_path: Path, moment: str, **extra: str) -> Path:
    """A project of its own in which the training was killed at a moment."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder, symlinks=True)
    (tmp_path / "assassin").mkdir()
    (tmp_path / "assassin" / "sitecustomize.py").write_text(ASSASSIN)
    variables = {"KILL_AT": moment, "PYTHONPATH": str(tmp_path / "assassin")} | extra
    process = start(folder, "boxsup@boxes", **variables)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        kill_group(process)
    assert process.returncode == -signal.SIGKILL, output
    return folder


@pytest.mark.parametrize("lost", ["", "labels-0002.parquet"])
def test_killed_within_a_round_goes_on_with_its_labels(unbroken, tmp_path, lost):
    """After a checkpoint in the middle of the second round, whose network would choose otherwise;
    labels that were lost since follow from the choices."""
    template, expected, _ = unbroken
    folder = killed(template, tmp_path, "checkpoint.pt:14", PIPELINE_CHECKPOINT_MINUTES="0")
    (work,) = (folder / "work" / "boxsup").glob("boxes-*/")
    assert {p.name for p in work.glob("*-0*.parquet")} == {
        "choices-0000.parquet", "choices-0002.parquet", "labels-0002.parquet",
    }  # fmt: skip
    if lost:
        (work / lost).unlink()
    repro(folder, "boxsup@boxes")
    assert digests(folder) == expected


def test_choices_lost_within_a_round_are_not_made_again_by_another_network(unbroken, tmp_path):
    template = unbroken[0]
    folder = killed(template, tmp_path, "checkpoint.pt:14", PIPELINE_CHECKPOINT_MINUTES="0")
    (work,) = (folder / "work" / "boxsup").glob("boxes-*/")
    (work / "choices-0002.parquet").unlink()
    again = dvc(folder, "repro", "boxsup@boxes")
    assert again.returncode != 0
    assert "choices-0002.parquet: gone or damaged, but the training has learned" in again.stdout


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
