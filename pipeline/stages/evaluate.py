"""Stage `evaluate`: the predictions of an evaluation against the truth -> one table.

C categories; H x W pixels; W widths of bands.
"""

from collections.abc import Callable, Mapping, Sequence
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
from pipeline.scoring.predicted_instances import instance_rows
from pipeline.scoring.semantic import mean_rows, semantic_rows
from pipeline.tables import read_table
from pipeline.work import open_work

BAND_WIDTHS = (1, 2, 5, 10, 20, 40)  # pixels, as `score boundary` has them


def evaluate(root: Path, params: Params, evaluation: str) -> None:
    """Write data/metrics/<evaluation>.parquet from the predictions and the prepared truth.

    Label maps, where the evaluation has a semantic network: the scores are of all pixels of the
    split together. Beside them stand the scores of a map that is background everywhere
    (`all_background_...`): what a model has to beat; and the mean IoU near borders and away from
    them, `band_rows`. Objects, where it finds some: `instance_rows`.

    Raises:
        BadInput: a prediction is missing, unreadable or of another size than its image.
    """
    entry = params.evaluations[evaluation]
    label_maps = Path("data/predictions") / evaluation / "semantic"
    instances = Path("data/predictions") / evaluation / "instances.parquet"
    prepared = Path("data/prepared") / entry.dataset
    out = Path("data/metrics") / f"{evaluation}.parquet"
    segmented, objects_found = entry.model != "none", entry.instances != "none"
    predictions = [label_maps] * segmented + [instances] * objects_found

    with open_work(
        root,
        stage="evaluate",
        key=evaluation,
        sections=["evaluations"],
        inputs=[prepared, *predictions],
    ) as work:
        dataset = Prepared(root, entry.dataset)
        image_ids = dataset.ids(entry.split)
        rows = [Row("num_images", len(image_ids))]
        if segmented:
            rows += _label_map_rows(dataset, image_ids, root / label_maps)
        if objects_found:
            rows += _instance_rows(dataset, entry.split, root / instances)
        table = work.folder / out.name
        write_metrics(table, Outcome(rows), evaluation, entry.dataset, entry.split)
        work.publish({table: root / out})


def _instance_rows(dataset: Prepared, split: str, table: Path) -> list[Row]:
    """The rows of `evaluate` that objects give."""
    found = read_table(table, "predicted_instances")
    try:
        return instance_rows(dataset, split, found)
    except BadInput as problem:
        raise BadInput(f"{table}: {problem}") from problem


def _label_map_rows(dataset: Prepared, image_ids: list[str], folder: Path) -> list[Row]:
    """The rows of `evaluate` that label maps give."""
    num_categories = len(dataset.categories)
    paths = _prediction_paths(folder, image_ids)
    dataset.label_map(image_ids[0])  # reads the parts, before several threads ask for them
    void = any((dataset.label_map(image_id) == IGNORE).any() for image_id in image_ids)
    counts = np.zeros((num_categories, num_categories + 1), np.int64)
    bands = np.zeros((len(BAND_WIDTHS), 2, *counts.shape), np.int64)
    one = partial(_count, dataset, paths, band_confusions if void else bands_between_categories)
    for of_image, of_bands in map_in_threads(one, image_ids, "evaluate"):
        counts += of_image
        bands += of_bands
    rows = semantic_rows(scores(counts), dataset.categories)
    if dataset.categories[0] == "background":
        beside = mean_rows(scores(_all_background(counts)), "all_background_")
        rows[-num_categories:-num_categories] = beside  # before the categories
    return [*rows, *band_rows(bands, void)]


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


def _count(
    dataset: Prepared, paths: Mapping[str, Path], bands: Callable[..., np.ndarray], image_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """The counts (C, C + 1) of one image, and those of bands (W, 2, C, C + 1).

    Raises:
        BadInput: its two label maps differ in size.
    """
    predicted, truth = decode_index_png(paths[image_id]), dataset.label_map(image_id)
    if predicted.shape != truth.shape:
        raise BadInput(
            f"{paths[image_id]}: {predicted.shape[0]} x {predicted.shape[1]} pixels (height x "
            f"width), but the label map of image {image_id} has {truth.shape[0]} x "
            f"{truth.shape[1]}; predict it at the size of the image"
        )
    num_categories = len(dataset.categories)
    in_bands = bands(predicted, truth, BAND_WIDTHS, num_categories)
    return confusion_matrix(predicted, truth, num_categories), in_bands


def _all_background(counts: np.ndarray) -> np.ndarray:
    """The counts (C, C + 1) had every pixel been predicted as category 0."""
    counts_of_background = np.zeros_like(counts)
    counts_of_background[:, 0] = counts.sum(axis=1)
    return counts_of_background


# --- near borders and away from them -----------------------------------------------------------
def band_rows(bands: np.ndarray, void: bool) -> list[Row]:
    """Rows of the mean IoU in a band of each of `BAND_WIDTHS` and outside it.

    Args:
        bands: (W, 2, C, C + 1), of all images together.
        void: the bands are around the 255 of the truth, as in `score boundary`; else around the
            borders between its categories, and the metrics' names say so.
    """
    prefix = "" if void else "category_"
    return [
        Row(f"{prefix}{part}_mean_iou", scores(counts).mean_iou, at=width)
        for width, pair in zip(BAND_WIDTHS, bands, strict=True)
        for part, counts in zip(("boundary", "interior"), pair, strict=True)
    ]


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
