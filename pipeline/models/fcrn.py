"""Fully convolutional residual network (Wu et al. 2016): a dilated body and a dilated classifier.

B images, C categories, H x W pixels, h x w score cells (h = H / stride, w = W / stride).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.models.resnet import ResNet, resnet
from pipeline.params_networks import Grid, field_of_view


class Fcrn(nn.Module):
    """Body, maybe a hidden layer, and classifier.

    Attributes:
        stride: pixels per score cell.
        grid: where in a cell its label is.
        field_of_view: pixels along one side that hidden layer and classifier see.
        body: the residual body.
        hidden: a convolution and ReLU between body and classifier; None: the classifier is linear.
        classifier: the last convolution, alone in knowing the categories.
    """

    grid: Grid = "centres"

    def __init__(
        self, body: ResNet, *, kernel: int, dilation: int, hidden: int, num_categories: int
    ):
        super().__init__()
        self.stride = body.stride
        self.field_of_view = field_of_view(
            stride=body.stride, kernel=kernel, dilation=dilation, layers=2 if hidden else 1
        )
        self.body = body
        self.hidden = (
            nn.Sequential(
                _same_size(body.channels, hidden, kernel, dilation), nn.ReLU(inplace=True)
            )
            if hidden
            else None
        )
        self.classifier = _same_size(hidden or body.channels, num_categories, kernel, dilation)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float, normalised, to logits (B, C, h, w)."""
        features = self.body(images)
        if self.hidden is not None:
            features = self.hidden(features)
        return self.classifier(features)


def _same_size(inputs: int, outputs: int, kernel: int, dilation: int) -> nn.Conv2d:
    """A dilated convolution with bias that keeps the size."""
    padding = (kernel - 1) // 2 * dilation
    return nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation)


def fcrn(
    *,
    depth: int,
    stride: int,
    kernel: int,
    dilation: int,
    num_categories: int,
    hidden: int = 0,
    dropout: Sequence[float] = (),
) -> Fcrn:
    """The network of Wu et al.; "vanilla" as it stands, without hidden layer and dropout.

    Implements: Wu2016 Sec. 2.3, Wu2016 Sec. 1 (non-linear classifier, dropout in residual blocks).

    Args:
        depth: of the body: 50, 101, 152, or 8 and 14 for the drawn sample.
        stride: pixels per score cell: 8, 16, 32.
        kernel: side of the classifier's kernel, odd.
        dilation: of the classifier.
        num_categories: C, background included.
        hidden: channels of a layer before the classifier, of its kernel and dilation; 0: none.
        dropout: rates of the last residual blocks; see `resnet`.

    Reading: the classifier starts at zero at every depth. The paper is silent; Gaussian and zero
    starts are both in use. From zero the first scores are uniform, so that BoxSup's first label
    step is decided by the overlap alone, and no draw stands between two runs of one seed.

    Reading: the paper does not say what its "multi-layer non-linear" classifier is. Its authors'
    later code has 3x3 of dilation 12 to 512 channels, ReLU, and 3x3 of dilation 12 to the
    categories: together the field of view of the best linear one, 5x5 of dilation 12.

    Raises:
        ValueError: no such depth or stride, an even kernel, or more rates than blocks.
    """
    if kernel % 2 == 0:
        raise ValueError(f"the classifier's kernel must be odd, not {kernel}")
    network = Fcrn(
        resnet(depth=depth, stride=stride, dropout=dropout),
        kernel=kernel,
        dilation=dilation,
        hidden=hidden,
        num_categories=num_categories,
    )
    for module in network.hidden or ():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            _zero(module.bias)
    _zero(network.classifier.weight)
    _zero(network.classifier.bias)
    return network


def _zero(parameter: Tensor | None) -> None:
    assert parameter is not None
    nn.init.zeros_(parameter)
