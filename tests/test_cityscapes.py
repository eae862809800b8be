"""Reading Cityscapes: what is read, agreement with the authors' own scripts, what is refused."""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.categories import CITYSCAPES, CITYSCAPES_IDS, CITYSCAPES_LABELS, CITYSCAPES_THINGS
from pipeline.datasets import cityscapes
from pipeline.datasets.cityscapes import label_of_number, train_id_of_label
from pipeline.datasets.cityscapes_polygons import draw as draw_polygons
from pipeline.datasets.cityscapes_polygons import read_polygons
from pipeline.datasets.form import Sample
from pipeline.datasets.sample import draw
from pipeline.datasets.sample_cityscapes import KINDS, image_id, outlines, write_cityscapes
from pipeline.datasets.tree import Place, Problems, Tree
from pipeline.errors import BadFile
from pipeline.masks import decode_rle

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
SMALL, FULL = REAL / "cityscapes_small", REAL / "cityscapes"
FIRST = image_id("train", 0)
CITY = Path("train", "ringstadt")

scripts = pytest.importorskip("cityscapesscripts.preparation.json2instanceImg")
label_scripts = pytest.importorskip("cityscapesscripts.preparation.json2labelImg")
annotations = pytest.importorskip("cityscapesscripts.helpers.annotation")
published = pytest.importorskip("cityscapesscripts.helpers.labels").labels


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cityscapes")
    write_cityscapes(root, train=5, val=2)
    return root


@pytest.fixture
def copy(drawn, tmp_path) -> Path:
    """A copy of the drawn tree that a test may damage."""
    return Path(shutil.copytree(drawn, tmp_path / "copy"))


def open_tree(root: Path, instances="maps", problems: Problems | None = None) -> Tree:
    place = Place("cityscapes", root)
    return cityscapes.open_tree(place, problems or Problems(collect=False), instances=instances)


def read(tree: Tree, name: str) -> Sample:
    return tree.read(tree.record(name), Problems(collect=False))


def assert_same(a: Sample, b: Sample) -> None:
    np.testing.assert_array_equal(a.label_map, b.label_map)
    assert (a.image_id, a.path, a.size, a.objects) == (b.image_id, b.path, b.size, b.objects)


def remove(root: Path, pattern: str) -> None:
    for path in list(root.rglob(pattern)):
        path.unlink()


# --- the published numbers ------------------------------------------------------------------------
def test_labels_are_those_of_the_authors():
    drawn_labels = [label for label in published if label.id >= 0]
    assert CITYSCAPES_LABELS == tuple(label.name for label in drawn_labels)
    assert list(CITYSCAPES_THINGS) == [label.id for label in drawn_labels if label.hasInstances]
    trained = {label.trainId: label for label in drawn_labels if label.trainId != 255}
    assert CITYSCAPES == tuple(trained[i].name for i in range(19))
    assert CITYSCAPES_IDS == tuple(trained[i].id for i in range(19))
    assert [train_id_of_label()[label.id] for label in drawn_labels] == [
        label.trainId for label in drawn_labels
    ]


def test_numbers_of_instances_have_the_ids_of_their_labels():
    table = label_of_number()
    assert [table[n] for n in (0, 7, 26, 33)] == [0, 7, 26, 33]
    assert [table[n] for n in (24000, 24999, 26001, 33999)] == [24, 24, 26, 33]
    unknown = [34, 255, 999, 7001, 23999, 34000, 65535]
    assert {table[n] for n in unknown} == {cityscapes.UNKNOWN}


# --- what is read ---------------------------------------------------------------------------------
def test_splits_are_the_folders(drawn):
    tree = open_tree(drawn)
    assert tree.categories == CITYSCAPES
    assert tree.official == {"train": 2975, "val": 500, "test": 1525}
    assert tree.splits == {
        "train": sorted(image_id("train", i) for i in range(5)),
        "val": [image_id("val", 0), image_id("val", 1)],
    }
    assert tree.notes == ()
    assert sorted(tree.files_of(FIRST).must) == [
        f"cityscapes/gtFine/train/ringstadt/{FIRST}_gtFine_instanceIds.png",
        f"cityscapes/gtFine/train/ringstadt/{FIRST}_gtFine_labelIds.png",
        f"cityscapes/leftImg8bit/train/ringstadt/{FIRST}_leftImg8bit.png",
    ]


@pytest.mark.parametrize("instances", ["maps", "polygons"])
@pytest.mark.parametrize("index", range(5))
def test_reads_what_was_drawn(drawn, instances, index):
    sample, truth = (
        read(open_tree(drawn, instances), image_id("train", index)),
        draw("train", index),
    )
    height, width = sample.size
    assert (height, width) == truth.image.shape[:2]
    assert sample.source == "cityscapes"
    # Cityscapes' eight labels with objects: person .. bicycle are 11 .. 18.
    ids = np.array([0, *(CITYSCAPES.index(kind) for kind in KINDS[1:])])
    objects = (truth.label_map > 0) & (truth.label_map < 255)
    agree = sample.label_map[objects] == ids[truth.label_map[objects]]
    assert agree.mean() > 0.999  # a hole's line may cost a pixel
    assert (sample.label_map[truth.label_map == 255] == 255).all()
    assert {0, 2, 10} <= {*np.unique(sample.label_map[truth.label_map == 0])}  # road, building, sky
    single = [o for o in sample.objects if not o.crowd]
    assert sorted(o.category for o in single) == sorted(ids[truth.categories].tolist())
    for o in single:
        mask = decode_rle(o.mask_rle, height, width)
        overlap = [(mask & (truth.object_map == n + 1)).sum() for n in range(len(truth.categories))]
        n = int(np.argmax(overlap))
        assert ids[truth.categories[n]] == o.category
        assert len(outlines(mask)) == 1
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert o.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_groups_are_crowds_and_ignored_labels_are_ignored(drawn):
    sample = read(open_tree(drawn), FIRST)
    crowds = [o for o in sample.objects if o.crowd]
    assert [o.category for o in crowds] == [CITYSCAPES.index("person")]
    x0, y0, x1, y1 = crowds[0].box
    assert (x0, y0, x1, y1) == (8, 40, 28, 64)
    assert (sample.label_map[-1] == 255).any()  # ego vehicle


def test_objects_of_a_map_worked_by_hand():
    numbers = np.array([[26000, 26000, 26, 7], [26001, 29000, 24, 7]], np.uint16)
    objects = cityscapes.objects_of(Path("x"), numbers, None)
    names = {category: name for category, name in enumerate(CITYSCAPES)} | {255: "not trained"}
    found = [(names[o.category], o.crowd, o.box) for o in objects]
    assert found == [
        ("person", True, (2, 1, 3, 2)),
        ("car", True, (2, 0, 3, 1)),
        ("car", False, (0, 0, 2, 1)),
        ("car", False, (0, 1, 1, 2)),
        ("not trained", False, (1, 1, 2, 2)),  # a caravan (29)
    ]
    np.testing.assert_array_equal(
        decode_rle(objects[2].mask_rle, 2, 4), [[True, True, False, False], [False] * 4]
    )


def test_polygons_stand_in_for_missing_maps(drawn, copy):
    before = [read(open_tree(drawn), name) for name in open_tree(drawn).ids()]
    remove(copy, "*_instanceIds.png")
    tree = open_tree(copy)
    assert tree.notes == ("no instanceIds: objects are drawn from the polygons",)
    remove(copy, "*_labelIds.png")
    tree = open_tree(copy)
    assert len(tree.notes) == 2
    for sample in before:
        assert_same(sample, read(tree, sample.image_id))


def test_without_maps_and_polygons_of_objects_there_are_none(copy):
    remove(copy, "*_instanceIds.png")
    remove(copy, "*_polygons.json")
    for instances in ("maps", "polygons"):
        tree = open_tree(copy, instances)
        sample = read(tree, FIRST)
        assert sample.objects is None and sample.label_map is not None
        assert tree.notes == ("neither instanceIds nor polygons: no objects",)


def test_of_test_the_images_alone_are_read(copy):
    for folder in ("leftImg8bit", "gtFine"):
        (copy / folder / "val").rename(copy / folder / "test")
    tree = open_tree(copy)
    sample = read(tree, image_id("val", 0))
    assert list(tree.splits) == ["train", "test"]
    assert (sample.label_map, sample.objects) == (None, None)
    assert len(tree.files_of(image_id("val", 0)).must) == 1
    assert "dummies" in tree.notes[0]


def test_reads_jpeg_images(copy):
    png = copy / "leftImg8bit" / CITY / f"{FIRST}_leftImg8bit.png"
    with Image.open(png) as image:
        image.save(png.with_suffix(".jpg"))
    png.unlink()
    assert read(open_tree(copy), FIRST).path.endswith(f"{FIRST}_leftImg8bit.jpg")


def test_records_and_reading_go_to_other_processes(drawn):
    tree = open_tree(drawn)
    again, record = pickle.loads(pickle.dumps((tree.read, tree.record(FIRST))))
    assert len(pickle.dumps(record)) < 1500
    assert_same(again(record, Problems(collect=False)), read(tree, FIRST))


def test_hidden_files_and_files_beside_the_cities_are_no_images(copy):
    (copy / "leftImg8bit" / "train" / "README").write_text("x")
    (copy / "leftImg8bit" / CITY / "._a_leftImg8bit.png").write_text("x")
    (copy / "leftImg8bit" / CITY / "Thumbs.db").write_text("x")
    assert len(open_tree(copy).splits["train"]) == 5


# --- the authors' scripts on the same polygons ----------------------------------------------------
def their_maps(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Published ids and numbers of objects, drawn by cityscapesScripts."""
    annotation = annotations.Annotation()
    annotation.fromJsonFile(str(path))
    labels = np.array(label_scripts.createLabelImage(annotation, "ids"))
    return labels, np.array(scripts.createInstanceImage(annotation, "ids"))


def our_numbers(path: Path) -> np.ndarray:
    content = json.loads(path.read_text())
    shape = (content["imgHeight"], content["imgWidth"])
    return draw_polygons(read_polygons(path, shape, Problems(collect=False)), shape)


def test_polygons_give_the_maps_of_the_authors_scripts(drawn):
    for path in sorted(drawn.rglob("*_polygons.json")):
        labels, numbers = their_maps(path)
        np.testing.assert_array_equal(our_numbers(path), numbers)
        np.testing.assert_array_equal(label_of_number()[our_numbers(path)], labels)
        with Image.open(str(path).replace("polygons.json", "instanceIds.png")) as image:
            np.testing.assert_array_equal(image, numbers)
        with Image.open(str(path).replace("polygons.json", "labelIds.png")) as image:
            np.testing.assert_array_equal(image, labels)


@pytest.mark.parametrize("seed", range(20))
def test_polygons_that_leave_the_image_overlap_or_are_thin_are_drawn_like_theirs(tmp_path, seed):
    rng = np.random.default_rng(seed)
    names = [*CITYSCAPES_LABELS, "license plate", "cargroup", "persongroup", "skygroup"]
    entries = []
    for _ in range(40):
        size = int(rng.choice([2, 3, 4, 8, 30]))
        points = rng.uniform((-20, -20), (80, 60), (size, 2))
        points = np.round(points, int(rng.integers(0, 3)))
        entry = {"label": str(rng.choice(names)), "polygon": points.tolist()}
        if rng.random() < 0.2:
            entry["deleted"] = int(rng.integers(0, 2))
        entries.append(entry)
    path = tmp_path / "polygons.json"
    path.write_text(json.dumps({"imgHeight": 40, "imgWidth": 60, "objects": entries}))
    labels, numbers = their_maps(path)
    np.testing.assert_array_equal(our_numbers(path), numbers)
    np.testing.assert_array_equal(label_of_number()[our_numbers(path)], labels)


@pytest.mark.skipif(not SMALL.is_dir(), reason="the real frames are not here")
def test_real_frames_have_the_maps_of_their_polygons():
    tree, polygons = open_tree(SMALL), open_tree(SMALL, "polygons")
    assert {split: len(ids) for split, ids in tree.splits.items()} == {"train": 72, "val": 18}
    all_numbers = groups = trained = 0
    for name in tree.ids():
        files, sample = polygons.record(name), read(tree, name)
        labels, numbers = their_maps(files.polygons)
        np.testing.assert_array_equal(our_numbers(files.polygons), numbers)
        np.testing.assert_array_equal(sample.label_map, train_id_of_label()[labels])
        assert read(polygons, name).objects == sample.objects
        all_numbers += (np.unique(numbers) >= 1000).sum()
        groups += sum(o.crowd for o in sample.objects)
        trained += sum(not o.crowd and o.category != 255 for o in sample.objects)
    # 1,605 objects without groups, three of them caravans or trailers, which are not trained.
    assert (all_numbers, trained, groups) == (1605, 1602, 65)


@pytest.mark.skipif(not FULL.is_dir(), reason="the real frames are not here")
def test_real_frames_of_full_size_have_their_train_ids():
    tree = open_tree(FULL)
    assert {split: len(ids) for split, ids in tree.splits.items()} == {"val": 3}
    for name in tree.ids():
        sample = read(tree, name)
        assert sample.size == (1024, 2048) and sample.objects is None
        with Image.open(tree.record(name).labels) as image:
            labels = np.array(image)
        expected = np.full_like(labels, 255)
        for label in published:
            if 0 <= label.trainId < 255:
                expected[labels == label.id] = label.trainId
        np.testing.assert_array_equal(sample.label_map, expected)


# --- what is refused ------------------------------------------------------------------------------
def save(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(array).save(path, format="PNG")


def put(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def start_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def set_polygon(points: object) -> Callable[[Path], None]:
    return edit(lambda content: content["objects"][0].update(polygon=points))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


H, W = 128, 160
ANY_FILE = {
    "cut": cut,
    "cut early": start_only,
    "empty": put(b""),
    "text": put(b"<html>404</html>"),
    "missing": Path.unlink,
    "a folder": folder,
    "a loop of links": loop,
    "a pipe": pipe,
}
MAPS = ANY_FILE | {
    "colours": save(np.zeros((H, W, 3), np.uint8)),
    "another size": save(np.zeros((H, W // 2), np.uint8)),
    "turned": save(np.zeros((W, H), np.uint8)),
}
BAD_LABELS = MAPS | {
    "an unknown label": save(np.full((H, W), 34, np.uint8)),
    "train ids": save(np.full((H, W), 255, np.uint8)),
    "16 bits": save(np.full((H, W), 26, np.uint16)),
}
BAD_NUMBERS = MAPS | {
    "8 bits": save(np.full((H, W), 26, np.uint8)),
    "an object of road": save(np.full((H, W), 7001, np.uint16)),
    "an unknown number": save(np.full((H, W), 34000, np.uint16)),
    "another size, 16 bits": save(np.full((H // 2, W), 7, np.uint16)),
    "another image's": save(np.full((H, W), 33000, np.uint16)),
    "all zero": save(np.zeros((H, W), np.uint16)),
    "no objects": save(np.full((H, W), 7, np.uint16)),
}
BAD_POLYGONS = ANY_FILE | {
    "no object": put(b"{}"),
    "a list": put(b"[]"),
    "no UTF-8": put(b'{"imgHeight": 1, "imgWidth": "\xff"}'),
    "NaN": put(b'{"imgHeight": 128, "imgWidth": 160, "objects": [{"label": "car", "polygon": '
               b"[[NaN, 1], [2, 2], [3, 5]]}]}"),
    "infinite": put(b'{"imgHeight": 128, "imgWidth": 160, "objects": [{"label": "car", "polygon": '
                    b"[[1e999, 1], [2, 2], [3, 5]]}]}"),
    "nested deeply": put(b'{"objects": ' + b"[" * 100_000),
    "an unknown label": edit(lambda content: content["objects"][0].update(label="tram")),
    "a group of what has none": edit(lambda content: content["objects"][0].update(label="xgroup")),
    "a label that is a number": edit(lambda content: content["objects"][0].update(label=26)),
    "no polygon": edit(lambda content: content["objects"][0].pop("polygon")),
    "no points": set_polygon([]),
    "one point": set_polygon([[3, 4]]),
    "points of three numbers": set_polygon([[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    "points that are texts": set_polygon([["1", "2"], ["4", "5"], ["7", "8"]]),
    "a point far away": set_polygon([[0, 0], [1e30, 0], [5, 5]]),
    "another size": edit(lambda content: content.update(imgWidth=W // 2)),
    "too many": edit(lambda content: content["objects"].extend(
        [{"label": "car", "polygon": [[0, 0], [1, 1]]}] * 1001)),
}  # fmt: skip
DAMAGES = [
    *(("labels", "maps", kind) for kind in BAD_LABELS),
    *(("instances", "maps", kind) for kind in BAD_NUMBERS),
    *(("polygons", "polygons", kind) for kind in BAD_POLYGONS),
]
DAMAGE = {"labels": BAD_LABELS, "instances": BAD_NUMBERS, "polygons": BAD_POLYGONS}


@pytest.mark.parametrize(("which", "instances", "kind"), DAMAGES)
def test_a_damaged_annotation_is_named(copy, which, instances, kind):
    tree = open_tree(copy, instances)
    record = tree.record(FIRST)
    path = getattr(record, which)
    whole = tree.read(record, Problems(collect=False))
    DAMAGE[which][kind](path)
    with pytest.raises(BadFile) as refusal:
        tree.read(record, Problems(collect=False))
    assert refusal.value.path == path
    assert refusal.value.problem and refusal.value.remedy

    problems = Problems(collect=True)
    sample = tree.read(record, problems)
    assert {fault.path for fault in problems.found} == {path}
    if which == "labels":
        assert sample.label_map is None and sample.objects == whole.objects
    else:
        assert sample.objects is None
        np.testing.assert_array_equal(sample.label_map, whole.label_map)


def agreement_of(numbers: list[int], labels: list[int]) -> str:
    """What is wrong about a row of pixels; "" for nothing."""
    row = np.array([numbers], np.uint16), np.array([labels], np.uint8)
    try:
        cityscapes.objects_of(Path("x"), *row)
    except BadFile as fault:
        return fault.problem
    return ""


def test_half_the_pixels_of_labels_with_objects_must_have_an_object_or_a_group():
    assert agreement_of([26000, 26001, 7, 7], [26, 26, 26, 26]) == ""
    assert agreement_of([26, 26, 0, 0], [26, 26, 26, 26]) == ""  # groups
    assert agreement_of([26000, 7, 7, 7], [26, 26, 26, 7]) == (
        "objects in 1 of 3 pixels whose label in labelIds has objects"
    )
    assert agreement_of([7, 7, 23, 0], [7, 7, 23, 0]) == ""  # neither has any
    assert agreement_of([24000, 25000, 26000, 7], [24, 26, 24, 7]) == (
        "only 1 of its objects' 3 pixels have the same label in labelIds"
    )


def test_a_mark_before_polygons_does_no_harm(copy):
    tree = open_tree(copy, "polygons")
    whole, path = read(tree, FIRST), tree.record(FIRST).polygons
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert_same(read(tree, FIRST), whole)


@pytest.mark.parametrize("kind", ANY_FILE)
def test_a_damaged_image_is_named(copy, kind):
    tree = open_tree(copy)
    record = tree.record(FIRST)
    ANY_FILE[kind](record.image)
    with pytest.raises(BadFile) as refusal:
        tree.read(record, Problems(collect=False))
    assert refusal.value.path == record.image


def test_each_bad_polygon_of_an_image_is_noted(copy):
    tree = open_tree(copy, "polygons")
    record = tree.record(FIRST)
    edit(lambda content: [entry.update(label="tram") for entry in content["objects"][:3]])(
        record.polygons
    )
    problems = Problems(collect=True)
    tree.read(record, problems)
    assert [fault.problem for fault in problems.found] == ["unknown label 'tram'"] * 3


@pytest.mark.parametrize("instances", ["maps", "polygons"])
def test_no_flipped_byte_lets_another_error_escape(copy, instances):
    rng = random.Random(0)
    tree = open_tree(copy, instances)
    record = tree.record(FIRST)
    for path in (record.image, record.labels, record.instances, record.polygons):
        if path is None:
            continue
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(rng.choice([1, 4])):
                data[rng.randrange(min(len(data), 300))] = rng.randrange(256)
            path.write_bytes(data)
            problems = Problems(collect=True)
            try:
                tree.read(record, problems)
            except BadFile as fault:
                assert fault.path == path
            assert {fault.path for fault in problems.found} <= {path, record.instances}
        path.write_bytes(whole)


def test_each_missing_label_file_is_a_fault(copy):
    tree = open_tree(copy)
    tree.record(FIRST).labels.unlink()
    tree = open_tree(copy)  # other images have theirs
    problems = Problems(collect=True)
    samples = [tree.read(tree.record(name), problems) for name in tree.ids()]
    assert [(fault.path, fault.problem) for fault in problems.found] == [
        (tree.record(FIRST).labels, "not there")
    ]
    assert sum(sample.label_map is None for sample in samples) == 1


TREES = {
    "no images": (lambda root: shutil.rmtree(root / "leftImg8bit"), "leftImg8bit"),
    "no labels": (lambda root: shutil.rmtree(root / "gtFine"), "gtFine"),
    "empty": (
        lambda root: (shutil.rmtree(root / "leftImg8bit"), (root / "leftImg8bit").mkdir()),
        "leftImg8bit",
    ),
    "colours only": (
        lambda root: [remove(root, f"*_{kind}") for kind in
                      ("labelIds.png", "instanceIds.png", "polygons.json")],
        "gtFine",
    ),
    "a city in a loop of links": (
        lambda root: os.symlink("atlantis", root / "leftImg8bit" / "train" / "atlantis"),
        "leftImg8bit/train/atlantis",
    ),
    "a split that is a file": (
        lambda root: (root / "leftImg8bit" / "test").write_text("x"),
        "leftImg8bit/test",
    ),
    "another name": (
        lambda root: (root / "leftImg8bit" / CITY / "a.png").write_text("x"),
        "leftImg8bit/train/ringstadt/a.png",
    ),
    "an image twice": (
        lambda root: shutil.copy(
            root / "leftImg8bit" / CITY / f"{FIRST}_leftImg8bit.png",
            root / "leftImg8bit" / "val" / "gabelheim",
        ),
        f"leftImg8bit/val/gabelheim/{FIRST}_leftImg8bit.png",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TREES)
def test_a_damaged_tree_is_named(copy, kind):
    damage, name = TREES[kind]
    damage(copy)
    with pytest.raises(BadFile) as refusal:
        open_tree(copy)
    assert refusal.value.path == copy / name
    problems = Problems(collect=True)
    tree = open_tree(copy, problems=problems)
    assert [fault.path for fault in problems.found] == [copy / name]
    left = 0 if kind in ("no images", "empty") else 7
    assert len(tree.ids()) == left  # whatever else is found is still read
    for image in tree.ids():
        tree.read(tree.record(image), Problems(collect=False))


def test_each_file_of_annotation_without_its_image_is_a_fault(copy):
    (copy / "leftImg8bit" / CITY / f"{FIRST}_leftImg8bit.png").unlink()
    for split in ("train", "val"):
        (copy / "gtFine" / split / "README").write_text("x")
    (copy / "gtFine" / CITY / "notes.txt").write_text("x")
    problems = Problems(collect=True)
    tree = open_tree(copy, problems=problems)
    start = copy / "gtFine" / CITY / f"{FIRST}_gtFine_"
    kinds = ("instanceIds.png", "labelIds.png", "polygons.json")
    assert [str(fault.path) for fault in problems.found] == [f"{start}{kind}" for kind in kinds]
    assert all("not in leftImg8bit/train/ringstadt/" in f.problem for f in problems.found)
    assert FIRST not in tree.ids() and len(tree.ids()) == 6
    with pytest.raises(BadFile):
        open_tree(copy)


@pytest.mark.parametrize("gone", ["leftImg8bit/train/ringstadt", "leftImg8bit/val"])
def test_a_city_without_images_is_one_fault(copy, gone):
    shutil.rmtree(copy / gone)
    problems = Problems(collect=True)
    tree = open_tree(copy, problems=problems)
    lacking = sorted(p for p in copy.glob("gtFine/*/*") if str(p.relative_to(copy))[7:] in (
        "train/ringstadt", *(f"val/{city.name}" for city in (copy / "gtFine/val").iterdir())
    ) and not (copy / "leftImg8bit" / p.relative_to(copy / "gtFine")).exists())  # fmt: skip
    assert lacking and [fault.path for fault in problems.found] == lacking
    assert all("is not there" in fault.problem for fault in problems.found)
    assert tree.ids()


def test_a_folder_that_cannot_be_listed_is_named(copy, monkeypatch):
    listed, base = os.listdir, copy / "gtFine" / "train"

    def listdir(folder: Path) -> list[str]:
        if Path(folder).is_relative_to(base):
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    problems = Problems(collect=True)
    open_tree(copy, problems=problems)
    assert problems.found and all(f.path.is_relative_to(base) for f in problems.found)


def test_polygons_that_are_asked_for_must_be_there(copy):
    remove(copy, "*_polygons.json")
    with pytest.raises(BadFile, match="take instances: maps"):
        open_tree(copy, "polygons")


def test_a_writer_of_polygons_closes_single_pixels_and_keeps_holes():
    mask = np.zeros((9, 12), bool)
    mask[1:8, 1:8] = True
    mask[3:6, 3:5] = mask[4, 6] = False
    mask[4, 10] = True
    parts = outlines(mask)
    numbers = draw_polygons([(7, points) for points in parts], mask.shape)
    assert len(parts) == 2
    np.testing.assert_array_equal(numbers > 0, mask)


def test_writing_again_gives_the_same_bytes(drawn, tmp_path):
    write_cityscapes(tmp_path, train=1, val=0)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert len(files) == 4
    for path in files:
        assert path.read_bytes() == (drawn / path.relative_to(tmp_path)).read_bytes()
