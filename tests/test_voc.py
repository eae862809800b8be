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
from pipeline.datasets import voc
from pipeline.datasets.form import AnnotatedObject
from pipeline.datasets.sample import draw, image_id, write_sample
from pipeline.errors import BadInput

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


def read(root: Path, image_id: str):
    return voc.read_sample(voc.open_tree(root, "sample"), SAMPLE, image_id)


def test_train_aug_is_all_but_val(drawn):
    splits = voc.open_tree(drawn, "sample").splits
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
        np.testing.assert_array_equal(o.mask, numbers == number)


def test_an_image_without_xml_has_the_boxes_of_its_masks(project):
    (project / "data/raw/sample/VOC2012/Annotations" / f"{EXTRA0}.xml").unlink()
    sample, truth = read(project, EXTRA0), draw("extra", 0)
    assert [list(o.box) for o in sample.objects] == truth.boxes.tolist()
    assert [o.category for o in sample.objects] == truth.categories.tolist()


def test_an_image_without_xml_and_object_masks_is_not_annotated(project):
    base = project / "data/raw/sample"
    (base / "VOC2012/Annotations" / f"{EXTRA0}.xml").unlink()
    (base / SBD / "inst" / f"{EXTRA0}.mat").unlink()
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
    tree = voc.open_tree(project, "sample")
    assert tree.splits["train_aug"] == [*tree.splits["train"], EXTRA0]  # nothing of val
    sample = read(project, EXTRA0)
    np.testing.assert_array_equal(sample.label_map, labels)
    assert sample.source == "sbd"
    assert [o.mask for o in sample.objects] == [None] * len(truth.categories)
    assert voc.place(tree, voc.published_name(tree, aug)) == aug


def test_sbd_may_lie_in_a_place_of_its_own(project, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.move(project / "data/raw/sample/benchmark_RELEASE", tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="PIPELINE_DATA_SBD"):
        voc.open_tree(project, "sample")
    monkeypatch.setenv("PIPELINE_DATA_SBD", str(tmp_path / "elsewhere"))
    tree = voc.open_tree(project, "sample")
    assert read(project, EXTRA0).source == "sbd"
    names = [voc.published_name(tree, path) for path in voc.files(tree)]
    assert names == sorted(names) and f"{SBD}/cls/{EXTRA0}.mat" in names
    assert [voc.place(tree, name) for name in names] == voc.files(tree)


def test_places_are_told_in_local_yaml_too(project, monkeypatch):
    moved = shutil.move(project / "data/raw/sample", project / "mine")
    (project / "local.yaml").write_text("data: {sample: mine}\n")
    assert voc.open_tree(project, "sample").voc == Path(moved) / "VOC2012"
    (project / "local.yaml").write_text("# nothing told\n")
    with pytest.raises(BadInput, match="Unpack"):
        voc.open_tree(project, "sample")
    wrong = {
        "data: {sample: 3}": "write places as",
        "data: {sample: nowhere}": "no folder",
        "data: {": "not valid YAML",
    }
    for text, said in wrong.items():
        (project / "local.yaml").write_text(text)
        with pytest.raises(BadInput, match=said):
            voc.open_tree(project, "sample")
    monkeypatch.setenv("PIPELINE_DATA_SAMPLE", str(moved))  # goes before local.yaml
    assert voc.open_tree(project, "sample").voc == Path(moved) / "VOC2012"


def test_a_devkit_in_between_is_named(project):
    base = project / "data/raw/sample"
    (base / "VOCdevkit").mkdir()
    shutil.move(base / "VOC2012", base / "VOCdevkit")
    with pytest.raises(BadInput, match=r"it is in VOCdevkit/ there.*PIPELINE_DATA_SAMPLE"):
        voc.open_tree(project, "sample")


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
        "no map",
    ),
    "labels beyond a byte": (
        f"{SBD}/cls/{EXTRA0}.mat",
        lambda p: mat(p, "GTcls", Segmentation=ZEROS.astype(np.int16) + 300),
        "outside 0..255",
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
    with pytest.raises(BadInput, match=said) as caught:
        read(project, path.stem)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("list_name", "content", "said"),
    [
        ("VOC2012/ImageSets/Segmentation/val.txt", None, "incomplete"),
        ("VOC2012/ImageSets/Segmentation/val.txt", b"../..\n", "no image id"),
        ("VOC2012/ImageSets/Segmentation/val.txt", b"\xff\xfe\x00", "not a text file"),
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
        voc.open_tree(project, "sample")
    assert str(path) in str(caught.value)


def test_a_half_copied_tree_is_counted(project):
    base = project / "data/raw/sample"
    for name in (EXTRA0, TRAIN0, TRAIN1, VAL0):
        (base / "VOC2012/JPEGImages" / f"{name}.jpg").unlink()
    (base / "VOC2012/Annotations" / f"{VAL0}.xml").unlink()  # listed in ImageSets/Main
    with pytest.raises(BadInput, match=rf"5 files .* missing: VOC2012/JPEGImages/{TRAIN0}.jpg, "):
        voc.files(voc.open_tree(project, "sample"))


# --- by hand --------------------------------------------------------------------------------------
def an_object(category: int, *box: int) -> AnnotatedObject:
    return AnnotatedObject(category, box, difficult=False, crowd=False, mask=None)


def a_mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((10, 10), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_boxes_become_half_open_from_zero(tmp_path):
    (tmp_path / "a.xml").write_text(
        "<annotation><object><name>cat</name><difficult>1</difficult><bndbox><xmax>4</xmax>"
        "<xmin>1</xmin><ymin>2.4</ymin><ymax>2.6</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part></object></annotation>"
    )
    (cat,) = voc.read_boxes(tmp_path / "a.xml", (3, 4), VOC)
    assert cat.box == (0, 1, 4, 3) and VOC[cat.category] == "cat" and cat.difficult


def test_each_object_takes_the_nearest_mask_of_its_kind():
    objects = [an_object(1, 0, 0, 4, 4), an_object(1, 0, 0, 4, 8), an_object(2, 0, 0, 4, 4)]
    masks = [(1, a_mask(0, 0, 4, 7)), (1, a_mask(0, 0, 4, 3))]
    first, second, third = voc.join(objects, masks)
    np.testing.assert_array_equal(first.mask, masks[1][1])  # 12 / 16, though 16 / 28 fits too
    np.testing.assert_array_equal(second.mask, masks[0][1])
    assert third.mask is None


def test_half_the_union_is_the_least_overlap_that_joins():
    half, less = (1, a_mask(0, 0, 4, 2)), (1, a_mask(0, 0, 7, 1))
    assert voc.join([an_object(1, 0, 0, 4, 4)], [half])[0].mask is not None  # 8 / 16
    assert voc.join([an_object(1, 0, 0, 4, 4)], [less])[0].mask is None  # 4 / 19
    assert voc.join([], [half]) == ()


@pytest.mark.skipif(not LISTS.exists(), reason="the published lists are not here")
def test_train_aug_has_10582_images_as_published():
    def ids(name: str) -> list[str]:
        return voc.read_ids(LISTS / name)

    sbd = ids("mcg_gt_sets/SBD/train.txt") + ids("mcg_gt_sets/SBD/val.txt")
    made = voc.train_aug(ids("voc12/train.txt"), ids("voc12/val.txt"), sbd)
    assert len(made) == 10582
    assert set(made) == set(ids("voc12/train_aug.txt"))


# --- a real copy ----------------------------------------------------------------------------------
@pytest.fixture
def real(tmp_path, monkeypatch) -> voc.Tree:
    if not DEVKIT.exists():
        pytest.skip("no real VOC images here")
    monkeypatch.setenv("PIPELINE_DATA_VOC2012", str(DEVKIT))
    return voc.open_tree(tmp_path, "voc2012")


def test_a_real_copy_is_read_as_others_read_it(real):
    assert {split: len(ids) for split, ids in real.splits.items()} == {
        "train": 25,
        "val": 47,
        "trainval": 72,
        "train_aug": 139,
    }
    number_of_boxes = 0
    for name in voc.all_ids(real):
        sample = voc.read_sample(real, VOC, name)
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


def test_a_folder_of_the_wrong_level_is_told_before_anything_is_downloaded(tmp_path, monkeypatch):
    (tmp_path / "devkit" / "VOC2012" / "ImageSets").mkdir(parents=True)
    monkeypatch.setenv("PIPELINE_DATA_VOC2012", str(tmp_path / "devkit" / "VOC2012"))
    with pytest.raises(BadInput, match="this is VOC2012 itself: name the folder above"):
        voc.find_lists(tmp_path, "voc2012")
