"""Stage `predict` where objects are found: networks or the truth, and images, to tables on disk."""

import hashlib
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scratch import environment
from test_report import evaluation, given
from test_segment import NETWORK, photograph, save_model
from torch import nn

from pipeline import instance_finding
from pipeline.box_targets import Standard
from pipeline.boxes import iou
from pipeline.categories import CITYSCAPES, SAMPLE, things_of
from pipeline.checkpoints import build_localizer, is_localizer, load_model, standard_of
from pipeline.datasets.prepared import Prepared
from pipeline.errors import BadInput
from pipeline.inference import for_inference
from pipeline.instance_finding import asked
from pipeline.instance_maps import box_maps, semantic_maps
from pipeline.instances import component_instances, find_instances
from pipeline.masks import decode_index_png, decode_rle, encode_rle, rle_box
from pipeline.params import BoxInstances, ComponentInstances, Params, RegionIou, Views
from pipeline.params_file import build
from pipeline.params_networks import Fcrn
from pipeline.params_training import StandardisedTargets
from pipeline.stages import predict as stage
from pipeline.stages.evaluate import evaluate
from pipeline.stages.predict import predict
from pipeline.tables import read_table, write_table
from pipeline.training import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SIZES = {"a": (40, 56), "b": (77, 50), "c": (24, 32)}
CATEGORIES = ("background", "ring", "star")
BY_BOXES = BoxInstances("boxes", 8, 2, 0.0, 0.5, RegionIou("iou", 0.3), 4)
BY_PARTS = ComponentInstances("components", 4)
ONE = Views((1.0,), False, 1)
STANDARD = Standard(torch.tensor([0.0, 0.0, 20.0, 25.0]), torch.tensor([8.0, 8.0, 5.0, 5.0]))
# By image: category, box. Those of b are of the other kind and overlap.
TRUTH = {"a": [(1, (2, 3, 20, 30)), (2, (30, 10, 50, 35))], "b": [(2, (5, 5, 40, 60)),
    (2, (30, 40, 50, 77))], "c": []}  # fmt: skip


def save_localizer(path, categories=CATEGORIES, precision="fp32", threads=1, seed=1):
    network = build_localizer(Fcrn(**NETWORK), categories, STANDARD, seed=seed)
    nn.init.normal_(network.classifier.weight, std=0.1)
    run = {"network": NETWORK, "precision": precision, "threads": threads}
    save_checkpoint(
        path, network=network, optimizer=None, step=0, categories=list(categories),
        run=run | {"targets": {"kind": "standardise"}},
    )  # fmt: skip


def write_dataset(root, categories=CATEGORIES, truth=TRUTH):
    folder = root / "data/raw/sample"
    folder.mkdir(parents=True)
    rows, objects = [], []
    for number, (image_id, (height, width)) in enumerate(SIZES.items()):
        Image.fromarray(photograph(number, height, width)).save(folder / f"{image_id}.png")
        row = {"image_id": image_id, "split": "val", "source": "voc", "height": height}
        row |= {"path": f"sample/{image_id}.png", "width": width}
        rows.append(row | {"has_masks": True, "has_boxes": True})
        for instance, (category, (x0, y0, x1, y1)) in enumerate(truth[image_id]):
            mask = np.zeros((height, width), bool)
            mask[y0:y1, x0:x1] = True
            mask[y0, x0] = False
            row = {"image_id": image_id, "instance": instance, "category": category}
            row |= {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "difficult": False, "crowd": False}
            objects.append(row | {"mask_rle": encode_rle(mask)})
    prepared = root / "data/prepared/sample"
    write_table(prepared / "images.parquet", "images", rows)
    write_table(prepared / "instances.parquet", "instances", objects)
    names = ", ".join(f'"{name}"' for name in categories)
    (prepared / "categories.json").write_text(f"[{names}]")


@pytest.fixture
def project(tmp_path):
    """Three images, and networks whose classifiers are drawn."""
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    params = given()
    params["evaluations"] = {"sample_mask": evaluation("sample_mask", "sample", [])}
    (tmp_path / "params.yaml").write_text("evaluations: {sample_mask: {model: sample_mask}}\n")
    write_dataset(tmp_path)
    save_model(tmp_path / "data/models/sample_mask.pt", CATEGORIES)
    save_localizer(tmp_path / "data/models/sample_boxes.pt")
    return tmp_path, build(Params, params, "params.yaml", "")


def setting(params, **changes):
    """By boxes of both networks, but for the changes."""
    entry = params.evaluations["sample_mask"]
    settings = {"localization": "sample_boxes", "instances": BY_BOXES} | changes
    params.evaluations["sample_mask"] = replace(entry, **settings)


def out(root):
    return root / "data/predictions/sample_mask"


def table(root):
    return read_table(out(root) / "instances.parquet", "predicted_instances")


def columns(found):
    """Rows of the objects of images, {image id: objects}, as the table should have them."""
    rows = []
    for image_id, objects in found.items():
        for i in range(len(objects.rles)):
            category, score = int(objects.categories[i]), float(objects.scores[i])
            row = (image_id, category, score, *objects.boxes[i].tolist(), objects.rles[i])
            rows.append((-score, -int(objects.support[i]), row))
    return [row for _, _, row in sorted(rows, key=lambda row: row[:2])]


def ready(root, name):
    network, saved = load_model(root / f"data/models/{name}.pt", CPU)
    standard = standard_of(network) if is_localizer(saved) else None
    return for_inference(network, precision="fp32"), standard


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- by networks ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("views", "vote_stride"), [(ONE, 8), (ONE, 4), (Views((0.75, 1.25), True, 1), 8)]
)
def test_objects_are_those_of_the_maps_of_both_networks(project, views, vote_stride):
    root, params = project
    rule = replace(BY_BOXES, vote_stride=vote_stride)
    setting(params, instances=rule, views=views)
    predict(root, params, "sample_mask")
    semantic, _ = ready(root, "sample_mask")
    localizer, standard = ready(root, "sample_boxes")
    grid = {"views": views, "vote_stride": vote_stride, "device": CPU, "precision": "fp32"}
    expected = {}
    for number, (image_id, size) in enumerate(SIZES.items()):
        image = photograph(number, *size)
        boxes = box_maps(
            localizer, image, targets=StandardisedTargets("standardise"), standard=standard, **grid
        )
        maps = semantic_maps(semantic, image, **grid), boxes
        found = find_instances(*maps, np.array([1, 2]), size=size, stride=vote_stride, rule=rule)
        expected[image_id] = found
    rows = list(table(root).itertuples(index=False, name=None))
    assert rows == columns(expected)
    assert {row[0] for row in rows} == set(SIZES)
    for image_id, _, _, *box, rle in rows:
        assert rle_box(rle, *SIZES[image_id]) == tuple(box)


@pytest.mark.parametrize("rule", [BY_BOXES, BY_PARTS])
def test_label_maps_of_one_view_are_those_of_an_evaluation_without_objects(project, rule):
    root, params = project
    predict(root, params, "sample_mask")
    without = digests(out(root))
    assert list(without) == [f"semantic/{image_id}.png" for image_id in SIZES]
    setting(params, instances=rule, localization="none" if rule == BY_PARTS else "sample_boxes")
    predict(root, params, "sample_mask")
    beside = digests(out(root))
    assert {name: beside[name] for name in without} == without
    extra = {"instances.parquet", *(["maps/a.npz"] if rule == BY_BOXES else [])}
    assert set(beside) - set(without) == extra


def test_components_are_those_of_the_semantic_maps(project):
    root, params = project
    views = Views((1.0, 1.5), True, 1)
    setting(params, instances=BY_PARTS, localization="none", views=views)
    predict(root, params, "sample_mask")
    semantic, _ = ready(root, "sample_mask")
    expected = {}
    for number, (image_id, size) in enumerate(SIZES.items()):
        maps = semantic_maps(
            semantic, photograph(number, *size), views=views, vote_stride=8, device=CPU,
            precision="fp32",
        )  # fmt: skip
        found = component_instances(maps, np.array([1, 2]), size=size, stride=8, rule=BY_PARTS)
        expected[image_id] = found
        label_map = decode_index_png(out(root) / f"semantic/{image_id}.png")
        for category, rle in zip(found.categories, found.rles, strict=True):
            assert (label_map[decode_rle(rle, *size)] == category).mean() > 0.99
    assert list(table(root).itertuples(index=False, name=None)) == columns(expected)


def test_the_maps_of_the_first_image_are_kept_to_be_drawn(project):
    root, params = project
    setting(params)
    predict(root, params, "sample_mask")
    assert [path.name for path in (out(root) / "maps").iterdir()] == ["a.npz"]
    with np.load(out(root) / "maps/a.npz", allow_pickle=False) as kept:
        assert kept["probabilities"].shape == (3, 5, 7)
        assert kept["probabilities"].dtype == np.float16
        assert kept["boxes"].shape == (2, 4, 5, 7) and kept["boxes"].dtype == np.float32
        assert kept["things"].tolist() == [1, 2] and int(kept["stride"]) == 8
        semantic, _ = ready(root, "sample_mask")
        maps = semantic_maps(
            semantic, photograph(0, 40, 56), views=ONE, vote_stride=8, device=CPU, precision="fp32"
        )
        np.testing.assert_array_equal(kept["probabilities"], maps.astype(np.float16))


def test_each_network_computes_as_its_run_did(project, monkeypatch):
    """In its own threads and precision; boxes are decoded with the standard in full precision."""
    root, params = project
    save_localizer(root / "data/models/sample_boxes.pt", precision="bf16", threads=2)
    setting(params)
    seen, before = [], torch.get_num_threads()

    def watched(network, image, *, precision, **settings):
        dtype = next(network.parameters()).dtype
        seen.append((precision, dtype, torch.get_num_threads()))
        if "standard" in settings:
            assert settings["standard"].mean.dtype == torch.float32
            assert settings["standard"].mean.tolist() == STANDARD.mean.tolist()
            return box_maps(network, image, precision=precision, **settings)
        return semantic_maps(network, image, precision=precision, **settings)

    monkeypatch.setattr(instance_finding, "semantic_maps", watched)
    monkeypatch.setattr(instance_finding, "box_maps", watched)
    try:
        predict(root, params, "sample_mask")
    finally:
        torch.set_num_threads(before)
    assert seen == 3 * [("fp32", torch.float32, 1), ("bf16", torch.bfloat16, 2)]


# --- by the truth ---------------------------------------------------------------------------------
def test_without_a_semantic_network_the_true_masks_stand_in(project):
    root, params = project
    setting(params, model="none")
    predict(root, params, "sample_mask")
    assert not (out(root) / "semantic").exists()
    found = table(root)
    assert set(found["image_id"]) <= {"a", "b"}
    true = {"a": [], "b": []}
    for row in Prepared(root, "sample").instances.itertuples():
        true[row.image_id].append((row.category, decode_rle(row.mask_rle, *SIZES[row.image_id])))
    for row in found.itertuples():
        mask = decode_rle(row.mask_rle, *SIZES[row.image_id])
        of_category = [m for category, m in true[row.image_id] if category == row.category]
        assert row.score == 1 and not (mask & ~np.any(of_category, axis=0)).any()
    with np.load(out(root) / "maps/a.npz") as kept:
        assert kept["probabilities"].shape == (3, 40, 56) and int(kept["stride"]) == 1


def test_of_equal_scores_those_that_more_votes_found_come_first_in_any_image(tmp_path, project):
    root, params = project
    shutil.rmtree(root / "data")
    truth = {"a": [(1, (0, 0, 10, 10))], "b": [(1, (0, 0, 16, 16)), (2, (16, 0, 24, 8))], "c": []}
    write_dataset(root, CATEGORIES, truth)
    setting(params, model="none", localization="none")
    predict(root, params, "sample_mask")
    found = table(root)
    assert found["score"].tolist() == 3 * [1.0]
    of_image = list(zip(found["image_id"], found["category"], strict=True))
    assert of_image == [("b", 1), ("a", 1), ("b", 2)]  # 255, 99 and 63 pixels


def test_without_a_localisation_network_the_true_boxes_stand_in(project):
    root, params = project
    setting(params, localization="none")
    predict(root, params, "sample_mask")
    assert (out(root) / "semantic/a.png").exists()
    true = Prepared(root, "sample").instances
    for row in table(root).itertuples():
        mask = decode_rle(row.mask_rle, *SIZES[row.image_id])
        objects = true[(true["image_id"] == row.image_id) & (true["category"] == row.category)]
        owners = [decode_rle(rle, *SIZES[row.image_id]) for rle in objects["mask_rle"]]
        assert any(not (mask & ~owner).any() for owner in owners)


def test_with_both_the_objects_are_the_true_ones(project):
    root, params = project
    setting(params, model="none", localization="none")
    predict(root, params, "sample_mask")
    found = table(root).set_index(["image_id", "category"])
    true = Prepared(root, "sample").instances
    assert len(found) == len(true) == 4
    assert sorted(found["mask_rle"]) != []
    alone = true[true["image_id"] == "a"].set_index(["image_id", "category"])["mask_rle"]
    assert found["mask_rle"][alone.index].tolist() == alone.tolist()


def test_of_cityscapes_things_alone_are_found(tmp_path, project):
    root, params = project
    shutil.rmtree(root / "data")
    person, car = CITYSCAPES.index("person"), CITYSCAPES.index("car")
    truth = {"a": [(person, (2, 3, 20, 30)), (car, (30, 10, 50, 35))], "b": [], "c": []}
    write_dataset(root, CITYSCAPES, truth)
    setting(params, model="none", localization="none")
    predict(root, params, "sample_mask")
    true = Prepared(root, "sample").instances
    found = table(root).sort_values("category")
    assert found["category"].tolist() == [person, car]
    assert found["mask_rle"].tolist() == true.sort_values("category")["mask_rle"].tolist()
    save_localizer(root / "data/models/sample_boxes.pt", CITYSCAPES)
    save_model(root / "data/models/sample_mask.pt", CITYSCAPES)
    setting(params)
    predict(root, params, "sample_mask")
    assert set(table(root)["category"]) <= set(things_of(CITYSCAPES))
    assert len(table(root)) > 0


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The drawn sample, prepared, and its evaluation by the truth alone."""
    root = tmp_path_factory.mktemp("drawn")
    (root / "pipeline").symlink_to(ROOT / "pipeline")
    params = given()
    params["datasets"]["sample"] |= {"train": 1, "extra": 1, "val": 24}
    params["evaluations"] = {
        "sample_mask": evaluation("none", "sample", [], instances={
            "kind": "boxes", "vote_stride": 8, "top_masks": 2, "min_probability": 0.0,
            "nms_iou": 0.5, "region_nms": {"kind": "iou", "iou": 0.3}, "min_pixels": 0,
        }),
    }  # fmt: skip
    params = build(Params, params, "params.yaml", "")
    (root / "params.yaml").write_text("evaluations: {sample_mask: {model: none}}\n")
    from pipeline.stages.fetch import fetch
    from pipeline.stages.prepare import prepare

    fetch(root, params, "sample")
    prepare(root, params, "sample")
    return root, params


def test_the_method_s_ceiling_on_the_sample_is_1_but_for_boxes_that_meet(drawn):
    root, params = drawn
    predict(root, params, "sample_mask")
    evaluate(root, params, "sample_mask")
    measured = read_table(root / "data/metrics/sample_mask.parquet", "metrics")
    assert "mean_iou" not in set(measured["metric"])
    data = Prepared(root, "sample")
    met = set()  # categories with two boxes that the method takes for one object
    for image_id in data.ids("val"):
        rows = data.objects(image_id)
        rows = rows[rows["mask_rle"].notna()]
        for category, group in rows.groupby("category"):
            boxes = [rle_box(rle, *data.size(image_id)) for rle in group["mask_rle"]]
            overlaps = iou(np.array(boxes, float), np.array(boxes, float))
            if (overlaps[~np.eye(len(boxes), dtype=bool)] >= 0.5).any():
                met.add(SAMPLE[category])
    values = measured[measured["metric"] == "AP_r"].pivot(
        index="category", columns="at", values="value"
    )
    assert len(values) == 8 and len(met) < 4
    assert (values.drop(index=sorted(met)).fillna(1) == 1).all(axis=None)
    overall = measured[(measured["metric"] == "mAP_r") & (measured["at"] == 0.5)]["value"]
    assert 0.9 < overall.item() <= 1


# --- kills ----------------------------------------------------------------------------------------
def predicted_and_removed(project):
    """Root, parameters, and the digests of what was there until it was removed."""
    root, params = project
    setting(params)
    predict(root, params, "sample_mask")
    expected = digests(out(root))
    shutil.rmtree(root / "work")
    shutil.rmtree(out(root))
    return root, params, expected


def test_what_was_found_before_a_kill_is_kept_and_the_rest_is_the_same(project, monkeypatch):
    root, params, expected = predicted_and_removed(project)
    seen = []

    def killed(network, image, **settings):
        seen.append(image)
        if len(seen) > 1:
            raise KeyboardInterrupt
        return box_maps(network, image, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(instance_finding, "box_maps", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(root, params, "sample_mask")
    assert not (root / "data/predictions/sample_mask").exists()
    (first,) = (root / "work").rglob("instances/*.parquet")
    before = first.stat().st_mtime_ns
    predict(root, params, "sample_mask")
    assert first.stat().st_mtime_ns == before
    assert digests(out(root)) == expected


ASSASSIN = """
import os, signal, sys
from pathlib import Path
ending, count = os.environ["KILL_AT"].split(":")
real, seen = os.replace, []
def replace(source, target, **rest):
    if str(target).endswith(ending):
        seen.append(target)
        if len(seen) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
    return real(source, target, **rest)
os.replace = replace
sys.path.insert(0, os.environ["TESTS"])
from test_predict_instances import predict_here
predict_here(Path.cwd())
"""


def predict_here(root):
    params = given()
    params["evaluations"] = {"sample_mask": evaluation("sample_mask", "sample", [])}
    built = build(Params, params, "params.yaml", "")
    setting(built)
    predict(root, built, "sample_mask")


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    ["a.npz:1", "a.png:1", "b.parquet:1", "/instances.parquet:1", "predictions/sample_mask:1"],
)
def test_killed_while_a_file_is_put_in_its_place_it_ends_with_the_same_bytes(project, moment):
    root, params, expected = predicted_and_removed(project)
    variables = environment(KILL_AT=moment, TESTS=str(ROOT / "tests"), PYTHONPATH=str(ROOT))
    died = subprocess.run(
        [sys.executable, "-c", ASSASSIN], cwd=root, env=variables, capture_output=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not out(root).exists()
    predict(root, params, "sample_mask")
    assert digests(out(root)) == expected


# --- bad input ------------------------------------------------------------------------------------
def refused(project, match, **changes):
    root, params = project
    setting(params, **changes)
    with pytest.raises(BadInput, match=match):
        predict(root, params, "sample_mask")
    assert not (root / "data/predictions").exists()


def test_networks_of_other_categories_are_refused(project):
    root, _ = project
    save_localizer(root / "data/models/sample_boxes.pt", (*CATEGORIES, "fork"))
    refused(project, "sample_boxes knows 4 categories, sample has 3 others")


def test_networks_in_each_other_s_place_are_refused(project):
    root, _ = project
    shutil.copyfile(root / "data/models/sample_boxes.pt", root / "data/models/kept.pt")
    shutil.copyfile(root / "data/models/sample_mask.pt", root / "data/models/sample_boxes.pt")
    refused(project, "sample_boxes is no localisation network")
    shutil.copyfile(root / "data/models/kept.pt", root / "data/models/sample_mask.pt")
    refused(project, "sample_mask is no semantic network", localization="none", instances="none")


@pytest.mark.parametrize("name", ["sample_mask", "sample_boxes"])
def test_a_diverged_network_is_told_with_the_image(project, monkeypatch, name):
    def diverged(path, device):
        network, saved = load_model(path, device)
        if path.stem == name:
            nn.init.constant_(network.classifier.bias, torch.nan)
        return network, saved

    monkeypatch.setattr(stage, "load_model", diverged)
    refused(project, "evaluations.sample_mask: image a: the network says NaN: .* Train it anew")


def test_an_image_too_large_for_one_pass_is_refused_with_a_scale_that_would_do(
    project, monkeypatch
):
    root, params = project
    views = Views((1.0, 2.0), True, 1)
    monkeypatch.setattr(instance_finding, "CPU_ROOM", 400 * 2 * 40 * 56 * 1.5**2)
    told = r"image a: 40 x 56 pixels \(height x width\) at scale 2 do not fit in one pass on cpu.*"
    refused(project, told + "views.scales of at most 1.5,", views=views)
    monkeypatch.setattr(instance_finding, "CPU_ROOM", 400 * 2 * 77 * 50 * 1.5**2)
    setting(params, views=Views((1.0, 1.5), True, 1))
    predict(root, params, "sample_mask")


def test_too_many_votes_are_refused_with_a_vote_stride_that_would_do(project, monkeypatch):
    root, params = project
    rule = replace(BY_BOXES, vote_stride=2)
    cells = 10 * 14  # of image a, every fourth pixel
    monkeypatch.setattr(instance_finding, "ROOM", 4 * 11 * 3 * cells)
    told = "image a: 40 x 56 .* 11 numbers .* give an instances.vote_stride of 4, or smaller"
    refused(project, told, instances=rule)
    setting(params, instances=replace(rule, vote_stride=8))
    predict(root, params, "sample_mask")
    told = "image a: 40 x 56 pixels .* do not fit in memory, .*; give smaller images"
    shutil.rmtree(root / "data/predictions")
    refused(project, told, model="none")


def test_memory_that_runs_out_is_told(project, monkeypatch):
    def short_of_memory(network, image, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(instance_finding, "box_maps", short_of_memory)
    refused(project, "image a: 40 x 56 pixels .* do not fit in one pass on cpu")


def test_true_objects_without_masks_are_refused(project):
    root, _ = project
    path = root / "data/prepared/sample/instances.parquet"
    rows = read_table(path, "instances")
    rows["mask_rle"] = None
    write_table(path, "instances", rows)
    refused(project, "take a split, or a dataset, that has them", model="none")


def test_a_finder_does_not_do_without_the_truth_that_stands_in(project):
    root, _ = project
    network, saved = load_model(root / "data/models/sample_mask.pt", CPU)
    semantic = asked(network, saved, CPU)
    image = photograph(0)
    finder = instance_finding.Finder(CATEGORIES, BY_BOXES, ONE, semantic, None)
    with pytest.raises(ValueError, match="the true objects stand in"):
        finder.maps(image, None)
    finder = instance_finding.Finder(CATEGORIES, BY_PARTS, ONE, None, None)
    with pytest.raises(ValueError, match="components are those of a network"):
        finder.maps(image, None)
