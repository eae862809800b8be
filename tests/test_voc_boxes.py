"""The catalogue of labels from boxes: fair runs, candidates as elsewhere, real images read."""

import importlib.util
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.catalogue import activate, load_catalogue
from pipeline.datasets.form import AnnotatedObject, Sample
from pipeline.datasets.prepared import Prepared
from pipeline.labels import overlap_costs
from pipeline.params import SECTIONS
from pipeline.params_file import load_params
from pipeline.proposals.form import from_membership
from pipeline.stages.boxsup import supervision
from pipeline.stages.fetch import fetch
from pipeline.stages.prepare import prepare
from pipeline.study import seeded, trainings

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "real"
BOXES = load_catalogue(ROOT / "params" / "voc_boxes.yaml")
PAPER = load_catalogue(ROOT / "params" / "dai2015.yaml")
RUNS = sorted(BOXES.boxsup)


def quality():
    """The benchmark's file as a module."""
    spec = importlib.util.spec_from_file_location("quality", ROOT / "benchmarks/label_quality.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the runs ------------------------------------------------------------------------------------
def test_candidates_and_estimators_are_those_of_the_papers_catalogue():
    for section in ("forests", "proposals"):
        for name, entry in getattr(BOXES, section).items():
            assert entry == getattr(PAPER, section)[name]
    paper = PAPER.boxsup["boxsup_top5_voc"].estimator
    rounds = {"lam_start": paper.lam_start, "round_epochs": paper.round_epochs}
    assert replace(BOXES.boxsup["few_top5"].estimator, **rounds) == paper
    assert BOXES.boxsup["few_grabcut"].estimator == PAPER.boxsup["grabcut_voc"].estimator


def test_runs_differ_in_their_labels_alone():
    own = {"proposals", "estimator"}
    first = asdict(BOXES.boxsup[RUNS[0]])
    for name in RUNS:
        run = asdict(BOXES.boxsup[name])
        assert {key for key in run if run[key] != first[key]} <= own
    masks = asdict(BOXES.semantic["few_masks"])
    assert all(masks[key] == first[key] for key in masks)


def test_no_run_with_boxes_sees_a_mask_of_voc():
    for name in RUNS:
        run = BOXES.boxsup[name]
        assert run.mask_split == "none"
        candidates = BOXES.proposals[f"{run.proposals}_voc2012"]
        for forest in {candidates.contours, candidates.ranker} - {"none"}:
            assert BOXES.forests[forest].dataset == "bsds500"


def test_lambda_counts_from_a_quarter_of_the_epochs_on_at_the_start_of_a_round():
    for name in RUNS:
        run = BOXES.boxsup[name]
        if run.estimator.kind == "boxsup":
            assert run.estimator.lam_start == run.epochs // 4
            assert run.estimator.lam_start % run.estimator.round_epochs == 0


def test_the_study_trains_each_run_with_three_seeds():
    entry = BOXES.studies["voc_boxes"]
    params = seeded(BOXES, list(BOXES.groups[entry.group]), entry.seeds)
    assert len(trainings(params)) == len(params.evaluations) == 3 * (len(RUNS) + 1)
    assert {*params.boxsup, *params.semantic} == {e.model for e in params.evaluations.values()}


# --- the images ----------------------------------------------------------------------------------
@pytest.mark.skipif(not (REAL / "VOCdevkit").is_dir(), reason="real images are not here")
def test_a_copy_with_some_images_is_read_and_all_that_are_trained_on_have_boxes(tmp_path, capsys):
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "params.yaml").write_text("".join(f"{name}: {{}}\n" for name in SECTIONS))
    activate(tmp_path, ["voc_boxes/few_rectangles"])
    with (tmp_path / "local.yaml").open("w") as file:
        YAML().dump({"data": {"voc2012": str(REAL / "VOCdevkit")}}, file)
    params = load_params(tmp_path / "params.yaml")
    fetch(tmp_path, params, "voc2012")
    prepare(tmp_path, params, "voc2012")
    data = Prepared(tmp_path, "voc2012")
    assert (len(data.ids("train_aug")), len(data.ids("val"))) == (139, 47)
    assert "15 of 186 images have no boxes" in capsys.readouterr().err
    masked, boxed = supervision(data, params.boxsup["few_rectangles"])
    assert (masked, len(boxed)) == (set(), 139)
    assert "left out" not in capsys.readouterr().err


# --- the benchmark of first labels ---------------------------------------------------------------
def sample_of(boxes, categories, label_map):
    objects = tuple(
        AnnotatedObject(c, b, False, False, None) for b, c in zip(boxes, categories, strict=True)
    )
    return Sample("a", "a.jpg", label_map.shape, "voc", label_map, objects)


def test_an_object_is_alone_if_its_category_is_once_and_the_mask_fits_the_box():
    label_map = np.zeros((10, 20), np.uint8)
    label_map[0:4, 0:4] = 1  # its box fits
    label_map[0:4, 10:20] = 2  # two boxes
    label_map[8:10, 0:2] = 3  # a box elsewhere
    boxes = [(0, 0, 4, 4), (10, 0, 15, 4), (15, 0, 20, 4), (10, 6, 18, 9)]
    found = quality().boxes_of(sample_of(boxes, [1, 2, 2, 3], label_map))
    assert found.alone.tolist() == [0]
    assert (found.masks == (label_map == 1)).all()


def test_what_is_lost_by_the_choice_and_by_the_candidates_worked_by_hand():
    module = quality()
    truth = np.zeros((4, 8), np.uint8)
    truth[:, 0:4] = 7
    truth[3, 0:4] = 255  # not counted
    found = module.boxes_of(sample_of([(0, 0, 4, 4)], [7], truth))
    cells = np.arange(8, dtype=np.uint16).repeat(4).reshape(8, 4).T.copy()  # (4, 8): a column each
    members = np.zeros((3, 8), bool)
    members[0, [0, 3]] = True  # the box, but two columns of four: IoU .5
    members[1, 0:3] = True  # box IoU .75, mask IoU .75
    members[2, 0:2] = True  # box IoU .5: does not fit
    candidates = from_membership(cells, members)
    settings = PAPER.boxsup["boxsup_top5_voc"].estimator
    costs = overlap_costs(candidates, found.boxes)
    _, about = list(module.by_overlap("mcg", candidates, found, settings))[-1]
    assert about["nearest"] == [0.5]
    assert about["five"] == [pytest.approx((0.5 + 0.75 + 0.5) / 3)]
    assert about["fitting"] == about["best"] == [0.75]
    assert about["admissible"] == [int((costs[0] <= 1 - settings.min_box_iou).sum())] == [2]
