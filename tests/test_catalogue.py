import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import yaml_edit
from pipeline.catalogue import (
    SECTIONS,
    STAGES,
    WITHOUT_RUNS,
    activate,
    deactivate,
    dry_run,
    load_catalogue,
    needs,
    parse_overrides,
    with_needs,
)
from pipeline.costs import (
    bytes_to_fetch,
    multiply_adds_per_pixel,
    num_categories,
    num_outputs,
    split_sizes,
    training_flop,
)
from pipeline.errors import BadInput
from pipeline.params_datasets import Dataset
from pipeline.params_file import build, load_params, read_yaml
from pipeline.params_networks import Fcrn

FILES = ("dai2015", "sample", "streets", "wu2016")
ROOT = Path(__file__).resolve().parents[1]

PARAMS = """\
# What stands here stays.
datasets:
  sample: {kind: sample, train: 4,   extra: 4, more: 0, val: 2}  # odd   spacing stays

forests: {}

proposals:
  none_sample:
    {method: none, dataset: sample, contours: none, ranker: none, algorithm: {kind: none}}

weights:
  none: {kind: none}
  sample_pretrained:
    {kind: crops, depth: 14, crops: 8, size: 48, batch: 2, steps: 1, lr: 0.1, seed: 0,
     precision: bf16, threads: 1}   # over two lines

semantic: {}  # none yet

boxsup: {}

instance: {}

evaluations: {}
"""


@pytest.fixture
def root(tmp_path):
    """A project folder with the catalogue and a params.yaml of its own."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


def text_of(root):
    return (root / "params.yaml").read_text()


# --- activate ----------------------------------------------------------------------------------
def test_brings_in_all_that_an_evaluation_needs(root):
    names = activate(root, ["wu2016/fcrn101_s8_k5_d12_b512_voc"])
    assert names == ["fcrn101_s8_k5_d12_b512_voc"]
    params = load_params(root / "params.yaml")
    assert set(params.datasets) == {"sample", "voc2012"}
    assert set(params.weights) == {"none", "sample_pretrained", "imagenet_resnet101"}
    assert set(params.semantic) == set(params.evaluations) == {"fcrn101_s8_k5_d12_b512_voc"}
    assert params.semantic["fcrn101_s8_k5_d12_b512_voc"].bootstrapping.keep == 512


def test_a_group_brings_in_what_the_catalogue_says(root):
    names = activate(root, ["sample/all", "wu2016/table7_voc", "dai2015/table2"])
    ours = load_params(root / "params.yaml")
    assert sorted(ours.evaluations) == sorted(names)
    for file in FILES:
        theirs = load_catalogue(ROOT / "params" / f"{file}.yaml")
        for section in ("forests", "proposals", "semantic", "boxsup", "evaluations"):
            for name, entry in getattr(ours, section).items():
                assert getattr(theirs, section).get(name, entry) == entry


@pytest.mark.parametrize("file", FILES)
def test_every_entry_of_the_catalogue_can_be_active(root, file):
    content = read_yaml(ROOT / "params" / f"{file}.yaml")
    (root / "params.yaml").write_text("".join(f"{section}: {{}}\n\n" for section in SECTIONS))
    grouped = {name for names in content["groups"].values() for name in names}
    names = [*content["groups"], *(content["evaluations"].keys() - grouped)]
    names += [name for section in WITHOUT_RUNS for name in content[section]]
    activate(root, [f"{file}/{name}" for name in names])
    active = read_yaml(root / "params.yaml")
    load_params(root / "params.yaml")
    for section in SECTIONS:  # none is left out, though weights.none stands for nothing but itself
        unneeded = {"none"} if section == "weights" else set()
        assert set(content[section]) - set(active[section]) <= unneeded
        assert all(active[section][name] == content[section][name] for name in active[section])


def test_brings_in_a_dataset_that_no_run_asks_for(root, capsys):
    assert activate(root, ["dai2015/voc_coco_voc07_boxes"]) == []
    assert "added datasets.voc_coco_voc07_boxes" in capsys.readouterr().out
    params = load_params(root / "params.yaml")
    assert set(params.datasets) == {"sample", "voc_coco_voc07_boxes"}
    assert [part.kind for part in params.datasets["voc_coco_voc07_boxes"].boxes] == [
        "coco",
        "voc2007",
    ]
    assert not params.evaluations


def test_proposals_bring_in_their_forests_and_take_them_out_again(root):
    before = text_of(root)
    assert activate(root, ["dai2015/mcg_voc_voc2012"]) == []
    params = load_params(root / "params.yaml")
    assert set(params.forests) == {"bsds_contours", "voc_ranking"}
    assert set(params.proposals) == {"none_sample", "mcg_voc_voc2012"}
    assert set(params.datasets) == {"sample", "bsds500", "voc2012"}
    with pytest.raises(BadInput, match="what else is active needs dai2015/bsds_contours"):
        deactivate(root, ["dai2015/bsds_contours"])
    deactivate(root, ["dai2015/mcg_voc_voc2012"])
    assert text_of(root) == before


def test_pictures_of_photographs_stay_out_of_git():
    names = []
    for file in FILES:
        catalogue = load_catalogue(ROOT / "params" / f"{file}.yaml")
        drawn = {n for n, entry in catalogue.datasets.items() if entry.kind == "sample"}
        names += [n for n, e in catalogue.evaluations.items() if e.dataset not in drawn]
        names += [n for n, run in catalogue.boxsup.items() if run.dataset not in drawn]
    pictures = {f"reports/figures/{n}_{what}.png" for n in names for what in ("overlays", "labels")}
    done = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=ROOT,
        input="\n".join(pictures),
        capture_output=True,
        text=True,
    )
    assert len(pictures) > 50 and set(done.stdout.split()) == pictures


def test_writes_anchors_and_merge_keys_out_and_keeps_comments(root):
    activate(root, ["dai2015/boxsup_top1_voc"])
    text = text_of(root)
    assert "&" not in text and "*" not in text and "<<" not in text
    assert "    lr: 0.001  # Dai2015 4.3\n" in text  # from what is merged in
    assert "      top_k: 1  # Dai2015 Table 2: without sampling\n" in text  # over what is merged in
    assert "top_k: 5" not in text
    assert '    bootstrapping: {kind: "off"}\n' in text


def test_keeps_every_other_byte(root):
    activate(root, ["wu2016/table7_voc", "dai2015/semi_voc"])
    lines = text_of(root).splitlines()
    old = [line for line in PARAMS.splitlines() if "{}" not in line or "instance" in line]
    remaining = iter(lines)
    assert all(line in remaining for line in old)  # in the same order
    assert "semantic:  # none yet" in lines


def test_twice_changes_nothing_the_second_time(root):
    activate(root, ["wu2016/table7_voc"])
    before = text_of(root)
    stamp = (root / "params.yaml").stat().st_mtime_ns
    assert len(activate(root, ["wu2016/table7_voc"])) == 4
    assert text_of(root) == before
    assert (root / "params.yaml").stat().st_mtime_ns == stamp


def test_leaves_an_edited_entry_as_it_is(root, capsys):
    activate(root, ["sample/sample_mask_s8"])
    edited = text_of(root).replace("    epochs: 16 ", "    epochs: 3 ")
    assert edited != text_of(root)
    (root / "params.yaml").write_text(edited)
    activate(root, ["sample/sample_mask_s8", "sample/sample_mask_s8_multiview"])
    assert load_params(root / "params.yaml").semantic["sample_mask_s8"].epochs == 3
    assert "kept semantic.sample_mask_s8, which differs from sample.yaml" in capsys.readouterr().out


def test_does_not_bring_back_what_an_edited_run_no_longer_needs(root):
    activate(root, ["dai2015/boxsup_mask_voc"])
    text = text_of(root).replace("init: imagenet_vgg16", "init: none")
    (root / "params.yaml").write_text(text.replace("  imagenet_vgg16: {", "  unused: {"))
    activate(root, ["dai2015/boxsup_mask_voc"])
    assert "imagenet_vgg16" not in load_params(root / "params.yaml").weights


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table1", "write FILE/NAME"),
        ("nothing/table1", "one of dai2015, objects, sample, streets, voc_boxes, wu2016"),
        ("wu2016/nothing", "no 'nothing' in it; there are: "),
        ("wu2016/imagenet_resnet50", "no 'imagenet_resnet50' in it"),
    ],
)
def test_says_what_names_there_are(root, name, message):
    with pytest.raises(BadInput, match=message):
        activate(root, [name])
    assert text_of(root) == PARAMS


# --- overrides ---------------------------------------------------------------------------------
def test_overrides_change_what_was_activated(root):
    overrides = {
        "semantic.sample_mask_s8.lr": 0.5,
        "semantic.sample_mask_s8.bootstrapping": {"kind": "topk", "keep": 9, "scope": "crop"},
        "semantic.sample_mask_s8.augmentation.crop": (64, 64),
        "datasets.sample.val": 7,
    }
    activate(root, ["sample/sample_mask_s8"], overrides)
    params = load_params(root / "params.yaml")
    run = params.semantic["sample_mask_s8"]
    assert (run.lr, run.bootstrapping.keep, run.augmentation.crop) == (0.5, 9, (64, 64))
    assert params.datasets["sample"].val == 7
    assert "    lr: 0.5  # trial: better than 0.05\n" in text_of(root)
    assert "val: 7}  # odd   spacing stays\n" in text_of(root)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("semantic.sample_mask_s8.rate", 0.1, "there is no semantic.sample_mask_s8.rate; known"),
        ("semantic.other.lr", 0.1, "there is no semantic.other"),
        ("semantic.sample_mask_s8.lr.x", 0.1, "there is no semantic.sample_mask_s8.lr.x"),
        ("semantic.sample_mask_s8", {}, "name the section, the entry and the key"),
        ("semantic.sample_mask_s8.lr", "fast", "semantic.sample_mask_s8.lr is 'fast'"),
        ("semantic.sample_mask_s8.lr", None, "semantic.sample_mask_s8.lr is null"),
        ("semantic.sample_mask_s8.lr", float("inf"), "semantic.sample_mask_s8.lr is"),
        ("semantic.sample_mask_s8.batch", 0, "semantic.sample_mask_s8.batch is 0"),
        ("evaluations.sample_mask_s8.model", "x", "evaluations.sample_mask_s8.model is 'x'"),
    ],
)
def test_writes_nothing_when_an_override_is_wrong(root, key, value, message):
    with pytest.raises(BadInput) as error:
        activate(root, ["sample/sample_mask_s8"], {key: value})
    assert message in str(error.value)
    assert text_of(root) == PARAMS
    assert not list(root.glob(".params*"))


def test_reads_overrides_of_the_command_line_as_yaml():
    given = ["semantic.x.lr=1e-3", "semantic.x.batch_norm=frozen", "a.b.c={kind: off, n: [1, 2]}"]
    assert parse_overrides(given) == {
        "semantic.x.lr": 0.001,
        "semantic.x.batch_norm": "frozen",
        "a.b.c": {"kind": "off", "n": [1, 2]},
    }
    for wrong in ("semantic.x.lr", "=1", "a.b.c=", "a.b.c=[1"):
        with pytest.raises(BadInput):
            parse_overrides([wrong])


# --- deactivate --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["sample/all", "wu2016/table1", "dai2015/table2"])
def test_deactivate_undoes_activate_to_the_byte(root, name):
    start, end = PARAMS.index("proposals:"), PARAMS.index("\nweights")
    kept = PARAMS[:start] + "proposals: {}  # none\n" + PARAMS[end:]
    (root / "params.yaml").write_text(kept)
    activate(root, ["sample/sample_mask_s8"])
    before = text_of(root)
    activate(root, [name])
    assert text_of(root) != before
    wanted = load_params(root / "params.yaml").evaluations
    deactivate(root, [e for e in wanted if e != "sample_mask_s8"])
    assert text_of(root) == before


def test_deactivate_keeps_what_others_need(root):
    activate(root, ["wu2016/fcrn101_s8_k5_d12_voc", "wu2016/fcrn50_s8_k3_d6_voc", "sample/all"])
    removed = deactivate(root, ["wu2016/fcrn101_s8_k5_d12_voc"])
    assert removed == [
        ("weights", "imagenet_resnet101"),
        ("semantic", "fcrn101_s8_k5_d12_voc"),
        ("evaluations", "fcrn101_s8_k5_d12_voc"),
    ]
    removed = deactivate(root, ["sample_mask_s8"])  # multiview tests the same model
    assert removed == [("evaluations", "sample_mask_s8")]


def test_deactivate_takes_out_a_dataset_that_nothing_needs(root):
    activate(root, ["dai2015/voc2007", "wu2016/table5"])
    assert deactivate(root, ["dai2015/voc2007"]) == [("datasets", "voc2007")]
    before = text_of(root)
    with pytest.raises(BadInput, match="what else is active needs wu2016/context; it stays"):
        deactivate(root, ["wu2016/context"])
    assert text_of(root) == before


def test_deactivate_takes_an_entrys_own_comments_and_no_others(root):
    activate(root, ["sample/sample_mask_s8", "sample/sample_mask_s16"])
    text = text_of(root)
    text = text.replace(
        "  sample_mask_s16:\n    dataset", "  # the coarse one\n  sample_mask_s16:\n    dataset"
    )
    text = text.replace("boxsup: {}", "# about boxes\nboxsup: {}")
    (root / "params.yaml").write_text(text)
    deactivate(root, ["sample_mask_s16"])
    assert "coarse" not in text_of(root)
    assert "# about boxes\nboxsup: {}" in text_of(root)


def test_deactivate_refuses_what_is_not_active(root):
    for name in ("sample_mask_s8", "sample/all"):
        with pytest.raises(BadInput, match="not active"):
            deactivate(root, [name])
    assert text_of(root) == PARAMS


def test_refuses_a_layout_that_it_cannot_change_line_by_line(root):
    text = PARAMS.replace("weights:\n", "weights: {").replace(
        "  none: {kind: none}\n", "none: {kind: none}}\n"
    )
    start = text.index("  sample_pretrained")
    text = text[:start] + text[text.index("semantic") :]
    (root / "params.yaml").write_text(text)
    with pytest.raises(BadInput, match="weights stands in braces"):
        activate(root, ["wu2016/fcrn50_s8_k3_d6_voc"])
    assert text_of(root) == text


# --- at the same time --------------------------------------------------------------------------
def test_activations_at_the_same_time_do_not_lose_one_another(root):
    # Each opens the lock file for itself, so threads keep one another out as processes do.
    names = ["wu2016/table2_val", "dai2015/table1_voc", "dai2015/grabcut_voc", "sample/sample_semi"]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: activate(root, [name]), names))
    params = load_params(root / "params.yaml")
    assert len(params.evaluations) == 2 + 3 + 1 + 1


# --- dry run -----------------------------------------------------------------------------------
def test_dry_run_lists_the_new_stages_and_changes_nothing(root):
    text = dry_run(root, ["wu2016/table7_voc"], {"semantic.fcrn101_s8_k5_d12_voc.seed": 5})
    assert text_of(root) == PARAMS
    # fetch, prepare; weights; four runs with train, predict and evaluate
    assert "stages: 15 new" in text
    assert "train@fcrn101_s8_k5_d12_b1024_voc" in text
    assert "GPU-hours: about" in text
    assert "GPU-hours: not estimated for sample_mask_s8" in dry_run(root, ["sample/sample_mask_s8"])


def test_stages_are_those_of_dvc_yaml():
    graph = read_yaml(ROOT / "dvc.yaml")["stages"]
    for section, stages in STAGES.items():
        looped = [
            name for name, stage in graph.items() if stage.get("foreach") == f"${{{section}}}"
        ]
        assert looped == list(stages)


def test_arithmetic_of_training_agrees_with_a_count_of_the_layers():
    # Forward and backward of one 320 x 320 crop, counted layer by layer elsewhere, GFLOP.
    counted = {(50, 16): 78, (50, 8): 243, (101, 16): 124, (101, 8): 425, (152, 8): 575}
    for (depth, stride), gflop in counted.items():
        network = Fcrn("fcrn", depth, stride, 5, 12)
        ours = 6 * multiply_adds_per_pixel(network, num_categories=21) * 320 * 320 / 1e9
        assert ours == pytest.approx(gflop, rel=0.01)


def test_training_arithmetic_grows_with_images_and_epochs():
    catalogue = load_catalogue(ROOT / "params" / "wu2016.yaml")
    run = catalogue.semantic["fcrn50_s8_k3_d6_voc"]
    per_pixel = multiply_adds_per_pixel(run.network, num_categories=21)
    assert training_flop(catalogue, run) == 6 * per_pixel * 504 * 504 * 10582 * 64


def test_costs_of_cityscapes_by_hand(root):
    text = dry_run(root, ["wu2016/fcrn152_s8_k5_d12_cityscapes"])
    # 575 GFLOP for 320 x 320 and 21 categories, counted elsewhere; two categories are 1 of it
    per_crop = (575e9 - 6 * 2 * 25 * 2048 / 64 * 320**2) * (504 / 320) ** 2
    flop = per_crop * 2975 * 200
    assert f"{flop / 1e18:.2f} EFLOP" in text and "0.85 EFLOP" in text
    assert f"GPU-hours: about {flop / 100e12 / 3600:.1f}" in text
    # gtFine 0.25 GB and leftImg8bit 11.59 GB; ResNet-152 twice, 58 million numbers of 4 bytes
    assert "downloads 0.0, behind a login 11.8, proposals 0.0, models 0.5" in text


def test_costs_of_instances_by_hand(root):
    text = dry_run(root, ["wu2016/instances101_b512_weighted_sbd"])
    # fetch, prepare; weights; a semantic and a localisation network; predict and evaluate
    assert "stages: 7 new" in text and "localize@boxes101_b512_weighted_sbd" in text
    # 425 GFLOP for 320 x 320 and 21 outputs, counted elsewhere; the other ends in 4 for each of 20
    semantic = 425e9
    boxes = semantic + 6 * (80 - 21) * 25 * 2048 / 64 * 320**2
    flop = (semantic + boxes) * (504 / 320) ** 2 * 5623 * 64
    catalogue = load_catalogue(ROOT / "params" / "wu2016.yaml")
    runs = (
        catalogue.semantic["fcrn101_sbd"],
        catalogue.instance["boxes101_b512_weighted_sbd"],
    )
    ours = sum(training_flop(catalogue, run) or 0 for run in runs)
    assert ours == pytest.approx(flop, rel=0.01)
    assert f"GPU-hours: about {ours / 100e12 / 3600:.1f}" in text
    assert f"{ours / 1e18:.2f} EFLOP" in text
    # SBD; ResNet-101 three times: as it starts, and in either network
    assert f"downloads {1_419_539_633 / 1e9:.1f}," in text and "models 0.5;" in text


def test_outputs_of_localisation_networks_are_four_for_each_category_with_objects():
    catalogue = load_catalogue(ROOT / "params" / "wu2016.yaml")
    run = catalogue.instance["boxes101_b512_weighted_sbd"]
    assert num_outputs(catalogue, run) == 4 * 20
    assert num_outputs(catalogue, replace(run, dataset="cityscapes")) == 4 * 8
    assert num_outputs(catalogue, catalogue.semantic["fcrn101_sbd"]) == 21
    mine = build(Dataset, {"kind": "folder", "val_fraction": 0.2, "seed": 0}, "p", "d")
    with_mine = replace(catalogue, datasets=catalogue.datasets | {"mine": mine})
    assert num_outputs(with_mine, replace(run, dataset="mine")) is None
    assert training_flop(with_mine, replace(run, dataset="mine")) is None


def test_the_row_that_starts_from_coco_downloads_coco(root):
    text = dry_run(root, ["wu2016/instances101_b512_weighted_coco_sbd"])
    coco = 252_872_794 + 6_645_013_297 + 13_510_573_713
    assert f"downloads {(coco + 1_419_539_633) / 1e9:.1f}," in text
    for stage in ("fetch@coco_voc", "train@fcrn101_coco", "train@fcrn101_coco_sbd"):
        assert stage in text.splitlines()
    assert "predict@fcrn101_coco" not in text  # it is a start only


def test_an_oracle_and_a_ceiling_bring_in_no_semantic_network(root):
    activate(root, ["wu2016/oracle_sbd"])
    params = load_params(root / "params.yaml")
    assert (set(params.semantic), set(params.instance)) == (set(), {"boxes101_b512_weighted_sbd"})
    activate(root, ["wu2016/ceiling_sbd"])
    assert text_of(root).count("kind: boxes") == 2
    assert deactivate(root, ["oracle_sbd"]) == [
        ("weights", "imagenet_resnet101"),
        ("instance", "boxes101_b512_weighted_sbd"),
        ("evaluations", "oracle_sbd"),
    ]
    params = load_params(root / "params.yaml")
    assert not params.semantic and not params.instance and "none" in params.weights
    deactivate(root, ["wu2016/ceiling_sbd"])
    params = load_params(root / "params.yaml")
    assert set(params.datasets) == {"sample"} and not params.evaluations


def test_a_localisation_network_stays_while_an_evaluation_needs_it(root):
    activate(root, ["wu2016/table6"])
    deactivate(root, ["instances101_b512_weighted_sbd"])
    params = load_params(root / "params.yaml")
    assert {"fcrn101_sbd", "boxes101_b512_weighted_sbd"} <= {*params.semantic, *params.instance}
    removed = deactivate(root, ["instances50_sbd"])
    assert removed == [("instance", "boxes50_sbd"), ("evaluations", "instances50_sbd")]
    entry = ("evaluations", "instances101_b512_weighted_coco_sbd")
    assert {section for section, _ in needs(params, entry)} == {"datasets", "semantic", "instance"}
    assert with_needs(params, [entry]) == {
        entry,
        ("datasets", "sbd"),
        ("datasets", "coco_voc"),
        ("weights", "imagenet_resnet101"),
        ("semantic", "fcrn101_coco_sbd"),
        ("semantic", "fcrn101_coco"),
        ("instance", "boxes101_b512_weighted_sbd"),
    }


def test_what_two_datasets_share_is_downloaded_once(root):
    activate(root, ["dai2015/voc2012"])
    params = load_params(root / "params.yaml")
    alone, _ = bytes_to_fetch(params, {"voc2012"})
    assert alone == 1_999_639_040 + 1_419_539_633
    activate(root, ["dai2015/semi_voc_coco", "dai2015/coco2014"])
    params = load_params(root / "params.yaml")
    coco = 252_872_794 + 6_645_013_297 + 13_510_573_713
    assert bytes_to_fetch(params, {"voc_coco_boxes"}) == (0, 0)  # both parts are there
    assert bytes_to_fetch(params, {"voc_coco_boxes", "coco2014"}) == (coco, 0)
    assert bytes_to_fetch(params, set(params.datasets)) == (alone + coco, 0)


COCO = {"kind": "coco", "others": "ignore"}


@pytest.mark.parametrize(
    ("entry", "split", "images", "categories"),
    [
        ({"kind": "sample", "train": 3, "extra": 5, "more": 0, "val": 4}, "train_aug", 8, 9),
        ({"kind": "sample", "train": 3, "extra": 5, "more": 2, "val": 4}, "mixed", 10, 9),
        ({"kind": "voc2012"}, "train_aug", 10582, 21),
        ({"kind": "voc2007"}, "all", 9963, 21),
        ({"kind": "sbd"}, "instance_train", 5623, 21),
        ({"kind": "context"}, "train", 4998, 60),
        ({"kind": "cityscapes", "instances": "maps"}, "train", 2975, 19),
        (COCO | {"year": 2014, "categories": "voc"}, "all", 123287, 21),
        (COCO | {"year": 2017, "categories": "coco"}, "all", 123287, 81),
        ({"kind": "folder", "val_fraction": 0.2, "seed": 0}, "train", None, None),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else None,
)  # fmt: skip
def test_sizes_of_every_kind_of_dataset(entry, split, images, categories):
    dataset = build(Dataset, entry, "params.yaml", "datasets.x")
    assert split_sizes(dataset).get(split) == images
    assert num_categories(dataset) == categories


def test_a_mixture_counts_the_masks_and_all_images_with_boxes():
    datasets = load_catalogue(ROOT / "params" / "dai2015.yaml").datasets
    sizes = split_sizes(datasets["voc_coco_boxes"])
    assert (sizes["mixed"], sizes["boxes"], sizes["val"]) == (133869, 123287, 1449)  # Dai2015
    assert split_sizes(datasets["voc_coco_voc07_boxes"])["mixed"] == 133869 + 9963
    assert num_categories(datasets["voc_coco_boxes"]) == 21


# --- text --------------------------------------------------------------------------------------
def test_finds_comments_beside_and_above_values_of_every_form():
    text = """\
s:
  a: &a
    # of a value that b has no use for
    x: it's  # after an apostrophe
    # above
    y: "a # b"  # after a quoted sign
    z: [1,  # first
        2]  # second
  b:  # on the name
    <<: *a
    x: [p#q]  # own
"""
    assert yaml_edit.entry_lines(yaml_edit.parse(text), "s", "b") == [
        "  b:  # on the name",
        "    x: [p#q]  # own",
        "    # above",
        '    y: "a # b"  # after a quoted sign',
        "    z: [1, 2]  # first; second",
    ]


def test_merges_as_yaml_does():
    text = """\
s:
  a: &a {x: 1, n: {p: 1}}
  b: &b {<<: *a, x: 2, y: 3}
  c: {z: 0, <<: [*b, *a], y: 4}
  d:
    <<: *b
    n: {<<: *a, p: 2}
"""
    for name, value in yaml_edit.values(text)["s"].items():
        lines = ["s:", *yaml_edit.entry_lines(yaml_edit.parse(text), "s", name)]
        assert yaml_edit.values("\n".join(lines))["s"] == {name: value}


@pytest.mark.parametrize(
    "value",
    [
        1,
        0.5,
        1e-05,
        True,
        "off",
        "no",
        "frozen",
        "1.0",
        "null",
        "a b",
        "",
        [1, [2.0]],
        {"a": {"b": []}},
    ],
)
def test_as_flow_reads_back_as_what_it_was(value):
    assert yaml_edit.values(f"x: {yaml_edit.as_flow(value)}")["x"] == value


def test_does_not_set_a_value_that_is_written_elsewhere():
    text = "s:\n  a: {x: &x 1}\n  b: {y: *x}\n"
    with pytest.raises(BadInput, match="alias"):
        yaml_edit.set_value(text, ("s", "b", "y"), 2)
    assert yaml_edit.set_value(text, ("s", "a", "x"), 2).startswith("s:\n  a: {x: 2}\n")


def test_with_needs_follows_parents_to_the_end():
    catalogue = load_catalogue(ROOT / "params" / "sample.yaml")
    assert with_needs(catalogue, [("evaluations", "sample_semi")]) == {
        ("evaluations", "sample_semi"),
        ("boxsup", "sample_semi"),
        ("weights", "sample_pretrained"),
        ("weights", "none"),
        ("proposals", "mcg_sample"),
        ("datasets", "sample"),
    }


def test_what_an_overridden_start_had_needed_is_not_brought_in(root):
    activate(
        root,
        ["wu2016/fcrn50_s8_k5_d12_voc"],
        {"semantic.fcrn50_s8_k5_d12_voc.init": "none"},
    )
    params = load_params(root / "params.yaml")
    assert params.semantic["fcrn50_s8_k5_d12_voc"].init == "none"
    assert "none" in params.weights
    assert "imagenet_resnet50" not in params.weights
