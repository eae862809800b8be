"""FCRN-50/8 from a photograph of 500x500 pixels to its label map.

The peer is the same network by torchvision's parts, as it comes: single precision, default layout,
probabilities of all pixels. The last row is no peer: plain matrix products of as many
multiplications as the network has, so that its time over ours is the part of that rate reached.

Run: OMP_NUM_THREADS=1 pytest benchmarks/test_inference.py --benchmark-timer=time.process_time
Where the processor has no bf16 units, ours is measured in fp32 only. No time is asserted.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peers import PlainFcrn, decided
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.inference import for_inference, predict_label_map, predict_probabilities
from pipeline.models.fcrn import Fcrn, fcrn
from pipeline.params import ONE_VIEW
from pipeline.params_networks import Precision

CPU = torch.device("cpu")
UNITS = torch.ops.mkldnn._is_mkldnn_bf16_supported()
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16") if UNITS else ("fp32",)


def network() -> Fcrn:
    torch.manual_seed(0)
    return decided(fcrn(depth=50, stride=8, kernel=5, dilation=12, num_categories=21), spread=3.0)


def photograph() -> np.ndarray:
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.uniform(0, 255, (1, 3, 20, 20)))
    smooth = F.interpolate(coarse, size=(500, 500), mode="bicubic")[0].permute(1, 2, 0)
    return smooth.clamp(0, 255).byte().numpy()


@torch.inference_mode()
def plain_probabilities(peer: PlainFcrn, image: np.ndarray) -> Tensor:
    pixels = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 - peer.mean) / peer.std
    scores = peer.classifier(peer.body(F.pad(pixels, (0, 4, 0, 4))))
    probabilities = scores.softmax(1)
    return F.interpolate(probabilities, scale_factor=8.0, mode="bilinear")[0, :, :500, :500]


def products(flops: int, precision: Precision) -> Callable[[], None]:
    """Matrix products of a shape that suits the processor, `flops` operations in all."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(3969, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    times = round(flops / (2 * 3969 * 1024 * 1024))

    def run() -> None:
        for _ in range(times):
            left @ right

    return run


@pytest.mark.parametrize("name", ["peer", *PRECISIONS, f"{PRECISIONS[-1]} matrix products alone"])
@pytest.mark.benchmark(group="FCRN-50/8, label map of 500x500 pixels, one view")
def test_label_map(benchmark, name):
    ours, image = network(), photograph()
    peer = PlainFcrn(ours).eval()
    if name == "peer":
        benchmark.pedantic(
            lambda: plain_probabilities(peer, image).argmax(0), rounds=3, warmup_rounds=1
        )
        return
    precision: Precision = "fp32" if name.startswith("fp32") else "bf16"
    if "alone" in name:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            ours(torch.zeros(1, 3, 504, 504))
        run = products(counter.get_total_flops(), precision)
        benchmark.pedantic(run, rounds=3, warmup_rounds=1)
        return
    fast = for_inference(ours, precision=precision)
    given = {"views": ONE_VIEW, "device": CPU, "precision": precision}
    expected = plain_probabilities(peer, image)
    assert expected.std() > 0.01
    probabilities = predict_probabilities(fast, image, **given)
    assert (probabilities - expected).abs().max() < (0.1 if precision == "bf16" else 1e-3)
    label_map = predict_label_map(fast, image, **given)
    assert (label_map == probabilities.argmax(0).numpy()).mean() > 0.9999
    benchmark.pedantic(lambda: predict_label_map(fast, image, **given), rounds=5, warmup_rounds=1)
