"""What the committed studies of the sample must show: the papers' robust effects, in every seed."""

from pathlib import Path

import pandas as pd
import pytest

STUDIES = Path(__file__).resolve().parents[1] / "reports" / "studies"


def mean_iou(study: str) -> pd.DataFrame:
    """One row per seed, one column per run."""
    rows = pd.read_parquet(STUDIES / f"{study}.parquet")
    rows = rows[(rows["metric"] == "mean_iou") & rows["category"].isna()]
    return rows.pivot(index="seed", columns="run", values="value")


@pytest.fixture(scope="module")
def fcrn():
    return mean_iou("sample_fcrn")


@pytest.fixture(scope="module")
def boxsup():
    return mean_iou("sample_boxsup")


def test_there_are_three_seeds_of_every_run(fcrn, boxsup):
    for table in (fcrn, boxsup):
        assert table.index.tolist() == [0, 1, 2]
        assert not table.isna().any(axis=None)


def test_two_studies_of_one_run_agree(fcrn, boxsup):
    assert (fcrn["sample_mask_s8"] == boxsup["sample_mask_s8"]).all()


def test_masks_teach_the_network_in_every_seed(fcrn):
    assert (fcrn["sample_mask_s8"] >= 0.5).all()


def test_stride_8_beats_stride_16_in_every_seed(fcrn):
    assert (fcrn["sample_mask_s8"] > fcrn["sample_mask_s16"]).all()


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("sample_mask_s8", "sample_semi"),
        ("sample_semi", "sample_boxsup_top5"),
        ("sample_boxsup_top5", "sample_grabcut"),
        ("sample_boxsup_top1", "sample_grabcut"),
        ("sample_grabcut", "sample_rectangles"),
        ("sample_boxsup_top5", "sample_boxsup_ss"),
        ("sample_semi_more", "sample_mask_s8"),
    ],
)
def test_supervision_counts_as_in_the_paper_in_every_seed(boxsup, better, worse):
    assert (boxsup[better] > boxsup[worse]).all()
