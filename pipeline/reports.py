"""Tables of measured numbers -> Markdown and JSON.

A number never stands without its protocol, a missing one is a dash, and numbers from drawn images
have a section of their own, away from the papers' numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pipeline.departures import departures
from pipeline.instance_reports import (
    JSON_OVERLAPS,
    ObjectPictures,
    localization_card,
    object_sections,
)
from pipeline.markdown import DASH, figure_link, settings_of_row
from pipeline.paper_tables import paper_sections
from pipeline.params import Params
from pipeline.params_datasets import SampleDataset
from pipeline.protocol import Measured, Trained, images_key
from pipeline.semantic_reports import (
    Bands,
    band_table,
    category_tables,
    label_quality_table,
    semantic_card,
    summary_table,
)
from pipeline.wording import source_text, terms_text


# --- model cards -------------------------------------------------------------------------------
def cards(gathered: Sequence[Measured], paper_rows: pd.DataFrame) -> list[str]:
    """A card of each network, the semantic ones first."""
    parts = []
    semantic = {m.semantic.name: m.semantic for m in gathered if m.semantic}
    for name, network in semantic.items():
        group = [m for m in gathered if m.semantic and m.semantic.name == name]
        parts.append(semantic_card(network, group, _limits(network, group, paper_rows)))
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
_OF_BANDS = ("boundary_mean_iou", "interior_mean_iou")


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
