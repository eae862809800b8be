"""`python -m flows.unstick` (`make unstick`): after a power cut or a kill -9.

Prefect goes on believing that the flow runs of that time run, and the next run of a deployment
waits for them. Those without a process on this machine are set to Crashed here.
"""

import sys

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.states import Crashed

UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def main() -> int:
    """Returns the exit code: 0, also when there was nothing to do."""
    alive = running_here()
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state)):
            if str(run.id) in alive:
                print(f"{run.name} runs")
                continue
            gone: State = Crashed(message="Its process is gone; set by flows.unstick.")
            client.set_flow_run_state(run.id, gone, force=True)
            print(f"{run.name} had no process any more: Crashed. Run its deployment again")
    return 0


def running_here() -> set[str]:
    """The ids of the flow runs that have a process on this machine."""
    found = set()
    for process in psutil.process_iter():
        try:
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
        except psutil.Error:  # somebody else's process, or just gone
            continue
    return found - {""}


if __name__ == "__main__":
    sys.exit(main())
