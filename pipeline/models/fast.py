"""The same network in less time: forms of its layers that are used, and never saved.

B images, C categories, h x w score cells, k x k the classifier's kernel.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.models.resnet import replace_pairs

# Where the form below won, in bf16: with fewer channels the sums cost what the product saves; with
# more categories convolutions are fast again, but for those on AMX tiles.
LEAST_CHANNELS, MOST_CATEGORIES = 1024, 32


class TapSum(nn.Module):
    """A dilated convolution to few categories, as matrix products and shifted sums.

    A product of the features with the weights of all taps gives k k C numbers for every cell; the
    score of a cell is the sum of those of its k k neighbours. Convolutions are made for many output
    channels, and are slow where there are few. Rows that a tap would carry over the border are left
    out of its product.

    Attributes:
        weight: (k, k C, channels), by row of the kernel. bias: (C,).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, convolution: nn.Conv2d):
        """Raises ValueError: not square and odd, with stride, groups, no bias, or another size."""
        super().__init__()
        categories, channels, kernel, width = convolution.weight.shape
        dilation, across = convolution.dilation
        margin = kernel // 2 * dilation
        same_size = convolution.padding == (margin, margin) and convolution.stride == (1, 1)
        if kernel != width or kernel % 2 == 0 or dilation != across or not same_size:
            raise ValueError(f"no square convolution that keeps the size: {convolution}")
        if convolution.groups != 1 or convolution.bias is None:
            raise ValueError(f"a convolution in groups, or without bias: {convolution}")
        self.kernel, self.dilation, self.categories = kernel, dilation, categories
        by_row = convolution.weight.detach().permute(2, 3, 0, 1)  # (k, k, C, channels)
        self.register_buffer("weight", by_row.reshape(kernel, kernel * categories, channels))
        self.register_buffer("bias", convolution.bias.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, channels, h, w) to logits (B, C, h, w), summed and given in float32."""
        cells = features.permute(0, 2, 3, 1)  # (B, h, w, channels)
        batch, height, width = cells.shape[:3]
        offsets = [(tap - self.kernel // 2) * self.dilation for tap in range(self.kernel)]
        total = self.bias.float().repeat(batch, height, width, 1)  # (B, h, w, C)
        for top, bottom, taps in _bands(height, offsets):
            product = F.linear(cells[:, top:bottom], self.weight[taps].flatten(0, 1))
            product = product.unflatten(3, (-1, self.kernel, self.categories))
            for row, down in enumerate(offsets[taps]):
                for column, right in enumerate(offsets):
                    first, last = max(right, 0), max(width + min(right, 0), 0)
                    if first < last:
                        part = total[:, top - down : bottom - down, first - right : last - right]
                        part += product[:, :, first:last, row, column]
        return total.permute(0, 3, 1, 2)


def _bands(height: int, offsets: list[int]) -> Iterator[tuple[int, int, slice]]:
    """Rows (from, to) of the features that the same taps use, and these taps.

    A tap of offset o carries row y to row y - o of the scores.
    """
    edges = {edge for offset in offsets for edge in (offset, height + offset)}
    cuts = [0, *sorted(edge for edge in edges if 0 < edge < height), height]
    for top, bottom in zip(cuts, cuts[1:], strict=False):
        used = [tap for tap, offset in enumerate(offsets) if 0 <= top - offset < height]
        yield top, bottom, slice(used[0], used[-1] + 1)


def merge_batch_norms(network: nn.Module) -> None:
    """Merge each BatchNorm, in place, into the convolution before it. All must be in `eval()`."""
    replace_pairs(network, fuse_conv_bn_eval)


def sum_taps(network: nn.Module) -> None:
    """Give a network for a CPU in bf16, in place, the form of its classifier that is faster."""
    classifier = getattr(network, "classifier", None)
    if not isinstance(classifier, nn.Conv2d) or classifier.in_channels < LEAST_CHANNELS:
        return
    if classifier.out_channels <= MOST_CATEGORIES or torch.cpu._is_amx_tile_supported():
        network.classifier = TapSum(classifier)
