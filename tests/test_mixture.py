"""Datasets made of several, SBD's own lists, and that no model is measured on what it was shown."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scratch import PARAMS

from pipeline.categories import SAMPLE, VOC
from pipeline.datasets import lists, sbd, voc
from pipeline.datasets.leaks import identity, refuse_leak, refuse_leaks, trained_for
from pipeline.datasets.mixture import mix
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.sample import draw, image_id, write_sample, write_voc2007
from pipeline.datasets.sample_folder import write_folder
from pipeline.datasets.tree import Place, Problems, Tree
from pipeline.errors import BadInput
from pipeline.masks import decode_rle
from pipeline.params_datasets import (
    CocoDataset,
    FolderDataset,
    MixtureDataset,
    SampleDataset,
    SbdDataset,
    Voc2007Dataset,
    Voc2012Dataset,
)
from pipeline.params_file import load_params
from pipeline.stages.fetch import fetch
from pipeline.stages.prepare import prepare
from pipeline.stages.train import train

LISTS = Path(__file__).resolve().parents[1].parent / "shared" / "real" / "lists"
STRICT = Problems(collect=False)
NAMED = (*SAMPLE, *VOC[len(SAMPLE) :])  # 21 categories, of which the sample's are the first


@pytest.fixture(autouse=True)
def no_told_places(monkeypatch):
    for name in [n for n in os.environ if n.startswith("PIPELINE_DATA_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    write_sample(folder / "voc", train=2, extra=2, val=1)
    write_voc2007(folder / "voc2007", train=1, val=1, test=1)
    return folder


@pytest.fixture
def masks(drawn) -> Tree:
    return voc.open_tree(Place("voc2012", drawn / "voc"), STRICT, sbd_place=None, categories=NAMED)


@pytest.fixture
def boxes(drawn) -> Tree:
    tree = voc.open_tree_2007(Place("voc2007", drawn / "voc2007"), STRICT)
    return replace(tree, categories=NAMED)


# --- mixtures -------------------------------------------------------------------------------------
def test_a_mixture_has_the_splits_of_the_masks_and_all_images_with_boxes(masks, boxes):
    mixed = mix({"voc2012": masks, "voc2007": boxes}, split="train_aug")
    assert mixed.splits["train"] == masks.splits["train"]
    assert mixed.splits["boxes"] == boxes.ids()
    assert mixed.splits["mixed"] == masks.splits["train_aug"] + boxes.ids()
    assert set(mixed.lists) == {*masks.lists, *boxes.lists}
    one = boxes.ids()[0]
    assert mixed.files_of(one) == boxes.files_of(one)


def test_only_boxes_are_taken_of_the_others(masks, drawn):
    other = sbd.open_tree(Place("sbd", drawn / "voc"), STRICT, categories=NAMED)
    renamed = replace(other, splits={"train": [f"x{i}" for i in other.ids()]})
    renamed = replace(renamed, record=lambda i: other.record(i[1:]))
    mixed = mix({"voc2012": masks, "sbd": renamed}, split="train")
    name = renamed.splits["train"][0]
    plain = other.read(other.record(name[1:]), STRICT)
    sample = mixed.read(mixed.record(name), STRICT)
    assert plain.label_map is not None and plain.objects[0].mask_rle is not None
    assert sample.label_map is None
    assert [o.box for o in sample.objects] == [o.box for o in plain.objects]
    assert {o.mask_rle for o in sample.objects} == {None}
    own = masks.splits["train"][0]
    assert mixed.read(mixed.record(own), STRICT).label_map is not None


def test_what_cannot_be_mixed_is_named(masks, boxes):
    with pytest.raises(
        BadInput, match="9 categories, a has 21 others; only datasets with the same ones"
    ):
        mix({"a": masks, "b": replace(boxes, categories=SAMPLE)}, split="train")
    with pytest.raises(BadInput, match="is in a and in b"):
        mix({"a": masks, "b": replace(masks)}, split="train")
    with pytest.raises(BadInput, match="no split 'train_agu'; choose one of: train, val"):
        mix({"a": masks, "b": boxes}, split="train_agu")


def test_a_mixture_is_fetched_and_prepared_from_its_parts(tmp_path, monkeypatch):
    drawn = tmp_path / "copies"
    write_sample(drawn / "voc", train=2, extra=2, val=1)
    write_voc2007(drawn / "voc2007", train=1, val=1, test=1)
    entry = "{kind: mixture, masks: {kind: voc2012}, split: train_aug, boxes: [{kind: voc2007}]}"
    root = project(tmp_path / "project", f"{{both: {entry}}}")
    monkeypatch.setenv("PIPELINE_DATA_VOC2012", str(drawn / "voc"))
    monkeypatch.setenv("PIPELINE_DATA_VOC2007", str(drawn / "voc2007"))
    for xml in (drawn / "voc").rglob("*.xml"):  # its kinds called by VOC's names
        text = xml.read_text()
        for number, name in enumerate(SAMPLE[1:], start=1):
            text = text.replace(f"<name>{name}<", f"<name>{VOC[number]}<")
        xml.write_text(text)
    params = load_params(root / "params.yaml")
    fetch(root, params, "both")
    prepare(root, params, "both")
    data = Prepared(root, "both")
    assert len(data.ids("mixed")) == 4 + 3 and len(data.ids("boxes")) == 3
    rows = data.images.drop_duplicates("image_id").set_index("image_id")
    assert rows.loc[data.ids("boxes"), "path"].str.startswith("voc2007/VOC2007/").all()
    assert not rows.loc[data.ids("boxes"), "has_masks"].any() and rows["has_boxes"].all()
    assert data.image(data.ids("boxes")[0]).shape == (128, 160, 3)


def project(folder: Path, datasets: str) -> Path:
    others = ("forests", "proposals", "weights", "semantic", "boxsup", "instance", "evaluations")
    folder.mkdir(parents=True, exist_ok=True)
    empty = "".join(f"{name}: {{}}\n" for name in others)
    (folder / "params.yaml").write_text(f"datasets: {datasets}\n{empty}")
    return folder


# --- SBD alone ------------------------------------------------------------------------------------
def test_sbd_has_the_boxes_of_its_masks_and_the_lists_for_instances(drawn, monkeypatch):
    train, extra, val = image_id("train", 0), image_id("extra", 0), image_id("val", 0)
    published = {"sbd_instance_train": [extra, "2011_000001"], "sbd_instance_val": [val, train]}
    monkeypatch.setattr(lists, "published", published.get)
    tree = sbd.open_tree(Place("sbd", drawn / "voc"), STRICT)
    assert tree.splits["instance_train"] == [extra]  # what the copy has of the list
    assert tree.splits["instance_val"] == [val, train]
    sample, truth = tree.read(tree.record(extra), STRICT), draw("extra", 0)
    assert [o.category for o in sample.objects] == truth.categories.tolist()
    assert [list(o.box) for o in sample.objects] == truth.boxes.tolist()
    for number, o in enumerate(sample.objects, start=1):
        mask = decode_rle(o.mask_rle, *sample.size)
        np.testing.assert_array_equal(mask, truth.visible == number)
    assert 255 not in sample.label_map


# --- leaks ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("project")
    (root / "params.yaml").write_text(PARAMS)
    params = load_params(root / "params.yaml")
    fetch(root, params, "sample")
    prepare(root, params, "sample")
    return root


def with_split(text: str, split: str) -> str:
    return re.sub(r"split: val\b", f"split: {split}", text)


def test_a_model_is_not_measured_on_what_it_was_trained_on(prepared, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(with_split(PARAMS, "trainval"))  # 2 of its 5 images are in train_aug
    params = load_params(path)
    for check in (
        lambda: refuse_leak(prepared, params, "mask"),
        lambda: refuse_leaks(prepared, params, model="mask"),
        lambda: train(prepared, params, "mask"),  # before it has begun
    ):
        with pytest.raises(BadInput, match=r"evaluations.mask: mask is trained on 2 of the 5 "):
            check()
    assert not (prepared / "work" / "train").exists()
    honest = load_params(prepared / "params.yaml")
    refuse_leak(prepared, honest, "mask")
    refuse_leaks(prepared, honest, model="mask")


def test_what_the_model_started_from_counts_too(prepared, tmp_path):
    lines = PARAMS.replace("    split: train_aug\n", "    split: val\n", 1)
    second = "  second:\n    <<: *run\n    init: mask\n    split: train\nboxsup: {}"
    lines = lines.replace("boxsup: {}", second).replace("    model: mask", "    model: second")
    (tmp_path / "params.yaml").write_text(lines)
    params = load_params(tmp_path / "params.yaml")
    assert list(trained_for(params, "second")) == ["second", "mask"]
    with pytest.raises(BadInput, match="mask is trained on 3 of the 3"):
        refuse_leak(prepared, params, "mask")


def test_the_same_image_is_known_under_other_ids():
    voc2012, voc2007 = Voc2012Dataset("voc2012"), Voc2007Dataset("voc2007")
    mixed = MixtureDataset("mixture", masks=voc2012, split="train_aug", boxes=(voc2007,))
    coco = CocoDataset("coco", year=2014, categories="voc", others="ignore")
    mine = FolderDataset("folder", val_fraction=0.5, seed=0)
    same = {
        identity("a", voc2012, "2007_000033"),
        identity("b", voc2007, "000033"),
        identity("c", mixed, "000033"),
        identity("d", SbdDataset("sbd"), "2007_000033"),
    }
    assert len(same) == 1
    assert identity("e", coco, "COCO_val2014_000000000042") == identity("f", coco, "000000000042")
    assert identity("c", mixed, "COCO_train2014_000000000042") == identity(
        "f", coco, "000000000042"
    )
    assert identity("mine", mine, "000033") not in same
    small, large = (SampleDataset("sample", 1, 1, more, 1) for more in (0, 1))
    assert identity("a", small, "2101_000000") == identity("b", large, "2101_000000")
    assert identity("mine", mine, "a") != identity("yours", mine, "a")


@pytest.mark.skipif(not LISTS.exists(), reason="the published lists are not here")
def test_voc2007_holds_321_images_of_the_val_of_voc2012():
    segmented = LISTS / "mcg_gt_sets/Pascal/Segmentation_trainvaltest_2007.txt"
    older = lists.read_ids(segmented, STRICT)
    val = set(lists.read_ids(LISTS / "voc12/val.txt", STRICT))
    named = {identity("a", Voc2007Dataset("voc2007"), image_id)[1] for image_id in older}
    assert (len(older), len(named & val)) == (632, 321)
    assert named & val == {image_id for image_id in val if image_id.startswith("2007_")}
    assert val - named == set(voc.since_2008(sorted(val))["val_since_2008"])


def test_images_of_voc_and_sbd_are_known_as_the_same(drawn, tmp_path, monkeypatch):
    for name in ("VOC2012", "SBD"):
        monkeypatch.setenv(f"PIPELINE_DATA_{name}", str(drawn / "voc"))
    monkeypatch.setattr("pipeline.datasets.readers.VOC", NAMED)
    text = PARAMS.replace(
        "  sample: {kind: sample, train: 2, extra: 6, more: 0, val: 3}",
        "  voc2012: {kind: voc2012}\n  sbd: {kind: sbd}\n"
        "  mine: {kind: folder, val_fraction: 0.5, seed: 0}",
    ).replace("none_sample", "none_voc2012")
    text = re.sub(r"dataset: sample", "dataset: voc2012", text)
    runs, evaluations = text.split("evaluations:")
    sbd_text = evaluations.replace("voc2012", "sbd").replace(": val", ": train")
    measured = {
        "sbd": f"{runs}evaluations:{sbd_text}",
        "mine": f"{runs}evaluations:{evaluations.replace('voc2012', 'mine')}",
    }
    write_folder(tmp_path / "data/raw/mine", 2, 2)
    (tmp_path / "params.yaml").write_text(measured["sbd"])
    params = load_params(tmp_path / "params.yaml")
    for dataset in ("voc2012", "sbd", "mine"):
        fetch(tmp_path, params, dataset)
        prepare(tmp_path, params, dataset)
    with pytest.raises(BadInput, match="mask is trained on 3 of the 3 .*instance_train"):
        refuse_leak(tmp_path, params, "mask")
    (tmp_path / "params.yaml").write_text(measured["mine"])
    refuse_leak(tmp_path, load_params(tmp_path / "params.yaml"), "mask")  # the same ids, others
