"""Stage `report`: everything that was measured -> reports/tables.md, metrics.json and figures/.

It shows the active evaluations of params.yaml. What is missing is a dash in a table and a picture
less, never an error: the report is written last, whatever failed before.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import figures, reports
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.proposal_table import ProposalTable
from pipeline.errors import BadInput
from pipeline.instance_reports import ObjectPictures
from pipeline.label_step import rebuilt_map
from pipeline.machine import machine
from pipeline.masks import decode_index_png
from pipeline.object_pictures import object_jobs
from pipeline.params import BoxSupLabels, BoxSupRun, Evaluation, Params
from pipeline.params_file import read_yaml
from pipeline.protocol import Measured, Run, gather, images_key, settings, trained_runs
from pipeline.tables import read_table

IMAGES_SHOWN = 4
TRAINED_BY = {"semantic": "train", "boxsup": "boxsup", "instance": "localize"}  # stages, by section
EPOCHS_SHOWN = (1, 5, 20)  # Dai2015 Fig. 3; of a shorter run, its last
SUPERVISIONS = ("mask", "box", "semi")  # Dai2015 Fig. 5, from left to right
COMPARED = tuple(f"dai2015/Table 1/{row}" for row in (1, 2, 5, 3))  # Dai2015 Figs. 4, 5: 1, 2, 5


def report(root: Path, params: Params) -> None:
    """Write reports/tables.md, reports/metrics.json and the pictures in reports/figures.

    Raises:
        BadInput: an evaluation stands for a row that reports/paper.csv does not have, or
            params.yaml was edited meanwhile; tables.md and metrics.json stay as they were.
    """
    out, models, measured = root / "reports", root / "data" / "models", root / "data" / "metrics"
    before = _params_text(root)
    paper = reports.read_paper(out / "paper.csv", reports.PAPER_COLUMNS)
    paper_rows = reports.read_paper(out / "paper_rows.csv", reports.PAPER_ROWS_COLUMNS)

    current = [name for name in params.evaluations if is_current(root, params, name)]
    metrics = _tables({n: measured / f"{n}.parquet" for n in current}, "metrics")
    shown = {network: None for name in current for network in networks_of(params, name)}
    histories = _tables({n: models / f"{n}.history.parquet" for n in shown}, "history")
    choices = _tables({n: models / f"{n}.choices.parquet" for n in shown}, "choices")
    datasets = _prepared(root, params)

    images = {
        network: _images(run, datasets[run.dataset])
        for name in params.evaluations
        for network, (_, run) in networks_of(params, name).items()
        if run.dataset in datasets
    }
    gathered = gather(params, metrics, images)
    beside = compared([m for m in gathered if m.value("num_images") is not None])
    bands = reports.bands_of(beside)
    text = reports.document(
        params,
        gathered,
        histories,
        choices,
        _draw(root, params, datasets, beside, bands, histories, choices),
        paper,
        paper_rows,
        bands=bands,
        machine=machine(),
        studies=sorted(path.name for path in (out / "studies").glob("*.md")),
        sensitivities=sorted(path.name for path in (out / "sensitivity").glob("*.md")),
    )
    if _params_text(root) != before:
        raise BadInput("params.yaml was edited while the report was made; run `dvc repro` again")
    _write(out / "tables.md", text)
    numbers = reports.metrics_json(gathered)
    _write(out / "metrics.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")


def _tables(paths: dict[str, Path], kind: str) -> dict[str, pd.DataFrame]:
    return {name: read_table(path, kind) for name, path in paths.items() if path.is_file()}


def networks_of(params: Params, evaluation: str) -> dict[str, tuple[str, Run]]:
    """The trained networks that an evaluation asks: {name: (section, run)}."""
    entry, runs = params.evaluations[evaluation], trained_runs(params)
    return {name: runs[name] for name in (entry.model, entry.localization) if name in runs}


def is_current(root: Path, params: Params, evaluation: str) -> bool:
    """Whether an evaluation's numbers are of what params.yaml describes now.

    A stage that failed after an edit leaves the numbers of the one before. dvc.lock tells with what
    each stage last ran; where it knows nothing, stages were run by hand, and are believed.
    """
    behind = [f"prepare@{params.evaluations[evaluation].dataset}", f"predict@{evaluation}"]
    for name, (section, run) in networks_of(params, evaluation).items():
        behind += [f"prepare@{run.dataset}", f"weights@{run.init}", f"{TRAINED_BY[section]}@{name}"]
        if isinstance(run, BoxSupRun):
            key = f"{run.proposals}_{run.dataset}"
            proposals = params.proposals[key]
            behind += [f"propose@{key}"]
            behind += [f"forests@{forest}" for forest in (proposals.contours, proposals.ranker)]
    lock = root / "dvc.lock"
    if not lock.is_file():
        return True
    stages = read_yaml(lock).get("stages", {})
    now = read_yaml(root / "params.yaml")
    for name in behind:
        recorded = stages.get(name, {}).get("params", {}).get("params.yaml", {})
        for key, value in recorded.items():
            if _at(now, key) != value:
                print(
                    f"report: {evaluation} has no number: {key} was another when {name} last ran; "
                    f"run `dvc repro evaluate@{evaluation}`",
                    file=sys.stderr,
                )
                return False
    return True


def _at(content: Any, key: str) -> Any:
    """What stands at a dotted key; None if nothing does."""
    for name in key.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _prepared(root: Path, params: Params) -> dict[str, Prepared]:
    """The prepared datasets that are here."""
    found = {}
    for name in params.datasets:
        try:
            found[name] = Prepared(root, name)
        except BadInput as error:
            print(f"report: without the images of {name}: {error}", file=sys.stderr)
    return found


def _images(run: Run, data: Prepared) -> tuple[int, int]:
    """How many images a run learns from, by masks and by boxes."""
    chosen = data.images[data.images["split"] == run.split]
    if not isinstance(run, BoxSupRun):
        return len(chosen), 0
    with_masks = data.images.loc[data.images["split"] == run.mask_split, "image_id"]
    masked = chosen["image_id"].isin(with_masks)
    return int(masked.sum()), int((chosen["has_boxes"] & ~masked).sum())


def compared(gathered: Sequence[Measured]) -> dict[str, dict[str, Measured]]:
    """For each dataset and split with more than one kind of supervision, an evaluation of each.

    Of several evaluations the one that stands for what the paper's figures compare (`COMPARED`);
    without one, the first.

    Returns:
        {images_key(evaluation): {supervision: evaluation, in the order `SUPERVISIONS`}}.
    """

    def rank(measured: Measured) -> int:
        stands_for = measured.entry.stands_for
        return min(
            (i for i, row in enumerate(COMPARED) if row in stands_for), default=len(COMPARED)
        )

    groups: dict[str, dict[str, Measured]] = {}
    for measured in sorted((m for m in gathered if m.semantic), key=rank):
        group = groups.setdefault(images_key(measured), {})
        group.setdefault(settings(measured)["supervision"], measured)
    return {
        key: {kind: group[kind] for kind in SUPERVISIONS if kind in group}
        for key, group in groups.items()
        if len(group) > 1
    }


def _params_text(root: Path) -> str:
    path = root / "params.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


# --- pictures ----------------------------------------------------------------------------------
def _draw(
    root: Path,
    params: Params,
    datasets: dict[str, Prepared],
    beside: dict[str, dict[str, Measured]],
    bands: dict[str, reports.Bands],
    histories: dict[str, pd.DataFrame],
    choices: dict[str, pd.DataFrame],
) -> reports.Pictures:
    """Draw every picture for which the data are here."""
    predictions = root / "data" / "predictions"
    overlays = {
        name: partial(
            _overlays,
            data=datasets[evaluation.dataset],
            split=evaluation.split,
            predicted=predictions / name / "semantic",
        )
        for name, evaluation in with_own_maps(params.evaluations).items()
        if evaluation.dataset in datasets and (predictions / name / "semantic").is_dir()
    }
    curves = {
        name: partial(figures.curves, title=name, history=history)
        for name, history in histories.items()
        if (history["name"] == "loss").any()
    }
    labels = {
        name: partial(
            _labels,
            data=datasets[params.boxsup[name].dataset],
            run=params.boxsup[name],
            table=table,
            proposals=root / "data" / "proposals",
        )
        for name, table in choices.items()
        if name in params.boxsup
        and isinstance(params.boxsup[name].estimator, BoxSupLabels)
        and params.boxsup[name].dataset in datasets
        and len(table)
    }
    quality = {
        dataset: partial(figures.label_quality, title=dataset, rounds=lines)
        for dataset in params.datasets
        if (lines := _label_rounds(params, dataset, histories))
    }
    boundary = {
        key: partial(
            figures.bands,
            title="{0.dataset}, {0.split}".format(next(iter(beside[key].values())).entry),
            around=found.around,
            measured=found.lines,
        )
        for key, found in bands.items()
    }
    examples = {
        key: partial(_examples, data=datasets[dataset], group=group, predictions=predictions)
        for key, group in beside.items()
        if (dataset := next(iter(group.values())).entry.dataset) in datasets
    }
    objects = object_jobs(root, params, datasets)
    folder = root / "reports" / "figures"
    return reports.Pictures(
        overlays=_drawn(folder, "overlays", overlays),
        curves=_drawn(folder, "curves", curves),
        labels=_drawn(folder, "labels", labels),
        quality=_drawn(folder, "label_quality", quality),
        boundary=_drawn(folder, "boundary", boundary),
        examples=_drawn(folder, "examples", examples),
        objects=ObjectPictures(
            steps=_drawn(folder, "steps", objects.steps),
            overlays=_drawn(folder, "objects", objects.overlays),
            precision_recall=_drawn(folder, "precision_recall", objects.precision_recall),
        ),
    )


def with_own_maps(evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """One evaluation for each way to label maps: those that find objects share that of others."""
    found: dict[str, Evaluation] = {}
    for name, entry in sorted(evaluations.items(), key=lambda pair: pair[1].instances != "none"):
        same = replace(entry, localization="none", instances="none", stands_for=())
        if entry.model != "none" and (entry.instances == "none" or same not in found.values()):
            found[name] = same
    return {name: entry for name, entry in evaluations.items() if name in found}


def _label_rounds(
    params: Params, dataset: str, histories: dict[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """{run: label quality by round} of the runs that estimate labels of a dataset."""
    rounds = {
        name: reports.label_rows(history, "label_mean_iou")
        for name, history in histories.items()
        if name in params.boxsup and params.boxsup[name].dataset == dataset
    }
    return {name: rows for name, rows in rounds.items() if not rows.empty}


def _drawn(folder: Path, ending: str, jobs: Mapping[str, Callable]) -> dict[str, str]:
    """Do the jobs, each given the path of its picture. Returns {key: name of the picture}."""
    names = {}
    for key, draw in jobs.items():
        name = f"{key}_{ending}.png"
        try:
            draw(folder / name)
            names[key] = name
        except BadInput as error:
            print(f"report: without {name}: {error}", file=sys.stderr)
    return names


def _overlays(path: Path, data: Prepared, split: str, predicted: Path) -> None:
    """The first images of the split: image, truth, prediction."""
    rows = []
    for image_id in data.ids(split)[:IMAGES_SHOWN]:
        label_maps = [data.label_map(image_id), decode_index_png(predicted / f"{image_id}.png")]
        rows.append((image_id, data.image(image_id), label_maps))
    figures.overlays(path, ["image", "truth", "prediction"], rows, data.categories)


def _examples(path: Path, data: Prepared, group: Mapping[str, Measured], predictions: Path) -> None:
    """The first images of the split: image, truth, what a run of each supervision says.

    Implements: Dai2015 Fig. 5, and Fig. 6 on PASCAL-Context.
    """
    runs = {f"{kind}\n{m.name}": predictions / m.name / "semantic" for kind, m in group.items()}
    rows = []
    for image_id in data.ids(next(iter(group.values())).entry.split)[:IMAGES_SHOWN]:
        maps = [decode_index_png(folder / f"{image_id}.png") for folder in runs.values()]
        rows.append((image_id, data.image(image_id), [data.label_map(image_id), *maps]))
    figures.overlays(path, ["image", "truth", *runs], rows, data.categories)


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
