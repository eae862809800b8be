"""What params.yaml may say, as frozen dataclasses.

Where a key is a choice that brings keys of its own (``estimator: {kind: grabcut, ...}``), each kind
is a dataclass and ``kind`` picks it. Every number has its source as a comment in params.yaml.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

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
Precision = Literal["fp32", "bf16"]
Grid = Literal["centres", "corners"]  # where a score cell's label is: `transforms.labels_on_grid`


# --- datasets ----------------------------------------------------------------------------------
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


# --- proposals ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class GradientEdges:
    """The length of the colour gradient: nothing is learnt."""

    kind: Literal["gradient"]
    sigma: float  # of the Gaussian before the gradient, pixels


@dataclass(frozen=True)
class BoostedEdges:
    """Contours as the forest in the slot `contours` finds them."""

    kind: Literal["boosted"]


@dataclass(frozen=True)
class SavedEdges:
    """One file of strengths for each image, in a folder of the user's."""

    kind: Literal["file"]
    place: str  # data/raw/<place>, or where local.yaml or PIPELINE_DATA_<PLACE> says


@dataclass(frozen=True)
class StructuredEdges:
    """OpenCV's structured forest, from a model file of the user's."""

    kind: Literal["sf"]
    place: str  # as of SavedEdges, but of a file


Edges = GradientEdges | BoostedEdges | SavedEdges | StructuredEdges


@dataclass(frozen=True)
class NoCandidates:
    """No candidate at all: every box is left to its rectangle."""

    kind: Literal["none"]


@dataclass(frozen=True)
class Scg:
    """Single-scale combinatorial grouping over one hierarchy."""

    kind: Literal["scg"]
    edges: Edges
    min_area: int  # smaller regions are merged away, pixels
    singletons: int
    pairs: int
    triplets: int
    quadruplets: int
    max_overlap: float  # Jaccard from which a later candidate is a duplicate
    max_candidates: int
    fill_holes: bool


PerHierarchy = tuple[int, int, int, int]  # the combined one, half, full and double size


@dataclass(frozen=True)
class Mcg:
    """Multiscale combinatorial grouping over four hierarchies."""

    kind: Literal["mcg"]
    edges: Edges  # its sigma is in pixels of each scale
    min_area: int  # smaller regions are merged away, pixels: half as many at double size
    align_cut: float  # contours below this strength are no place for those of coarser scales
    singletons: PerHierarchy
    pairs: PerHierarchy
    triplets: PerHierarchy
    quadruplets: PerHierarchy
    max_overlap: float  # Jaccard from which a later candidate is a duplicate
    max_candidates: int
    fill_holes: bool


@dataclass(frozen=True)
class SelectiveSearch:
    """Selective Search, each region with its mask: one hierarchy for each of the combinations."""

    kind: Literal["ss"]
    colours: tuple[Literal["hsv", "lab", "rgb"], ...]
    scales: tuple[int, ...]  # of the first regions; larger: fewer
    likeness: tuple[Literal["ctsf", "tsf", "sf", "f", "s"], ...]  # colour, texture, size, fill
    max_overlap: float
    max_candidates: int
    fill_holes: bool


@dataclass(frozen=True)
class Gop:
    """Geodesic object proposals, from seeds that are not learnt."""

    kind: Literal["gop"]
    edges: Edges
    min_area: int  # smaller superpixels are merged away, pixels
    max_superpixels: int
    colour: float  # distance in Lab that is as long a step as a contour of strength 1
    seeds: int
    levels: int  # of each seed and background
    max_overlap: float
    max_candidates: int
    fill_holes: bool


@dataclass(frozen=True)
class Published:
    """Files of candidates that others made, one for each image, in a folder of the user's."""

    kind: Literal["published"]
    place: str  # data/raw/<place>, or where local.yaml or PIPELINE_DATA_<PLACE> says
    max_candidates: int  # the first ones of each file


Algorithm = NoCandidates | Scg | Mcg | SelectiveSearch | Gop | Published


# --- forests -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class ContourForest:
    """Finds contours; fitted to those that people drew."""

    kind: Literal["contours"]
    dataset: str  # of kind bsds500
    contours: Literal["none"]
    seed: int


@dataclass(frozen=True)
class RankingForest:
    """Ranks candidates; fitted to the masks of objects, or of regions that people drew."""

    kind: Literal["ranking"]
    dataset: str  # of kind voc2012: its objects; bsds500: the regions
    contours: str  # a forest that finds contours, or none
    algorithm: Scg | Mcg  # whose candidates
    seed: int


Forest = ContourForest | RankingForest


@dataclass(frozen=True)
class ProposalSet:
    """The candidates of one dataset by one method."""

    method: str  # the name under which runs ask for these proposals
    dataset: str
    contours: str  # a forest that finds contours, or none
    ranker: str  # a forest that ranks candidates, or none: they keep the algorithm's order
    algorithm: Algorithm


# --- starting weights --------------------------------------------------------------------------
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


# --- trainings ---------------------------------------------------------------------------------
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


@dataclass(frozen=True)
class SemanticRun(TrainingRun):
    """A semantic network trained by masks."""

    bootstrapping: Bootstrapping


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
