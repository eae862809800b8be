"""The flows: run what is stale of DVC's graph, in its order, and report.

dvc.yaml is the one list of stages; each becomes one task run. A flow says which part of the graph,
how many stages at a time and on which GPUs. `dvc repro` makes the same files without it.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.dvc_project import DvcProject
from flows.walk import Environment, Outcome, visible_gpus, walk
from pipeline import catalogue
from pipeline.params_file import load_params

ROOT = Path(__file__).resolve().parents[1]
GPU_STAGES = frozenset({"weights", "train", "boxsup", "localize", "predict"})


@flow
def train(
    runs: tuple[str, ...] = (), overrides: dict[str, Any] | None = None, parallel: int = 1
) -> State:
    """Build, evaluate and report runs.

    Args:
        runs: names or groups of the catalogue; activated if they are not. Empty: all active.
        overrides: dotted key: value, written to the activated entries of params.yaml.
        parallel: stages at a time.
    """
    return run_graph(str(flow_run.flow_name), runs, overrides or {}, parallel)


# One flow, under the name of each deployment; prefect.yaml says which runs are whose.
train_sample = train.with_options(name="train-sample")
train_voc = train.with_options(name="train-voc")
train_cityscapes = train.with_options(name="train-cityscapes")
train_context = train.with_options(name="train-context")
train_boxsup = train.with_options(name="train-boxsup")
train_instances = train.with_options(name="train-instances")


def run_graph(
    flow_name: str, runs: Sequence[str], overrides: dict[str, Any], parallel: int
) -> State:
    """All that a flow does. Returns its final state: Failed if a stage failed."""
    log = get_run_logger()
    evaluations = activate(ROOT, runs, overrides, log.info)
    project = DvcProject(ROOT)
    outcomes = run_stages(
        project,
        [f"evaluate@{name}" for name in evaluations],
        lambda name, environment: run_stage(project, name, environment),
        parallel=parallel,
        gpus=visible_gpus() if parallel > 1 else [],  # alone, a stage may use all of them
    )
    for name, outcome in outcomes.items():
        if outcome.result == "skipped":
            skipped(name, outcome.message, return_state=True)
    rows = [
        {"stage": n, "result": o.result, "seconds": round(o.seconds, 1)}
        for n, o in outcomes.items()
    ]
    create_table_artifact(rows, key=f"{flow_name}-stages", description="What became of each stage")
    text = summary(outcomes)
    if all(outcome.good for outcome in outcomes.values()):
        log.info(text)
        return Completed(message=text)
    log.error(text)
    return Failed(message=text)


@task(task_run_name="{name}", cache_policy=NO_CACHE)  # what is fresh is for DVC to say
def stage(project: DvcProject, name: str, environment: Environment) -> State:
    """Bring one stage up to date. Prefect shows the outcome as the state's name and message."""
    outcome = project.bring_up_to_date(name, get_run_logger().info, environment)
    end = Completed if outcome.good else Failed
    return end(name=outcome.result.capitalize(), message=outcome.message)


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def skipped(name: str, message: str) -> State:
    """Show a stage that could not run among those that did."""
    return Cancelled(name="Skipped", message=message)


def run_stage(project: DvcProject, name: str, environment: Environment) -> Outcome:
    """`stage` as Prefect saw it end."""
    state = stage(project, name, environment, return_state=True)
    return Outcome(str(state.name).lower(), state.message or "")


def activate(
    root: Path, runs: Sequence[str], overrides: dict[str, Any], log: Callable[[str], object]
) -> list[str]:
    """Have params.yaml hold `runs` and `overrides`; what that changes in the file goes to `log`.

    Returns:
        The evaluations that `runs` stand for; without `runs`, all that are active.

    Raises:
        BadInput: a name or an override that the catalogue refuses. params.yaml is as it was.
    """
    path = root / "params.yaml"
    before = path.read_text(encoding="utf-8").splitlines()
    named = catalogue.activate(root, list(runs), overrides) if runs or overrides else []
    after = path.read_text(encoding="utf-8").splitlines()
    for line in difflib.unified_diff(before, after, path.name, path.name, lineterm="", n=0):
        log(line)
    return named if runs else list(load_params(path).evaluations)


def run_stages(
    project: DvcProject,
    targets: Sequence[str],
    run: Callable[[str, Environment], Outcome],
    *,
    parallel: int,
    gpus: Sequence[str],
) -> dict[str, Outcome]:
    """Bring the targets and all that they need up to date, then `report`, whatever failed before.

    `report` reads what all active evaluations measured, so DVC's graph has it need them all; here
    it takes what there is.
    """
    outcomes = walk(
        project.producers(targets),
        run,
        project.end,
        parallel=parallel,
        gpus=gpus,
        on_gpu=lambda name: name.split("@")[0] in GPU_STAGES,
    )
    (project.root / "data" / "metrics").mkdir(parents=True, exist_ok=True)  # report reads it
    return outcomes | walk(
        {"report": []}, run, project.end, parallel=1, gpus=[], on_gpu=lambda name: False
    )


def summary(outcomes: Mapping[str, Outcome]) -> str:
    """One line of counts, then what each failed stage said."""
    counts = Counter(outcome.result for outcome in outcomes.values())
    lines = [f"{len(outcomes)} stages: " + ", ".join(f"{n} {what}" for what, n in counts.items())]
    lines += [o.message for o in outcomes.values() if not o.good and o.result != "skipped"]
    return "\n".join(lines)
