"""Our way to compute the networks against the same networks in single precision, default layout.

Run: OMP_NUM_THREADS=1 pytest benchmarks/test_training_step.py --benchmark-timer=time.process_time
Where the processor has no bf16 units, ours is measured in fp32 too. No time is asserted.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from peers import PlainFcrn, decided, plain_step
from torch import Tensor, nn

from pipeline.gradients import compute_gradient
from pipeline.inference import for_inference, view_probabilities
from pipeline.losses import bootstrapped_cross_entropy
from pipeline.models.fcrn import Fcrn, fcrn
from pipeline.models.frozen import with_frozen_pairs
from pipeline.params_networks import Precision
from pipeline.params_training import AllPixels
from pipeline.training import sgd, train_steps
from pipeline.transforms import MEAN, STD

CPU = torch.device("cpu")
PRECISION: Precision = "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


# --- one training step: depth 14, stride 8, batch 4 of 128x160 -----------------------------------
def small_network() -> Fcrn:
    torch.manual_seed(0)
    return fcrn(depth=14, stride=8, kernel=3, dilation=4, num_categories=9).train()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 128, 160, 3), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 9, (4, 16, 20), generator=generator, dtype=torch.uint8)


def peer_step() -> Callable[[], float]:
    """The plain loop that one would write first."""
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    images, truth = batch()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))

    def step() -> float:
        pixels = (images.permute(0, 3, 1, 2).contiguous().float() / 255 - mean) / std
        loss = F.cross_entropy(network(pixels), truth.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_step(precision: Precision) -> Callable[[], float]:
    network = small_network().to(memory_format=torch.channels_last)
    optimizer = sgd(
        network, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.0, bias_lr_factor=1.0
    )
    data = [batch()]
    every = AllPixels("off")

    def step() -> float:
        history: list[dict] = []
        train_steps(
            network,
            optimizer,
            data,
            first_step=0,
            steps_per_epoch=1,
            rate=lambda step: 0.02,
            loss=lambda logits, truth: bootstrapped_cross_entropy(logits, truth, every),
            image_ids=lambda step: [],
            batch=4,
            at_once=4,
            seed=0,
            device=CPU,
            precision=precision,
            history=history,
            on_step=lambda done: False,
        )
        return history[0]["value"]

    return step


STEPS = {
    "peer fp32 default layout": peer_step,
    "ours fp32": lambda: our_step("fp32"),
    f"ours {PRECISION}": lambda: our_step(PRECISION),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.benchmark(group="training step, depth 14, stride 8, batch 4 of 128x160")
def test_training_step(benchmark, name):
    step, peer = STEPS[name](), peer_step()
    tolerance = 0.05 if "bf16" in name else 1e-3
    assert [step() for _ in range(5)] == pytest.approx([peer() for _ in range(5)], rel=tolerance)
    benchmark.pedantic(step, rounds=30, warmup_rounds=3)


# --- one training step: FCRN-50/8, batch 2 of 320x320 --------------------------------------------
def our_large_step(frozen: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The gradient and the step, as `train_steps` takes them."""
    network = large_network().train().to(memory_format=torch.channels_last)
    form = with_frozen_pairs(network).train() if frozen else network
    optimizer = sgd(
        network, lr=1e-3, momentum=0.9, nesterov=False, weight_decay=0.0, bias_lr_factor=1.0
    )
    every = AllPixels("off")

    def step(images: Tensor, truth: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = compute_gradient(
            form, images, truth, batch=2, at_once=2, seed=0, precision=PRECISION,
            loss=lambda logits, labels: bootstrapped_cross_entropy(logits, labels, every),
        )  # fmt: skip
        optimizer.step()
        return value

    return step


@pytest.mark.parametrize("name", ["peer fp32 default layout", f"ours {PRECISION}"])
@pytest.mark.parametrize("norm", ["train", "frozen"])
@pytest.mark.benchmark(group="training step, FCRN-50/8, batch 2 of 320x320, by batch_norm")
def test_large_training_step(benchmark, norm, name):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 320, 320, 3), generator=generator, dtype=torch.uint8)
    truth = torch.randint(0, 21, (2, 40, 40), generator=generator, dtype=torch.uint8)
    peer = plain_step(PlainFcrn(large_network()), lr=1e-3, frozen=norm == "frozen")
    step = peer
    if name.startswith("ours"):
        step = our_large_step(norm == "frozen")
        losses, expected = ([s(images, truth).item() for _ in range(2)] for s in (step, peer))
        assert losses == pytest.approx(expected, rel=0.02 if PRECISION == "bf16" else 1e-3)
    benchmark.pedantic(lambda: step(images, truth), rounds=3, warmup_rounds=1)


# --- one forward pass: FCRN-50/8, 320x320 --------------------------------------------------------
def large_network() -> Fcrn:
    torch.manual_seed(0)
    return decided(fcrn(depth=50, stride=8, kernel=5, dilation=12, num_categories=21), spread=1.0)


@torch.inference_mode()
def peer_forward(network: nn.Module, views: Tensor) -> Tensor:
    probabilities = network(views).softmax(1)
    return F.interpolate(probabilities, scale_factor=8.0, mode="bilinear")


@pytest.mark.parametrize("name", ["peer fp32 default layout", f"ours {PRECISION}"])
@pytest.mark.benchmark(group="FCRN-50/8, probabilities of 320x320 pixels")
def test_forward(benchmark, name):
    network = large_network()
    views = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    fast = for_inference(network, precision=PRECISION)

    def ours() -> Tensor:
        return view_probabilities(fast, views, precision=PRECISION)

    expected = peer_forward(network, views)
    assert expected.std() > 0.01
    assert (ours() - expected).abs().max() < (0.05 if PRECISION == "bf16" else 1e-4)
    run = ours if name.startswith("ours") else lambda: peer_forward(network, views)
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
