"""What params.yaml must not say by name: entries that are not there, or do not go together."""

import re
from collections.abc import Callable
from typing import Any

from pipeline.errors import BadInput
from pipeline.params import BoxInstances, DenseCrf, Evaluation, Params
from pipeline.params_datasets import Bsds500Dataset, Dataset
from pipeline.params_proposals import (
    BoostedEdges,
    ContourForest,
    Edges,
    Forest,
    ProposalSet,
    RankingForest,
    SavedEdges,
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
            f"{where}.localization is {entry.localization!r}, but the evaluation asks no network "
            "for boxes; give it instances of the kind boxes, or localization: none"
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
