"""The pictures of label maps that a report shows: predicted, estimated from boxes, compared."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from pipeline import figures
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.proposal_table import ProposalTable
from pipeline.label_step import rebuilt_map
from pipeline.masks import decode_index_png
from pipeline.object_pictures import Jobs
from pipeline.params import Evaluation, Params
from pipeline.params_training import BoxSupLabels, BoxSupRun
from pipeline.protocol import Measured

IMAGES_SHOWN = 4
EPOCHS_SHOWN = (1, 5, 20)  # Dai2015 Fig. 3; of a shorter run, its last


# --- predictions ----------------------------------------------------------------------------------
def overlay_jobs(root: Path, params: Params, datasets: Mapping[str, Prepared]) -> Jobs:
    """By evaluation: what it predicts, for the images that are here.

    Args:
        datasets: the prepared ones that are here.
    """
    return {
        name: partial(
            _overlays,
            data=datasets[entry.dataset],
            split=entry.split,
            predicted=_label_maps(root, name),
        )
        for name, entry in with_own_maps(params.evaluations).items()
        if entry.dataset in datasets and _label_maps(root, name).is_dir()
    }


def _label_maps(root: Path, evaluation: str) -> Path:
    return root / "data" / "predictions" / evaluation / "semantic"


def with_own_maps(evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """One evaluation for each way to label maps: those that find objects share that of others."""
    found: dict[str, Evaluation] = {}
    for name, entry in sorted(evaluations.items(), key=lambda pair: pair[1].instances != "none"):
        same = replace(entry, localization="none", instances="none", stands_for=())
        if entry.model != "none" and (entry.instances == "none" or same not in found.values()):
            found[name] = same
    return {name: entry for name, entry in evaluations.items() if name in found}


def _overlays(path: Path, data: Prepared, split: str, predicted: Path) -> None:
    """The first images of the split: image, truth, prediction."""
    rows = []
    for image_id in data.ids(split)[:IMAGES_SHOWN]:
        label_maps = [data.label_map(image_id), decode_index_png(predicted / f"{image_id}.png")]
        rows.append((image_id, data.image(image_id), label_maps))
    figures.overlays(path, ["image", "truth", "prediction"], rows, data.categories)


def example_jobs(
    root: Path, datasets: Mapping[str, Prepared], beside: Mapping[str, Mapping[str, Measured]]
) -> Jobs:
    """By dataset and split, as `protocol.images_key`: the evaluations of each supervision.

    Args:
        datasets: the prepared ones that are here.
        beside: {key: {supervision: evaluation}}.
    """
    return {
        key: partial(_examples, data=datasets[dataset], group=group, root=root)
        for key, group in beside.items()
        if (dataset := next(iter(group.values())).entry.dataset) in datasets
    }


def _examples(path: Path, data: Prepared, group: Mapping[str, Measured], root: Path) -> None:
    """The first images of the split: image, truth, what a run of each supervision says.

    Implements: Dai2015 Fig. 5, and Fig. 6 on PASCAL-Context.
    """
    runs = {f"{kind}\n{m.name}": _label_maps(root, m.name) for kind, m in group.items()}
    rows = []
    for image_id in data.ids(next(iter(group.values())).entry.split)[:IMAGES_SHOWN]:
        maps = [decode_index_png(folder / f"{image_id}.png") for folder in runs.values()]
        rows.append((image_id, data.image(image_id), [data.label_map(image_id), *maps]))
    figures.overlays(path, ["image", "truth", *runs], rows, data.categories)


# --- labels from boxes ----------------------------------------------------------------------------
def label_jobs(
    root: Path,
    params: Params,
    datasets: Mapping[str, Prepared],
    choices: Mapping[str, pd.DataFrame],
) -> Jobs:
    """By run: the labels that it learned from, where it estimated some.

    Args:
        datasets: the prepared ones that are here. choices: {run: its table of that kind}.
    """
    runs = {name: params.boxsup[name] for name in choices if name in params.boxsup}
    return {
        name: partial(
            _labels,
            data=datasets[run.dataset],
            run=run,
            table=choices[name],
            proposals=root / "data" / "proposals",
        )
        for name, run in runs.items()
        if isinstance(run.estimator, BoxSupLabels)
        and run.dataset in datasets
        and len(choices[name])
    }


def _labels(
    path: Path, data: Prepared, run: BoxSupRun, table: pd.DataFrame, proposals: Path
) -> None:
    """The first box-labelled images: image, truth, labels that the epochs shown learned from.

    Implements: Dai2015 Fig. 3.
    """
    epochs = rounds_shown(table["epoch"].unique().tolist(), run.epochs)
    stored = ProposalTable(proposals / run.proposals / run.dataset)
    chosen = set(table["image_id"])
    rows = []
    shown = data.images.loc[data.images["has_masks"], "image_id"]  # some have boxes only
    for image_id in [i for i in data.ids(run.split) if i in chosen & set(shown)][:IMAGES_SHOWN]:
        rounds = [table[table["epoch"] == first] for first in epochs.values()]
        maps = [rebuilt_map(data, image_id, stored, choices) for choices in rounds]
        rows.append((image_id, data.image(image_id), [data.label_map(image_id), *maps]))
    headings = [f"labels, epoch {epoch} of {run.epochs}" for epoch in epochs]
    figures.overlays(path, ["image", "truth", *headings], rows, data.categories)


def rounds_shown(first_epochs: Sequence[int], epochs: int) -> dict[int, int]:
    """{epoch of `EPOCHS_SHOWN`, counted from 1: first epoch, from 0, of the round it belongs to}.

    Args:
        first_epochs: of all rounds, from 0, as in table "choices".
        epochs: of the run; what is beyond becomes its last.
    """
    wanted = dict.fromkeys(min(epoch, epochs) for epoch in EPOCHS_SHOWN)
    return {epoch: max(first for first in first_epochs if first < epoch) for epoch in wanted}
