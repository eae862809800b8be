"""Reading PASCAL-Context and MATLAB files: what is read, and what is refused."""

import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from pipeline.categories import CONTEXT
from pipeline.datasets import context
from pipeline.datasets.form import Sample
from pipeline.datasets.matfile import HEADER, encode_variables, read_variable
from pipeline.datasets.sample import draw, image_id
from pipeline.datasets.sample_context import KINDS, OTHER, label_map, names, write_context
from pipeline.datasets.tree import Place, Problems, Tree
from pipeline.errors import BadFile

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
LISTS = REAL / "lists" / "pascal_context"
UCM = REAL / "bsds500" / "BSDS500" / "ucm2" / "train"
FIRST = image_id("train", 0)
H, W = 128, 160


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("context")
    write_context(root, train=4, val=2)
    return root


@pytest.fixture
def copy(drawn, tmp_path) -> Path:
    """A copy of the drawn tree that a test may damage."""
    return Path(shutil.copytree(drawn, tmp_path / "copy"))


def open_tree(root: Path, images: Path | None = None, problems: Problems | None = None) -> Tree:
    place = Place("context", root)
    images_place = place if images is None else Place("voc2010", images)
    return context.open_tree(place, images_place, problems or Problems(collect=False))


def read(tree: Tree, name: str) -> Sample:
    return tree.read(tree.record(name), Problems(collect=False))


# --- what is read ---------------------------------------------------------------------------------
def test_there_are_59_categories_and_background(drawn):
    tree = open_tree(drawn)
    assert len(tree.categories) == 60 and tree.categories[0] == "background"
    assert tree.official == {"train": 4998, "val": 5105}
    assert tree.splits == {
        "train": [image_id("train", i) for i in range(4)],
        "val": [image_id("val", 0), image_id("val", 1)],
    }
    assert sorted(tree.lists) == [
        "context/59_labels.txt",
        "context/VOC2010/ImageSets/Main/train.txt",
        "context/VOC2010/ImageSets/Main/val.txt",
        "context/labels.txt",
    ]


@pytest.mark.skipif(not LISTS.is_dir(), reason="the published lists are not here")
def test_names_are_those_of_the_authors_and_three_have_other_spellings():
    ours = [line.split(": ")[1] for line in (LISTS / "classes-59.txt").read_text().splitlines()]
    assert list(CONTEXT) == ours
    context.check_names(LISTS / "classes-59.txt")
    table = context.category_of_label(LISTS / "classes-400.txt")
    authors = dict(
        line.split(": ") for line in (LISTS / "classes-400.txt").read_text().splitlines()
    )
    assert table.shape == (460,) and table.dtype == np.uint8 and table[0] == 0
    assert sorted(table[table > 0]) == list(range(1, 60))
    spelled = {CONTEXT[table[int(n)]]: name for n, name in authors.items() if table[int(n)]}
    other = {ours: theirs for ours, theirs in spelled.items() if ours != theirs}
    assert other == {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
    assert {authors["431"], authors["432"]} == {"unknown", "vacuum cleaner"}
    assert table[431] == table[432] == 0


@pytest.mark.parametrize("index", range(4))
def test_reads_what_was_drawn(drawn, index):
    sample, truth = read(open_tree(drawn), image_id("train", index)), draw("train", index)
    assert sample.size == (H, W) and sample.source == "context" and sample.objects is None
    assert sample.label_map.dtype == np.uint8 and sample.label_map.flags.c_contiguous
    expected = np.full((H, W), CONTEXT.index("floor"), np.uint8)
    expected[: H // 3] = CONTEXT.index("sky")
    expected[:, : W // 5] = 0
    kinds = np.array([0, *(CONTEXT.index(kind) for kind in KINDS[1:])])
    objects = (truth.label_map > 0) & (truth.label_map < 255)
    expected[objects] = kinds[truth.label_map[objects]]
    expected[truth.label_map == 255] = 0  # no label
    np.testing.assert_array_equal(sample.label_map, expected)


def test_labels_above_255_are_not_cut_to_8_bits(drawn):
    window, wood = names()["window"], names()["wood"]
    assert window > 255 and wood > 255
    labels = [label_map(draw("train", i)) for i in range(4)]
    assert max(found.max() for found in labels) > 255
    table = context.category_of_label(drawn / "labels.txt")
    assert [CONTEXT[table[n]] for n in (window, wood)] == ["window", "wood"]
    assert [table[n % 256] for n in (window, wood)] != [table[n] for n in (window, wood)]
    assert table[OTHER] == 0


def test_images_may_lie_in_a_place_of_their_own(copy):
    images = copy.parent / "voc"
    images.mkdir()
    (copy / "VOC2010").rename(images / "VOC2010")
    tree = open_tree(copy, images)
    assert read(tree, FIRST).path == f"voc2010/VOC2010/JPEGImages/{FIRST}.jpg"
    assert sorted(tree.files_of(FIRST).must) == [
        f"context/trainval/{FIRST}.mat",
        f"voc2010/VOC2010/JPEGImages/{FIRST}.jpg",
    ]


def test_images_beside_the_labels_are_found_first(drawn, tmp_path):
    tree = open_tree(drawn, tmp_path)
    assert read(tree, FIRST).path == f"context/VOC2010/JPEGImages/{FIRST}.jpg"


def test_59_labels_may_be_absent(copy):
    (copy / "59_labels.txt").unlink()
    assert read(open_tree(copy), FIRST).label_map is not None


def test_records_and_reading_go_to_other_processes(drawn):
    tree = open_tree(drawn)
    again, record = pickle.loads(pickle.dumps((tree.read, tree.record(FIRST))))
    assert len(pickle.dumps(record)) < 1500 and len(pickle.dumps(tree.read)) < 1500
    found = again(record, Problems(collect=False))
    np.testing.assert_array_equal(found.label_map, read(tree, FIRST).label_map)


def test_writing_again_gives_the_same_bytes(drawn, tmp_path):
    write_context(tmp_path, train=1, val=1)
    for name in (f"VOC2010/JPEGImages/{FIRST}.jpg", f"trainval/{FIRST}.mat", "labels.txt"):
        assert (tmp_path / name).read_bytes() == (drawn / name).read_bytes()


# --- what is refused ------------------------------------------------------------------------------
def mat(**variables: object) -> Callable[[Path], None]:
    return lambda path: savemat(path, variables)


def put(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def header_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:HEADER])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unknown_type(path: Path) -> None:
    """Uncompressed, with a type of numbers that does not exist: scipy's reader dies of it."""
    savemat(path, {"LabelMap": np.ones((H, W), np.uint16)})
    data = bytearray(path.read_bytes())
    at = data.index(b"LabelMap") + 8
    assert struct.unpack_from("<I", data, at) == (4,)
    struct.pack_into("<I", data, at, 0x5D04)
    path.write_bytes(data)


def turned(path: Path) -> None:
    savemat(path, {"LabelMap": loadmat(path)["LabelMap"].T})


ANY_FILE = {
    "cut": cut,
    "empty": put(b""),
    "text": put(b"<html>404</html>"),
    "missing": Path.unlink,
    "a folder": folder,
    "a loop of links": loop,
    "a pipe": pipe,
}
ONES = np.ones((H, W), np.uint16)
BAD_MATS = ANY_FILE | {
    "header only": header_only,
    "version 7.3": put(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n"),
    "version 4": lambda path: savemat(path, {"LabelMap": ONES}, format="4"),
    "an unknown type of numbers": unknown_type,
    "no LabelMap": mat(labels=ONES),
    "a text": mat(LabelMap="1"),
    "a struct": mat(LabelMap={"LabelMap": ONES}),
    "a cell": mat(LabelMap=np.array([1, "a"], object)),
    "complex": mat(LabelMap=ONES * 1j),
    "3 dimensions": mat(LabelMap=np.ones((H, W, 2), np.uint16)),
    "turned": turned,
    "another size": mat(LabelMap=ONES[: H // 2]),
    "no pixels": mat(LabelMap=np.zeros((0, 0), np.uint16)),
    "8 bits": mat(LabelMap=ONES.astype(np.uint8)),
    "fractions": mat(LabelMap=ONES * 1.5),
    "NaN": mat(LabelMap=ONES * np.nan),
    "460": mat(LabelMap=ONES * 460),
    "65535": mat(LabelMap=ONES * 65535),
    "negative": mat(LabelMap=-ONES.astype(np.int16)),
    "no label at all": mat(LabelMap=ONES * 0),
}


@pytest.mark.parametrize("kind", BAD_MATS)
def test_a_damaged_label_map_is_named(copy, kind):
    tree = open_tree(copy)
    record = tree.record(FIRST)
    BAD_MATS[kind](record.labels)
    with pytest.raises(BadFile) as refusal:
        tree.read(record, Problems(collect=False))
    assert refusal.value.path == record.labels
    assert refusal.value.problem and refusal.value.remedy

    problems = Problems(collect=True)
    sample = tree.read(record, problems)
    assert [fault.path for fault in problems.found] == [record.labels]
    assert sample.label_map is None and sample.size == (H, W)


def test_a_turned_label_map_is_called_that(copy):
    tree = open_tree(copy)
    turned(tree.record(FIRST).labels)
    with pytest.raises(BadFile, match="rows and columns are exchanged"):
        read(tree, FIRST)


@pytest.mark.parametrize("kind", ANY_FILE)
def test_a_damaged_image_is_named(copy, kind):
    tree = open_tree(copy)
    record = tree.record(FIRST)
    ANY_FILE[kind](record.image)
    with pytest.raises(BadFile) as refusal:
        tree.read(record, Problems(collect=False))
    assert refusal.value.path == record.image


def lines(change: Callable[[list[str]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        kept = path.read_text().splitlines()
        change(kept)
        path.write_text("\n".join(kept))

    return damage


def swap(kept: list[str]) -> None:
    """The names of the first two lines exchanged."""
    (a, first), (b, second) = (line.split(": ") for line in kept[:2])
    kept[:2] = [f"{a}: {second}", f"{b}: {first}"]


BAD_NAMES = {
    **{kind: damage for kind, damage in ANY_FILE.items() if kind not in ("cut", "empty")},
    "no text": put(b"1: \xff\xfe"),
    "an invalid line": lines(lambda kept: kept.insert(3, "4 four")),
    "a number twice": lines(lambda kept: kept.insert(3, "3: three")),
    "a name twice": lines(lambda kept: kept.insert(3, "999: " + kept[6].split(": ")[1])),
}
BAD_LABELS = BAD_NAMES | {
    "empty": put(b""),
    "cut": lambda path: path.write_text(path.read_text()[:-40]),
    "a line missing": lines(lambda kept: kept.pop(10)),
    "one of the 59 renamed": lines(lambda kept: kept.__setitem__(6, "7: airplane")),
}
BAD_59 = {kind: damage for kind, damage in BAD_NAMES.items() if kind != "missing"} | {
    "another order": lines(swap),
    "another name": lines(lambda kept: kept.__setitem__(0, "1: airplane")),
    "too many": lines(lambda kept: kept.append("60: airplane")),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_damaged_names_are_refused(copy, kind):
    BAD_LABELS[kind](copy / "labels.txt")
    with pytest.raises(BadFile) as refusal:
        open_tree(copy)
    assert refusal.value.path == copy / "labels.txt"
    problems = Problems(collect=True)
    assert open_tree(copy, problems=problems).ids() == []
    assert [fault.path for fault in problems.found] == [copy / "labels.txt"]


@pytest.mark.parametrize("name", ["labels.txt", "59_labels.txt"])
def test_a_mark_before_the_names_does_no_harm(copy, name):
    before = read(open_tree(copy), FIRST)
    (copy / name).write_bytes(b"\xef\xbb\xbf" + (copy / name).read_bytes())
    np.testing.assert_array_equal(read(open_tree(copy), FIRST).label_map, before.label_map)


@pytest.mark.parametrize("kind", BAD_59)
def test_another_selection_of_names_is_refused(copy, kind):
    BAD_59[kind](copy / "59_labels.txt")
    with pytest.raises(BadFile) as refusal:
        open_tree(copy)
    assert refusal.value.path == copy / "59_labels.txt"
    problems = Problems(collect=True)
    tree = open_tree(copy, problems=problems)
    assert [fault.path for fault in problems.found] == [copy / "59_labels.txt"]
    assert read(tree, FIRST).label_map is not None  # the rest is still read


TREES = {
    "no maps": (lambda root: shutil.rmtree(root / "trainval"), "trainval", 0),
    "no images": (lambda root: shutil.rmtree(root / "VOC2010"), "VOC2010", 0),
    "no list": (
        lambda root: (root / "VOC2010/ImageSets/Main/val.txt").unlink(),
        "VOC2010/ImageSets/Main/val.txt",
        4,
    ),
    "an empty list": (
        lambda root: (root / "VOC2010/ImageSets/Main/val.txt").write_text(""),
        "VOC2010/ImageSets/Main/val.txt",
        4,
    ),
    "images in a loop of links": (
        lambda root: (
            shutil.rmtree(root / "VOC2010"),
            os.symlink("VOC2010", root / "VOC2010"),
        ),
        "VOC2010",
        0,
    ),
}


@pytest.mark.parametrize("kind", TREES)
def test_a_damaged_tree_is_named(copy, kind):
    damage, name, left = TREES[kind]
    damage(copy)
    with pytest.raises(BadFile) as refusal:
        open_tree(copy)
    assert refusal.value.path == copy / name
    problems = Problems(collect=True)
    assert len(open_tree(copy, problems=problems).ids()) == left
    assert [fault.path for fault in problems.found] == [copy / name]


def test_a_folder_above_is_told(copy):
    (copy / "VOCdevkit").mkdir()
    (copy / "VOC2010").rename(copy / "VOCdevkit" / "VOC2010")
    with pytest.raises(BadFile, match="it is in VOCdevkit/ there"):
        open_tree(copy)


# --- MATLAB files ---------------------------------------------------------------------------------
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_arrays_are_those_of_scipy(tmp_path, kind, compressed):
    numbers = np.arange(-3, 9).reshape(3, 4).astype(kind)
    path = tmp_path / "a.mat"
    savemat(path, {"first": "text", "numbers": numbers}, do_compression=compressed)
    found = read_variable(path, "numbers")
    np.testing.assert_array_equal(found, numbers)
    assert found.dtype == numbers.dtype


def test_fields_of_a_struct_that_are_numbers_are_read(tmp_path):
    """SBD's form: cells, texts and structs beside the numbers are left out."""
    path = tmp_path / "a.mat"
    fields = {
        "Segmentation": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "Categories": np.array([[7.0], [9.0]]),
        "Boundaries": np.array([np.ones((2, 2)), "x"], object),
        "Name": "x",
        "Inner": {"Segmentation": np.ones((1, 1))},
    }
    path.write_bytes(encode_variables({"GTinst": fields}))
    found = read_variable(path, "GTinst")
    assert sorted(found) == ["Categories", "Segmentation"]
    np.testing.assert_array_equal(found["Segmentation"], fields["Segmentation"])
    np.testing.assert_array_equal(found["Categories"], [[7], [9]])


def test_bytes_in_the_other_order_are_read(tmp_path):
    """A file made by hand: big-endian, with a small element for the name."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8)

    body = element(6, struct.pack(">II", 11, 0)) + element(5, struct.pack(">ii", 2, 2))
    body += struct.pack(">HH4s", 1, 1, b"m") + element(4, struct.pack(">4H", 1, 2, 300, 4))
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB".ljust(124) + struct.pack(">H", 0x0100) + b"MI" + element(14, body))
    found = read_variable(path, "m")
    np.testing.assert_array_equal(found, [[1, 300], [2, 4]])
    np.testing.assert_array_equal(found, loadmat(path)["m"])


@pytest.mark.skipif(not UCM.is_dir(), reason="the real files are not here")
def test_real_files_of_matlab_are_read_like_scipy_does():
    paths = sorted(UCM.glob("*.mat"))[:3]
    assert paths
    for path in paths:
        np.testing.assert_array_equal(read_variable(path, "ucm2"), loadmat(path)["ucm2"])


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    "variable", [ONES[:8, :9], {"Segmentation": ONES[:8, :9], "Categories": np.ones((3, 1))}]
)
def test_no_flipped_byte_lets_another_error_escape(tmp_path, variable, compressed):
    rng = random.Random(0)
    path = tmp_path / "a.mat"
    savemat(path, {"v": variable}, do_compression=compressed)
    whole = path.read_bytes()
    refused = 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 4])):
            data[rng.randrange(124, len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            read_variable(path, "v")
        except BadFile as fault:
            assert fault.path == path
            refused += 1
    assert refused > 250
