"""The drawn world and the files it is written to."""

import io
import math
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from pipeline.categories import SAMPLE
from pipeline.costs import split_sizes
from pipeline.datasets import sample
from pipeline.datasets.readers import open_dataset, places
from pipeline.datasets.sample import draw, draw_crop, image_id, with_void, write_sample
from pipeline.datasets.tree import Problems
from pipeline.params_datasets import SampleDataset
from pipeline.stages.fetch import draw_anew

TRAIN, EXTRA, VAL = 4, 3, 3


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    write_sample(root, TRAIN, EXTRA, VAL)
    return root


@pytest.fixture(scope="module")
def many() -> list[sample.Drawn]:
    return [draw("train", i) for i in range(60)]


def test_an_image_depends_on_its_split_and_number_only():
    first, again = draw("train", 7), draw("train", 7)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label_map, again.label_map)
    assert not np.array_equal(first.image, draw("val", 7).image)
    assert not np.array_equal(first.image, draw("train", 8).image)


def test_more_images_leave_earlier_files_as_they_were(tree, tmp_path):
    write_sample(tmp_path, TRAIN + 1, EXTRA - 1, VAL)
    for folder in ("VOC2012/JPEGImages", "VOC2012/Annotations", "benchmark_RELEASE/dataset/inst"):
        common = [p for p in (tmp_path / folder).iterdir() if (tree / folder / p.name).exists()]
        assert len(common) >= 5
        for path in common:
            assert path.read_bytes() == (tree / folder / path.name).read_bytes()


def test_many_processes_draw_what_one_draws(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.datasets.processes.WORTH_A_PROCESS", 5)
    write_sample(tmp_path, TRAIN, EXTRA, VAL)
    for path in (tree / "VOC2012" / "JPEGImages").iterdir():
        assert path.read_bytes() == (tmp_path / "VOC2012" / "JPEGImages" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("name", "area"),  # in the unit circle, by school geometry
    [
        ("ring", math.pi * (1 - 0.58**2)),
        ("star", 5 * 0.45 * math.sin(math.pi / 5)),
        ("plus", 0.6 * 2 + 2 * 0.6 * 0.7),
        ("rod", 2 * 0.4),
        ("fork", 1.5 * 1.7 - (1.5 - 2 * 0.38) * (1.7 - 0.38)),
        ("triangle", 3 * math.sqrt(3) / 4),
        ("disc", math.pi),
    ],
)
def test_shapes_cover_the_area_that_geometry_gives_them(name, area):
    scale = 50
    cover = sample.coverage([scale * points + 60 for points in sample.outlines(name)], 120, 120)
    assert cover.sum() / scale**2 == pytest.approx(area, rel=0.02)


def test_a_crescent_is_a_disc_without_a_smaller_disc():
    scale = 50
    cover = sample.coverage(
        [scale * points + 60 for points in sample.outlines("crescent")], 120, 120
    )
    y, x = (np.mgrid[:120, :120] + 0.5 - 60) / scale
    expected = (np.hypot(x, y) < 1) & (np.hypot(x - 0.42, y) > 0.85)
    assert np.abs(cover - expected).sum() / expected.sum() < 0.05


def test_void_is_where_a_window_of_nine_holds_two_numbers(many):
    numbers = many[4].visible
    void = with_void(numbers) == 255
    for y in range(numbers.shape[0]):
        for x in range(numbers.shape[1]):
            window = numbers[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            assert void[y, x] == (np.unique(window).size > 1)


def test_maps_boxes_and_categories_tell_the_same_story(many):
    for drawn in many:
        assert drawn.image.shape == (sample.HEIGHT, sample.WIDTH, 3)
        assert drawn.image.dtype == drawn.label_map.dtype == drawn.object_map.dtype == np.uint8
        np.testing.assert_array_equal(drawn.label_map == 255, drawn.object_map == 255)
        assert set(np.unique(drawn.object_map)) - {0, 255} == set(
            range(1, len(drawn.categories) + 1)
        )
        for number, (category, box) in enumerate(
            zip(drawn.categories, drawn.boxes, strict=True), start=1
        ):
            assert (drawn.label_map[drawn.object_map == number] == category).all()
            assert (drawn.object_map == number).sum() >= sample.MIN_LABELLED
            y, x = np.nonzero(drawn.visible == number)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_the_world_holds_what_makes_it_hard(many):
    counts = [len(d.categories) for d in many]
    assert (min(counts), max(counts)) == sample.OBJECTS
    kinds = np.concatenate([d.categories for d in many])
    assert set(kinds) == set(range(1, len(SAMPLE)))
    repeated = sum(len(set(d.categories.tolist())) < len(d.categories) for d in many)
    assert repeated > 15  # images with two of a kind
    boxes = np.concatenate([d.boxes for d in many])
    cut = (boxes[:, :2] == 0).any(1) | (boxes[:, 2:] == [sample.WIDTH, sample.HEIGHT]).any(1)
    assert 0.1 < cut.mean() < 0.9
    overlapping = 0
    for d in many:  # objects meet where no ground lies between them
        pairs = np.stack([d.visible[:, 1:], d.visible[:, :-1]])
        overlapping += ((pairs[0] != pairs[1]) & (pairs > 0).all(0)).any()
    assert overlapping > 20


def test_crops_show_every_kind_and_repeat_by_seed():
    crops = [draw_crop(i, 48, 0) for i in range(80)]
    assert {category for _, category in crops} == set(range(8))
    assert all(image.shape == (48, 48, 3) and image.dtype == np.uint8 for image, _ in crops)
    np.testing.assert_array_equal(draw_crop(3, 48, 0)[0], crops[3][0])
    assert not np.array_equal(draw_crop(3, 48, 1)[0], crops[3][0])


def test_files_show_what_was_drawn(tree):
    voc = tree / "VOC2012"
    for split, count in (("train", TRAIN), ("extra", EXTRA), ("val", VAL)):
        for index in range(count):
            name, drawn = image_id(split, index), draw(split, index)
            with Image.open(voc / "JPEGImages" / f"{name}.jpg") as photograph:
                assert photograph.size == (sample.WIDTH, sample.HEIGHT)
                difference = np.array(photograph).astype(int) - drawn.image
            assert np.abs(difference).mean() < 8  # JPEG halves the resolution of colours
            png = voc / "SegmentationClass" / f"{name}.png"
            assert png.exists() == (split != "extra")
            if png.exists():
                with Image.open(png) as labels:
                    assert labels.mode == "P"
                    assert labels.getpalette()[:6] == [0, 0, 0, 128, 0, 0]  # VOC's colours
                    np.testing.assert_array_equal(np.array(labels), drawn.label_map)
                with Image.open(voc / "SegmentationObject" / f"{name}.png") as objects:
                    np.testing.assert_array_equal(np.array(objects), drawn.object_map)


def test_boxes_are_written_from_one_with_the_last_pixel_in(tree):
    drawn = draw("train", 0)
    top = xml.parse(tree / "VOC2012" / "Annotations" / f"{image_id('train', 0)}.xml").getroot()
    written = [
        [int(entry.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        for entry in top.iter("object")
    ]
    np.testing.assert_array_equal(np.array(written), drawn.boxes + [1, 1, 0, 0])
    names = [entry.findtext("name") for entry in top.iter("object")]
    assert names == [SAMPLE[c] for c in drawn.categories]


def test_sbd_files_have_no_void_and_no_time_of_day(tree):
    sbd = tree / "benchmark_RELEASE" / "dataset"
    name, drawn = image_id("extra", 1), draw("extra", 1)
    labels = loadmat(sbd / "cls" / f"{name}.mat")["GTcls"]["Segmentation"][0, 0]
    struct = loadmat(sbd / "inst" / f"{name}.mat")["GTinst"][0, 0]
    assert labels.dtype == np.uint8 and labels.max() <= 8
    np.testing.assert_array_equal(struct["Segmentation"], drawn.visible)
    np.testing.assert_array_equal(struct["Categories"].ravel(), drawn.categories)
    np.testing.assert_array_equal(labels > 0, drawn.visible > 0)
    header = io.BytesIO((sbd / "cls" / f"{name}.mat").read_bytes()).read(116)
    assert header.rstrip() == b"MATLAB 5.0 MAT-file, drawn sample"


def test_lists_name_images_as_voc_and_sbd_do(tree):
    def ids(path: str) -> list[str]:
        return (tree / path).read_text().split()

    lists = "VOC2012/ImageSets"
    train = [image_id("train", i) for i in range(TRAIN)]
    extra = [image_id("extra", i) for i in range(EXTRA)]
    val = [image_id("val", i) for i in range(VAL)]
    assert ids(f"{lists}/Segmentation/train.txt") == train
    assert ids(f"{lists}/Segmentation/val.txt") == val
    assert ids(f"{lists}/Segmentation/trainval.txt") == train + val
    assert ids(f"{lists}/Main/train.txt") == train + extra
    assert ids("benchmark_RELEASE/dataset/train.txt") == train[::2] + extra
    assert ids("benchmark_RELEASE/dataset/val.txt") == val[::2]
    assert len({*train, *extra, *val}) == TRAIN + EXTRA + VAL


def test_more_images_are_in_split_mixed_only(tmp_path):
    entry = SampleDataset("sample", train=2, extra=2, more=3, val=1)
    draw_anew(tmp_path / "data" / "raw" / "more", entry)
    tree = open_dataset("more", entry, places(tmp_path, "more", entry), Problems(collect=False))
    few = replace(entry, more=0)
    draw_anew(tmp_path / "data" / "raw" / "few", few)
    alone = open_dataset("few", few, places(tmp_path, "few", few), Problems(collect=False))
    assert "mixed" not in alone.splits
    assert tree.splits["train_aug"] == alone.splits["train_aug"]
    assert tree.splits["mixed"] == [
        *alone.splits["train_aug"],
        *(image_id("extra", index) for index in (2, 3, 4)),
    ]
    sizes = {name: len(ids) for name, ids in tree.splits.items()}
    assert {name: sizes[name] for name in split_sizes(entry)} == split_sizes(entry)
