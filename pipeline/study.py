"""Studies: a group of the catalogue with several seeds, run in a scratch clone of one commit.

What a study asks is not what a commit builds, so nothing of it enters params.yaml or dvc.lock: the
clone lies in work/studies/<study>/<commit>/ with a params.yaml of its own, shares DVC's cache with
the checkout, and only reports/studies/<study>.parquet and .md come back. Killed and run again, a
study goes on: DVC skips the stages that are done, and the others have their checkpoints.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.catalogue import STAGES, Catalogue, find_study, with_needs
from pipeline.datasets.places import read_places, told_place
from pipeline.errors import BadInput
from pipeline.machine import machine
from pipeline.params import SECTIONS, TRAINED, Params, section_of, trained_runs
from pipeline.params_file import load_params
from pipeline.study_report import DASH, collect, page
from pipeline.tables import write_table
from pipeline.wording import NETWORK_HEAD, network_cells
from pipeline.work import PUBLISHED
from pipeline.yaml_edit import as_flow

# How DVC says that another DVC process is in the way: try again.
_LOCKED = ("Unable to acquire lock", "is busy, it is being blocked by")
_TRIES = 60


def study(root: Path, name: str, *, jobs: int) -> None:
    """Write reports/studies/<name>.parquet and .md.

    Args:
        root: the project folder.
        name: under `studies` in a file of the catalogue.
        jobs: trainings at a time; each gets its share of the cores.

    Raises:
        BadInput: no such study; code or catalogue are not committed; or a stage failed: names its
            log. Run again to go on.
    """
    if jobs < 1:
        raise BadInput(f"--jobs {jobs}: expected 1 or more")
    path, catalogue = find_study(root, name)
    commit = _committed(root)
    entry = catalogue.studies[name]
    evaluations = list(catalogue.groups[entry.group])
    clone = root / "work" / "studies" / name / commit
    with _held(clone):
        _clone(root, clone, commit)
        params = seeded(catalogue, evaluations, entry.seeds)
        _write_params(clone / "params.yaml", params)
        environment = _environment(root, params)
        _run_shared(clone, params, environment)
        _run_units(clone, trainings(params), jobs, environment)
        _run_units(clone, measurements(params), jobs, environment)

        models = [m for m in catalogue.boxsup if f"{m}_seed{entry.seeds[0]}" in params.boxsup]
        rows = collect(
            clone / "data", name, evaluations=evaluations, models=models, seeds=entry.seeds
        )
        facts = [
            ("runs", f"group {entry.group} of {path.name}; seeds vary the training only"),
            ("data", ", ".join(f"{n} ({e.kind})" for n, e in params.datasets.items())),
            ("seeds", ", ".join(map(str, entry.seeds))),
            ("commit", commit),
            ("machine", f"{machine()}; {jobs} run{'s' * (jobs > 1)} at a time"),
            ("precision", ", ".join(sorted({r.precision for r in trained_runs(params).values()}))),
        ]
        folder = root / "reports" / "studies"
        write_table(folder / f"{name}.parquet", "study", rows)
        networks = {e: _network_cells(catalogue, e) for e in evaluations}
        text = page(rows, title=name, facts=facts, claims=entry.claims, networks=networks)
        partial = folder / f".{name}.md.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, folder / f"{name}.md")
        (clone / PUBLISHED).touch()
    print(f"wrote {folder / name}.md and .parquet")


# --- what to run ---------------------------------------------------------------------------------
def seeded(catalogue: Catalogue, evaluations: list[str], seeds: tuple[int, ...]) -> Params:
    """The evaluations and all that they need, each trained run once for every seed.

    Trained runs and evaluations are called NAME_seedN; data and starting weights are shared.
    """
    wanted = with_needs(catalogue, [("evaluations", name) for name in evaluations])
    entries: dict[str, dict[str, Any]] = {
        section: {n: e for n, e in getattr(catalogue, section).items() if (section, n) in wanted}
        for section in SECTIONS
    }
    trained = {name for section in TRAINED for name in entries[section]}

    def with_seed(name: str, seed: int) -> str:
        return f"{name}_seed{seed}" if name in trained else name

    sections = {s: {} if s in (*TRAINED, "evaluations") else entries[s] for s in SECTIONS}
    for seed in seeds:
        for section in TRAINED:
            for name, run in entries[section].items():
                new = replace(run, seed=seed, init=with_seed(run.init, seed))
                sections[section][with_seed(name, seed)] = new
        for name, entry in entries["evaluations"].items():
            slots = {s: with_seed(getattr(entry, s), seed) for s in ("model", "localization")}
            new = replace(entry, **slots)
            sections["evaluations"][f"{name}_seed{seed}"] = new
    return Params(**sections)


@dataclass(frozen=True)
class Unit:
    """Stages to run one after another; no two units share a stage, so they can run side by side."""

    name: str
    stages: tuple[str, ...]


def trainings(params: Params) -> list[Unit]:
    """The trainings, each with those that start from it."""
    trained, stages = trained_runs(params), dict[str, list[str]]()
    for name in trained:
        chain = [name]
        while trained[chain[0]].init in trained:
            chain.insert(0, trained[chain[0]].init)
        stages.setdefault(chain[0], []).extend(
            f"{STAGES[section_of(params, m)][0]}@{m}" for m in chain
        )
    return [Unit(name, tuple(dict.fromkeys(found))) for name, found in stages.items()]


def measurements(params: Params) -> list[Unit]:
    """The evaluations, for which all trainings are done."""
    return [
        Unit(f"test_{name}", (f"predict@{name}", f"evaluate@{name}")) for name in params.evaluations
    ]


def _network_cells(catalogue: Catalogue, evaluation: str) -> tuple[str, ...]:
    """Of the semantic network; where the truth stands in for it, of the other; or nothing."""
    entry, trained = catalogue.evaluations[evaluation], trained_runs(catalogue)
    names = [name for name in (entry.model, entry.localization) if name in trained]
    return network_cells(trained[names[0]].network) if names else (DASH,) * len(NETWORK_HEAD)


# --- the scratch clone ---------------------------------------------------------------------------
def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise BadInput(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _committed(root: Path) -> str:
    """The commit of the checkout. Raises BadInput if what a study depends on differs from it."""
    changed = _git(root, "status", "--porcelain", "--", "pipeline", "params", "dvc.yaml")
    if changed:
        raise BadInput(
            "a study is named by its commit, but these differ from it; commit them first:\n"
            + changed
        )
    return _git(root, "rev-parse", "HEAD")


def _clone(root: Path, clone: Path, commit: str) -> None:
    """A clone of the commit that shares the checkout's DVC cache; one that is there is kept."""
    if clone.is_dir():
        return
    partial = clone.with_name(f".{commit}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _git(root, "clone", "--quiet", "--no-checkout", str(root.resolve()), str(partial.resolve()))
    _git(partial, "checkout", "--quiet", "--detach", commit)
    done = _dvc(root, ["cache", "dir"])
    cache = root.resolve() / done.stdout.strip()
    _dvc(partial, ["config", "--local", "cache.dir", str(cache)])
    os.replace(partial, clone)


def _write_params(path: Path, params: Params) -> None:
    lines = ["# Written by `python -m pipeline study`."]
    for section in SECTIONS:
        entries = getattr(params, section)
        lines.append(f"{section}:" if entries else f"{section}: {{}}")
        lines += [f"  {name}: {as_flow(asdict(entry))}" for name, entry in entries.items()]
    text = "\n".join(lines) + "\n"
    if path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    load_params(path)


def _environment(root: Path, params: Params) -> dict[str, str]:
    """Variables for the stages: this Python first, and where the checkout has published data.

    A drawn sample is drawn anew in the clone, as the checkout may be about to draw another.
    """
    environment = dict(os.environ)
    here = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([here, environment.get("PATH", "")])
    for dataset, entry in params.datasets.items():
        for name in {dataset, *read_places(dataset, entry)}:
            folder, own = told_place(root, name), root / "data" / "raw" / name
            if folder is None and own.is_dir() and entry.kind != "sample":
                folder = own
            if folder is not None:
                environment[f"PIPELINE_DATA_{name.upper()}"] = str(folder.resolve())
    return environment


@contextmanager
def _held(clone: Path) -> Iterator[None]:
    """Hold the clone, and end with the processes that were started when told to stop."""
    lock = clone.with_name(f"{clone.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{clone}: another process runs this study; wait for it") from None
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, _stop) if in_main else None
        try:
            yield
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


# --- running -------------------------------------------------------------------------------------
def _dvc(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise BadInput(f"dvc {' '.join(arguments)} in {folder}: {done.stderr.strip()}")
    return done


def _run_shared(clone: Path, params: Params, environment: dict[str, str]) -> None:
    """The stages that several units need, one after another on all cores."""
    # DVC may take a manifest out of its cache; the tree that it lists is then still to be made.
    missing = [
        f"fetch@{name}"
        for name in params.datasets
        if f"PIPELINE_DATA_{name.upper()}" not in environment
        and not (clone / "data" / "raw" / name).is_dir()
    ]
    stages = [f"{stage}@{name}" for stage in ("fetch", "prepare") for name in params.datasets]
    stages += [f"forests@{name}" for name in params.forests]
    stages += [f"propose@{name}" for name in params.proposals]
    stages += [f"weights@{name}" for name in params.weights]
    _run_units(clone, [Unit("code", ("code",))], 1, environment)
    if missing:
        _run_units(clone, [Unit("fetch", ("--force", *missing))], 1, environment)
    _run_units(clone, [Unit("shared", tuple(stages))], 1, environment)


def _run_units(clone: Path, waiting: list[Unit], jobs: int, environment: dict[str, str]) -> None:
    """Run units, up to `jobs` at a time. One that fails does not stop the others.

    Raises:
        BadInput: units failed; names their logs and gives the last lines of the first.
    """
    logs = clone / "work" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = environment | {"OMP_NUM_THREADS": threads}
    total, waiting = len(waiting), list(waiting)
    running: dict[Unit, subprocess.Popen] = {}
    tries: dict[Unit, int] = {}
    failed: list[Path] = []
    done = 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                unit = waiting.pop(0)
                tries[unit] = tries.get(unit, 0) + 1
                running[unit] = _start(clone, unit, logs / f"{unit.name}.log", environment)
            time.sleep(0.2)
            for unit in [u for u, process in running.items() if process.poll() is not None]:
                log = logs / f"{unit.name}.log"
                code = running.pop(unit).returncode
                if code and tries[unit] < _TRIES and any(text in _tail(log) for text in _LOCKED):
                    time.sleep(0.5)
                    waiting.append(unit)
                    continue
                done += 1
                failed += [log] if code else []
                state = "failed" if code else "done"
                print(f"{unit.name}: {state} ({done} of {total})", flush=True)
    finally:
        for process in running.values():
            os.killpg(process.pid, signal.SIGTERM)
        for process in running.values():
            process.wait()
    if failed:
        raise BadInput(
            f"{len(failed)} of {total} failed: {', '.join(map(str, failed))}. The first ends so:\n"
            f"{_tail(failed[0])}\nMend it and run again: what is done is kept"
        )


def _start(clone: Path, unit: Unit, log: Path, environment: dict[str, str]) -> subprocess.Popen:
    # --single-item: DVC locks the outputs of every stage that it looks at, so a process that
    # walked the graph would meet the shared stages that another is reading.
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", *unit.stages]
    with log.open("w") as file:
        return subprocess.Popen(
            command,
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
