"""The raw cache: the same bits as without it, made once, never trusted when it is not whole."""

import json
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.datasets.places import wants_raw_cache
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.raw_cache import RawCache, pixels_of
from pipeline.errors import BadInput
from pipeline.masks import encode_index_png
from pipeline.params import SECTIONS
from pipeline.params_training import Augmentation
from pipeline.pruning import prune
from pipeline.tables import write_table
from pipeline.training import TrainingSet, batches, labelled_view

SIZES = {"a": (40, 56), "b": (33, 47), "c": (64, 48), "d": (20, 31)}  # of height and width
BARE = "d"  # has no label map
MOVING = Augmentation((32, 40), (0.7, 1.3), "both")


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.delenv("PIPELINE_RAW_CACHE", raising=False)
    monkeypatch.delenv("PIPELINE_DATA_DRAWN", raising=False)


@pytest.fixture
def root(tmp_path) -> Path:
    """A project with the prepared dataset "drawn": four images, of which three have label maps."""
    prepared, tree = tmp_path / "data" / "prepared" / "drawn", tmp_path / "data" / "raw" / "drawn"
    tree.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, maps = [], []
    for image_id, (height, width) in SIZES.items():
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(tree / f"{image_id}.jpg"), cv2.GaussianBlur(pixels, (0, 0), 2))
        row = {"image_id": image_id, "source": "drawn", "path": f"drawn/{image_id}.jpg"}
        row |= {"height": height, "width": width, "has_masks": image_id != BARE, "has_boxes": False}
        rows += [{**row, "split": split} for split in ("train", "all")]
        if image_id != BARE:
            labels = rng.integers(0, 9, (height, width), np.uint8)
            maps.append({"image_id": image_id, "png": encode_index_png(labels)})
    write_table(prepared / "images.parquet", "images", rows)
    write_table(prepared / "instances.parquet", "instances", [])
    write_table(prepared / "semantic" / "part-000.parquet", "semantic", maps)
    (prepared / "categories.json").write_text(json.dumps(list("abcdefghi")))
    (prepared / "manifest.sha256").write_text("0123\n")
    return tmp_path


def cached(root: Path) -> RawCache:
    return RawCache(root, "drawn", Prepared(root, "drawn"))


def files(root: Path) -> list[Path]:
    return sorted((root / "work" / "raw_cache").glob("drawn-*/pixels.*"))


# In a process of its own: makes the cache of argv[1]; noting what it decodes, it dies at argv[2].
MAKE = """
import os, pathlib, signal, sys
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.raw_cache import RawCache
root = pathlib.Path(sys.argv[1])
class Watched(Prepared):
    def image(self, image_id):
        if image_id == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        with (root / "decoded").open("a") as file:
            file.write(image_id)
        return super().image(image_id)
RawCache(root, "drawn", Watched(root, "drawn"))
"""


def maker(root: Path, dies_at: str = "never") -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", MAKE, str(root), dies_at])


def samples(source, ids=("a", "b", "c")) -> TrainingSet:
    sample_of = partial(
        labelled_view,
        image_of=source.image,
        label_map_of=source.label_map,
        augmentation=MOVING,
        stride=8,
        grid="centres",
    )
    return TrainingSet(ids=ids, sample_of=sample_of, batch=2, seed=3)


# --- the same numbers ----------------------------------------------------------------------------
def test_holds_what_the_dataset_gives(root):
    cache, data = cached(root), Prepared(root, "drawn")
    for image_id, size in SIZES.items():
        assert cache.image(image_id).shape == (*size, 3)
        assert np.array_equal(cache.image(image_id), data.image(image_id))
        if image_id != BARE:
            assert np.array_equal(cache.label_map(image_id), data.label_map(image_id))


def test_samples_are_the_same_bits_with_and_without_it(root):
    with_it, without = samples(cached(root)), samples(Prepared(root, "drawn"))
    for n in range(20):
        for mine, theirs in zip(with_it[n], without[n], strict=True):
            assert mine.dtype == theirs.dtype == np.uint8
            assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_the_same_batches(root, method):
    def loader(source, workers):
        made = batches(
            samples(source), first_step=0, last_step=4, workers=workers, device=torch.device("cpu")
        )
        if workers:
            made.multiprocessing_context = method
        return list(made)

    cache = cached(root)
    cache.image("a")  # so that its file is mapped when it is sent
    for mine, theirs in zip(loader(cache, 1), loader(Prepared(root, "drawn"), 0), strict=True):
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])


def test_what_is_sent_to_a_worker_is_small(root):
    cache = cached(root)
    expected = cache.image("c").copy()
    sent = pickle.dumps(cache)
    assert len(sent) < 2000 < files(root)[0].stat().st_size
    assert np.array_equal(pickle.loads(sent).image("c"), expected)


def test_nobody_writes_to_it(root):
    with pytest.raises(ValueError, match="read-only"):
        cached(root).image("a")[0, 0] = 0


def test_unknown_images_and_missing_label_maps_are_told_as_the_dataset_tells_them(root):
    for source in (cached(root), Prepared(root, "drawn")):
        with pytest.raises(BadInput, match="drawn has no image 'z'"):
            source.image("z")
        with pytest.raises(BadInput, match=f"drawn has no label map of the image '{BARE}'"):
            source.label_map(BARE)


# --- made once, and only whole -------------------------------------------------------------------
def test_is_made_once_and_as_large_as_its_pixels(root, capsys):
    cached(root)
    assert "raw cache: 0.00 GB in" in capsys.readouterr().err
    cached(root)
    assert capsys.readouterr().err == ""
    bytes_of = {i: h * w * (3 if i == BARE else 4) for i, (h, w) in SIZES.items()}
    assert [f.stat().st_size for f in files(root)] == [sum(bytes_of.values())]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"0", lambda b: b""])
def test_a_file_of_another_size_is_made_anew(root, damage):
    cached(root)
    (file,) = files(root)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    cached(root)
    assert file.read_bytes() == whole


def test_another_state_of_the_dataset_has_a_cache_of_its_own(root):
    cached(root)
    (before,) = files(root)
    changed = cv2.imread(str(root / "data/raw/drawn/a.jpg")) // 2
    cv2.imwrite(str(root / "data/raw/drawn/a.jpg"), changed)
    (root / "data/prepared/drawn/manifest.sha256").write_text("4567\n")  # as `prepare` does then
    cache = cached(root)
    assert np.array_equal(cache.image("a"), Prepared(root, "drawn").image("a"))
    (after,) = files(root)  # nobody reads the old one: it is gone
    assert after != before


def test_a_cache_that_somebody_reads_is_left_alone(root):
    reader = cached(root)
    expected = reader.image("a").copy()
    (root / "data/prepared/drawn/manifest.sha256").write_text("4567\n")
    other = cached(root)
    assert len(files(root)) == 2
    assert np.array_equal(reader.image("a"), expected)
    del reader, other
    cached(root)
    assert len(files(root)) == 1


def test_killed_while_it_is_made_it_is_made_anew(root):
    assert maker(root, dies_at="c").wait() == -signal.SIGKILL
    assert [f.name for f in files(root)] == ["pixels.partial"]
    assert np.array_equal(cached(root).image("d"), Prepared(root, "drawn").image("d"))
    assert [f.name for f in files(root)] == ["pixels.raw"]


def test_processes_that_want_it_at_once_decode_it_once(root):
    assert [process.wait() for process in [maker(root), maker(root)]] == [0, 0]
    assert sorted((root / "decoded").read_text()) == sorted(SIZES)
    cached(root)


def test_a_disk_without_room_is_told_before_anything_is_decoded(root, monkeypatch):
    full = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(
        BadInput, match=r"0.00 GB could not be written: 0.00 GB are free; make room"
    ):
        cached(root)
    assert files(root) == []


def test_a_disk_that_fills_up_meanwhile_is_told_and_leaves_nothing(root):
    data = Prepared(root, "drawn")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # bytes a file may grow to
    try:
        with pytest.raises(BadInput, match="could not be written: .*too large; make room"):
            RawCache(root, "drawn", data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(root) == []


def test_a_damaged_image_is_told_and_leaves_nothing(root):
    image = root / "data/raw/drawn/b.jpg"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match="b.jpg"):
        cached(root)
    image.write_bytes((root / "data/raw/drawn/a.jpg").read_bytes())
    with pytest.raises(BadInput, match=r"b\.jpg: 40 x 56 pixels .* but 33 x 47 when"):
        cached(root)
    assert files(root) == []


# --- what the machine is told --------------------------------------------------------------------
def test_it_is_off_unless_the_machine_is_told(root, monkeypatch):
    data = Prepared(root, "drawn")
    assert pixels_of(root, "drawn", data) is data
    assert not (root / "work").exists()
    (root / "local.yaml").write_text("data: {drawn: data/raw/drawn}\nraw_cache: true\n")
    assert isinstance(pixels_of(root, "drawn", data), RawCache)
    monkeypatch.setenv("PIPELINE_RAW_CACHE", "0")  # goes before local.yaml
    assert not wants_raw_cache(root)
    (root / "local.yaml").unlink()
    monkeypatch.setenv("PIPELINE_RAW_CACHE", "1")
    assert wants_raw_cache(root)


def test_anything_but_true_and_false_is_refused(root, monkeypatch):
    for text in ("raw_cache: 1", "raw_cache: on please", "raw_cache:", "- raw_cache"):
        (root / "local.yaml").write_text(text)
        with pytest.raises(BadInput, match="local.yaml"):
            wants_raw_cache(root)
    monkeypatch.setenv("PIPELINE_RAW_CACHE", "yes")
    with pytest.raises(BadInput, match="PIPELINE_RAW_CACHE is 'yes'; write true or false"):
        wants_raw_cache(root)


def test_prune_removes_it_when_no_active_run_has_the_dataset_and_nobody_reads_it(root):
    (root / "params.yaml").write_text("".join(f"{name}: {{}}\n" for name in SECTIONS))
    reader = cached(root)
    assert prune(root, all=True) == []
    del reader
    (file,) = files(root)
    assert prune(root, all=False) == [file.parent]
    assert files(root) == []
