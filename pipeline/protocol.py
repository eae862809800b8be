"""The protocol behind a number: what a run learned from, and how it was tested."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from pipeline.params import BoxInstances, Evaluation, Params, section_of, trained_runs
from pipeline.params_datasets import Dataset, MixtureDataset, SampleDataset
from pipeline.params_networks import CropWeights, FileWeights, ImagenetWeights, NoWeights
from pipeline.params_proposals import ProposalSet, RankingForest
from pipeline.params_training import BoxSupLabels, BoxSupRun, Run


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
        return isinstance(with_masks(self.tested_on), SampleDataset)

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


def _trained(params: Params, name: str, images: Mapping[str, tuple[int, int]]) -> Trained | None:
    """What is known of a run; None for the name "none"."""
    runs = trained_runs(params)
    if name not in runs:
        return None
    run = runs[name]
    before = _before(params, run)
    boxed = boxed_run(run, before)
    proposals = proposals_of(params, boxed) if boxed else None
    return Trained(
        name=name,
        section=section_of(params, name),
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
    trained = trained_runs(params)
    found: list[Run] = []
    while run.init in trained and trained[run.init] not in found:
        run = trained[run.init]
        found.insert(0, run)
    return tuple((start, params.datasets[start.dataset]) for start in found)


def boxed_run(run: Run, before: tuple[tuple[Run, Dataset], ...]) -> BoxSupRun | None:
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


def with_masks(dataset: Dataset) -> Dataset:
    """The dataset on whose images one is measured: of a mixture the one with masks."""
    return dataset.masks if isinstance(dataset, MixtureDataset) else dataset


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
