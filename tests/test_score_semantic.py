"""Scoring folders of label maps: the numbers, the file forms, and what is refused."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix as counted_by_sklearn

from pipeline.__main__ import main
from pipeline.categories import CATEGORIES, VOC
from pipeline.datasets.label_maps import categories_of, pair_label_maps, read_label_map
from pipeline.errors import BadFile, BadInput
from pipeline.masks import encode_index_png
from pipeline.scoring.outcome import document
from pipeline.scoring.semantic import score_semantic
from pipeline.tables import read_table

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
NAMES = ["background", "ring", "star"]
TRUTH = {"a": [[0, 1, 1], [0, 255, 1]], "b": [[0, 0], [0, 1], [0, 255]]}
PREDICTED = {"a": [[0, 1, 0], [0, 1, 1]], "b": [[0, 0], [9, 1], [0, 0]]}
# truth:       background 2 + 4 = 6, ring 3 + 1 = 4
# right:       background 2 + 3 = 5, ring 2 + 1 = 3;  predicted: background 6, ring 3, none 1
CONFUSION = [[5, 0, 0, 1], [1, 3, 0, 0], [0, 0, 0, 0]]


def write_maps(folder: Path, maps: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, values in maps.items():
        png = encode_index_png(np.array(values, np.uint8))
        (folder / f"{image_id}.png").write_bytes(png)
    return folder


@pytest.fixture
def folder(tmp_path):
    """truth/, predicted/ and names.txt, a line a category."""
    write_maps(tmp_path / "truth", TRUTH)
    write_maps(tmp_path / "predicted", PREDICTED)
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    return tmp_path


def scored(
    folder: Path, truth: str = "truth", predicted: str = "predicted", **options: Any
) -> dict[str, Any]:
    options = {"categories": str(folder / "names.txt"), "ids": None, "instances": None} | options
    options = {"allow_missing": False, "train_ids": False} | options
    return document(score_semantic(folder / truth, folder / predicted, **options))


@pytest.mark.parametrize("line", ["img.v1", "my image", "ä", "x/img.v1.png", "img.v1.jpg y.png"])
def test_a_listed_name_is_that_image_and_no_other(tmp_path, line):
    """`img.v1` must not be cut to `img`, which is there, too."""
    names = ["img", "img.v1", "my", "my image", "ä"]
    for name in names:
        right = 0 if name in line else 1
        write_maps(tmp_path / "truth", {name: [[0, 1]]})
        write_maps(tmp_path / "predicted", {name: [[right, right]]})
    (tmp_path / "names.txt").write_text("a\nb\n")
    write_maps(tmp_path / "predicted", {"img": [[1, 0]], "my": [[1, 0]]})
    (tmp_path / "ids.txt").write_text(line + "\n", encoding="utf-8")
    assert scored(tmp_path, ids=tmp_path / "ids.txt")["pixel_accuracy"] == 1 / 2


def test_a_png_with_one_flipped_bit_is_refused(folder):
    path = folder / "predicted" / "a.png"
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 8
    for bit in range(8):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        with pytest.raises(BadFile, match="a.png: not a readable PNG"):
            scored(folder)


# --- numbers --------------------------------------------------------------------------------------
def test_scores_are_of_all_pixels_of_all_images_together(folder):
    assert scored(folder) == {
        "categories": NAMES,
        "confusion": CONFUSION,
        "num_images": 2,
        "num_categories": 2,
        "pixel_accuracy": 8 / 10,
        "mean_accuracy": (5 / 6 + 3 / 4) / 2,
        "mean_iou": (5 / 7 + 3 / 4) / 2,
        "iou": {"background": 5 / 7, "ring": 3 / 4, "star": None},
        "notes": [
            "10.00% of the labelled pixels are predicted as no category, or not at all: all of "
            "these are wrong",
            "1 of 3 categories are in neither truth nor predictions and are left out of the mean: "
            "star",
        ],
    }


def test_the_command_writes_json_and_a_table_of_the_same_numbers(folder, capsys):
    out, table = folder / "scores.json", folder / "scores.parquet"
    command = ["score", "semantic", "--categories", str(folder / "names.txt")]
    command += ["--truth", str(folder / "truth"), "--predicted", str(folder / "predicted")]
    assert main([*command, "--json", str(out), "--table", str(table)]) == 0
    found = json.loads(out.read_text())
    assert found == scored(folder)
    rows = read_table(table, "metrics")
    ious = rows[rows["metric"] == "iou"].set_index("category")["value"]
    assert ious["ring"] == found["iou"]["ring"] and np.isnan(ious["star"])
    means = rows[rows["category"].isna()].set_index("metric")["value"]
    assert means["mean_iou"] == found["mean_iou"] and means["num_images"] == 2
    assert "0.7321" in capsys.readouterr().out


def test_only_listed_images_are_scored_and_other_predictions_left_out(folder):
    (folder / "ids.txt").write_text("a\n")
    (folder / "truth" / "b.png").write_text("not looked at")
    found = scored(folder, ids=folder / "ids.txt")
    assert found["num_images"] == 1
    assert found["notes"][0] == "1 predictions are of none of these images and are left out: b"
    assert found["confusion"] == [[2, 0, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0]]


def test_a_missing_prediction_that_is_allowed_counts_as_wrong_everywhere(folder):
    (folder / "predicted" / "b.png").unlink()
    found = scored(folder, allow_missing=True)
    assert found["confusion"] == [[2, 0, 0, 4], [1, 2, 0, 1], [0, 0, 0, 0]]
    assert found["pixel_accuracy"] == 4 / 10 and found["num_images"] == 2
    assert "1 of 2 predictions are missing" in found["notes"][0] and found["notes"][0].endswith("b")


def test_a_prediction_without_truth_that_is_allowed_is_left_out_and_told(folder):
    write_maps(folder / "predicted", {"c": [[0]]})
    found = scored(folder, allow_missing=True)
    assert found["confusion"] == CONFUSION
    assert found["notes"][0] == "1 predictions are of none of these images and are left out: c"


def test_nothing_can_be_said_of_images_without_a_label(folder):
    for image_id, values in TRUTH.items():
        write_maps(folder / "truth", {image_id: np.full_like(values, 255)})
    found = scored(folder)
    assert np.sum(found["confusion"]) == 0 and found["num_images"] == 2
    assert found["mean_iou"] is found["pixel_accuracy"] is found["mean_accuracy"] is None


def test_many_images_give_the_sum_of_what_each_gives(folder):
    generator = np.random.default_rng(0)
    maps = {f"{n:03d}": generator.integers(0, 3, (5, 1 + n % 7)) for n in range(60)}
    predicted = {name: generator.integers(0, 4, m.shape) for name, m in maps.items()}
    write_maps(folder / "many" / "truth", maps)
    write_maps(folder / "many" / "predicted", predicted)
    truth = np.concatenate([m.ravel() for m in maps.values()])
    given = np.concatenate([m.ravel() for m in predicted.values()])
    found = scored(folder / "many", categories=str(folder / "names.txt"))
    assert found["confusion"] == counted_by_sklearn(truth, given, labels=range(4))[:3].tolist()


@pytest.mark.parametrize(("outputs", "published"), [("res_none", 0.888), ("res_crf", 0.918)])
def test_published_outputs_score_as_another_tool_scores_them(outputs, published):
    """DeepLab's own outputs on 17 images of VOC val."""
    folder = REAL / "published_outputs" / "deeplab_iclr2015"
    if not folder.is_dir():
        pytest.skip("the real outputs are not here")
    found = scored(folder, "gt", outputs, categories="voc")

    truth, predicted = [], []
    for path in sorted((folder / "gt").iterdir()):
        truth.append(np.array(Image.open(path)).ravel())
        predicted.append(np.array(Image.open(folder / outputs / path.name)).ravel())
    labelled = np.concatenate(truth) != 255
    counts = counted_by_sklearn(
        np.concatenate(truth)[labelled], np.concatenate(predicted)[labelled], labels=range(21)
    )
    assert found["num_images"] == len(truth) == 17
    assert [row[:21] for row in found["confusion"]] == counts.tolist()
    assert not any(row[21] for row in found["confusion"])
    right, union = np.diagonal(counts), counts.sum(0) + counts.sum(1) - np.diagonal(counts)
    assert found["pixel_accuracy"] == right.sum() / counts.sum()
    assert found["pixel_accuracy"] == pytest.approx(published, abs=0.02)  # of these and 8 more
    for name, a, b in zip(VOC, right, union, strict=True):
        assert found["iou"][name] == (a / b if b else None)
    assert found["mean_iou"] == pytest.approx(np.mean(right[union > 0] / union[union > 0]))


# --- files that are refused -----------------------------------------------------------------------
def write_png(path: Path, mode: str) -> None:
    Image.new(mode, (3, 2)).save(path)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def write_grey(path: Path, bits: int, row: int | None) -> None:
    """A grey PNG of 2x3 pixels with so many bits a pixel, each row these bits; None: no pixels."""
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, bits, 0, 0, 0, 0))
    if row is not None:
        data = (b"\0" + row.to_bytes(1 if bits < 4 else 2, "big")) * 2  # each after its filter
        content += chunk(b"IDAT", zlib.compress(data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


DAMAGES = {
    "colours": (lambda p: write_png(p, "RGB"), "colours .mode RGB. .*export indices --colours voc"),
    "colours and alpha": (lambda p: write_png(p, "RGBA"), "colours .mode RGBA."),
    "grey and alpha": (lambda p: write_png(p, "LA"), "grey PNG with transparency"),
    "16 bits": (lambda p: write_png(p, "I;16"), "16 bits a pixel .*save it with 8 bits"),
    "1 bit": (lambda p: write_png(p, "1"), "grey PNG of 1 bits a pixel"),
    "2 bits": (lambda p: write_grey(p, 2, 0b01010100), "grey PNG of 2 bits a pixel"),
    "4 bits": (lambda p: write_grey(p, 4, 0x1110), "grey PNG of 4 bits a pixel"),
    "a JPEG": (lambda p: Image.new("L", (3, 2)).save(p, format="JPEG"), "not a readable PNG"),
    "cut": (cut, "not a readable PNG"),
    "no pixels": (lambda p: write_grey(p, 8, None), "not a readable PNG .no pixels in it"),
    "empty": (lambda p: p.write_bytes(b""), "not a readable PNG"),
    "another size": (
        lambda p: write_maps(p.parent, {"a": [[0, 0]]}),
        r"1 x 2 .*2 x 3|2 x 3 .*1 x 2",
    ),
}


@pytest.mark.parametrize("side", ["truth", "predicted"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_label_map_is_named_with_its_fault(folder, side, damage):
    harm, said = DAMAGES[damage]
    harm(folder / side / "a.png")
    with pytest.raises(BadFile, match=said) as error:
        scored(folder)
    assert f"{side}/a.png" in str(error.value)


def test_indices_are_read_whatever_the_palette_and_its_bits(tmp_path):
    values = np.array([[0, 1, 2], [3, 1, 0]], np.uint8)
    image = Image.fromarray(values)
    image.save(tmp_path / "grey.png")
    image.putpalette([200, 10, 10, 0, 0, 0, 9, 9, 9, 200, 10, 10])  # 0 and 3 look the same
    image.save(tmp_path / "two_bits.png", bits=2)
    image.save(tmp_path / "clear.png", transparency=1)
    for path in tmp_path.iterdir():
        assert read_label_map(path).tolist() == values.tolist(), path.name


def test_a_truth_outside_the_categories_is_named_with_its_value(folder):
    write_maps(folder / "truth", {"b": [[0, 0], [0, 7], [0, 3]]})
    with pytest.raises(BadFile, match=r"truth/b\.png: .*\[3, 7\].*3 categories"):
        scored(folder)


def test_predictions_that_are_missing_or_too_many_are_listed(folder):
    (folder / "predicted" / "b.png").rename(folder / "predicted" / "B2.png")
    (folder / "predicted" / "b.npy").touch()
    with pytest.raises(BadFile, match=r"1 of 2 .*missing: b .*\.npy.*without a truth: B2") as error:
        scored(folder)
    assert "--allow-missing" in str(error.value) and "--ids" in str(error.value)


def test_a_long_list_of_missing_predictions_is_cut_and_counted(folder):
    write_maps(folder / "truth", {f"x{n:02d}": [[0]] for n in range(20)})
    with pytest.raises(BadFile, match=r"20 of 22 .*missing: x00, x01, .* and 12 more"):
        scored(folder)


@pytest.mark.parametrize("side", ["truth", "predicted"])
@pytest.mark.parametrize("allow_missing", [False, True])
def test_an_empty_folder_is_refused(folder, side, allow_missing):
    for path in (folder / side).iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(BadFile, match=rf"{side}: no label maps in it, only \.gif"):
        scored(folder, allow_missing=allow_missing)


@pytest.mark.parametrize("side", ["truth", "predicted"])
def test_a_folder_that_is_not_there_is_refused(folder, side):
    (folder / side).rename(folder / "elsewhere")
    with pytest.raises(BadFile, match=rf"{side}: no readable folder"):
        scored(folder)


def test_predictions_of_other_images_are_refused_also_where_missing_ones_are_allowed(folder):
    for path in (folder / "predicted").iterdir():
        path.rename(path.with_stem(f"{path.stem}_pred"))
    with pytest.raises(BadFile, match=r"no prediction of any of the 2 images; wanted: a, b; there"):
        scored(folder, allow_missing=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [("\n\n", "no image in it"), ("a\nc\n", "1 of 2 images have no truth"), ("a\na\n", "a again")],
)
def test_a_list_of_images_is_checked(folder, text, said):
    (folder / "ids.txt").write_text(text)
    with pytest.raises(BadFile, match=rf"ids\.txt: .*{said}"):
        scored(folder, ids=folder / "ids.txt")


def test_two_files_of_one_image_are_refused(folder):
    (folder / "predicted" / "a.PNG").write_bytes((folder / "predicted" / "a.png").read_bytes())
    if len(list((folder / "predicted").iterdir())) < 3:
        pytest.skip("this disk does not tell a.png from a.PNG")
    with pytest.raises(BadFile, match="a second file of image a"):
        scored(folder)


def test_hidden_files_are_no_label_maps(folder):
    (folder / "predicted" / "._a.png").write_bytes(b"left there by a Mac")
    assert scored(folder)["confusion"] == CONFUSION


@pytest.mark.parametrize(
    "options", [{"train_ids": True}, {"instances": Path("objects")}], ids=["ids", "objects"]
)
def test_options_of_cityscapes_are_refused_elsewhere(folder, options):
    with pytest.raises(BadInput, match="belongs to --categories cityscapes"):
        scored(folder, **options)


def test_bad_input_ends_with_2_and_writes_nothing(folder, capsys):
    write_png(folder / "predicted" / "b.png", "RGB")
    out = folder / "out"
    out.mkdir()
    command = ["score", "semantic", "--categories", str(folder / "names.txt")]
    command += ["--truth", str(folder / "truth"), "--predicted", str(folder / "predicted")]
    assert main([*command, "--json", str(out / "s.json"), "--table", str(out / "s.parquet")]) == 2
    assert "b.png: colours (mode RGB)" in capsys.readouterr().err
    assert not list(out.iterdir())


# --- categories and pairs -------------------------------------------------------------------------
@pytest.mark.parametrize("name", CATEGORIES)
def test_known_categories_are_found_by_name(name):
    assert categories_of(name) == CATEGORIES[name]


@pytest.mark.parametrize(
    "text", ['["sky", "sea of rock"]', "sky\nsea of rock\n", "\ufeffsky\nsea of rock"]
)
def test_categories_are_read_from_a_file(tmp_path, text):
    (tmp_path / "names").write_text(text, encoding="utf-8")
    assert categories_of(str(tmp_path / "names")) == ("sky", "sea of rock")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 categories; give 1 to 255"),
        ("[]", "0 categories"),
        ("\n".join(map(str, range(256))), "256 categories"),
        ("sky\nsea\nsky\n", "more than once: sky"),
        ("sky\n\nsea\n", "category 1 has no name"),
        ("\nsky\nsea\n", "category 0 has no name"),
        ('["sky", 3]', "not a list of names"),
        ('{"0": "sky"}', "not a list of names"),
        ('["sky"', "not a readable list"),
        ("[" * 100_000, "not a readable list"),
    ],
)
def test_a_file_that_is_no_list_of_categories_is_refused(tmp_path, text, said):
    (tmp_path / "names").write_text(text)
    with pytest.raises(BadFile, match=said):
        categories_of(str(tmp_path / "names"))


def test_unknown_categories_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(BadInput, match="pascal': no file, and none of the known lists: voc, coco"):
        categories_of("pascal")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path, said in ((tmp_path, "not a regular file"), (tmp_path / "binary", "not a readable")):
        with pytest.raises(BadFile, match=said):
            categories_of(str(path))


def test_pairs_are_sorted_and_name_their_files(folder):
    joined = pair_label_maps(folder / "truth", folder / "predicted", ids=None, allow_missing=False)
    assert [pair.image_id for pair in joined.pairs] == ["a", "b"]
    assert joined.pairs[1].predicted == folder / "predicted" / "b.png"
    assert joined.missing == joined.extra == joined.notes() == []
