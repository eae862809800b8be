"""What training FCRN-101/8 keeps in memory for the backward pass: ours against the plain way.

One image of 504x504, counted and not timed: the bytes that autograd holds on to after the forward
pass, without parameters. Copies of weights in bf16 count as ours; they are made once for all images
of a batch. Rows with more columns than times: --benchmark-columns=rounds, and "extra_info" in
--benchmark-json. The figures are printed too: pytest -s.

Run: OMP_NUM_THREADS=1 pytest -s benchmarks/test_training_memory.py --benchmark-columns=rounds
"""

import pytest
import torch
from peers import PlainFcrn
from torch import nn

from pipeline.memory import bytes_kept
from pipeline.models.fcrn import fcrn
from pipeline.models.frozen import with_frozen_pairs
from pipeline.models.resnet import freeze_batch_norm
from pipeline.transforms import normalise

SIDE = 504


def held(network: nn.Module, run) -> int:
    return bytes_kept(run, [*network.parameters(), *network.buffers()])


@pytest.mark.parametrize("norm", ["train", "frozen"])
@pytest.mark.benchmark(group="memory of training FCRN-101/8, one image of 504x504")
def test_training_memory(benchmark, norm):
    network = fcrn(depth=101, stride=8, kernel=5, dilation=12, num_categories=21).train()
    images = torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8)
    plain = PlainFcrn(network).train()
    if norm == "frozen":
        freeze_batch_norm(plain)
    peer = held(plain, lambda: plain(images))

    network.to(memory_format=torch.channels_last)
    form = with_frozen_pairs(network).train() if norm == "frozen" else network

    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            form(normalise(images))

    ours = benchmark.pedantic(lambda: held(network, forward), rounds=1)
    weights = sum(2 * p.numel() for p in network.parameters() if p.dim() == 4)
    benchmark.extra_info.update(
        peer_bytes=peer, our_bytes=ours, copies_of_weights=weights, ratio=round(ours / peer, 3)
    )
    print(
        f"\nbatch_norm {norm}: peer {peer / 1e6:.0f} MB, ours {ours / 1e6:.0f} MB "
        f"(of which weights {weights / 1e6:.0f} MB), ratio {ours / peer:.3f}, "
        f"of images alone {(ours - weights) / peer:.3f}"
    )
