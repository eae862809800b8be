"""The project folder as DVC sees it: its graph, which stages are stale, and running one.

The only module that leans on DVC's internals (`Repo.index.graph`, `Stage.changed`).
Whether a stage is stale is asked in this process, which is quick; a stage that must run does so in
`dvc repro --single-item`, so that its output can be read line by line.
"""

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import networkx as nx
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo

from flows.walk import Environment, Outcome
from pipeline.errors import BadInput

BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")  # as DVC says it
TRIES = 20  # half a minute in all: DVC holds its lock for moments, never while a stage runs
TETHER = Path(__file__).with_name("tether.py")
T = TypeVar("T")


class StageFailed(Exception):
    """A stage did not do its work; the message is what it said."""

    result = "failed"


class NeedsFile(StageFailed):
    """A stage needs a file that only a person can place; the message says which, and where."""

    result = "needs a file"


class DvcProject:
    """One project folder while one flow runs in it. Threads may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()  # DVC compares whole paths
        self._checking = threading.Lock()  # DVC's own lock would make our threads wait for seconds
        self._ending = threading.Event()
        self._starting = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()

    def producers(self, targets: Iterable[str]) -> dict[str, list[str]]:
        """The part of DVC's graph that `targets` need: {stage: whose outputs it reads}.

        Every stage comes after its producers.

        Raises:
            BadInput: a target is no stage of dvc.yaml.
        """
        with Repo(str(self.root)) as repo:
            graph = repo.index.graph  # edges point from consumer to producer
            stages = {stage.name: stage for stage in graph}
            unknown = sorted(set(targets) - stages.keys())
            if unknown:
                raise BadInput(
                    f"no stage in dvc.yaml: {', '.join(unknown)}; there are: {', '.join(stages)}"
                )
            wanted = {stages[name] for name in targets}
            wanted |= {stage for target in wanted for stage in nx.descendants(graph, target)}
            order = nx.dfs_postorder_nodes(graph.subgraph(wanted))
            return {stage.name: sorted(p.name for p in graph.successors(stage)) for stage in order}

    def is_stale(self, name: str) -> bool:
        """Whether `dvc repro` would run the stage now: it asks DVC the same question.

        Its producers must be done before.
        """

        def check() -> bool:
            with self._checking, Repo(str(self.root)) as repo, lock_repo(repo):
                return repo.stage.load_one(str(self.root / "dvc.yaml"), name).changed()

        return when_unlocked(check, self._wait)

    def bring_up_to_date(
        self, name: str, log: Callable[[str], object], environment: Environment
    ) -> Outcome:
        """Run one stage if it is stale, and say what became of it."""
        try:
            if not self.is_stale(name):
                return Outcome("fresh")
            self.repro(name, log, environment)
            return Outcome("ran")
        except StageFailed as error:
            return Outcome(error.result, str(error))

    def repro(self, name: str, log: Callable[[str], object], environment: Environment) -> None:
        """Run one stage, whatever its producers. Each line it prints goes to `log` at once.

        Raises:
            NeedsFile: the stage's command ended with exit code 3.
            StageFailed: it failed in another way, or DVC's lock stayed busy.
        """
        when_unlocked(lambda: self._repro_once(name, log, environment), self._wait)

    def end(self) -> None:
        """End the stages that run, with all their processes; those who wait for them wait on.

        No stage starts afterwards.
        """
        with self._starting:
            self._ending.set()
            for process in self._running:
                assert process.stdin is not None
                process.stdin.close()  # flows/tether.py does the rest

    def _repro_once(
        self, name: str, log: Callable[[str], object], environment: Environment
    ) -> None:
        last: deque[str] = deque(maxlen=40)
        process = self._start(
            [sys.executable, "-m", "dvc", "repro", "--single-item", name], environment
        )
        try:
            with process:
                assert process.stdout is not None
                for line in process.stdout:  # until the last process of the group is gone
                    last.append(line.rstrip())
                    log(last[-1])
        finally:
            with self._starting:
                self._running.discard(process)
        if process.returncode != 0:
            raise failure(name, list(last))

    def _start(self, command: list[str], environment: Environment) -> "subprocess.Popen[str]":
        """A process tethered to this one, whose stages find this Python under the name python."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        with self._starting:
            if self._ending.is_set():
                raise StageFailed("not started: the flow is being ended")
            process = subprocess.Popen(
                [sys.executable, "-P", str(TETHER), *command],
                cwd=self.root,
                env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        return process

    def _wait(self, seconds: float) -> None:
        self._ending.wait(seconds)


def when_unlocked(attempt: Callable[[], T], wait: Callable[[float], None]) -> T:
    """What `attempt` returns, tried again while another DVC command holds a lock.

    Raises:
        StageFailed: the lock was busy every time.
    """
    for k in range(TRIES):
        try:
            return attempt()
        except LockError as error:
            reason = error
            wait(0.5 + 0.1 * k)
    raise StageFailed(f"DVC's lock stayed busy, tried {TRIES} times: {reason}")


def failure(name: str, lines: list[str]) -> Exception:
    """What to raise for a stage whose `dvc repro` failed.

    Args:
        name: the stage.
        lines: the last lines that were printed, by the stage and by DVC.

    Returns:
        LockError if it is worth another try, NeedsFile or StageFailed with what the stage said.
    """
    if any(busy in line for line in lines for busy in BUSY):
        return LockError("\n".join(lines))
    starts = [i for i, line in enumerate(lines) if line.startswith(("needs a file: ", "error: "))]
    ours = lines[starts[-1] :] if starts else lines
    said = "\n".join(line for line in ours if not line.startswith("ERROR: failed to reproduce"))
    needs_file = any(line.endswith("exited with 3") for line in lines)
    return (NeedsFile if needs_file else StageFailed)(f"{name}: {said or 'it said nothing'}")
