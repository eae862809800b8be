"""Published proposals as our arrays, and our proposals in published forms: the same masks."""

import json
import random
import struct
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO as OfficialCoco
from scipy.io import loadmat, savemat

from pipeline.datasets.matfile import encode_variables, read_cells, read_values, read_variable
from pipeline.datasets.proposal_table import to_row
from pipeline.datasets.published_proposals import cut, find_published, read_published
from pipeline.errors import BadFile, BadInput
from pipeline.exports.proposals import export_proposals, run_lengths
from pipeline.masks import decode_rle, encode_rle
from pipeline.proposals.form import Proposals, from_membership
from pipeline.tables import write_table

MAP = np.array([[1, 1, 2], [3, 3, 2]])
LABELS = [[1, 3], [2], [3]]
MASKS = [MAP != 2, MAP == 2, MAP == 3]


def cells(items: list) -> np.ndarray:
    """A column of cells, as MATLAB has it."""
    column = np.empty((len(items), 1), object)
    for place, item in enumerate(items):
        column[place, 0] = item
    return column


def labels(items: list[list[int]], kind: str = "f8") -> np.ndarray:
    return cells([np.array([item], kind) for item in items])


def blob(top: int, left: int, mask: np.ndarray) -> dict[str, np.ndarray]:
    rect = [[top, left, top + mask.shape[0] - 1, left + mask.shape[1] - 1]]
    return {"rect": np.array(rect, float), "mask": mask.astype(bool)}


def write(path: Path, content: dict) -> Path:
    path.write_bytes(encode_variables(content))
    return path


def masks_of(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    proposals = Proposals(**arrays)
    return [proposals.mask(i) for i in range(len(proposals))]


def random_proposals(seed: int, size: tuple[int, int] = (13, 17)) -> Proposals:
    rng = np.random.default_rng(seed)
    superpixels = np.unique(rng.integers(0, 30, size), return_inverse=True)[1].reshape(size)
    members = rng.random((40, superpixels.max() + 1)) < rng.random((40, 1))
    return from_membership(superpixels.astype(np.uint16), members[members.any(axis=1)])


def random_masks(seed: int, size: tuple[int, int] = (13, 17)) -> list[np.ndarray]:
    """Rectangles with noise: none is empty."""
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(12):
        top, left = rng.integers(0, size)
        mask = np.zeros(size, bool)
        mask[top : top + 6, left : left + 9] = (
            rng.random(mask[top : top + 6, left : left + 9].shape) < 0.8
        )
        mask[top, left] = True
        masks.append(mask)
    return masks


# --- MCG, SCG -------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", ["f8", "u2", "i4"])
def test_labels_of_superpixels_become_the_same_masks(tmp_path, kind, wrapped):
    content = {
        "superpixels": MAP.astype(kind),
        "labels": labels(LABELS, kind),
        "scores": np.array([[0.5], [0.25], [-0.125]]),
        "bboxes": np.ones((1, 4)),  # fewer, and wrong
    }
    path = write(tmp_path / "a.mat", {"proposals": content} if wrapped else content)
    found = read_published(path, (2, 3))
    np.testing.assert_array_equal(masks_of(found), MASKS)
    np.testing.assert_array_equal(found["superpixels"], MAP - 1)
    np.testing.assert_array_equal(found["scores"], [0.5, 0.25, -0.125])
    np.testing.assert_array_equal(found["boxes"], [[0, 0, 2, 2], [2, 0, 3, 2], [0, 1, 2, 2]])
    np.testing.assert_array_equal(found["areas"], [4, 2, 2])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([[3.0], [2.0], [2.0]], [3, 2, 2]),
        ([[1.0], [2.0], [0.0]], [1, 2 / 3, 1 / 3]),  # the order of the file is the rank
        ([[np.nan], [0.0], [-1.0]], [1, 2 / 3, 1 / 3]),
        ([[1e300], [2.0], [1.0]], [1, 2 / 3, 1 / 3]),
        (None, [1, 2 / 3, 1 / 3]),
    ],
)
def test_scores_are_kept_where_they_fall_and_else_told_by_the_place(tmp_path, given, kept):
    content = {"superpixels": MAP, "labels": labels(LABELS)}
    content |= {} if given is None else {"scores": np.array(given)}
    found = read_published(write(tmp_path / "a.mat", content), (2, 3))
    np.testing.assert_array_equal(found["scores"], np.array(kept, np.float32))
    np.testing.assert_array_equal(masks_of(found), MASKS)


def test_numbers_without_a_pixel_are_closed_up_and_repeated_ones_count_once(tmp_path):
    content = {"superpixels": MAP * 2, "labels": labels([[6, 2, 6], [4, 1], [6]])}
    found = read_published(write(tmp_path / "a.mat", content), (2, 3))
    np.testing.assert_array_equal(masks_of(found), MASKS)
    np.testing.assert_array_equal(found["superpixels"], MAP - 1)
    np.testing.assert_array_equal(found["members"], [0, 2, 1, 2])


def test_no_candidates_are_no_candidates(tmp_path):
    content = {"superpixels": MAP, "labels": np.empty((0, 1), object)}
    found = read_published(write(tmp_path / "a.mat", content), (2, 3))
    assert len(Proposals(**found)) == 0 and found["boxes"].shape == (0, 4)


def test_several_maps_become_one(tmp_path):
    """LPO's form: each map with labels of its own."""
    halves = np.array([[1, 1, 2], [1, 1, 2]])
    rows = np.array([[1, 1, 1], [2, 2, 2]])
    content = {
        "superpixels": cells([halves, rows]),
        "labels": cells([labels([[1], [2]]), labels([[2]])]),
    }
    found = read_published(write(tmp_path / "a.mat", {"proposals": content}), (2, 3))
    np.testing.assert_array_equal(masks_of(found), [halves == 1, halves == 2, rows == 2])
    assert found["superpixels"].max() == 3


# --- GOP, RIGOR -----------------------------------------------------------------------------------
@pytest.mark.parametrize("lowest", [0, 1])
@pytest.mark.parametrize(
    ("kind", "stored"),
    [("u2", MAP), ("i4", MAP.T), ("f8", MAP.T), ("u2", MAP.T), ("i4", MAP)],
)
def test_the_shape_tells_whether_a_map_is_transposed(tmp_path, kind, stored, lowest):
    inside = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1]], bool)
    content = {"superpixels": (stored - 1 + lowest).astype(kind), "indicator_matrix": inside}
    found = read_published(write(tmp_path / "a.mat", content), (2, 3))
    np.testing.assert_array_equal(masks_of(found), MASKS)


@pytest.mark.parametrize(("kind", "turned"), [("u2", False), ("i4", True)])
def test_of_a_square_image_the_type_tells_whose_map_it_is(tmp_path, kind, turned):
    square = np.array([[1, 1], [2, 3]])
    content = {"superpixels": square.astype(kind), "indicator_matrix": np.eye(3)}
    found = read_published(write(tmp_path / "a.mat", content), (2, 2))
    truth = square.T if turned else square
    np.testing.assert_array_equal(masks_of(found), [truth == n for n in (1, 2, 3)])


# --- masks ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
def test_blobs_become_the_same_masks(tmp_path, seed):
    masks = random_masks(seed)
    blobs = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        blobs.append(blob(rows[0] + 1, columns[0] + 1, inner))
    path = write(tmp_path / "a.mat", {"hBlobs": cells(blobs)})
    found = read_published(path, masks[0].shape)
    np.testing.assert_array_equal(masks_of(found), masks)
    np.testing.assert_array_equal(found["areas"], [mask.sum() for mask in masks])
    for mask, (x0, y0, x1, y1) in zip(masks, found["boxes"], strict=True):
        ys, xs = np.nonzero(mask)
        assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_whole_masks_are_read(tmp_path):
    masks = np.stack(random_masks(3))
    path = write(tmp_path / "a.mat", {"masks": masks.transpose(1, 2, 0)})
    np.testing.assert_array_equal(masks_of(read_published(path, masks[0].shape)), masks)


@pytest.mark.parametrize("seed", range(5))
def test_superpixels_of_masks_are_the_fewest(seed):
    """One for each set of masks that a pixel is in."""
    masks = random_masks(seed)
    superpixels, sets = cut(masks[0].shape, [(0, 0, mask) for mask in masks])
    members = np.stack(masks).reshape(len(masks), -1)
    assert len(np.unique(superpixels)) == len(np.unique(members, axis=1).T) == superpixels.max() + 1
    for mask, ids in zip(masks, sets, strict=True):
        np.testing.assert_array_equal(np.isin(superpixels, ids), mask)


# --- what is refused ------------------------------------------------------------------------------
GOOD = {"superpixels": MAP, "labels": labels(LABELS)}
INDICATORS = {"superpixels": MAP.astype(np.uint16), "indicator_matrix": np.eye(3)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"boxes": np.ones((3, 4)), "scores": np.ones((3, 1))}, "only boxes in it; masks"),
        ({"ucm2": np.ones((3, 4))}, "no proposals in it, but ucm2"),
        ({"note": "text"}, "no proposals in it, but nothing"),
        (GOOD | {"superpixels": MAP.T}, "superpixels are 3 x 2, the image is 2 x 3"),
        (GOOD | {"superpixels": MAP - 1}, "superpixel 0, where they are numbered from 1"),
        (GOOD | {"superpixels": MAP * 9}, "superpixel 27, where"),
        (GOOD | {"superpixels": MAP / 2}, "superpixels: not whole numbers"),
        (GOOD | {"superpixels": MAP * np.inf}, "superpixels: not whole numbers"),
        (GOOD | {"superpixels": MAP * 1e12}, "superpixels: numbers beyond all sense"),
        (GOOD | {"superpixels": "text"}, "superpixels: no numbers"),
        (GOOD | {"labels": labels([[1], [2, 4]])}, "candidate 2 has superpixel 4 of 1 to 3"),
        (GOOD | {"labels": labels([[0], [2]])}, "candidate 1 has superpixel 0 of 1 to 3"),
        (GOOD | {"labels": labels([[1], []])}, "candidate 2 has no pixel"),
        (GOOD | {"labels": labels([[1], [1.5]])}, "labels: not whole numbers"),
        (GOOD | {"labels": cells([np.ones((1, 1)), "x"])}, "labels of candidate 2: no numbers"),
        (GOOD | {"labels": np.ones((3, 1))}, "labels: no array of cells"),
        (GOOD | {"scores": np.ones((2, 1))}, "2 scores of 3 candidates"),
        ({"superpixels": MAP * 2, "labels": labels([[1]])}, "candidate 1 has no pixel"),
        ({"superpixels": cells([MAP]), "labels": labels(LABELS)}, "1 maps of superpixels, but"),
        (INDICATORS | {"indicator_matrix": np.eye(4)}, "indicator_matrix is 4 x 4 for 3"),
        (INDICATORS | {"indicator_matrix": np.eye(3) * 2}, "other numbers than 0 and 1"),
        (INDICATORS | {"superpixels": np.ones((4, 3))}, "superpixels are 4 x 3, the image"),
        ({"hBlobs": cells([blob(1, 2, np.ones((2, 3)))])}, r"rect of blob 1, \[1, 2, 2, 4\]"),
        ({"hBlobs": cells([blob(1, 1, np.zeros((2, 3)))])}, "candidate 1 has no pixel"),
        ({"hBlobs": cells([blob(1, 1, MAP > 1) | {"rect": np.ones((1, 4))}])}, "not as its rect"),
        ({"hBlobs": cells([blob(1, 1, MAP > 1) | {"rect": np.ones((1, 3))}])}, "has 3 numbers"),
        ({"hBlobs": cells([np.ones((1, 4))])}, "blob 1 is no struct"),
        ({"hBlobs": cells([{"rect": np.ones((1, 4))}])}, "mask of blob 1: no numbers"),
        ({"masks": np.ones((3, 2, 4))}, "masks are 3 x 2 x 4, the image is 2 x 3"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, content, message):
    path = write(tmp_path / "a.mat", content)
    with pytest.raises(BadFile, match=message) as caught:
        read_published(path, (2, 3))
    assert caught.value.path == path


def test_more_superpixels_than_the_form_can_number_are_refused(tmp_path):
    superpixels = np.arange(1, 301 * 301 + 1).reshape(301, 301)
    path = write(tmp_path / "a.mat", {"superpixels": superpixels, "labels": labels([[1]])})
    with pytest.raises(BadFile, match="90601 superpixels, more than 65536"):
        read_published(path, (301, 301))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    "content", [{"proposals": GOOD}, {"hBlobs": cells([blob(1, 1, m) for m in MASKS])}]
)
def test_no_flipped_byte_lets_another_error_escape(tmp_path, content, compressed):
    rng = random.Random(0)
    path = tmp_path / "a.mat"
    savemat(path, content, do_compression=compressed)
    whole = path.read_bytes()
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 4])):
            data[rng.randrange(124, len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            found = read_published(path, (2, 3))
        except BadFile as fault:
            assert fault.path == path
            refused += 1
        else:
            assert all(mask.any() for mask in masks_of(found))
    assert refused > 200


# --- cells ----------------------------------------------------------------------------------------
def test_cells_are_read_column_by_column(tmp_path):
    grid = np.empty((2, 2), object)
    grid[0, 0], grid[1, 0] = np.ones((1, 2)), {"a": np.eye(2), "b": "text"}
    grid[0, 1], grid[1, 1] = "text", cells([np.ones((1, 1))])
    path = write(tmp_path / "a.mat", {"grid": grid, "one": np.ones((1, 1))})
    first, second, third, fourth = read_cells(path, "grid")
    np.testing.assert_array_equal(first, [[1, 1]])
    assert list(second) == ["a"] and second["a"].shape == (2, 2)
    assert third is None and len(fourth) == 1
    with pytest.raises(BadFile, match="no one in it that is an array of cells"):
        read_cells(path, "one")
    with pytest.raises(BadFile, match="neither numbers nor a struct"):
        read_variable(path, "grid")
    assert list(read_values(path, depth=0, largest=1 << 20)) == ["one"]
    with pytest.raises(BadFile, match="too large"):
        read_values(path, depth=0, largest=64)


@pytest.mark.parametrize("kind", [5, 6, 7])
def test_dimensions_are_whole_numbers(tmp_path, kind):
    """A file made by hand: 2 x 3 numbers, the dimensions once as floats (type 7)."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8)

    sizes = np.array([2, 3], "<f4" if kind == 7 else "<i4").tobytes()
    body = element(6, struct.pack("<II", 6, 0)) + element(kind, sizes) + element(1, b"m")
    body += element(9, np.arange(6.0).tobytes())
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + element(14, body))
    if kind == 7:
        with pytest.raises(BadFile, match="sizes of the unknown type 7"):
            read_variable(path, "m")
    else:
        np.testing.assert_array_equal(read_variable(path, "m"), [[0, 2, 4], [1, 3, 5]])


# --- version 7.3 ----------------------------------------------------------------------------------
def write_hdf5(path: Path, content: dict) -> Path:
    """Arrays, structs (dicts) and cells (lists) as MATLAB writes them with -v7.3."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(path, "w", userblock_size=512) as file:
        inner = file.create_group("#refs#")

        def put(group, name, value):
            if isinstance(value, dict):
                made = group.create_group(name)
                made.attrs["MATLAB_class"] = np.bytes_("struct")
                for label, field in value.items():
                    put(made, label, field)
            elif isinstance(value, list):
                for place, item in enumerate(value):
                    put(inner, f"{name}{place}", item)
                items = [[inner[f"{name}{place}"].ref for place in range(len(value))]]
                made = group.create_dataset(name, data=items, dtype=h5py.ref_dtype)
                made.attrs["MATLAB_class"] = np.bytes_("cell")
            else:
                made = group.create_dataset(name, data=np.asarray(value).T)
                made.attrs["MATLAB_class"] = np.bytes_("double")

        for name, value in content.items():
            put(file, name, value)
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    with path.open("r+b") as file:
        file.write(header)
    return path


@pytest.mark.parametrize("wrapped", [False, True])
def test_files_of_version_73_hold_the_same(tmp_path, wrapped):
    content = {"superpixels": MAP.astype(float), "labels": [np.array([ids]) for ids in LABELS]}
    path = write_hdf5(tmp_path / "a.mat", {"proposals": content} if wrapped else content)
    np.testing.assert_array_equal(masks_of(read_published(path, (2, 3))), MASKS)
    path = write_hdf5(tmp_path / "b.mat", {"hBlobs": [blob(1, 1, mask) for mask in MASKS]})
    np.testing.assert_array_equal(masks_of(read_published(path, (2, 3))), MASKS)


def test_links_out_of_a_file_of_version_73_are_not_followed(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    other = write_hdf5(tmp_path / "other.mat", {"masks": np.ones((2, 3, 1))})
    path = write_hdf5(tmp_path / "a.mat", {})
    with h5py.File(path, "r+") as file:
        file["masks"] = h5py.ExternalLink(str(other), "masks")
    with pytest.raises(BadFile, match="no proposals in it"):
        read_published(path, (2, 3))


def test_a_damaged_file_of_version_73_is_named(tmp_path):
    path = write_hdf5(tmp_path / "a.mat", {"masks": np.ones((2, 3, 1))})
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(BadFile, match="not a readable .mat file"):
        read_published(path, (2, 3))


def test_without_h5py_a_file_of_version_73_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(BadFile, match="pip install h5py"):
        read_published(path, (2, 3))


# --- names ----------------------------------------------------------------------------------------
def test_files_are_found_by_their_image_and_those_of_coco_by_its_number(tmp_path):
    names = ["COCO_val2014_000000000042", "000000000009", "2007_000033", "other"]
    for number, name in enumerate(names):
        (tmp_path / f"part{number % 2}").mkdir(exist_ok=True)
        (tmp_path / f"part{number % 2}" / f"{name}.mat").touch()
    wanted = ["000000000042", "COCO_train2014_000000000009", "2007_000033", "2007_000042"]
    found = find_published(tmp_path, wanted)
    assert {i: path.stem for i, path in found.items()} == dict(zip(wanted, names[:3], strict=False))


def test_folders_without_the_images_are_refused(tmp_path):
    with pytest.raises(BadFile, match="no .mat file in it"):
        find_published(tmp_path, ["a"])
    (tmp_path / "b.mat").touch()
    with pytest.raises(BadFile, match="no proposals of any image; wanted: a; there: b"):
        find_published(tmp_path, ["a"])
    (tmp_path / "mcg").mkdir()
    (tmp_path / "mcg" / "b.mat").touch()
    with pytest.raises(BadFile, match="a second file of image b"):
        find_published(tmp_path, ["b"])


# --- export ---------------------------------------------------------------------------------------
def arrays_of(proposals: Proposals) -> dict[str, np.ndarray]:
    return {field.name: getattr(proposals, field.name) for field in fields(Proposals)}


def write_part(folder: Path, proposals: dict[str, Proposals], part: int = 0) -> Path:
    rows = [to_row(i, "", "drawn", **arrays_of(found)) for i, found in proposals.items()]
    write_table(folder / f"part-{part:03d}.parquet", "proposals", rows)
    return folder


@pytest.fixture
def table(tmp_path) -> Path:
    """Three images in two parts, the last without candidates."""
    none = from_membership(np.zeros((3, 4), np.uint16), np.zeros((0, 1), bool))
    folder = write_part(tmp_path / "table", {"000000000009": random_proposals(0), "empty": none}, 1)
    return write_part(folder, {"2007_000033": random_proposals(1, (5, 40))})


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_those_of_pycocotools(seed):
    proposals = random_proposals(seed, [(13, 17), (1, 50), (50, 1), (1, 1), (80, 70)][seed])
    masks = [proposals.mask(i) for i in range(len(proposals))]
    assert list(run_lengths(arrays_of(proposals))) == [encode_rle(mask) for mask in masks]


def test_coco_results_hold_the_same_masks_and_scores(tmp_path, table):
    told = export_proposals(table, tmp_path / "out.json", kind="coco")
    entries = json.loads((tmp_path / "out.json").read_text())
    assert told == f"{len(entries)} candidates of 3 images in {tmp_path / 'out.json'}"
    ids = {9: random_proposals(0), "2007_000033": random_proposals(1, (5, 40))}
    assert {entry["image_id"] for entry in entries} == set(ids)
    for number, proposals in ids.items():
        mine = [entry for entry in entries if entry["image_id"] == number]
        assert [entry["score"] for entry in mine] == proposals.scores.tolist()
        for i, entry in enumerate(mine):
            segmentation = entry["segmentation"]
            mask = decode_rle(segmentation["counts"], *segmentation["size"])
            np.testing.assert_array_equal(mask, proposals.mask(i))


def test_coco_results_have_the_ids_of_the_truth_and_its_images_only(tmp_path, table, capsys):
    images = [
        {"id": 7, "file_name": "2007_000033.jpg", "height": 5, "width": 40},
        {"id": "x", "file_name": "empty.jpg", "height": 3, "width": 4},
    ]
    content = {"images": images, "categories": [{"id": 1, "name": "any"}], "annotations": []}
    truth, out = tmp_path / "truth.json", tmp_path / "out.json"
    truth.write_text(json.dumps(content))
    export_proposals(table, out, kind="coco", truth=truth, most=4)
    results = OfficialCoco(str(truth)).loadRes(str(out))
    assert len(results.getAnnIds(imgIds=[7])) == 4
    truth.write_text(
        json.dumps(content | {"images": [*images, images[0] | {"id": 8, "file_name": "b.jpg"}]})
    )
    with pytest.raises(BadFile, match="no proposals of 1 of 3 images: b"):
        export_proposals(table, tmp_path / "second.json", kind="coco", truth=truth)
    assert not (tmp_path / "second.json").exists()


def test_files_of_mcg_read_back_bit_by_bit(tmp_path, table):
    export_proposals(table, tmp_path / "out", kind="mcg")
    files = find_published(tmp_path / "out", ["2007_000033", "000000000009", "empty"])
    assert len(files) == len(list((tmp_path / "out").iterdir())) == 3
    expected = {"000000000009": random_proposals(0), "2007_000033": random_proposals(1, (5, 40))}
    for image_id, proposals in expected.items():
        found = read_published(files[image_id], proposals.superpixels.shape)
        for name, array in arrays_of(proposals).items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    assert len(read_published(files["empty"], (3, 4))["areas"]) == 0


def test_files_of_mcg_are_as_matlab_wants_them(tmp_path, table):
    export_proposals(table, tmp_path / "out", kind="mcg", most=3)
    content = loadmat(tmp_path / "out" / "2007_000033.mat")
    proposals = random_proposals(1, (5, 40))
    assert content["labels"].shape == (3, 1) and content["scores"].shape == (3, 1)
    for i in range(3):
        mask = np.isin(content["superpixels"], content["labels"][i, 0])
        np.testing.assert_array_equal(mask, proposals.mask(i))
        ys, xs = np.nonzero(mask)
        box = [ys.min() + 1, xs.min() + 1, ys.max() + 1, xs.max() + 1]
        np.testing.assert_array_equal(content["bboxes"][i], box)


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path, table, monkeypatch):
    for out, images in (("a", 1000), ("b", 1)):
        monkeypatch.setattr("pipeline.exports.proposals.WORTH_A_PROCESS", images)
        export_proposals(table, tmp_path / out, kind="mcg")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("kind", ["coco", "mcg"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"members": b"bits"}, "image a are damaged"),
        ({"scores": [1.0]}, "image a are damaged"),
        ({"scores": [float("nan")] * 37}, "image a .*the scores are not numbers that fall"),
    ],
)
def test_a_damaged_table_is_refused_and_nothing_written(tmp_path, kind, wrong, message):
    row = to_row("a", "", "drawn", **arrays_of(random_proposals(0))) | wrong
    write_table(tmp_path / "table" / "part-000.parquet", "proposals", [row])
    with pytest.raises(BadFile, match=message):
        export_proposals(tmp_path / "table", tmp_path / "out", kind=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_what_cannot_be_exported_is_told(tmp_path, table):
    with pytest.raises(BadInput, match="choose coco or mcg"):
        export_proposals(table, tmp_path / "out", kind="voc")
    with pytest.raises(BadInput, match="ask for one or more"):
        export_proposals(table, tmp_path / "out", kind="mcg", most=0)
    with pytest.raises(BadInput, match="is there already"):
        export_proposals(table, table, kind="mcg")
    write_part(table, {"../a": random_proposals(2)}, 2)
    with pytest.raises(BadFile, match="cannot name a file: ../a"):
        export_proposals(table, tmp_path / "out", kind="mcg")
