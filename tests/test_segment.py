"""The command `segment`: any photographs to label maps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline import post_processing, tiles
from pipeline.__main__ import main
from pipeline.categories import CITYSCAPES, SAMPLE
from pipeline.checkpoints import load_model
from pipeline.crf.dense import PUBLISHED, mean_field
from pipeline.errors import BadFile
from pipeline.figures import blend, colours_of
from pipeline.inference import for_inference, predict_label_map, predict_probabilities
from pipeline.models.fcrn import fcrn
from pipeline.params import ONE_VIEW, Views
from pipeline.photographs import read_photograph
from pipeline.post_processing import bytes_of_crf
from pipeline.training import save_checkpoint

NETWORK = {"kind": "fcrn", "depth": 14, "stride": 8, "kernel": 3, "dilation": 1}
CPU = torch.device("cpu")
COLOURS = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)  # lossless formats


def save_model(path: Path, categories=SAMPLE) -> Path:
    torch.manual_seed(0)
    shape = {key: value for key, value in NETWORK.items() if key != "kind"}
    network = fcrn(**shape, num_categories=len(categories))
    nn.init.normal_(network.classifier.weight, std=0.1)
    run = {"network": NETWORK, "precision": "fp32", "threads": 1}
    save_checkpoint(
        path, network=network, optimizer=None, step=0, run=run, categories=list(categories)
    )
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "drawn.pt")


def photograph(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3))
    return np.kron(blocks, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)


@pytest.fixture
def images(tmp_path) -> Path:
    """a.png, b.jpg, trip/a.jpg and a note."""
    folder = tmp_path / "images"
    (folder / "trip").mkdir(parents=True)
    Image.fromarray(photograph(0)).save(folder / "a.png")
    Image.fromarray(photograph(1)).save(folder / "b.jpg")
    Image.fromarray(photograph(2, 30, 20)).save(folder / "trip" / "a.jpg")
    (folder / "note.txt").write_text("seen on the way")
    return folder


def run(model: Path | str, images: Path, *more: str) -> int:
    out = images.parent / "out"
    return main(["segment", str(model), "--images", str(images), "--out", str(out), *more])


def files(folder: Path) -> dict[str, int]:
    """Every file below a folder, and when it was written."""
    found = {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*.*")}
    return dict(sorted(found.items()))


# --- what is made ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "views"),
    [
        ([], ONE_VIEW),
        (["--scales", "0.5,1", "--flip"], Views((0.5, 1), flip=True, shifts=1)),
        (["--shifts", "2"], Views((1.0,), flip=False, shifts=2)),
    ],
)
def test_label_maps_are_those_of_the_network_and_views(model, images, options, views):
    assert run(model, images, *options) == 0
    network, saved = load_model(model, CPU)
    out = images.parent / "out"
    assert list(files(out)) == ["labels/a.png", "labels/b.png", "labels/trip/a.png", "segment.json"]
    shown = set()
    for name, source in (("a", "a.png"), ("b", "b.jpg"), ("trip/a", "trip/a.jpg")):
        with Image.open(images / source) as image:
            pixels = np.array(image)
        expected = predict_probabilities(
            for_inference(network, precision="fp32"),
            pixels,
            views=views,
            device=CPU,
            precision="fp32",
        )
        with Image.open(out / "labels" / f"{name}.png") as image:
            assert image.mode == "P"
            assert (np.array(image) == expected.argmax(0).numpy()).all()
        shown |= set(np.unique(expected.argmax(0)))
    assert len(shown) > 2


def test_palette_overlay_and_settings_have_the_colours_of_the_dataset(tmp_path, images, capsys):
    model = save_model(tmp_path / "streets.pt", CITYSCAPES)
    assert run(model, images, "--overlay") == 0
    said = capsys.readouterr().out
    assert "label maps of 3 images, 3 made now" in said and "note.txt" in said
    out = tmp_path / "out"
    colours = colours_of(CITYSCAPES)
    with Image.open(out / "labels" / "a.png") as image:
        label_map, coloured = np.array(image), np.array(image.convert("RGB"))
    assert (coloured == colours[label_map]).all() and tuple(colours[0]) == (128, 64, 128)
    with Image.open(out / "overlays" / "a.png") as image:
        assert (np.array(image) == blend(photograph(0), label_map, colours)).all()
    settings = json.loads((out / "segment.json").read_text())
    assert settings["categories"][13] == {"number": 13, "name": "car", "colour": [0, 0, 142]}
    assert settings["model"] == "streets.pt" and len(settings["sha256"]) == 64


def test_overlays_of_tall_images_are_coloured_in_strips_that_join(model, tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(photograph(3, 600, 16)).save(tmp_path / "images" / "tall.png")
    assert run(model, tmp_path / "images", "--overlay") == 0
    with Image.open(tmp_path / "out" / "labels" / "tall.png") as image:
        label_map = np.array(image)
    with Image.open(tmp_path / "out" / "overlays" / "tall.png") as image:
        expected = blend(photograph(3, 600, 16), label_map, colours_of(SAMPLE))
        assert (np.array(image) == expected).all()


def test_what_is_written_may_not_hold_the_images(model, images, capsys):
    for out in (images, images.parent):
        assert main(["segment", str(model), "--images", str(images), "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert f"{out}: holds the images of {images}" in told and "--out" in told
    assert not (images / "segment.json").exists()


def test_a_folder_begun_with_other_settings_is_taken_while_nothing_is_made(model, images, capsys):
    out = images.parent / "out"
    assert run(model, images) == 0
    shutil.rmtree(out / "labels")
    assert run(model, images, "--flip") == 0
    assert run(model, images) == 2
    assert "of other settings are there" in capsys.readouterr().err
    (out / "segment.json").write_text("zzz")
    assert run(model, images) == 2
    assert "segment.json: damaged" in capsys.readouterr().err
    assert run(model, images, "--again") == 0


def test_a_run_is_found_by_its_name(model, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("drawn", images) == 2
    assert (
        "data/models/drawn.pt: not there; name a trained run (here: none)"
        in capsys.readouterr().err
    )
    models = tmp_path / "data" / "models"
    models.mkdir(parents=True)
    shutil.copyfile(model, models / "drawn.pt")
    assert run("other", images) == 2
    assert "(here: drawn)" in capsys.readouterr().err
    assert run("drawn", images) == 0


def test_images_larger_than_a_tile_go_in_tiles_and_that_is_told(model, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.fromarray(photograph(4, 300, 420)).save(tmp_path / "images" / "large.png")
    Image.fromarray(photograph(5)).save(tmp_path / "images" / "small.png")
    assert run(model, tmp_path / "images", "--tile", "256") == 0
    assert "1 of them in tiles (the last by 256)" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "labels" / "large.png") as image:
        in_tiles = np.array(image)
    assert run(model, tmp_path / "images", "--again") == 0
    assert "tiles" not in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "labels" / "large.png") as image:
        whole = np.array(image)
    # This network sees further than a quarter of the overlap; few pixels depend on that.
    assert len(np.unique(whole)) > 2 and (in_tiles != whole).mean() < 0.1


def test_an_image_that_does_not_fit_is_told_and_the_others_go_on(
    model, images, capsys, monkeypatch
):
    """In place of a GPU's memory: none for views as large as a.png."""
    predict = predict_label_map

    def short_of_memory(network, image, **views):
        if image.shape[:2] == (40, 56):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(network, image, **views)

    monkeypatch.setattr(tiles, "predict_label_map", short_of_memory)
    assert run(model, images) == 2
    error = capsys.readouterr().err
    assert error.count("out of memory on cpu, even for 47 x 47 pixels") == 2
    assert f"{images / 'a.png'}" in error and "2 of 3 images are not segmented" in error
    assert list(files(images.parent / "out")) == ["labels/trip/a.png", "segment.json"]


# --- going on -------------------------------------------------------------------------------------
def test_what_was_stopped_goes_on_and_what_is_there_is_kept(model, images, capsys, monkeypatch):
    predict, seen = predict_label_map, []

    def stopped(network, image, **views):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(image)
        return predict(network, image, **views)

    with monkeypatch.context() as patch:
        patch.setattr(tiles, "predict_label_map", stopped)
        assert run(model, images) == 130
    out = images.parent / "out"
    begun = files(out)
    assert list(begun) == ["labels/a.png", "segment.json"]
    assert run(model, images) == 0
    assert "label maps of 3 images, 2 made now" in capsys.readouterr().out
    done = files(out / "labels")
    assert done["a.png"] == begun["labels/a.png"] and len(done) == 3
    assert run(model, images, "--overlay") == 0
    assert "3 images, 0 made now" in capsys.readouterr().out
    assert files(out / "labels") == done and len(files(out / "overlays")) == 3
    assert run(model, images, "--overlay", "--again") == 0
    assert all(files(out / "labels")[name] > done[name] for name in done)


# --- with a CRF -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("options", "name"), [(["--crf"], "deeplab"), (["--crf", "sec"], "sec")])
def test_a_crf_follows_the_network(model, images, options, name):
    assert run(model, images, "--overlay", *options) == 0
    network, _ = load_model(model, CPU)
    fast, out = for_inference(network, precision="fp32"), images.parent / "out"
    changed = 0
    for made, source in (("a", "a.png"), ("trip/a", "trip/a.jpg")):
        with Image.open(images / source) as image:
            pixels = np.array(image)
        scores = predict_probabilities(
            fast, pixels, views=ONE_VIEW, device=CPU, precision="fp32"
        ).numpy()
        expected = mean_field(scores, pixels, PUBLISHED[name]).argmax(0)
        with Image.open(out / "labels" / f"{made}.png") as image:
            assert (np.array(image) == expected).mean() > 0.999
        changed += (expected != scores.argmax(0)).sum()
    assert changed > 0 and len(files(out / "overlays")) == 3
    told = json.loads((out / "segment.json").read_text())["crf"]
    assert told["bilateral_weight"] == PUBLISHED[name].bilateral_weight
    assert told["iterations"] == 10


def test_label_maps_with_and_without_a_crf_are_not_mixed(model, images, capsys):
    assert run(model, images) == 0
    out = images.parent / "out"
    assert "crf" not in json.loads((out / "segment.json").read_text())
    assert run(model, images, "--crf") == 2
    assert "of another network or of other settings are there" in capsys.readouterr().err
    assert run(model, images, "--crf", "--again") == 0
    assert run(model, images, "--crf") == 0
    assert "3 images, 0 made now" in capsys.readouterr().out
    assert run(model, images, "--crf", "sec") == 2


def test_an_image_too_large_for_the_crf_is_told_and_the_others_go_on(
    model, images, capsys, monkeypatch
):
    monkeypatch.setattr(post_processing, "ROOM", bytes_of_crf(len(SAMPLE), 40 * 56 - 1))
    assert run(model, images, "--crf") == 2
    error = capsys.readouterr().err
    assert "a.png: 40 x 56 pixels are too many for the CRF, which takes an image whole" in error
    assert "2 of 3 images are not segmented" in error
    assert list(files(images.parent / "out" / "labels")) == ["trip/a.png"]


def test_label_maps_of_other_views_are_not_mixed(model, images, capsys):
    assert run(model, images) == 0
    before = files(images.parent / "out")
    assert run(model, images, "--flip") == 2
    assert "of another network or of other settings are there" in capsys.readouterr().err
    assert files(images.parent / "out") == before
    (images / "b.jpg").unlink()
    assert run(model, images, "--flip", "--again") == 0
    assert "labels/b.png" not in files(images.parent / "out")


def test_a_folder_with_other_files_is_left_alone(model, images, capsys):
    out = images.parent / "out"
    (out / "labels").mkdir(parents=True)
    (out / "labels" / "mine.png").write_bytes(b"drawn by hand")
    for options in ([], ["--again"]):
        assert run(model, images, *options) == 2
        assert "not begun by this command" in capsys.readouterr().err
    assert list(files(out)) == ["labels/mine.png"]


def test_what_is_written_below_the_images_is_no_image(model, images):
    out = images / "found"
    for _ in range(2):
        command = ["segment", str(model), "--images", str(images), "--out", str(out), "--overlay"]
        assert main(command) == 0
    assert len(files(out / "labels")) == len(files(out / "overlays")) == 3


def test_an_image_that_was_changed_does_not_get_the_old_colours(model, images, capsys):
    assert run(model, images) == 0
    Image.fromarray(photograph(0, 24, 24)).save(images / "a.png")
    assert run(model, images, "--overlay") == 2
    assert "has another size, it was changed since" in capsys.readouterr().err
    assert len(files(images.parent / "out" / "overlays")) == 2


# --- bad input ------------------------------------------------------------------------------------
def test_bad_files_are_told_each_and_the_others_go_on(model, images, capsys):
    cut = (images / "b.jpg").read_bytes()[:-200]
    (images / "b.jpg").write_bytes(cut)
    (images / "c.png").write_bytes(b"")
    (images / "d.webp").write_text("no image")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(images / "e.tif")
    assert run(model, images) == 2
    error = capsys.readouterr().err
    for name, problem in {
        "b.jpg": "no end",
        "c.png": "not a readable image",
        "d.webp": "not a readable image",
        "e.tif": "numbers without a range (mode F)",
    }.items():
        assert [problem in line for line in error.splitlines() if name in line] == [True], name
    assert "4 of 6 images are not segmented" in error
    assert len(files(images.parent / "out" / "labels")) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scales", "1,two"], "--scales 1,two: give numbers from 0.05 to 8.0"),
        (["--scales", ""], "--scales : give numbers"),
        (["--scales", "nan"], "--scales nan: give numbers"),
        (["--scales", "0"], "--scales 0: give numbers"),
        (["--tile", "255"], "--tile 255: give 256 pixels or more"),
        (["--tile", "256", "--crf"], "--tile and --crf: a CRF takes an image whole; give one"),
        (["--crf", "best"], "--crf best: choose one of: deeplab, deeplab_largefov"),
    ],
)
def test_bad_options_are_told_before_anything_is_written(model, images, capsys, options, said):
    assert run(model, images, *options) == 2
    assert said in capsys.readouterr().err
    assert not (images.parent / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(model, images, capsys):
    assert run(model, images, "--device", "cuda") == 2
    assert "--device is cuda, but torch" in capsys.readouterr().err
    assert run(model, images, "--device", "cpu") == 0


class Harmful:
    def __reduce__(self):
        return (open, ("harm.txt", "w"))


def test_what_is_no_checkpoint_is_told_and_its_code_is_not_run(
    images, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("weights")
    torch.save({"network": Harmful()}, tmp_path / "harm.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "harm.pt").read_bytes()[:200])
    for name in ("text.pt", "harm.pt", "half.pt", "none.pt"):
        assert run(tmp_path / name, images) == 2
        assert name in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "harm.txt").exists()


def test_folders_that_give_no_images_are_told(model, images, capsys):
    assert run(model, images / "nosuch") == 2
    assert "no folder" in capsys.readouterr().err
    (images.parent / "empty").mkdir()
    assert run(model, images.parent / "empty") == 2
    assert "no image in it" in capsys.readouterr().err
    (images.parent / "out").write_text("")
    assert run(model, images) == 2
    assert "is there and no folder" in capsys.readouterr().err


def test_images_of_one_name_are_told_and_the_others_go_on(model, images, capsys):
    Image.fromarray(photograph(0)).save(images / "a.bmp")
    assert run(model, images) == 2
    error = capsys.readouterr().err
    for name in ("a.bmp", "a.png"):
        assert f"not segmented: {images / name}: another image has its name" in error
    assert "2 of 4 images are not segmented" in error
    labels = files(images.parent / "out" / "labels")
    assert list(labels) == ["b.png", "trip/a.png"]


# --- photographs ----------------------------------------------------------------------------------
def read(path: Path) -> tuple[np.ndarray, list[str]]:
    notes: list[str] = []
    return read_photograph(path, notes), notes


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_exif_tag_says(tmp_path, suffix, orientation):
    # By the standard: where row 0 and column 0 of what is stored are in what is seen
    seen = {
        1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left",
        5: "left top", 6: "right top", 7: "right bottom", 8: "left bottom",
    }[orientation]  # fmt: skip
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:16, :, 0] = 255  # red: the first rows
    stored[:, :32, 2] = 255  # blue: the first columns
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).save(path, exif=exif, quality=100)
    pixels, notes = read(path)
    assert pixels.shape == ((32, 64, 3) if orientation < 5 else (64, 32, 3)) and not notes
    sides = {
        "top": pixels[:8], "bottom": pixels[-8:], "left": pixels[:, :8], "right": pixels[:, -8:]
    }  # fmt: skip
    rows, columns = seen.split()
    assert sides[rows][..., 0].min() > 200 and sides[columns][..., 2].min() > 200


def test_grey_of_16_bits_is_brought_to_8(tmp_path):
    wide = np.array([[0, 128, 129, 257], [25700, 65406, 65407, 65535]], np.uint16)
    expected = np.array([[0, 0, 1, 1], [100, 254, 255, 255]])
    for suffix in ("png", "tif"):
        Image.fromarray(wide).save(tmp_path / f"a.{suffix}")
        pixels, _ = read(tmp_path / f"a.{suffix}")
        assert pixels.dtype == np.uint8 and (pixels == expected[..., None]).all()


def test_grey_palettes_and_transparent_images_are_their_colours(tmp_path):
    grey = COLOURS[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (read(tmp_path / "grey.png")[0] == grey[..., None]).all()
    Image.fromarray(grey > 99).save(tmp_path / "two.png")
    assert (read(tmp_path / "two.png")[0] == 255 * (grey > 99)[..., None]).all()
    Image.fromarray(np.dstack([COLOURS, grey])).save(tmp_path / "alpha.png")
    assert (read(tmp_path / "alpha.png")[0] == COLOURS).all()
    palette = Image.fromarray(COLOURS).quantize(48)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(48)))
    assert (read(tmp_path / "palette.png")[0] == np.array(palette.convert("RGB"))).all()


def test_cmyk_becomes_rgb(tmp_path):
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 0] = 255  # cyan
    Image.frombytes("CMYK", (16, 16), ink.tobytes()).save(tmp_path / "a.jpg", quality=100)
    pixels, _ = read(tmp_path / "a.jpg")
    assert np.abs(pixels.astype(int) - (0, 255, 255)).max() <= 2


def test_the_first_of_several_pictures_is_taken_and_that_is_told(tmp_path):
    first, second = (Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (40, 200))
    for suffix in ("gif", "png", "webp", "tif"):
        path = tmp_path / f"a.{suffix}"
        first.save(path, save_all=True, append_images=[second])
        pixels, notes = read(path)
        assert np.abs(pixels.astype(int) - 40).max() <= 2, suffix
        assert notes == [f"{path}: 2 pictures in one file, the first is taken"]
    path = tmp_path / "camera.jpg"
    first.save(path, format="MPO", save_all=True, append_images=[second])
    pixels, notes = read(path)
    assert abs(int(pixels.mean()) - 40) <= 2 and not notes


def test_an_image_of_one_pixel_has_a_label_map_of_one(model, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1, 1), (200, 9, 9)).save(tmp_path / "images" / "dot.png")
    assert run(model, tmp_path / "images", "--scales", "0.5,1,2", "--flip", "--overlay") == 0
    for folder in ("labels", "overlays"):
        with Image.open(tmp_path / "out" / folder / "dot.png") as image:
            assert image.size == (1, 1)


def test_large_images_are_read_up_to_a_limit_that_is_told(tmp_path, monkeypatch):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")  # 48 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # from here on Pillow warns
    assert (read(tmp_path / "a.png")[0] == COLOURS).all()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # twice this it refuses
    with pytest.raises(BadFile, match="a.png: more than 40 pixels; make it smaller"):
        read(tmp_path / "a.png")
