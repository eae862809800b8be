"""`segment --instances`: any photographs to the objects in them."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO as OfficialCoco
from scratch import environment
from torch import nn

from pipeline import instance_finding, tiles
from pipeline.__main__ import main
from pipeline.box_targets import Standard
from pipeline.categories import CITYSCAPES, COCO, COCO_NAMES, SAMPLE, things_of
from pipeline.checkpoints import build_localizer, build_network, load_model, standard_of
from pipeline.figures import colours_of
from pipeline.inference import for_inference, predict_probabilities
from pipeline.instance_finding import Finder
from pipeline.instance_maps import box_maps, semantic_maps
from pipeline.instances import find_instances
from pipeline.masks import decode_rle
from pipeline.object_overlays import Drawn, named_overlay
from pipeline.params import ONE_VIEW, AnyOverlap, BoxInstances, RegionIou, Views
from pipeline.params_file import read_yaml
from pipeline.params_networks import Fcrn
from pipeline.params_training import StandardisedTargets
from pipeline.segmenting.settings import MIN_SCORE, NUMBERS, SMALLEST_TILE, USUAL
from pipeline.training import save_checkpoint

PROJECT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
STANDARD = Standard(torch.tensor([0.0, 0.0, 20.0, 20.0]), torch.tensor([6.0, 6.0, 6.0, 6.0]))
RULE = BoxInstances(
    kind="boxes",
    vote_stride=8,
    top_masks=2,
    min_probability=0.05,
    nms_iou=0.5,
    region_nms=RegionIou(kind="iou", iou=0.3),
    min_pixels=32,
)


def network_of(stride: int = 8) -> dict:
    return {"kind": "fcrn", "depth": 14, "stride": stride, "kernel": 3, "dilation": 1}


def save_semantic(path: Path, categories=SAMPLE) -> Path:
    network = build_network(Fcrn(**network_of()), len(categories), seed=0)
    nn.init.normal_(network.classifier.weight, std=0.01)
    return save(path, network, categories, network_of())


def save_localizer(path: Path, categories=SAMPLE, stride: int = 8) -> Path:
    network = build_localizer(Fcrn(**network_of(stride)), categories, STANDARD, seed=1)
    nn.init.normal_(network.classifier.weight, std=0.03)
    return save(path, network, categories, network_of(stride), targets={"kind": "standardise"})


def save(path: Path, network, categories, described: dict, **more) -> Path:
    run = {"network": described, "precision": "fp32", "threads": 1, **more}
    save_checkpoint(
        path, network=network, optimizer=None, step=0, run=run, categories=list(categories)
    )
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_semantic(folder / "semantic.pt")
    save_localizer(folder / "boxes.pt")
    return folder


def photograph(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3))
    return np.kron(blocks, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)


@pytest.fixture
def images(tmp_path) -> Path:
    """a.png, "by the sea/b c.png" and c.png."""
    folder = tmp_path / "images"
    (folder / "by the sea").mkdir(parents=True)
    Image.fromarray(photograph(0)).save(folder / "a.png")
    Image.fromarray(photograph(1, 40, 56)).save(folder / "by the sea" / "b c.png")
    Image.fromarray(photograph(2, 64, 40)).save(folder / "c.png")
    return folder


NAMES = ["a", "by the sea/b c", "c"]


def run(models: Path, images: Path, *more: str, boxes: str = "boxes.pt") -> int:
    places = ["--images", str(images), "--out", str(images.parent / "out")]
    pair = [str(models / "semantic.pt"), "--instances", str(models / boxes)]
    return main(["segment", *pair, *places, *more])


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def results(images: Path) -> list[dict]:
    return json.loads((images.parent / "out" / "instances.json").read_text())


def expected(models: Path, pixels: np.ndarray, views: Views, rule: BoxInstances):
    """The objects of an image, by the parts that the command is made of."""
    semantic, _ = load_model(models / "semantic.pt", CPU)
    localizer, saved = load_model(models / "boxes.pt", CPU)
    standard = standard_of(localizer)
    asked = {"views": views, "vote_stride": rule.vote_stride, "device": CPU, "precision": "fp32"}
    probabilities = semantic_maps(for_inference(semantic, precision="fp32"), pixels, **asked)
    boxes = box_maps(
        for_inference(localizer, precision="fp32"),
        pixels,
        targets=StandardisedTargets(kind="standardise"),
        standard=standard,
        **asked,
    )
    things = np.array(things_of(saved["categories"]))
    size = pixels.shape[:2]
    return find_instances(
        probabilities, boxes, things, size=size, stride=rule.vote_stride, rule=rule
    )


# --- what is made ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "views", "rule"),
    [
        ([], ONE_VIEW, {}),
        (
            ["--scales", "0.5,1", "--flip", "--vote-stride", "4", "--top-masks", "3"],
            Views((0.5, 1.0), flip=True, shifts=1),
            {"vote_stride": 4, "top_masks": 3},
        ),
        (
            ["--shifts", "2", "--nms-iou", "0.7", "--region-rule", "any_overlap"]
            + ["--min-probability", "0.2", "--min-pixels", "9"],
            Views((1.0,), flip=False, shifts=2),
            {
                "nms_iou": 0.7,
                "region_nms": AnyOverlap(kind="any_overlap"),
                "min_probability": 0.2,
                "min_pixels": 9,
            },
        ),
        (["--region-rule", "0.6"], ONE_VIEW, {"region_nms": RegionIou(kind="iou", iou=0.6)}),
    ],
)
def test_objects_are_those_that_the_two_networks_give(models, images, options, views, rule):
    assert run(models, images, *options) == 0
    rule = BoxInstances(**{**vars(RULE), **rule})
    made, seen = results(images), 0
    for name in NAMES:
        pixels = np.array(Image.open(images / f"{name}.png"))
        found = expected(models, pixels, views, rule)
        mine = [entry for entry in made if entry["image_id"] == name]
        assert [entry["category_id"] for entry in mine] == found.categories.tolist()
        assert [entry["score"] for entry in mine] == found.scores.tolist()
        assert [entry["segmentation"]["counts"] for entry in mine] == found.rles
        assert {tuple(entry["segmentation"]["size"]) for entry in mine} <= {pixels.shape[:2]}
        x0, y0, x1, y1 = found.boxes.T
        boxes = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).tolist()
        assert [entry["bbox"] for entry in mine] == boxes
        seen += len(mine)
    assert seen == len(made) > 3
    assert [e["image_id"] for e in made] == sorted(e["image_id"] for e in made)


def test_label_maps_are_those_that_the_semantic_network_gives_alone(models, images):
    assert run(models, images) == 0
    network, _ = load_model(models / "semantic.pt", CPU)
    for name in NAMES:
        pixels = np.array(Image.open(images / f"{name}.png"))
        probabilities = predict_probabilities(
            for_inference(network, precision="fp32"),
            pixels,
            views=ONE_VIEW,
            device=CPU,
            precision="fp32",
        )
        with Image.open(images.parent / "out" / "labels" / f"{name}.png") as picture:
            assert (np.array(picture) == probabilities.argmax(0).numpy()).all()
            palette = np.array(picture.getpalette()).reshape(-1, 3)
        assert (palette[: len(SAMPLE)] == colours_of(SAMPLE)[: len(SAMPLE)]).all()


def test_a_localisation_network_of_another_stride_will_do(models, images):
    save_localizer(models / "coarse.pt", stride=16)
    assert run(models, images, boxes="coarse.pt") == 0
    settings = json.loads((images.parent / "out" / "segment.json").read_text())
    assert settings["instances"]["vote_stride"] == 8 and settings["localization"] == "coarse.pt"
    assert results(images)


def test_runs_are_found_by_their_names_and_told(models, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "models").mkdir(parents=True)
    for name in ("semantic.pt", "boxes.pt"):
        shutil.copyfile(models / name, tmp_path / "data" / "models" / name)
    command = ["segment", "semantic", "--images", "images", "--out", "out", "--instances"]
    assert main([*command, "other"]) == 2
    told = "data/models/other.pt: not there; name a trained run (here: boxes, semantic)"
    assert told in capsys.readouterr().err
    assert main([*command, "boxes"]) == 0
    said = capsys.readouterr().out
    count = len(results(images))
    assert "label maps of 3 images, 3 made now in" in said
    assert f"s each; {count} objects in out/instances.json" in said


def test_of_categories_without_background_only_things_have_objects(tmp_path, images):
    save_semantic(tmp_path / "semantic.pt", CITYSCAPES)
    save_localizer(tmp_path / "boxes.pt", CITYSCAPES)
    assert run(tmp_path, images, "--top-masks", "19", "--min-probability", "0") == 0
    things = set(things_of(CITYSCAPES))
    assert len({entry["category_id"] for entry in results(images)} & things) > 3
    assert {entry["category_id"] for entry in results(images)} <= things
    told = json.loads((images.parent / "out" / "images.json").read_text())["categories"]
    assert told == [{"id": number, "name": CITYSCAPES[number]} for number in sorted(things)]


def test_of_coco_s_categories_results_have_the_published_ids(tmp_path, images):
    save_semantic(tmp_path / "semantic.pt", COCO)
    save_localizer(tmp_path / "boxes.pt", COCO)
    assert run(tmp_path, images, "--overlay", "--top-masks", "40", "--min-probability", "0") == 0
    published = dict(enumerate(COCO_NAMES, start=1))
    told = json.loads((images.parent / "out" / "images.json").read_text())["categories"]
    assert told == [{"id": number, "name": name} for number, name in COCO_NAMES.items()]
    settings = json.loads((images.parent / "out" / "segment.json").read_text())["categories"]
    assert "category_id" not in settings[0]
    assert {one["number"]: one["category_id"] for one in settings[1:]} == published
    made = results(images)
    assert max(entry["category_id"] for entry in made) > 80  # the last of ours
    for name in NAMES:
        pixels = np.array(Image.open(images / f"{name}.png"))
        rule = BoxInstances(**{**vars(RULE), "top_masks": 40, "min_probability": 0})
        found = expected(tmp_path, pixels, ONE_VIEW, rule)
        mine = [entry["category_id"] for entry in made if entry["image_id"] == name]
        assert mine == [published[number] for number in found.categories.tolist()]
    before = results(images)
    assert run(tmp_path, images, "--top-masks", "40", "--min-probability", "0") == 0
    assert results(images) == before  # read again


def test_an_image_without_objects_has_an_empty_list(models, images):
    assert run(models, images, "--min-pixels", "100000", "--overlay") == 0
    assert results(images) == []
    out = images.parent / "out"
    assert json.loads((out / "instances" / "a.json").read_text()) == []
    told = json.loads((out / "images.json").read_text())
    assert [entry["id"] for entry in told["images"]] == NAMES
    with Image.open(out / "overlays" / "a.png") as picture:
        assert (np.array(picture) == photograph(0) // 2).all()


# --- read by others -------------------------------------------------------------------------------
def test_pycocotools_reads_images_and_results(models, images):
    assert run(models, images) == 0
    out, made = images.parent / "out", results(images)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = OfficialCoco(str(out / "images.json"))
        found = truth.loadRes(str(out / "instances.json"))
    assert truth.loadImgs(["by the sea/b c"]) == [
        {"id": "by the sea/b c", "file_name": "by the sea/b c.png", "height": 40, "width": 56}
    ]
    assert {c["id"]: c["name"] for c in truth.loadCats(truth.getCatIds())} == dict(
        enumerate(SAMPLE[1:], start=1)
    )
    annotations = found.loadAnns(found.getAnnIds())
    assert len(annotations) == len(made)
    for annotation, entry in zip(annotations, made, strict=True):
        mask = found.annToMask(annotation).astype(bool)
        assert list(mask.shape) == entry["segmentation"]["size"]
        assert mask.sum() >= RULE.min_pixels
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y, w, h = entry["bbox"]
        assert (rows[0], rows[-1] + 1) == (y, y + h)
        assert (columns[0], columns[-1] + 1) == (x, x + w)
    for name in NAMES:
        scores = [entry["score"] for entry in made if entry["image_id"] == name]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("protocol", ["sds", "mnc11", "coco"])
def test_a_truth_that_is_made_of_the_results_scores_one(models, images, tmp_path, protocol):
    (images / "c.png").rename(images / "by the sea" / "a.png")  # two files of one name
    assert run(models, images) == 0
    out, made = tmp_path / "out", results(images)
    truth = json.loads((out / "images.json").read_text())
    present = {entry["category_id"] for entry in made}
    truth["categories"] = [c for c in truth["categories"] if c["id"] in present]
    truth["annotations"] = [
        {"id": number, "iscrowd": 0, "area": 1, **entry} for number, entry in enumerate(made, 1)
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    command = ["score", "instances", "--protocol", protocol, "--truth"]
    command += [str(tmp_path / "truth.json"), "--predicted", str(out / "instances.json")]
    assert main([*command, "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["num_images"] == 3 and scores["num_detections"] == len(made) > 3
    assert scores["mean_ap_vol"] == pytest.approx(1)


# --- photographs ----------------------------------------------------------------------------------
def test_photographs_of_all_kinds_are_taken_as_people_see_them(models, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(photograph(3)[..., 0]).save(folder / "grey.png")
    Image.fromarray(photograph(3)).convert("CMYK").save(folder / "ink.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(photograph(3)).save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1), (200, 9, 9)).save(folder / "dot.png")
    assert run(models, folder, "--overlay", "--min-pixels", "0") == 0
    told = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert {entry["id"]: (entry["height"], entry["width"]) for entry in told} == {
        "dot": (1, 1),
        "grey": (48, 64),
        "ink": (48, 64),
        "turned": (64, 48),
    }
    for entry in told:
        with Image.open(tmp_path / "out" / "overlays" / f"{entry['id']}.png") as picture:
            assert picture.size == (entry["width"], entry["height"])
    for entry in results(folder):
        if entry["image_id"] == "dot":
            assert entry["bbox"] == [0, 0, 1, 1]


def test_a_name_that_json_cannot_hold_is_told(models, images, capfd):
    try:
        shutil.copyfile(images / "a.png", os.fsencode(images) + b"/\xff.png")
    except OSError:
        pytest.skip("names must be UTF-8 here")
    assert run(models, images) == 2
    error = capfd.readouterr().err
    assert "its name is not UTF-8, and JSON cannot hold it; rename it" in error
    assert "1 of 4 images are not segmented" in error
    assert {entry["image_id"] for entry in results(images)} == set(NAMES)


# --- too large ------------------------------------------------------------------------------------
def test_an_image_too_large_for_one_pass_is_told_with_the_scale_that_fits(
    models, images, capsys, monkeypatch
):
    room = instance_finding.VIEW_BYTES * 40 * 64
    monkeypatch.setattr(instance_finding, "CPU_ROOM", room)
    assert run(models, images) == 2
    error = capsys.readouterr().err
    assert f"not segmented: {images / 'a.png'}: 48 x 64 pixels (height x width) at scale 1" in error
    assert "give --scales of at most 0.91" in error and "views.scales" not in error
    assert "1 of 3 images are not segmented" in error
    assert {entry["image_id"] for entry in results(images)} == set(NAMES) - {"a"}
    told = json.loads((images.parent / "out" / "images.json").read_text())["images"]
    assert [entry["id"] for entry in told] == NAMES[1:]
    assert run(models, images, "--scales", "0.91", "--again") == 0


def test_an_image_too_large_for_its_votes_is_told_with_the_stride_that_fits(
    models, images, capsys, monkeypatch
):
    numbers = len(SAMPLE) + 4 * len(things_of(SAMPLE))
    room = 4 * numbers * 5 * 7 * instance_finding.MAP_COPIES
    monkeypatch.setattr(instance_finding, "ROOM", room)
    assert run(models, images) == 2
    error = capsys.readouterr().err
    assert "give a --vote-stride of 10, or smaller images" in error
    assert {entry["image_id"] for entry in results(images)} == {"by the sea/b c"}
    assert run(models, images, "--vote-stride", "13", "--again") == 0


# --- overlays -------------------------------------------------------------------------------------
def test_overlays_show_objects_from_a_score_on(models, images):
    assert run(models, images, "--overlay", "--min-score", "1") == 0
    out = images.parent / "out"
    with Image.open(out / "overlays" / "a.png") as picture:
        assert (np.array(picture) == photograph(0) // 2).all()
    scores = sorted({e["score"] for e in results(images) if e["image_id"] == "a"})
    assert len(scores) > 1
    assert run(models, images, "--overlay", "--min-score", repr(scores[-1])) == 0
    best = [e for e in results(images) if e["image_id"] == "a" and e["score"] == scores[-1]]
    drawn = [
        Drawn(counts, (x, y, x + w, y + h))
        for e in best
        for counts, (x, y, w, h) in [(e["segmentation"]["counts"], e["bbox"])]
    ]
    texts = [f"{SAMPLE[e['category_id']]} {e['score']:.2f}" for e in best]
    with Image.open(out / "overlays" / "a.png") as picture:
        assert (np.array(picture) == np.array(named_overlay(photograph(0), drawn, texts))).all()
    mask = decode_rle(best[0]["segmentation"]["counts"], 48, 64)
    with Image.open(out / "overlays" / "a.png") as picture:
        assert (np.array(picture) != photograph(0) // 2).any(axis=2)[mask].mean() > 0.9


# --- going on -------------------------------------------------------------------------------------
def never(*_):
    raise AssertionError("the networks are asked again")


def test_what_is_there_is_not_made_again(models, images, monkeypatch, capsys):
    assert run(models, images) == 0
    before = contents(images.parent / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Finder, "maps", never)
        assert run(models, images) == 0
        assert "label maps of 3 images, 0 made now; " in capsys.readouterr().out
        assert contents(images.parent / "out") == before
        assert run(models, images, "--overlay") == 0
    drawn = contents(images.parent / "out" / "overlays")
    assert len(drawn) == 3
    assert run(models, images, "--overlay", "--again") == 0
    assert contents(images.parent / "out" / "overlays") == drawn  # the same, of fresh objects


def test_another_least_score_draws_anew_and_asks_no_network(models, images, monkeypatch):
    assert run(models, images, "--overlay") == 0
    out = images.parent / "out"
    first = contents(out)
    assert json.loads(first["segment.json"])["min_score"] == MIN_SCORE
    monkeypatch.setattr(Finder, "maps", never)
    assert run(models, images) == 0
    assert contents(out) == first
    assert run(models, images, "--overlay", "--min-score", "1") == 0
    second = contents(out)
    assert {name for name in first if first[name] != second[name]} == {
        "segment.json",
        *(f"overlays/{name}.png" for name in NAMES),
    }
    assert run(models, images, "--overlay") == 0
    assert contents(out) == first


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "moment",
    ["labels/a.png", "instances/a.json", "overlays/a.png", "instances/c.json", "images.json"]
    + ["out/instances.json", "segment.json"],
)
def test_stopped_at_any_file_it_goes_on_and_ends_with_the_same_bytes(
    models, images, monkeypatch, moment
):
    out = images.parent / "out"
    assert run(models, images, "--overlay") == 0
    unbroken = contents(out)
    shutil.rmtree(out)
    replace = os.replace

    def stopped(source, target):
        if str(target).endswith(moment):
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        with pytest.raises(Killed):
            run(models, images, "--overlay")
    assert not (out / "instances.json").exists()
    if moment == "segment.json":
        shutil.rmtree(out)  # as for label maps: before anything is made, it is not begun
    kept = {n: (out / n).stat().st_mtime_ns for n in unbroken if (out / n).exists()}
    assert run(models, images, "--overlay") == 0
    left = contents(out)
    assert {name: left[name] for name in unbroken} == unbroken
    finished = {n for n in kept if n.startswith("instances/")}
    assert all((out / n).stat().st_mtime_ns == kept[n] for n in finished)


def test_new_photographs_join_those_that_are_there(models, images):
    assert run(models, images) == 0
    before = results(images)
    Image.fromarray(photograph(7)).save(images / "b.png")
    assert run(models, images) == 0
    after = results(images)
    assert [e for e in after if e["image_id"] != "b"] == before
    assert any(e["image_id"] == "b" for e in after)
    (images / "a.png").unlink()
    assert run(models, images) == 0
    assert results(images) == [e for e in after if e["image_id"] != "a"]


# Imported by the Python under test: kills it when the n-th file below a folder is written, but not
# yet in its place.
ASSASSIN = """
import os, signal
folder, count = os.environ["KILL_AT"].split(":")
real, seen = os.replace, []
def replace(source, target, **rest):
    seen.extend([target] * (f"/{folder}/" in str(target)))
    if len(seen) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(source, target, **rest)
os.replace = replace
"""


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_with_the_same_bytes(models, images, tmp_path):
    pair = [str(models / "semantic.pt"), "--instances", str(models / "boxes.pt"), "--overlay"]
    command = [sys.executable, "-m", "pipeline", "segment", *pair, "--images", str(images)]
    (tmp_path / "assassin").mkdir()
    (tmp_path / "assassin" / "sitecustomize.py").write_text(ASSASSIN)

    def segment(out: str, **extra: str) -> int:
        whole = [*command, "--out", str(tmp_path / out)]
        return subprocess.run(whole, cwd=PROJECT, env=environment(**extra), timeout=300).returncode

    assert segment("unbroken") == 0
    for moment in ("labels:2", "instances:1", "overlays:2"):
        killing = {"KILL_AT": moment, "PYTHONPATH": str(tmp_path / "assassin")}
        assert segment("broken", **killing) == -signal.SIGKILL
        assert not (tmp_path / "broken" / "instances.json").exists()
    assert segment("broken") == 0
    left, unbroken = contents(tmp_path / "broken"), contents(tmp_path / "unbroken")
    assert {name: left[name] for name in unbroken} == unbroken


# --- bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--crf"], "--crf and --instances: objects are found in what the network says"),
        (["--tile", "256"], "--tile and --instances: objects are found in images whole"),
        (["--min-score", "0.5"], "--min-score is of overlays; give --overlay too"),
        (["--overlay", "--min-score", "1.1"], "--min-score 1.1: give a number at least 0 and"),
        (["--top-masks", "0"], "--top-masks 0: give a number at least 1 and at most 100"),
        (["--nms-iou", "0"], "--nms-iou 0.0: give a number above 0 and at most 1"),
        (["--nms-iou", "nan"], "--nms-iou nan: give a number above 0"),
        (["--min-probability", "-0.1"], "--min-probability -0.1: give a number at least 0"),
        (["--min-pixels", "-1"], "--min-pixels -1: give a number at least 0"),
        (["--vote-stride", "65"], "--vote-stride 65: give a number at least 1 and at most 64"),
        (["--region-rule", "some"], "--region-rule some: give any_overlap, or an IoU above 0"),
        (["--region-rule", "0"], "--region-rule 0: give any_overlap, or an IoU above 0"),
        (["--scales", "1,two"], "--scales 1,two: give numbers"),
    ],
)
def test_bad_options_are_told_before_anything_is_written(models, images, capsys, options, said):
    assert run(models, images, *options) == 2
    assert said in capsys.readouterr().err
    assert not (images.parent / "out").exists()


def test_options_of_objects_mean_nothing_without_a_localisation_network(models, images, capsys):
    given = {
        "--region-rule": "0.5",
        **{f"--{n.replace('_', '-')}": "1" for n in (*NUMBERS, "min_score")},
    }
    places = ["--images", str(images), "--out", str(images.parent / "out")]
    for option, value in given.items():
        assert main(["segment", str(models / "semantic.pt"), *places, option, value]) == 2
        said = f"{option} without --instances or --like: give one of them too"
        assert said in capsys.readouterr().err
    assert not (images.parent / "out").exists()


def test_networks_in_each_others_place_are_told(models, images, capsys):
    semantic, boxes = str(models / "semantic.pt"), str(models / "boxes.pt")
    places = ["--images", str(images), "--out", str(images.parent / "out")]
    for first in ([boxes], [boxes, "--instances", semantic], [boxes, "--instances", boxes]):
        assert main(["segment", *first, *places]) == 2
        error = capsys.readouterr().err
        assert f"{boxes}: a localisation network, which knows boxes and no categories" in error
    assert main(["segment", semantic, "--instances", semantic, *places]) == 2
    error = capsys.readouterr().err
    assert f"--instances {semantic}: a semantic network, which knows no boxes; name a" in error
    assert main(["segment", semantic, "--instances", str(models / "no.pt"), *places]) == 2
    assert "no.pt: not there" in capsys.readouterr().err
    assert not (images.parent / "out").exists()


def test_networks_of_different_categories_are_told(models, images, capsys):
    others = ("background", "ring", "star", "moon", *SAMPLE[4:])
    save_localizer(models / "others.pt", others)
    assert run(models, images, boxes="others.pt") == 2
    error = capsys.readouterr().err
    assert "others.pt: knows other categories (background, ring, star, moon, plus" in error
    assert "(background, ring, star, crescent, plus" in error
    assert "name two networks that were trained on the same ones" in error
    assert not (images.parent / "out").exists()


def test_results_of_other_networks_views_and_settings_are_not_mixed(models, images, capsys):
    assert run(models, images) == 0
    before = contents(images.parent / "out")
    save_localizer(models / "coarse.pt", stride=16)
    for options, boxes in (
        (["--flip"], "boxes.pt"),
        (["--top-masks", "1"], "boxes.pt"),
        (["--region-rule", "any_overlap"], "boxes.pt"),
        ([], "coarse.pt"),
    ):
        assert run(models, images, *options, boxes=boxes) == 2
        assert "of another network or of other settings are there" in capsys.readouterr().err
    places = ["--images", str(images), "--out", str(images.parent / "out")]
    assert main(["segment", str(models / "semantic.pt"), *places]) == 2
    assert contents(images.parent / "out") == before
    assert main(["segment", str(models / "semantic.pt"), *places, "--again"]) == 0
    left = set(contents(images.parent / "out"))
    assert left == {"segment.json", *(f"labels/{name}.png" for name in NAMES)}


def test_bad_photographs_are_told_each_and_the_others_go_on(models, images, capsys):
    (images / "d.png").write_bytes(b"")
    (images / "e.jpg").write_text("no image")
    Image.fromarray(photograph(0)).save(images / "c.bmp")
    assert run(models, images) == 2
    error = capsys.readouterr().err
    assert "d.png" in error and "e.jpg" in error
    assert f"not segmented: {images / 'c.bmp'}: another image has its name" in error
    assert "4 of 6 images are not segmented" in error
    assert {entry["image_id"] for entry in results(images)} == {"a", "by the sea/b c"}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: "", "no COCO results"),
        (lambda text: text[:-40], "no COCO results"),
        (lambda text: text.replace('"size": [48', '"size": [47'), "47"),
        (lambda text: text.replace('"category_id": ', '"category_id": 9'), "category 9"),
        (lambda text: text.replace('"a"', '"b"'), "image 'b'"),
    ],
)
def test_damaged_objects_are_told_with_what_to_do(models, images, capsys, damage, said):
    assert run(models, images) == 0
    before, part = results(images), images.parent / "out" / "instances" / "a.json"
    text = part.read_text()
    part.write_text(damage(text))
    assert run(models, images) == 2
    error = capsys.readouterr().err
    assert f"{part}: " in error and said in error
    assert "remove this file, or give --again" in error
    assert results(images) == before
    part.unlink()
    assert run(models, images) == 0
    assert part.read_text() == text


def test_a_photograph_that_was_changed_does_not_get_the_old_objects(models, images, capsys):
    assert run(models, images) == 0
    Image.fromarray(photograph(0, 24, 24)).save(images / "a.png")
    assert run(models, images, "--overlay") == 2
    assert "has another size, it was changed since" in capsys.readouterr().err
    assert set(contents(images.parent / "out" / "overlays")) == {f"{n}.png" for n in NAMES[1:]}


def test_a_network_that_says_nan_is_told(models, tmp_path, images, capsys):
    network, saved = load_model(models / "boxes.pt", CPU)
    network.classifier.weight.data[:] = float("nan")
    save(tmp_path / "boxes.pt", network, SAMPLE, network_of(), targets={"kind": "standardise"})
    shutil.copyfile(models / "semantic.pt", tmp_path / "semantic.pt")
    assert run(tmp_path, images) == 2
    error = capsys.readouterr().err
    assert error.count("the network says NaN") == 3
    assert results(images) == []


def test_what_is_wrong_is_told_before_torch_is_imported(images):
    wrong = [
        ["--scales", "9"],
        ["--tile", "8"],
        ["--crf", "best"],
        ["--top-masks", "2"],
        ["--instances", "b.pt", "--top-masks", "0"],
        ["--instances", "b.pt", "--tile", "256"],
        ["--instances", "b.pt", "--min-score", "1"],
        ["--instances", "b.pt", "--region-rule", "2"],
        ["--instances", "not_trained"],
        ["--like", "no"],
        ["--images", "nowhere"],
    ]
    told = "import sys; from pipeline.__main__ import main\n"
    told += f"places = ['--images', {str(images)!r}, '--out', {str(images.parent / 'out')!r}]\n"
    told += f"codes = [main(['segment', 'a.pt', *places, *more]) for more in {wrong!r}]\n"
    told += "assert codes == [2] * len(codes), codes\n"
    told += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", told], cwd=PROJECT, env=environment(), timeout=100)
    assert done.returncode == 0


# --- defaults -------------------------------------------------------------------------------------
def test_defaults_are_those_of_the_catalogue_but_for_the_vote_stride_which_is_the_network_s():
    found = read_yaml(PROJECT / "params" / "wu2016.yaml")["common"]["found"]
    assert asdict(USUAL) == {**found, "vote_stride": 0}


def test_the_smallest_tile_is_that_of_the_tiles():
    assert SMALLEST_TILE == tiles.SMALLEST_TILE
