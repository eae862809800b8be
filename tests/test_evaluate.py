"""Stage `evaluate`: predictions and truth on disk to a table of metrics."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import evaluation, given

from pipeline.errors import BadInput
from pipeline.exports.coco import export_coco
from pipeline.exports.truth import export_truth
from pipeline.masks import encode_index_png, encode_rle, rle_box
from pipeline.params import ComponentInstances, Params
from pipeline.params_file import build
from pipeline.scoring.boundary import score_boundary
from pipeline.scoring.instances import score_instances
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


# --- objects --------------------------------------------------------------------------------------
NAMES = ["background", "ring", "star", "rod"]
SIZE = (20, 30)
BY_PARTS = {"kind": "components", "min_pixels": 0}


def blob(rng):
    """A filled ellipse, some of its pixels left out."""
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    centre, radii = rng.uniform(0, SIZE), rng.uniform(3, 9, 2)
    inside = ((ys - centre[0]) / radii[0]) ** 2 + ((xs - centre[1]) / radii[1]) ** 2 < 1
    return inside & (rng.random(SIZE) < 0.95)


def row_of(image_id, category, mask, **more):
    rle = encode_rle(mask)
    box = dict(zip(("x0", "y0", "x1", "y1"), rle_box(rle, *SIZE), strict=True))
    return {"image_id": image_id, "category": category, **box, "mask_rle": rle} | more


@pytest.fixture
def found(tmp_path):
    """Objects of two of three categories, one a crowd, one without a mask; detections of all."""
    rng = np.random.default_rng(3)
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    params = given()
    entry = evaluation("none", "sample", [], instances=BY_PARTS)
    params["evaluations"] = {"sample_mask": entry}
    (tmp_path / "params.yaml").write_text("evaluations: {sample_mask: {model: none}}\n")
    (tmp_path / "data/raw/sample").mkdir(parents=True)
    images, objects, detections = [], [], []
    for image_id in ("z", "a", "m", "b"):
        row = {"image_id": image_id, "split": "val", "source": "voc", "height": SIZE[0]}
        row |= {"path": f"sample/{image_id}.jpg", "width": SIZE[1]}
        images.append(row | {"has_masks": True, "has_boxes": True})
        for number in range(0 if image_id == "b" else 6):
            mask = blob(rng)
            more = {"instance": number, "difficult": False, "crowd": number == 4}
            objects.append(row_of(image_id, 1 + number % 2, mask, **more))
            if number == 5:
                objects[-1]["mask_rle"] = None
            for _ in range(2):
                shifted = np.roll(mask, rng.integers(-2, 3, 2), (0, 1))
                score = round(rng.random(), 1)  # some are equal
                detections.append(row_of(image_id, 1 + number % 2, shifted, score=score))
        detections.append(row_of(image_id, int(rng.integers(1, 4)), blob(rng), score=0.5))
    prepared = tmp_path / "data/prepared/sample"
    write_table(prepared / "images.parquet", "images", images)
    write_table(prepared / "instances.parquet", "instances", objects)
    names = ", ".join(f'"{name}"' for name in NAMES)
    (prepared / "categories.json").write_text(f"[{names}]")
    write_found(tmp_path, detections)
    return tmp_path, build(Params, params, "params.yaml", "")


def found_path(root):
    return root / "data/predictions/sample_mask/instances.parquet"


def write_found(root, rows):
    write_table(found_path(root), "predicted_instances", rows)


def test_objects_have_the_numbers_of_score_instances_on_the_exported_files(found, tmp_path):
    root, params = found
    evaluate(root, params, "sample_mask")
    table = read_table(root / "data/metrics/sample_mask.parquet", "metrics")
    columns = (table[name].tolist() for name in ("metric", "category", "at", "value"))
    ours = {
        (metric, None if pd.isna(category) else category, None if pd.isna(at) else at): value
        for metric, category, at, value in zip(*columns, strict=True)
    }
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    truth, predicted = tmp_path / "truth.json", tmp_path / "predicted.json"
    export_truth(root, "sample", "val", truth)
    export_coco(found_path(root), truth, predicted, categories=str(tmp_path / "names.txt"))
    compared = 0
    for protocol, ending in (("sds", ""), ("mnc11", "_mnc11")):
        outcome = score_instances(truth, predicted, protocol=protocol, thresholds=None, ids=None)
        for row in outcome.rows:
            name = row.metric.replace("mean_ap", "mAP_r").replace("ap", "AP_r")
            name = row.metric if row.metric.startswith("num_") else f"{name}{ending}"
            value = ours[name, row.category, row.at]
            assert value == row.value or np.isnan([value, row.value]).all(), row
            compared += 1
    assert compared == 2 * (3 + 10 + 3 * 10)
    assert 0 < ours["mAP_r", None, 0.5] < 1
    assert ours["num_objects", None, None] == 12 and ours["num_detections", None, None] == 40
    assert np.isnan(ours["AP_r", "rod", 0.5]) and ours["AP_r_mnc11", "rod", 0.5] == 0


def test_objects_alone_are_measured_where_there_is_no_semantic_network(found):
    root, params = found
    evaluate(root, params, "sample_mask")
    table = read_table(root / "data/metrics/sample_mask.parquet", "metrics")
    over_all = table[table["category"].isna()]
    sizes = [f"mAP_r_{name}" for name in ("small", "medium", "large") for _ in range(2)]
    assert over_all["metric"].tolist() == [
        "num_images", "num_objects", "num_detections", *["mAP_r"] * 9, "mAP_r_vol",
        *["mAP_r_mnc11"] * 9, "mAP_r_vol_mnc11", *sizes,
    ]  # fmt: skip
    assert over_all[over_all["metric"] == "mAP_r_small"]["at"].tolist() == [0.5, 0.7]
    every = over_all.set_index(["metric", "at"])["value"]
    assert every["mAP_r_small", 0.5] == every["mAP_r", 0.5]  # all masks here are small
    assert np.isnan(every["mAP_r_medium", 0.5])
    assert set(table["category"].dropna()) == set(NAMES[1:])


def test_objects_stand_behind_what_label_maps_give(project):
    root, params = project
    evaluate(root, params, "sample_mask")
    before, *_ = measured(root)
    entry = params.evaluations["sample_mask"]
    rule = ComponentInstances("components", 0)
    params.evaluations["sample_mask"] = replace(entry, instances=rule)
    write_found(root, [])
    evaluate(root, params, "sample_mask")
    table, overall, _ = measured(root)
    count = len(before)
    pd.testing.assert_frame_equal(table[:count], before)
    assert table["metric"][count] == "num_objects"
    assert overall["num_detections"] == 0 and np.isnan(overall["mAP_r_vol"])
    assert overall["mAP_r_vol_mnc11"] == 0


def test_without_detections_every_category_with_objects_has_0(found):
    root, params = found
    write_found(root, [])
    evaluate(root, params, "sample_mask")
    _, overall, _ = measured(root)
    assert overall["num_objects"] == 12 and overall["mAP_r_vol"] == 0


def refused(found, match):
    root, params = found
    with pytest.raises(BadInput, match=match):
        evaluate(root, params, "sample_mask")
    assert not (root / "data/metrics").exists()


def test_missing_objects_are_named(found):
    found_path(found[0]).unlink()
    refused(found, r"sample_mask/instances.parquet: not there")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image_id": "q"}, "objects of images that are not in val: q; run predict"),
        ({"category": 0}, "objects of categories that have none: 0; run predict"),
        ({"category": 4}, "objects of categories that have none: 4; run predict"),
        ({"score": float("nan")}, "a score that is no number to rank by; run predict"),
        ({"mask_rle": "03"}, "the mask of an object of z is none of that image; run predict"),
        ({"mask_rle": "\u00e4"}, "an object without the run-lengths of a mask; run predict"),
        ({"mask_rle": None}, "an object without the run-lengths of a mask; run predict"),
    ],
)
def test_rows_that_are_none_of_this_evaluation_are_refused(found, change, match):
    rows = read_table(found_path(found[0]), "predicted_instances").to_dict("records")
    write_found(found[0], [rows[0] | change, *rows[1:]])
    refused(found, match)


def test_objects_that_are_not_annotated_or_have_boxes_only_are_refused(found):
    root = found[0]
    images = root / "data/prepared/sample/images.parquet"
    rows = read_table(images, "images")
    write_table(images, "images", rows.assign(has_boxes=rows["image_id"] != "m"))
    refused(found, "objects of 1 of 4 images are not annotated: m; take a split")
    write_table(images, "images", rows)
    objects = root / "data/prepared/sample/instances.parquet"
    boxes = read_table(objects, "instances").assign(mask_rle=None)
    write_table(objects, "instances", boxes)
    refused(found, "has a mask; .* take a split, or a dataset, that has them")
