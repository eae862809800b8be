"""What was measured: a list of rows, from which text, JSON and a parquet table are made."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.tables import write_table


class Row(NamedTuple):
    """One measured number, a fraction in [0, 1] or a count; NaN where nothing can be said."""

    metric: str
    value: float
    category: str | None = None  # None: over all categories
    at: float | None = None  # threshold, band width, number of proposals; None: of none


@dataclass(frozen=True)
class Outcome:
    """What one scoring found."""

    rows: list[Row]
    facts: Mapping[str, Any] = field(default_factory=dict)  # protocol, confusion, ...: not scores
    notes: Sequence[str] = ()  # what a reader of the numbers must know
    by_at: str | None = None  # JSON: numbers of one `at` stand together, under this key


def document(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON holds it; NaN becomes null.

    {metric: value}, {metric: {category: value}}, {metric: {at: value}} or
    {metric: {at: {category: value}}}; with `by_at` {by_at: {at: {metric: value}}} for rows that
    have an `at`, for example {"widths": {"5": {"boundary_mean_iou": 0.5}}}.
    """
    found: dict[str, Any] = {**outcome.facts}
    for row in outcome.rows:
        keys = [row.metric]
        if row.at is not None:
            at = f"{row.at:g}"
            keys = [outcome.by_at, at, row.metric] if outcome.by_at else [row.metric, at]
        if row.category is not None:
            keys.append(row.category)
        place = found
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        if keys[-1] in place:
            raise ValueError(f"two numbers for {' '.join(keys)}")
        place[keys[-1]] = _number(row.value)
    if outcome.notes:
        found["notes"] = list(outcome.notes)
    return found


def as_text(outcome: Outcome) -> str:
    """The outcome for a reader: a line for each number over all categories, then the categories."""
    lines = []
    for row in (row for row in outcome.rows if row.category is None):
        lines.append(f"{_label(row):<34} {_shown(row.value)}")
    single = [row for row in outcome.rows if row.category is not None]
    columns = list(dict.fromkeys(_label(row) for row in single))
    cells = {(row.category, _label(row)): _shown(row.value) for row in single}
    if columns:
        widths = [max(len(label), 7) for label in columns]
        head = "  ".join(f"{label:>{w}}" for label, w in zip(columns, widths, strict=True))
        lines += ["", f"{'':<16}  {head}"]
        for name in dict.fromkeys(row.category for row in single):
            values = [cells.get((name, label), "") for label in columns]
            line = "  ".join(f"{v:>{w}}" for v, w in zip(values, widths, strict=True))
            lines.append(f"{name or '':<16}  {line}")
    return "\n".join([*lines, *(f"note: {note}" for note in outcome.notes)])


def json_text(outcome: Outcome) -> str:
    """The outcome as strict JSON. ValueError if two rows have one name."""
    return json.dumps(document(outcome), indent=1, allow_nan=False) + "\n"


def write_metrics(path: Path, outcome: Outcome, evaluation: str, dataset: str, split: str) -> None:
    """The rows as a table of kind "metrics"; the file appears whole or not at all."""
    same = {"evaluation": evaluation, "dataset": dataset, "split": split}
    write_table(path, "metrics", [same | row._asdict() for row in outcome.rows])


def _number(value: float) -> float | int | None:
    if math.isnan(value):
        return None
    return int(value) if isinstance(value, int) else float(value)


def _label(row: Row) -> str:
    return row.metric if row.at is None else f"{row.metric} at {row.at:g}"


def _shown(value: float) -> str:
    if math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
