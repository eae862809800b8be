"""The catalogue of street images: fair pairs, equal shares of hard cells, every run builds."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from pipeline.catalogue import activate, load_catalogue
from pipeline.checkpoints import build_network
from pipeline.datasets.prepared import Prepared
from pipeline.fitting import warn_of_field_of_view
from pipeline.params import SECTIONS
from pipeline.params_file import load_params
from pipeline.params_training import AllPixels, TopK
from pipeline.stages.fetch import fetch
from pipeline.stages.prepare import prepare
from pipeline.study import seeded, trainings

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "real"
STREETS = load_catalogue(ROOT / "params" / "streets.yaml")
CATEGORIES = {"camvid": 11, "cityscapes_small": 19}
CAMVID = "sky building pole road pavement tree sign fence car pedestrian bicyclist ignore"
RUNS = sorted(STREETS.semantic)


# --- the runs ------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", CATEGORIES)
def test_each_dataset_has_both_strides_with_and_without_bootstrapping(data):
    runs = [f"{data}_s{s}{b}" for s in (8, 16) for b in ("", "_bootstrap")]
    assert list(STREETS.groups[f"runs_{data}"]) == runs
    for name in runs:
        run, entry = STREETS.semantic[name], STREETS.evaluations[name]
        assert run.dataset == entry.dataset == data
        assert entry.model == name
        assert name.startswith(f"{data}_s{run.network.stride}")
        assert isinstance(run.bootstrapping, TopK if "bootstrap" in name else AllPixels)


def test_no_run_starts_from_weights_or_learns_from_the_images_it_is_measured_on():
    assert {STREETS.weights[run.init].kind for run in STREETS.semantic.values()} == {"none"}
    assert {run.batch_norm for run in STREETS.semantic.values()} == {"train"}
    assert {run.split for run in STREETS.semantic.values()} == {"train"}
    assert {entry.split for entry in STREETS.evaluations.values()} == {"val"}


def test_strides_differ_in_the_grid_alone():
    for data in CATEGORIES:
        for ending in ("", "_bootstrap"):
            fine, coarse = (STREETS.semantic[f"{data}_s{s}{ending}"] for s in (8, 16))
            same = {"network": fine.network, "bootstrapping": fine.bootstrapping}
            assert replace(coarse, **same) == fine
            assert replace(coarse.network, stride=8, dilation=fine.network.dilation) == fine.network
            larger, smaller = coarse.network.field_of_view, fine.network.field_of_view
            assert smaller <= larger <= 1.1 * smaller


def test_bootstrapping_keeps_the_share_of_wu_et_al_at_either_stride():
    voc = load_catalogue(ROOT / "params" / "wu2016.yaml").semantic["fcrn101_s8_k5_d12_b512_voc"]
    for name in RUNS:
        run = STREETS.semantic[name]
        if isinstance(run.bootstrapping, TopK):
            assert share(run) == 132 / 1024
            assert share(run) == pytest.approx(share(voc), abs=0.001)


def share(run):
    """The part of a crop's score cells that is kept."""
    height, width = run.augmentation.crop
    assert height % run.network.stride == width % run.network.stride == 0
    assert run.bootstrapping.scope == "crop"
    return run.bootstrapping.keep * run.network.stride**2 / (height * width)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_builds_and_scores_its_crop(name, capsys):
    run = STREETS.semantic[name]
    network = build_network(run.network, CATEGORIES[run.dataset], seed=run.seed).eval()
    height, width = run.augmentation.crop
    with torch.inference_mode():
        scores = network(torch.zeros(1, 3, height, width))
    grid = (height // run.network.stride, width // run.network.stride)
    assert scores.shape == (1, CATEGORIES[run.dataset], *grid)
    warn_of_field_of_view(run)
    assert capsys.readouterr().err == ""


# --- the studies ---------------------------------------------------------------------------------
@pytest.mark.parametrize("data", CATEGORIES)
def test_a_study_trains_four_runs_with_three_seeds_and_nothing_else(data):
    entry = STREETS.studies[f"streets_{data}"]
    params = seeded(STREETS, list(STREETS.groups[entry.group]), entry.seeds)
    assert len(params.semantic) == len(params.evaluations) == len(trainings(params)) == 12
    assert {run.seed for run in params.semantic.values()} == {0, 1, 2}
    assert set(params.datasets) == {data}
    assert not params.forests and not params.proposals and not params.boxsup


def test_each_claim_compares_runs_that_differ_in_one_thing():
    for study in STREETS.studies.values():
        for pair in study.claims:
            better, other = (asdict(STREETS.semantic[name]) for name in pair)
            differing = {key for key in better if better[key] != other[key]}
            stride = "network" in differing  # another grid needs another number of cells
            assert differing <= ({"network", "bootstrapping"} if stride else {"bootstrapping"})
            assert (better["bootstrapping"]["kind"] == other["bootstrapping"]["kind"]) == stride


# --- the images ----------------------------------------------------------------------------------
@pytest.fixture
def project(tmp_path):
    """A project with both datasets active, told where the real images are."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "params.yaml").write_text("".join(f"{name}: {{}}\n" for name in SECTIONS))
    activate(tmp_path, [f"streets/{data}" for data in CATEGORIES])
    camvid = tmp_path / "camvid"
    for split in ("train", "val"):
        for kind, source in (("images", split), ("masks", f"{split}annot")):
            (camvid / kind).mkdir(parents=True, exist_ok=True)
            (camvid / kind / split).symlink_to(REAL / "camvid" / source)
    (camvid / "categories.txt").write_text("\n".join(CAMVID.split()) + "\n")
    places = {"camvid": str(camvid), "cityscapes": str(REAL / "cityscapes_small")}
    with (tmp_path / "local.yaml").open("w") as file:
        YAML().dump({"data": places}, file)
    return tmp_path


@pytest.mark.skipif(not (REAL / "camvid").is_dir(), reason="real images are not here")
@pytest.mark.parametrize(
    ("data", "train", "val"), [("camvid", 62, 21), ("cityscapes_small", 72, 18)]
)
def test_both_datasets_are_read_from_the_places_told(project, data, train, val):
    params = load_params(project / "params.yaml")
    fetch(project, params, data)
    prepare(project, params, data)
    prepared = Prepared(project, data)
    assert (len(prepared.ids("train")), len(prepared.ids("val"))) == (train, val)
    assert len(prepared.categories) == CATEGORIES[data]
