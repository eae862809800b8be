"""The same function over many images, in processes of this machine or of a cluster.

A shard is some images one after another: one task of dask. This machine's processes are a cluster
of dask too, so there is one way for both. A process that dies loses the shard that it was at, which
is done again; results are fetched when they are finished, so they outlive their process.
"""

import asyncio
import hashlib
import logging
import os
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import dask
from distributed import Client, KilledWorker, LocalCluster, Security, as_completed
from distributed.comm import connect
from distributed.utils import silence_logging_cmgr
from distributed.versions import VersionMismatchWarning
from tqdm import tqdm

import pipeline
from pipeline.datasets.processes import processors
from pipeline.errors import BadInput, some

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # shards per process that are sent out before the results of the first are taken
SECONDS_TO_ANSWER = 10  # for a scheduler, then for its first worker
PACKAGES = [  # those that candidates depend on; dask compares Python, numpy and its own
    "higra",
    "numba",
    "opencv-contrib-python-headless",
    "pillow",
    "scikit-image",
    "scipy",
]
LOCAL: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 2,  # the third process that dies is too many
    "distributed.scheduler.worker-saturation": 1.0,  # a shard that waits is not blamed for a death
    "distributed.scheduler.worker-ttl": None,  # a compiled loop or a sleeping laptop is no death
    "distributed.deploy.lost-worker-timeout": "1 hour",  # a busy machine starts processes slowly
    "distributed.worker.profile.enabled": False,  # nobody looks at it
    "distributed.scheduler.http.routes": [],  # nor at pages, which anyone on this machine could
    "distributed.worker.http.routes": [],
}
# Without an address it would take port 8787, and warn where a second run has it.
NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


def map_shards(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    what: str,
    *,
    shard: int,
    scheduler: str | None,
) -> Generator[Result, None, None]:
    """`function` of each item, in the order of the items, with a progress bar called `what`.

    Lazy: a few shards per process are under way or waiting to be taken, however many items there
    are.

    Args:
        function: sent with every shard, so small.
        shard: items that are done one after another, and again where their process dies.
        scheduler: address of a dask scheduler, tcp://host:8786, whose workers have this code and
            these packages; None: one process for every processor of this machine, or none but this
            one where there is a single shard or processor.

    Raises:
        BadInput: no scheduler answers, its workers differ from this machine, it goes away, or a
            shard kills every process that it is given to. Results of the shards before it have
            come out. Workers that join later are not looked at.
        whatever `function` raises, for the first shard at fault; the rest is given up.
    """
    shards = [items[start : start + shard] for start in range(0, len(items), shard)]
    workers = min(processors(), len(shards))
    with tqdm(total=len(items), desc=what, unit="image", disable=None) as progress:
        if not shards or (scheduler is None and workers < 2):
            for item in items:
                result = function(item)
                progress.update()
                yield result
            return
        with _local(workers) if scheduler is None else _remote(scheduler) as client:
            for results in _in_order(client, function, shards, what):
                progress.update(len(results))
                yield from results


def _in_order(
    client: Client, function: Callable[[Item], Result], shards: list[Sequence[Item]], what: str
) -> Iterator[list[Result]]:
    """The results of every shard. Each is fetched when it is finished, whoever waits for what."""
    name = f"{what}-{uuid.uuid4().hex}"
    finished = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    fetched: dict[int, tuple[str, Any]] = {}
    sent = 0
    for number, shard in enumerate(shards):
        try:
            ahead = shards[sent : number + AHEAD * _threads(client)]
            for part in ahead:  # sent in order, begun in order
                finished.add(client.submit(_each, function, part, key=(name, sent), pure=False))
                sent += 1
            while number not in fetched:
                future, outcome = next(finished)
                fetched[future.key[1]] = (future.status, outcome)
                future.release()
        except OSError as error:  # of the connection; those of the work are outcomes
            raise _scheduler_lost(error) from None
        yield _results(*fetched.pop(number), shard)


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def _threads(client: Client) -> int:
    """Shards that can be under way at once: workers come and go."""
    return max(1, sum(client.nthreads().values()))


def _results(status: str, outcome: Any, shard: Sequence[Any]) -> list[Any]:
    """The results of a shard, or what it failed with.

    Args:
        outcome: results; for the status "error" type, exception and traceback; else an exception.
    """
    if status == "finished":
        return outcome
    if status != "error":
        raise _scheduler_lost(outcome)
    _, error, traceback = outcome
    if isinstance(error, KilledWorker):
        raise BadInput(
            f"every process that was given these {len(shard)} images was killed, mostly for want "
            f"of memory; the first of them: {shard[0]!s:.100}. Leave out the image at fault, or "
            "use a machine with more memory; what was finished is kept"
        ) from None
    raise error.with_traceback(traceback)


def _scheduler_lost(error: Exception) -> BadInput:
    return BadInput(
        f"the dask scheduler is gone ({error}). Start it and run again: what was finished is kept"
    )


# --- the processes -------------------------------------------------------------------------------
@contextmanager
def _local(workers: int) -> Iterator[Client]:
    """A process for each of so many processors of this machine; they end when this one does.

    The connections are encrypted: other users of this machine reach its loopback too, and dask runs
    whatever a client sends. Memory has no limit, as one would have dask kill a process for a large
    image that the machine can hold. No dashboard, and nothing is written below the project.
    """
    with (
        TemporaryDirectory(prefix="shards-") as folder,
        dask.config.set(LOCAL | {"temporary-directory": folder}),
        _environment_kept(),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            security=Security.temporary(),
            memory_limit=0,
            scheduler_kwargs=NO_DASHBOARD,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Take back the variables that dask sets for the processes that it starts."""
    before = set(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - before:
            del os.environ[name]


@contextmanager
def _remote(scheduler: str) -> Iterator[Client]:
    """The workers of a scheduler. BadInput where there is none, or one that is not like this."""
    try:
        asyncio.run(_shake_hands(scheduler))
    except Exception as error:  # of any kind: the address is anything, and so is who answers
        raise BadInput(
            f"{scheduler}: no dask scheduler answers there ({str(error) or type(error).__name__}). "
            "Start one with `dask scheduler`, which prints its address, or leave the address out "
            "to work on this machine"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionMismatchWarning)  # an error, below
        client = Client(scheduler, timeout=SECONDS_TO_ANSWER, set_as_default=False)
    with silence_logging_cmgr(logging.ERROR), client:
        try:
            client.wait_for_workers(1, timeout=SECONDS_TO_ANSWER)
        except TimeoutError:
            raise BadInput(
                f"{scheduler}: this scheduler has no workers. Start some with "
                f"`dask worker {scheduler}` where this project is installed"
            ) from None
        _check_alike(client, scheduler)
        yield client


async def _shake_hands(scheduler: str) -> None:
    """Raise something unless dask answers in time; its client waits for ever for other servers."""
    arguments = Security().get_connection_args("client")
    async with asyncio.timeout(SECONDS_TO_ANSWER + 1):
        comm = await connect(scheduler, timeout=SECONDS_TO_ANSWER, **arguments)
        await comm.close()


def _check_alike(client: Client, scheduler: str) -> None:
    """BadInput unless the workers that are there have these packages and this code."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        client.get_versions(check=True, packages=PACKAGES)
    if found:
        raise BadInput(
            f"{scheduler}: versions differ; install constraints.txt on every machine. "
            f"{found[0].message}"
        )
    own = _code()
    codes = client.run(_code, on_error="return")
    if other := sorted(address for address, code in codes.items() if code != own):
        raise BadInput(
            f"{scheduler}: workers without this version of this project: {some(other)}. "
            "Install it there, then start them anew"
        )


def _code() -> str:
    """A digest of the project's code where this runs."""
    folder = Path(pipeline.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
