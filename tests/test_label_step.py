"""The label step on a small dataset: what it decides, keeps, makes again and refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scratch import PARAMS

import pipeline.label_step as step
from pipeline.box_labels import KEPT, all_choices, estimated_maps
from pipeline.box_objects import objects_of
from pipeline.boxes import box_mask
from pipeline.datasets import processes
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.proposal_table import ProposalTable, to_row
from pipeline.errors import BadInput
from pipeline.labels import grabcut_mask, paint
from pipeline.masks import decode_index_png
from pipeline.models.fcrn import Fcrn, fcrn
from pipeline.params_file import load_params
from pipeline.params_training import BoxSupLabels, BoxSupRun, GrabCut
from pipeline.proposals.form import from_membership
from pipeline.tables import read_table, write_table

IDS = [f"image_{n}" for n in range(7)]
SIZES = {name: (24, 40) if n % 3 else (32, 32) for n, name in enumerate(IDS)}
MADE = dict(
    kind="boxsup", top_k=4, lam=1.0, lam_start=2, round_epochs=1, costs="averaged",
    min_box_iou=0.3, fallback_box_iou=0.2, fallback="rectangle",
)  # fmt: skip


def candidates(name: str) -> dict:
    """Rectangles of superpixels of 8 x 8 pixels; none reaches into the last column of them."""
    height, width = SIZES[name]
    rng = np.random.default_rng(IDS.index(name))
    ids = np.arange(height // 8 * (width // 8)).reshape(height // 8, -1)
    members = np.zeros((12, ids.size), bool)
    for member in members:
        y, x = np.sort(rng.integers(0, ids.shape[0], 2)), np.sort(rng.integers(0, ids.shape[1], 2))
        member[ids[y[0] : y[1] + 1, min(x[0], ids.shape[1] - 2) : x[1] or 1]] = True
    members[:, ids[:, -1]] = False
    members = members[members.any(axis=1)]
    return vars(from_membership(np.kron(ids, np.ones((8, 8), int)).astype(np.uint16), members))


def write_proposals(folder: Path, names: list[str], **others: str) -> Path:
    """Candidates of the images; of some, those of another image."""
    fields = ("superpixels", "members", "offsets", "scores", "boxes", "areas")
    rows = []
    for name in names:
        arrays = candidates(others.get(name, name))
        rows.append(to_row(name, "", "scg", **{field: arrays[field] for field in fields}))
    for number in range(0, len(rows), 3):
        part = folder / f"part-{number:03d}.parquet"
        write_table(part, "proposals", rows[number : number + 3])
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Seven images of two sizes with four objects each, and their candidates."""
    root = tmp_path_factory.mktemp("project")
    (root / "data/raw/sample").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, objects = [], []
    for name in IDS:
        height, width = SIZES[name]
        pixels = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        pixels = np.kron(pixels, np.ones((8, 8, 1), np.uint8))
        Image.fromarray(pixels).save(root / f"data/raw/sample/{name}.png")
        images.append({"image_id": name, "split": "train", "source": "voc",
            "path": f"sample/{name}.png", "height": height, "width": width,
            "has_masks": False, "has_boxes": True})  # fmt: skip
        boxes = [(0, 0, 22, 20), (6, 4, 24, 24), (width - 6, 2, width, 9), (3, 3, 20, 22)]
        for n, box in enumerate(boxes):
            objects.append({"image_id": name, "instance": n, "category": 1 + n % 2,
                **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
                "difficult": False, "crowd": n == 3, "mask_rle": None})  # fmt: skip
    prepared = root / "data/prepared/sample"
    write_table(prepared / "images.parquet", "images", images)
    write_table(prepared / "instances.parquet", "instances", objects)
    (prepared / "categories.json").write_text(json.dumps(["background", "ring", "star"]))
    write_proposals(root / "data/proposals/scg/sample", IDS)
    (root / "params.yaml").write_text(PARAMS)
    return root


@pytest.fixture(scope="module")
def run(root) -> BoxSupRun:
    masks = load_params(root / "params.yaml").semantic["mask"]
    keys = dict(proposals="scg", mask_split="none", difficult="box", crowd="ignore")
    return BoxSupRun(**vars(masks), **keys, estimator=BoxSupLabels(**MADE))


@pytest.fixture(scope="module")
def network() -> Fcrn:
    torch.manual_seed(0)
    made = fcrn(depth=14, stride=8, kernel=3, dilation=2, num_categories=3)
    for parameter in made.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return made.eval()


def labels(root, run, network, epoch, folder, ids=IDS, proposals=None) -> dict[str, bytes]:
    proposals = proposals or root / "data/proposals/scg/sample"
    data = Prepared(root, "sample")
    objects = objects_of(data, ids)
    return estimated_maps(data, objects, run, network, epoch, proposals=proposals, folder=folder)


# --- choices --------------------------------------------------------------------------------------
def test_the_labels_of_any_epoch_are_rebuilt_from_choices_and_proposals(
    root, run, network, tmp_path
):
    made = {epoch: labels(root, run, network, epoch, tmp_path) for epoch in (0, 1, 2, 3)}
    write_table(tmp_path / "choices.parquet", "choices", all_choices(tmp_path))
    choices = read_table(tmp_path / "choices.parquet", "choices")
    stored = ProposalTable(root / "data/proposals/scg/sample")
    data = Prepared(root, "sample")
    for epoch, maps in made.items():
        of_epoch = choices[choices["epoch"] == epoch]
        assert step.rebuilt_maps(data, IDS, stored, of_epoch) == maps
        one = step.rebuilt_map(data, IDS[3], stored, of_epoch)
        np.testing.assert_array_equal(one, decode_index_png(maps[IDS[3]]))
    assert len({json.dumps([m.hex() for m in maps.values()]) for maps in made.values()}) == 4


def test_every_object_is_in_the_table_of_choices(root, run, network, tmp_path):
    labels(root, run, network, 2, tmp_path)
    choices = read_table(tmp_path / "choices-0002.parquet", "choices")
    assert len(choices) == 4 * len(IDS)
    by_instance = choices.groupby("instance")[["label", "reason"]].agg(set)
    assert by_instance.loc[2].tolist() == [{"rectangle"}, {"unfit"}]  # beside all candidates
    assert by_instance.loc[3].tolist() == [{"ignore"}, {"crowd"}]
    taken = choices[choices["reason"] == "chosen"]
    assert len(taken) > len(IDS) and (taken["proposal"] >= 0).all()
    assert taken["rank"].between(0, 3).all() and taken["rank"].nunique() > 1
    assert taken["regression_cost"].between(0, step.CLIP).all()
    assert taken["overlap_cost"].between(0, 1, inclusive="left").all()
    left = choices[choices["reason"] != "chosen"]
    assert (left["proposal"] == -1).all() and left["regression_cost"].isna().all()
    assert (choices.loc[choices["instance"] >= 2, "admissible"] == 0).all()
    assert (choices["admissible"] > 0).any()


def test_an_unfit_box_may_be_ignored(root, run, network, tmp_path):
    ignoring = replace(run, estimator=replace(run.estimator, fallback="ignore"), crowd="background")
    maps = labels(root, ignoring, network, 0, tmp_path)
    for name, png in maps.items():
        width = SIZES[name][1]
        assert (decode_index_png(png)[2:9, width - 6 :] == 255).all()


def test_candidates_are_drawn_anew_each_epoch_and_alike_for_one_seed(root, run, network, tmp_path):
    first = labels(root, run, network, 0, tmp_path / "a")
    assert first == labels(root, run, network, 0, tmp_path / "b")
    assert first != labels(root, run, network, 1, tmp_path / "c")
    assert first != labels(root, replace(run, seed=1), network, 0, tmp_path / "d")


def test_before_lambda_counts_no_network_is_asked(root, run, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "_ask", None)
    torn = fcrn(depth=14, stride=8, kernel=3, dilation=2, num_categories=3)
    labels(root, run, torn, 1, tmp_path)
    assert read_table(tmp_path / "choices-0001.parquet", "choices")["regression_cost"].isna().all()


def test_literal_costs_choose_otherwise(root, run, network, tmp_path):
    literal = replace(run, estimator=replace(run.estimator, costs="literal", top_k=1))
    labels(root, literal, network, 2, tmp_path)
    costs = read_table(tmp_path / "choices-0002.parquet", "choices")["regression_cost"]
    assert costs.max() > step.CLIP


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_and_order_change_nothing(root, run, network, tmp_path, monkeypatch, workers):
    expected = labels(root, run, network, 2, tmp_path / "a")
    monkeypatch.setattr(processes, "processors", lambda: workers)
    monkeypatch.setattr(step, "processors", lambda: workers)
    assert labels(root, run, network, 2, tmp_path / "b", ids=IDS[::-1]) == expected


def test_images_of_one_size_are_asked_together_and_answered_as_alone(root, run, network):
    data = Prepared(root, "sample")
    ask = step._asking(data, run, network)
    wanted = [np.array([2]), np.array([1, 2])]
    together = ask([IDS[1], IDS[2]], wanted)
    for n, name in enumerate((IDS[1], IDS[2])):
        (alone,) = ask([name], wanted[n : n + 1])
        assert alone.shape == (1 + len(wanted[n]), *SIZES[name])
        np.testing.assert_allclose(together[n], alone, atol=1e-5)


def test_batches_hold_images_of_one_size_and_every_image_once(root):
    batches = step._batches(Prepared(root, "sample"), IDS, 2)
    assert sorted(name for batch in batches for name in batch) == IDS
    assert all(len({SIZES[name] for name in batch}) == 1 for batch in batches)
    assert [len(batch) for batch in batches] == [2, 1, 2, 2]


# --- an interrupted step --------------------------------------------------------------------------
def test_a_finished_step_is_read_again(root, run, network, tmp_path, monkeypatch):
    made = labels(root, run, network, 2, tmp_path)
    monkeypatch.setattr(step, "_label_images", None)
    assert labels(root, run, network, 2, tmp_path) == made


def test_lost_labels_are_rebuilt_without_the_network(root, run, network, tmp_path, monkeypatch):
    made = labels(root, run, network, 2, tmp_path)
    (tmp_path / "labels-0002.parquet").unlink()
    monkeypatch.setattr(step, "_label_images", None)
    assert labels(root, run, network, 2, tmp_path) == made


def test_a_step_that_was_broken_off_is_made_again(root, run, network, tmp_path):
    made = labels(root, run, network, 2, tmp_path)
    choices = (tmp_path / "choices-0002.parquet").read_bytes()
    (tmp_path / "choices-0002.parquet").unlink()  # it is written last
    write_table(tmp_path / "labels-0002.parquet", "semantic", {"image_id": ["x"], "png": [b""]})
    assert labels(root, run, network, 2, tmp_path) == made
    assert (tmp_path / "choices-0002.parquet").read_bytes() == choices


def test_a_step_that_fails_midway_leaves_nothing_that_looks_finished(
    root, run, network, tmp_path, monkeypatch
):
    def broken(*args, **settings):
        raise OSError("disk full")

    monkeypatch.setattr(step, "encode_index_png", broken)
    with pytest.raises(OSError, match="disk full"):
        labels(root, run, network, 2, tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_the_labels_of_the_last_round_stay(root, run, network, tmp_path):
    for epoch in (0, 1, 2):
        labels(root, run, network, epoch, tmp_path)
    assert [path.name for path in tmp_path.glob("labels-*")] == ["labels-0002.parquet"]
    assert len(list(tmp_path.glob("choices-*"))) == 3


# --- bad input ------------------------------------------------------------------------------------
def test_an_image_without_proposals_is_named(root, run, network, tmp_path):
    some = write_proposals(tmp_path / "some", IDS[:5])
    with pytest.raises(BadInput, match="2 images have no proposals: image_5"):
        labels(root, run, network, 0, tmp_path, proposals=some)


def test_proposals_of_another_size_are_refused(root, run, network, tmp_path):
    wrong = write_proposals(tmp_path / "wrong", IDS, image_4="image_0")
    with pytest.raises(BadInput, match="the proposals of 'image_4' are .32, 32., its image is"):
        labels(root, run, network, 0, tmp_path, proposals=wrong)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_network_that_says_nan_is_refused_with_the_image(root, run, network, tmp_path):
    diverged = fcrn(depth=14, stride=8, kernel=3, dilation=2, num_categories=3).eval()
    torch.nn.init.constant_(next(diverged.parameters()), torch.nan)
    with pytest.raises(BadInput, match="says NaN of the image 'image_0': its training has"):
        labels(root, run, diverged, 2, tmp_path)
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize("kept", [slice(1, None), slice(None, -1)])
def test_choices_for_other_objects_are_refused(root, run, network, tmp_path, kept):
    labels(root, run, network, 0, tmp_path)
    choices = read_table(tmp_path / "choices-0000.parquet", "choices").iloc[kept]
    stored = ProposalTable(root / "data/proposals/scg/sample")
    with pytest.raises(BadInput, match="the choices of 'image_[06]' are for the objects .*anew"):
        step.rebuilt_maps(Prepared(root, "sample"), IDS, stored, choices)


def test_choices_of_other_candidates_are_refused(root, run, network, tmp_path):
    labels(root, run, network, 0, tmp_path)
    choices = read_table(tmp_path / "choices-0000.parquet", "choices")
    choices.loc[0, "proposal"] = 999
    stored = ProposalTable(root / "data/proposals/scg/sample")
    with pytest.raises(BadInput, match="'image_0' name candidate 999, it has"):
        step.rebuilt_maps(Prepared(root, "sample"), IDS, stored, choices)


# --- GrabCut --------------------------------------------------------------------------------------
def test_grabcut_in_threads_equals_one_image_after_another(root, run, tmp_path, monkeypatch):
    settings = GrabCut("grabcut", iterations=2, min_area=0.05)
    monkeypatch.setattr(processes, "processors", lambda: 4)
    maps = labels(root, replace(run, estimator=settings), None, 0, tmp_path)
    data = Prepared(root, "sample")
    for name in IDS:
        rows, image = data.objects(name), data.image(name)
        boxes = rows[["x0", "y0", "x1", "y1"]].to_numpy()
        masks = [grabcut_mask(image, box, iterations=2, min_area=0.05) for box in boxes[:3]]
        masks.append(box_mask(boxes[3], *image.shape[:2]))
        expected = paint(masks, boxes, np.array([1, 2, 1, 255]), *image.shape[:2])
        np.testing.assert_array_equal(decode_index_png(maps[name]), expected)


def test_grabcut_goes_on_after_the_parts_that_are_there(root, run, tmp_path, monkeypatch):
    cut = replace(run, estimator=GrabCut("grabcut", iterations=1, min_area=0.05))
    monkeypatch.setattr("pipeline.box_labels.KEPT", 3)
    made = labels(root, cut, None, 0, tmp_path)
    parts = sorted((tmp_path / "grabcut").iterdir())
    assert [part.name for part in parts] == ["000000.parquet", "000003.parquet", "000006.parquet"]
    parts[1].unlink()
    asked = []

    def counted(image, box, *, iterations, min_area):
        asked.append(box)
        return grabcut_mask(image, box, iterations=iterations, min_area=min_area)

    monkeypatch.setattr("pipeline.box_labels.grabcut_mask", counted)
    assert labels(root, cut, None, 0, tmp_path) == made
    assert len(asked) == 3 * 3 and KEPT > 3


def test_instances_of_other_images_do_not_matter(root, run, network, tmp_path):
    few = labels(root, run, network, 2, tmp_path / "few", ids=IDS[2:5])
    every = labels(root, run, network, 2, tmp_path / "all")
    assert few == {name: every[name] for name in IDS[2:5]}
    table = pd.read_parquet(tmp_path / "few" / "choices-0002.parquet")
    assert set(table["image_id"]) == set(IDS[2:5])
