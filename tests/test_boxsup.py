"""What BoxSup takes of a dataset: boxes to train on, and a background around them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scratch import PARAMS

from pipeline.box_labels import estimated_maps, label_quality
from pipeline.box_objects import objects_of, settled, tell_of_left_out, to_fill
from pipeline.datasets.form import AnnotatedObject, Sample
from pipeline.datasets.prepared import Prepared, write_prepared
from pipeline.datasets.tree import ImageFiles, Tree
from pipeline.errors import BadInput
from pipeline.masks import decode_index_png, encode_index_png
from pipeline.params_file import load_params
from pipeline.params_training import BoxSupRun
from pipeline.stages.boxsup import boxsup
from pipeline.tables import write_table


def an_image(image_id: str, problems: object) -> Sample:
    """A crowd, a plain object, a difficult one, one of no category of ours, one without area."""
    kinds = [(1, False, True), (1, False, False), (1, True, False), (255, False, False)]
    objects = tuple(
        AnnotatedObject(category, (x, 0, x + 1, 1), difficult, crowd, None)
        for x, (category, difficult, crowd) in enumerate(kinds)
    )
    objects += (AnnotatedObject(1, (0, 0, 0, 0), False, False, None),)
    return Sample(image_id, f"place/{image_id}.png", (1, 5), "voc", None, objects)


@pytest.fixture
def root(tmp_path) -> Path:
    tree = Tree(
        ("background", "dot"), {"train": ["a"]}, {}, {}, lambda _: ImageFiles({}), str, an_image
    )
    write_prepared(tmp_path / "work", tree)
    (tmp_path / "data" / "prepared").mkdir(parents=True)
    (tmp_path / "work" / "prepared").rename(tmp_path / "data" / "prepared" / "sample")
    return tmp_path


def boxed(root: Path, **changed: str) -> BoxSupRun:
    run, _ = PARAMS.split("boxsup: {}")
    keys = {"proposals": "none", "mask_split": "none", "difficult": "box", "crowd": "ignore"}
    keys |= {"estimator": "{kind: rectangles}"} | changed
    added = "".join(f"    {key}: {value}\n" for key, value in keys.items())
    text = f"{run}boxsup:\n  boxed:\n    <<: *run\n{added}instance: {{}}\nevaluations: {{}}\n"
    (root / "params.yaml").write_text(text)
    return load_params(root / "params.yaml").boxsup["boxed"]


def change(root: Path, instance: int, **columns: int) -> Prepared:
    """The dataset with other values in the row of one object."""
    path = root / "data/prepared/sample/instances.parquet"
    table = pd.read_parquet(path)
    for name, value in columns.items():
        table.loc[table["instance"] == instance, name] = value
    write_table(path, "instances", table)
    return Prepared(root, "sample")


def labels(data: Prepared, run: BoxSupRun, folder: Path) -> list[list[int]]:
    objects = objects_of(data, ["a"])
    maps = estimated_maps(data, objects, run, None, 0, proposals=folder, folder=folder)
    return decode_index_png(maps["a"]).tolist()


def test_each_object_has_the_reason_why_it_is_no_box_to_train_on(root):
    objects = objects_of(Prepared(root, "sample"), ["a"])["a"]
    assert objects.reasons == ("crowd", None, "difficult", "empty")
    assert objects.boxes[1].tolist() == [1, 0, 2, 1]
    assert objects.instances.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("difficult", "crowd", "expected"),
    [
        ("box", "ignore", [255, 1, 1, 0, 0]),
        ("box", "background", [0, 1, 1, 0, 0]),
        ("ignore", "background", [0, 1, 255, 0, 0]),
        ("background", "ignore", [255, 1, 0, 0, 0]),
    ],
)
def test_difficult_and_crowd_boxes_go_as_the_run_says(root, tmp_path, difficult, crowd, expected):
    run = boxed(root, difficult=difficult, crowd=crowd)
    assert labels(Prepared(root, "sample"), run, tmp_path) == [expected]


def test_what_is_left_out_is_counted_on_stderr(root, capsys):
    objects = objects_of(Prepared(root, "sample"), ["a"])
    tell_of_left_out(objects, boxed(root, difficult="ignore"))
    assert capsys.readouterr().err.splitlines() == [
        "1 objects (crowd) are no boxes to train on: ignore",
        "1 objects (difficult) are no boxes to train on: ignore",
        "1 objects (empty) are no boxes to train on: background",
    ]


def test_only_boxes_to_train_on_are_open(root):
    objects = objects_of(Prepared(root, "sample"), ["a"])["a"]
    run = boxed(root)
    assert [choice is None for choice in settled(objects, run)] == [False, True, True, False]
    hard = settled(objects, replace(run, difficult="background"))
    assert [(c.label, c.reason) for c in hard if c] == [
        ("ignore", "crowd"), ("background", "difficult"), ("background", "empty"),
    ]  # fmt: skip
    assert to_fill(objects, run)[1].tolist() == [255, 1, 1]


def test_an_image_without_objects_is_all_background(root, tmp_path):
    path = root / "data/prepared/sample/instances.parquet"
    write_table(path, "instances", pd.read_parquet(path).iloc[:0])
    assert labels(Prepared(root, "sample"), boxed(root), tmp_path) == [[0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"x1": 6}, "reach out of the image"),
        ({"y1": 2}, "reach out of the image"),
        ({"x0": -1}, "reach out of the image"),
        ({"category": 2}, "none of the 2 with a name"),
        ({"category": 0}, "none of the 2 with a name"),
    ],
)
def test_a_box_that_cannot_be_labelled_is_refused_by_name(root, columns, problem):
    with pytest.raises(BadInput, match=f"a object 1: .*{problem}"):
        objects_of(change(root, 1, **columns), ["a"])


def test_a_box_of_no_area_is_left_out_wherever_it_lies(root):
    objects = objects_of(change(root, 1, x0=9, x1=9), ["a"])["a"]
    assert objects.reasons == ("crowd", "empty", "difficult", "empty")


def test_ignored_pixels_count_as_errors_of_the_labels_and_as_no_object(root):
    folder = root / "data/prepared/sample"
    images = pd.read_parquet(folder / "images.parquet").assign(has_masks=True)
    write_table(folder / "images.parquet", "images", images)
    truth = np.array([[0, 1, 1, 0, 0]], np.uint8)
    maps = [{"image_id": "a", "png": encode_index_png(truth)}]
    write_table(folder / "semantic/part-000.parquet", "semantic", maps)
    estimated = encode_index_png(np.array([[255, 1, 0, 0, 0]], np.uint8))
    found = label_quality(Prepared(root, "sample"), {"a": estimated})
    # Background: 2 of 3 + 1 pixels; dot: 1 of 2.
    assert found == {"label_mean_area": 1 / 5, "label_mean_iou": (2 / 4 + 1 / 2) / 2}


def test_a_dataset_without_background_is_refused(root):
    boxed(root)
    categories = root / "data/prepared/sample/categories.json"
    categories.write_text(json.dumps(["road", "sidewalk"]))
    with pytest.raises(BadInput, match="boxsup.boxed: .* sample has none .* is road"):
        boxsup(root, load_params(root / "params.yaml"), "boxed")
