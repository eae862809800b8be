"""Stage `report`: everything that was measured -> reports/tables.md, metrics.json and figures/.

It shows the active evaluations of params.yaml. What is missing is a dash in a table and a picture
less, never an error: the report is written last, whatever failed before.
"""

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import figures, paper_tables, reports, semantic_reports
from pipeline.datasets.prepared import Prepared
from pipeline.departures import settings
from pipeline.errors import BadInput
from pipeline.instance_reports import ObjectPictures
from pipeline.label_pictures import example_jobs, label_jobs, overlay_jobs
from pipeline.machine import machine
from pipeline.object_pictures import Jobs, object_jobs
from pipeline.params import Params, section_of, trained_runs
from pipeline.params_file import read_yaml
from pipeline.params_training import BoxSupRun, Run
from pipeline.protocol import Measured, gather, images_key
from pipeline.tables import read_table

TRAINED_BY = {"semantic": "train", "boxsup": "boxsup", "instance": "localize"}  # stages, by section
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
    paper = paper_tables.read_paper(out / "paper.csv", paper_tables.PAPER_COLUMNS)
    paper_rows = paper_tables.read_paper(out / "paper_rows.csv", paper_tables.PAPER_ROWS_COLUMNS)

    current = [name for name in params.evaluations if is_current(root, params, name)]
    metrics = _tables({n: measured / f"{n}.parquet" for n in current}, "metrics")
    shown = {network: None for name in current for network in networks_of(params, name)}
    histories = _tables({n: models / f"{n}.history.parquet" for n in shown}, "history")
    choices = _tables({n: models / f"{n}.choices.parquet" for n in shown}, "choices")
    datasets = _prepared(root, params)

    images = {
        network: _images(run, datasets[run.dataset])
        for name in params.evaluations
        for network, run in networks_of(params, name).items()
        if run.dataset in datasets
    }
    gathered = gather(params, metrics, images)
    beside = compared([m for m in gathered if m.value("num_images") is not None])
    bands = semantic_reports.bands_of(beside)
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


def networks_of(params: Params, evaluation: str) -> dict[str, Run]:
    """The trained networks that an evaluation asks."""
    entry, runs = params.evaluations[evaluation], trained_runs(params)
    return {name: runs[name] for name in (entry.model, entry.localization) if name in runs}


def is_current(root: Path, params: Params, evaluation: str) -> bool:
    """Whether an evaluation's numbers are of what params.yaml describes now.

    A stage that failed after an edit leaves the numbers of the one before. dvc.lock tells with what
    each stage last ran; where it knows nothing, stages were run by hand, and are believed.
    """
    behind = [f"prepare@{params.evaluations[evaluation].dataset}", f"predict@{evaluation}"]
    for name, run in networks_of(params, evaluation).items():
        stage = TRAINED_BY[section_of(params, name)]
        behind += [f"prepare@{run.dataset}", f"weights@{run.init}", f"{stage}@{name}"]
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
    bands: dict[str, semantic_reports.Bands],
    histories: dict[str, pd.DataFrame],
    choices: dict[str, pd.DataFrame],
) -> reports.Pictures:
    """Draw every picture for which the data are here."""
    folder = root / "reports" / "figures"
    curves: Jobs = {
        name: partial(figures.curves, title=name, history=history)
        for name, history in histories.items()
        if (history["name"] == "loss").any()
    }
    quality: Jobs = {
        dataset: partial(figures.label_quality, title=dataset, rounds=lines)
        for dataset in params.datasets
        if (lines := _label_rounds(params, dataset, histories))
    }
    boundary: Jobs = {
        key: partial(
            figures.bands,
            title="{0.dataset}, {0.split}".format(next(iter(beside[key].values())).entry),
            around=found.around,
            measured=found.lines,
        )
        for key, found in bands.items()
    }
    objects = object_jobs(root, params, datasets)
    return reports.Pictures(
        overlays=_drawn(folder, "overlays", overlay_jobs(root, params, datasets)),
        curves=_drawn(folder, "curves", curves),
        labels=_drawn(folder, "labels", label_jobs(root, params, datasets, choices)),
        quality=_drawn(folder, "label_quality", quality),
        boundary=_drawn(folder, "boundary", boundary),
        examples=_drawn(folder, "examples", example_jobs(root, datasets, beside)),
        objects=ObjectPictures(
            steps=_drawn(folder, "steps", objects.steps),
            overlays=_drawn(folder, "objects", objects.overlays),
            precision_recall=_drawn(folder, "precision_recall", objects.precision_recall),
        ),
    )


def _label_rounds(
    params: Params, dataset: str, histories: dict[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """{run: label quality by round} of the runs that estimate labels of a dataset."""
    rounds = {
        name: semantic_reports.label_rows(history, "label_mean_iou")
        for name, history in histories.items()
        if name in params.boxsup and params.boxsup[name].dataset == dataset
    }
    return {name: rows for name, rows in rounds.items() if not rows.empty}


def _drawn(folder: Path, ending: str, jobs: Jobs) -> dict[str, str]:
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
