"""What was measured: the text, the JSON and the table of one list of rows agree."""

import json
import math
import os

import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.places import need_places, write_text
from pipeline.scoring.outcome import (
    Outcome,
    Row,
    as_text,
    document,
    json_text,
    write_metrics,
)
from pipeline.tables import read_table

NAN = float("nan")
ROWS = [
    Row("num_images", 3),
    Row("mean_iou", 0.25),
    Row("iou", 0.5, category="ring"),
    Row("iou", NAN, category="star"),
]


def test_json_has_a_number_for_each_row_and_null_for_what_is_none():
    assert document(Outcome(ROWS, facts={"confusion": [[1, 0]]})) == {
        "confusion": [[1, 0]],
        "num_images": 3,
        "mean_iou": 0.25,
        "iou": {"ring": 0.5, "star": None},
    }


def test_numbers_at_a_threshold_stand_under_their_metric():
    rows = [Row("ap", 0.5, "ring", 0.1), Row("ap", 1.0, "ring", 0.7), Row("mean_ap", 0.5, at=0.1)]
    assert document(Outcome(rows)) == {
        "ap": {"0.1": {"ring": 0.5}, "0.7": {"ring": 1.0}},
        "mean_ap": {"0.1": 0.5},
    }


def test_numbers_at_a_width_stand_together_where_that_is_asked_for():
    rows = [Row("in", 0.5, at=5), Row("out", 0.75, at=5), Row("in", 0.25, at=10)]
    found = document(Outcome(rows, by_at="widths"))
    assert found == {"widths": {"5": {"in": 0.5, "out": 0.75}, "10": {"in": 0.25}}}


def test_two_rows_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two numbers for mean_iou"):
        document(Outcome([Row("mean_iou", 0.1), Row("mean_iou", 0.2)]))


def test_notes_are_in_json_and_text():
    outcome = Outcome(ROWS, notes=["2 images count as wrong"])
    assert document(outcome)["notes"] == ["2 images count as wrong"]
    assert as_text(outcome).endswith("note: 2 images count as wrong")


def test_text_has_every_number_once():
    text = as_text(Outcome([*ROWS, Row("mean_ap", 0.125, at=0.5)]))
    assert [line.split() for line in text.splitlines()] == [
        ["num_images", "3"],
        ["mean_iou", "0.2500"],
        ["mean_ap", "at", "0.5", "0.1250"],
        [],
        ["iou"],
        ["ring", "0.5000"],
        ["star", "-"],
    ]


def test_the_json_file_is_strict_and_leaves_nothing_beside_it(tmp_path):
    outcome = Outcome([Row("mean_iou", np.float64(0.5)), Row("num_images", 2), Row("auc", NAN)])
    write_text(tmp_path / "out.json", json_text(outcome))
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert found == {"mean_iou": 0.5, "num_images": 2, "auc": None}


def test_the_table_holds_the_same_numbers(tmp_path):
    rows = [*ROWS, Row("ap", 0.125, "ring", 0.5)]
    write_metrics(tmp_path / "out.parquet", Outcome(rows), "crf", "voc", "val")
    table = read_table(tmp_path / "out.parquet", "metrics")
    assert set(table["evaluation"]) == {"crf"} and set(table["split"]) == {"val"}
    for row, (_, found) in zip(rows, table.iterrows(), strict=True):
        assert found["metric"] == row.metric
        assert found["value"] == row.value or math.isnan(row.value) and math.isnan(found["value"])
        assert found["at"] == row.at if row.at is not None else math.isnan(found["at"])


@pytest.mark.parametrize("name", [".", "none/out.json", "pipe"])
def test_a_place_that_cannot_hold_a_file_is_refused_before_the_work(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="name a file|no place for a file"):
        need_places([tmp_path / name])
    need_places([tmp_path / "out.json", None, tmp_path / "out.parquet"])


def test_one_place_for_two_files_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "out.json")
    with pytest.raises(BadInput, match="asked for twice"):
        need_places([tmp_path / "out.json", tmp_path / "link"])


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "old.json")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "old.json").read_text() == "new"
