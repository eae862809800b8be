"""`score instances`: predicted object masks against the truth, in the forms of COCO.

Truth and predictions are read whole, as run-lengths; an image is never drawn.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.categories import things_of
from pipeline.datasets.coco_results import (
    InstanceTruth,
    Results,
    TruthObject,
    read_results,
    read_truth,
)
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import processors
from pipeline.datasets.run_lengths import Runs, read_texts, runs_of
from pipeline.errors import BadInput, some
from pipeline.metrics.instance import (
    VOLUME,
    Pool,
    Protocol,
    average_precision,
    mean_over_categories,
    overlaps_of_runs,
)
from pipeline.object_maps import masked_objects, need_object_masks
from pipeline.scoring.outcome import Outcome, Row

PART = 4096  # detections that are compared at once
PREDICT = "run predict for this evaluation again"
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
        (categories[one.category], images[image.number], one.rle)
        for image in truth.images.values()
        for one in image.objects
        if not one.crowd
    ]
    objects.sort(key=itemgetter(0, 1))
    known = Masks(
        np.array([category for category, _, _ in objects], np.int64),
        np.array([image for _, image, _ in objects], np.int64),
        runs_of([rle for _, _, rle in objects]),
    )
    detected = Masks(
        np.array([categories[published] for published in found.categories], np.int64),
        np.array([images[published] for published in found.images], np.int64),
        found.runs,
    )
    pools = pools_of(known, detected, found.scores, len(categories), len(images))
    return dict(zip(categories, pools, strict=True))


class Masks(NamedTuple):
    """N masks, and what they are of."""

    categories: np.ndarray  # (N,) int64, from 0
    images: np.ndarray  # (N,) int64, from 0
    runs: Runs


def pools_of(
    objects: Masks, found: Masks, scores: np.ndarray, num_categories: int, num_images: int
) -> list[Pool]:
    """What `average_precision` takes, of each category.

    Args:
        objects: by category, those of a category by image.
        found: in any order; of equal scores the earlier is first. scores: (D,), theirs.
    """
    cells = objects.categories * num_images + objects.images  # (G,): objects of a cell follow
    chosen = np.argsort(found.categories, kind="stable")
    wanted = (found.categories * num_images + found.images)[chosen]
    first = np.searchsorted(cells, wanted)
    near = np.searchsorted(cells, wanted, "right") - first
    overlaps = _overlaps(found.runs, objects.runs, chosen, first, near)
    pairs = np.concatenate([[0], np.cumsum(near)])
    limits = np.arange(num_categories + 1)
    parts = np.searchsorted(found.categories[chosen], limits)
    starts = np.searchsorted(cells, limits * num_images)
    pools = []
    for number in range(num_categories):
        part = slice(parts[number], parts[number + 1])
        of_category = slice(starts[number], starts[number + 1])
        pools.append(
            Pool(
                scores[chosen[part]],
                first[part] - starts[number],
                near[part],
                overlaps[pairs[part.start] : pairs[part.stop]],
                int(starts[number + 1] - starts[number]),
                found.runs.areas[chosen[part]],
                objects.runs.areas[of_category],
            )
        )
    return pools


def pools_of_rows(data: Prepared, split: str, found: pd.DataFrame) -> list[Pool]:
    """What `average_precision` takes, of each category that may have objects, in their order.

    Args:
        found: a table of kind "predicted_instances"; of equal scores the earlier is first.

    Raises:
        BadInput: the objects of the split have no masks, or are not annotated; a row is of another
            image or category, or has no finite score or no mask of its image.
    """
    ids, things = data.ids(split), things_of(data.categories)
    order = {image_id: number for number, image_id in enumerate(ids)}
    if others := sorted(set(found["image_id"]) - order.keys()):
        raise BadInput(f"objects of images that are not in {split}: {some(others)}; {PREDICT}")
    if others := sorted(set(found["category"]) - set(things)):
        raise BadInput(f"objects of categories that have none: {some(others)}; {PREDICT}")
    scores = found["score"].to_numpy(np.float64)
    if not np.isfinite(scores).all():
        raise BadInput(f"a score that is no number to rank by; {PREDICT}")
    if not all(isinstance(text, str) and text.isascii() for text in found["mask_rle"]):
        raise BadInput(f"an object without the run-lengths of a mask; {PREDICT}")

    def masks(rows: pd.DataFrame) -> Masks:
        sizes = [data.size(image_id) for image_id in rows["image_id"]]
        runs, sound = read_texts(rows["mask_rle"].tolist(), sizes)
        if not sound.all():
            where = rows["image_id"].tolist()[int((~sound).argmax())]
            raise BadInput(f"the mask of an object of {where} is none of that image; {PREDICT}")
        images = [order[image_id] for image_id in rows["image_id"]]
        numbers = np.searchsorted(things, rows["category"].to_numpy(np.int64))
        return Masks(numbers, np.array(images, np.int64), runs)

    return pools_of(masks(true_objects(data, ids)), masks(found), scores, len(things), len(ids))


def true_objects(data: Prepared, ids: Sequence[str]) -> pd.DataFrame:
    """The rows of the objects of these images, by category, those of one by image.

    Raises:
        BadInput: the objects of an image have no masks, or are not annotated.
    """
    images = data.images[data.images["image_id"].isin(ids)]
    unknown = images.loc[~images["has_boxes"], "image_id"].unique().tolist()
    if unknown:
        raise BadInput(
            f"the objects of {len(unknown)} of {len(ids)} images are not annotated: "
            f"{some(unknown)}; take a split whose images all have object masks"
        )
    need_object_masks(data, ids)
    return with_masks(pd.concat([data.objects(image_id) for image_id in ids]))


def with_masks(rows: pd.DataFrame) -> pd.DataFrame:
    """`masked_objects`, by category."""
    return masked_objects(rows).sort_values("category", kind="stable")


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
    volume = over_volume(each, levels)  # (C,)
    means = mean_over_categories(each)
    rows = [Row("mean_ap", float(mean), at=t) for t, mean in zip(levels, means, strict=True)]
    rows.append(Row("mean_ap_vol", float(mean_over_categories(volume))))
    for number, t in enumerate(levels):
        for name, value in zip(truth.categories.values(), each[:, number], strict=True):
            rows.append(Row("ap", float(value), name, t))
    for name, value in zip(truth.categories.values(), volume, strict=True):
        rows.append(Row("ap_vol", float(value), name))
    return rows


def over_volume(each: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """The means (C,) over 0.1 ... 0.9 of what each category has at these levels (C, T)."""
    in_volume = [level in VOLUME for level in levels]
    return np.asarray(each[:, in_volume].mean(axis=1))


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
