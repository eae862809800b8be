"""From probabilities of 63x63 score cells to the label map of 500x500 pixels, 21 categories.

The peer enlarges and takes the argmax in the default layout, and, for a network whose outputs lie
channels-last, in that one. Ours is all that `predict_label_map` does after the network.

Run: OMP_NUM_THREADS=1 pytest benchmarks/test_upsampling.py --benchmark-timer=time.process_time
No time is asserted.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.inference import Cells, label_map_of_cells

ROWS = ["peer", "peer, channels last", "ours"]
INPUTS = {"coherent": 0.02, "noise": 3.0}


def cells(noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = F.interpolate(
        torch.randn(1, 21, 6, 6, generator=generator) * 6, size=(63, 63), mode="bilinear"
    )
    return (coarse + noise * torch.randn(1, 21, 63, 63, generator=generator)).softmax(1)


@torch.inference_mode()
def peer(probabilities: Tensor) -> np.ndarray:
    pixels = F.interpolate(probabilities, scale_factor=8.0, mode="bilinear")
    return pixels[0, :, :500, :500].argmax(0).byte().numpy()


def ours(probabilities: Tensor) -> np.ndarray:
    view = Cells(probabilities, view=(500, 500), moved=(0, 0))
    return label_map_of_cells([view], stride=8, size=(500, 500))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.benchmark(group="bilinear x 8 and argmax, 21 categories, 63x63 to 500x500")
def test_upsampling(benchmark, kind, name):
    probabilities = cells(INPUTS[kind])
    assert (ours(probabilities) != peer(probabilities)).sum() <= 2  # of 250,000: equal to 1e-7
    if name != "peer":
        probabilities = probabilities.to(memory_format=torch.channels_last)
    run = ours if name == "ours" else peer
    benchmark.pedantic(lambda: run(probabilities), rounds=30, warmup_rounds=2)
