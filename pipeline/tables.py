"""Tables: one parquet schema per kind of row, written whole or not at all.

Ratios are fractions in [0, 1]. ``image_id``, ``category``, ``split`` and ``score`` mean the same
thing in every table. Boxes are half-open ``[x0, y0, x1, y1)`` in pixels from 0.
"""

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BadInput

_BOX = [(name, pa.int32()) for name in ("x0", "y0", "x1", "y1")]

SCHEMAS = {
    # One row per image and split: an image of VOC's train is also in train_aug and trainval.
    "images": pa.schema(
        [
            ("image_id", pa.string()),
            ("split", pa.string()),
            ("source", pa.string()),  # whose masks these are: voc or sbd
            ("path", pa.string()),  # of the image, below the dataset's root
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("has_masks", pa.bool_()),
            ("has_boxes", pa.bool_()),  # false: no box annotation, which is not "no objects"
        ]
    ),
    "instances": pa.schema(
        [("image_id", pa.string()), ("instance", pa.int32()), ("category", pa.int32())]
        + _BOX
        + [("difficult", pa.bool_()), ("crowd", pa.bool_()), ("mask_rle", pa.string())]
    ),
    "predicted_instances": pa.schema(
        [("image_id", pa.string()), ("category", pa.int32()), ("score", pa.float64())]
        + _BOX
        + [("mask_rle", pa.string())]
    ),
    "semantic": pa.schema([("image_id", pa.string()), ("png", pa.binary())]),
    "proposals": pa.schema(
        [
            ("image_id", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("superpixels", pa.binary()),  # xz of (H, W) uint16, ids from 0
            ("candidates", pa.int32()),
            ("members", pa.binary()),  # xz of bits: a row for each superpixel, a column for each
            ("columns", pa.list_(pa.int32())),  # of the candidates, best first; empty: 0, 1, 2, ...
            ("scores", pa.list_(pa.float32())),  # empty: 1 - place / candidates
            ("method", pa.string()),
            ("image_sha256", pa.string()),
        ]
    ),
    "history": pa.schema(
        [
            ("step", pa.int64()),
            ("epoch", pa.int32()),
            ("name", pa.string()),
            ("value", pa.float64()),
        ]
    ),
    "choices": pa.schema(
        [
            ("epoch", pa.int32()),
            ("image_id", pa.string()),
            ("instance", pa.int32()),
            ("proposal", pa.int32()),  # -1: none
            ("rank", pa.int32()),  # 0 is the cheapest
            ("overlap_cost", pa.float64()),  # of the best candidate if none fits; NaN for no try
            ("regression_cost", pa.float64()),  # NaN while lambda is 0
            ("admissible", pa.int32()),  # candidates whose box fits the object's
            ("label", pa.string()),  # what is painted: candidate, rectangle, ignore, background
            ("reason", pa.string()),  # chosen, unfit, difficult, crowd, empty
        ]
    ),
    "metrics": pa.schema(
        [
            ("evaluation", pa.string()),
            ("dataset", pa.string()),
            ("split", pa.string()),
            ("metric", pa.string()),
            ("category", pa.string()),  # null = over all categories
            ("at", pa.float64()),  # threshold, band width, budget; else null
            ("value", pa.float64()),
        ]
    ),
    "study": pa.schema(
        [
            ("study", pa.string()),
            ("run", pa.string()),  # an evaluation, or for label_... metrics a model; no seed in it
            ("seed", pa.int64()),
            ("metric", pa.string()),
            ("category", pa.string()),  # null = over all categories
            ("at", pa.float64()),  # of metrics as above; of label_... the epoch
            ("value", pa.float64()),
        ]
    ),
}


def write_table(path: Path, kind: str, rows: pd.DataFrame | dict | list[dict]) -> None:
    """Write rows as the parquet table of that kind; the file appears whole or not at all.

    Args:
        rows: a frame, a dict of columns, or a list of rows with exactly the schema's columns.

    Raises:
        ValueError: a column is missing, or there is one too many.
    """
    schema = SCHEMAS[kind]
    if isinstance(rows, list):
        rows = {name: [row[name] for row in rows] for name in (rows[0] if rows else schema.names)}
    given = list(rows.columns) if isinstance(rows, pd.DataFrame) else list(rows)
    if set(given) != set(schema.names):
        raise ValueError(
            f"{kind} table {path}: missing columns {sorted(set(schema.names) - set(given))}, "
            f"extra columns {sorted(set(given) - set(schema.names))}"
        )
    if isinstance(rows, pd.DataFrame):
        table = pa.Table.from_pandas(rows[schema.names], schema=schema, preserve_index=False)
        table = table.replace_schema_metadata(None)
    else:
        table = pa.table({name: rows[name] for name in schema.names}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, path)


def read_arrow(path: Path, kind: str) -> pa.Table:
    """The table of that kind as arrow: for columns of lists, which a frame would make into objects.

    Raises:
        BadInput: the file is missing, unreadable or of another kind.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise BadInput(f"{path}: not there; `dvc repro` makes it") from None
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a readable parquet file ({error}); make it anew") from error
    if table.schema.names != SCHEMAS[kind].names:
        raise BadInput(f"{path}: columns {table.schema.names} are not those of a {kind} table")
    return table


def read_table(path: Path, kind: str) -> pd.DataFrame:
    """The table of that kind as a frame. Raises BadInput as `read_arrow` does."""
    return read_arrow(path, kind).to_pandas()
