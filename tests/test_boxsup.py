"""What BoxSup takes of a dataset: boxes of single objects, and a background around them."""

import json
from pathlib import Path

import pytest
from scratch import PARAMS

from pipeline.box_labels import boxes_of
from pipeline.datasets.form import AnnotatedObject, Sample
from pipeline.datasets.prepared import Prepared, write_prepared
from pipeline.datasets.tree import ImageFiles, Tree
from pipeline.errors import BadInput
from pipeline.params import load_params
from pipeline.stages.boxsup import boxsup


def an_image(image_id: str, problems: object) -> Sample:
    """A crowd, a plain object, and one of no category of ours."""
    objects = tuple(
        AnnotatedObject(category, (x, 0, x + 1, 1), False, crowd, None)
        for x, (category, crowd) in enumerate([(1, True), (1, False), (255, False)])
    )
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


def test_crowds_are_prepared_but_are_no_boxes_to_train_on(root):
    data = Prepared(root, "sample")
    assert data.objects("a")["crowd"].tolist() == [True, False]
    boxes, categories, instances = boxes_of(data, "a")
    assert (boxes.tolist(), categories.tolist(), instances.tolist()) == ([[1, 0, 2, 1]], [1], [1])


def test_a_dataset_without_background_is_refused(root):
    run, _ = PARAMS.split("boxsup: {}")
    keys = "<<: *run, proposals: none, mask_split: none, estimator: {kind: rectangles}"
    added = f"boxsup:\n  boxed: {{{keys}}}\n"
    (root / "params.yaml").write_text(f"{run}{added}instance: {{}}\nevaluations: {{}}\n")
    categories = root / "data/prepared/sample/categories.json"
    categories.write_text(json.dumps(["road", "sidewalk"]))
    with pytest.raises(BadInput, match="boxsup.boxed: .* sample has none .* is road"):
        boxsup(root, load_params(root / "params.yaml"), "boxed")
