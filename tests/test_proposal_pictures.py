"""Pictures of the regions that fit given boxes best."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.proposal_table import to_row
from pipeline.errors import BadFile, BadInput
from pipeline.proposals.form import Proposals, from_membership
from pipeline.scoring.command_line import add_draw_proposals
from pipeline.scoring.proposal_pictures import (
    MOST_BOXES,
    best_fitting,
    draw_proposals,
    overlaid,
    read_boxes,
)
from pipeline.tables import write_table

HEIGHT, WIDTH = 40, 60
QUARTERS = np.kron(np.array([[0, 1], [2, 3]], np.uint16), np.ones((20, 30), np.uint16))
LISTS = ([0, 1, 2, 3], [0], [0, 3], [1, 2], [3])  # the third and fourth have the box of the first


def found() -> Proposals:
    members = np.zeros((len(LISTS), 4), bool)
    for row, ids in zip(members, LISTS, strict=True):
        row[ids] = True
    return from_membership(QUARTERS, members)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images "one" and "two", their candidates and boxes."""
    fields = ("superpixels", "members", "offsets", "scores", "boxes", "areas")
    arrays = {field: getattr(found(), field) for field in fields}
    rows = [to_row(name, "", "drawn", **arrays) for name in ("one", "two")]
    (tmp_path / "table").mkdir()
    write_table(tmp_path / "table" / "part-000.parquet", "proposals", rows)
    (tmp_path / "images" / "below").mkdir(parents=True)
    image = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    Image.fromarray(image).save(tmp_path / "images" / "one.png")
    Image.fromarray(image).save(tmp_path / "images" / "below" / "two.png")
    write_boxes(tmp_path, [(1, [0, 0, 30, 20]), (1, [0, 0, 60, 40]), (2, [29, 19, 31, 21])])
    return tmp_path


def write_boxes(folder: Path, boxes: list[tuple[int, list[float]]], **more: Any) -> None:
    names = {1: "one", 2: "two", 3: "empty"}
    images = [
        {"id": number, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
        for number, name in names.items()
    ]
    annotations = [{"image_id": n, "category_id": 7, "bbox": box} | more for n, box in boxes]
    contents = {"images": images, "annotations": annotations}
    contents |= {"categories": [{"id": 7, "name": "$ring$$"}]}
    (folder / "boxes.json").write_text(json.dumps(contents))


def drawn(folder: Path, **options: Any) -> str:
    places = [folder / name for name in ("table", "images", "boxes.json", "out")]
    return draw_proposals(*places, **({"most": 2, "ids": None} | options))


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


# --- which regions --------------------------------------------------------------------------------
def test_the_best_fitting_come_first_and_of_equal_ones_the_better_ranked():
    places, overlaps = best_fitting(found(), np.array([0.0, 0, 60, 40]), 4)
    assert places.tolist() == [0, 2, 3, 1]
    assert overlaps.tolist() == [1, 1, 1, 1 / 4]
    places, overlaps = best_fitting(found(), np.array([0.0, 0, 30, 40]), 9)
    assert sorted(places.tolist()) == [0, 1, 2, 3, 4]  # not more than there are
    assert overlaps[0] == 1 / 2


def test_boxes_are_half_open_and_the_largest_first(folder):
    given = read_boxes(folder / "boxes.json")
    assert set(given) == {"one", "two"}
    assert given["one"].boxes.tolist() == [[0, 0, 60, 40], [0, 0, 30, 20]]
    assert given["two"].boxes.tolist() == [[29, 19, 60, 40]] and given["two"].names == ["$ring$$"]


def test_a_region_is_tinted_its_edge_drawn_and_the_rest_dark():
    image = np.full((5, 6, 3), 100, np.uint8)
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1:4] = True
    shown = overlaid(image, mask)
    assert shown[0, 0].tolist() == [40, 40, 40]
    assert shown[2, 2].tolist() == [145, 120, 65]  # 0.65 * 100 + 0.35 * (230, 159, 0)
    assert (shown[mask] == (213, 94, 0)).all(axis=1).sum() == 8
    assert (image == 100).all()


# --- files ----------------------------------------------------------------------------------------
def test_a_picture_has_a_row_for_each_box_and_a_column_for_each_region(folder):
    assert drawn(folder).endswith("out: 2 pictures")
    one, two = size_of(folder / "out" / "one.png"), size_of(folder / "out" / "two.png")
    assert one[0] == two[0] and one[1] == 2 * two[1]
    drawn(folder, most=5)
    assert size_of(folder / "out" / "one.png") == (one[0] * 2, one[1])
    assert len(list((folder / "out").iterdir())) == 2


def test_only_so_many_boxes_are_drawn(folder):
    write_boxes(folder, [(1, [0, 0, 30 + i, 20]) for i in range(MOST_BOXES + 5)])
    drawn(folder)
    many = size_of(folder / "out" / "one.png")[1]
    write_boxes(folder, [(1, [0, 0, 30, 20])])
    drawn(folder)
    assert many == pytest.approx(
        MOST_BOXES * size_of(folder / "out" / "one.png")[1], abs=MOST_BOXES
    )


def test_the_regions_are_in_the_picture(folder):
    drawn(folder, most=1)
    with Image.open(folder / "out" / "one.png") as picture:
        pixels = np.array(picture.convert("RGB")).reshape(-1, 3)
    tinted = [int(200 * 0.65 + colour * 0.35) for colour in (230, 159, 0)]
    assert (pixels == tinted).all(axis=1).mean() > 0.1
    assert (pixels == 80).all(axis=1).mean() > 0.05  # outside of the smaller one's


def test_a_list_chooses_images(folder):
    (folder / "ids.txt").write_text("two.jpg\n")
    drawn(folder, ids=folder / "ids.txt")
    assert [path.name for path in (folder / "out").iterdir()] == ["two.png"]


def test_bad_images_are_told_and_left_out(folder):
    (folder / "images" / "one.png").write_bytes(b"no image")
    told = drawn(folder)
    assert "1 pictures" in told and "note: 1 images are left out: one: " in told
    (folder / "ids.txt").write_text("two\nempty\nunknown\n")
    told = drawn(folder, ids=folder / "ids.txt")
    assert "empty: no box of it" in told and "unknown: no box of it" in told
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(folder / "images" / "one.png")
    assert "one.png: 41 x 60 pixels, its proposals are of 40 x 60" in drawn(folder)


def test_two_images_of_one_name_are_not_chosen_from(folder):
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "below" / "one.jpg")
    assert "left out: one: images of one name: " in drawn(folder)


def test_no_picture_at_all_is_an_error(folder):
    (folder / "images" / "one.png").unlink()
    (folder / "images" / "below" / "two.png").unlink()
    with pytest.raises(BadInput, match="none of 2 images can be drawn: one: no image of that name"):
        drawn(folder)


@pytest.mark.parametrize(
    ("boxes", "more", "message"),
    [
        ([], {}, "no box in it"),
        ([(1, [0, 0, 30, 20])], {"iscrowd": 1}, "no box in it"),
        ([(9, [0, 0, 30, 20])], {}, "annotation 0 .* not listed"),
        ([(1, [0, 0, 30, 20])], {"category_id": 8}, "annotation 0 .* not listed"),
        ([(1, [0, 0, 30, 0])], {}, "boxes.json: "),
        ([(1, [0, 0, 30])], {}, "boxes.json: "),
    ],
)
def test_bad_boxes_are_refused(folder, boxes, more, message):
    write_boxes(folder, boxes, **more)
    with pytest.raises(BadFile, match=message):
        drawn(folder)


def test_bad_arguments_are_refused(folder):
    with pytest.raises(BadInput, match="--most 0"):
        drawn(folder, most=0)
    (folder / "out").write_text("")
    with pytest.raises(BadFile, match="out: .*no folder"):
        drawn(folder)


def test_the_arguments_of_the_command():
    parser = argparse.ArgumentParser()
    add_draw_proposals(parser)
    given = ["--proposals", "a", "--images", "b", "--boxes", "c", "--out", "d"]
    found = parser.parse_args(given)
    assert (found.proposals, found.boxes, found.most, found.ids) == (Path("a"), Path("c"), 5, None)
    assert parser.parse_args([*given, "--most", "3"]).most == 3
