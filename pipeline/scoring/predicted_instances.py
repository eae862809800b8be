"""The objects that `predict` found against those of a prepared dataset: rows of mAP^r.

The numbers are those of `score instances` on the exported files (`export truth`, `export coco`);
their names here tell the protocol and the measure, as reports/paper.csv has them.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.categories import things_of
from pipeline.datasets.prepared import Prepared
from pipeline.metrics.instance import (
    SIZES,
    VOLUME,
    Pool,
    Protocol,
    average_precision,
    average_precision_of_size,
    mean_over_categories,
)
from pipeline.scoring.instances import over_volume, pools_of_rows
from pipeline.scoring.outcome import Row

PROTOCOLS: tuple[Protocol, ...] = ("sds", "mnc11")
SIZE_THRESHOLDS = (0.5, 0.7)


def instance_rows(data: Prepared, split: str, found: pd.DataFrame) -> list[Row]:
    """mAP^r of a table of kind "predicted_instances", and the average precision by category.

        mAP_r, AP_r                  sds, at 0.1 ... 0.9; mAP_r_vol, AP_r_vol: the mean of these
        ..._mnc11                    the same by the other protocol
        mAP_r_small, _medium, _large sds, of the objects of one class of sizes, at 0.5 and 0.7

    By sds a category without any object has no value (NaN), and is left out of the means. Crowds
    are no objects, and what is found there is wrong.

    Raises:
        BadInput: as `pools_of_rows`.
    """
    pools = pools_of_rows(data, split, found)
    names = [data.categories[number] for number in things_of(data.categories)]
    sds, mnc11 = (_protocol_rows(pools, names, protocol) for protocol in PROTOCOLS)
    every = [*sds, *mnc11]
    return [
        Row("num_objects", sum(pool.num_objects for pool in pools)),
        Row("num_detections", len(found)),
        *(row for row in every if row.category is None),
        *_size_rows(pools),
        *(row for row in every if row.category is not None),
    ]


def _protocol_rows(pools: Sequence[Pool], names: Sequence[str], protocol: Protocol) -> list[Row]:
    """mAP_r, mAP_r_vol, AP_r and AP_r_vol; of mnc11 their names say so."""
    ending = "" if protocol == "sds" else f"_{protocol}"
    each = np.array([average_precision(pool, VOLUME, protocol) for pool in pools])  # (T, 9)
    volume = over_volume(each, VOLUME)  # (T,)
    means = zip(VOLUME, mean_over_categories(each), strict=True)
    rows = [Row(f"mAP_r{ending}", float(mean), at=at) for at, mean in means]
    rows.append(Row(f"mAP_r_vol{ending}", float(mean_over_categories(volume))))
    for at, column in zip(VOLUME, each.T, strict=True):
        values = zip(names, column, strict=True)
        rows += [Row(f"AP_r{ending}", float(value), name, at) for name, value in values]
    values = zip(names, volume, strict=True)
    return rows + [Row(f"AP_r_vol{ending}", float(value), name) for name, value in values]


def _size_rows(pools: Sequence[Pool]) -> list[Row]:
    """mAP_r_small, mAP_r_medium and mAP_r_large: see `average_precision_of_size`."""
    rows = []
    for size, limits in SIZES.items():
        each = [average_precision_of_size(pool, limits, SIZE_THRESHOLDS) for pool in pools]
        means = zip(SIZE_THRESHOLDS, mean_over_categories(np.array(each)), strict=True)
        rows += [Row(f"mAP_r_{size}", float(mean), at=at) for at, mean in means]
    return rows
