"""The deployments as people use them: `make up`, then `prefect deployment run NAME`.

The graph is the project's own dvc.yaml; each command is replaced by one that writes its outs.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow

OTHERS = {
    "train-cityscapes": ["fcrn152_s8_k5_d12_b512_cityscapes"],
    "train-context": ["fcrn101_s8_k5_d12_b512_context"],
    "train-boxsup": ["boxsup_top5_voc"],
    "train-instances": ["instances101_b512_weighted_sbd", "oracle_sbd", "ceiling_sbd"],
}

WRITE_OUTS = """
import sys, time
from pathlib import Path
stage, *outs = sys.argv[1:]
trouble = Path("trouble.txt").read_text() if Path("trouble.txt").exists() else ""
if trouble == f"refuse {stage}":
    print("needs a file: put w.zip into data/", file=sys.stderr)
    sys.exit(3)
if trouble == f"wait {stage}":
    Path("waiting.txt").write_text("")
    time.sleep(600)
for out in map(Path, outs):
    file = out if out.suffix else out / "file.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(stage)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the project, as good as installed by `pip install -e .`, without data."""
    root = tmp_path_factory.mktemp("checkout") / "project"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "data", "work", "*.egg-info", ".*_cache", "tmp"
    )
    shutil.copytree(ROOT, root, ignore=ignored)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    (root / "write_outs.py").write_text(WRITE_OUTS)
    yaml = YAML()
    graph = yaml.load(root / "dvc.yaml")
    for name, stage in graph["stages"].items():
        body = stage.get("do", stage)
        outs = [out if isinstance(out, str) else next(iter(out)) for out in body["outs"]]
        body["cmd"] = " ".join(["python write_outs.py", name, *(f'"{out}"' for out in outs)])
        body.pop("metrics", None)
    yaml.dump(graph, root / "dvc.yaml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = root / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    hooks = project["entry-points"]["prefect.plugins"]
    lines = [f"{name} = {module}\n" for name, module in hooks.items()]
    (installed / "entry_points.txt").write_text("[prefect.plugins]\n" + "".join(lines))
    return root


@pytest.fixture(scope="module")
def environment(checkout, tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "DO_NOT_TRACK": "1",
        "PORT": str(port),
    }


@contextmanager
def running_up(checkout, environment, log):
    """`python -m flows.up`, ready; ended at the end, if it has not before."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.up", "--port", environment["PORT"]],
            cwd=checkout,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: "\nReady: " in log.read_text(), process, log)
        yield process
    finally:
        print(log.read_text())
        if process.poll() is None:
            process.terminate()
            process.wait(120)


@pytest.fixture
def up(checkout, environment, tmp_path):
    with running_up(checkout, environment, tmp_path / "up.log") as process:
        yield process


def wait_for(ready, process, log, seconds=240):
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def prefect(checkout, environment, line):
    """`prefect LINE`, as typed in the checkout."""
    return subprocess.run(
        ["prefect", *line.split(" ")],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )


def alive(processes):
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_each_bare_name_builds_evaluates_and_reports_on_loopback(checkout, environment, up):
    line = "deployment run train-voc --watch --watch-interval 1"
    done = prefect(checkout, environment, line)
    assert done.returncode == 0, done.stdout
    assert "Flow run finished successfully in 'Completed'" in done.stdout
    run = "fcrn101_s8_k5_d12_b512_voc"
    assert run in YAML(typ="safe").load(checkout / "params.yaml")["semantic"]
    assert (checkout / "data" / "metrics" / f"{run}.parquet").exists()
    assert (checkout / "reports" / "tables.md").read_text() == "report"

    for name, runs in OTHERS.items():
        done = prefect(checkout, environment, f"deployment run {name} --watch --watch-interval 1")
        assert done.returncode == 0, done.stdout
        assert all((checkout / "data" / "metrics" / f"{run}.parquet").exists() for run in runs)

    started = psutil.Process(up.pid).children(recursive=True)
    sockets = [c for p in started for c in p.net_connections("inet")]
    assert {c.laddr.ip for c in sockets} == {"127.0.0.1"}
    assert {c.raddr.ip for c in sockets if c.raddr} <= {"127.0.0.1"}

    (checkout / "trouble.txt").write_text("refuse train")
    line = (
        "deployment run train-sample --watch --param parallel=2"
        ' --param overrides={"semantic.sample_mask_s8.lr":0.03125}'
    )
    failed = prefect(checkout, environment, line)
    assert failed.returncode == 1, failed.stdout
    identity = re.search(r"UUID: (\S+)", failed.stdout)
    assert identity, failed.stdout
    with urllib.request.urlopen(
        f"{environment['PREFECT_API_URL']}/flow_runs/{identity[1]}", timeout=60
    ) as answer:
        state = json.load(answer)["state"]
    assert state["type"] == "FAILED"
    told = "train@sample_mask_s8: needs a file: put w.zip into data/"
    assert told in state["message"], state["message"]
    params = YAML(typ="safe").load(checkout / "params.yaml")
    assert params["semantic"]["sample_mask_s8"]["lr"] == 0.03125

    up.send_signal(signal.SIGTERM)
    assert up.wait(120) == 0
    psutil.wait_procs(started, timeout=30)
    assert alive(started) == []


def test_ending_everything_ends_the_running_stage_and_blocks_no_later_run(
    checkout, environment, up, tmp_path
):
    (checkout / "trouble.txt").write_text("wait fetch")
    overrides = 'deployment run train-sample --param overrides={"datasets.sample.train":47}'
    scheduled = prefect(checkout, environment, overrides)
    assert scheduled.returncode == 0, scheduled.stdout
    wait_for((checkout / "waiting.txt").exists, up, tmp_path / "up.log")
    started = psutil.Process(up.pid).children(recursive=True)
    assert any("write_outs.py" in p.cmdline() for p in started)
    up.send_signal(signal.SIGTERM)
    assert up.wait(120) == 0
    psutil.wait_procs(started, timeout=30)
    assert alive(started) == []

    (checkout / "trouble.txt").unlink()
    with running_up(checkout, environment, tmp_path / "second.log"):
        done = prefect(checkout, environment, "deployment run train-sample --watch")
    assert done.returncode == 0, done.stdout
    assert (checkout / "data" / "metrics" / "sample_mask_s8.parquet").exists()
