"""Stage `evaluate`: the predicted label maps of an evaluation against the truth -> one table."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import map_in_threads
from pipeline.errors import BadInput
from pipeline.masks import decode_index_png
from pipeline.metrics.semantic import confusion_matrix, scores
from pipeline.params import Params
from pipeline.scoring.outcome import Outcome, Row, write_metrics
from pipeline.scoring.semantic import mean_rows, semantic_rows
from pipeline.work import open_work


def evaluate(root: Path, params: Params, evaluation: str) -> None:
    """Write data/metrics/<evaluation>.parquet from the predictions and the prepared truth.

    The scores are of all pixels of the split together. Beside them stand the scores of a map that
    is background everywhere (`all_background_...`): what a model has to beat.

    Raises:
        BadInput: a prediction is missing, unreadable or of another size than its image.
    """
    entry = params.evaluations[evaluation]
    predictions = Path("data/predictions") / evaluation / "semantic"
    prepared = Path("data/prepared") / entry.dataset
    out = Path("data/metrics") / f"{evaluation}.parquet"

    with open_work(
        root,
        stage="evaluate",
        key=evaluation,
        sections=["evaluations"],
        inputs=[prepared, predictions],
    ) as work:
        dataset = Prepared(root, entry.dataset)
        image_ids = dataset.ids(entry.split)
        num_categories = len(dataset.categories)
        paths = _prediction_paths(root / predictions, image_ids)
        dataset.label_map(image_ids[0])  # reads the parts, before several threads ask for them
        counts = np.zeros((num_categories, num_categories + 1), np.int64)
        for one in map_in_threads(partial(_count, dataset, paths), image_ids, "evaluate"):
            counts += one

        rows = semantic_rows(scores(counts), dataset.categories)
        if dataset.categories[0] == "background":
            beside = mean_rows(scores(_all_background(counts)), "all_background_")
            rows[-num_categories:-num_categories] = beside  # before the categories
        measured = Outcome([Row("num_images", len(image_ids)), *rows])
        table = work.folder / out.name
        write_metrics(table, measured, evaluation, entry.dataset, entry.split)
        work.publish({table: root / out})


def _prediction_paths(folder: Path, image_ids: list[str]) -> dict[str, Path]:
    """The predicted label map of each image. BadInput unless all are there."""
    paths = {image_id: folder / f"{image_id}.png" for image_id in image_ids}
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        raise BadInput(
            f"{missing[0]}: not there ({len(missing)} of {len(paths)} predictions are missing); "
            "run predict for this evaluation again"
        )
    return paths


def _count(dataset: Prepared, paths: Mapping[str, Path], image_id: str) -> np.ndarray:
    """The counts (C, C + 1) of one image. BadInput if its two label maps differ in size."""
    predicted, truth = decode_index_png(paths[image_id]), dataset.label_map(image_id)
    if predicted.shape != truth.shape:
        raise BadInput(
            f"{paths[image_id]}: {predicted.shape[0]} x {predicted.shape[1]} pixels (height x "
            f"width), but the label map of image {image_id} has {truth.shape[0]} x "
            f"{truth.shape[1]}; predict it at the size of the image"
        )
    return confusion_matrix(predicted, truth, len(dataset.categories))


def _all_background(counts: np.ndarray) -> np.ndarray:
    """The counts (C, C + 1) had every pixel been predicted as category 0."""
    counts_of_background = np.zeros_like(counts)
    counts_of_background[:, 0] = counts.sum(axis=1)
    return counts_of_background
