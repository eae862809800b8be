"""What params.yaml must not say: names that stand for nothing, numbers out of their range."""

import math
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput
from pipeline.params import (
    BoostedEdges,
    BoxInstances,
    BoxSupLabels,
    BoxSupRun,
    Bsds500Dataset,
    ContourForest,
    Dataset,
    Deeplab,
    DenseCrf,
    Edges,
    Evaluation,
    Fcrn,
    FileWeights,
    Forest,
    Params,
    ProposalSet,
    RankingForest,
    SavedEdges,
    TrainingRun,
    Weights,
)

NAME = re.compile(r"[a-z0-9_]+")
STARTS = {  # from the models of which sections each may start
    "semantic": ("weights", "semantic", "boxsup"),
    "boxsup": ("weights", "semantic", "boxsup"),
    "instance": ("weights", "instance"),
}


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
    for section, starts in STARTS.items():
        there = [model for model, of in models.items() if of in starts]
        for name, run in getattr(params, section).items():
            known(f"{section}.{name}.dataset", run.dataset, params.datasets)
            known(f"{section}.{name}.init", run.init, [m for m in there if m != name])
            _check_sample_name(f"{section}.{name}", name, params.datasets[run.dataset])
            _check_labelled(f"{section}.{name}", params.datasets[run.dataset])
    for name, run in params.boxsup.items():
        methods = [p.method for p in params.proposals.values() if p.dataset == run.dataset]
        known(f"boxsup.{name}.proposals", run.proposals, methods)
    for name, evaluation in params.evaluations.items():
        where = f"evaluations.{name}"
        _check_models(where, evaluation, params, known)
        known(f"{where}.dataset", evaluation.dataset, params.datasets)
        _check_sample_name(where, name, params.datasets[evaluation.dataset])
        _check_labelled(where, params.datasets[evaluation.dataset])


def _check_models(where: str, entry: Evaluation, params: Params, known: Callable) -> None:
    """Only where votes for boxes are counted can the truth stand in for a network."""
    by_boxes = isinstance(entry.instances, BoxInstances)
    no_model = ["none"] if by_boxes else []
    known(f"{where}.model", entry.model, [*params.semantic, *params.boxsup, *no_model])
    known(f"{where}.localization", entry.localization, ["none", *params.instance])
    if entry.localization != "none" and not by_boxes:
        raise BadInput(
            f"{where}.localization is {entry.localization!r}, but it asks no network for boxes; "
            "give it instances of the kind boxes, or localization: none"
        )
    if "none" in (entry.model, entry.localization) and "none" not in params.weights:
        slot = "localization" if entry.localization == "none" else "model"
        raise BadInput(
            f"{where}.{slot} is 'none'; add weights.none: {{kind: none}}, "
            "the empty model that it stands for"
        )
    if isinstance(entry.crf, DenseCrf) and entry.instances != "none":
        raise BadInput(
            f"{where}.crf and .instances: objects are found in what the network says, before a "
            "CRF; set one of them to none"
        )


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
    "pixels": (1e-3, math.inf),
    "alpha": (0, 4),
    "lowest": (0, 1),
    "highest": (1, math.inf),
    "beta": (1e-6, math.inf),
    "iou": (1e-9, 1),
    "vote_stride": (1, 64),
    "top_masks": (1, 100),
    "min_probability": (0, 1),
    "nms_iou": (1e-9, 1),
    "min_pixels": (0, math.inf),
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
    for section in STARTS:
        for name, run in getattr(params, section).items():
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


def _check_run(where: str, run: TrainingRun, params: Params) -> None:
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
    start = (params.weights | params.semantic | params.boxsup | params.instance)[run.init]
    depth = start.network.depth if isinstance(start, TrainingRun) else getattr(start, "depth", None)
    if depth not in (None, network.depth):
        raise BadInput(
            f"{where}.init is {run.init!r}, a network of depth {depth}; "
            f"the run's has depth {network.depth}"
        )
    if isinstance(network, Deeplab) and isinstance(start, TrainingRun):
        if start.network.kind != network.kind:
            raise BadInput(
                f"{where}.init is {run.init!r}, of kind {start.network.kind}; the run's network "
                f"is of kind {network.kind}"
            )
    if isinstance(run, BoxSupRun) and isinstance(run.estimator, BoxSupLabels):
        _check_label_steps(where, run, run.estimator, start)


def _check_label_steps(
    where: str, run: BoxSupRun, estimator: BoxSupLabels, start: Weights | TrainingRun
) -> None:
    network = run.network
    if run.proposals == "none":
        raise BadInput(
            f"{where}.proposals is 'none', but its estimator chooses among candidates: name a "
            "method of `proposals:`, or take the estimator {kind: rectangles}"
        )
    if isinstance(network, Deeplab):
        if estimator.lam > 0 and estimator.lam_start == 0 and not isinstance(start, TrainingRun):
            raise BadInput(
                f"{where}.estimator.lam_start is 0; the last layer of a {network.kind} is drawn at "
                "random and would be asked before it has learnt: expected at least 1"
            )
