"""Order of samples, rates, steps, resuming, checkpoints."""

import functools
import multiprocessing
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import BadInput
from pipeline.losses import bootstrapped_cross_entropy
from pipeline.models.fcrn import fcrn
from pipeline.params_training import (
    AllPixels,
    Augmentation,
    LinearSchedule,
    PolySchedule,
    StepSchedule,
)
from pipeline.training import (
    TrainingSet,
    batches,
    labelled_view,
    learning_rate,
    load_checkpoint,
    resume,
    save_checkpoint,
    set_learning_rate,
    sgd,
    steps_unseen,
    train_steps,
)
from pipeline.transforms import normalise

CPU = torch.device("cpu")
STILL = Augmentation((32, 32), (1.0, 1.0), "none")
MOVING = Augmentation((32, 32), (0.8, 1.25), "both")
IDS = [f"image{i}" for i in range(8)]


# --- samples -----------------------------------------------------------------------------------
def square(image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """A bright square on a dark ground: category 1 where red, 2 where blue."""
    number = int(image_id.removeprefix("image"))
    rng = np.random.default_rng(number)
    image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
    label_map = np.zeros((32, 32), np.uint8)
    y, x = rng.integers(0, 16, 2)
    image[y : y + 16, x : x + 16, 2 * (number % 2)] = 220
    label_map[y : y + 16, x : x + 16] = 1 + number % 2
    return image, label_map


def image_of(image_id: str) -> np.ndarray:
    return square(image_id)[0]


def label_map_of(image_id: str) -> np.ndarray:
    return square(image_id)[1]


def training_set(count: int = 8, batch: int = 4, augmentation: Augmentation = MOVING, seed=0):
    sample_of = partial(
        labelled_view,
        image_of=image_of,
        label_map_of=label_map_of,
        augmentation=augmentation,
        stride=8,
        grid="centres",
    )
    return TrainingSet(ids=IDS[:count], sample_of=sample_of, batch=batch, seed=seed)


def loader(samples: TrainingSet, first_step: int, last_step: int, workers: int = 0):
    return batches(samples, first_step=first_step, last_step=last_step, workers=workers, device=CPU)


def test_every_epoch_shows_every_image_once_in_a_new_order():
    samples = training_set()
    epochs = [samples.image_ids(2 * e) + samples.image_ids(2 * e + 1) for e in range(6)]
    assert all(sorted(epoch) == IDS for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert epochs != [training_set(seed=1).image_ids(2 * e) for e in range(6)]


def test_images_that_do_not_fill_a_batch_are_left_out():
    samples = training_set(count=7, batch=3)
    assert samples.steps_per_epoch == 2
    epoch = samples.image_ids(0) + samples.image_ids(1)
    assert len(set(epoch)) == 6


def test_fewer_images_than_a_batch_are_gone_through_again():
    samples = training_set(count=3, batch=8)
    assert samples.steps_per_epoch == 1
    shown = samples.image_ids(0)
    assert len(shown) == 8 and shown[:3] == shown[3:6]
    assert sorted(shown[:3]) == IDS[:3]


def test_no_images_at_all_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        training_set(count=0)


def test_a_sample_is_a_function_of_its_number():
    view, labels = training_set()[13]
    assert view.shape == (32, 32, 3) and labels.shape == (4, 4)
    fresh = training_set()
    fresh[2]
    again = fresh[13]
    assert np.array_equal(view, again[0]) and np.array_equal(labels, again[1])
    assert not np.array_equal(view, training_set(seed=1)[13][0])


def test_an_image_is_seen_in_another_view_each_time():
    samples = training_set(count=1, batch=1)
    views = [samples[n][0].tobytes() for n in range(5)]
    assert len(set(views)) == 5


def test_an_unmoved_sample_is_the_image_and_its_labels_at_the_cells_centres():
    samples = training_set(augmentation=STILL)
    view, labels = samples[5]
    image, label_map = square(samples.image_id(5))
    assert np.array_equal(view, image)
    assert np.array_equal(labels, label_map[4::8, 4::8])


def test_worker_processes_prepare_the_same_batches_and_none_is_left():
    alone = list(loader(training_set(), 3, 7))
    helped = list(loader(training_set(), 3, 7, workers=1))
    assert len(alone) == 4
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    for _ in loader(training_set(), 0, 100, workers=1):
        break
    assert multiprocessing.active_children() == []


def test_a_worker_lives_through_the_signal_that_stops_a_group():
    iterator = iter(loader(training_set(), 0, 50, workers=1))
    next(iterator)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGINT)
    assert sum(1 for _ in iterator) == 49
    del iterator
    assert multiprocessing.active_children() == []


def test_drawing_batches_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    list(loader(training_set(), 0, 2))
    list(loader(training_set(), 0, 2, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


# --- rates -------------------------------------------------------------------------------------
def rates(schedule, steps: int, steps_per_epoch: int = 1) -> list[float]:
    return [
        learning_rate(s, steps=steps, steps_per_epoch=steps_per_epoch, lr=8.0, schedule=schedule)
        for s in range(steps)
    ]


def test_linear_rate_falls_to_zero_after_its_warm_up():
    assert rates(LinearSchedule("linear", 0), 4) == [8, 6, 4, 2]
    assert rates(LinearSchedule("linear", 2), 4) == [8 / 2, 6, 4, 2]
    assert rates(LinearSchedule("linear", 4), 4) == [8 / 4, 6 * 2 / 4, 4 * 3 / 4, 2]


def test_step_rate_falls_by_its_factor_after_so_many_epochs():
    assert rates(StepSchedule("step", 2, 0.5), 10, 2) == [8, 8, 8, 8, 4, 4, 4, 4, 2, 2]


def test_poly_rate():
    assert rates(PolySchedule("poly", 2.0), 4) == [8, 8 * 9 / 16, 8 / 4, 8 / 16]


def test_biases_and_betas_do_not_decay_and_have_their_own_rate():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    optimizer = sgd(
        network, lr=0.5, momentum=0.0, nesterov=False, weight_decay=0.1, bias_lr_factor=2.0
    )
    set_learning_rate(optimizer, 0.25)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in network.named_parameters():
        if name.endswith("bias"):
            expected = before[name] - 0.5
        else:
            expected = before[name] - 0.25 * (1 + 0.1 * before[name])
        torch.testing.assert_close(p.detach(), expected)


def test_every_parameter_is_in_one_group():
    network = fcrn(depth=14, stride=8, kernel=3, dilation=4, num_categories=3)
    optimizer = sgd(
        network, lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.1, bias_lr_factor=1.0
    )
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    added = {id(p) for p in optimizer.param_groups[1]["params"]}
    names = {name for name, p in network.named_parameters() if id(p) in added}
    assert names == {n for n, _ in network.named_parameters() if n.endswith("bias")}


# --- steps -------------------------------------------------------------------------------------
STEPS = 12
LOSS = functools.partial(bootstrapped_cross_entropy, bootstrapping=AllPixels("off"))


def new_network():
    torch.manual_seed(0)
    network = fcrn(depth=14, stride=8, kernel=3, dilation=2, num_categories=3).train()
    optimizer = sgd(
        network, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, bias_lr_factor=2.0
    )
    return network, optimizer


def rate(step: int) -> float:
    return learning_rate(
        step, steps=STEPS, steps_per_epoch=2, lr=0.05, schedule=LinearSchedule("linear", 3)
    )


def train(network, optimizer, data, first_step, history, on_step=lambda done: False, **changes):
    arguments = {
        "steps_per_epoch": 2,
        "rate": rate,
        "loss": LOSS,
        "image_ids": training_set().image_ids,
        "batch": 4,
        "at_once": 4,
        "seed": 0,
        "device": CPU,
        "precision": "fp32",
    }
    return train_steps(
        network,
        optimizer,
        data,
        first_step=first_step,
        history=history,
        on_step=on_step,
        **(arguments | changes),
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_going_on_at_any_step_gives_the_same_bits(tmp_path, precision):
    path = tmp_path / "model.pt"
    whole, optimizer = new_network()
    unbroken: list[dict] = []
    train(whole, optimizer, loader(training_set(), 0, STEPS), 0, unbroken, precision=precision)
    for stop in (1, 5, 11):
        network, optimizer = new_network()
        history: list[dict] = []
        data = loader(training_set(), 0, STEPS)
        done = train(network, optimizer, data, 0, history, stop.__eq__, precision=precision)
        assert done == stop
        save_checkpoint(
            path, network=network, optimizer=optimizer, step=done, run={}, categories=["a"]
        )
        torch.manual_seed(99)
        network = fcrn(depth=14, stride=8, kernel=3, dilation=2, num_categories=3).train()
        optimizer = sgd(
            network, lr=1.0, momentum=0.9, nesterov=True, weight_decay=5e-4, bias_lr_factor=2.0
        )
        done = resume(load_checkpoint(path, CPU), network, optimizer)
        data = loader(training_set(), done, STEPS)
        assert train(network, optimizer, data, done, history, precision=precision) == STEPS
        assert history == unbroken
        for name, value in whole.state_dict().items():
            assert torch.equal(network.state_dict()[name], value), name


def test_a_small_network_overfits_eight_images():
    network, optimizer = new_network()
    history: list[dict] = []
    data = loader(training_set(augmentation=STILL), 0, 80)
    train(network, optimizer, data, 0, history, rate=lambda step: 0.05)
    losses = [row["value"] for row in history if row["name"] == "loss"]
    assert losses[0] == pytest.approx(np.log(3))
    assert np.mean(losses[-4:]) < 0.02
    network.eval()
    images, truth = next(iter(loader(training_set(augmentation=STILL, batch=8), 0, 1)))
    with torch.inference_mode():
        predicted = network(normalise(images)).argmax(1)
    assert (predicted == truth).float().mean() > 0.95


def test_the_history_tells_loss_and_rate_of_each_step():
    network, optimizer = new_network()
    history: list[dict] = []
    train(network, optimizer, loader(training_set(), 3, 5), 3, history)
    assert [(r["step"], r["epoch"], r["name"]) for r in history] == [
        (3, 1, "loss"),
        (3, 1, "lr"),
        (4, 2, "loss"),
        (4, 2, "lr"),
    ]
    assert [r["value"] for r in history[1::2]] == [rate(3), rate(4)]


def test_a_loss_that_is_not_finite_names_the_images_of_its_batch():
    network, optimizer = new_network()
    samples = training_set()

    def loss(logits, truth):
        return LOSS(logits, truth) * (float("nan") if len(history) == 4 else 1.0)

    history: list[dict] = []
    with pytest.raises(BadInput, match="step 2: the loss is nan") as caught:
        train(network, optimizer, loader(samples, 0, 6, workers=1), 0, history, loss=loss)
    assert all(image_id in str(caught.value) for image_id in samples.image_ids(2))
    assert len(history) == 4
    assert multiprocessing.active_children() == []


def test_steps_leave_torchs_generator_as_it_is():
    network, optimizer = new_network()
    before = torch.get_rng_state()
    train(network, optimizer, loader(training_set(), 0, 2), 0, [])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("steps", "seconds", "unseen"),
    [
        (1, 90.0, 1),
        (1, 4.0, 1),
        (1, 2.0, 2),
        (10, 5.0, 10),
        (50, 5.5, 45),
        (50, 1.0, 50),
        (1, 0, 50),
    ],
)
def test_a_gpu_is_looked_at_about_every_five_seconds(steps, seconds, unseen):
    assert steps_unseen(steps, seconds, torch.device("cuda")) == unseen
    assert steps_unseen(steps, seconds, CPU) == 1  # there it costs nothing


def test_steps_that_are_not_looked_at_are_in_the_history_all_the_same(monkeypatch):
    monkeypatch.setattr("pipeline.training.steps_unseen", lambda steps, seconds, device: 3)
    network, optimizer = new_network()
    history: list[dict] = []
    told: list[int] = []
    data = loader(training_set(), 0, 9)
    train(network, optimizer, data, 0, history, told.append, steps_per_epoch=100)
    assert told == [1, 4, 7, 9]
    assert [row["step"] for row in history if row["name"] == "loss"] == list(range(9))


def test_other_losses_and_data_train_as_well():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    optimizer = sgd(
        network, lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0, bias_lr_factor=1.0
    )
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    images[1] = 255
    data = [(images, torch.tensor([0, 1]))] * 30
    history: list[dict] = []
    train(network, optimizer, data, 0, history, rate=lambda s: 0.1, loss=F.cross_entropy)
    assert history[-2]["value"] < 0.1 * history[0]["value"]


# --- checkpoints -------------------------------------------------------------------------------
def saved(path):
    network, optimizer = new_network()
    save_checkpoint(
        path,
        network=network,
        optimizer=optimizer,
        step=7,
        run={"lr": 0.02, "augmentation": {"crop": (32, 32)}},
        categories=("background", "ring"),
    )
    return network


def test_a_checkpoint_holds_what_was_saved(tmp_path):
    network = saved(tmp_path / "models" / "run.pt")
    state = load_checkpoint(tmp_path / "models" / "run.pt", CPU)
    assert state["step"] == 7
    assert state["run"] == {"lr": 0.02, "augmentation": {"crop": (32, 32)}}
    assert state["categories"] == ["background", "ring"]
    for name, value in network.state_dict().items():
        assert torch.equal(state["network"][name], value)
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["run.pt"]


def test_the_same_state_is_the_same_file_whatever_its_name(tmp_path):
    saved(tmp_path / "a.pt")
    saved(tmp_path / "b.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_damaged_and_foreign_files_are_bad_input(tmp_path):
    good = tmp_path / "good.pt"
    saved(good)
    content = good.read_bytes()
    middle = len(content) // 2
    files = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "text": b"not a checkpoint",
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    for name, damaged in files.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=f"{name}.pt"):
            load_checkpoint(path, CPU)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(BadInput, match="foreign.pt: not a checkpoint of this project"):
        load_checkpoint(tmp_path / "foreign.pt", CPU)
    with pytest.raises(BadInput, match="absent.pt: not there"):
        load_checkpoint(tmp_path / "absent.pt", CPU)


def test_a_checkpoint_of_another_format_is_bad_input(tmp_path):
    saved(tmp_path / "model.pt")
    state = load_checkpoint(tmp_path / "model.pt", CPU)
    torch.save(state | {"format": 2}, tmp_path / "later.pt")
    with pytest.raises(BadInput, match="format 2"):
        load_checkpoint(tmp_path / "later.pt", CPU)
