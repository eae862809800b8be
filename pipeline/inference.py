"""From an image to its map of probabilities, over scales and flips.

B views, C categories, H x W pixels, h x w score cells.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.params import Precision
from pipeline.transforms import normalise


@torch.inference_mode()
def predict_probabilities(
    network: nn.Module,
    image: np.ndarray,
    *,
    scales: Sequence[float],
    flip: bool,
    device: torch.device,
    precision: Precision,
) -> Tensor:
    """The mean of the probabilities over all views of an image.

    Implements: Wu2016 Sec. 3.1 (whole image, no resizing: scales (1.0,), no flip).

    Args:
        network: in `eval()`, on `device`, with an attribute `stride`.
        image: (H, W, 3) uint8 RGB, of any size.
        scales: the image is resized to each. flip: and mirrored left to right too.
        precision: "bf16" computes the network, and nothing else, under autocast.

    Returns:
        (C, H, W) float32 on `device`; each pixel sums to 1.

    Reading: "multi-view" testing is not spelled out; every view counts the same, its probabilities
    (not its logits) are brought to the image's grid, and their arithmetic mean is taken.

    Raises:
        ValueError: the network is in training mode.
    """
    height, width = image.shape[:2]
    pixels = normalise(torch.from_numpy(np.array(image[None], order="C")).to(device))
    total = torch.zeros((), device=device)
    for scale in scales:
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        views = pixels if size == (height, width) else _resize(pixels, size)
        if flip:
            views = torch.cat([views, views.flip(3)])
        mean = view_probabilities(network, views, precision=precision)
        if flip:
            mean = (mean[:1] + mean[1:].flip(3)) / 2
        total = total + (mean if size == (height, width) else _resize(mean, (height, width)))
    return (total / len(scales))[0]


@torch.inference_mode()
def view_probabilities(network: nn.Module, views: Tensor, *, precision: Precision) -> Tensor:
    """Probabilities for each pixel of a batch of views of one size, in one forward pass.

    Args:
        network: see `predict_probabilities`.
        views: (B, 3, H, W) float32, normalised, on the network's device.

    Returns:
        (B, C, H, W) float32.

    Reading: sizes are brought to a multiple of the stride by the mean colour below and to the
    right. Probabilities, not logits, are enlarged, with half-pixel centres as in `labels_on_grid`.
    """
    if network.training:
        raise ValueError("the network is in training mode; call network.eval() first")
    height, width = views.shape[2:]
    stride = int(network.stride)  # type: ignore[arg-type]
    padded = F.pad(views, (0, -width % stride, 0, -height % stride))  # 0 is the mean colour
    padded = padded.contiguous(memory_format=torch.channels_last)
    with torch.autocast(views.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = network(padded)
    probabilities = logits.float().softmax(dim=1)  # (B, C, h, w)
    probabilities = F.interpolate(probabilities, size=padded.shape[2:], mode="bilinear")
    return probabilities[:, :, :height, :width]


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to another size; what is made smaller is smoothed first."""
    return F.interpolate(maps, size=size, mode="bilinear", antialias=True)


def for_inference(network: nn.Module, *, precision: Precision) -> nn.Module:
    """A copy that gives the same outputs but for rounding, in less time; never to be saved.

    Each BatchNorm is merged into the convolution before it, and weights are kept channels-last and
    in the precision they are used in. The given network must be in `eval()`, and stays as it is.
    """
    fast = copy.deepcopy(network)
    for module in list(fast.modules()):
        before = ""
        for name, child in list(module.named_children()):
            # in our bodies a BatchNorm is declared right after the convolution that it follows
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(getattr(module, before), child))
                setattr(module, name, nn.Identity())
            before = name
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return fast.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
