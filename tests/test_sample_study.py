"""What the committed study of the sample must show: the papers' robust effects, in every seed."""

from pathlib import Path

import pandas as pd
import pytest

STUDY = Path(__file__).resolve().parents[1] / "reports" / "studies" / "sample_seeds.parquet"


@pytest.fixture(scope="module")
def mean_iou():
    """One row per seed, one column per run."""
    rows = pd.read_parquet(STUDY)
    rows = rows[(rows["metric"] == "mean_iou") & rows["category"].isna()]
    return rows.pivot(index="seed", columns="run", values="value")


def test_there_are_three_seeds_of_every_run(mean_iou):
    assert mean_iou.index.tolist() == [0, 1, 2]
    assert not mean_iou.isna().any(axis=None)


def test_masks_teach_the_network_in_every_seed(mean_iou):
    assert (mean_iou["sample_mask_s8"] >= 0.5).all()


@pytest.mark.parametrize("boxsup", ["sample_boxsup_top1", "sample_boxsup_top5"])
def test_masks_beat_boxsup_and_boxsup_beats_rectangles_in_every_seed(mean_iou, boxsup):
    assert (mean_iou["sample_mask_s8"] > mean_iou[boxsup]).all()
    assert (mean_iou[boxsup] > mean_iou["sample_rectangles"]).all()


def test_stride_8_beats_stride_16_in_every_seed(mean_iou):
    assert (mean_iou["sample_mask_s8"] > mean_iou["sample_mask_s16"]).all()
