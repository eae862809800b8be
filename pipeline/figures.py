"""Pictures for reports/figures: PNG files, drawn without a display.

H x W pixels.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from pipeline.categories import CITYSCAPES, IGNORE, colour_map

WIDTH = 2.2  # inches of one image
LEGEND_COLUMNS = 8
DPI = 100
PALETTE = 256  # colours: the figures of reports are kept in git

CITYSCAPES_COLOURS = (  # as published, in the order of the train ids
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
    (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
    (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip


def blend(image: np.ndarray, label_map: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 under the colours of its label map (H, W) uint8.

    Background, which is black, is the image at half brightness, a category its colour over the
    image, ignored pixels white.

    Args:
        colours: (256, 3) uint8, by number, as from `colours_of`.

    Returns:
        (H, W, 3) uint8.
    """
    grey = image.mean(axis=2, keepdims=True)  # (H, W, 1)
    background = (colours == 0).all(axis=1)  # (256,)
    blended = np.where(
        background[label_map][..., None], image * 0.5, grey * 0.4 + colours[label_map] * 0.6
    )
    blended[label_map == IGNORE] = 255
    return blended.astype(np.uint8)


def colours_of(categories: Sequence[str]) -> np.ndarray:
    """(256, 3) uint8: VOC's palette, without its black where there is no background; or
    Cityscapes' own."""
    colours = colour_map()
    if categories[0] != "background":
        colours = np.roll(colours, -1, axis=0)
    if tuple(categories) == CITYSCAPES:
        colours[: len(CITYSCAPES)] = CITYSCAPES_COLOURS
    return colours


def overlays(
    path: Path,
    headings: Sequence[str],
    rows: Sequence[tuple[str, np.ndarray, Sequence[np.ndarray]]],
    categories: Sequence[str],
) -> None:
    """Write a grid: a row per image, the image first, then it under each of its label maps.

    Args:
        headings: of the columns, the image's included.
        rows: (name, image (H, W, 3) uint8, label maps (H, W) uint8), at least one.
        categories: names by number, for the legend.
    """
    colours = colours_of(categories)
    shown = np.unique(np.concatenate([m.ravel() for _, _, maps in rows for m in maps]))
    patches = [
        Patch(color=tuple(colours[c] / 255), label=categories[c])
        for c in shown
        if c < len(categories) and colours[c].any()
    ]
    tallest = max(image.shape[0] / image.shape[1] for _, image, _ in rows)
    legend = 0.6 + 0.15 * (max(0, len(patches) - 1) // LEGEND_COLUMNS)  # inches
    figure = Figure(
        figsize=(WIDTH * len(headings), (WIDTH * tallest + 0.1) * len(rows) + legend),
        layout="constrained",
    )
    axes = figure.subplots(len(rows), len(headings), squeeze=False)
    for i, (name, image, label_maps) in enumerate(rows):
        pictures = [image, *(blend(image, label_map, colours) for label_map in label_maps)]
        for axis, picture in zip(axes[i], pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[i][0].set_ylabel(name, fontsize=min(7, 120 * WIDTH * tallest / len(name)))
    for axis, heading in zip(axes[0], headings, strict=True):
        axis.set_title(heading, fontsize=9)
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=7)
    write_png(path, figure, dpi=DPI, palette=PALETTE)


def curves(path: Path, title: str, history: pd.DataFrame) -> None:
    """Write the training loss, smoothed, and the learning rate over the steps.

    Where labels were estimated, a second panel beside shows how good they were, over the same
    steps: each round's labels count from its first step on.

    Args:
        history: a table of kind "history" with rows named "loss", and maybe "lr" and
            "label_mean_iou".
    """
    labels = history[history["name"] == "label_mean_iou"].sort_values("step")
    panels = 1 if labels.empty else 2
    figure = Figure(figsize=(6 if panels == 1 else 10, 3), layout="constrained")
    left, *others = figure.subplots(1, panels, squeeze=False)[0]
    figure.suptitle(title, fontsize=10)
    left.set_xlabel("step")
    left.set_ylabel("loss")
    loss = history[history["name"] == "loss"].sort_values("step")
    left.plot(loss["step"], loss["value"], color="0.8", linewidth=0.6)
    left.plot(loss["step"], smooth(loss["value"].to_numpy()), color="C0", label="loss, smoothed")
    left.set_ylim(bottom=0)
    lr = history[history["name"] == "lr"].sort_values("step")
    if not lr.empty:
        right = left.twinx()
        right.plot(lr["step"], lr["value"], color="C1", linewidth=1)
        right.set_ylabel("learning rate", color="C1")
        right.set_ylim(bottom=0)
    left.legend(loc="upper right", fontsize=8)
    for axis in others:
        steps = [*labels["step"], max(loss["step"].max(), labels["step"].max())]
        percent = 100 * labels["value"].to_numpy()
        axis.step(steps, [*percent, percent[-1]], where="post", color="C2")
        axis.plot(labels["step"], percent, "o", color="C2", markersize=3)
        axis.set_xlim(left.get_xlim())
        axis.set_xlabel("step")
        axis.set_ylabel("mean IoU of the labels, %")
    write_png(path, figure, dpi=DPI, palette=PALETTE)


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a window of a fiftieth of all values (N,), cut at the ends. Returns (N,)."""
    window = max(1, len(values) // 50)
    sums = np.convolve(values, np.ones(window), mode="same")
    return sums / np.convolve(np.ones(len(values)), np.ones(window), mode="same")


def label_quality(path: Path, title: str, rounds: Mapping[str, pd.DataFrame]) -> None:
    """Write one line per run: quality of its estimated labels over the epochs.

    Args:
        rounds: {run: rows of its history named "label_mean_iou"}, fractions.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    for run, rows in rounds.items():
        percent = 100 * rows["value"]
        if len(rows) == 1:  # labels that stay as they are
            colour = f"C{len(axis.lines)}"
            axis.axhline(percent.iloc[0], linestyle="--", color=colour, label=run)
        else:
            axis.plot(rows["epoch"], percent, marker="o", markersize=3, label=run)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch")
    axis.set_ylabel("mean IoU of the labels, %")
    axis.legend(fontsize=8)
    write_png(path, figure, dpi=DPI, palette=PALETTE)


def bands(
    path: Path,
    title: str,
    around: str,
    measured: Mapping[str, Sequence[tuple[float, float, float]]],
) -> None:
    """Write mean IoU near the borders of the truth (dashed) and away from them, over band width.

    Implements: Dai2015 Fig. 4 (the curves).

    Args:
        around: what the bands are around, for the axis.
        measured: {line: (width in pixels, mean IoU in the band, outside it)}, widths ascending,
            fractions, NaN where nothing can be said; at least one.
    """
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axis = figure.subplots()
    for number, (label, points) in enumerate(measured.items()):
        widths, boundary, interior = np.array(points, np.float64).T
        colour = f"C{number}"
        for values, style, part in ((interior, "-", "interior"), (boundary, "--", "boundary")):
            axis.plot(
                widths, 100 * values, style, color=colour, marker="o", markersize=3,
                label=f"{label}, {part}",
            )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks(widths, [f"{width:g}" for width in widths])
    axis.minorticks_off()
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(f"width of the band around {around}, pixels")
    axis.set_ylabel("mean IoU, %")
    figure.legend(loc="outside right upper", fontsize=7, handlelength=4)  # dashes are seen
    write_png(path, figure, dpi=DPI, palette=PALETTE)


def write_png(path: Path, figure: Figure, *, dpi: int, palette: int | None) -> None:
    """Write a figure; the file appears whole or not at all, through a link too.

    Args:
        dpi: pixels per inch of the figure.
        palette: so many colours, a third of the bytes; None: all, for photographs.
    """
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name[:200]}.partial")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    if palette is not None:
        with Image.open(drawn) as picture:
            few = picture.convert("RGB").quantize(palette)
        drawn = io.BytesIO()
        few.save(drawn, format="PNG", optimize=True)
    partial.write_bytes(drawn.getvalue())
    os.replace(partial, place)
