"""A network with frozen BatchNorms, in the form in which it learns in less time and memory.

B images, C channels, H x W cells.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.resnet import replace_pairs


class FrozenPair(nn.Module):
    """A convolution and the BatchNorm after it, with that one's running statistics kept.

    y = gamma (conv(x) - mean) / std + beta is itself a convolution: its weights are scaled by
    gamma / std and its bias is beta - gamma mean / std. Scaling weights costs next to nothing, and
    the convolution's output, which gamma's gradient would need, is not kept. Both are in
    the gradient: weight, gamma and beta learn as they would one after the other.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d):
        super().__init__()
        self.convolution = convolution
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the pair's output."""
        convolution, norm = self.convolution, self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * scale
        weight = convolution.weight * scale[:, None, None, None]
        return F.conv2d(
            x, weight, bias, convolution.stride, convolution.padding, convolution.dilation
        )


def with_frozen_pairs(network: nn.Module) -> nn.Module:
    """The same network, with the same parameters, whose BatchNorms keep their statistics.

    It gives the outputs and gradients of `freeze_batch_norm(network)` but for rounding. Parameters
    and buffers are shared, not copied: what one learns, the other knows. Names differ, so the
    given network is the one to save.
    """
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    twin = copy.deepcopy(network, shared)
    replace_pairs(twin, FrozenPair)
    return twin
