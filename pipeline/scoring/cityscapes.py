"""`score semantic --categories cityscapes`: number by number as the benchmark's own tool."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.categories import CITYSCAPES, CITYSCAPES_IDS, CITYSCAPES_LABELS
from pipeline.datasets.cityscapes_results import (
    find_instances,
    holds_train_ids,
    pair_cityscapes,
    read_objects,
    read_predicted,
    read_truth,
)
from pipeline.datasets.label_maps import Pair, read_pair
from pipeline.datasets.processes import map_in_threads
from pipeline.errors import BadFile
from pipeline.metrics.cityscapes import (
    ObjectSums,
    add_objects,
    count_objects,
    group_iou,
    group_object_iou,
    object_iou,
    of_categories,
)
from pipeline.metrics.semantic import confusion_matrix, mean_of, scores
from pipeline.scoring.outcome import Outcome, Row
from pipeline.scoring.semantic import notes_of, semantic_rows

NUM_LABELS = len(CITYSCAPES_LABELS)


def score_cityscapes(
    truth: Path,
    predicted: Path,
    *,
    ids: Path | None,
    allow_missing: bool,
    train_ids: bool,
    instances: Path | None,
) -> Outcome:
    """The scores of the 19 categories and their groups and, with maps of objects, iIoU.

    Args:
        truth, predicted: folders of label maps; see `cityscapes_results`.
        ids: a list of the images to score; None: all that have a truth.
        allow_missing: count missing predictions as wrong in every pixel, leave out extra ones.
        train_ids: predictions hold train ids; of the truth see `holds_train_ids`.
        instances: the folder with instanceIds of the truth.

    Raises:
        BadFile: files are missing, too many, damaged, of other sizes or hold unknown values.
    """
    joined = pair_cityscapes(
        truth, predicted, ids=ids, allow_missing=allow_missing, train_ids=train_ids
    )
    objects: Mapping[str, Path] = {}
    if instances is not None:
        objects = find_instances(instances, [pair.image_id for pair in joined.pairs])
    by_label = np.zeros((NUM_LABELS, NUM_LABELS + 1), np.int64)
    sums = ObjectSums()
    true_train_ids = train_ids and holds_train_ids(pair.truth for pair in joined.pairs)
    count = partial(_count, true_train_ids, train_ids, objects)
    for its_labels, its_objects in map_in_threads(count, joined.pairs, "score"):
        by_label += its_labels
        add_objects(sums, its_objects)

    confusion = of_categories(by_label)
    rows = [Row("num_images", len(joined.pairs)), *semantic_rows(scores(confusion), CITYSCAPES)]
    rows += _rows("group_iou", group_iou(confusion))
    if instances is not None:
        rows += _rows("iiou", object_iou(sums, confusion))
        rows += _rows("group_iiou", group_object_iou(sums, by_label))
    facts = {"categories": list(CITYSCAPES), "confusion": confusion.tolist()}
    notes = joined.notes() + notes_of(confusion, CITYSCAPES) + doubts(by_label, train_ids)
    if train_ids and not true_train_ids:
        notes.append("the truth holds published ids, and is read so")
    return Outcome(rows, facts, notes)


def _count(
    true_train_ids: bool, train_ids: bool, objects: Mapping[str, Path], pair: Pair
) -> tuple[np.ndarray, np.ndarray]:
    """The counts by published id (L, L + 1) of an image, and of its objects (N, 4)."""
    predicted, truth = read_pair(
        pair,
        partial(read_truth, train_ids=true_train_ids),
        partial(read_predicted, train_ids=train_ids),
    )
    by_label = confusion_matrix(predicted, truth, NUM_LABELS)
    if pair.image_id not in objects:
        return by_label, np.empty((0, 4), np.int64)
    path = objects[pair.image_id]
    numbers = read_objects(path, truth.shape)
    try:
        return by_label, count_objects(predicted, numbers)
    except ValueError as error:
        raise BadFile(path, str(error), "put the original instanceIds.png there") from error


def _rows(metric: str, values: Mapping[str, float]) -> list[Row]:
    """A row for each value and one for their mean."""
    rows = [Row(f"mean_{metric}", mean_of(np.array(list(values.values()))))]
    return rows + [Row(metric, value, name) for name, value in values.items()]


def doubts(by_label: np.ndarray, train_ids: bool) -> list[str]:
    """A note if the predictions look like train ids where published ids are wanted, or reversed.

    Args:
        by_label: (L, L + 1) counts by published id.
    """
    highest = len(CITYSCAPES) - 1
    unscored = by_label[:, : CITYSCAPES_IDS[0]].any()
    if not train_ids and unscored and not by_label[:, highest + 1 : -1].any():
        return [
            f"predicted are 0..{highest} only: if those are train ids, say --train-ids (or make "
            "published ids of them with `python -m pipeline export cityscapes`)"
        ]
    wrong, all_pixels = by_label[list(CITYSCAPES_IDS), -1].sum(), by_label.sum()
    if train_ids and wrong > all_pixels / 2:
        return ["most predicted values are no train ids: leave --train-ids away for published ids"]
    return []
