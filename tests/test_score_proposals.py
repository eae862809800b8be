"""Scoring tables of proposals against COCO instances: the numbers, and what is refused."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import pipeline.scoring.proposals
from pipeline.__main__ import main
from pipeline.datasets.proposal_table import to_row
from pipeline.errors import BadFile, BadInput
from pipeline.masks import encode_index_png
from pipeline.proposals.form import Proposals, from_membership
from pipeline.scoring.outcome import document
from pipeline.scoring.proposal_figure import (
    ALL,
    BUDGETS,
    COLOURS,
    PUBLISHED,
    curve_of,
    draw_curves,
    read_published,
)
from pipeline.scoring.proposals import score_proposals
from pipeline.tables import SCHEMAS, read_table, write_table

# Two images of 2 x 4 pixels; the superpixels of both.
GRID = np.array([[0, 0, 1, 1], [0, 0, 1, 2]], np.uint16)
LEFT = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], bool)
CORNER = np.array([[0, 0, 0, 0], [0, 0, 0, 1]], bool)
TOP = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool)
CATEGORIES = {3: "ring", 8: "star"}
NAMES = ("jaccard_instance", "jaccard_class", "recall_0.5", "recall_0.7", "recall_0.85")


def found(*lists: list[int], superpixels: np.ndarray = GRID) -> Proposals:
    """The candidates with these superpixels."""
    members = np.zeros((len(lists), int(superpixels.max()) + 1), bool)
    for row, ids in zip(members, lists, strict=True):
        row[ids] = True
    return from_membership(superpixels, members)


TABLE = {"a": found([0, 1, 2], [0], [2]), "b": found([1, 2], [0, 1])}


def row(name: str, proposals: Proposals) -> dict[str, Any]:
    fields = ("superpixels", "members", "offsets", "scores", "boxes", "areas")
    return to_row(name, "", "drawn", **{field: getattr(proposals, field) for field in fields})


def write_proposals(folder: Path, parts: list[dict[str, Proposals]]) -> None:
    for number, part in enumerate(parts):
        rows = [row(name, proposals) for name, proposals in part.items()]
        write_table(folder / f"part-{number:03}.parquet", "proposals", rows)


def thing(image: int | str, category: int, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    segmentation = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    new = {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0}
    return new | {"area": int(mask.sum())} | more


def write_truth(path: Path, sizes: dict[str, tuple[int, int]], things: list[dict]) -> None:
    """Images numbered from 0 with these names and sizes."""
    images = [
        {"id": number, "file_name": f"some/folder/{name}.jpg", "height": h, "width": w}
        for number, (name, (h, w)) in enumerate(sizes.items())
    ]
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    numbered = [{"id": i} | entry for i, entry in enumerate(things, 1)]
    contents = {"images": images, "categories": categories, "annotations": numbered}
    path.write_text(json.dumps(contents))


@pytest.fixture
def folder(tmp_path):
    """truth.json and predicted/: images a and b in two parts."""
    sizes = {"a": (2, 4), "b": (2, 4)}
    things = [thing(0, 3, LEFT), thing(0, 8, CORNER), thing(1, 3, TOP)]
    crowd = thing(1, 8, CORNER, iscrowd=1)
    write_truth(tmp_path / "truth.json", sizes, [*things, crowd])
    (tmp_path / "predicted").mkdir()
    write_proposals(tmp_path / "predicted", [{"a": TABLE["a"]}, {"b": TABLE["b"]}])
    return tmp_path


def scored(folder: Path, **options: Any) -> dict[str, Any]:
    given = {"at": [1, 3], "void": None, "ids": None, "allow_missing": False} | options
    return document(score_proposals(folder / "truth.json", folder / "predicted", **given))


# --- numbers --------------------------------------------------------------------------------------
def test_numbers_by_hand(folder):
    outcome = scored(folder)
    assert list(outcome) == [
        "void", "num_images", "num_objects", "at",
        "auc", "auc_small", "auc_medium", "auc_large", "notes",
    ]  # fmt: skip
    assert (outcome["num_images"], outcome["num_objects"]) == (2, 3)
    # with one proposal 4/8, 1/8 and 2/6; with three 4/4, 1/1 and 4/7
    first, third = outcome["at"]["1"], outcome["at"]["3"]
    by_hand = [(4 / 8 + 1 / 8 + 2 / 6) / 3, ((4 + 2) / (8 + 6) + 1 / 8) / 2, 1 / 3, 0, 0]
    assert [first[name] for name in NAMES] == pytest.approx(by_hand)
    by_hand = [(1 + 1 + 4 / 7) / 3, ((4 + 4) / (4 + 7) + 1) / 2, 1, 2 / 3, 2 / 3]
    assert [third[name] for name in NAMES] == pytest.approx(by_hand)
    # 4/8 is enough at .5 only; with all: 4/4 and 1/1 at all ten, 4/7 at .5 and .55
    assert first["average_recall"] == first["average_recall_small"] == pytest.approx(1 / 30)
    assert third["average_recall"] == pytest.approx((10 + 10 + 2) / 30)
    assert third["average_recall_large"] is None
    assert (first["mean_num"], third["mean_num"]) == (1, 5 / 2)
    assert outcome["auc_medium"] is None and 0 < outcome["auc"] < 1
    assert outcome["notes"] == ["1 crowd regions are no objects"]


def test_void_pixels_count_nowhere(folder):
    voids = folder / "void"
    voids.mkdir()
    none = np.zeros((2, 4), np.uint8)
    (voids / "a.png").write_bytes(encode_index_png(np.where(GRID == 1, 255, none).astype(np.uint8)))
    (voids / "b.png").write_bytes(encode_index_png(none))
    outcome = scored(folder, void=voids)
    assert outcome["void"] is True
    # image a is now 5 pixels: the whole has 4/5 and 1/5
    by_hand = [(4 / 5 + 1 / 5 + 2 / 6) / 3, ((4 + 2) / (5 + 6) + 1 / 5) / 2, 1 / 3, 1 / 3, 0]
    assert [outcome["at"]["1"][name] for name in NAMES] == pytest.approx(by_hand)


def test_a_list_chooses_images_and_others_are_left_out_without_a_word(folder):
    (folder / "ids.txt").write_text("b\n")
    outcome = scored(folder, ids=folder / "ids.txt")
    assert (outcome["num_images"], outcome["num_objects"]) == (1, 1)
    assert outcome["at"]["3"]["jaccard_instance"] == pytest.approx(4 / 7)
    assert outcome["notes"] == ["1 crowd regions are no objects"]


def test_the_order_of_budgets_does_not_matter(folder):
    assert scored(folder, at=[3, 1])["at"] == scored(folder, at=[1, 3])["at"]


def test_images_without_a_file_name_go_by_their_id(folder):
    contents = json.loads((folder / "truth.json").read_text())
    for image in contents["images"]:
        del image["file_name"]
    (folder / "truth.json").write_text(json.dumps(contents))
    for part in (folder / "predicted").iterdir():
        part.unlink()
    write_proposals(folder / "predicted", [{"0": TABLE["a"], "1": TABLE["b"]}])
    assert scored(folder)["at"]["3"]["recall_0.85"] == pytest.approx(2 / 3)


def test_the_command_prints_and_writes_the_same_numbers(folder, capsys):
    arguments = ["--truth", "truth.json", "--predicted", "predicted", "--at", "1,3"]
    with contextlib.chdir(folder):
        written = ["--json", "found.json", "--table", "found.parquet"]
        assert main(["score", "proposals", *arguments, *written]) in (0, None)
    assert json.loads((folder / "found.json").read_text()) == scored(folder)
    table = read_table(folder / "found.parquet", "metrics")
    chosen = table[(table["metric"] == "recall_0.5") & (table["at"] == 3)]
    assert chosen["value"].tolist() == [1]
    assert "jaccard_instance at 1" in capsys.readouterr().out


# --- the figure -----------------------------------------------------------------------------------
ROOT = Path(__file__).resolve().parents[1]
GREY = "#808080"  # of the published curves


def run_figure(folder: Path, *more: str) -> int | None:
    given = ["--truth", "truth.json", "--predicted", "predicted", "--at", "1,3"]
    with contextlib.chdir(folder):
        return main(["score", "proposals", *given, *more])


def has_colour(path: Path, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    with Image.open(path) as picture:
        return bool((np.array(picture.convert("RGB")) == wanted).all(axis=2).sum() > 50)


def test_a_figure_does_not_change_the_numbers(folder, capsys):
    assert run_figure(folder, "--json", "plain.json") in (0, None)
    plain = capsys.readouterr().out
    asked = ["--figure", "curves.png", "--beside", "$again$$=predicted", "--json", "drawn.json"]
    assert run_figure(folder, *asked) in (0, None)
    assert capsys.readouterr().out == plain
    assert (folder / "drawn.json").read_text() == (folder / "plain.json").read_text()
    assert has_colour(folder / "curves.png", COLOURS[1])  # over our own, which is the same
    assert not has_colour(folder / "curves.png", COLOURS[2])
    assert not has_colour(folder / "curves.png", GREY)


def test_a_curve_goes_over_the_mean_number_of_proposals(folder):
    given = {"at": [3, 1, ALL], "void": None, "ids": None, "allow_missing": False}
    outcome = score_proposals(folder / "truth.json", folder / "predicted", **given)
    curve = curve_of(outcome, "ours")
    assert curve.num.tolist() == [1, 5 / 2, 5 / 2]
    first, whole = (4 / 8 + 1 / 8 + 2 / 6) / 3, (1 + 1 + 4 / 7) / 3
    assert curve.values["jaccard_instance"].tolist() == pytest.approx([first, whole, whole])
    assert curve.values["recall_0.7"].tolist() == pytest.approx([0, 2 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("dataset", "method", "at", "jaccard", "recalls"),
    [  # as the paper's authors give them
        ("voc2012_val", "MCG", 100, 0.638, None),
        ("voc2012_val", "MCG", 999, 0.757, (0.859, 0.670, 0.435)),
        ("voc2012_val", "MCG", 5138, 0.808, (0.922, 0.772, 0.529)),
        ("voc2012_val", "GOP", 650, 0.709, (0.838, 0.614, 0.305)),
        ("sbd_val", "SCG", 2130, 0.709, None),
        ("coco2014_val", "SeSe", 12838, 0.630, None),
    ],
)
def test_published_curves_go_through_the_printed_points(dataset, method, at, jaccard, recalls):
    curves = {curve.name: curve for curve in read_published(ROOT / PUBLISHED, dataset)}
    curve = curves[method]
    (place,) = np.flatnonzero(np.abs(curve.num - at) < 1)
    assert curve.values["jaccard_instance"][place] == pytest.approx(jaccard, abs=6e-4)
    if recalls:
        found = [curve.values[f"recall_{t}"][place] for t in ("0.5", "0.7", "0.85")]
        assert found == pytest.approx(recalls, abs=6e-4)


@pytest.mark.parametrize("dataset", ["voc2012_val", "sbd_val", "coco2014_val"])
def test_every_published_dataset_is_drawn_under_ours(folder, dataset):
    given = {"void": None, "ids": None, "allow_missing": False}
    budgets = [*BUDGETS, ALL]
    outcome = score_proposals(folder / "truth.json", folder / "predicted", at=budgets, **given)
    curves = read_published(ROOT / PUBLISHED, dataset)
    draw_curves(folder / "f.png", [curve_of(outcome, "ours")], curves, "drawn")
    assert has_colour(folder / "f.png", COLOURS[0]) and has_colour(folder / "f.png", GREY)
    assert not list(folder.glob("*.partial"))


def test_proposals_that_find_nothing_are_drawn_too(folder):
    write_truth(folder / "truth.json", {"a": (2, 4), "b": (2, 4)}, [])
    assert run_figure(folder, "--figure", "f.png") in (0, None)  # no object: no line
    assert (folder / "f.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--published", "sbd_val"], "give --figure"),
        (["--beside", "x=predicted"], "give --figure"),
        (["--figure", "f.pdf"], "end with .png"),
        (["--figure", "f.png", "--beside", "predicted"], "write NAME=DIR"),
        (["--figure", "f.png", "--beside", "x=a", "--beside", "x=b"], "each name once"),
        (["--figure", "f.png", *(f"--beside=n{i}=predicted" for i in range(6))], "at most 5"),
        (["--figure", "f.png", "--beside", "x=nowhere"], "nowhere: holds no part"),
        (["--figure", "f.png", "--published", "sbd_val"], "published_proposals.csv: not there"),
        (["--figure", "f.png", "--json", "f.png"], "asked for twice"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused(folder, capsys, given, message):
    assert run_figure(folder, *given) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "f.png").exists()


def test_a_damaged_file_of_published_curves_is_refused(tmp_path):
    (tmp_path / "p.csv").write_text("dataset,value\nsbd_val,1\n")
    with pytest.raises(BadFile, match="columns are not dataset, method"):
        read_published(tmp_path / "p.csv", "sbd_val")
    (tmp_path / "p.csv").write_text("")
    with pytest.raises(BadFile, match="no table"):
        read_published(tmp_path / "p.csv", "sbd_val")
    with pytest.raises(BadInput, match="choose one of: .*sbd_val"):
        read_published(ROOT / PUBLISHED, "other")


# --- pycocotools ----------------------------------------------------------------------------------
def drawn_dataset(folder: Path, seed: int, count: int) -> tuple[Path, Path]:
    """Images of blocks with random candidates; overlapping objects, crowds, all sizes, ties."""
    rng = np.random.default_rng(seed)
    sizes, things, table = {}, [], {}
    for number in range(count):
        height, width = int(rng.integers(20, 260)), int(rng.integers(20, 260))
        rows, columns = np.arange(height) * 5 // height, np.arange(width) * 5 // width
        superpixels = (rows[:, None] * 5 + columns).astype(np.uint16)
        boxes = np.sort(rng.integers(0, 6, (40, 2, 2)), axis=1)  # often empty, often the same
        y, x = np.divmod(np.arange(25), 5)
        low, high = boxes[:, 0, :, None], boxes[:, 1, :, None]
        members = (y >= low[:, 0]) & (y < high[:, 0]) & (x >= low[:, 1]) & (x < high[:, 1])
        members = members[members.any(axis=1)]
        name = f"image{number}"
        sizes[name] = height, width
        if rng.random() < 0.9:
            table[name] = from_membership(superpixels, members[: rng.integers(0, 41)])
        for _ in range(rng.integers(0, 7)):
            mask = rng.permutation(members)[0][superpixels]
            mask &= np.roll(mask, rng.integers(0, 9, 2), axis=(0, 1))
            category, crowd = int(rng.choice([3, 8])), int(rng.random() < 0.2)
            things.append(thing(number, category, mask, iscrowd=crowd))
    write_truth(folder / "truth.json", sizes, things)
    (folder / "predicted").mkdir()
    names = list(reversed(table))  # another order than the truth's
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    write_proposals(folder / "predicted", [{name: table[name] for name in h} for h in halves])
    results = [
        {"image_id": list(sizes).index(name), "category_id": 3, "score": 1 - rank / 1000}
        | {"segmentation": thing(0, 3, proposals.mask(rank))["segmentation"]}
        for name, proposals in table.items()
        for rank in range(len(proposals))
    ]
    (folder / "results.json").write_text(json.dumps(results))
    return folder / "truth.json", folder / "results.json"


def recall_of_pycocotools(truth: Path, results: Path, budgets: list[int]) -> np.ndarray:
    """Average recall (4, K): all, small, medium, large."""
    with contextlib.redirect_stdout(io.StringIO()):
        tool = COCO(str(truth))
        run = COCOeval(tool, tool.loadRes(str(results)), "segm")
        run.params.useCats = 0
        run.params.maxDets = budgets
        run.evaluate()
        run.accumulate()
    return run.eval["recall"][:, 0].mean(axis=0)


@pytest.mark.filterwarnings("ignore:.*info.*")
@pytest.mark.parametrize("seed", range(4))
def test_average_recall_equals_that_of_pycocotools_on_the_same_files(tmp_path, seed):
    truth, results = drawn_dataset(tmp_path, seed, count=25)
    contents = json.loads(truth.read_text()) | {"info": {}}  # loadRes wants it
    truth.write_text(json.dumps(contents))
    budgets = [1, 10, 1000]
    outcome = scored(tmp_path, at=budgets, allow_missing=True)
    expected = recall_of_pycocotools(truth, results, budgets)
    assert (expected[0, 1:] > 0).all() and (expected > 0).sum() > 6
    for i, size in enumerate(("", "_small", "_medium", "_large")):
        ours = [outcome["at"][str(n)][f"average_recall{size}"] for n in budgets]
        np.testing.assert_allclose(ours, expected[i], rtol=1e-12)


def test_processes_give_the_same_numbers(tmp_path, monkeypatch):
    drawn_dataset(tmp_path, seed=0, count=12)
    alone = scored(tmp_path, allow_missing=True)
    monkeypatch.setattr(pipeline.scoring.proposals, "WORTH_A_PROCESS", 4)
    monkeypatch.setattr(pipeline.scoring.proposals, "processors", lambda: 2)
    assert scored(tmp_path, allow_missing=True) == alone


# --- what is refused ------------------------------------------------------------------------------
def test_missing_and_extra_images_are_listed_together(folder):
    (folder / "predicted" / "part-001.parquet").unlink()
    write_proposals(folder / "predicted", [{"a": TABLE["a"], "c": TABLE["a"]}])
    with pytest.raises(BadFile, match=r"no proposals of 1 of 2 images: b; proposals of 1 .*: c;"):
        scored(folder)


def test_missing_images_find_nothing_when_that_is_allowed(folder):
    (folder / "predicted" / "part-001.parquet").unlink()
    write_proposals(folder / "predicted", [{"a": TABLE["a"], "c": TABLE["a"]}])
    outcome = scored(folder, allow_missing=True)
    assert outcome["at"]["3"]["jaccard_instance"] == pytest.approx((1 + 1 + 0) / 3)
    assert outcome["at"]["3"]["jaccard_class"] == pytest.approx((4 / (4 + 4) + 1) / 2)
    assert outcome["at"]["3"]["mean_num"] == 3 / 2
    assert "1 of 2 images have no proposals and find nothing: b" in outcome["notes"]
    assert "1 images of the table are left out: c" in outcome["notes"]


def test_a_table_of_other_images_is_refused_even_so(folder):
    write_truth(folder / "truth.json", {"x": (2, 4)}, [thing(0, 3, LEFT)])
    with pytest.raises(BadFile, match="no proposals of any of the 1 images; wanted: x; there: a"):
        scored(folder, allow_missing=True)


def test_void_needs_a_label_map_of_each_image(folder):
    voids = folder / "void"
    voids.mkdir()
    (voids / "a.png").write_bytes(encode_index_png(np.zeros((2, 4), np.uint8)))
    with pytest.raises(BadFile, match="no label map of 1 of 2 images: b"):
        scored(folder, void=voids)
    (voids / "b.png").write_bytes(encode_index_png(np.zeros((4, 2), np.uint8)))
    with pytest.raises(BadFile, match=r"b.png: 4 x 2 pixels .* the truth says 2 x 4"):
        scored(folder, void=voids)


def test_superpixels_of_another_size_are_refused(folder):
    write_proposals(folder / "predicted", [{"a": found([0], superpixels=GRID[:, :3])}])
    with pytest.raises(BadFile, match=r"image a: 2 x 3 pixels .* the truth says 2 x 4"):
        scored(folder)


@pytest.mark.parametrize(
    "wrong",
    [
        {"members": None},
        {"superpixels": b""},
        {"members": row("a", TABLE["b"])["members"][:-1]},
        {"scores": [1, 0.5]},
        {"columns": [0, 0, 1]},
    ],
)
def test_a_damaged_row_is_refused_with_the_image(folder, wrong):
    damaged = row("a", TABLE["a"]) | wrong
    part = folder / "predicted" / "part-000.parquet"
    pq.write_table(pa.Table.from_pylist([damaged], schema=SCHEMAS["proposals"]), part)
    with pytest.raises(BadFile, match=r"part-000.parquet: proposals of image a are damaged"):
        scored(folder)


@pytest.mark.parametrize("at", [[], [0], [10, 10]])
def test_numbers_of_proposals_are_distinct_and_from_one_on(folder, at):
    with pytest.raises(BadInput, match="distinct and from 1 on"):
        scored(folder, at=at)


def test_nothing_is_written_after_an_error(folder, capsys):
    (folder / "predicted" / "part-001.parquet").unlink()
    given = ["--truth", str(folder / "truth.json"), "--predicted", str(folder / "predicted")]
    with contextlib.suppress(SystemExit):
        assert main(["score", "proposals", *given, "--json", str(folder / "found.json")]) == 2
    assert not (folder / "found.json").exists()
    assert "no proposals of 1 of 2 images: b" in capsys.readouterr().err
