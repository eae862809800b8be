"""The protocol behind a number: what a run learned from, how it was tested, where it departs.

A setting has one name on both sides: `settings` gives ours, reports/paper_rows.csv the papers'.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pipeline.params import (
    ONE_VIEW,
    AllPixels,
    Bootstrapping,
    BoxBootstrapping,
    BoxInstances,
    BoxSupLabels,
    BoxSupRun,
    Bsds500Dataset,
    CityscapesDataset,
    CocoDataset,
    ComponentInstances,
    ContextDataset,
    CropWeights,
    Dataset,
    Deeplab,
    DeeplabLargeFov,
    Evaluation,
    FcrnExtended,
    FileWeights,
    FolderDataset,
    GrabCut,
    ImagenetWeights,
    InstanceRun,
    MixtureDataset,
    Network,
    NoWeights,
    Params,
    ProposalSet,
    RankingForest,
    SampleDataset,
    SbdDataset,
    SemanticRun,
    SizeWeights,
    TopK,
    Voc2007Dataset,
    Voc2012Dataset,
)
from pipeline.wording import bootstrapping_text

# How a setting that is not the paper's is told; any other: "<setting> <ours> instead of <theirs>".
DEPARTURES = {
    "dataset": "evaluated on {ours} instead of {theirs}",
    "split": "evaluated on the split {ours} instead of {theirs}",
    "images": "evaluated on {ours} of the {theirs} official images",
    "train": "trained on the split {ours} instead of {theirs}",
    "train_images": "trained on {ours} of the {theirs} official images",
    "mask_images": "masks of {ours} of the {theirs} official images",
    "init": "started from {ours} instead of {theirs} weights",
    "network": "network {ours} instead of {theirs}",
    "field_of_view": "field of view of {ours} instead of {theirs} pixels",
    "views": "views: {ours} instead of {theirs}",
    "crf": "CRF: {ours} instead of {theirs}",
    "masks_from": "masks estimated from {ours} instead of {theirs}",
    "bootstrapping": "hardest pixels kept: {ours} instead of {theirs}",
    "lam": "lambda {ours} instead of {theirs}",
    "lam_start": "lambda counts after {ours} epoch(s) instead of {theirs}",
    "min_box_iou": "only candidates of box IoU >= {ours} instead of {theirs}",
    "round_epochs": "new labels every {ours} epoch(s) instead of {theirs}",
    "top_k": "drawn from the {ours} cheapest candidates instead of {theirs}",
    "lr": "learning rate {ours} instead of {theirs}",
    "score_maps": "score maps from {ours} instead of {theirs}",
    "boxes": "boxes from {ours} instead of {theirs}",
    "localization_train": "localisation network trained on the split {ours} instead of {theirs}",
    "localization_train_images": (
        "localisation network trained on {ours} of the {theirs} official images"
    ),
    "localization_init": "localisation network started from {ours} instead of {theirs} weights",
    "localization_network": "localisation network {ours} instead of {theirs}",
    "localization_depth": "depth of the localisation network {ours} instead of {theirs}",
    "localization_bootstrapping": (
        "bootstrapping of the localisation network {ours} instead of {theirs}"
    ),
    "localization_weighting": "weights by the sizes of objects {ours} instead of {theirs}",
}

Run = SemanticRun | InstanceRun


@dataclass(frozen=True)
class Trained:
    """A network that is trained here, and what it learnt from."""

    name: str
    section: str  # of params.yaml that holds the run: semantic, boxsup or instance
    run: Run
    trained_on: Dataset
    init: str  # where the run started, in words
    origin: str  # where the first of all that it started from did
    images: tuple[int, int] | None  # that the run learns from: by masks, by boxes
    proposals: ProposalSet | None = None  # that a run on boxes, or its start, chooses from
    learnt_from: tuple[str, ...] = ()  # what people drew, from which these have learnt
    before: tuple[tuple[Run, Dataset], ...] = ()  # trained first, and on what, in order


@dataclass(frozen=True)
class Measured:
    """An active evaluation and what is known of it."""

    name: str
    entry: Evaluation
    tested_on: Dataset
    semantic: Trained | None  # None: the true masks stand in for it
    localization: Trained | None = None  # None: none is asked, or true boxes stand in for it
    values: Mapping[tuple[str, str, float | None], float] = field(default_factory=dict)

    def value(self, metric: str, category: str = "", at: float | None = None) -> float | None:
        """A measured number; None where it was not measured or is none."""
        found = self.values.get((metric, category, at))
        return None if found is None or math.isnan(found) else found

    @property
    def drawn(self) -> bool:
        return isinstance(_with_masks(self.tested_on), SampleDataset)

    @property
    def finds_objects(self) -> bool:
        return self.entry.instances != "none"

    @property
    def asks_truth(self) -> bool:
        """Whether the truth stands in for a network: pixel by pixel, whatever the stride."""
        by_boxes = isinstance(self.entry.instances, BoxInstances)
        return by_boxes and None in (self.semantic, self.localization)

    @property
    def networks(self) -> list[Trained]:
        """The trained networks that it asks."""
        return [network for network in (self.semantic, self.localization) if network is not None]


def gather(
    params: Params,
    metrics: Mapping[str, pd.DataFrame],
    images: Mapping[str, tuple[int, int]],
) -> list[Measured]:
    """Every active evaluation, in the order of params.yaml, with the numbers there are.

    Args:
        metrics: {evaluation: its table of kind "metrics"}; one that is missing, or was measured on
            another dataset or split, has no numbers.
        images: {run: images that it learns from by masks, by boxes}; a run may be missing.
    """
    return [
        Measured(
            name=name,
            entry=entry,
            tested_on=params.datasets[entry.dataset],
            semantic=_trained(params, entry.model, images),
            localization=_trained(params, entry.localization, images),
            values=_current_values(entry, metrics.get(name)),
        )
        for name, entry in params.evaluations.items()
    ]


def trained_runs(params: Params) -> dict[str, tuple[str, Run]]:
    """{name: (its section, the run)} of all that is trained."""
    sections: tuple[tuple[str, Mapping[str, Run]], ...] = (
        ("semantic", params.semantic),
        ("boxsup", params.boxsup),
        ("instance", params.instance),
    )
    return {name: (section, run) for section, runs in sections for name, run in runs.items()}


def _trained(params: Params, name: str, images: Mapping[str, tuple[int, int]]) -> Trained | None:
    """What is known of a run; None for the name "none"."""
    runs = trained_runs(params)
    if name not in runs:
        return None
    section, run = runs[name]
    before = _before(params, run)
    boxed = _boxed(run, before)
    proposals = proposals_of(params, boxed) if boxed else None
    return Trained(
        name=name,
        section=section,
        run=run,
        trained_on=params.datasets[run.dataset],
        init=_init_text(params, run.init),
        origin=_init_text(params, (before[0][0] if before else run).init),
        images=images.get(name),
        proposals=proposals,
        learnt_from=_learnt_from(params, proposals) if proposals else (),
        before=before,
    )


def by_images(gathered: Sequence[Measured]) -> dict[tuple[str, str], list[Measured]]:
    """{(dataset, split): the evaluations on it}."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for m in gathered:
        groups.setdefault((m.entry.dataset, m.entry.split), []).append(m)
    return groups


def categories_of(group: Sequence[Measured], metric: str) -> list[str]:
    """The categories of which a metric was measured, in the order of the tables."""
    names = (c for m in group for (name, c, _) in m.values if name == metric and c)
    return list(dict.fromkeys(names))


def images_key(measured: Measured) -> str:
    """Names the images of an evaluation: dataset and split."""
    return f"{measured.entry.dataset}_{measured.entry.split}"


def _before(params: Params, run: Run) -> tuple[tuple[Run, Dataset], ...]:
    """The runs that a run started from, one after another, the first one first."""
    trained = {name: run for name, (_, run) in trained_runs(params).items()}
    found: list[Run] = []
    while run.init in trained and trained[run.init] not in found:
        run = trained[run.init]
        found.insert(0, run)
    return tuple((start, params.datasets[start.dataset]) for start in found)


def _boxed(run: Run, before: tuple[tuple[Run, Dataset], ...]) -> BoxSupRun | None:
    """The run itself, or the last of those that it started from, that learns from boxes."""
    runs = (run, *(start for start, _ in reversed(before)))
    return next((r for r in runs if isinstance(r, BoxSupRun)), None)


def _current_values(entry: Evaluation, table: pd.DataFrame | None) -> dict:
    """The numbers of a table, unless it is of another dataset or split than the evaluation now."""
    if table is None:
        return {}
    of_now = (table["dataset"] == entry.dataset) & (table["split"] == entry.split)
    return values_of(table) if of_now.all() else {}


def values_of(table: pd.DataFrame) -> dict[tuple[str, str, float | None], float]:
    """{(metric, category or "", at or None): value} of a "metrics" table or of paper.csv."""
    found = {}
    for row in table.itertuples():
        category = "" if pd.isna(row.category) else row.category
        at = None if pd.isna(row.at) else row.at
        found[row.metric, category, at] = row.value
    return found


# --- words for datasets ------------------------------------------------------------------------
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


def _with_masks(dataset: Dataset) -> Dataset:
    """The dataset on whose images one is measured: of a mixture the one with masks."""
    return dataset.masks if isinstance(dataset, MixtureDataset) else dataset


def _dataset_name(dataset: Dataset) -> str:
    """As in paper_rows.csv."""
    return f"coco{dataset.year}" if isinstance(dataset, CocoDataset) else dataset.kind


def _training_split(dataset: Dataset, split: str) -> str:
    """The split that a run learns from, and whose boxes are added to it."""
    names = {"coco": "COCO", "voc2007": "VOC 2007", "folder": "own images"}
    if isinstance(dataset, CocoDataset):
        return "COCO"
    if not isinstance(dataset, MixtureDataset) or split not in ("mixed", "boxes"):
        return split
    added = [names[part.kind] for part in dataset.boxes]
    return " + ".join([dataset.split, *added] if split == "mixed" else added)


def _training_splits(network: Trained) -> str:
    """The same of all that a run started from, and of it."""
    runs = [*network.before, (network.run, network.trained_on)]
    return ", then ".join(_training_split(dataset, run.split) for run, dataset in runs)


# --- words for settings ------------------------------------------------------------------------
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


def _amount_with_start(network: Trained) -> str:
    """The same, of a run and all that it started from."""
    amounts = {amount_of_masks(run) for run in (network.run, *(r for r, _ in network.before))}
    return amounts.pop() if len(amounts) == 1 else "semi"


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


def proposals_of(params: Params, run: Run) -> ProposalSet | None:
    """The candidates among which a run chooses; None where it does not choose."""
    if not (isinstance(run, BoxSupRun) and isinstance(run.estimator, BoxSupLabels)):
        return None
    return params.proposals[f"{run.proposals}_{run.dataset}"]


def _learnt_from(params: Params, proposals: ProposalSet) -> tuple[str, ...]:
    """What candidates have learnt from: with masks, boxes are not the only supervision."""
    found = []
    if proposals.contours != "none":
        found.append("contours drawn for BSDS500")
    ranker = params.forests.get(proposals.ranker)
    if isinstance(ranker, RankingForest):
        by_objects = params.datasets[ranker.dataset].kind == "voc2012"
        found.append("masks of VOC 2012" if by_objects else "regions drawn for BSDS500")
    if proposals.algorithm.kind == "published":
        found.append("what their makers had (MCG: masks of VOC 2012)")
    return tuple(found)


def _init_text(params: Params, name: str) -> str:
    weights = params.weights.get(name)
    if isinstance(weights, NoWeights):
        return "random"
    if isinstance(weights, ImagenetWeights):
        return "ImageNet"
    if isinstance(weights, FileWeights):
        return f"the file {weights.file}"
    if isinstance(weights, CropWeights):
        return "drawn crops"
    return f"the run {name}"


# --- departures from the papers ----------------------------------------------------------------
def settings(measured: Measured) -> dict[str, str]:
    """The settings of an evaluation under the names of reports/paper_rows.csv."""
    entry = measured.entry
    found: dict[str, Any] = {
        "dataset": _dataset_name(_with_masks(measured.tested_on)),
        "split": entry.split,
        "images": measured.value("num_images"),
        "crf": "no" if entry.crf == "none" else "yes",
        "views": "one" if entry.views == ONE_VIEW else "several",
    }
    if measured.semantic is not None:
        found |= _semantic_settings(measured.semantic)
    if measured.finds_objects:
        found |= _object_settings(measured)
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in found.items()
        if value is not None
    }


def _semantic_settings(network: Trained) -> dict[str, Any]:
    run = network.run
    found = {
        **_start_settings(network),
        "supervision": _amount_with_start(network),
        "depth": run.network.depth,
        "stride": run.network.stride,
        "kernel": run.network.kernel,
        "dilation": run.network.dilation,
        "field_of_view": run.network.field_of_view,
        "bootstrapping": _kept(run.bootstrapping),
        "epochs": run.epochs,
        "batch": run.batch,
        "lr": run.lr,
    }
    if boxed := _boxed(run, network.before):
        found |= _box_settings(boxed, network.proposals)
    if isinstance(run, BoxSupRun) and run.mask_split != "none" and network.images:
        found["mask_images"] = network.images[0]
    return found


def _start_settings(network: Trained) -> dict[str, Any]:
    return {
        "train": _training_splits(network),
        "train_images": sum(network.images) if network.images and not network.before else None,
        "init": network.origin,
        "network": network_text(network.run.network),
    }


def _object_settings(measured: Measured) -> dict[str, Any]:
    """Where score maps and boxes are from; the localisation network's settings, named as such."""
    network, components = measured.localization, measured.entry.instances
    if network is not None:
        boxes = "a network"
    elif isinstance(components, ComponentInstances):
        boxes = "connected components"
    else:
        boxes = "true boxes"
    found = {"score_maps": "a network" if measured.semantic else "true masks", "boxes": boxes}
    if network is None or not isinstance(network.run, InstanceRun):
        return found
    of_network = {
        **_start_settings(network),
        "depth": network.run.network.depth,
        "bootstrapping": "off" if isinstance(network.run.bootstrapping, AllPixels) else "on",
        "weighting": "on" if isinstance(network.run.weighting, SizeWeights) else "off",
    }
    return found | {f"localization_{name}": value for name, value in of_network.items()}


def _kept(bootstrapping: Bootstrapping | BoxBootstrapping) -> str:
    if isinstance(bootstrapping, AllPixels):
        return "off"
    if isinstance(bootstrapping, TopK) and bootstrapping.scope == "crop":
        return str(bootstrapping.keep)
    return bootstrapping_text(bootstrapping)


def _box_settings(run: BoxSupRun, proposals: ProposalSet | None) -> dict[str, Any]:
    estimator = run.estimator
    if not isinstance(estimator, BoxSupLabels) or proposals is None:
        return {"masks_from": "GrabCut" if isinstance(estimator, GrabCut) else "filled boxes"}
    kind = proposals.algorithm.kind
    return {
        "masks_from": run.proposals if kind == "published" else kind.upper(),
        "top_k": estimator.top_k,
        "lam": estimator.lam,
        "lam_start": estimator.lam_start,
        "round_epochs": estimator.round_epochs,
        "min_box_iou": estimator.min_box_iou,
    }


def departures(measured: Measured, theirs: Mapping[str, str]) -> list[str]:
    """Each setting that both sides name and that differs, in words, in the order of `settings`."""
    found = []
    for name, ours in settings(measured).items():
        if name in theirs and not _same(ours, theirs[name]):
            phrase = DEPARTURES.get(name, name + " {ours} instead of {theirs}")
            found.append(phrase.format(ours=_thousands(ours), theirs=_thousands(theirs[name])))
    return found


def _same(a: str, b: str) -> bool:
    try:
        return float(a) == float(b)
    except ValueError:
        return a == b


def _thousands(text: str) -> str:
    return f"{int(text):,}" if text.isdigit() else text
