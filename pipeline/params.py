"""params.yaml, read into frozen dataclasses. An unknown, missing or null key is an error.

So is a number out of its range, and a name that stands for nothing.

Where a key is a choice that brings keys of its own (``estimator: {kind: grabcut, ...}``), each kind
is a dataclass and ``kind`` picks it. Every number has its source as a comment in params.yaml.
"""

import math
import re
import types
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.errors import BadInput

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
class SemanticRun:
    """A semantic network trained by masks."""

    dataset: str
    split: str
    init: str
    network: Network
    augmentation: Augmentation
    bootstrapping: Bootstrapping
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
class InstanceRun:
    """Reserved for localisation networks: none can be declared yet."""

    dataset: str


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
class Evaluation:
    model: str
    localization: str
    dataset: str
    split: str
    views: Views
    crf: Crf
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


# --- reading -----------------------------------------------------------------------------------
NAME = re.compile(r"[a-z0-9_]+")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML 1.2 file, as plain Python. Raises BadInput with the line at fault."""
    from ruamel.yaml import YAML  # here: networks and losses need params, and nothing of YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: not there; run in the project's folder") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected sections {', '.join(SECTIONS)}, found {content!r}")
    return content


def load_params(path: Path = Path("params.yaml")) -> Params:
    """All active runs, checked: keys, types, names, and that every name stands for something.

    Raises:
        BadInput: names the file, the dotted key and the remedy.
    """
    params = build(Params, read_yaml(path), str(path), "")
    check(params, path)
    return params


def check(params: Params, path: Path) -> None:
    """`check_names` and `check_values`, with the file in what they raise."""
    try:
        check_names(params)
        check_values(params)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def build(kind: Any, value: Any, file: str, where: str) -> Any:
    """`value`, as YAML gave it, in the form of the annotation `kind`.

    Raises:
        BadInput: with `file`, the dotted key `where`, and what was expected.
    """
    if value is None:
        raise BadInput(f"{file}: {where or 'the file'} is null; give a value or take the key out")
    if is_dataclass(kind):
        return _build_dataclass(kind, value, file, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _build_kind(arguments, value, file, where)
    if origin is dict:
        return _build_dict(arguments[1], value, file, where)
    if origin is tuple:
        return _build_tuple(arguments, value, file, where)
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        choices = ", ".join(str(a) for a in arguments)
        raise BadInput(f"{file}: {where} is {value!r}; choose one of: {choices}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadInput(f"{file}: {where} is {value!r}; expected {_noun(kind)}")
    return value


def _noun(kind: type) -> str:
    nouns = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return nouns[kind]


def _build_dataclass(kind: Any, value: Any, file: str, where: str) -> Any:
    if not isinstance(value, dict):
        raise BadInput(f"{file}: {where or 'the file'} is {value!r}; expected keys and values")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in names:
            raise BadInput(f"{file}: {prefix}{key} is unknown; known here: {', '.join(names)}")
    for name in names:
        if name not in value:
            raise BadInput(f"{file}: {prefix}{name} is missing; add it")
    return kind(**{n: build(hints[n], value[n], file, f"{prefix}{n}") for n in names})


def _build_kind(choices: tuple[Any, ...], value: Any, file: str, where: str) -> Any:
    """The one of several dataclasses that ``kind`` names, or a name that stands alone."""
    alone = [name for c in choices if get_origin(c) is Literal for name in get_args(c)]
    if isinstance(value, str) and value in alone:
        return value
    kinds = [c for c in choices if is_dataclass(c)]
    named = {get_args(get_type_hints(c)["kind"])[0]: c for c in kinds}
    given = value.get("kind") if isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(given, str) or given not in named:
        known = [*alone, *(f"{{kind: {name}, ...}}" for name in named)] if alone else named
        key = where if alone else f"{where}.kind"
        raise BadInput(f"{file}: {key} is {given!r}; choose one of: {', '.join(known)}")
    return _build_dataclass(named[given], value, file, where)


def _build_dict(kind: Any, value: Any, file: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{file}: {where} is {value!r}; expected named entries, or {{}} for none")
    for name in value:
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise BadInput(f"{file}: {where}: the name {name!r} may hold only a-z, 0-9 and _")
    return {name: build(kind, entry, file, f"{where}.{name}") for name, entry in value.items()}


def _build_tuple(arguments: tuple[Any, ...], value: Any, file: str, where: str) -> tuple:
    if not isinstance(value, list):
        raise BadInput(f"{file}: {where} is {value!r}; expected a list")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise BadInput(f"{file}: {where} has {len(value)} entries; expected {len(arguments)}")
    return tuple(
        build(kind, entry, file, f"{where}[{i}]")
        for i, (kind, entry) in enumerate(zip(arguments, value, strict=True))
    )


def check_names(params: Params) -> None:
    """Every slot of a run names an entry that is there; no two models share a name.

    Raises:
        BadInput: with the dotted key and the names to choose from.
    """
    models: dict[str, str] = {}
    for section in ("weights", "semantic", "boxsup", "instance"):
        for name in getattr(params, section):
            if name in models:
                raise BadInput(f"{section}.{name} is also in {models[name]}; rename one of them")
            models[name] = section

    def known(where: str, name: str, choices: Any) -> None:
        if name not in choices:
            raise BadInput(f"{where} is {name!r}; choose one of: {', '.join(choices)}")

    for name, forest in params.forests.items():
        _check_forest(f"forests.{name}", forest, params, known)
    for name, entry in params.proposals.items():
        known(f"proposals.{name}.dataset", entry.dataset, params.datasets)
        if name != f"{entry.method}_{entry.dataset}":
            raise BadInput(
                f"proposals.{name}: call the entry {entry.method}_{entry.dataset}, "
                "after its method and dataset"
            )
        _check_proposals(f"proposals.{name}", entry, params, known)
    for section, runs in (("semantic", params.semantic), ("boxsup", params.boxsup)):
        for name, run in runs.items():
            known(f"{section}.{name}.dataset", run.dataset, params.datasets)
            known(f"{section}.{name}.init", run.init, [m for m in models if m != name])
            _check_sample_name(f"{section}.{name}", name, params.datasets[run.dataset])
            _check_labelled(f"{section}.{name}", params.datasets[run.dataset])
    for name, run in params.boxsup.items():
        methods = [p.method for p in params.proposals.values() if p.dataset == run.dataset]
        known(f"boxsup.{name}.proposals", run.proposals, methods)
    trained = [m for m, section in models.items() if section in ("semantic", "boxsup")]
    for name, evaluation in params.evaluations.items():
        known(f"evaluations.{name}.model", evaluation.model, trained)
        if evaluation.localization == "none" and "none" not in params.weights:
            raise BadInput(
                f"evaluations.{name}.localization is 'none'; add weights.none: {{kind: none}}, "
                "the empty model that it stands for"
            )
        localizations = ["none", *params.instance]
        known(f"evaluations.{name}.localization", evaluation.localization, localizations)
        known(f"evaluations.{name}.dataset", evaluation.dataset, params.datasets)
        _check_sample_name(f"evaluations.{name}", name, params.datasets[evaluation.dataset])
        _check_labelled(f"evaluations.{name}", params.datasets[evaluation.dataset])


def _forests(params: Params, kind: type) -> list[str]:
    return ["none", *(name for name, entry in params.forests.items() if isinstance(entry, kind))]


def _check_forest(where: str, forest: Forest, params: Params, known: Callable) -> None:
    kinds = ("bsds500",) if isinstance(forest, ContourForest) else ("bsds500", "voc2012")
    there = [name for name, entry in params.datasets.items() if entry.kind in kinds]
    known(f"{where}.dataset", forest.dataset, there)
    if isinstance(forest, RankingForest):
        known(f"{where}.contours", forest.contours, _forests(params, ContourForest))
        _check_contours(where, forest.algorithm.edges, forest.contours)
        if isinstance(forest.algorithm.edges, SavedEdges):
            raise BadInput(
                f"{where}.algorithm.edges.kind is 'file'; choose gradient, boosted or sf"
            )


def _check_proposals(where: str, entry: ProposalSet, params: Params, known: Callable) -> None:
    known(f"{where}.contours", entry.contours, _forests(params, ContourForest))
    known(f"{where}.ranker", entry.ranker, _forests(params, RankingForest))
    edges = getattr(entry.algorithm, "edges", None)
    _check_contours(where, edges, entry.contours)
    if entry.ranker == "none":
        return
    if edges is None:
        kind = entry.algorithm.kind
        raise BadInput(f"{where}.ranker is {entry.ranker!r}; candidates of {kind} are not ranked")
    ranker = params.forests[entry.ranker]
    assert isinstance(ranker, RankingForest)
    if ranker.algorithm.kind != entry.algorithm.kind:
        raise BadInput(
            f"{where}.ranker is {entry.ranker!r}, fitted to candidates of {ranker.algorithm.kind}; "
            f"candidates of {entry.algorithm.kind} are ranked by a forest of their own, or none"
        )
    if (ranker.algorithm.edges, ranker.contours) != (edges, entry.contours):
        raise BadInput(
            f"{where}.ranker is {entry.ranker!r}, fitted to candidates of other contours; give "
            f"forests.{entry.ranker} the same edges and contours, or name another"
        )


def _check_contours(where: str, edges: Edges | None, contours: str) -> None:
    """Learnt contours are named where they are used, and only there."""
    if isinstance(edges, BoostedEdges) == (contours == "none"):
        kind = getattr(edges, "kind", "none")
        raise BadInput(
            f"{where}.contours is {contours!r} with edges of the kind {kind}; name a forest "
            "for the kind boosted, else none"
        )


def _check_labelled(where: str, dataset: Dataset) -> None:
    if isinstance(dataset, Bsds500Dataset):
        raise BadInput(
            f"{where}.dataset: BSDS500 has no categories, so no network learns from it or is "
            "measured on it; name another dataset"
        )


def _check_sample_name(where: str, name: str, dataset: Dataset) -> None:
    if name.startswith("sample") and dataset.kind != "sample":
        raise BadInput(
            f"{where}: names that start with sample are for the drawn sample, whose pictures git "
            "keeps; photographs must not get there: choose another name"
        )


# Lowest and highest value of a key, both allowed; `Kind.key` where a key means several things.
_RANGES: dict[str, tuple[float, float]] = {
    "val_fraction": (0, 1),
    "train": (1, math.inf),
    "extra": (0, math.inf),
    "more": (0, math.inf),
    "val": (1, math.inf),
    "sigma": (0, math.inf),
    "min_area": (0, math.inf),
    "GrabCut.min_area": (0, 1),
    "singletons": (0, math.inf),
    "pairs": (0, math.inf),
    "triplets": (0, math.inf),
    "quadruplets": (0, math.inf),
    "align_cut": (0, 1),
    "max_superpixels": (1, 1 << 16),
    "colour": (1e-9, math.inf),
    "Gop.seeds": (1, math.inf),
    "levels": (1, math.inf),
    "max_overlap": (0, 1),
    "max_candidates": (1, math.inf),
    "depth": (1, math.inf),
    "crops": (1, math.inf),
    "size": (1, math.inf),
    "threads": (0, math.inf),
    "batch": (1, math.inf),
    "steps": (1, math.inf),
    "lr": (0, math.inf),
    "seed": (0, 2**32 - 1),
    "kernel": (1, math.inf),
    "dilation": (1, math.inf),
    "hidden": (0, math.inf),
    "dropout": (0, 0.99),
    "last_lr_factor": (0, math.inf),
    "keep": (1, math.inf),
    "threshold": (1e-9, 1),
    "warmup": (0, math.inf),
    "every": (1, math.inf),
    "factor": (0, 1),
    "power": (0, math.inf),
    "epochs": (1, math.inf),
    "momentum": (0, 1),
    "weight_decay": (0, math.inf),
    "bias_lr_factor": (0, math.inf),
    "iterations": (1, math.inf),
    "top_k": (1, math.inf),
    "lam": (0, math.inf),
    "lam_start": (0, math.inf),
    "round_epochs": (1, math.inf),
    "min_box_iou": (0, 1),
    "fallback_box_iou": (0, 1),
    "shifts": (1, 8),  # of a stride of 8
    "bilateral_weight": (0, 1e6),
    "bilateral_xy": (1e-3, 1e6),
    "bilateral_rgb": (1e-3, 1e6),
    "gaussian_weight": (0, 1e6),
    "gaussian_xy": (1e-3, 1e6),
    "DenseCrf.iterations": (1, 1000),
    "prune": (0, 1),
}


def check_values(params: Params) -> None:
    """Every number lies in its range, and numbers that belong together fit.

    Raises:
        BadInput: with the dotted key, its value and what was expected.
    """
    _check_ranges(params, "")
    for name, start in params.weights.items():
        if isinstance(start, FileWeights):
            _check_file(f"weights.{name}", start)
    for section, runs in (("semantic", params.semantic), ("boxsup", params.boxsup)):
        for name, run in runs.items():
            _check_run(f"{section}.{name}", run, params)
    for name, evaluation in params.evaluations.items():
        scales = evaluation.views.scales
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise BadInput(
                f"evaluations.{name}.views.scales is {list(scales)}; give one or more above 0"
            )
        for row in evaluation.stands_for:
            if not re.fullmatch(r"\w+/[^/]+/\w+", row):
                raise BadInput(
                    f"evaluations.{name}.stands_for: {row!r} is not PAPER/TABLE/ROW, "
                    "as in wu2016/Table 7/1"
                )


def _check_ranges(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for name, entry in value.items():
            _check_ranges(entry, f"{where}.{name}")
    elif is_dataclass(value):
        for field in fields(value):
            entry = getattr(value, field.name)
            key = f"{where}.{field.name}".lstrip(".")
            kind = type(value).__name__
            allowed = _RANGES.get(f"{kind}.{field.name}", _RANGES.get(field.name))
            if allowed is None or isinstance(entry, dict):
                _check_ranges(entry, key)
                continue
            numbers = entry if isinstance(entry, tuple) else (entry,)
            if not all(allowed[0] <= n <= allowed[1] and math.isfinite(n) for n in numbers):
                bounds = f"at least {allowed[0]:g}"
                bounds += "" if allowed[1] == math.inf else f" and at most {allowed[1]:g}"
                raise BadInput(f"{key} is {entry}; expected {bounds}")


def _check_file(where: str, start: FileWeights) -> None:
    if not NAME.fullmatch(start.place):
        raise BadInput(f"{where}.place is {start.place!r}; it may hold only a-z, 0-9 and _")
    if Path(start.file).name != start.file:
        raise BadInput(f"{where}.file is {start.file!r}; give a file's name without its folder")
    if start.sha256 != "none" and not re.fullmatch(r"[0-9a-f]{8,64}", start.sha256):
        raise BadInput(
            f"{where}.sha256 is {start.sha256!r}; give the first 8 to 64 digits of `sha256sum` "
            "(in quotes), or none"
        )


def _check_run(where: str, run: SemanticRun, params: Params) -> None:
    network, crop, scale = run.network, run.augmentation.crop, run.augmentation.scale
    if isinstance(network, Fcrn) and network.kernel % 2 == 0:
        raise BadInput(f"{where}.network.kernel is {network.kernel}; expected an odd number")
    if network.depth in (8, 14) and network.stride == 32:
        raise BadInput(f"{where}.network.stride is 32; with depth {network.depth} choose 8 or 16")
    if run.nesterov and run.momentum == 0:
        raise BadInput(f"{where}.nesterov needs a momentum above 0; set it to false")
    beyond = 1 if network.grid == "corners" else 0  # the last cell's corner
    if min(crop) < 1 or any((side - beyond) % network.stride for side in crop):
        raise BadInput(
            f"{where}.augmentation.crop is {list(crop)}; expected multiples of the network's "
            f"stride, {network.stride}{', and 1 more' * beyond}"
        )
    if not 0 < scale[0] <= scale[1] < math.inf:
        raise BadInput(f"{where}.augmentation.scale is {list(scale)}; expected 0 < low <= high")
    start = (params.weights | params.semantic | params.boxsup)[run.init]
    depth = start.network.depth if isinstance(start, SemanticRun) else getattr(start, "depth", None)
    if depth not in (None, network.depth):
        raise BadInput(
            f"{where}.init is {run.init!r}, a network of depth {depth}; "
            f"the run's has depth {network.depth}"
        )
    if isinstance(network, Deeplab) and isinstance(start, SemanticRun):
        if start.network.kind != network.kind:
            raise BadInput(
                f"{where}.init is {run.init!r}, of kind {start.network.kind}; the run's network "
                f"is of kind {network.kind}"
            )
    estimator = run.estimator if isinstance(run, BoxSupRun) else None
    if isinstance(estimator, BoxSupLabels) and isinstance(network, Deeplab):
        if estimator.lam > 0 and estimator.lam_start == 0 and not isinstance(start, SemanticRun):
            raise BadInput(
                f"{where}.estimator.lam_start is 0; the last layer of a {network.kind} is drawn at "
                "random and would be asked before it has learnt: expected at least 1"
            )
