"""Stage `localize`: what it trains, from what, and that it ends the same however it is stopped."""

import copy
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from scratch import PARAMS, PROJECT, environment, make_project

from pipeline.box_targets import boxes_of, cell_centres
from pipeline.catalogue import load_catalogue
from pipeline.categories import CITYSCAPES, SAMPLE, things_of
from pipeline.checkpoints import build_localizer, load_model, save_weights, standard_of
from pipeline.datasets.form import AnnotatedObject, Sample
from pipeline.datasets.leaks import refuse_leak, refuse_leaks
from pipeline.datasets.prepared import Prepared, write_prepared
from pipeline.datasets.sample_folder import write_folder
from pipeline.datasets.tree import ImageFiles, Tree
from pipeline.errors import BadInput
from pipeline.fitting import STOPPED
from pipeline.masks import decode_rle, encode_rle
from pipeline.object_maps import need_object_masks
from pipeline.params_file import load_params
from pipeline.params_training import StandardisedTargets
from pipeline.stages import localize as stage
from pipeline.stages.fetch import fetch
from pipeline.stages.localize import localize, standard_of_images
from pipeline.stages.prepare import prepare
from pipeline.tables import read_table, write_table

CPU = torch.device("cpu")
OWN = {
    "targets": {"kind": "standardise"},
    "weighting": {"kind": "size", "alpha": 1.0, "lowest": 0.1, "highest": 10.0},
    "bootstrapping": {"kind": "topk", "keep": 12, "scope": "crop"},
    "beta": 1.0,
    "lr": 0.02,
}


@pytest.fixture(autouse=True)
def on_the_processor(monkeypatch):
    monkeypatch.setenv("PIPELINE_DEVICE", "cpu")
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def content_with(dataset: str = "sample", **changed: object) -> dict:
    """params.yaml of `scratch` with a localisation network `boxes` and no other."""
    content = YAML(typ="safe").load(PARAMS)
    run = content.pop("semantic")["mask"] | OWN | {"dataset": dataset} | changed
    run["augmentation"] = run["augmentation"] | {"crop": [64, 64]}
    if dataset != "sample":
        content["datasets"][dataset] = {"kind": "folder", "val_fraction": 0.5, "seed": 0}
    return content | {"semantic": {}, "instance": {"boxes": run}, "evaluations": {}}


def write(root: Path, content: dict) -> None:
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(content, file)


def trained(root: Path, content: dict | None = None) -> tuple[str, ...]:
    """Train `boxes`. Returns the digests of what is published."""
    if content is not None:
        write(root, content)
    localize(root, load_params(root / "params.yaml"), "boxes")
    files = [root / "data" / "models" / f"boxes{end}" for end in (".pt", ".history.parquet")]
    return tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A project with the drawn sample and no weights to start from."""
    root = make_project(tmp_path_factory.mktemp("localize") / "template")
    write(root, content_with())
    params = load_params(root / "params.yaml")
    fetch(root, params, "sample")
    prepare(root, params, "sample")
    save_weights(root / "data" / "models" / "none.pt", None)
    return root


@pytest.fixture
def root(template, tmp_path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "project", symlinks=True))


@pytest.fixture(scope="module")
def unbroken(template) -> tuple[Path, tuple[str, ...]]:
    """A project of its own after the whole training, and the digests."""
    root = Path(shutil.copytree(template, template.with_name("unbroken"), symlinks=True))
    return root, trained(root)


# --- what is published ----------------------------------------------------------------------------
def test_a_model_and_its_history_are_published_and_the_loss_falls(unbroken):
    root, _ = unbroken
    history = read_table(root / "data" / "models" / "boxes.history.parquet", "history")
    losses = history.loc[history["name"] == "loss", "value"].to_numpy()
    assert len(losses) == 8 * (8 // 2)  # epochs, images, batch
    assert np.isfinite(losses).all()
    assert losses[-8:].mean() < 0.7 * losses[:8].mean()
    assert not list((root / "data" / "models").glob("*.partial"))


def test_a_model_knows_its_categories_and_what_its_targets_were_less(unbroken):
    root, _ = unbroken
    network, saved = load_model(root / "data" / "models" / "boxes.pt", CPU)
    assert tuple(saved["categories"]) == SAMPLE
    assert saved["run"]["targets"] == {"kind": "standardise"}
    standard = standard_of(network)
    data = Prepared(root, "sample")
    wanted = standard_of_images(data, data.ids("train_aug"), StandardisedTargets("standardise"))
    for ours, theirs in zip(standard, wanted, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)
    with torch.no_grad():
        outputs = network(torch.zeros(1, 3, 40, 48))
    assert outputs.shape == (1, 4 * len(things_of(SAMPLE)), 5, 6)
    xs, ys = cell_centres(5, 6, stride=8, grid="centres")
    boxes = boxes_of(outputs.unflatten(1, (-1, 4)), xs, ys, StandardisedTargets("x"), standard)
    assert torch.isfinite(boxes).all()


def test_targets_are_less_mean_and_deviation_of_every_pixel_of_every_object(template):
    data = Prepared(template, "sample")
    rows = []
    for image_id in data.ids("train_aug"):
        numbers, boxes, _ = stage.object_map(data, image_id, things_of(SAMPLE))
        for i, j in np.argwhere(numbers):
            x0, y0, x1, y1 = boxes[numbers[i, j] - 1].astype(float)
            rows.append([(x0 + x1) / 2 - j - 0.5, (y0 + y1) / 2 - i - 0.5, y1 - y0, x1 - x0])
    found = standard_of_images(data, data.ids("train_aug"), StandardisedTargets("standardise"))
    np.testing.assert_allclose(found.mean, np.mean(rows, axis=0), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.deviation, np.std(rows, axis=0), rtol=1e-5)


def test_it_learns_from_whole_boxes_though_views_cut_them(template, monkeypatch):
    truths = []
    real = stage.random_object_view

    def seen(*given, **named):
        view, truth = real(*given, **named)
        truths.append(truth)
        return view, truth

    monkeypatch.setattr(stage, "random_object_view", seen)
    data = Prepared(template, "sample")
    run = load_params(template / "params.yaml").instance["boxes"]
    network = build_localizer(run.network, SAMPLE, _plain_standard(), seed=0)
    for n, image_id in enumerate(data.ids("train_aug")):
        rng = np.random.default_rng(n)
        stage._object_view(data, data, network, run.augmentation, image_id, rng)
    corners = np.concatenate([truth[1:, truth[0] > 0].T for truth in truths])
    assert (corners.min(axis=0)[:2] < 0).all() and (corners.max(axis=0)[2:] > 64).all()
    assert {int(n) for truth in truths for n in np.unique(truth[0])} <= set(range(9))


def _plain_standard():
    return stage.Standard(torch.zeros(4), torch.ones(4))


# --- stopped and run again ------------------------------------------------------------------------
def test_told_to_stop_it_keeps_its_work_and_ends_with_the_same_bits(root, unbroken, monkeypatch):
    asked = []

    def view_that_stops(*given, **named):
        asked.append(given)
        if len(asked) == 2 * 11 + 1:  # in the middle of the third epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given, **named)

    real = stage.random_object_view
    monkeypatch.setattr(stage, "random_object_view", view_that_stops)
    with pytest.raises(SystemExit) as stopped:
        trained(root)
    assert stopped.value.code == STOPPED
    assert not (root / "data" / "models" / "boxes.pt").exists()
    monkeypatch.setattr(stage, "random_object_view", real)
    assert trained(root) == unbroken[1]


# Imported by the Python that is to be killed: at the n-th checkpoint, before it is in its place.
ASSASSIN = """
import os, signal
real, seen = os.replace, []
def replace(source, target, **rest):
    if str(target).endswith("checkpoint.pt"):
        seen.append(target)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(source, target, **rest)
os.replace = replace
"""


def command(root: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline localize boxes` in a project."""
    before = [extra.pop("PYTHONPATH")] if "PYTHONPATH" in extra else []
    path = os.pathsep.join([*before, str(root)])
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "localize", "boxes"],
        cwd=root,
        env=environment(PYTHONPATH=path, PIPELINE_DEVICE="cpu", **extra),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        check=False,
    )


def test_killed_it_goes_on_and_ends_with_the_same_bits(root, unbroken):
    (root / "assassin").mkdir()
    (root / "assassin" / "sitecustomize.py").write_text(ASSASSIN)
    killed = command(root, PYTHONPATH=str(root / "assassin"))
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    (work,) = (root / "work" / "localize").glob("boxes-*/")
    assert (work / "checkpoint.pt").exists() and not (work / "model.pt").exists()
    assert not (root / "data" / "models" / "boxes.pt").exists()
    assert trained(root) == unbroken[1]


def test_run_again_a_finished_training_gives_the_same_files(unbroken):
    root, expected = unbroken
    assert trained(root) == expected


def test_a_run_started_from_another_takes_over_what_it_learnt(root, unbroken):
    shutil.copyfile(unbroken[0] / "data/models/boxes.pt", root / "data/models/first.pt")
    content = content_with(lr=0.0, epochs=1)
    content["instance"]["first"] = content["instance"]["boxes"]
    content["instance"]["boxes"] = content["instance"]["boxes"] | {"init": "first"}
    trained(root, content)
    before, after = (
        load_model(root / "data" / "models" / f"{name}.pt", CPU)[0].state_dict()
        for name in ("first", "boxes")
    )
    weights = [name for name, value in before.items() if "running" not in name and value.ndim > 1]
    assert weights and all(torch.equal(before[name], after[name]) for name in weights)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(root):
    """Shares of 1 and 2 images; what is hardest, and the mean weight, are of the whole batch."""
    content = content_with(batch_norm="frozen", batch=3, epochs=4, lr=0.0005)
    content["instance"]["boxes"]["bootstrapping"]["scope"] = "device_batch"
    write(root, content)
    losses, moved = [], []
    for count in ("1", "2"):
        shutil.rmtree(root / "work", ignore_errors=True)
        done = command(root, PIPELINE_PROCESSES=count)
        assert done.returncode == 0, done.stdout
        history = read_table(root / "data" / "models" / "boxes.history.parquet", "history")
        losses.append(history.loc[history["name"] == "loss", "value"].to_numpy())
        network, _ = load_model(root / "data" / "models" / "boxes.pt", CPU)
        run = load_params(root / "params.yaml").instance["boxes"]
        begun = build_localizer(run.network, SAMPLE, standard_of(network), seed=run.seed)
        pairs = zip(network.parameters(), begun.parameters(), strict=True)
        moved.append(torch.cat([(now - then).detach().flatten() for now, then in pairs]))
    assert len(losses[0]) == 4 * (8 // 3)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert (moved[0] - moved[1]).norm() < 2e-3 * moved[0].norm()


# --- leaks ----------------------------------------------------------------------------------------
FOUND = {
    "kind": "boxes", "vote_stride": 8, "top_masks": 2, "min_probability": 0.05, "nms_iou": 0.5,
    "region_nms": {"kind": "any_overlap"}, "min_pixels": 8,
}  # fmt: skip


def with_evaluation(content: dict, localization: str) -> dict:
    (plain,) = YAML(typ="safe").load(PARAMS)["evaluations"].values()
    entry = plain | {"model": "none", "localization": localization, "instances": FOUND}
    return content | {"evaluations": {"found": entry}}


def test_it_is_not_trained_on_what_it_would_be_measured_on(root):
    content = with_evaluation(content_with(split="val"), "boxes")
    with pytest.raises(BadInput, match="evaluations.found: boxes is trained on 3 of the 3 images"):
        trained(root, content)
    assert not (root / "work" / "localize").exists()


def test_nor_is_what_it_started_from(root):
    content = content_with()
    first = copy.deepcopy(content["instance"]["boxes"]) | {"split": "val"}
    content["instance"] = {"first": first, "boxes": content["instance"]["boxes"]}
    content["instance"]["boxes"]["init"] = "first"
    with pytest.raises(BadInput, match="evaluations.found: first is trained on 3 of the 3 images"):
        trained(root, with_evaluation(content, "boxes"))


def test_the_semantic_network_beside_it_is_checked_as_well(root):
    content = with_evaluation(content_with(), "boxes")
    mask = YAML(typ="safe").load(PARAMS)["semantic"]["mask"] | {"split": "val"}
    content["semantic"] = {"mask": mask}
    content["evaluations"]["found"]["model"] = "mask"
    with pytest.raises(BadInput, match="evaluations.found: mask is trained on 3 of the 3 images"):
        trained(root, content)


def listed(root: Path, dataset: str, splits: dict[str, list[str]]) -> None:
    """A prepared dataset of which there are only the lists."""
    fixed = {"source": "voc", "path": "x/x.jpg", "height": 9, "width": 9}
    rows = [
        {"image_id": i, "split": split, "has_masks": True, "has_boxes": True} | fixed
        for split, ids in splits.items()
        for i in ids
    ]
    write_table(root / "data" / "prepared" / dataset / "images.parquet", "images", rows)


def test_a_semantic_network_of_train_aug_is_refused_in_table_6(tmp_path):
    listed(tmp_path, "sbd", {"instance_train": ["2008_1"], "instance_val": ["2008_2", "2008_3"]})
    listed(tmp_path, "voc2012", {"train_aug": ["2008_1", "2008_2"]})
    catalogue = load_catalogue(PROJECT / "params" / "wu2016.yaml")
    for name in catalogue.groups["table6"]:
        refuse_leak(tmp_path, catalogue, name)
    run = replace(catalogue.semantic["fcrn101_sbd"], dataset="voc2012", split="train_aug")
    leaky = replace(catalogue, semantic=catalogue.semantic | {"fcrn101_sbd": run})
    behind = {n for n, e in catalogue.evaluations.items() if e.model == "fcrn101_sbd"}
    assert behind >= {"instances101_b512_weighted_sbd", "components_sbd"}
    for name in catalogue.groups["table6"]:
        if name not in behind:
            refuse_leak(tmp_path, leaky, name)
            continue
        with pytest.raises(BadInput, match="fcrn101_sbd is trained on 1 of the 2 .*one is 2008_2"):
            refuse_leak(tmp_path, leaky, name)
    with pytest.raises(BadInput, match="fcrn101_sbd is trained on 1 of the 2 images"):
        refuse_leaks(tmp_path, leaky, model="boxes101_b512_weighted_sbd")  # for what it would serve


# --- datasets of all kinds ------------------------------------------------------------------------
SIDE = 64
NAMES = ("background", "dot", "bar", "never")


def square(x0: int, y0: int, x1: int, y1: int) -> str:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y0:y1, x0:x1] = True
    return encode_rle(mask)


def an_object(category: int, corners: tuple[int, int, int, int], **changed: object):
    values = {"difficult": False, "crowd": False, "mask_rle": square(*corners)} | changed
    return AnnotatedObject(category, corners, **values)


def own_dataset(
    root: Path, images: dict[str, list[AnnotatedObject]], names: tuple[str, ...] = NAMES
) -> Prepared:
    """Prepare `mine`, images of noise with these objects, as the split train."""
    place = root / "data" / "raw" / "mine"
    place.mkdir(parents=True)
    for n, image_id in enumerate(images):
        pixels = np.random.default_rng(n).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        cv2.imwrite(str(place / f"{image_id}.png"), pixels)

    def read(image_id: str, problems: object) -> Sample:
        objects = tuple(images[image_id])
        masked = all(o.mask_rle is not None for o in objects)
        label_map = np.zeros((SIDE, SIDE), np.uint8) if masked else None
        for o in objects if masked else ():
            label_map[decode_rle(o.mask_rle, SIDE, SIDE)] = o.category
        path = f"mine/{image_id}.png"
        return Sample(image_id, path, (SIDE, SIDE), "voc", label_map, objects)

    ids = list(images)
    tree = Tree(names, {"train": ids}, {}, {}, lambda _: ImageFiles({}), str, read)
    write_prepared(root / "work" / "mine", tree)
    (root / "work" / "mine" / "prepared").rename(root / "data" / "prepared" / "mine")
    return Prepared(root, "mine")


def mine(**changed: object) -> dict:
    return content_with("mine", **({"split": "train", "epochs": 2, "batch": 1} | changed))


def test_a_category_that_never_occurs_and_an_image_without_objects_are_no_hindrance(root):
    images = {"a": [an_object(1, (8, 8, 40, 30))], "b": [], "c": [an_object(2, (3, 5, 60, 20))]}
    own_dataset(root, images)
    trained(root, mine(weight_decay=0.0, epochs=4))
    network, _ = load_model(root / "data" / "models" / "boxes.pt", CPU)
    run = load_params(root / "params.yaml").instance["boxes"]
    begun = build_localizer(run.network, NAMES, standard_of(network), seed=run.seed)
    moved = (network.classifier.weight - begun.classifier.weight).abs().flatten(1).amax(1)
    assert moved.shape == (3 * 4,)
    assert (moved[:8] > 0).all() and (moved[8:] == 0).all()  # the four of `never` stay as they were
    history = read_table(root / "data" / "models" / "boxes.history.parquet", "history")
    losses = history.loc[history["name"] == "loss", "value"]
    assert (losses == 0).sum() >= 4 and np.isfinite(losses).all()  # `b` once an epoch


def test_of_cityscapes_categories_things_alone_have_boxes(root):
    car, person = CITYSCAPES.index("car"), CITYSCAPES.index("person")
    images = {"a": [an_object(car, (8, 8, 40, 30)), an_object(person, (50, 4, 60, 40))]}
    own_dataset(root, images, CITYSCAPES)
    trained(root, mine())
    network, _ = load_model(root / "data" / "models" / "boxes.pt", CPU)
    assert network.classifier.weight.shape[0] == 4 * 8


def test_an_object_of_a_category_that_has_none_is_named(root):
    own_dataset(root, {"a": [an_object(CITYSCAPES.index("sky"), (8, 8, 40, 30))]}, CITYSCAPES)
    with pytest.raises(BadInput, match="instance.boxes: mine, split train: image a: .*category 10"):
        trained(root, mine())


def test_crowds_are_no_objects_to_learn_from(root):
    plain = an_object(1, (8, 8, 40, 30))
    data = own_dataset(root, {"a": [plain, an_object(1, (41, 0, 64, 64), crowd=True)]})
    found = standard_of_images(data, ["a"], StandardisedTargets("standardise"))
    assert found.mean.tolist() == [0, 0, 22, 32]  # of the one object
    assert found.deviation[2:].tolist() == [1, 1]  # one size does not vary


@pytest.mark.parametrize("form", ["objects", "coco"])
def test_a_folder_whose_objects_have_masks_can_be_learnt_from(root, form, monkeypatch):
    monkeypatch.setenv("PIPELINE_DATA_MINE", str(root / "folder"))
    write_folder(root / "folder", train=2, val=1, form=form)
    write(root, mine(epochs=1))
    params = load_params(root / "params.yaml")
    fetch(root, params, "mine")
    prepare(root, params, "mine")
    trained(root)
    network, _ = load_model(root / "data" / "models" / "boxes.pt", CPU)
    assert network.classifier.weight.shape[0] == 4 * len(things_of(SAMPLE))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("masks", "no image has an object; there is nothing to learn boxes from"),
        ("xml", "have boxes only; instances are learnt from the masks of objects"),
    ],
)
def test_a_folder_of_masks_or_boxes_alone_cannot(root, form, message, monkeypatch):
    monkeypatch.setenv("PIPELINE_DATA_MINE", str(root / "folder"))
    write_folder(root / "folder", train=2, val=1, form=form)
    write(root, mine(epochs=1))
    params = load_params(root / "params.yaml")
    fetch(root, params, "mine")
    prepare(root, params, "mine")
    with pytest.raises(BadInput, match=f"instance.boxes: mine, split train: .*{message}"):
        trained(root)


BAD = {
    "boxes only": (
        {"a": [an_object(1, (8, 8, 40, 30), mask_rle=None)], "b": [an_object(1, (8, 8, 40, 30))]},
        "images as a have boxes only; instances are learnt from the masks of objects",
    ),
    "no object": ({"a": [], "b": []}, "no image has an object; there is nothing to learn boxes"),
    "crowds alone": (
        {"a": [an_object(1, (8, 8, 40, 30), crowd=True)]},
        "no image has an object; there is nothing to learn boxes from",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_images_that_boxes_cannot_be_learnt_from_are_refused(root, what):
    images, message = BAD[what]
    own_dataset(root, images)
    with pytest.raises(BadInput) as error:
        trained(root, mine())
    assert str(error.value).startswith("instance.boxes: mine, split train: ")
    assert message in str(error.value)
    assert not (root / "data" / "models" / "boxes.pt").exists()


def test_a_split_that_is_not_there_is_named_with_those_that_are(root):
    own_dataset(root, {"a": [an_object(1, (8, 8, 40, 30))]})
    with pytest.raises(BadInput, match="mine has no split 'val'; choose one of: train"):
        trained(root, mine(split="val"))


def test_a_source_none_of_whose_objects_has_a_mask_is_refused(root):
    images = {"a": [an_object(1, (8, 8, 40, 30))]}
    data = own_dataset(root, images)
    data.instances["mask_rle"] = None
    with pytest.raises(BadInput, match="no object of the source voc has a mask; instances are"):
        need_object_masks(data, ["a"])


@pytest.mark.parametrize("damage", ["no run-lengths", "", square(0, 0, 1, 1)[:2] + "\x7f"])
def test_a_damaged_mask_is_refused_by_the_images_name(root, damage):
    own_dataset(root, {"a": [an_object(1, (8, 8, 40, 30))], "b": [an_object(1, (0, 0, 9, 9))]})
    path = root / "data" / "prepared" / "mine" / "instances.parquet"
    table = read_table(path, "instances")
    table.loc[table["image_id"] == "b", "mask_rle"] = damage
    write_table(path, "instances", table)
    with pytest.raises(BadInput, match="image b: the mask of an object is damaged"):
        trained(root, mine())


def test_an_object_that_is_hidden_or_empty_teaches_nothing(root):
    hidden = an_object(1, (8, 8, 40, 30))
    empty = an_object(2, (0, 0, 0, 0))
    above = an_object(2, (8, 8, 40, 30))  # of two of one size the later one is on top
    data = own_dataset(root, {"a": [hidden, empty, above]})
    numbers, boxes, things = stage.object_map(data, "a", things_of(NAMES))
    assert np.unique(numbers).tolist() == [0, 3] and things.tolist() == [0, 1, 1]
    assert boxes[1].tolist() == [0, 0, 0, 0]
    trained(root, mine())


def test_a_start_of_other_depth_is_refused(root):
    content = content_with(init="crops")
    content["weights"]["crops"] = {"kind": "imagenet", "depth": 50}
    with pytest.raises(BadInput, match="instance.boxes.init is 'crops', a network of depth 50"):
        trained(root, content)
