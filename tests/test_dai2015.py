"""The catalogue of Dai et al.: every row of the paper that is theirs, and what departs from it."""

from pathlib import Path

import pytest

from pipeline import protocol, reports
from pipeline.catalogue import load_catalogue
from pipeline.costs import split_sizes
from pipeline.crf.dense import PUBLISHED
from pipeline.params import BoxSupRun, DenseCrf
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
ON_TEST_ONLY = {("Table 4", 8)}  # learns from VOC 2007, and so from images of val


@pytest.fixture(scope="module")
def catalogue():
    return load_catalogue(FILE)


@pytest.fixture(scope="module")
def paper_rows():
    return reports.read_paper(ROOT / "reports/paper_rows.csv", reports.PAPER_ROWS_COLUMNS)


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


def departures(gathered, paper_rows, name, row):
    return protocol.departures(gathered[name], reports.settings_of_row(row, paper_rows))


# --- every row is there --------------------------------------------------------------------------
def test_the_rows_of_other_methods_are_those_without_settings(paper_rows):
    theirs = paper_rows[(paper_rows["paper"] == "dai2015") & (paper_rows["setting"] == "network")]
    assert set(zip(theirs["table"], theirs["row"], strict=True)) == {
        (table, row) for table, rows in THEIRS.items() for row in rows
    }


def test_every_row_of_the_paper_has_an_evaluation(catalogue):
    wanted = {(table, row) for table, rows in THEIRS.items() for row in rows}
    assert rows_of(catalogue.evaluations, catalogue) == wanted - ON_TEST_ONLY


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_group_stands_for_every_row_of_its_table(catalogue, number):
    table = f"Table {number}"
    found = {row for row in rows_of(catalogue.groups[f"table{number}"], catalogue)}
    assert {row for row in found if row[0] == table} == {
        (table, row) for row in THEIRS[table] if (table, row) not in ON_TEST_ONLY
    }


def test_every_split_that_is_named_is_published(catalogue):
    for name, entry in catalogue.evaluations.items():
        assert entry.split in split_sizes(catalogue.datasets[entry.dataset]), name
    for name, run in (catalogue.semantic | catalogue.boxsup).items():
        assert run.split in split_sizes(catalogue.datasets[run.dataset]), name


def test_supervision_and_numbers_of_images_are_those_of_the_rows(catalogue, gathered, paper_rows):
    compared = 0
    for name, entry in catalogue.evaluations.items():
        ours = protocol.settings(gathered[name])
        sizes = split_sizes(catalogue.datasets[gathered[name].run.dataset])
        for row in entry.stands_for:
            theirs = reports.settings_of_row(row, paper_rows)
            assert ours["supervision"] == theirs["supervision"], (name, row)
            if "train_images" in theirs and not gathered[name].before:
                assert sizes[gathered[name].run.split] == int(theirs["train_images"]), (name, row)
                compared += 1
    assert compared > 15


# --- what departs --------------------------------------------------------------------------------
def test_every_row_of_the_paper_is_tested_with_the_crf_of_its_network(catalogue):
    for name, entry in catalogue.evaluations.items():
        if entry.stands_for:
            assert crf_of(entry.crf) == PUBLISHED["deeplab"], name


def test_boxsup_plus_averages_three_scales_and_nothing_else_does(catalogue, gathered, paper_rows):
    several = {n for n, e in catalogue.evaluations.items() if len(e.views.scales) > 1}
    assert several == {"semi_voc_coco_plus"}
    plus = catalogue.evaluations["semi_voc_coco_plus"]
    assert plus.views.scales == (0.8, 1.0, 1.2) and not plus.views.flip
    found = departures(gathered, paper_rows, "semi_voc_coco_plus", "dai2015/Table 4/9")
    assert not any("views" in note or "CRF" in note for note in found)
    assert "trained on the split train_aug + COCO instead of train_aug + COCO + VOC 2007" in found
    assert "evaluated on the split val instead of test" in found


def test_the_literal_run_departs_by_its_network_and_the_first_label_step_only(gathered, paper_rows):
    found = departures(gathered, paper_rows, "boxsup_top5_literal_voc", "dai2015/Table 2/5")
    assert found == [
        "network FCRN instead of DeepLab on VGG-16",
        "lambda counts after 1 epoch(s) instead of 0",
    ]


def test_masks_of_coco_come_before_those_of_voc(gathered, paper_rows):
    found = departures(gathered, paper_rows, "boxsup_mask_coco_voc", "dai2015/Table 1/4")
    assert found == [
        "trained on the split COCO, then train_aug instead of train_aug + COCO",
        "network FCRN instead of DeepLab on VGG-16",
    ]
    text = protocol.supervision_text(gathered["boxsup_mask_coco_voc"])
    assert text == "mask, after mask on COCO 2014"


def test_context_is_fine_tuned_from_boxes_of_all_80_categories(catalogue, gathered, paper_rows):
    fine, start = catalogue.semantic["boxsup_context"], catalogue.boxsup["boxsup_coco"]
    assert fine.init == "boxsup_coco" and isinstance(start, BoxSupRun)
    assert start.mask_split == "none"
    assert catalogue.datasets[start.dataset].categories == "coco"
    assert split_sizes(catalogue.datasets[start.dataset])[start.split] == 123287
    assert split_sizes(catalogue.datasets[fine.dataset])[fine.split] == 4998
    found = departures(gathered, paper_rows, "boxsup_context", "dai2015/Table 5/5")
    assert found == [
        "network FCRN instead of VGG-16 FCN",
        "lambda 1 instead of 3",
        "lambda counts after 11 epoch(s) instead of 0",
        "only candidates of box IoU >= 0.6 instead of 0",
    ]
    text = protocol.supervision_text(gathered["boxsup_context"])
    assert text == "mask, after box on COCO 2014"


def test_one_anchor_and_its_weights_change_the_network_of_every_row(tmp_path, paper_rows):
    text = FILE.read_text(encoding="utf-8")
    for old, new in (
        ("<<: *fcrn50\n", "<<: *deeplab\n"),
        (
            "imagenet_resnet50: {kind: imagenet, depth: 50}",
            "imagenet_vgg16: {kind: imagenet, depth: 16}",
        ),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    changed = tmp_path / "dai2015.yaml"
    changed.write_text(text, encoding="utf-8")
    catalogue = load_catalogue(changed)
    networks = {run.network.kind for run in (catalogue.semantic | catalogue.boxsup).values()}
    assert networks == {"deeplab"}
    gathered = {m.name: m for m in protocol.gather(catalogue, {}, {})}
    assert departures(gathered, paper_rows, "boxsup_mask_voc", "dai2015/Table 1/1") == []


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
    assert others == {"val"}
