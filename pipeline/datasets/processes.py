"""The same function over many items, in several processes or threads, results in order."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import TypeVar

from tqdm import tqdm

from pipeline.errors import BadInput

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTH_A_PROCESS = 100  # items; starting a process costs about as much as drawing so many images
AHEAD = 2  # items per process that are taken before their results are


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], what: str
) -> Iterator[Result]:
    """`function` of each item, in the order of the items, with a progress bar called `what`.

    Few items stay in this process.

    Raises:
        whatever `function` raises, for the first item at fault; the rest is given up.
    """
    workers = min(processors(), len(items) // WORTH_A_PROCESS)
    chunk = min(64, max(1, len(items) // (8 * workers))) if workers else 1
    chunks = (items[start : start + chunk] for start in range(0, len(items), chunk))
    with tqdm(total=len(items), desc=what, unit="image", disable=None) as progress:
        for results in in_processes(partial(_each, function), chunks, workers):
            for result in results:
                yield result
                progress.update()


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """`function` of each item, in order; items are taken from the iterable a few ahead.

    New processes are spawned, not forked: a fork copies the locks of threads (OpenCV's, arrow's)
    that are not there any more.

    Args:
        function: sent with every item, so small.
        workers: processes; with fewer than two the work is done in this one.
    """
    if workers < 2:
        yield from map(function, items)
        return
    ForkingPickler.dumps(function)  # fails here, where the pool would wait for ever
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise BadInput(
            "a process that was at work was killed, mostly for want of memory. "
            "Run again: what was finished is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], what: str
) -> Iterator[Result]:
    """`function` of each item, in order, one thread a processor, with a progress bar called `what`.

    For work that is done outside Python's lock, decoding or compiled loops: threads start at once
    and share memory. Items are taken a few ahead, so that memory does not grow with their number.

    Raises:
        whatever `function` raises, for the first item at fault; the rest is given up.
    """
    workers = max(1, min(processors(), len(items)))
    waiting: deque[Future[Result]] = deque()
    progress = tqdm(total=len(items), desc=what, unit="image", disable=None)
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
                progress.update()
        while waiting:
            yield waiting.popleft().result()
            progress.update()
    finally:
        pool.shutdown(cancel_futures=True)
        progress.close()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however that was killed."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
