import csv
from collections import Counter
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from pipeline import (
    params,
    params_checks,
    params_datasets,
    params_networks,
    params_proposals,
    params_training,
)
from pipeline.catalogue import load_catalogue
from pipeline.errors import BadInput
from pipeline.params import Params
from pipeline.params_file import load_params

ROOT = Path(__file__).resolve().parents[1]
CATALOGUE = sorted((ROOT / "params").glob("*.yaml"))

TEXT = """\
datasets:
  sample: {kind: sample, train: 4, extra: 4, more: 0, val: 2}
forests: {}
proposals:
  none_sample:
    {method: none, dataset: sample, contours: none, ranker: none, algorithm: {kind: none}}
weights:
  none: {kind: none}
  crops:
    {kind: crops, depth: 14, crops: 8, size: 48, batch: 2, steps: 1, lr: 0.1, seed: 0,
     precision: fp32, threads: 1}
semantic:
  mask:
    dataset: sample
    split: train_aug
    init: crops
    network: {kind: fcrn, depth: 14, stride: 8, kernel: 3, dilation: 4}
    augmentation: {crop: [128, 160], scale: [0.8, 1.25], flip: both}
    bootstrapping: {kind: "off"}
    batch: 4
    epochs: 2
    lr: 0.02
    schedule: {kind: linear, warmup: 20}
    momentum: 0.9
    nesterov: true
    weight_decay: 0.0005
    bias_lr_factor: 1
    batch_norm: train
    seed: 0
    precision: bf16
    threads: 0
boxsup: {}
instance: {}
evaluations:
  mask:
    model: mask
    localization: none
    dataset: sample
    split: val
    views: {scales: [1.0], flip: false, shifts: 1}
    crf: none
    instances: none
    stands_for: [wu2016/Table 7/1]
"""


def crf_text(**other):
    """A dense CRF as params.yaml has it."""
    values = {
        "kind": "dense", "bilateral_weight": 5, "bilateral_xy": 50, "bilateral_rgb": 10,
        "gaussian_weight": 3, "gaussian_xy": 3, "iterations": 10, "prune": 0,
    }  # fmt: skip
    return "{" + ", ".join(f"{k}: {v}" for k, v in (values | other).items()) + "}"


def load(tmp_path, text=TEXT):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return load_params(path)


def changed(old, new):
    assert TEXT.count(old) == 1
    return TEXT.replace(old, new)


def test_builds_dataclasses_with_the_right_types(tmp_path):
    run = load(tmp_path).semantic["mask"]
    assert run.augmentation.crop == (128, 160)
    assert run.bootstrapping.kind == "off"
    assert isinstance(run.bias_lr_factor, float)  # a whole number where a fraction may stand
    assert load(tmp_path).evaluations["mask"].stands_for == ("wu2016/Table 7/1",)


def test_a_crf_is_none_or_a_mapping(tmp_path):
    assert load(tmp_path).evaluations["mask"].crf == "none"
    text = changed("crf: none", f"crf: {crf_text(prune=0.01)}")
    assert load(tmp_path, text).evaluations["mask"].crf == params.DenseCrf(
        "dense", 5.0, 50.0, 10.0, 3.0, 3.0, 10, 0.01
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    epochs: 2\n", "    epochs: 2\n    epoch: 2\n", "semantic.mask.epoch is unknown"),
        ("    epochs: 2\n", "", "semantic.mask.epochs is missing"),
        ("    epochs: 2\n", "    epochs:\n", "semantic.mask.epochs is null"),
        ("boxsup: {}", "boxsup:", "boxsup is null"),
        ("boxsup: {}\n", "", "boxsup is missing"),
        ("instance: {}", "instance: {}\nmore: {}", "more is unknown"),
        ("epochs: 2", "epochs: 2.5", "semantic.mask.epochs is 2.5; expected a whole number"),
        ("epochs: 2", "epochs: true", "semantic.mask.epochs is True; expected a whole number"),
        ("lr: 0.02", "lr: fast", "semantic.mask.lr is 'fast'; expected a number"),
        ("nesterov: true", "nesterov: 1", "semantic.mask.nesterov is 1; expected true or false"),
        ("crop: [128, 160]", "crop: 128", "semantic.mask.augmentation.crop is 128"),
        ("crop: [128, 160]", "crop: [128]", "augmentation.crop has 1 entries; expected 2"),
        ("crop: [128, 160]", "crop: [128, a]", "augmentation.crop[1] is 'a'"),
        ("precision: bf16", "precision: fp64", "semantic.mask.precision is 'fp64'; choose one of"),
        ("kind: linear", "kind: cosine", "semantic.mask.schedule.kind is 'cosine'; choose one of"),
        ("kind: linear", "kind: [linear]", "semantic.mask.schedule.kind is ['linear']"),
        ("bootstrapping: {kind", "bootstrapping: {keep: 1, kind", "bootstrapping.keep is unknown"),
        ("  mask:\n    dataset", "  Mask:\n    dataset", "the name 'Mask' may hold only"),
        ("init: crops", "init: crop", "semantic.mask.init is 'crop'; choose one of"),
        ("init: crops", "init: mask", "semantic.mask.init is 'mask'; choose one of"),
        ("model: mask", "model: other", "evaluations.mask.model is 'other'; choose one of"),
        ("model: mask", "model: crops", "evaluations.mask.model is 'crops'; choose one of"),
        ("  none: {kind: none}\n", "", "evaluations.mask.localization is 'none'; add weights.none"),
        ("localization: none", "localization: x", "evaluations.mask.localization is 'x'"),
        ("none_sample:", "no_sample:", "proposals.no_sample: call the entry none_sample"),
        ("  none: {kind", "  mask: {kind", "semantic.mask is also in weights; rename"),
        ("crf: none", "crf: no", "mask.crf is 'no'; choose one of: none, {kind: dense, ...}"),
        ("crf: none", "crf: dense", "mask.crf is 'dense'; choose one of: none, {kind: dense, ...}"),
        ("crf: none", "crf: {kind: none}", "evaluations.mask.crf is 'none'; choose one of: none"),
        ("crf: none", "crf: {kind: dense}", "evaluations.mask.crf.bilateral_weight is missing"),
    ],
)
def test_names_the_file_and_the_key_that_is_wrong(tmp_path, old, new, message):
    with pytest.raises(BadInput) as error:
        load(tmp_path, changed(old, new))
    assert message in str(error.value)
    assert str(tmp_path / "params.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch: 4\n", "batch: 0\n", "semantic.mask.batch is 0; expected at least 1"),
        ("momentum: 0.9", "momentum: 1.5", "semantic.mask.momentum is 1.5"),
        ("lr: 0.02", "lr: .inf", "semantic.mask.lr is inf"),
        ("lr: 0.02", "lr: .nan", "semantic.mask.lr is nan"),
        ("kernel: 3", "kernel: 4", "semantic.mask.network.kernel is 4; expected an odd number"),
        ("[128, 160]", "[128, 150]", "augmentation.crop is [128, 150]; expected multiples of"),
        ("[0.8, 1.25]", "[1.25, 0.8]", "augmentation.scale is [1.25, 0.8]"),
        ("train: 4", "train: 0", "datasets.sample.train is 0"),
        ("scales: [1.0]", "scales: []", "evaluations.mask.views.scales is []"),
        ("scales: [1.0]", "scales: [0]", "evaluations.mask.views.scales is [0.0]"),
        ("shifts: 1", "shifts: 0", "evaluations.mask.views.shifts is 0; expected at least 1"),
        *(
            ("crf: none", f"crf: {crf_text(**{name: value})}", f"evaluations.mask.crf.{name} is")
            for name, value in (
                ("bilateral_weight", -1),
                ("bilateral_xy", 0),
                ("bilateral_rgb", ".inf"),
                ("gaussian_weight", ".nan"),
                ("gaussian_xy", -3),
                ("iterations", 0),
                ("iterations", 1001),
                ("iterations", 2.5),
                ("prune", 1.1),
            )
        ),
        ("[wu2016/Table 7/1]", "[Table 7]", "'Table 7' is not PAPER/TABLE/ROW"),
        ("crops, depth: 14", "crops, depth: 50", "weights.crops.depth is 50; choose one of: 14"),
    ],
)
def test_refuses_numbers_out_of_range(tmp_path, old, new, message):
    with pytest.raises(BadInput) as error:
        load(tmp_path, changed(old, new))
    assert message in str(error.value)


# --- forests and proposals -----------------------------------------------------------------------
SIZES = "min_area: 9, singletons: 9, pairs: 9, triplets: 0, quadruplets: 0"
SCG = f"kind: scg, {SIZES}, max_overlap: 0.9, max_candidates: 9, fill_holes: true"
FOURS = "singletons: [9, 9, 9, 9], pairs: [9, 9, 9, 9], triplets: [9, 9, 9, 9]"
MCG = f"kind: mcg, min_area: 9, align_cut: 0.1, {FOURS}, quadruplets: [0, 0, 0, 0]"
MCG += ", max_overlap: 0.9, max_candidates: 9, fill_holes: true"
FORESTS = f"""\
forests:
  contours: {{kind: contours, dataset: bsds, contours: none, seed: 0}}
  plain: {{kind: ranking, dataset: bsds, contours: none, seed: 0,
    algorithm: {{edges: {{kind: gradient, sigma: 2.0}}, {SCG}}}}}
  learnt: {{kind: ranking, dataset: voc, contours: contours, seed: 1,
    algorithm: {{edges: {{kind: boosted}}, {SCG}}}}}
proposals:
  one_sample: {{method: one, dataset: sample, contours: none, ranker: plain,
    algorithm: {{edges: {{kind: gradient, sigma: 2.0}}, {SCG}}}}}
  two_sample: {{method: two, dataset: sample, contours: contours, ranker: learnt,
    algorithm: {{edges: {{kind: boosted}}, {SCG}}}}}
  none_sample:"""
LEARNT = changed("forests: {}\nproposals:\n  none_sample:", FORESTS).replace(
    "datasets:\n", "datasets:\n  bsds: {kind: bsds500}\n  voc: {kind: voc2012}\n"
)


def test_proposals_name_the_forests_that_they_use(tmp_path):
    params = load(tmp_path, LEARNT)
    assert params.proposals["two_sample"].ranker == "learnt"
    assert params.proposals["two_sample"].algorithm.edges.kind == "boosted"
    assert (
        params.forests["learnt"].algorithm.edges == params.proposals["two_sample"].algorithm.edges
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "contours, dataset: bsds,",
            "contours, dataset: voc,",
            "forests.contours.dataset is 'voc'; choose one of: bsds",
        ),
        (
            "dataset: voc, contours: contours",
            "dataset: sample, contours: contours",
            "forests.learnt.dataset is 'sample'; choose one of: bsds, voc",
        ),
        (
            "dataset: voc, contours: contours",
            "dataset: voc, contours: plain",
            "forests.learnt.contours is 'plain'; choose one of: none, contours",
        ),
        (
            "dataset: voc, contours: contours",
            "dataset: voc, contours: none",
            "forests.learnt.contours is 'none' with edges of the kind boosted; name a forest",
        ),
        (
            "dataset: bsds, contours: none, seed: 0,\n",
            "dataset: bsds, contours: contours, seed: 0,\n",
            "forests.plain.contours is 'contours' with edges of the kind gradient; name a forest",
        ),
        (
            "contours: none, seed: 0,\n    algorithm: {edges: {kind: gradient, sigma: 2.0}",
            "contours: none, seed: 0,\n    algorithm: {edges: {kind: file, place: x}",
            "forests.plain.algorithm.edges.kind is 'file'; choose gradient, boosted or sf",
        ),
        (
            "contours: contours, ranker: learnt",
            "contours: learnt, ranker: learnt",
            "proposals.two_sample.contours is 'learnt'; choose one of: none, contours",
        ),
        (
            "contours: contours, ranker: learnt",
            "contours: contours, ranker: contours",
            "proposals.two_sample.ranker is 'contours'; choose one of: none, plain, learnt",
        ),
        (
            "contours: contours, ranker: learnt",
            "contours: none, ranker: none",
            "proposals.two_sample.contours is 'none' with edges of the kind boosted; name a forest",
        ),
        (
            "contours: none, ranker: none",
            "contours: contours, ranker: none",
            "proposals.none_sample.contours is 'contours' with edges of the kind none; name",
        ),
        (
            "contours: none, ranker: plain",
            "contours: none, ranker: learnt",
            "proposals.one_sample.ranker is 'learnt', fitted to candidates of other contours",
        ),
        (
            "ranker: plain,\n    algorithm: {edges: {kind: gradient, sigma: 2.0}",
            "ranker: plain,\n    algorithm: {edges: {kind: gradient, sigma: 1.5}",
            "proposals.one_sample.ranker is 'plain', fitted to candidates of other contours",
        ),
        (
            f"ranker: plain,\n    algorithm: {{edges: {{kind: gradient, sigma: 2.0}}, {SCG}}}",
            f"ranker: plain,\n    algorithm: {{edges: {{kind: gradient, sigma: 2.0}}, {MCG}}}",
            "proposals.one_sample.ranker is 'plain', fitted to candidates of scg;",
        ),
    ],
)
def test_refuses_forests_and_proposals_that_do_not_fit(tmp_path, old, new, message):
    assert LEARNT.count(old) == 1
    with pytest.raises(BadInput) as error:
        load(tmp_path, LEARNT.replace(old, new))
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "a: 1\na: 2\n", "a: *b\n", "a: \x00\n"])
def test_refuses_what_is_no_yaml_mapping(tmp_path, text):
    with pytest.raises(BadInput, match="params.yaml"):
        load(tmp_path, text)


def test_says_where_to_run_when_the_file_is_missing(tmp_path):
    with pytest.raises(BadInput, match="not there"):
        load_params(tmp_path / "params.yaml")


def test_every_number_has_a_range():
    bounded = {key.rpartition(".")[2] for key in params_checks.RANGES}
    modules = (params, params_datasets, params_proposals, params_networks, params_training)
    there = [k for module in modules for k in vars(module).values()]
    kinds = {k for k in there if is_dataclass(k) and isinstance(k, type)}
    for kind in kinds:
        for name, hint in get_type_hints(kind).items():
            if hint in (int, float):
                assert name in bounded, f"{kind.__name__}.{name}"
    named = {f.name for kind in kinds for f in fields(kind)}
    assert bounded <= named


def test_the_checkouts_params_load():
    assert isinstance(load_params(ROOT / "params.yaml"), Params)


# --- the catalogue's files ---------------------------------------------------------------------
@pytest.mark.parametrize("path", CATALOGUE, ids=lambda p: p.stem)
def test_each_file_of_the_catalogue_loads(path):
    catalogue = load_catalogue(path)
    assert catalogue.groups
    grouped = {name for names in catalogue.groups.values() for name in names}
    runs = catalogue.semantic | catalogue.boxsup | catalogue.instance
    named = {n for e in catalogue.evaluations.values() for n in (e.model, e.localization)}
    used = named & set(runs)
    used |= {runs[name].init for name in used if runs[name].init in runs}
    assert used == set(runs) and named <= {"none", *runs}
    assert grouped <= set(catalogue.evaluations)


def test_what_two_files_define_is_the_same_in_both():
    seen = {}
    for path in CATALOGUE:
        catalogue = load_catalogue(path)
        for section in (
            "datasets",
            "forests",
            "proposals",
            "weights",
            "semantic",
            "boxsup",
            "instance",
            "evaluations",
        ):
            for name, entry in getattr(catalogue, section).items():
                assert seen.setdefault((section, name), entry) == entry, name


def paper_rows():
    path = ROOT / "reports" / "paper.csv"
    if not path.exists():
        pytest.skip("no reports/paper.csv")
    with path.open(newline="", encoding="utf-8") as file:
        return {f"{r['paper']}/{r['table']}/{r['row']}" for r in csv.DictReader(file)}


@pytest.mark.parametrize("path", CATALOGUE, ids=lambda p: p.stem)
def test_every_row_that_a_run_stands_for_was_printed(path):
    printed = paper_rows()
    for name, evaluation in load_catalogue(path).evaluations.items():
        for row in evaluation.stands_for:
            assert row in printed, name


def settings_of_rows():
    path = ROOT / "reports" / "paper_rows.csv"
    if not path.exists():
        pytest.skip("no reports/paper_rows.csv")
    rows = {}
    with path.open(newline="", encoding="utf-8") as file:
        for r in csv.DictReader(file):
            row = rows.setdefault(f"{r['paper']}/{r['table']}/{r['row']}", {})
            row[r["setting"]] = r["value"]
    return rows


def settings_of_network(run, prefix=""):
    """A run's settings under the names of paper_rows.csv, those of boxes with `localization_`."""
    found = {key: getattr(run.network, key) for key in ("depth", "stride", "kernel", "dilation")}
    found |= {"train": run.split, "init": "ImageNet", "network": "FCRN"}
    if prefix:
        found["bootstrapping"] = "off" if run.bootstrapping.kind == "off" else "on"
        found["weighting"] = "off" if run.weighting.kind == "off" else "on"
    else:
        found["bootstrapping"] = getattr(run.bootstrapping, "keep", "off")
    return {prefix + key: str(value) for key, value in found.items()}


def test_wu2016_runs_have_the_settings_of_their_rows():
    rows = settings_of_rows()
    catalogue = load_catalogue(ROOT / "params" / "wu2016.yaml")
    compared = Counter()
    for name, evaluation in catalogue.evaluations.items():
        ours = {"dataset": evaluation.dataset, "split": evaluation.split}
        run = catalogue.semantic.get(evaluation.model)
        boxes = catalogue.instance.get(evaluation.localization)
        if run is not None:
            ours |= settings_of_network(run)
            if run.init in catalogue.semantic:
                ours["train"] = f"COCO, then {run.split}"
                assert catalogue.datasets[catalogue.semantic[run.init].dataset].kind == "coco"
        if boxes is not None:
            ours |= settings_of_network(boxes, "localization_")
            ours["score_maps"] = "true masks" if run is None else "a network"
            ours["boxes"] = "a network"
        for row in evaluation.stands_for:
            theirs = {key: rows[row][key] for key in ours if key in rows[row]}
            assert {key: ours[key] for key in theirs} == theirs, (name, row)
            compared[row.split("/")[1]] += len(theirs)
    assert compared.total() > 500
    assert (compared["Table 6"], compared["text 3.2"]) == (5 * 14, 10)


def test_networks_behind_instances_learnt_from_the_images_for_instances():
    catalogue = load_catalogue(ROOT / "params" / "wu2016.yaml")
    for name in catalogue.groups["table6"]:
        evaluation = catalogue.evaluations[name]
        assert (evaluation.dataset, evaluation.split) == ("sbd", "instance_val")
        semantic = catalogue.semantic.get(evaluation.model)
        boxes = catalogue.instance.get(evaluation.localization)
        for run in filter(None, (semantic, boxes)):
            assert (run.dataset, run.split) == ("sbd", "instance_train"), name


def test_dai2015_runs_have_the_supervision_of_their_rows():
    rows = settings_of_rows()
    catalogue = load_catalogue(ROOT / "params" / "dai2015.yaml")
    for name, evaluation in catalogue.evaluations.items():
        run = catalogue.boxsup.get(evaluation.model)
        supervision = "mask" if run is None else "box" if run.mask_split == "none" else "semi"
        if run is None and catalogue.semantic[evaluation.model].init in catalogue.boxsup:
            supervision = "semi"
        for row in evaluation.stands_for:
            assert rows[row].get("supervision", supervision) == supervision, (name, row)
            if run is not None and "top_k" in rows[row]:
                assert rows[row]["top_k"] == str(run.estimator.top_k), (name, row)


def test_literals_of_kinds_are_unique_within_a_choice():
    for choice in (
        params_datasets.Dataset,
        params_proposals.Edges,
        params_proposals.Algorithm,
        params_proposals.Forest,
        params_networks.Weights,
        params_training.Schedule,
        params_training.Bootstrapping,
        params_training.BoxBootstrapping,
        params_training.Targets,
        params_training.Weighting,
        params.RegionNms,
    ):
        kinds = [get_type_hints(k)["kind"] for k in get_args(choice)]
        assert len(set(kinds)) == len(kinds)
