"""mAP^r at nine overlaps of a set as large as SBD's val, beside the SDS procedure in plain numpy.

The peers do what the published MATLAB does: overlaps once per image, between all its detections
and all its objects; then for each category and threshold image by image, the detections by falling
score, each to the best object of the category not yet covered; then one sort and one area. What the
original adds for its diagnosis of errors is left out. They differ in the overlaps:

    runs      pycocotools.mask.iou from the run-lengths, one call an image
    pixels    as the original, which has an instance map: masks drawn, one matrix product an image

Synthetic: 5,732 images of 375x500, 20 categories, 1 to 4 objects that do not cover each other and
17 detections an image, of these 6 in 10 near an object and of its category. `overlaps` begins with
the overlaps in memory, `files` with the two JSON files.

    python -m pytest benchmarks/test_instance_ap.py --benchmark-columns=min,median,rounds \
        --benchmark-timer=time.process_time
"""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from pipeline.datasets.coco_results import read_results, read_truth
from pipeline.metrics.instance import VOLUME, average_precision
from pipeline.scoring.instances import pools_of_categories, score_instances

NUM_IMAGES, NUM_CATEGORIES, NUM_DETECTIONS = 5732, 20, 17
HEIGHT, WIDTH = 375, 500
SHAPES, VARIANTS = 150, 6

Rle = dict[str, Any]
Compare = Callable[[list[Rle], list[Rle]], np.ndarray]
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
    """truth.json and results.json; an object is what the earlier ones of its image leave of it."""
    generator = np.random.default_rng(0)
    shapes = masks(generator)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, NUM_IMAGES + 1):
        objects = []
        for _ in range(generator.integers(1, 5)):
            shape, category = generator.integers(SHAPES), generator.integers(1, NUM_CATEGORIES + 1)
            objects.append((int(shape), int(category)))
        drawn = coco.decode([shapes[shape][0] for shape, _ in objects])
        drawn &= drawn.cumsum(axis=2, dtype=np.uint8) == 1
        for (_, category), encoded in zip(objects, coco.encode(drawn), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": category}
            visible = {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
            annotations.append(entry | {"segmentation": visible, "iscrowd": 0})
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


def from_runs(detections: list[Rle], objects: list[Rle]) -> np.ndarray:
    return np.asarray(coco.iou(detections, objects, [0] * len(objects)))


def from_pixels(detections: list[Rle], objects: list[Rle]) -> np.ndarray:
    """(D, G), from the detections drawn and the instance map."""
    numbers = np.arange(1, len(objects) + 1, dtype=np.uint8)
    instances = (coco.decode(objects) * numbers).max(axis=2).ravel(order="F")
    masks = coco.decode(detections).reshape(-1, len(detections), order="F").T  # (D, pixels)
    inside = np.flatnonzero(instances)
    one_hot = (instances[inside, None] == numbers).astype(np.float32)
    both = masks[:, inside].astype(np.float32) @ one_hot
    areas = np.array([np.count_nonzero(mask) for mask in masks])
    unions = areas[:, None] + one_hot.sum(axis=0, dtype=np.float64) - both
    return both / np.maximum(unions, 1)


def peer_overlaps(folder: Path, compare: Compare) -> tuple[dict[int, list[Cell]], list[np.ndarray]]:
    truth = json.loads((folder / "truth.json").read_text())
    objects, detections = defaultdict(list), defaultdict(list)
    for one in truth["annotations"]:
        objects[one["image_id"]].append(one)
    for one in json.loads((folder / "results.json").read_text()):
        detections[one["image_id"]].append(one)
    cells: dict[int, list[Cell]] = {n: [] for n in range(1, NUM_CATEGORIES + 1)}
    categories = []
    for image in truth["images"]:
        mine, found = objects[image["id"]], detections[image["id"]]
        categories.append(np.array([one["category_id"] for one in mine]))
        overlaps = compare(
            [one["segmentation"] for one in found], [one["segmentation"] for one in mine]
        )
        found_categories = np.array([one["category_id"] for one in found])
        scores = np.array([one["score"] for one in found])
        for category in cells:
            chosen = found_categories == category
            cells[category].append((scores[chosen], overlaps[chosen]))
    return cells, categories


# --- ours and the comparison ----------------------------------------------------------------------
def our_precisions(pools: dict[int, Any]) -> np.ndarray:
    return np.stack([average_precision(pools[c], VOLUME, "sds") for c in sorted(pools)])


def our_files(folder: Path) -> np.ndarray:
    paths = folder / "truth.json", folder / "results.json"
    outcome = score_instances(*paths, protocol="sds", thresholds=None, ids=None)
    found = [row.value for row in outcome.rows if row.metric == "ap"]
    return np.reshape(found, (len(VOLUME), NUM_CATEGORIES)).T


def peer_files(folder: Path, compare: Compare) -> np.ndarray:
    return peer_precisions(*peer_overlaps(folder, compare))


@pytest.mark.parametrize("which", ["ours", "peer"])
@pytest.mark.benchmark(group="overlaps")
def test_from_overlaps(benchmark, files, which):
    of_peer = peer_overlaps(files, from_runs)
    if which == "ours":
        truth = read_truth(files / "truth.json")
        pools = pools_of_categories(truth, read_results(files / "results.json", truth))
        np.testing.assert_allclose(our_precisions(pools), peer_precisions(*of_peer), atol=1e-12)
        benchmark.pedantic(our_precisions, args=(pools,), rounds=5)
    else:
        benchmark.pedantic(peer_precisions, args=of_peer, rounds=2)


@pytest.mark.parametrize("which", ["ours", "runs", "pixels"])
@pytest.mark.benchmark(group="files")
def test_from_files(benchmark, files, which):
    if which == "ours":
        np.testing.assert_allclose(our_files(files), peer_files(files, from_runs), atol=1e-12)
        benchmark.pedantic(our_files, args=(files,), rounds=5)
    elif which == "runs":
        benchmark.pedantic(peer_files, args=(files, from_runs), rounds=2)
    else:
        found = benchmark.pedantic(peer_files, args=(files, from_pixels), rounds=1)
        np.testing.assert_allclose(found, our_files(files), atol=1e-12)
