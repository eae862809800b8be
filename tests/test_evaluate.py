"""Stage `evaluate`: predictions and truth on disk to a table of metrics."""

from pathlib import Path

import numpy as np
import pytest
from test_report import evaluation, given

from pipeline.errors import BadInput
from pipeline.masks import encode_index_png
from pipeline.params import Params
from pipeline.params_file import build
from pipeline.scoring.boundary import score_boundary
from pipeline.stages.evaluate import BAND_WIDTHS, evaluate
from pipeline.tables import read_table, write_table

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = ["background", "ring", "star"]
TRUTH = {"a": [[0, 1, 1], [0, 255, 1]], "b": [[0, 0], [0, 1], [0, 255]]}
PREDICTED = {"a": [[0, 1, 0], [0, 1, 1]], "b": [[0, 0], [1, 1], [0, 0]]}
# truth:       background 2 + 4 = 6, ring 3 + 1 = 4
# right:       background 2 + 3 = 5, ring 2 + 1 = 3;  predicted: background 6, ring 4


@pytest.fixture
def project(tmp_path):
    """Two images, one of them also in another split, and their predictions."""
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    params = given()
    params["evaluations"] = {"sample_mask": evaluation("sample_mask", "sample", [])}
    (tmp_path / "params.yaml").write_text("evaluations: {sample_mask: {model: sample_mask}}\n")
    (tmp_path / "data/raw/sample").mkdir(parents=True)
    prepared = tmp_path / "data/prepared/sample"
    rows, maps = [], []
    for image_id, truth in TRUTH.items():
        row = {"image_id": image_id, "source": "voc", "path": f"sample/{image_id}.jpg", "height": 1}
        row |= {"width": 1, "has_masks": True, "has_boxes": True}
        rows += [row | {"split": s} for s in (["val", "train"] if image_id == "a" else ["val"])]
        png = encode_index_png(np.array(truth, np.uint8))
        maps.append({"image_id": image_id, "png": png})
    write_table(prepared / "images.parquet", "images", rows)
    write_table(prepared / "instances.parquet", "instances", [])
    write_table(prepared / "semantic/part-000.parquet", "semantic", maps)
    (prepared / "categories.json").write_text('["background", "ring", "star"]')
    for image_id, predicted in PREDICTED.items():
        predict(tmp_path, image_id, predicted)
    return tmp_path, build(Params, params, "params.yaml", "")


def predict(root, image_id, predicted):
    path = root / f"data/predictions/sample_mask/semantic/{image_id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_index_png(np.array(predicted, np.uint8)))


def measured(root):
    table = read_table(root / "data/metrics/sample_mask.parquet", "metrics")
    of_all = table["category"].isna() & table["at"].isna()
    overall = table[of_all].set_index("metric")["value"]
    iou = table[table["metric"] == "iou"].set_index("category")["value"]
    return table, overall, iou


def test_scores_are_of_all_pixels_together(project):
    root, params = project
    evaluate(root, params, "sample_mask")
    table, overall, iou = measured(root)
    assert overall["num_images"] == 2
    assert overall["pixel_accuracy"] == pytest.approx(8 / 10)
    assert overall["mean_accuracy"] == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert overall["mean_iou"] == pytest.approx((5 / 7 + 3 / 5) / 2)
    assert overall["num_categories"] == 2
    assert list(iou.index) == CATEGORIES
    assert iou[["background", "ring"]].tolist() == pytest.approx([5 / 7, 3 / 5])
    assert np.isnan(iou["star"])
    names = table[["evaluation", "dataset", "split"]].drop_duplicates()
    assert names.to_numpy().tolist() == [["sample_mask", "sample", "val"]]


def test_background_everywhere_is_scored_beside_it(project):
    root, params = project
    evaluate(root, params, "sample_mask")
    _, overall, _ = measured(root)
    assert overall["all_background_pixel_accuracy"] == pytest.approx(6 / 10)
    assert overall["all_background_mean_accuracy"] == pytest.approx((1 + 0) / 2)
    assert overall["all_background_mean_iou"] == pytest.approx((6 / 10 + 0) / 2)


def test_rows_are_those_over_all_categories_and_then_each_category(project):
    root, params = project
    evaluate(root, params, "sample_mask")
    table, _, _ = measured(root)
    means = ["pixel_accuracy", "mean_accuracy", "mean_iou"]
    beside = [f"all_background_{name}" for name in means]
    order = ["num_images", "num_categories", *means, *beside, "iou", "iou", "iou"]
    assert table["metric"].tolist()[: len(order)] == order
    categories, bands = table["category"][: len(order)], table[len(order) :]
    assert categories.tolist()[-3:] == CATEGORIES and categories[:-3].isna().all()
    assert bands["category"].isna().all()
    assert bands["at"].tolist() == [width for width in BAND_WIDTHS for _ in range(2)]


def test_around_void_the_bands_are_those_of_score_boundary(project, tmp_path):
    root, params = project
    evaluate(root, params, "sample_mask")
    (tmp_path / "names.txt").write_text("\n".join(CATEGORIES))
    (tmp_path / "truth").mkdir()
    for image_id, truth in TRUTH.items():
        (tmp_path / f"truth/{image_id}.png").write_bytes(
            encode_index_png(np.array(truth, np.uint8))
        )
    outcome = score_boundary(
        tmp_path / "truth", root / "data/predictions/sample_mask/semantic",
        categories=str(tmp_path / "names.txt"), widths=BAND_WIDTHS, ids=None, allow_missing=False,
        train_ids=False,
    )  # fmt: skip
    theirs = [(row.metric, row.at, row.value) for row in outcome.rows if row.at is not None]
    table, _, _ = measured(root)
    ours = table[table["at"].notna()][["metric", "at", "value"]].itertuples(index=False, name=None)
    for one, other in zip(ours, theirs, strict=True):
        assert one[:2] == other[:2] and one[2] == pytest.approx(other[2], nan_ok=True, abs=0)


def test_without_void_bands_are_around_categories_of_all_images_together(project):
    root, params = project
    square = np.zeros((12, 16), np.uint8)
    square[2:8, 3:9] = 1
    maps = [{"image_id": i, "png": encode_index_png(square)} for i in TRUTH]
    write_table(root / "data/prepared/sample/semantic/part-000.parquet", "semantic", maps)
    for image_id in TRUTH:
        predict(root, image_id, np.zeros((12, 16)))
    evaluate(root, params, "sample_mask")
    table, _, _ = measured(root)
    found = table[table["at"].notna()].set_index(["metric", "at"])["value"]
    # the square's edge has 20 pixels, around it 24 share a side
    boundary, interior = "category_boundary_mean_iou", "category_interior_mean_iou"
    assert found[boundary, 1] == pytest.approx((24 / 44 + 0) / 2)
    assert found[interior, 1] == pytest.approx(((192 - 36 - 24) / (192 - 44) + 0) / 2)
    assert np.isnan(found[interior, 40])  # the band is the whole image
    assert found[boundary, 40] == pytest.approx(156 / 192 / 2)


def test_two_evaluations_of_one_state_write_the_same_bytes(project):
    root, params = project
    evaluate(root, params, "sample_mask")
    place = root / "data/metrics/sample_mask.parquet"
    first = place.read_bytes()
    place.unlink()
    evaluate(root, params, "sample_mask")
    assert place.read_bytes() == first


def test_a_prediction_outside_the_categories_counts_as_wrong(project):
    root, params = project
    predict(root, "b", [[255, 7], [1, 1], [0, 0]])
    evaluate(root, params, "sample_mask")
    _, overall, iou = measured(root)
    assert overall["pixel_accuracy"] == pytest.approx(6 / 10)
    assert iou["background"] == pytest.approx(3 / 7)


def test_a_missing_prediction_is_named_and_nothing_is_published(project):
    root, params = project
    (root / "data/predictions/sample_mask/semantic/b.png").unlink()
    with pytest.raises(BadInput, match=r"sample_mask/semantic/b\.png: not there \(1 of 2"):
        evaluate(root, params, "sample_mask")
    assert not (root / "data/metrics").exists()


def test_a_prediction_of_another_size_is_named_with_both_sizes(project):
    root, params = project
    predict(root, "b", [[0, 0, 0], [0, 0, 0]])
    with pytest.raises(BadInput, match=r"b\.png: 2 x 3 .* image b has 3 x 2"):
        evaluate(root, params, "sample_mask")


def test_a_damaged_prediction_is_named(project):
    root, params = project
    path = root / "data/predictions/sample_mask/semantic/a.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BadInput, match=r"a\.png: not a readable PNG"):
        evaluate(root, params, "sample_mask")
