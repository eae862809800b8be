"""Training one network from the first step to the last, however often it is killed in between.

Training goes in rounds, and asks for labels at the start of each: a run supervised by masks has one
round, a BoxSup run many. All that a later step depends on is in one checkpoint, so a run that was
killed goes on and ends with the same bits (same machine, processes, threads and precision).

A checkpoint is written at the end of each epoch, when SIGTERM comes (as from a queue that wants the
machine back), and every five minutes: the environment variable PIPELINE_CHECKPOINT_MINUTES gives
another number of minutes, which no result depends on.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from pipeline.checkpoints import SemanticNetwork
from pipeline.errors import BadFile, BadInput
from pipeline.gradients import Loss, images_that_fit, learner, try_step
from pipeline.memory import memory_as_input, need_memory
from pipeline.models.frozen import with_frozen_pairs
from pipeline.parallel import first_process_first, largest, neighbours, own_share, rank
from pipeline.params_networks import Deeplab
from pipeline.params_training import TrainingRun
from pipeline.progress import Progress
from pipeline.tables import read_table, write_table
from pipeline.training import (
    SampleOf,
    TrainingSet,
    batches,
    labelled_view,
    learning_rate,
    load_checkpoint,
    resume,
    save_checkpoint,
    sgd,
    train_steps,
    use_threads,
)

CHECKPOINT_MINUTES = "5"
STOPPED = 128 + signal.SIGTERM  # exit code of a training that was told to stop and kept its work


@dataclass(frozen=True)
class Round:
    """What a network learns from in one round."""

    sample_of: SampleOf  # (image id, generator) -> a view and the truth at its score cells
    measure: Callable[[], dict[str, float]]  # what the history is told about the truth


def labels_round(
    run: TrainingRun,
    network: SemanticNetwork,
    *,
    image_of: Callable[[str], np.ndarray],
    label_map_of: Callable[[str], np.ndarray],
    measure: Callable[[], dict[str, float]] = dict,
) -> Round:
    """A round of views with their label maps.

    Args:
        image_of: image id -> (H, W, 3) uint8 RGB.
        label_map_of: image id -> (H, W) uint8, 255 = ignore.
    """
    sample_of = partial(
        labelled_view,
        image_of=image_of,
        label_map_of=label_map_of,
        augmentation=run.augmentation,
        stride=network.stride,
        grid=network.grid,
    )
    return Round(sample_of, measure)


def fit(
    folder: Path,
    run: TrainingRun,
    network: SemanticNetwork,
    *,
    ids: list[str],
    categories: tuple[str, ...],
    loss: Loss,
    round_of: Callable[[SemanticNetwork, int], Round],
    round_epochs: int,
    device: torch.device,
) -> None:
    """Train `network` as `run` says, going on from what an earlier call left in `folder`.

    In the end `folder` holds model.pt and history.parquet. Where several processes train together,
    each calls this with the same arguments but for `device`; the first alone writes.

    Args:
        folder: of unfinished work; all processes see it.
        network: with its starting weights.
        ids: the training images.
        categories: names, background first; they are kept with the model.
        loss: of the network's scores and the truth of a batch.
        round_of: (network in evaluation mode, first epoch of the round) -> what it learns from.
            Called again for a round that was broken off, or by another process after the first
            one, it must give the same.
        round_epochs: epochs of a round.
        device: of this process.

    Raises:
        BadInput: a damaged checkpoint, more than fits in memory, or a loss that is not finite (with
            the images of its batch).
        SystemExit: SIGTERM came; the work done is kept.
    """
    if rank() == 0:
        warn_of_field_of_view(run)
    use_threads(run.threads)
    cv2.setNumThreads(0)
    torch.backends.cudnn.deterministic = True  # resumed bits equal unbroken ones
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    per_epoch = max(len(ids) // run.batch, 1)
    steps = run.epochs * per_epoch
    kept = _Kept(folder, run, network, _optimizer(network, run), categories, _checkpoint_seconds())
    step = kept.resume(device)
    trained, at_once = _trained_form(network, run, device)

    with Progress(step, steps, hidden=rank() > 0) as progress:
        progress.say(
            f"{'goes on after step ' + str(step) + ' of ' if step else ''}{steps} steps in "
            f"{run.epochs} epochs; the classifier sees {run.network.field_of_view} pixels"
        )
        while step < steps:
            first_epoch = step // per_epoch // round_epochs * round_epochs
            last_step = min((first_epoch + round_epochs) * per_epoch, steps)
            found = first_process_first(partial(round_of, network.eval(), first_epoch))
            if step == first_epoch * per_epoch and rank() == 0:
                kept.log(step, first_epoch, found.measure())
            step = _train_round(
                trained.train(),
                kept,
                TrainingSet(ids=ids, sample_of=found.sample_of, batch=run.batch, seed=run.seed),
                loss=loss,
                first_step=step,
                last_step=last_step,
                steps=steps,
                at_once=at_once,
                device=device,
                progress=progress,
            )
            if step < last_step:
                progress.say(f"stopped after step {step} of {steps}; run again to go on")
                sys.exit(STOPPED)
    kept.finish(step)


def _train_round(
    trained: nn.Module,
    kept: "_Kept",
    training_set: TrainingSet,
    *,
    loss: Loss,
    first_step: int,
    last_step: int,
    steps: int,
    at_once: int,
    device: torch.device,
    progress: Progress,
) -> int:
    """Take some of all `steps`, fewer if SIGTERM comes. Returns the number of steps done."""
    run, per_epoch = kept.run, training_set.steps_per_epoch

    with _sigterm() as stop, memory_as_input(run):

        def on_step(done: int) -> bool:
            progress.at(done, _last_loss(kept.history))
            stops = largest(int(stop.is_set()), device) > 0  # whoever was told, all stop here
            if stops or done % per_epoch == 0 or kept.is_old():
                kept.save(done)
            return stops

        return train_steps(
            trained,
            kept.optimizer,
            batches(
                training_set,
                first_step=first_step,
                last_step=last_step,
                workers=_workers(device),
                device=device,
            ),
            first_step=first_step,
            steps_per_epoch=per_epoch,
            rate=partial(
                learning_rate,
                steps=steps,
                steps_per_epoch=per_epoch,
                lr=run.lr,
                schedule=run.schedule,
            ),
            loss=loss,
            image_ids=training_set.image_ids,
            batch=run.batch,
            at_once=at_once,
            seed=run.seed,
            device=device,
            precision=run.precision,
            history=kept.history,
            on_step=on_step,
        )


def _trained_form(
    network: SemanticNetwork, run: TrainingRun, device: torch.device
) -> tuple[nn.Module, int]:
    """The network in the form that learns, of the same parameters; images that go through at once.

    Raises:
        BadInput: not even one image fits in the GPU's memory, or the batch not in the machine's.
    """
    frozen = run.batch_norm == "frozen"
    form = with_frozen_pairs(network) if frozen else network
    share = own_share(run.batch)
    if device.type == "cpu":
        need_memory(form, run, len(share))
    trained = learner(form, device)
    attempt = partial(
        try_step, trained.train(), crop=run.augmentation.crop, precision=run.precision
    )
    at_once = images_that_fit(attempt, len(share), device)
    if rank() == 0:
        _say_how_divided(run, at_once)
    return trained, at_once


def _say_how_divided(run: TrainingRun, at_once: int) -> None:
    if at_once < len(own_share(run.batch)):
        print(
            f"{at_once} images of {len(own_share(run.batch))} fit in memory at once: each step "
            "goes through the network twice, the first time without gradients",
            file=sys.stderr,
        )
    if at_once < run.batch and run.batch_norm == "train":
        print(
            f"warning: each BatchNorm takes its statistics from {at_once} images, not from the "
            f"batch's {run.batch}; results depend on this. batch_norm: frozen does not",
            file=sys.stderr,
        )


def warn_of_field_of_view(run: TrainingRun) -> None:
    """Say on stderr if the classifier's outer taps would learn from padding only."""
    field = run.network.field_of_view
    if field > min(run.augmentation.crop):
        print(
            f"warning: the classifier sees {field} pixels, the crop has "
            f"{min(run.augmentation.crop)}: its outer taps learn from padding (Wu2016 Sec. 3.1); "
            "choose a larger crop, or a smaller kernel or dilation",
            file=sys.stderr,
        )


@dataclass
class _Kept:
    """What is kept of a training in its folder: the last checkpoint, and the history up to it.

    All processes read, the first one writes.
    """

    folder: Path
    run: TrainingRun
    network: SemanticNetwork
    optimizer: torch.optim.Optimizer
    categories: tuple[str, ...]
    seconds: float  # from one checkpoint to the next
    history: list[dict[str, Any]] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)

    def resume(self, device: torch.device) -> int:
        """Take up what lies in the folder. Returns the number of steps done."""
        checkpoint = self.folder / "checkpoint.pt"
        if not checkpoint.exists():
            return 0
        try:
            saved = load_checkpoint(checkpoint, device)
            rows = read_table(self.folder / "history.parquet", "history")
        except BadInput as error:
            problem = error.problem if isinstance(error, BadFile) else str(error)
            remedy = "delete this file and run again: the training then begins anew"
            raise BadFile(checkpoint, problem, remedy) from error
        if saved["run"] != asdict(self.run):
            raise BadInput(
                f"{checkpoint}: of a training with other parameters, edited while it began; "
                f"delete {self.folder} and run again"
            )
        step = resume(saved, self.network, self.optimizer)
        self.history += rows.query("step < @step").to_dict("records")
        return step

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        row = {"step": step, "epoch": epoch}
        self.history += [{**row, "name": name, "value": value} for name, value in values.items()]

    def is_old(self) -> bool:
        return time.monotonic() - self.saved_at >= self.seconds

    def save(self, step: int) -> None:
        if rank() > 0:
            return
        # the history first: rows of steps that the checkpoint does not know are dropped again
        write_table(self.folder / "history.parquet", "history", self.history)
        self._write("checkpoint.pt", self.optimizer, step)
        self.saved_at = time.monotonic()

    def finish(self, step: int) -> None:
        """Write the trained model beside the last checkpoint."""
        if rank() == 0:
            self._write("model.pt", None, step)

    def _write(self, name: str, optimizer: torch.optim.Optimizer | None, step: int) -> None:
        save_checkpoint(
            self.folder / name,
            network=self.network,
            optimizer=optimizer,
            step=step,
            run=asdict(self.run),
            categories=self.categories,
        )


def _optimizer(network: SemanticNetwork, run: TrainingRun) -> torch.optim.SGD:
    return sgd(
        network,
        lr=run.lr,
        momentum=run.momentum,
        nesterov=run.nesterov,
        weight_decay=run.weight_decay,
        bias_lr_factor=run.bias_lr_factor,
        last_lr_factor=run.network.last_lr_factor if isinstance(run.network, Deeplab) else 1.0,
    )


def _checkpoint_seconds() -> float:
    said = os.environ.get("PIPELINE_CHECKPOINT_MINUTES") or CHECKPOINT_MINUTES
    try:
        minutes = float(said)
    except ValueError:
        minutes = math.nan
    if not 0 <= minutes < math.inf:
        raise BadInput(
            f"PIPELINE_CHECKPOINT_MINUTES is {said!r}; give a number of minutes, as 5 or 0.5"
        )
    return 60 * minutes


def _workers(device: torch.device) -> int:
    """Processes that prepare batches: none beside a CPU that trains, which needs all its cores."""
    cores = len(os.sched_getaffinity(0)) // neighbours()
    return 0 if device.type == "cpu" else min(max(cores, 1), 8)


def _last_loss(history: list[dict[str, Any]]) -> float:
    return next((row["value"] for row in reversed(history) if row["name"] == "loss"), math.nan)


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that a training ends with its work kept."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
