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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from pipeline.losses import bootstrapped_cross_entropy
from pipeline.models.fcrn import Fcrn
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
    use_threads(run.threads)
    cv2.setNumThreads(0)
    network.to(device)
    optimizer = sgd(
        network,
        lr=run.lr,
        momentum=run.momentum,
        nesterov=run.nesterov,
        weight_decay=run.weight_decay,
        bias_lr_factor=run.bias_lr_factor,
    )
    per_epoch = max(len(ids) // run.batch, 1)
    steps = run.epochs * per_epoch
    rate = partial(
        learning_rate, steps=steps, steps_per_epoch=per_epoch, lr=run.lr, schedule=run.schedule
    )
    save = partial(save_checkpoint, network=network, run=asdict(run), categories=categories)
    checkpoint, history_table = folder / "checkpoint.pt", folder / "history.parquet"
    step, history = 0, []
    if checkpoint.exists():
        step = resume(load_checkpoint(checkpoint, device), network, optimizer)
        history = read_table(history_table, "history").query("step < @step").to_dict("records")

    with _sigterm() as stop, tqdm(total=steps, initial=step, unit="step", disable=None) as bar:
        saved_at = time.monotonic()

        def on_step(done: int) -> bool:
            nonlocal saved_at
            bar.update(done - bar.n)
            late = time.monotonic() - saved_at > CHECKPOINT_SECONDS
            if stop.is_set() or late or done % per_epoch == 0:
                # the history first: rows of steps that the checkpoint does not know are dropped
                write_table(history_table, "history", history)
                save(checkpoint, optimizer=optimizer, step=done)
                saved_at = time.monotonic()
            return stop.is_set()

        while step < steps:
            first_epoch = step // per_epoch // round_epochs * round_epochs
            last_step = min((first_epoch + round_epochs) * per_epoch, steps)
            labels = labels_of_round(network.eval(), first_epoch)
            if step == first_epoch * per_epoch:
                row = {"step": step, "epoch": first_epoch}
                history += [{**row, "name": n, "value": v} for n, v in labels.measure().items()]
            training_set = TrainingSet(
                ids=ids,
                image_of=image_of,
                label_map_of=labels.label_map_of,
                augmentation=run.augmentation,
                stride=network.stride,
                batch=run.batch,
                seed=run.seed,
            )
            network.train()
            if run.batch_norm == "frozen":
                freeze_batch_norm(network)
            step = train_steps(
                network,
                optimizer,
                batches(
                    training_set,
                    first_step=step,
                    last_step=last_step,
                    workers=_workers(device),
                    device=device,
                ),
                first_step=step,
                steps_per_epoch=per_epoch,
                rate=rate,
                loss=partial(bootstrapped_cross_entropy, bootstrapping=run.bootstrapping),
                image_ids=training_set.image_ids,
                device=device,
                precision=run.precision,
                history=history,
                on_step=on_step,
            )
            if stop.is_set():
                sys.exit(STOPPED)
    save(folder / "model.pt", optimizer=None, step=step)


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
