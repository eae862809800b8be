"""The catalogue of Dai et al.: every row of the paper that is theirs, and what departs from it."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import departures, markdown, paper_tables, protocol, wording
from pipeline.catalogue import load_catalogue
from pipeline.costs import split_sizes
from pipeline.crf.dense import PUBLISHED
from pipeline.errors import BadInput
from pipeline.params import DenseCrf
from pipeline.params_checks import check_values
from pipeline.params_datasets import MixtureDataset
from pipeline.params_training import BoxSupLabels, BoxSupRun
from pipeline.post_processing import crf_of

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "params" / "dai2015.yaml"
THEIRS = {  # rows of each table that are not of other methods
    "Table 1": {1, 2, 3, 4, 5},
    "Table 2": {1, 2, 4, 5},
    "Table 3": {1, 2, 3},
    "Table 4": {2, 4, 5, 7, 8, 9},
    "Table 5": {4, 5},
    "text 5.1": {1},
}
PLAIN = "DeepLab on VGG-16"
GUARDS = [  # against the collapse of labels
    "lambda 1 instead of 3",
    "lambda counts after 11 epoch(s) instead of 0",
    "only candidates of box IoU >= 0.6 instead of 0",
]


@pytest.fixture(scope="module")
def catalogue():
    return load_catalogue(FILE)


@pytest.fixture(scope="module")
def paper_rows():
    return paper_tables.read_paper(ROOT / "reports/paper_rows.csv", paper_tables.PAPER_ROWS_COLUMNS)


@pytest.fixture(scope="module")
def gathered(catalogue):
    return {m.name: m for m in protocol.gather(catalogue, {}, {})}


def rows_of(names, catalogue):
    found = set()
    for name in names:
        for text in catalogue.evaluations[name].stands_for:
            paper, table, row = text.split("/")
            assert paper == "dai2015"
            found.add((table, int(row)))
    return found


def departs(gathered, paper_rows, name, row):
    return departures.departures(gathered[name], markdown.settings_of_row(row, paper_rows))


# --- every row is there --------------------------------------------------------------------------
def test_the_rows_of_other_methods_are_those_without_settings(paper_rows):
    theirs = paper_rows[(paper_rows["paper"] == "dai2015") & (paper_rows["setting"] == "network")]
    assert set(zip(theirs["table"], theirs["row"], strict=True)) == {
        (table, row) for table, rows in THEIRS.items() for row in rows
    }


def test_every_row_of_the_paper_has_an_evaluation(catalogue):
    wanted = {(table, row) for table, rows in THEIRS.items() for row in rows}
    assert rows_of(catalogue.evaluations, catalogue) == wanted


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_group_stands_for_every_row_of_its_table(catalogue, number):
    table = f"Table {number}"
    found = {row for row in rows_of(catalogue.groups[f"table{number}"], catalogue)}
    assert {row for row in found if row[0] == table} == {(table, row) for row in THEIRS[table]}


def test_every_split_that_is_named_is_published(catalogue):
    for name, entry in catalogue.evaluations.items():
        assert entry.split in split_sizes(catalogue.datasets[entry.dataset]), name
    for name, run in (catalogue.semantic | catalogue.boxsup).items():
        assert run.split in split_sizes(catalogue.datasets[run.dataset]), name


def test_supervision_and_numbers_of_images_are_those_of_the_rows(catalogue, gathered, paper_rows):
    compared = 0
    for name, entry in catalogue.evaluations.items():
        ours = departures.settings(gathered[name])
        sizes = split_sizes(catalogue.datasets[gathered[name].semantic.run.dataset])
        for row in entry.stands_for:
            theirs = markdown.settings_of_row(row, paper_rows)
            assert ours["supervision"] == theirs["supervision"], (name, row)
            if "train_images" in theirs and not gathered[name].semantic.before:
                split = gathered[name].semantic.run.split
                assert sizes[split] == int(theirs["train_images"]), (name, row)
                compared += 1
    assert compared > 15


# --- what departs --------------------------------------------------------------------------------
def test_every_row_of_the_paper_is_tested_with_the_crf_of_its_network(catalogue):
    for name, entry in catalogue.evaluations.items():
        if entry.stands_for:
            assert crf_of(entry.crf) == PUBLISHED["deeplab"], name


def test_boxsup_plus_averages_three_scales_and_nothing_else_does(catalogue, gathered, paper_rows):
    several = {n for n, e in catalogue.evaluations.items() if len(e.views.scales) > 1}
    assert several == {"semi_voc_coco_voc07_plus"}
    plus = catalogue.evaluations["semi_voc_coco_voc07_plus"]
    assert plus.views.scales == (0.8, 1.0, 1.2) and not plus.views.flip
    found = departs(gathered, paper_rows, "semi_voc_coco_voc07_plus", "dai2015/Table 4/9")
    assert found == ["evaluated on the split val_since_2008 instead of test", *GUARDS]


def test_what_learns_from_voc_2007_is_measured_on_images_that_are_not_in_it(catalogue):
    learns = {}
    for name, entry in catalogue.evaluations.items():
        run = (catalogue.semantic | catalogue.boxsup)[entry.model]
        dataset = catalogue.datasets[run.dataset]
        parts = dataset.boxes if isinstance(dataset, MixtureDataset) else ()
        learns[name] = any(part.kind == "voc2007" for part in parts)
    assert {name for name, does in learns.items() if does} == {
        "semi_voc_coco_voc07",
        "semi_voc_coco_voc07_plus",
    }
    measured = {catalogue.evaluations[name].split for name, does in learns.items() if does}
    assert measured == {"val_since_2008"}
    assert split_sizes(catalogue.datasets["voc2012"])["val_since_2008"] == 1449 - 321
    before = catalogue.evaluations["semi_voc_coco_since_2008"]  # row 7, on the same images
    assert (before.split, before.model) == ("val_since_2008", "semi_voc_coco")


def test_every_network_of_a_table_is_the_papers_but_in_the_group_of_fcrn(catalogue):
    models = {n: catalogue.evaluations[n].model for n in catalogue.evaluations}
    runs = catalogue.semantic | catalogue.boxsup
    others = {n for n, model in models.items() if runs[model].network.kind != "deeplab"}
    assert others == set(catalogue.groups["fcrn50"])
    assert {runs[models[name]].network.kind for name in others} == {"fcrn"}
    assert {runs[models[name]].init for name in others} == {"imagenet_resnet50"}


def test_no_label_step_asks_a_last_layer_that_is_still_random(catalogue):
    starts = {
        name: run.estimator.lam_start
        for name, run in catalogue.boxsup.items()
        if isinstance(run.estimator, BoxSupLabels)
    }
    assert len(starts) == 11 and min(starts.values()) == 1


def test_masks_depart_from_the_paper_by_nothing(gathered, paper_rows):
    assert departs(gathered, paper_rows, "boxsup_mask_voc", "dai2015/Table 1/1") == []


def test_the_literal_run_departs_by_the_first_label_step_only(gathered, paper_rows):
    found = departs(gathered, paper_rows, "boxsup_top5_literal_voc", "dai2015/Table 2/5")
    assert found == ["lambda counts after 1 epoch(s) instead of 0"]


def test_the_runs_on_fcrn_depart_by_their_network_and_as_those_on_deeplab(gathered, paper_rows):
    same = {"mask": "boxsup_mask_voc", "boxsup": "boxsup_top5_voc", "semi": "semi_voc"}
    for number, (kind, name) in enumerate(same.items(), 1):
        row = f"dai2015/Table 1/{number}"
        assert departs(gathered, paper_rows, f"fcrn50_{kind}_voc", row) == [
            f"network FCRN instead of {PLAIN}",
            *departs(gathered, paper_rows, name, row),
        ]


def test_masks_of_coco_come_before_those_of_voc(gathered, paper_rows):
    found = departs(gathered, paper_rows, "boxsup_mask_coco_voc", "dai2015/Table 1/4")
    assert found == [
        "trained on the split COCO, then train_aug instead of train_aug + COCO",
    ]
    text = wording.supervision_text(gathered["boxsup_mask_coco_voc"])
    assert text == "mask, after mask on COCO 2014"


def test_context_is_fine_tuned_from_boxes_of_all_80_categories(catalogue, gathered, paper_rows):
    fine, start = catalogue.semantic["boxsup_context"], catalogue.boxsup["boxsup_coco"]
    assert fine.init == "boxsup_coco" and isinstance(start, BoxSupRun)
    assert start.mask_split == "none"
    assert catalogue.datasets[start.dataset].categories == "coco"
    assert split_sizes(catalogue.datasets[start.dataset])[start.split] == 123287
    assert split_sizes(catalogue.datasets[fine.dataset])[fine.split] == 4998
    found = departs(gathered, paper_rows, "boxsup_context", "dai2015/Table 5/5")
    assert found == [f"network {PLAIN} instead of VGG-16 FCN", *GUARDS]
    text = wording.supervision_text(gathered["boxsup_context"])
    assert text == "mask, after box on COCO 2014"


# --- hyper-parameters ----------------------------------------------------------------------------
def test_hyper_parameters_are_compared_on_the_held_out_images_and_stand_for_nothing(catalogue):
    chosen = [catalogue.evaluations[name] for name in catalogue.groups["held_out"]]
    assert {entry.split for entry in chosen} == {"held_out"}
    assert not any(entry.stands_for for entry in chosen)
    assert split_sizes(catalogue.datasets["voc2012"])["held_out"] == 100
    tried = [crf_of(entry.crf) for entry in chosen if isinstance(entry.crf, DenseCrf)]
    assert {PUBLISHED[n] for n in ("deeplab", "deeplab_largefov", "deeplab_v2_vgg")} == set(tried)
    assert "none" in {entry.crf for entry in chosen}
    others = {e.split for n, e in catalogue.evaluations.items() if n[:8] != "held_out"}
    assert others == {"val", "val_since_2008"}


def test_a_label_step_never_asks_a_layer_drawn_at_random(catalogue):
    run = catalogue.boxsup["boxsup_top5_voc"]
    early = replace(run, estimator=replace(run.estimator, lam_start=0))
    with pytest.raises(BadInput, match=r"boxsup_top5_voc\.estimator\.lam_start is 0.*at least 1"):
        check_values(replace(catalogue, boxsup=catalogue.boxsup | {"boxsup_top5_voc": early}))
    for allowed in (
        replace(early, init="boxsup_mask_voc"),  # has learnt
        replace(early, estimator=replace(early.estimator, lam=0.0)),  # is not asked
    ):
        check_values(replace(catalogue, boxsup=catalogue.boxsup | {"boxsup_top5_voc": allowed}))
