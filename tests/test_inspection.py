"""`inspect`: what whole copies hold, and that every damage is named and none passes."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bsds_copy import H, W, write_bsds
from PIL import Image
from scipy.io import loadmat, savemat

from pipeline.__main__ import main
from pipeline.datasets.inspection import KINDS, inspect
from pipeline.datasets.sample import image_id, write_sample, write_voc2007
from pipeline.datasets.sample_cityscapes import write_cityscapes
from pipeline.datasets.sample_coco import write_coco
from pipeline.datasets.sample_context import write_context
from pipeline.datasets.sample_folder import write_folder
from pipeline.errors import BadInput

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
WRITERS: dict[str, Callable[[Path], None]] = {
    "sample": lambda root: write_sample(root, train=2, extra=1, val=1),
    "voc2007": lambda root: write_voc2007(root, train=1, val=1, test=1),
    "cityscapes": lambda root: write_cityscapes(root, 2, 1),
    "context": lambda root: write_context(root, 2, 1),
    "coco2017": lambda root: write_coco(root, 2, 1, 2017),
    "folder": lambda root: write_folder(root, 2, 1, "coco"),
    "bsds500": lambda root: write_bsds(root, 2, 1, 1),
}
COPY_OF = {"sbd": "sample", "coco": "coco2017"}  # others that read what was drawn for these
KEYS = {"images", "semantic_masks", "instance_masks", "boxes"}


@pytest.fixture(autouse=True)
def no_told_places(monkeypatch):
    for name in [n for n in os.environ if n.startswith("PIPELINE_DATA_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def time_limit():
    """A reader that waits for ever, as for a pipe's other end, fails."""

    def stop(number, frame):
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


@pytest.fixture
def copy_of(drawn, tmp_path) -> Callable[[str], Path]:
    """A function from a dataset's name to a copy of it that a test may damage."""
    return lambda name: Path(
        shutil.copytree(drawn / COPY_OF.get(name, name), tmp_path / name, symlinks=True)
    )


# --- whole copies ---------------------------------------------------------------------------------
@pytest.mark.parametrize("dataset", [*WRITERS, *COPY_OF])
def test_a_whole_copy_has_no_problems(drawn, tmp_path, dataset):
    found = inspect(dataset, drawn / COPY_OF.get(dataset, dataset), tmp_path)
    assert found.problems == []
    assert found.splits and all(set(counts) == KEYS for counts in found.splits.values())
    assert all(counts["images"] > 0 for counts in found.splits.values())


def test_counts_are_those_of_what_was_drawn(drawn, tmp_path):
    found = inspect("sample", drawn / "sample", tmp_path)
    assert {s: (c["images"], c["semantic_masks"]) for s, c in found.splits.items()} == {
        "train": (2, 2), "val": (1, 1), "trainval": (3, 3), "train_aug": (3, 3),
    }  # fmt: skip
    boxes = sum(
        xml.read_text().count("<object>")
        for xml in (drawn / "sample/VOC2012/Annotations").glob("*.xml")
    )
    assert sum(found.categories.values()) == boxes
    trainval, aug = found.splits["trainval"], found.splits["train_aug"]
    assert trainval["boxes"] + aug["boxes"] - found.splits["train"]["boxes"] == boxes


def test_what_people_drew_is_counted(drawn, tmp_path):
    found = inspect("bsds500", drawn / "bsds500", tmp_path)
    assert {split: counts["images"] for split, counts in found.splits.items()} == {
        "train": 2, "val": 1, "test": 1,
    }  # fmt: skip
    assert found.categories == {}
    assert "train: published hierarchies (ucm2) of 1 of 2 images" in found.notes
    assert "train: 4 drawings of 2 images, at least 2 and at most 2 of one" in found.notes
    assert "test: 1 images; officially 200" in found.notes


def test_every_known_dataset_can_be_asked_for(tmp_path):
    for dataset in [*KINDS, "coco"]:
        assert inspect(dataset, tmp_path, tmp_path).problems  # an empty folder is no copy


def test_an_unknown_dataset_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(BadInput, match="no dataset 'imagenet'; choose one of: coco, voc2012"):
        inspect("imagenet", tmp_path, tmp_path)
    with pytest.raises(BadInput, match="no such folder"):
        inspect("coco", tmp_path / "gone", tmp_path)


# --- damaged copies -------------------------------------------------------------------------------
def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def colours(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").save(path)


def smaller(path: Path) -> None:
    with Image.open(path) as image:
        image.resize((image.width // 2, image.height // 2), Image.Resampling.NEAREST).save(path)


def value(number: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with Image.open(path) as image:
            pixels = np.array(image)
        pixels[0, 0] = number
        Image.fromarray(pixels).save(path)

    return change


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def sixteen_bits(path: Path) -> None:
    with Image.open(path) as image:
        wide = np.array(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(wide).save(path, format="PNG")


def turned(path: Path) -> None:
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(path)


def nothing(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.zeros_like(np.array(image))
    Image.fromarray(pixels).save(path)


def list_of(other: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(path.read_text() + (path.parent / other).read_text())


def middle_cut_out(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[-2:])


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def text(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new, 1))

    return change


def edited_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def not_a_number(content: dict) -> None:
    content["annotations"][0]["bbox"][0] = float("nan")


def transposed_mat(path: Path) -> None:
    content = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    (name,) = content
    array = content[name]
    if array.dtype.names:  # a struct: its Segmentation
        fields = {n: array[n][0, 0] for n in array.dtype.names}
        fields["Segmentation"] = fields["Segmentation"].T
        savemat(path, {name: fields})
    else:
        savemat(path, {name: array.T})


def transposed_drawing(path: Path) -> None:
    people = loadmat(path)["groundTruth"]
    drawn = people[0, -1][0, 0]
    people[0, -1] = {name: drawn[name].T for name in drawn.dtype.names}
    savemat(path, {"groundTruth": people})


def without_boundaries(path: Path) -> None:
    people = loadmat(path)["groundTruth"]
    people[0, 0] = {"Segmentation": people[0, 0]["Segmentation"][0, 0]}
    savemat(path, {"groundTruth": people})


def grid(shape: tuple[int, int]) -> Callable[[Path], None]:
    return lambda path: savemat(path, {"ucm2": np.zeros(shape)})


def other_key(path: Path) -> None:
    savemat(path, {"other": np.zeros((2, 2))})


def append(line: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(path.read_text() + line)


T0, T1, E0 = image_id("train", 0), image_id("train", 1), image_id("extra", 0)
VOC, SBD = "VOC2012", "benchmark_RELEASE/dataset"
BSDS = "BSR/BSDS500"
CITY = "ringstadt/ringstadt_000000_000019"
LABELS, COCO_JSON = f"gtFine/train/{CITY}_gtFine", "annotations/instances_train2017.json"
DAMAGES: list[tuple[str, str, Callable[[Path], object]]] = [
    ("sample", f"{VOC}/JPEGImages/{T0}.jpg", cut),
    ("sample", f"{VOC}/JPEGImages/{T0}.jpg", empty),
    ("sample", f"{VOC}/JPEGImages/{T0}.jpg", remove),
    ("sample", f"{VOC}/JPEGImages/{T0}.jpg", loop),
    ("sample", f"{VOC}/JPEGImages/{T0}.jpg", folder_instead),
    ("sample", f"{VOC}/SegmentationClass/{T0}.png", colours),
    ("sample", f"{VOC}/SegmentationClass/{T0}.png", smaller),
    ("sample", f"{VOC}/SegmentationClass/{T0}.png", value(77)),
    ("sample", f"{VOC}/SegmentationClass/{T0}.png", cut),
    ("sample", f"{VOC}/SegmentationClass/{T0}.png", loop),
    ("sample", f"{VOC}/SegmentationObject/{T0}.png", folder_instead),
    ("sample", f"{VOC}/JPEGImages/{T0}.jpg", pipe),
    ("sample", f"{VOC}/JPEGImages/{T0}.jpg", sixteen_bits),
    ("sample", f"{VOC}/SegmentationClass/{T0}.png", pipe),
    ("sample", f"{VOC}/SegmentationClass/{T0}.png", nothing),
    ("sample", f"{VOC}/SegmentationObject/{T0}.png", nothing),
    ("sample", f"{VOC}/SegmentationObject/{T1}.png", turned),
    ("sample", f"{VOC}/Annotations/{T0}.xml", pipe),
    ("sample", f"{VOC}/Annotations/{T0}.xml", lambda p: p.write_text("<annotation/>")),
    ("sample", f"{VOC}/Annotations/{T0}.xml", text(f"{T0}.jpg", f"{T1}.jpg")),
    ("sample", f"{VOC}/ImageSets/Segmentation/val.txt", list_of("train.txt")),
    ("sample", f"{VOC}/ImageSets/Segmentation/trainval.txt", pipe),
    ("sample", f"{VOC}/ImageSets/Segmentation/trainval.txt", append("more\n")),
    ("sample", f"{VOC}/ImageSets/Main/trainval.txt", loop),
    ("sbd", f"{SBD}/val.txt", list_of("train.txt")),
    ("sbd", f"{SBD}/cls/{E0}.mat", pipe),
    ("sample", f"{VOC}/Annotations/{T0}.xml", empty),
    ("sample", f"{VOC}/Annotations/{T0}.xml", cut),
    ("sample", f"{VOC}/Annotations/{T0}.xml", remove),
    ("sample", f"{VOC}/Annotations/{T0}.xml", loop),
    ("sample", f"{VOC}/Annotations/{T0}.xml", text("<xmin>", "<xmin>-")),
    ("sample", f"{VOC}/Annotations/{T0}.xml", text("<width>160", "<width>161")),
    ("sample", f"{VOC}/Annotations/{T0}.xml", text("<name>", "<name>un")),
    ("sample", f"{VOC}/ImageSets/Segmentation/val.txt", append("../evil\n")),
    ("sample", f"{VOC}/ImageSets/Segmentation/val.txt", append("folder/id\n")),
    ("sample", f"{VOC}/ImageSets/Segmentation/train.txt", append(f"{T0}\n")),
    ("sample", f"{VOC}/ImageSets/Segmentation/train.txt", empty),
    ("sample", f"{VOC}/ImageSets/Segmentation/train.txt", loop),
    ("sample", f"{SBD}/cls/{E0}.mat", other_key),
    ("sample", f"{SBD}/cls/{E0}.mat", transposed_mat),
    ("sample", f"{SBD}/inst/{E0}.mat", cut),
    ("sbd", f"{SBD}/img/{E0}.jpg", cut),
    ("sbd", f"{SBD}/inst/{E0}.mat", transposed_mat),
    ("sbd", f"{SBD}/cls/{E0}.mat", loop),
    ("sbd", f"{SBD}/train.txt", append("x y/z\n../..\n")),
    ("voc2007", "VOC2007/Annotations/0021000000.xml", text("<ymax>", "<ymax>9")),
    ("voc2007", "VOC2007/ImageSets/Main/test.txt", remove),
    ("cityscapes", f"leftImg8bit/train/{CITY}_leftImg8bit.png", cut),
    ("cityscapes", f"{LABELS}_labelIds.png", value(200)),
    ("cityscapes", f"{LABELS}_labelIds.png", colours),
    ("cityscapes", f"{LABELS}_instanceIds.png", smaller),
    ("cityscapes", f"{LABELS}_instanceIds.png", cut),
    ("cityscapes", f"{LABELS}_polygons.json", cut),
    ("cityscapes", f"{LABELS}_polygons.json", text('"imgWidth": 160', '"imgWidth": NaN')),
    ("cityscapes", f"{LABELS}_instanceIds.png", nothing),
    ("sample", f"{VOC}/JPEGImages/{T0}.jpg", middle_cut_out),
    ("context", f"trainval/{T0}.mat", transposed_mat),
    ("context", f"trainval/{T0}.mat", other_key),
    ("context", f"trainval/{T0}.mat", remove),
    ("context", "labels.txt", cut),
    ("coco2017", COCO_JSON, cut),
    ("coco2017", COCO_JSON, empty),
    ("coco2017", COCO_JSON, edited_json(not_a_number)),
    ("coco2017", COCO_JSON, edited_json(lambda c: c["annotations"][0].update(image_id=-5))),
    ("coco2017", COCO_JSON, edited_json(lambda c: c["annotations"][0].update(category_id=12))),
    ("coco2017", COCO_JSON, edited_json(lambda c: c["images"].append(c["images"][0]))),
    ("coco2017", COCO_JSON, edited_json(lambda c: c["images"][0].update(file_name="../x.jpg"))),
    ("coco2017", COCO_JSON, edited_json(lambda c: c["images"][0].update(width=7))),
    ("coco2017", COCO_JSON, edited_json(lambda c: c.pop("annotations"))),
    ("coco2017", "train2017/000000000001.jpg", remove),
    ("coco2017", "train2017/000000000001.jpg", loop),
    ("context", f"trainval/{T0}.mat", pipe),
    ("context", "VOC2010/ImageSets/Main/val.txt", list_of("train.txt")),
    ("cityscapes", f"{LABELS}_instanceIds.png", pipe),
    ("coco2017", COCO_JSON, pipe),
    ("folder", "categories.txt", pipe),
    ("folder", "categories.txt", empty),
    ("folder", "categories.txt", remove),
    ("bsds500", f"{BSDS}/data/images/train/1000.jpg", cut),
    ("bsds500", f"{BSDS}/data/images/train/1000.jpg", empty),
    ("bsds500", f"{BSDS}/data/images/train/1000.jpg", remove),
    ("bsds500", f"{BSDS}/data/images/train/1000.jpg", loop),
    ("bsds500", f"{BSDS}/data/images/train/1000.jpg", pipe),
    ("bsds500", f"{BSDS}/data/images/train/1000.jpg", sixteen_bits),
    ("bsds500", f"{BSDS}/data/groundTruth/val/2000.mat", cut),
    ("bsds500", f"{BSDS}/data/groundTruth/val/2000.mat", empty),
    ("bsds500", f"{BSDS}/data/groundTruth/val/2000.mat", remove),
    ("bsds500", f"{BSDS}/data/groundTruth/val/2000.mat", loop),
    ("bsds500", f"{BSDS}/data/groundTruth/val/2000.mat", pipe),
    ("bsds500", f"{BSDS}/data/groundTruth/val/2000.mat", folder_instead),
    ("bsds500", f"{BSDS}/data/groundTruth/val/2000.mat", other_key),
    ("bsds500", f"{BSDS}/data/groundTruth/val/2000.mat", transposed_drawing),
    ("bsds500", f"{BSDS}/data/groundTruth/val/2000.mat", without_boundaries),
    ("bsds500", f"{BSDS}/ucm2/test/3000.mat", cut),
    ("bsds500", f"{BSDS}/ucm2/test/3000.mat", loop),
    ("bsds500", f"{BSDS}/ucm2/test/3000.mat", pipe),
    ("bsds500", f"{BSDS}/ucm2/test/3000.mat", other_key),
    ("bsds500", f"{BSDS}/ucm2/test/3000.mat", grid((2 * H + 3, 2 * W + 1))),
    ("bsds500", f"{BSDS}/ucm2/test/3000.mat", grid((2 * W + 1, 2 * H + 1))),
    ("bsds500", f"{BSDS}/ucm2/test/3000.mat", grid((H, W))),
]  # fmt: skip


@pytest.mark.parametrize(("dataset", "file", "damage"), DAMAGES)
def test_every_damage_is_named_and_the_rest_is_still_counted(
    copy_of, tmp_path, dataset, file, damage
):
    root = copy_of(dataset)
    damage(root / file)
    found = inspect(dataset, root, tmp_path)
    paths = {problem["path"] for problem in found.problems}
    assert str(root / file) in paths, found.problems
    assert all(problem["problem"] for problem in found.problems)
    json.loads(found.as_json())
    assert not any("cannot be read (" in problem["problem"] for problem in found.problems)


def test_a_folder_that_may_not_be_read_is_named(copy_of, tmp_path, monkeypatch):
    root = copy_of("sample")

    def forbidden(*given, **more):
        raise PermissionError(13, "Permission denied", str(root / VOC))

    monkeypatch.setattr("pipeline.datasets.inspection.open_dataset", forbidden)
    (problem,) = inspect("sample", root, tmp_path).problems
    assert problem["path"] == str(root / VOC) and "Permission denied" in problem["problem"]


def test_what_follows_the_end_of_an_image_is_no_damage(copy_of, tmp_path):
    image = copy_of("sample") / VOC / f"JPEGImages/{T0}.jpg"
    data = image.read_bytes()
    for more in (bytes(200_000), np.random.default_rng(0).bytes(200_000), b"\xff\xda" * 9):
        image.write_bytes(data + more)
        assert inspect("sample", image.parents[2], tmp_path).problems == []
        image.write_bytes(data[:-700] + more)  # the end is missing
        assert inspect("sample", image.parents[2], tmp_path).problems


def test_several_faults_of_one_image_are_all_named(copy_of, tmp_path):
    voc = copy_of("sample") / VOC
    image, labels, boxes = (
        voc / f"{name}"
        for name in (f"JPEGImages/{T0}.jpg", f"SegmentationClass/{T0}.png", f"Annotations/{T0}.xml")
    )
    middle_cut_out(image)
    colours(labels)
    text("<xmin>", "<xmin>-")(boxes)
    text("<width>160", "<width>161")(boxes)
    found = inspect("sample", voc.parent, tmp_path)
    named = sorted(problem["path"] for problem in found.problems)
    assert named == sorted(map(str, [boxes, boxes, image, labels])), found.problems


# --- the command ----------------------------------------------------------------------------------
def test_the_command_writes_json_and_ends_with_1_where_there_are_problems(
    copy_of, tmp_path, capsys
):
    root, out = copy_of("sample"), tmp_path / "found.json"
    assert main(["inspect", "sample", "--root", str(root), "--json", str(out)]) == 0
    whole = json.loads(out.read_text())
    assert set(whole) == {"dataset", "splits", "categories", "notes", "problems"}
    assert whole["problems"] == [] and "no problems" in capsys.readouterr().out
    remove(root / VOC / f"JPEGImages/{T0}.jpg")
    assert main(["inspect", "sample", "--root", str(root), "--json", str(out)]) == 1
    (problem,) = json.loads(out.read_text())["problems"]
    assert problem["path"] == str(root / VOC / f"JPEGImages/{T0}.jpg")
    assert problem["problem"] == "not there; the copy is incomplete, or the name is wrong"
    assert set(problem) == {"path", "problem"}
    assert json.loads(out.read_text())["splits"]["train"]["images"] == 1
    assert main(["inspect", "sample", "--root", str(tmp_path / "gone")]) == 2
    for place in (tmp_path, tmp_path / "gone" / "found.json"):
        assert main(["inspect", "sample", "--root", str(root), "--json", str(place)]) == 2


# --- real copies ----------------------------------------------------------------------------------
@pytest.mark.skipif(not REAL.exists(), reason="no real images here")
@pytest.mark.parametrize(
    ("dataset", "folder", "counts"),
    [
        # split: images, semantic masks, object masks, boxes
        ("voc2012", "VOCdevkit", {"train": (25, 25), "val": (47, 47), "train_aug": (139, 139)}),
        ("coco", "coco", {"train2017": (80, 80, 705, 705), "val2017": (40, 40, 341, 341)}),
        ("cityscapes", "cityscapes", {"val": (3, 3, 0, 0)}),
        ("bsds500", "bsds500", {"train": (100, 0, 0, 0)}),  # and see below
        ("cityscapes", "cityscapes_small", {"train": (72, 72), "val": (18, 18)}),  # and see below
    ],
)  # fmt: skip
def test_real_copies_hold_what_their_readme_says(tmp_path, dataset, folder, counts):
    found = inspect(dataset, REAL / folder, tmp_path)
    assert found.problems == []
    for split, expected in counts.items():
        assert tuple(found.splits[split].values())[: len(expected)] == expected
    if dataset == "voc2012":
        assert sum(found.categories.values()) == 561
        assert (found.categories["person"], found.categories["dog"]) == (187, 7)
    if dataset == "bsds500":
        assert "train: 539 drawings of 100 images, at least 5 and at most 7 of one" in found.notes
        assert "train: published hierarchies (ucm2) of 10 of 100 images" in found.notes
    if folder == "cityscapes_small":  # 3 of the objects are caravans and trailers
        masks, boxes = (
            sum(counts[key] for counts in found.splits.values())
            for key in ("instance_masks", "boxes")
        )
        assert (masks, boxes) == (1605, 1602)
