"""`score boundary`: mean IoU near the void border of objects and away from it, at some widths."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.categories import IGNORE
from pipeline.datasets.cityscapes_results import (
    categories_of_labels,
    holds_train_ids,
    pair_cityscapes,
    read_predicted,
    read_truth,
)
from pipeline.datasets.label_maps import (
    Pairs,
    Read,
    categories_of,
    pair_label_maps,
    read_label_map,
)
from pipeline.errors import BadInput
from pipeline.metrics.boundary import band_confusions
from pipeline.metrics.semantic import scores
from pipeline.scoring.outcome import Outcome, Row
from pipeline.scoring.semantic import count


def score_boundary(
    truth: Path,
    predicted: Path,
    *,
    categories: str,
    widths: Sequence[int],
    ids: Path | None,
    allow_missing: bool,
    train_ids: bool,
) -> Outcome:
    """Mean IoU of all labelled pixels at most so far from a 255 of the truth, and of all others.

    Args:
        truth, predicted: folders of index PNGs; for "cityscapes" those of `cityscapes_results`,
            where labels that are not scored are 255.
        categories: a known list or a file; see `categories_of`.
        widths: of the bands, pixels: distinct, from 1 on.
        ids, allow_missing, train_ids: as in `score_semantic`.

    Raises:
        BadInput: as `score_semantic`; or the widths are none.
    """
    if not widths or min(widths) < 1 or len(set(widths)) < len(widths):
        raise BadInput(f"widths {list(widths)}: give distinct whole numbers from 1 on")
    names = categories_of(categories)
    joined, read_true, read_pred = _files(
        truth, predicted, categories, ids, allow_missing, train_ids
    )
    kernel = partial(band_confusions, widths=tuple(widths), num_categories=len(names))
    counts = count(joined.pairs, kernel, read_true, read_pred)  # (widths, 2, C, C + 1)

    rows = [Row("num_images", len(joined.pairs))]
    for width, (band, interior) in zip(widths, counts, strict=True):
        rows.append(Row("boundary_mean_iou", scores(band).mean_iou, at=width))
        rows.append(Row("interior_mean_iou", scores(interior).mean_iou, at=width))
    notes = _notes(joined, counts)
    if categories == "cityscapes":
        notes += _doubts(counts[0].sum(axis=0), train_ids)
    return Outcome(rows, {"categories": list(names)}, notes, by_at="widths")


def _files(
    truth: Path,
    predicted: Path,
    categories: str,
    ids: Path | None,
    allow_missing: bool,
    train_ids: bool,
) -> tuple[Pairs, Read, Read]:
    """Each image's files, and how truth and prediction are read as category numbers."""
    if categories == "cityscapes":
        joined = pair_cityscapes(
            truth, predicted, ids=ids, allow_missing=allow_missing, train_ids=train_ids
        )
        true_train_ids = train_ids and holds_train_ids(pair.truth for pair in joined.pairs)
        return (
            joined,
            lambda path: categories_of_labels(read_truth(path, true_train_ids)),
            lambda path: categories_of_labels(read_predicted(path, train_ids)),
        )
    if train_ids:
        raise BadInput("--train-ids belongs to --categories cityscapes: leave it away")
    joined = pair_label_maps(truth, predicted, ids=ids, allow_missing=allow_missing)
    return joined, read_label_map, read_label_map


def _doubts(confusion: np.ndarray, train_ids: bool) -> list[str]:
    """A note if most predictions (C, C + 1) are of no category: often the other kind of ids."""
    if confusion[:, -1].sum() <= confusion.sum() / 2:
        return []
    remedy = "leave --train-ids away if they are published ids"
    if not train_ids:
        remedy = (
            "if they are train ids, say --train-ids (or make published ids of them with "
            "`python -m pipeline export cityscapes`)"
        )
    return [f"most predicted values are of no category: {remedy}"]


def _notes(joined: Pairs, counts: np.ndarray) -> list[str]:
    notes = joined.notes()
    if not counts[:, 0].any():
        notes.append(
            f"no labelled pixel is near a {IGNORE} of the truth: there is no band (VOC's own label "
            "maps have a border of it around objects, SBD's have none)"
        )
    return notes
