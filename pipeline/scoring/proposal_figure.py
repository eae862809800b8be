"""`score proposals --figure`: best overlap and recall against the number of proposals.

K numbers of proposals.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from pipeline.errors import BadFile, BadInput, need_file
from pipeline.figures import write_png
from pipeline.scoring.outcome import Outcome

PUBLISHED = Path("reports") / "published_proposals.csv"
COLUMNS = ["dataset", "method", "num_proposals", "metric", "value"]
BUDGETS = (10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000)
ALL = 20_000  # proposals: more than any method here gives
OVERLAP = "jaccard_instance"
RECALLS: dict[str, Literal["-", "--", ":"]] = {
    "recall_0.5": "-",
    "recall_0.7": "--",
    "recall_0.85": ":",
}
COMPARED = ("MCG", "SCG", "GOP", "SeSe")  # all are too many to read
RIVALS = (*COMPARED, "QT")  # with the floor, where there is one line of each

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
GREY = "0.5"
SIDES = ((1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (-1, 0))  # of a point
DPI = 110
FAR = (5, 11)  # points from a label to what it names


@dataclass(frozen=True)
class Curve:
    """One method on one dataset."""

    name: str
    num: np.ndarray  # (K,) proposals an image on average, rising
    values: dict[str, np.ndarray]  # (K,) fractions, by metric


def curve_of(outcome: Outcome, name: str) -> Curve:
    """The curve of what `score_proposals` found, through all its budgets."""
    by_metric: dict[str, dict[float, float]] = {}
    for row in outcome.rows:
        if row.at is not None:
            by_metric.setdefault(row.metric, {})[row.at] = row.value
    budgets = sorted(by_metric["mean_num"])
    num = np.array([by_metric["mean_num"][budget] for budget in budgets])
    metrics = (OVERLAP, *RECALLS)
    values = {name: np.array([by_metric[name][budget] for budget in budgets]) for name in metrics}
    return Curve(name, num, values)


def read_published(path: Path, dataset: str) -> list[Curve]:
    """The published curves of masks on a dataset, the highest at its end first.

    Raises:
        BadInput: the file is not there or has other columns, or knows no such dataset.
    """
    need_file(path)
    try:
        rows = pd.read_csv(path, comment="#")
    except ValueError as error:
        raise BadFile(path, f"no table ({error})", "`git checkout` it") from error
    if list(rows.columns) != COLUMNS:
        raise BadFile(path, f"its columns are not {', '.join(COLUMNS)}", "`git checkout` it")
    if dataset not in set(rows["dataset"]):
        known = ", ".join(rows["dataset"].unique())
        raise BadInput(f"--published {dataset}: no curves of it; choose one of: {known}")
    chosen = rows[(rows["dataset"] == dataset) & rows["metric"].isin([OVERLAP, *RECALLS])]
    curves = []
    for method, of_method in chosen.groupby("method"):
        wide = of_method.pivot(index="num_proposals", columns="metric", values="value")
        values = {metric: wide[metric].to_numpy() for metric in wide.columns}
        curves.append(Curve(str(method), wide.index.to_numpy(np.float64), values))
    return sorted(curves, key=lambda curve: -curve.values[OVERLAP][-1])


def draw_curves(path: Path, ours: Sequence[Curve], published: Sequence[Curve], where: str) -> None:
    """Write two panels, a PNG: best overlap, and recall at three overlaps.

    Ours are thick and coloured, the published ones thin and grey; a point is all proposals of a
    method.

    Args:
        ours: one to as many as there are COLOURS.
        where: what the curves were measured on, for the title.
    """
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    figure.suptitle(where, fontsize=11)
    left.set_ylabel("best IoU of an object, mean")
    right.set_ylabel("objects found (recall)")
    rivals = [curve for curve in published if curve.name in RIVALS]
    compared = [curve for curve in rivals if curve.name in COMPARED]
    for axis, others in ((left, rivals), (right, compared)):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_xlabel("proposals per image")
        axis.set_xlim(*_reach([*ours, *others]))
        axis.set_ylim(0, 1)
        axis.grid(color="0.92", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    _draw(left, ours, rivals, OVERLAP, "-")
    for metric, style in RECALLS.items():
        _draw(right, ours, compared, metric, style)
    levels = [Line2D([], [], color="0.2", linestyle=style) for style in RECALLS.values()]
    names = [f"IoU {metric.removeprefix('recall_')} or more" for metric in RECALLS]
    right.legend(levels, names, loc="upper left", frameon=False, fontsize=8)
    figure.draw_without_rendering()  # from here on the axes stay where they are
    figure.set_layout_engine("none")
    _label(canvas, left, list(_names(ours, rivals, [OVERLAP])))
    _label(canvas, right, list(_names(ours, compared, list(RECALLS))))
    write_png(path, figure, dpi=DPI, palette=None)


# --- lines and their names ------------------------------------------------------------------------
Label = tuple[str, str, float, float]  # text, colour, and the point that it names


def _reach(curves: Sequence[Curve]) -> tuple[float, float]:
    """From the least number of proposals to beyond the largest, where names stand."""
    num = np.concatenate([curve.num for curve in curves])
    return max(float(num.min()), 0.5) * 0.8, max(float(num.max()), 1) * 4


def _draw(
    axis: Axes, ours: Sequence[Curve], rivals: Sequence[Curve], metric: str, style: str
) -> None:
    lines = [(curve, GREY, 1.0) for curve in rivals]
    lines += [(curve, colour, 2.6) for curve, colour in zip(ours, COLOURS, strict=False)]
    for curve, colour, width in lines:
        values = curve.values[metric]
        axis.plot(curve.num, values, style, color=colour, linewidth=width)
        axis.plot(curve.num[-1:], values[-1:], "o", color=colour, markersize=3 + width)


def _names(ours: Sequence[Curve], rivals: Sequence[Curve], metrics: list[str]) -> Iterator[Label]:
    """The names of the curves, at their ends; ours once."""
    for curve, colour in zip(ours, COLOURS, strict=False):
        yield curve.name, colour, curve.num[-1], curve.values[metrics[0]][-1]
    for metric in metrics:
        for curve in rivals:
            yield curve.name, "0.3", curve.num[-1], curve.values[metric][-1]


def _label(canvas: FigureCanvasAgg, axis: Axes, labels: Sequence[Label]) -> None:
    """Write each label beside its point, where it covers least of lines and other labels."""
    lines = np.concatenate([_pixels(axis, line.get_xydata()) for line in axis.lines])
    taken: list[Bbox] = []
    for text, colour, x, y in labels:
        if not (x > 0 and np.isfinite(y)):
            continue
        weight = "bold" if colour in COLOURS else "normal"
        drawn = axis.annotate(
            text,
            (x, y),
            (0, 0),
            textcoords="offset points",
            color=colour,
            fontsize=8,
            weight=weight,
        )
        drawn.set_parse_math(False)  # a folder's name is no formula
        drawn.set_path_effects([withStroke(linewidth=2, foreground="white")])
        places = [(far, right, up) for far in FAR for right, up in SIDES]

        def cost(place: tuple[int, int, int], drawn: Annotation = drawn) -> float:
            _move(drawn, *place)
            box = drawn.get_window_extent(canvas.get_renderer())
            return _cost(box, lines, taken, axis) + place[0] / 4

        _move(drawn, *min(places, key=cost))
        taken.append(drawn.get_window_extent(canvas.get_renderer()).padded(3))


def _move(label: Annotation, far: int, right: int, up: int) -> None:
    """Put a label so many points away from its point, on that side of it."""
    label.set_position((far * right, far * up * 0.8))
    label.set_horizontalalignment(("right", "center", "left")[right + 1])
    label.set_verticalalignment(("top", "center", "bottom")[up + 1])


def _cost(box: Bbox, lines: np.ndarray, taken: Sequence[Bbox], axis: Axes) -> float:
    """How bad a place for a label is."""
    inside = ((lines > (box.x0, box.y0)) & (lines < (box.x1, box.y1))).all(axis=1).sum()
    outside = not (axis.bbox.y0 <= box.y0 and box.y1 <= axis.bbox.y1 and axis.bbox.x0 <= box.x0)
    outside = outside or box.x1 > axis.figure.bbox.x1
    return float(inside) + 100 * sum(box.overlaps(other) for other in taken) + 1000 * outside


def _pixels(axis: Axes, line: ArrayLike) -> np.ndarray:
    """Points along a line (K, 2), in pixels (N, 2); what is no number is left out."""
    points = axis.transData.transform(np.asarray(line, np.float64))
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) < 2:
        return points
    step = np.linspace(0, 1, 12)[:, None, None]
    return (points[:-1] * (1 - step) + points[1:] * step).reshape(-1, 2)
