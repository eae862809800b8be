"""What params.yaml may say, as frozen dataclasses: here of evaluations, and the whole.

The other sections are in `params_datasets`, `params_proposals` (with forests), `params_networks`
(with starting weights) and `params_training`.

Where a key is a choice that brings keys of its own (``estimator: {kind: grabcut, ...}``), each kind
is a dataclass and ``kind`` picks it. Every number has its source as a comment in params.yaml.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.params_datasets import Dataset
from pipeline.params_networks import Weights
from pipeline.params_proposals import Forest, ProposalSet
from pipeline.params_training import BoxSupRun, InstanceRun, Run, SemanticRun

SECTIONS = (
    "datasets",
    "forests",
    "proposals",
    "weights",
    "semantic",
    "boxsup",
    "instance",
    "evaluations",
)
TRAINED = ("semantic", "boxsup", "instance")  # the sections of trainings


# --- evaluations -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Views:
    """At what an image is looked at: `pipeline.inference.predict_probabilities`."""

    scales: tuple[float, ...]
    flip: bool
    shifts: int  # n: at n x n places of the grid of score cells


ONE_VIEW = Views(scales=(1.0,), flip=False, shifts=1)  # the image as it is


@dataclass(frozen=True)
class DenseCrf:
    """A CRF over all pairs of pixels, after the views are averaged: `pipeline.crf.dense`."""

    kind: Literal["dense"]
    bilateral_weight: float  # of pixels that are near and of one colour
    bilateral_xy: float  # pixels
    bilateral_rgb: float  # levels of 0..255
    gaussian_weight: float  # of pixels that are near
    gaussian_xy: float  # pixels
    iterations: int  # of mean field
    prune: float  # categories less probable than this everywhere are left out; 0: none


Crf = Literal["none"] | DenseCrf


@dataclass(frozen=True)
class RegionIou:
    """A mask is dropped where one of more confidence overlaps it by `iou` or more."""

    kind: Literal["iou"]
    iou: float


@dataclass(frozen=True)
class AnyOverlap:
    """A mask is dropped where one of more confidence shares any pixel with it."""

    kind: Literal["any_overlap"]


RegionNms = RegionIou | AnyOverlap


@dataclass(frozen=True)
class BoxInstances:
    """Objects from the boxes that pixels vote for: `pipeline.instances`."""

    kind: Literal["boxes"]
    vote_stride: int  # pixels from one vote to the next
    top_masks: int  # n: pixels where a category is among the n best are its n-th mask
    min_probability: float  # pixels where a category is less probable are in none of its masks
    nms_iou: float  # a box that overlaps a better one so much votes for the same object
    region_nms: RegionNms
    min_pixels: int  # smaller masks are dropped


@dataclass(frozen=True)
class ComponentInstances:
    """Objects are the connected components of the label map: what boxes have to beat."""

    kind: Literal["components"]
    min_pixels: int  # smaller ones are dropped


Instances = Literal["none"] | BoxInstances | ComponentInstances


@dataclass(frozen=True)
class Evaluation:
    """How networks are tested.

    Where objects are found (`instances`), `model: none` puts the true masks in the place of a
    semantic network, and `localization: none` the true boxes in that of a localisation network.
    """

    model: str
    localization: str
    dataset: str
    split: str
    views: Views
    crf: Crf
    instances: Instances
    stands_for: tuple[str, ...]  # rows of reports/paper.csv: "wu2016/Table 7/1"


@dataclass(frozen=True)
class Params:
    datasets: dict[str, Dataset]
    forests: dict[str, Forest]
    proposals: dict[str, ProposalSet]
    weights: dict[str, Weights]
    semantic: dict[str, SemanticRun]
    boxsup: dict[str, BoxSupRun]
    instance: dict[str, InstanceRun]
    evaluations: dict[str, Evaluation]


def trained_runs(params: Params) -> dict[str, Run]:
    """All that is trained, by name: no two sections share one."""
    return {**params.semantic, **params.boxsup, **params.instance}


def section_of(params: Params, run: str) -> str:
    """The section of params.yaml that holds a training."""
    return next(section for section in TRAINED if run in getattr(params, section))
