"""Reading somebody's own images: what is read, and what is refused."""

import json
import os
import pickle
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pipeline.categories import COCO as COCO_CATEGORIES
from pipeline.categories import IGNORE, SAMPLE
from pipeline.datasets import coco, folder
from pipeline.datasets.form import Sample
from pipeline.datasets.sample import draw, image_id
from pipeline.datasets.sample_folder import Form, write_folder
from pipeline.datasets.tree import Place, Problems, Tree
from pipeline.errors import BadFile
from pipeline.masks import decode_rle
from pipeline.params_file import load_params

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "real"
TRAIN0, TRAIN1, VAL0 = image_id("train", 0), image_id("train", 1), image_id("val", 0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict[Form, Path]:
    forms: tuple[Form, ...] = ("masks", "objects", "xml", "coco")
    roots = {form: tmp_path_factory.mktemp("mine") / form for form in forms}
    for form, root in roots.items():
        write_folder(root, train=2, val=1, form=form)
    return roots


@pytest.fixture
def of_form(drawn, tmp_path) -> Callable[[Form], Path]:
    """A copy of a drawn folder, that a test may damage."""
    return lambda form: Path(shutil.copytree(drawn[form], tmp_path / "mine"))


def open_tree(root: Path, problems: Problems | None = None, **options: Any) -> Tree:
    options = {"val_fraction": 0.25, "seed": 0} | options
    return folder.open_tree(Place("mine", root), problems or Problems(collect=False), **options)


def read(root: Path, image: str, problems: Problems | None = None) -> Sample:
    tree = open_tree(root, problems)
    return tree.read(tree.record(image), problems or Problems(collect=False))


def write_map(path: Path, numbers: list[list[int]] | np.ndarray, dtype=np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(numbers, dtype)).save(path)
    return path


def write_image(path: Path, height: int = 2, width: int = 3, **save: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, **save)
    return path


def small(root: Path, categories: str = "background\ncup\n") -> Path:
    """A folder with one image of 2x3 pixels."""
    write_image(root / "images" / "a.png")
    (root / "categories.txt").write_text(categories, encoding="utf-8")
    return root


def boxes_json(*annotations: dict[str, Any], **image: Any) -> str:
    content = {
        "images": [{"id": 7, "file_name": "a.png"} | image],
        "categories": [{"id": 3, "name": "cup"}],
        "annotations": [{"image_id": 7, "category_id": 3} | entry for entry in annotations],
    }
    return json.dumps(content)


# --- the drawn sample -----------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["masks", "objects"])
def test_masks_are_read_as_they_were_drawn(drawn, form):
    tree = open_tree(drawn[form])
    assert tree.categories == SAMPLE
    assert tree.splits == {"train": [TRAIN0, TRAIN1], "val": [VAL0]}
    sample = read(drawn[form], TRAIN1)
    np.testing.assert_array_equal(sample.label_map, draw("train", 1).label_map)
    assert (sample.path, sample.size) == (f"mine/images/{TRAIN1}.jpg", (128, 160))
    assert (sample.source, sample.objects is None) == ("folder", form == "masks")


@pytest.mark.parametrize(("split", "index"), [("train", 0), ("train", 1), ("val", 0)])
def test_objects_have_the_category_of_their_pixels_in_the_mask(drawn, split, index):
    sample, truth = read(drawn["objects"], image_id(split, index)), draw(split, index)
    assert [o.category for o in sample.objects] == truth.categories.tolist()
    for number, o in enumerate(sample.objects, start=1):
        mask = decode_rle(o.mask_rle, *sample.size)
        np.testing.assert_array_equal(mask, truth.object_map == number)


@pytest.mark.parametrize("form", ["xml", "coco"])
def test_boxes_are_read_as_they_were_drawn(drawn, form):
    for split, index in (("train", 0), ("train", 1), ("val", 0)):
        sample, truth = read(drawn[form], image_id(split, index)), draw(split, index)
        assert [list(o.box) for o in sample.objects] == truth.boxes.tolist()
        assert [o.category for o in sample.objects] == truth.categories.tolist()
    assert (sample.label_map is None) == (form == "xml")


def test_segmentations_give_the_masks_that_pycocotools_gives(drawn, capsys):
    theirs = COCO(drawn["coco"] / "boxes" / "train.json")
    sample = read(drawn["coco"], TRAIN1)
    truth = draw("train", 1)
    for ann, o in zip(theirs.imgToAnns[2], sample.objects, strict=True):
        np.testing.assert_array_equal(theirs.annToMask(ann), decode_rle(o.mask_rle, *sample.size))
    filled = sum(decode_rle(o.mask_rle, *sample.size).astype(int) for o in sample.objects)
    np.testing.assert_array_equal(sample.label_map > 0, filled > 0)
    alone = (filled == 1) & (truth.visible > 0)
    labels = np.array([0, *truth.categories])[truth.visible]
    np.testing.assert_array_equal(sample.label_map[alone], labels[alone])


def test_objects_join_the_boxes_that_they_fill(drawn, of_form):
    root = of_form("xml")
    for kind in ("masks", "objects"):
        shutil.copytree(drawn["objects"] / kind, root / kind)
    sample, truth = read(root, TRAIN0), draw("train", 0)
    assert [list(o.box) for o in sample.objects] == truth.boxes.tolist()
    for number, o in enumerate(sample.objects, start=1):
        mask = decode_rle(o.mask_rle, *sample.size)
        np.testing.assert_array_equal(mask, truth.object_map == number)


def test_records_and_their_reader_can_be_sent_to_other_processes(drawn):
    for root in drawn.values():
        tree = open_tree(root)
        image = tree.ids()[0]
        record, reader = pickle.loads(pickle.dumps((tree.record(image), tree.read)))
        again, here = reader(record, Problems(collect=False)), read(root, image)
        assert again.objects == here.objects
        np.testing.assert_array_equal(again.label_map, here.label_map)
        assert len(pickle.dumps(tree.record(image))) < 20_000
        assert len(pickle.dumps(tree.read)) < 2_000


def test_every_file_that_is_read_has_a_published_name(drawn):
    for root in drawn.values():
        tree = open_tree(root)
        named = dict(tree.lists)
        for image in tree.ids():
            files = tree.files_of(image)
            named |= {**files.must, **files.may}
        there = {f"mine/{p.relative_to(root).as_posix()}": p for p in root.rglob("*.*")}
        assert named == there


# --- small folders --------------------------------------------------------------------------------
def test_lines_called_ignore_take_no_category_number(tmp_path):
    root = small(tmp_path, "ignore\nsky\nignore\nroad\n")
    write_map(root / "masks" / "a.png", [[0, 1, 2], [3, 255, 1]])
    assert open_tree(root).categories == ("sky", "road")
    expected = [[IGNORE, 0, IGNORE], [1, IGNORE, 0]]
    assert read(root, "a").label_map.tolist() == expected


def test_objects_without_masks_are_of_the_only_category(tmp_path):
    root = small(tmp_path)
    write_map(root / "objects" / "a.png", [[0, 2, 2], [255, 0, 9]])
    sample = read(root, "a")
    assert sample.label_map.tolist() == [[0, 1, 1], [IGNORE, 0, 1]]
    assert [(o.category, o.box) for o in sample.objects] == [(1, (1, 0, 3, 1)), (1, (2, 1, 3, 2))]


def test_sixteen_bits_number_more_objects_than_eight(tmp_path):
    root = small(tmp_path)
    write_map(root / "objects" / "a.png", [[0, 255, 256], [0, 255, 65535]], np.uint16)
    sample = read(root, "a")
    assert [o.box for o in sample.objects] == [(1, 0, 2, 2), (2, 0, 3, 1), (2, 1, 3, 2)]
    assert sample.label_map.tolist() == [[0, 1, 1], [0, 1, 1]]


def test_an_object_is_of_the_category_of_most_of_its_labelled_pixels(tmp_path):
    root = small(tmp_path, "background\ncup\nfork\n")
    write_map(root / "masks" / "a.png", [[0, 0, 2], [1, 1, 255]])
    write_map(root / "objects" / "a.png", [[1, 1, 1], [0, 0, 4]])
    assert [(o.category, o.box) for o in read(root, "a").objects] == [(2, (0, 0, 3, 1))]


def test_boxes_of_json_are_rounded_to_pixels(tmp_path):
    root = small(tmp_path)
    (root / "boxes.json").write_text(
        boxes_json({"bbox": [0.4, 0, 1.4, 1.2]}, {"bbox": [1, 0.6, 2.3, 1.4], "segmentation": []})
    )
    sample = read(root, "a")
    assert [o.box for o in sample.objects] == [(0, 0, 2, 1), (1, 1, 3, 2)]
    assert sample.label_map is None and sample.objects[0].mask_rle is None


def test_crowds_of_json_are_ignored_in_the_label_map(tmp_path):
    root = small(tmp_path)
    crowd = {"segmentation": {"size": [2, 3], "counts": [4, 2]}, "iscrowd": 1}
    one = {"segmentation": [[0, 0, 1, 0, 1, 2, 0, 2]], "bbox": [0, 0, 1, 2]}
    path = root / "annotations.json"
    path.write_text(boxes_json(crowd, one, height=2, width=3, file_name=r"some\folder\a.png"))
    sample = read(root, "a")
    assert sample.label_map.tolist() == [[1, 0, IGNORE], [1, 0, IGNORE]]
    assert [(o.box, o.crowd) for o in sample.objects] == [((2, 0, 3, 2), True), ((0, 0, 1, 2), 0)]


def test_an_image_that_a_json_lists_without_annotations_has_no_objects(tmp_path):
    root = small(tmp_path)
    write_image(root / "images" / "b.png")
    write_map(root / "masks" / "b.png", np.zeros((2, 3)))
    (root / "boxes.json").write_text(boxes_json())
    assert read(root, "a").objects == () and read(root, "a").label_map is None
    assert read(root, "b").objects is None  # not annotated
    assert open_tree(root).notes[1:] == ("no masks for 1 of 2: a", "no boxes for 1 of 2: b")


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"])
def test_images_may_be_of_many_formats_and_lie_deep(tmp_path, suffix):
    root = small(tmp_path)
    write_image(root / "images" / "deep" / "er" / f"b{suffix}")
    for name in ("a", "b"):
        write_map(root / "masks" / f"{name}.PNG", [[0, 1, 1], [0, 0, 1]])
    sample = read(root, "b")
    assert (sample.size, sample.path) == ((2, 3), f"mine/images/deep/er/b{suffix}")
    assert sample.label_map.sum() == 3


def test_annotation_may_have_one_ending_more_than_its_image(tmp_path):
    root = small(tmp_path)
    for name in ("a_1", "a_mask"):  # each begins with the name of an image too
        write_image(root / "images" / f"{name}.png")
    for name in ("a", "a_1", "a_mask"):
        write_map(root / "masks" / f"{name}_mask.png", np.full((2, 3), len(name) > 1))
    tree = open_tree(root)
    stems = {image: tree.record(image).mask.stem for image in tree.ids()}
    assert stems == {"a": "a_mask", "a_1": "a_1_mask", "a_mask": "a_mask_mask"}


def test_a_mask_without_image_is_nobody_elses(tmp_path):
    root = small(tmp_path)
    write_image(root / "images" / "b.png")
    for name in ("a", "b", "a_2", "zebra"):
        write_map(root / "masks" / f"{name}.png", np.zeros((2, 3)))
    tree = open_tree(root)
    assert "masks/: of no image: a_2.png, zebra.png" in tree.notes
    assert tree.record("a").mask.name == "a.png"


# --- splits ---------------------------------------------------------------------------------------
def many(root: Path, names: list[str]) -> Path:
    small(root)
    (root / "images" / "a.png").unlink()
    for name in names:
        write_image(root / "images" / f"{name}.png")
        write_map(root / "masks" / f"{Path(name).name}.png", np.zeros((2, 3)))
    return root


def test_images_that_are_added_move_no_others_between_train_and_val(tmp_path):
    names = [f"image{i}" for i in range(40)]
    before = open_tree(many(tmp_path, names)).splits
    after = open_tree(many(tmp_path, [f"a{name}" for name in names])).splits
    assert sorted(before["train"] + before["val"]) == sorted(names)
    for split in ("train", "val"):
        assert [i for i in after[split] if i in names] == before[split]
    assert len(after["train"] + after["val"]) == 80
    other = open_tree(tmp_path, seed=1).splits
    assert other["val"] != after["val"]


def test_the_share_of_val_is_val_fraction_on_average():
    ids = [f"{i:06d}" for i in range(10_000)]
    splits = folder.drawn_splits(ids, 0.2, 0, [])
    assert 1900 < len(splits["val"]) < 2100  # 2.5 standard deviations of 40
    assert folder.drawn_splits(ids, 0.0, 0, []) == {"train": ids}
    assert folder.drawn_splits(ids, 1.0, 0, []) == {"val": ids}
    more = folder.drawn_splits(ids, 0.3, 0, [])["val"]
    assert {*splits["val"]} < {*more}  # a larger fraction keeps those that are in


def test_the_draw_is_the_documented_function_of_seed_and_id():
    # `printf 0/a | sha256sum` begins with d3, `printf 1/a | sha256sum` with bf.
    for seed, first in ((0, 0xD3), (1, 0xBF)):
        assert folder.drawn_splits(["a"], first / 256, seed, []) == {"train": ["a"]}
        assert folder.drawn_splits(["a"], (first + 1) / 256, seed, []) == {"val": ["a"]}


def test_folders_of_images_are_the_splits_if_one_is_train(tmp_path):
    root = many(tmp_path, ["train/b", "train/a", "val/c", "night shots/d", "e"])
    tree = open_tree(root)
    assert tree.splits == {"train": ["a", "b"], "val": ["c"]}
    assert "in no folder of images/ that can be a split, not used: d, e" in tree.notes
    shutil.move(root / "images" / "train", root / "images" / "morning")
    assert sorted(open_tree(root).ids()) == ["a", "b", "c", "d", "e"]  # drawn


def test_lists_go_before_folders_and_may_hold_paths(tmp_path):
    root = many(tmp_path, ["train/a", "train/b", "val/c", "val/d"])
    (root / "train.txt").write_text("c\n")
    (root / "night.txt").write_text("images/val/d.png masks/d.png\r\nimages/train/a.png\r\n")
    for name in ("README.txt", ".hidden.txt"):
        (root / name).write_text("These are my images.\n")
    tree = open_tree(root)
    assert tree.splits == {"night": ["d", "a"], "train": ["c"]}
    assert tree.notes == ("in no list, not used: b",)


# --- what is passed over --------------------------------------------------------------------------
def test_leftovers_and_loops_do_no_harm(drawn, of_form):
    root = of_form("masks")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", f"._{TRAIN0}.jpg"):
        (root / "images" / name).write_text("x")
        (root / "masks" / name).write_text("x")
    (root / "images" / ".git").mkdir()
    shutil.copy(root / "images" / f"{TRAIN0}.jpg", root / "images" / ".git" / "z.jpg")
    (root / "images" / "notes.gif").write_text("x")
    (root / "images" / "again").symlink_to(root / "images")
    (root / "masks" / "deep").mkdir()
    (root / "masks" / "deep" / "up").symlink_to(root / "masks")
    problems = Problems(collect=True)
    tree = open_tree(root, problems)
    assert not problems.found and tree.splits == open_tree(drawn["masks"]).splits
    assert "images/: no images by their names: notes.gif" in tree.notes
    assert f"{root}/images/again: leads to a folder that is read already, not followed" in (
        tree.notes
    )
    assert read(root, TRAIN0).label_map is not None


@pytest.mark.parametrize("deep", ["loop", "a/b/loop"])
@pytest.mark.parametrize("target", ["root", "above", "elsewhere"])
def test_a_link_to_what_contains_the_images_makes_no_images_of_masks(
    drawn, of_form, tmp_path, deep, target
):
    root = of_form("objects")
    for path in root.glob("*/*.png"):
        path.rename(path.with_name(f"{path.stem}_{path.parent.name}.png"))  # ids of their own
    targets = {"root": root, "above": tmp_path, "elsewhere": tmp_path / "elsewhere"}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    link = root / "images" / deep
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(targets[target], link.parent))
    problems = Problems(collect=True)
    tree = open_tree(root, problems)
    assert not problems.found and tree.ids() == open_tree(drawn["objects"]).ids()
    told = link / "back" if target == "elsewhere" else link
    assert f"{told}: leads to a folder that contains {root}/images, not followed" in tree.notes


def test_a_linked_folder_of_images_may_not_lead_back_either(drawn, of_form, tmp_path):
    root = of_form("masks")
    (root / "images").rename(tmp_path / "pictures")
    (root / "images").symlink_to(tmp_path / "pictures")
    (tmp_path / "pictures" / "loop").symlink_to(root)
    tree = open_tree(root)
    assert tree.ids() == open_tree(drawn["masks"]).ids()
    assert any("images/loop: leads to a folder that contains" in note for note in tree.notes)


def test_folders_and_files_may_be_links(drawn, tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).symlink_to(drawn["masks"] / name)
    for name in ("categories.txt", "train.txt"):
        (tmp_path / name).symlink_to(drawn["masks"] / name)
    sample = read(tmp_path, TRAIN0)
    assert sample.path == f"mine/images/{TRAIN0}.jpg"
    np.testing.assert_array_equal(sample.label_map, draw("train", 0).label_map)


def test_transparency_is_dropped_with_a_note(tmp_path):
    root = small(tmp_path)
    Image.new("RGBA", (3, 2), (1, 2, 3, 0)).save(root / "images" / "a.png")
    write_map(root / "masks" / "a.png", np.zeros((2, 3)))
    assert "images/: transparency is dropped: a.png" in open_tree(root).notes
    assert read(root, "a").label_map is not None


def test_a_turning_tag_is_no_fault_where_pillow_turns_the_pixels(tmp_path):
    root = small(tmp_path)
    (root / "images" / "a.png").unlink()
    exif = Image.Exif()
    exif[274] = 6
    write_image(root / "images" / "a.tif", height=3, width=2, exif=exif)
    write_map(root / "masks" / "a.png", np.zeros((2, 3)))
    assert read(root, "a").size == (2, 3)


# --- what is refused ------------------------------------------------------------------------------
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def save_as(path: Path, mode: str, **save: Any) -> None:
    Image.new(mode, (160, 128)).save(path, **save)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    save_as(path, "RGB", exif=exif)


def damaged_exif(path: Path) -> None:
    turned(path.with_suffix(".webp"))
    data = path.with_suffix(".webp").read_bytes()
    path.with_suffix(".webp").write_bytes(data.replace(b"MM\0*", b"?M\0*"))
    path.unlink()


def pages(path: Path) -> None:
    path.unlink()
    page = Image.new("RGB", (160, 128))
    page.save(path.with_suffix(".tif"), save_all=True, append_images=[page])


def copy_to(name: str) -> Callable[[Path], None]:
    def copy(path: Path) -> None:
        target = path.parent / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)

    return copy


def linked(target: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(target)

    return link


def write(text: str | bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(text.encode() if isinstance(text, str) else text) and None


def put(value: int) -> Callable[[Path], None]:
    """Write a value into the corner of a map."""

    def change(path: Path) -> None:
        with Image.open(path) as image:
            numbers = np.array(image)
        numbers[:2, :2] = value
        Image.fromarray(numbers).save(path)

    return change


def replace(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert re.search(old, text)
        path.write_text(re.sub(old, new, text, count=1))

    return change


def save_map(numbers: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(numbers).save(path)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def move_to(name: str) -> Callable[[Path], None]:
    return lambda path: os.rename(path, path.with_name(name))


def pipe(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.mkfifo(path)


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


IMAGE, MASK, XML = f"images/{TRAIN0}.jpg", f"masks/{TRAIN0}.png", f"boxes/{TRAIN0}.xml"
OBJECTS, JSON = f"objects/{TRAIN0}.png", "boxes/train.json"
RGB = np.zeros((128, 160, 3), np.uint8)
GREY = RGB[..., 0]
BINARY = np.where(np.arange(160) < 80, 255, GREY).astype(np.uint8)
NAMES = "\n".join(SAMPLE)
Damage = Callable[[Path], Any]

FAULTS: dict[str, tuple[Form, str, Damage, str, str]] = {
    # what: form, file that is damaged, how, file that is named, what is said
    "no folder": ("masks", ".", remove, ".", "not there"),
    "no images": ("masks", "images", remove, "images", "not there"),
    "images in capitals": ("masks", "images", move_to("Images"), "images", "Images/ is: rename"),
    "images beside": ("masks", "images", move_to("a.jpg"), "images", "images lie beside"),
    "images is a file": ("masks", "images", lambda p: (remove(p), p.touch()), "images", "folder"),
    "broken link to images": ("masks", "images", linked("nowhere"), "images", "No such file"),
    "link to itself": ("masks", "images", linked("images"), "images", "symbolic links"),
    "empty images": ("masks", "images", lambda p: (remove(p), p.mkdir()), "images", "no image in"),
    "cut image": ("masks", IMAGE, cut, IMAGE, "not a readable image"),
    "empty image": ("masks", IMAGE, write(""), IMAGE, "it is empty"),
    "text as image": ("masks", IMAGE, write("hello"), IMAGE, "not a readable image"),
    "broken link to an image": ("masks", IMAGE, linked("nowhere"), IMAGE, "not there"),
    "link of an image to itself": ("masks", IMAGE, linked(f"{TRAIN0}.jpg"), IMAGE, "symbolic"),
    "pipe as image": ("masks", IMAGE, pipe, IMAGE, "not a regular file"),
    "pipe as PNG": (
        "masks", IMAGE, lambda p: (p.unlink(), os.mkfifo(p.with_suffix(".png"))),
        f"images/{TRAIN0}.png", "not a regular file",
    ),
    "pipe as images": ("masks", "images", pipe, "images", "folder"),
    "pipe as categories": ("masks", "categories.txt", pipe, "categories.txt", "not a regular"),
    "pipe as a mask": ("masks", MASK, pipe, MASK, "not a regular file"),
    "pipe as objects": ("objects", OBJECTS, pipe, OBJECTS, "not a regular file"),
    "pipe as XML": ("xml", XML, pipe, XML, "not a regular file"),
    "pipe as JSON": ("coco", JSON, pipe, JSON, "not a regular file"),
    "pipe as a list": ("masks", "train.txt", pipe, "train.txt", "not a regular file"),
    "images is the folder itself": ("masks", "images", linked("."), "images", "no image in it"),
    "CMYK image": ("masks", IMAGE, lambda p: save_as(p, "CMYK"), IMAGE, "mode CMYK"),
    "16-bit image": ("masks", IMAGE, lambda p: save_as(p, "I;16", format="PNG"), IMAGE, "I;16"),
    "turned image": ("masks", IMAGE, turned, IMAGE, "orientation 6"),
    "damaged EXIF": (
        "masks", IMAGE, damaged_exif, f"images/{TRAIN0}.webp", "a damaged header",
    ),
    "pages": ("masks", IMAGE, pages, f"images/{TRAIN0}.tif", "2 images in one file"),
    "space in a name": ("masks", IMAGE, copy_to("my cup.jpg"), "images/my cup.jpg", "no image id"),
    "dot in a name": ("masks", IMAGE, copy_to("a.b.jpg"), "images/a.b.jpg", "'a.b' can be no"),
    "umlaut in a name": ("masks", IMAGE, copy_to("ä.jpg"), "images/ä.jpg", "rename it"),
    "name twice": ("masks", IMAGE, copy_to(f"x/{TRAIN0}.jpg"), f"images/x/{TRAIN0}.jpg", "already"),
    "two formats": ("masks", IMAGE, copy_to(f"{TRAIN0}.png"), f"images/{TRAIN0}.png", "already"),
    "no categories": ("masks", "categories.txt", remove, "categories.txt", "not there"),
    "empty categories": ("masks", "categories.txt", write("\n\n"), "categories.txt", "0 cat"),
    "one category": ("masks", "categories.txt", write("cup\n"), "categories.txt", "1 categories"),
    "too many": (
        "masks", "categories.txt", write("\n".join(map(str, range(256)))), "categories.txt",
        "256 categories in 256 lines",
    ),
    "empty line": ("masks", "categories.txt", write("a\n\nb"), "categories.txt", "line 1 (from 0)"),
    "name again": ("masks", "categories.txt", write("a\nb\na"), "categories.txt", "'a' is there"),
    "binary names": ("masks", "categories.txt", write(b"\xff\x00"), "categories.txt", "not read"),
    "folder of names": (
        "masks", "categories.txt", lambda p: (remove(p), p.mkdir()), "categories.txt", "regular",
    ),
    "no background": (
        "xml", "categories.txt", write(NAMES.replace("background", "sky")), "categories.txt",
        "the first category is 'sky'",
    ),
    "no annotation": ("masks", "masks", remove, ".", "no annotation"),
    "masks is a file": ("masks", "masks", lambda p: (remove(p), p.touch()), "masks", "folder"),
    "names of others": ("xml", XML, lambda p: (move_to("z.xml")(p), [
        q.unlink() for q in p.parent.glob("2*.xml")]), "boxes", "none of its 1 .xml files"),
    "no mask": ("masks", MASK, remove, IMAGE, "not annotated: nothing of its name in masks"),
    "no boxes": ("xml", XML, remove, IMAGE, "not annotated"),
    "mask twice": ("masks", MASK, copy_to(f"x/{TRAIN0}.png"), f"masks/x/{TRAIN0}.png", "already"),
    "mask as JPEG": ("masks", MASK, copy_to("z.jpg"), "masks/z.jpg", "not a PNG"),
    "cut mask": ("masks", MASK, cut, MASK, "not a readable PNG"),
    "empty mask": ("masks", MASK, write(""), MASK, "not a readable PNG"),
    "RGB mask": ("masks", MASK, save_map(RGB), MASK, "mode RGB"),
    "16-bit mask": ("masks", MASK, save_map(GREY.astype(np.uint16)), MASK, "mode I;16"),
    "small mask": ("masks", MASK, save_map(GREY[1:]), MASK, "160x127 pixels, but the image has"),
    "turned mask": ("masks", MASK, save_map(GREY.T), MASK, "rows and columns are exchanged"),
    "unknown value": ("masks", MASK, put(9), MASK, "value 9, but categories.txt has the lines 0"),
    "binary mask": ("masks", MASK, save_map(BINARY), MASK, "nothing but 0 and 255"),
    "cut objects": ("objects", OBJECTS, cut, OBJECTS, "not a readable PNG"),
    "empty objects": ("objects", OBJECTS, write(""), OBJECTS, "not a readable PNG"),
    "RGB objects": ("objects", OBJECTS, save_map(RGB), OBJECTS, "mode RGB"),
    "small objects": ("objects", OBJECTS, save_map(GREY[1:]), OBJECTS, "160x127"),
    "binary objects": ("objects", OBJECTS, save_map(BINARY), OBJECTS, "which means unclear"),
    "object on background": ("objects", OBJECTS, put(77), OBJECTS, "object 77 lies on nothing but"),
    "objects alone": ("objects", "masks", remove, "objects", "which of 8 categories"),
    "no XML": ("xml", XML, write("no"), XML, "not readable XML"),
    "empty XML": ("xml", XML, write(""), XML, "not readable XML"),
    "cut XML": ("xml", XML, cut, XML, "not readable XML"),
    "category of XML": ("xml", XML, replace("plus", "cup"), XML, "unknown category 'cup'"),
    "box of XML": ("xml", XML, replace("<xmin>59", "<xmin>0"), XML, "not inside"),
    "size of XML": ("xml", XML, replace("<width>160", "<width>161"), XML, "161x128"),
    "both forms": ("xml", XML, copy_to("b.json"), "boxes", "XML files, and b.json"),
    "no JSON": ("coco", JSON, write("no"), JSON, "not as COCO writes it"),
    "empty JSON": ("coco", JSON, write(""), JSON, "not as COCO writes it"),
    "cut JSON": ("coco", JSON, cut, JSON, "not as COCO writes it"),
    "deep JSON": ("coco", JSON, nested, JSON, "not as COCO writes it"),
    "list in JSON": ("coco", JSON, write("[]"), JSON, "not as COCO writes it"),
    "broken link to JSON": ("coco", JSON, linked("nowhere.json"), JSON, "not there"),
    "image twice": ("coco", JSON, copy_to("z.json"), "boxes/z.json", f"{TRAIN0} is in train.json"),
    "number twice": ("coco", JSON, replace('"id":2', '"id":1'), JSON, "image 1 again"),
    "file twice": ("coco", JSON, replace(TRAIN1, TRAIN0), JSON, f"{TRAIN0}.jpg again"),
    "category twice": ("coco", JSON, replace('2,"name":"s', '1,"name":"s'), JSON, "category 1 ag"),
    "category of JSON": ("coco", JSON, replace('"plus"', '"cup"'), JSON, "category 'cup' of "),
    "number of JSON": ("coco", JSON, replace('id":4', 'id":99'), JSON, "'number 99' of 1"),
    "size of JSON": ("coco", JSON, replace('width":160', 'width":161'), JSON, "161x128 here, but"),
    "image of none": ("coco", JSON, replace('image_id":1', 'image_id":9'), JSON, "of image 9"),
    "text for a box": ("coco", JSON, replace(r'"bbox":\[58.0', '"bbox":["x"'), JSON, "float"),
    "NaN": ("coco", JSON, replace(r'"bbox":\[58.0', '"bbox":[NaN'), JSON, "not as COCO"),
    "two points": (
        "coco", JSON, replace(r'"segmentation":\[\[.*?\]', '"segmentation":[[1,2,3,4]'), JSON,
        "a polygon of 4 numbers",
    ),
    "outside": (
        "coco", JSON, replace(r'"segmentation":\[\[', '"segmentation":[[1e9, 5,'), JSON, "inside",
    ),
    "empty segmentation": (
        "coco", JSON,
        replace(r'"segmentation":.*?"isc', '"segmentation":[[9,9,9,9,9,9]],"isc'), JSON, "no pixel",
    ),
    "box outside": (
        "coco", JSON, replace(r'58.0(.*?)"segmentation":.*?"isc', r'580\1"isc'), JSON,
        "the box x 580, y 80, width 50, height 48",
    ),
    "enormous box": (
        "coco", JSON, replace(r'"bbox":\[.*?\](.*?)"segmentation":.*?"isc',
                              r'"bbox":[1e308,0,1e308,5]\1"isc'), JSON,
        "the box x 1e+308, y 0, width 1e+308, height 5",
    ),
    "half a box": (
        "coco", JSON, replace(r'58.0,(.*?)"segmentation":.*?"isc', r'\1"isc'), JSON, "3 numbers",
    ),
    "no list": ("masks", "train.txt", linked("nowhere"), "train.txt", "not there"),
    "empty list": ("masks", "train.txt", write(""), "train.txt", "no image in it"),
    "binary list": ("masks", "train.txt", write(b"\xff\xfe\x00"), "train.txt", "not a readable"),
    "image again": ("masks", "train.txt", write(f"{TRAIN0}\n{TRAIN0}"), "train.txt", "again"),
    "unknown image": ("masks", "train.txt", write(f"{TRAIN0}\nzebra"), "train.txt", "zebra"),
    "name of a list": ("masks", "val.txt", copy_to("my val.txt"), "my val.txt", "'my val' can be"),
    "reserved list": ("masks", "val.txt", copy_to("none.txt"), "none.txt", "'none' can be"),
    "leak": ("masks", "val.txt", write(f"{VAL0}\n{TRAIN0}"), "val.txt", f"too, {TRAIN0} among"),
    "leak to test": ("masks", "train.txt", copy_to("test.txt"), "test.txt", "in train.txt too"),
}  # fmt: skip


def inspect(root: Path, problems: Problems) -> None:
    """Open a folder and read all of it, as far as there is something to read."""
    tree = open_tree(root, problems)
    for image in tree.ids():
        with problems.noted():
            tree.read(tree.record(image), problems)


@pytest.mark.parametrize("what", FAULTS)
def test_faults_are_told_with_their_file(of_form, what):
    form, damaged, damage, named, said = FAULTS[what]
    root = of_form(form)
    damage(root / damaged)
    problems = Problems(collect=True)
    inspect(root, problems)
    told = [(fault.path, str(fault)) for fault in problems.found]
    assert any(path == root / named and said in text for path, text in told), told
    with pytest.raises(BadFile):
        inspect(root, Problems(collect=False))


@pytest.mark.parametrize("form", ["masks", "objects", "coco"])
def test_a_mark_before_texts_does_no_harm(drawn, of_form, form):
    root = of_form(form)
    for path in [*root.glob("*.txt"), *root.glob("boxes/*.json")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert open_tree(root).splits == open_tree(drawn[form]).splits
    assert read(root, TRAIN0).objects == read(drawn[form], TRAIN0).objects


def test_a_faulty_image_of_a_json_is_one_fault_however_many_annotations_it_has(of_form):
    root = of_form("coco")
    replace('"height":128', '"height":"x"')(root / JSON)
    problems = Problems(collect=True)
    open_tree(root, problems)
    told = [fault.problem.split(":")[0] for fault in problems.found if fault.path == root / JSON]
    assert told == ["images[0]"]


@pytest.mark.parametrize(
    ("folder", "removed"),
    [
        ("images", ""),
        ("images", "masks"),
        ("masks", ""),
        (".", ""),
        (".", "images"),
        (".", "masks"),
    ],
)
def test_a_folder_that_cannot_be_listed_is_named(of_form, monkeypatch, folder, removed):
    root = of_form("masks")
    if removed:
        remove(root / removed)
    listed = os.listdir

    def listdir(path: Any) -> list[str]:
        if Path(path) == root / folder:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", listdir)
    problems = Problems(collect=True)
    inspect(root, problems)
    told = [(f.path, f.problem) for f in problems.found]
    assert (root / folder, "not a readable folder (Permission denied)") in told
    with pytest.raises(BadFile):
        inspect(root, Problems(collect=False))


def test_a_folder_that_cannot_be_entered_is_named(of_form, monkeypatch):
    """Nothing in it can be asked for, neither by its list nor by its names."""
    root = of_form("masks")

    def unless_inside(call: Callable[..., Any], prefix: str) -> Callable[..., Any]:
        def refuse(path: Any, *arguments: Any, **more: Any) -> Any:
            if str(path).startswith(prefix):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *arguments, **more)

        return refuse

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, unless_inside(getattr(os, name), f"{root}/"))
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, unless_inside(getattr(os, name), str(root)))
    problems = Problems(collect=True)
    tree = open_tree(root, problems)
    assert tree.ids() == [] and problems.found
    assert {fault.path for fault in problems.found} <= {root, root / "categories.txt"}


def test_all_faults_of_a_folder_are_collected(of_form):
    root = of_form("objects")
    put(9)(root / MASK)
    cut(root / "images" / f"{TRAIN1}.jpg")
    save_map(RGB)(root / "objects" / f"{VAL0}.png")
    copy_to("my cup.jpg")(root / "images" / f"{VAL0}.jpg")
    problems = Problems(collect=True)
    inspect(root, problems)
    assert sorted(fault.path.name for fault in problems.found) == sorted(
        [f"{TRAIN0}.png", f"{TRAIN1}.jpg", f"{VAL0}.png", "my cup.jpg"]
    )


def test_after_a_fault_the_rest_of_the_image_is_read(of_form):
    root = of_form("coco")
    replace(r'"segmentation":\[\[.*?\]', '"segmentation":[[1,2,3,4]')(root / JSON)
    problems = Problems(collect=True)
    sample = read(root, TRAIN0, problems)
    assert len(problems.found) == 1 and sample.label_map is None
    assert len(sample.objects) == len(draw("train", 0).categories) - 1


def test_a_hopeless_folder_is_an_empty_tree(tmp_path):
    problems = Problems(collect=True)
    tree = open_tree(tmp_path / "nowhere", problems)
    assert len(problems.found) == 1 and tree.ids() == []
    problems = Problems(collect=True)
    assert open_tree(tmp_path, problems).ids() == [] and len(problems.found) == 2


# --- real photographs -----------------------------------------------------------------------------
CAMVID = "sky building pole road pavement tree sign fence car pedestrian bicyclist ignore".split()


@pytest.mark.skipif(not (REAL / "camvid").is_dir(), reason="no copy of CamVid")
def test_camvid_by_links(tmp_path):
    camvid = REAL / "camvid"
    for kind, ending in (("images", ""), ("masks", "annot")):
        (tmp_path / kind).mkdir()
        for split in ("train", "val"):
            (tmp_path / kind / split).symlink_to(camvid / f"{split}{ending}")
    (tmp_path / "categories.txt").write_text("\n".join(CAMVID))
    tree = open_tree(tmp_path)
    assert {split: len(ids) for split, ids in tree.splits.items()} == {"train": 62, "val": 21}
    assert (len(tree.categories), tree.notes) == (11, ())
    counts = np.zeros(256, np.int64)
    for image in tree.ids():
        sample = tree.read(tree.record(image), Problems(collect=False))
        assert (sample.size, sample.objects) == ((360, 480), None)
        counts += np.bincount(sample.label_map.ravel(), minlength=256)
    raw = np.zeros(256, np.int64)
    for path in [*camvid.glob("*annot/*.png")]:
        with Image.open(path) as image:
            raw += image.histogram()
    assert counts[:11].tolist() == raw[:11].tolist() and counts[IGNORE] == raw[11]


@pytest.mark.skipif(not (REAL / "PennFudanPed").is_dir(), reason="no copy of Penn-Fudan")
def test_penn_fudan_by_links(tmp_path):
    penn = REAL / "PennFudanPed"
    (tmp_path / "images").symlink_to(penn / "PNGImages")
    (tmp_path / "objects").symlink_to(penn / "PedMasks")
    (tmp_path / "categories.txt").write_text("background\nperson\n")
    tree = open_tree(tmp_path)
    assert len(tree.ids()) == 45 and tree.categories == ("background", "person")
    objects = exact = 0
    for image in tree.ids():
        sample = tree.read(tree.record(image), Problems(collect=False))
        text = (penn / "Annotation" / f"{image}.txt").read_text(encoding="latin-1")
        corners = re.findall(r": \((\d+), (\d+)\) - \((\d+), (\d+)\)", text)
        theirs = [(int(x0) - 1, int(y0) - 1, int(x1), int(y1)) for x0, y0, x1, y1 in corners]
        for o, box in zip(sorted(o.box for o in sample.objects), sorted(theirs), strict=True):
            exact += o == box
            # Six masks end short of their boxes, where the next person covers them.
            assert o[:2] + o[3:] == box[:2] + box[3:] and 0 <= box[2] - o[2] <= 3
        union = sum(decode_rle(o.mask_rle, *sample.size) for o in sample.objects)
        np.testing.assert_array_equal(sample.label_map, union)
        objects += len(sample.objects)
    assert (objects, exact) == (123, 117)


@pytest.mark.skipif(not (REAL / "coco").is_dir(), reason="no copy of COCO")
def test_coco_as_somebodys_own_folder_is_what_its_own_reader_reads(tmp_path):
    (tmp_path / "images").symlink_to(REAL / "coco" / "val2017")
    (tmp_path / "boxes.json").symlink_to(REAL / "coco" / "annotations" / "instances_val2017.json")
    (tmp_path / "categories.txt").write_text("\n".join(COCO_CATEGORIES))
    ours, strict = open_tree(tmp_path), Problems(collect=False)
    place = Place("coco", REAL / "coco")
    theirs = coco.open_tree(place, strict, years=(2017,), categories="coco", others="background")
    assert ours.categories == theirs.categories and len(ours.ids()) == 40
    for image in ours.ids():
        mine = ours.read(ours.record(image), strict)
        other = theirs.read(theirs.record(image), strict)
        assert mine.objects == other.objects
        np.testing.assert_array_equal(mine.label_map, other.label_map)


# --- the how-to -----------------------------------------------------------------------------------
def test_the_parameters_of_the_how_to_are_valid(tmp_path):
    text = (ROOT / "docs" / "OWN_IMAGES.md").read_text(encoding="utf-8")
    block = text[text.index("    datasets:\n") : text.index("\nThen\n")]
    rest = "forests: {}\nweights:\n  none: {kind: none}\ninstance: {}\n"
    (tmp_path / "params.yaml").write_text(textwrap.dedent(block) + rest)
    params = load_params(tmp_path / "params.yaml")
    models = {evaluation.model for evaluation in params.evaluations.values()}
    assert models == {*params.semantic, *params.boxsup}
    assert {params.datasets[run.dataset].kind for run in params.semantic.values()} == {"folder"}
