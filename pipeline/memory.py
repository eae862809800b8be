"""What a training needs of a machine's memory, and what is said where it is not there."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import cv2
import psutil
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.parallel import neighbours
from pipeline.params_training import TrainingRun

GIB = 2**30
SIDE = 64  # pixels; a multiple of every stride


def need_memory(network: nn.Module, run: TrainingRun, images: int) -> None:
    """BadInput where a step on a CPU needs more than all of the machine's memory.

    The system would kill it without a word. Counted is what an image of a small crop keeps for the
    backward pass, which grows with the area: less than all that a step needs, so that nothing is
    refused that would fit.
    """
    trial = copy.deepcopy(network).train()
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16")
    with torch.random.fork_rng([]), bf16:
        one, two = (
            bytes_kept(partial(trial, torch.zeros(n, 3, SIDE, SIDE)), trial.parameters())
            for n in (1, 2)
        )
    height, width = run.augmentation.crop
    needed = (two - one) * height * width // SIDE**2 * images * neighbours()
    there = psutil.virtual_memory().total
    if needed > there:
        raise BadInput(
            f"a step needs more than {needed / GIB:.0f} GiB of memory, and this machine has "
            f"{there / GIB:.0f}: {_smaller(run)}"
        )


def bytes_kept(run: Callable[[], object], left_out: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps for the backward passes of what `run` computes.

    Each piece of memory counts once, those of `left_out` (parameters, buffers) not at all.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in left_out}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given out again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def _smaller(run: TrainingRun) -> str:
    crop = "x".join(str(side) for side in run.augmentation.crop)
    return (
        f"choose a smaller augmentation.crop (it is {crop}) or batch (it is {run.batch}), a larger "
        "stride, or a machine with more memory"
    )


@contextmanager
def memory_as_input(run: TrainingRun) -> Iterator[None]:
    """BadInput where an allocation fails: of torch, numpy, OpenCV, here or in a worker process."""
    said = ("can't allocate memory", "out of memory", "Insufficient memory", "Unable to allocate")
    try:
        yield
    except (RuntimeError, MemoryError, cv2.error) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in said):
            raise
        raise BadInput(f"memory ran out while training: {_smaller(run)}") from error
