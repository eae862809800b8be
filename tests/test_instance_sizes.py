"""Curves of precision and recall, and average precision of objects of one class of sizes."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.metrics.instance import (
    SIZES,
    Pool,
    average_precision,
    average_precision_of_size,
    precision_recall,
)

SMALL, MEDIUM, LARGE = SIZES.values()
NUM_IMAGES = 30


def pool(scores, overlaps, areas, object_areas):
    """Of one image: overlaps (D, G)."""
    overlaps = np.array(overlaps, np.float64).reshape(len(scores), len(object_areas))
    count = np.full(len(scores), len(object_areas))
    return Pool(
        np.array(scores, np.float64), np.zeros_like(count), count, overlaps.ravel(),
        len(object_areas), np.array(areas), np.array(object_areas),
    )  # fmt: skip


# --- curves ---------------------------------------------------------------------------------------
def test_a_curve_has_a_point_after_each_detection():
    # right, wrong, right of three objects; from the second on 2/3 is the best precision
    found = pool([0.9, 0.8, 0.7], [[0.6, 0, 0], [0.1, 0, 0], [0, 0.6, 0]], [9] * 3, [9] * 3)
    recall, precision = precision_recall(found, 0.5)
    assert recall == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert precision == pytest.approx([1, 2 / 3, 2 / 3])
    recall, precision = precision_recall(found, 0.6)  # an overlap of 0.6 is not enough
    assert recall.tolist() == [0, 0, 0] and precision.tolist() == [0, 0, 0]


def test_points_go_by_falling_score():
    found = pool([0.1, 0.9], [[0.9, 0], [0, 0]], [9, 9], [9, 9])
    recall, precision = precision_recall(found, 0.5)
    assert recall.tolist() == [0, 0.5] and precision.tolist() == [0.5, 0.5]


def test_without_objects_or_detections_a_curve_is_empty():
    for found in (pool([0.5], [[]], [9], []), pool([], [], [], [9])):
        recall, precision = precision_recall(found, 0.5)
        assert recall.shape == precision.shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_the_area_under_a_curve_is_the_average_precision(seed):
    rng = np.random.default_rng(seed)
    found = pool(rng.random(30), rng.random((30, 8)), [9] * 30, [9] * 8)
    for threshold in (0.5, 0.9, 0.98):
        recall, precision = precision_recall(found, threshold)
        assert (np.diff(recall) >= 0).all() and (np.diff(precision) <= 0).all()
        area = np.sum(np.diff(np.concatenate([[0], recall])) * precision)
        expected = average_precision(found, [threshold], "sds")[0]
        assert area == pytest.approx(expected, abs=1e-12)


# --- sizes ----------------------------------------------------------------------------------------
def of_size(found, limits, thresholds=(0.5,)):
    return average_precision_of_size(found, limits, thresholds).tolist()


def test_objects_of_another_class_and_what_finds_them_are_left_out():
    # the first detection finds the large object, the second the small one
    found = pool([0.9, 0.8], [[0, 0.9], [0.9, 0]], [100, 100], [100, 20000])
    assert of_size(found, SMALL) == [1]
    assert of_size(found, LARGE) == [1]
    swapped = found._replace(scores=found.scores[::-1])
    assert of_size(swapped, SMALL) == of_size(swapped, LARGE) == [1]


def test_a_detection_goes_to_an_object_of_the_class_though_another_fits_better():
    found = pool([0.9], [[0.6, 0.9]], [100], [100, 20000])
    assert of_size(found, SMALL) == [1]
    assert of_size(found, LARGE) == [1]


def test_what_finds_nothing_counts_where_its_own_mask_is_of_the_class():
    found = pool([0.9, 0.8], [[0], [0.9]], [5000, 100], [100])
    assert of_size(found, SMALL) == [1]
    found = pool([0.9, 0.8], [[0], [0.9]], [1000, 100], [100])
    assert of_size(found, SMALL) == [1 / 2]


def test_an_object_of_another_class_is_found_once():
    # both find the large object: the second one finds none any more, and is small itself
    found = pool([0.9, 0.8, 0.7], [[0, 0.9], [0, 0.8], [0.9, 0]], [100] * 3, [100, 20000])
    assert of_size(found, SMALL) == [1 / 2]


def test_an_area_on_a_limit_is_of_both_classes():
    found = pool([0.9], [[0.9]], [32 * 32], [32 * 32])
    assert of_size(found, SMALL) == of_size(found, MEDIUM) == [1]
    assert np.isnan(of_size(found, LARGE)).all()


def test_classes_of_all_areas_give_the_average_precision():
    rng = np.random.default_rng(0)
    found = pool(rng.random(20), rng.random((20, 6)), rng.integers(1, 9999, 20), [50] * 6)
    levels = (0.5, 0.7, 0.95)
    expected = average_precision(found, levels, "sds")
    assert of_size(found, (0, 1e10), levels) == expected.tolist()


def test_areas_that_are_not_there_or_of_others_are_refused():
    found = pool([0.9], [[0.9]], [9], [9])
    with pytest.raises(ValueError, match="areas of the masks are not given"):
        average_precision_of_size(found._replace(areas=None), SMALL, [0.5])
    for change in ({"areas": np.zeros(2)}, {"object_areas": np.zeros(2)}):
        with pytest.raises(ValueError, match="areas"):
            average_precision_of_size(found._replace(**change), SMALL, [0.5])


# --- beside pycocotools ---------------------------------------------------------------------------
def scene(rng, images, objects, detections):
    """Ellipses of all sizes and detections near them: their masks by image."""
    size = (140, 150)
    ys, xs = np.mgrid[: size[0], : size[1]]

    def ellipse(centre, radii):
        return ((ys - centre[0]) / radii[0]) ** 2 + ((xs - centre[1]) / radii[1]) ** 2 < 1

    made = []
    for _ in range(images):
        shapes = [
            (rng.uniform(0, size), np.exp(rng.uniform(1.5, 4.5, 2)))
            for _ in range(rng.integers(0, objects))
        ]
        truth = [ellipse(*shape) for shape in shapes]
        found = []
        for _ in range(detections):
            centre, radii = rng.uniform(0, size), np.exp(rng.uniform(1.5, 4.5, 2))
            if shapes and rng.random() < 0.8:
                centre, radii = shapes[rng.integers(len(shapes))]
                centre, radii = centre + rng.normal(0, 2, 2), radii * rng.uniform(0.8, 1.2, 2)
            found.append((float(rng.random()), ellipse(centre, radii)))
        kept = [mask for mask in truth if mask.any()]
        made.append((kept, [one for one in found if one[1].any()]))
    return made


def rle(mask):
    return coco.encode(np.asfortranarray(mask, np.uint8))


def official(made):
    """pycocotools on the same masks, one category."""
    truth = {"images": [], "categories": [{"id": 1, "name": "x"}], "annotations": []}
    results = []
    for number, (objects, found) in enumerate(made, start=1):
        truth["images"].append({"id": number, "height": 140, "width": 150})
        for mask in objects:
            entry = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": 1}
            entry |= {"segmentation": rle(mask), "area": int(mask.sum()), "iscrowd": 0}
            truth["annotations"].append(entry)
        for score, mask in found:
            entry = {"image_id": number, "category_id": 1, "score": score}
            results.append(entry | {"segmentation": rle(mask)})
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        scoring = COCOeval(known, known.loadRes(results), "segm")
        scoring.params.iouThrs = np.array([0.5, 0.7])
        scoring.params.maxDets = [1000]
        scoring.evaluate()
    return scoring


def area_of(scores, right, num_objects):
    """The area under the envelope, from pycocotools' matches."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return (envelope * right[order]).sum() / num_objects


@pytest.mark.parametrize("seed", range(3))
def test_matches_are_those_of_pycocotools(seed):
    made = scene(np.random.default_rng(seed), images=NUM_IMAGES, objects=7, detections=10)
    rows, first = [], 0
    for objects, found in made:
        masks = [rle(mask) for _, mask in found]
        overlaps = coco.iou(masks, [rle(m) for m in objects], [0] * len(objects)) if objects else []
        for number, (score, mask) in enumerate(found):
            near = overlaps[number] if objects else []
            rows.append((score, first, len(objects), near, int(mask.sum())))
        first += len(objects)
    scores, firsts, near, overlaps, areas = zip(*rows, strict=True)
    ours = Pool(
        np.array(scores), np.array(firsts), np.array(near), np.concatenate(overlaps), first,
        np.array(areas), np.array([mask.sum() for objects, _ in made for mask in objects]),
    )  # fmt: skip
    scoring = official(made)
    values = []
    for number, limits in enumerate(SIZES.values(), start=1):  # the first of theirs is "all"
        per_image = scoring.evalImgs[number * NUM_IMAGES : (number + 1) * NUM_IMAGES]
        per_image = [one for one in per_image if one is not None]
        scored = np.concatenate([one["dtScores"] for one in per_image])
        wanted = sum(int((1 - np.array(one["gtIgnore"])).sum()) for one in per_image)
        given = average_precision_of_size(ours, limits, (0.5, 0.7))
        for t in range(2):
            right = np.concatenate([one["dtMatches"][t] > 0 for one in per_image])
            kept = np.concatenate([one["dtIgnore"][t] == 0 for one in per_image])
            expected = area_of(scored[kept], right[kept], wanted)
            assert given[t] == pytest.approx(expected, abs=1e-12)
        values += given.tolist()
    assert all(0.1 < value < 0.95 for value in values[:4])  # small and medium ones: none is trivial
