"""The command `sensitivity`: one evaluation's objects found with many settings."""

import csv
import fcntl
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scratch
import torch
import torch.nn.functional as F
from torch import nn

from pipeline import instance_finding, sensitivity
from pipeline.__main__ import main
from pipeline.box_targets import Standard
from pipeline.categories import SAMPLE
from pipeline.checkpoints import build_localizer, build_network
from pipeline.datasets.prepared import Prepared
from pipeline.errors import BadInput
from pipeline.inference import cells_of_views
from pipeline.params import ONE_VIEW, AnyOverlap, BoxInstances, RegionIou
from pipeline.params_file import load_params
from pipeline.sensitivity import command, measuring
from pipeline.sensitivity.page import Measured, Scores, page, settings_cells, whose_images
from pipeline.stages.evaluate import evaluate
from pipeline.stages.fetch import fetch
from pipeline.stages.predict import predict
from pipeline.stages.prepare import prepare
from pipeline.tables import read_table, write_table
from pipeline.training import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
IMAGES = 3  # of val
GRID = 45
BY_BOXES = ("both", "true_masks", "true_boxes", "ceiling")
MEASURED = ("mAP_r@0.5", "mAP_r@0.7", "mAP_r_vol")
TRAINED, _ = scratch.PARAMS.split("instance: {}")
TINY = TRAINED.replace("extra: 6", "extra: 3").replace("depth: 14", "depth: 8")
PARAMS = (
    TINY
    + """\
instance:
  boxes:
    <<: *run
    split: train
    targets: {kind: standardise}
    weighting: {kind: "off"}
    beta: 1.0
evaluations:
  both: &evaluation
    model: mask
    localization: boxes
    dataset: sample
    split: val
    views: {scales: [1.0], flip: false, shifts: 1}
    crf: none
    instances:
      kind: boxes
      vote_stride: 8
      top_masks: 2
      min_probability: 0.05
      nms_iou: 0.5
      region_nms: {kind: iou, iou: 0.3}
      min_pixels: 16
    stands_for: []
  true_masks:
    <<: *evaluation
    model: none
  true_boxes:
    <<: *evaluation
    localization: none
    instances:
      kind: boxes
      vote_stride: 8
      top_masks: 4
      min_probability: 0.01
      nms_iou: 0.45
      region_nms: {kind: any_overlap}
      min_pixels: 5
  ceiling:
    <<: *evaluation
    model: none
    localization: none
  components:
    <<: *evaluation
    localization: none
    instances: {kind: components, min_pixels: 16}
  label_maps:
    <<: *evaluation
    localization: none
    instances: none
"""
)


def fit(network: nn.Module, data: Prepared) -> None:
    """Set the classifier so that drawn features tell the categories of the images that are here."""
    inputs, wanted, seen = [], [], list[torch.Tensor]()
    hook = network.classifier.register_forward_hook(lambda layer, given, out: seen.extend(given))
    for image_id in data.images["image_id"].unique():
        cells = cells_of_views(
            network.eval(), data.image(image_id), views=ONE_VIEW, device=CPU, precision="fp32"
        )
        with torch.inference_mode():
            list(cells)
        labels = torch.from_numpy(data.label_map(image_id)[4::8, 4::8].astype(np.int64))
        columns = F.unfold(seen.pop(), 3, padding=1)[0].T  # (cells, channels x 9)
        inputs.append(F.pad(columns, (0, 1), value=1.0)[labels.ravel() < len(SAMPLE)])
        wanted.append(6 * F.one_hot(labels[labels < len(SAMPLE)], len(SAMPLE)))
    hook.remove()
    a, b = torch.cat(inputs).double(), torch.cat(wanted).double()
    squares = a.T @ a
    squares.diagonal().add_(1e-3 * squares.diagonal().mean())
    solved = torch.linalg.solve(squares, a.T @ b).T.float()  # (categories, channels x 9 + 1)
    with torch.no_grad():
        network.classifier.weight.copy_(solved[:, :-1].reshape(network.classifier.weight.shape))
        network.classifier.bias.copy_(solved[:, -1])


def save(path: Path, network: nn.Module, run) -> None:
    plain = {"network": {k: getattr(run.network, k) for k in ("kind", "depth", "stride")}}
    plain["network"] |= {"kernel": run.network.kernel, "dilation": run.network.dilation}
    plain |= {"precision": "fp32", "threads": 1}
    if hasattr(run, "targets"):
        plain["targets"] = {"kind": "standardise"}
    save_checkpoint(path, network=network, optimizer=None, step=0, run=plain, categories=SAMPLE)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The drawn sample, prepared, and two networks: drawn weights, of one the last layer fitted."""
    root = tmp_path_factory.mktemp("project")
    (root / "pipeline").symlink_to(ROOT / "pipeline")
    (root / "params.yaml").write_text(PARAMS)
    params = load_params(root / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PIPELINE_DATA_SAMPLE", raising=False)
        fetch(root, params, "sample")
        prepare(root, params, "sample")
    models = root / "data/models"
    mask, boxes = params.semantic["mask"], params.instance["boxes"]
    network = build_network(mask.network, len(SAMPLE), seed=0)
    fit(network, Prepared(root, "sample"))
    save(models / "mask.pt", network, mask)
    standard = Standard(torch.tensor([0.0, 0, 28, 28]), torch.tensor([5.0, 5, 6, 6]))
    network = build_localizer(boxes.network, SAMPLE, standard, seed=1)
    nn.init.normal_(network.classifier.weight, std=0.05)
    save(models / "boxes.pt", network, boxes)
    return root, params


@pytest.fixture
def project_of_ones_own(project, tmp_path):
    """The same in another folder: what is changed there is changed for one test."""
    root, params = project
    for name in ("params.yaml", "data"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copyfile
        copy(root / name, tmp_path / name)
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    return tmp_path, replace(params, evaluations=dict(params.evaluations))


def measure(root, params, evaluation, out, split="val", images=None) -> list[dict]:
    """The rows of the table that the command writes."""
    sensitivity.sensitivity(root, params, evaluation, split=split, images=images, out=out)
    with (out / f"{evaluation}_{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def of_rule(rows: list[dict], rule: BoxInstances) -> list[float]:
    """What was measured with a rule."""
    names = ("top_masks", "nms_iou", "region_nms", "min_probability", "min_pixels")
    (row,) = [row for row in rows if [row[name] for name in names] == settings_cells(rule)]
    return [float(row[name]) for name in MEASURED]


def by_stages(root, params, evaluation) -> list[float]:
    """The same by the stages predict and evaluate."""
    predict(root, params, evaluation)
    evaluate(root, params, evaluation)
    rows = read_table(root / f"data/metrics/{evaluation}.parquet", "metrics")
    rows = rows[rows["category"].isna()]
    half, seven = (rows[(rows["metric"] == "mAP_r") & (rows["at"] == at)] for at in (0.5, 0.7))
    every = pd.concat([half, seven, rows[rows["metric"] == "mAP_r_vol"]])
    return every["value"].tolist()


@pytest.fixture(scope="module")
def tables(project, tmp_path_factory) -> dict[str, tuple[list[dict], str]]:
    """Of each evaluation by boxes the rows and the page on val."""
    out = tmp_path_factory.mktemp("out")
    found = {}
    for evaluation in BY_BOXES:
        rows = measure(*project, evaluation, out)
        found[evaluation] = rows, (out / f"{evaluation}_val.md").read_text(encoding="utf-8")
    return found


# --- the numbers ----------------------------------------------------------------------------------
@pytest.mark.parametrize("evaluation", BY_BOXES)
def test_the_evaluations_own_settings_give_the_numbers_of_the_stages(project, tables, evaluation):
    root, params = project
    rows, _ = tables[evaluation]
    own = params.evaluations[evaluation].instances
    measured = of_rule(rows, own)
    assert measured == by_stages(root, params, evaluation)
    assert measured == [1, 1, 1] if evaluation == "ceiling" else 0 < measured[2] < 1
    assert evaluation == "ceiling" or len({row["mAP_r_vol"] for row in rows}) > 3


def test_what_follows_at_the_best_gives_the_numbers_of_the_stages_too(project, tables):
    root, params = project
    rows, _ = tables["both"]
    best = max(rows[:GRID], key=lambda row: float(row["mAP_r_vol"]))
    kind = best["region_nms"].split()
    region = RegionIou("iou", float(kind[1])) if len(kind) == 2 else AnyOverlap("any_overlap")
    entry = params.evaluations["both"]
    rule = replace(
        entry.instances,
        top_masks=int(best["top_masks"]),
        nms_iou=float(best["nms_iou"]),
        region_nms=region,
    )
    varied = {
        "surer": replace(rule, min_probability=0.2),
        "larger": replace(rule, min_pixels=64),
    }
    more = {name: replace(entry, instances=other) for name, other in varied.items()}
    params = replace(params, evaluations=params.evaluations | more)
    for name, other in varied.items():
        assert of_rule(rows, other) == by_stages(root, params, name)
    assert of_rule(rows, varied["surer"]) != of_rule(rows, varied["larger"])


def test_each_image_is_looked_at_once_and_searched_once_with_each_combination(
    project, tmp_path, monkeypatch
):
    root, params = project
    searched, looked = Counter(), Counter()
    find, look = instance_finding.find_instances, instance_finding.semantic_maps

    def counted_find(*arguments, rule, **settings):
        searched[rule] += 1
        return find(*arguments, rule=rule, **settings)

    def counted_look(network, image, **settings):
        looked[image.tobytes()] += 1
        return look(network, image, **settings)

    monkeypatch.setattr(instance_finding, "find_instances", counted_find)
    monkeypatch.setattr(instance_finding, "semantic_maps", counted_look)
    rows = measure(root, params, "both", tmp_path)
    assert set(looked.values()) == {1} and len(looked) == IMAGES
    assert set(searched.values()) == {IMAGES}
    own = params.evaluations["both"].instances
    grid = [r for r in searched if (r.min_probability, r.min_pixels) == (0.05, 16)]
    assert len({(r.top_masks, r.nms_iou, r.region_nms) for r in grid}) == GRID and own in grid
    assert len(searched) == len(rows) == GRID + 3 + 3  # and the others of either setting


def test_settings_beside_the_grid_are_measured_as_well(tables):
    rows, text = tables["true_boxes"]
    assert {row["top_masks"] for row in rows} == {"1", "2", "3", "4"}
    assert {"0", "0.01", "0.05", "0.1", "0.2"} == {row["min_probability"] for row in rows}
    assert {"0", "5", "16", "32", "64"} == {row["min_pixels"] for row in rows}
    assert "| the evaluation's own | 4 | 0.45 | any_overlap | 0.01 | 5 |" in text


def test_the_page_says_what_stands_for_a_network(tables):
    for evaluation, lines in {
        "both": "- categories: mask\n- boxes: boxes\n- votes: one every 8 pixels",
        "true_masks": "- categories: the true masks\n- boxes: boxes\n- votes: one every pixel",
        "true_boxes": "- categories: mask\n- boxes: the true boxes\n- votes: one every pixel",
        "ceiling": "- categories: the true masks\n- boxes: the true boxes\n- votes: one",
    }.items():
        assert lines in tables[evaluation][1]
        assert f"- images: all {IMAGES}; 12 objects\n" in tables[evaluation][1]
    assert "- precision: fp32\n" in tables["true_masks"][1]
    assert "- precision: no network is asked\n" in tables["ceiling"][1]


@pytest.mark.parametrize(("number", "expected"), [(1, "a"), (2, "ac"), (4, "abcd"), (9, "abcde")])
def test_images_are_evenly_spread_over_the_list(number, expected):
    assert command._spread(list("abcde"), number) == list(expected)
    assert command._spread(list("abcde"), None) == list("abcde")


# --- the files ------------------------------------------------------------------------------------
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_command_writes_page_table_and_heat_map(project, tmp_path, monkeypatch, capsys):
    root, _ = project
    monkeypatch.chdir(root)
    out = tmp_path / "new" / "folder"
    given = ["sensitivity", "both", "--split", "val", "--images", "2", "--out", str(out)]
    assert main(given) == 0
    assert sorted(p.name for p in out.iterdir()) == [f"both_val.{e}" for e in ("csv", "md", "png")]
    with (out / "both_val.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(float(row["mAP_r_vol"]) for row in rows[:GRID])
    text = text_of(out / "both_val.md")
    assert set(re.findall(r"\*\*(.*?)\*\*", text)) == {f"{100 * best:.2f}"}
    assert "- images: 2 of 3, evenly spread; " in text and "](both_val.png)" in text
    assert "- categories: mask\n- boxes: boxes\n" in text
    said = capsys.readouterr().out
    assert f"mAP^r_vol {100 * best:.2f} %" in said and "both_val.md" in said
    assert not list((root / "work/sensitivity").glob("*-maps"))


SAID = Scores(0.5, 0.25, 0.125)


def rule_of(top_masks=1, nms_iou=0.5, min_probability=0.0, min_pixels=0):
    region = AnyOverlap("any_overlap")
    return BoxInstances("boxes", 8, top_masks, min_probability, nms_iou, region, min_pixels)


def test_the_page_has_n_down_and_the_overlap_across():
    scores = {
        rule_of(1, 0.3): SAID,
        rule_of(1, 0.5): Scores(0.75, 0.5, 0.375),
        rule_of(2, 0.3): SAID,
        rule_of(2, 0.5): Scores(0.0, 0.0, float("nan")),
        rule_of(1, 0.5, 0.2): Scores(0.1, 0.2, 0.3),
        rule_of(1, 0.5, 0.0, 64): Scores(0.4, 0.5, 0.6),
    }
    rules = list(scores)
    measured = Measured(scores, rules[0], rules[:4], rules[1], [rules[1], rules[4]], rules[1::4])
    text = page(measured, title="T", facts=[("machine", "M")], figure="f.png")
    grid = "| n | 0.3 | 0.5 |\n| --- | --- | --- |\n| 1 | 12.50 | **37.50** |\n| 2 | 12.50 | – |\n"
    assert "Region NMS `any_overlap`:\n\n" + grid in text
    assert "| best of the grid | 1 | 0.5 | any_overlap | 0 | 0 | 75.00 | 50.00 | 37.50 |" in text
    assert (
        "| the evaluation's own | 1 | 0.3 | any_overlap | 0 | 0 | 50.00 | 25.00 | 12.50 |" in text
    )
    assert "| 0 | 75.00 | 50.00 | 37.50 |\n| 0.2 | 10.00 | 20.00 | 30.00 |\n" in text
    assert "- machine: M\n" in text and "![the same as colours](f.png)" in text


@pytest.fixture
def measured_at_once(monkeypatch):
    """The command without its work: every setting scores as the number of its place."""

    def numbered(searched, rules, look, folder):
        return {rule: Scores(0.5, 0.25, n / 100) for n, rule in enumerate(rules)}

    monkeypatch.setattr(command, "measure", numbered)


def test_the_heat_map_shows_the_grid_and_nothing_else(
    project, tmp_path, monkeypatch, measured_at_once
):
    root, params = project
    drawn = []
    monkeypatch.setattr(
        command, "draw_sensitivity", lambda path, *, title, rows: drawn.extend([title, rows])
    )
    measure(root, params, "true_boxes", tmp_path)
    title, rows = drawn
    assert title == "mAP^r_vol of true_boxes on sample val"
    assert len(rows) == GRID and [row[3] for row in rows] == [n / 100 for n in range(GRID)]
    assert rows[0] == (1, 0.3, "any_overlap", 0.0) and rows[-1] == (3, 0.7, "iou 0.5", 0.44)


def test_of_equal_settings_the_evaluations_own_are_best(project, monkeypatch, tmp_path):
    root, params = project
    monkeypatch.setattr(
        command, "measure", lambda searched, rules, look, folder: dict.fromkeys(rules, SAID)
    )
    monkeypatch.setattr(command, "first_look", lambda searched: None)
    own = params.evaluations["both"].instances
    measured = command._measure_all(None, own, tmp_path)
    assert measured.best == own
    other = replace(own, nms_iou=0.45)
    measured = command._measure_all(None, other, tmp_path)
    assert measured.best == measured.grid[0] and measured.own == other


def test_a_page_that_was_there_stays_where_it_fails(
    project, tmp_path, monkeypatch, measured_at_once
):
    root, params = project
    (tmp_path / "both_val.md").write_text("before")

    def fails(path, *, title, rows):
        raise OSError("no room")

    monkeypatch.setattr(command, "draw_sensitivity", fails)
    with pytest.raises(OSError, match="no room"):
        measure(root, params, "both", tmp_path)
    assert text_of(tmp_path / "both_val.md") == "before"
    assert not list(tmp_path.glob(".*")) and not list((root / "work/sensitivity").glob("*-maps"))


def test_what_a_killed_run_left_is_gone(project):
    root, _ = project
    left = root / "work/sensitivity/both-maps"
    left.mkdir(parents=True, exist_ok=True)
    (left / "a.npz").write_bytes(b"half")
    with measuring.scratch(root, "both") as folder:
        assert folder == left and not list(folder.iterdir())
    assert not left.exists()


# --- whose images ---------------------------------------------------------------------------------
def ids_of(root, split):
    images = read_table(root / "data/prepared/sample/images.parquet", "images")
    return images.loc[images["split"] == split, "image_id"].tolist()


def test_it_is_said_whose_images_they_are(project):
    root, params = project
    val, train, both = (ids_of(root, split) for split in ("val", "train", "train_aug"))
    assert whose_images(root, params, "both", val) == (
        "mask learnt from none of them; boxes learnt from none of them; the evaluation is measured "
        "on all of them. No setting may be chosen by this page"
    )
    assert whose_images(root, params, "both", both) == (
        f"mask learnt from all of them; boxes learnt from {len(train)} of them; the evaluation is "
        "measured on none of them. Settings may be chosen by this page, though networks are surer "
        "of images that they learnt from than of others"
    )
    assert whose_images(root, params, "ceiling", train) == (
        "the evaluation is measured on none of them. Settings may be chosen by this page"
    )
    said = whose_images(root, params, "true_boxes", [train[0], val[0]])
    assert said.startswith(
        "mask learnt from 1 of them; the evaluation is measured on 1 of them. No"
    )


def test_a_network_behind_another_and_data_that_are_not_there_are_told(project):
    root, params = project
    first = replace(params.semantic["mask"], dataset="elsewhere")
    after = replace(params.semantic["mask"], init="first", split="train")
    params = replace(params, semantic={"first": first, "mask": after})
    said = whose_images(root, params, "true_boxes", ids_of(root, "train"))
    assert said.startswith(
        "mask learnt from all of them; elsewhere, which first learnt from, is not prepared here to "
        "compare; the evaluation is measured on none of them."
    )


# --- bad input ------------------------------------------------------------------------------------
CHOOSE = "choose one of: both, true_masks, true_boxes, ceiling"


@pytest.mark.parametrize(
    ("evaluation", "options", "message"),
    [
        ("other", [], f"evaluations.other is not there; {CHOOSE}"),
        ("components", [], f"evaluations.components.instances is not of the kind boxes.*{CHOOSE}"),
        ("label_maps", [], f"evaluations.label_maps.instances is not of the kind boxes.*{CHOOSE}"),
        ("both", ["--split", "no"], "sample has no split 'no'; choose one of: "),
        ("both", ["--images", "0"], "--images 0: expected 1 or more"),
        ("both", ["--out", "params.yaml"], "--out params.yaml: a file is in the place of a folder"),
        ("both", ["--out", "params.yaml/x"], "--out params.yaml/x: a file is in the place of a"),
    ],
)
def test_what_cannot_be_measured_is_said(
    project, monkeypatch, capsys, evaluation, options, message
):
    monkeypatch.chdir(project[0])
    assert main(["sensitivity", evaluation, "--split", "val", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not Path("reports").exists()


def refused(root, params, evaluation="both"):
    with pytest.raises(BadInput) as refusal:
        measure(root, params, evaluation, root / "out")
    assert not list((root / "out").glob("*"))
    return str(refusal.value)


def change(root, table, **columns):
    path = root / f"data/prepared/sample/{table}.parquet"
    rows = read_table(path, table)
    write_table(path, table, rows.assign(**columns))


def test_images_without_masks_or_objects_are_refused(project_of_ones_own):
    root, params = project_of_ones_own
    change(root, "instances", crowd=True)
    assert refused(root, params).startswith(f"no object in {IMAGES} images of val; take another")
    change(root, "instances", crowd=False, mask_rle=None)
    assert "instances are learnt from the masks of objects" in refused(root, params)
    change(root, "images", has_boxes=False)
    told = refused(root, params)
    assert told.startswith(f"the objects of {IMAGES} of {IMAGES} images are not annotated")


def test_networks_that_are_missing_or_of_other_categories_are_refused(project_of_ones_own):
    root, params = project_of_ones_own
    path = root / "data/models/mask.pt"
    run = params.semantic["mask"]
    saved = torch.load(path, weights_only=True)
    network = build_network(run.network, len(SAMPLE), seed=0)
    save_checkpoint(
        path, network=network, optimizer=None, step=0, run=saved["run"],
        categories=["background", *reversed(SAMPLE[1:])],
    )  # fmt: skip
    assert refused(root, params).startswith(
        "evaluations.both: mask knows 9 categories, sample has 9 others"
    )
    path.unlink()
    assert "mask.pt" in refused(root, params)


def test_a_network_that_says_nan_is_refused_with_the_image(project_of_ones_own):
    root, params = project_of_ones_own
    path = root / "data/models/boxes.pt"
    saved = torch.load(path, weights_only=True)
    saved["network"]["classifier.bias"] *= np.nan
    torch.save(saved, path)
    said = refused(root, params)
    assert said.startswith(
        f"evaluations.both: image {ids_of(root, 'val')[0]}: the network says NaN"
    )
    assert not list((root / "work/sensitivity").glob("*-maps"))


def test_two_at_a_time_are_refused(project):
    root, params = project
    (root / "work/sensitivity").mkdir(parents=True, exist_ok=True)
    with (root / "work/sensitivity/both.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another process measures the sensitivity of both" in refused(root, params)
