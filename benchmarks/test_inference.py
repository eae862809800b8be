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
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from pipeline.inference import for_inference, predict_label_map, predict_probabilities
from pipeline.models.fcrn import Fcrn, fcrn
from pipeline.params import ONE_VIEW, Precision
from pipeline.transforms import MEAN, STD

CPU = torch.device("cpu")
UNITS = torch.ops.mkldnn._is_mkldnn_bf16_supported()
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16") if UNITS else ("fp32",)


def network() -> Fcrn:
    torch.manual_seed(0)
    net = fcrn(depth=50, stride=8, kernel=5, dilation=12, num_categories=21)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)  # else 16 sums of blocks grow without bound
    nn.init.normal_(net.classifier.weight)
    net.eval()
    with torch.no_grad():  # probabilities neither flat nor decided
        net.classifier.weight /= net(torch.randn(1, 3, 64, 64)).std() / 3
    return net


def photograph() -> np.ndarray:
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.uniform(0, 255, (1, 3, 20, 20)))
    smooth = F.interpolate(coarse, size=(500, 500), mode="bicubic")[0].permute(1, 2, 0)
    return smooth.clamp(0, 255).byte().numpy()


class Peer(nn.Module):
    def __init__(self, ours: Fcrn):
        super().__init__()
        self.body = resnet50(replace_stride_with_dilation=[False, True, True])
        self.body.avgpool = self.body.fc = nn.Identity()
        self.body.load_state_dict(ours.body.state_dict())
        self.classifier = nn.Conv2d(2048, 21, 5, padding=24, dilation=12)
        self.classifier.load_state_dict(ours.classifier.state_dict())

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray) -> Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        pixels = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 - mean) / std
        pixels = F.pad(pixels, (0, 4, 0, 4))
        features = self.body(pixels).view(1, 2048, 63, 63)
        probabilities = self.classifier(features).softmax(1)
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
    peer = Peer(ours).eval()
    if name == "peer":
        benchmark.pedantic(lambda: peer.probabilities(image).argmax(0), rounds=3, warmup_rounds=1)
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
    expected = peer.probabilities(image)
    assert expected.std() > 0.01
    probabilities = predict_probabilities(fast, image, **given)
    assert (probabilities - expected).abs().max() < (0.1 if precision == "bf16" else 1e-3)
    label_map = predict_label_map(fast, image, **given)
    assert (label_map == probabilities.argmax(0).numpy()).mean() > 0.9999
    benchmark.pedantic(lambda: predict_label_map(fast, image, **given), rounds=5, warmup_rounds=1)
