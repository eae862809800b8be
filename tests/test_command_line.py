"""The command line: exit codes, and one clear message where it cannot go on."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scratch import PARAMS
from torch import nn

from pipeline import catalogue
from pipeline.__main__ import main
from pipeline.errors import PlaceByHand
from pipeline.masks import encode_index_png
from pipeline.tables import write_table
from pipeline.training import save_checkpoint
from pipeline.work import open_work

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project folder with parameters, the place where commands are typed."""
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "old", "new", "said"),
    [
        (["train", "mask"], "momentum:", "momentun:", "semantic.mask.momentun is unknown"),
        (["train", "mask"], "seed: 0", "seed:", "semantic.mask.seed is null"),
        (["train", "nosuch"], "", "", "semantic.nosuch is not there; choose one of: mask"),
        (["predict", "nosuch"], "", "", "evaluations.nosuch is not there; choose one of: mask"),
        (["boxsup", "mask"], "", "", "boxsup.mask is not there; choose one of: none are active"),
        (["train", "mask"], "", "", "data/prepared/sample: not there"),
        (["prepare", "sample"], "", "", "sample.manifest.json"),
        (["train", "mask"], "split: train_aug", "split: [", "not valid YAML"),
    ],
)
def test_bad_input_ends_with_2_and_names_what_is_wrong(folder, capsys, command, old, new, said):
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace(old, new, 1))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")


def test_a_file_to_be_placed_by_hand_ends_with_3(folder, capsys, monkeypatch):
    def unreachable(*_):
        raise PlaceByHand("put a.tar at data/raw/a.tar")

    monkeypatch.setattr("pipeline.stages.fetch.fetch", unreachable)
    assert main(["fetch", "sample"]) == 3
    assert "put a.tar at data/raw/a.tar" in capsys.readouterr().err


def rows():
    return [{"step": 0, "epoch": 0, "name": "loss", "value": float(i)} for i in range(100_000)]


def checkpoint(path):
    network = nn.Linear(1000, 1000)
    save_checkpoint(path, network=network, optimizer=None, step=0, run={}, categories=[])


def published(path):
    with open_work(Path(), stage="train", key="mask", sections=["semantic"], inputs=[]) as work:
        (work.folder / "model.pt").write_bytes(bytes(100_000))
        work.publish({work.folder / "model.pt": path})


@pytest.mark.parametrize(
    "write", [lambda path: write_table(path, "history", rows()), checkpoint, published]
)
def test_a_full_disk_is_told_and_loses_nothing(folder, capsys, monkeypatch, write):
    place = folder / "data" / "models" / "mask.pt"
    place.parent.mkdir(parents=True)
    place.write_text("made before")

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr("pipeline.stages.report.report", lambda root, params: write(place))
    assert main(["report"]) == 2
    error = capsys.readouterr().err
    assert "the disk is full" in error
    assert place.read_text() == "made before"


def test_other_failures_of_the_system_are_not_called_a_full_disk(folder, monkeypatch):
    def broken(root, params):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr("pipeline.stages.report.report", broken)
    with pytest.raises(OSError, match="broken"):
        main(["report"])


def test_every_command_of_the_documents_exists(tmp_path):
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/VOC.md"))
    targets = re.findall(r"^\s+make ([\w-]+)|`make ([\w-]+)`", text, flags=re.M)
    assert {"test", "repro", "up", "unstick"} <= {a or b for a, b in targets}
    for target in (a or b for a, b in targets):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"python -m pipeline ([\w-]+)", text))
    assert "activate" in commands
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
    shutil.copytree(ROOT / "params", tmp_path / "params")
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    for name in set(re.findall(r"\b(?:sample|wu2016|dai2015)/\w+", text)):
        catalogue.dry_run(tmp_path, [name])


def test_help_lists_the_commands():
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for command in ("train", "boxsup", "activate", "study", "prune", "paper-map"):
        assert command in done.stdout


def test_a_second_process_for_the_same_work_ends_with_2_and_names_the_first(folder, capsys):
    with open_work(Path(), stage="weights", key="none", sections=["weights"], inputs=[]):
        assert main(["weights", "none"]) == 2
    assert f"process {os.getpid()} is at work on weights none" in capsys.readouterr().err
    assert main(["weights", "none"]) == 0


def test_a_reader_that_goes_away_is_no_fault_and_the_files_are_written(tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    (maps / "a.png").write_bytes(encode_index_png(np.zeros((2, 3), np.uint8)))
    command = [sys.executable, "-m", "pipeline", "score", "semantic", "--categories", "voc"]
    command += ["--truth", str(maps), "--predicted", str(maps), "--json", str(tmp_path / "j")]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "j").is_file()


def test_a_folder_without_permission_and_a_name_too_long_are_told_without_a_traceback(
    tmp_path, capsys, monkeypatch
):
    (tmp_path / "a.png").write_bytes(encode_index_png(np.zeros((2, 3), np.uint8)))
    maps = ["--truth", str(tmp_path), "--predicted", str(tmp_path)]
    names = ",".join(["background"] * 60)
    assert main(["score", "semantic", "--categories", names, *maps]) == 2
    assert "no file, and none of the known lists" in capsys.readouterr().err
    long = str(tmp_path / ("x" * 300))
    assert main(["score", "semantic", "--categories", "voc", *maps, "--json", long]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}")

    def refuse(given):
        raise PermissionError(errno.EACCES, "Permission denied", "/locked/file")

    monkeypatch.setattr("pipeline.scoring.command_line.score", refuse)
    assert main(["score", "semantic", "--categories", "voc", *maps]) == 2
    assert "/locked/file: permission denied" in capsys.readouterr().err


def test_an_interruption_ends_with_130_and_one_line(capsys, monkeypatch):
    def interrupt(given):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.scoring.command_line.score", interrupt)
    command = ["score", "semantic", "--categories", "voc", "--truth", "a", "--predicted", "b"]
    assert main(command) == 130
    error = capsys.readouterr().err
    assert error.startswith("interrupted") and error.count("\n") == 1
