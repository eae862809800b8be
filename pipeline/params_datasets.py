"""What params.yaml may say of datasets."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SampleDataset:
    """The drawn miniature world, written in the layouts of VOC2012 and SBD."""

    kind: Literal["sample"]
    train: int  # images with masks in VOC's form: VOC's 1,464
    extra: int  # images with masks in SBD's form only: train_aug is train + extra
    more: int  # the same, which train_aug leaves out and split `mixed` has: COCO's 123,287
    val: int


@dataclass(frozen=True)
class Voc2012Dataset:
    """PASCAL VOC 2012 with the masks of SBD."""

    kind: Literal["voc2012"]


@dataclass(frozen=True)
class Voc2007Dataset:
    """PASCAL VOC 2007, train, val and test: boxes only."""

    kind: Literal["voc2007"]


@dataclass(frozen=True)
class SbdDataset:
    """The Semantic Boundaries Dataset alone, with the lists for instance segmentation."""

    kind: Literal["sbd"]


@dataclass(frozen=True)
class ContextDataset:
    """PASCAL-Context on the images of VOC 2010: 59 categories and background."""

    kind: Literal["context"]


@dataclass(frozen=True)
class CityscapesDataset:
    """Cityscapes, fine annotations: 19 categories."""

    kind: Literal["cityscapes"]
    instances: Literal["maps", "polygons"]  # where objects come from: instanceIds or polygons


@dataclass(frozen=True)
class CocoDataset:
    """COCO's instances, train and val."""

    kind: Literal["coco"]
    year: Literal[2014, 2017]  # the same images, divided otherwise
    categories: Literal["voc", "coco"]  # VOC's 20, or all 80
    others: Literal["background", "ignore"]  # what COCO's other 60 are where VOC's 20 are asked for


@dataclass(frozen=True)
class Bsds500Dataset:
    """BSDS500: photographs and the contours that people drew; to learn from, not to segment."""

    kind: Literal["bsds500"]


@dataclass(frozen=True)
class FolderDataset:
    """Somebody's own images; docs/OWN_IMAGES.md says how the folder is laid out."""

    kind: Literal["folder"]
    val_fraction: float  # of the images, where the folder has no lists of its own
    seed: int  # of that division


MaskDataset = SampleDataset | Voc2012Dataset | SbdDataset | FolderDataset
BoxDataset = Voc2007Dataset | CocoDataset | FolderDataset


@dataclass(frozen=True)
class MixtureDataset:
    """A dataset with masks and the images of others with their boxes only.

    Its splits are those of `masks`, `boxes` (all images of the others), and `mixed`: both
    `split` and `boxes`.
    """

    kind: Literal["mixture"]
    masks: MaskDataset
    split: str  # of `masks`
    boxes: tuple[BoxDataset, ...]


Dataset = (
    SampleDataset
    | Voc2012Dataset
    | Voc2007Dataset
    | SbdDataset
    | ContextDataset
    | CityscapesDataset
    | CocoDataset
    | Bsds500Dataset
    | FolderDataset
    | MixtureDataset
)
