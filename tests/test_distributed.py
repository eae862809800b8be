"""Processes that train together do what one would: on the CPU, two that talk by gloo."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from scratch import PARAMS, environment, make_project

from pipeline.checkpoints import build_network
from pipeline.errors import BadInput
from pipeline.fitting import STOPPED, Round, fit, labels_round
from pipeline.losses import bootstrapped_cross_entropy
from pipeline.machine import chosen_device
from pipeline.parallel import own_share, tell, training_processes, whole_batch
from pipeline.params_file import build, read_yaml
from pipeline.params_training import SemanticRun, ThreshMinKept, TopK
from pipeline.tables import read_table
from pipeline.training import load_checkpoint

CPU = torch.device("cpu")
IDS = [f"image{i}" for i in range(7)]


# --- the first steps ----------------------------------------------------------------------------
def image_of(image_id):
    return np.random.default_rng(int(image_id[-1])).integers(0, 255, (40, 40, 3), np.uint8)


def label_map_of(image_id):
    rng = np.random.default_rng([int(image_id[-1]), 1])
    return rng.integers(0, 9, (5, 5), np.uint8).repeat(8, 0).repeat(8, 1)


def labels_of_round(run: SemanticRun, network, epoch) -> Round:
    return labels_round(
        run,
        network,
        image_of=image_of,
        label_map_of=label_map_of,
        measure=lambda: {"label_mean_area": 1.0},
    )


def train(folder: Path, run: SemanticRun) -> None:
    folder.mkdir(exist_ok=True)
    network = build_network(run.network, 9, seed=run.seed)
    fit(
        folder,
        run,
        network,
        ids=IDS,
        categories=tuple("abcdefghi"),
        loss=partial(bootstrapped_cross_entropy, bootstrapping=run.bootstrapping),
        round_of=partial(labels_of_round, run),
        round_epochs=2,
        device=CPU,
    )


def train_as_one_of_two(rank: int, folder: Path, runs: list[SemanticRun]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for number, run in enumerate(runs):
        train(folder / f"two{number}", run)
    assert tell("from the first" if rank == 0 else "", CPU) == "from the first"
    dist.destroy_process_group()


def parameters(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in state.values()])


def test_two_processes_take_the_steps_of_one(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    entry = read_yaml(tmp_path / "params.yaml")["semantic"]["mask"]
    entry |= {"epochs": 4, "batch": 3, "lr": 0.02, "batch_norm": "frozen"}  # shares of 1 and 2
    entry |= {"augmentation": entry["augmentation"] | {"crop": [32, 32]}}
    run = build(SemanticRun, entry, "params.yaml", "semantic.mask")
    rules = [
        TopK("topk", 5, "crop"),
        TopK("topk", 20, "device_batch"),
        ThreshMinKept("thresh_minkept", 0.11, 5, "device_batch"),
    ]
    runs = [replace(run, bootstrapping=rule) for rule in rules]
    multiprocessing.spawn(train_as_one_of_two, args=(tmp_path, runs), nprocs=2)
    losses = []
    for number, each in enumerate(runs):
        train(tmp_path / f"one{number}", each)
        one, two = (tmp_path / f"{name}{number}" for name in ("one", "two"))
        ours, theirs = (read_table(f / "history.parquet", "history") for f in (two, one))
        assert ours[["step", "epoch", "name"]].equals(theirs[["step", "epoch", "name"]])
        assert (ours["name"] == "loss").sum() == 8
        np.testing.assert_allclose(ours["value"], theirs["value"], rtol=1e-4)
        losses.append(theirs.loc[theirs["name"] == "loss", "value"].tolist())
        begun = parameters(build_network(each.network, 9, seed=each.seed).state_dict())
        moved = parameters(load_checkpoint(one / "model.pt", CPU)["network"])
        ours_moved = parameters(load_checkpoint(two / "model.pt", CPU)["network"])
        assert (ours_moved - moved).norm() < 2e-3 * (moved - begun).norm()
    assert len({tuple(run) for run in losses}) == 3  # the rules do differ


def test_one_process_has_all_of_the_batch():
    assert own_share(5) == range(5)
    part = torch.zeros(5, 2)
    assert whole_batch(part, 5) is part
    assert tell("to itself", CPU) == "to itself"


# --- the device ---------------------------------------------------------------------------------
def test_a_gpu_asked_for_where_there_is_none_is_bad_input(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device() == CPU
    monkeypatch.setenv("PIPELINE_DEVICE", "cuda")
    with pytest.raises(BadInput, match="finds no GPU"):
        chosen_device()
    monkeypatch.setenv("PIPELINE_DEVICE", "tpu")
    with pytest.raises(BadInput, match="choose one of: cpu, cuda"):
        chosen_device()


def test_a_gpu_is_taken_where_there_is_one_unless_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device().type == "cuda"
    monkeypatch.setenv("PIPELINE_DEVICE", "cpu")
    assert chosen_device() == CPU


@pytest.mark.parametrize(
    ("said", "device", "message"),
    [("two", "cpu", "whole number"), ("0", "cpu", "at least 1"), ("9", "cuda", "there are 2 GPUs")],
)
def test_a_senseless_number_of_processes_is_bad_input(monkeypatch, said, device, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("PIPELINE_PROCESSES", said)
    with (
        pytest.raises(BadInput, match=message),
        training_processes(torch.device(device), ["train", "mask"]),
    ):
        pass


# --- the whole command --------------------------------------------------------------------------
FROZEN = PARAMS.replace("batch_norm: train", "batch_norm: frozen").replace("lr: 0.1", "lr: 0.02")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = make_project(tmp_path_factory.mktemp("distributed") / "project", FROZEN)
    for command in (["fetch", "sample"], ["prepare", "sample"], ["weights", "none"]):
        ended(pipeline(folder, *command), 0)
    return folder


def pipeline(
    folder: Path, *command: str, start: Sequence[str] = (), **extra: str
) -> subprocess.Popen[str]:
    """`python -m pipeline <command>`, or by what `start` says, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *(start or ["pipeline"]), *command],
        cwd=folder,
        env=environment(PYTHONPATH=str(folder), PIPELINE_DEVICE="cpu", **extra),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], code: int) -> str:
    """The output of a process that must end so."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def losses(folder: Path) -> np.ndarray:
    history = read_table(folder / "data" / "models" / "mask.history.parquet", "history")
    return history.loc[history["name"] == "loss", "value"].to_numpy()


def begin_anew(folder: Path) -> None:
    for work in (folder / "work" / "train").glob("mask-*"):
        shutil.rmtree(work)


def begin(
    folder: Path, lr: str, start: Sequence[str] = ()
) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A training by two processes that has kept its first checkpoint, and what it started."""
    text = FROZEN.replace("lr: 0.02", f"lr: {lr}").replace("epochs: 8", "epochs: 16")
    (folder / "params.yaml").write_text(text)
    begin_anew(folder)
    often = {"PIPELINE_PROCESSES": "2", "PIPELINE_CHECKPOINT_MINUTES": "0"}
    began = pipeline(folder, "train", "mask", start=start, **often)
    until = time.monotonic() + 240
    while not list(folder.glob("work/train/*/checkpoint.pt")):
        assert time.monotonic() < until and began.poll() is None, began.communicate()[0]
        time.sleep(0.02)
    started = [p for p in psutil.Process(began.pid).children() if "train" in p.cmdline()]
    return began, started


def assert_ended(processes: list[psutil.Process]) -> None:
    assert psutil.wait_procs(processes, timeout=60)[1] == []


def model(folder: Path) -> bytes:
    return (folder / "data" / "models" / "mask.pt").read_bytes()


def two(folder: Path, **extra: str) -> bytes:
    """The model that two processes train, from what lies there or from the start."""
    ended(pipeline(folder, "train", "mask", PIPELINE_PROCESSES="2", **extra), 0)
    return model(folder)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["first", "second"])
def test_who_is_told_to_stop_stops_all_and_all_go_on(project, whom):
    began, (second,) = begin(project, "0.01")
    os.kill(began.pid if whom == "first" else second.pid, signal.SIGTERM)
    assert "Traceback" not in ended(began, STOPPED)
    assert_ended([second])
    went_on, together = two(project), losses(project)
    begin_anew(project)
    assert two(project) == went_on
    begin_anew(project)
    ended(pipeline(project, "train", "mask"), 0)
    np.testing.assert_allclose(together[:8], losses(project)[:8], rtol=1e-3)
    assert len(together) == len(losses(project))


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipeline")


@pytest.mark.slow
def test_torchrun_starts_them_as_well_and_they_end_with_it(project):
    began, both = begin(project, "0.013", TORCHRUN)
    assert len(both) == 2
    began.kill()
    assert_ended(both)
    began.communicate()
    ended(pipeline(project, "train", "mask", start=TORCHRUN), 0)
    by_torchrun = model(project)
    begin_anew(project)
    assert two(project) == by_torchrun


@pytest.mark.slow
def test_all_end_when_one_is_killed_and_go_on(project):
    began, (second,) = begin(project, "0.011")
    second.kill()
    output = ended(began, 128 + signal.SIGKILL)
    assert "was ended by SIGKILL" in output and "Traceback" not in output, output
    began, started = begin(project, "0.011")
    began.kill()
    assert_ended(started)
    assert "Traceback" not in began.communicate()[0]
    went_on = two(project)
    begin_anew(project)
    assert two(project) == went_on


@pytest.mark.slow
def test_ctrl_c_ends_all_and_is_said_once(project):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background
    try:
        began, started = begin(project, "0.012")
    finally:
        signal.signal(signal.SIGINT, before)
    os.killpg(began.pid, signal.SIGINT)
    output = ended(began, 130)
    assert output.count("interrupted; run it again") == 1 and "Traceback" not in output, output
    assert_ended(started)


@pytest.mark.slow
def test_what_is_wrong_for_all_is_said_once(project):
    (project / "params.yaml").write_text(FROZEN.replace("lr: 0.02", "lr: 1.0e+30"))
    output = ended(pipeline(project, "train", "mask", PIPELINE_PROCESSES="2"), 2)
    assert output.count("the loss is") == 1 and "Traceback" not in output, output
    (project / "params.yaml").write_text(FROZEN)
    output = ended(pipeline(project, "train", "mask", PIPELINE_PROCESSES="3"), 2)
    assert output.count("a batch of 2 cannot be shared by 3 processes") == 1, output
    assert "Traceback" not in output, output
