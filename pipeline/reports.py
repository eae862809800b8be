"""Tables of measured numbers -> Markdown and JSON. Fractions come in; percent is made only here.

A number never stands without its protocol, a missing one is a dash, and numbers from drawn images
have a section of their own, away from the papers' numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import BadInput
from pipeline.params import Params, SampleDataset
from pipeline.protocol import (
    NETWORK_HEAD,
    Measured,
    bootstrapping_text,
    crf_text,
    departures,
    network_cells,
    source_text,
    supervision_text,
    terms_text,
    testing_text,
    values_of,
    views_text,
)

DASH = "–"
MAX_COLUMNS = 25  # of categories: VOC has 21
PAPERS = {"wu2016": "Wu et al. 2016", "dai2015": "Dai et al. 2015", "slides": "Lecture slides"}
METRICS = {
    "pixel_accuracy": "pixel acc.",
    "mean_accuracy": "mean acc.",
    "mean_iou": "mean IoU",
    "iou": "IoU",
}


# --- Markdown ----------------------------------------------------------------------------------
def percent(value: float | None) -> str:
    """Percent with two decimals; a dash for what is missing."""
    return DASH if value is None or math.isnan(value) else f"{100 * value:.2f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; `|` within a cell is escaped, None becomes a dash."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[DASH if c is None else str(c).replace("|", r"\|") for c in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def paper_sections(
    gathered: Sequence[Measured], paper: pd.DataFrame, paper_rows: pd.DataFrame
) -> str:
    """A table for each table of a paper that an evaluation on real data stands for.

    Raises:
        BadInput: an evaluation, on real data or drawn, stands for a row that is not in paper.csv.
    """
    wanted: dict[tuple[str, str], list[tuple[int, Measured]]] = {}
    for measured in gathered:
        for text in measured.entry.stands_for:
            name, table, row = paper_row(text, paper, measured.name)
            if not measured.drawn:
                wanted.setdefault((name, table), []).append((row, measured))
    parts = []
    order = list(PAPERS)
    for name, table in sorted(wanted, key=lambda key: (order.index(key[0]), key[1])):
        pairs = sorted(wanted[name, table], key=lambda pair: pair[0])
        printed = paper[(paper["paper"] == name) & (paper["table"] == table)]
        their_settings = paper_rows[(paper_rows["paper"] == name) & (paper_rows["table"] == table)]
        parts.append(f"### {PAPERS[name]}, {table}\n")
        parts.append(_paper_table(pairs, printed, their_settings))
    return "\n".join(parts)


PAPER_HEAD = (
    "row", "metric", "paper", "ours", "difference", "evaluation", "dataset", "split", "images",
    "views", "CRF", "supervision", *NETWORK_HEAD, "parameters", "data", "notes",
)  # fmt: skip


def _paper_table(
    pairs: Sequence[tuple[int, Measured]], printed: pd.DataFrame, their_settings: pd.DataFrame
) -> str:
    notes: list[str] = []
    rows = []
    for row, measured in pairs:
        chosen = their_settings[their_settings["row"] == row]
        theirs = dict(zip(chosen["setting"], chosen["value"], strict=True))
        found = departures(measured, theirs)
        notes += [note for note in found if note not in notes]
        numbers = ", ".join(str(1 + notes.index(note)) for note in found)
        entry = measured.entry
        protocol = [
            measured.name,
            entry.dataset,
            entry.split,
            _count(measured.value("num_images")),
            views_text(entry.views),
            crf_text(entry.crf),
            supervision_text(measured),
            *network_cells(measured.run.network),
            f"`{measured.section}.{entry.model}`",
            source_text(measured.tested_on),
            numbers,
        ]
        for (metric, category, at), their in values_of(printed[printed["row"] == row]).items():
            ours = measured.value(metric, category, at)
            label = f"{row}: {theirs.get('method', '')}".rstrip(": ")
            rows.append([label, _metric_text(metric, category, at), percent(their), percent(ours)])
            rows[-1] += [DASH if ours is None else f"{100 * (ours - their):+.2f}", *protocol]
    text = markdown_table(PAPER_HEAD, rows)
    return text + "".join(f"\n{i}. {note}" for i, note in enumerate(notes, 1)) + "\n"


def _metric_text(metric: str, category: str, at: float | None) -> str:
    text = METRICS.get(metric, metric) + (f" {category}" if category else "")
    return text + (f" at {at:g}" if at is not None else "") + ", %"


def _count(value: float | None) -> str:
    return DASH if value is None else f"{round(value):,}"


def paper_row(text: str, paper: pd.DataFrame, evaluation: str) -> tuple[str, str, int]:
    """A row of paper.csv that "paper/table/row" names.

    Raises:
        BadInput: there is no such row; the message names the evaluation and the tables there are.
    """
    parts = text.split("/")
    if len(parts) == 3 and parts[2].isdigit():
        name, table, row = parts[0], parts[1], int(parts[2])
        found = (paper["paper"] == name) & (paper["table"] == table) & (paper["row"] == row)
        if found.any():
            return name, table, row
    known = sorted({f"{p}/{t}/..." for p, t in zip(paper["paper"], paper["table"], strict=True)})
    raise BadInput(
        f"params.yaml: evaluations.{evaluation}.stands_for names {text!r}, which is no row of "
        f"reports/paper.csv; write PAPER/TABLE/ROW, of {', '.join(known)}"
    )


def summary_table(gathered: Sequence[Measured], paper_rows: pd.DataFrame) -> str:
    """One row per evaluation, and what background everywhere scores on the same images.

    The rows of the papers are named, their numbers are not shown.
    """
    head = ["run", "supervision", *NETWORK_HEAD, "bootstrapping", "views"]
    head += ["pixel acc., %", "mean acc., %", "mean IoU, %", "stands for"]
    rows = [
        [
            m.name,
            supervision_text(m),
            *network_cells(m.run.network),
            bootstrapping_text(m.run.bootstrapping),
            testing_text(m.entry),
            *(percent(m.value(name)) for name in ("pixel_accuracy", "mean_accuracy", "mean_iou")),
            "; ".join(_stands_for_text(text, paper_rows) for text in m.entry.stands_for) or DASH,
        ]
        for m in gathered
    ]
    for (dataset, split), group in _by_images(gathered).items():
        m = next((m for m in group if m.value("all_background_mean_iou") is not None), None)
        if m is not None:
            names = ("pixel_accuracy", "mean_accuracy", "mean_iou")
            values = [percent(m.value(f"all_background_{name}")) for name in names]
            label = f"background everywhere ({dataset}, {split})"
            unknown = [DASH] * (len(head) - 5)
            rows.append([label, *unknown, *values, DASH])
    return markdown_table(head, rows)


def _by_images(gathered: Sequence[Measured]) -> dict[tuple[str, str], list[Measured]]:
    groups: dict[tuple[str, str], list[Measured]] = {}
    for m in gathered:
        groups.setdefault((m.entry.dataset, m.entry.split), []).append(m)
    return groups


def _stands_for_text(text: str, paper_rows: pd.DataFrame) -> str:
    name, table, row = text.split("/")
    chosen = paper_rows[
        (paper_rows["paper"] == name)
        & (paper_rows["table"] == table)
        & (paper_rows["row"] == int(row))
        & (paper_rows["setting"] == "method")
    ]
    method = f" ({chosen['value'].iloc[0]})" if len(chosen) else ""
    return f"{PAPERS[name]}, {table}, row {row}{method}"


def category_tables(gathered: Sequence[Measured]) -> str:
    """IoU by category: a table for each (dataset, split) with anything measured.

    A run a row; with many categories, a category a row.
    """
    parts = []
    for (dataset, split), group in _by_images(gathered).items():
        names = [c for m in group for (metric, c, _) in m.values if metric == "iou" and c]
        categories = list(dict.fromkeys(names))
        if not categories:
            continue
        rows = [["run", *categories]]
        rows += [[m.name, *(percent(m.value("iou", c)) for c in categories)] for m in group]
        if len(categories) > MAX_COLUMNS:
            rows = [list(column) for column in zip(*rows, strict=True)]
        parts.append(f"IoU by category, %, on {dataset}, {split}:\n")
        parts.append(markdown_table(rows[0], rows[1:]))
    return "\n".join(parts)


def label_quality_table(
    histories: Mapping[str, pd.DataFrame], choices: Mapping[str, pd.DataFrame]
) -> str:
    """How good the labels were from which box-supervised runs learned, over the rounds.

    Args:
        histories: {run: its table of kind "history"}; runs without label rows are left out.
        choices: {run: its table of kind "choices"}, for the boxes left to their rectangles.

    Returns:
        Markdown; empty where no run has such rows.
    """
    rows = []
    for run, history in histories.items():
        quality = label_rows(history, "label_mean_iou")
        if quality.empty:
            continue
        lowest = quality.loc[quality["value"].idxmin()]
        area = label_rows(history, "label_mean_area")["value"].tolist()
        rows.append(
            [
                run,
                len(quality),
                percent(quality["value"].iloc[0]),
                f"{percent(lowest['value'])} (epoch {int(lowest['epoch'])})",
                percent(quality["value"].iloc[-1]),
                f"{percent(area[0])} -> {percent(area[-1])}" if area else DASH,
                _rectangles_text(choices.get(run)),
            ]
        )
    head = ["run", "rounds", "first, %", "lowest, %", "last, %", "object area, %", "rectangles"]
    return markdown_table(head, rows) if rows else ""


def _rectangles_text(choices: pd.DataFrame | None) -> str:
    """Boxes without a fitting candidate, of all boxes, in the first and the last round."""
    if choices is None or choices.empty:
        return DASH
    rounds = (choices["label"] == "rectangle").groupby(choices["epoch"]).agg(["sum", "size"])
    return f"{rounds['sum'].iloc[0]} -> {rounds['sum'].iloc[-1]} of {rounds['size'].iloc[-1]}"


def label_rows(history: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one logged name, in order of epochs."""
    return history[history["name"] == name].sort_values(["epoch", "step"], kind="stable")


# --- model cards -------------------------------------------------------------------------------
def card(run_name: str, group: Sequence[Measured], paper_rows: pd.DataFrame) -> str:
    """The card of one run: data, supervision, parameters, protocol, numbers, limits.

    Args:
        group: its evaluations, at least one.
        paper_rows: settings of the papers' rows, for the known departures.
    """
    first = group[0]
    run = first.run
    images = "{} by masks, {} by boxes".format(*first.images) if first.images else DASH
    lines = [
        f"### {run_name}\n",
        f"- Data: {run.dataset}, split {run.split} (images: {images}); "
        f"{source_text(first.trained_on)}.",
        f"- Supervision: {supervision_text(first)}.",
        f"- Start: {first.init}. Precision {run.precision}, seed {run.seed}.",
        f"- Parameters (`{first.section}.{run_name}`): {_flat_text(asdict(run))}.",
    ]
    for m in group:
        numbers = ", ".join(
            f"{METRICS[name]} {percent(m.value(name))}"
            for name in ("pixel_accuracy", "mean_accuracy", "mean_iou")
        )
        lines.append(
            f"- `{m.name}`: {m.entry.dataset}, {m.entry.split}, "
            f"{_count(m.value('num_images'))} images, views {views_text(m.entry.views)}, "
            f"CRF {crf_text(m.entry.crf)}: {numbers} (%)."
        )
    return "\n".join([*lines, f"- Limits: {_limits(group, paper_rows)}."]) + "\n"


def _limits(group: Sequence[Measured], paper_rows: pd.DataFrame) -> str:
    found = ["one training seed"]
    if group[0].drawn:
        found += ["learned from drawn shapes: says nothing about photographs"]
    else:
        for m in group:
            found += [terms_text(m.trained_on), terms_text(m.tested_on)]
            for text in m.entry.stands_for:
                found += departures(m, settings_of_row(text, paper_rows))
    found += [f"candidates learnt from {source}" for source in group[0].learnt_from]
    return "; ".join(dict.fromkeys(found))


def settings_of_row(text: str, paper_rows: pd.DataFrame) -> dict[str, str]:
    name, table, row = text.split("/")
    of_table = (paper_rows["paper"] == name) & (paper_rows["table"] == table)
    chosen = paper_rows[of_table & (paper_rows["row"] == int(row))]
    return dict(zip(chosen["setting"], chosen["value"], strict=True))


def _flat_text(values: Mapping[str, Any]) -> str:
    parts = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            parts.append(f"{name} {{{_flat_text(value)}}}")
        elif isinstance(value, tuple | list):
            parts.append(f"{name} [{', '.join(f'{v:g}' for v in value)}]")
        else:
            parts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)


# --- JSON --------------------------------------------------------------------------------------
def metrics_json(gathered: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """{evaluation: {metric: value}}, fractions of four digits: what `dvc metrics diff` compares.

    Numbers over all categories; those of one category and those of bands are in the parquet tables.
    What is not a number is left out, and so is an evaluation without any.
    """
    found = {}
    for m in gathered:
        numbers = {
            metric if at is None else f"{metric}@{at:g}": (
                round(value) if metric.startswith("num_") else round(value, 4)
            )
            for (metric, category, at), value in m.values.items()
            if not category and not math.isnan(value) and not metric.endswith(_OF_BANDS)
        }
        if numbers:
            found[m.name] = numbers
    return found


# --- the whole ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pictures:
    """Names of the figures that were drawn, below reports/figures."""

    overlays: Mapping[str, str] = field(default_factory=dict)  # by evaluation
    curves: Mapping[str, str] = field(default_factory=dict)  # by run
    labels: Mapping[str, str] = field(default_factory=dict)  # by run
    quality: Mapping[str, str] = field(default_factory=dict)  # by dataset
    boundary: Mapping[str, str] = field(default_factory=dict)  # by `images_key`
    examples: Mapping[str, str] = field(default_factory=dict)  # by `images_key`


@dataclass(frozen=True)
class Bands:
    """Scores near the borders of the truth and away from them, of evaluations on the same images.

    Attributes:
        around: what the bands are around, in words.
        lines: {evaluation: (width in pixels, mean IoU in the band, outside it)}, fractions, NaN
            where there are no such pixels; the same widths for all.
    """

    around: str
    lines: Mapping[str, Sequence[tuple[float, float, float]]]


def read_paper(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """reports/paper.csv or paper_rows.csv; empty cells of texts stay empty texts.

    Raises:
        BadInput: the file is missing or has other columns.
    """
    if not path.is_file():
        raise BadInput(f"{path}: not there; it is kept in git: `git checkout -- {path}`")
    texts = {name: str for name in columns if name not in ("row", "at", "value")}
    if "setting" in columns:
        texts["value"] = str
    table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values={"at": [""]})
    if list(table.columns) != list(columns):
        raise BadInput(f"{path}: columns {list(table.columns)} instead of {list(columns)}")
    return table


_OF_BANDS = ("boundary_mean_iou", "interior_mean_iou")
# What the names of a band's metrics begin with: what the band is around, in words.
BANDS = {"": "the void (255) of the truth", "category_": "the borders between categories"}
PAPER_COLUMNS = ("paper", "table", "row", "metric", "category", "at", "value")
PAPER_ROWS_COLUMNS = ("paper", "table", "row", "setting", "value")


def document(
    params: Params,
    gathered: Sequence[Measured],
    histories: Mapping[str, pd.DataFrame],
    choices: Mapping[str, pd.DataFrame],
    pictures: Pictures,
    paper: pd.DataFrame,
    paper_rows: pd.DataFrame,
    *,
    bands: Mapping[str, Bands],
    machine: str,
    studies: Sequence[str],
) -> str:
    """The text of reports/tables.md.

    Args:
        histories, choices: {run: its table of that kind} of the runs that have one.
        bands: by `images_key`.
        machine: processor and torch version of this process, in words.
        studies: file names in reports/studies.
    """
    real = [m for m in gathered if not m.drawn]
    drawn = [m for m in gathered if m.drawn]
    parts = ["# Results\n", _header(params, gathered, machine), "## The papers' tables\n"]
    parts.append(
        paper_sections(gathered, paper, paper_rows)
        or "No active evaluation on real data stands for a row of a paper.\n"
    )
    if real:
        parts += ["## All evaluations on real data\n", summary_table(real, paper_rows)]
        parts += [category_tables(real)]
        parts += _labels_and_figures(real, histories, choices, pictures, bands)
    if drawn:
        parts += ["## Sample (drawn miniature world)\n", _sample_words(params, drawn)]
        parts += [summary_table(drawn, paper_rows), category_tables(drawn)]
        parts += _labels_and_figures(drawn, histories, choices, pictures, bands)
    if studies:
        parts += ["## Studies\n", "".join(f"- [{Path(s).stem}](studies/{s})\n" for s in studies)]
    parts.append("## Model cards\n")
    models = dict.fromkeys(m.entry.model for m in gathered)
    parts += [card(n, [m for m in gathered if m.entry.model == n], paper_rows) for n in models]
    return "\n".join(part for part in parts if part)


def _header(params: Params, gathered: Sequence[Measured], machine: str) -> str:
    precisions: dict[str, list[str]] = {}
    for m in gathered:
        precisions.setdefault(m.run.precision, []).append(m.entry.model)
    if len(precisions) == 1:
        precision = next(iter(precisions))
    else:
        precision = "; ".join(f"{p} ({', '.join(dict.fromkeys(n))})" for p, n in precisions.items())
    data = {m.entry.dataset: source_text(m.tested_on) for m in gathered}
    return (
        "Generated by `python -m pipeline report`; not edited by hand. Percent with two decimals; "
        f"{DASH} is not measured. Fractions are in `data/metrics` and `metrics.json`.\n\n"
        f"- Written on: {machine}\n"
        f"- Precision: {precision or DASH}\n"
        f"- Data: {'; '.join(f'{name}: {source}' for name, source in data.items()) or DASH}\n"
    )


def _sample_words(params: Params, drawn: Sequence[Measured]) -> str:
    counts = [
        f"{name}: {d.train} + {d.extra} training and {d.val} val images"
        for name, d in params.datasets.items()
        if isinstance(d, SampleDataset) and any(m.entry.dataset == name for m in drawn)
    ]
    return (
        "Drawn shapes on clutter, in the layouts of VOC and SBD, made to run both papers whole in "
        "minutes. The numbers show that the pipeline works (studies tell what holds over seeds); "
        "they are not comparable to any number of a paper, so none stands here. "
        f"One seed each ({'; '.join(counts)}).\n"
    )


def _labels_and_figures(
    group: Sequence[Measured],
    histories: Mapping[str, pd.DataFrame],
    choices: Mapping[str, pd.DataFrame],
    pictures: Pictures,
    bands: Mapping[str, Bands],
) -> list[str]:
    models = list(dict.fromkeys(m.entry.model for m in group))
    parts = []
    quality = label_quality_table({n: histories[n] for n in models if n in histories}, choices)
    if quality:
        parts += [
            "### Labels estimated from boxes\n",
            "Mean IoU of the estimated labels with the true masks, over the box-labelled training "
            "images; the part of all pixels that they label as objects; boxes left to their "
            "rectangles for want of a fitting candidate.\n",
            quality,
        ]
    datasets = dict.fromkeys(m.run.dataset for m in group)
    parts += [
        f"![label quality]({_figure(pictures.quality[d])})\n"
        for d in datasets
        if d in pictures.quality
    ]
    parts += _comparisons(group, pictures, bands)
    links = [f"{n}: " + ", ".join(_links(n, group, pictures)) for n in models]
    links = [link for link in links if not link.endswith(": ")]
    if links:
        parts += ["Figures:\n", "".join(f"- {link}\n" for link in links)]
    return parts


def _links(model: str, group: Sequence[Measured], pictures: Pictures) -> list[str]:
    found = [
        f"[{m.name} predictions]({_figure(pictures.overlays[m.name])})"
        for m in group
        if m.entry.model == model and m.name in pictures.overlays
    ]
    if model in pictures.labels:
        found.append(f"[labels at epochs]({_figure(pictures.labels[model])})")
    if model in pictures.curves:
        found.append(f"[training]({_figure(pictures.curves[model])})")
    return found


def _comparisons(
    group: Sequence[Measured], pictures: Pictures, bands: Mapping[str, Bands]
) -> list[str]:
    """What sets masks, boxes and both side by side, for each dataset and split."""
    parts = []
    for key in dict.fromkeys(images_key(m) for m in group):
        if key in bands:
            parts += [
                "### Near borders and away from them\n",
                f"Mean IoU, %, within a band around {bands[key].around} / outside it, by the width "
                "of the band in pixels.\n",
                band_table(bands[key]),
            ]
        if key in pictures.boundary:
            parts.append(f"![boundary and interior]({_figure(pictures.boundary[key])})\n")
        if key in pictures.examples:
            parts += [
                "### Examples\n",
                "The first images of the split, by supervision.\n",
                f"![examples]({_figure(pictures.examples[key])})\n",
            ]
    return parts


def bands_of(beside: Mapping[str, Mapping[str, Measured]]) -> dict[str, Bands]:
    """The bands of evaluations on the same images, where all have them, around the same borders.

    Args:
        beside: {`images_key`: {supervision: evaluation}}.
    """
    found = {}
    for key, group in beside.items():
        for prefix, around in BANDS.items():
            lines = {m.name: _band_points(m, prefix) for m in group.values()}
            if all(lines.values()):
                found[key] = Bands(around, lines)
    return found


def _band_points(measured: Measured, prefix: str) -> list[tuple[float, float, float]]:
    """(width, mean IoU in the band, outside it), ascending; numbers that are none are NaN."""

    def part(name: str, width: float) -> float:
        return measured.values.get((f"{prefix}{name}_mean_iou", "", width), math.nan)

    name = f"{prefix}boundary_mean_iou"
    widths = sorted(at for metric, _, at in measured.values if metric == name and at is not None)
    return [(width, part("boundary", width), part("interior", width)) for width in widths]


def band_table(bands: Bands) -> str:
    """A row for each evaluation, a column for each width: boundary / interior."""
    widths = [f"{width:g}" for width, _, _ in next(iter(bands.lines.values()))]
    rows = [
        [name, *(f"{percent(boundary)} / {percent(interior)}" for _, boundary, interior in points)]
        for name, points in bands.lines.items()
    ]
    return markdown_table(["run", *widths], rows)


def images_key(measured: Measured) -> str:
    """Names the images of an evaluation: dataset and split."""
    return f"{measured.entry.dataset}_{measured.entry.split}"


def _figure(name: str) -> str:
    return f"figures/{name}"
