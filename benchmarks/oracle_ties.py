"""What the order of equal scores does to mAP^r: an evaluation's objects, scored in five orders.

With true masks every confidence is 1, and average precision takes equal scores as they come.

    python benchmarks/oracle_ties.py --project DIR sample_instances_oracle

DIR holds params.yaml and data/ with the evaluation's predictions. Prints mAP^r (`sds`), per cent.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.prepared import Prepared
from pipeline.params_file import load_params
from pipeline.scoring.predicted_instances import instance_rows
from pipeline.tables import read_table

WANTED = (("mAP_r", 0.5), ("mAP_r", 0.7), ("mAP_r_vol", None))


def orders(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The same objects; those of one score in another order each time."""
    area = (found["x1"] - found["x0"]) * (found["y1"] - found["y0"])
    shuffled = np.random.default_rng(0).permutation(len(found))
    return {
        "as they are": found,
        "reversed": found[::-1],
        "shuffled": found.iloc[shuffled],
        "large boxes first": found.loc[area.sort_values(ascending=False, kind="stable").index],
        "small boxes first": found.loc[area.sort_values(kind="stable").index],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, default=Path("."), metavar="DIR")
    parser.add_argument("evaluation")
    given = parser.parse_args()
    entry = load_params(given.project / "params.yaml").evaluations[given.evaluation]
    data = Prepared(given.project, entry.dataset)
    place = given.project / "data" / "predictions" / given.evaluation / "instances.parquet"
    found = read_table(place, "predicted_instances")
    print(f"{len(found)} objects of {found['score'].nunique()} different scores")
    for name, rows in orders(found).items():
        measured = {(r.metric, r.at): r.value for r in instance_rows(data, entry.split, rows)}
        print(f"{name:<18}", *(f"{100 * measured[key]:6.1f}" for key in WANTED))


if __name__ == "__main__":
    main()
