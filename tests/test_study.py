import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import study as module
from pipeline.catalogue import load_catalogue
from pipeline.errors import BadInput
from pipeline.params_file import load_params
from pipeline.pruning import prune
from pipeline.study import Unit, measurements, seeded, study, trainings
from pipeline.study_report import collect, mean_and_spread, page
from pipeline.tables import read_table, write_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sample():
    return load_catalogue(ROOT / "params" / "sample.yaml")


# --- runs of a study -----------------------------------------------------------------------------
def test_trains_each_run_once_for_every_seed(sample):
    params = seeded(sample, ["sample_mask_s8", "sample_mask_s8_multiview", "sample_semi"], (0, 7))
    assert set(params.semantic) == {"sample_mask_s8_seed0", "sample_mask_s8_seed7"}
    assert set(params.boxsup) == {"sample_semi_seed0", "sample_semi_seed7"}
    assert len(params.evaluations) == 6
    assert params.semantic["sample_mask_s8_seed7"].seed == 7
    assert params.evaluations["sample_mask_s8_multiview_seed7"].model == "sample_mask_s8_seed7"


def test_seeds_change_neither_data_nor_starting_weights(sample):
    params = seeded(sample, ["sample_semi"], (0, 7))
    assert params.weights["sample_pretrained"] == sample.weights["sample_pretrained"]
    assert {run.init for run in params.boxsup.values()} == {"sample_pretrained"}
    assert set(params.proposals) == {"mcg_sample"}


def test_a_trained_parent_gets_the_seed_of_its_child(sample):
    child = module.replace(sample.boxsup["sample_semi"], init="sample_mask_s8")
    catalogue = module.replace(sample, boxsup={"sample_semi": child})
    params = seeded(catalogue, ["sample_semi"], (3,))
    assert params.boxsup["sample_semi_seed3"].init == "sample_mask_s8_seed3"
    assert params.semantic["sample_mask_s8_seed3"].seed == 3


def test_units_share_no_stage_and_parents_come_first(sample):
    child = module.replace(sample.boxsup["sample_semi"], init="sample_mask_s8")
    catalogue = module.replace(sample, boxsup=sample.boxsup | {"sample_semi": child})
    params = seeded(catalogue, list(catalogue.groups["fcrn"]) + ["sample_semi"], (0, 1))
    found = trainings(params)
    stages = [stage for unit in found for stage in unit.stages]
    assert len(stages) == len(set(stages)) == 2 * 4
    first = next(unit.stages for unit in found if unit.name == "sample_mask_s8_seed0")
    assert first == ("train@sample_mask_s8_seed0", "boxsup@sample_semi_seed0")
    measured = measurements(params)
    assert len(measured) == 2 * 5
    last = ("predict@sample_semi_seed1", "evaluate@sample_semi_seed1")
    assert last in [unit.stages for unit in measured]


def test_every_network_of_an_evaluation_has_the_seed(sample):
    entry = module.replace(
        sample.evaluations["sample_instances"], model="none", localization="sample_instances"
    )
    catalogue = module.replace(sample, evaluations={"found": entry})
    params = seeded(catalogue, ["found"], (0, 7))
    assert params.evaluations["found_seed7"].localization == "sample_instances_seed7"
    assert params.evaluations["found_seed7"].model == "none"
    assert params.instance["sample_instances_seed7"].seed == 7
    assert [unit.stages for unit in trainings(params)] == [
        ("localize@sample_instances_seed0",),
        ("localize@sample_instances_seed7",),
    ]


def test_writes_params_that_say_the_same(sample, tmp_path):
    params = seeded(sample, list(sample.groups["all"]), (0, 1))
    path = tmp_path / "params.yaml"
    path.write_text("")
    module._write_params(path, params)
    assert load_params(path) == params


# --- what is gathered ----------------------------------------------------------------------------
def write_metrics(data, run, value):
    rows = [("mean_iou", None, value), ("iou", "disc", value / 2), ("num_images", None, 3.0)]
    same = {"evaluation": run, "dataset": "sample", "split": "val", "at": None}
    write_table(
        data / "metrics" / f"{run}.parquet",
        "metrics",
        [same | {"metric": m, "category": c, "value": v} for m, c, v in rows],
    )


def write_history(data, run, qualities):
    rows = [
        {"step": i, "epoch": 2 * i, "name": "label_mean_iou", "value": quality}
        for i, quality in enumerate(qualities)
    ]
    rows.append({"step": 0, "epoch": 0, "name": "loss", "value": 9.0})
    write_table(data / "models" / f"{run}.history.parquet", "history", rows)


@pytest.fixture
def rows(tmp_path):
    for seed, (mask, box) in enumerate([(0.5, 0.4), (0.7, 0.7), (0.6, 0.61)]):
        write_metrics(tmp_path, f"mask_seed{seed}", mask)
        write_metrics(tmp_path, f"box_seed{seed}", box)
        write_history(tmp_path, f"box_seed{seed}", [0.7, 0.6 + seed / 100, 0.75])
    return collect(tmp_path, "s", evaluations=["mask", "box"], models=["box"], seeds=[0, 1, 2])


def test_gathers_every_metric_and_the_label_history(rows, tmp_path):
    write_table(tmp_path / "s.parquet", "study", rows)
    table = read_table(tmp_path / "s.parquet", "study")
    assert len(table) == 3 * (3 + 3 + 3)
    chosen = table[(table["run"] == "box") & (table["seed"] == 2) & (table["category"] == "disc")]
    assert chosen["value"].tolist() == [0.61 / 2]
    labels = table[table["metric"] == "label_mean_iou"]
    assert labels["at"].tolist()[:3] == [0.0, 2.0, 4.0]
    assert "loss" not in set(table["metric"])


def test_says_which_file_is_missing(tmp_path):
    with pytest.raises(BadInput, match="mask_seed0.parquet"):
        collect(tmp_path, "s", evaluations=["mask"], models=[], seeds=[0])


BOXED = ("14", "1/8", "3", "4", "72")
NETWORKS = {"mask": ("14", "1/8", "3", "4", "72"), "box": ("14", "1/16", "3", "2", "80")}


def test_page_has_means_spreads_claims_and_label_quality(rows):
    text = page(
        rows, title="s", facts=[("commit", "abc")], claims=[("mask", "box")], networks=NETWORKS
    )
    assert "- commit: abc\n" in text
    assert "| mask | 14 | 1/8 | 3 | 4 | 72 | 60.0 ± 10.0 | 50.0 | 70.0 | 60.0 |\n" in text
    # differences 10, 0, -1 points: mean 3, held where the first is not below the second
    assert "| mask | box | +3.0 ± 6.1 | 2 of 3 seeds |\n" in text
    assert "| box | 70.0 ± 0.0 | 61.0 ± 1.0 | 75.0 ± 0.0 |\n" in text


def test_page_of_one_seed_has_no_spread(tmp_path):
    write_metrics(tmp_path, "mask_seed4", 0.5)
    rows = collect(tmp_path, "s", evaluations=["mask"], models=[], seeds=[4])
    text = page(rows, title="s", facts=[], claims=[], networks=NETWORKS)
    assert "| mask | 14 | 1/8 | 3 | 4 | 72 | 50.0 | 50.0 |\n" in text
    assert "labels" not in text


def of_objects(run, *seeds):
    """Rows of a run that finds objects: mAP^r at 0.5, at 0.7 and over all, for each seed."""
    rows = []
    for seed, (half, seven, volume) in enumerate(seeds):
        numbers = [("mAP_r", 0.5, half), ("mAP_r", 0.7, seven), ("mAP_r_vol", None, volume)]
        numbers += [("mAP_r", 0.6, 0.99), ("mAP_r_mnc11", 0.5, 0.99), ("mean_iou", None, 0.25)]
        same = {"study": "s", "run": run, "seed": seed, "category": None}
        rows += [same | {"metric": m, "at": at, "value": value} for m, at, value in numbers]
        rows.append(same | {"metric": "AP_r", "at": 0.5, "value": 0.99, "category": "disc"})
    return rows


FOUND = [
    *of_objects("boxes", (0.5, 0.3, 0.4), (0.6, 0.5, 0.4)),
    *of_objects("peer", (0.4, 0.2, 0.4), (0.7, 0.1, 0.2)),
    *of_objects("ceiling", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
]


FINDING = {"boxes": BOXED, "peer": BOXED, "ceiling": ("—",) * 5}


def test_a_page_of_objects_has_three_numbers_and_holds_claims_to_two_of_them():
    claims = [("boxes", "peer")]
    text = page(FOUND, title="s", facts=[], claims=claims, networks=FINDING)
    assert "| vol | seed 0 | seed 1 |\n" in text
    numbers = "55.0 ± 7.1 | 40.0 ± 14.1 | 40.0 ± 0.0 | 50.0 / 30.0 / 40.0 | 60.0 / 50.0 / 40.0 |\n"
    assert f"| boxes | 14 | 1/8 | 3 | 4 | 72 | {numbers}" in text
    assert "| boxes | peer | mAP^r at 0.5 | +0.0 ± 14.1 | 1 of 2 seeds |\n" in text
    assert "| boxes | peer | vol | +10.0 ± 14.1 | 2 of 2 seeds |\n" in text
    assert text.count("| boxes | peer |") == 2
    assert "| ceiling | — | — | — | — | — | 100.0 ± 0.0 |" in text
    assert "mean IoU" not in text and "99.0" not in text


def test_objects_stand_by_the_classes_of_their_sizes_too():
    assert "By the size" not in page(FOUND, title="s", facts=[], claims=[], networks=FINDING)
    same = {"study": "s", "run": "boxes", "category": None}
    sizes = [("mAP_r_small", 0.5, 0, 0.25), ("mAP_r_small", 0.5, 1, 0.35)]
    sizes += [("mAP_r_large", 0.7, 0, 0.5), ("mAP_r_large", 0.7, 1, float("nan"))]
    sizes += [("mAP_r_medium", 0.7, 0, 0.125), ("mAP_r_medium", 0.7, 1, 0.125)]
    rows = [same | {"metric": m, "at": at, "seed": seed, "value": v} for m, at, seed, v in sizes]
    text = page(FOUND + rows, title="s", facts=[], claims=[], networks=FINDING)
    heads = "small at 0.5 | small at 0.7 | medium at 0.5 | medium at 0.7 | large at 0.5 | large at"
    assert f"| run | {heads} 0.7 |\n|---|---|---|---|---|---|---|\n" in text
    assert "| boxes | 30.0 ± 7.1 | — | — | 12.5 ± 0.0 | — | — |\n" in text
    assert "| peer | —" not in text  # it has no such number


def test_a_page_of_both_has_a_table_of_each(rows):
    networks = NETWORKS | FINDING
    claims = [("mask", "box"), ("boxes", "peer"), ("mask", "peer")]
    text = page(rows + FOUND, title="s", facts=[], claims=claims, networks=networks)
    assert "| mask | 14 | 1/8 | 3 | 4 | 72 | 60.0 ± 10.0 | 50.0 | 70.0 | 60.0 |\n" in text
    assert text.count("\n| boxes | 14 |") == 1
    assert "| mask | box | mean IoU | +3.0 ± 6.1 | 2 of 3 seeds |\n" in text
    assert "| boxes | peer | vol | +10.0 ± 14.1 | 2 of 2 seeds |\n" in text
    assert "| mask | peer | mean IoU | — | 0 of 0 seeds |\n" in text


def test_a_number_that_is_none_is_a_dash_on_the_page():
    none = of_objects("boxes", (float("nan"), 0.5, 0.25))
    text = page(none, title="s", facts=[], claims=[], networks={"boxes": BOXED})
    assert "| 72 | — | 50.0 | 25.0 | — / 50.0 / 25.0 |\n" in text


def test_spread_is_the_sample_standard_deviation():
    assert mean_and_spread([0.1, 0.3]) == "20.0 ± 14.1"  # sqrt(2 * 10**2 / 1)


# --- running -------------------------------------------------------------------------------------
def fake_dvc(tmp_path, monkeypatch, script):
    """Let `python -m dvc repro --single-item STAGES` run a script with STAGES as arguments."""
    path = tmp_path / "fake.py"
    path.write_text(script)

    class Fake:
        DEVNULL, STDOUT = subprocess.DEVNULL, subprocess.STDOUT

        @staticmethod
        def Popen(command, **options):
            assert command[1:5] == ["-m", "dvc", "repro", "--single-item"]
            return subprocess.Popen([sys.executable, str(path), *command[5:]], **options)

    monkeypatch.setattr(module, "subprocess", Fake)


def test_tries_again_when_dvc_is_locked(tmp_path, monkeypatch, capsys):
    script = """
import pathlib, sys
seen = pathlib.Path(sys.argv[1])
seen.write_text(seen.read_text() + "x" if seen.exists() else "x")
if len(seen.read_text()) < 3:
    sys.exit("ERROR: Unable to acquire lock. Most likely another DVC process is running")
"""
    fake_dvc(tmp_path, monkeypatch, script)
    module._run_units(tmp_path, [Unit("a", ("a",)), Unit("b", ("b",))], 2, dict(os.environ))
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "xxx"
    assert "done (2 of 2)" in capsys.readouterr().out


def test_one_failure_does_not_stop_the_others_and_is_told(tmp_path, monkeypatch):
    script = """
import pathlib, sys
if sys.argv[1] == "bad":
    sys.exit("out of luck")
pathlib.Path(sys.argv[1]).touch()
"""
    fake_dvc(tmp_path, monkeypatch, script)
    names = ["bad", "good", "fine"]
    with pytest.raises(BadInput, match="1 of 3 failed(.|\n)*out of luck"):
        module._run_units(tmp_path, [Unit(n, (n,)) for n in names], 1, dict(os.environ))
    assert (tmp_path / "good").exists() and (tmp_path / "fine").exists()


# --- a whole study, on a project of a few lines --------------------------------------------------
DVC_YAML = """\
stages:
  code:
    cmd: python -m pipeline code
    deps: [pipeline]
    outs: [data/code/train.txt]
  fetch:
    foreach: ${datasets}
    do: {cmd: 'python -m pipeline fetch "${key}"', deps: [data/code/train.txt],
         outs: ["data/raw/${key}.manifest.json"]}
  prepare:
    foreach: ${datasets}
    do: {cmd: 'python -m pipeline prepare "${key}"', deps: ["data/raw/${key}.manifest.json"],
         outs: ["data/prepared/${key}"]}
  propose:
    foreach: ${proposals}
    do: {cmd: 'python -m pipeline propose "${key}"', deps: ["data/prepared/${item.dataset}"],
         outs: ["data/proposals/${key}"]}
  weights:
    foreach: ${weights}
    do: {cmd: 'python -m pipeline weights "${key}"', outs: ["data/models/${key}.pt"]}
  train:
    foreach: ${semantic}
    do: {cmd: 'python -m pipeline train "${key}"', params: ["semantic.${key}"],
         deps: ["data/prepared/${item.dataset}", "data/models/${item.init}.pt"],
         outs: ["data/models/${key}.pt"]}
  boxsup:
    foreach: ${boxsup}
    do: {cmd: 'python -m pipeline boxsup "${key}"', params: ["boxsup.${key}"],
         deps: ["data/prepared/${item.dataset}", "data/models/${item.init}.pt"],
         outs: ["data/models/${key}.pt", "data/models/${key}.history.parquet"]}
  predict:
    foreach: ${evaluations}
    do: {cmd: 'python -m pipeline predict "${key}"', deps: ["data/models/${item.model}.pt"],
         outs: ["data/predictions/${key}"]}
  evaluate:
    foreach: ${evaluations}
    do: {cmd: 'python -m pipeline evaluate "${key}"', deps: ["data/predictions/${key}"],
         outs: ["data/metrics/${key}.parquet"]}
"""
MAIN = """\
import sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
stage, name = sys.argv[1], sys.argv[-1]
with open(Path(__file__).with_name("calls.log"), "a") as log:
    log.write(f"{stage} {name}\\n")
seed = int(name[-1]) if "_seed" in name else 0
def touch(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(name)
if stage == "code": touch("data/code/train.txt")
if stage == "fetch": touch(f"data/raw/{name}.manifest.json"); touch(f"data/raw/{name}/image")
if stage == "prepare":
    assert Path(f"data/raw/{name}/image").exists()
    touch(f"data/prepared/{name}/x")
if stage == "propose": touch(f"data/proposals/{name}/x")
if stage in ("weights", "train", "boxsup"): touch(f"data/models/{name}.pt")
if stage == "boxsup":
    pq.write_table(pa.table({"step": [0], "epoch": pa.array([0], pa.int32()),
        "name": ["label_mean_iou"], "value": [0.5]}), f"data/models/{name}.history.parquet")
if stage == "predict": touch(f"data/predictions/{name}/x")
if stage == "evaluate":
    Path("data/metrics").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"evaluation": [name], "dataset": ["sample"], "split": ["val"],
        "metric": ["mean_iou"], "category": pa.array([None], pa.string()),
        "at": pa.array([None], pa.float64()), "value": [0.4 + seed / 10]}),
        f"data/metrics/{name}.parquet")
"""


@pytest.fixture
def project(tmp_path):
    """A git and DVC project whose stages write next to nothing, with the catalogue's sample."""
    root = tmp_path / "project"
    (root / "pipeline").mkdir(parents=True)
    (root / "pipeline" / "__main__.py").write_text(MAIN)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / ".gitignore").write_text("/data\n/work\n__pycache__\n*.log\n")
    (root / ".dvcignore").write_text("__pycache__\n*.log\n")
    (root / "params").mkdir()
    shutil.copy(ROOT / "params" / "sample.yaml", root / "params")
    text = (root / "params" / "sample.yaml").read_text()
    start = text.index("groups:")
    text = text[:start] + (
        "groups:\n  two: [sample_mask_s8, sample_mask_s8_multiview, sample_semi]\n"
        "studies:\n  tiny: {group: two, seeds: [0, 1], claims: [[sample_mask_s8, sample_semi]]}\n"
    )
    (root / "params" / "sample.yaml").write_text(text)
    shutil.copy(ROOT / "params.yaml", root)
    environment = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for command in (
        ["git", "init", "--quiet"],
        [sys.executable, "-m", "dvc", "init", "--quiet"],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "first"],
    ):
        subprocess.run(command, cwd=root, check=True, env=os.environ | environment)
    return root


def calls(root):
    (clone,) = (p for p in (root / "work" / "studies" / "tiny").iterdir() if p.is_dir())
    return sorted((clone / "pipeline" / "calls.log").read_text().split("\n")[:-1])


@pytest.mark.slow
def test_a_study_runs_in_a_clone_and_goes_on_where_it_was(project):
    before = (project / "params.yaml").read_bytes()
    study(project, "tiny", jobs=2)
    table = read_table(project / "reports" / "studies" / "tiny.parquet", "study")
    assert len(table) == 2 * (3 + 1)
    text = (project / "reports" / "studies" / "tiny.md").read_text()
    assert "| sample_mask_s8_multiview | 14 | 1/8 | 3 | 4 | 72 | 45.0 ± 7.1 | 40.0 | 50.0 |" in text
    first = calls(project)
    assert first.count("train sample_mask_s8_seed1") == 1
    assert len(first) == len(set(first))

    (project / "reports" / "studies" / "tiny.md").unlink()
    study(project, "tiny", jobs=2)
    assert calls(project) == first  # nothing ran twice
    assert (project / "reports" / "studies" / "tiny.md").read_text() == text
    assert (project / "params.yaml").read_bytes() == before
    assert not (project / "dvc.lock").exists()


def git_project(root):
    root.mkdir()
    shutil.copytree(ROOT / "params", root / "params")
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "first"]
    for arguments in (["init", "--quiet"], ["add", "--all"], commit):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    return root


def test_a_study_of_uncommitted_code_is_refused(tmp_path):
    root = git_project(tmp_path / "project")
    with (root / "params" / "sample.yaml").open("a") as file:
        file.write("# edited\n")
    with pytest.raises(BadInput, match="commit them first(.|\n)*sample.yaml"):
        study(root, "sample_fcrn", jobs=1)


def test_an_unknown_study_is_refused_with_the_names_there_are(tmp_path):
    root = git_project(tmp_path / "project")
    with pytest.raises(BadInput, match="no study 'other'.*sample_fcrn"):
        study(root, "other", jobs=1)


# --- prune ---------------------------------------------------------------------------------------
@pytest.fixture
def work(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    folders = ["train/sample_mask_s8-1", "train/sample_mask_s8-2", "train/gone-1", "studies/s/abc"]
    for name in folders:
        (tmp_path / "work" / name).mkdir(parents=True)
    (tmp_path / "work" / "train" / "sample_mask_s8-1" / "published").touch()
    (tmp_path / "work" / "params.lock").touch()
    return tmp_path


def names(root, folders):
    return sorted(str(f.relative_to(root / "work")) for f in folders)


def test_prune_takes_what_is_finished_or_of_no_active_run(work):
    removed = names(work, prune(work, all=False))
    assert removed == ["train/gone-1", "train/sample_mask_s8-1"]
    assert (work / "work" / "train" / "sample_mask_s8-2").is_dir()
    assert not (work / "work" / "train" / "gone-1").exists()


def test_prune_of_all_takes_unfinished_work_and_studies_too(work):
    assert len(prune(work, all=True)) == 4
    assert [
        p for p in (work / "work").glob("*/*") if p.is_dir() and p.parent.name != "studies"
    ] == []


def test_prune_leaves_what_is_held(work):
    with (work / "work" / "train" / "sample_mask_s8.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert names(work, prune(work, all=True)) == ["studies/s/abc", "train/gone-1"]


def test_prune_without_work_does_nothing(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    assert prune(tmp_path, all=True) == []
