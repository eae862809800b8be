"""The label step in superpixels against a loop over the candidates' masks.

    pytest benchmarks/test_label_step.py --benchmark-columns=min,median,rounds \\
        --benchmark-timer=time.process_time
    python benchmarks/test_label_step.py

One image of 375 x 500 with 2,000 candidates and three boxes, one core. The second command prints
both profiles and what else an epoch takes, as seconds for 1,000 such images: what an image costs is
measured, and multiplied. It tells the step's share of the epoch, with and without asking the
network, and the time of 60 images by the clock in one thread and in more.

The loop is written as well as such a loop can be. Each mask is cropped to its box and kept as
float32, so that a sum of losses in it is one dot product of BLAS; both losses of a box are put into
one map first, so that a candidate takes one such product and one count of the pixels that it shares
with the box. Summing with `where=`, with an index, by `einsum` or for each loss apart took longer.

Group "costs": both are asked for all costs of all boxes from arrays in memory; the loop gets its
crops ready made. Group "step": from what is on the disk (superpixels and members; a packed crop of
each mask) to the index PNG, without the network. Costs agree to 1e-5, choices and PNGs are equal.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cv2
import numpy as np
import pytest
import torch

from pipeline.datasets.processes import processors
from pipeline.datasets.proposal_table import _read, to_row
from pipeline.inference import for_inference, view_probabilities
from pipeline.labels import (
    Candidates,
    Choice,
    choose,
    image_costs,
    label_map_of,
    overlap_costs,
    painting_order,
    regression_costs,
)
from pipeline.masks import encode_index_png
from pipeline.models.deeplab import Deeplab, deeplab
from pipeline.models.fcrn import Fcrn, fcrn
from pipeline.params_proposals import GradientEdges, Scg
from pipeline.proposals.edges import edges
from pipeline.proposals.form import Proposals
from pipeline.proposals.scg import scg

HEIGHT, WIDTH, CATEGORIES, CLIP = 375, 500, 21, 10.0
BOXES = np.array([[40, 60, 200, 250], [150, 100, 460, 350], [300, 20, 380, 120]])
OF_BOXES = np.array([5, 15, 5])
CHOOSING = {
    "lam": 1.0,
    "top_k": 5,
    "min_box_iou": 0.0,
    "fallback_box_iou": 0.0,
    "fallback": "rectangle",
}
Costs = tuple[np.ndarray, np.ndarray]  # (N, P) each
Profile = dict[str, Callable[[], object]]
SETTINGS = Scg(
    kind="scg",
    edges=GradientEdges("gradient", sigma=1.5),
    min_area=100,
    singletons=1500,
    pairs=20000,
    triplets=5000,
    quadruplets=0,
    max_overlap=0.95,
    max_candidates=2000,
    fill_holes=False,
)


def noise(seed: int, channels: int, period: int) -> np.ndarray:
    """Smooth noise (H, W, channels) float32 with blobs of about `period` pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (HEIGHT // period + 1, WIDTH // period + 1, channels))
    bands = [
        cv2.resize(band, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        for band in np.moveaxis(coarse, 2, 0)
    ]
    return np.stack(bands, axis=2).astype(np.float32)


@pytest.fixture(scope="module")
def inputs() -> tuple[Proposals, np.ndarray]:
    return made_inputs()


def made_inputs() -> tuple[Proposals, np.ndarray]:
    """Candidates, and log probabilities (C, H, W) float32."""
    image = np.clip(128 + 60 * noise(0, 3, 12), 0, 255).astype(np.uint8)
    proposals = scg(image, SETTINGS, edges("gradient", sigma=1.5))
    assert len(proposals) == 2000
    logits = 3 * np.ascontiguousarray(np.moveaxis(noise(1, CATEGORIES, 40), 2, 0))
    return proposals, logits - np.log(np.exp(logits).sum(axis=0))


def loop_costs(proposals: Proposals, crops: list[np.ndarray], logs: np.ndarray) -> Costs:
    """Costs (N, P) by visiting every candidate's cropped mask (h, w) float32 for every box."""
    regression = np.empty((len(BOXES), len(crops)))
    v = np.minimum(-logs[0], CLIP)
    corners, areas = proposals.boxes.tolist(), proposals.areas.tolist()
    for n, ((x0, y0, x1, y1), category) in enumerate(zip(BOXES.tolist(), OF_BOXES, strict=True)):
        of_box = v[y0:y1, x0:x1]
        in_box, size = of_box.sum(dtype=np.float64), of_box.size
        gain = np.minimum(-logs[category], CLIP)  # u, and u - v inside the box
        gain[y0:y1, x0:x1] -= of_box
        for p, crop in enumerate(crops):
            left, top, right, bottom = corners[p]
            inside = np.vdot(gain[top:bottom, left:right], crop)
            l, t, r, b = max(left, x0), max(top, y0), min(right, x1), min(bottom, y1)
            shared = 0
            if l < r and t < b:
                shared = np.count_nonzero(crop[t - top : b - top, l - left : r - left])
            regression[n, p] = (inside + in_box) / (size + areas[p] - shared)
    return overlap_costs(proposals, BOXES), regression


def cropped(proposals: Proposals) -> list[np.ndarray]:
    """The mask of each candidate in its box, (h, w) float32."""
    return [
        np.ascontiguousarray(proposals.mask(i)[y0:y1, x0:x1], np.float32)
        for i, (x0, y0, x1, y1) in enumerate(proposals.boxes)
    ]


def unpacked(packed: list[np.ndarray], boxes: np.ndarray) -> list[np.ndarray]:
    """`cropped` from a bit for each pixel."""
    sizes = (boxes[:, 2:] - boxes[:, :2]).tolist()
    return [
        np.unpackbits(bits, count=w * h).reshape(h, w).astype(np.float32)
        for bits, (w, h) in zip(packed, sizes, strict=True)
    ]


def chosen(costs: Costs) -> list[Choice]:
    rng = np.random.default_rng(0)
    return [choose(*of_box, **CHOOSING, rng=rng) for of_box in zip(*costs, strict=True)]


def step(row: dict, logs: np.ndarray) -> bytes:
    """Ours, from the row of the proposal table to the PNG."""
    candidates, _ = _read(row)
    choices = chosen(superpixel_costs(candidates, logs))
    return encode_index_png(label_map_of(choices, candidates, BOXES, OF_BOXES))


def loop_step(proposals: Proposals, packed: list[np.ndarray], logs: np.ndarray) -> bytes:
    """The loop's, from packed crops to the PNG; boxes and areas of candidates are there."""
    crops = unpacked(packed, proposals.boxes)
    choices = chosen(loop_costs(proposals, crops, logs))
    label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    for i in painting_order(BOXES):
        x0, y0, x1, y1 = proposals.boxes[choices[i].proposal]
        label_map[y0:y1, x0:x1][crops[choices[i].proposal] > 0] = OF_BOXES[i]
    return encode_index_png(label_map)


def superpixel_costs(proposals: Candidates, logs: np.ndarray) -> Costs:
    return image_costs(proposals, BOXES, OF_BOXES, logs, clip=CLIP, costs="averaged")


def stored(proposals: Proposals) -> dict:
    names = ("superpixels", "members", "offsets", "scores", "boxes", "areas")
    return to_row("a", "", "scg", **{name: getattr(proposals, name) for name in names})


def packed_crops(proposals: Proposals) -> list[np.ndarray]:
    return [np.packbits(crop > 0) for crop in cropped(proposals)]


@pytest.mark.benchmark(group="costs, 375x500, 2,000 candidates, 3 boxes")
def test_superpixels(benchmark, inputs):
    proposals, logs = inputs
    expected = loop_costs(proposals, cropped(proposals), logs)
    found = benchmark(superpixel_costs, _read(stored(proposals))[0], logs)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.mark.benchmark(group="costs, 375x500, 2,000 candidates, 3 boxes")
def test_loop_over_masks(benchmark, inputs):
    proposals, logs = inputs
    found = benchmark(loop_costs, proposals, cropped(proposals), logs)
    np.testing.assert_allclose(found[1], superpixel_costs(proposals, logs)[1], rtol=1e-5)


@pytest.mark.benchmark(group="step, 375x500, 2,000 candidates, 3 boxes")
def test_step_in_superpixels(benchmark, inputs):
    proposals, logs = inputs
    assert benchmark(step, stored(proposals), logs) == loop_step(
        proposals, packed_crops(proposals), logs
    )


@pytest.mark.benchmark(group="step, 375x500, 2,000 candidates, 3 boxes")
def test_step_by_a_loop(benchmark, inputs):
    proposals, logs = inputs
    benchmark(loop_step, proposals, packed_crops(proposals), logs)


# --- profiles -------------------------------------------------------------------------------------
def seconds(work: Callable[[], object], rounds: int) -> float:
    """The least processor time of some rounds, the first left out."""
    taken = []
    for _ in range(rounds + 1):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken[1:])


def network_seconds(network: Fcrn | Deeplab, side: int) -> dict[str, float]:
    """What an image costs in bf16 on one core: asked whole, and trained on as a crop."""
    torch.set_num_threads(1)
    network.to(memory_format=torch.channels_last)
    crop = torch.randn(2, 3, side, side).to(memory_format=torch.channels_last)

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = network.train()(crop)
        logits.float().logsumexp(1).mean().backward()

    fast, image = for_inference(network.eval(), precision="bf16"), torch.randn(1, 3, HEIGHT, WIDTH)
    asked = seconds(lambda: view_probabilities(fast, image, precision="bf16"), 2)
    return {"asking the network": asked, f"training on a crop of {side}": seconds(train, 2) / 2}


def in_threads(row: dict, logs: np.ndarray) -> dict[str, float]:
    """Seconds by the clock for 60 images, the network not asked."""
    taken = {}
    for number in sorted({1, processors()}):
        with ThreadPoolExecutor(number) as pool:
            list(pool.map(step, [row] * number, [logs] * number))  # starts the threads
            began = time.perf_counter()
            list(pool.map(step, [row] * 60, [logs] * 60))
            taken[f"60 images, {number} threads"] = time.perf_counter() - began
    return taken


def profiles(row: dict, proposals: Proposals, logs: np.ndarray) -> dict[str, Profile]:
    """What is to be timed, of both ways."""
    packed, crops, candidates = packed_crops(proposals), cropped(proposals), _read(row)[0]
    costs = superpixel_costs(candidates, logs)
    choices = chosen(costs)
    label_map = label_map_of(choices, candidates, BOXES, OF_BOXES)
    losses = partial(regression_costs, log_probabilities=logs, clip=CLIP)
    return {
        "superpixels": {
            "reading candidates": lambda: _read(row),
            "overlap costs": lambda: overlap_costs(candidates, BOXES),
            "regression costs": lambda: losses(candidates, boxes=BOXES, categories=OF_BOXES),
            "choosing": lambda: chosen(costs),
            "label map": lambda: label_map_of(choices, candidates, BOXES, OF_BOXES),
            "PNG": lambda: encode_index_png(label_map),
            "the whole step": lambda: step(row, logs),
        },
        "loop over masks": {
            "reading crops": lambda: unpacked(packed, proposals.boxes),
            "costs": lambda: loop_costs(proposals, crops, logs),
            "the whole step": lambda: loop_step(proposals, packed, logs),
        },
    }


def main() -> None:
    proposals, logs = made_inputs()
    row, taken = stored(proposals), 0.0
    for name, works in reversed(profiles(row, proposals, logs).items()):
        print(name)
        for part, work in works.items():
            taken = seconds(work, 10)  # the last is our whole step
            print(f"  {part:28}{1000 * taken:9.2f} s")
    fcrn50 = fcrn(depth=50, stride=8, kernel=3, dilation=6, num_categories=CATEGORIES)
    plain = deeplab(num_categories=CATEGORIES, dropout=0.5)
    for name, network, side in (("FCRN-50/8", fcrn50, 320), ("DeepLab on VGG-16", plain, 321)):
        print(name)
        asking, training = network_seconds(network, side).items()
        for part, of_part in (asking, training):
            print(f"  {part:28}{1000 * of_part:9.0f} s")
        whole = taken + asking[1] + training[1]
        print(f"  of the epoch: the step {taken / whole:.2%}, asking {asking[1] / whole:.0%}")
    print("by the clock")
    for part, of_part in in_threads(row, logs).items():
        print(f"  {part:28}{of_part:9.2f} s")


if __name__ == "__main__":
    main()
