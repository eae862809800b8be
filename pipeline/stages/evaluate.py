"""Stage `evaluate`: the predicted label maps of an evaluation against the truth -> one table."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.datasets.prepared import Prepared
from pipeline.errors import BadInput
from pipeline.masks import decode_index_png
from pipeline.metrics.semantic import SemanticScores, confusion_matrix, scores
from pipeline.params import Params
from pipeline.tables import write_table
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
        counts = np.zeros((num_categories, num_categories + 1), np.int64)
        for predicted, truth in _pairs(root / predictions, dataset, image_ids):
            counts += confusion_matrix(predicted, truth, num_categories)

        rows = [{"metric": "num_images", "category": None, "value": float(len(image_ids))}]
        found = scores(counts)
        # A mean IoU is over so many categories: those in truth or prediction.
        in_mean = float(np.count_nonzero(~np.isnan(found.iou)))
        rows.append({"metric": "num_categories", "category": None, "value": in_mean})
        rows += _mean_rows("", found)
        if dataset.categories[0] == "background":
            rows += _mean_rows("all_background_", scores(_all_background(counts)))
        for name, iou in zip(dataset.categories, found.iou, strict=True):
            rows.append({"metric": "iou", "category": name, "value": float(iou)})

        same = {
            "evaluation": evaluation,
            "dataset": entry.dataset,
            "split": entry.split,
            "at": None,
        }
        write_table(work.folder / out.name, "metrics", [same | row for row in rows])
        work.publish({work.folder / out.name: root / out})


def _pairs(
    folder: Path, dataset: Prepared, image_ids: list[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(predicted, truth) label maps (H, W) uint8 of each image, checked.

    All files are looked for before the first is read.
    """
    paths = {image_id: folder / f"{image_id}.png" for image_id in image_ids}
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        raise BadInput(
            f"{missing[0]}: not there ({len(missing)} of {len(paths)} predictions are missing); "
            "run predict for this evaluation again"
        )
    for image_id, path in tqdm(paths.items(), desc="evaluate", unit="image", disable=None):
        predicted, truth = decode_index_png(path), dataset.label_map(image_id)
        if predicted.shape != truth.shape:
            raise BadInput(
                f"{path}: {predicted.shape[0]} x {predicted.shape[1]} pixels (height x width), "
                f"but the label map of image {image_id} has {truth.shape[0]} x {truth.shape[1]}; "
                "predict it at the size of the image"
            )
        yield predicted, truth


def _all_background(counts: np.ndarray) -> np.ndarray:
    """The counts (C, C + 1) had every pixel been predicted as category 0."""
    counts_of_background = np.zeros_like(counts)
    counts_of_background[:, 0] = counts.sum(axis=1)
    return counts_of_background


def _mean_rows(prefix: str, found: SemanticScores) -> list[dict]:
    values = {
        "pixel_accuracy": found.pixel_accuracy,
        "mean_accuracy": found.mean_accuracy,
        "mean_iou": found.mean_iou,
    }
    return [
        {"metric": f"{prefix}{name}", "category": None, "value": value}
        for name, value in values.items()
    ]
