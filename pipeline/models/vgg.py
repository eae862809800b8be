"""VGG-16 (Simonyan and Zisserman 2015) as a body at 1/8, its fc6 and fc7 as convolutions.

B images, H x W pixels, h x w cells. Cell (i, j) is centred on pixel (8i, 8j): h = (H - 1) / 8 + 1
where H - 1 is a multiple of 8.
"""

from collections.abc import Mapping

from torch import Tensor, nn

STRIDE = 8
CHANNELS = (64, 128, 256, 512, 512)  # of each group of 3x3 convolutions
CONVOLUTIONS = (2, 2, 3, 3, 3)
HALVED = 3  # groups whose pooling has stride 2; after the fourth, kernels are spread instead

# fc6 and fc7 in torchvision's names, and in timm's; the last layer, of ImageNet's categories, goes
FULL_LAYERS = {
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "pre_logits.fc1": "fc6",
    "pre_logits.fc2": "fc7",
}
LAST_LAYERS = ("classifier.6.", "head.")


class Vgg(nn.Module):
    """Thirteen 3x3 convolutions, and the first two fully connected layers as convolutions.

    Images (B, 3, H, W) float, normalised, to features (B, channels, h, w). `features` is named as
    in torchvision, so that its weights load by name.

    Attributes:
        channels: of the output. stride: pixels per cell.
    """

    def __init__(self, *, kernel: int, dilation: int, channels: int, dropout: float, average: bool):
        """
        Args:
            kernel, dilation: of fc6, (kernel - 1) * dilation even.
            channels: of fc6 and of fc7.
            dropout: rate after each of them.
            average: whether 3x3 means are taken before fc6.
        """
        super().__init__()
        self.channels, self.stride = channels, STRIDE
        self.features = _features()
        self.average = nn.AvgPool2d(3, stride=1, padding=1) if average else nn.Identity()
        padding = (kernel - 1) * dilation // 2
        self.fc6 = nn.Conv2d(CHANNELS[-1], channels, kernel, padding=padding, dilation=dilation)
        self.fc7 = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.average(self.features(images))
        x = self.dropout(self.relu(self.fc6(x)))
        return self.dropout(self.relu(self.fc7(x)))


def _features() -> nn.Sequential:
    """conv1_1 to pool5, each layer at the number that it has in torchvision."""
    layers: list[nn.Module] = []
    inputs = 3
    for group, (outputs, count) in enumerate(zip(CHANNELS, CONVOLUTIONS, strict=True)):
        spread = 1 if group <= HALVED else 2
        for _ in range(count):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=spread, dilation=spread))
            layers.append(nn.ReLU(inplace=True))
            inputs = outputs
        layers.append(nn.MaxPool2d(3, stride=2 if group < HALVED else 1, padding=1))
    return nn.Sequential(*layers)


def vgg16(
    *, kernel: int, dilation: int, channels: int, dropout: float = 0.0, average: bool = False
) -> Vgg:
    """A body with fresh weights, drawn for ReLUs (variance 2 / fan-in), biases 0.

    Reading: poolings are 3x3, padded by 1, as in DeepLab's scripts from LargeFOV on: with VGG's own
    2x2 the cells' centres move by half a pixel with each. The scripts of the plain DeepLab still
    have 2x2, and crops of 306 pixels whose labels are moved to fit.

    Args:
        kernel, dilation, channels, dropout, average: see `Vgg`.

    Raises:
        ValueError: fc6 cannot keep the size.
    """
    if (kernel - 1) * dilation % 2:
        raise ValueError(f"a kernel of {kernel} with dilation {dilation} does not keep the size")
    body = Vgg(
        kernel=kernel, dilation=dilation, channels=channels, dropout=dropout, average=average
    )
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return body


def convolutional(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of VGG-16 with its full layers fc6 and fc7 as convolutions, in our names.

    fc6 sees all of 512 channels of 7 x 7 cells: 4096 x 25088 numbers are a 7x7 convolution's.

    Args:
        state: in torchvision's or timm's names; other names stay as they are.

    Raises:
        ValueError: a full layer's weights are not of VGG-16's shape.
    """
    shapes = {"fc6.weight": (4096, 512, 7, 7), "fc7.weight": (4096, 4096, 1, 1)}
    found = {}
    for name, value in state.items():
        if name.startswith(LAST_LAYERS):
            continue
        layer, _, part = name.rpartition(".")
        ours = f"{FULL_LAYERS.get(layer, layer)}.{part}"
        if ours in shapes:
            try:
                value = value.reshape(shapes[ours])
            except RuntimeError as error:
                raise ValueError(f"{name} is {tuple(value.shape)}: not of VGG-16") from error
        found[ours] = value
    return found


def subsampled(state: Mapping[str, Tensor], body: Vgg) -> dict[str, Tensor]:
    """Weights of a VGG-16 whose fc6 and fc7 are taken at even steps, where the body's are smaller.

    Of a kernel the outer taps stay: 0, 2, 4, 6 of seven for four, 0, 3, 6 for three. Of 4096
    channels every fourth stays for 1024.

    Reading: the makers say that fc6 is subsampled, and neither which taps nor which channels stay;
    public ports of their network take even steps.

    Args:
        state: in our names; what it lacks, or has not whole steps, is left as it is.
    """
    own, taken = body.state_dict(), dict(state)
    for name in ("fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"):
        if name not in state or state[name].ndim != own[name].ndim:
            continue
        every = []
        for axis, (given, wanted) in enumerate(
            zip(state[name].shape, own[name].shape, strict=True)
        ):
            # channels are counted from their first edge, taps from the first to the last
            parts, kept = (given, wanted) if axis < 2 else (given - 1, wanted - 1)
            even = 0 < kept < parts and parts % kept == 0
            every.append(slice(None, None, parts // kept if even else 1))
        taken[name] = state[name][tuple(every)]
    return taken
