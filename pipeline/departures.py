"""Settings by name, and where those of an evaluation depart from the papers'.

A setting has one name on both sides: `settings` gives ours, reports/paper_rows.csv the papers'.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.params import ONE_VIEW, ComponentInstances
from pipeline.params_datasets import CocoDataset, Dataset, MixtureDataset
from pipeline.params_proposals import ProposalSet
from pipeline.params_training import (
    AllPixels,
    Bootstrapping,
    BoxBootstrapping,
    BoxSupLabels,
    BoxSupRun,
    GrabCut,
    InstanceRun,
    SizeWeights,
    TopK,
)
from pipeline.protocol import Measured, Trained, boxed_run, with_masks
from pipeline.wording import amount_of_masks, bootstrapping_text, network_text


# --- settings ------------------------------------------------------------------------------------
def settings(measured: Measured) -> dict[str, str]:
    """The settings of an evaluation under the names of reports/paper_rows.csv."""
    entry = measured.entry
    found: dict[str, Any] = {
        "dataset": _dataset_name(with_masks(measured.tested_on)),
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
    if boxed := boxed_run(run, network.before):
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


def _amount_with_start(network: Trained) -> str:
    """The same, of a run and all that it started from."""
    amounts = {amount_of_masks(run) for run in (network.run, *(r for r, _ in network.before))}
    return amounts.pop() if len(amounts) == 1 else "semi"


# --- departures ----------------------------------------------------------------------------------
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
