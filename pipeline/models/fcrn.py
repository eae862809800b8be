"""Fully convolutional residual network (Wu et al. 2016): a dilated body and one convolution.

B images, C categories, H x W pixels, h x w score cells (h = H / stride, w = W / stride).
"""

from torch import Tensor, nn

from pipeline.models.resnet import ResNet, resnet


def field_of_view(*, stride: int, kernel: int, dilation: int) -> int:
    """Pixels along one side that the classifier sees: its own taps, not the body's field.

    stride ((kernel - 1) dilation + 1).

    Implements: Wu2016 Table 1, Wu2016 Table 3 (the column "FoV").
    """
    return stride * ((kernel - 1) * dilation + 1)


class Fcrn(nn.Module):
    """Body and classifier.

    Attributes:
        stride: pixels per score cell.
        body: the residual body; `classifier`: the one convolution above it.
    """

    def __init__(self, body: ResNet, *, kernel: int, dilation: int, num_categories: int):
        super().__init__()
        self.stride = body.stride
        self.body = body
        self.classifier = nn.Conv2d(
            body.channels,
            num_categories,
            kernel,
            padding=(kernel - 1) // 2 * dilation,
            dilation=dilation,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float, normalised, to logits (B, C, h, w)."""
        return self.classifier(self.body(images))


def fcrn(*, depth: int, stride: int, kernel: int, dilation: int, num_categories: int) -> Fcrn:
    """The network of Wu et al. with "vanilla" classifier: one dilated convolution with bias.

    Implements: Wu2016 Sec. 2.3.

    Args:
        depth: of the body: 50, 101, 152, or 14 for the drawn sample.
        stride: pixels per score cell: 8, 16, 32.
        kernel: side of the classifier's kernel, odd.
        dilation: of the classifier.
        num_categories: C, background included.

    Reading: the classifier starts at zero at every depth. The paper is silent; Gaussian and zero
    starts are both in use. From zero the first scores are uniform, so that BoxSup's first label
    step is decided by the overlap alone, and no draw stands between two runs of one seed.

    Raises:
        ValueError: no such depth or stride, or an even kernel.
    """
    if kernel % 2 == 0:
        raise ValueError(f"the classifier's kernel must be odd, not {kernel}")
    network = Fcrn(
        resnet(depth=depth, stride=stride),
        kernel=kernel,
        dilation=dilation,
        num_categories=num_categories,
    )
    nn.init.zeros_(network.classifier.weight)
    assert network.classifier.bias is not None
    nn.init.zeros_(network.classifier.bias)
    return network
