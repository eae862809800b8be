"""Reports of evaluations that find objects: numbers with their protocol, rows of Table 6, cards."""

import json
import math
import re
from dataclasses import replace

import pytest
from test_report import (
    BOXES,
    COCO_BOXES,
    FCRN50,
    ROOT,
    RUN,
    cells,
    evaluation,
    given,
    paper,
    paper_rows,
    project,
    section,
)

from pipeline import departures, instance_reports, markdown, protocol, reports, wording
from pipeline.catalogue import load_catalogue
from pipeline.instance_reports import DECODING, NETWORKS, ObjectPictures
from pipeline.params import AnyOverlap, Params, RegionIou
from pipeline.params_file import build
from pipeline.params_training import (
    IouMinKept,
    LogSizeTargets,
    ScaledTargets,
    SizeWeights,
    StandardisedTargets,
)
from pipeline.stages.report import is_current, report
from pipeline.tables import read_table, write_table

assert paper, paper_rows
assert project  # fixtures

BOXED = {name: value for name, value in RUN.items() if name != "bootstrapping"} | {
    "bootstrapping": {"kind": "iou_minkept", "iou": 0.8, "keep": 40, "scope": "crop"},
    "targets": {"kind": "standardise"},
    "weighting": {"kind": "size", "alpha": 1.0, "lowest": 0.1, "highest": 10.0},
    "beta": 1.0,
}
RULE = {
    "kind": "boxes", "vote_stride": 8, "top_masks": 2, "min_probability": 0.05, "nms_iou": 0.5,
    "region_nms": {"kind": "iou", "iou": 0.3}, "min_pixels": 32,
}  # fmt: skip
COMPONENTS = {"kind": "components", "min_pixels": 20}
ON_SBD = {"dataset": "sbd", "split": "instance_train", "init": "resnet50", "network": FCRN50}


def finding(model, localization, dataset, stands_for=(), **other):
    split = {"split": "instance_val"} if dataset == "sbd" else {}
    more = {"localization": localization, "instances": RULE} | split | other
    return evaluation(model, dataset, list(stands_for), **more)


def sections():
    """Both networks, and either replaced by the truth; on drawn images and on SBD."""
    found = given()
    found["datasets"] |= {"sbd": {"kind": "sbd"}, "coco": COCO_BOXES}
    found["proposals"]["scg_sbd"] = found["proposals"]["scg_sample"] | {"dataset": "sbd"}
    found["weights"]["resnet50"] = {"kind": "imagenet", "depth": 50}
    found["semantic"] |= {
        "sbd_mask": RUN | ON_SBD,
        "coco_mask": RUN | ON_SBD | {"dataset": "coco", "split": "train"},
        "sbd_after_coco": RUN | ON_SBD | {"init": "coco_mask"},
    }
    found["instance"] = {"sample_boxes": BOXED, "sbd_boxes": BOXED | ON_SBD}
    found["evaluations"] = {
        "sample_found": finding("sample_mask", "sample_boxes", "sample", ["wu2016/Table 6/6"]),
        "sample_oracle": finding("none", "sample_boxes", "sample", ["wu2016/text 3.2/1"]),
        "sample_ceiling": finding("none", "none", "sample"),
        "sample_peer": finding("sample_mask", "none", "sample", instances=COMPONENTS),
        "sbd_found": finding("sbd_mask", "sbd_boxes", "sbd", ["wu2016/Table 6/6"]),
        "sbd_oracle": finding("none", "sbd_boxes", "sbd", ["wu2016/text 3.2/1"]),
        "sbd_after_coco": finding("sbd_after_coco", "sbd_boxes", "sbd", ["wu2016/Table 6/8"]),
        "sbd_ceiling": finding("none", "none", "sbd"),
    }
    return found


def make_params(**evaluations):
    found = sections()
    found["evaluations"] = evaluations or found["evaluations"]
    return build(Params, found, "params.yaml", "")


def object_rows(name, dataset, half, seven, volume):
    """As stage evaluate writes them."""
    split = "instance_val" if dataset == "sbd" else "val"
    same = {"evaluation": name, "dataset": dataset, "split": split}
    numbers = [
        ("num_images", None, None, 4.0), ("num_objects", None, None, 9.0),
        ("num_detections", None, None, 1234.0),
        ("mAP_r", None, 0.1, 0.9876), ("mAP_r", None, 0.5, half), ("mAP_r", None, 0.7, seven),
        ("mAP_r_vol", None, None, volume),
        ("mAP_r_mnc11", None, 0.5, half / 2), ("mAP_r_mnc11", None, 0.7, seven / 2),
        ("mAP_r_vol_mnc11", None, None, volume / 2),
        ("mAP_r_small", None, 0.5, 0.0), ("mAP_r_small", None, 0.7, math.nan),
        ("mAP_r_large", None, 0.5, 0.875), ("mAP_r_large", None, 0.7, 0.75),
        ("AP_r", "ring", 0.5, half), ("AP_r", "ring", 0.7, seven), ("AP_r", "star", 0.5, math.nan),
        ("AP_r_vol", "ring", None, volume),
    ]  # fmt: skip
    return [same | {"metric": m, "category": c, "at": at, "value": v} for m, c, at, v in numbers]


SCORES = {
    "sample_found": ("sample", 0.5, 0.25, 0.375),
    "sample_ceiling": ("sample", 0.9, 0.8, 0.7),
    "sample_peer": ("sample", 0.1, 0.05, 0.08),
    "sbd_found": ("sbd", 0.6, 0.4, 0.5),
    "sbd_oracle": ("sbd", 0.75, 0.6, 0.65),
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    for name, numbers in SCORES.items():
        write_table(folder / f"{name}.parquet", "metrics", object_rows(name, *numbers))
    return {name: read_table(folder / f"{name}.parquet", "metrics") for name in SCORES}


@pytest.fixture
def gathered(tables):
    images = {"sbd_boxes": (5623, 0), "sbd_mask": (100, 0)}
    return {m.name: m for m in protocol.gather(make_params(), tables, images)}


PICTURES = reports.Pictures(
    curves={"sample_boxes": "sample_boxes_curves.png"},
    objects=ObjectPictures(
        steps={"sample_found": "sample_found_steps.png"},
        overlays={"sample_peer": "sample_peer_objects.png"},
        precision_recall={"sample_val": "sample_val_precision_recall.png"},
    ),
)


@pytest.fixture
def text(gathered, paper, paper_rows):
    return reports.document(
        make_params(), list(gathered.values()), {}, {}, PICTURES, paper, paper_rows,
        bands={}, machine="x", studies=[],
    )  # fmt: skip


def head(text, heading):
    """The cells of the table head that follows a heading."""
    return cells(text.split(heading, 1)[1], "run")


def row(text, heading, name):
    """{head: cell} of the row of that name in the first table below a heading."""
    names = head(text, heading)
    return dict(zip(names, cells(text.split(heading, 1)[1], name), strict=True))


# --- the section of objects ----------------------------------------------------------------------
def test_each_evaluation_stands_with_its_networks_its_rules_and_its_numbers(text):
    found = row(section(text, "Sample"), "### Objects", "sample_found")
    assert found["semantic network"] == "sample_mask (depth 14, mask)"
    assert [found[name] for name in NETWORKS[1:]] == [
        "sample_boxes", "14", "IoU <= 0.8, at least 40 per crop", "(h w)^-1, 0.1 to 10",
    ]  # fmt: skip
    assert [found[name] for name in DECODING] == ["2", "0.05", "0.5", "IoU >= 0.3", "32", "8", "1"]
    assert [found[f"mAP^r {name}, %"] for name in ("0.5", "0.7", "vol")] == [
        "50.00", "25.00", "37.50",
    ]  # fmt: skip
    assert [found[f"mAP^r {name}, % (mnc11)"] for name in ("0.5", "0.7", "vol")] == [
        "25.00", "12.50", "18.75",
    ]  # fmt: skip
    assert (found["objects"], found["detections"]) == ("9", "1,234")
    assert found["stands for"].endswith("Table 6, row 6 (50-layer, Bs., weighted loss)")


def test_where_the_truth_stands_in_for_a_network_it_is_said(text):
    sample = section(text, "Sample")
    oracle = row(sample, "### Objects", "sample_oracle")
    assert oracle["semantic network"] == "true masks"
    assert oracle["localisation network"] == "sample_boxes"
    assert (oracle["vote stride"], oracle["views"]) == ("1", "1")
    assert oracle["mAP^r 0.5, %"] == oracle["objects"] == "–"  # not measured
    ceiling = row(sample, "### Objects", "sample_ceiling")
    assert [ceiling[name] for name in NETWORKS] == ["true masks", "true boxes", "–", "–", "–"]
    assert (ceiling["views"], ceiling["mAP^r vol, %"]) == ("–", "70.00")


def test_connected_components_have_no_votes_to_tell_of(text):
    peer = row(section(text, "Sample"), "### Objects", "sample_peer")
    assert [peer[name] for name in NETWORKS[1:]] == ["connected components", "–", "–", "–"]
    assert [peer[name] for name in DECODING] == ["–", "–", "–", "–", "20", "–", "1"]
    assert peer["mAP^r 0.5, %"] == "10.00"


def test_sizes_stand_where_they_were_measured(text):
    sample = section(text, "Sample")
    names = head(sample, "By the size")
    assert names[1:3] + names[5:] == ["small, 0.5", "small, 0.7", "large, 0.5", "large, 0.7"]
    assert cells(sample.split("By the size")[1], "sample_found")[1:] == [
        "0.00", "–", "–", "–", "87.50", "75.00",
    ]  # fmt: skip
    assert "sample_oracle" not in sample.split("By the size")[1].split("AP^r by")[0]


def test_each_category_has_its_precision_at_both_overlaps(text):
    sample = section(text, "Sample").split("AP^r by category")[1]
    assert cells(sample, "run") == ["run", "ring", "star"]
    assert cells(sample, "sample_found") == ["sample_found", "50.00 / 25.00", "– / –"]


def test_many_categories_stand_in_rows(gathered):
    names = [f"thing{i}" for i in range(30)]
    values = {("AP_r", name, 0.5): i / 100 for i, name in enumerate(names)}
    lines = instance_reports.precision_tables(
        [replace(gathered["sample_found"], values=values)]
    ).splitlines()
    assert lines[2] == "| run | sample_found |" and len(lines) == 2 + 2 + 30
    assert lines[-1] == "| thing29 | 29.00 / – |"


def test_pictures_are_linked_beside_their_numbers(text):
    objects = section(text, "Sample").split("### Objects")[1]
    for name in (
        "sample_found_steps", "sample_peer_objects", "sample_val_precision_recall",
        "sample_boxes_curves",
    ):  # fmt: skip
        assert f"(figures/{name}.png)" in objects
    assert "- sample_peer: [objects](figures/sample_peer_objects.png)" in objects


def test_evaluations_without_objects_have_no_such_section(paper, paper_rows):
    params = make_params(sample_mask=evaluation("sample_mask", "sample", []))
    gathered = protocol.gather(params, {}, {})
    text = reports.document(
        params, gathered, {}, {}, reports.Pictures(), paper, paper_rows,
        bands={}, machine="x", studies=[],
    )  # fmt: skip
    assert "### Objects" not in text and "mAP" not in text


# --- beside what is told of semantic networks ----------------------------------------------------
def test_objects_of_a_network_leave_its_semantic_tables_as_they_are(text):
    sample = section(text, "Sample").split("### Objects")[0]
    assert cells(sample, "sample_found")[:3] == ["sample_found", "mask", "14"]
    assert cells(sample, "sample_peer")[:3] == ["sample_peer", "mask", "14"]
    assert "sample_oracle" not in sample and "sample_ceiling" not in sample


def test_a_report_of_true_masks_alone_has_no_semantic_table(paper, paper_rows):
    params = make_params(sample_ceiling=finding("none", "none", "sample"))
    gathered = protocol.gather(params, {}, {})
    text = reports.document(
        params, gathered, {}, {}, reports.Pictures(), paper, paper_rows,
        bands={}, machine="x", studies=[],
    )  # fmt: skip
    assert "| supervision |" not in text and "- Precision: –" in text
    assert row(text, "### Objects", "sample_ceiling")["localisation network"] == "true boxes"
    assert text.split("## Model cards")[1].strip() == ""


def test_the_precision_of_both_kinds_of_network_is_stated(text):
    assert "- Precision: bf16\n" in text
    mixed = sections()
    mixed["instance"]["sample_boxes"] = BOXED | {"precision": "fp32"}
    gathered = protocol.gather(build(Params, mixed, "params.yaml", ""), {}, {})
    line = reports._header(make_params(), gathered, "x")
    assert "fp32 (sample_boxes)" in line and "bf16 (sample_mask, sbd_mask, sbd_boxes" in line


# --- the papers' rows ----------------------------------------------------------------------------
def test_table_6_shows_paper_ours_and_difference_with_both_networks(text):
    table = section(text, "The papers' tables")
    names = cells(table.split("Table 6\n")[1], "row")
    label = "6: 50-layer, Bs., weighted loss"
    found = dict(zip(names, cells(table, f"{label} | mAP^r at 0.5, %"), strict=True))
    assert (found["paper"], found["ours"], found["difference"]) == ("59.80", "60.00", "+0.20")
    assert (found["dataset"], found["split"], found["images"]) == ("sbd", "instance_val", "4")
    assert found["semantic network"] == "sbd_mask (depth 50, mask)"
    assert found["localisation network"] == "sbd_boxes"
    assert found["parameters"] == (
        "`semantic.sbd_mask`, `instance.sbd_boxes`, `evaluations.sbd_found`"
    )
    volume = dict(zip(names, cells(table, f"{label} | mAP^r vol, %"), strict=True))
    assert (volume["paper"], volume["ours"], volume["difference"]) == ("54.70", "50.00", "-4.70")
    missing = cells(table, "8: 101-layer, Bs., weighted loss, COCO | mAP^r at 0.7, %")
    assert missing[2:5] == ["46.60", "–", "–"]


def test_the_row_of_true_masks_stands_with_the_papers_text(text):
    table = section(text, "The papers' tables").split("text 3.2\n")[1]
    label = "1: ground-truth semantic masks + localization net | mAP^r at 0.5, %"
    found = dict(zip(cells(table, "row"), cells(table, label), strict=True))
    assert (found["paper"], found["ours"], found["difference"]) == ("73.00", "75.00", "+2.00")
    assert found["semantic network"] == "true masks"
    assert found["notes"] == "1, 2"
    assert "\n1. evaluated on 4 of the 5,732 official images" in table


def test_no_number_of_the_papers_stands_with_drawn_images(text, paper):
    printed = paper[paper["metric"].isin(["mAP_r", "mAP_r_vol"])]["value"]
    drawn = set(re.findall(r"\d+\.\d\d", section(text, "Sample")))
    assert "50.00" in drawn and not drawn & {f"{100 * value:.2f}" for value in printed}
    assert "sample" not in section(text, "The papers' tables")


def test_every_departure_from_the_paper_is_told(gathered, paper_rows):
    def departs(name, text):
        return departures.departures(gathered[name], markdown.settings_of_row(text, paper_rows))

    assert departs("sbd_found", "wu2016/Table 6/7") == [
        "evaluated on 4 of the 5,732 official images",
        "trained on 100 of the 5,623 official images",
        "depth 50 instead of 101",
        "depth of the localisation network 50 instead of 101",
    ]
    plain = departs("sbd_found", "wu2016/Table 6/4")
    assert "bootstrapping of the localisation network on instead of off" in plain
    assert "weights by the sizes of objects on instead of off" in plain
    coco = departs("sbd_found", "wu2016/Table 6/8")
    assert "trained on the split instance_train instead of COCO, then instance_train" in coco
    assert not any("COCO" in note for note in departs("sbd_after_coco", "wu2016/Table 6/8"))
    oracle = departs("sbd_oracle", "wu2016/Table 6/6")
    assert "score maps from true masks instead of a network" in oracle
    ceiling = departs("sbd_ceiling", "wu2016/Table 6/6")
    assert "boxes from true boxes instead of a network" in ceiling


def test_another_list_or_dataset_is_a_departure(paper_rows):
    on_voc = sections()
    on_voc["instance"]["sbd_boxes"] |= {"dataset": "voc", "split": "train_aug", "init": "nothing"}
    on_voc["evaluations"] = {"one": finding("none", "sbd_boxes", "voc")}
    (measured,) = protocol.gather(build(Params, on_voc, "params.yaml", ""), {}, {})
    theirs = markdown.settings_of_row("wu2016/text 3.2/1", paper_rows)
    assert departures.departures(measured, theirs) == [
        "evaluated on voc2012 instead of sbd",
        "evaluated on the split val instead of instance_val",
        "localisation network trained on the split train_aug instead of instance_train",
        "localisation network started from random instead of ImageNet weights",
        "depth of the localisation network 50 instead of 101",
    ]


def test_the_catalogues_rows_of_table_6_depart_by_nothing_but_what_is_missing(paper_rows):
    catalogue = load_catalogue(ROOT / "params" / "wu2016.yaml")
    rows = []
    for measured in protocol.gather(catalogue, {}, {}):
        for text in measured.entry.stands_for if measured.finds_objects else ():
            rows.append(text.removeprefix("wu2016/"))
            theirs = markdown.settings_of_row(text, paper_rows)
            assert departures.departures(measured, theirs) == [], measured.name
    assert sorted(rows) == [*(f"Table 6/{n}" for n in range(4, 9)), "text 3.2/1"]


@pytest.mark.parametrize("number", range(4, 9))
def test_the_settings_of_table_6_are_those_that_it_names(paper_rows, number):
    theirs = markdown.settings_of_row(f"wu2016/Table 6/{number}", paper_rows)
    method = theirs["method"]
    assert theirs["depth"] == theirs["localization_depth"] == method.split("-layer")[0]
    assert (theirs["localization_bootstrapping"] == "on") == ("Bs." in method)
    assert (theirs["localization_weighting"] == "on") == ("weighted loss" in method)
    assert theirs["train"].startswith("COCO, then ") == method.endswith("COCO")
    assert theirs["images"] == "5732" and theirs["localization_train_images"] == "5623"


# --- words ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            wording.bootstrapping_text(IouMinKept("iou_minkept", 0.8, 512, "device_batch")),
            "IoU <= 0.8, at least 512 per batch",
        ),
        (wording.weighting_text(SizeWeights("size", 0.5, 0.2, 5)), "(h w)^-0.5, 0.2 to 5"),
        (wording.region_text(AnyOverlap("any_overlap")), "any shared pixel"),
        (wording.region_text(RegionIou("iou", 0.25)), "IoU >= 0.25"),
        (
            wording.targets_text(StandardisedTargets("standardise")),
            "offsets, height and width, standardised",
        ),
        (
            wording.targets_text(LogSizeTargets("log_wh")),
            "offsets, log height and width, standardised",
        ),
        (
            wording.targets_text(ScaledTargets("scale", 50.0)),
            "offsets, height and width in units of 50 px",
        ),
    ],
)
def test_rules_are_told_in_words(found, words):
    assert found == words


# --- model cards ---------------------------------------------------------------------------------
def test_localisation_networks_have_cards_of_their_own(text):
    cards = text.split("## Model cards")[1]
    assert re.findall(r"^### (\w+)$", cards, flags=re.M) == [
        "sample_mask", "sbd_mask", "sbd_after_coco", "sample_boxes", "sbd_boxes",
    ]  # fmt: skip
    card = cards.split("### sbd_boxes")[1]
    for part in (
        "split instance_train (images: 5,623, by the masks of objects)",
        "offsets, height and width, standardised", "Weights of pixels: (h w)^-1, 0.1 to 10",
        "Bootstrapping: IoU <= 0.8, at least 40 per crop", "`instance.sbd_boxes`", "beta 1",
        "mAP^r at 0.5 60.00, at 0.7 40.00, vol 50.00 (%)", "`sbd_oracle`", "scores of true masks",
        "one training seed", "depth of the localisation network 50 instead of 101",
        "for research use only",
    ):  # fmt: skip
        assert part in card, part
    assert "drawn shapes" in cards.split("### sample_boxes")[1].split("###")[0]


def test_the_card_of_a_semantic_network_tells_of_the_objects_found_by_it(text):
    card = text.split("## Model cards")[1].split("### sample_mask")[1].split("###")[0]
    assert "mean IoU –, mAP^r at 0.5 10.00, at 0.7 5.00, vol 8.00 (%)" in card


# --- JSON ----------------------------------------------------------------------------------------
def test_json_holds_mean_precision_at_both_overlaps_and_over_all(gathered):
    numbers = json.loads(json.dumps(reports.metrics_json(list(gathered.values()))))
    assert set(numbers) == set(SCORES)
    assert numbers["sample_found"] == {
        "num_images": 4, "num_objects": 9, "num_detections": 1234, "mAP_r@0.5": 0.5,
        "mAP_r@0.7": 0.25, "mAP_r_vol": 0.375, "mAP_r_mnc11@0.5": 0.25, "mAP_r_mnc11@0.7": 0.125,
        "mAP_r_vol_mnc11": 0.1875, "mAP_r_small@0.5": 0.0, "mAP_r_large@0.5": 0.875,
        "mAP_r_large@0.7": 0.75,
    }  # fmt: skip


# --- the stage -----------------------------------------------------------------------------------
def test_numbers_of_a_localisation_network_trained_otherwise_are_not_shown(tmp_path, capsys):
    (tmp_path / "params.yaml").write_text(json.dumps(sections()))
    params = make_params()
    trained = {"params": {"params.yaml": {"instance.sample_boxes": BOXED}}}
    lock = {"stages": {"localize@sample_boxes": trained}}
    (tmp_path / "dvc.lock").write_text(json.dumps(lock))
    assert is_current(tmp_path, params, "sample_oracle")
    trained["params"]["params.yaml"]["instance.sample_boxes"] = BOXED | {"beta": 2.0}
    (tmp_path / "dvc.lock").write_text(json.dumps(lock))
    assert not is_current(tmp_path, params, "sample_oracle")
    assert not is_current(tmp_path, params, "sample_found")
    assert is_current(tmp_path, params, "sample_ceiling")
    assert is_current(tmp_path, params, "sample_peer")
    assert "instance.sample_boxes was another when localize@sample_boxes" in capsys.readouterr().err


def test_the_report_of_objects_is_written_when_nothing_is_here(project):
    report(project, make_params())
    text = (project / "reports/tables.md").read_text()
    assert row(section(text, "Sample"), "### Objects", "sample_ceiling")["mAP^r 0.5, %"] == "–"
    assert "### sbd_boxes" in text


def test_an_evaluation_started_from_boxes_keeps_its_supervision(paper_rows):
    found = sections()
    found["boxsup"]["voc_box"] = found["boxsup"]["voc_box"] | BOXES
    found["evaluations"] = {"one": finding("voc_box", "sbd_boxes", "voc")}
    (measured,) = protocol.gather(build(Params, found, "params.yaml", ""), {}, {})
    settings = departures.settings(measured)
    assert (settings["supervision"], settings["masks_from"]) == ("box", "SCG")
    assert settings["localization_train"] == "instance_train"
    assert "box (BoxSup, scg, top-5, lambda 1)" in instance_reports.semantic_cell(measured)
