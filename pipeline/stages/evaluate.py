"""Stage `evaluate`: the predicted label maps of an evaluation against the truth -> one table.

C categories; H x W pixels; W widths of bands.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.categories import IGNORE
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import map_in_threads
from pipeline.errors import BadInput
from pipeline.masks import decode_index_png
from pipeline.metrics.boundary import band_confusions, border_distance
from pipeline.metrics.semantic import confusion_matrix, scores
from pipeline.params import Params
from pipeline.scoring.outcome import Outcome, Row, write_metrics
from pipeline.scoring.semantic import mean_rows, semantic_rows
from pipeline.work import open_work

BAND_WIDTHS = (1, 2, 5, 10, 20, 40)  # pixels, as `score boundary` has them


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
    predicted, truth = _maps(dataset, paths, image_id)
    return confusion_matrix(predicted, truth, len(dataset.categories))


def _maps(
    dataset: Prepared, paths: Mapping[str, Path], image_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """The predicted and the true label map, (H, W) uint8. BadInput if they differ in size."""
    predicted, truth = decode_index_png(paths[image_id]), dataset.label_map(image_id)
    if predicted.shape != truth.shape:
        raise BadInput(
            f"{paths[image_id]}: {predicted.shape[0]} x {predicted.shape[1]} pixels (height x "
            f"width), but the label map of image {image_id} has {truth.shape[0]} x "
            f"{truth.shape[1]}; predict it at the size of the image"
        )
    return predicted, truth


def _all_background(counts: np.ndarray) -> np.ndarray:
    """The counts (C, C + 1) had every pixel been predicted as category 0."""
    counts_of_background = np.zeros_like(counts)
    counts_of_background[:, 0] = counts.sum(axis=1)
    return counts_of_background


# --- near borders and away from them -----------------------------------------------------------
def band_scores(
    dataset: Prepared, split: str, predictions: Mapping[str, Path]
) -> tuple[str, dict[str, list[tuple[float, float, float]]]]:
    """Mean IoU of all pixels near the borders of the truth and of all others, by width.

    The bands are around the 255 of the truth, as those of `score boundary`, or, where no map of the
    split has any, around the borders between its categories.

    Args:
        predictions: {name: folder of <image_id>.png}.

    Returns:
        What the bands are around, in words; {name: (width, mean IoU in the band, mean IoU outside
        it) for each of `BAND_WIDTHS`}, NaN where there are no such pixels.

    Raises:
        BadInput: as `evaluate`.
    """
    image_ids, num_categories = dataset.ids(split), len(dataset.categories)
    paths = {name: _prediction_paths(folder, image_ids) for name, folder in predictions.items()}
    void = any((dataset.label_map(image_id) == IGNORE).any() for image_id in image_ids)
    count = band_confusions if void else bands_between_categories

    def counts_of(image_id: str) -> np.ndarray:
        pairs = [_maps(dataset, of_run, image_id) for of_run in paths.values()]
        return np.stack([count(*pair, BAND_WIDTHS, num_categories) for pair in pairs])

    shape = (len(paths), len(BAND_WIDTHS), 2, num_categories, num_categories + 1)
    counts = np.zeros(shape, np.int64)
    for one in map_in_threads(counts_of, image_ids, "bands"):
        counts += one
    found = {
        name: [
            (float(width), scores(band).mean_iou, scores(interior).mean_iou)
            for width, (band, interior) in zip(BAND_WIDTHS, of_run, strict=True)
        ]
        for name, of_run in zip(paths, counts, strict=True)
    }
    return "the void (255) of the truth" if void else "the borders between categories", found


def bands_between_categories(
    predicted: np.ndarray, truth: np.ndarray, widths: Sequence[int], num_categories: int
) -> np.ndarray:
    """As `band_confusions`, around the borders between the categories of a truth without 255.

    The pixels on both sides of a border between two categories are the band of width 1; no pixel is
    left out.

    Args:
        predicted: (H, W) uint8, any values.
        truth: (H, W) uint8, categories 0..C-1.
        widths: pixels, from 1 on.

    Returns:
        (W, 2, C, C + 1) int64: of each width the band, then the interior.
    """
    at_border = np.zeros(truth.shape, bool)
    below, beside = truth[1:] != truth[:-1], truth[:, 1:] != truth[:, :-1]
    at_border[1:] |= below
    at_border[:-1] |= below
    at_border[:, 1:] |= beside
    at_border[:, :-1] |= beside
    steps = border_distance(np.where(at_border, np.uint8(IGNORE), truth))
    near = [np.where(steps < width, truth, np.uint8(IGNORE)) for width in widths]
    bands = np.stack([confusion_matrix(predicted, band, num_categories) for band in near])
    return np.stack([bands, confusion_matrix(predicted, truth, num_categories) - bands], axis=1)
