"""mAP^r at nine overlaps of a set as large as SBD's val, beside the SDS procedure in plain numpy.

The peer does what the published MATLAB does: overlaps once per image, between the detections of a
category and all objects of the image; then for each category and threshold image by image, the
detections by falling score, each to the best object of the category not yet covered; then one sort
and one area. What the original adds for its diagnosis of errors is left out.

Synthetic: 5,732 images of 375x500, 20 categories, 1 to 4 objects and 17 detections an image, of
these 6 in 10 near an object and of its category. `overlaps` begins with the overlaps in memory,
`files` with the two JSON files.

    python -m pytest benchmarks/test_instance_ap.py --benchmark-columns=min,median,rounds \
        --benchmark-timer=time.process_time
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from pipeline.datasets.coco_results import read_results, read_truth
from pipeline.metrics.instance import VOLUME, average_precision
from pipeline.scoring.instances import overlaps_of_categories, score_instances

NUM_IMAGES, NUM_CATEGORIES, NUM_DETECTIONS = 5732, 20, 17
HEIGHT, WIDTH = 375, 500
SHAPES, VARIANTS = 150, 6

Cell = tuple[np.ndarray, np.ndarray]  # scores (D,), overlaps (D, G) with all objects of an image


def masks(generator: np.random.Generator) -> list[list[dict[str, Any]]]:
    """Run-lengths of irregular regions: SHAPES of them, each displaced a little VARIANTS times."""
    made = []
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for _ in range(SHAPES):
        centre = generator.uniform((80, 60), (WIDTH - 80, HEIGHT - 60))
        radii = generator.uniform(20, 110) * generator.uniform(0.7, 1.3, 40)
        variants = []
        for _ in range(VARIANTS):
            points = centre + (radii * np.stack([np.cos(angles), np.sin(angles)])).T
            points += generator.normal(0, 12, 2) + generator.normal(0, 2, (40, 2))
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
            encoded = coco.encode(np.asfortranarray(mask))
            variants.append({"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()})
        made.append(variants)
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """truth.json and results.json."""
    generator = np.random.default_rng(0)
    shapes = masks(generator)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, NUM_IMAGES + 1):
        objects = []
        for _ in range(generator.integers(1, 5)):
            shape, category = generator.integers(SHAPES), generator.integers(1, NUM_CATEGORIES + 1)
            objects.append((int(shape), int(category)))
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": int(category)}
            entry |= {"segmentation": shapes[shape][0], "iscrowd": 0}
            annotations.append(entry)
        for _ in range(NUM_DETECTIONS):
            shape, category = objects[generator.integers(len(objects))]
            near = generator.random() < 0.6
            if not near:
                shape = int(generator.integers(SHAPES))
                category = int(generator.integers(1, NUM_CATEGORIES + 1))
            score = float(generator.beta(4, 2) if near else generator.beta(2, 4))
            mask = shapes[shape][generator.integers(VARIANTS)]
            entry = {"image_id": image, "category_id": category, "score": score}
            results.append(entry | {"segmentation": mask})
    folder = tmp_path_factory.mktemp("instances")
    images = [{"id": n, "height": HEIGHT, "width": WIDTH} for n in range(1, NUM_IMAGES + 1)]
    categories = [{"id": n, "name": f"category {n}"} for n in range(1, NUM_CATEGORIES + 1)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


# --- the peer -------------------------------------------------------------------------------------
def labels_of(scores: np.ndarray, overlaps: np.ndarray, threshold: float) -> np.ndarray:
    """Which detections (D,) are right, given their overlaps (D, G) with a category's objects."""
    labels = np.zeros(len(scores), bool)
    covered = np.zeros(overlaps.shape[1], bool)
    if covered.size == 0:
        return labels
    for d in np.argsort(-scores, kind="stable"):
        if covered.all():
            break
        left = np.flatnonzero(~covered)
        best = overlaps[d, left].argmax()
        if overlaps[d, left[best]] > threshold:
            labels[d] = covered[left[best]] = True
    return labels


def area_of(scores: np.ndarray, labels: np.ndarray, num_objects: int) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    recall = np.concatenate([[0.0], hits / num_objects, [1.0]])
    precision = np.concatenate([[0.0], hits / np.arange(1, len(hits) + 1), [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum())


def peer_precisions(cells: dict[int, list[Cell]], truth: list[np.ndarray]) -> np.ndarray:
    """(C, T), from the overlaps.

    Args:
        cells: of each category, image by image.
        truth: the category of each object, image by image.
    """
    found = np.zeros((NUM_CATEGORIES, len(VOLUME)))
    for category, images in cells.items():
        num_objects = sum(int((categories == category).sum()) for categories in truth)
        scores = np.concatenate([scores for scores, _ in images])
        for t, threshold in enumerate(VOLUME):
            labels = [
                labels_of(scores, overlaps[:, categories == category], threshold)
                for (scores, overlaps), categories in zip(images, truth, strict=True)
                if len(scores)
            ]
            found[category - 1, t] = area_of(scores, np.concatenate(labels), num_objects)
    return found


def peer_overlaps(folder: Path) -> tuple[dict[int, list[Cell]], list[np.ndarray]]:
    truth = json.loads((folder / "truth.json").read_text())
    objects, detections = defaultdict(list), defaultdict(list)
    for one in truth["annotations"]:
        objects[one["image_id"]].append(one)
    for one in json.loads((folder / "results.json").read_text()):
        detections[one["image_id"], one["category_id"]].append(one)
    cells: dict[int, list[Cell]] = {n: [] for n in range(1, NUM_CATEGORIES + 1)}
    categories = []
    for image in truth["images"]:
        mine = objects[image["id"]]
        categories.append(np.array([one["category_id"] for one in mine]))
        object_masks = [one["segmentation"] for one in mine]
        for category in cells:
            found = detections.get((image["id"], category), [])
            overlaps = np.zeros((0, len(mine)))
            if found:
                found_masks = [one["segmentation"] for one in found]
                overlaps = coco.iou(found_masks, object_masks, [0] * len(mine))
            cells[category].append((np.array([one["score"] for one in found]), overlaps))
    return cells, categories


# --- ours and the comparison ----------------------------------------------------------------------
def our_precisions(pools: dict[int, Any]) -> np.ndarray:
    return np.stack([average_precision(pools[c], VOLUME, "sds") for c in sorted(pools)])


def our_files(folder: Path) -> np.ndarray:
    paths = folder / "truth.json", folder / "results.json"
    outcome = score_instances(*paths, protocol="sds", thresholds=None, ids=None)
    found = [row.value for row in outcome.rows if row.metric == "ap"]
    return np.reshape(found, (len(VOLUME), NUM_CATEGORIES)).T


def peer_files(folder: Path) -> np.ndarray:
    return peer_precisions(*peer_overlaps(folder))


@pytest.mark.parametrize("which", ["ours", "peer"])
@pytest.mark.benchmark(group="overlaps")
def test_from_overlaps(benchmark, files, which):
    expected = peer_precisions(*peer_overlaps(files))
    if which == "ours":
        truth = read_truth(files / "truth.json")
        pools = overlaps_of_categories(truth, read_results(files / "results.json", truth))
        np.testing.assert_allclose(our_precisions(pools), expected, atol=1e-12)
        benchmark.pedantic(our_precisions, args=(pools,), rounds=5)
    else:
        benchmark.pedantic(peer_precisions, args=peer_overlaps(files), rounds=2)


@pytest.mark.parametrize("which", ["ours", "peer"])
@pytest.mark.benchmark(group="files")
def test_from_files(benchmark, files, which):
    if which == "ours":
        np.testing.assert_allclose(our_files(files), peer_files(files), atol=1e-12)
        benchmark.pedantic(our_files, args=(files,), rounds=3)
    else:
        benchmark.pedantic(peer_files, args=(files,), rounds=2)
