"""What a training needs of a machine's memory, and what is said where it is not there."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import psutil
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.parallel import neighbours
from pipeline.params import SemanticRun

GIB = 2**30
SIDE = 64  # pixels; a multiple of every stride


def need_memory(network: nn.Module, run: SemanticRun, images: int) -> None:
    """BadInput where a step on a CPU needs more than all of the machine's memory.

    The system would kill it without a word. Counted is what an image of a small crop keeps for the
    backward pass, which grows with the area: less than all that a step needs, so that nothing is
    refused that would fit.
    """
    trial = copy.deepcopy(network).train()
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16")
    with torch.random.fork_rng([]), bf16:
        one, two = (bytes_kept(trial, torch.zeros(n, 3, SIDE, SIDE)) for n in (1, 2))
    height, width = run.augmentation.crop
    needed = (two - one) * height * width // SIDE**2 * images * neighbours()
    there = psutil.virtual_memory().total
    if needed > there:
        raise BadInput(
            f"a step needs more than {needed / GIB:.0f} GiB of memory, and this machine has "
            f"{there / GIB:.0f}: {_smaller(run)}"
        )


def bytes_kept(network: nn.Module, images: Tensor) -> int:
    """How much a forward pass keeps in memory for the backward pass, beside parameters."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # kept, so that no other can have its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(images)
    return sum(storage.nbytes() for number, storage in storages.items() if number not in own)


def _smaller(run: SemanticRun) -> str:
    crop = "x".join(str(side) for side in run.augmentation.crop)
    return (
        f"choose a smaller augmentation.crop (it is {crop}) or batch (it is {run.batch}), a larger "
        "stride, or a machine with more memory"
    )


@contextmanager
def memory_as_input(run: SemanticRun) -> Iterator[None]:
    """BadInput where an allocation fails: of torch, numpy, OpenCV, here or in a worker process."""
    said = ("can't allocate memory", "out of memory", "Insufficient memory", "Unable to allocate")
    try:
        yield
    except (RuntimeError, MemoryError, cv2.error) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in said):
            raise
        raise BadInput(f"memory ran out while training: {_smaller(run)}") from error
