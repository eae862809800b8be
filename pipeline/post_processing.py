"""The dense CRF as a step after the network: several images in threads while the next is predicted.

C categories, H x W pixels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import fields
from typing import TypeVar

import numpy as np

from pipeline import params
from pipeline.crf.dense import DenseCrf, mean_field
from pipeline.errors import BadInput

ROOM = 3 << 30  # bytes that the CRFs of all images at work may take
# Of that, by pixel: a photograph with 21 categories took 300 to 380, with 3 150, noise 1280.
PIXEL_BYTES, CATEGORY_BYTES = 250, 20

Item = TypeVar("Item")
Middle = TypeVar("Middle")
Result = TypeVar("Result")


def crf_of(entry: params.Crf) -> DenseCrf | None:
    """The CRF that an evaluation names; None for none."""
    if not isinstance(entry, params.DenseCrf):
        return None
    return DenseCrf(**{f.name: getattr(entry, f.name) for f in fields(DenseCrf)})


def bytes_of_crf(num_categories: int, pixels: int) -> int:
    """What the CRF of one image is counted as."""
    return pixels * (PIXEL_BYTES + CATEGORY_BYTES * num_categories)


def crf_label_map(probabilities: np.ndarray, image: np.ndarray, crf: DenseCrf) -> np.ndarray:
    """The most probable category of every pixel after a dense CRF.

    Implements: Dai2015 Sec. 5.1 (scores of three scales averaged: BoxSup+).

    Reading: the paper says that scores are averaged, and that a CRF post-processes; here the mean
    over all views is taken first, and one CRF follows.

    Args:
        probabilities: (C, H, W) float32, the mean over all views of the whole image.
        image: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) uint8.

    Raises:
        BadInput: too many pixels, or as `mean_field`.
    """
    num_categories, height, width = probabilities.shape
    if bytes_of_crf(num_categories, height * width) > ROOM:
        most = ROOM // bytes_of_crf(num_categories, 1)
        raise BadInput(
            f"{height} x {width} pixels are too many for the CRF, which takes an image whole "
            f"(at most {most:,} with {num_categories} categories); give a smaller image, or "
            "leave the CRF out"
        )
    return mean_field(probabilities, image, crf).argmax(axis=0).astype(np.uint8)


def in_two_steps(
    items: Iterable[Item],
    first: Callable[[Item], Middle],
    then: Callable[[Item, Middle], Result],
    *,
    size: Callable[[Middle], int],
    workers: int,
) -> Iterator[tuple[Item, Future[Result]]]:
    """`then(item, first(item))` of every item: the first steps here, one by one, the others behind.

    Args:
        size: bytes that the second step takes; more than one waits until all fit in `ROOM`.
        workers: threads for second steps; 0: here too, one item after another.

    Yields:
        each item in order, with its finished result, or with what either step raised.
    """
    if workers == 0:
        for item in items:
            begun = _done(first, item)
            yield item, _failed(begun) or _done(then, item, begun.result())
        return
    waiting: deque[tuple[Item, Future, int]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            begun = _done(first, item)
            bytes_ = 0 if begun.exception() else size(begun.result())
            while waiting and (
                len(waiting) >= 2 * workers or sum(w[2] for w in waiting) + bytes_ > ROOM
            ):
                yield _first_of(waiting)
            future = _failed(begun) or pool.submit(then, item, begun.result())
            waiting.append((item, future, bytes_))
            del begun  # and so the arrays go with the second step
            while waiting and waiting[0][1].done():
                yield _first_of(waiting)
        while waiting:
            yield _first_of(waiting)


def _first_of(waiting: deque[tuple[Item, Future, int]]) -> tuple[Item, Future]:
    item, future, _ = waiting.popleft()
    wait([future])
    return item, future


def _done(step: Callable[..., Result], *arguments: object) -> Future[Result]:
    """What a step gives or raises, now."""
    future: Future[Result] = Future()
    try:
        future.set_result(step(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


def _failed(begun: Future) -> Future | None:
    return begun if begun.exception() else None
