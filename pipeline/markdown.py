"""Words and tables of a report in Markdown. Fractions come in; percent is made only here."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

DASH = "–"
MOST_COLUMNS = 25  # of categories: VOC has 21
PAPERS = {"wu2016": "Wu et al. 2016", "dai2015": "Dai et al. 2015", "slides": "Lecture slides"}


def percent(value: float | None) -> str:
    """Percent with two decimals; a dash for what is missing."""
    return DASH if value is None or math.isnan(value) else f"{100 * value:.2f}"


def count(value: float | None) -> str:
    """A whole number; a dash for what is missing."""
    return DASH if value is None else f"{round(value):,}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; `|` within a cell is escaped, None becomes a dash."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[DASH if c is None else str(c).replace("|", r"\|") for c in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def table_by_category(categories: Sequence[str], runs: Mapping[str, Sequence[str]]) -> str:
    """A run a row; with many categories, a category a row.

    Args:
        runs: {run: its cells, one for each category}.
    """
    rows = [["run", *categories], *([name, *cells] for name, cells in runs.items())]
    if len(categories) > MOST_COLUMNS:
        rows = [list(column) for column in zip(*rows, strict=True)]
    return markdown_table(rows[0], rows[1:])


def settings_of_row(text: str, paper_rows: pd.DataFrame) -> dict[str, str]:
    """The settings of a row of reports/paper_rows.csv that "paper/table/row" names."""
    name, table, row = text.split("/")
    of_table = (paper_rows["paper"] == name) & (paper_rows["table"] == table)
    chosen = paper_rows[of_table & (paper_rows["row"] == int(row))]
    return dict(zip(chosen["setting"], chosen["value"], strict=True))


def stands_for_text(rows: Iterable[str], paper_rows: pd.DataFrame) -> str:
    """The rows of the papers with their methods, without their numbers; a dash for none."""
    return "; ".join(_row_text(text, paper_rows) for text in rows) or DASH


def _row_text(text: str, paper_rows: pd.DataFrame) -> str:
    name, table, row = text.split("/")
    method = settings_of_row(text, paper_rows).get("method")
    return f"{PAPERS[name]}, {table}, row {row}" + (f" ({method})" if method else "")


def figure_link(words: str, name: str) -> str:
    """A link from reports/tables.md to a picture in reports/figures."""
    return f"[{words}](figures/{name})"


def flat_text(values: Mapping[str, Any]) -> str:
    """Parameters on one line, those that have parameters of their own in braces."""
    parts = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            parts.append(f"{name} {{{flat_text(value)}}}")
        elif isinstance(value, tuple | list):
            parts.append(f"{name} [{', '.join(f'{v:g}' for v in value)}]")
        else:
            parts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)
