"""The stages `fetch` and `prepare`, and the prepared data as others read it."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.boxes import iou, tight_box
from pipeline.categories import SAMPLE, VOC
from pipeline.datasets import places
from pipeline.datasets.archives import ARCHIVES
from pipeline.datasets.form import AnnotatedObject, Sample
from pipeline.datasets.prepared import Prepared, write_prepared
from pipeline.datasets.sample import draw, image_id
from pipeline.datasets.tree import ImageFiles, Problems, Tree
from pipeline.errors import BadInput, PlaceByHand
from pipeline.masks import decode_rle
from pipeline.params import SECTIONS
from pipeline.params_file import load_params
from pipeline.stages import fetch as fetch_module
from pipeline.stages.fetch import fetch
from pipeline.stages.prepare import prepare

DEVKIT = Path(__file__).resolve().parents[1].parent / "shared" / "real" / "VOCdevkit"
COUNTS = {"train": 3, "extra": 2, "val": 3}


@pytest.fixture(autouse=True)
def no_told_places(monkeypatch):
    for dataset in ("SAMPLE", "SBD", "VOC2012"):
        monkeypatch.delenv(f"PIPELINE_DATA_{dataset}", raising=False)


def project(folder: Path, datasets: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    others = "".join(f"{name}: {{}}\n" for name in SECTIONS if name != "datasets")
    (folder / "params.yaml").write_text(f"datasets: {datasets}\n{others}")
    return folder


def run(stage, root: Path, dataset: str) -> None:
    stage(root, load_params(root / "params.yaml"), dataset)


def a_sample_project(folder: Path) -> Path:
    return project(folder, "{sample: {kind: sample, train: 3, extra: 2, more: 0, val: 3}}")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = a_sample_project(tmp_path_factory.mktemp("project"))
    run(fetch, root, "sample")
    run(prepare, root, "sample")
    return root


@pytest.fixture
def fetched(tmp_path) -> Path:
    root = a_sample_project(tmp_path)
    run(fetch, root, "sample")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_prepared_data_is_what_was_drawn(root):
    prepared = Prepared(root, "sample")
    assert prepared.categories == SAMPLE
    for split, count in COUNTS.items():
        for index in range(count):
            name, drawn = image_id(split, index), draw(split, index)
            assert prepared.image(name).shape == drawn.image.shape
            if split != "extra":
                np.testing.assert_array_equal(prepared.label_map(name), drawn.label_map)
            objects = prepared.objects(name)
            assert objects["instance"].tolist() == list(range(len(drawn.categories)))
            assert objects["category"].tolist() == drawn.categories.tolist()
            assert objects[["x0", "y0", "x1", "y1"]].to_numpy().tolist() == drawn.boxes.tolist()
            numbers = drawn.visible if split == "extra" else drawn.object_map
            for number, rle in enumerate(objects["mask_rle"], start=1):
                mask = numbers == number
                if rle is None:  # the void border left too little of a sliver
                    boxes = np.array([tight_box(mask)]), drawn.boxes[[number - 1]]
                    assert iou(*boxes)[0, 0] < 0.5
                else:
                    np.testing.assert_array_equal(decode_rle(rle, 128, 160), mask)


def test_splits_come_in_the_order_of_their_lists(root):
    prepared = Prepared(root, "sample")
    train = [image_id("train", i) for i in range(3)]
    extra = [image_id("extra", i) for i in range(2)]
    assert prepared.ids("train") == train
    assert prepared.ids("train_aug") == train + extra
    assert prepared.ids("trainval") == train + prepared.ids("val")
    with pytest.raises(BadInput, match="'test'; choose one of: train, val, trainval, train_aug"):
        prepared.ids("test")


def test_rows_tell_whose_masks_and_where_the_image_is(root):
    images = Prepared(root, "sample").images
    rows = images[images["split"] == "train_aug"]
    assert rows["source"].tolist() == ["voc"] * 3 + ["sbd"] * 2
    assert rows["path"].iloc[0] == f"sample/VOC2012/JPEGImages/{image_id('train', 0)}.jpg"
    assert rows[["height", "width"]].drop_duplicates().to_numpy().tolist() == [[128, 160]]
    assert rows["has_masks"].all() and rows["has_boxes"].all()


def test_unknown_and_missing_images_are_named(root, monkeypatch, tmp_path):
    prepared = Prepared(root, "sample")
    for ask in (prepared.image, prepared.label_map):
        with pytest.raises(BadInput, match="'2007_000032'"):
            ask("2007_000032")
    assert prepared.objects("2007_000032").empty
    monkeypatch.setenv("PIPELINE_DATA_SAMPLE", str(tmp_path))
    with pytest.raises(
        BadInput, match="not there. Name the copy .* run `dvc repro -f fetch@sample`"
    ):
        Prepared(root, "sample").image(image_id("val", 0))
    with pytest.raises(BadInput, match="`dvc repro` makes it"):
        Prepared(tmp_path, "sample")


def test_another_place_and_time_give_the_same_bytes(root, tmp_path):
    again = a_sample_project(tmp_path / "elsewhere")
    run(fetch, again, "sample")
    run(prepare, again, "sample")
    for part in ("data/raw", "data/prepared"):
        assert contents(root / part) == contents(again / part)
    assert str(tmp_path) not in (again / "data/raw/sample.manifest.json").read_text()


def test_the_manifest_lists_files_with_size_and_digest(root):
    manifest = json.loads((root / "data/raw/sample.manifest.json").read_text())
    assert manifest["dataset"] == "sample"
    assert list(manifest["files"]) == sorted(manifest["files"])
    # per image: JPEG, XML, two masks; 3 + 1 lists of VOC, 2 of SBD
    assert len(manifest["files"]) == 8 * 4 + 6
    for name, entry in manifest["files"].items():
        data = (root / "data/raw" / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_fetching_again_changes_the_counts(fetched):
    project(fetched, "{sample: {kind: sample, train: 1, extra: 0, more: 0, val: 1}}")
    run(fetch, fetched, "sample")
    assert len(list((fetched / "data/raw/sample/VOC2012/JPEGImages").iterdir())) == 2
    run(prepare, fetched, "sample")
    assert Prepared(fetched, "sample").ids("train_aug") == [image_id("train", 0)]


def test_an_unknown_dataset_is_named(fetched):
    for stage in (fetch, prepare):
        with pytest.raises(BadInput, match="no dataset 'voc'; choose one of: sample"):
            run(stage, fetched, "voc")


@pytest.mark.parametrize("damage", ["gone", "shorter"])
def test_files_that_changed_since_fetch_are_named(fetched, damage):
    path = fetched / "data/raw/sample/VOC2012/Annotations" / f"{image_id('val', 1)}.xml"
    text = path.read_text()
    path.unlink()
    if damage == "shorter":
        path.write_text(text[:-1])
    said = "incomplete" if damage == "gone" else "dvc repro -f fetch@sample"
    with pytest.raises(BadInput, match=said) as caught:
        run(prepare, fetched, "sample")
    assert str(path) in str(caught.value)
    assert not (fetched / "data/prepared").exists()


def test_annotations_edited_since_fetch_are_named_though_no_size_changed(fetched):
    path = fetched / "data/raw/sample/VOC2012/Annotations" / f"{image_id('val', 1)}.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    with pytest.raises(BadInput, match="changed since .*dvc repro -f fetch@sample") as caught:
        run(prepare, fetched, "sample")
    assert str(path) in str(caught.value)


def test_files_that_fetch_did_not_see_are_named(fetched):
    manifest = fetched / "data/raw/sample.manifest.json"
    content = json.loads(manifest.read_text())
    name = f"sample/VOC2012/Annotations/{image_id('val', 1)}.xml"
    del content["files"][name]
    manifest.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=f"{name}: new since .*dvc repro -f fetch@sample"):
        run(prepare, fetched, "sample")


def test_a_damaged_image_of_the_right_size_is_found(fetched):
    path = fetched / "data/raw/sample/VOC2012/JPEGImages" / f"{image_id('extra', 1)}.jpg"
    data = path.read_bytes()
    path.write_bytes(data[:3000] + bytes(len(data) - 3000))
    with pytest.raises(BadInput, match="damaged or cut off") as caught:
        run(prepare, fetched, "sample")
    assert str(path) in str(caught.value)


def test_prepare_before_fetch_says_what_is_missing(tmp_path):
    with pytest.raises(BadInput, match="sample.manifest.json"):
        run(prepare, a_sample_project(tmp_path), "sample")


def test_a_link_is_never_written_through(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    root = a_sample_project(tmp_path / "project")
    (root / "data/raw").mkdir(parents=True)
    (root / "data/raw/sample").symlink_to(mine)
    with pytest.raises(BadInput, match="a link"):
        run(fetch, root, "sample")
    assert (mine / "thesis.txt").read_text() == "years of work"


def dots(ids: list[str]) -> Tree:
    return Tree(
        categories=("background", "dot"),
        splits={"all": ids},
        official={},
        lists={},
        files_of=lambda name: ImageFiles({}),
        record=str,
        read=a_dot,
    )


def test_label_maps_go_on_in_further_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.datasets.prepared.IMAGES_PER_PART", 2)
    ids = ["b", "a", "c", "d", "e"]
    write_prepared(tmp_path / "work", dots(ids))
    folder = tmp_path / "data" / "prepared" / "dots"
    shutil.copytree(tmp_path / "work" / "prepared", folder)
    assert len(list((folder / "semantic").iterdir())) == 3
    prepared = Prepared(tmp_path, "dots")
    assert prepared.ids("all") == ids
    for name in "abcde":
        np.testing.assert_array_equal(prepared.label_map(name), a_dot(name).label_map)
    assert prepared.objects("a")["mask_rle"].tolist() == [None]
    assert prepared.objects("b").empty
    rows = prepared.images.set_index("image_id")
    assert rows["has_boxes"].to_dict() == {"a": True, "b": False, "c": True, "d": True, "e": True}


def test_a_broken_preparation_goes_on_with_the_parts_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.datasets.prepared.IMAGES_PER_PART", 2)
    monkeypatch.setattr("pipeline.datasets.prepared.processors", lambda: 1)
    read: list[str] = []

    def until(last: str, record: str, problems: Problems) -> Sample:
        read.append(record)
        if record == last:
            raise KeyboardInterrupt
        return a_dot(record)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_prepared(whole, dots(list("abcde")))
    with pytest.raises(KeyboardInterrupt):
        write_prepared(broken, replace(dots(list("abcde")), read=partial(until, "d")))
    write_prepared(broken, replace(dots(list("abcde")), read=partial(until, "")))
    assert read == list("abcd") + list("cde")
    assert contents(broken / "prepared") == contents(whole / "prepared")


def test_several_processes_write_the_same_bytes(tmp_path, monkeypatch):
    write_prepared(tmp_path / "one", dots(list("abcde")))
    monkeypatch.setattr("pipeline.datasets.prepared.IMAGES_PER_PART", 3)
    monkeypatch.setattr("pipeline.datasets.prepared.processors", lambda: 1)
    write_prepared(tmp_path / "parts", dots(list("abcde")))
    monkeypatch.setattr("pipeline.datasets.prepared.processors", lambda: 2)
    write_prepared(tmp_path / "processes", dots(list("abcde")))
    assert contents(tmp_path / "parts/prepared") == contents(tmp_path / "processes/prepared")
    tables = [
        pd.read_parquet(tmp_path / name / "prepared/instances.parquet")
        for name in ("one", "processes")
    ]
    pd.testing.assert_frame_equal(*tables)


def a_dot(name: str, problems: Problems | None = None) -> Sample:
    """A 1x5 image with one pixel of category 1; that of b has no boxes."""
    label_map = np.array([[name == other for other in "abcde"]], np.uint8)
    place = "abcde".index(name)
    dot = AnnotatedObject(1, (place, 0, place + 1, 1), False, False, None)
    objects = None if name == "b" else (dot,)
    return Sample(name, f"dots/{name}.png", (1, 5), "voc", label_map, objects)


# --- VOC2012 --------------------------------------------------------------------------------------
def facts(folder: Path) -> dict[str, tuple]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted([folder, *folder.rglob("*")])
    }


@pytest.mark.skipif(not DEVKIT.exists(), reason="no real VOC images here")
def test_a_real_copy_is_used_where_it_lies_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_DATA_VOC2012", str(DEVKIT))
    root = project(tmp_path, "{voc2012: {kind: voc2012}}")
    before = facts(DEVKIT)
    run(fetch, root, "voc2012")
    run(prepare, root, "voc2012")
    assert facts(DEVKIT) == before
    assert not (root / "data/raw/voc2012").exists()
    prepared = Prepared(root, "voc2012")
    assert prepared.categories == VOC
    assert len(prepared.ids("train_aug")) == 139 and len(prepared.ids("val")) == 47
    assert len(prepared.instances) == 561
    images = prepared.images.drop_duplicates("image_id")
    assert (len(images), images["has_boxes"].sum()) == (186, 171)
    assert all(name.startswith("2007_") for name in images[~images["has_boxes"]]["image_id"])
    named = prepared.instances["category"].map(lambda c: VOC[c]).value_counts()
    assert named.loc[["person", "dog"]].tolist() == [187, 7]
    assert (prepared.image_path("2007_000042")).is_relative_to(DEVKIT)
    assert not any(str(DEVKIT) in text for text in pd.Series(images["path"]))


def test_what_is_not_there_is_downloaded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fetch_module, "obtain_all", lambda *given: asked.append(given))
    root = project(tmp_path, "{voc2012: {kind: voc2012}}")
    with pytest.raises(BadInput, match="unpack VOCtrainval_11-May-2012.tar"):
        run(fetch, root, "voc2012")
    raw = root / "data" / "raw"
    assert asked == [(ARCHIVES["voc2012"], raw / "voc2012"), (ARCHIVES["sbd"], raw / "sbd")]


def test_all_that_must_be_placed_by_hand_is_told_at_once(tmp_path, monkeypatch):
    def no_network(archives, folder):
        raise PlaceByHand(f"{archives[0].name} to {folder}")

    monkeypatch.setattr(fetch_module, "obtain_all", no_network)
    root = project(
        tmp_path,
        "{context: {kind: context}, both: {kind: mixture, masks: {kind: voc2012}, "
        "split: train_aug, boxes: [{kind: coco, year: 2014, categories: voc, others: ignore}]}}",
    )
    with pytest.raises(PlaceByHand, match=r"trainval.tar.gz to .*context\nVOCtrainval_03.*voc2010"):
        run(fetch, root, "context")
    with pytest.raises(PlaceByHand) as told:
        run(fetch, root, "both")
    assert [line.rsplit("/", 1)[1] for line in str(told.value).splitlines()] == [
        "voc2012", "sbd", "coco2014",
    ]  # fmt: skip


def test_a_told_copy_without_sbd_downloads_sbd_only(fetched, monkeypatch):
    def no_network(archives, folder):
        raise PlaceByHand(archives[0].name)

    base = fetched / "data/raw/sample"
    os.rename(base / "benchmark_RELEASE", fetched / "elsewhere")
    project(fetched, "{voc2012: {kind: voc2012}}")
    monkeypatch.setenv("PIPELINE_DATA_VOC2012", str(base))
    monkeypatch.setattr(fetch_module, "obtain_all", no_network)
    with pytest.raises(PlaceByHand, match="benchmark.tgz"):
        run(fetch, fetched, "voc2012")
    (fetched / "data/raw/sbd").mkdir()
    os.rename(fetched / "elsewhere", fetched / "data/raw/sbd/benchmark_RELEASE")
    run(fetch, fetched, "voc2012")
    assert (fetched / "data/raw/voc2012.manifest.json").exists()


def test_a_told_place_that_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_DATA_VOC2012", str(tmp_path / "gone"))
    root = project(tmp_path / "project", "{voc2012: {kind: voc2012}}")
    with pytest.raises(BadInput, match="PIPELINE_DATA_VOC2012 says .*gone, which is no folder"):
        run(fetch, root, "voc2012")
    monkeypatch.setenv("PIPELINE_DATA_VOC2012", "")  # as good as not set
    assert places.dataset_root(root, "voc2012") == root / "data" / "raw" / "voc2012"
