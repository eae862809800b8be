"""What the networks minimise.

B crops, C categories, h x w score cells, K kept cells.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.categories import IGNORE
from pipeline.params import AllPixels, Bootstrapping, ThreshMinKept


def bootstrapped_cross_entropy(
    logits: Tensor, truth: Tensor, bootstrapping: Bootstrapping
) -> Tensor:
    """Mean of -log p(truth) over the kept cells of the batch, in float32.

    Implements: Wu2016 Eq. 1, Dai2015 Eq. 1 (bootstrapping off).

        1 / |S| sum of -log p_i over i in S,   S = cells with p_i < t

    Args:
        logits: (B, C, h, w), any float type.
        truth: (B, h, w) integers: category, or 255 (never counted).
        bootstrapping: which cells are kept. `AllPixels`: each one. `TopK`: exactly the `keep`
            hardest. `ThreshMinKept`: those with p <= `threshold`, and the `keep` hardest in any
            case. With scope "crop" the hardest are sought in each crop by itself, with
            "device_batch" among all crops at once; the division is by all kept cells either way.

    Returns:
        A scalar, which has a graph even if no cell counts (then it is 0). A batch that holds
        fewer than `keep` cells with a label keeps them all.

    Reading: the paper moves t per mini-batch so that a fixed number of pixels remains, and Table 7
    names the number. So t is the K-th smallest p, and we keep the K hardest cells; among equal
    cells, those that come first. Its prose drops losses "below t", but t bounds a probability.
    """
    losses = F.cross_entropy(
        logits.float(), truth.long(), ignore_index=IGNORE, reduction="none"
    ).flatten(1)  # (B, h * w)
    kept = _kept(losses.detach(), (truth != IGNORE).flatten(1), bootstrapping)
    return (losses * kept).sum() / kept.sum().clamp(min=1)


def _kept(losses: Tensor, valid: Tensor, bootstrapping: Bootstrapping) -> Tensor:
    """Which of the losses (B, N) count, given which have a label (B, N). Returns (B, N) bool."""
    if isinstance(bootstrapping, AllPixels):
        return valid
    hardness = losses.masked_fill(~valid, -math.inf)
    if bootstrapping.scope == "device_batch":
        hardness = hardness.reshape(1, -1)
    hardest = hardness.argsort(dim=1, descending=True, stable=True)[:, : bootstrapping.keep]
    hard = torch.zeros_like(hardness, dtype=torch.bool).scatter_(1, hardest, True)
    hard = hard.view_as(losses)
    if isinstance(bootstrapping, ThreshMinKept):
        hard = hard | (losses >= -math.log(bootstrapping.threshold))
    return hard & valid
