"""Walking a graph of stages: what is ready runs, what cannot run is marked, nothing else stops.

No Prefect and no DVC in here: `walk` is told what depends on what and how to run one stage.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, replace

from pipeline.errors import BadInput

Environment = dict[str, str]  # variables that one stage gets on top of what it inherits


@dataclass(frozen=True)
class Outcome:
    """What became of one stage."""

    result: str  # ran, fresh, failed, needs a file, skipped
    message: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether what depends on the stage can run."""
        return self.result in ("ran", "fresh")


def walk(
    producers: Mapping[str, Collection[str]],
    run: Callable[[str, Environment], Outcome],
    stop: Callable[[], None],
    *,
    parallel: int,
    gpus: Sequence[str],
    on_gpu: Callable[[str], bool],
) -> dict[str, Outcome]:
    """Run every stage once its producers have run; several at a time.

    Args:
        producers: {stage: the stages whose outputs it reads}, each producer before its consumers.
        run: brings one stage up to date; called in a thread. What it raises is a failure.
        stop: ends the stages that are running; called when the walk itself is interrupted.
        parallel: stages at a time, at least 1.
        gpus: the GPUs to share out, one to a stage; empty: the stages see what this process sees.
        on_gpu: whether a stage takes one of `gpus`, and waits until one is free.

    Returns:
        {stage: outcome}, in the order of `producers`. A failed stage does not stop the others;
        what depends on it, near or far, is skipped.

    Raises:
        BadInput: `parallel` is below 1.
    """
    if parallel < 1:
        raise BadInput(f"parallel is {parallel}; at least one stage must run at a time")
    outcomes: dict[str, Outcome] = {}
    running: dict[Future[Outcome], tuple[str, list[str]]] = {}
    waiting = list(producers)
    free = list(gpus)

    def begin(name: str) -> None:
        held = [free.pop(0)] if gpus and on_gpu(name) else []
        environment = {"CUDA_VISIBLE_DEVICES": held[0]} if held else {}
        future = pool.submit(copy_context().run, _timed, run, name, environment)
        running[future] = name, held

    with ThreadPoolExecutor(max_workers=parallel) as pool:
        try:
            while waiting or running:
                for name in tuple(waiting):
                    needed = [outcomes.get(p) for p in producers[name]]
                    if any(o and not o.good for o in needed):
                        outcomes[name] = Outcome("skipped", _why(producers[name], outcomes))
                        waiting.remove(name)
                    elif (
                        all(needed)
                        and len(running) < parallel
                        and (free or not (gpus and on_gpu(name)))
                    ):
                        begin(name)
                        waiting.remove(name)
                # a signal that comes just before a wait does not end it: wait in small pieces
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    name, held = running.pop(future)
                    outcomes[name] = future.result()
                    free += held
        except BaseException:
            stop()  # the threads end when their stages have ended
            raise
    return {name: outcomes[name] for name in producers}


def _timed(
    run: Callable[[str, Environment], Outcome], name: str, environment: Environment
) -> Outcome:
    start = time.monotonic()
    try:
        outcome = run(name, environment)
    except Exception as error:  # of DVC or Prefect: one stage's trouble, not the walk's
        outcome = Outcome("failed", f"{name}: {type(error).__name__}: {error}")
    return replace(outcome, seconds=time.monotonic() - start)


def _why(producers: Collection[str], outcomes: Mapping[str, Outcome]) -> str:
    bad = [p for p in producers if p in outcomes and not outcomes[p].good]
    return "needs " + ", ".join(f"{p} ({outcomes[p].result})" for p in bad)


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; none: empty.

    torch is not asked: importing it costs more than the whole walk over a fresh graph.
    """
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        return [] if names[0] in ("", "-1", "NoDevFiles") else names
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.split() if answer.returncode == 0 else []
