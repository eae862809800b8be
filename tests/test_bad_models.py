"""Models and trainings that cannot be: one clear message each, and nothing is lost."""

import errno
import pickle
import resource
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
from scratch import IDS, PARAMS, image_of, tiny_run
from torch import nn

from pipeline.__main__ import main
from pipeline.checkpoints import build_network, load_model, start_from
from pipeline.errors import BadInput
from pipeline.fitting import fit, labels_round
from pipeline.losses import bootstrapped_cross_entropy
from pipeline.memory import bytes_kept, memory_as_input, need_memory
from pipeline.params_file import build, read_yaml
from pipeline.params_training import Augmentation, SemanticRun
from pipeline.training import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")
CATEGORIES = tuple("abcdefghi")


@pytest.fixture
def run(tmp_path):
    return tiny_run(tmp_path)


def label_map_of(image_id):
    return np.full((40, 40), int(image_id[-1]), np.uint8)


def train(folder, run, event=lambda epoch: None):
    """Rounds of two epochs; `event(epoch)` happens when one starts. Returns the model's bytes."""

    def labels_of_round(network, epoch):
        event(epoch)
        return labels_round(run, network, image_of=image_of, label_map_of=label_map_of)

    folder.mkdir(exist_ok=True)
    fit(
        folder,
        run,
        build_network(run.network, len(CATEGORIES), seed=run.seed),
        ids=IDS,
        categories=CATEGORIES,
        loss=partial(bootstrapped_cross_entropy, bootstrapping=run.bootstrapping),
        round_of=labels_of_round,
        round_epochs=2,
        device=CPU,
    )
    return (folder / "model.pt").read_bytes()


# --- files that hold code ------------------------------------------------------------------------
class Code:
    """Pickled, it asks for a file to be made when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def with_code(path: Path, form: str) -> Path:
    """A checkpoint with code in it. Returns the file that the code would make."""
    mark = path.with_name("ran")
    saved = {"network": {"weight": Code(mark)}, "optimizer": None, "step": 0}
    if form == "pickle":
        path.write_bytes(pickle.dumps(saved))
    else:
        torch.save(saved, path, _use_new_zipfile_serialization=form == "archive")
    return mark


FORMS = ["archive", "older", "pickle"]


@pytest.mark.parametrize("form", FORMS)
def test_the_code_does_run_where_it_is_let(tmp_path, form):
    mark = with_code(tmp_path / "m.pt", form)
    if form == "pickle":
        pickle.loads((tmp_path / "m.pt").read_bytes())
    else:
        torch.load(tmp_path / "m.pt", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_with_code_in_it_is_refused_and_nothing_runs(tmp_path, run, form):
    mark = with_code(tmp_path / "m.pt", form)
    network = build_network(run.network, 9, seed=0)
    said = r"m\.pt: holds more than weights: objects of a program, or code, which is not run; "
    for load in (
        lambda: load_checkpoint(tmp_path / "m.pt", CPU),
        lambda: load_model(tmp_path / "m.pt", CPU),
        lambda: start_from(tmp_path / "m.pt", network, CATEGORIES),
    ):
        with pytest.raises(BadInput, match=said + "make it anew, or name a checkpoint"):
            load()
    assert not mark.exists()


@pytest.mark.parametrize("form", FORMS)
def test_segment_refuses_it_too(tmp_path, capsys, form):
    mark = with_code(tmp_path / "m.pt", form)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), image_of("image1"))
    places = ["--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    assert main(["segment", str(tmp_path / "m.pt"), *places]) == 2
    assert "code, which is not run" in capsys.readouterr().err
    assert not mark.exists() and not (tmp_path / "out").exists()


# --- files that are no checkpoint ----------------------------------------------------------------
def text(path: Path) -> None:
    path.write_text("a letter")


def picture(path: Path) -> None:
    path.write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes())


def plain_zip(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    path.with_suffix(".npz").rename(path)


def foreign(path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), path)


@pytest.mark.parametrize("write", [text, picture, plain_zip, foreign, lambda path: path.touch()])
def test_a_file_that_is_no_checkpoint_is_told(tmp_path, write):
    write(tmp_path / "m.pt")
    with pytest.raises(BadInput, match=r"m\.pt: not a (readable file of weights|checkpoint)") as e:
        load_model(tmp_path / "m.pt", CPU)
    assert str(e.value).endswith("; make it anew, or name a checkpoint of this project")
    assert "\n" not in str(e.value)


# --- models of other categories or networks ------------------------------------------------------
def test_an_evaluation_by_a_model_of_other_categories_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    run = build(SemanticRun, read_yaml(Path("params.yaml"))["semantic"]["mask"], "", "")
    assert main(["fetch", "sample"]) == 0 and main(["prepare", "sample"]) == 0
    network = build_network(run.network, 21, seed=0)
    save_checkpoint(
        tmp_path / "data" / "models" / "mask.pt", network=network, optimizer=None, step=1,
        run=asdict(run), categories=[f"category{i}" for i in range(21)],
    )  # fmt: skip
    capsys.readouterr()
    assert main(["predict", "mask"]) == 2
    assert "evaluations.mask: mask knows 21 categories, sample has" in capsys.readouterr().err


def test_a_model_of_another_depth_is_no_start(tmp_path, run):
    other = build_network(replace(run.network, depth=8), 9, seed=0)
    path = tmp_path / "m.pt"
    save_checkpoint(
        path, network=other, optimizer=None, step=1,
        run=asdict(replace(run, network=replace(run.network, depth=8))), categories=CATEGORIES,
    )  # fmt: skip
    network = build_network(run.network, 9, seed=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(BadInput, match=r"m\.pt: its weights do not fit this network") as caught:
        start_from(path, network, CATEGORIES)
    assert "choose an `init` of the same network" in str(caught.value)
    assert before.keys() == network.state_dict().keys()


# --- a damaged checkpoint of an unfinished training ----------------------------------------------
def stop_at_2(epoch):
    if epoch == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["checkpoint.pt", "history.parquet"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_work_is_told_and_the_rest_of_it_stays(tmp_path, run, name, damage):
    expected = train(tmp_path / "unbroken", run)
    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train(folder, run, stop_at_2)
    (folder / "choices-0000.parquet").write_text("what a label step decided")
    if damage == "cut":
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    else:
        (folder / name).unlink()
    if (name, damage) != ("checkpoint.pt", "gone"):  # without one a training begins
        with pytest.raises(
            BadInput, match="delete this file and run again: the training then begi"
        ):
            train(folder, run)
        (folder / "checkpoint.pt").unlink()
    assert (folder / "choices-0000.parquet").read_text() == "what a label step decided"
    assert train(folder, run) == expected


# --- a full disk ---------------------------------------------------------------------------------
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_up_leaves_the_checkpoint_before_and_no_half_file(tmp_path, run):
    expected = train(tmp_path / "unbroken", run)
    folder = tmp_path / "broken"
    half = folder / ".checkpoint.pt.partial"

    def fill(epoch):
        if epoch == 2:
            half.symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space left") as caught:
        train(folder, run, fill)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(folder / "checkpoint.pt")
    assert not half.is_symlink()
    assert load_checkpoint(folder / "checkpoint.pt", CPU)["step"] == 4
    assert train(folder, run) == expected


@pytest.mark.parametrize("most", [0, 1000, 1_000_000])
def test_a_write_that_fails_midway_is_told_with_its_file(tmp_path, run, most):
    network = build_network(run.network, 9, seed=0)
    parts = {"network": network, "optimizer": None, "step": 1, "run": {}, "categories": []}
    save_checkpoint(tmp_path / "m.pt", **parts)
    before = (tmp_path / "m.pt").read_bytes()
    assert len(before) > 1_000_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_checkpoint(tmp_path / "m.pt", **parts | {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "m.pt")
    assert (tmp_path / "m.pt").read_bytes() == before
    assert [path.name for path in tmp_path.glob("*m.pt*")] == ["m.pt"]


# --- memory --------------------------------------------------------------------------------------
def test_what_is_kept_for_the_backward_pass_is_counted():
    network = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 7, 1))
    images = torch.zeros(2, 3, 6, 8)
    # the images, and 5 channels that ReLU and the second convolution both look at
    assert bytes_kept(partial(network, images), network.parameters()) == 4 * 2 * 6 * 8 * (3 + 5)


@pytest.mark.parametrize("frozen", ["train", "frozen"])
def test_a_crop_larger_than_memory_is_refused_before_the_first_step(tmp_path, run, frozen):
    large = replace(
        run, augmentation=Augmentation((40_000, 40_000), (1.0, 1.0), "none"), batch_norm=frozen
    )
    said = r"a step needs more than \d+ GiB .* smaller augmentation.crop \(it is 40000x40000\) or"
    with pytest.raises(BadInput, match=said):
        train(tmp_path / "run", large)
    assert list((tmp_path / "run").iterdir()) == []


def test_memory_is_needed_for_each_image_and_pixel_and_less_in_bf16(run, monkeypatch):
    network = build_network(run.network, 9, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    drawn = torch.get_rng_state()
    whole = replace(run, augmentation=Augmentation((96, 128), (1.0, 1.0), "none"))
    kept = [
        bytes_kept(partial(network, torch.zeros(n, 3, 96, 128)), network.parameters())
        for n in (1, 4)
    ]
    needed = (kept[1] - kept[0]) // 3

    def fits(there, images, run=whole):
        memory = psutil.virtual_memory()._replace(total=there)
        with monkeypatch.context() as patched:
            patched.setattr(psutil, "virtual_memory", lambda: memory)
            try:
                need_memory(network, run, images)
            except BadInput:
                return False
        return True

    network.load_state_dict(before)
    assert fits(6 * needed, 6) and not fits(6 * needed - 6, 6) and fits(6 * needed - 6, 5)
    half = replace(whole, precision="bf16")
    assert fits(4 * needed, 6, half) and not fits(2 * needed, 6, half)
    assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.zeros(1 << 50),
        lambda: np.zeros(1 << 50),
        lambda: cv2.warpAffine(np.zeros((4, 4, 4), np.uint8), np.eye(2, 3), (400_000, 4_000_000)),
    ],
    ids=["torch", "numpy", "OpenCV"],
)
def test_memory_that_runs_out_in_a_step_is_bad_input(run, allocate):
    with pytest.raises(BadInput, match=r"memory ran out .* or batch \(it is 2\)"):
        with memory_as_input(run):
            allocate()


def test_other_faults_are_not_taken_for_a_lack_of_memory(run):
    with pytest.raises(RuntimeError, match="wrong shape"):
        with memory_as_input(run):
            raise RuntimeError("wrong shape")


def test_a_crop_larger_than_every_image_trains_on_what_there_is(tmp_path, run):
    wide = replace(run, epochs=1, augmentation=Augmentation((64, 96), (1.0, 1.0), "none"))
    train(tmp_path / "run", wide)
    saved = load_checkpoint(tmp_path / "run" / "model.pt", CPU)
    assert all(value.isfinite().all() for value in saved["network"].values())
    fresh = build_network(run.network, 9, seed=run.seed).state_dict()
    assert any(not torch.equal(saved["network"][name], fresh[name]) for name in fresh)


# --- how often a checkpoint is written -----------------------------------------------------------
def kept_steps(folder, run, monkeypatch):
    steps = []

    def save(path, *, step, **others):
        steps.append(step)
        save_checkpoint(path, step=step, **others)

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.fitting.save_checkpoint", save)
        train(folder, run)
    return steps


def test_the_user_says_how_often_and_the_result_is_the_same(tmp_path, run, monkeypatch):
    assert kept_steps(tmp_path / "a", run, monkeypatch) == [2, 4, 6, 8, 8]  # by epoch; the model
    monkeypatch.setenv("PIPELINE_CHECKPOINT_MINUTES", "0")
    assert kept_steps(tmp_path / "b", run, monkeypatch) == [*range(1, 9), 8]
    assert (tmp_path / "a" / "model.pt").read_bytes() == (tmp_path / "b" / "model.pt").read_bytes()


@pytest.mark.parametrize("said", ["-1", "often", "nan", "inf"])
def test_a_senseless_number_of_minutes_is_bad_input(tmp_path, run, monkeypatch, said):
    monkeypatch.setenv("PIPELINE_CHECKPOINT_MINUTES", said)
    with pytest.raises(BadInput, match=f"PIPELINE_CHECKPOINT_MINUTES is '{said}'; give a number"):
        train(tmp_path / "run", run)
