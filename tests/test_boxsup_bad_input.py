"""`python -m pipeline boxsup` on a small project that somebody has spoilt: what it says and keeps.

Every object is in the table of choices with a reason, or the run is refused by name.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scratch import PARAMS, PROJECT

from pipeline.__main__ import main
from pipeline.box_labels import check_kept
from pipeline.checkpoints import save_weights
from pipeline.datasets.proposal_table import to_row
from pipeline.proposals.form import from_membership
from pipeline.tables import read_table, write_table

IDS = ["a", "b", "c", "d"]
HEIGHT, WIDTH = 32, 40
PREPARED, PROPOSALS = Path("data/prepared/sample"), Path("data/proposals/scg/sample")
MODELS = Path("data/models")
BOXSUP = """boxsup:
  boxes:
    <<: *run
    split: train
    epochs: 2
    lr: 0.01
    augmentation: {crop: [32, 32], scale: [1.0, 1.0], flip: none}
    proposals: scg
    mask_split: none
    difficult: box
    crowd: ignore
    estimator: {kind: boxsup, top_k: 3, lam: 1.0, lam_start: 1, round_epochs: 1, costs: averaged,
      min_box_iou: 0.5, fallback_box_iou: 0.3, fallback: rectangle}"""
SCG = """  scg_sample: {method: scg, dataset: sample, contours: none, ranker: none,
    algorithm: {kind: scg, edges: {kind: gradient, sigma: 2.0}, min_area: 20, singletons: 9,
      pairs: 9, triplets: 9, quadruplets: 0, max_overlap: 0.95, max_candidates: 9,
      fill_holes: false}}
weights:"""


def an_object(image_id: str, instance: int = 0, **changed: object) -> dict:
    row = {"image_id": image_id, "instance": instance, "category": 1, "x0": 8, "y0": 8, "x1": 24,
           "y1": 24, "difficult": False, "crowd": False, "mask_rle": None}  # fmt: skip
    return row | changed


def write_objects(*rows: dict) -> None:
    write_table(PREPARED / "instances.parquet", "instances", list(rows))


def write_proposals(rows: list[dict]) -> None:
    write_table(PROPOSALS / "part-000.parquet", "proposals", rows)


def candidates(image_id: str, *, at_most: int = 200, on_its_side: bool = False) -> dict:
    """A row of the table: rectangles of up to 3 x 2 superpixels of 8 x 8 pixels each.

    The first, which is the only one if `at_most` is 1, is the whole image.
    """
    ids = np.arange(20).reshape(4, 5)
    corners = [(y, x, h, w) for y in range(4) for x in range(5) for h in (1, 2, 3) for w in (1, 2)]
    members = np.zeros((1 + len(corners), 20), bool)
    members[0] = True
    for member, (y, x, h, w) in zip(members[1:], corners, strict=True):
        member[ids[y : y + h, x : x + w]] = True
    superpixels = np.kron(ids, np.ones((8, 8), int)).astype(np.uint16)
    if on_its_side:
        superpixels = np.ascontiguousarray(superpixels.T)
    made = from_membership(superpixels, members[:at_most])
    fields = ("superpixels", "members", "offsets", "scores", "boxes", "areas")
    return to_row(image_id, "", "scg", **{field: getattr(made, field) for field in fields})


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Four images with one plain object each, and their candidates; the test runs in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_DEVICE", "cpu")
    Path("pipeline").symlink_to(PROJECT / "pipeline")
    Path("params.yaml").write_text(PARAMS.replace("boxsup: {}", BOXSUP).replace("weights:", SCG, 1))
    Path("data/raw/sample").mkdir(parents=True)
    rng, images = np.random.default_rng(0), []
    for name in IDS:
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(f"data/raw/sample/{name}.png")
        images.append({"image_id": name, "split": "train", "source": "voc",
            "path": f"sample/{name}.png", "height": HEIGHT, "width": WIDTH,
            "has_masks": False, "has_boxes": True})  # fmt: skip
    write_table(PREPARED / "images.parquet", "images", images)
    write_objects(*(an_object(name) for name in IDS))
    (PREPARED / "categories.json").write_text(json.dumps(["background", "ring", "star"]))
    write_proposals([candidates(name) for name in IDS])
    save_weights(MODELS / "none.pt", None)
    return tmp_path


def change(old: str, new: str) -> None:
    text = Path("params.yaml").read_text()
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new))


def choices() -> pd.DataFrame:
    return read_table(MODELS / "boxes.choices.parquet", "choices")


def decided() -> dict[int, list[tuple]]:
    """{epoch: (image, label, reason) of each object}."""
    rows = choices()
    fields = ["image_id", "label", "reason"]
    return {
        e: list(of.itertuples(index=False, name=None)) for e, of in rows.groupby("epoch")[fields]
    }


# --- refused --------------------------------------------------------------------------------------
def cut_off(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "outside": (
        lambda: write_objects(an_object("a"), an_object("c", 4, x1=41)),
        "boxsup.boxes: sample, split train: .*c object 4: their boxes reach out of the image "
        r"\(the first: x 8..41, y 8..24 of 40 x 32 pixels\)",
    ),
    "no name": (
        lambda: write_objects(an_object("a"), an_object("b", category=3)),
        "b object 0: their categories are none of the 3 with a name",
    ),
    "no number": (
        lambda: write_objects(an_object("a"), an_object("b", x0=None)),
        "b object 0: values are missing",
    ),
    "no boxes": (
        lambda: write_objects(),
        r"no object of 4 images is a box to train on \(objects: none\); choose another split",
    ),
    "crowds": (
        lambda: write_objects(an_object("a", crowd=True), an_object("b", crowd=True, x1=8)),
        r"no object of 4 images is a box to train on \(objects: 1 crowd, 1 empty\)",
    ),
    "no proposals": (
        lambda: write_proposals([candidates(name) for name in IDS if name != "c"]),
        "1 images have no proposals: c",
    ),
    "other size": (
        lambda: write_proposals([candidates(name, on_its_side=name == "c") for name in IDS]),
        r"the proposals of 'c' are \(40, 32\), its image is \(32, 40\)",
    ),
    "no method": (
        lambda: change("    proposals: scg\n", "    proposals: none\n"),
        "boxsup.boxes.proposals is 'none', but its estimator chooses",
    ),
    "cut off": (
        lambda: cut_off(PROPOSALS / "part-000.parquet"),
        r"data/proposals/scg/sample/part-000.parquet: not a table of proposals",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_labelled_is_refused_by_name(project, capfd, what):
    spoil, said = REFUSED[what]
    spoil()
    assert main(["boxsup", "boxes"]) == 2
    found = capfd.readouterr().err
    assert re.search(said, found), found
    assert [path.name for path in MODELS.iterdir()] == ["none.pt"]
    assert not list(Path("work").glob("boxsup/*/c*.p*"))  # no checkpoint, no choices


# --- counted --------------------------------------------------------------------------------------
def test_every_object_is_counted_with_what_became_of_it(project, capfd):
    write_objects(
        an_object("a", 0), an_object("a", 1, x1=8), an_object("a", 2, crowd=True),
        an_object("b", 0, crowd=True), an_object("c", 0, difficult=True),
    )  # fmt: skip
    write_proposals([candidates(name, at_most=1 if name == "c" else 200) for name in IDS])
    change("difficult: box", "difficult: ignore")
    assert main(["boxsup", "boxes"]) == 0
    said = capfd.readouterr().err
    assert "1 objects (empty) are no boxes to train on: background" in said
    assert "2 objects (crowd) are no boxes to train on: ignore" in said
    assert "1 objects (difficult) are no boxes to train on: ignore" in said
    assert "1 of 4 images have no object: all of them is background" in said
    of_round = [
        ("a", "candidate", "chosen"), ("a", "background", "empty"), ("a", "ignore", "crowd"),
        ("b", "ignore", "crowd"), ("c", "ignore", "difficult"),
    ]  # fmt: skip
    assert decided() == {0: of_round, 1: of_round}


def test_an_only_candidate_is_taken_where_it_fits_and_the_fallback_where_not(project):
    write_objects(an_object("a"), an_object("b", x0=0, y0=0, x1=40, y1=31))
    write_proposals([candidates(name, at_most=1) for name in IDS])
    change("top_k: 3", "top_k: 999")
    change("fallback: rectangle", "fallback: ignore")
    assert main(["boxsup", "boxes"]) == 0
    of_round = [("a", "ignore", "unfit"), ("b", "candidate", "chosen")]
    assert decided() == {0: of_round, 1: of_round}
    assert choices()["rank"].tolist() == [0] * 4


def test_more_epochs_in_a_round_than_there_are_make_one_round(project):
    change("round_epochs: 1", "round_epochs: 99")
    change("costs: averaged", "costs: literal")
    assert main(["boxsup", "boxes"]) == 0
    assert list(decided()) == [0]


# --- unfinished work ------------------------------------------------------------------------------
@pytest.fixture
def stopped(project) -> tuple[Path, dict[str, bytes]]:
    """The folder of unfinished work after the last step, and what an unbroken run gave."""
    assert main(["boxsup", "boxes"]) == 0
    outs = {path.name: path.read_bytes() for path in MODELS.glob("boxes.*")}
    (work,) = (path for path in Path("work/boxsup").iterdir() if path.is_dir())
    (work / "published").unlink()
    for path in MODELS.glob("boxes.*"):
        path.unlink()
    return work, outs


def test_choices_that_were_learned_from_cannot_be_lost(stopped, capfd):
    work, outs = stopped
    kept = shutil.copytree(work, work.with_name("aside"))
    for spoil in (cut_off, Path.unlink):
        spoil(work / "choices-0000.parquet")
        assert main(["boxsup", "boxes"]) == 2
        said = capfd.readouterr().err
        assert f"{work}: choices-0000.parquet: gone or damaged, but the training has" in said
        assert f"Delete {work} and run again" in said
        assert not list(MODELS.glob("boxes.*"))
        shutil.copyfile(kept / "choices-0000.parquet", work / "choices-0000.parquet")
    shutil.rmtree(work)
    assert main(["boxsup", "boxes"]) == 0
    assert {path.name: path.read_bytes() for path in MODELS.glob("boxes.*")} == outs


def test_damaged_files_of_a_step_that_nothing_learned_from_are_made_again(stopped, capfd):
    work, outs = stopped
    (work / "checkpoint.pt").unlink()  # as if the machine had gone down in the first round
    for path in [*work.glob("choices-*"), *work.glob("labels-*")]:
        cut_off(path)
    assert main(["boxsup", "boxes"]) == 0
    said = capfd.readouterr().err
    assert said.count("damaged, removed; it is made again") == 3
    assert {path.name: path.read_bytes() for path in MODELS.glob("boxes.*")} == outs


def test_labels_that_were_cut_off_are_removed_and_whole_ones_stay(tmp_path, capfd):
    rows = {"image_id": ["a"], "png": [b"-"]}
    for name in ("labels-0002", "grabcut/000000", "grabcut/000256"):
        write_table(tmp_path / f"{name}.parquet", "semantic", rows)
    write_table(tmp_path / "choices-0002.parquet", "choices", [])
    for name in ("labels-0002", "grabcut/000256"):
        cut_off(tmp_path / f"{name}.parquet")
    check_kept(tmp_path, [2])
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet")}
    assert left == {"choices-0002.parquet", "grabcut/000000.parquet"}
    assert "grabcut/000256.parquet: damaged, removed" in capfd.readouterr().err


def test_a_lambda_that_never_counts_is_told(project, capfd):
    change("lam_start: 1,", "lam_start: 2,")
    assert main(["boxsup", "boxes"]) == 0
    assert "no label step asks the network" in capfd.readouterr().err


def test_an_image_of_another_size_than_prepared_is_refused(project, capfd):
    Image.new("RGB", (48, 32)).save("data/raw/sample/b.png")
    assert main(["boxsup", "boxes"]) == 2
    told = capfd.readouterr().err
    assert re.search(r"b\.png: 32 x 48 pixels .* but 32 x 40 when sample was prepared", told), told
