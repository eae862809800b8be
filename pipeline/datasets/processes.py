"""The same function over many items, in several processes, results in order."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTH_A_PROCESS = 100  # items; starting a process costs about as much as drawing so many images


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], what: str
) -> Iterator[Result]:
    """`function` of each item, in the order of the items, with a progress bar called `what`.

    Few items stay in this process. New processes are spawned, not forked: a fork copies the locks
    of threads (OpenCV's, arrow's) that are not there any more.

    Raises:
        whatever `function` raises, for the first item at fault; the rest is given up.
    """
    workers = min(os.cpu_count() or 1, len(items) // WORTH_A_PROCESS)
    progress = tqdm(total=len(items), desc=what, unit="image", disable=None)
    if workers < 2:
        for item in items:
            yield function(item)
            progress.update()
    else:
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=spawn)
        try:
            chunk = min(64, max(1, len(items) // (8 * workers)))  # a chunk carries the function
            for result in pool.map(function, items, chunksize=chunk):
                yield result
                progress.update()
        finally:
            pool.shutdown(cancel_futures=True)
    progress.close()
