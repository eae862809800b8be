"""Training one network from the first step to the last, however often it is killed in between.

Training goes in rounds, and asks for labels at the start of each: a run supervised by masks has one
round, a BoxSup run many. All that a later step depends on is in one checkpoint, so a run that was
killed goes on and ends with the same bits (same machine, threads and precision).
"""

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
from tqdm import tqdm

from pipeline.errors import BadInput
from pipeline.losses import bootstrapped_cross_entropy
from pipeline.models.fcrn import Fcrn, field_of_view
from pipeline.models.resnet import freeze_batch_norm
from pipeline.params import SemanticRun
from pipeline.tables import read_table, write_table
from pipeline.training import (
    TrainingSet,
    batches,
    learning_rate,
    load_checkpoint,
    resume,
    save_checkpoint,
    sgd,
    train_steps,
    use_threads,
)

CHECKPOINT_SECONDS = 300.0  # a checkpoint after this long, and at the end of each epoch
STOPPED = 128 + signal.SIGTERM  # exit code of a training that was told to stop and kept its work


@dataclass(frozen=True)
class LabelMaps:
    """The labels of one round."""

    label_map_of: Callable[[str], np.ndarray]  # image id -> (H, W) uint8, 255 = ignore
    measure: Callable[[], dict[str, float]]  # what the history is told about them


def fit(
    folder: Path,
    run: SemanticRun,
    network: Fcrn,
    *,
    ids: list[str],
    categories: tuple[str, ...],
    image_of: Callable[[str], np.ndarray],
    labels_of_round: Callable[[Fcrn, int], LabelMaps],
    round_epochs: int,
) -> None:
    """Train `network` as `run` says, going on from what an earlier call left in `folder`.

    In the end `folder` holds model.pt and history.parquet.

    Args:
        folder: of unfinished work.
        network: with its starting weights.
        ids: the training images.
        categories: names, background first; they are kept with the model.
        image_of: image id -> (H, W, 3) uint8 RGB.
        labels_of_round: (network in evaluation mode, first epoch of the round) -> its labels.
            Called again for a round that was broken off, it must give the same labels.
        round_epochs: epochs of a round.

    Raises:
        BadInput: a damaged checkpoint, or a loss that is not finite (with the images of its batch).
        SystemExit: SIGTERM came; the work done is kept.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    warn_of_field_of_view(run)
    use_threads(run.threads)
    cv2.setNumThreads(0)
    torch.backends.cudnn.deterministic = True  # resumed bits equal unbroken ones
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    per_epoch = max(len(ids) // run.batch, 1)
    steps = run.epochs * per_epoch
    kept = _Kept(folder, run, network, _optimizer(network, run), categories)
    step = kept.resume(device)

    with _sigterm() as stop, tqdm(total=steps, initial=step, unit="step", disable=None) as bar:

        def on_step(done: int) -> bool:
            bar.update(done - bar.n)
            if stop.is_set() or done % per_epoch == 0 or kept.is_old():
                kept.save(done)
            return stop.is_set()

        while step < steps:
            first_epoch = step // per_epoch // round_epochs * round_epochs
            last_step = min((first_epoch + round_epochs) * per_epoch, steps)
            labels = labels_of_round(network.eval(), first_epoch)
            if step == first_epoch * per_epoch:
                kept.log(step, first_epoch, labels.measure())
            training_set = TrainingSet(
                ids=ids,
                image_of=image_of,
                label_map_of=labels.label_map_of,
                augmentation=run.augmentation,
                stride=network.stride,
                batch=run.batch,
                seed=run.seed,
            )
            step = _train_round(
                kept, training_set, step, last_step, steps=steps, device=device, on_step=on_step
            )
            if stop.is_set():
                sys.exit(STOPPED)
    kept.finish(step)


def warn_of_field_of_view(run: SemanticRun) -> None:
    """Say on stderr if the classifier's outer taps would learn from padding only."""
    network = run.network
    field = field_of_view(stride=network.stride, kernel=network.kernel, dilation=network.dilation)
    if field > min(run.augmentation.crop):
        print(
            f"warning: the classifier sees {field} pixels, the crop has "
            f"{min(run.augmentation.crop)}: its outer taps learn from padding (Wu2016 Sec. 3.1); "
            "choose a larger crop, or a smaller kernel or dilation",
            file=sys.stderr,
        )


def _train_round(
    kept: "_Kept",
    training_set: TrainingSet,
    first_step: int,
    last_step: int,
    *,
    steps: int,
    device: torch.device,
    on_step: Callable[[int], bool],
) -> int:
    """The steps of one round, or of what is left of it. Returns the number of steps done."""
    run, per_epoch = kept.run, training_set.steps_per_epoch
    kept.network.train()
    if run.batch_norm == "frozen":
        freeze_batch_norm(kept.network)
    return train_steps(
        kept.network,
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
            learning_rate, steps=steps, steps_per_epoch=per_epoch, lr=run.lr, schedule=run.schedule
        ),
        loss=partial(bootstrapped_cross_entropy, bootstrapping=run.bootstrapping),
        image_ids=training_set.image_ids,
        device=device,
        precision=run.precision,
        history=kept.history,
        on_step=on_step,
    )


@dataclass
class _Kept:
    """What is kept of a training in its folder: the last checkpoint, and the history up to it."""

    folder: Path
    run: SemanticRun
    network: Fcrn
    optimizer: torch.optim.Optimizer
    categories: tuple[str, ...]
    history: list[dict[str, Any]] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)

    def resume(self, device: torch.device) -> int:
        """Take up what lies in the folder. Returns the number of steps done."""
        checkpoint = self.folder / "checkpoint.pt"
        if not checkpoint.exists():
            return 0
        saved = load_checkpoint(checkpoint, device)
        if saved["run"] != asdict(self.run):
            raise BadInput(
                f"{checkpoint}: of a training with other parameters, edited while it began; "
                f"delete {self.folder} and run again"
            )
        step = resume(saved, self.network, self.optimizer)
        rows = read_table(self.folder / "history.parquet", "history").query("step < @step")
        self.history += rows.to_dict("records")
        return step

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        row = {"step": step, "epoch": epoch}
        self.history += [{**row, "name": name, "value": value} for name, value in values.items()]

    def is_old(self) -> bool:
        return time.monotonic() - self.saved_at > CHECKPOINT_SECONDS

    def save(self, step: int) -> None:
        # the history first: rows of steps that the checkpoint does not know are dropped again
        write_table(self.folder / "history.parquet", "history", self.history)
        self._write("checkpoint.pt", self.optimizer, step)
        self.saved_at = time.monotonic()

    def finish(self, step: int) -> None:
        """Write the trained model beside the last checkpoint."""
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


def _optimizer(network: Fcrn, run: SemanticRun) -> torch.optim.SGD:
    return sgd(
        network,
        lr=run.lr,
        momentum=run.momentum,
        nesterov=run.nesterov,
        weight_decay=run.weight_decay,
        bias_lr_factor=run.bias_lr_factor,
    )


def _workers(device: torch.device) -> int:
    """Processes that prepare batches: none beside a CPU that trains, which needs all its cores."""
    return 0 if device.type == "cpu" else min(len(os.sched_getaffinity(0)), 8)


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that a training ends with its work kept."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
