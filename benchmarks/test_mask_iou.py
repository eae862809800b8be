"""Overlaps of 2,000 proposals in superpixel form, against pycocotools on the same masks.

A drawn image of 375 x 500 with regions of many sizes, its candidates by the shipped settings for
photographs of that size (params/dai2015.yaml). pycocotools has the masks as run-lengths; for ours
the objects are decoded from run-lengths within the time. One thread; equal results are asserted.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/test_mask_iou.py \
        --benchmark-columns=min,median,rounds --benchmark-timer=time.process_time
"""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from pipeline.params_proposals import GradientEdges, Scg
from pipeline.proposals.edges import edges
from pipeline.proposals.form import Proposals
from pipeline.proposals.scg import scg

SETTINGS = Scg(
    kind="scg",
    edges=GradientEdges("gradient", sigma=1.5),
    min_area=200,
    singletons=700,
    pairs=4000,
    triplets=6000,
    quadruplets=3000,
    max_overlap=0.95,
    max_candidates=2000,
    fill_holes=True,
)


@dataclass(frozen=True)
class Drawn:
    """Candidates and five of them as objects, in the form of each tool."""

    proposals: Proposals
    rles: list[dict[str, Any]]  # of all candidates
    objects: list[dict[str, Any]]  # run-lengths of five, large and small
    expected: np.ndarray  # overlaps of all with all, by pycocotools


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    proposals = scg(photograph(), SETTINGS, edges("gradient", sigma=1.5))
    masks = np.array([proposals.mask(i) for i in range(len(proposals))])
    rles = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
    by_area = np.argsort(-proposals.areas)
    objects = [rles[i] for i in by_area[[3, 50, 100, 200, 400]]]
    part = proposals.areas.mean() / proposals.superpixels.size
    print(
        f"\n{len(proposals)} candidates of {proposals.num_superpixels} superpixels, on average "
        f"{part:.1%} of the image and {np.mean([len(r['counts']) for r in rles]):.0f} bytes"
    )
    return Drawn(proposals, rles, objects, coco.iou(rles, rles, [0] * len(rles)))


def photograph() -> np.ndarray:
    """Coloured noise, much of it in large shapes: (375, 500, 3) uint8."""
    rng = np.random.default_rng(0)
    image = np.full((375, 500, 3), 128.0)
    for period, strength in ((3, 10), (6, 10), (12, 15), (40, 30), (120, 50)):
        noise = rng.normal(0, strength, (375 // period + 2, 500 // period + 2, 3))
        image += cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def fresh(drawn: Drawn) -> Proposals:
    """The candidates with nothing computed before."""
    return replace(drawn.proposals)


@pytest.mark.parametrize("tool", ["ours", "ours, other superpixels", "pycocotools"])
def test_all_with_all(benchmark, drawn, tool):
    benchmark.group = "mask IoU, 2,000 proposals x 2,000 proposals"
    other = replace(drawn.proposals, superpixels=drawn.proposals.superpixels.copy())
    jobs = {
        "ours": lambda: (lambda p: p.iou_with_proposals(p))(fresh(drawn)),
        "ours, other superpixels": lambda: fresh(drawn).iou_with_proposals(other),
        "pycocotools": lambda: coco.iou(drawn.rles, drawn.rles, [0] * len(drawn.rles)),
    }
    if tool == "pycocotools":
        benchmark.pedantic(jobs[tool], rounds=3)
        return
    assert (jobs[tool]() == drawn.expected).all()
    benchmark.pedantic(jobs[tool], rounds=30, warmup_rounds=1)


@pytest.mark.parametrize("tool", ["ours", "ours, void pixels left out", "pycocotools"])
def test_all_with_five_objects(benchmark, drawn, tool):
    benchmark.group = "mask IoU, 2,000 proposals x 5 objects"
    expected = coco.iou(drawn.rles, drawn.objects, [0] * 5)
    none = np.zeros(drawn.proposals.superpixels.shape, bool)

    def ours(void: np.ndarray | None = None) -> np.ndarray:
        masks = np.array([coco.decode(rle) for rle in drawn.objects]).astype(bool)
        return fresh(drawn).iou_with_masks(masks, void)

    jobs = {
        "ours": ours,
        "ours, void pixels left out": lambda: ours(none),
        "pycocotools": lambda: coco.iou(drawn.rles, drawn.objects, [0] * 5),
    }
    assert (jobs[tool]() == expected).all()
    benchmark.pedantic(jobs[tool], rounds=20, warmup_rounds=2)
