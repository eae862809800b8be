"""Scoring a folder of index PNGs, end to end, beside a plain loop of Pillow and numpy's bincount.

The loop is what people write: open both files, count pairs as FCN's scoring script does, add up. It
trusts the files. `decode` reads the same files as ours and counts nothing: what it takes of ours is
what only a faster PNG decoder could save. Maps: cells of one category, a border of 255 between
those of the truth (5 and 3 % of the pixels), predictions a little displaced; 5 and 45 kB a file.

    python -m pytest benchmarks/test_score_folder.py --benchmark-columns=min,median,rounds \
        --benchmark-timer=time.process_time

Processor time counts all threads, so the ratios are per core.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.categories import CONTEXT, VOC
from pipeline.datasets.label_maps import pair_label_maps, read_label_map
from pipeline.datasets.processes import map_in_threads
from pipeline.masks import encode_index_png
from pipeline.metrics.boundary import band_confusions
from pipeline.scoring.boundary import score_boundary
from pipeline.scoring.semantic import score_semantic

SIZES = {  # images, height, width, categories' list, pixels to a cell's side
    "375x500, 21 categories": (100, 375, 500, "voc", 180),
    "1024x2048, 60 categories": (6, 1024, 2048, "context", 320),
}
CATEGORIES = {"voc": len(VOC), "context": len(CONTEXT)}
WIDTHS = (1, 2, 5, 10, 20, 40)


def cells(height: int, width: int, side: int, num_categories: int, seed: int) -> np.ndarray:
    """A label map of irregular cells (H, W) uint8."""
    generator = np.random.default_rng(seed)
    grid = (height // side + 2, width // side + 2)
    number = generator.integers(0, num_categories, grid).astype(np.uint8)
    shift = cv2.resize(generator.normal(0, side / 3, (*grid, 2)), (width, height))  # (H, W, 2)
    y, x = np.mgrid[:height, :width]
    rows = np.clip((y + shift[..., 0]) / side, 0, grid[0] - 1).astype(int)
    columns = np.clip((x + shift[..., 1]) / side, 0, grid[1] - 1).astype(int)
    return number[rows, columns]


def with_border(label_map: np.ndarray) -> np.ndarray:
    """A map with 255 on both sides of each change, as VOC's truth has."""
    square = np.ones((5, 5), np.uint8)
    changes = cv2.dilate(label_map, square) != cv2.erode(label_map, square)
    return np.where(changes, 255, label_map).astype(np.uint8)


@pytest.fixture(scope="module", params=SIZES)
def folder(request, tmp_path_factory) -> tuple[str, Path]:
    """truth/ and predicted/ of one size."""
    images, height, width, categories, side = SIZES[request.param]
    root = tmp_path_factory.mktemp("maps")
    (root / "truth").mkdir()
    (root / "predicted").mkdir()
    for number in range(images):
        whole = cells(height, width, side, CATEGORIES[categories], number)
        name = f"{number:04d}.png"
        (root / "truth" / name).write_bytes(encode_index_png(with_border(whole)))
        moved = np.roll(whole, (5, 9), axis=(0, 1))
        (root / "predicted" / name).write_bytes(encode_index_png(moved))
    return request.param, root


def loop(root: Path, num_categories: int) -> np.ndarray:
    """Pillow and bincount. Returns the counts (C, C)."""
    counts = np.zeros((num_categories, num_categories), np.int64)
    for path in sorted((root / "truth").glob("*.png")):
        truth = np.array(Image.open(path))
        predicted = np.array(Image.open(root / "predicted" / path.name))
        valid = (truth >= 0) & (truth < num_categories)
        pair = num_categories * truth[valid].astype(int) + predicted[valid]
        counts += np.bincount(pair, minlength=num_categories**2).reshape(counts.shape)
    return counts


def decode(root: Path) -> int:
    """Both files of each image, read by the same threads. Returns the pixels."""
    joined = pair_label_maps(root / "truth", root / "predicted", ids=None, allow_missing=False)
    read = map_in_threads(
        lambda pair: read_label_map(pair.truth).size + read_label_map(pair.predicted).size,
        joined.pairs,
        "decode",
    )
    return sum(read)


def score(root: Path, categories: str) -> np.ndarray:
    outcome = score_semantic(
        root / "truth",
        root / "predicted",
        categories=categories,
        ids=None,
        allow_missing=False,
        train_ids=False,
        instances=None,
    )
    return np.array(outcome.facts["confusion"])


def timed(benchmark: Any, group: str, name: str, images: int, function: Callable) -> None:
    benchmark.group, benchmark.name = group, name
    benchmark.pedantic(function, rounds=7, warmup_rounds=1)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.extra_info["images/s"] = round(images / benchmark.stats.stats.min, 1)


@pytest.mark.parametrize("by", ["loop", "ours", "decode"])
def test_semantic(benchmark, folder, by):
    size, root = folder
    images, _, _, categories, _ = SIZES[size]
    num_categories = CATEGORIES[categories]
    counts = score(root, categories)
    assert (counts[:, :-1] == loop(root, num_categories)).all() and not counts[:, -1].any()
    functions: dict[str, Callable] = {
        "loop": lambda: loop(root, num_categories),
        "ours": lambda: score(root, categories),
        "decode": lambda: decode(root),
    }
    timed(benchmark, f"semantic, {images} images {size}", by, images, functions[by])


# --- boundary -------------------------------------------------------------------------------------
def bands(root: Path, num_categories: int) -> np.ndarray:
    """A dilation a width and two counts a band, as DeepLab's script does it; (widths, 2, C, C)."""
    counts = np.zeros((len(WIDTHS), 2, num_categories, num_categories), np.int64)
    for path in sorted((root / "truth").glob("*.png")):
        truth = np.array(Image.open(path))
        predicted = np.array(Image.open(root / "predicted" / path.name))
        void, valid = (truth == 255).astype(np.uint8), truth < num_categories
        for number, width in enumerate(WIDTHS):
            near = cv2.dilate(void, np.ones((2 * width + 1, 2 * width + 1), np.uint8)) == 1
            for place, region in enumerate((near, ~near)):
                k = region & valid
                pair = num_categories * truth[k].astype(int) + predicted[k]
                found = np.bincount(pair, minlength=num_categories**2)
                counts[number, place] += found.reshape(counts.shape[2:])
    return counts


def counted_bands(root: Path, num_categories: int) -> np.ndarray:
    pairs = pair_label_maps(root / "truth", root / "predicted", ids=None, allow_missing=False).pairs
    maps = ((read_label_map(p.predicted), read_label_map(p.truth)) for p in pairs if p.predicted)
    return sum(band_confusions(*both, WIDTHS, num_categories)[..., :-1] for both in maps)


@pytest.mark.parametrize("by", ["loop", "ours"])
def test_boundary(benchmark, folder, by):
    size, root = folder
    images, _, _, categories, _ = SIZES[size]
    num_categories = CATEGORIES[categories]
    assert (counted_bands(root, num_categories) == bands(root, num_categories)).all()

    def ours() -> Any:
        return score_boundary(
            root / "truth",
            root / "predicted",
            categories=categories,
            widths=WIDTHS,
            ids=None,
            allow_missing=False,
            train_ids=False,
        )

    functions: dict[str, Callable] = {"loop": lambda: bands(root, num_categories), "ours": ours}
    group = f"boundary at {len(WIDTHS)} widths, {images} images {size}"
    timed(benchmark, group, by, images, functions[by])
