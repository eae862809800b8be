"""What params.yaml may say of trainings."""

from dataclasses import dataclass
from typing import Literal

from pipeline.params_networks import Network, Precision


# --- every training ------------------------------------------------------------------------------
@dataclass(frozen=True)
class LinearSchedule:
    """lr to 0 in a straight line, after a linear warm-up."""

    kind: Literal["linear"]
    warmup: int  # steps


@dataclass(frozen=True)
class StepSchedule:
    """lr times `factor` after every `every` epochs."""

    kind: Literal["step"]
    every: int
    factor: float


@dataclass(frozen=True)
class PolySchedule:
    """lr (1 - step / steps) ** power."""

    kind: Literal["poly"]
    power: float


Schedule = LinearSchedule | StepSchedule | PolySchedule


@dataclass(frozen=True)
class Augmentation:
    crop: tuple[int, int]  # height, width
    scale: tuple[float, float]  # uniform between these
    flip: Literal["none", "horizontal", "both"]


@dataclass(frozen=True)
class TrainingRun:
    """What every training says."""

    dataset: str
    split: str
    init: str
    network: Network
    augmentation: Augmentation
    batch: int
    epochs: int
    lr: float
    schedule: Schedule
    momentum: float
    nesterov: bool
    weight_decay: float  # on convolution weights and gammas
    bias_lr_factor: float  # biases and betas learn at lr times this, without decay
    batch_norm: Literal["train", "frozen"]
    seed: int
    precision: Precision
    threads: int  # of the processor, while training and predicting; 0: all there are


# --- by masks ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AllPixels:
    kind: Literal["off"]


@dataclass(frozen=True)
class TopK:
    """Exactly the `keep` hardest pixels of the score grid."""

    kind: Literal["topk"]
    keep: int
    scope: Literal["crop", "device_batch"]  # among whose cells; the batch of all processes


@dataclass(frozen=True)
class ThreshMinKept:
    """Pixels whose true category is at most `threshold` probable, and never fewer than `keep`."""

    kind: Literal["thresh_minkept"]
    threshold: float
    keep: int
    scope: Literal["crop", "device_batch"]  # among whose cells; the batch of all processes


Bootstrapping = AllPixels | TopK | ThreshMinKept


@dataclass(frozen=True)
class SemanticRun(TrainingRun):
    """A semantic network trained by masks."""

    bootstrapping: Bootstrapping


# --- by boxes ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rectangles:
    kind: Literal["rectangles"]


@dataclass(frozen=True)
class GrabCut:
    kind: Literal["grabcut"]
    iterations: int
    min_area: float  # fraction of the box; a smaller result is replaced by the rectangle


@dataclass(frozen=True)
class BoxSupLabels:
    """The alternation of Dai et al.: label step, then `round_epochs` of training, and again."""

    kind: Literal["boxsup"]
    top_k: int  # one of the k cheapest candidates is drawn
    lam: float  # lambda, the weight of the network's feedback
    lam_start: int  # epochs before lambda counts
    round_epochs: int
    costs: Literal["averaged", "literal"]  # over box and mask, or summed over all pixels
    min_box_iou: float  # only candidates whose box overlaps this much are admissible; 0 = all
    fallback_box_iou: float  # a box without a candidate of this overlap gets its fallback
    fallback: Literal["rectangle", "ignore"]  # ignore: 255 in all of the box


Estimator = Rectangles | GrabCut | BoxSupLabels


@dataclass(frozen=True)
class BoxSupRun(SemanticRun):
    """A semantic network trained by boxes, or by the masks of one split and boxes for the rest."""

    proposals: str
    mask_split: str  # images of this split keep their true masks; none: boxes only
    difficult: Literal["box", "ignore", "background"]  # box: like others; ignore: 255 in all of it
    crowd: Literal["ignore", "background"]  # boxes around many objects
    estimator: Estimator


# --- localisation networks -----------------------------------------------------------------------
@dataclass(frozen=True)
class StandardisedTargets:
    """Offsets and sizes less their means, by their deviations, over the training pixels."""

    kind: Literal["standardise"]


@dataclass(frozen=True)
class ScaledTargets:
    """Offsets and sizes in units of so many pixels."""

    kind: Literal["scale"]
    pixels: float


@dataclass(frozen=True)
class LogSizeTargets:
    """As of `StandardisedTargets`, with the logarithms of height and width."""

    kind: Literal["log_wh"]


Targets = StandardisedTargets | ScaledTargets | LogSizeTargets


@dataclass(frozen=True)
class EqualWeights:
    """Every pixel counts the same."""

    kind: Literal["off"]


@dataclass(frozen=True)
class SizeWeights:
    """A pixel counts (height x width of its object) ** -alpha, 1 on average, then bounded."""

    kind: Literal["size"]
    alpha: float
    lowest: float
    highest: float


Weighting = EqualWeights | SizeWeights


@dataclass(frozen=True)
class IouMinKept:
    """Pixels whose box overlaps the true one by at most `iou`, never fewer than `keep`."""

    kind: Literal["iou_minkept"]
    iou: float
    keep: int
    scope: Literal["crop", "device_batch"]  # among whose cells; the batch of all processes


BoxBootstrapping = AllPixels | TopK | IouMinKept  # of TopK the hardest are those of least overlap


@dataclass(frozen=True)
class InstanceRun(TrainingRun):
    """A localisation network: at each pixel of an object, where that object's box is."""

    bootstrapping: BoxBootstrapping
    targets: Targets
    weighting: Weighting
    beta: float  # of the smooth L1 loss: where it turns from a square to a line


Run = SemanticRun | InstanceRun
