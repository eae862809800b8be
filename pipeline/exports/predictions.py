"""Predicted instances, read from their table and checked against the images they are of."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.datasets.coco_json import decode_counts
from pipeline.errors import BadFile, need_file, some
from pipeline.tables import SCHEMAS

ROWS = 10_000  # in memory at a time
MAKE_ANEW = "make the predictions anew, for these images and categories"

Size = tuple[int, int]  # H, W


def read_predictions(
    path: Path, sizes: Mapping[str, Size], categories: Collection[int]
) -> Iterator[pd.DataFrame]:
    """The rows of a table of kind "predicted_instances" in order, some thousands at a time.

    Args:
        sizes: height and width of each image, by image id.
        categories: the numbers that a category may have.

    Raises:
        BadFile: not such a table; an image or a category that is none of those, a score that is no
            number, no mask, or run-lengths that are not those of a mask of the image.
    """
    first = 0
    for rows in _read(path):
        rows.index += first
        first += len(rows)
        unknown = rows.loc[~rows["image_id"].isin(list(sizes)), "image_id"]
        if len(unknown):
            problem = f"images that are not in the truth: {some(list(unknown.unique()))}"
            raise BadFile(path, problem, MAKE_ANEW)
        others = rows.loc[~rows["category"].isin(list(categories)), "category"]
        _refuse(path, others, f"category {{}} is none of {some(sorted(categories))}")
        scores = rows.loc[~np.isfinite(rows["score"]), "score"]
        _refuse(path, scores, "the score {} is no number to rank by")
        _check_masks(path, rows, sizes)
        yield rows


def _read(path: Path) -> Iterator[pd.DataFrame]:
    need_file(path)
    try:
        file = pq.ParquetFile(path)
        wanted = SCHEMAS["predicted_instances"].names
        if file.schema_arrow.names != wanted:
            problem = f"its columns are {', '.join(file.schema_arrow.names)}"
            raise BadFile(path, problem, f"predicted instances have {', '.join(wanted)}")
        for batch in file.iter_batches(batch_size=ROWS):
            table = pa.Table.from_batches([batch]).cast(SCHEMAS["predicted_instances"])
            yield table.to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise BadFile(path, f"not a readable parquet file ({error})", "make it anew") from error


def _check_masks(path: Path, rows: pd.DataFrame, sizes: Mapping[str, Size]) -> None:
    _refuse(path, rows.loc[rows["mask_rle"].isna(), "image_id"], "an object of {} without a mask")
    for number, image_id, text in zip(rows.index, rows["image_id"], rows["mask_rle"], strict=True):
        height, width = sizes[image_id]
        try:
            (counts,) = decode_counts([text.encode("ascii")])
            if counts.min() < 0 or counts.sum() != height * width:
                raise ValueError(f"they are not those of {width}x{height} pixels")
        except ValueError as error:
            problem = f"row {number}: the run-lengths of an object of {image_id}: {error}"
            raise BadFile(path, problem, MAKE_ANEW) from error


def _refuse(path: Path, wrong: pd.Series, problem: str) -> None:
    """BadFile, with the first row, unless nothing is wrong."""
    if len(wrong):
        raise BadFile(path, f"row {wrong.index[0]}: {problem.format(wrong.iat[0])}", MAKE_ANEW)
