"""Exports: what is written can be read again, by our readers and by the tools it is made for."""

import contextlib
import errno
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO as OfficialCoco
from pycocotools.cocoeval import COCOeval
from scipy.io import loadmat

from pipeline.__main__ import main
from pipeline.categories import (
    CITYSCAPES,
    CITYSCAPES_COLOURS,
    CITYSCAPES_IDS,
    CITYSCAPES_LABELS,
    COCO,
    COCO_NAMES,
    IGNORE,
    SAMPLE,
    VOC,
    colour_map,
)
from pipeline.datasets import sbd
from pipeline.datasets.cityscapes import train_id_of_label
from pipeline.datasets.coco import open_tree as open_coco
from pipeline.datasets.coco_results import read_results, read_truth
from pipeline.datasets.label_maps import read_label_map
from pipeline.datasets.prepared import write_prepared as prepare
from pipeline.datasets.sample_cityscapes import write_cityscapes
from pipeline.datasets.tree import Place, Problems
from pipeline.errors import BadFile, BadInput
from pipeline.exports.cityscapes import export_cityscapes
from pipeline.exports.coco import category_ids, export_coco
from pipeline.exports.indices import export_indices
from pipeline.exports.labels import export_labels
from pipeline.exports.places import new_file, new_folder
from pipeline.exports.sbd import export_sbd
from pipeline.exports.truth import export_truth
from pipeline.exports.voc import export_voc
from pipeline.masks import decode_rle, encode_index_png, encode_rle
from pipeline.scoring.outcome import document
from pipeline.scoring.semantic import score_semantic
from pipeline.tables import write_table

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
MAPS = {
    "2007_000033": np.array([[0, 1, 20], [5, 5, 0]], np.uint8),
    "2007_000042": np.array([[0], [19]], np.uint8),
}
FRAMES = {
    "bonn_000001_000019": np.array([[0, 1, 18], [10, 13, 2]], np.uint8),
    "bonn_000002_000019": np.array([[255, 19, 18]], np.uint8),
    "ulm_000001_000019": np.array([[12]], np.uint8),
}


def write_maps(folder: Path, maps: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, label_map in maps.items():
        (folder / f"{name}.png").write_bytes(encode_index_png(label_map))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def predicted(tmp_path) -> Path:
    return write_maps(tmp_path / "predicted", MAPS)


@pytest.fixture
def frames(tmp_path) -> Path:
    return write_maps(tmp_path / "frames", FRAMES)


def official_labels() -> list:
    return pytest.importorskip("cityscapesscripts.helpers.labels").labels


def to_voc(predicted: Path, out: Path, ids: Path | None = None, split: str = "test") -> str:
    return export_voc(predicted, out, competition="comp6", split=split, ids=ids)


# --- places ---------------------------------------------------------------------------------------
def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="half way"), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise ValueError("half way")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert contents(tmp_path) == {"out/a": b"1"}


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="half way"), new_file(tmp_path / "out") as file:
        file.write_text("1")
        raise ValueError("half way")
    assert list(tmp_path.iterdir()) == []
    with new_file(tmp_path / "out") as file:
        file.write_text("1")
    assert contents(tmp_path) == {"out": b"1"}


def test_what_a_killed_export_left_is_not_in_the_next_one(tmp_path):
    left = tmp_path / ".out.partial"
    left.mkdir()
    (left / "old").write_text("1")
    with new_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("2")
    assert contents(tmp_path) == {"out/new": b"2"}


@pytest.mark.parametrize("new", [new_folder, new_file])
def test_nothing_that_is_there_is_overwritten(tmp_path, new):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    before = contents(tmp_path)
    for name in ("file", "full"):
        with pytest.raises(BadInput, match=f"{name}: is there already"), new(tmp_path / name):
            pass
    with (
        pytest.raises(BadInput, match="out: cannot be made there"),
        new(tmp_path / "nowhere" / "out"),
    ):
        pass
    assert contents(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert contents(tmp_path) == {"out/a": b"1"}
    (tmp_path / "empty").mkdir()
    with (
        pytest.raises(BadInput, match="a folder; name a file"),
        new_file(tmp_path / "empty"),
    ):
        pass


# --- VOC ------------------------------------------------------------------------------------------
def test_voc_maps_are_where_the_server_looks_for_them(predicted, tmp_path):
    told = to_voc(predicted, tmp_path / "out")
    folder = tmp_path / "out/results/VOC2012/Segmentation/comp6_test_cls"
    for name, label_map in MAPS.items():
        assert np.array_equal(read_label_map(folder / f"{name}.png"), label_map)
        with Image.open(folder / f"{name}.png") as image:
            assert image.mode == "P"
            assert np.array_equal(image.convert("RGB"), colour_map()[label_map])
    assert "2 label maps" in told
    assert "1456 images" in told


def test_the_voc_archive_holds_the_same_files_and_always_the_same_bytes(predicted, tmp_path):
    to_voc(predicted, tmp_path / "out")
    to_voc(predicted, tmp_path / "again")
    archive = tmp_path / "out" / "results_VOC2012_comp6_test.tgz"
    assert archive.read_bytes() == (tmp_path / "again" / archive.name).read_bytes()
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    files = contents(tmp_path / "out")
    assert files.pop(archive.name)
    assert contents(tmp_path / "unpacked") == files
    assert len(files) == 2


def test_competition_and_split_are_in_the_names(predicted, tmp_path):
    export_voc(predicted, tmp_path / "out", competition="comp5", split="val", ids=None)
    names = {Path(name).parts[-2] for name in contents(tmp_path / "out") if "results/" in name}
    assert names == {"comp5_val_cls"}
    assert (tmp_path / "out" / "results_VOC2012_comp5_val.tgz").is_file()
    with pytest.raises(BadInput, match="no competition 'comp7'"):
        export_voc(predicted, tmp_path / "more", competition="comp7", split="val", ids=None)
    with pytest.raises(BadInput, match="'../val' is no name of a split"):
        to_voc(predicted, tmp_path / "more", split="../val")


def test_a_list_says_which_images_are_exported(predicted, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("2007_000042\n")
    to_voc(predicted, tmp_path / "out", ids)
    assert sorted(p.name for p in (tmp_path / "out").rglob("*.png")) == ["2007_000042.png"]
    ids.write_text("2007_000042\n2007_000061\n2007_000033\n")
    with pytest.raises(BadFile, match="1 of 3 label maps missing: 2007_000061"):
        to_voc(predicted, tmp_path / "more", ids)
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    "value, said", [(21, "value 21, "), (IGNORE, "value 255 .a pixel without")]
)
def test_values_that_are_no_category_of_voc_are_refused(predicted, tmp_path, value, said):
    bad = np.array([[0, value]], np.uint8)
    (predicted / "2007_000039.png").write_bytes(encode_index_png(bad))
    with pytest.raises(BadFile, match=f"2007_000039.png: {said}"):
        to_voc(predicted, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predicted"]


def test_a_folder_without_label_maps_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for export in (to_voc, lambda p, o: export_cityscapes(p, o, ids=None)):
        with pytest.raises(BadFile, match="empty: no label maps in it"):
            export(tmp_path / "empty", tmp_path / "out")
        with pytest.raises(BadFile, match="nowhere"):
            export(tmp_path / "nowhere", tmp_path / "out")


# --- Cityscapes -----------------------------------------------------------------------------------
def test_cityscapes_maps_hold_published_ids_under_published_names(frames, tmp_path):
    theirs = {label.trainId: label.id for label in official_labels() if label.trainId < 19}
    named = pytest.importorskip("cityscapesscripts.helpers.csHelpers").getCoreImageFileName
    told = export_cityscapes(frames, tmp_path / "out", ids=None)
    files = sorted((tmp_path / "out").rglob("*.png"))
    assert [path.parent.name for path in files] == ["bonn", "bonn", "ulm"]
    for path, (image_id, train_ids) in zip(files, sorted(FRAMES.items()), strict=True):
        assert path.name == f"{image_id}_gtFine_labelIds.png"
        assert named(str(path)) == image_id
        with Image.open(path) as image:
            assert image.mode == "L"
            label_ids = np.array(image)
        expected = [[theirs.get(value, 0) for value in row] for row in train_ids.tolist()]
        assert label_ids.tolist() == expected
        back = np.where(train_ids < 19, train_ids, IGNORE)
        assert np.array_equal(train_id_of_label()[label_ids], back)
    assert "2 pixels hold no train id" in told


def test_the_cityscapes_archive_holds_the_same_files_and_always_the_same_bytes(frames, tmp_path):
    for name in ("out", "again"):
        export_cityscapes(frames, tmp_path / name, ids=None)
    archive = tmp_path / "out" / "results_cityscapes.zip"
    assert archive.read_bytes() == (tmp_path / "again" / archive.name).read_bytes()
    files = contents(tmp_path / "out")
    assert files.pop(archive.name)
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        assert {name: opened.read(name) for name in opened.namelist()} == files


def test_exported_truth_of_cityscapes_scores_1(tmp_path):
    write_cityscapes(tmp_path / "published", train=0, val=3)
    truth = tmp_path / "published" / "gtFine" / "val"
    maps = {
        path.name.removesuffix("_gtFine_labelIds.png"): train_id_of_label()[read_label_map(path)]
        for path in truth.rglob("*labelIds.png")
    }
    assert len(maps) == 3
    predicted = write_maps(tmp_path / "predicted", maps)
    export_cityscapes(predicted, tmp_path / "out", ids=None)
    outcome = score_semantic(
        truth,
        tmp_path / "out",
        categories="cityscapes",
        ids=None,
        allow_missing=False,
        train_ids=False,
        instances=None,
    )
    found = document(outcome)
    assert found["mean_iou"] == found["pixel_accuracy"] == 1
    assert found["num_images"] == 3


def test_names_that_are_none_of_cityscapes_are_refused(frames, tmp_path):
    (frames / "bonn_000001_000019.png").rename(frames / "bonn_1_gtFine_labelIds.png")
    with pytest.raises(BadFile, match="its name is not <city>_<seq>_<frame>.png"):
        export_cityscapes(frames, tmp_path / "out", ids=None)
    ids = tmp_path / "ids.txt"
    ids.write_text("ulm_000001_000019\n")
    export_cityscapes(frames, tmp_path / "out", ids=ids)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 1


# --- colours --------------------------------------------------------------------------------------
def test_colours_of_cityscapes_are_those_of_the_official_tool():
    theirs = {label.id: (label.name, label.color) for label in official_labels() if label.id >= 0}
    ours = zip(CITYSCAPES_LABELS, CITYSCAPES_COLOURS, strict=True)
    assert dict(enumerate(ours)) == theirs


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_voc_become_its_indices(tmp_path, mode):
    label_map = np.array([[*range(21), IGNORE]], np.uint8)
    image = Image.fromarray(label_map)
    image.putpalette(colour_map().tobytes())
    (tmp_path / "in").mkdir()
    image.convert(mode).save(tmp_path / "in" / "a.png")
    export_indices(tmp_path / "in", tmp_path / "out", colours="voc")
    assert np.array_equal(read_label_map(tmp_path / "out" / "a.png"), label_map)


def test_colours_of_cityscapes_become_train_ids(tmp_path):
    colours = np.array([CITYSCAPES_COLOURS], np.uint8)  # a row: label 0, 1, ...
    folder = tmp_path / "in" / "bonn"
    folder.mkdir(parents=True)
    Image.fromarray(colours).save(folder / "bonn_000001_000019_gtFine_color.png")
    export_indices(tmp_path / "in", tmp_path / "out", colours="cityscapes")
    found = read_label_map(tmp_path / "out" / "bonn_000001_000019.png")
    expected = train_id_of_label()[np.arange(34)]
    expected[CITYSCAPES_LABELS.index("polegroup")] = CITYSCAPES.index("pole")  # of one colour
    assert found[0].tolist() == expected.tolist()
    export_cityscapes(tmp_path / "out", tmp_path / "official", ids=None)
    written = tmp_path / "official" / "bonn" / "bonn_000001_000019_gtFine_labelIds.png"
    assert set(CITYSCAPES_IDS) | {0} == set(np.unique(read_label_map(written)).tolist())


def test_a_colour_of_no_category_is_named_with_its_pixel(tmp_path):
    pixels = np.zeros((3, 4, 3), np.uint8)
    pixels[1, 2] = (127, 0, 0)  # aeroplane is (128, 0, 0)
    pixels[2, 0] = (1, 1, 1)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    with pytest.raises(BadFile, match=r"a.png: the pixel in row 1, column 2 is \(127, 0, 0\)"):
        export_indices(tmp_path / "in", tmp_path / "out", colours="voc")
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match="no colours 'ade20k'"):
        export_indices(tmp_path / "in", tmp_path / "out", colours="ade20k")


@pytest.mark.parametrize(
    "shape, said",
    [((2, 2), "mode L: no colours"), ((2, 2, 4), "row 0, column 0 is transparent")],
)
def test_masks_without_plain_colours_are_refused(tmp_path, shape, said):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "in" / "a.png")
    with pytest.raises(BadFile, match=said):
        export_indices(tmp_path / "in", tmp_path / "out", colours="voc")


def test_coloured_masks_are_found_through_links_and_an_unreadable_folder_is_refused(tmp_path):
    pixels = colour_map()[np.array([[0, 5]])].astype(np.uint8)
    for name, folder in (("a", "coloured/here"), ("b", "elsewhere")):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "coloured" / "there").symlink_to(tmp_path / "elsewhere")
    told = export_indices(tmp_path / "coloured", tmp_path / "out", colours="voc")
    assert told.startswith("2 index PNGs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", refuse_listing)
        with pytest.raises(BadFile, match="not a readable folder"):
            export_indices(tmp_path / "coloured", tmp_path / "none", colours="voc")


def refuse_listing(folder):
    raise PermissionError(errno.EACCES, "Permission denied", str(folder))


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_a_damaged_mask_is_not_exported(tmp_path, mode):
    """Stored without packing, so that all but the check sums still fits."""
    (tmp_path / "maps").mkdir()
    path = tmp_path / "maps" / "a.png"
    Image.new(mode, (4, 4)).save(path, compress_level=0)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 4 + 7 + 3] ^= 1  # after the head of the stream and a filter
    path.write_bytes(data)
    with pytest.raises(BadFile, match="a.png: not a readable PNG"):
        if mode == "RGB":
            export_indices(tmp_path / "maps", tmp_path / "out", colours="voc")
        else:
            to_voc(tmp_path / "maps", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_not_there_is_not_called_label_maps(tmp_path):
    with pytest.raises(BadInput) as refused:
        export_sbd(tmp_path / "no.parquet", tmp_path / "out", truth=tmp_path / "no.json")
    assert "not there" in str(refused.value)


def test_two_coloured_masks_of_an_image_are_refused(tmp_path):
    for city in ("a", "b"):
        (tmp_path / "in" / city).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "in" / city / "x.png")
    with pytest.raises(BadFile, match="a/x.png is of the same image"):
        export_indices(tmp_path / "in", tmp_path / "out", colours="voc")
    (tmp_path / "none").mkdir()
    with pytest.raises(BadFile, match="no PNG in it"):
        export_indices(tmp_path / "none", tmp_path / "out", colours="voc")


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data here")
def test_published_predictions_survive_colours_and_the_way_to_the_server(tmp_path):
    source = REAL / "published_outputs" / "deeplab_iclr2015" / "res_crf"
    (tmp_path / "coloured").mkdir()
    for path in sorted(source.glob("*.png"))[:4]:
        with Image.open(path) as image:
            image.convert("RGB").save(tmp_path / "coloured" / path.name)
    export_indices(tmp_path / "coloured", tmp_path / "indices", colours="voc")
    to_voc(tmp_path / "indices", tmp_path / "out", split="val")
    written = sorted((tmp_path / "out").rglob("*.png"))
    assert len(written) == 4
    for path in written:
        assert np.array_equal(read_label_map(path), read_label_map(source / path.name))


# --- truth ----------------------------------------------------------------------------------------
IMAGES = {"b": (4, 5), "a": (3, 2), "c": (2, 2)}  # H, W; "c" has no objects
MASKS = {  # image, category, x0, y0, x1, y1 of a filled box; the third a crowd
    0: ("b", 1, (0, 0, 2, 3)),
    1: ("b", 3, (1, 1, 5, 2)),
    2: ("a", 1, (0, 0, 1, 1)),
}


def filled(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def a_dataset(root: Path, categories: tuple[str, ...], rename=str, **changes) -> Path:
    """Three images of the split val with three objects; `changes` to the row of an object."""
    folder = root / "data" / "prepared" / "mine"
    images, objects = [], []
    for name, (height, width) in IMAGES.items():
        row = {
            "image_id": rename(name),
            "split": "val",
            "source": "mine",
            "path": f"mine/{name}_x.JPG",
        }
        row |= {"height": height, "width": width, "has_masks": True, "has_boxes": True}
        images.append(row | changes.pop(f"image_{name}", {}))
    for number, (name, category, box) in MASKS.items():
        corners = dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
        row = {"image_id": rename(name), "instance": number, "category": category} | corners
        row |= {"difficult": False, "crowd": number == 2}
        row |= {"mask_rle": encode_rle(filled(IMAGES[name], box))}
        objects.append(row | changes.pop(f"object_{number}", {}))
    assert not changes
    write_table(folder / "images.parquet", "images", images)
    write_table(folder / "instances.parquet", "instances", objects)
    (folder / "categories.json").write_text(json.dumps(categories))
    return root


def load_officially(path: Path) -> OfficialCoco:
    with contextlib.redirect_stdout(io.StringIO()):
        return OfficialCoco(str(path))


def test_truth_is_what_pycocotools_reads(tmp_path):
    root = a_dataset(tmp_path, SAMPLE)
    told = export_truth(root, "mine", "val", tmp_path / "truth.json")
    assert told.startswith("3 objects, 1 of them crowds, of 3 images in ")
    found = load_officially(tmp_path / "truth.json")
    assert {n: image["file_name"] for n, image in found.imgs.items()} == {
        1: "b.JPG", 2: "a.JPG", 3: "c.JPG",
    }  # fmt: skip
    assert {n: c["name"] for n, c in found.cats.items()} == dict(enumerate(SAMPLE[1:], start=1))
    assert found.dataset["info"] == {"description": "mine, val"}
    assert sorted(found.anns) == [1, 2, 3]  # from 1: pycocotools takes 0 for none
    for annotation, (name, category, box) in zip(found.anns.values(), MASKS.values(), strict=True):
        x0, y0, x1, y1 = box
        assert found.imgs[annotation["image_id"]]["file_name"] == f"{name}.JPG"
        assert annotation["category_id"] == category
        assert annotation["area"] == (x1 - x0) * (y1 - y0)
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert np.array_equal(found.annToMask(annotation), filled(IMAGES[name], box))
    assert [annotation["iscrowd"] for annotation in found.anns.values()] == [0, 0, 1]


def test_truth_of_coco_has_its_published_ids(tmp_path):
    names = {"b": "000000000139", "a": "000000000009", "c": "000000581781"}
    root = a_dataset(tmp_path, COCO, names.get, object_1={"category": 12})
    export_truth(root, "mine", "val", tmp_path / "truth.json")
    found = load_officially(tmp_path / "truth.json")
    assert sorted(found.imgs) == [9, 139, 581781]
    assert {number: entry["name"] for number, entry in found.cats.items()} == COCO_NAMES
    assert [a["category_id"] for a in found.anns.values()] == [1, 13, 1]  # there is no 12


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data here")
def test_truth_of_real_coco_is_what_was_published(tmp_path):
    published = REAL / "coco" / "annotations" / "instances_val2017.json"
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / published.name).symlink_to(published)
    (tmp_path / "coco" / "val2017").symlink_to(REAL / "coco" / "val2017")
    place, strict = Place("coco2017", tmp_path / "coco"), Problems(collect=False)
    tree = open_coco(place, strict, years=(2017,), categories="coco", others="background")
    prepare(tmp_path / "work", tree)
    (tmp_path / "data" / "prepared").mkdir(parents=True)
    (tmp_path / "work" / "prepared").rename(tmp_path / "data" / "prepared" / "coco")
    export_truth(tmp_path, "coco", "val2017", tmp_path / "truth.json")
    ours, theirs = load_officially(tmp_path / "truth.json"), load_officially(published)
    assert {n: c["name"] for n, c in ours.cats.items()} == COCO_NAMES
    assert ours.imgs.keys() == theirs.imgs.keys()
    for number, image in theirs.imgs.items():
        assert ours.imgs[number].items() <= image.items()
        pairs = zip(ours.imgToAnns[number], theirs.imgToAnns[number], strict=True)
        for mine, their in pairs:
            assert mine["category_id"] == their["category_id"]
            assert mine["iscrowd"] == their["iscrowd"]
            assert np.array_equal(ours.annToMask(mine), theirs.annToMask(their))


def test_truth_of_cityscapes_lists_the_labels_that_have_objects(tmp_path):
    objects = {f"object_{n}": {"category": CITYSCAPES.index("car")} for n in MASKS}
    root = a_dataset(tmp_path, CITYSCAPES, **objects)
    export_truth(root, "mine", "val", tmp_path / "truth.json")
    names = {n: entry["name"] for n, entry in load_officially(tmp_path / "truth.json").cats.items()}
    assert names == {n: CITYSCAPES[n] for n in range(11, 19)}


def test_truth_without_background_lists_every_category(tmp_path):
    names = ("wall", "door", "window", "lamp")
    root = a_dataset(tmp_path, names, object_1={"category": 0})
    export_truth(root, "mine", "val", tmp_path / "truth.json")
    found = load_officially(tmp_path / "truth.json")
    assert {n: entry["name"] for n, entry in found.cats.items()} == dict(enumerate(names))
    assert [a["category_id"] for a in found.anns.values()] == [1, 0, 1]


def test_objects_without_mask_are_left_out_and_told(tmp_path):
    root = a_dataset(tmp_path / "boxes", SAMPLE, object_1={"mask_rle": None})
    told = export_truth(root, "mine", "val", tmp_path / "truth.json")
    assert (
        told.startswith("2 objects, 1 of them crowds, of 3 images")
        and "1 more have only a box" in told
    )
    truth = read_truth(tmp_path / "truth.json")
    assert sum(len(image.objects) for image in truth.images.values()) == 2


def test_truth_needs_known_objects(tmp_path):
    root = a_dataset(tmp_path / "unknown", SAMPLE, image_c={"has_boxes": False})
    with pytest.raises(BadInput, match="1 of 3 images are not annotated: c"):
        export_truth(root, "mine", "val", tmp_path / "truth.json")
    with pytest.raises(BadInput, match="no split 'test'"):
        export_truth(root, "mine", "test", tmp_path / "truth.json")
    with pytest.raises(BadInput, match="not there"):
        export_truth(root, "yours", "val", tmp_path / "truth.json")
    assert not (tmp_path / "truth.json").exists()


def test_label_maps_of_a_prepared_dataset_become_a_folder_to_score_against(tmp_path):
    root = a_dataset(tmp_path / "project", SAMPLE)
    maps = {name: np.full(size, 3, np.uint8) for name, size in IMAGES.items()}
    rows = [{"image_id": name, "png": encode_index_png(m)} for name, m in maps.items()]
    folder = root / "data" / "prepared" / "mine"
    write_table(folder / "semantic" / "part-000.parquet", "semantic", rows)
    assert "3 label maps" in export_labels(root, "mine", "val", tmp_path / "maps")
    for name, label_map in maps.items():
        assert np.array_equal(read_label_map(tmp_path / "maps" / f"{name}.png"), label_map)
    root = a_dataset(tmp_path / "unmasked", SAMPLE, image_c={"has_masks": False})
    with pytest.raises(BadInput, match="1 of 3 images have no label map: c"):
        export_labels(root, "mine", "val", tmp_path / "none")
    assert not (tmp_path / "none").exists()


# --- SBD ------------------------------------------------------------------------------------------
def test_label_maps_become_the_files_of_sbd(predicted, tmp_path):
    export_sbd(predicted, tmp_path / "out", truth=None)
    for name, label_map in MAPS.items():
        path = tmp_path / "out" / "cls" / f"{name}.mat"
        assert np.array_equal(sbd.read_label_map(path), label_map)
        struct = loadmat(path, struct_as_record=False)["GTcls"][0, 0]
        assert struct.Segmentation.dtype == np.uint8
        assert np.array_equal(struct.Segmentation, label_map)
        present = [[value] for value in sorted(set(label_map.ravel().tolist()) - {0})]
        assert struct.CategoriesPresent.tolist() == present
    (predicted / "z.png").write_bytes(encode_index_png(np.array([[255]], np.uint8)))
    with pytest.raises(BadFile, match="z.png: value 255"):
        export_sbd(predicted, tmp_path / "more", truth=None)


# --- predicted instances --------------------------------------------------------------------------
def write_predictions(path: Path, *rows: tuple, **changes) -> Path:
    """A table of predictions: (image, category, score, filled box); `changes` to the first row."""
    table = []
    for name, category, score, box in rows:
        corners = dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
        mask_rle = encode_rle(filled(IMAGES[name], box))
        row = {"image_id": name, "category": category, "score": score, "mask_rle": mask_rle}
        table.append(row | corners | ({} if table else changes))
    write_table(path, "predicted_instances", table)
    return path


@pytest.fixture
def truth(tmp_path) -> Path:
    """COCO instances JSON of MASKS, with the categories of VOC."""
    path = tmp_path / "truth.json"
    export_truth(a_dataset(tmp_path / "project", VOC), "mine", "val", path)
    return path


def perfect(path: Path) -> Path:
    rows = [(name, category, 1 / (n + 2), box) for n, (name, category, box) in MASKS.items()]
    return write_predictions(path, *rows)


def test_instances_become_results_that_pycocotools_scores(truth, tmp_path):
    told = export_coco(
        perfect(tmp_path / "p.parquet"), truth, tmp_path / "results.json", categories="voc"
    )
    assert told.startswith("3 objects in ")
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["image_id"] for entry in results] == [1, 1, 2]
    assert [entry["category_id"] for entry in results] == [1, 3, 1]
    assert [entry["score"] for entry in results] == [1 / 2, 1 / 3, 1 / 4]
    assert {key for entry in results for key in entry} == {
        "image_id", "category_id", "segmentation", "score",
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        official = load_officially(truth)
        scoring = COCOeval(official, official.loadRes(str(tmp_path / "results.json")), "segm")
        scoring.evaluate()
        scoring.accumulate()
    precision = scoring.eval["precision"][:, :, :, 0, 2]  # all areas, 100 detections
    scored = precision[precision > -1]
    assert scored.size and np.allclose(scored, 1)


def test_results_are_what_our_reader_reads(truth, tmp_path):
    export_coco(perfect(tmp_path / "p.parquet"), truth, tmp_path / "r.json", categories="voc")
    found = read_results(tmp_path / "r.json", read_truth(truth))
    assert [(d.image, d.category, d.score) for d in found] == [
        (1, 1, 1 / 2), (1, 3, 1 / 3), (2, 1, 1 / 4),
    ]  # fmt: skip
    for detection, (name, _, box) in zip(found, MASKS.values(), strict=True):
        assert np.array_equal(coco.decode(detection.rle), filled(IMAGES[name], box))


def test_categories_are_found_by_name_and_vocs_by_coco_s_names(truth, tmp_path):
    names = {"b": "000000000139", "a": "000000000009", "c": "000000581781"}
    root = a_dataset(tmp_path / "coco", COCO, names.get)
    export_truth(root, "mine", "val", tmp_path / "coco.json")
    of_coco = read_truth(tmp_path / "coco.json")
    assert category_ids(of_coco, COCO) == dict(enumerate(COCO_NAMES, start=1))
    found = category_ids(of_coco, VOC)
    assert len(found) == 20
    named = {VOC[number]: COCO_NAMES[published] for number, published in found.items()}
    assert named["aeroplane"] == "airplane"
    assert named["sofa"] == "couch"
    assert named["person"] == "person"
    assert category_ids(read_truth(truth), ("person", "x", "boat")) == {0: 15, 2: 4}
    with pytest.raises(BadFile, match="none of those of the predictions"):
        category_ids(of_coco, SAMPLE[1:3])


WRONG = [
    ({"image_id": "d"}, "images that are not in the truth: d"),
    ({"category": 21}, "row 0: category 21 is none of 1, 2, 3, 4, 5, 6, 7, 8 and 12 more"),
    ({"category": 0}, "row 0: category 0 is none of 1, 2, 3, 4, 5, 6, 7, 8 and 12 more"),
    ({"score": float("nan")}, "row 0: the score nan is no number"),
    ({"score": float("inf")}, "row 0: the score inf is no number"),
    ({"mask_rle": None}, "row 0: an object of b without a mask"),
    ({"mask_rle": "0"}, "row 0: the run-lengths of an object of b: they are not those of 5x4"),
    ({"mask_rle": ""}, "row 0: the run-lengths of an object of b: its compressed"),
    ({"mask_rle": "\u00e9"}, "row 0: the run-lengths of an object of b"),
]


@pytest.mark.parametrize("change, said", WRONG)
def test_predictions_that_are_none_of_the_truth_are_refused(truth, tmp_path, change, said):
    rows = [("b", 1, 0.5, (0, 0, 2, 3)), ("a", 1, 0.5, (0, 0, 1, 1))]
    path = write_predictions(tmp_path / "p.parquet", *rows, **change)
    with pytest.raises(BadFile, match=f"p.parquet: {said}"):
        export_coco(path, truth, tmp_path / "out", categories="voc")
    with pytest.raises(BadFile, match=f"p.parquet: {said}"):
        export_sbd(path, tmp_path / "out", truth=truth)
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_files_that_are_no_predictions_are_refused(truth, tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no more")
    write_table(tmp_path / "history.parquet", "history", [])
    wrong = {"p": "not a readable parquet", "history": "its columns are step", "q": "not there"}
    for name, said in wrong.items():
        with pytest.raises(BadFile, match=f"{name}.parquet: {said}"):
            export_coco(tmp_path / f"{name}.parquet", truth, tmp_path / "out", categories="voc")


def test_no_predictions_are_an_empty_list(truth, tmp_path):
    path = write_predictions(tmp_path / "p.parquet")
    export_coco(path, truth, tmp_path / "results.json", categories="voc")
    assert json.loads((tmp_path / "results.json").read_text()) == []
    export_sbd(path, tmp_path / "out", truth=truth)
    assert sbd.read_object_masks(tmp_path / "out" / "inst" / "c.mat", (2, 2), 21, None) == []


def test_instances_become_the_files_of_sbd_with_the_best_on_top(truth, tmp_path):
    rows = [
        ("b", 7, 0.2, (0, 0, 5, 4)),  # the whole image, below all others
        ("b", 1, 0.9, (0, 0, 2, 3)),
        ("b", 2, 0.5, (1, 1, 3, 2)),  # as good as the next, and earlier
        ("b", 3, 0.5, (2, 1, 4, 2)),
        ("b", 4, 0.1, (0, 0, 1, 1)),  # hidden
    ]
    told = export_sbd(
        write_predictions(tmp_path / "p.parquet", *rows), tmp_path / "out", truth=truth
    )
    assert told.startswith("5 objects of 3 images in ")
    struct = loadmat(tmp_path / "out" / "inst" / "b.mat", struct_as_record=False)["GTinst"][0, 0]
    assert struct.Segmentation.tolist() == [
        [1, 1, 4, 4, 4],
        [1, 1, 2, 3, 4],
        [1, 1, 4, 4, 4],
        [4, 4, 4, 4, 4],
    ]
    assert struct.Segmentation.dtype == np.uint8
    assert struct.Categories.tolist() == [[1], [2], [3], [7], [4]]
    assert struct.Scores.tolist() == [[0.9], [0.5], [0.5], [0.2], [0.1]]
    masks = sbd.read_object_masks(tmp_path / "out" / "inst" / "b.mat", (4, 5), 21, None)
    assert [category for category, _ in masks] == [1, 2, 3, 7]
    assert np.array_equal(decode_rle(masks[0][1], 4, 5), filled((4, 5), (0, 0, 2, 3)))
    empty = loadmat(tmp_path / "out" / "inst" / "c.mat", struct_as_record=False)["GTinst"][0, 0]
    assert empty.Segmentation.tolist() == [[0, 0], [0, 0]]
    assert empty.Categories.size == empty.Scores.size == 0
    with pytest.raises(BadInput, match="name COCO instances with --truth"):
        export_sbd(tmp_path / "p.parquet", tmp_path / "more", truth=None)
    with pytest.raises(BadInput, match="leave out --truth"):
        export_sbd(tmp_path, tmp_path / "more", truth=truth)


def test_images_of_one_file_name_do_not_become_files_of_sbd(truth, tmp_path):
    contents = json.loads(truth.read_text())
    for folder, image in zip(("x", "../y", "z"), contents["images"], strict=True):
        image["file_name"] = f"{folder}/a.jpg"
    truth.write_text(json.dumps(contents))
    table = write_predictions(tmp_path / "p.parquet", ("b", 1, 0.5, (0, 0, 1, 1)))
    with pytest.raises(
        BadInput, match=r"truth.json: names of images with a folder .*x/a, \.\./y/a"
    ):
        export_sbd(table, tmp_path / "out", truth=truth)
    assert not (tmp_path / "out").exists()


def test_a_file_of_sbd_numbers_255_objects_and_no_more(truth, tmp_path):
    rows = [("c", 1 + n % 20, n / 300, (0, 0, 2, 2)) for n in range(300)]
    told = export_sbd(
        write_predictions(tmp_path / "p.parquet", *rows), tmp_path / "out", truth=truth
    )
    assert "45 more were left out" in told
    struct = loadmat(tmp_path / "out" / "inst" / "c.mat", struct_as_record=False)["GTinst"][0, 0]
    assert struct.Scores.ravel().tolist() == [n / 300 for n in range(299, 44, -1)]


# --- the command line -----------------------------------------------------------------------------
def test_the_command_line_exports_and_says_where(predicted, tmp_path, capsys):
    where = ["--predicted", str(predicted), "--out", str(tmp_path / "out")]
    assert main(["export", "voc", "--split", "val", *where]) == 0
    assert "2 label maps in " in capsys.readouterr().out
    before = contents(tmp_path)
    assert main(["export", "voc", *where]) == 2
    assert "is there already" in capsys.readouterr().err
    assert contents(tmp_path) == before
