"""Images that are searched for objects with many rules, their maps made once.

T categories with objects ("things").
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.categories import things_of
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import processors
from pipeline.datasets.run_lengths import read_texts
from pipeline.errors import BadInput
from pipeline.instance_finding import Finder, Maps, bytes_of_finding, maps_of
from pipeline.instances import Instances, best_first
from pipeline.metrics.instance import VOLUME, Pool, average_precision, mean_over_categories
from pipeline.params import BoxInstances
from pipeline.post_processing import in_two_steps
from pipeline.scoring.instances import Masks, pools_of, true_objects, with_masks
from pipeline.sensitivity.page import Scores

Look = Callable[[str], Maps]  # gives the maps of an image
Ranked = tuple[Pool, np.ndarray]  # what is found in an image, and the support of each, (D,)
Pools = dict[int, Ranked]  # by thing, of those that an image has or is said to have


@dataclass(frozen=True)
class Searched:
    """The images, and what is asked about them."""

    evaluation: str
    data: Prepared
    ids: list[str]
    finder: Finder  # its rule is that of the evaluation


@contextmanager
def scratch(root: Path, evaluation: str) -> Iterator[Path]:
    """An empty folder for maps, gone afterwards; what a killed run left goes before."""
    folder = root / "work" / "sensitivity" / f"{evaluation}-maps"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{evaluation}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"another process measures the sensitivity of {evaluation}; wait until it has ended"
            ) from None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def first_look(searched: Searched) -> Look:
    """What the networks, or the truth, say of an image."""
    return partial(maps_of, searched.finder, searched.data)


def second_look(folder: Path) -> Look:
    """The same, as it was kept."""

    def look(image_id: str) -> Maps:
        with np.load(folder / f"{image_id}.npz", allow_pickle=False) as kept:
            height, width, stride = kept["numbers"].tolist()
            arrays = kept["probabilities"], kept["boxes"], kept["things"]
        return Maps(*arrays, stride, (height, width))

    return look


def _keep(path: Path, maps: Maps) -> None:
    """Maps with boxes, for `second_look`."""
    assert maps.boxes is not None
    np.savez_compressed(
        path,
        probabilities=maps.probabilities,
        boxes=maps.boxes,
        things=maps.things,
        numbers=np.array([*maps.size, maps.stride]),
    )


def measure(
    searched: Searched,
    rules: Sequence[BoxInstances],
    look: Look,
    folder: Path | None,
) -> dict[BoxInstances, Scores]:
    """The scores of each rule over all images; each image is searched once with each.

    Images are looked at one after another and searched in threads. Of what is found only overlaps
    with the true objects stay in memory.

    Args:
        folder: where to keep the maps for `second_look`; None: nowhere.
    """
    things = things_of(searched.data.categories)

    def search(image_id: str, maps: Maps) -> list[Pools]:
        if folder is not None:
            _keep(folder / f"{image_id}.npz", maps)
        objects = _objects(searched.data, image_id, things)
        found = (replace(searched.finder, rule=rule).instances(maps) for rule in rules)
        return [_pools(objects, one, maps.size, things) for one in found]

    images: list[list[Pools]] = []
    outcomes = in_two_steps(searched.ids, look, search, size=bytes_of_finding, workers=processors())
    what = f"{searched.evaluation}, {len(rules)} settings"
    with tqdm(desc=what, total=len(searched.ids), unit="image", disable=None) as bar:
        for image_id, outcome in outcomes if rules else ():
            try:
                images.append(outcome.result())
            except BadInput as problem:
                where = f"evaluations.{searched.evaluation}: image {image_id}"
                raise BadInput(f"{where}: {problem}") from problem
            bar.update()
    return {
        rule: _scores(of_rule, len(things))
        for rule, of_rule in zip(rules, zip(*images, strict=True), strict=True)
    }


# --- the truth and the scores ---------------------------------------------------------------------
def count_objects(data: Prepared, ids: list[str], split: str) -> int:
    """How many objects these images have. BadInput where they have no masks, or none is there."""
    count = len(true_objects(data, ids))
    if count == 0:
        raise BadInput(f"no object in {len(ids)} images of {split}; take another split, or more")
    return count


def _objects(data: Prepared, image_id: str, things: Sequence[int]) -> Masks:
    """The objects of an image, by the place of their category among `things` (T,)."""
    rows = with_masks(data.objects(image_id))
    categories = rows["category"].to_numpy(np.int64)
    return _masks(categories, rows["mask_rle"].tolist(), data.size(image_id), things)


def _masks(
    categories: np.ndarray, rles: list[str], size: tuple[int, int], things: Sequence[int]
) -> Masks:
    """Masks of one image, which is number 0."""
    numbers = np.searchsorted(things, categories)
    runs, _ = read_texts(rles, [size] * len(rles))
    return Masks(numbers, np.zeros(len(rles), np.int64), runs)


def _pools(objects: Masks, found: Instances, size: tuple[int, int], things: Sequence[int]) -> Pools:
    """What is found in one image beside its objects."""
    masks = _masks(found.categories, found.rles, size, things)
    pools = pools_of(objects, masks, found.scores, len(things), 1)
    supports = [found.support[masks.categories == n] for n in range(len(things))]
    return {
        n: (pool, support)
        for n, (pool, support) in enumerate(zip(pools, supports, strict=True))
        if pool.num_objects or support.size
    }


def _scores(images: Sequence[Pools], num_things: int) -> Scores:
    """Of all images, in their order."""
    pools = [_joined([one[n] for one in images if n in one]) for n in range(num_things)]
    each = np.array([average_precision(pool, VOLUME, "sds") for pool in pools])  # (T, 9)
    means = dict(zip(VOLUME, mean_over_categories(each).tolist(), strict=True))
    return Scores(means[0.5], means[0.7], float(mean_over_categories(each.mean(axis=1))))


def _joined(found: Sequence[Ranked]) -> Pool:
    """One pool of those of several images, with ranks for scores: see `best_first`."""
    pools = [pool for pool, _ in found]
    before = np.cumsum([0, *(pool.num_objects for pool in pools)])
    firsts = [pool.first + start for pool, start in zip(pools, before[:-1], strict=True)]
    none = np.zeros(0, np.int64)
    scores = np.concatenate([np.zeros(0), *(pool.scores for pool in pools)])
    order = best_first(scores, np.concatenate([none, *(support for _, support in found)]))
    ranks = np.empty(len(order))
    ranks[order] = np.arange(len(order), 0, -1)
    return Pool(
        ranks,
        np.concatenate([none, *firsts]),
        np.concatenate([none, *(pool.near for pool in pools)]),
        np.concatenate([np.zeros(0), *(pool.overlaps for pool in pools)]),
        int(before[-1]),
    )
