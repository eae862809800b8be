"""All of decoding one image of 375 x 500, 20 categories in play, against plain torch and numpy.

`coherent`: 25 drawn objects, scores that waver and boxes that are off by some pixels; `noise`: no
two cells agree; both on 47 x 63 cells of 8 pixels, two masks a category. `truth`: one cell for each
pixel, true categories and true boxes. The peer interpolates and ranks by torch, finds maxima by
torchvision.ops.nms, compares with box_iou and encodes by pycocotools. Equal objects are asserted
before. How the time of ours divides on its steps is in the results, as are the objects found.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/test_instances.py \
        --benchmark-columns=min,median,rounds --benchmark-timer=time.process_time
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor
from torchvision.ops import box_iou, nms

from pipeline.instances import decoding, find_instances, votes
from pipeline.params import BoxInstances, RegionIou

SIZE = HEIGHT, WIDTH = 375, 500
CATEGORIES, OBJECTS = 21, 25
SEED = 3  # of drawn objects that hide no category wholly
RULE = BoxInstances(
    kind="boxes",
    vote_stride=8,
    top_masks=2,
    min_probability=0.05,
    nms_iou=0.5,
    region_nms=RegionIou(kind="iou", iou=0.3),
    min_pixels=32,
)
THINGS = np.arange(1, CATEGORIES)


class Maps(NamedTuple):
    probabilities: np.ndarray  # (C, h, w) float32
    boxes: np.ndarray  # (T, 4, h, w) float32
    stride: int


# --- inputs ---------------------------------------------------------------------------------------
def centres(stride: int) -> np.ndarray:
    """(2, h, w): x and y of the cells."""
    h, w = -(-HEIGHT // stride), -(-WIDTH // stride)
    rows, columns = np.mgrid[:h, :w]
    return (np.stack([columns, rows]) + 0.5) * stride


def objects(rng: np.random.Generator, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Ellipses, later ones in front: labels (h, w), and the box at each cell, (4, h, w)."""
    places = centres(stride)
    labels = np.zeros(places.shape[1:], int)
    boxes = np.concatenate([places - 40, places + 40])
    for number in range(OBJECTS):
        middle = rng.uniform(0, (WIDTH, HEIGHT))
        sides = np.exp(rng.uniform(np.log(30), np.log(180), 2))
        off = (places - middle[:, None, None]) / sides[:, None, None]
        inside = (off**2).sum(axis=0) < 1 / 4
        labels[inside] = 1 + number % (CATEGORIES - 1)
        boxes[:, inside] = np.concatenate([middle - sides / 2, middle + sides / 2])[:, None]
    return labels, boxes


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=0))
    return (e / e.sum(axis=0)).astype(np.float32)


def coherent() -> Maps:
    rng = np.random.default_rng(SEED)
    labels, boxes = objects(rng, 8)
    h, w = labels.shape
    wavering = [
        cv2.resize(rng.normal(0, 1, (h // 4 + 2, w // 4 + 2)), (w, h)) for _ in range(CATEGORIES)
    ]
    logits = np.stack(wavering) + 4 * (labels == np.arange(CATEGORIES)[:, None, None])
    logits += rng.normal(0, 0.01, logits.shape)  # no two alike
    guesses = boxes + rng.normal(0, 5, (len(THINGS), *boxes.shape))
    return Maps(softmax(logits), guesses.astype(np.float32), 8)


def noise() -> Maps:
    rng = np.random.default_rng(0)
    places = centres(8)
    shape = (len(THINGS), *places.shape)
    middles = places + rng.normal(0, 30, shape)
    sides = np.exp(rng.uniform(np.log(20), np.log(200), shape))
    boxes = np.concatenate([middles - sides / 2, middles + sides / 2], axis=1)
    logits = rng.normal(0, 2, (CATEGORIES, *places.shape[1:]))
    return Maps(softmax(logits), boxes.astype(np.float32), 8)


def truth() -> Maps:
    labels, boxes = objects(np.random.default_rng(SEED), 1)
    one_hot = (labels == np.arange(CATEGORIES)[:, None, None]).astype(np.float32)
    return Maps(one_hot, np.tile(boxes.astype(np.float32), (len(THINGS), 1, 1, 1)), 1)


INPUTS = {"coherent": coherent, "noise": noise, "truth": truth}


# --- the peer -------------------------------------------------------------------------------------
class Plain(NamedTuple):
    category: int
    score: float
    rle: str
    box: tuple[int, ...]
    vote: tuple[float, ...]


@torch.inference_mode()
def plain(maps: Maps) -> list[Plain]:
    probabilities, boxes = torch.from_numpy(maps.probabilities), torch.from_numpy(maps.boxes)
    cells = ranked(probabilities)
    pixels = ranked(enlarged(probabilities, maps.stride)) if maps.stride > 1 else cells
    found: list[Plain] = []
    for category in THINGS.tolist():
        if (cells[category] <= RULE.top_masks).any():
            of_category = (probabilities[category], boxes[category - 1], cells[category])
            found += of_one(category, *of_category, pixels[category], maps.stride)
    return sorted(found, key=lambda one: -one.score)


def enlarged(maps: Tensor, stride: int) -> Tensor:
    whole = F.interpolate(maps[None], scale_factor=stride, mode="bilinear", align_corners=False)
    return whole[0, :, :HEIGHT, :WIDTH]


def ranked(probabilities: Tensor) -> Tensor:
    """(C, H, W): the first mask of its category that each pixel is in; else a number above all."""
    best = probabilities.topk(RULE.top_masks, dim=0).values
    first = 1 + RULE.top_masks - (probabilities[:, None] >= best).sum(dim=1)
    return first.masked_fill_((probabilities < RULE.min_probability) | (probabilities == 0), 99)


def of_one(
    category: int, scores: Tensor, boxes: Tensor, cells: Tensor, pixels: Tensor, stride: int
) -> list[Plain]:
    whole = enlarged(boxes, stride) if stride > 1 else boxes
    masks, confidences, hypotheses = [], [], []
    for k in range(1, RULE.top_masks + 1):
        votes, weights = boxes[:, cells <= k].T, scores[cells <= k].double()
        kept = votes[nms(votes, weights.float(), RULE.nms_iou)]
        cluster = first_near(votes, kept)
        sums = torch.zeros(len(kept), dtype=torch.float64).index_add_(0, cluster, weights)
        confidences.append(sums / torch.bincount(cluster, minlength=len(kept)))
        hypotheses.append(kept)
        owner = first_near(whole[:, pixels <= k].T, kept)
        of_k = torch.zeros((len(kept), HEIGHT, WIDTH), dtype=torch.uint8)
        row, column = torch.nonzero(pixels <= k, as_tuple=True)
        of_k[owner[owner >= 0], row[owner >= 0], column[owner >= 0]] = 1
        masks.append(of_k)
    kept = regions(torch.cat(masks), torch.cat(confidences))
    encoded = coco.encode(np.asfortranarray(torch.cat(masks)[kept].permute(1, 2, 0).numpy()))
    tight = coco.toBbox(encoded).astype(int)
    tight[:, 2:] += tight[:, :2]
    votes, scores = torch.cat(hypotheses)[kept], torch.cat(confidences)[kept]
    return [
        Plain(category, score, rle["counts"].decode(), tuple(box), tuple(vote))
        for score, rle, box, vote in zip(
            scores.tolist(), encoded, tight.tolist(), votes.tolist(), strict=True
        )
    ]


def first_near(boxes: Tensor, kept: Tensor) -> Tensor:
    """The first of the kept boxes that each overlaps enough, -1 for none."""
    if len(kept) == 0:
        return torch.full((len(boxes),), -1)
    near, first = (box_iou(boxes, kept) >= RULE.nms_iou).byte().max(dim=1)
    return first.masked_fill_(near == 0, -1)


def regions(masks: Tensor, confidences: Tensor) -> Tensor:
    """Which masks (K, H, W) stay, the best first."""
    flat = masks.flatten(1)
    order = confidences.argsort(descending=True, stable=True)
    order = order[flat[order].sum(dim=1) >= RULE.min_pixels]
    flat = flat[order].float()
    both, areas = flat @ flat.T, flat.sum(dim=1)
    assert isinstance(RULE.region_nms, RegionIou)
    near = (both > 0) & (both / (areas[:, None] + areas - both) >= RULE.region_nms.iou)
    kept: list[int] = []
    for i in range(len(order)):
        if not near[i, kept].any():
            kept.append(i)
    return order[kept]


# --- ours and the comparison ----------------------------------------------------------------------
def ours(maps: Maps) -> decoding.Instances:
    return find_instances(*maps[:2], THINGS, size=SIZE, stride=maps.stride, rule=RULE)


def shares(monkeypatch: pytest.MonkeyPatch, maps: Maps, rounds: int = 5) -> dict[str, float]:
    """The part of the processor time that each step takes."""
    spent: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*given: Any, **named: Any) -> Any:
            start = time.process_time()
            result = call(*given, **named)
            spent[name] = spent.get(name, 0.0) + time.process_time() - start
            return result

        return measured

    steps = [
        ("masks", decoding, "mask_numbers"), ("votes", decoding, "votes_of"),
        ("suppression", votes, "suppress"), ("tracing back", decoding, "trace_back"),
        ("regions", decoding, "_kept"), ("run-lengths", decoding, "encode_regions"),
    ]  # fmt: skip
    for name, module, function in steps:
        monkeypatch.setattr(module, function, timed(name, getattr(module, function)))
    start = time.process_time()
    for _ in range(rounds):
        ours(maps)
    whole = time.process_time() - start
    spent["votes"] -= spent["suppression"]
    spent["else"] = whole - sum(spent.values())
    return {name: round(seconds / whole, 3) for name, seconds in spent.items()}


@pytest.mark.parametrize("tool", ["ours", "peer"])
@pytest.mark.parametrize("kind", INPUTS)
def test_decoding(benchmark, monkeypatch, kind, tool):
    benchmark.group = f"decoding, {kind}"
    torch.set_num_threads(1)
    maps = INPUTS[kind]()
    found, expected = ours(maps), plain(maps)
    assert set(found.categories.tolist()) == set(THINGS.tolist())
    columns = found.categories, found.rles, found.boxes.tolist(), found.votes.tolist()
    objects_found = sorted(zip(*columns, strict=True))
    assert objects_found == sorted(
        (one.category, one.rle, list(one.box), list(one.vote)) for one in expected
    )
    np.testing.assert_allclose(found.scores, [one.score for one in expected], rtol=1e-12)
    benchmark.extra_info["objects"] = len(expected)
    if tool == "ours":
        benchmark.pedantic(ours, args=(maps,), rounds=20, warmup_rounds=1)
        benchmark.extra_info["shares"] = shares(monkeypatch, maps)
        print(f"\n{kind}: {len(expected)} objects, {benchmark.extra_info['shares']}")
    else:
        benchmark.pedantic(plain, args=(maps,), rounds=2)
