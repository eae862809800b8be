"""Reading VOC2012 and SBD: what is read, and what is refused."""

import re
import shutil
import xml.etree.ElementTree as xml
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipeline.categories import SAMPLE, VOC
from pipeline.datasets import lists, voc
from pipeline.datasets.form import AnnotatedObject, Sample
from pipeline.datasets.manifest import listed_files
from pipeline.datasets.readers import open_dataset, places
from pipeline.datasets.sample import draw, image_id, write_sample
from pipeline.datasets.tree import Place, Problems, Tree
from pipeline.errors import BadFile, BadInput
from pipeline.masks import decode_rle, encode_rle
from pipeline.params_datasets import SampleDataset

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
DEVKIT = SHARED / "real" / "VOCdevkit"
LISTS = SHARED / "real" / "lists"
SBD = "benchmark_RELEASE/dataset"
TRAIN0, TRAIN1 = image_id("train", 0), image_id("train", 1)
EXTRA0, VAL0 = image_id("extra", 0), image_id("val", 0)


@pytest.fixture(autouse=True)
def no_told_places(monkeypatch):
    for dataset in ("SAMPLE", "SBD", "VOC2012"):
        monkeypatch.delenv(f"PIPELINE_DATA_{dataset}", raising=False)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_sample(root / "data" / "raw" / "sample", train=3, extra=2, val=3)
    return root


@pytest.fixture
def project(drawn, tmp_path) -> Path:
    """A copy of the drawn project that a test may damage."""
    return Path(shutil.copytree(drawn, tmp_path / "project"))


def open_tree(root: Path, sbd: Path | None = None, *, collect: bool = False) -> Tree:
    return voc.open_tree(
        Place("sample", root / "data" / "raw" / "sample"),
        Problems(collect=collect),
        sbd_place=sbd and Place("sbd", sbd),
        categories=SAMPLE,
    )


def read(root: Path, image_id: str, problems: Problems | None = None) -> Sample:
    tree = open_tree(root)
    return tree.read(tree.record(image_id), problems or Problems(collect=False))


def mask_of(o: AnnotatedObject) -> np.ndarray | None:
    return None if o.mask_rle is None else decode_rle(o.mask_rle, 128, 160)


def test_train_aug_is_all_but_val(drawn):
    splits = open_tree(drawn).splits
    train, extra = [image_id("train", i) for i in range(3)], [image_id("extra", i) for i in (0, 1)]
    assert splits["train"] == train
    assert splits["val"] == [image_id("val", i) for i in range(3)]
    assert splits["trainval"] == splits["train"] + splits["val"]
    assert splits["train_aug"] == train + extra  # although SBD lists images of val


def test_masks_of_voc_go_before_those_of_sbd(drawn):
    sample = read(drawn, TRAIN0)
    assert (drawn / "data/raw/sample" / SBD / "cls" / f"{TRAIN0}.mat").exists()
    assert sample.source == "voc"
    np.testing.assert_array_equal(sample.label_map, draw("train", 0).label_map)


def test_masks_of_sbd_have_no_void(drawn):
    sample, truth = read(drawn, EXTRA0), draw("extra", 0)
    assert sample.source == "sbd"
    np.testing.assert_array_equal(sample.label_map, np.array([0, *truth.categories])[truth.visible])


@pytest.mark.parametrize(("split", "index"), [("train", 0), ("extra", 0), ("extra", 1), ("val", 1)])
def test_objects_carry_their_boxes_and_masks(drawn, split, index):
    sample, truth = read(drawn, image_id(split, index)), draw(split, index)
    numbers = truth.visible if split == "extra" else truth.object_map
    assert [o.category for o in sample.objects] == truth.categories.tolist()
    assert [list(o.box) for o in sample.objects] == truth.boxes.tolist()
    for number, o in enumerate(sample.objects, start=1):
        np.testing.assert_array_equal(mask_of(o), numbers == number)


def leave_without_boxes(project: Path, image_id: str) -> None:
    voc2012 = project / "data/raw/sample/VOC2012"
    (voc2012 / "Annotations" / f"{image_id}.xml").unlink()
    with_boxes = voc2012 / "ImageSets/Main/trainval.txt"
    with_boxes.write_text(with_boxes.read_text().replace(f"{image_id}\n", ""))


def test_an_image_without_xml_has_the_boxes_of_its_masks(project):
    leave_without_boxes(project, EXTRA0)
    sample, truth = read(project, EXTRA0), draw("extra", 0)
    assert [list(o.box) for o in sample.objects] == truth.boxes.tolist()
    assert [o.category for o in sample.objects] == truth.categories.tolist()


def test_an_image_without_xml_and_object_masks_is_not_annotated(project):
    leave_without_boxes(project, EXTRA0)
    shutil.rmtree(project / "data/raw/sample" / SBD / "inst")
    assert read(project, EXTRA0).objects is None


def test_png_masks_stand_in_for_sbd(project):
    base = project / "data/raw/sample"
    aug = base / "VOC2012" / "SegmentationClassAug"
    aug.mkdir()
    truth = draw("extra", 0)
    labels = np.array([0, *truth.categories], np.uint8)[truth.visible]
    Image.fromarray(labels).save(aug / f"{EXTRA0}.png")
    lists = base / "VOC2012" / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text(
        f"/JPEGImages/{EXTRA0}.jpg /SegmentationClassAug/{EXTRA0}.png\n\n{TRAIN0}\n{VAL0}\n"
    )
    shutil.rmtree(base / "benchmark_RELEASE")
    tree = open_tree(project)
    assert tree.splits["train_aug"] == [*tree.splits["train"], EXTRA0]  # nothing of val
    sample = read(project, EXTRA0)
    np.testing.assert_array_equal(sample.label_map, labels)
    assert sample.source == "sbd"
    assert [o.mask_rle for o in sample.objects] == [None] * len(truth.categories)
    name = f"sample/VOC2012/SegmentationClassAug/{EXTRA0}.png"
    assert listed_files(tree, "sample")[name] == aug / f"{EXTRA0}.png"


def test_sbd_may_lie_in_a_place_of_its_own(project, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.move(project / "data/raw/sample/benchmark_RELEASE", tmp_path / "elsewhere")
    without = open_tree(project)
    assert "train_aug" not in without.splits and "no train_aug" in without.notes[0]
    tree = open_tree(project, tmp_path / "elsewhere")
    assert tree.record(EXTRA0).source == "sbd"
    files = listed_files(tree, "sample")
    assert list(files) == sorted(files)
    assert files[f"sbd/{SBD}/cls/{EXTRA0}.mat"].is_relative_to(tmp_path / "elsewhere")


def open_sample(root: Path) -> Tree:
    entry = SampleDataset("sample", train=3, extra=2, more=0, val=3)
    return open_dataset("sample", entry, places(root, "sample", entry), Problems(collect=False))


def test_places_are_told_in_local_yaml_too(project, monkeypatch):
    moved = Path(shutil.move(project / "data/raw/sample", project / "mine"))
    (project / "local.yaml").write_text("data: {sample: mine}\n")
    assert open_sample(project).record(VAL0).image.is_relative_to(moved)
    (project / "local.yaml").write_text("# nothing told\n")
    with pytest.raises(BadInput, match="unpack"):
        open_sample(project)
    wrong = {
        "data: {sample: 3}": "write places as",
        "data: {sample: nowhere}": "no folder",
        "data: {": "not valid YAML",
    }
    for text, said in wrong.items():
        (project / "local.yaml").write_text(text)
        with pytest.raises(BadInput, match=said):
            open_sample(project)
    monkeypatch.setenv("PIPELINE_DATA_SAMPLE", str(moved))  # goes before local.yaml
    assert open_sample(project).record(VAL0).image.is_relative_to(moved)


def test_a_devkit_in_between_is_named(project):
    base = project / "data/raw/sample"
    (base / "VOCdevkit").mkdir()
    shutil.move(base / "VOC2012", base / "VOCdevkit")
    with pytest.raises(BadInput, match=r"it is in VOCdevkit/ there.*PIPELINE_DATA_SAMPLE"):
        open_tree(project)


# --- what is refused ------------------------------------------------------------------------------
def change_xml(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text, count=1))


def cut_off(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def png(path: Path, labels: np.ndarray) -> None:
    Image.fromarray(labels.astype(np.uint8)).save(path)


def mat(path: Path, name: str, **fields: np.ndarray) -> None:
    savemat(path, {name: fields})


ZEROS = np.zeros((128, 160), np.uint8)
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "half an image": (f"VOC2012/JPEGImages/{TRAIN0}.jpg", cut_off, "damaged or cut off"),
    "no image": (f"VOC2012/JPEGImages/{TRAIN0}.jpg", Path.unlink, "incomplete"),
    "an empty image": (
        f"VOC2012/JPEGImages/{TRAIN0}.jpg",
        lambda p: p.write_bytes(b""),
        "damaged or cut off",
    ),
    "half an XML": (f"VOC2012/Annotations/{TRAIN0}.xml", cut_off, "not readable XML"),
    "an unknown category": (
        f"VOC2012/Annotations/{TRAIN0}.xml",
        lambda p: change_xml(p, "<name>.*</name>", "<name>dragon</name>"),
        "unknown category 'dragon'; known: ring",
    ),
    "background as an object": (
        f"VOC2012/Annotations/{TRAIN0}.xml",
        lambda p: change_xml(p, "<name>.*</name>", "<name>background</name>"),
        "unknown category",
    ),
    "a box outside": (
        f"VOC2012/Annotations/{TRAIN0}.xml",
        lambda p: change_xml(p, "<xmax>.*</xmax>", "<xmax>161</xmax>"),
        "not inside the image of 160x128",
    ),
    "a box from zero": (
        f"VOC2012/Annotations/{TRAIN0}.xml",
        lambda p: change_xml(p, "<ymin>.*</ymin>", "<ymin>0</ymin>"),
        "count from 1",
    ),
    "an empty box": (
        f"VOC2012/Annotations/{TRAIN0}.xml",
        lambda p: change_xml(p, "<xmax>.*</xmax>", "<xmax>1</xmax>"),
        "empty or not inside",
    ),
    "a box of words": (
        f"VOC2012/Annotations/{TRAIN0}.xml",
        lambda p: change_xml(p, "<xmax>.*</xmax>", "<xmax>wide</xmax>"),
        "no number",
    ),
    "an infinite box": (
        f"VOC2012/Annotations/{TRAIN0}.xml",
        lambda p: change_xml(p, "<xmax>.*</xmax>", "<xmax>inf</xmax>"),
        "no number",
    ),
    "a box without a side": (
        f"VOC2012/Annotations/{TRAIN0}.xml",
        lambda p: change_xml(p, "<xmax>.*</xmax>", ""),
        "no number",
    ),
    "a mask of another size": (
        f"VOC2012/SegmentationClass/{TRAIN0}.png",
        lambda p: png(p, np.zeros((128, 150))),
        "150x128 pixels, but the image has 160x128",
    ),
    "a label too large": (
        f"VOC2012/SegmentationClass/{TRAIN0}.png",
        lambda p: png(p, np.full((128, 160), 9)),
        r"label 9, but the categories go to 8 \(disc\)",
    ),
    "half a mask": (f"VOC2012/SegmentationClass/{TRAIN0}.png", cut_off, "not a readable PNG"),
    "a mask in colours": (
        f"VOC2012/SegmentationClass/{TRAIN0}.png",
        lambda p: Image.new("RGB", (160, 128)).save(p),
        "palette",
    ),
    "no mask": (f"VOC2012/SegmentationClass/{TRAIN0}.png", Path.unlink, "incomplete"),
    "object mask of another size": (
        f"VOC2012/SegmentationObject/{TRAIN0}.png",
        lambda p: png(p, np.zeros((12, 16))),
        "16x12 pixels",
    ),
    "half a cls file": (f"{SBD}/cls/{EXTRA0}.mat", cut_off, "not a readable .mat file"),
    "an empty cls file": (
        f"{SBD}/cls/{EXTRA0}.mat",
        lambda p: p.write_bytes(b""),
        "not a readable .mat file",
    ),
    "text as a cls file": (
        f"{SBD}/cls/{EXTRA0}.mat",
        lambda p: p.write_text("no matrix at all\n" * 40),
        "not a readable .mat file",
    ),
    "inst instead of cls": (
        f"{SBD}/cls/{EXTRA0}.mat",
        lambda p: mat(p, "GTinst", Segmentation=ZEROS),
        "no GTcls in it",
    ),
    "a cls file without a map": (
        f"{SBD}/cls/{EXTRA0}.mat",
        lambda p: mat(p, "GTcls", Other=ZEROS),
        "no map",
    ),
    "a number as a cls file": (
        f"{SBD}/cls/{EXTRA0}.mat",
        lambda p: savemat(p, {"GTcls": 3.0}),
        "no struct",
    ),
    "labels beyond a byte": (
        f"{SBD}/cls/{EXTRA0}.mat",
        lambda p: mat(p, "GTcls", Segmentation=ZEROS.astype(np.int16) + 300),
        "not in 0..255",
    ),
    "no cls file": (f"{SBD}/cls/{EXTRA0}.mat", Path.unlink, "incomplete"),
    "an object without a category": (
        f"{SBD}/inst/{EXTRA0}.mat",
        lambda p: mat(p, "GTinst", Segmentation=ZEROS + 2, Categories=np.array([[1]])),
        "object 2 in Segmentation, but 1 Categories",
    ),
    "an object of category nine": (
        f"{SBD}/inst/{EXTRA0}.mat",
        lambda p: mat(p, "GTinst", Segmentation=ZEROS + 1, Categories=np.array([[9]])),
        "category 9",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_with_its_file(project, name):
    file, damage, said = DAMAGES[name]
    path = project / "data/raw/sample" / file
    damage(path)
    with pytest.raises(BadFile, match=said) as caught:
        read(project, path.stem)
    assert caught.value.path == path
    problems = Problems(collect=True)
    if path.suffix == ".jpg":  # without its image nothing else can be checked
        with pytest.raises(BadFile):
            read(project, path.stem, problems)
    else:
        read(project, path.stem, problems)
        assert [(f.path, f.problem) for f in problems.found] == [(path, caught.value.problem)]


@pytest.mark.parametrize(
    ("list_name", "content", "said"),
    [
        ("VOC2012/ImageSets/Segmentation/val.txt", None, "incomplete"),
        ("VOC2012/ImageSets/Segmentation/val.txt", b"../..\n", "no image id"),
        ("VOC2012/ImageSets/Segmentation/val.txt", b"a\nb\na\n", "line 3: a again"),
        ("VOC2012/ImageSets/Segmentation/val.txt", b"JPEGImages/a\n", "no image id"),
        ("VOC2012/ImageSets/Segmentation/val.txt", b"\n", "no image in it"),
        ("VOC2012/ImageSets/Segmentation/val.txt", b"\xff\xfe\x00", "not a readable list"),
        (f"{SBD}/train.txt", None, "incomplete"),
    ],
)
def test_bad_lists_are_named(project, list_name, content, said):
    path = project / "data/raw/sample" / list_name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=said) as caught:
        open_tree(project)
    assert caught.value.path == path


def test_a_half_copied_tree_is_counted(project):
    base = project / "data/raw/sample"
    for name in (EXTRA0, TRAIN0, TRAIN1, VAL0):
        (base / "VOC2012/JPEGImages" / f"{name}.jpg").unlink()
    (base / "VOC2012/Annotations" / f"{VAL0}.xml").unlink()  # listed in ImageSets/Main
    with pytest.raises(BadInput, match=rf"5 files .* missing: .*/JPEGImages/{TRAIN0}.jpg, "):
        listed_files(open_tree(project), "sample")


# --- by hand --------------------------------------------------------------------------------------
def an_object(category: int, *box: int) -> AnnotatedObject:
    return AnnotatedObject(category, box, difficult=False, crowd=False, mask_rle=None)


def a_mask(x0: int, y0: int, x1: int, y1: int) -> str:
    mask = np.zeros((10, 10), bool)
    mask[y0:y1, x0:x1] = True
    return encode_rle(mask)


def test_boxes_become_half_open_from_zero(tmp_path):
    (tmp_path / "a.xml").write_text(
        "<annotation><object><name>cat</name><difficult>1</difficult><bndbox><xmax>4</xmax>"
        "<xmin>1</xmin><ymin>2.4</ymin><ymax>2.6</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part></object></annotation>"
    )
    (cat,) = voc.read_boxes(tmp_path / "a.xml", (3, 4), VOC, Problems(collect=False))
    assert cat.box == (0, 1, 4, 3) and VOC[cat.category] == "cat" and cat.difficult


def test_each_object_takes_the_nearest_mask_of_its_kind():
    objects = [an_object(1, 0, 0, 4, 4), an_object(1, 0, 0, 4, 8), an_object(2, 0, 0, 4, 4)]
    masks = [(1, a_mask(0, 0, 4, 7)), (1, a_mask(0, 0, 4, 3))]
    first, second, third = voc.join(objects, masks, (10, 10))
    assert first.mask_rle == masks[1][1]  # 12 / 16, though 16 / 28 fits too
    assert second.mask_rle == masks[0][1]
    assert third.mask_rle is None


def test_half_the_union_is_the_least_overlap_that_joins():
    half, less = (1, a_mask(0, 0, 4, 2)), (1, a_mask(0, 0, 7, 1))
    box = an_object(1, 0, 0, 4, 4)
    assert voc.join([box], [half], (10, 10))[0].mask_rle is not None  # 8 / 16
    assert voc.join([box], [less], (10, 10))[0].mask_rle is None  # 4 / 19
    assert voc.join([], [half], (10, 10)) == ()


@pytest.mark.skipif(not LISTS.exists(), reason="the published lists are not here")
def test_train_aug_has_10582_images_as_published():
    def ids(name: str) -> list[str]:
        return lists.read_ids(LISTS / name, Problems(collect=False))

    sbd = ids("mcg_gt_sets/SBD/train.txt") + ids("mcg_gt_sets/SBD/val.txt")
    made = voc.train_aug(ids("voc12/train.txt"), ids("voc12/val.txt"), sbd)
    assert len(made) == 10582
    assert set(made) == set(ids("voc12/train_aug.txt"))


# --- a real copy ----------------------------------------------------------------------------------
@pytest.fixture
def real() -> Tree:
    if not DEVKIT.exists():
        pytest.skip("no real VOC images here")
    place = Place("voc2012", DEVKIT)
    return voc.open_tree(place, Problems(collect=False), sbd_place=None, categories=VOC)


def test_a_real_copy_is_read_as_others_read_it(real):
    assert {split: len(ids) for split, ids in real.splits.items()} == {
        "train": 25,
        "val": 47,
        "trainval": 72,
        "train_aug": 139,
        "held_out": len(real.splits["held_out"]),
        "val_rest": 47 - len(real.splits["held_out"]),
        "val_since_2008": len(real.splits["val_since_2008"]),
    }
    number_of_boxes = 0
    for name in real.ids():
        sample = real.read(real.record(name), Problems(collect=False))
        folder = "SegmentationClass" if sample.source == "voc" else "SegmentationClassAug"
        with Image.open(DEVKIT / "VOC2012" / folder / f"{name}.png") as labels:
            np.testing.assert_array_equal(sample.label_map, np.array(labels))
        annotation = DEVKIT / "VOC2012" / "Annotations" / f"{name}.xml"
        assert (sample.objects is not None) == annotation.exists()
        number_of_boxes += len(sample.objects or ())
        if sample.objects:
            assert boxes_by_hand(annotation) == [
                (VOC[o.category], o.difficult, *o.box) for o in sample.objects
            ]
    assert number_of_boxes == 561


def boxes_by_hand(path: Path) -> list[tuple]:
    """(name, difficult, half-open box) by searching the text, without an XML reader."""
    found = []
    for part in path.read_text().split("<object>")[1:]:
        xmin, ymin, xmax, ymax = (
            int(re.search(rf"<{side}>(\d+)</{side}>", part)[1])
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = "<difficult>1</difficult>" in part
        name = re.search(r"<name>(\w+)</name>", part)[1]
        found.append((name, difficult, xmin - 1, ymin - 1, xmax, ymax))
    assert len(found) == len(xml.parse(path).getroot().findall("object"))
    return found


def test_a_folder_of_the_wrong_level_is_told_before_anything_is_downloaded(tmp_path):
    (tmp_path / "devkit" / "VOC2012" / "ImageSets").mkdir(parents=True)
    with pytest.raises(BadInput, match="this is VOC2012 itself: name the folder above"):
        voc.find_lists(Place("voc2012", tmp_path / "devkit" / "VOC2012"), 2012)


# --- the published lists --------------------------------------------------------------------------
def test_the_held_out_images_are_drawn_from_val_by_a_fixed_seed():
    chosen = lists.published("dai2015_held_out")
    assert len(set(chosen)) == 100 and chosen == sorted(chosen)
    if LISTS.exists():
        val = sorted(lists.read_ids(LISTS / "voc12/val.txt", Problems(collect=False)))
        drawn = np.random.default_rng(2015).choice(len(val), 100, replace=False)
        assert chosen == sorted(val[i] for i in drawn)


def test_the_instance_lists_leak_into_train_aug_as_published():
    train, val = (set(lists.published(f"sbd_instance_{name}")) for name in ("train", "val"))
    assert (len(train), len(val), len(train & val)) == (5623, 5732, 0)
    if LISTS.exists():
        aug = set(lists.read_ids(LISTS / "voc12/train_aug.txt", Problems(collect=False)))
        assert len(aug & val) == 4629


def test_held_out_images_of_a_copy_are_apart_from_the_rest():
    first = lists.published("dai2015_held_out")[0]
    assert voc.held_out(["x", first, "y"]) == {"held_out": [first], "val_rest": ["x", "y"]}
    assert voc.held_out(["x"]) == {}


def test_of_val_the_images_that_are_not_in_voc_2007():
    ids = ["2007_000033", "2008_000001", "2011_003271", "2012_004331"]
    assert voc.since_2008(ids) == {"val_since_2008": ids[1:]}
    assert voc.since_2008(["a", "2007_000033", "2008_000001_copy"]) == {}
    if LISTS.exists():
        val = lists.read_ids(LISTS / "voc12/val.txt", Problems(collect=False))
        assert len(voc.since_2008(val)["val_since_2008"]) == voc.OFFICIAL["val_since_2008"] == 1128
