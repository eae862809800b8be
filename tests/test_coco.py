"""Reading COCO: what is read, and what is refused."""

import contextlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO as CocoApi
from scipy.ndimage import binary_fill_holes

from pipeline.categories import COCO, COCO_NAMES, COCO_OF_VOC, VOC
from pipeline.datasets import coco
from pipeline.datasets.coco_json import decode_counts
from pipeline.datasets.form import Sample
from pipeline.datasets.sample import draw
from pipeline.datasets.sample_coco import COCO_OF_SAMPLE, file_name, polygons, write_coco
from pipeline.datasets.tree import Place, Problems
from pipeline.errors import BadFile
from pipeline.masks import decode_rle, encode_rle

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real" / "coco"
PERSON, BICYCLE, BANANA = 1, 2, 52  # published ids; banana is none of VOC's


def open_copy(root: Path, *, collect=False, categories="coco", others="background", year=2017):
    problems = Problems(collect=collect)
    place = Place("coco", root)
    tree = coco.open_tree(place, problems, years=(year,), categories=categories, others=others)
    return tree, problems


def survey(root: Path) -> tuple[list[BadFile], dict[str, Sample]]:
    """All that is wrong with a copy, as `inspect` would find it, and what could be read."""
    tree, problems = open_copy(root, collect=True)
    samples = {}
    for image_id in tree.ids():
        with problems.noted():
            samples[image_id] = tree.read(tree.record(image_id), problems)
    return problems.found, samples


def read_all(root: Path) -> None:
    """All of a copy, as `prepare` reads it."""
    tree, problems = open_copy(root)
    for image_id in tree.ids():
        tree.read(tree.record(image_id), problems)


# --- against pycocotools on the same files --------------------------------------------------------
@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    write_coco(root, train=6, val=3, year=2017)
    return root


def copy_of(name: str, drawn: Path) -> Path:
    if name == "real" and not REAL.is_dir():
        pytest.skip("no real images here")
    return REAL if name == "real" else drawn


def api_of(path: Path) -> CocoApi:
    with contextlib.redirect_stdout(io.StringIO()):
        return CocoApi(path)


@pytest.mark.parametrize("copy", ["drawn", "real"])
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_masks_boxes_and_areas_are_those_of_pycocotools(drawn, copy, split):
    root = copy_of(copy, drawn)
    tree, problems = open_copy(root)
    api = api_of(root / "annotations" / f"instances_{split}.json")
    rank = {number: place for place, number in enumerate(sorted(api.cats), start=1)}
    assert len(tree.splits[split]) == len(api.imgs)
    compared = crowds = 0
    for entry in api.imgs.values():
        image_id = Path(entry["file_name"]).stem
        sample = tree.read(tree.record(image_id), problems)
        annotations = api.imgToAnns[entry["id"]]
        assert sample.size == (entry["height"], entry["width"])
        for found, annotation in zip(sample.objects, annotations, strict=True):
            mask = api.annToMask(annotation).astype(bool)
            rle = api.annToRLE(annotation)
            x, y, w, h = coco_mask.toBbox(rle).astype(int).tolist()
            assert found.category == rank[annotation["category_id"]]
            assert found.crowd == bool(annotation["iscrowd"])
            assert found.box == (x, y, x + w, y + h)
            assert (
                found.mask_rle.encode()
                == coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
            )
            assert decode_rle(found.mask_rle, *sample.size).sum() == coco_mask.area(rle)
            compared += 1
            crowds += found.crowd
    expected = {"train2017": (705, 6), "val2017": (341, 4)}
    if copy == "real":
        assert (compared, crowds) == expected[split]
    else:
        assert crowds == 2


@pytest.mark.parametrize("copy", ["drawn", "real"])
@pytest.mark.parametrize("others", ["background", "ignore"])
@pytest.mark.parametrize("categories", ["coco", "voc"])
def test_label_maps_are_the_masks_painted_one_by_one(drawn, copy, categories, others):
    root = copy_of(copy, drawn)
    tree, problems = open_copy(root, categories=categories, others=others)
    api = api_of(root / "annotations" / "instances_val2017.json")
    rest = {"background": 0, "ignore": 255}[others]
    value_of = {number: place for place, number in enumerate(sorted(api.cats), start=1)}
    if categories == "voc":
        names = {"airplane": "aeroplane", "motorcycle": "motorbike", "dining table": "diningtable"}
        names |= {"potted plant": "pottedplant", "couch": "sofa", "tv": "tvmonitor"}
        ours = {number: names.get(c["name"], c["name"]) for number, c in api.cats.items()}
        value_of = {n: VOC.index(name) if name in VOC else rest for n, name in ours.items()}
    for entry in api.imgs.values():
        sample = tree.read(tree.record(Path(entry["file_name"]).stem), problems)
        annotations = api.imgToAnns[entry["id"]]
        masks = [api.annToMask(annotation).astype(bool) for annotation in annotations]
        painted = np.zeros(sample.size, np.uint8)
        for annotation, mask in zip(annotations, masks, strict=True):
            if annotation["iscrowd"] and value_of[annotation["category_id"]] != 0:
                painted[mask] = 255
        for n in np.argsort([-mask.sum() for mask in masks], kind="stable"):
            if not annotations[n]["iscrowd"]:
                painted[masks[n]] = value_of[annotations[n]["category_id"]]
        np.testing.assert_array_equal(sample.label_map, painted)
        assert sample.label_map.dtype == np.uint8 and sample.label_map.flags.c_contiguous


@pytest.mark.parametrize(
    ("split", "objects", "images"), [("train2017", 385, 65), ("val2017", 160, 36)]
)
def test_the_real_copy_has_so_many_objects_of_the_20_categories_of_voc(split, objects, images):
    tree, problems = open_copy(copy_of("real", REAL), categories="voc")
    assert tree.categories == VOC
    found = [tree.read(tree.record(image_id), problems).objects for image_id in tree.splits[split]]
    assert sum(len(each) for each in found) == objects
    assert sum(bool(each) for each in found) == images


def test_the_categories_are_those_of_the_real_copy():
    api = api_of(copy_of("real", REAL) / "annotations" / "instances_train2017.json")
    assert {number: entry["name"] for number, entry in api.cats.items()} == COCO_NAMES


def test_there_are_80_categories_and_20_of_them_are_those_of_voc():
    assert len(COCO) == 81 and COCO[0] == "background"
    same = [VOC[n] == COCO_NAMES[number] for n, number in enumerate(COCO_OF_VOC, start=1)]
    assert len(set(COCO_OF_VOC)) == 20 and sum(same) == 14  # the other six have other names


# --- the drawn sample -----------------------------------------------------------------------------
@pytest.mark.parametrize("year", [2014, 2017])
def test_the_drawn_sample_is_what_was_drawn(tmp_path, year):
    write_coco(tmp_path, train=3, val=2, year=year)
    tree, problems = open_copy(tmp_path, year=year)
    names = [Path(file_name("train", index, year)).stem for index in range(3)]
    assert tree.splits[f"train{year}"] == names
    assert tree.splits[f"trainval{year}"] == names + tree.splits[f"val{year}"]
    ours = [COCO.index(COCO_NAMES[number]) for number in COCO_OF_SAMPLE.values()]
    for index, image_id in enumerate(names):
        sample, truth = tree.read(tree.record(image_id), problems), draw("train", index)
        assert [o.category for o in sample.objects] == [ours[c - 1] for c in truth.categories]
        for number, o in enumerate(sample.objects, start=1):
            mask = truth.visible == number
            expected = mask if o.crowd else binary_fill_holes(mask)
            np.testing.assert_array_equal(decode_rle(o.mask_rle, *sample.size), expected)
        assert [o.box for o in sample.objects] == [tuple(box) for box in truth.boxes.tolist()]


def test_four_of_the_drawn_kinds_are_voc_s(drawn):
    assert len(set(COCO_OF_SAMPLE.values())) == 8
    assert len(set(COCO_OF_SAMPLE.values()) & set(COCO_OF_VOC)) == 4


def test_the_drawn_sample_has_parts_and_both_kinds_of_run_lengths(drawn):
    content = json.loads((drawn / "annotations" / "instances_train2017.json").read_text())
    parts = [a["segmentation"] for a in content["annotations"] if not a["iscrowd"]]
    crowds = [a["segmentation"]["counts"] for a in content["annotations"] if a["iscrowd"]]
    assert max(len(polygons_of) for polygons_of in parts) > 1
    assert [type(counts) for counts in crowds] == [list, str]


def test_outlines_give_back_the_pixels_of_a_mask():
    mask = np.zeros((4, 6), bool)
    mask[1:3, 1:4] = True
    mask[3, 5] = True  # touches nothing, and two borders
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons(mask), 4, 6))
    np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)


# --- by hand, images of 4x6 -----------------------------------------------------------------------
def rectangle(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    """The polygon around the pixels of a half-open box."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def annotation(number: int, image: int, category: int, *boxes: tuple[int, ...]) -> dict[str, Any]:
    x0, y0 = (min(box[side] for box in boxes) for side in (0, 1))
    x1, y1 = (max(box[side] for box in boxes) for side in (2, 3))
    return {
        "id": number, "image_id": image, "category_id": category, "iscrowd": 0,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": sum((box[2] - box[0]) * (box[3] - box[1]) for box in boxes),
        "segmentation": [rectangle(*box) for box in boxes],
    }  # fmt: skip


def crowd(number: int, image: int, category: int, mask: np.ndarray, counts: Any) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "id": number, "image_id": image, "category_id": category, "iscrowd": 1,
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y], "area": int(mask.sum()),
        "segmentation": {"size": [4, 6], "counts": counts},
    }  # fmt: skip


def write_copy(root: Path, annotations: list[dict[str, Any]], split: str = "val2017") -> Path:
    """Two images of 4x6, the ids 1 and 2, with these annotations. Returns the JSON file."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    offset = 0 if split.startswith("val") else 10
    entries = [{"id": n, "file_name": f"{offset + n}.jpg", "height": 4, "width": 6} for n in (1, 2)]
    for entry in entries:
        Image.new("RGB", (6, 4)).save(root / split / entry["file_name"])
    categories = [{"id": number, "name": name} for number, name in COCO_NAMES.items()]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return path


def read_one(root: Path, **options) -> Sample:
    tree, problems = open_copy(root, **options)
    return tree.read(tree.record("1"), problems)


def test_smaller_objects_lie_over_larger_ones(tmp_path):
    small, large = annotation(1, 1, BICYCLE, (1, 1, 3, 3)), annotation(2, 1, PERSON, (0, 0, 4, 4))
    write_copy(tmp_path, [small, large])
    sample = read_one(tmp_path)
    assert sample.label_map.tolist() == [
        [1, 1, 1, 1, 0, 0],
        [1, 2, 2, 1, 0, 0],
        [1, 2, 2, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
    ]
    assert [(o.category, o.box) for o in sample.objects] == [(2, (1, 1, 3, 3)), (1, (0, 0, 4, 4))]
    assert decode_rle(sample.objects[1].mask_rle, 4, 6).sum() == 16  # the whole, not what is seen
    assert (sample.source, sample.path) == ("coco", "coco/val2017/1.jpg")


def test_the_box_is_tight_around_the_mask_whatever_the_published_one_says(tmp_path):
    entry = annotation(1, 1, PERSON, (1, 0, 2, 2), (4, 1, 5, 3))
    entry["bbox"] = [0.4, 0, 5.2, 3.9]
    write_copy(tmp_path, [entry])
    assert [o.box for o in read_one(tmp_path).objects] == [(1, 0, 5, 3)]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_crowd_is_ignored_where_no_object_stands_before_it(tmp_path, compressed):
    mask = np.zeros((4, 6), bool)
    mask[0:2, 2:5] = True
    counts = encode_rle(mask) if compressed else [8, 2, 2, 2, 2, 2, 6]
    person = annotation(1, 1, PERSON, (0, 0, 6, 1))  # larger than the crowd's part that it covers
    write_copy(tmp_path, [person, crowd(2, 1, PERSON, mask, counts)])
    sample = read_one(tmp_path)
    assert sample.label_map.tolist() == [[1] * 6, [0, 0, 255, 255, 255, 0], [0] * 6, [0] * 6]
    assert [(o.crowd, o.box) for o in sample.objects] == [
        (False, (0, 0, 6, 1)),
        (True, (2, 0, 5, 2)),
    ]
    np.testing.assert_array_equal(decode_rle(sample.objects[1].mask_rle, 4, 6), mask)


def test_runs_of_no_pixels_are_merged_away(tmp_path):
    mask = np.zeros((4, 6), bool)
    mask[1:4, 0] = True
    write_copy(tmp_path, [crowd(1, 1, PERSON, mask, [0, 0, 1, 2, 0, 1, 20, 0])])
    (found,) = read_one(tmp_path).objects
    assert (found.mask_rle, found.box) == (encode_rle(mask), (0, 1, 1, 4))


@pytest.mark.parametrize(("others", "value"), [("background", 0), ("ignore", 255)])
def test_what_is_none_of_voc_s_categories_is_background_or_ignored(tmp_path, others, value):
    sofa_like = np.zeros((4, 6), bool)
    sofa_like[3] = True
    entries = [
        annotation(1, 1, PERSON, (0, 0, 4, 4)),
        annotation(2, 1, BANANA, (1, 1, 3, 2)),  # before the person
        crowd(3, 1, BANANA, sofa_like, encode_rle(sofa_like)),
    ]
    write_copy(tmp_path, entries)
    sample = read_one(tmp_path, categories="voc", others=others)
    person = VOC.index("person")
    assert sample.label_map.tolist() == [
        [person] * 4 + [0, 0],
        [person, value, value, person, 0, 0],
        [person] * 4 + [0, 0],
        [person] * 4 + [value, value],
    ]
    assert [o.category for o in sample.objects] == [person]


def test_a_crowd_of_another_category_does_not_hide_one_of_voc_s(tmp_path):
    mask = np.ones((4, 6), bool)
    write_copy(tmp_path, [crowd(1, 1, PERSON, mask, [0, 24]), crowd(2, 1, BANANA, mask, [0, 24])])
    sample = read_one(tmp_path, categories="voc", others="background")
    assert set(sample.label_map.ravel().tolist()) == {255}


def test_an_image_without_annotations_is_background_without_objects(tmp_path):
    write_copy(tmp_path, [])
    sample = read_one(tmp_path)
    assert sample.objects == ()
    assert sample.label_map.tolist() == [[0] * 6] * 4


def test_the_published_annotations_without_pixels_are_left_out_and_counted(tmp_path):
    flat = annotation(918, 1, PERSON, (0, 0, 1, 1)) | {
        "segmentation": [[2.65, 3.33, 2.65, 3.33, 3.68, 3.33, 3.68, 3.33]],
        "bbox": [2.65, 3.33, 1.03, 0.0],
        "area": 0.0,
    }
    write_copy(tmp_path, [flat, annotation(2, 1, BICYCLE, (0, 0, 2, 2))])
    tree, problems = open_copy(tmp_path)
    assert tree.notes == ("val2017: annotations without a pixel, left out: 1 (918)",)
    sample = tree.read(tree.record("1"), problems)
    assert [o.category for o in sample.objects] == [2]
    assert sample.label_map is not None


def test_coordinates_just_outside_the_image_are_cut_off(tmp_path):
    entry = annotation(1, 1, PERSON, (-1, 2, 7, 5))
    write_copy(tmp_path, [entry])
    (found,) = read_one(tmp_path).objects
    assert found.box == (0, 2, 6, 4)


# --- run-lengths ----------------------------------------------------------------------------------
@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=5))
def test_counts_of_compressed_run_lengths_are_those_of_the_pixels(rows):
    masks = [np.array(row).reshape(3, 4) for row in rows]
    texts = [encode_rle(mask).encode() for mask in masks]
    for counts, mask in zip(decode_counts(texts), masks, strict=True):
        pixels = np.repeat(np.arange(counts.size) % 2 == 1, counts)
        np.testing.assert_array_equal(pixels, mask.ravel(order="F"))


def test_long_runs_are_decoded():
    mask = np.zeros((1500, 2000), bool)
    mask[3:1400, 1:1800] = True
    mask[7, 900] = False
    (counts,) = decode_counts([encode_rle(mask).encode()])
    pixels = np.repeat(np.arange(counts.size) % 2 == 1, counts)
    np.testing.assert_array_equal(pixels, mask.ravel(order="F"))


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_other_text_is_refused_or_decoded(text):
    with contextlib.suppress(ValueError):
        (counts,) = decode_counts([text])
        assert counts.size > 0


# --- what comes and goes with the tree ------------------------------------------------------------
def test_records_and_the_reading_function_can_be_sent_to_another_process(drawn):
    tree, problems = open_copy(drawn)
    image_id = tree.ids()[0]
    record, read = pickle.loads(pickle.dumps((tree.record(image_id), tree.read)))  # our own bytes
    sample = read(record, problems)
    np.testing.assert_array_equal(
        sample.label_map, tree.read(tree.record(image_id), problems).label_map
    )
    assert len(pickle.dumps(tree.read)) < 2000


def test_the_manifest_s_files_are_named_by_the_place(drawn):
    tree, _ = open_copy(drawn)
    assert set(tree.lists) == {
        "coco/annotations/instances_train2017.json",
        "coco/annotations/instances_val2017.json",
    }
    must = tree.files_of("000000000001").must
    assert must == {"coco/train2017/000000000001.jpg": drawn / "train2017" / "000000000001.jpg"}
    assert tree.official == {"train2017": 118287, "val2017": 5000, "trainval2017": 123287}


def test_one_split_alone_is_enough(tmp_path):
    write_copy(tmp_path, [])
    tree, _ = open_copy(tmp_path)
    assert dict(tree.splits) == {"val2017": ["1", "2"]}


def test_images_without_their_annotation_file_are_left_out_and_noted(tmp_path):
    write_copy(tmp_path, [])
    (tmp_path / "train2017").mkdir()
    tree, _ = open_copy(tmp_path)
    assert dict(tree.splits) == {"val2017": ["1", "2"]}
    (note,) = tree.notes
    assert "train2017/" in note and "instances_train2017.json" in note


def test_both_years_may_be_opened_at_once(drawn, tmp_path):
    root = Path(shutil.copytree(drawn, tmp_path / "both"))
    write_coco(root, train=2, val=1, year=2014)
    tree = coco.open_tree(
        Place("coco", root),
        Problems(collect=False),
        years=(2014, 2017),
        categories="voc",
        others="ignore",
    )
    assert {name: len(ids) for name, ids in tree.splits.items()} == {
        "train2014": 2, "val2014": 1, "trainval2014": 3,
        "train2017": 6, "val2017": 3, "trainval2017": 9,
    }  # fmt: skip


# --- what is refused ------------------------------------------------------------------------------
def test_an_empty_place_says_what_to_fetch(tmp_path):
    with pytest.raises(BadFile, match="annotations_trainval2017.zip and train2017.zip"):
        open_copy(tmp_path)
    tree, problems = open_copy(tmp_path, collect=True)
    assert len(problems.found) == 1 and not tree.ids()


@pytest.mark.parametrize(("inner", "hint"), [("coco", "may be in coco/"), ("", "the one above")])
def test_a_folder_too_high_or_too_low_is_told(tmp_path, inner, hint):
    write_copy(tmp_path / "coco" if inner else tmp_path, [])
    wrong = tmp_path if inner else tmp_path / "annotations"
    with pytest.raises(BadFile, match=hint):
        open_copy(wrong)


def test_a_split_without_its_images_is_refused_once(tmp_path):
    write_copy(tmp_path, [])
    write_copy(tmp_path, [], split="train2017")
    shutil.rmtree(tmp_path / "train2017")
    found, samples = survey(tmp_path)
    assert [fault.path for fault in found] == [tmp_path / "train2017"]
    assert set(samples) == {"1", "2"}
    with pytest.raises(BadFile, match="unpack train2017.zip"):
        read_all(tmp_path)


Content = dict[str, Any]


def dumped(change: Callable[[Content], object]) -> Callable[[Path], None]:
    """A damage to the JSON file: its content changed."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def replaced(part: bytes, by: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        assert part in data
        path.write_bytes(data.replace(part, by, 1))

    return damage


def as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WHOLE_FILE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "NaN": replaced(b'"area": 4', b'"area": NaN'),
    "Infinity": replaced(b'"area": 4', b'"area": Infinity'),
    "a list": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "nested": lambda path: path.write_text('{"images": ' + "[" * 10**6),
    "nested and closed": lambda p: p.write_text('{"images": ' + "[" * 10**6 + "]" * 10**6 + "}"),
    "JPEG": lambda path: path.write_bytes(b"\xff\xd8\xff\xd9"),
    "UTF-16": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    "no images key": dumped(lambda content: content.pop("images")),
    "no annotations key": dumped(lambda content: content.pop("annotations")),
    "no categories key": dumped(lambda content: content.pop("categories")),
    "images null": dumped(lambda content: content.update(images=None)),
    "annotations an object": dumped(lambda content: content.update(annotations={})),
    "no images": dumped(lambda content: content.update(images=[], annotations=[])),
    "directory": as_directory,
    "symlink loop": as_loop,
    "broken link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "pipe": as_pipe,
}


@pytest.fixture
def damaged(tmp_path) -> tuple[Path, Path]:
    """A copy with two splits, and the JSON file of val to damage."""
    square = (0, 0, 2, 2)
    boxes = [annotation(n, image, PERSON, square) for n, image in ((1, 1), (2, 1), (3, 2))]
    write_copy(tmp_path, [annotation(1, 1, PERSON, square)], split="train2017")
    return tmp_path, write_copy(tmp_path, boxes)


@pytest.mark.parametrize("kind", WHOLE_FILE)
def test_a_damaged_annotation_file_is_told_and_the_other_split_is_read(damaged, kind):
    root, path = damaged
    WHOLE_FILE[kind](path)
    found, samples = survey(root)
    assert [fault.path for fault in found] == [path], found
    assert set(samples) == {"11", "12"}
    with pytest.raises(BadFile):
        read_all(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_an_unreadable_annotation_file_is_told(damaged):
    root, path = damaged
    path.chmod(0)
    found, _ = survey(root)
    assert [fault.path for fault in found] == [path]


def of_image(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["images"][0].update(values)


def of_annotation(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["annotations"][0].update(values)


def counts(value: Any, size: tuple[int, ...] = (4, 6)) -> Callable[[Content], object]:
    return of_annotation(iscrowd=1, segmentation={"size": size, "counts": value})


def without(kind: str, key: str) -> Callable[[Content], object]:
    return lambda content: content[kind][0].pop(key)


def polygon(*numbers: Any) -> Callable[[Content], object]:
    return of_annotation(segmentation=[list(numbers)])


def more(kind: str, entry: Any) -> Callable[[Content], object]:
    return lambda content: content[kind].append(entry)


def image_entry(number: int, name: str) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": 4, "width": 6}


def category_entry(place: int, **values: Any) -> Callable[[Content], object]:
    return lambda content: content["categories"][place].update(values)


SLIVER = [[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]]
AGAIN = annotation(1, 2, PERSON, (0, 0, 2, 2))
# What is changed of the first image or annotation: words of what must be said.
ENTRY = {
    "file name in a folder": (of_image(file_name="a/1.jpg"), "a/1.jpg"),
    "file name going up": (of_image(file_name="../1.jpg"), "../1.jpg"),
    "absolute file name": (of_image(file_name="/1.jpg"), "/1.jpg"),
    "odd file name": (of_image(file_name="1 (copy).jpg"), "1 (copy).jpg"),
    "file name with a null": (of_image(file_name="1\0.jpg"), "no name of an image"),
    "file name with a line end": (of_image(file_name="1.jpg\n"), "no name of an image"),
    "no file name": (of_image(file_name=""), "no name of an image"),
    "text file": (of_image(file_name="1.txt"), "1.txt"),
    "file name a number": (of_image(file_name=1), "Expected `str`, got `int` - at `$.file_name`"),
    "no height": (of_image(height=0), "$.height"),
    "negative width": (of_image(width=-6), "$.width"),
    "height a text": (of_image(height="4"), "$.height"),
    "height a fraction": (of_image(height=4.5), "$.height"),
    "enormous width": (of_image(width=10**30), "$.width"),
    "image without id": (without("images", "id"), "`id`"),
    "image without width": (without("images", "width"), "`width`"),
    "image an integer": (more("images", 5), "images[2]"),
    "image id again": (more("images", image_entry(1, "3.jpg")), "image 1 again"),
    "file name again": (more("images", image_entry(3, "1.jpg")), "image 3: 1 is the name"),
    "name in both splits": (more("images", image_entry(3, "11.jpg")), "image 3: 11 is the name"),
    "other size than the image": (of_image(height=5), "6x5 here, but 6x4"),
    "size turned": (of_image(height=6, width=4), "4x6 here, but 6x4"),
    "another category's name": (category_entry(0, name="cat"), "category 1 is 'cat'"),
    "no category": (lambda content: content.update(categories=[]), "no category in it"),
    "unknown category": (category_entry(79, id=91), "category 91"),
    "category name a number": (category_entry(3, name=4), "categories[3]"),
    "annotation a text": (more("annotations", "person"), "annotations[3]"),
    "annotation id again": (more("annotations", AGAIN), "annotation 1 again"),
    "annotation of no image": (of_annotation(image_id=7), "image 7, which is none"),
    "annotation id a text": (of_annotation(id="1"), "$.id"),
    "category 12": (of_annotation(category_id=12), "category 12"),
    "category 0": (of_annotation(category_id=0), "category 0"),
    "category 91": (of_annotation(category_id=91), "category 91"),
    "iscrowd 2": (of_annotation(iscrowd=2), "$.iscrowd"),
    "iscrowd true": (of_annotation(iscrowd=True), "$.iscrowd"),
    "iscrowd null": (of_annotation(iscrowd=None), "$.iscrowd"),
    "negative area": (of_annotation(area=-4.0), "`float` >= 0.0 - at `$.area`"),
    "negative area, no pixel": (of_annotation(area=-1, segmentation=SLIVER), "$.area"),
    "area a text": (of_annotation(area="4"), "$.area"),
    "box of three": (of_annotation(bbox=[0, 0, 2]), "$.bbox"),
    "box a text": (of_annotation(bbox="0 0 2 2"), "$.bbox"),
    "box with a null": (of_annotation(bbox=[0, 0, None, 2]), "$.bbox[2]"),
    "box without width": (of_annotation(bbox=[0, 0, 0, 2]), "width 0"),
    "box of negative height": (of_annotation(bbox=[0, 3, 2, -2]), "height -2"),
    "box outside": (of_annotation(bbox=[5, 0, 4, 2]), "not inside"),
    "box far to the left": (of_annotation(bbox=[-9, 0, 12, 2]), "not inside"),
    "enormous box": (of_annotation(bbox=[0, 0, 1e300, 1e300]), "1e+300"),
    "no polygon": (of_annotation(segmentation=[]), "no polygon"),
    "empty polygon": (polygon(), "polygon of 0 numbers"),
    "polygon of four": (polygon(0, 0, 2, 2), "polygon of 4 numbers"),
    "odd polygon": (polygon(0, 0, 2, 0, 2, 2, 0), "polygon of 7 numbers"),
    "polygon to the right": (polygon(0, 0, 9, 0, 9, 2), "not inside"),
    "polygon above": (polygon(0, -9, 2, 0, 2, 2), "not inside"),
    "enormous polygon": (polygon(0, 0, 1e300, 0, 2, 2), "1e+300"),
    "polygon of texts": (polygon("0", 0, 2, 0, 2, 2), "$[0][0]"),
    "polygon not in a list": (of_annotation(segmentation=[0, 0, 2, 0, 2, 2]), "$[0]"),
    "segmentation null": (of_annotation(segmentation=None), "annotation 1"),
    "segmentation a text": (of_annotation(segmentation="abc"), "annotation 1"),
    "large area, no pixel": (of_annotation(area=100, segmentation=SLIVER), "no pixel"),
    "counts too few": (counts([8, 2]), "runs of 10 pixels together instead of 24"),
    "counts too many": (counts([8, 20]), "runs of 28"),
    "no counts": (counts([]), "runs of 0"),
    "negative count": (counts([30, -8, 2]), "a run of -8"),
    "enormous count": (counts([2**70]), "annotation 1"),
    "count a fraction": (counts([8.5, 2, 13.5]), "$.counts[0]"),
    "counts of a turned image": (counts([8, 2, 14], (6, 4)), "4x6 pixels"),
    "size of three": (counts([24], (4, 6, 1)), "$.size"),
    "compressed: nothing": (counts(""), "cut off"),
    "compressed: cut": (counts(encode_rle(np.ones((4, 6), bool))[:-1] + "X"), "cut off"),
    "compressed: other letters": (counts("~~~\x7f0"), "other characters"),
    "compressed: umlauts": (counts("0\u00fc0"), "ascii"),
    "compressed: too long": (counts("oooooooooooooooooooooo0"), "no image has"),
    "compressed: too short": (counts("52"), "runs of 7"),
    "compressed: below zero": (counts("0O"), "a run of -1"),
    **{f"annotation without {key}": (without("annotations", key), f"`{key}`") for key in AGAIN},
}


@pytest.mark.parametrize("kind", ENTRY)
def test_a_faulty_entry_is_told_and_the_rest_is_read(damaged, kind):
    root, path = damaged
    change, words = ENTRY[kind]
    dumped(change)(path)
    found, samples = survey(root)
    assert {fault.path for fault in found} == {path}
    assert words in found[0].problem, found[0]
    assert {"2", "11", "12"} <= set(samples)
    assert samples["2"].label_map is not None and len(samples["2"].objects) >= 1
    with pytest.raises(BadFile):
        read_all(root)


def test_a_mark_before_the_text_does_no_harm(damaged):
    root, path = damaged
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found, samples = survey(root)
    assert not found and set(samples) == {"1", "2", "11", "12"}


def test_an_image_in_both_splits_is_one_fault_however_many_annotations_it_has(damaged):
    root, path = damaged
    dumped(of_image(file_name="11.jpg"))(path)
    found, samples = survey(root)
    assert [(fault.path, fault.problem) for fault in found] == [
        (path, "image 1: 11 is the name of another one already")
    ]
    assert set(samples) == {"2", "11", "12"}


def test_a_faulty_image_is_one_fault_however_many_annotations_it_has(damaged):
    root, path = damaged
    dumped(of_image(height=0))(path)
    dumped(lambda content: content["annotations"][1].update(category_id="x"))(path)
    found, _ = survey(root)
    assert [fault.problem.split(":")[0] for fault in found] == ["images[0]", "annotations[1]"]


FAR = {  # a mask in the columns 0..9, rows 0..9 of an image of 30x20: a box, whether it is refused
    "beside": ([12, 0, 10, 10], True),
    "below": ([0, 10, 10, 10], True),
    "touching at a corner": ([10, 10, 5, 5], True),
    "the rounded box beside": ([9.6, 0, 10, 10], True),
    "one pixel in common": ([9.4, 9.4, 10, 10], False),
    "around": ([0, 0, 30, 20], False),
    "inside": ([3, 3, 2, 2], False),
}


@pytest.mark.parametrize("kind", FAR)
@pytest.mark.parametrize("iscrowd", [0, 1])
def test_a_published_box_touches_its_mask(tmp_path, kind, iscrowd):
    bbox, refused = FAR[kind]
    path = write_copy(tmp_path, [annotation(1, 1, PERSON, (0, 0, 10, 10))])
    entry = {"bbox": bbox, "iscrowd": iscrowd}
    if iscrowd:
        mask = np.zeros((20, 30), bool)
        mask[:10, :10] = True
        entry["segmentation"] = {"size": [20, 30], "counts": encode_rle(mask)}
    dumped(of_annotation(**entry))(path)
    dumped(of_image(height=20, width=30))(path)
    Image.new("RGB", (30, 20)).save(tmp_path / "val2017" / "1.jpg")
    found, samples = survey(tmp_path)
    assert [fault.path for fault in found] == [path] * refused
    assert not refused or "does not touch its mask, which lies in x 0 to 10" in found[0].problem
    assert len(samples["1"].objects) == (not refused)


def test_the_box_of_a_tiny_annotation_may_miss_its_pixels(tmp_path):
    write_copy(tmp_path, [annotation(1, 1, PERSON, (0, 0, 2, 2)) | {"bbox": [3, 2, 2, 2]}])
    assert [o.box for o in read_one(tmp_path).objects] == [(0, 0, 2, 2)]


def test_the_objects_beside_a_faulty_one_are_read_without_a_label_map(damaged):
    root, path = damaged
    dumped(polygon(0, 0, 2))(path)
    found, samples = survey(root)
    assert len(found) == 1
    assert len(samples["1"].objects) == 1
    assert samples["1"].label_map is None


def test_every_fault_of_an_image_is_told(damaged):
    root, path = damaged
    dumped(lambda content: [a.update(category_id=91) for a in content["annotations"]])(path)
    found, _ = survey(root)
    assert [fault.problem.split(":")[0] for fault in found] == [
        "annotation 1 of image 1", "annotation 2 of image 1", "annotation 3 of image 2",
    ]  # fmt: skip


IMAGE_FILE = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "a text": lambda path: path.write_text("no image"),
    "directory": as_directory,
    "symlink loop": as_loop,
}


@pytest.mark.parametrize("kind", IMAGE_FILE)
def test_an_unreadable_image_is_told_and_the_rest_is_read(damaged, kind):
    root, _ = damaged
    image = root / "val2017" / "1.jpg"
    IMAGE_FILE[kind](image)
    found, samples = survey(root)
    assert [fault.path for fault in found] == [image]
    assert set(samples) == {"2", "11", "12"}
    with pytest.raises(BadFile):
        read_all(root)
