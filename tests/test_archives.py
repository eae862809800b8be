"""The table of published archives: its form, its digests, and small archives in their layouts."""

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from file_server import FileServer, serving, tar_of, tree_of, zip_of

from pipeline.datasets.archives import ARCHIVES, Archive
from pipeline.datasets.download import obtain_all
from pipeline.errors import PlaceByHand

ALL = [(kind, archive) for kind, archives in ARCHIVES.items() for archive in archives]
each = pytest.mark.parametrize(("kind", "archive"), ALL, ids=lambda x: getattr(x, "name", x))


def test_every_dataset_is_there():
    assert set(ARCHIVES) == {
        "voc2012", "voc2007", "voc2010", "sbd", "context", "coco2014", "coco2017", "cityscapes",
        "bsds500",
    }  # fmt: skip


@each
def test_an_entry_is_well_formed(kind, archive):
    lengths = {"md5": 32, "sha1": 40, "sha256": 64}
    if archive.digest is not None:
        algorithm, _, digest = archive.digest.partition(":")
        assert re.fullmatch(f"[0-9a-f]{{{lengths[algorithm]}}}", digest)
    assert all(url.startswith("http") and url.endswith("/" + archive.name) for url in archive.urls)
    assert len(set(archive.urls)) == len(archive.urls)
    assert archive.urls or archive.source
    assert archive.size > 0
    for path in [p for part in archive.parts for p in (part.inner, part.place, part.tell_tale)]:
        assert not PurePosixPath(path).is_absolute() and ".." not in path
    for part in archive.parts:
        assert not part.tell_tale or PurePosixPath(part.tell_tale).is_relative_to(part.place)


def test_only_what_is_small_lacks_a_digest():
    without = {(kind, archive.name) for kind, archive in ALL if archive.digest is None}
    assert without == {
        ("context", "trainval.tar.gz"), ("context", "labels.txt"), ("context", "59_labels.txt"),
    }  # fmt: skip


def test_what_fills_one_folder_has_tell_tales_of_its_own():
    for archives in ARCHIVES.values():
        marks = [p.tell_tale or p.place for a in archives for p in a.parts]
        assert len(marks) == len(set(marks))


def test_torchvision_states_the_same_digests():
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        pytest.skip("torchvision is not installed")
    folder = Path(package.origin).parent / "datasets"
    stated = (folder / "voc.py").read_text() + (folder / "sbd.py").read_text()
    for kind in ("voc2007", "voc2010", "voc2012", "sbd"):
        for archive in ARCHIVES[kind]:
            assert f'"{archive.digest.removeprefix("md5:")}"' in stated
            assert any(f'"{url}"' in stated for url in archive.urls)


# --- small archives in the published layouts ------------------------------------------------------
def voc(year: int, image_id: str, *lists: str) -> dict[str, bytes | None]:
    base = f"VOCdevkit/VOC{year}"
    content: dict[str, bytes | None] = {"VOCdevkit/": None, f"{base}/": None}
    content |= {f"{base}/ImageSets/{name}.txt": image_id.encode() for name in lists}
    return content | {
        f"{base}/JPEGImages/{image_id}.jpg": b"jpeg",
        f"{base}/Annotations/{image_id}.xml": b"<annotation/>",
        f"{base}/SegmentationClass/{image_id}.png": b"png",
    }


CITY = "aachen/aachen_000000_000019"
LAYOUTS: dict[str, dict[str, bytes | None]] = {
    "VOCtrainval_11-May-2012.tar": voc(
        2012, "2007_000032", "Segmentation/train", "Segmentation/val", "Main/trainval"
    ),
    "VOCtrainval_06-Nov-2007.tar": voc(2007, "000005", "Main/trainval", "Segmentation/val"),
    "VOCtest_06-Nov-2007.tar": voc(2007, "000001", "Main/test", "Segmentation/test"),
    "VOCtrainval_03-May-2010.tar": voc(2010, "2007_000027", "Main/train", "Main/val"),
    "benchmark.tgz": {
        "benchmark_RELEASE/": None,
        "benchmark_RELEASE/README": b"how to",
        "benchmark_RELEASE/benchmark_code_RELEASE/a.m": b"code",
        "benchmark_RELEASE/dataset/train.txt": b"2008_000002",
        "benchmark_RELEASE/dataset/val.txt": b"2008_000003",
        "benchmark_RELEASE/dataset/cls/2008_000002.mat": b"mat",
    },
    "trainval.tar.gz": {"trainval/2008_000002.mat": b"mat", "labels.txt": b"1: accordion"},
    "BSR_bsds500.tgz": {
        "BSR/": None,
        "BSR/bench/benchmarks/allBench.m": b"code",
        "BSR/documentation/README.txt": b"how to",
        "BSR/BSDS500/data/images/test/100007.jpg": b"jpeg",
        "BSR/BSDS500/data/groundTruth/test/100007.mat": b"mat",
        "BSR/BSDS500/ucm2/test/100007.mat": b"mat",
    },
    "59_labels.txt": {"59_labels.txt": b"1: aeroplane"},
    "gtFine_trainvaltest.zip": {
        "README": b"read",
        "gtFine/": None,
        f"gtFine/train/{CITY}_gtFine_labelIds.png": b"png",
    },
    "leftImg8bit_trainvaltest.zip": {
        "license.txt": b"terms",
        f"leftImg8bit/train/{CITY}_leftImg8bit.png": b"png",
    },
} | {
    name: content
    for year, prefix in (("2014", "COCO_{}2014_"), ("2017", ""))
    for name, content in {
        f"train{year}.zip": {f"train{year}/{prefix.format('train')}000000000009.jpg": b"jpeg"},
        f"val{year}.zip": {f"val{year}/{prefix.format('val')}000000000139.jpg": b"jpeg"},
        f"annotations_trainval{year}.zip": {
            f"annotations/{what}_{split}{year}.json": b"{}"
            for what in ("captions", "instances", "person_keypoints")
            for split in ("train", "val")
        },
    }.items()
}
SKIPPED = ("README", "benchmark_code", "bench/", "captions", "person_keypoints", "license")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as server:
        yield server


def packed(name: str) -> bytes:
    content = LAYOUTS[name]
    if name.endswith(".zip"):
        return zip_of(content)
    if name.endswith(".txt"):
        return content[name] or b""
    return tar_of(content, mode="w:gz" if name.endswith("gz") else "w")


def in_small(archive: Archive, server: FileServer) -> Archive:
    """The entry with a small archive instead of the published one, served if that can be."""
    body = packed(archive.name)
    server.files[archive.name] = body
    urls = (server.url(archive.name),) if archive.urls else ()
    digest = "sha256:" + hashlib.sha256(body).hexdigest() if archive.digest else None
    return replace(archive, urls=urls, size=len(body), digest=digest, unpacked=100_000)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_dataset_comes_to_where_its_reader_looks(server, tmp_path, kind):
    entries = [entry for entry in ARCHIVES[kind] if entry.name in LAYOUTS]
    assert {entry.name for entry in ARCHIVES[kind]} - {entry.name for entry in entries} <= {
        "labels.txt"  # it comes with trainval.tar.gz
    }
    small = [in_small(entry, server) for entry in entries]
    if kind == "cityscapes":
        with pytest.raises(PlaceByHand, match="a free account is needed"):
            obtain_all(small, tmp_path, pauses=())
        for entry in small:
            (tmp_path / entry.name).write_bytes(packed(entry.name))
    obtain_all(small, tmp_path, pauses=())
    expected = {
        name.removeprefix("VOCdevkit/"): data
        for entry in entries
        for name, data in LAYOUTS[entry.name].items()
        if data is not None and not any(skipped in name for skipped in SKIPPED)
    }
    published = {entry.name: packed(entry.name) for entry in entries}
    assert tree_of(tmp_path) == expected | published
    asked = list(server.asked)
    obtain_all(small, tmp_path, pauses=())
    assert server.asked == asked


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_tree_unpacked_by_hand_is_taken_as_it_is(tmp_path, kind):
    for entry in ARCHIVES[kind]:
        for name, data in LAYOUTS.get(entry.name, {}).items():
            if data is not None:
                path = tmp_path / name.removeprefix("VOCdevkit/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    before = tree_of(tmp_path)
    obtain_all(ARCHIVES[kind], tmp_path, pauses=())  # would ask the network otherwise
    assert tree_of(tmp_path) == before and not (tmp_path / ".lock").exists()


def test_the_list_of_names_is_asked_for_when_no_archive_brought_it(server, tmp_path):
    archive, names = (entry for entry in ARCHIVES["context"] if entry.needed)
    bare = tar_of({"trainval/2008_000002.mat": b"mat"}, mode="w:gz")
    server.files = {"trainval.tar.gz": bare}
    small = [
        replace(archive, urls=(server.url("trainval.tar.gz"),), unpacked=100_000),
        replace(names, urls=(server.url("labels.txt"),)),
    ]
    with pytest.raises(PlaceByHand, match=f"put it at {re.escape(str(tmp_path / 'labels.txt'))}"):
        obtain_all(small, tmp_path, pauses=())
    (tmp_path / "labels.txt").write_bytes(b"1: accordion")
    obtain_all(small, tmp_path, pauses=())
