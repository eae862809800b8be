"""One training in several processes, one for each GPU, that share every batch.

The first process is the one that was asked to train. It starts the others with the same command
and the variables of `torchrun` (RANK, WORLD_SIZE, LOCAL_RANK, ...), or `torchrun` starts them all,
on one machine or many. Where there is one process, each function here does the obvious at no cost.

A batch is that of all processes, whose number is no part of what is trained: the loss is that of
the whole batch, and so is what bootstrapping of scope "device_batch" keeps. Only rounding differs,
and what a BatchNorm that is not frozen takes its statistics from.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import BadInput

T = TypeVar("T")
MEETING = timedelta(minutes=10)  # until all have to be there
PATIENCE = timedelta(days=7)  # the others wait while the first makes labels; deaths are noticed
GRACE = 20.0  # seconds that processes have to end by themselves when one has failed
MOMENT = 2.0  # seconds after which a process is believed to have a fault of its own
LONGEST = 4096  # bytes of a text that is told


def rank() -> int:
    """The number of this process, 0 for the first: the one that writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def neighbours() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes()))


def own_share(batch: int) -> range:
    """The positions in a batch that this process works on; those of all make up the batch.

    Raises:
        BadInput: there are fewer images than processes.
    """
    if batch < processes():
        raise BadInput(
            f"a batch of {batch} cannot be shared by {processes()} processes; choose a larger "
            f"batch, or set PIPELINE_PROCESSES={batch}"
        )
    return range(batch * rank() // processes(), batch * (rank() + 1) // processes())


def largest(number: int, device: torch.device) -> int:
    """The largest of all processes' numbers; every process gets it."""
    if processes() == 1:
        return number
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def whole_batch(part: Tensor, batch: int) -> Tensor:
    """The rows (share, ...) that the processes have of a batch, put together: (batch, ...)."""
    if processes() == 1:
        return part
    share = own_share(batch)
    rows = part.new_zeros(batch, *part.shape[1:])  # a sum with zeros: shares may differ in length
    rows[share.start : share.stop] = part
    dist.all_reduce(rows)
    return rows


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each parameter's gradient by its sum over all processes."""
    if processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])  # one exchange, not many
    dist.all_reduce(together)
    parts = together.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def tell(text: str, device: torch.device) -> str:
    """What the first process says, at all of them. The others' text does not matter."""
    if processes() == 1:
        return text
    said = torch.zeros(LONGEST, dtype=torch.uint8, device=device)
    if rank() == 0:
        content = text.encode()
        if len(content) > LONGEST:
            raise ValueError(f"longer than {LONGEST} bytes: {text}")
        said[: len(content)] = torch.tensor(list(content), dtype=torch.uint8, device=device)
    dist.broadcast(said, 0)
    return bytes(said.tolist()).rstrip(b"\0").decode()


def first_process_first(make: Callable[[], T]) -> T:
    """`make()` in the first process, then in the others, which find what it left on the disk."""
    if rank() == 0:
        made = make()
    if processes() > 1:
        dist.barrier()
    return made if rank() == 0 else make()


# --- starting and ending ------------------------------------------------------------------------
@contextmanager
def training_processes(device: torch.device, command: Sequence[str]) -> Iterator[torch.device]:
    """Start what else is needed to train by `python -m pipeline <command>`, and join them.

    One process for each GPU that this one sees, or as many as PIPELINE_PROCESSES says. If one of
    them fails, all end, and what is wrong is said once.

    Args:
        device: "cuda" or "cpu".

    Yields:
        The device of this process.

    Raises:
        BadInput: PIPELINE_PROCESSES is no number, or more than there are GPUs.
        SystemExit: another process failed.
    """
    if "RANK" in os.environ:
        with _joined(device, _met()) as own:
            try:
                yield own
            except (BadInput, RuntimeError):
                if rank() > 0:  # the first one most often has the same to say, or has ended:
                    time.sleep(MOMENT)  # then it ends this one too
                raise
        return
    count = _wanted(device)
    if count == 1:
        yield device
        return
    store = dist.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
    with _others(command, count, store.port) as others, _joined(device, (store, 0, count)) as own:
        try:
            yield own
        except SystemExit:
            raise  # all were told to stop
        except RuntimeError as error:
            code = _failure(others, 5 * MOMENT)
            _end(others, 0.0)
            if code:  # connections were lost: theirs is the news
                raise SystemExit(_told(code)) from error
            raise
        except BaseException:
            _end(others, 0.0)
            raise


def _wanted(device: torch.device) -> int:
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    said = os.environ.get("PIPELINE_PROCESSES", str(there))
    if not (said.isascii() and said.isdecimal()) or int(said) < 1:
        raise BadInput(f"PIPELINE_PROCESSES is {said!r}; give a whole number of at least 1")
    if device.type == "cuda" and int(said) > there:
        raise BadInput(f"PIPELINE_PROCESSES is {said}, but there are {there} GPUs; give at most so")
    return int(said)


Meeting = tuple[dist.Store, int, int]  # where, who, how many


def _met() -> Meeting:
    """How a process that was started finds the others."""
    ours = "PIPELINE_MEET_AT" in os.environ
    if ours:  # Ctrl-C goes to the whole group; the first process answers it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if ours or "TORCHELASTIC_RUN_ID" in os.environ:
        parent = int(os.environ.get("PIPELINE_FIRST", os.getppid()))  # it may have ended by now
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if not ours:
        return next(dist.rendezvous("env://", timeout=MEETING))
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    port = int(os.environ["PIPELINE_MEET_AT"])
    return dist.TCPStore("127.0.0.1", port, count, is_master=False), number, count


@contextmanager
def _joined(device: torch.device, meeting: Meeting) -> Iterator[torch.device]:
    """Be one of the processes until the end."""
    store, number, count = meeting
    own = device
    if device.type == "cuda":
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(own)
    dist.init_process_group(
        "nccl" if own.type == "cuda" else "gloo",
        timeout=PATIENCE,
        store=store,
        rank=number,
        world_size=count,
        device_id=own if own.type == "cuda" else None,
    )
    try:
        yield own
        dist.barrier()  # whoever leaves first would break the others' connections
    finally:
        dist.destroy_process_group()


def _end_with(parent: int) -> None:
    """End this process when the one that started it has ended, however it did."""
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


@contextmanager
def _others(command: Sequence[str], count: int, port: int) -> Iterator[list[subprocess.Popen]]:
    """Processes 1 to count - 1 of this machine, which meet at a port of it. At the end they end."""
    variables = {
        "PIPELINE_MEET_AT": str(port),
        "PIPELINE_FIRST": str(os.getpid()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", *command],
            stdin=subprocess.DEVNULL,
            env=os.environ | variables | {"RANK": str(number), "LOCAL_RANK": str(number)},
        )
        for number in range(1, count)
    ]
    ended = threading.Event()
    threading.Thread(target=_watch, args=(started, ended), daemon=True).start()
    try:
        yield started
    finally:
        ended.set()
        _end(started, GRACE)


def _watch(started: list[subprocess.Popen], ended: threading.Event) -> None:
    """End this process if another has failed: it may wait for that one's numbers for ever."""
    while not ended.wait(0.5):
        code = _failure(started, 0.0)
        if code and not ended.wait(GRACE):  # most often the first one notices by itself
            _end(started, 0.0)
            os._exit(_told(code))


def _failure(started: list[subprocess.Popen], seconds: float) -> int:
    """The code with which one of them has failed, or does within this time; 0: none has."""
    until = time.monotonic() + seconds
    while True:
        codes = [process.poll() for process in started]
        failed = next((code for code in codes if code), 0)
        if failed or time.monotonic() >= until:
            return failed
        time.sleep(0.1)


def _told(code: int) -> int:
    """Say that a process was killed; one that ended by itself has said why. Returns an exit code.

    Args:
        code: as `subprocess` gives it, negative for a signal.
    """
    if code > 0:
        return code
    name = signal.Signals(-code).name
    print(
        f"error: a process of the training was ended by {name}"
        f"{' (by the system, if memory ran out)' if name == 'SIGKILL' else ''}; "
        "run it again: it goes on from its last checkpoint",
        file=sys.stderr,
    )
    return 128 - code


def _end(started: list[subprocess.Popen], seconds: float) -> None:
    """Wait for so long that processes end by themselves; kill those that do not."""
    for process in started:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
