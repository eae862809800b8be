"""Residual bodies (He et al. 2016, the original "v1"), at any output stride.

B images, C channels, H x W pixels, h x w cells of the body's grid (h = H / stride).
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Plan:
    """What tells one depth from another."""

    block: Literal["basic", "bottleneck"]
    stem: tuple[int, int]  # kernel, channels; always stride 2
    max_pool: bool  # of stride 2, after the stem
    blocks: tuple[int, ...]  # residual blocks of each stage
    widths: tuple[int, ...]  # channels of each stage's 3x3 convolutions
    strides: tuple[int, ...]  # of each stage's first block, before any is taken out
    output_strides: tuple[int, ...]  # those that the papers use


PLANS = {
    8: Plan("basic", (3, 24), False, (1, 1, 1), (32, 64, 96), (2, 2, 2), (8, 16)),
    14: Plan("basic", (3, 24), False, (2, 2, 2), (32, 64, 96), (2, 2, 2), (8, 16)),
    50: Plan(
        "bottleneck", (7, 64), True, (3, 4, 6, 3), (64, 128, 256, 512), (1, 2, 2, 2), (8, 16, 32)
    ),
    101: Plan(
        "bottleneck", (7, 64), True, (3, 4, 23, 3), (64, 128, 256, 512), (1, 2, 2, 2), (8, 16, 32)
    ),
    152: Plan(
        "bottleneck", (7, 64), True, (3, 8, 36, 3), (64, 128, 256, 512), (1, 2, 2, 2), (8, 16, 32)
    ),
}


def conv3x3(inputs: int, outputs: int, *, stride: int, dilation: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (at stride 1), without bias: a BatchNorm follows."""
    return nn.Conv2d(
        inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )


def projection(inputs: int, outputs: int, *, stride: int) -> nn.Sequential | None:
    """The shortcut's 1x1 convolution, where a block changes size or channels."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions of `width` channels; the first carries the stride.

    Args:
        first_dilation: of the convolution that carries the stride.
        dilation: of the other.

    Attributes:
        dropout: of the residual branch, before the sum; None: none.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, first_dilation: int, dilation: int):
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride=stride, dilation=first_dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride=1, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(inputs, width, stride=stride)
        self.dropout: nn.Dropout | None = None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.dropout is not None:
            x = self.dropout(x)
        return self.relu(x.add_(shortcut))


class Bottleneck(nn.Module):
    """1x1 to `width` channels, 3x3 that carries the stride, 1x1 to four times `width`.

    The 3x3 is the only dilated one. It is the block's first, so it has `first_dilation`; `dilation`
    is for blocks with a second.

    Attributes:
        dropout: of the residual branch, before the sum; None: none.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, first_dilation: int, dilation: int):
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride=stride, dilation=first_dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(inputs, outputs, stride=stride)
        self.dropout: nn.Dropout | None = None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        if self.dropout is not None:
            x = self.dropout(x)
        return self.relu(x.add_(shortcut))


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
}


class ResNet(nn.Sequential):
    """Stem and stages: images (B, 3, H, W) float, normalised, to features (B, channels, h, w).

    The parts are named as in torchvision, so its weights load by name.

    Attributes:
        channels: of the output.
        stride: pixels per output cell.
    """

    def __init__(self, plan: Plan, stride: int):
        kernel, channels = plan.stem
        parts: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(3, channels, kernel, stride=2, padding=kernel // 2, bias=False),
            "bn1": nn.BatchNorm2d(channels),
            "relu": nn.ReLU(inplace=True),
        }
        reached, dilation = 2, 1
        if plan.max_pool:
            parts["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
            reached = 4
        block = BLOCKS[plan.block]
        stages = zip(plan.blocks, plan.widths, plan.strides, strict=True)
        for number, (blocks, width, step) in enumerate(stages, start=1):
            before = dilation
            if reached * step > stride:  # leave the step out, spread every later kernel instead
                dilation, step = dilation * step, 1
            reached *= step
            layers = []
            for index in range(blocks):
                first = (step, before) if index == 0 else (1, dilation)
                layers.append(block(channels, width, *first, dilation))
                channels = width * block.expansion
            parts[f"layer{number}"] = nn.Sequential(*layers)
        super().__init__(OrderedDict(parts))
        self.channels = channels
        self.stride = reached


def resnet(*, depth: int, stride: int, dropout: Sequence[float] = ()) -> ResNet:
    """A residual body with one feature vector for every `stride` pixels.

    A down-sampling step that would go beyond `stride` is left out and every later kernel is
    dilated instead, so bodies of all strides share their weights: sampled every 2 (4) cells, the
    body at stride 16 (8) equals the one at 32.

    Implements: Wu2016 Sec. 2.3.

    Args:
        depth: 50, 101, 152 (native stride 32), or 8 and 14, small ones for the drawn sample
            (native stride 16: 24, 32, 64, 96 channels in one or two basic blocks).
        stride: 8, 16, or 32 (not at depth 8 and 14).
        dropout: rates in the last residual blocks, the last block's last; 0 leaves a block out.

    New weights are drawn from torch's generator: Gaussian of variance 2 / fan_in.

    Reading: the convolution that carries a left-out stride keeps the dilation before it, since
    its own input is as dense as ever; all later ones are spread. Raising its dilation too would
    break the equality above (the stride sits on the 3x3 here, as in torchvision).

    Reading: which blocks have dropout, and how much, the paper does not say. Its authors' later
    code has 0.3 and 0.5 in the last two, after the last BatchNorm of the residual branch.

    Raises:
        ValueError: there is no such depth, it has no such stride, or fewer blocks than rates.
    """
    if depth not in PLANS:
        raise ValueError(f"no residual body of depth {depth}; choose one of {list(PLANS)}")
    plan = PLANS[depth]
    if stride not in plan.output_strides:
        raise ValueError(
            f"depth {depth} has no output stride {stride}; choose one of {plan.output_strides}"
        )
    network = ResNet(plan, stride)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    blocks = [m for m in network.modules() if isinstance(m, BasicBlock | Bottleneck)]
    if len(dropout) > len(blocks):
        raise ValueError(f"{len(dropout)} rates of dropout, but {len(blocks)} residual blocks")
    for block, rate in zip(reversed(blocks), reversed(dropout), strict=False):
        block.dropout = nn.Dropout(rate) if rate else None
    return network


class CropClassifier(nn.Module):
    """Body, average pool and a linear layer: one category for a whole crop."""

    def __init__(self, body: ResNet, num_categories: int):
        super().__init__()
        self.body = body
        self.linear = nn.Linear(body.channels, num_categories)

    def forward(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, H, W) float, normalised, to logits (B, C)."""
        return self.linear(self.body(crops).mean(dim=(2, 3)))


def freeze_batch_norm(network: nn.Module) -> None:
    """Keep the running statistics: call after each `network.train()`; gamma and beta still learn.

    Reading: the paper is silent; its authors' later code freezes the statistics, not the scales.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def replace_pairs(
    network: nn.Module, replacement: Callable[[nn.Conv2d, nn.BatchNorm2d], nn.Module]
) -> None:
    """Put one module, in place, where a convolution and the BatchNorm after it are."""
    for module in list(network.modules()):
        before = ""
        for name, child in list(module.named_children()):
            # in our bodies a BatchNorm is declared right after the convolution that it follows
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, before, replacement(getattr(module, before), child))
                setattr(module, name, nn.Identity())
            before = name


def load_body_weights(body: ResNet, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of the same depth in torchvision's names; its classifier is left out.

    timm's names of the original ResNets are the same.

    Raises:
        ValueError: names what is missing, unknown or of another shape.
    """
    own = body.state_dict()
    # a counter of batches seen, which nothing reads; files of before 2018 have none
    wanted = {name for name in own if not name.endswith(".num_batches_tracked")}
    given = {name: value for name, value in state.items() if not name.startswith("fc.")}
    problems = [f"no {name}" for name in wanted - given.keys()]
    problems += [f"{name} is unknown" for name in given.keys() - own.keys()]
    problems += [
        f"{name} is {_shape(given[name])}, not {_shape(own[name])}"
        for name in wanted & given.keys()
        if given[name].shape != own[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:3])
        raise ValueError(f"these weights do not fit the body ({len(problems)} problems: {shown})")
    body.load_state_dict(own | given)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
