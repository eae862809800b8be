"""The plain way to do it, which several benchmarks measure ours against.

B images, C categories, H x W pixels, h x w score cells.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.categories import IGNORE
from pipeline.models.fcrn import Fcrn
from pipeline.models.resnet import freeze_batch_norm
from pipeline.transforms import MEAN, STD

DILATED = {8: [False, True, True], 16: [False, False, True], 32: [False, False, False]}


class PlainFcrn(nn.Module):
    """FCRN by torchvision's parts, with copies of the weights of one of ours.

    A body that torchvision does not have is a copy of ours.
    """

    def __init__(self, ours: Fcrn):
        super().__init__()
        blocks = tuple(len(part) for name, part in ours.body.named_children() if "layer" in name)
        if blocks in {(3, 4, 6, 3), (3, 4, 23, 3)}:
            from torchvision.models import resnet50, resnet101  # seconds, which tests do not need

            make = resnet50 if blocks[2] == 6 else resnet101
            body = make(replace_stride_with_dilation=DILATED[ours.stride])
            body.fc = nn.Identity()
            body.load_state_dict(ours.body.state_dict())
            self.body = nn.Sequential(*list(body.children())[:-2])  # without pool and linear layer
        else:
            self.body = copy.deepcopy(ours.body)
        old = ours.classifier
        self.classifier = nn.Conv2d(
            old.in_channels, old.out_channels, old.kernel_size, padding=old.padding,
            dilation=old.dilation,
        )  # fmt: skip
        self.classifier.load_state_dict(old.state_dict())
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 RGB to logits (B, C, h, w)."""
        pixels = images.permute(0, 3, 1, 2).contiguous().float() / 255
        return self.classifier(self.body((pixels - self.mean) / self.std))


def decided(network: Fcrn, spread: float) -> Fcrn:
    """The same network in evaluation, its drawn weights such that it says something.

    No sum of blocks grows without bound, and logits have about this deviation.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
    nn.init.normal_(network.classifier.weight)
    network.eval()
    with torch.no_grad():
        network.classifier.weight /= network(torch.randn(1, 3, 64, 64)).std() / spread
    return network


def plain_step(
    network: nn.Module, *, lr: float, frozen: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """A step of training as one writes it first: fp32, default layout, the whole batch at once.

    Args:
        network: as `PlainFcrn`, on the device where it is to learn.
        frozen: BatchNorms keep their statistics.

    Returns:
        images (B, H, W, 3) uint8 and truth (B, h, w) uint8, on any device -> the loss.
    """
    network.train()
    if frozen:
        freeze_batch_norm(network)
    device = next(network.parameters()).device
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)

    def step(images: Tensor, truth: Tensor) -> Tensor:
        labels = truth.to(device, non_blocking=True).long()
        scores = network(images.to(device, non_blocking=True))
        loss = F.cross_entropy(scores, labels, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
