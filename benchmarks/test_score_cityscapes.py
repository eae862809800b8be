"""Scoring a folder of Cityscapes' frames against the benchmark's own tool, per core.

    OMP_NUM_THREADS=1 pytest benchmarks/test_score_cityscapes.py \
        --benchmark-timer=time.process_time --benchmark-columns=min,median,rounds

One round scores 6 frames of 1024 x 2048 from their PNGs, with and without iIoU. The files are drawn
here: strips of ground with wavy borders, 24 objects a frame; the prediction is the truth bent by
some pixels, with grains of other labels. The peer is cityscapesscripts' Python path, with the
function that numpy 2.4 took away put back. It sorted all pixels under older numpy and hashes them
since numpy 2.3, some times faster: say the version with the ratio. For comparison: Pillow's
decoding of the same files alone. Every number is asserted to be the peer's. No time is asserted.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.categories import CITYSCAPES_IDS, CITYSCAPES_THINGS
from pipeline.scoring.cityscapes import score_cityscapes
from pipeline.scoring.outcome import document

HEIGHT, WIDTH, COUNT, OBJECTS = 1024, 2048, 6, 24
SKY, BUILDING, VEGETATION, SIDEWALK, ROAD, EGO_VEHICLE = 23, 11, 21, 8, 7, 1
GROUND = (SKY, BUILDING, VEGETATION, SIDEWALK, ROAD, EGO_VEHICLE)


# --- the files ------------------------------------------------------------------------------------
def drawn(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, numbers of objects and prediction of a frame, (H, W) each."""
    labels = np.empty((HEIGHT, WIDTH), np.uint8)
    rows = np.arange(HEIGHT)[:, None]
    for label, top in zip(GROUND, (0.0, 0.2, 0.4, 0.55, 0.65, 0.93), strict=True):
        wave = 30 * np.sin(np.arange(WIDTH) / rng.uniform(30, 200) + rng.uniform(0, 6))
        start = top * HEIGHT + wave * (0 < top < 0.9)  # (W,)
        labels[rows >= start] = label
    numbers = labels.astype(np.uint16)
    for n, label in enumerate(rng.choice(list(CITYSCAPES_THINGS), OBJECTS).tolist()):
        centre = (int(rng.integers(WIDTH)), int(rng.integers(400, 800)))
        axes = (int(rng.uniform(8, 160)), int(rng.uniform(10, 120)))
        shape = (centre, axes, int(rng.integers(30)), 0, 360)
        cv2.ellipse(labels, *shape, label, -1)
        cv2.ellipse(numbers, *shape, label * 1000 + n, -1)
    coarse = rng.normal(0, 6, (2, HEIGHT // 32, WIDTH // 32)).astype(np.float32)
    bend = [cv2.resize(part, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for part in coarse]
    x, y = np.meshgrid(np.arange(WIDTH, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32))
    predicted = cv2.remap(labels, x + bend[0], y + bend[1], cv2.INTER_NEAREST)
    for _ in range(60):
        corner = (int(rng.integers(WIDTH)), int(rng.integers(HEIGHT)))
        cv2.circle(predicted, corner, int(rng.integers(1, 12)), int(rng.choice(CITYSCAPES_IDS)), -1)
    return labels, numbers, predicted


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    (root / "truth" / "ulm").mkdir(parents=True)
    (root / "predicted").mkdir()
    for number in range(COUNT):
        name = f"ulm_{number:06d}_000019"
        labels, numbers, predicted = (Image.fromarray(pixels) for pixels in drawn(rng))
        labels.save(root / "truth" / "ulm" / f"{name}_gtFine_labelIds.png")
        numbers.save(root / "truth" / "ulm" / f"{name}_gtFine_instanceIds.png")
        predicted.save(root / "predicted" / f"{name}.png")
    return root


# --- the two --------------------------------------------------------------------------------------
def ours(root: Path, *, instances: bool) -> dict:
    return document(
        score_cityscapes(
            root / "truth",
            root / "predicted",
            ids=None,
            allow_missing=False,
            train_ids=False,
            instances=root / "truth" if instances else None,
        )
    )


@pytest.fixture(scope="module")
def official(root) -> Callable[..., dict]:
    name = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    tool = pytest.importorskip(name, exc_type=ImportError)
    patch = pytest.MonkeyPatch()
    patch.setattr(np, "in1d", np.isin, raising=False)  # which numpy 2.4 has no more
    patch.setattr(tool, "CSUPPORT", False)
    predicted = sorted(str(path) for path in (root / "predicted").iterdir())
    truth = sorted(str(path) for path in (root / "truth").rglob("*_labelIds.png"))

    def run(*, instances: bool) -> dict:
        args = copy.copy(tool.args)
        args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, instances
        return tool.evaluateImgLists(predicted, truth, args)

    yield run
    patch.undo()


def check(found: dict, theirs: dict, *, instances: bool) -> None:
    """Each number of ours is theirs."""
    metrics = {"iou": "classScores", "group_iou": "categoryScores"}
    if instances:
        metrics |= {"iiou": "classInstScores", "group_iiou": "categoryInstScores"}
    for metric, key in metrics.items():
        numbers = {name: value for name, value in found[metric].items() if value is not None}
        assert numbers
        assert numbers == {n: v for n, v in theirs[key].items() if not np.isnan(v)}


CASES = pytest.mark.parametrize("instances", [False, True], ids=["IoU", "IoU and iIoU"])


@CASES
def test_ours(benchmark, root, official, instances):
    benchmark.group = f"{COUNT} frames, {'IoU and iIoU' if instances else 'IoU'}"
    theirs = official(instances=instances)
    check(ours(root, instances=instances), theirs, instances=instances)
    benchmark(ours, root, instances=instances)


@CASES
def test_cityscapesscripts(benchmark, official, instances):
    benchmark.group = f"{COUNT} frames, {'IoU and iIoU' if instances else 'IoU'}"
    benchmark(official, instances=instances)


@CASES
def test_decoding_alone_with_pillow(benchmark, root, instances):
    benchmark.group = f"{COUNT} frames, {'IoU and iIoU' if instances else 'IoU'}"
    endings = ("9.png", "labelIds.png") + (("instanceIds.png",) if instances else ())
    paths = [path for path in root.rglob("*.png") if path.name.endswith(endings)]
    assert len(paths) == COUNT * len(endings)
    benchmark(lambda: [np.array(Image.open(path)) for path in paths])
