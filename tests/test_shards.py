"""Shards of work over dask: in order, done again where a process dies, broken in words."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster

from pipeline import shards
from pipeline.errors import BadFile, BadInput
from pipeline.shards import map_shards

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def two_processors(monkeypatch):
    monkeypatch.setattr(shards, "processors", lambda: 2)


# Work; sent by name, so the workers import this file.
def square(item: int) -> int:
    return item * item


def process(item: int) -> int:
    return os.getpid()


def fail_at(item: int) -> int:
    if item >= 7:
        raise BadFile(Path(f"{item}.jpg"), "damaged", "copy it anew")
    return item


class Recorded:
    """Leaves a file per run of an item, and does harm once, or whenever, it comes to an item."""

    def __init__(self, folder: Path, poison: int, once: bool) -> None:
        self.folder, self.poison, self.once = folder, poison, once

    def __call__(self, item: int) -> int:
        with (self.folder / f"{item}.runs").open("a") as file:
            file.write(".")
        harmed = self.folder / "harmed"
        if item == self.poison and not (self.once and harmed.exists()):
            harmed.touch()
            time.sleep(1)  # the shard before has been fetched
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return item * item

    def runs(self, item: int) -> int:
        path = self.folder / f"{item}.runs"
        return path.stat().st_size if path.exists() else 0


def children() -> list[psutil.Process]:
    """Worker processes of this one; multiprocessing's tracker of resources stays."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(child.cmdline())
    ]


# --- this machine --------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_items_stay_in_this_process(count):
    results = map_shards(process, range(count), "trying", shard=5, scheduler=None)
    assert list(results) == [os.getpid()] * count


def test_one_processor_needs_no_other_process(monkeypatch):
    monkeypatch.setattr(shards, "processors", lambda: 1)
    results = map_shards(process, range(9), "trying", shard=2, scheduler=None)
    assert set(results) == {os.getpid()}


def test_nothing_is_done_before_a_result_is_asked_for(tmp_path):
    work = Recorded(tmp_path, poison=-1, once=True)
    results = map_shards(work, range(4), "trying", shard=9, scheduler=None)
    assert work.runs(0) == 0
    next(results)
    assert [work.runs(item) for item in range(4)] == [1, 0, 0, 0]


def test_results_come_in_the_order_of_the_items_and_no_process_is_left():
    before, environment = children(), dict(os.environ)
    results = list(map_shards(square, range(101), "trying", shard=10, scheduler=None))
    assert results == [item * item for item in range(101)]
    assert children() == before
    assert dict(os.environ) == environment


@pytest.mark.slow
def test_other_machines_reach_no_port_of_it():
    results = map_shards(square, range(9), "trying", shard=2, scheduler=None)
    next(results)
    connections = [c for p in [psutil.Process(), *children()] for c in p.net_connections("inet")]
    listening = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    results.close()
    assert listening == {"127.0.0.1"}


def test_a_process_killed_once_loses_its_shard_only(tmp_path):
    work = Recorded(tmp_path, poison=33, once=True)
    results = list(map_shards(work, range(60), "trying", shard=5, scheduler=None))
    assert results == [item * item for item in range(60)]
    assert [work.runs(item) for item in range(60)] == [1] * 30 + [2] * 4 + [1] * 26


@pytest.mark.slow
def test_a_shard_that_kills_every_process_is_told_in_words(tmp_path):
    work = Recorded(tmp_path, poison=33, once=False)
    results = map_shards(work, range(60), "trying", shard=5, scheduler=None)
    kept = [next(results) for _ in range(30)]
    assert kept == [item * item for item in range(30)]
    with pytest.raises(BadInput, match="given these 5 images was killed.*first of them: 30"):
        next(results)
    assert work.runs(33) == 3
    assert children() == []


def test_the_first_shard_at_fault_raises_its_error_unchanged():
    results = map_shards(fail_at, range(20), "trying", shard=2, scheduler=None)
    assert [next(results) for _ in range(6)] == list(range(6))
    with pytest.raises(BadFile) as caught:
        next(results)
    assert (caught.value.path, caught.value.remedy) == (Path("7.jpg"), "copy it anew")


@pytest.mark.slow
def test_giving_up_early_leaves_no_process_and_few_results(tmp_path):
    work = Recorded(tmp_path, poison=-1, once=True)
    before = children()
    results = map_shards(work, range(1000), "trying", shard=2, scheduler=None)
    next(results)
    time.sleep(1)
    results.close()
    assert children() == before
    assert sum(work.runs(item) for item in range(1000)) <= 2 * 2 * shards.AHEAD + 2


SCRIPT = """
import os, time
from pipeline import shards

def work(item):
    print(os.getpid(), flush=True)
    time.sleep(1 if item == 0 else 600)

if __name__ == "__main__":
    shards.processors = lambda: 2
    list(shards.map_shards(work, range(4), "trying", shard=1, scheduler=None))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(tmp_path, number):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    ) as parent:
        workers = [psutil.Process(int(parent.stdout.readline())) for _ in range(3)]
        # A key press reaches the whole group; a kill one process.
        (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == []
        assert parent.wait(20) == -number
    left = {path.name for path in tmp_path.iterdir()} - {"script.py"}
    assert not left or number != signal.SIGINT


# --- a cluster -----------------------------------------------------------------------------------
@pytest.fixture
def scheduler(tmp_path):
    """The address of a scheduler without workers, on loopback."""
    with LocalCluster(
        n_workers=0,
        host="127.0.0.1",
        scheduler_kwargs=shards.NO_DASHBOARD,
        memory_limit=0,
        local_directory=tmp_path,
        silence_logs=False,
    ) as cluster:
        yield cluster.scheduler_address


@contextmanager
def workers_of(scheduler: str, count: int, folder: Path = PROJECT):
    """Workers as people start them, by hand, whose Python looks for packages in a folder first."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--nthreads", "1"]
    command += ["--nworkers", str(count), "--no-dashboard"]
    path = os.pathsep.join([str(folder), str(PROJECT / "tests")])
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for line in process.stderr:
                count -= "Starting established connection" in line
                if not count:
                    break
            yield process
        finally:
            process.terminate()
            process.stderr.read()


@pytest.mark.slow
def test_workers_of_a_scheduler_do_the_work_and_stay(scheduler, tmp_path):
    work = Recorded(tmp_path, poison=13, once=True)
    with workers_of(scheduler, 2):
        results = list(map_shards(work, range(60), "trying", shard=5, scheduler=scheduler))
        assert results == [item * item for item in range(60)]
        assert [work.runs(item) for item in range(60)] == [1] * 10 + [2] * 4 + [1] * 46
        assert list(map_shards(square, [3], "trying", shard=5, scheduler=scheduler)) == [9]


@pytest.mark.slow
def test_workers_with_other_code_are_refused(scheduler, tmp_path):
    shutil.copytree(PROJECT / "pipeline", tmp_path / "pipeline")
    (tmp_path / "pipeline" / "boxes.py").write_text("# another version\n")
    with workers_of(scheduler, 1, tmp_path):
        with pytest.raises(BadInput, match="workers without this version of this project: tcp://"):
            list(map_shards(square, [3], "trying", shard=5, scheduler=scheduler))


@pytest.mark.slow
def test_workers_with_other_packages_are_refused(scheduler, tmp_path):
    package = tmp_path / "higra-9.9.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: higra\nVersion: 9.9\n")
    with workers_of(scheduler, 1, tmp_path):
        with pytest.raises(BadInput, match=r"install constraints.txt(?s:.*)higra.*9\.9"):
            list(map_shards(square, [3], "trying", shard=5, scheduler=scheduler))


@pytest.mark.slow
def test_a_scheduler_that_goes_away_is_told(tmp_path):
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        scheduler_kwargs=shards.NO_DASHBOARD,
        local_directory=tmp_path,
    ) as cluster:
        address = cluster.scheduler_address
        results = map_shards(square, range(100), "trying", shard=1, scheduler=address)
        assert next(results) == 0
        cluster.close()
        with pytest.raises(BadInput, match="the dask scheduler is gone"):
            list(results)


def test_a_scheduler_without_workers_is_told(scheduler, monkeypatch):
    monkeypatch.setattr(shards, "SECONDS_TO_ANSWER", 1)
    with pytest.raises(BadInput, match=f"no workers. Start some with `dask worker {scheduler}`"):
        list(map_shards(square, [3], "trying", shard=5, scheduler=scheduler))


@pytest.mark.parametrize("address", ["", "somewhere", "http://127.0.0.1:1", "tcp://127.0.0.1:1"])
def test_an_address_where_no_scheduler_is_is_told(address, monkeypatch):
    monkeypatch.setattr(shards, "SECONDS_TO_ANSWER", 0.5)
    with pytest.raises(BadInput, match=f"^{address}: no dask scheduler answers there"):
        list(map_shards(square, [3], "trying", shard=5, scheduler=address))


def test_a_server_of_another_kind_is_no_scheduler(monkeypatch):
    monkeypatch.setattr(shards, "SECONDS_TO_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BadInput, match="no dask scheduler answers there"):
            list(map_shards(square, [3], "trying", shard=5, scheduler=address))
