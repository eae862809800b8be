"""The dilated classifier on the features of a 500x500 photograph at 1/8: torch's and ours.

torch's convolution is timed in the layout that it comes in, and in the one that suits it best. The
last row is no peer but a floor: one matrix product of as many multiplications as the taps have that
lie inside the features.

Run: OMP_NUM_THREADS=1 pytest benchmarks/test_classifier.py --benchmark-timer=time.process_time
Where the processor has no bf16 units, all are measured in fp32. No time is asserted.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.fast import TapSum

HALF = torch.ops.mkldnn._is_mkldnn_bf16_supported()
DTYPE = torch.bfloat16 if HALF else torch.float32
ROWS = ["torch conv2d", "torch conv2d, channels last", "ours", "product alone"]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("categories", [21, 60, 81])
@pytest.mark.benchmark(group=f"5x5 classifier of dilation 12, 63x63 cells, {DTYPE}")
@torch.inference_mode()
def test_classifier(benchmark, categories, name):
    torch.manual_seed(0)
    if name == "product alone":
        inside = sum(max(63 - abs(offset), 0) for offset in (-24, -12, 0, 12, 24)) / (5 * 63)
        cells = torch.randn(round(63 * 63 * inside**2), 2048).to(DTYPE)
        weight = torch.randn(25 * categories, 2048).to(DTYPE)
        benchmark.pedantic(lambda: F.linear(cells, weight), rounds=7, warmup_rounds=1)
        return
    convolution = nn.Conv2d(2048, categories, 5, padding=24, dilation=12).to(DTYPE)
    features = torch.randn(1, 2048, 63, 63).to(DTYPE)
    taps = TapSum(convolution)
    lying = features.to(memory_format=torch.channels_last)
    exact = convolution.float()(features.float())
    assert (taps(lying) - exact).abs().max() < (0.03 if HALF else 1e-5) * exact.std()
    convolution.to(DTYPE)
    if name == "torch conv2d":
        benchmark.pedantic(lambda: convolution(features), rounds=7, warmup_rounds=1)
        return
    convolution.to(memory_format=torch.channels_last)
    run = taps if name == "ours" else convolution
    benchmark.pedantic(lambda: run(lying), rounds=7, warmup_rounds=1)
