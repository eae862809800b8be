"""The analyses of Dai et al. as figures: near borders, labels at epochs, supervisions compared."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from test_report import LABELS, evaluation, given, history, make_params, project

from pipeline import figures, protocol, semantic_reports
from pipeline.label_pictures import rounds_shown
from pipeline.metrics.semantic import confusion_matrix
from pipeline.params import Params
from pipeline.params_file import build
from pipeline.stages.evaluate import BAND_WIDTHS, bands_between_categories
from pipeline.stages.report import compared

assert project  # a fixture


# --- near borders and away from them -------------------------------------------------------------
def test_a_band_of_width_1_is_both_sides_of_a_border_between_categories():
    truth = np.array([[0, 0, 0, 1, 1, 1]], np.uint8)
    predicted = np.array([[1, 0, 0, 0, 1, 2]], np.uint8)
    found = bands_between_categories(predicted, truth, (1, 2), 2)
    assert found[0, 0].tolist() == [[1, 0, 0], [1, 0, 0]]  # the two in the middle
    assert found[0, 1].tolist() == [[1, 1, 0], [0, 1, 1]]
    assert found[1, 0].tolist() == [[2, 0, 0], [1, 1, 0]]  # the four in the middle
    assert found[1, 1].tolist() == [[0, 1, 0], [0, 0, 1]]


def test_borders_above_and_below_count_and_steps_may_be_diagonal():
    truth = np.zeros((5, 5), np.uint8)
    truth[2, 2] = 1
    bands = bands_between_categories(truth, truth, (1, 2, 3), 2)[:, 0]
    assert bands[:, 0, 0].tolist() == [4, 20, 24]  # a plus, less the corners, all
    assert bands[:, 1, 1].tolist() == [1, 1, 1]


def test_a_truth_of_one_category_is_all_interior():
    truth = np.full((3, 4), 2, np.uint8)
    found = bands_between_categories(truth, truth, (1, 40), 3)
    assert not found[:, 0].any() and (found[:, 1, 2, 2] == 12).all()


@drawn(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_band_and_interior_are_all_pixels_and_bands_only_grow(seed, height, width):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, 3, (2, height, width)).astype(np.uint8)
    found = bands_between_categories(predicted, truth, BAND_WIDTHS, 3)
    assert (found.sum(axis=1) == confusion_matrix(predicted, truth, 3)).all()
    assert (np.diff(found[:, 0], axis=0) >= 0).all()


def test_bands_of_evaluations_stand_together_where_all_have_them():
    def with_bands(name, **values):
        measured = protocol.gather(make_params(), {}, {})[0]
        values = {
            (metric, "", float(at)): value
            for metric, points in values.items()
            for at, value in points.items()
        }
        return replace(measured, name=name, values=values)

    one = with_bands("one", boundary_mean_iou={5: 0.4, 1: 0.2}, interior_mean_iou={5: 0.6, 1: 0.5})
    two = with_bands("two", boundary_mean_iou={1: 0.1, 5: 0.3}, interior_mean_iou={1: 0.4})
    other = with_bands("other", category_boundary_mean_iou={1: 0.1})
    found = semantic_reports.bands_of(
        {"both": {"mask": one, "box": two}, "not": {"mask": one, "box": other}}
    )
    assert list(found) == ["both"] and found["both"].around.startswith("the void")
    lines = found["both"].lines
    assert lines["one"] == [(1.0, 0.2, 0.5), (5.0, 0.4, 0.6)]
    assert lines["two"][0] == (1.0, 0.1, 0.4) and math.isnan(lines["two"][1][2])


def test_the_table_of_bands_has_a_column_for_each_width():
    bands = semantic_reports.Bands("it", {"a": [(1.0, 0.25, 0.5), (40.0, 0.75, math.nan)]})
    lines = semantic_reports.band_table(bands).splitlines()
    assert lines[0] == "| run | 1 | 40 |"
    assert lines[2] == "| a | 25.00 / 50.00 | 75.00 / – |"


# --- which runs are compared ---------------------------------------------------------------------
def gathered(**evaluations):
    sections = given()
    sections["boxsup"]["voc_semi"] = sections["boxsup"]["voc_box"] | {"mask_split": "train"}
    sections["semantic"]["voc_after"] = sections["semantic"]["voc_mask"] | {"init": "voc_box"}
    sections["evaluations"] = {
        name: evaluation(model, "voc", stands_for) | other
        for name, (model, stands_for, other) in evaluations.items()
    }
    return protocol.gather(build(Params, sections, "params.yaml", ""), {}, {})


def names(groups):
    return {key: {kind: m.name for kind, m in group.items()} for key, group in groups.items()}


def test_of_each_supervision_the_row_that_the_papers_figures_show_is_compared():
    found = gathered(
        plain=("voc_semi", ["dai2015/Table 1/3"], {}),
        rectangles=("voc_box", ["dai2015/Table 2/1"], {}),
        coco=("voc_semi", ["dai2015/Table 1/5", "dai2015/Table 4/7"], {}),
        boxes=("voc_box", ["dai2015/Table 1/2"], {}),
        masks=("voc_mask", [], {}),
    )
    chosen = compared(found)
    assert names(chosen) == {"voc_val": {"mask": "masks", "box": "boxes", "semi": "coco"}}
    assert list(chosen["voc_val"]) == ["mask", "box", "semi"]


def test_masks_after_boxes_are_compared_as_semi_and_each_split_for_itself():
    found = gathered(
        masks=("voc_mask", [], {}),
        after=("voc_after", [], {}),
        other=("voc_box", [], {"split": "train"}),
    )
    assert names(compared(found)) == {"voc_val": {"mask": "masks", "semi": "after"}}


# --- epochs and curves ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("first_epochs", "epochs", "expected"),
    [
        (range(45), 45, {1: 0, 5: 4, 20: 19}),
        (range(0, 16, 2), 16, {1: 0, 5: 4, 16: 14}),
        ([0, 3], 4, {1: 0, 4: 3}),
        ([0], 1, {1: 0}),
    ],
)
def test_labels_are_shown_of_the_rounds_that_epochs_1_5_and_20_learn_from(
    first_epochs, epochs, expected
):
    assert rounds_shown(list(first_epochs), epochs) == expected


@pytest.fixture
def kept(monkeypatch):
    """The figures that are drawn, instead of files."""
    found = []
    monkeypatch.setattr(figures, "write_png", lambda path, figure, **how: found.append(figure))
    return found


def test_the_quality_of_labels_stands_beside_the_loss_over_the_same_steps(tmp_path, kept):
    losses = history(*((i, 0, "loss", 1.0) for i in range(100)))
    figures.curves(tmp_path / "a.png", "masks", losses)
    figures.curves(tmp_path / "b.png", "boxes", history(*losses.to_numpy(), *LABELS.to_numpy()))
    masks, boxes = kept
    assert len(masks.axes) == 1 and len(boxes.axes) == 2
    loss, quality = boxes.axes
    steps, percent = quality.lines[0].get_data()
    assert list(steps) == [0, 40, 80, 99]
    assert list(percent) == pytest.approx([70, 65.12, 72, 72])
    assert quality.get_xlim() == loss.get_xlim()


def test_boundary_is_dashed_and_interior_solid_in_the_colour_of_its_run(tmp_path, kept):
    lines = {"a": [(1, 0.2, 0.6), (5, 0.3, math.nan)], "b": [(1, 0.1, 0.5), (5, 0.2, 0.4)]}
    figures.bands(tmp_path / "a.png", "voc, val", "it", lines)
    axis = kept[0].axes[0]
    drawn_lines = {line.get_label(): line for line in axis.lines}
    assert list(drawn_lines) == ["a, interior", "a, boundary", "b, interior", "b, boundary"]
    assert list(drawn_lines["a, boundary"].get_ydata()) == pytest.approx([20, 30])
    assert list(drawn_lines["b, interior"].get_ydata()) == pytest.approx([50, 40])
    styles = [line.get_linestyle() for line in axis.lines]
    colours = [line.get_color() for line in axis.lines]
    assert styles == ["-", "--", "-", "--"] and colours == ["C0", "C0", "C1", "C1"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "5"]
