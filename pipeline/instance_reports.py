"""What was measured of objects -> Markdown: mAP^r with its protocol, and localisation networks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import pandas as pd

from pipeline.markdown import (
    DASH,
    count,
    figure_link,
    flat_text,
    markdown_table,
    percent,
    stands_for_text,
    table_by_category,
)
from pipeline.params import BoxInstances
from pipeline.params_training import InstanceRun
from pipeline.protocol import Measured, Trained, by_images, categories_of, images_key
from pipeline.wording import (
    bootstrapping_text,
    network_supervision,
    region_text,
    source_text,
    targets_text,
    views_text,
    weighting_text,
)

OBJECT_METRICS = {"mAP_r": "mAP^r", "mAP_r_vol": "mAP^r vol"}
OVERLAPS = (0.5, 0.7)  # those of Wu2016 Table 6
JSON_OVERLAPS = (None, *OVERLAPS)  # of mAP^r in metrics.json; None: over all
SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class ObjectPictures:
    """Names of the figures of objects that were drawn, below reports/figures."""

    steps: Mapping[str, str] = field(default_factory=dict)  # by evaluation
    overlays: Mapping[str, str] = field(default_factory=dict)  # by evaluation
    precision_recall: Mapping[str, str] = field(default_factory=dict)  # by `images_key`


# --- what stands in for what ---------------------------------------------------------------------
OF_LOCALIZATION = ("its depth", "its bootstrapping", "its weights of pixels")
NETWORKS = ("semantic network", "localisation network", *OF_LOCALIZATION)
DECODING = ("n", "min probability", "NMS IoU", "region rule", "min pixels", "vote stride", "views")


def semantic_cell(measured: Measured) -> str:
    """The semantic network with its depth and supervision, or what stands in for it."""
    network = measured.semantic
    if network is None:
        return "true masks"
    return f"{network.name} (depth {network.run.network.depth}, {network_supervision(network)})"


def localization_cells(measured: Measured) -> list[str]:
    """The localisation network or what stands in for it, then what `OF_LOCALIZATION` names."""
    network = measured.localization
    if network is None or not isinstance(network.run, InstanceRun):
        by_boxes = isinstance(measured.entry.instances, BoxInstances)
        unknown = [DASH] * len(OF_LOCALIZATION)
        return ["true boxes" if by_boxes else "connected components", *unknown]
    return [
        network.name,
        str(network.run.network.depth),
        bootstrapping_text(network.run.bootstrapping),
        weighting_text(network.run.weighting),
    ]


def decoding_cells(measured: Measured) -> list[str]:
    """What `DECODING` names."""
    entry = measured.entry
    if entry.instances == "none":
        return [DASH] * (len(DECODING) - 1) + [views_text(entry.views)]
    if not isinstance(entry.instances, BoxInstances):
        pixels = str(entry.instances.min_pixels)
        return [DASH, DASH, DASH, DASH, pixels, DASH, views_text(entry.views)]
    rule = entry.instances
    return [
        str(rule.top_masks),
        f"{rule.min_probability:g}",
        f"{rule.nms_iou:g}",
        region_text(rule.region_nms),
        str(rule.min_pixels),
        "1" if measured.asks_truth else str(rule.vote_stride),
        views_text(entry.views) if measured.networks else DASH,
    ]


OBJECT_PROTOCOL = (
    "dataset", "split", "images", *NETWORKS, *DECODING, "parameters", "data",
)  # fmt: skip


def object_cells(measured: Measured) -> list[str]:
    """What `OBJECT_PROTOCOL` names."""
    parameters = [f"`{network.section}.{network.name}`" for network in measured.networks]
    return [
        measured.entry.dataset,
        measured.entry.split,
        count(measured.value("num_images")),
        semantic_cell(measured),
        *localization_cells(measured),
        *decoding_cells(measured),
        ", ".join([*parameters, f"`evaluations.{measured.name}`"]),
        source_text(measured.tested_on),
    ]


# --- tables --------------------------------------------------------------------------------------
def object_sections(
    group: Sequence[Measured], pictures: ObjectPictures, paper_rows: pd.DataFrame
) -> list[str]:
    """All about the evaluations that find objects; nothing where none does."""
    finding = [m for m in group if m.finds_objects]
    if not finding:
        return []
    return [
        "### Objects\n",
        "Mean average precision of masks, %, at an overlap (IoU) of 0.5 and of 0.7, and the mean "
        "over 0.1, 0.2, ..., 0.9 (vol), by the protocol of Hariharan et al. (`sds`); beside it by "
        "that of MNC (`mnc11`).\n",
        objects_table(finding, paper_rows),
        sizes_table(finding),
        precision_tables(finding),
        *_figures(finding, pictures),
    ]


def objects_table(finding: Sequence[Measured], paper_rows: pd.DataFrame) -> str:
    """One row per evaluation: networks, how objects are found, mAP^r by both protocols."""
    numbers = [
        f"mAP^r {which}, %{protocol}"
        for protocol in ("", " (mnc11)")
        for which in (*OVERLAPS, "vol")
    ]
    head = ["run", *NETWORKS, *DECODING, *numbers, "objects", "detections", "stands for"]
    rows = [
        [
            m.name,
            semantic_cell(m),
            *localization_cells(m),
            *decoding_cells(m),
            *(percent(value) for protocol in ("", "_mnc11") for value in _three(m, protocol)),
            count(m.value("num_objects")),
            count(m.value("num_detections")),
            stands_for_text(m.entry.stands_for, paper_rows),
        ]
        for m in finding
    ]
    return markdown_table(head, rows)


def _three(measured: Measured, protocol: str = "") -> list[float | None]:
    """mAP^r at 0.5, at 0.7 and over all overlaps."""
    name = f"mAP_r{protocol}"
    at = [measured.value(name, at=overlap) for overlap in OVERLAPS]
    return [*at, measured.value(f"mAP_r_vol{protocol}")]


def object_numbers(measured: Measured) -> str:
    """The three numbers for a model card, with a comma before; empty where none is measured."""
    values = _three(measured)
    if all(value is None for value in values):
        return ""
    names = ("mAP^r at 0.5", "at 0.7", "vol")
    return "".join(f", {n} {percent(value)}" for n, value in zip(names, values, strict=True))


def sizes_table(finding: Sequence[Measured]) -> str:
    """mAP^r of small, medium and large objects; empty where none is measured."""
    columns = [(size, at) for size in SIZES for at in OVERLAPS]
    rows = []
    for m in finding:
        values = [m.value(f"mAP_r_{size}", at=at) for size, at in columns]
        if any(value is not None for value in values):
            rows.append([m.name, *map(percent, values)])
    if not rows:
        return ""
    head = ["run", *(f"{size}, {at:g}" for size, at in columns)]
    words = (
        "By the size of objects, %: small has at most 32 x 32 pixels, large at least 96 x 96; "
        "those of other sizes, and what is found of them, are left out.\n"
    )
    return f"{words}\n{markdown_table(head, rows)}"


def precision_tables(finding: Sequence[Measured]) -> str:
    """AP^r by category: a table for each (dataset, split) with anything measured."""
    parts = []
    for (dataset, split), group in by_images(finding).items():
        if categories := categories_of(group, "AP_r"):
            parts.append(f"AP^r by category at 0.5 / at 0.7, %, on {dataset}, {split}:\n")
            runs = {m.name: [_pair(m, category) for category in categories] for m in group}
            parts.append(table_by_category(categories, runs))
    return "\n".join(parts)


def _pair(measured: Measured, category: str) -> str:
    values = [measured.value("AP_r", category, overlap) for overlap in OVERLAPS]
    return " / ".join(map(percent, values))


def _figures(finding: Sequence[Measured], pictures: ObjectPictures) -> list[str]:
    """Curves beside each other, then links to the pictures of each evaluation."""
    parts = [
        f"!{figure_link('precision and recall', pictures.precision_recall[key])}\n"
        for key in dict.fromkeys(images_key(m) for m in finding)
        if key in pictures.precision_recall
    ]
    kinds = {"from pixels to objects": pictures.steps, "objects": pictures.overlays}
    lines = {
        m.name: [
            figure_link(words, names[m.name]) for words, names in kinds.items() if m.name in names
        ]
        for m in finding
    }
    links = "".join(f"- {name}: {', '.join(found)}\n" for name, found in lines.items() if found)
    return [*parts, "Pictures of objects:\n", links] if links else parts


# --- model cards ---------------------------------------------------------------------------------
def localization_card(network: Trained, group: Sequence[Measured], limits: str) -> str:
    """The card of a localisation network: data, what it learns, protocol, numbers, limits.

    Args:
        group: the evaluations that use it, at least one.
        limits: in words.
    """
    run = network.run
    if not isinstance(run, InstanceRun):
        raise ValueError(f"{network.name} is no localisation network")
    images = f"{sum(network.images):,}" if network.images else DASH
    lines = [
        f"### {network.name}\n",
        f"- Data: {run.dataset}, split {run.split} (images: {images}, by the masks of objects); "
        f"{source_text(network.trained_on)}.",
        "- Learns where the box of its object is, at each pixel of an object: "
        f"{targets_text(run.targets)}. Weights of pixels: {weighting_text(run.weighting)}. "
        f"Bootstrapping: {bootstrapping_text(run.bootstrapping)}.",
        f"- Start: {network.init}. Precision {run.precision}, seed {run.seed}.",
        f"- Parameters (`{network.section}.{network.name}`): {flat_text(asdict(run))}.",
    ]
    for m in group:
        found = zip((*DECODING,), decoding_cells(m), strict=True)
        decoding = ", ".join(f"{name} {cell}" for name, cell in found)
        lines.append(
            f"- `{m.name}`: {m.entry.dataset}, {m.entry.split}, {count(m.value('num_images'))} "
            f"images, scores of {semantic_cell(m)}, {decoding}: "
            f"{object_numbers(m).removeprefix(', ') or DASH} (%)."
        )
    return "\n".join([*lines, f"- Limits: {limits}."]) + "\n"
