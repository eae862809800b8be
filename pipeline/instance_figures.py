"""Pictures of objects for reports/figures: how they are found, what is found, and how well.

H x W pixels, h x w cells of `stride` pixels over the image. Boxes are half-open corners in pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from pipeline.figures import DPI, PALETTE, WIDTH, write_png
from pipeline.object_overlays import Drawn, object_overlay

ARROWS = 16  # along the longer side, at most
RECALLS = np.linspace(0, 1, 101)


# --- from pixels to objects ----------------------------------------------------------------------
class Steps(NamedTuple):
    """How the objects of one category of an image are found, step by step."""

    image: np.ndarray  # (H, W, 3) uint8
    scores: np.ndarray  # (h, w) float, probability of the category
    stride: int
    cells: np.ndarray  # (V, 2) int, row and column of the cells that vote
    weights: np.ndarray  # (V,) float, of their votes
    voted: np.ndarray  # (V, 4) float, the boxes that they vote for
    maxima: np.ndarray  # (K,) int, numbers of the votes that no better one suppressed
    objects: Sequence[Drawn]  # found, the best first


def draw_steps(path: Path, steps: Steps, *, title: str, category: str, objects: str) -> None:
    """Write six panels: image, score map, transform map, votes, detected maxima, objects.

    The transform map shows where the centre of its box is from each cell that votes: the hue is the
    direction, the saturation the distance; some have an arrow too. Votes are points at the centres
    that they vote for, from yellow to red by their weight.

    Implements: Wu2016 Fig. 1.

    Args:
        category: its name. objects: what the objects found are, in words.
    """
    height, width = steps.image.shape[:2]
    panel = 2.6
    figure = Figure(
        figsize=(3 * panel, 2 * (panel * height / width + 0.3) + 0.3), layout="constrained"
    )
    axes = figure.subplots(2, 3).ravel()
    figure.suptitle(title, fontsize=9)
    x, y = _centres(steps).T
    outside = np.count_nonzero((x < 0) | (x > width) | (y < 0) | (y > height))
    headings = (
        "image", f"scores of {category}", "transform map: offsets to centres",
        f"{len(steps.cells)} votes for centres" + f", {outside} outside" * bool(outside),
        f"{len(steps.maxima)} maxima", objects,
    )  # fmt: skip
    grey = np.repeat(steps.image.mean(axis=2, keepdims=True), 3, axis=2) * 0.5 + 127
    pictures = [steps.image, grey * 0, grey * 0 + 255, grey, steps.image]
    pictures.append(object_overlay(steps.image, steps.objects))
    for axis, heading, picture in zip(axes, headings, pictures, strict=True):
        axis.imshow(picture.astype(np.uint8), interpolation="nearest")
        axis.set_title(heading, fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    _maps(axes[1], axes[2], steps)
    _votes(axes[3], steps)
    corners = steps.voted[steps.maxima][:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) - 0.5
    axes[4].add_collection(PolyCollection(corners, facecolors="none", edgecolors="yellow"))
    for axis in axes:  # boxes and centres may lie outside
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylim(height - 0.5, -0.5)
    write_png(path, figure, dpi=DPI, palette=PALETTE)


def offset_colours(steps: Steps) -> np.ndarray:
    """The offset from each cell that votes to the centre of its box as a colour; others white.

    Returns:
        (h, w, 3) float in [0, 1]: hue by direction, saturation by distance, full at the largest.
    """
    rows, columns = steps.cells.T
    colours = np.ones((*steps.scores.shape, 3))
    offsets = _offsets(steps)
    distance = np.hypot(*offsets.T)
    hue = np.arctan2(offsets[:, 1], offsets[:, 0]) / (2 * np.pi) % 1
    saturation = distance / max(distance.max(initial=0), 1e-9)
    colours[rows, columns] = hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], axis=1))
    return colours


def _offsets(steps: Steps) -> np.ndarray:
    """(V, 2): x and y from the centre of each cell to that of the box it votes for."""
    places = (steps.cells[:, ::-1] + 0.5) * steps.stride
    return _centres(steps) - places


def _centres(steps: Steps) -> np.ndarray:
    """(V, 2): x and y of the centres that are voted for."""
    return (steps.voted[:, :2] + steps.voted[:, 2:]) / 2


def _maps(scores: Axes, transform: Axes, steps: Steps) -> None:
    """The scores; the offsets as colours, and as arrows at every few cells."""
    rows, columns = steps.scores.shape
    extent = (-0.5, columns * steps.stride - 0.5, rows * steps.stride - 0.5, -0.5)
    scores.imshow(
        steps.scores, vmin=0, vmax=1, cmap="magma", extent=extent, interpolation="nearest"
    )
    transform.imshow(offset_colours(steps), extent=extent, interpolation="nearest")
    apart = max(1, -(-max(steps.scores.shape) // ARROWS))
    chosen = (steps.cells % apart == apart // 2).all(axis=1)
    x, y = ((steps.cells[chosen, ::-1] + 0.5) * steps.stride - 0.5).T
    u, v = _offsets(steps)[chosen].T
    transform.quiver(x, y, u, v, angles="xy", scale_units="xy", scale=1, width=0.004, color="0.2")


def _votes(axis: Axes, steps: Steps) -> None:
    """A point at each centre that is voted for, the best in front, from yellow to red."""
    order = np.argsort(steps.weights, kind="stable")
    x, y = (_centres(steps) - 0.5)[order].T
    colours = colormaps["autumn_r"](steps.weights[order])
    axis.scatter(x, y, s=10, c=colours, linewidths=0)


# --- objects over the image ----------------------------------------------------------------------
def overlays(
    path: Path,
    headings: Sequence[str],
    rows: Sequence[tuple[str, np.ndarray, Sequence[Sequence[Drawn]]]],
) -> None:
    """Write a grid: a row per image, the image first, then it under each set of its objects.

    Implements: Wu2016 Fig. 5.

    Args:
        headings: of the columns, the image's included.
        rows: (name, image (H, W, 3) uint8, sets of objects), at least one.
    """
    tallest = max(image.shape[0] / image.shape[1] for _, image, _ in rows)
    figure = Figure(
        figsize=(WIDTH * len(headings), (WIDTH * tallest + 0.1) * len(rows) + 0.5),
        layout="constrained",
    )
    axes = figure.subplots(len(rows), len(headings), squeeze=False)
    for line, (name, image, sets) in zip(axes, rows, strict=True):
        pictures = [image, *(object_overlay(image, objects) for objects in sets)]
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, fontsize=min(7, 120 * WIDTH * tallest / len(name)))
    for axis, heading in zip(axes[0], headings, strict=True):
        axis.set_title(heading, fontsize=8)
    write_png(path, figure, dpi=DPI, palette=PALETTE)


# --- precision and recall ------------------------------------------------------------------------
def mean_precision(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The mean over categories of the best precision at each of `RECALLS` or beyond.

    Args:
        curves: (recall rising, precision) of each category, points of its detections by falling
            score; at least one curve, which may be empty.

    Returns:
        (101,) float64; a category counts 0 where it does not reach a recall.
    """
    each = np.zeros((len(curves), RECALLS.size))
    for line, (recall, precision) in zip(each, curves, strict=True):
        envelope = np.maximum.accumulate(np.asarray(precision, np.float64)[::-1])[::-1]
        reached = np.searchsorted(recall, RECALLS - 1e-9)
        line[:] = np.append(envelope, 0.0)[reached]
    return each.mean(axis=0)


def precision_recall(
    path: Path, *, title: str, lines: Mapping[float, Mapping[str, np.ndarray]]
) -> None:
    """Write a panel for each overlap, a line for each evaluation.

    Args:
        lines: {overlap: {evaluation: (101,) as from `mean_precision`}}, fractions.
    """
    figure = Figure(figsize=(4 * len(lines) + 2, 3.5), layout="constrained")
    axes = figure.subplots(1, len(lines), squeeze=False)[0]
    figure.suptitle(f"{title}: mean over the categories", fontsize=10)
    for axis, (overlap, curves) in zip(axes, lines.items(), strict=True):
        for number, (name, precision) in enumerate(curves.items()):
            label = name if axis is axes[0] else None
            style = ("-", "--", ":")[number // 10 % 3]
            axis.plot(100 * RECALLS, 100 * precision, style, color=f"C{number}", label=label)
        axis.set_title(f"overlap above {overlap:g}", fontsize=9)
        axis.set_xlabel("recall, %")
        axis.set_ylabel("precision, %")
        axis.set_xlim(0, 100)
        axis.set_ylim(0, 103)
    figure.legend(loc="outside right upper", fontsize=7)
    write_png(path, figure, dpi=DPI, palette=PALETTE)


# --- how the result depends on the rules ---------------------------------------------------------
def sensitivity(path: Path, *, title: str, rows: Sequence[tuple[int, float, str, float]]) -> None:
    """Write a heat map for each region rule: n down, the overlap of box NMS across.

    Args:
        title: what the values are.
        rows: (n, overlap of box NMS, name of the region rule, value), fractions; at least one.
            What is missing, and NaN, stays white. Of two for the same place the later counts.
    """
    tops = sorted({row[0] for row in rows})
    overlaps = sorted({row[1] for row in rows})
    rules = list(dict.fromkeys(row[2] for row in rows))
    values = np.full((len(rules), len(tops), len(overlaps)), np.nan)
    for top, overlap, rule, value in rows:
        values[rules.index(rule), tops.index(top), overlaps.index(overlap)] = 100 * value
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    size = (len(rules) * (0.55 * len(overlaps) + 0.9) + 0.8, 0.4 * len(tops) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(rules), squeeze=False)[0]
    figure.suptitle(f"{title}, %", fontsize=9)
    for axis, rule, grid in zip(axes, rules, values, strict=True):
        axis.imshow(grid, vmin=low, vmax=high, cmap="viridis", aspect="auto")
        axis.set_title(f"regions: {rule}", fontsize=8)
        axis.set_xticks(range(len(overlaps)), [f"{overlap:g}" for overlap in overlaps], fontsize=7)
        axis.set_yticks(range(len(tops)), [f"n = {top}" for top in tops], fontsize=7)
        axis.set_xlabel("NMS IoU", fontsize=8)
        for i, j in zip(*np.nonzero(np.isfinite(grid)), strict=True):
            colour = "black" if grid[i, j] > (low + high) / 2 else "white"
            axis.text(j, i, f"{grid[i, j]:.1f}", ha="center", va="center", color=colour, fontsize=7)
    write_png(path, figure, dpi=DPI, palette=PALETTE)
