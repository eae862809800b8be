"""What Selective Search costs with masks, and OpenCV's, which gives boxes, beside it.

    pytest benchmarks/test_selective_search.py --benchmark-columns=min,median,rounds

One thread, one picture of 321 x 481 pixels of smooth colours and texture. OpenCV's "fast" groups
over the same colour spaces with two scales; it is the peer for boxes.
"""

import cv2
import numpy as np
import pytest

from pipeline.boxes import iou
from pipeline.proposals.selective_search import selective_search

HEIGHT, WIDTH = 321, 481


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray]:
    """An image of twelve textured rectangles on texture, and their boxes (12, 4)."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)

    def texture(period: int, weight: float) -> np.ndarray:
        coarse = rng.normal(0, 1, (HEIGHT // period + 2, WIDTH // period + 2, 3))
        return weight * cv2.resize(coarse.astype(np.float32), (WIDTH, HEIGHT))

    image = 128 + texture(90, 30) + texture(15, 12) + texture(4, 8)
    boxes = []
    for y in range(20, 300, 100):
        for x in range(20, 440, 115):
            width, height = rng.integers(40, 90, 2)
            boxes.append((x, y, x + width, y + height))
            image[y : y + height, x : x + width] += rng.choice([-50, 50], 3)
    return np.clip(image, 0, 255).astype(np.uint8), np.array(boxes)


@pytest.mark.benchmark(group="one image, 321 x 481")
def test_masks(benchmark, scene):
    image, boxes = scene
    found = benchmark.pedantic(selective_search, (image,), rounds=10, warmup_rounds=1)
    assert (iou(found.boxes, boxes).max(axis=0) > 0.7).mean() > 0.8


@pytest.mark.benchmark(group="one image, 321 x 481")
def test_boxes_of_opencv(benchmark, scene):
    image, boxes = scene

    def search() -> np.ndarray:
        grouping = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        grouping.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
        grouping.switchToSelectiveSearchFast()
        return grouping.process()

    x, y, width, height = benchmark.pedantic(search, rounds=10, warmup_rounds=1).T
    found = np.stack([x, y, x + width, y + height], axis=1)
    assert (iou(found, boxes).max(axis=0) > 0.7).mean() > 0.8
