"""DeepLab on VGG-16, version 1: the plain one, on which BoxSup builds, and LargeFOV.

B images, C categories, H x W pixels, h x w score cells. Cells lie on corners: cell (i, j) stands
for pixel (8i, 8j), so that sides of 8n + 1 pixels have n + 1 cells, and scores are enlarged with
aligned corners.
"""

from torch import Tensor, nn

from pipeline.models.vgg import Vgg, vgg16
from pipeline.params_networks import Grid, field_of_view


class Deeplab(nn.Module):
    """Body and a 1x1 classifier.

    Attributes:
        stride: pixels per score cell.
        grid: where in a cell its label is.
        field_of_view: pixels along one side that fc6 sees, on the grid of pool5.
        body: VGG-16 with fc6 and fc7.
        classifier: fc8, alone in knowing the categories.
    """

    grid: Grid = "corners"

    def __init__(self, body: Vgg, num_categories: int):
        super().__init__()
        self.stride = body.stride
        self.field_of_view = field_of_view(
            stride=body.stride, kernel=body.fc6.kernel_size[0], dilation=body.fc6.dilation[0]
        )
        self.body = body
        self.classifier = nn.Conv2d(body.channels, num_categories, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float, normalised, to logits (B, C, h, w)."""
        return self.classifier(self.body(images))


def deeplab(*, num_categories: int, dropout: float) -> Deeplab:
    """The plain DeepLab: fc6 of 4x4, dilation 4, and 4096 channels.

    Implements: Dai2015 Sec. 5 (the network of its baseline).

    Args:
        num_categories: C, background included. dropout: rate after fc6 and after fc7.

    Reading: the baseline is told only as "our implementation of DeepLab-CRF" with 63.8; that is
    the plain network's 63.7, not LargeFOV's.
    """
    body = vgg16(kernel=4, dilation=4, channels=4096, dropout=dropout)
    return _with_classifier(body, num_categories)


def deeplab_largefov(*, num_categories: int, dropout: float) -> Deeplab:
    """DeepLab-LargeFOV: fc6 of 3x3, dilation 12, 1024 channels, behind 3x3 means of pool5.

    Args:
        num_categories, dropout: as of `deeplab`.
    """
    body = vgg16(kernel=3, dilation=12, channels=1024, dropout=dropout, average=True)
    return _with_classifier(body, num_categories)


def _with_classifier(body: Vgg, num_categories: int) -> Deeplab:
    network = Deeplab(body, num_categories)
    nn.init.normal_(network.classifier.weight, std=0.01)
    assert network.classifier.bias is not None
    nn.init.zeros_(network.classifier.bias)
    return network
