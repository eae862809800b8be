"""What the jobs of a GPU benchmark share: sizes, rows, time, networks, batches.

B images, C categories, H x W pixels, h x w score cells.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from peers import PlainFcrn, plain_step
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.gradients import compute_gradient, learner
from pipeline.losses import bootstrapped_cross_entropy
from pipeline.models.fcrn import Fcrn, fcrn
from pipeline.models.frozen import with_frozen_pairs
from pipeline.params_training import AllPixels
from pipeline.training import sgd

STRIDE, CATEGORIES, RATE = 8, 21, 0.01


@dataclass(frozen=True)
class Sizes:
    """Of all jobs; (images, side in pixels)."""

    depth: int = 101
    train: tuple[int, int] = (32, 320)
    memory: tuple[int, int] = (8, 504)
    test: tuple[int, int] = (8, 500)
    product: int = 8192
    warm_up: int = 3
    repeats: int = 20
    curve: int = 20
    loader: int = 50


SMALL = Sizes(8, (2, 80), (1, 80), (1, 84), 64, 1, 2, 3, 3)


@dataclass
class Training:
    """One network that learns.

    Attributes:
        step: images (B, H, W, 3) uint8 and truth (B, h, w) uint8 of any device -> the loss.
        form, optimizer: of ours, what `train_steps` takes.
    """

    network: nn.Module
    step: Callable[[Tensor, Tensor], Tensor]
    form: nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None


@dataclass
class Session:
    """One run of the script.

    Attributes:
        rows: of the table so far.
        rate: TFLOP/s of the matrix product.
        peers: what the peers took, ms or bytes, by job and precision.
        compiled: ours with frozen BatchNorms, of size `train`.
    """

    device: torch.device
    sizes: Sizes
    rows: list[dict[str, Any]] = field(default_factory=list)
    rate: float = math.nan
    peers: dict[str, float] = field(default_factory=dict)
    compiled: Training | None = None

    def add(self, job: str, way: str, **values: Any) -> None:
        self.rows.append({"job": job, "way": way, **values})

    def add_time(self, job: str, way: str, ms: float, images: int, flops: int, **values: Any):
        """A row of a time: rates, and ratios to the peers so far. `flops`: of one image."""
        rate = images * flops / ms / 1e9
        values |= {"ms": ms, "images_per_s": 1e3 * images / ms, "tflops": rate}
        values["percent_of_product"] = 100 * rate / self.rate
        for name in ("TF32", "fp32"):
            if way == f"peer {name}":
                self.peers[f"{job} {name}"] = ms
            elif f"{job} {name}" in self.peers and not way.startswith("peer"):
                values[f"times_{name}"] = self.peers[f"{job} {name}"] / ms
        self.add(job, way, **values)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def median_ms(self, run: Callable[[], object]) -> float:
        for _ in range(self.sizes.warm_up):
            run()
        if self.device.type == "cpu":
            marks = [time.perf_counter()]
            for _ in range(self.sizes.repeats):
                run()
                marks.append(time.perf_counter())
            return statistics.median(1e3 * (b - a) for a, b in zip(marks, marks[1:], strict=False))
        events = [torch.cuda.Event(enable_timing=True) for _ in range(self.sizes.repeats + 1)]
        torch.cuda.synchronize()
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        torch.cuda.synchronize()
        pairs = zip(events, events[1:], strict=False)
        return statistics.median(a.elapsed_time(b) for a, b in pairs)


def cudnn(*, ours: bool, tf32: bool = True) -> Any:
    """Ours: fixed bits, as `fit` wants them. The peer: whatever is fastest."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=not ours, deterministic=ours, allow_tf32=tf32
    )


# --- networks and batches ------------------------------------------------------------------------
def described(sizes: Sizes) -> Fcrn:
    return fcrn(depth=sizes.depth, stride=STRIDE, kernel=5, dilation=12, num_categories=CATEGORIES)


def start(session: Session) -> Fcrn:
    """Equal weights whenever it is called, on the device; no activation grows without bound."""
    torch.manual_seed(0)
    network = described(session.sizes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
    return network.to(session.device)


@cache
def flops_of(sizes: Sizes, side: int, *, training: bool) -> int:
    """Of one image through the plain network, two for each multiplication."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        scores = described(sizes)(torch.zeros(1, 3, side, side))
        if training:
            scores.sum().backward()
    return counter.get_total_flops()


def batch(session: Session, number: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Squares of one colour under noise; a cell's category is its strongest colour. On the host."""
    (images, side), cells = size, size[1] // STRIDE
    generator = torch.Generator().manual_seed(number)
    coarse = torch.rand(images, 3, cells // 5 + 1, cells // 5 + 1, generator=generator)
    colours = F.interpolate(coarse, scale_factor=5.0)[:, :, :cells, :cells]
    pixels = F.interpolate(colours, size=(side, side)).permute(0, 2, 3, 1) * 200
    noise = torch.randint(0, 56, (images, side, side, 3), generator=generator)
    made = (pixels + noise).byte(), colours.argmax(1).byte()
    return (made[0].pin_memory(), made[1].pin_memory()) if session.device.type == "cuda" else made


def every_cell(logits: Tensor, truth: Tensor) -> Tensor:
    return bootstrapped_cross_entropy(logits, truth, AllPixels("off"))


def plain_training(session: Session, norm: str) -> Training:
    network = PlainFcrn(start(session)).to(session.device)
    return Training(network, plain_step(network, lr=RATE, frozen=norm == "frozen"))


def our_training(session: Session, norm: str, *, compiles: bool) -> Training:
    network, device = start(session).to(memory_format=torch.channels_last), session.device
    form: nn.Module = with_frozen_pairs(network) if norm == "frozen" else network
    form = (learner(form, device) if compiles else form).train()
    optimizer = sgd(
        network, lr=RATE, momentum=0.9, nesterov=False, weight_decay=0.0, bias_lr_factor=1.0
    )

    def step(images: Tensor, truth: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = compute_gradient(
            form,
            images.to(device, non_blocking=True),
            truth.to(device, non_blocking=True),
            batch=len(images),
            at_once=len(images),
            loss=every_cell,
            precision="bf16",
            seed=0,
        )
        optimizer.step()
        return value

    return Training(network, step, form, optimizer)
