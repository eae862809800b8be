"""What a report says of label maps: scores, labels estimated from boxes, borders, and cards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from pipeline.instance_reports import object_numbers
from pipeline.markdown import (
    DASH,
    count,
    flat_text,
    markdown_table,
    percent,
    stands_for_text,
    table_by_category,
)
from pipeline.paper_tables import METRICS
from pipeline.protocol import Measured, Trained, by_images, categories_of
from pipeline.wording import (
    NETWORK_HEAD,
    bootstrapping_text,
    crf_text,
    network_cells,
    source_text,
    supervision_text,
    testing_text,
    views_text,
)


# --- tables --------------------------------------------------------------------------------------
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


# --- borders -------------------------------------------------------------------------------------
# What the names of a band's metrics begin with: what the band is around, in words.
BANDS = {"": "the void (255) of the truth", "category_": "the borders between categories"}


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


# --- model cards ---------------------------------------------------------------------------------
def semantic_card(network: Trained, group: Sequence[Measured], limits: str) -> str:
    """The card of a semantic network: data, supervision, parameters, protocol, numbers, limits.

    Args:
        group: its evaluations, at least one.
        limits: in words.
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
    return "\n".join([*lines, f"- Limits: {limits}."]) + "\n"
