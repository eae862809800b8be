"""Preparing a dataset on one core: our readers beside plain loops that write the same.

"The same" is all that `prepare` keeps of an image: its size, its label map as an index PNG, and its
objects with boxes and run-lengths. The loops are what one would write with Pillow, pycocotools,
scipy and ElementTree for this one purpose: they trust the files, where our readers check them, and
write PNGs at the same level as ours. Copies: `large` is the drawn sample enlarged to the size of
the published images, `small` the drawn sample itself, where what is done once an image counts most.

    python -m pytest benchmarks/test_prepare.py --benchmark-columns=min,median,rounds
"""

import contextlib
import io
import json
import xml.etree.ElementTree as xml
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy.io import loadmat

from pipeline.categories import CITYSCAPES_IDS, COCO_NAMES, SAMPLE, colour_map
from pipeline.datasets import cityscapes, coco, sample, sample_cityscapes, sample_coco, voc
from pipeline.datasets.prepared import image_rows
from pipeline.datasets.sample import Drawn, draw
from pipeline.datasets.tree import Place, Problems, Tree
from pipeline.masks import FAST

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
IMAGES = 40  # read in each round
PALETTE = colour_map().tobytes()
STRICT = Problems(collect=False)

Rows = tuple[tuple[int, int], bytes, list[tuple]]  # size, PNG, objects


def ours(tree: Tree, ids: list[str]) -> list[Rows]:
    """What `prepare` does with each image."""
    found = []
    for image_id in ids:
        row, objects, png = image_rows(tree.read(tree.record(image_id), STRICT))
        kept = [
            (o["category"], (o["x0"], o["y0"], o["x1"], o["y1"]), o["crowd"], o["mask_rle"])
            for o in objects
        ]
        found.append(((row["height"], row["width"]), png, kept))
    return found


def compare(
    benchmark: Any, group: str, tree: Tree, ids: list[str], plain: Callable[[str], Rows], by: str
) -> None:
    """Time one of the two, after a look whether both give the same."""

    def loop() -> list[Rows]:
        return [plain(image_id) for image_id in ids]

    rows = loop()
    assert ours(tree, ids) == rows
    objects = sum(len(each) for _, _, each in rows) / len(ids)
    benchmark.group = f"{group}: {len(ids)} images, {objects:.1f} objects each"
    benchmark.name = by
    benchmark.pedantic(loop if by == "plain" else lambda: ours(tree, ids), rounds=7)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.extra_info["images/s"] = round(len(ids) / benchmark.stats.stats.min, 1)


# --- the parts of a plain loop --------------------------------------------------------------------
def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width


def index_png(label_map: np.ndarray) -> bytes:
    image = Image.fromarray(label_map)
    image.putpalette(PALETTE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=FAST)
    return buffer.getvalue()


def run_lengths(mask: np.ndarray) -> tuple[tuple[int, ...], str]:
    """Tight box and run-lengths of a mask (H, W) bool."""
    rle = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))
    return box_of(rle), rle["counts"].decode("ascii")


def box_of(rle: dict[str, Any]) -> tuple[int, ...]:
    x, y, w, h = coco_mask.toBbox(rle).astype(int).tolist()
    return x, y, x + w, y + h


def enlarged(width: int, height: int) -> Callable[[str, int], Drawn]:
    """The sample's `draw`, its images of another size."""

    def resized(numbers: np.ndarray) -> np.ndarray:
        return cv2.resize(numbers, (width, height), interpolation=cv2.INTER_NEAREST)

    def draw_large(split: str, index: int) -> Drawn:
        small = draw(split, index)
        scale = np.array([width, height, width, height]) / np.tile(small.visible.shape[::-1], 2)
        return replace(
            small,
            image=cv2.resize(small.image, (width, height), interpolation=cv2.INTER_LINEAR),
            visible=resized(small.visible),
            object_map=resized(small.object_map),
            label_map=resized(small.label_map),
            boxes=np.round(small.boxes * scale).astype(np.int64),
        )

    return draw_large


# --- COCO -----------------------------------------------------------------------------------------
def plain_coco(api: COCO, folder: Path, image_id: str) -> Rows:
    rank = {number: place for place, number in enumerate(COCO_NAMES, start=1)}
    size = size_of(folder / f"{image_id}.jpg")
    annotations = api.imgToAnns[int(image_id)]
    masks = [api.annToRLE(annotation) for annotation in annotations]
    label_map = np.zeros(size, np.uint8)
    order = sorted(
        zip(annotations, masks, strict=True),
        key=lambda pair: (not pair[0]["iscrowd"], -int(coco_mask.area(pair[1]))),
    )
    for annotation, mask in order:
        value = 255 if annotation["iscrowd"] else rank[annotation["category_id"]]
        label_map[coco_mask.decode(mask).view(bool)] = value
    objects = []
    for annotation, mask in zip(annotations, masks, strict=True):
        counts = mask["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        crowd = annotation["iscrowd"] == 1
        objects.append((rank[annotation["category_id"]], box_of(mask), crowd, text))
    return size, index_png(label_map), objects


def write_large_coco(root: Path) -> None:
    """Images of 640x480 with the objects of two drawn ones, outlined by as few points as COCO's."""
    names = [{"id": number, "name": name} for number, name in COCO_NAMES.items()]
    large, content = enlarged(640, 480), {"images": [], "annotations": [], "categories": names}
    (root / "val2017").mkdir()
    for number in range(1, IMAGES + 1):
        name = f"{number:012d}.jpg"
        for drawn in (large("train", number), large("val", number)):
            for n, kind in enumerate(drawn.categories.tolist()):
                outlines, _ = cv2.findContours(
                    (drawn.visible == n + 1).astype(np.uint8),
                    cv2.RETR_EXTERNAL,
                    cv2.CHAIN_APPROX_NONE,
                )
                few = [cv2.approxPolyDP(outline, 2.5, closed=True) for outline in outlines]
                kept = [points.ravel().tolist() for points in few if len(points) > 2]
                x0, y0, x1, y1 = drawn.boxes[n].tolist()
                annotation = {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": sample_coco.COCO_OF_SAMPLE[SAMPLE[kind]],
                    "iscrowd": 0,
                    "area": (x1 - x0) * (y1 - y0),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": kept,
                }
                content["annotations"].append(annotation)
        Image.fromarray(drawn.image).save(root / "val2017" / name, quality=92)
        content["images"].append({"id": number, "file_name": name, "height": 480, "width": 640})
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def coco_copies(tmp_path_factory) -> dict[str, Path]:
    copies = {name: tmp_path_factory.mktemp(name) for name in ("large", "small")}
    write_large_coco(copies["large"])
    sample_coco.write_coco(copies["small"], train=1, val=IMAGES, year=2017)
    return copies | {"real": REAL / "coco"}


@pytest.mark.parametrize("by", ["ours", "plain"])
@pytest.mark.parametrize("copy", ["large", "small", "real"])
def test_reading_coco(benchmark, coco_copies, copy, by):
    root = coco_copies[copy]
    if not root.is_dir():
        pytest.skip("no real images here")
    place = Place("coco2017", root)
    tree = coco.open_tree(place, STRICT, years=(2017,), categories="coco", others="background")
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(root / "annotations" / "instances_val2017.json")

    def plain(image_id: str) -> Rows:
        return plain_coco(api, root / "val2017", image_id)

    compare(benchmark, f"COCO {copy}", tree, tree.splits["val2017"][:IMAGES], plain, by)


# --- VOC and SBD ----------------------------------------------------------------------------------
def plain_voc(root: Path, image_id: str) -> Rows:
    base = root / "VOC2012"
    size = size_of(base / "JPEGImages" / f"{image_id}.jpg")
    label_map = np.array(Image.open(base / "SegmentationClass" / f"{image_id}.png"))
    numbers = np.array(Image.open(base / "SegmentationObject" / f"{image_id}.png"))
    masks = []
    for number in np.unique(numbers):
        if number not in (0, 255):
            mask = numbers == number
            labels = label_map[mask]
            masks.append((int(np.bincount(labels[labels < 255]).argmax()), *run_lengths(mask)))
    return size, index_png(label_map), joined(base / "Annotations" / f"{image_id}.xml", masks)


def plain_sbd(root: Path, image_id: str) -> Rows:
    base, sbd = root / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    size = size_of(base / "JPEGImages" / f"{image_id}.jpg")
    options = {"struct_as_record": False, "squeeze_me": True}
    label_map = loadmat(sbd / "cls" / f"{image_id}.mat", **options)["GTcls"].Segmentation
    inst = loadmat(sbd / "inst" / f"{image_id}.mat", **options)["GTinst"]
    masks = [
        (int(category), *run_lengths(inst.Segmentation == number))
        for number, category in enumerate(np.atleast_1d(inst.Categories), start=1)
    ]
    return size, index_png(label_map), joined(base / "Annotations" / f"{image_id}.xml", masks)


def joined(path: Path, masks: list[tuple]) -> list[tuple]:
    """The boxes of an XML file, each with the free mask of its category that fits it best."""
    objects = []
    for entry in xml.parse(path).getroot().findall("object"):
        category = SAMPLE.index(entry.findtext("name"))
        x0, y0, x1, y1 = (
            int(entry.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        objects.append([category, (x0 - 1, y0 - 1, x1, y1), False, None])
    if objects and masks:
        sides = [
            np.array([(x0, y0, x1 - x0, y1 - y0) for _, (x0, y0, x1, y1), *_ in boxed], float)
            for boxed in (objects, masks)
        ]
        fits = coco_mask.iou(*sides, [0] * len(masks))
        for n, m in sorted(np.ndindex(fits.shape), key=lambda pair: -fits[pair]):
            free = objects[n][3] is None and masks[m] is not None
            if free and fits[n, m] >= 0.5 and objects[n][0] == masks[m][0]:
                objects[n][3], masks[m] = masks[m][2], None
    return [tuple(each) for each in objects]


@pytest.fixture(scope="module")
def voc_copies(tmp_path_factory) -> dict[str, Path]:
    copies = {name: tmp_path_factory.mktemp(name) for name in ("large", "small")}
    sample.write_sample(copies["small"], train=IMAGES, extra=IMAGES, val=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "draw", enlarged(500, 375))
        sample.write_sample(copies["large"], train=IMAGES, extra=IMAGES, val=1)
    return copies


@pytest.mark.parametrize("by", ["ours", "plain"])
@pytest.mark.parametrize(("masks", "half"), [("VOC", "train"), ("SBD", "extra")])
@pytest.mark.parametrize("copy", ["large", "small"])
def test_reading_voc(benchmark, voc_copies, copy, masks, half, by):
    root = voc_copies[copy]
    tree = voc.open_tree(Place("sample", root), STRICT, sbd_place=None, categories=SAMPLE)
    ids = [sample.image_id(half, index) for index in range(IMAGES)]
    loops = {"VOC": plain_voc, "SBD": plain_sbd}

    def plain(image_id: str) -> Rows:
        return loops[masks](root, image_id)

    compare(benchmark, f"{masks} {copy}", tree, ids, plain, by)


# --- Cityscapes -----------------------------------------------------------------------------------
def plain_cityscapes(root: Path, split: str, image_id: str) -> Rows:
    city = f"{split}/{image_id.split('_')[0]}"
    [image] = (root / "leftImg8bit" / city).glob(f"{image_id}_leftImg8bit.*")
    table = np.full(256, 255, np.uint8)
    table[list(CITYSCAPES_IDS)] = range(19)
    start = root / "gtFine" / city / f"{image_id}_gtFine_"
    label_map = table[np.array(Image.open(f"{start}labelIds.png"))]
    numbers = np.array(Image.open(f"{start}instanceIds.png"))
    objects = []
    for number in np.unique(numbers).tolist():
        label = number if number < 1000 else number // 1000
        if 24 <= label <= 33 and table[label] != 255:
            box, counts = run_lengths(numbers == number)
            objects.append((int(table[label]), box, number < 1000, counts))
    return size_of(image), index_png(label_map), objects


@pytest.fixture(scope="module")
def cityscapes_copies(tmp_path_factory) -> dict[str, Path]:
    copies = {name: tmp_path_factory.mktemp(name) for name in ("large", "small")}
    sample_cityscapes.write_cityscapes(copies["small"], train=1, val=IMAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_cityscapes, "draw", enlarged(2048, 1024))
        sample_cityscapes.write_cityscapes(copies["large"], train=1, val=IMAGES // 8)
    return copies | {"real": REAL / "cityscapes_small"}


@pytest.mark.parametrize("by", ["ours", "plain"])
@pytest.mark.parametrize("copy", ["large", "small", "real"])
def test_reading_cityscapes(benchmark, cityscapes_copies, copy, by):
    root = cityscapes_copies[copy]
    if not root.is_dir():
        pytest.skip("no real images here")
    tree = cityscapes.open_tree(Place("cityscapes", root), STRICT, instances="maps")

    def plain(image_id: str) -> Rows:
        return plain_cityscapes(root, "val", image_id)

    compare(benchmark, f"Cityscapes {copy}", tree, tree.splits["val"], plain, by)
