"""Loading one training view against the same in Pillow: per core, from the same files.

    OMP_NUM_THREADS=1 pytest benchmarks/test_loading.py --benchmark-timer=time.process_time \
        --benchmark-columns=min,median,rounds

One round loads 48 views: decode, random scale 0.5 to 1.5, mirror, crop of 320x320, padding. The
files are drawn here: JPEGs of 500x375 at quality 90 and label maps as palette PNGs. Two peers, both
loops over Pillow: one scales the whole image and crops then, as most are written; one scales only
the part that is seen, which is as well as such a loop can be written. Pillow smooths where it
makes smaller, OpenCV does not; else the views are the same, which is asserted. The floor is the
decoding of the JPEGs alone. No time is asserted.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.form import read_image
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.raw_cache import RawCache
from pipeline.masks import encode_index_png
from pipeline.params_training import Augmentation
from pipeline.tables import write_table
from pipeline.transforms import PADDING, draw_view, random_view

HEIGHT, WIDTH, SIDE, COUNT = 375, 500, 320, 48
GRAIN = 13  # deviation of the finest noise
AUGMENTATION = Augmentation((SIDE, SIDE), (0.5, 1.5), "horizontal")
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.NEAREST)  # of the image, of the labels
View = tuple[np.ndarray, np.ndarray]  # (h, w, 3) and (h, w) uint8


# --- the files -----------------------------------------------------------------------------------
def drawn(seed: int) -> View:
    """Blobs and grain in many sizes under ellipses of one category each."""
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH, 3), 128.0)
    for period, strength in ((80, 40), (16, 25), (4, 20), (1, GRAIN)):
        shape = (HEIGHT // period + 2, WIDTH // period + 2)
        coarse = rng.normal(0, strength, (*shape, 1)) + rng.normal(0, strength / 4, (*shape, 3))
        image += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    for category in rng.integers(1, 21, 4):
        centre = (int(rng.integers(WIDTH)), int(rng.integers(HEIGHT)))
        axes = (int(rng.integers(20, 150)), int(rng.integers(20, 110)))
        shape = (centre, axes, int(rng.integers(180)), 0, 360)
        inside = cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), *shape, 1, -1).astype(bool)
        image[inside] = 0.6 * image[inside] + rng.uniform(0, 100, 3)
        label_map[inside] = category
        label_map = cv2.ellipse(label_map, *shape, 255, 4)  # a border that is ignored, as in VOC
    return np.clip(image, 0, 255).astype(np.uint8), label_map


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A project with the prepared dataset "drawn", and its label maps as files for the peers."""
    root = tmp_path_factory.mktemp("loading")
    tree, prepared = root / "data" / "raw" / "drawn", root / "data" / "prepared" / "drawn"
    tree.mkdir(parents=True)
    rows, maps = [], []
    for number in range(COUNT):
        pixels, label_map = drawn(number)
        name = f"{number:02d}"
        Image.fromarray(pixels).save(tree / f"{name}.jpg", quality=90)
        maps.append({"image_id": name, "png": encode_index_png(label_map)})
        (tree / f"{name}.png").write_bytes(maps[-1]["png"])
        row = {"image_id": name, "split": "train", "source": "drawn", "path": f"drawn/{name}.jpg"}
        rows.append(
            {**row, "height": HEIGHT, "width": WIDTH, "has_masks": True, "has_boxes": False}
        )
    write_table(prepared / "images.parquet", "images", rows)
    write_table(prepared / "instances.parquet", "instances", [])
    write_table(prepared / "semantic" / "part-000.parquet", "semantic", maps)
    (prepared / "categories.json").write_text(json.dumps([str(number) for number in range(21)]))
    sizes = [path.stat().st_size for path in tree.glob("*.jpg")]
    assert 80_000 < np.mean(sizes) < 110_000  # as photographs of this size have
    return root


# --- the peers -----------------------------------------------------------------------------------
class Drawing(NamedTuple):
    """What a view shows, in the terms of such loops."""

    width: int  # of the scaled image
    height: int
    left: int  # of the scaled image, in the view
    top: int
    mirrored: bool


def drawing(number: int, scales: tuple[float, float]) -> Drawing:
    """As `draw_view` draws, from the same numbers."""
    rng = np.random.default_rng([0, 1, number])
    scale = rng.uniform(*scales)
    mirrored = bool((rng.random(2) < 0.5)[1])
    height, width = round(HEIGHT * scale), round(WIDTH * scale)
    top, left = (
        int(rng.integers(min(SIDE - side, 0), max(SIDE - side, 0), endpoint=True))
        for side in (height, width)
    )
    return Drawing(width, height, left, top, mirrored)


def opened(tree: Path, number: int) -> tuple[Image.Image, Image.Image]:
    with Image.open(tree / f"{number:02d}.jpg") as image:
        image.load()
    with Image.open(tree / f"{number:02d}.png") as label_map:
        label_map.load()
    return image, label_map


def finished(seen: Image.Image, at: Drawing, ground: tuple[int, int, int] | int) -> np.ndarray:
    """What is seen, mirrored and padded as drawn."""
    left = max(at.left, 0)
    if at.mirrored:
        seen, left = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT), SIDE - left - seen.width
    if seen.size != (SIDE, SIDE):
        view = Image.new(seen.mode, (SIDE, SIDE), ground)
        view.paste(seen, (left, max(at.top, 0)))
        seen = view
    return np.array(seen)


def pillow_scales_all(tree: Path, number: int, scales: tuple[float, float]) -> View:
    at = drawing(number, scales)
    image, label_map = (
        picture.resize((at.width, at.height), filtering)
        for picture, filtering in zip(opened(tree, number), FILTERS, strict=True)
    )
    x, y = max(-at.left, 0), max(-at.top, 0)
    part = (x, y, min(x + SIDE, at.width), min(y + SIDE, at.height))
    return finished(image.crop(part), at, PADDING), finished(label_map.crop(part), at, 255)


def pillow_scales_what_is_seen(tree: Path, number: int, scales: tuple[float, float]) -> View:
    at = drawing(number, scales)
    size = width, height = min(at.width, SIDE), min(at.height, SIDE)
    x, y = max(-at.left, 0), max(-at.top, 0)
    across, down = WIDTH / at.width, HEIGHT / at.height
    part = (x * across, y * down, (x + width) * across, (y + height) * down)
    image, label_map = (
        picture.resize(size, filtering, box=part)
        for picture, filtering in zip(opened(tree, number), FILTERS, strict=True)
    )
    return finished(image, at, PADDING), finished(label_map, at, 255)


# --- ours ----------------------------------------------------------------------------------------
def our_view(source: Prepared | RawCache, number: int, scales: tuple[float, float]) -> View:
    name = f"{number:02d}"
    rng = np.random.default_rng([0, 1, number])
    augmentation = Augmentation((SIDE, SIDE), scales, "horizontal")
    return random_view(source.image(name), source.label_map(name), augmentation, rng)


def loaders(root: Path) -> dict[str, Callable[[int, tuple[float, float]], View]]:
    tree, data = root / "data" / "raw" / "drawn", Prepared(root, "drawn")
    cache = RawCache(root, "drawn", data)
    return {
        "Pillow, scales all": lambda n, scales: pillow_scales_all(tree, n, scales),
        "Pillow, scales what is seen": lambda n, s: pillow_scales_what_is_seen(tree, n, s),
        "ours": lambda n, scales: our_view(data, n, scales),
        "ours, raw cache": lambda n, scales: our_view(cache, n, scales),
    }


LOADERS = ("Pillow, scales all", "Pillow, scales what is seen", "ours", "ours, raw cache")


@pytest.mark.parametrize("name", LOADERS)
def test_all_give_the_same_views(root, name):
    load, ours = loaders(root)[name], loaders(root)["ours"]
    for number in range(COUNT):
        for mine, theirs in zip(load(number, (1.0, 1.0)), ours(number, (1.0, 1.0)), strict=True):
            assert np.array_equal(mine, theirs)
        larger = load(number, (1.3, 1.3)), ours(number, (1.3, 1.3))
        difference = np.abs(larger[0][0].astype(int) - larger[1][0])
        assert difference.mean() < GRAIN / 4  # Pillow takes the rounded size's scale
        assert (larger[0][1] != larger[1][1]).mean() < 0.01


GROUP = f"{COUNT} views of 320x320 from 500x375"


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.benchmark(group=GROUP)
def test_loading(benchmark, root, name):
    load = loaders(root)[name]
    benchmark.pedantic(
        lambda: [load(number, AUGMENTATION.scale) for number in range(COUNT)],
        rounds=15,
        warmup_rounds=2,
    )


@pytest.mark.benchmark(group=GROUP)
def test_floor_decoding_alone(benchmark, root):
    paths = sorted((root / "data" / "raw" / "drawn").glob("*.jpg"))
    contents = [np.fromfile(path, np.uint8) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        assert np.array_equal(cv2.imdecode(content, cv2.IMREAD_COLOR_RGB), read_image(path))
    benchmark.pedantic(
        lambda: [cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) for content in contents],
        rounds=15,
        warmup_rounds=2,
    )


def test_the_peers_draw_what_we_draw():
    for number in range(COUNT):
        at = drawing(number, AUGMENTATION.scale)
        matrix = draw_view((HEIGHT, WIDTH), AUGMENTATION, np.random.default_rng([0, 1, number]))
        assert (matrix[0, 0] < 0) == at.mirrored
        assert at.width == round(WIDTH / abs(matrix[0, 0]))
        assert at.height == round(HEIGHT / matrix[1, 1])
