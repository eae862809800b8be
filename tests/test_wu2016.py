"""The catalogue of Wu et al.: networks, rows of the paper, and what each key of a run does."""

import copy
import csv
import hashlib
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from ruamel.yaml import YAML
from scratch import PARAMS
from torch.utils.flop_counter import FlopCounterMode

from pipeline.catalogue import load_catalogue
from pipeline.checkpoints import build_network, save_weights
from pipeline.costs import multiply_adds_per_pixel, num_outputs
from pipeline.params_file import load_params
from pipeline.params_networks import Fcrn, FcrnExtended
from pipeline.params_training import InstanceRun, SemanticRun, TrainingRun
from pipeline.stages.fetch import fetch
from pipeline.stages.localize import localize
from pipeline.stages.prepare import prepare
from pipeline.stages.train import train
from pipeline.training import load_checkpoint
from pipeline.wording import NETWORK_HEAD, network_cells

ROOT = Path(__file__).resolve().parents[1]
FILES = ("wu2016", "sample", "dai2015")
STAGES = {"semantic": train, "instance": localize}

# Weights, gammas and betas of He et al.'s bodies without the classifier of ImageNet, and of ours.
BODY = {8: 220_472, 14: 479_288, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}
CHANNELS = {8: 96, 14: 96, 50: 2048, 101: 2048, 152: 2048}


# --- networks ------------------------------------------------------------------------------------
def networks():
    """Each FCRN of the catalogue once, with its number of outputs and a crop."""
    found = {}
    for file in FILES:
        catalogue = load_catalogue(ROOT / "params" / f"{file}.yaml")
        for run in (catalogue.semantic | catalogue.boxsup | catalogue.instance).values():
            count = num_outputs(catalogue, run)
            if isinstance(run.network, Fcrn):
                found[run.network, count] = run.augmentation.crop
    return [(*key, crop) for key, crop in found.items()]


def parameters(network, count):
    """By hand: of the body, of the hidden layer, of the classifier."""
    taps, inputs, total = network.kernel**2, CHANNELS[network.depth], BODY[network.depth]
    if isinstance(network, FcrnExtended) and network.hidden:
        total += taps * inputs * network.hidden + network.hidden
        inputs = network.hidden
    return total + taps * inputs * count + count


def test_every_fcrn_of_the_catalogue_has_its_field_its_parameters_and_its_grid():
    checked = networks()
    assert {count for _, count, _ in checked} >= {9, 19, 21, 60, 4 * 8, 4 * 20}
    features = {}  # of bodies: the same under many classifiers
    for network, count, (height, width) in checked:
        body = (network.depth, network.stride, height, width)
        with torch.device("meta"):
            built = build_network(network, count, seed=0)
            if body not in features:
                features[body] = built.body(torch.empty(1, 3, height, width))
            maps = features[body] if built.hidden is None else built.hidden(features[body])
            logits = built.classifier(maps)
        assert built.field_of_view == network.field_of_view, network
        assert sum(p.numel() for p in built.parameters()) == parameters(network, count), network
        grid = (height // network.stride, width // network.stride)
        assert logits.shape == (1, count, *grid), network


def test_arithmetic_with_a_hidden_layer_is_what_torch_counts():
    network = FcrnExtended("fcrn_extended", 50, 8, 3, 12, hidden=512, dropout=(0.3, 0.5))
    with torch.device("meta"):
        built = build_network(network, 21, seed=0)
        with FlopCounterMode(display=False) as counter:
            built(torch.empty(1, 3, 64, 64))
    per_pixel = multiply_adds_per_pixel(network, num_categories=21)
    assert counter.get_total_flops() == 2 * 64 * 64 * per_pixel


@pytest.mark.parametrize("file", FILES)
def test_no_crop_of_the_catalogue_is_smaller_than_the_field_of_view(file):
    catalogue = load_catalogue(ROOT / "params" / f"{file}.yaml")
    for name, run in (catalogue.semantic | catalogue.boxsup | catalogue.instance).items():
        assert run.network.field_of_view <= min(run.augmentation.crop), name


# --- rows of the paper ---------------------------------------------------------------------------
def printed():
    """{row of the paper: its settings}."""
    rows: dict[str, dict[str, str]] = {}
    with (ROOT / "reports" / "paper_rows.csv").open(newline="", encoding="utf-8") as file:
        for r in csv.DictReader(file):
            row = rows.setdefault(f"{r['paper']}/{r['table']}/{r['row']}", {})
            row[r["setting"]] = r["value"]
    return rows


@pytest.mark.parametrize(
    ("group", "rows"),
    [
        ("table1", [("Table 1", range(1, 15))]),
        ("table3", [("Table 3", range(1, 24))]),
        ("table4", [("Table 4", range(1, 3))]),
        ("table5", [("Table 5", [4])]),
        ("table6", [("Table 6", range(4, 9)), ("text 3.2", [1])]),
        ("table7", [("Table 7", range(1, 9))]),
        ("table2_val", [("Table 2", range(1, 3))]),
    ],
)
def test_a_group_stands_for_every_row_of_its_table_that_is_theirs(group, rows):
    catalogue = load_catalogue(ROOT / "params" / "wu2016.yaml")
    wanted = {f"wu2016/{table}/{n}" for table, numbers in rows for n in numbers}
    tables = [table for table, _ in rows]
    found = [
        row
        for name in catalogue.groups[group]
        for row in catalogue.evaluations[name].stands_for
        if row.split("/")[1] in tables
    ]
    assert sorted(found) == sorted(wanted)


def test_fields_of_view_are_those_that_the_paper_prints():
    rows, compared = printed(), 0
    catalogue = load_catalogue(ROOT / "params" / "wu2016.yaml")
    for evaluation in catalogue.evaluations.values():
        if evaluation.model == "none":  # true masks stand in for it
            continue
        network = catalogue.semantic[evaluation.model].network
        for row in evaluation.stands_for:
            if "field_of_view" in rows[row]:
                assert str(network.field_of_view) == rows[row]["field_of_view"], row
                compared += 1
    assert compared == 14 + 23


def test_the_miniature_of_table_1_has_its_rows_and_its_order_of_fields():
    sample = load_catalogue(ROOT / "params" / "sample.yaml")
    rows = printed()
    group = [sample.evaluations[name] for name in sample.groups["table1"]]
    numbers = [r for e in group for r in e.stands_for if r.startswith("wu2016/Table 1/")]
    assert numbers == [f"wu2016/Table 1/{n}" for n in range(1, 15)]
    for evaluation, row in zip(group, numbers, strict=True):
        network = sample.semantic[evaluation.model].network
        assert str(network.stride) == rows[row]["stride"]
        assert str(network.kernel) == rows[row]["kernel"]
        if row not in ("wu2016/Table 1/6", "wu2016/Table 1/13"):  # held to the images' height
            assert 3 * network.dilation == int(rows[row]["dilation"])


# --- each key of a run changes something ---------------------------------------------------------
TOPK = {"bootstrapping": {"kind": "topk", "keep": 4, "scope": "crop"}}
THRESH = {"bootstrapping": {"kind": "thresh_minkept", "threshold": 0.9, "keep": 4, "scope": "crop"}}
STEP = {"schedule": {"kind": "step", "every": 1, "factor": 0.5}}
POLY = {"schedule": {"kind": "poly", "power": 0.5}}
EXTENDED = {
    "network": {
        "kind": "fcrn_extended", "depth": 14, "stride": 8, "kernel": 3, "dilation": 2, "hidden": 4,
        "dropout": [],
    }
}  # fmt: skip
DEEPLAB = {
    "network": {"kind": "deeplab_largefov", "dropout": 0.5, "last_lr_factor": 10.0},
    "augmentation": {"crop": [33, 33]},
    "epochs": 1,
    "lr": 0.001,
}

# Of a semantic network.
# class and key of its parameters: (what the run has otherwise than the plain one, the change)
CHANGES = {
    "TrainingRun.dataset": ({}, {"dataset": "other"}),
    "TrainingRun.split": ({}, {"split": "train"}),
    "TrainingRun.init": ({}, {"init": "body"}),
    "TrainingRun.network": ({}, EXTENDED),
    "SemanticRun.bootstrapping": ({}, TOPK),
    "TrainingRun.batch": ({}, {"batch": 3}),
    "TrainingRun.epochs": ({}, {"epochs": 3}),
    "TrainingRun.lr": ({}, {"lr": 0.2}),
    "TrainingRun.schedule": ({}, STEP),
    "TrainingRun.momentum": ({}, {"momentum": 0.5}),
    "TrainingRun.nesterov": ({}, {"nesterov": False}),
    "TrainingRun.weight_decay": ({}, {"weight_decay": 0.1}),
    "TrainingRun.bias_lr_factor": ({}, {"bias_lr_factor": 2.0}),
    "TrainingRun.batch_norm": ({"lr": 0.001}, {"batch_norm": "frozen"}),
    "TrainingRun.seed": ({}, {"seed": 1}),
    "TrainingRun.precision": ({}, {"precision": "bf16"}),
    "TrainingRun.threads": ({"epochs": 1, "batch": 8}, {"threads": 2}),  # one step
    "Augmentation.crop": ({}, {"augmentation": {"crop": [32, 48]}}),
    "Augmentation.scale": ({}, {"augmentation": {"scale": [1.0, 1.0]}}),
    "Augmentation.flip": ({}, {"augmentation": {"flip": "none"}}),
    "Fcrn.depth": ({}, {"network": {"depth": 8}}),
    "Fcrn.stride": ({}, {"network": {"stride": 16}}),
    "Fcrn.kernel": ({}, {"network": {"kernel": 5}}),
    "Fcrn.dilation": ({}, {"network": {"dilation": 1}}),
    "FcrnExtended.hidden": (EXTENDED, {"network": {"hidden": 5}}),
    "FcrnExtended.dropout": (EXTENDED, {"network": {"dropout": [0.5, 0]}}),
    "Deeplab.dropout": (DEEPLAB, {"network": {"dropout": 0.0}}),
    "Deeplab.last_lr_factor": (DEEPLAB, {"network": {"last_lr_factor": 1.0}}),
    "TopK.keep": (TOPK, {"bootstrapping": {"keep": 3}}),
    "TopK.scope": (TOPK, {"bootstrapping": {"scope": "device_batch"}}),
    "ThreshMinKept.threshold": (THRESH, {"bootstrapping": {"threshold": 0.01}}),
    "ThreshMinKept.keep": (
        {"bootstrapping": THRESH["bootstrapping"] | {"threshold": 0.01}},
        {"bootstrapping": {"keep": 3}},
    ),
    "ThreshMinKept.scope": (
        {"bootstrapping": THRESH["bootstrapping"] | {"threshold": 0.01}},
        {"bootstrapping": {"scope": "device_batch"}},
    ),
    "LinearSchedule.warmup": ({}, {"schedule": {"warmup": 3}}),
    "StepSchedule.every": (STEP, {"schedule": {"every": 2}}),
    "StepSchedule.factor": (STEP, {"schedule": {"factor": 0.1}}),
    "PolySchedule.power": (POLY, {"schedule": {"power": 0.9}}),
}

HARDEST = {"bootstrapping": {"kind": "topk", "keep": 4, "scope": "crop"}}
IOU = {"bootstrapping": {"kind": "iou_minkept", "iou": 0.9, "keep": 2, "scope": "crop"}}
FEW = {"bootstrapping": IOU["bootstrapping"] | {"iou": 1e-9}}  # so few that `keep` says how many
SCALED = {"targets": {"kind": "scale", "pixels": 30.0}}
BY_SIZE = {"weighting": {"kind": "size", "alpha": 1.0, "lowest": 0.9, "highest": 1.1}}

# Of a localisation network: its own keys, and those that its stage reads by itself.
BOX_CHANGES = {
    "TrainingRun.dataset": CHANGES["TrainingRun.dataset"],
    "TrainingRun.split": CHANGES["TrainingRun.split"],
    "TrainingRun.init": CHANGES["TrainingRun.init"],
    "TrainingRun.network": CHANGES["TrainingRun.network"],
    "TrainingRun.epochs": CHANGES["TrainingRun.epochs"],
    "TrainingRun.seed": CHANGES["TrainingRun.seed"],
    "Augmentation.crop": CHANGES["Augmentation.crop"],
    "Augmentation.scale": CHANGES["Augmentation.scale"],
    "Augmentation.flip": CHANGES["Augmentation.flip"],
    "InstanceRun.targets": ({}, {"targets": {"kind": "log_wh"}}),
    "InstanceRun.weighting": ({}, BY_SIZE),
    "InstanceRun.bootstrapping": ({}, HARDEST),
    "InstanceRun.beta": ({}, {"beta": 0.1}),
    "ScaledTargets.pixels": (SCALED, {"targets": {"pixels": 31.0}}),
    "SizeWeights.alpha": (
        {"weighting": BY_SIZE["weighting"] | {"lowest": 0.0, "highest": 100.0}},
        {"weighting": {"alpha": 0.5}},
    ),
    "SizeWeights.lowest": (BY_SIZE, {"weighting": {"lowest": 0.8}}),
    "SizeWeights.highest": (BY_SIZE, {"weighting": {"highest": 1.2}}),
    "TopK.keep": (HARDEST, {"bootstrapping": {"keep": 3}}),
    "TopK.scope": (HARDEST, {"bootstrapping": {"scope": "device_batch"}}),
    "IouMinKept.iou": (IOU, {"bootstrapping": {"iou": 0.3}}),
    "IouMinKept.keep": (FEW, {"bootstrapping": {"keep": 3}}),
    "IouMinKept.scope": (FEW, {"bootstrapping": {"scope": "device_batch"}}),
}


def keys_of(kind):
    """Class.key of every key below a dataclass of parameters, `kind` itself left out."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        inherited = any(field.name in get_type_hints(base) for base in kind.__bases__)
        if field.name != "kind" and not inherited:
            choices = get_args(hints[field.name]) or (hints[field.name],)
            inner = [c for c in choices if is_dataclass(c)]
            if len(inner) != 1:  # of one kind of values only, its keys stand for the whole
                yield f"{kind.__name__}.{field.name}"
            for choice in inner:
                yield from keys_of(choice)


def test_no_key_of_a_run_is_forgotten_here():
    assert {*keys_of(TrainingRun), *keys_of(SemanticRun)} == set(CHANGES)
    assert set(keys_of(InstanceRun)) <= set(BOX_CHANGES)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project in which runs can be trained: two datasets, no weights and those of a body."""
    root = tmp_path_factory.mktemp("project")
    for name in ("__main__.py", "stages"):  # where the digest of the code begins
        (root / "pipeline").mkdir(exist_ok=True)
        (root / "pipeline" / name).symlink_to(ROOT / "pipeline" / name)
    content = read_yaml_text(PARAMS)
    content["datasets"]["other"] = {"kind": "sample", "train": 3, "extra": 3, "more": 0, "val": 2}
    write(root, content)
    params = load_params(root / "params.yaml")
    for dataset in ("sample", "other"):
        fetch(root, params, dataset)
        prepare(root, params, dataset)
    models = root / "data" / "models"
    save_weights(models / "none.pt", None)
    network = params.semantic["mask"].network
    save_weights(models / "body.pt", build_network(network, 9, seed=5).body)
    return root, content


def read_yaml_text(text):
    return YAML(typ="safe").load(text)


def write(root, content):
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(content, file)


def updated(run, change):
    """A run with other values; of a choice of kinds, the new kind with all its keys."""
    run = copy.deepcopy(run)
    for key, value in change.items():
        merge = isinstance(value, dict) and "kind" not in value
        run[key] = run[key] | value if merge else value
    return run


def outcome(root, content, section, run):
    """What training it left: weights and threads, as one digest.

    Without what a localisation network's targets were less: only what it learnt counts.
    """
    content = copy.deepcopy(content)
    content["weights"]["body"] = {"kind": "none"}
    content |= {"semantic": {}, "instance": {}, "evaluations": {}, section: {"run": run}}
    write(root, content)
    shutil.rmtree(root / "work", ignore_errors=True)  # nothing is taken up again
    before = torch.get_num_threads()
    try:
        STAGES[section](root, load_params(root / "params.yaml"), "run")
        threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    saved = load_checkpoint(root / "data" / "models" / "run.pt", torch.device("cpu"))
    digest = hashlib.sha256(f"{saved['step']} {threads}".encode())
    for name, value in saved["network"].items():
        if not name.startswith("target_"):
            digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def outcomes():
    """Of runs that several changes start from."""
    return {}


def plain_run(content):
    plain = content["semantic"]["mask"] | {"epochs": 2}
    return updated(plain, {"augmentation": {"crop": [32, 32]}})


def plain_box_run(content):
    """On crops and batches that show more than one object."""
    own = {"targets": {"kind": "standardise"}, "weighting": {"kind": "off"}, "beta": 1.0}
    return updated(plain_run(content) | own, {"augmentation": {"crop": [64, 64]}, "batch": 4})


PLAIN = {"semantic": plain_run, "instance": plain_box_run}


@pytest.mark.parametrize("section", PLAIN)
def test_the_same_run_gives_the_same_again(root, section):
    folder, content = root
    run = PLAIN[section](content)
    first = outcome(folder, content, section, run)
    assert outcome(folder, content, section, run) == first


@pytest.mark.parametrize(
    ("section", "key", "changes"),
    [
        *(("semantic", key, changes) for key, changes in CHANGES.items()),
        *(("instance", key, changes) for key, changes in BOX_CHANGES.items()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_key_of_a_run_changes_what_is_trained(root, outcomes, section, key, changes):
    folder, content = root
    otherwise, change = changes
    base = updated(PLAIN[section](content), otherwise)
    name = repr((section, base))
    if name not in outcomes:
        outcomes[name] = outcome(folder, content, section, base)
    assert outcome(folder, content, section, updated(base, change)) != outcomes[name]


# --- words of the report -------------------------------------------------------------------------
def test_a_network_is_told_in_the_papers_columns():
    assert NETWORK_HEAD == ("depth", "resolution", "kernel", "dilation", "FoV")
    best = Fcrn("fcrn", 101, 8, 5, 12)
    assert network_cells(best) == ("101", "1/8", "5", "12", "392")
    final = FcrnExtended("fcrn_extended", 101, 8, 3, 12, hidden=512, dropout=(0.3, 0.5))
    assert network_cells(final) == ("101", "1/8", "3, 3", "12, 12", "392")
