"""Stage `propose` and the table it writes."""

import csv
import hashlib
import logging
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import proposing
from pipeline.datasets.form import read_image
from pipeline.datasets.proposal_table import ProposalTable, to_row
from pipeline.errors import BadInput
from pipeline.params import SECTIONS, Params
from pipeline.params_file import build
from pipeline.proposals.edges import edges
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.mcg import mcg
from pipeline.proposals.scg import scg
from pipeline.stages.propose import propose
from pipeline.tables import write_table

ROOT = Path(__file__).resolve().parents[1]
FIELDS = [f.name for f in fields(Proposals)]
SCG = {
    "kind": "scg",
    "edges": {"kind": "gradient", "sigma": 1.0},
    "min_area": 10,
    "singletons": 100,
    "pairs": 50,
    "triplets": 50,
    "quadruplets": 20,
    "max_overlap": 0.95,
    "max_candidates": 200,
    "fill_holes": False,
}
MCG = SCG | {
    "kind": "mcg",
    "align_cut": 0.1,
    "singletons": [20, 20, 20, 20],
    "pairs": [20, 20, 20, 20],
    "triplets": [20, 20, 20, 20],
    "quadruplets": [5, 5, 5, 5],
}
ALGORITHMS = {"scg": SCG, "mcg": MCG, "none": {"kind": "none"}}
IDS = ["a", "b", "c", "d", "e"]


def picture(number: int) -> np.ndarray:
    image = np.random.default_rng(number).normal(90, 5, (24, 32, 3))
    image[4:15, 5 + number : 18 + number] += 90, 20, 0
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Five images, of which `a` is in val only; parts of three images."""
    monkeypatch.setattr(proposing, "IMAGES_PER_PART", 3)
    monkeypatch.delenv("PIPELINE_DATA_DRAWN", raising=False)
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    (tmp_path / "params.yaml").write_text("proposals: {scg_drawn: {sigma: 1.0}}\n")
    (tmp_path / "data/forests").mkdir(parents=True)
    (tmp_path / "data/forests/none.npz").touch()
    images = tmp_path / "data/raw/drawn/JPEGImages"
    images.mkdir(parents=True)
    rows = []
    for number, image_id in enumerate(IDS):
        Image.fromarray(picture(number)).save(images / f"{image_id}.png")
        row = {"image_id": image_id, "source": "voc", "path": f"drawn/JPEGImages/{image_id}.png"}
        row |= {"height": 24, "width": 32, "has_masks": True, "has_boxes": True}
        splits = ["val"] if image_id == "a" else ["train", "train_aug"]
        rows += [row | {"split": split} for split in splits]
    prepared = tmp_path / "data/prepared/drawn"
    write_table(prepared / "images.parquet", "images", rows)
    write_table(prepared / "instances.parquet", "instances", [])
    (prepared / "categories.json").write_text('["background", "block"]')
    return tmp_path


@pytest.fixture
def params() -> Params:
    given: dict = {section: {} for section in SECTIONS}
    for method, algorithm in ALGORITHMS.items():
        entry = {"method": method, "dataset": "drawn", "contours": "none", "ranker": "none"}
        given["proposals"][f"{method}_drawn"] = entry | {"algorithm": algorithm}
    return build(Params, given, "params.yaml", "")


def parts(project: Path, method: str = "scg") -> dict[str, bytes]:
    folder = project / "data/proposals" / method / "drawn"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def timings(project: Path, method: str = "scg") -> list[dict[str, str]]:
    with (project / f"data/proposals/{method}/drawn.timings.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- the table ---------------------------------------------------------------------------------
def test_what_is_written_is_read_back_bit_by_bit(tmp_path):
    rng = np.random.default_rng(0)
    written = {}
    for number in range(5):
        superpixels = rng.permutation(42).reshape(6, 7).astype(np.uint16) // 2  # ids 0..20
        members = rng.random((number * 3, 21)) < 0.2
        members[:, 3] = True
        written[str(number)] = from_membership(superpixels, members)
    rows = [
        to_row(i, "f00d", "scg", **{name: getattr(p, name) for name in FIELDS})
        for i, p in written.items()
    ]
    write_table(tmp_path / "part-000.parquet", "proposals", rows[:2])
    write_table(tmp_path / "part-001.parquet", "proposals", rows[2:])
    table = ProposalTable(tmp_path)
    assert table.ids == list(written)
    for image_id in ("4", "0", "3", "1", "2"):
        read = table.of(image_id)
        assert set(read) == set(FIELDS)
        for name in FIELDS:
            before = getattr(written[image_id], name)
            assert read[name].dtype == before.dtype
            np.testing.assert_array_equal(read[name], before)


def test_superpixel_ids_of_sixteen_bits_survive(tmp_path):
    superpixels = np.arange(300 * 200).reshape(300, 200).astype(np.uint16)
    members = np.zeros((1, 60_000), bool)
    members[0, 59_000:] = True
    arrays = from_membership(superpixels, members)
    row = to_row("x", "", "scg", **{name: getattr(arrays, name) for name in FIELDS})
    write_table(tmp_path / "part-000.parquet", "proposals", [row])
    read = Proposals(**ProposalTable(tmp_path).of("x"))
    np.testing.assert_array_equal(read.superpixels, superpixels)
    assert read.mask(0).sum() == 1000


def test_an_image_that_is_there_twice_is_refused(tmp_path):
    arrays = from_membership(np.zeros((2, 3), np.uint16), np.ones((1, 1), bool))
    row = to_row("x", "", "scg", **{name: getattr(arrays, name) for name in FIELDS})
    write_table(tmp_path / "part-000.parquet", "proposals", [row])
    write_table(tmp_path / "part-001.parquet", "proposals", [row])
    with pytest.raises(BadInput, match=r"part-001.parquet: .*'x' again, beside part-000.parquet"):
        ProposalTable(tmp_path)


def test_an_image_or_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match="holds no part"):
        ProposalTable(tmp_path / "nowhere")
    write_table(tmp_path / "part-000.parquet", "proposals", [])
    with pytest.raises(BadInput, match="'zebra'"):
        ProposalTable(tmp_path).of("zebra")
    (tmp_path / "part-001.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(BadInput, match="part-001"):
        ProposalTable(tmp_path)


# --- the stage ---------------------------------------------------------------------------------
def test_training_images_get_what_scg_finds(project, params, capsys):
    propose(project, params, "scg", "drawn")
    assert list(parts(project)) == ["part-000.parquet", "part-001.parquet"]
    table = ProposalTable(project / "data/proposals/scg/drawn")
    assert table.ids == ["b", "c", "d", "e"]
    read = Proposals(**table.of("c"))
    direct = scg(picture(2), params.proposals["scg_drawn"].algorithm, edges("gradient", sigma=1.0))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(read, name), getattr(direct, name))
    row = pq.read_table(project / "data/proposals/scg/drawn/part-000.parquet").to_pylist()[1]
    file = project / "data/raw/drawn/JPEGImages/c.png"
    assert row["image_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert row["method"] == "scg"
    assert [t["image_id"] for t in timings(project)] == table.ids
    assert all(float(t["seconds"]) > 0 and t["error"] == "" for t in timings(project))
    assert "4 images" in capsys.readouterr().out


def test_without_train_aug_every_image_is_taken_once(project, params):
    path = project / "data/prepared/drawn/images.parquet"
    rows = pq.read_table(path).to_pylist()
    write_table(path, "images", [row for row in rows if row["split"] != "train_aug"])
    propose(project, params, "scg", "drawn")
    assert ProposalTable(project / "data/proposals/scg/drawn").ids == IDS


def test_a_bad_image_gets_the_whole_image_and_is_counted(project, params, capsys, caplog):
    images = project / "data/raw/drawn/JPEGImages"
    (images / "b.png").unlink()
    (images / "c.png").write_bytes((images / "c.png").read_bytes()[:300])
    Image.fromarray(picture(3)[:20]).save(images / "d.png")
    with caplog.at_level(logging.WARNING):
        propose(project, params, "scg", "drawn")
    table = ProposalTable(project / "data/proposals/scg/drawn")
    for image_id in ("b", "c", "d"):
        whole = Proposals(**table.of(image_id))
        assert len(whole) == 1 and whole.mask(0).all() and whole.superpixels.shape == (24, 32)
        assert any(image_id + ".png" in message for message in caplog.messages)
    assert len(Proposals(**table.of("e"))) > 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("3 images failed")
    assert [bool(t["error"]) for t in timings(project)] == [True, True, True, False]


@pytest.mark.parametrize("per_shard", [1, 2])  # of four images, three of them in the first part
@pytest.mark.parametrize("finished", [1, 2, 3, 4])  # files: pieces and parts
def test_what_a_killed_run_had_finished_is_not_made_again(
    project, params, monkeypatch, finished, per_shard
):
    written, read = [], []

    def dies(path, kind, rows):
        if len(written) == finished:
            raise KeyboardInterrupt
        written.append((path.stem, len(rows)))
        write_table(path, kind, rows)

    def told(path):
        read.append(path.stem)
        return read_image(path)

    def in_this_process(function, items, what, *, shard, scheduler):
        yield from map(function, items)

    monkeypatch.setattr(proposing, "map_shards", in_this_process)
    monkeypatch.setattr(proposing, "IMAGES_PER_SHARD", per_shard)
    monkeypatch.setattr(proposing, "read_image", told)
    propose(project, params, "scg", "drawn")
    unbroken = parts(project)
    shutil.rmtree(project / "work")
    shutil.rmtree(project / "data/proposals")
    with monkeypatch.context() as patch:
        patch.setattr(proposing, "write_table", dies)
        with pytest.raises(KeyboardInterrupt):
            propose(project, params, "scg", "drawn")
    assert not (project / "data/proposals/scg").exists()
    kept = sum(count for name, count in written if name.count("-") == 2)  # images in pieces
    read.clear()
    propose(project, params, "scg", "drawn")
    assert len(read) == 4 - kept and len(timings(project)) == 4
    assert parts(project) == unbroken
    assert not list(project.rglob("part-*-*"))


def test_no_method_means_one_superpixel_and_no_candidate(project, params):
    (project / "data/raw/drawn/JPEGImages/b.png").unlink()
    propose(project, params, "none", "drawn")
    table = ProposalTable(project / "data/proposals/none/drawn")
    for image_id in ("b", "e"):
        nothing = Proposals(**table.of(image_id))
        assert len(nothing) == 0 and not nothing.superpixels.any()
        assert nothing.superpixels.shape == (24, 32)
    assert not any(t["error"] for t in timings(project, "none"))


def test_unknown_proposals_are_named(project, params):
    with pytest.raises(BadInput, match="ss_drawn.*scg_drawn"):
        propose(project, params, "ss", "drawn")


def test_training_images_get_what_mcg_finds(project, params):
    propose(project, params, "mcg", "drawn")
    found = ProposalTable(project / "data/proposals/mcg/drawn").of(IDS[2])
    direct = mcg(picture(2), params.proposals["mcg_drawn"].algorithm, edges("gradient", sigma=1.0))
    for name in FIELDS:
        assert np.array_equal(found[name], getattr(direct, name))
