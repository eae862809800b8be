"""The flows' parts, on a small DVC project: no Prefect server is started here."""

import asyncio
import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import httpx
import pytest
from dvc.lock import FAILED_TO_LOCK_MESSAGE, LockError
from fastapi import Body, FastAPI
from ruamel.yaml import YAML

from flows.bare_deployment_names import NAMES, expand
from flows.dvc_project import TRIES, DvcProject, StageFailed, failure, when_unlocked
from flows.graph import activate, run_stages, summary
from flows.walk import Outcome, visible_gpus, walk
from pipeline.catalogue import STAGES as STAGES_OF
from pipeline.errors import BadInput
from pipeline.params import TRAINED
from pipeline.params_file import load_params

ROOT = Path(__file__).resolve().parents[1]
# DVC reads dvc.yaml with a package that warns of its own future
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")

PYTHON = sys.executable
STAGES = ["code", "train@a", "train@b", "evaluate@ab", "report"]

DVC_YAML = """
stages:
  code:
    cmd: python step.py code data/code.txt
    deps: [step.py]
    outs: [data/code.txt]
  train:
    foreach: ${rates}
    do:
      cmd: python step.py "train@${key}" "data/models/${key}.txt" data/code.txt params.yaml
      deps: [data/code.txt]
      params: ["rates.${key}"]
      outs: ["data/models/${key}.txt"]
  evaluate:
    foreach: [ab]
    do:
      cmd: python step.py evaluate@ab data/metrics/ab.txt data/models/a.txt data/models/b.txt
      deps: [data/models/a.txt, data/models/b.txt]
      outs: [data/metrics/ab.txt]
  report:
    cmd: python step.py report report.txt data/metrics/ab.txt
    deps: [data/metrics]
    outs: [report.txt]
"""

# Leaves its name and its Python in ran.txt; does what trouble.txt says, if that names it.
STEP = """
import subprocess, sys, time
from pathlib import Path
name, out, *inputs = sys.argv[1:]
with open("ran.txt", "a") as file:
    file.write(f"{name} {sys.prefix}\\n")
trouble = Path("trouble.txt").read_text().split() if Path("trouble.txt").exists() else []
if trouble[:2] == [name, "wait"]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("waiting", child.pid)
    time.sleep(60)
if trouble[:1] == [name]:
    print("needs a file: put w.zip into data/", "then run again", sep="\\n", file=sys.stderr)
    sys.exit(int(trouble[1]))
Path(out).parent.mkdir(parents=True, exist_ok=True)
Path(out).write_text(name + "".join(Path(i).read_text() for i in inputs))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A project of five stages in which all is up to date."""
    root = tmp_path_factory.mktemp("built")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "step.py").write_text(STEP)
    (root / "params.yaml").write_text("rates: {a: 1, b: 2}\n")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, check=True)
    with (root / ".dvc" / "config").open("a") as file:
        file.write("[core]\n    analytics = false\n    check_update = false\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "--quiet"],
        cwd=root,
        env={**os.environ, "PATH": path},
        check=True,
    )
    return root


@pytest.fixture
def project(built, tmp_path):
    """A copy of the built project, to be changed; ran.txt is empty."""
    root = tmp_path / "project"
    shutil.copytree(built, root)
    (root / "ran.txt").unlink()
    return DvcProject(root)


def run_all(project, lines=None):
    """{stage: result} of bringing everything up to date, in this thread's order."""
    log = (lines if lines is not None else []).append
    return run_stages(
        project,
        ["evaluate@ab"],
        lambda name, environment: project.bring_up_to_date(name, log, environment),
        parallel=1,
        gpus=[],
    )


def ran(project):
    path = project.root / "ran.txt"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def walked(producers, run, *, stop=lambda: None, parallel=1, gpus=(), on_gpu=lambda name: False):
    return walk(producers, run, stop, parallel=parallel, gpus=gpus, on_gpu=on_gpu)


def results(outcomes):
    return {name: outcome.result for name, outcome in outcomes.items()}


# --- DVC's graph ---------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_prefects_server_can_be_imported():
    importlib.import_module("prefect.server.api.server")


def test_the_server_takes_null_for_a_default():
    """Prefect's own client sends it when it deploys; FastAPI from 0.151 on refuses it."""
    api = FastAPI()

    @api.post("/echo")
    def echo(worker: dict, limit: int = Body(5)) -> int:
        return limit

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=api)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/echo", json={"worker": {}, "limit": None})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.text) == (200, "5")


def test_the_graph_is_dvcs_with_producers_first(project):
    producers = project.producers(["report"])
    assert producers == {
        "code": [],
        "train@a": ["code"],
        "train@b": ["code"],
        "evaluate@ab": ["train@a", "train@b"],
        "report": ["evaluate@ab"],
    }
    names = list(producers)
    assert all(names.index(p) < names.index(name) for name in names for p in producers[name])


def test_the_graph_holds_only_what_the_targets_need(project):
    assert list(project.producers(["train@b"])) == ["code", "train@b"]


def test_an_unknown_target_is_refused_with_the_names_there_are(project):
    with pytest.raises(BadInput, match=r"evaluate@none; there are: .*evaluate@ab"):
        project.producers(["evaluate@none"])


def test_nothing_runs_when_all_is_fresh_from_whichever_folder(project, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert results(run_all(project)) == dict.fromkeys(STAGES, "fresh")
    assert ran(project) == []


def test_one_changed_parameter_runs_exactly_what_depends_on_it(project):
    (project.root / "params.yaml").write_text("rates: {a: 1, b: 3}\n")
    lines = []
    assert results(run_all(project, lines)) == {
        "code": "fresh",
        "train@a": "fresh",
        "train@b": "ran",
        "evaluate@ab": "ran",
        "report": "ran",
    }
    assert ran(project) == ["train@b", "evaluate@ab", "report"]
    assert "Running stage 'train@b':" in lines
    pythons = {line.split()[1] for line in (project.root / "ran.txt").read_text().splitlines()}
    assert pythons == {sys.prefix}


def test_a_file_to_be_placed_by_hand_is_told_and_the_report_still_runs(project):
    (project.root / "params.yaml").write_text("rates: {a: 1, b: 3}\n")
    (project.root / "trouble.txt").write_text("train@b 3")
    shutil.rmtree(project.root / "data" / "metrics")
    outcomes = run_all(project)
    assert results(outcomes) == {
        "code": "fresh",
        "train@a": "fresh",
        "train@b": "needs a file",
        "evaluate@ab": "skipped",
        "report": "failed",  # its command reads a number that was never measured
    }
    assert ran(project) == ["train@b", "report"]
    assert outcomes["evaluate@ab"].message == "needs train@b (needs a file)"
    told = "train@b: needs a file: put w.zip into data/\nthen run again"
    assert outcomes["train@b"].message == told
    assert told in summary(outcomes)


def test_ending_ends_the_stage_and_its_children_and_lets_none_start(project):
    (project.root / "params.yaml").write_text("rates: {a: 1, b: 3}\n")
    (project.root / "trouble.txt").write_text("train@b wait")
    said, outcomes, waiting = [], [], threading.Event()

    def log(line):
        said.append(line)
        if line.startswith("waiting"):
            waiting.set()

    thread = threading.Thread(
        target=lambda: outcomes.append(project.bring_up_to_date("train@b", log, {}))
    )
    thread.start()
    assert waiting.wait(60), said
    project.end()
    thread.join(30)  # it reads until the last process of the group is gone
    assert [o.result for o in outcomes] == ["failed"]
    with pytest.raises(StageFailed, match="being ended"):
        project.repro("train@a", log, {})


def test_a_command_on_the_tether_ends_with_the_pipe_even_if_it_will_not():
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('no', flush=True));"
        "print('begun', flush=True); [time.sleep(1) for _ in range(60)]"
    )
    tether = (
        f"from flows import tether; tether.GRACE = 0.3; tether.main({[PYTHON, '-c', stubborn]})"
    )
    with subprocess.Popen(
        [PYTHON, "-c", tether],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.stdin.close()
        assert process.stdout.read() == "no\n"  # to the end: nobody holds the pipe any more
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("kill -9 $$", 137)])
def test_the_tether_passes_the_exit_code_on(command, code):
    tethered = [PYTHON, str(ROOT / "flows" / "tether.py"), "sh", "-c", command]
    with subprocess.Popen(tethered, stdin=subprocess.PIPE, start_new_session=True) as process:
        assert process.wait(30) == code


# --- DVC's lock ----------------------------------------------------------------------------------
def test_a_busy_lock_is_tried_again():
    answers = [LockError("busy"), LockError("busy"), "done"]
    waits = []

    def attempt():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert when_unlocked(attempt, waits.append) == "done"
    assert waits == [0.5, 0.6]


def test_a_lock_that_stays_busy_fails_the_stage():
    def attempt():
        raise LockError("held by 7")

    waits = []
    with pytest.raises(StageFailed, match="held by 7"):
        when_unlocked(attempt, waits.append)
    assert len(waits) == TRIES


@pytest.mark.parametrize(
    "line",
    [
        f"ERROR: {FAILED_TO_LOCK_MESSAGE}",
        "ERROR: '/data/models' is busy, it is being blocked by:",
    ],
)
def test_a_busy_lock_of_the_child_counts_as_one(line):
    assert isinstance(failure("train@a", ["Running", line]), LockError)


def test_a_failed_stage_tells_its_last_lines():
    lines = ["Traceback", "ValueError: 3", "ERROR: failed to reproduce 'x': ..., exited with 1"]
    error = failure("x", lines)
    assert type(error) is StageFailed
    assert str(error) == "x: Traceback\nValueError: 3"


# --- walking -------------------------------------------------------------------------------------
DIAMOND = {"top": [], "left": ["top"], "right": ["top"], "bottom": ["left", "right"], "far": []}


def test_a_failure_skips_what_depends_on_it_and_nothing_else():
    def run(name, environment):
        return Outcome("needs a file" if name == "left" else "ran")

    outcomes = walked({**DIAMOND, "last": ["bottom"]}, run)
    assert results(outcomes) == {
        "top": "ran",
        "left": "needs a file",
        "right": "ran",
        "bottom": "skipped",
        "far": "ran",
        "last": "skipped",
    }
    assert outcomes["last"].message == "needs bottom (skipped)"


def test_an_unforeseen_error_is_one_stages_failure():
    def run(name, environment):
        return {"top": Outcome("ran")}[name]

    outcomes = walked({"top": [], "far": []}, run)
    assert results(outcomes) == {"top": "ran", "far": "failed"}
    assert outcomes["far"].message == "far: KeyError: 'far'"


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_ready_stages_run_at_the_same_time_up_to_parallel(parallel):
    stages = {f"s{i}": [] for i in range(6)}
    together = threading.Barrier(parallel)  # breaks unless that many are inside at once
    inside, most = set(), []

    def run(name, environment):
        inside.add(name)
        most.append(len(inside))
        together.wait(10)
        inside.discard(name)
        together.wait(10)
        return Outcome("ran")

    outcomes = walked(stages, run, parallel=parallel)
    assert results(outcomes) == dict.fromkeys(stages, "ran")
    assert max(most) == parallel


def test_a_stage_starts_only_when_its_producers_are_done():
    done = []

    def run(name, environment):
        assert set(DIAMOND[name]) <= set(done)
        time.sleep(0.01)
        done.append(name)
        return Outcome("ran")

    assert results(walked(DIAMOND, run, parallel=4)) == dict.fromkeys(DIAMOND, "ran")


def test_each_gpu_stage_has_a_gpu_of_its_own_and_others_none():
    lock, used = threading.Lock(), []

    def run(name, environment):
        gpu = environment.get("CUDA_VISIBLE_DEVICES")
        with lock:
            assert gpu is None or gpu not in used
            used.append(gpu)
        time.sleep(0.02)
        with lock:
            used.remove(gpu)
        assert (gpu in ("0", "3")) == name.startswith("train")
        return Outcome("ran")

    stages = {f"{kind}@{i}": [] for i in range(4) for kind in ("train", "evaluate")}
    outcomes = walked(
        stages, run, parallel=4, gpus=["0", "3"], on_gpu=lambda name: name.startswith("train")
    )
    assert results(outcomes) == dict.fromkeys(stages, "ran")


def test_without_a_list_of_gpus_the_environment_is_left_alone():
    seen = []

    def run(name, environment):
        seen.append(environment)
        return Outcome("ran")

    walked({"train@a": []}, run, parallel=2, on_gpu=lambda name: True)
    assert seen == [{}]


def test_an_interrupted_walk_stops_what_runs():
    started, stopped = threading.Event(), threading.Event()

    def run(name, environment):
        started.set()
        stopped.wait(10)
        return Outcome("failed")

    def interrupt():
        started.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    # A process that a script starts in the background ignores the signal, and so would this test.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            walked({"one": [], "two": ["one"]}, run, stop=stopped.set)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.is_set()


def test_no_stage_at_a_time_is_refused():
    with pytest.raises(BadInput, match="parallel is 0"):
        walked(DIAMOND, lambda name, environment: Outcome("ran"), parallel=0)


@pytest.mark.parametrize(
    ("given", "gpus"), [("0,2", ["0", "2"]), ("GPU-8f, 1", ["GPU-8f", "1"]), ("", []), ("-1", [])]
)
def test_visible_gpus_are_those_of_the_environment(given, gpus):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": given}) == gpus


def test_the_summary_counts_and_quotes_failures():
    outcomes = {
        "code": Outcome("fresh"),
        "train@a": Outcome("failed", "train@a: no"),
        "evaluate@a": Outcome("skipped", "needs train@a (failed)"),
    }
    assert summary(outcomes) == "3 stages: 1 fresh, 1 failed, 1 skipped\ntrain@a: no"


# --- what a flow is asked for ---------------------------------------------------------------------
VOC = "fcrn101_s8_k5_d12_b512_voc"


@pytest.fixture
def catalogue(tmp_path):
    """A folder with the project's own params.yaml and catalogue."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    return tmp_path


def test_runs_are_activated_once_and_what_that_changes_is_logged(catalogue):
    log = []
    overrides = {f"semantic.{VOC}.lr": 0.03125}
    assert activate(catalogue, [f"wu2016/{VOC}"], overrides, log.append) == [VOC]
    assert load_params(catalogue / "params.yaml").semantic[VOC].lr == 0.03125
    assert f"+  {VOC}:" in log
    assert [line for line in log if "lr: 0.03125" in line]
    log.clear()
    assert activate(catalogue, [f"wu2016/{VOC}"], overrides, log.append) == [VOC]
    assert log == []


def test_no_runs_means_all_that_is_active(catalogue):
    active = list(load_params(catalogue / "params.yaml").evaluations)
    assert activate(catalogue, [], {}, print) == active
    activate(catalogue, [f"wu2016/{VOC}"], {}, lambda line: None)
    assert activate(catalogue, [], {}, print) == [*active, VOC]


@pytest.mark.parametrize(
    ("runs", "overrides"),
    [(["wu2016/nothing"], {}), ([], {"semantic.nothing.lr": 1.0}), ([], {"datasets": None})],
)
def test_a_wrong_request_is_refused_and_changes_nothing(catalogue, runs, overrides):
    before = (catalogue / "params.yaml").read_bytes()
    with pytest.raises(BadInput):
        activate(catalogue, runs, overrides, print)
    assert (catalogue / "params.yaml").read_bytes() == before


# --- names of deployments ------------------------------------------------------------------------
RUN = ["prefect", "deployment", "run"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ([*RUN, "train-voc"], [*RUN, "train-voc/train-voc"]),
        ([*RUN, "train-sample", "--watch"], [*RUN, "train-sample/train-sample", "--watch"]),
        ([*RUN, "train-cityscapes"], [*RUN, "train-cityscapes/train-cityscapes"]),
        ([*RUN, "train-context"], [*RUN, "train-context/train-context"]),
        ([*RUN, "train-boxsup"], [*RUN, "train-boxsup/train-boxsup"]),
        ([*RUN, "train-instances"], [*RUN, "train-instances/train-instances"]),
        ([*RUN, "train-voc/train-voc"], [*RUN, "train-voc/train-voc"]),
        ([*RUN, "train-voc/nightly"], [*RUN, "train-voc/nightly"]),
        ([*RUN, "another"], [*RUN, "another"]),
        ([*RUN, "--id", "train-voc"], [*RUN, "--id", "train-voc"]),
        (RUN, RUN),
        (["prefect", "deployment", "ls"], ["prefect", "deployment", "ls"]),
        (
            ["prefect", "deployment", "inspect", "train-voc"],
            ["prefect", "deployment", "inspect", "train-voc"],
        ),
        (["prefect"], ["prefect"]),
    ],
)
def test_a_bare_name_of_ours_after_deployment_run_is_written_out(typed, meant):
    assert expand(typed) == meant


def test_the_bare_names_are_those_of_prefect_yaml_and_of_the_flows():
    deployments = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert {d["name"] for d in deployments} == NAMES
    flows = importlib.import_module("flows.graph")
    for deployment in deployments:
        file, function = deployment["entrypoint"].split(":")
        assert file == "flows/graph.py"
        assert getattr(flows, function).name == deployment["name"]


DATASETS = {
    "train-voc": "voc2012",
    "train-cityscapes": "cityscapes",
    "train-context": "context",
    "train-boxsup": "voc2012",
    "train-instances": "sbd",
}


def test_every_deployment_names_runs_of_the_catalogue(catalogue):
    deployments = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]
    asked = {d["name"]: d["parameters"]["runs"] for d in deployments}
    assert asked.pop("train-sample") == []
    assert set(asked) == set(DATASETS)
    for name, runs in asked.items():
        evaluations = activate(catalogue, runs, {}, lambda line: None)
        assert evaluations == [run.removeprefix("wu2016/").removeprefix("dai2015/") for run in runs]
        active = load_params(catalogue / "params.yaml")
        for evaluation in evaluations:
            entry = active.evaluations[evaluation]
            assert active.datasets[entry.dataset].kind == DATASETS[name]
            assert (entry.model in active.boxsup) == (name == "train-boxsup")
            assert (entry.instances != "none") == (name == "train-instances")


def test_instances_are_trained_with_their_oracle_and_their_ceiling(catalogue):
    deployments = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]
    (runs,) = (d["parameters"]["runs"] for d in deployments if d["name"] == "train-instances")
    activate(catalogue, runs, {}, lambda line: None)
    found = load_params(catalogue / "params.yaml").evaluations
    slots = [
        (found[name].model == "none", found[name].localization == "none")
        for name in (run.removeprefix("wu2016/") for run in runs)
    ]
    assert slots == [(False, False), (True, False), (True, True)]


def test_all_stages_that_train_get_a_gpu():
    graph = importlib.import_module("flows.graph")
    assert {STAGES_OF[section][0] for section in TRAINED} <= graph.GPU_STAGES


def test_the_hook_is_where_the_entry_point_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (module,) = project["entry-points"]["prefect.plugins"].values()
    assert callable(importlib.import_module(module).setup_environment)
