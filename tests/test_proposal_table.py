"""The table of proposals: what is written is read back, by us and from pandas, or refused."""

import lzma
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.boxes import tight_box
from pipeline.datasets.proposal_table import ProposalTable, to_row
from pipeline.errors import BadFile, BadInput
from pipeline.proposals.form import Proposals, from_membership
from pipeline.superpixels import boxes_and_areas
from pipeline.tables import write_table

# Two rows of four pixels in three superpixels.
GRID = np.array([[0, 0, 1, 1], [0, 0, 1, 2]], np.uint16)
THREE = from_membership(GRID, np.array([[1, 1, 1], [1, 0, 0], [0, 0, 1]], bool))


def arrays_of(proposals: Proposals) -> dict[str, np.ndarray]:
    return {field.name: getattr(proposals, field.name) for field in fields(Proposals)}


def row_of(proposals: Proposals, image_id: str = "a") -> dict[str, Any]:
    return to_row(image_id, "", "drawn", **arrays_of(proposals))


def stored(folder: Path, *rows: dict[str, Any]) -> ProposalTable:
    write_table(folder / "part-000.parquet", "proposals", list(rows))
    return ProposalTable(folder)


def check_same(read: dict[str, np.ndarray], written: Proposals) -> None:
    assert list(read) == [field.name for field in fields(Proposals)]
    for name, array in read.items():
        before = getattr(written, name)
        assert array.dtype == before.dtype and array.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(array, before)


def random_proposals(rng: np.random.Generator, height: int, width: int, count: int) -> Proposals:
    """Candidates of one to all superpixels, with scores of their own in half of the cases."""
    ids = rng.integers(0, rng.integers(1, height * width + 1), (height, width))
    superpixels = np.unique(ids, return_inverse=True)[1].reshape(height, width).astype(np.uint16)
    size = int(superpixels.max()) + 1
    members = rng.random((count, size)) < rng.random((count, 1))
    members[np.arange(count), rng.integers(0, size, count)] = True
    found = from_membership(superpixels, members)
    if rng.random() < 0.5:
        scores = np.sort(rng.normal(size=count).astype(np.float32))[::-1].copy()
        return Proposals(**(arrays_of(found) | {"scores": scores}))
    return found


def by_hand(folder: Path, image_id: str, i: int) -> np.ndarray:
    """The mask of candidate i as the module's description says that pandas gives it."""
    row = pd.read_parquet(folder / "part-000.parquet").set_index("image_id").loc[image_id]
    pixels = np.frombuffer(lzma.decompress(row["superpixels"]), "<u2")
    superpixels = pixels.reshape(row["height"], row["width"])
    bits = np.frombuffer(lzma.decompress(row["members"]), "u1")
    inside = np.unpackbits(bits.reshape(superpixels.max() + 1, -1), axis=1).astype(bool)
    column = row["columns"][i] if len(row["columns"]) else i
    return inside[superpixels, column]


# --- there and back ----------------------------------------------------------------------------
def test_the_stored_numbers_are_those_that_the_description_tells():
    row = row_of(THREE)
    assert (row["height"], row["width"], row["candidates"]) == (2, 4, 3)
    assert lzma.decompress(row["superpixels"]) == GRID.astype("<u2").tobytes()
    assert lzma.decompress(row["members"]) == bytes([0b11000000, 0b10000000, 0b10100000])
    assert len(row["columns"]) == len(row["scores"]) == 0


@settings(deadline=None)  # on a busy machine the first write takes its time
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    count=st.sampled_from([0, 1, 2, 7, 8, 9, 40]),
)
def test_any_candidates_are_read_back_bit_by_bit(tmp_path_factory, seed, height, width, count):
    folder = tmp_path_factory.mktemp("table")
    written = random_proposals(np.random.default_rng(seed), height, width, count)
    check_same(stored(folder, row_of(written)).of("a"), written)
    for i in range(count):
        np.testing.assert_array_equal(by_hand(folder, "a", i), written.mask(i))


def test_shuffled_candidates_take_columns_in_the_order_of_their_superpixels(tmp_path):
    """Squares of a grid of superpixels."""
    rng = np.random.default_rng(0)
    superpixels = np.arange(1600).reshape(40, 40).astype(np.uint16)
    members = np.zeros((1500, 40, 40), bool)
    corners = rng.integers(0, 30, (1500, 2))
    for member, (y, x), side in zip(members, corners, rng.integers(1, 11, 1500), strict=True):
        member[y : y + side, x : x + side] = True
    written = from_membership(superpixels, members.reshape(1500, -1))
    row = row_of(written)
    assert sorted(row["columns"]) == list(range(1500))
    first = members.reshape(1500, -1).argmax(axis=1)  # superpixel of each candidate
    assert (np.diff(first[np.argsort(row["columns"])]) >= 0).all()
    check_same(stored(tmp_path, row).of("a"), written)
    for i in (0, 700, 1499):
        np.testing.assert_array_equal(by_hand(tmp_path, "a", i), members[i])


def test_every_id_of_sixteen_bits_has_its_row(tmp_path):
    superpixels = np.arange(1 << 16).reshape(256, 256).astype(np.uint16)[::-1].copy()
    members = np.zeros((3, 1 << 16), bool)
    members[0] = members[1, 65_535] = members[2, ::2] = True
    written = from_membership(superpixels, members)
    check_same(stored(tmp_path, row_of(written)).of("a"), written)


def test_ids_without_pixels_are_kept(tmp_path):
    superpixels = np.array([[0, 7]], np.uint16)
    written = Proposals(
        superpixels=superpixels,
        members=np.array([3, 7], np.uint16),
        offsets=np.array([0, 2], np.int32),
        scores=np.array([-2.5], np.float32),
        boxes=np.array([[1, 0, 2, 1]], np.int32),
        areas=np.array([1], np.int32),
    )
    check_same(stored(tmp_path, row_of(written)).of("a"), written)


def test_the_same_candidates_give_the_same_bytes():
    written = [random_proposals(np.random.default_rng(3), 9, 9, 40) for _ in range(2)]
    first, second = (row_of(proposals) for proposals in written)
    for name in first:
        assert np.array_equal(first[name], second[name])


@pytest.mark.parametrize("seed", range(4))
def test_candidates_read_as_runs_are_those_read_as_lists(tmp_path, seed):
    rng = np.random.default_rng(seed)
    written = random_proposals(rng, 9, 8, 40)
    runs = stored(tmp_path, row_of(written)).runs_of("a")
    assert len(runs) == len(written) == 40
    assert runs.num_superpixels == written.num_superpixels
    for name in ("superpixels", "boxes", "areas"):
        np.testing.assert_array_equal(getattr(runs, name), getattr(written, name))
    for i in range(40):
        np.testing.assert_array_equal(runs.mask(i), written.mask(i))
        edges = runs.edges[runs.offsets[i] : runs.offsets[i + 1]]
        assert (np.diff(edges) > 0).all() and len(edges) % 2 == 0
    numbers = rng.normal(size=(written.num_superpixels, 3))
    np.testing.assert_array_equal(runs.sums(numbers), written.sums(numbers))  # bit for bit


def test_runs_of_the_drawn_rows_by_hand(tmp_path):
    runs = stored(tmp_path, row_of(THREE)).runs_of("a")
    assert runs.edges.tolist() == [0, 3, 0, 1, 2, 3]
    assert runs.offsets.tolist() == [0, 2, 4, 6]
    assert runs.sums(np.array([[1.0], [10.0], [100.0]])).tolist() == [[111], [1], [100]]


@pytest.mark.parametrize("seed", range(4))
def test_boxes_and_areas_are_those_of_the_masks_in_any_order_of_superpixels(seed):
    rng = np.random.default_rng(seed)
    superpixels = rng.integers(0, 30, (9, 8)).astype(np.uint16)
    sets = [rng.permutation(30)[: rng.integers(0, 31)] for _ in range(40)]
    members = np.concatenate(sets).astype(np.uint16)
    offsets = np.cumsum([0, *map(len, sets)]).astype(np.int32)
    boxes, areas = boxes_and_areas(superpixels, members, offsets)
    for ids, box, area in zip(sets, boxes, areas, strict=True):
        mask = np.isin(superpixels, ids)
        assert area == mask.sum()
        if area:
            np.testing.assert_array_equal(box, tight_box(mask))


# --- what cannot be written --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("superpixels", np.zeros((2, 4), np.int32), "superpixels are"),
        ("superpixels", np.zeros((0, 4), np.uint16), "superpixels are"),
        ("members", np.array([0, 1, 2, 0, 3], np.uint16), "superpixel 3, but there are 3"),
        ("members", np.array([0, 2, 1, 0, 2], np.uint16), "members of 'a'"),
        ("members", np.array([0, 1, 1, 0, 2], np.uint16), "members of 'a'"),
        ("members", np.array([0, 1, 2, 0, 2], np.int64), "members of 'a'"),
        ("members", np.array([0, 1, 2, 0], np.uint16), "offsets do not begin"),
        ("offsets", np.array([1, 3, 4, 5], np.int32), "offsets do not begin"),
        ("offsets", np.array([], np.int32), "offsets do not begin"),
        ("offsets", np.array([0, 9, 4, 5], np.int32), "no superpixels"),
        ("offsets", np.array([0, 3, 3, 5], np.int32), "no superpixels"),
        ("scores", np.array([1, 0.5], np.float32), "2 scores of 3 candidates"),
        ("scores", np.array([0, 0.5, 1], np.float32), "the scores are not numbers that fall"),
        ("scores", np.array([], np.float32), "scores of 'a'"),
        ("boxes", np.array([[0, 0, 4, 2], [0, 0, 2, 1], [3, 1, 4, 2]], np.int32), "boxes of 'a'"),
        ("areas", np.array([8, 4, 2], np.int32), "areas of 'a'"),
    ],
)
def test_arrays_that_would_not_come_back_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        to_row("a", "", "drawn", **(arrays_of(THREE) | {name: value}))


# --- what cannot be read -----------------------------------------------------------------------
def xz(*numbers: int) -> bytes:
    return lzma.compress(bytes(numbers))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"height": 4}, "not 32 bytes in an xz file"),
        ({"height": 0}, "3 candidates of 0 x 4 pixels"),
        ({"height": 2**31 - 1, "width": 2**31 - 1}, "not .* bytes in an xz file"),
        ({"candidates": -1}, "-1 candidates of 2 x 4 pixels"),
        ({"candidates": 9}, "not 6 bytes in an xz file"),
        ({"candidates": 2}, "a candidate in column 2 or behind"),
        ({"candidates": 4}, "a candidate without pixels"),
        ({"members": xz(0b11000000, 0b10000000)}, "not 3 bytes"),
        ({"members": xz(0b11000000, 0b10000000, 0, 0)}, "not 3 bytes"),
        ({"members": xz(0b11000000, 0b10000000, 0b10100000) + b"x"}, "not 3 bytes"),
        ({"members": b"no xz file, whatever it is"}, "not supported"),
        ({"superpixels": b""}, "not 16 bytes"),
        ({"superpixels": None}, "no superpixels"),
        ({"columns": None}, "no columns"),
        ({"columns": [0, 1]}, "share a column"),
        ({"columns": [0, 1, 1]}, "share a column"),
        ({"columns": [1, 2, 3]}, "share a column"),
        ({"columns": [0, None, 2]}, "damaged"),
        ({"scores": [1.0, 0.5]}, "2 scores of 3 candidates"),
        ({"scores": [0.0, 0.5, 1.0]}, "the scores are not numbers that fall"),
        ({"scores": [1.0, float("nan"), 0.0]}, "the scores are not numbers that fall"),
        ({"scores": [float("inf"), 1.0, 0.0]}, "the scores are not numbers that fall"),
    ],
)
def test_a_damaged_row_is_refused_with_its_file_and_image(tmp_path, wrong, message):
    table = stored(tmp_path, row_of(THREE, "fine"), row_of(THREE) | wrong)
    with pytest.raises(BadFile, match=f"part-000.parquet: proposals of image a .*{message}"):
        table.of("a")
    with pytest.raises(BadFile, match=f"part-000.parquet: proposals of image a .*{message}"):
        table.runs_of("a")
    check_same(table.of("fine"), THREE)


@pytest.mark.parametrize("name", ["superpixels", "members"])
def test_no_changed_byte_of_a_blob_goes_unseen(tmp_path, name):
    rng = np.random.default_rng(4)
    sound = row_of(random_proposals(rng, 9, 9, 40))
    rows = []
    for place in range(len(sound[name])):
        blob = bytearray(sound[name])
        blob[place] ^= int(rng.integers(1, 256))
        rows.append(sound | {"image_id": str(place), name: bytes(blob)})
    table = stored(tmp_path, *rows)
    for image_id in table.ids:
        with pytest.raises(BadFile, match="damaged"):
            table.of(image_id)


def test_a_part_with_changed_bytes_is_refused_or_gives_what_was_written(tmp_path):
    """Changes that parquet itself cannot see may be in the image's name, digest or numbers."""
    rng = np.random.default_rng(5)
    written = random_proposals(rng, 9, 9, 40)
    stored(tmp_path, row_of(written))
    part = tmp_path / "part-000.parquet"
    content = part.read_bytes()
    refused = 0
    for place in rng.integers(0, len(content), 300):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(0, 8))
        part.write_bytes(changed)
        try:
            table = ProposalTable(tmp_path)
            read = table.of(table.ids[0]) if table.ids else {}
        except BadInput:
            refused += 1
            continue
        for kept in ("superpixels", "boxes", "areas") if read else ():
            assert len(read[kept]) == len(getattr(written, kept))
    assert refused > 100


def test_bytes_that_unpack_to_very_much_are_not_unpacked(tmp_path):
    bomb = lzma.compress(bytes(1 << 25), preset=0)
    with pytest.raises(BadFile, match="not 3 bytes in an xz file"):
        stored(tmp_path, row_of(THREE) | {"members": bomb}).of("a")


def test_a_table_of_another_form_is_refused_when_it_is_opened(tmp_path):
    part = tmp_path / "part-000.parquet"
    pq.write_table(pa.table({"image_id": ["a"], "members": [[0]], "offsets": [[0, 1]]}), part)
    with pytest.raises(BadInput, match="one of an earlier form; make it anew"):
        ProposalTable(tmp_path)
    stored(tmp_path, row_of(THREE))
    table = pq.read_table(part)
    place = table.schema.get_field_index("height")
    pq.write_table(table.set_column(place, "height", table["height"].cast(pa.int64())), part)
    with pytest.raises(BadInput, match="one of an earlier form"):
        ProposalTable(tmp_path)
    os.truncate(part, 40)
    with pytest.raises(BadInput, match="not a table of proposals"):
        ProposalTable(tmp_path)
