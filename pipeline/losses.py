"""What the networks minimise.

B crops, C categories, T categories that have objects, h x w score cells, N = h w cells of a crop.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.box_targets import (
    Standard,
    box_iou,
    boxes_of,
    cell_centres,
    normalise_targets,
    raw_targets,
)
from pipeline.categories import IGNORE
from pipeline.params_networks import Grid
from pipeline.params_training import (
    AllPixels,
    Bootstrapping,
    BoxBootstrapping,
    EqualWeights,
    IouMinKept,
    Targets,
    ThreshMinKept,
    Weighting,
)


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


def bootstrapped_box_loss(
    outputs: Tensor,
    truth: Tensor,
    *,
    grid: Grid,
    stride: int,
    targets: Targets,
    standard: Standard,
    beta: float,
    weighting: Weighting,
    bootstrapping: BoxBootstrapping,
) -> Tensor:
    """Weighted mean of the smooth L1 loss of the boxes over the kept cells, in float32.

    Implements: Wu2016 Sec. 2.1 (smooth L1 loss, weights by size), Wu2016 Sec. 2.2 (bootstrapping
        of the localisation network).

        sum of w_i l_i / sum of w_i over the kept cells i, where l_i adds up over four targets
        d^2 / (2 beta) if |d| < beta, else |d| - beta / 2

    Args:
        outputs: (B, 4 T, h, w), any float type: channels 4 t .. 4 t + 3 are those of thing t.
        truth: (B, 5, h, w) float32: number of the thing + 1 (0: no object here, no loss), and the
            corners of the whole object in pixels of the view, of sides > 0.
        grid, stride: of the score cells.
        targets, standard: how a box is told in numbers; see `pipeline.box_targets`.
        beta: where a square turns into a line, in deviations.
        weighting: `SizeWeights`: w = (height x width of the true box) ** -alpha, brought to mean 1
            over the kept cells of the batch, then bounded.
        bootstrapping: as of `bootstrapped_cross_entropy`, where those cells are hard whose box
            overlaps the true one least. `IouMinKept`: those with an IoU of at most `iou`, and the
            `keep` hardest in any case.

    Returns:
        A scalar, which has a graph even if no cell counts (then it is 0). Not finite where any
        output is not, also one that no object asks for. Nothing makes a GPU wait.

    Reading: the paper names neither a threshold of the IoU nor the weight's function of height and
    width; cells are kept as of a semantic network.
    """
    number = truth[:, :1]  # (B, 1, h, w)
    here = number > 0
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None, None]  # a logarithm needs a size
    boxes = torch.where(here, truth[:, 1:], unit.to(truth.device, non_blocking=True))
    xs, ys = cell_centres(*truth.shape[2:], stride=stride, grid=grid, device=truth.device)
    wanted = normalise_targets(raw_targets(boxes, xs, ys, targets), standard)
    predicted = _of_own_thing(outputs, number)
    losses = F.smooth_l1_loss(predicted, wanted, reduction="none", beta=beta).sum(1)  # (B, h, w)
    with torch.no_grad():
        overlap = box_iou(boxes_of(predicted, xs, ys, targets, standard), boxes, dim=1)
        kept = _kept(-overlap.flatten(1), here.flatten(1), bootstrapping)
        weights = _weights(boxes, kept.view_as(overlap), weighting)
        total = weights.sum()
        broken = outputs.sum(dtype=torch.float32) * 0  # NaN if an output is not finite
    return (losses * weights).sum() / torch.where(total > 0, total, 1) + broken


def _of_own_thing(outputs: Tensor, number: Tensor) -> Tensor:
    """Of (B, 4 T, h, w), the four channels of each cell's thing: (B, 4, h, w) float32.

    number: (B, 1, h, w), thing + 1; cells with 0 get those of thing 0.
    """
    thing = (number.long() - 1).clamp(min=0)[:, None].expand(-1, 1, 4, -1, -1)
    return outputs.unflatten(1, (-1, 4)).gather(1, thing).squeeze(1).float()


def _weights(boxes: Tensor, kept: Tensor, weighting: Weighting) -> Tensor:
    """The weight of each cell (B, h, w) float32, 0 where it is not kept, by its true box."""
    if isinstance(weighting, EqualWeights):
        return kept.float()
    x0, y0, x1, y1 = boxes.unbind(1)
    weights = ((y1 - y0) * (x1 - x0)) ** -weighting.alpha
    mean = (weights * kept).sum() / kept.sum().clamp(min=1)
    return (weights / mean).clamp(weighting.lowest, weighting.highest) * kept


def _kept(
    hardness: Tensor, valid: Tensor, bootstrapping: Bootstrapping | BoxBootstrapping
) -> Tensor:
    """Which cells (B, N) count, given how hard each is and which have a truth (B, N).

    hardness: -log p or, of boxes, -IoU. Returns (B, N) bool.
    """
    if isinstance(bootstrapping, AllPixels):
        return valid
    ranked = hardness.masked_fill(~valid, -math.inf)
    if bootstrapping.scope == "device_batch":
        ranked = ranked.reshape(1, -1)
    hardest = ranked.argsort(dim=1, descending=True, stable=True)[:, : bootstrapping.keep]
    hard = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, hardest, True)
    hard = hard.view_as(hardness)
    if isinstance(bootstrapping, ThreshMinKept):
        hard = hard | (hardness >= -math.log(bootstrapping.threshold))
    if isinstance(bootstrapping, IouMinKept):
        hard = hard | (hardness >= -bootstrapping.iou)
    return hard & valid
