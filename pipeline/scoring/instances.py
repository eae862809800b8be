"""`score instances`: predicted object masks against the truth, in the forms of COCO.

Truth and predictions are read whole, as run-lengths; an image is never drawn.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.datasets.coco_results import (
    InstanceTruth,
    Results,
    TruthObject,
    read_results,
    read_truth,
)
from pipeline.datasets.processes import processors
from pipeline.datasets.run_lengths import Runs, runs_of
from pipeline.errors import BadInput, some
from pipeline.metrics.instance import (
    VOLUME,
    Pool,
    Protocol,
    average_precision,
    mean_over_categories,
    overlaps_of_runs,
)
from pipeline.scoring.outcome import Outcome, Row

PART = 4096  # detections that are compared at once
COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_NUMBERS = (  # in the order of pycocotools' summary
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def score_instances(
    truth: Path,
    predicted: Path,
    *,
    protocol: str,
    thresholds: Sequence[float] | None,
    ids: Path | None,
) -> Outcome:
    """Average precision of each category at the overlaps 0.1 ... 0.9, its mean, and mAP^r_vol.

    Args:
        truth: COCO instances JSON.
        predicted: COCO results JSON, with masks.
        protocol: "sds" or "mnc11" (see pipeline.metrics.instance), or "coco": pycocotools itself.
        thresholds: further overlaps in [0, 1]; mAP^r_vol is always over 0.1 ... 0.9.
        ids: a list of the images to score, by id or by name; None: all of the truth.

    Raises:
        BadInput: an unknown protocol, a threshold out of range, files at fault.
    """
    levels = _levels(thresholds or ())
    if protocol not in ("sds", "mnc11", "coco"):
        raise BadInput(f"protocol {protocol!r}: choose sds, mnc11 or coco")
    known = read_truth(truth, ids)
    found = read_results(predicted, known)
    facts: dict[str, Any] = {"protocol": protocol}
    extra: list[Row] = []
    match protocol:
        case "sds" | "mnc11":
            precisions = _of_protocol(known, found, levels, protocol)
        case _:
            precisions, numbers = _of_coco(known, found, levels)
            facts["coco"] = {name: None if v != v else v for name, v in numbers.items()}
            extra = [Row(f"coco_{name}", value) for name, value in numbers.items()]
    rows = _rows(known, precisions, levels) + extra + _counts(known, found)
    return Outcome(rows, facts, _notes(known, found, protocol))


def _levels(thresholds: Sequence[float]) -> list[float]:
    """0.1 ... 0.9 and the given ones, ascending. BadInput for one out of [0, 1]."""
    if wrong := [t for t in thresholds if not 0 <= t <= 1]:
        raise BadInput(f"thresholds {some(wrong)}: an overlap is between 0 and 1")
    levels = sorted({*VOLUME, *thresholds})
    if len({f"{level:g}" for level in levels}) < len(levels):
        raise BadInput(f"thresholds {some(thresholds)}: two are equal to six digits")
    return levels


# --- protocols ------------------------------------------------------------------------------------
def _of_protocol(
    truth: InstanceTruth, found: Results, levels: list[float], protocol: Protocol
) -> dict[int, np.ndarray]:
    """(T,) of each category, by published id."""
    pools = pools_of_categories(truth, found)
    return {category: average_precision(pools[category], levels, protocol) for category in pools}


def pools_of_categories(truth: InstanceTruth, found: Results) -> dict[int, Pool]:
    """What `average_precision` takes, of each category by published id. Crowds are no objects."""
    categories = {published: number for number, published in enumerate(truth.categories)}
    images = {published: number for number, published in enumerate(truth.images)}
    objects = [
        (categories[one.category] * len(images) + images[image.number], one.rle)
        for image in truth.images.values()
        for one in image.objects
        if not one.crowd
    ]
    objects.sort(key=itemgetter(0))  # by category, then image: the objects of a cell follow
    cells = np.array([cell for cell, _ in objects], np.int64)  # (G,)
    of_category = np.array([categories[published] for published in found.categories], np.int64)
    of_image = np.array([images[published] for published in found.images], np.int64)
    chosen = np.argsort(of_category, kind="stable")
    wanted = (of_category * len(images) + of_image)[chosen]
    first = np.searchsorted(cells, wanted)
    near = np.searchsorted(cells, wanted, "right") - first
    overlaps = _overlaps(found.runs, runs_of([rle for _, rle in objects]), chosen, first, near)
    pairs = np.concatenate([[0], np.cumsum(near)])
    limits = np.arange(len(categories) + 1)
    parts = np.searchsorted(of_category[chosen], limits)
    starts = np.searchsorted(cells, limits * len(images))
    pools = {}
    for published, number in categories.items():
        part = slice(parts[number], parts[number + 1])
        pools[published] = Pool(
            found.scores[chosen[part]],
            first[part] - starts[number],
            near[part],
            overlaps[pairs[part.start] : pairs[part.stop]],
            int(starts[number + 1] - starts[number]),
        )
    return pools


def _overlaps(
    detections: Runs, objects: Runs, chosen: np.ndarray, first: np.ndarray, near: np.ndarray
) -> np.ndarray:
    """`overlaps_of_runs`, a thread a processor."""

    def of_part(start: int) -> np.ndarray:
        part = slice(start, start + PART)
        return overlaps_of_runs(detections, objects, chosen[part], first[part], near[part])

    with ThreadPoolExecutor(processors()) as pool:
        return np.concatenate([np.zeros(0), *pool.map(of_part, range(0, chosen.size, PART))])


def _of_coco(
    truth: InstanceTruth, found: Results, levels: list[float]
) -> tuple[dict[int, np.ndarray], dict[str, float]]:
    """(T,) of each category, by published id, and COCO's twelve numbers, by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = COCOeval(*_in_coco_form(truth, found), "segm")
        # No threshold changes the numbers of another.
        scoring.params.iouThrs = np.concatenate([COCO_THRESHOLDS, levels])
        scoring.evaluate()
        scoring.accumulate()
        precision, recall = scoring.eval["precision"], scoring.eval["recall"]
        scoring.params.iouThrs = COCO_THRESHOLDS
        scoring.eval["precision"] = precision[: COCO_THRESHOLDS.size]
        scoring.eval["recall"] = recall[: COCO_THRESHOLDS.size]
        scoring.summarize()
    wanted = precision[COCO_THRESHOLDS.size :, :, :, 0, -1]  # (T, R, C): any area, 100 detections
    valued = np.where(wanted > -1, wanted, np.nan).mean(axis=1)  # (T, C)
    categories = [int(category) for category in scoring.params.catIds]
    numbers = [float(value) if value > -1 else np.nan for value in scoring.stats]
    return (
        dict(zip(categories, valued.T, strict=True)),
        dict(zip(COCO_NUMBERS, numbers, strict=True)),
    )


def _in_coco_form(truth: InstanceTruth, found: Results) -> tuple[COCO, COCO]:
    """Truth and detections as pycocotools holds them, the images numbered in their ids' order.

    Objects are numbered from 1: pycocotools takes an object 0 for none.
    """
    ids = sorted(truth.images, key=lambda number: (isinstance(number, str), number))
    numbers = {image_id: number for number, image_id in enumerate(ids, start=1)}
    images = [
        {"id": numbers[i], "height": truth.images[i].size[0], "width": truth.images[i].size[1]}
        for i in ids
    ]
    categories = [{"id": number, "name": name} for number, name in truth.categories.items()]
    objects = [
        _annotation(numbers[image.number], one.category, one.rle, one.area)
        | {"iscrowd": int(one.crowd)}
        for image in truth.images.values()
        for one in image.objects
    ]
    detections = [
        _annotation(numbers[one.image], one.category, one.rle, one.area) | {"score": one.score}
        for one in found
    ]
    both = []
    for annotations in (objects, detections):
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
        made = COCO()
        made.dataset = {"images": images, "categories": categories, "annotations": annotations}
        made.createIndex()
        both.append(made)
    return both[0], both[1]


def _annotation(image: int, category: int, rle: dict[str, Any], area: float) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": rle,
        "area": area,
        "iscrowd": 0,
    }


# --- what is reported -----------------------------------------------------------------------------
def _rows(
    truth: InstanceTruth, precisions: Mapping[int, np.ndarray], levels: list[float]
) -> list[Row]:
    """Means at each overlap and over 0.1 ... 0.9, then the categories."""
    each = np.stack([precisions[category] for category in truth.categories])  # (C, T)
    in_volume = [level in VOLUME for level in levels]
    volume = each[:, in_volume].mean(axis=1)  # (C,)
    means = mean_over_categories(each)
    rows = [Row("mean_ap", float(mean), at=t) for t, mean in zip(levels, means, strict=True)]
    rows.append(Row("mean_ap_vol", float(mean_over_categories(volume))))
    for number, t in enumerate(levels):
        for name, value in zip(truth.categories.values(), each[:, number], strict=True):
            rows.append(Row("ap", float(value), name, t))
    for name, value in zip(truth.categories.values(), volume, strict=True):
        rows.append(Row("ap_vol", float(value), name))
    return rows


def _counts(truth: InstanceTruth, found: Results) -> list[Row]:
    objects = sum(not one.crowd for image in truth.images.values() for one in image.objects)
    return [
        Row("num_images", len(truth.images)),
        Row("num_objects", objects),
        Row("num_detections", len(found)),
    ]


def _notes(truth: InstanceTruth, found: Results, protocol: str) -> list[str]:
    """What a reader of the numbers must know."""
    every = [one for image in truth.images.values() for one in image.objects]
    present = {one.category for one in every if not one.crowd}
    absent = [name for number, name in truth.categories.items() if number not in present]
    crowds = sum(one.crowd for one in every)
    without = len(truth.images) - len(set(found.images))
    notes = []
    if absent:
        treated = "count as 0" if protocol == "mnc11" else "are left out of the means"
        notes.append(f"{len(absent)} categories have no object and {treated}: {some(absent)}")
    if crowds and protocol != "coco":
        notes.append(f"{crowds} crowd regions of the truth are no objects")
    if protocol == "coco":
        notes += _notes_of_coco(every, found)
    if without:
        notes.append(f"{without} of {len(truth.images)} images have no detection")
    return notes


def _notes_of_coco(objects: Sequence[TruthObject], found: Results) -> list[str]:
    """What moves the numbers of pycocotools, or here differs from them."""
    notes = []
    if found.num_boxes:
        notes.append(
            "small, medium and large detections are told by the areas of their boxes, as "
            "pycocotools does where results have them; leave bbox out for those of the masks"
        )
    if any(one.number == 0 for one in objects):
        notes.append(
            "an object of the truth has the id 0, which pycocotools takes for none and never "
            "finds; here it can be found"
        )
    return notes
