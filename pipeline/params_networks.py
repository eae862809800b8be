"""What params.yaml may say of networks and of the weights that they start from."""

from dataclasses import dataclass
from typing import ClassVar, Literal

Precision = Literal["fp32", "bf16"]
Grid = Literal["centres", "corners"]  # where a score cell's label is: `transforms.labels_on_grid`


# --- starting weights ----------------------------------------------------------------------------
@dataclass(frozen=True)
class NoWeights:
    kind: Literal["none"]


@dataclass(frozen=True)
class ImagenetWeights:
    """torchvision's ImageNet weights of VGG-16, or of a ResNet."""

    kind: Literal["imagenet"]
    depth: Literal[16, 50, 101, 152]  # 16: VGG-16; the others: ResNets


@dataclass(frozen=True)
class FileWeights:
    """Somebody's weights of VGG-16 or a ResNet, in a file of torchvision's or timm's names."""

    kind: Literal["file"]
    depth: Literal[16, 50, 101, 152]  # as of ImagenetWeights
    place: str  # a folder: data/raw/<place>, or where local.yaml or PIPELINE_DATA_<PLACE> says
    file: str  # its name there
    sha256: str  # its digest or the first 8 digits of it or more; none: any file of that name


@dataclass(frozen=True)
class CropWeights:
    """A body trained to classify drawn crops of one object each: stands in for ImageNet."""

    kind: Literal["crops"]
    depth: Literal[14, 8]
    crops: int
    size: int  # of a crop, pixels
    batch: int
    steps: int
    lr: float
    seed: int
    precision: Precision
    threads: int  # of the processor, while training and predicting; 0: all there are


Weights = NoWeights | ImagenetWeights | FileWeights | CropWeights


# --- networks ------------------------------------------------------------------------------------
def field_of_view(*, stride: int, kernel: int, dilation: int, layers: int = 1) -> int:
    """Pixels along one side that the classifier sees: its own taps, not the body's field.

    stride (layers (kernel - 1) dilation + 1), for one convolution after another.

    Implements: Wu2016 Table 1, Wu2016 Table 3 (the column "FoV").
    """
    return stride * (layers * (kernel - 1) * dilation + 1)


@dataclass(frozen=True)
class Fcrn:
    """The network of Wu et al.: a dilated residual body and one dilated convolution on top."""

    kind: Literal["fcrn"]
    depth: Literal[8, 14, 50, 101, 152]
    stride: Literal[8, 16, 32]  # 8 means 1/8 resolution
    kernel: int
    dilation: int
    grid: ClassVar[Grid] = "centres"

    @property
    def field_of_view(self) -> int:
        """Of the classifier, in pixels."""
        return field_of_view(stride=self.stride, kernel=self.kernel, dilation=self.dilation)


@dataclass(frozen=True)
class FcrnExtended(Fcrn):
    """The same with what Wu et al. add for their best: a hidden layer and dropout.

    The hidden layer has the classifier's kernel and dilation.
    """

    kind: Literal["fcrn_extended"]  # type: ignore[assignment]
    hidden: int  # its channels; 0: the classifier stays linear
    dropout: tuple[float, ...]  # rates of the last residual blocks, the last one last; [] or 0: off

    @property
    def field_of_view(self) -> int:
        """Of the classifier, in pixels."""
        return field_of_view(
            stride=self.stride,
            kernel=self.kernel,
            dilation=self.dilation,
            layers=2 if self.hidden else 1,
        )


@dataclass(frozen=True)
class Deeplab:
    """The plain DeepLab on VGG-16, the network of Dai et al."""

    kind: Literal["deeplab"]
    dropout: float  # rate after fc6 and after fc7
    last_lr_factor: float  # the last layer learns at lr times this, its bias as others beside it
    depth: ClassVar[int] = 16
    stride: ClassVar[int] = 8
    kernel: ClassVar[int] = 4  # of fc6
    dilation: ClassVar[int] = 4
    grid: ClassVar[Grid] = "corners"

    @property
    def field_of_view(self) -> int:
        """Of fc6, in pixels, as of `Fcrn`.

        DeepLab's own tables count 24 pixels more: 128 here and 224 for LargeFOV.
        """
        return field_of_view(stride=self.stride, kernel=self.kernel, dilation=self.dilation)


@dataclass(frozen=True)
class DeeplabLargeFov(Deeplab):
    """DeepLab-LargeFOV on VGG-16: another network, with numbers of its own."""

    kind: Literal["deeplab_largefov"]  # type: ignore[assignment]
    kernel: ClassVar[int] = 3
    dilation: ClassVar[int] = 12


Network = Fcrn | FcrnExtended | Deeplab | DeeplabLargeFov
