"""Scoring label maps near the void border and away from it: the numbers, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation
from sklearn.metrics import confusion_matrix as counted_by_sklearn
from test_score_semantic import write_maps

from pipeline.__main__ import main
from pipeline.categories import CITYSCAPES, CITYSCAPES_IDS
from pipeline.datasets.sample_cityscapes import write_cityscapes
from pipeline.errors import BadFile, BadInput
from pipeline.scoring.boundary import score_boundary
from pipeline.scoring.outcome import document
from pipeline.tables import read_table

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
TRUTH = {"a": [[0, 0, 255, 1, 1, 1, 0]]}
PREDICTED = {"a": [[0, 1, 0, 1, 0, 1, 1]]}
# width 1: band        pixels 1 3:     background 0 / 1, ring 1 / 2
#          interior    pixels 0 4 5 6: background 1 / 3, ring 1 / 3
# width 2: band        pixels 0 1 3 4: background 1 / 3, ring 1 / 3
#          interior    pixels 5 6:     background 0 / 1, ring 1 / 2


@pytest.fixture
def folder(tmp_path):
    """truth/, predicted/ and names.txt; the third category is nowhere."""
    write_maps(tmp_path / "truth", TRUTH)
    write_maps(tmp_path / "predicted", PREDICTED)
    (tmp_path / "names.txt").write_text("background\nring\nstar\n")
    return tmp_path


def scored(
    folder: Path, truth: str | Path = "truth", predicted: str = "predicted", **options: Any
) -> dict[str, Any]:
    options = {"categories": str(folder / "names.txt"), "widths": [1, 2], "ids": None} | options
    options = {"allow_missing": False, "train_ids": False} | options
    return document(score_boundary(folder / truth, folder / predicted, **options))


def test_a_band_is_of_pixels_near_the_border_and_the_interior_of_all_others(folder):
    assert scored(folder) == {
        "categories": ["background", "ring", "star"],
        "num_images": 1,
        "widths": {
            "1": {"boundary_mean_iou": (0 + 1 / 2) / 2, "interior_mean_iou": 1 / 3},
            "2": {"boundary_mean_iou": 1 / 3, "interior_mean_iou": (0 + 1 / 2) / 2},
        },
    }


def test_widths_are_told_in_the_order_given(folder):
    found = scored(folder, widths=[2, 1])["widths"]
    assert list(found) == ["2", "1"]
    assert found["1"] == {"boundary_mean_iou": 1 / 4, "interior_mean_iou": 1 / 3}


def test_a_missing_prediction_that_is_allowed_is_wrong_in_band_and_interior(folder):
    write_maps(folder / "truth", {"b": [[0, 255, 0, 0, 0]]})
    found = scored(folder, widths=[1], allow_missing=True)
    # background: band 0 / 3, interior 1 / 5
    assert found["widths"]["1"] == {
        "boundary_mean_iou": (0 + 1 / 2) / 2,
        "interior_mean_iou": (1 / 5 + 1 / 3) / 2,
    }
    assert found["num_images"] == 2 and "1 of 2 predictions are missing" in found["notes"][0]


def test_truth_without_a_border_has_an_interior_only_and_this_is_told(folder):
    write_maps(folder / "truth", {"a": [[0, 0, 0, 1, 1, 1, 0]]})
    found = scored(folder, widths=[3])
    assert found["widths"]["3"] == {"boundary_mean_iou": None, "interior_mean_iou": 2 / 5}
    assert "there is no band" in found["notes"][0]


def test_the_command_writes_json_and_a_table_with_a_row_a_width(folder, capsys):
    out, table = folder / "scores.json", folder / "scores.parquet"
    command = ["score", "boundary", "--categories", str(folder / "names.txt"), "--widths", "1,2"]
    command += ["--truth", str(folder / "truth"), "--predicted", str(folder / "predicted")]
    assert main([*command, "--json", str(out), "--table", str(table)]) == 0
    assert json.loads(out.read_text()) == scored(folder)
    rows = read_table(table, "metrics").set_index(["metric", "at"])["value"]
    assert rows["boundary_mean_iou", 1.0] == 1 / 4 and rows["interior_mean_iou", 2.0] == 1 / 4
    assert "boundary_mean_iou at 2" in capsys.readouterr().out


def test_bands_of_published_outputs_are_those_of_dilated_borders():
    """DeepLab's own outputs on 17 images of VOC val, whose truth has the border."""
    folder = REAL / "published_outputs" / "deeplab_iclr2015"
    if not folder.is_dir():
        pytest.skip("the real outputs are not here")
    widths = [1, 5, 40]
    found = scored(folder, "gt", "res_crf", categories="voc", widths=widths)["widths"]
    counts = np.zeros((len(widths), 2, 21, 21), np.int64)
    for path in sorted((folder / "gt").iterdir()):
        truth = np.array(Image.open(path))
        predicted = np.array(Image.open(folder / "res_crf" / path.name))
        for number, width in enumerate(widths):
            near = truth == 255
            for axis_ in ((2 * width + 1, 1), (1, 2 * width + 1)):  # a square, side by side
                near = binary_dilation(near, np.ones(axis_))
            for place, region in enumerate((near, ~near)):
                k = region & (truth != 255)
                counts[number, place] += counted_by_sklearn(
                    truth[k], predicted[k], labels=range(21)
                )
    for number, width in enumerate(widths):
        for place, name in enumerate(("boundary_mean_iou", "interior_mean_iou")):
            one = counts[number, place]
            right, union = np.diagonal(one), one.sum(0) + one.sum(1) - np.diagonal(one)
            expected = np.mean(right[union > 0] / union[union > 0])
            assert found[str(width)][name] == pytest.approx(expected, rel=1e-12)


def test_labels_of_cityscapes_that_are_not_scored_are_the_void(tmp_path):
    """By official names and ids as by plain names and the numbers of the 19 categories."""
    write_cityscapes(tmp_path / "city", train=0, val=2)
    (tmp_path / "names.txt").write_text("\n".join(CITYSCAPES))
    number = np.full(256, 255)
    number[list(CITYSCAPES_IDS)] = range(19)
    truth = tmp_path / "city" / "gtFine" / "val"
    for path in truth.rglob("*_labelIds.png"):
        labels = np.array(Image.open(path))
        moved = np.roll(labels, 3, axis=1)
        image_id = path.name.removesuffix("_gtFine_labelIds.png")
        write_maps(tmp_path / "moved" / "a_city", {f"{image_id}_by_me": moved})
        write_maps(tmp_path / "truth", {image_id: number[labels]})
        write_maps(tmp_path / "predicted", {image_id: number[moved]})
    official = scored(tmp_path, truth.relative_to(tmp_path), "moved", categories="cityscapes")
    assert official == scored(tmp_path)
    assert official["num_images"] == 2
    assert 0 < official["widths"]["2"]["boundary_mean_iou"] < 1


@pytest.mark.parametrize("widths", [[], [0], [-1, 2], [3, 3]])
def test_widths_are_distinct_and_from_1_on(folder, widths):
    with pytest.raises(BadInput, match="distinct whole numbers from 1 on"):
        scored(folder, widths=widths)


def test_a_truth_outside_the_categories_is_named_with_its_value(folder):
    write_maps(folder / "truth", {"a": [[0, 0, 255, 9, 1, 1, 0]]})
    with pytest.raises(BadFile, match=r"truth/a\.png: .*9"):
        scored(folder)


def test_maps_of_two_sizes_are_refused(folder):
    write_maps(folder / "predicted", {"a": [[0, 0]]})
    with pytest.raises(BadFile, match=r"predicted/a\.png: 1 x 2 .*1 x 7"):
        scored(folder)


def test_train_ids_are_refused_for_others_than_cityscapes(folder):
    with pytest.raises(BadInput, match="--train-ids belongs to --categories cityscapes"):
        scored(folder, train_ids=True)


@pytest.mark.parametrize(
    ("values", "train_ids", "said"),
    [
        ([0, 0, 0, 10], False, "export cityscapes"),  # train ids, read as published ids
        ([23, 24, 26, 7], True, "leave --train-ids away"),  # published ids, read as train ids
        ([7, 7, 7, 23], False, ""),
    ],
)
def test_predictions_of_the_other_kind_of_ids_are_noted(tmp_path, values, train_ids, said):
    write_maps(tmp_path / "truth", {"ulm_0_0_gtFine_labelIds": [[7, 7, 7, 23]]})
    write_maps(tmp_path / "predicted", {"ulm_0_0": [values]})
    found = scored(tmp_path, categories="cityscapes", train_ids=train_ids)
    doubts = [note for note in found.get("notes", []) if "train" in note]
    assert len(doubts) == bool(said) and all(said in note for note in doubts)
