"""The parts of a training loop: what comes in which order, rates, steps, checkpoints.

B images of a batch, h x w pixels of a view, s the network's stride.

Steps count from 0 over the whole training. Every sample is a function of the seed and of its
number, so a training that goes on at any step gives the same bits as one that was never broken.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import BadFile, BadInput
from pipeline.gradients import Loss, compute_gradient
from pipeline.parallel import largest, own_share
from pipeline.params_networks import Grid, Precision
from pipeline.params_training import Augmentation, LinearSchedule, Schedule, StepSchedule
from pipeline.transforms import labels_on_grid, random_view
from pipeline.weight_files import read_torch_file

LAST_LAYER = "classifier."  # what alone knows the categories
FORMAT = 1  # of a checkpoint
SampleOf = Callable[[str, np.random.Generator], tuple[np.ndarray, np.ndarray]]
KEYS = ("network", "optimizer", "step", "torch_rng", "run", "categories", "format")
LOOK_SECONDS = 5.0  # reading a loss makes a GPU wait, so it is done about this often
LOOK_STEPS = 50  # and at least after so many steps


class TrainingSet(Dataset):
    """Augmented samples by their number n = step * batch + position in the batch.

    Every epoch visits the images in a new order. Images that do not fill a last batch are left
    out of that epoch; a set smaller than one batch is gone through again to fill it.

    Args:
        ids: image ids.
        sample_of: image id and a generator to a view (h, w, 3) uint8 of the image, drawn, and to
            the truth at its score cells, of one shape for all.
        batch: images per step.
        seed: of the order and of the views.
    """

    def __init__(self, *, ids: Sequence[str], sample_of: SampleOf, batch: int, seed: int):
        if not ids:
            raise ValueError("there is no image to train on")
        self.ids = list(ids)
        self.sample_of = sample_of
        self.batch = batch
        self.seed = seed
        self.steps_per_epoch = max(len(self.ids) // batch, 1)
        self._epoch, self._order = -1, np.zeros(0, np.int64)  # the last one drawn

    def image_id(self, n: int) -> str:
        """Which image sample n shows."""
        step, position = divmod(n, self.batch)
        epoch, step = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, 0, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(self.ids))
        return self.ids[self._order[(step * self.batch + position) % len(self.ids)]]

    def image_ids(self, step: int) -> list[str]:
        """The images of one batch."""
        return [self.image_id(step * self.batch + position) for position in range(self.batch)]

    def __getitem__(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The view and the truth of sample n."""
        return self.sample_of(self.image_id(n), np.random.default_rng([self.seed, 1, n]))


def labelled_view(
    image_id: str,
    rng: np.random.Generator,
    *,
    image_of: Callable[[str], np.ndarray],
    label_map_of: Callable[[str], np.ndarray],
    augmentation: Augmentation,
    stride: int,
    grid: Grid,
) -> tuple[np.ndarray, np.ndarray]:
    """A view (h, w, 3) uint8 and its labels (h / s, w / s) uint8, for a semantic network.

    Args:
        image_of: image id to (H, W, 3) uint8.
        label_map_of: image id to (H, W) uint8, 255 = ignore.
        augmentation: how views are drawn.
        stride, grid: of the network's score cells, at which labels are taken.
    """
    view, labels = random_view(image_of(image_id), label_map_of(image_id), augmentation, rng)
    return view, labels_on_grid(labels, stride, grid)


def batches(
    training_set: TrainingSet,
    *,
    first_step: int,
    last_step: int,
    workers: int,
    device: torch.device,
) -> DataLoader:
    """The batches of steps first_step <= step < last_step: (B, h, w, 3) uint8 and truth (B, ...).

    Where several processes train together, this one's share of each.

    Args:
        workers: processes that prepare batches ahead; 0 prepares them in this one. They end with
            the iteration, also when it is left early or by an exception.
        device: where the batches will go; for a GPU they are laid ready in pinned memory.
    """
    share = own_share(training_set.batch)
    return DataLoader(
        training_set,
        batch_size=len(share),
        sampler=_Numbers(range(first_step, last_step), training_set.batch, share),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else the loader draws from torch's own: resuming would show
    )


@dataclass(frozen=True)
class _Numbers:
    """The samples at some positions in the batch of each of some steps."""

    steps: range
    batch: int
    positions: range

    def __iter__(self) -> Iterator[int]:
        return (step * self.batch + position for step in self.steps for position in self.positions)

    def __len__(self) -> int:
        return len(self.steps) * len(self.positions)


def _start_worker(number: int) -> None:
    cv2.setNumThreads(0)
    # Who stops a training signals its whole group. The training then saves and ends its workers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def learning_rate(
    step: int, *, steps: int, steps_per_epoch: int, lr: float, schedule: Schedule
) -> float:
    """The rate of one step, 0 <= step < steps.

    linear: lr (1 - step / steps), over the first `warmup` steps times (step + 1) / warmup.
    step:   lr factor ** (epoch // every).
    poly:   lr (1 - step / steps) ** power.
    """
    left = 1 - step / steps
    if isinstance(schedule, LinearSchedule):
        return lr * left * min((step + 1) / max(schedule.warmup, 1), 1.0)
    if isinstance(schedule, StepSchedule):
        return lr * schedule.factor ** (step // steps_per_epoch // schedule.every)
    return lr * left**schedule.power


def sgd(
    network: nn.Module,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    bias_lr_factor: float,
    last_lr_factor: float = 1.0,
) -> torch.optim.SGD:
    """Stochastic gradient descent in two groups: what multiplies, and what is added.

    Convolution weights and gammas decay; biases and betas do not, and learn at lr times
    `bias_lr_factor`. The factor stays in the group as "lr_factor", for `set_learning_rate`.
    With a `last_lr_factor` there are two more groups, of the last layer, which learns at so many
    times these rates.
    """
    named = list(network.named_parameters())
    parts = [(named, 1.0)]
    if last_lr_factor != 1:
        last = [entry for entry in named if entry[0].startswith(LAST_LAYER)]
        rest = [entry for entry in named if not entry[0].startswith(LAST_LAYER)]
        parts = [(rest, 1.0), (last, last_lr_factor)]
    groups: list[dict[str, Any]] = []
    for part, factor in parts:
        added = [p for name, p in part if name.rpartition(".")[2] == "bias"]
        multiplied = [p for name, p in part if name.rpartition(".")[2] != "bias"]
        groups += [
            {"params": multiplied, "weight_decay": weight_decay, "lr_factor": factor},
            {"params": added, "weight_decay": 0.0, "lr_factor": factor * bias_lr_factor},
        ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    set_learning_rate(optimizer, lr)
    return optimizer


def use_threads(threads: int) -> None:
    """Let torch compute with so many threads of this process; 0 leaves it as it is."""
    if threads:
        torch.set_num_threads(threads)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group lr times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def train_steps(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    first_step: int,
    steps_per_epoch: int,
    rate: Callable[[int], float],
    loss: Loss,
    image_ids: Callable[[int], Sequence[str]],
    batch: int,
    at_once: int,
    seed: int,
    device: torch.device,
    precision: Precision,
    history: list[dict[str, Any]],
    on_step: Callable[[int], bool],
) -> int:
    """One step of descent for each batch.

    Args:
        network: on `device`, channels-last, in the mode wanted (`train()`, then maybe
            `freeze_batch_norm`); as `learner` gives it.
        batches: (b, h, w, 3) uint8 and truth, any numbers, for steps first_step, ...; where
            there are several processes, this one's share.
        steps_per_epoch: to tell the epoch in the history.
        rate: learning rate by step.
        loss: of logits and truth of the whole batch, a scalar.
        image_ids: the images of a step's batch, for the message if its loss is not finite.
        batch: B, images of a step in all processes.
        at_once: how many of them go through the network at once; see `compute_gradient`.
        seed: of what the network draws in each step.
        history: gets rows {step, epoch, name, value} with names "loss" and "lr".
        on_step: called with the number of steps done, whenever all losses so far are known to be
            finite (each step on a CPU, every few seconds on a GPU), and at the end; True stops.

    Returns:
        The number of steps done since step 0.

    Raises:
        BadInput: a loss is not finite; names the step and its images.
    """
    unread: list[Tensor] = []
    step, look_at, looked = first_step, first_step + 1, time.monotonic()

    def stops() -> bool:
        losses = torch.stack(unread).tolist()
        history.extend(_rows(losses, step - len(losses), steps_per_epoch, rate, image_ids))
        unread.clear()
        return on_step(step)

    for images, truth in batches:
        set_learning_rate(optimizer, rate(step))
        optimizer.zero_grad(set_to_none=True)
        # what a step draws is its seed's: torch's own generator stays as it is
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            value = compute_gradient(
                network,
                images.to(device, non_blocking=True),
                truth.to(device, non_blocking=True),
                batch=batch,
                at_once=at_once,
                loss=loss,
                precision=precision,
                seed=int(np.random.SeedSequence([seed, 2, step]).generate_state(1)[0]),
            )
        optimizer.step()
        unread.append(value)
        step += 1
        if step == look_at or step % steps_per_epoch == 0:
            taken = len(unread)
            if stops():
                return step
            look_at = step + steps_unseen(taken, time.monotonic() - looked, device)
            looked = time.monotonic()
    if unread:
        stops()
    return step


def _rows(
    losses: list[float],
    first_step: int,
    steps_per_epoch: int,
    rate: Callable[[int], float],
    image_ids: Callable[[int], Sequence[str]],
) -> Iterator[dict[str, Any]]:
    """What the history is told about some steps, up to a loss that is not finite: BadInput."""
    for step, loss in enumerate(losses, start=first_step):
        if not math.isfinite(loss):
            raise BadInput(
                f"step {step}: the loss is {loss} on images {', '.join(image_ids(step))}; "
                "lower lr, or look at these images"
            )
        row = {"step": step, "epoch": step // steps_per_epoch}
        yield {**row, "name": "loss", "value": loss}
        yield {**row, "name": "lr", "value": rate(step)}


def steps_unseen(steps: int, seconds: float, device: torch.device) -> int:
    """How many steps to take before losses are read again, if `steps` took so many seconds.

    A training that is told to stop does so when they are read. All processes get the same number:
    that of the slowest.
    """
    if device.type == "cpu":
        return 1
    fitting = int(steps * LOOK_SECONDS / max(seconds, 1e-3))
    return -largest(-min(max(fitting, 1), LOOK_STEPS), device)


def save_checkpoint(
    path: Path,
    *,
    network: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    step: int,
    run: dict[str, Any],
    categories: Sequence[str],
) -> None:
    """Write all that going on (or, without `optimizer`, testing) needs; whole or not at all.

    Args:
        step: number of steps done.
        run: parameters of the run, plain values only.
        categories: names, background first.
    """
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer is not None else None,
        "step": step,
        "torch_rng": torch.get_rng_state(),
        "run": run,
        "categories": list(categories),
        "format": FORMAT,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:  # given a path, torch would write its name inside
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # the disk is full, most often: it should not stay so
        partial.unlink(missing_ok=True)
        reason = error.__context__ if isinstance(error, RuntimeError) else error  # torch hides it
        if not isinstance(reason, OSError):
            raise
        raise OSError(reason.errno, reason.strerror, str(path)) from error


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What `save_checkpoint` wrote, tensors on `device`.

    Raises:
        BadFile: no such file, not a checkpoint of this project, or a damaged one.
    """
    try:
        state = read_torch_file(path, device)
        if not isinstance(state, dict) or sorted(map(str, state)) != sorted(KEYS):
            raise BadFile(path, f"not a checkpoint of this project, with {', '.join(KEYS)}", "")
        if state["format"] != FORMAT:
            raise BadFile(path, f"checkpoint format {state['format']}, not {FORMAT}", "")
    except BadFile as error:
        remedy = "make it anew, or name a checkpoint of this project"
        raise BadFile(path, error.problem, remedy) from error
    return state


def resume(state: dict[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a loaded checkpoint into network, optimizer and torch's generator.

    Returns:
        The number of steps done.
    """
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_rng"].cpu())
    return state["step"]
