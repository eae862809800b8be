"""What `sensitivity` found, as a table for programs and a page for people."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets.leaks import identity, trained_for
from pipeline.markdown import markdown_table, percent
from pipeline.params import BoxInstances, Params, RegionIou, RegionNms, trained_runs
from pipeline.tables import read_table

SETTINGS = ("top_masks", "nms_iou", "region_nms", "min_probability", "min_pixels")
METRICS = ("mAP_r@0.5", "mAP_r@0.7", "mAP_r_vol")
INTRODUCTION = """\
How much mAP^r (`sds`) depends on settings that Wu et al. do not print: n (top masks), the overlap
of box NMS, and the rule of region NMS. The networks were asked once; only the search for objects
in what they say differs. Of equal ones the evaluation's own settings count as the best, else the
first."""


class Scores(NamedTuple):
    """Means over the categories, by the protocol `sds`; named in `METRICS`."""

    at_half: float
    at_seven: float
    volume: float


@dataclass(frozen=True)
class Measured:
    """The scores of many rules of one evaluation on the same images.

    Attributes:
        scores: of every rule below.
        own: the evaluation's own rule.
        grid: all combinations of n, overlap and region rule; else as own.
        best: that of the grid with the highest mAP^r_vol.
        probabilities, pixels: the best with other values of these two settings, rising.
    """

    scores: Mapping[BoxInstances, Scores]
    own: BoxInstances
    grid: Sequence[BoxInstances]
    best: BoxInstances
    probabilities: Sequence[BoxInstances]
    pixels: Sequence[BoxInstances]


def region_name(rule: RegionNms) -> str:
    """any_overlap, or as "iou 0.3"."""
    return f"iou {rule.iou:g}" if isinstance(rule, RegionIou) else rule.kind


def settings_cells(rule: BoxInstances) -> list[str]:
    """What a rule says under `SETTINGS`."""
    numbers = rule.min_probability, rule.min_pixels
    return [
        str(rule.top_masks), f"{rule.nms_iou:g}", region_name(rule.region_nms),
        *(f"{number:g}" for number in numbers),
    ]  # fmt: skip


def csv_text(measured: Measured, same: Mapping[str, object]) -> str:
    """A line for each rule: what is the same for all, its settings, its scores as fractions."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*same, *SETTINGS, *METRICS])
    for rule, scores in measured.scores.items():
        lines.writerow([*same.values(), *settings_cells(rule), *map(repr, scores)])
    return text.getvalue()


# --- the page -------------------------------------------------------------------------------------
def page(measured: Measured, *, title: str, facts: Sequence[tuple[str, str]], figure: str) -> str:
    """The page in Markdown.

    Args:
        facts: (name, text) of all that the numbers depend on.
        figure: name of the heat map beside the page.
    """
    told = "\n".join(f"- {name}: {text}" for name, text in facts)
    parts = [
        f"# {title}\n\n{INTRODUCTION}\n\n{told}\n",
        "## mAP^r_vol, %\n\nn down, overlap of box NMS across; the best in bold.\n",
        *_grids(measured),
        f"![the same as colours]({figure})\n",
        f"## The best of these, and the evaluation's own\n\n{_pair(measured)}",
        "## At the best, one setting at a time\n",
        _varied(measured, "min_probability", measured.probabilities),
        _varied(measured, "min_pixels", measured.pixels),
    ]
    return "\n".join(parts)


def _grids(measured: Measured) -> list[str]:
    """A heading and a table for each region rule."""
    highest = measured.scores[measured.best].volume
    tops = sorted({rule.top_masks for rule in measured.grid})
    overlaps = sorted({rule.nms_iou for rule in measured.grid})
    parts = []
    for region in dict.fromkeys(rule.region_nms for rule in measured.grid):
        of_region = {
            (rule.top_masks, rule.nms_iou): measured.scores[rule].volume
            for rule in measured.grid
            if rule.region_nms == region
        }
        rows = []
        for top in tops:
            values = [of_region[top, overlap] for overlap in overlaps]
            cells = [f"**{percent(v)}**" if v == highest else percent(v) for v in values]
            rows.append([str(top), *cells])
        head = ["n", *(f"{overlap:g}" for overlap in overlaps)]
        parts += [f"Region NMS `{region_name(region)}`:\n", markdown_table(head, rows)]
    return parts


def _pair(measured: Measured) -> str:
    rules = {"best of the grid": measured.best, "the evaluation's own": measured.own}
    rows = [
        [name, *settings_cells(rule), *map(percent, measured.scores[rule])]
        for name, rule in rules.items()
    ]
    return markdown_table(["", *SETTINGS, *(f"{metric}, %" for metric in METRICS)], rows)


def _varied(measured: Measured, setting: str, rules: Sequence[BoxInstances]) -> str:
    rows = [[f"{getattr(rule, setting):g}", *map(percent, measured.scores[rule])] for rule in rules]
    return markdown_table([setting, *(f"{metric}, %" for metric in METRICS)], rows)


# --- whose images they are ------------------------------------------------------------------------
def whose_images(root: Path, params: Params, evaluation: str, ids: Sequence[str]) -> str:
    """Which networks learnt from these images, and whether the evaluation is measured on them.

    Args:
        ids: images of the evaluation's dataset.
    """
    entry = params.evaluations[evaluation]
    these = {identity(entry.dataset, params.datasets[entry.dataset], i) for i in ids}
    runs = trained_runs(params)
    behind = [*trained_for(params, entry.model), *trained_for(params, entry.localization)]
    said, learnt = [], False
    for name in dict.fromkeys(behind):
        images = _images(root, params, runs[name].dataset, runs[name].split)
        if images is None:
            dataset = runs[name].dataset
            said.append(f"{dataset}, which {name} learnt from, is not prepared here to compare")
            continue
        shared = len(these & images)
        learnt |= shared > 0
        said.append(f"{name} learnt from {_how_many(shared, len(these))} of them")
    measured = len(these & (_images(root, params, entry.dataset, entry.split) or set()))
    said.append(f"the evaluation is measured on {_how_many(measured, len(these))} of them")
    advice = f"{'No setting' if measured else 'Settings'} may be chosen by this page"
    if learnt and not measured:
        advice += ", though networks are surer of images that they learnt from than of others"
    return f"{'; '.join(said)}. {advice}"


def _how_many(shared: int, total: int) -> str:
    return {0: "none", total: "all"}.get(shared, str(shared))


def _images(root: Path, params: Params, dataset: str, split: str) -> set[tuple[str, str]] | None:
    """The images of a split, as `identity` tells them apart; None where it is not prepared."""
    path = root / "data" / "prepared" / dataset / "images.parquet"
    if not path.is_file():
        return None
    images = read_table(path, "images")
    ids = images.loc[images["split"] == split, "image_id"]
    return {identity(dataset, params.datasets[dataset], image_id) for image_id in ids}
