"""The gradient of a loss of the whole batch, however the batch is divided.

B images, C categories, h x w score cells.

A batch is divided among processes, and in each process again where it does not fit in memory.
A loss may look at all cells of the batch at once (it keeps the hardest, and divides by their
number), so the scores of all images are put together, the loss and its gradient by the scores are
computed from them, and each part takes its own of that gradient back through the network. The
scores are small: in memory and on the wire they weigh about what one image does.
"""

import gc
import sys
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.parallel import add_gradients, largest, own_share, whole_batch
from pipeline.params_networks import Precision
from pipeline.transforms import normalise

Loss = Callable[[Tensor, Tensor], Tensor]  # of scores and truth of a batch, a scalar


def learner(network: nn.Module, device: torch.device) -> nn.Module:
    """The network in the form that is trained on a device: compiled on a GPU.

    A compiler for CPUs takes minutes for a deep network, and gains little over its libraries.
    """
    if device.type != "cuda":
        return network
    options: dict[str, Any] = {
        "deterministic": True,  # else sums are divided as a trial of speeds says: other bits
        "fallback_random": True,  # dropout draws as it does uncompiled, in both passes the same
    }
    return torch.compile(network, dynamic=False, options=options)  # type: ignore[return-value]


def compute_gradient(
    network: nn.Module,
    images: Tensor,
    truth: Tensor,
    *,
    batch: int,
    at_once: int,
    loss: Loss,
    precision: Precision,
    seed: int,
) -> Tensor:
    """Put into every parameter's `grad` the gradient of the loss of the whole batch.

    Args:
        network: as `learner` gives it; the same in every process.
        images: (b, h, w, 3) uint8, this process's share of the batch, on the network's device.
        truth: of these images, any integers.
        batch: B, images of all processes.
        at_once: how many go through the network at once. Fewer than b cost a second forward pass
            and save memory; the gradient is the same but for rounding, unless a BatchNorm takes
            its statistics from the batch: then it takes them from these.
        loss: of the scores and truth of all B images.
        seed: of what the network draws (dropout), another one for each step.

    Returns:
        The loss, without graph: the same number in every process.
    """

    def forward(part: Tensor, first: int) -> Tensor:
        torch.manual_seed(seed + ((own_share(batch).start + first) << 32))
        with torch.autocast(part.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return network(normalise(part))

    if at_once >= batch:
        value = loss(forward(images, 0), truth)
        value.backward()
        return value.detach()
    parts = images.split(at_once)
    if len(parts) == 1:
        scores = [forward(images, 0)]
    else:
        scores = _without_graph(network, parts, forward)
    whole = whole_batch(torch.cat([part.detach() for part in scores]), batch).requires_grad_()
    value = loss(whole, whole_batch(truth, batch))
    value.backward()
    assert whole.grad is not None
    share = own_share(batch)
    mine = whole.grad[share.start : share.stop].split(at_once)
    for number, (part, gradient) in enumerate(zip(parts, mine, strict=True)):
        again = scores[0] if len(parts) == 1 else forward(part, number * at_once)
        again.backward(gradient)
    add_gradients(network.parameters())
    return value.detach()


@torch.no_grad()
def _without_graph(
    network: nn.Module, parts: tuple[Tensor, ...], forward: Callable[[Tensor, int], Tensor]
) -> list[Tensor]:
    """The scores of all parts; running statistics stay as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    firsts = accumulate((len(part) for part in parts), initial=0)
    scores = [forward(part, first) for part, first in zip(parts, firsts, strict=False)]
    for buffer, before in buffers:
        buffer.copy_(before)
    return scores


def images_that_fit(attempt: Callable[[int], object], share: int, device: torch.device) -> int:
    """How many images go through the network at once: all of the share, or as many as fit.

    Each process tries; the one with the least memory decides for all. Only a GPU's memory is
    tried: that of a CPU is the system's to divide.

    Args:
        attempt: a step's work with so many images, without exchange between processes.
        share: images of this process.

    Raises:
        BadInput: not even one image fits.
    """
    at_once = share
    while device.type == "cuda" and at_once and not _fits(attempt, at_once):
        at_once = (at_once + 1) // 2 if at_once > 1 else 0
    # who has all of its share at once sets no limit: shares may differ by one
    at_once = -largest(-sys.maxsize if at_once == share else -at_once, device)
    if at_once == 0:
        raise BadInput(
            "not even one image fits in the GPU's memory; choose a smaller augmentation.crop, "
            "a larger stride, or precision bf16"
        )
    return min(at_once, share)


def _fits(attempt: Callable[[int], object], at_once: int) -> bool:
    try:
        attempt(at_once)
        fits = True
    except RuntimeError as error:
        if not _lacks_memory(error, at_once):
            raise
        fits = False
    # outside the handler: its exception holds on to what was computed, some of it in circles
    if torch.cuda.is_available():
        if not fits:
            torch.compiler.reset()  # few sizes may be compiled, and this one is not wanted again
            gc.collect()
        torch.cuda.empty_cache()
    return fits


def _lacks_memory(error: RuntimeError, at_once: int) -> bool:
    """Whether an error says so, in any of the ways that torch has.

    The compiler and CUDA itself have errors of their own for it. cuDNN says only that no algorithm
    works: with one image that is taken at its word.
    """
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or any(sign in text for sign in ("out of memory", "OutOfMemoryError", "ALLOC_FAILED"))
        or (at_once > 1 and "unable to find an engine" in text)
    )


def try_step(
    network: nn.Module, at_once: int, *, crop: tuple[int, int], precision: Precision
) -> None:
    """A step's forward and backward pass for black images, with the memory of momentum beside.

    Parameters are left without gradients, buffers as they were.
    """
    device = next(network.parameters()).device
    momentum = [torch.empty_like(parameter) for parameter in network.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        images = torch.zeros(at_once, *crop, 3, dtype=torch.uint8, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            scores = network(normalise(images))
        scores.float().sum().backward()
    finally:
        del momentum
        for parameter in network.parameters():
            parameter.grad = None
        for buffer, before in buffers:
            buffer.data.copy_(before)
