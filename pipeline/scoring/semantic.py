"""`score semantic`: two folders of label maps -> one confusion matrix -> IoU and accuracies."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.datasets.label_maps import (
    Pair,
    Read,
    categories_of,
    pair_label_maps,
    read_label_map,
    read_pair,
)
from pipeline.datasets.processes import map_in_threads
from pipeline.errors import BadFile, BadInput, some
from pipeline.metrics.semantic import SemanticScores, confusion_matrix, scores
from pipeline.scoring.outcome import Outcome, Row


def score_semantic(
    truth: Path,
    predicted: Path,
    *,
    categories: str,
    ids: Path | None,
    allow_missing: bool,
    train_ids: bool,
    instances: Path | None,
) -> Outcome:
    """The scores of all pixels of all images together; Cityscapes' go by its own rules.

    Args:
        truth, predicted: folders of index PNGs <image_id>.png; 255 in the truth is not counted.
        categories: a known list or a file; see `categories_of`.
        ids: a list of the images to score; None: all that have a truth.
        allow_missing: count missing predictions as wrong in every pixel, leave out extra ones.
        train_ids, instances: Cityscapes only; see `score_cityscapes`.

    Raises:
        BadInput: files are missing, too many, damaged, of other sizes, or the truth holds a number
            outside the categories and 255; or an option that belongs to Cityscapes.
    """
    if categories == "cityscapes":
        from pipeline.scoring.cityscapes import score_cityscapes  # it builds on this module

        return score_cityscapes(
            truth,
            predicted,
            ids=ids,
            allow_missing=allow_missing,
            train_ids=train_ids,
            instances=instances,
        )
    if train_ids or instances is not None:
        option = "--train-ids" if train_ids else "--instances"
        raise BadInput(f"{option} belongs to --categories cityscapes: leave it away")
    names = categories_of(categories)
    joined = pair_label_maps(truth, predicted, ids=ids, allow_missing=allow_missing)
    confusion = count(joined.pairs, partial(confusion_matrix, num_categories=len(names)))
    rows = [Row("num_images", len(joined.pairs)), *semantic_rows(scores(confusion), names)]
    facts = {"categories": list(names), "confusion": confusion.tolist()}
    return Outcome(rows, facts, joined.notes() + notes_of(confusion, names))


def count(
    pairs: Sequence[Pair],
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray],
    read_truth: Read = read_label_map,
    read_predicted: Read = read_label_map,
) -> np.ndarray:
    """The counts of all images, added up; images go over all processors.

    Args:
        pairs: at least one.
        kernel: (predicted, truth) -> integers of one shape, such as `confusion_matrix`. For a
            missing prediction `predicted` is 255 everywhere: no category, so wrong.
        read_truth, read_predicted: how a file is read.

    Raises:
        BadFile: what the readers say of the first image at fault; an image's two sizes differ; or
            the kernel refuses the truth (ValueError), which is then named.
    """
    one = partial(_count_one, kernel, read_truth, read_predicted)
    counts = map_in_threads(one, pairs, "score")
    total = next(counts)
    for more in counts:
        total += more
    return total


def _count_one(
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray],
    read_truth: Read,
    read_predicted: Read,
    pair: Pair,
) -> np.ndarray:
    predicted, truth = read_pair(pair, read_truth, read_predicted)
    try:
        return kernel(predicted, truth)
    except ValueError as error:
        remedy = "name the --categories that the truth was made with"
        raise BadFile(pair.truth, str(error), remedy) from error


def notes_of(confusion: np.ndarray, categories: Sequence[str]) -> list[str]:
    """What a reader of the scores of a confusion matrix (C, C + 1) must know."""
    notes = []
    outside, labelled = int(confusion[:, -1].sum()), int(confusion.sum())
    if outside:
        notes.append(
            f"{outside / labelled:.2%} of the labelled pixels are predicted as no category, or not "
            "at all: all of these are wrong"
        )
    found = confusion[:, :-1].sum(axis=0) + confusion.sum(axis=1)
    if absent := [name for name, pixels in zip(categories, found, strict=True) if not pixels]:
        notes.append(
            f"{len(absent)} of {len(categories)} categories are in neither truth nor predictions "
            f"and are left out of the mean: {some(absent)}"
        )
    return notes


def semantic_rows(found: SemanticScores, categories: Sequence[str]) -> list[Row]:
    """Rows of the means, then of each category's IoU."""
    # A mean IoU is over so many categories: those in truth or prediction.
    in_mean = int(np.count_nonzero(~np.isnan(found.iou)))
    ious = zip(categories, found.iou.tolist(), strict=True)
    return [
        Row("num_categories", in_mean),
        *mean_rows(found),
        *(Row("iou", value, name) for name, value in ious),
    ]


def mean_rows(found: SemanticScores, prefix: str = "") -> list[Row]:
    """Rows of what is over all categories; `prefix` goes before the metrics' names."""
    return [
        Row(f"{prefix}pixel_accuracy", found.pixel_accuracy),
        Row(f"{prefix}mean_accuracy", found.mean_accuracy),
        Row(f"{prefix}mean_iou", found.mean_iou),
    ]
