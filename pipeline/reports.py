"""Tables of measured numbers -> Markdown and JSON.

A number never stands without its protocol, a missing one is a dash, and numbers from drawn images
have a section of their own, away from the papers' numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from pipeline.errors import BadInput
from pipeline.instance_reports import (
    JSON_OVERLAPS,
    ObjectPictures,
    localization_card,
    object_numbers,
    object_sections,
)
from pipeline.markdown import (
    DASH,
    count,
    figure_link,
    flat_text,
    markdown_table,
    percent,
    settings_of_row,
    stands_for_text,
    table_by_category,
)
from pipeline.paper_tables import METRICS, paper_sections
from pipeline.params import Params, SampleDataset
from pipeline.protocol import (
    NETWORK_HEAD,
    Measured,
    Trained,
    by_images,
    categories_of,
    departures,
    images_key,
    network_cells,
    source_text,
    supervision_text,
    terms_text,
)
from pipeline.wording import bootstrapping_text, crf_text, testing_text, views_text


# --- tables ------------------------------------------------------------------------------------
def summary_table(gathered: Sequence[Measured], paper_rows: pd.DataFrame) -> str:
    """One row per evaluation, and what background everywhere scores on the same images.

    The rows of the papers are named, their numbers are not shown. Where the true masks stand in for
    a network there is no row; the table is empty where they always do.
    """
    head = ["run", "supervision", *NETWORK_HEAD, "bootstrapping", "views"]
    head += ["pixel acc., %", "mean acc., %", "mean IoU, %", "stands for"]
    rows = [
        [
            m.name,
            supervision_text(m),
            *network_cells(m.semantic.run.network),
            bootstrapping_text(m.semantic.run.bootstrapping),
            testing_text(m.entry),
            *(percent(m.value(name)) for name in ("pixel_accuracy", "mean_accuracy", "mean_iou")),
            stands_for_text(m.entry.stands_for, paper_rows),
        ]
        for m in gathered
        if m.semantic is not None
    ]
    for (dataset, split), group in by_images(gathered).items():
        m = next((m for m in group if m.value("all_background_mean_iou") is not None), None)
        if m is not None:
            names = ("pixel_accuracy", "mean_accuracy", "mean_iou")
            values = [percent(m.value(f"all_background_{name}")) for name in names]
            label = f"background everywhere ({dataset}, {split})"
            unknown = [DASH] * (len(head) - 5)
            rows.append([label, *unknown, *values, DASH])
    return markdown_table(head, rows) if rows else ""


def category_tables(gathered: Sequence[Measured]) -> str:
    """IoU by category: a table for each (dataset, split) with anything measured."""
    parts = []
    for (dataset, split), group in by_images(gathered).items():
        if categories := categories_of(group, "iou"):
            parts.append(f"IoU by category, %, on {dataset}, {split}:\n")
            with_maps = [m for m in group if m.semantic is not None]
            runs = {m.name: [percent(m.value("iou", c)) for c in categories] for m in with_maps}
            parts.append(table_by_category(categories, runs))
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
def card(network: Trained, group: Sequence[Measured], paper_rows: pd.DataFrame) -> str:
    """The card of a semantic network: data, supervision, parameters, protocol, numbers, limits.

    Args:
        group: its evaluations, at least one.
        paper_rows: settings of the papers' rows, for the known departures.
    """
    run = network.run
    images = "{} by masks, {} by boxes".format(*network.images) if network.images else DASH
    lines = [
        f"### {network.name}\n",
        f"- Data: {run.dataset}, split {run.split} (images: {images}); "
        f"{source_text(network.trained_on)}.",
        f"- Supervision: {supervision_text(group[0])}.",
        f"- Start: {network.init}. Precision {run.precision}, seed {run.seed}.",
        f"- Parameters (`{network.section}.{network.name}`): {flat_text(asdict(run))}.",
    ]
    for m in group:
        numbers = ", ".join(
            f"{METRICS[name]} {percent(m.value(name))}"
            for name in ("pixel_accuracy", "mean_accuracy", "mean_iou")
        )
        lines.append(
            f"- `{m.name}`: {m.entry.dataset}, {m.entry.split}, "
            f"{count(m.value('num_images'))} images, views {views_text(m.entry.views)}, "
            f"CRF {crf_text(m.entry.crf)}: {numbers}{object_numbers(m)} (%)."
        )
    return "\n".join([*lines, f"- Limits: {_limits(network, group, paper_rows)}."]) + "\n"


def cards(gathered: Sequence[Measured], paper_rows: pd.DataFrame) -> list[str]:
    """A card of each network, the semantic ones first."""
    parts = []
    semantic = {m.semantic.name: m.semantic for m in gathered if m.semantic}
    for name, network in semantic.items():
        group = [m for m in gathered if m.semantic and m.semantic.name == name]
        parts.append(card(network, group, paper_rows))
    localization = {m.localization.name: m.localization for m in gathered if m.localization}
    for name, network in localization.items():
        group = [m for m in gathered if m.localization and m.localization.name == name]
        parts.append(localization_card(network, group, _limits(network, group, paper_rows)))
    return parts


def _limits(network: Trained, group: Sequence[Measured], paper_rows: pd.DataFrame) -> str:
    found = ["one training seed"]
    if group[0].drawn:
        found += ["learned from drawn shapes: says nothing about photographs"]
    else:
        for m in group:
            found += [terms_text(network.trained_on), terms_text(m.tested_on)]
            for text in m.entry.stands_for:
                found += departures(m, settings_of_row(text, paper_rows))
    found += [f"candidates learnt from {source}" for source in network.learnt_from]
    return "; ".join(dict.fromkeys(found))


# --- JSON --------------------------------------------------------------------------------------
def metrics_json(gathered: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """{evaluation: {metric: value}}, fractions of four digits: what `dvc metrics diff` compares.

    Numbers over all categories; those of one category, those of bands and mAP^r at overlaps other
    than 0.5 and 0.7 are in the parquet tables. What is not a number is left out, and so is an
    evaluation without any.
    """
    found = {}
    for m in gathered:
        numbers = {
            metric if at is None else f"{metric}@{at:g}": (
                round(value) if metric.startswith("num_") else round(value, 4)
            )
            for (metric, category, at), value in m.values.items()
            if not (category or math.isnan(value) or metric.endswith(_OF_BANDS))
            and not (metric.startswith("mAP_r") and at not in JSON_OVERLAPS)
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
    objects: ObjectPictures = ObjectPictures()


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
    sensitivities: Sequence[str] = (),
) -> str:
    """The text of reports/tables.md.

    Args:
        histories, choices: {run: its table of that kind} of the runs that have one.
        bands: by `images_key`.
        machine: processor and torch version of this process, in words.
        studies, sensitivities: file names in reports/studies and reports/sensitivity.
    """
    real = [m for m in gathered if not m.drawn]
    drawn = [m for m in gathered if m.drawn]
    parts = ["# Results\n", _header(params, gathered, machine), "## The papers' tables\n"]
    parts.append(
        paper_sections(gathered, paper, paper_rows)
        or "No active evaluation on real data stands for a row of a paper.\n"
    )
    for group, heading in (
        (real, "## All evaluations on real data\n"),
        (drawn, "## Sample (drawn miniature world)\n"),
    ):
        if group:
            parts.append(heading)
            parts += [_sample_words(params, group)] if group is drawn else []
            parts += [summary_table(group, paper_rows), category_tables(group)]
            parts += object_sections(group, pictures.objects, paper_rows)
            parts += _labels_and_figures(group, histories, choices, pictures, bands)
    if studies:
        parts += ["## Studies\n", "".join(f"- [{Path(s).stem}](studies/{s})\n" for s in studies)]
    if sensitivities:
        parts.append("## Settings for finding objects\n")
    for page in sensitivities:
        name = Path(page).stem
        parts.append(
            f"[{name}](sensitivity/{page}), mAP^r vol:\n\n![{name}](sensitivity/{name}.png)\n"
        )
    parts += ["## Model cards\n", *cards(gathered, paper_rows)]
    return "\n".join(part for part in parts if part)


def _header(params: Params, gathered: Sequence[Measured], machine: str) -> str:
    precisions: dict[str, list[str]] = {}
    for network in (network for m in gathered for network in m.networks):
        precisions.setdefault(network.run.precision, []).append(network.name)
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
    runs = {network.name: network.run for m in group for network in m.networks}
    models = list(runs)
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
    datasets = dict.fromkeys(run.dataset for run in runs.values())
    parts += [
        f"!{figure_link('label quality', pictures.quality[d])}\n"
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
        figure_link(f"{m.name} predictions", pictures.overlays[m.name])
        for m in group
        if m.entry.model == model and m.name in pictures.overlays
    ]
    if model in pictures.labels:
        found.append(figure_link("labels at epochs", pictures.labels[model]))
    if model in pictures.curves:
        found.append(figure_link("training", pictures.curves[model]))
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
            parts.append(f"!{figure_link('boundary and interior', pictures.boundary[key])}\n")
        if key in pictures.examples:
            parts += [
                "### Examples\n",
                "The first images of the split, by supervision.\n",
                f"!{figure_link('examples', pictures.examples[key])}\n",
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
