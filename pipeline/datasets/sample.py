"""A drawn miniature world, written in the layouts of VOC2012 and SBD.

Eight kinds of object (`categories.SAMPLE`) on cluttered, textured ground. Shape, texture and colour
together tell the kind, none of them alone: textures are shared by kinds, colours overlap and are
worn by distractors. Objects overlap, touch their own kind, are cut by the border, and some are
thin or hollow.

Image i of a split is a function of (WORLD, split, i) only: more images never change earlier ones.

H x W pixels, N objects. Points are (x, y) in pixels, (0, 0) being the corner of the first pixel.
"""

import io
import math
import xml.etree.ElementTree as xml
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

from pipeline.boxes import tight_box
from pipeline.categories import IGNORE, SAMPLE, VOC
from pipeline.datasets.processes import map_in_order
from pipeline.masks import encode_index_png

# --- the world: change these numbers to make it easier or harder ----------------------------------
WORLD = 1  # part of every seed
HEIGHT, WIDTH = 128, 160

OBJECTS = (1, 5)  # per image
DIAMETER = (32.0, 90.0)  # pixels, log-uniform; smaller thin shapes fall between the score cells
ASPECT = (0.8, 1.25)  # log-uniform
NEIGHBOUR_CHANCE = 0.6  # the next object repeats the kind and touches or overlaps the last one
NEIGHBOUR_DISTANCE = (0.4, 1.0)  # between centres, of the sum of both radii
MIN_LEFT = 0.4  # an object may be hidden down to this part of its area inside the image
MIN_LABELLED = 40  # pixels of each object inside its void border
TRIES = 30  # placements of an object before it is left out

HUE_NOISE = 0.05  # of a full turn; neighbouring kinds are 1/8 apart
SATURATION = (0.5, 1.0)
VALUE = (0.35, 0.95)
CONTRAST = (0.2, 0.4)  # difference of value between a texture's two colours
PERIOD = (4.0, 8.0)  # of a texture, pixels

DULL_SATURATION = (0.0, 0.55)  # of the ground and of dull distractors
REGIONS = (2, 4)  # of the ground
REGION_SIZE = 40.0  # pixels between the waves of their borders
GROUND_NOISE = 0.06  # amplitude of the smooth noise over the ground
DISTRACTORS = (1, 3)
DISTRACTOR_DIAMETER = (24.0, 64.0)
COLOURFUL_DISTRACTORS = 0.6  # this part of the distractors wears a category's hue and saturation
LINES = (0, 3)
LINE_WIDTH = (1.0, 2.5)

LIGHTING = 0.25  # the brightness changes by up to this much from the middle to the border
NOISE = 0.03
BLUR = 0.5  # sigma, pixels
JPEG_QUALITY = 92

CROP_DIAMETER = (0.6, 1.2)  # of an object, in sizes of the crop it is drawn on
CROP_SHIFT = 0.15  # of its centre from the middle of the crop, in sizes of the crop

# Textures are shared, so that texture alone does not decide.
TEXTURES = {
    "ring": "stripe",
    "star": "check",
    "crescent": "dot",
    "plus": "blotch",
    "rod": "stripe",
    "fork": "check",
    "triangle": "stripe",
    "disc": "dot",
}

SPLITS = {"train": 2100, "extra": 2101, "val": 2102}  # split: the "year" in its image ids
CROPS = 2199  # stands for the split in the seeds of single crops
OVERSAMPLING = 4
FRACTION_BITS = 4  # of the fixed-point coordinates that OpenCV draws with


@dataclass(frozen=True)
class Drawn:
    """A drawn image with its truth. Object n of the arrays has the number n + 1 in the maps."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    visible: np.ndarray  # (H, W) uint8: number of the object in front, 0 = ground, without void
    object_map: np.ndarray  # (H, W) uint8: the same with void borders, 255
    label_map: np.ndarray  # (H, W) uint8: category, with void borders, 255
    categories: np.ndarray  # (N,) uint8, 1..8
    boxes: np.ndarray  # (N, 4) int64, tight on the visible part


def image_id(split: str, index: int) -> str:
    """The name of an image, in the form that VOC gives to its own: ``2100_000007``."""
    return f"{SPLITS[split]}_{index:06d}"


def draw(split: str, index: int) -> Drawn:
    """Image number `index` (from 0) of a split (train, extra or val), with its truth."""
    rng = np.random.default_rng([WORLD, SPLITS[split], index])
    image = _clutter(rng, HEIGHT, WIDTH)
    visible = np.zeros((HEIGHT, WIDTH), np.uint8)
    categories: list[int] = []
    for category, cover, visible_after in _place_objects(rng):
        categories.append(category)
        visible = visible_after
        _paint_object(rng, image, category, cover)
    object_map = with_void(visible)
    label_map = np.array([0, *categories], np.uint8)[visible]
    label_map[object_map == IGNORE] = IGNORE
    boxes = [tight_box(visible == number + 1) for number in range(len(categories))]
    return Drawn(
        image=_photograph(rng, image),
        visible=visible,
        object_map=object_map,
        label_map=label_map,
        categories=np.array(categories, np.uint8),
        boxes=np.array(boxes),
    )


def draw_crop(index: int, size: int, seed: int) -> tuple[np.ndarray, int]:
    """Crop number `index` for learning to classify: one object on clutter.

    Returns:
        image (size, size, 3) uint8 RGB as a JPEG shows it, kind 0..7 (category - 1).
    """
    rng = np.random.default_rng([WORLD, CROPS, seed, index])
    image = _clutter(rng, size, size)
    category = int(rng.integers(1, len(SAMPLE)))
    centre = size * (0.5 + rng.uniform(-CROP_SHIFT, CROP_SHIFT, 2))
    contours = _posed(rng, category, size * _log_uniform(rng, CROP_DIAMETER), centre)
    _paint_object(rng, image, category, coverage(contours, size, size))
    with Image.open(io.BytesIO(_jpeg(_photograph(rng, image)))) as photograph:
        return np.array(photograph), category - 1


def with_void(numbers: np.ndarray) -> np.ndarray:
    """The map (H, W) uint8 with 255 on every pixel whose 3x3 window holds two different numbers."""
    window = np.ones((3, 3), np.uint8)
    mixed = cv2.dilate(numbers, window) != cv2.erode(numbers, window)
    return np.where(mixed, np.uint8(IGNORE), numbers)


# --- shapes ---------------------------------------------------------------------------------------
def _arc(radius: float, start: float, end: float, points: int, x: float = 0.0) -> np.ndarray:
    """Points (n, 2) on a circle around (x, 0), angles in turns."""
    angles = 2 * np.pi * np.linspace(start, end, points)
    return np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _crescent() -> np.ndarray:
    """The unit disc without a smaller one shifted to the right."""
    radius, shift = 0.85, 0.42
    crossing = (1 - radius**2 + shift**2) / (2 * shift)  # x where the circles meet
    outer = math.acos(crossing) / (2 * math.pi)
    inner = math.acos((crossing - shift) / radius) / (2 * math.pi)
    return np.concatenate(
        [_arc(1, outer, 1 - outer, 48), _arc(radius, 1 - inner, inner, 40, shift)]
    )


def _star() -> np.ndarray:
    radii = np.tile([1.0, 0.45], 5)
    return _arc(1, 0, 0.9, 10) * radii[:, None]


def _plus() -> np.ndarray:
    arm = 0.3
    quarter = np.array([[arm, arm], [arm, 1], [-arm, 1]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, n) for n in range(4)])


def _fork() -> np.ndarray:
    """A U with straight corners, open to the right."""
    half, reach, stroke = 0.75, 0.85, 0.38
    upper = [[reach, half], [reach, half - stroke], [stroke - reach, half - stroke]]
    lower = [[x, -y] for x, y in reversed(upper)]
    return np.array([*upper, *lower, [-reach, -half], [-reach, half]])


def outlines(name: str) -> list[np.ndarray]:
    """The shape of a category within the unit circle: outlines (n, 2), a second one is a hole."""
    if name == "ring":
        return [_arc(1, 0, 1, 64), _arc(0.58, 0, 1, 48)]
    if name == "rod":
        return [np.array([[1, 0.2], [-1, 0.2], [-1, -0.2], [1, -0.2]])]
    if name == "triangle":
        return [_arc(1, 0, 2 / 3, 3)]
    if name == "disc":
        return [_arc(1, 0, 1, 64)]
    return [{"star": _star, "crescent": _crescent, "plus": _plus, "fork": _fork}[name]()]


def _posed(
    rng: np.random.Generator, category: int, diameter: float, centre: np.ndarray
) -> list[np.ndarray]:
    """The outlines of an object, stretched, turned at random and put in its place."""
    stretch = math.sqrt(_log_uniform(rng, ASPECT))
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    pose = diameter / 2 * np.diag([stretch, 1 / stretch]) @ turn
    return [points @ pose + centre for points in outlines(SAMPLE[category])]


def coverage(contours: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The part of each pixel that lies inside the outlines. Returns (H, W) float32 in [0, 1]."""
    canvas = np.zeros((height * OVERSAMPLING, width * OVERSAMPLING), np.uint8)
    fixed = [
        np.round((c * OVERSAMPLING - 0.5) * 2**FRACTION_BITS).astype(np.int32) for c in contours
    ]
    cv2.fillPoly(canvas, fixed, 255, shift=FRACTION_BITS)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


# --- where the objects go -------------------------------------------------------------------------
def _place_objects(rng: np.random.Generator) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """The objects of an image from back to front.

    Returns:
        per object its category, coverage (H, W) float32, and the numbers of the objects in front
        (H, W) uint8 once it is there.
    """
    placed: list[tuple[int, np.ndarray, np.ndarray]] = []
    areas: list[int] = []  # of each object before later ones hid parts of it
    visible = np.zeros((HEIGHT, WIDTH), np.uint8)
    last: tuple[int, np.ndarray, float] | None = None  # category, centre, diameter
    for _ in range(rng.integers(OBJECTS[0], OBJECTS[1] + 1)):
        neighbour = last is not None and rng.random() < NEIGHBOUR_CHANCE
        category = last[0] if neighbour and last else int(rng.integers(1, len(SAMPLE)))
        for _ in range(TRIES):
            diameter = _log_uniform(rng, DIAMETER)
            centre = rng.uniform([0, 0], [WIDTH, HEIGHT])
            if neighbour and last:
                centre = _beside(rng, last[1], (last[2] + diameter) / 2)
            cover = coverage(_posed(rng, category, diameter, centre), HEIGHT, WIDTH)
            inside = cover > 0.5
            after = np.where(inside, np.uint8(len(areas) + 1), visible)
            if neighbour and not _touches(inside, visible == len(areas)):
                continue
            if _all_remain(after, [*areas, int(inside.sum())]):
                placed.append((category, cover, after))
                areas.append(int(inside.sum()))
                visible, last = after, (category, centre, diameter)
                break
    return placed


def _beside(rng: np.random.Generator, centre: np.ndarray, radii: float) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    direction = np.array([math.cos(angle), math.sin(angle)])
    return centre + radii * rng.uniform(*NEIGHBOUR_DISTANCE) * direction


def _touches(mask: np.ndarray, other: np.ndarray) -> bool:
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    return bool((grown & other).any())


def _all_remain(visible: np.ndarray, areas: list[int]) -> bool:
    """Whether enough of every object is left to be seen and to be labelled."""
    seen = np.bincount(visible.ravel(), minlength=len(areas) + 1)[1:]
    labelled = np.bincount(with_void(visible).ravel(), minlength=IGNORE + 1)[1 : len(areas) + 1]
    return bool((seen >= MIN_LEFT * np.array(areas)).all() and (labelled >= MIN_LABELLED).all())


# --- surfaces -------------------------------------------------------------------------------------
def _log_uniform(rng: np.random.Generator, between: tuple[float, float]) -> float:
    return math.exp(rng.uniform(math.log(between[0]), math.log(between[1])))


def _smooth_noise(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Normal noise on a grid of that period, interpolated. Returns (H, W) float32."""
    rows, columns = int(height / period) + 3, int(width / period) + 3
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    enlarged = (int(columns * period), int(rows * period))
    noise = cv2.resize(grid, enlarged, interpolation=cv2.INTER_CUBIC)
    return noise[int(period) :, int(period) :][:height, :width]


def _texture(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """How much of the second colour each pixel has: (H, W) float32 in [0, 1]."""
    if kind == "plain":
        return np.zeros((height, width), np.float32)
    period = rng.uniform(*PERIOD)
    if kind == "blotch":
        return np.clip(0.5 + 2 * _smooth_noise(rng, height, width, period / 2), 0, 1)
    angle, phase = rng.uniform(0, 2 * math.pi, 2)
    rows, columns = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    step = 2 * math.pi / period
    across = step * (math.cos(angle) * columns + math.sin(angle) * rows[:, None]) + phase
    along = step * (math.cos(angle) * rows[:, None] - math.sin(angle) * columns) + phase
    if kind == "stripe":
        wave = np.sin(across)
    elif kind == "check":
        wave = np.sin(across) * np.sin(along) * 2
    else:  # dot
        wave = np.cos(across) + np.cos(along) - 0.4
    return np.clip(0.5 + 1.5 * wave, 0, 1)


def _colours(
    rng: np.random.Generator, hue: float, saturation: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Two colours (3,) float32 in [0, 1] of one hue, differing in value, in either order."""
    contrast = rng.uniform(*CONTRAST)
    dark = rng.uniform(VALUE[0], VALUE[1] - contrast)
    colourful = rng.uniform(*saturation)
    pair = [_rgb(hue, colourful, value) for value in (dark, dark + contrast)]
    if rng.random() < 0.5:
        pair.reverse()
    return pair[0], pair[1]


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """The colour (3,) float32 of a hue in turns."""
    channels = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - channels))).astype(np.float32)


def _kind_hue(rng: np.random.Generator, category: int) -> float:
    return (category - 1) / (len(SAMPLE) - 1) + HUE_NOISE * rng.standard_normal()


def _paint(
    image: np.ndarray, cover: np.ndarray, texture: np.ndarray, colours: tuple[np.ndarray, ...]
) -> None:
    """Lay a surface over the image (H, W, 3) float32, in place, where cover (H, W) says."""
    x0, y0, x1, y1 = tight_box(cover > 0)
    part = (slice(y0, y1), slice(x0, x1))
    mix, alpha = texture[part][..., None], cover[part][..., None]
    surface = colours[0] + mix * (colours[1] - colours[0])
    image[part] += alpha * (surface - image[part])


def _paint_object(
    rng: np.random.Generator, image: np.ndarray, category: int, cover: np.ndarray
) -> None:
    texture = _texture(rng, TEXTURES[SAMPLE[category]], *cover.shape)
    _paint(image, cover, texture, _colours(rng, _kind_hue(rng, category), SATURATION))


def _clutter(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Ground, distractors and lines: all that is no object. Returns (H, W, 3) float32."""
    image = _ground(rng, height, width)
    for _ in range(rng.integers(DISTRACTORS[0], DISTRACTORS[1] + 1)):
        _paint_distractor(rng, image)
    for _ in range(rng.integers(LINES[0], LINES[1] + 1)):
        ends = rng.uniform([0, 0], [width, height], (2, 2))
        direction = (ends[1] - ends[0]) / max(np.linalg.norm(ends[1] - ends[0]), 1e-6)
        side = direction[::-1] * [-1, 1] * rng.uniform(*LINE_WIDTH) / 2
        outline = np.stack([ends[0] - side, ends[0] + side, ends[1] + side, ends[1] - side])
        cover = coverage([outline], height, width)
        plain = _texture(rng, "plain", height, width)
        _paint(image, cover, plain, _colours(rng, rng.random(), SATURATION))
    return image


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Textured regions with wavy borders, and smooth noise over all."""
    number = int(rng.integers(REGIONS[0], REGIONS[1] + 1))
    heights = [_smooth_noise(rng, height, width, REGION_SIZE) for _ in range(number)]
    region = np.argmax(heights, axis=0)
    image = np.zeros((height, width, 3), np.float32)
    for n in range(number):
        texture = _texture(rng, _any_texture(rng), height, width)
        colours = _colours(rng, rng.random(), DULL_SATURATION)
        _paint(image, (region == n).astype(np.float32), texture, colours)
    image += GROUND_NOISE * _smooth_noise(rng, height, width, REGION_SIZE / 2)[..., None]
    return image


def _any_texture(rng: np.random.Generator) -> str:
    kinds = ("stripe", "check", "dot", "blotch", "plain")
    return kinds[rng.integers(len(kinds))]


def _paint_distractor(rng: np.random.Generator, image: np.ndarray) -> None:
    """An irregular polygon that belongs to no category."""
    height, width = image.shape[:2]
    corners = int(rng.integers(4, 9))
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
    radii = _log_uniform(rng, DISTRACTOR_DIAMETER) / 2 * rng.uniform(0.4, 1, corners)
    points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cover = coverage([points + rng.uniform([0, 0], [width, height])], height, width)
    if rng.random() < COLOURFUL_DISTRACTORS:
        hue, saturation = _kind_hue(rng, int(rng.integers(1, len(SAMPLE)))), SATURATION
    else:
        hue, saturation = rng.random(), DULL_SATURATION
    texture = _texture(rng, _any_texture(rng), height, width)
    _paint(image, cover, texture, _colours(rng, hue, saturation))


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Light from one side, noise and blur over the scene (H, W, 3). Returns the same, uint8."""
    height, width = image.shape[:2]
    slope = rng.uniform(-LIGHTING, LIGHTING, 2)
    rows, columns = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    light = 1 + (slope[0] * rows[:, None] + slope[1] * columns) / 2
    lit = image * light.astype(np.float32)[..., None]
    lit += NOISE * rng.standard_normal(lit.shape, np.float32)
    blurred = cv2.GaussianBlur(lit, (0, 0), BLUR)
    return np.round(np.clip(blurred, 0, 1) * 255).astype(np.uint8)


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


# --- files ----------------------------------------------------------------------------------------
def write_sample(root: Path, train: int, extra: int, val: int) -> None:
    """Draw the sample into `root`, in the layouts of VOC2012 and SBD.

    As in the real data, `train` and `val` images have VOC's masks, `extra` ones only SBD's, and
    all have boxes; every second image of train and val is in SBD too.

    Args:
        train, extra, val: number of images.
    """
    voc, sbd = root / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (voc / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("img", "cls", "inst"):
        (sbd / folder).mkdir(parents=True, exist_ok=True)
    counts = {"train": train, "extra": extra, "val": val}
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    for _ in map_in_order(partial(_write_image, voc, sbd), jobs, "drawing"):
        pass
    ids = {split: [image_id(split, i) for i in range(n)] for split, n in counts.items()}
    for name, train_ids in (("Segmentation", ids["train"]), ("Main", ids["train"] + ids["extra"])):
        _write_list(voc / "ImageSets" / name / "train.txt", train_ids)
        _write_list(voc / "ImageSets" / name / "val.txt", ids["val"])
        _write_list(voc / "ImageSets" / name / "trainval.txt", train_ids + ids["val"])
    in_sbd = {split: [image_id(split, i) for i in range(n) if _in_sbd(split, i)]
              for split, n in counts.items()}  # fmt: skip
    _write_list(sbd / "train.txt", in_sbd["train"] + in_sbd["extra"])
    _write_list(sbd / "val.txt", in_sbd["val"])


def write_voc2007(root: Path, train: int, val: int, test: int) -> None:
    """Draw images with boxes in the layout of VOC2007; the drawn names stand for VOC's.

    Sample's kinds are called by VOC's first names, aeroplane to cat.
    """
    voc = root / "VOC2007"
    for folder in ("JPEGImages", "Annotations"):
        (voc / folder).mkdir(parents=True, exist_ok=True)
    counts = {"train": train, "val": val, "test": test}
    ids: dict[str, list[str]] = {}
    for split, count in counts.items():
        source = "extra" if split == "test" else split
        ids[split] = [f"{SPLITS[source]:06d}{index:04d}" for index in range(count)]
        for index, name in enumerate(ids[split]):
            drawn = draw(source, index)
            (voc / "JPEGImages" / f"{name}.jpg").write_bytes(_jpeg(drawn.image))
            (voc / "Annotations" / f"{name}.xml").write_bytes(voc_xml(name, drawn, VOC))
    ids["trainval"] = ids["train"] + ids["val"]
    for split, listed in ids.items():
        _write_list(voc / "ImageSets" / "Main" / f"{split}.txt", listed)


def _in_sbd(split: str, index: int) -> bool:
    return split == "extra" or index % 2 == 0


def _write_list(path: Path, ids: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{i}\n" for i in ids))


def _write_image(voc: Path, sbd: Path, job: tuple[str, int]) -> None:
    """Draw one image (split, index) and write its files."""
    split, index = job
    drawn, name = draw(split, index), image_id(split, index)
    photograph = _jpeg(drawn.image)
    (voc / "JPEGImages" / f"{name}.jpg").write_bytes(photograph)
    (voc / "Annotations" / f"{name}.xml").write_bytes(voc_xml(name, drawn))
    if split != "extra":
        label_png, object_png = (
            encode_index_png(drawn.label_map),
            encode_index_png(drawn.object_map),
        )
        (voc / "SegmentationClass" / f"{name}.png").write_bytes(label_png)
        (voc / "SegmentationObject" / f"{name}.png").write_bytes(object_png)
    if _in_sbd(split, index):
        labels = np.array([0, *drawn.categories], np.uint8)[drawn.visible]
        numbers = {"Segmentation": drawn.visible, "Categories": drawn.categories[:, None]}
        (sbd / "img" / f"{name}.jpg").write_bytes(photograph)
        (sbd / "cls" / f"{name}.mat").write_bytes(_mat({"GTcls": {"Segmentation": labels}}))
        (sbd / "inst" / f"{name}.mat").write_bytes(_mat({"GTinst": numbers}))


def voc_xml(name: str, drawn: Drawn, names: tuple[str, ...] = SAMPLE) -> bytes:
    """VOC's XML: boxes 1-based, last pixel included."""
    height, width, depth = drawn.image.shape
    top = xml.Element("annotation")

    def add(parent: xml.Element, **texts: object) -> None:
        for tag, text in texts.items():
            xml.SubElement(parent, tag).text = str(text)

    add(top, folder="VOC2012", filename=f"{name}.jpg")
    add(xml.SubElement(top, "size"), width=width, height=height, depth=depth)
    add(top, segmented=1)
    for category, box in zip(drawn.categories, drawn.boxes, strict=True):
        x0, y0, x1, y1 = box.tolist()
        entry = xml.SubElement(top, "object")
        cut = x0 == 0 or y0 == 0 or x1 == width or y1 == height
        add(entry, name=names[category], pose="Unspecified", truncated=int(cut), difficult=0)
        add(xml.SubElement(entry, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    xml.indent(top)
    return xml.tostring(top)


def _mat(content: dict) -> bytes:
    """A MATLAB v5 file. Its header, where scipy writes the time of day, is made the same always."""
    buffer = io.BytesIO()
    savemat(buffer, content, do_compression=True)
    data = bytearray(buffer.getvalue())
    data[:116] = b"MATLAB 5.0 MAT-file, drawn sample".ljust(116)
    return bytes(data)
