"""The papers' printed numbers beside ours, with the protocol of both and where it departs."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.departures import departures
from pipeline.errors import BadInput
from pipeline.instance_reports import OBJECT_METRICS, OBJECT_PROTOCOL, object_cells
from pipeline.markdown import DASH, PAPERS, count, markdown_table, percent
from pipeline.protocol import Measured, values_of
from pipeline.wording import (
    NETWORK_HEAD,
    crf_text,
    network_cells,
    source_text,
    supervision_text,
    views_text,
)

PAPER_COLUMNS = ("paper", "table", "row", "metric", "category", "at", "value")
PAPER_ROWS_COLUMNS = ("paper", "table", "row", "setting", "value")
METRICS = {
    "pixel_accuracy": "pixel acc.",
    "mean_accuracy": "mean acc.",
    "mean_iou": "mean IoU",
    "iou": "IoU",
    **OBJECT_METRICS,
}


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


def paper_sections(
    gathered: Sequence[Measured], paper: pd.DataFrame, paper_rows: pd.DataFrame
) -> str:
    """A table for each table of a paper that an evaluation on real data stands for.

    Raises:
        BadInput: an evaluation, on real data or drawn, stands for a row that is not in paper.csv.
    """
    wanted: dict[tuple[str, str], list[tuple[int, Measured]]] = {}
    for measured in gathered:
        for text in measured.entry.stands_for:
            name, table, row = paper_row(text, paper, measured.name)
            if not measured.drawn:
                wanted.setdefault((name, table), []).append((row, measured))
    parts = []
    order = list(PAPERS)
    for name, table in sorted(wanted, key=lambda key: (order.index(key[0]), key[1])):
        pairs = sorted(wanted[name, table], key=lambda pair: pair[0])
        printed = paper[(paper["paper"] == name) & (paper["table"] == table)]
        their_settings = paper_rows[(paper_rows["paper"] == name) & (paper_rows["table"] == table)]
        parts.append(f"### {PAPERS[name]}, {table}\n")
        parts.append(_paper_table(pairs, printed, their_settings))
    return "\n".join(parts)


PAPER_PROTOCOL = (
    "dataset", "split", "images", "views", "CRF", "supervision", *NETWORK_HEAD, "parameters",
    "data",
)  # fmt: skip
COMPARISON = ("row", "metric", "paper", "ours", "difference", "evaluation")
PAPER_HEAD = (*COMPARISON, *PAPER_PROTOCOL, "notes")
OBJECT_HEAD = (*COMPARISON, *OBJECT_PROTOCOL, "notes")


def _paper_table(
    pairs: Sequence[tuple[int, Measured]], printed: pd.DataFrame, their_settings: pd.DataFrame
) -> str:
    notes: list[str] = []
    rows = []
    of_objects = printed["metric"].isin(OBJECT_METRICS).any()
    for row, measured in pairs:
        chosen = their_settings[their_settings["row"] == row]
        theirs = dict(zip(chosen["setting"], chosen["value"], strict=True))
        found = departures(measured, theirs)
        notes += [note for note in found if note not in notes]
        numbers = ", ".join(str(1 + notes.index(note)) for note in found)
        protocol = object_cells(measured) if of_objects else _protocol_cells(measured)
        for (metric, category, at), their in values_of(printed[printed["row"] == row]).items():
            ours = measured.value(metric, category, at)
            label = f"{row}: {theirs.get('method', '')}".rstrip(": ")
            rows.append([label, _metric_text(metric, category, at), percent(their), percent(ours)])
            rows[-1].append(DASH if ours is None else f"{100 * (ours - their):+.2f}")
            rows[-1] += [measured.name, *protocol, numbers]
    text = markdown_table(OBJECT_HEAD if of_objects else PAPER_HEAD, rows)
    return text + "".join(f"\n{i}. {note}" for i, note in enumerate(notes, 1)) + "\n"


def _protocol_cells(measured: Measured) -> list[str]:
    """What `PAPER_PROTOCOL` names."""
    entry, network = measured.entry, measured.semantic
    return [
        entry.dataset,
        entry.split,
        count(measured.value("num_images")),
        views_text(entry.views),
        crf_text(entry.crf),
        supervision_text(measured),
        *(network_cells(network.run.network) if network else [DASH] * len(NETWORK_HEAD)),
        f"`{network.section}.{network.name}`" if network else DASH,
        source_text(measured.tested_on),
    ]


def _metric_text(metric: str, category: str, at: float | None) -> str:
    text = METRICS.get(metric, metric) + (f" {category}" if category else "")
    return text + (f" at {at:g}" if at is not None else "") + ", %"


def paper_row(text: str, paper: pd.DataFrame, evaluation: str) -> tuple[str, str, int]:
    """A row of paper.csv that "paper/table/row" names.

    Raises:
        BadInput: there is no such row; the message names the evaluation and the tables there are.
    """
    parts = text.split("/")
    if len(parts) == 3 and parts[2].isdigit():
        name, table, row = parts[0], parts[1], int(parts[2])
        found = (paper["paper"] == name) & (paper["table"] == table) & (paper["row"] == row)
        if found.any():
            return name, table, row
    known = sorted({f"{p}/{t}/..." for p, t in zip(paper["paper"], paper["table"], strict=True)})
    raise BadInput(
        f"params.yaml: evaluations.{evaluation}.stands_for names {text!r}, which is no row of "
        f"reports/paper.csv; write PAPER/TABLE/ROW, of {', '.join(known)}"
    )
