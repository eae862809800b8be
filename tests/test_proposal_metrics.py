"""Jaccard, recall and average recall of proposals: by hand, by loops and by pycocotools."""

import contextlib
import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.metrics.proposals import (
    GRID,
    RECALL_AT,
    ProposalCounts,
    area_under,
    count_proposals,
    in_size,
    proposal_scores,
    recall_curve,
)

TABLES = Path(__file__).resolve().parents[1].parent / "shared" / "papers" / "paper_tables.csv"
BUDGETS = [10, 100, 1000]


def counted(
    proposals: np.ndarray, objects: np.ndarray, budgets: list[int], **given: Any
) -> ProposalCounts:
    """The counts of masks (P, ...) and (N, ...) bool; by default one category, areas of masks."""
    proposals, objects = (
        masks.reshape(len(masks), int(np.prod(masks.shape[1:]))).astype(np.float64)
        for masks in (proposals, objects)
    )
    pixels = objects.sum(axis=1)
    category = given.get("category", np.zeros(len(objects), np.int64))
    return count_proposals(
        proposals @ objects.T,
        proposals.sum(axis=1),
        pixels,
        category,
        given.get("area", pixels),
        budgets=budgets,
        num_categories=given.get("num_categories", 1),
    )


# --- by hand --------------------------------------------------------------------------------------
LINE = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], bool)  # proposals
THINGS = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], bool)
# overlaps: proposal 1 has 2/3 and 0, proposal 2 has 1/5 and 2/4, proposal 3 has 3/4 and 1/6


def test_an_object_is_covered_by_its_best_proposal_so_far():
    found = proposal_scores(counted(LINE, THINGS, [1, 2, 3, 9]), [1, 2, 3, 9])
    by_hand = [(2 / 3 + 0) / 2, (2 / 3 + 1 / 2) / 2, (3 / 4 + 1 / 2) / 2, (3 / 4 + 1 / 2) / 2]
    np.testing.assert_allclose(found.jaccard_instance, by_hand)
    assert found.recall[0].tolist() == [1 / 2, 1, 1, 1]  # 1/2 is enough
    assert found.recall[1].tolist() == [0, 0, 1 / 2, 1 / 2]
    assert found.recall[2].tolist() == [0, 0, 0, 0]
    assert found.mean_num.tolist() == [1, 2, 3, 3]


def test_pixels_of_a_category_are_added_up_before_they_are_divided():
    same = proposal_scores(counted(LINE, THINGS, [1, 3]), [1, 3])
    # with 1 proposal the second object has that one, too: 0 of 5 pixels
    np.testing.assert_allclose(same.jaccard_class, [(2 + 0) / (3 + 5), (3 + 2) / (4 + 4)])
    category = np.array([2, 0])
    counts = counted(LINE, THINGS, [1, 3], category=category, num_categories=3)
    other = proposal_scores(counts, [1, 3])
    np.testing.assert_allclose(other.jaccard_class, [(2 / 3 + 0) / 2, (3 / 4 + 2 / 4) / 2])


def test_average_recall_counts_matches_at_ten_overlaps():
    found = proposal_scores(counted(LINE, THINGS, [1, 2, 3]), [1, 2, 3])
    # 2/3 is enough at .5 .55 .6 .65; 1/2 at .5; 3/4 at .7 and .75, for the object still free there
    np.testing.assert_allclose(found.average_recall[0], [4 / 20, 5 / 20, 7 / 20])


def test_a_proposal_is_matched_with_one_object_only():
    twice = np.array([[1, 1, 1, 0], [1, 1, 1, 0]], bool)
    counts = counted(np.array([[1, 1, 1, 0]], bool), twice, [1])
    found = proposal_scores(counts, [1])
    assert found.average_recall[0, 0] == 1 / 2 and found.recall[0, 0] == 1


def test_bounds_of_sizes_belong_to_both():
    sizes = in_size(np.array([0, 1023, 1024, 1025, 9215, 9216, 9217.0]))
    assert sizes.sum(axis=1).tolist() == [7, 3, 4, 2]
    assert sizes[:, 2].tolist() == [True, True, True, False]


def test_images_without_proposals_miss_their_objects():
    nothing = np.zeros((0, 6), bool)
    counts = counted(LINE, THINGS, [3]) + counted(nothing, THINGS, [3])
    found = proposal_scores(counts, [3])
    np.testing.assert_allclose(found.jaccard_instance, [(3 / 4 + 1 / 2 + 0 + 0) / 4])
    np.testing.assert_allclose(found.jaccard_class, [(3 + 2) / (4 + 4 + 3 + 3)])
    np.testing.assert_allclose(found.average_recall[0], [7 / 40])
    assert found.mean_num.tolist() == [3 / 2]


def test_without_objects_nothing_can_be_said():
    found = proposal_scores(counted(LINE, np.zeros((0, 6), bool), [2]), [2])
    numbers = (found.jaccard_instance, found.jaccard_class, found.recall, found.average_recall)
    assert all(np.isnan(number).all() for number in (*numbers, found.auc))
    assert found.mean_num.tolist() == [2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"category": np.array([0, 1])}, "categories are 0 to 0"),
        ({"area": np.ones(3)}, "shared"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        counted(LINE, THINGS, [1], **wrong)


@pytest.mark.parametrize("budgets", [[], [0], [3, -1]])
def test_budgets_start_at_one(budgets):
    with pytest.raises(ValueError, match="whole numbers from 1 on"):
        counted(LINE, THINGS, budgets)


# --- area under the curve -------------------------------------------------------------------------
def test_the_area_under_recall_one_is_one_and_under_a_straight_line_a_half():
    assert area_under(np.ones(1000)) == pytest.approx(1)
    assert area_under(np.log10(np.arange(1, 1001)) / 3) == pytest.approx(1 / 2)


def test_the_area_is_from_1_to_1000_proposals_whatever_the_budgets():
    first = proposal_scores(counted(LINE, THINGS, [2]), [2])
    second = proposal_scores(counted(LINE, THINGS, [5, 3000]), [5, 3000])
    assert first.auc[0] == second.auc[0] > 0
    # 4/20 with one proposal, 5/20 with two, 7/20 from three on
    steps = np.log10([1, 2, 3, 1000])
    by_hand = np.trapezoid([4 / 20, 5 / 20, 7 / 20, 7 / 20], steps) / 3
    assert first.auc[0] == pytest.approx(by_hand)


@pytest.mark.skipif(not TABLES.exists(), reason="the papers' tables are not there")
def test_printed_areas_fit_the_range_from_1_to_1000_and_no_other():
    printed: dict[str, dict[str, float]] = {}
    with TABLES.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["table"] == "SharpMask Table (proposals)" and row["metric"].startswith("seg_"):
                printed.setdefault(row["row"], {})[row["metric"]] = float(row["value"])
    wanted = ["seg_AR@10", "seg_AR@100", "seg_AR@1000", "seg_AUC"]
    rows = [[p[name] for name in wanted] for p in printed.values() if set(wanted) <= set(p)]
    assert len(rows) >= 8
    for ten, hundred, thousand, auc in rows:
        # A cubic through recall at 1, 10, 100, 1000 has the mean (y0 + 3 y1 + 3 y2 + y3) / 8.
        at_one = 8 * auc - 3 * ten - 3 * hundred - thousand  # y0, if the range is 1 to 1000
        assert -1.5 < at_one < ten / 2
        assert (ten + 2 * hundred + thousand) / 4 > 1.2 * auc  # if it is 10 to 1000
        assert (ten + hundred + thousand) / 3 > 1.2 * auc  # if the mean of the three


# --- other tools ----------------------------------------------------------------------------------
@st.composite
def images(draw) -> list[dict[str, Any]]:
    """Images of rectangles: few places, so that overlaps tie; some objects crowds or empty."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def rectangles(count: int, height: int, width: int) -> np.ndarray:
        masks = np.zeros((count, height, width), bool)
        for mask in masks:
            x, y = rng.integers(0, 6, 2) * (width // 8), rng.integers(0, 6, 2) * (height // 8)
            mask[y.min() : y.max() + height // 8, x.min() : x.max() + width // 8] = True
            mask &= rng.random() < 0.9
        return masks

    found = []
    for _ in range(draw(st.integers(1, 4))):
        height, width = draw(st.sampled_from([(40, 40), (150, 130), (8, 9)]))
        count = draw(st.integers(0, 6))
        found.append(
            {
                "objects": rectangles(count, height, width),
                "proposals": rectangles(draw(st.integers(0, 25)), height, width),
                "category": rng.integers(0, 3, count),
                "crowd": rng.random(count) < 0.2,
            }
        )
    return found


@settings(max_examples=40, deadline=None)
@given(images())
def test_average_recall_equals_that_of_pycocotools(drawn):
    budgets = [1, 3, 10, 1000]
    expected = by_pycocotools(drawn, budgets)
    found = proposal_scores(total(drawn, budgets), budgets).average_recall
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(images())
def test_the_rest_equals_plain_loops(drawn):
    budgets = [1, 4, 7]
    counts = total(drawn, budgets)
    found = proposal_scores(counts, budgets)
    for k, budget in enumerate(budgets):
        best, shared, union = [], np.zeros(3), np.zeros(3)
        for image in drawn:
            for thing, category in zip(*plain(image), strict=True):
                overlap, pixels = -1.0, (0, int(thing.sum()))
                for proposal in image["proposals"][:budget]:
                    both, either = (proposal & thing).sum(), (proposal | thing).sum()
                    if (both / either if either else 0) > overlap:
                        overlap, pixels = both / either if either else 0, (both, either)
                best.append(max(overlap, 0))
                shared[category] += pixels[0]
                union[category] += pixels[1]
        if not best:
            assert np.isnan(found.jaccard_instance[k])
            continue
        assert found.jaccard_instance[k] == pytest.approx(np.mean(best))
        recall = [np.mean(np.array(best) >= t) for t in RECALL_AT]
        assert found.recall[:, k] == pytest.approx(recall)
        if union.any():
            parts = shared[union > 0] / union[union > 0]
            assert found.jaccard_class[k] == pytest.approx(parts.mean())
    assert (np.diff(counts.best) >= 0).all()  # more proposals never cover less
    curve = recall_curve(counts)
    assert np.isnan(curve).all() or (np.diff(curve[0]) >= 0).all()


def plain(image: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Objects that are no crowds, and their categories."""
    return image["objects"][~image["crowd"]], image["category"][~image["crowd"]]


def total(drawn: list[dict[str, Any]], budgets: list[int]) -> ProposalCounts:
    each = []
    for image in drawn:
        objects, category = plain(image)
        order = np.argsort(category, kind="stable")
        given = {"category": category[order], "num_categories": 3}
        each.append(counted(image["proposals"], objects[order], budgets, **given))
    found = each[0]
    for counts in each[1:]:
        found += counts
    return found


def by_pycocotools(drawn: list[dict[str, Any]], budgets: list[int]) -> np.ndarray:
    """Average recall (4, K) of COCO's tool, categories aside; NaN where it says -1."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "info": {}}
    truth["categories"] = [{"id": c, "name": str(c)} for c in range(3)]
    results = []
    for number, image in enumerate(drawn):
        height, width = image["objects"].shape[1:]
        truth["images"].append({"id": number, "height": height, "width": width})
        for mask, category, crowd in zip(
            image["objects"], image["category"], image["crowd"], strict=True
        ):
            entry = {"id": len(truth["annotations"]) + 1, "image_id": number}
            entry |= {"category_id": int(category), "iscrowd": int(crowd), "area": int(mask.sum())}
            truth["annotations"].append(entry | {"segmentation": encoded(mask)})
        for rank, mask in enumerate(image["proposals"]):
            entry = {"image_id": number, "category_id": 0, "score": 1 - rank / 1000}
            results.append(entry | {"segmentation": encoded(mask)})
    with contextlib.redirect_stdout(io.StringIO()):
        tool = COCO()
        tool.dataset = truth
        tool.createIndex()
        outputs = tool.loadRes(results) if results else COCO()
        if not results:
            outputs.dataset = truth | {"annotations": []}
            outputs.createIndex()
        run = COCOeval(tool, outputs, "segm")
        run.params.useCats = 0
        run.params.maxDets = budgets
        assert (run.params.iouThrs == GRID).all()
        run.evaluate()
        run.accumulate()
    recall = run.eval["recall"]  # (T, 1, 4, K)
    return np.where(recall[:, 0] > -1, recall[:, 0], np.nan).mean(axis=0)


def encoded(mask: np.ndarray) -> dict[str, Any]:
    return coco.encode(np.asfortranarray(mask, np.uint8))
