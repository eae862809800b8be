"""Data, networks, how these learn and how they are tested, in words."""

from pipeline.params import AnyOverlap, Crf, DenseCrf, Evaluation, RegionNms, Views
from pipeline.params_datasets import (
    Bsds500Dataset,
    CityscapesDataset,
    CocoDataset,
    ContextDataset,
    Dataset,
    FolderDataset,
    MixtureDataset,
    SampleDataset,
    SbdDataset,
    Voc2007Dataset,
    Voc2012Dataset,
)
from pipeline.params_networks import Deeplab, DeeplabLargeFov, FcrnExtended, Network
from pipeline.params_training import (
    AllPixels,
    Bootstrapping,
    BoxBootstrapping,
    BoxSupLabels,
    BoxSupRun,
    GrabCut,
    IouMinKept,
    LogSizeTargets,
    Run,
    ScaledTargets,
    SizeWeights,
    Targets,
    TopK,
    Weighting,
)
from pipeline.protocol import Measured, Trained


# --- data ----------------------------------------------------------------------------------------
def source_text(dataset: Dataset) -> str:
    """Where the images and their annotation come from."""
    match dataset:
        case SampleDataset():
            return "drawn by this project"
        case Voc2012Dataset():
            return "PASCAL VOC 2012 with the masks of SBD"
        case Voc2007Dataset():
            return "PASCAL VOC 2007"
        case SbdDataset():
            return "Semantic Boundaries Dataset"
        case ContextDataset():
            return "PASCAL-Context on the images of VOC 2010"
        case CityscapesDataset():
            return "Cityscapes, fine annotation"
        case CocoDataset():
            return f"COCO {dataset.year}"
        case Bsds500Dataset():
            return "BSDS500"
        case FolderDataset():
            return "a folder of own images"
        case MixtureDataset():
            boxes = " and ".join(source_text(part) for part in dataset.boxes)
            return f"{source_text(dataset.masks)}, and boxes of {boxes}"


def terms_text(dataset: Dataset) -> str:
    """What its images may be used for."""
    match dataset:
        case SampleDataset():
            return "images drawn by this project"
        case FolderDataset():
            return "images under the terms of whoever owns them"
        case CityscapesDataset():
            return "images for non-commercial use only, not to be passed on"
    return "images for research use only, under their owners' terms"


# --- networks ------------------------------------------------------------------------------------
def network_text(network: Network) -> str:
    """The kind of network, with what is added to the vanilla one."""
    if isinstance(network, Deeplab):
        large = isinstance(network, DeeplabLargeFov)
        return f"DeepLab{'-LargeFOV' * large} on VGG-16"
    if not isinstance(network, FcrnExtended):
        return "FCRN"
    added = [f"a hidden layer of {network.hidden}"] if network.hidden else []
    if any(network.dropout):
        added.append("dropout " + ", ".join(f"{rate:g}" for rate in network.dropout))
    return f"FCRN with {' and '.join(added)}" if added else "FCRN"


_NAMED = {"deeplab": " (DeepLab)", "deeplab_largefov": " (DeepLab-LargeFOV)"}
NETWORK_HEAD = ("depth", "resolution", "kernel", "dilation", "FoV")  # as in Wu2016 Table 1


def network_cells(network: Network) -> tuple[str, ...]:
    """What `NETWORK_HEAD` names; kernel and dilation of each layer of the classifier, or of fc6.

    A network that is no FCRN has its name beside its depth.
    """
    layers = 2 if isinstance(network, FcrnExtended) and network.hidden else 1
    return (
        f"{network.depth}{_NAMED.get(network.kind, '')}",
        f"1/{network.stride}",
        ", ".join([str(network.kernel)] * layers),
        ", ".join([str(network.dilation)] * layers),
        str(network.field_of_view),
    )


# --- learning ------------------------------------------------------------------------------------
def supervision_text(measured: Measured) -> str:
    """What its semantic network learns from: `network_supervision`; or that there is none."""
    network = measured.semantic
    return "true masks" if network is None else network_supervision(network)


def network_supervision(network: Trained) -> str:
    """What it learns from: mask, box (how its masks are estimated), or semi; then before."""
    text = _own_supervision(network)
    for run, dataset in network.before:
        text += f", after {amount_of_masks(run)} on {source_text(dataset)}"
    return text


def _own_supervision(network: Trained) -> str:
    run = network.run
    if not isinstance(run, BoxSupRun):
        return "mask"
    estimator = run.estimator
    if isinstance(estimator, BoxSupLabels):
        lam = f", lambda {estimator.lam:g}"
        how = f"BoxSup, {run.proposals}, top-{estimator.top_k}{lam}"
        if network.learnt_from:
            how += f"; candidates learnt from {' and '.join(network.learnt_from)}"
    else:
        how = "GrabCut" if isinstance(estimator, GrabCut) else "rectangles"
    return f"{amount_of_masks(run)} ({how})"


def amount_of_masks(run: Run) -> str:
    if not isinstance(run, BoxSupRun):
        return "mask"
    return "box" if run.mask_split == "none" else "semi"


def bootstrapping_text(bootstrapping: Bootstrapping | BoxBootstrapping) -> str:
    """Which pixels a run learns from."""
    if isinstance(bootstrapping, AllPixels):
        return "all pixels"
    per = "crop" if bootstrapping.scope == "crop" else "batch"
    if isinstance(bootstrapping, TopK):
        return f"hardest {bootstrapping.keep} per {per}"
    if isinstance(bootstrapping, IouMinKept):
        return f"IoU <= {bootstrapping.iou:g}, at least {bootstrapping.keep} per {per}"
    return f"p <= {bootstrapping.threshold:g}, at least {bootstrapping.keep} per {per}"


def targets_text(targets: Targets) -> str:
    """In what units a localisation network learns offsets and sizes."""
    if isinstance(targets, ScaledTargets):
        return f"offsets, height and width in units of {targets.pixels:g} px"
    sizes = "log height and width" if isinstance(targets, LogSizeTargets) else "height and width"
    return f"offsets, {sizes}, standardised"


def weighting_text(weighting: Weighting) -> str:
    """What the pixels of an object count in the loss of a localisation network."""
    if not isinstance(weighting, SizeWeights):
        return "equal"
    bounds = f"{weighting.lowest:g} to {weighting.highest:g}"
    return f"(h w)^-{weighting.alpha:g}, {bounds}"


# --- testing -------------------------------------------------------------------------------------
def region_text(rule: RegionNms) -> str:
    """Where a mask is dropped for one of more confidence."""
    return "any shared pixel" if isinstance(rule, AnyOverlap) else f"IoU >= {rule.iou:g}"


def views_text(views: Views) -> str:
    """The views whose probabilities are averaged."""
    text = ", ".join(f"{scale:g}" for scale in views.scales)
    text += " + flipped" * views.flip
    return text if views.shifts == 1 else f"{text}, at {views.shifts} x {views.shifts} shifts"


def crf_text(crf: Crf) -> str:
    """The CRF that follows, or none."""
    if not isinstance(crf, DenseCrf):
        return "none"
    near_and_alike = f"{crf.bilateral_weight:g} ({crf.bilateral_xy:g} px, {crf.bilateral_rgb:g})"
    near = f"{crf.gaussian_weight:g} ({crf.gaussian_xy:g} px)"
    text = f"yes: {near_and_alike} + {near}, {crf.iterations} rounds"
    return f"{text}, pruned at {crf.prune:g}" if crf.prune else text


def testing_text(entry: Evaluation) -> str:
    """How label maps are made of what a network says: views, and a CRF if one follows."""
    text = views_text(entry.views)
    return text if entry.crf == "none" else f"{text}, then a CRF"
