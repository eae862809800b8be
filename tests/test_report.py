"""Reports: the printed numbers, Markdown and JSON from tables, and what must never be shown."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cityscapesscripts.helpers.labels import labels
from matplotlib.figure import Figure
from PIL import Image

from pipeline import (
    departures,
    figures,
    markdown,
    paper_tables,
    protocol,
    reports,
    semantic_reports,
    wording,
)
from pipeline.categories import CITYSCAPES, CONTEXT, VOC
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.proposal_table import ProposalTable, to_row
from pipeline.errors import BadInput
from pipeline.label_step import rebuilt_map
from pipeline.masks import encode_index_png
from pipeline.params import Crf, Params
from pipeline.params_file import build, read_yaml
from pipeline.stages.report import is_current, report
from pipeline.tables import read_table, write_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def paper():
    return paper_tables.read_paper(ROOT / "reports/paper.csv", paper_tables.PAPER_COLUMNS)


@pytest.fixture(scope="module")
def paper_rows():
    return paper_tables.read_paper(ROOT / "reports/paper_rows.csv", paper_tables.PAPER_ROWS_COLUMNS)


# --- reports/paper.csv ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("paper_name", "table", "row", "metric", "category", "at", "percent"),
    [  # typed from the papers' text
        ("wu2016", "Table 1", 13, "mean_iou", "", None, 73.41),
        ("wu2016", "Table 1", 1, "pixel_accuracy", "", None, 92.74),
        ("wu2016", "Table 7", 3, "mean_accuracy", "", None, 82.09),
        ("wu2016", "Table 2", 2, "iou", "cow", None, 83.7),
        ("wu2016", "Table 2", 9, "mean_iou", "", None, 79.1),
        ("wu2016", "Table 4", 2, "iou", "traffic light", None, 65.7),
        ("wu2016", "Table 6", 8, "mAP_r", "", 0.7, 46.6),
        ("wu2016", "Table 6", 4, "mAP_r_vol", "", None, 52.5),
        ("dai2015", "Table 1", 3, "mean_iou", "", None, 63.5),
        ("dai2015", "Table 2", 1, "mean_iou", "", None, 52.3),
        ("dai2015", "Table 2", 4, "mean_iou", "", None, 59.7),
        ("dai2015", "Table 3", 2, "mean_iou", "", None, 60.4),
        ("dai2015", "Table 4", 9, "mean_iou", "", None, 75.2),
        ("slides", "SharpMask Table (proposals)", 7, "box_AR", "", 100, 31.3),
    ],
)
def test_printed_numbers_are_those_of_the_papers(
    paper, paper_name, table, row, metric, category, at, percent
):
    chosen = paper[(paper["paper"] == paper_name) & (paper["table"] == table)]
    values = protocol.values_of(chosen[chosen["row"] == row])
    assert values[metric, category, at] == pytest.approx(percent / 100, abs=1e-12)


def test_printed_numbers_are_whole_and_unique(paper):
    assert len(paper) == 782
    assert not paper.duplicated(["paper", "table", "row", "metric", "category", "at"]).any()
    ratios = paper[paper["metric"] != "inference_seconds"]["value"]
    assert ratios.between(0, 1).all() and paper["value"].notna().all()


def test_the_mean_of_a_paper_is_the_mean_of_its_categories(paper):
    row = paper[(paper["paper"] == "wu2016") & (paper["table"] == "Table 4") & (paper["row"] == 2)]
    values = protocol.values_of(row)
    categories = [v for (metric, _, _), v in values.items() if metric == "iou"]
    assert len(categories) == 19
    assert np.mean(categories) == pytest.approx(values["mean_iou", "", None], abs=0.0005)


def test_every_printed_row_is_described(paper, paper_rows):
    printed = set(paper[["paper", "table", "row"]].itertuples(index=False, name=None))
    described = paper_rows[paper_rows["setting"] == "method"]
    assert printed == set(described[["paper", "table", "row"]].itertuples(index=False, name=None))


def test_field_of_view_follows_from_the_described_settings(paper_rows):
    row = paper_rows[(paper_rows["paper"] == "wu2016") & (paper_rows["table"] == "Table 1")]
    settings = row.pivot(index="row", columns="setting", values="value")
    columns = settings[["depth", "stride", "kernel", "dilation"]]
    assert columns.loc[13].tolist() == ["101", "8", "5", "12"]
    assert columns.loc[1].tolist() == ["50", "16", "3", "6"]


def stands_for(node):
    """Every row that is named below a node of the catalogue."""
    if isinstance(node, dict):
        yield from node.get("stands_for", [])
        for child in node.values():
            yield from stands_for(child)


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_catalogue_stands_for_rows_that_there_are(paper, paper_rows, path):
    for text in set(stands_for(read_yaml(path))):
        paper_tables.paper_row(text, paper, path.stem)
        assert markdown.settings_of_row(text, paper_rows)["method"]


# --- a small project ----------------------------------------------------------------------------
RUN = {
    "dataset": "sample",
    "split": "train_aug",
    "init": "crops",
    "network": {"kind": "fcrn", "depth": 14, "stride": 8, "kernel": 3, "dilation": 4},
    "augmentation": {"crop": [128, 160], "scale": [0.8, 1.25], "flip": "both"},
    "bootstrapping": {"kind": "off"},
    "batch": 4,
    "epochs": 25,
    "lr": 0.02,
    "schedule": {"kind": "linear", "warmup": 20},
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 0.0005,
    "bias_lr_factor": 1.0,
    "batch_norm": "train",
    "seed": 0,
    "precision": "bf16",
    "threads": 0,
}
BOXES = {
    "proposals": "scg",
    "mask_split": "none",
    "difficult": "box",
    "crowd": "ignore",
    "estimator": {
        "kind": "boxsup", "top_k": 5, "lam": 1.0, "lam_start": 8, "round_epochs": 2,
        "costs": "averaged", "min_box_iou": 0.6, "fallback_box_iou": 0.3, "fallback": "rectangle",
    },
}  # fmt: skip
SCG = {
    "kind": "scg", "edges": {"kind": "gradient", "sigma": 1.5}, "min_area": 20, "singletons": 9,
    "pairs": 9, "triplets": 9, "quadruplets": 0, "max_overlap": 0.95, "max_candidates": 20,
    "fill_holes": False,
}  # fmt: skip
ON_VOC = {"dataset": "voc", "init": "nothing"}
FCRN50 = {"kind": "fcrn", "depth": 50, "stride": 8, "kernel": 5, "dilation": 12}


def scg_of(dataset):
    slots = {"contours": "none", "ranker": "none"}
    return {"method": "scg", "dataset": dataset, "algorithm": SCG} | slots


def evaluation(model, dataset, stands_for, **other):
    return {
        "model": model, "localization": "none", "dataset": dataset, "split": "val",
        "views": {"scales": [1.0], "flip": False, "shifts": 1}, "crf": "none",
        "instances": "none", "stands_for": stands_for,
    } | other  # fmt: skip


def given():
    return {
        "datasets": {
            "sample": {"kind": "sample", "train": 3, "extra": 5, "more": 0, "val": 4},
            "voc": {"kind": "voc2012"},
        },
        "forests": {},
        "proposals": {f"scg_{name}": scg_of(name) for name in ("sample", "voc")},
        "weights": {"nothing": {"kind": "none"}, "crops": {"kind": "crops", "depth": 14, "crops": 1,
            "size": 8, "batch": 1, "steps": 1, "lr": 0.1, "seed": 0,
            "precision": "fp32", "threads": 1}},
        "semantic": {
            "sample_mask": RUN,
            "voc_mask": RUN | ON_VOC | {"network": FCRN50, "precision": "fp32"},
        },
        "boxsup": {"sample_box": RUN | BOXES, "voc_box": RUN | ON_VOC | BOXES},
        "instance": {},
        "evaluations": {
            "sample_mask": evaluation("sample_mask", "sample", ["wu2016/Table 7/1"]),
            "sample_box": evaluation("sample_box", "sample", ["dai2015/Table 2/5"]),
            "voc_mask": evaluation("voc_mask", "voc", ["wu2016/Table 1/13", "wu2016/Table 7/1"]),
            "voc_box": evaluation(
                "voc_box", "voc", ["dai2015/Table 2/5"],
                views={"scales": [0.75, 1.0], "flip": True, "shifts": 1},
            ),
        },
    }  # fmt: skip


def make_params(**changes):
    return build(Params, given() | changes, "params.yaml", "")


def metric_rows(name, dataset, **values):
    same = {"evaluation": name, "dataset": dataset, "split": "val", "at": None}
    rows = [{"metric": m, "category": None, "value": v} for m, v in values.items()]
    rows += [{"metric": "iou", "category": c, "value": 0.5} for c in ("background", "ring")]
    rows.append({"metric": "iou", "category": "star", "value": float("nan")})
    for part, value in (("boundary", 0.25), ("interior", 0.5)):
        metric = f"category_{part}_mean_iou"
        rows += [
            {"metric": metric, "category": None, "at": at, "value": value} for at in (1.0, 5.0)
        ]
    return [same | row for row in rows]


SCORES = {
    "sample_mask": {
        "num_images": 4.0, "pixel_accuracy": 0.8, "mean_accuracy": 0.45, "mean_iou": 0.40625,
        "all_background_pixel_accuracy": 0.75, "all_background_mean_accuracy": 1 / 9,
        "all_background_mean_iou": 0.75 / 9,
    },
    "sample_box": {"num_images": 4.0, "pixel_accuracy": 0.7, "mean_accuracy": 0.3, "mean_iou": 0.3},
    "voc_mask": {"num_images": 47.0, "pixel_accuracy": 0.9, "mean_accuracy": float("nan"),
                 "mean_iou": 0.6},
}  # fmt: skip


@pytest.fixture
def tables(tmp_path):
    """Metrics of three of the four evaluations; voc_box is not measured."""
    for name, values in SCORES.items():
        rows = metric_rows(name, name.split("_")[0], **values)
        write_table(tmp_path / f"{name}.parquet", "metrics", rows)
    return {name: read_table(tmp_path / f"{name}.parquet", "metrics") for name in SCORES}


@pytest.fixture
def gathered(tables):
    return protocol.gather(make_params(), tables, {"voc_mask": (139, 0), "sample_box": (0, 8)})


def history(*rows):
    return pd.DataFrame(rows, columns=["step", "epoch", "name", "value"])


LABELS = history(
    (0, 0, "label_mean_iou", 0.7),
    (40, 2, "label_mean_iou", 0.6512),
    (80, 4, "label_mean_iou", 0.72),
    (0, 0, "label_mean_area", 0.15),
    (80, 4, "label_mean_area", 0.125),
)
PAINTED = ["rectangle", "rectangle", "candidate", "rectangle", "candidate", "rectangle", "ignore"]
CHOICES = pd.DataFrame({"epoch": [0, 0, 2, 2, 4, 4, 4], "label": PAINTED})


@pytest.fixture
def text(gathered, paper, paper_rows):
    return reports.document(
        make_params(),
        gathered,
        {"sample_box": LABELS},
        {"sample_box": CHOICES},
        reports.Pictures(overlays={"sample_mask": "sample_mask_overlays.png"}),
        paper,
        paper_rows,
        bands={},
        machine="a processor, torch 9.9",
        studies=["seeds.md"],
        sensitivities=["found_train.md"],
    )


def section(text, heading):
    return re.split(r"^## ", text.split(f"## {heading}", 1)[1], flags=re.M)[0]


def cells(text, start):
    """The cells of the first table row that begins with these cells."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


# --- Markdown -----------------------------------------------------------------------------------
def test_paper_ours_and_difference_stand_side_by_side_with_their_protocol(text):
    head = dict(
        zip(paper_tables.PAPER_HEAD, cells(text, "13: vanilla FCRN | mean IoU, %"), strict=True)
    )
    assert (head["paper"], head["ours"], head["difference"]) == ("73.41", "60.00", "-13.41")
    assert (head["dataset"], head["split"], head["images"]) == ("voc", "val", "47")
    assert (head["views"], head["CRF"]) == ("1", "none")
    assert (head["supervision"], head["parameters"]) == ("mask", "`semantic.voc_mask`")
    assert head["data"] == "PASCAL VOC 2012 with the masks of SBD"


def test_a_missing_number_is_a_dash_and_never_the_papers(text):
    head = dict(zip(paper_tables.PAPER_HEAD, cells(text, "5: BoxSup | mean IoU, %"), strict=True))
    assert (head["paper"], head["ours"], head["difference"]) == ("62.00", "–", "–")
    assert head["images"] == "–"
    nan = dict(
        zip(paper_tables.PAPER_HEAD, cells(text, "13: vanilla FCRN | mean acc., %"), strict=True)
    )
    assert (nan["paper"], nan["ours"], nan["difference"]) == ("81.87", "–", "–")


def test_one_evaluation_stands_in_every_table_that_it_stands_for(text):
    assert "### Wu et al. 2016, Table 1" in text and "### Wu et al. 2016, Table 7" in text
    assert cells(text, "1: FCRN | mean IoU, %")[2:5] == ["73.41", "60.00", "-13.41"]


def test_each_known_departure_has_a_footnote(gathered, paper_rows, text):
    voc_mask = gathered[2]
    theirs = markdown.settings_of_row("wu2016/Table 1/13", paper_rows)
    assert departures.departures(voc_mask, theirs) == [
        "evaluated on 47 of the 1,449 official images",
        "trained on 139 of the 10,582 official images",
        "started from random instead of ImageNet weights",
        "depth 50 instead of 101",
    ]
    notes = dict(
        zip(paper_tables.PAPER_HEAD, cells(text, "13: vanilla FCRN | mean IoU, %"), strict=True)
    )
    assert notes["notes"] == "1, 2, 3, 4"
    assert "\n1. evaluated on 47 of the 1,449 official images" in text


def test_departures_of_a_box_run_name_its_method(gathered, paper_rows):
    found = departures.departures(
        gathered[3], markdown.settings_of_row("dai2015/Table 2/5", paper_rows)
    )
    assert "network FCRN instead of DeepLab on VGG-16" in found
    assert "CRF: no instead of yes" in found
    assert "views: several instead of one" in found
    assert "masks estimated from SCG instead of MCG" in found
    assert "lambda 1 instead of 3" in found
    assert "only candidates of box IoU >= 0.6 instead of 0" in found
    assert not any("cheapest" in note for note in found)  # 5 on both sides
    assert not any("images" in note and "evaluated" in note for note in found)  # not measured


CRF = {
    "kind": "dense", "bilateral_weight": 5.0, "bilateral_xy": 50.0, "bilateral_rgb": 10.0,
    "gaussian_weight": 3.0, "gaussian_xy": 3.0, "iterations": 10, "prune": 0.0,
}  # fmt: skip


def test_a_crf_is_told_with_its_parameters(tables, paper, paper_rows):
    entry = evaluation("voc_mask", "voc", ["dai2015/Table 1/1"], crf=CRF)
    params = make_params(evaluations={"voc_mask": entry})
    (measured,) = protocol.gather(params, tables, {})
    theirs = markdown.settings_of_row("dai2015/Table 1/1", paper_rows)
    assert not any("CRF" in note for note in departures.departures(measured, theirs))
    fcrn = markdown.settings_of_row("wu2016/Table 1/13", paper_rows)
    assert "CRF: yes instead of no" in departures.departures(measured, fcrn)
    table = paper_tables.paper_sections([measured], paper, paper_rows)
    row = cells(table, "1: baseline (DeepLab-CRF reimplementation) | mean IoU, %")
    told = dict(zip(paper_tables.PAPER_HEAD, row, strict=True))["CRF"]
    assert told == "yes: 5 (50 px, 10) + 3 (3 px), 10 rounds"
    assert f"CRF {told}" in reports.cards([measured], paper_rows)[0]
    assert "| 1, then a CRF |" in semantic_reports.summary_table([measured], paper_rows)
    pruned = build(Crf, CRF | {"prune": 0.01}, "params.yaml", "crf")
    assert wording.crf_text(pruned) == f"{told}, pruned at 0.01"


def started_from(**other):
    """An evaluation of a run by masks that starts from one by boxes."""
    sections = given()
    sections["semantic"]["voc_mask"] |= {"init": "voc_box"} | other
    sections["evaluations"] = {"voc_mask": evaluation("voc_mask", "voc", [])}
    (measured,) = protocol.gather(build(Params, sections, "params.yaml", ""), {}, {})
    return measured


def test_a_run_is_told_with_what_it_started_from():
    settings = departures.settings(started_from())
    assert settings["train"] == "train_aug, then train_aug"
    assert (settings["supervision"], settings["init"]) == ("semi", "random")
    assert (settings["masks_from"], settings["lam"]) == ("SCG", "1")
    text = wording.supervision_text(started_from())
    assert text == "mask, after box on PASCAL VOC 2012 with the masks of SBD"
    assert started_from().semantic.init == "the run voc_box"


def test_runs_that_start_from_each_other_are_told_and_end():
    sections = given()
    sections["semantic"]["voc_mask"] |= {"init": "voc_box"}
    sections["boxsup"]["voc_box"] |= {"init": "voc_mask"}
    measured = protocol.gather(build(Params, sections, "params.yaml", ""), {}, {})
    assert all(len(m.semantic.before) <= 2 for m in measured)


def test_a_run_like_the_papers_has_no_departure(gathered, paper_rows):
    theirs = markdown.settings_of_row("wu2016/Table 1/13", paper_rows)
    ours = departures.settings(gathered[2])
    assert departures.departures(gathered[2], {k: ours.get(k, v) for k, v in theirs.items()}) == []


def test_the_sample_stands_apart_from_every_number_of_the_papers(text, paper):
    sample = section(text, "Sample (drawn miniature world)")
    ours = {f"{100 * v:.2f}" for values in SCORES.values() for v in values.values() if v == v}
    printed = (
        {f"{100 * v:.2f}" for v in paper["value"]}
        - ours
        - {"50.00", "70.00", "72.00", "15.00", "12.50"}
    )
    assert not printed & set(re.findall(r"\d+\.\d\d", sample))
    assert "40.62" in sample and "30.00" in sample
    for heading in ("The papers' tables", "All evaluations on real data"):
        assert "sample" not in section(text, heading)


def test_the_sample_names_the_rows_that_it_stands_for(text):
    row = cells(section(text, "Sample"), "sample_box | box (BoxSup, scg, top-5, lambda 1)")
    assert row[2:] == [
        "14", "1/8", "3", "4", "72", "all pixels", "1", "70.00", "30.00", "30.00",
        "Dai et al. 2015, Table 2, row 5 (BoxSup)",
    ]  # fmt: skip


def test_background_everywhere_is_shown_for_comparison(text):
    row = cells(section(text, "Sample"), "background everywhere (sample, val)")
    assert row[9:12] == ["75.00", "11.11", "8.33"]


def test_iou_by_category_shows_a_dash_for_an_absent_one(text):
    table = section(text, "Sample").split("IoU by category")[1]
    assert cells(table, "run") == ["run", "background", "ring", "star"]
    assert cells(table, "sample_mask") == ["sample_mask", "50.00", "50.00", "–"]


def test_label_quality_shows_first_lowest_and_last_round(text):
    row = cells(section(text, "Sample").split("### Labels")[1], "sample_box")
    assert row[:5] == ["sample_box", "3", "70.00", "65.12 (epoch 2)", "72.00"]
    assert row[5:] == ["15.00 -> 12.50", "2 -> 1 of 3"]


def test_the_header_states_processor_torch_precision_and_data(text):
    header = text.split("## ")[0]
    assert "a processor, torch 9.9" in header
    assert "bf16 (sample_mask, sample_box, voc_box); fp32 (voc_mask)" in header
    assert "sample: drawn by this project" in header and "voc: PASCAL VOC 2012" in header


def test_figures_and_studies_are_linked(text):
    assert "(figures/sample_mask_overlays.png)" in text
    assert "(studies/seeds.md)" in text
    assert "(sensitivity/found_train.md)" in text
    assert "![found_train](sensitivity/found_train.png)" in text


def test_every_run_has_a_card_with_its_limits(text):
    cards = text.split("## Model cards")[1]
    assert re.findall(r"^### (\w+)$", cards, flags=re.M) == [
        "sample_mask", "sample_box", "voc_mask", "voc_box",
    ]  # fmt: skip
    voc_mask = cards.split("### voc_mask")[1].split("###")[0]
    for part in ("139 by masks, 0 by boxes", "`semantic.voc_mask`", "lr 0.02", "47 images",
                 "mean IoU 60.00", "depth 50 instead of 101", "one training seed"):  # fmt: skip
        assert part in voc_mask
    assert "drawn shapes" in cards.split("### sample_box")[1].split("###")[0]


def test_numbers_of_another_split_are_not_taken_for_this_ones(tables):
    moved = {"sample_mask": evaluation("sample_mask", "sample", [], split="train")}
    (measured,) = protocol.gather(make_params(evaluations=moved), tables, {})
    assert measured.value("mean_iou") is None


def test_tables_without_any_evaluation_say_so(paper, paper_rows):
    params = make_params(evaluations={})
    text = reports.document(
        params, [], {}, {}, reports.Pictures(), paper, paper_rows, bands={}, machine="x", studies=[]
    )
    assert "No active evaluation on real data stands for a row of a paper." in text


@pytest.mark.parametrize("row", ["wu2016/Table 7", "wu2016/Table 77/1", "wu2016/Table 7/99", "x"])
def test_a_row_that_no_paper_has_is_refused_by_name(tables, paper, paper_rows, row):
    params = make_params(evaluations={"sample_mask": evaluation("sample_mask", "sample", [row])})
    with pytest.raises(BadInput, match="evaluations.sample_mask.stands_for.*wu2016/Table 7/"):
        paper_tables.paper_sections(protocol.gather(params, tables, {}), paper, paper_rows)


def test_a_bar_within_a_cell_does_not_end_it():
    assert markdown.markdown_table(["a"], [["x|y"], [None]]).splitlines()[2:] == [
        r"| x\|y |",
        "| – |",
    ]


# --- every kind of dataset ----------------------------------------------------------------------
COCO_BOXES = {"kind": "coco", "year": 2014, "categories": "voc", "others": "background"}
MIXTURE = {"kind": "mixture", "masks": {"kind": "voc2012"}, "split": "train_aug"}
OTHERS = {
    "cityscapes": {"kind": "cityscapes", "instances": "maps"},
    "context": {"kind": "context"},
    "coco2014": COCO_BOXES,
    "mixture": MIXTURE | {"boxes": [COCO_BOXES]},
    "mixture07": MIXTURE | {"boxes": [COCO_BOXES, {"kind": "voc2007"}]},
}


def measured_on(dataset, run=None, **other):
    """An evaluation on one of the other datasets, of a run that learns from `run`'s."""
    trained = RUN | {"init": "nothing", "split": "train"} | (run or {"dataset": dataset})
    section = "boxsup" if "estimator" in trained else "semantic"
    sections = given() | {"semantic": {}, "boxsup": {}, section: {"one": trained}}
    sections["datasets"] = given()["datasets"] | OTHERS
    sections["proposals"] = {f"scg_{name}": scg_of(name) for name in sections["datasets"]}
    sections["evaluations"] = {"one": evaluation("one", dataset, [], **other)}
    (measured,) = protocol.gather(build(Params, sections, "params.yaml", ""), {}, {})
    return measured


@pytest.mark.parametrize(
    ("dataset", "name", "row"),
    [
        ("cityscapes", "cityscapes", "wu2016/Table 7/5"),
        ("context", "context", "wu2016/Table 5/4"),
        ("coco2014", "coco2014", "slides/SharpMask Table (proposals)/1"),
        ("mixture", "voc2012", "dai2015/Table 1/5"),
    ],
)
def test_every_kind_of_dataset_has_the_name_of_the_papers_rows(paper_rows, dataset, name, row):
    assert departures.settings(measured_on(dataset))["dataset"] == name
    assert markdown.settings_of_row(row, paper_rows)["dataset"] == name


@pytest.mark.parametrize(
    ("dataset", "train"),
    [("mixture", "train_aug + COCO"), ("mixture07", "train_aug + COCO + VOC 2007")],
)
def test_a_mixture_is_told_by_what_is_trained_on(paper, paper_rows, dataset, train):
    run = BOXES | {"dataset": dataset, "split": "mixed", "mask_split": "train_aug"}
    measured = measured_on("voc", run)
    row = "dai2015/Table 1/5" if dataset == "mixture" else "dai2015/Table 4/8"
    theirs = markdown.settings_of_row(row, paper_rows)
    assert departures.settings(measured)["train"] == theirs["train"] == train
    assert not any("trained on" in note for note in departures.departures(measured, theirs))
    few = replace(measured, semantic=replace(measured.semantic, images=(139, 120)))
    few = departures.departures(few, theirs)
    assert ("trained on 259 of the 133,869 official images" in few) == (dataset == "mixture")
    assert ("masks of 139 of the 10,582 official images" in few) == (dataset == "mixture")
    (card,) = reports.cards([measured], paper_rows)
    assert "with the masks of SBD, and boxes of COCO 2014" in card
    assert card.count("images for research use only") == 1
    splits = [measured_on(dataset, run | {"split": s}) for s in ("boxes", "train")]
    assert [departures.settings(m)["train"] for m in splits] == [train.split(" + ", 1)[1], "train"]


def test_the_terms_of_cityscapes_stand_on_its_cards(paper_rows):
    measured = measured_on("cityscapes")
    (card,) = reports.cards([measured], paper_rows)
    assert "Cityscapes, fine annotation." in card
    assert "for non-commercial use only" in card and "research use" not in card


def test_many_categories_stand_in_rows():
    measured = measured_on("context")
    numbers = {("iou", name, None): i / 100 for i, name in enumerate(CONTEXT)}
    text = semantic_reports.category_tables([replace(measured, values=numbers)])
    lines = text.splitlines()
    assert lines[2] == "| run | one |" and len(lines) == 2 + 2 + 60
    assert lines[-1] == "| wood | 59.00 |"


# --- three forms of the same numbers ------------------------------------------------------------
def test_parquet_json_and_markdown_agree(tables, gathered, text):
    numbers = json.loads(json.dumps(reports.metrics_json(gathered), allow_nan=False))
    assert set(numbers) == set(SCORES)
    for name, table in tables.items():
        overall = table[table["category"].isna()].set_index("metric")["value"]
        shown = cells(section(text, "Sample") if name.startswith("s") else
                      section(text, "All evaluations"), name)  # fmt: skip
        for metric, column in (("pixel_accuracy", 9), ("mean_accuracy", 10), ("mean_iou", 11)):
            value = overall[metric]
            if np.isnan(value):
                assert metric not in numbers[name] and shown[column] == "–"
            else:
                assert numbers[name][metric] == round(value, 4)
                assert shown[column] == f"{100 * value:.2f}"


def test_json_holds_four_digits_and_no_bare_nan(gathered):
    numbers = reports.metrics_json(gathered)
    assert numbers["sample_mask"]["mean_iou"] == 0.4062
    assert numbers["sample_mask"]["num_images"] == 4
    assert "mean_accuracy" not in numbers["voc_mask"]
    assert "voc_box" not in numbers  # nothing measured


# --- the stage ------------------------------------------------------------------------------------
def write_files(root, *, proposals):
    """A project on disk: four 12x16 images, predictions, histories, choices, metrics."""
    ids = [f"val_{i}" for i in range(4)]
    rng = np.random.default_rng(0)
    rows, maps, objects, stored = [], [], [], []
    (root / "data/raw/sample").mkdir(parents=True)
    label_map = np.zeros((12, 16), np.uint8)
    label_map[2:8, 3:9] = 1
    for i in ids:
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(
            root / f"data/raw/sample/{i}.png"
        )
        same = {
            "image_id": i,
            "source": "voc",
            "path": f"sample/{i}.png",
            "height": 12,
            "width": 16,
        }
        same |= {"has_masks": True, "has_boxes": True}
        rows += [same | {"split": split} for split in ("val", "train_aug")]
        maps.append({"image_id": i, "png": encode_index_png(label_map)})
        box = {"x0": 3, "y0": 2, "x1": 9, "y1": 8}
        objects.append({"image_id": i, "instance": 0, "category": 1, **box, "difficult": False,
                        "crowd": False, "mask_rle": None})  # fmt: skip
        superpixels = np.zeros((12, 16), np.uint16)
        superpixels[3:7, 4:8] = 1
        stored.append(to_row(i, "", "scg", superpixels=superpixels,
            members=np.array([1], np.uint16), offsets=np.array([0, 1], np.int32),
            scores=np.ones(1, np.float32), boxes=np.array([[4, 3, 8, 7]], np.int32),
            areas=np.array([16], np.int32)))  # fmt: skip
    prepared = root / "data/prepared/sample"
    write_table(prepared / "images.parquet", "images", rows)
    write_table(prepared / "instances.parquet", "instances", objects)
    write_table(prepared / "semantic/part-000.parquet", "semantic", maps)
    (prepared / "categories.json").write_text('["background", "ring", "star"]')
    if proposals:
        write_table(root / "data/proposals/scg/sample/part-000.parquet", "proposals", stored)
    for name, values in SCORES.items():
        rows = metric_rows(name, name.split("_")[0], **values)
        write_table(root / f"data/metrics/{name}.parquet", "metrics", rows)
    for name in ("sample_mask", "sample_box"):
        folder = root / f"data/predictions/{name}/semantic"
        folder.mkdir(parents=True)
        for i in ids:
            (folder / f"{i}.png").write_bytes(encode_index_png(label_map))
    losses = history(*((i, i // 10, "loss", 1 / (i + 1)) for i in range(30)))
    write_table(root / "data/models/sample_mask.history.parquet", "history", losses)
    write_table(
        root / "data/models/sample_box.history.parquet", "history", pd.concat([LABELS, losses])
    )
    choices = [{"epoch": e, "image_id": i, "instance": 0, "proposal": p, "rank": 0,
                "overlap_cost": 0.1, "regression_cost": 0.2, "admissible": 1,
                "label": "rectangle" if p < 0 else "candidate",
                "reason": "unfit" if p < 0 else "chosen"}
               for e, p in ((0, -1), (2, 0), (4, 0)) for i in ids]  # fmt: skip
    write_table(root / "data/models/sample_box.choices.parquet", "choices", choices)


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    (root / "reports").mkdir(parents=True)
    for name in ("paper.csv", "paper_rows.csv"):
        (root / "reports" / name).write_bytes((ROOT / "reports" / name).read_bytes())
    return root


def test_the_stage_writes_tables_json_and_every_picture(project):
    write_files(project, proposals=True)
    report(project, make_params())
    text = (project / "reports/tables.md").read_text()
    drawn = sorted(p.name for p in (project / "reports/figures").iterdir())
    assert drawn == [
        "sample_box_curves.png", "sample_box_labels.png", "sample_box_overlays.png",
        "sample_label_quality.png", "sample_mask_curves.png", "sample_mask_overlays.png",
        "sample_val_boundary.png", "sample_val_examples.png",
    ]  # fmt: skip
    assert all(f"(figures/{name})" in text for name in drawn)
    numbers = json.loads((project / "reports/metrics.json").read_text())
    assert numbers["sample_mask"]["mean_iou"] == 0.4062
    assert numbers["sample_mask"] == {name: pytest.approx(value, abs=5e-5)
                                      for name, value in SCORES["sample_mask"].items()}  # fmt: skip
    assert "around the borders between categories / outside it" in text
    assert cells(text.split("### Near")[1], "sample_box")[1:] == ["25.00 / 50.00"] * 2
    assert "3 + 5 training and 4 val images" in text
    assert "(images: 0 by masks, 4 by boxes)" in text
    assert not list((project / "reports").rglob("*.partial"))


def test_labels_are_rebuilt_from_choices_and_proposals(project):
    write_files(project, proposals=True)
    data = Prepared(project, "sample")
    stored = ProposalTable(project / "data/proposals/scg/sample")
    choices = read_table(project / "data/models/sample_box.choices.parquet", "choices")
    first = rebuilt_map(data, "val_0", stored, choices[choices["epoch"] == 0])
    later = rebuilt_map(data, "val_0", stored, choices[choices["epoch"] == 2])
    rectangle, candidate = np.zeros((12, 16), bool), np.zeros((12, 16), bool)
    rectangle[2:8, 3:9], candidate[3:7, 4:8] = True, True
    assert np.array_equal(first == 1, rectangle) and np.array_equal(later == 1, candidate)


def test_the_report_is_written_when_nothing_was_measured(project, capsys):
    report(project, make_params())
    text = (project / "reports/tables.md").read_text()
    assert cells(section(text, "Sample"), "sample_mask")[9:12] == ["–", "–", "–"]
    assert json.loads((project / "reports/metrics.json").read_text()) == {}
    assert "without the images of sample" in capsys.readouterr().err


def test_a_missing_file_costs_its_picture_only(project, capsys):
    write_files(project, proposals=False)
    (project / "data/predictions/sample_mask/semantic/val_2.png").unlink()
    report(project, make_params())
    drawn = {p.name for p in (project / "reports/figures").iterdir()}
    assert drawn == {
        "sample_box_curves.png", "sample_box_overlays.png", "sample_label_quality.png",
        "sample_mask_curves.png", "sample_val_boundary.png",
    }  # fmt: skip
    told = capsys.readouterr().err
    assert "val_2.png" in told and "proposals" in told
    text = (project / "reports/tables.md").read_text()
    assert "sample_mask_overlays" not in text and "### Ex" not in text


def test_only_active_evaluations_are_shown(project):
    write_files(project, proposals=True)
    active = {"sample_mask": given()["evaluations"]["sample_mask"]}
    report(project, make_params(evaluations=active))
    text = (project / "reports/tables.md").read_text()
    assert "sample_box" not in text and "voc" not in text
    assert list(json.loads((project / "reports/metrics.json").read_text())) == ["sample_mask"]


def test_without_the_papers_numbers_the_report_says_where_they_are_from(project):
    (project / "reports/paper.csv").unlink()
    with pytest.raises(BadInput, match="paper.csv: not there"):
        report(project, make_params())


# --- pictures -------------------------------------------------------------------------------------
def test_a_blend_dims_background_colours_categories_and_whitens_ignored():
    image = np.full((1, 3, 3), 100, np.uint8)
    colours = figures.colours_of(("background", "ring"))
    blended = figures.blend(image, np.array([[0, 1, 255]], np.uint8), colours)
    assert blended.tolist() == [[[50, 50, 50], [116, 40, 40], [255, 255, 255]]]


def test_without_a_background_the_first_category_has_a_colour_too():
    image = np.full((1, 3, 3), 100, np.uint8)
    colours = figures.colours_of(("sky", "grass"))
    blended = figures.blend(image, np.array([[0, 1, 255]], np.uint8), colours)
    assert blended.tolist() == [[[116, 40, 40], [40, 116, 40], [255, 255, 255]]]


def test_cityscapes_has_the_colours_that_its_authors_gave_it():
    theirs = {label.trainId: label.color for label in labels if 0 <= label.trainId < 255}
    ours = figures.colours_of(CITYSCAPES)[: len(CITYSCAPES)]
    assert {i: tuple(colour) for i, colour in enumerate(ours.tolist())} == theirs


@pytest.mark.parametrize(
    ("categories", "expected"),
    [(CITYSCAPES, ["road", "sidewalk"]), (VOC, ["aeroplane"])],
    ids=["without background", "with background"],
)
def test_the_legend_names_what_has_a_colour(monkeypatch, tmp_path, categories, expected):
    named = []
    monkeypatch.setattr(Figure, "legend", lambda self, handles, **how: named.extend(handles))
    label_map = np.array([[0, 1, 255]], np.uint8)
    row = ("one", np.zeros((1, 3, 3), np.uint8), [label_map])
    figures.overlays(tmp_path / "a.png", ["image", "truth"], [row], categories)
    assert [patch.get_label() for patch in named] == expected


def test_smoothing_keeps_a_constant_and_the_length():
    assert np.allclose(figures.smooth(np.full(500, 3.0)), 3)
    assert figures.smooth(np.array([1.0, 2.0])).tolist() == [1, 2]


def test_pictures_are_written_whole_and_the_same_each_time(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    label_map = np.zeros((20, 30), np.uint8)
    label_map[5:9] = 1
    rows = [("one", image, [label_map, label_map]), ("two", image[:10], [label_map[:10]] * 2)]
    for name in ("a.png", "b.png"):
        headings = ["image", "truth", "prediction"]
        figures.overlays(tmp_path / "figures" / name, headings, rows, ("background", "ring"))
    figures.curves(
        tmp_path / "c.png",
        "run",
        history((0, 0, "loss", 2.0), (1, 0, "loss", 1.0), (0, 0, "lr", 0.1)),
    )
    lines = {"sample_box": LABELS[:3], "sample_rectangles": LABELS[:1]}
    figures.label_quality(tmp_path / "d.png", "sample", lines)
    a, b = ((tmp_path / "figures" / name).read_bytes() for name in ("a.png", "b.png"))
    assert a == b
    for path in tmp_path.rglob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 100
    assert not list(tmp_path.rglob("*.partial"))


def test_numbers_of_a_model_trained_with_other_parameters_are_not_shown(tmp_path, capsys):
    (tmp_path / "params.yaml").write_text(json.dumps(given()))
    params = make_params()
    lock = {"stages": {"train@sample_mask": {"params": {"params.yaml": {}}}}}
    recorded = lock["stages"]["train@sample_mask"]["params"]["params.yaml"]
    assert is_current(tmp_path, params, "sample_mask")  # no lock: stages run by hand
    recorded["semantic.sample_mask"] = RUN
    (tmp_path / "dvc.lock").write_text(json.dumps(lock))
    assert is_current(tmp_path, params, "sample_mask")
    recorded["semantic.sample_mask"] = RUN | {"lr": 0.5}
    (tmp_path / "dvc.lock").write_text(json.dumps(lock))
    assert not is_current(tmp_path, params, "sample_mask")
    assert "semantic.sample_mask was another when train@sample_mask" in capsys.readouterr().err


def test_the_readme_shows_what_the_committed_report_measured():
    text = (ROOT / "README.md").read_text()
    metrics = json.loads((ROOT / "reports" / "metrics.json").read_text())
    label_maps = {name for name, numbers in metrics.items() if "mAP_r_vol" not in numbers}
    objects = metrics.keys() - label_maps
    tables = {
        "sample table": (label_maps, ["mean_iou"]),
        "objects table": (objects, ["mAP_r@0.5", "mAP_r@0.7", "mAP_r_vol"]),
    }
    for heading, (names, columns) in tables.items():
        table = text.split(f"<!-- {heading} -->")[1].split(f"<!-- end of {heading} -->")[0]
        shown = {}
        for line in re.findall(r"^\| `.*$", table, flags=re.M):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            shown[cells[0].strip("`")] = [float(cell) for cell in cells[-len(columns) :]]
        assert shown.keys() == {name for name in names if name.startswith("sample")}
        for name, percents in shown.items():
            measured = [100 * metrics[name][column] for column in columns]
            assert percents == pytest.approx(measured, abs=0.051), name
