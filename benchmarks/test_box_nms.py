"""Suppression among the boxes that many pixels of one category vote for, against torchvision's.

`coherent`: votes for the boxes of drawn objects, jittered; `noise`: boxes with no object behind
them. Of both there are sets of which few votes are kept and sets of which hundreds are. The same
votes are kept, in the same order, which is asserted before. `kept` is among the results, and so is
`peak_bytes`, by how much memory rose during a call (on Linux). Ours includes the sorting, and the
cluster of each vote, which torchvision does not give.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/test_box_nms.py \
        --benchmark-columns=min,median,rounds --benchmark-timer=time.process_time
"""

import ctypes
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision

from pipeline.instances.suppression import suppress
from pipeline.instances.votes import by_score

HEIGHT, WIDTH = 375, 500
OVERLAP = 0.5  # torchvision suppresses above it, ours from there on
NEXT = float(np.nextafter(np.float32(OVERLAP), np.float32(1)))  # the first IoU above it in float32


class Cast(NamedTuple):
    scores: np.ndarray  # (V,) float32
    boxes: np.ndarray  # (V, 4) float32
    places: np.ndarray  # (V, 2)


def coherent(count: int, objects: int, jitter: float) -> Cast:
    """Votes from all over each object for its box, jittered by a part of its sides."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(20, (WIDTH - 20, HEIGHT - 20), (objects, 2))
    sides = np.exp(rng.uniform(np.log(25), np.log(200), (objects, 2)))
    mine = rng.integers(objects, size=count)
    places = centres[mine] + rng.uniform(-0.5, 0.5, (count, 2)) * sides[mine]
    middles = centres[mine] + rng.normal(0, jitter, (count, 2)) * sides[mine]
    return cast(rng, places, middles, sides[mine] * np.exp(rng.normal(0, jitter, (count, 2))))


def noise(count: int, smallest: float, largest: float) -> Cast:
    """Boxes of any size between these, around any place in the image."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, (WIDTH, HEIGHT), (count, 2))
    middles = np.array([WIDTH, HEIGHT]) / 2 + (places - np.array([WIDTH, HEIGHT]) / 2) / 3
    return cast(rng, places, middles, rng.uniform(smallest, largest, (count, 2)))


def cast(
    rng: np.random.Generator, places: np.ndarray, middles: np.ndarray, sides: np.ndarray
) -> Cast:
    boxes = np.concatenate([middles - sides / 2, middles + sides / 2], axis=1)
    scores = rng.uniform(0.05, 1, len(places))
    return Cast(scores.astype(np.float32), boxes.astype(np.float32), places)


KINDS = {
    "coherent, few kept": lambda count: coherent(count, objects=8, jitter=0.05),
    "coherent, many kept": lambda count: coherent(count, objects=120, jitter=0.1),
    "noise, few kept": lambda count: noise(count, 200, 400),
    "noise, many kept": lambda count: noise(count, 25, 120),
}


def ours(votes: Cast) -> np.ndarray:
    order = by_score(*votes)
    kept, _ = suppress(votes.boxes[order], NEXT)
    return order[kept]


def theirs(votes: Cast) -> np.ndarray:
    boxes, scores = torch.from_numpy(votes.boxes), torch.from_numpy(votes.scores)
    return torchvision.ops.nms(boxes, scores, OVERLAP).numpy()


def peak_bytes(call: Callable[[], object]) -> int | None:
    """By how much the resident memory of this process rises during a call; None if not on Linux."""
    if sys.platform != "linux":
        return None

    def kilobytes(what: str) -> int:
        found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) if found else 0

    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = kilobytes("VmRSS")
    call()
    return 1024 * (kilobytes("VmHWM") - before)


@pytest.mark.parametrize("tool", ["ours", "torchvision"])
@pytest.mark.parametrize("count", [20_000, 50_000, 100_000])
@pytest.mark.parametrize("kind", KINDS)
def test_suppression(benchmark, kind, count, tool):
    benchmark.group = f"box NMS, {kind}, {count:,} votes"
    torch.set_num_threads(1)
    votes = KINDS[kind](count)
    kept = ours(votes)
    assert kept.tolist() == theirs(votes).tolist()
    call = ours if tool == "ours" else theirs
    benchmark.extra_info["kept"] = len(kept)
    benchmark.extra_info["peak_bytes"] = peak_bytes(lambda: call(votes))
    benchmark.pedantic(call, args=(votes,), rounds=15 if tool == "ours" else 5)
