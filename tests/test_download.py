"""What a dataset needs, obtained: by hand, without room, by two processes, killed."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from file_server import Answer, FileServer, md5, serving, tar_of, tree_of, zip_of

from pipeline.datasets import unpacking
from pipeline.datasets.archives import Archive, Part
from pipeline.datasets.download import download, obtain_all
from pipeline.errors import BadInput, PlaceByHand

QUICK = (0.0, 0.0)  # pauses
BODY = np.random.default_rng(0).bytes(600_000)
NAME = "archive.tar"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as server:
        server.files = {NAME: BODY}
        yield server


def archive(*urls: str) -> Archive:
    """A plain file."""
    return Archive(NAME, urls, len(BODY), md5(BODY))


# --- by hand --------------------------------------------------------------------------------------
def test_a_wrong_file_put_by_hand_is_refused_and_kept(tmp_path):
    (tmp_path / NAME).write_bytes(b"something else")
    with pytest.raises(BadInput, match="put the published file in its place"):
        download(archive(), tmp_path, pauses=QUICK)
    assert (tmp_path / NAME).read_bytes() == b"something else"


def test_without_network_it_says_what_to_put_where(tmp_path):
    with socket.socket() as taken:  # bound but not listening: nobody answers here
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/archive.tar"
        with pytest.raises(PlaceByHand) as caught:
            download(archive(url), tmp_path, pauses=QUICK)
    assert url in str(caught.value)
    assert f"put it at {tmp_path / NAME}" in str(caught.value)


IMAGES = {"left/a.png": b"left", "license.txt": b"terms"}
LABELS = {"fine/a.png": b"fine"}


def by_login(name: str, inner: str, body: bytes) -> Archive:
    source = "https://example.org/downloads/ (login)"
    return Archive(name, (), len(body), md5(body), (Part(inner, inner),), 1000, source)


def test_all_files_that_are_missing_are_named_after_the_others_were_obtained(server, tmp_path):
    left, fine = zip_of(IMAGES), zip_of(LABELS)
    wanted = (
        by_login("left.zip", "left", left), archive(server.url(NAME)),
        by_login("fine.zip", "fine", fine),
    )  # fmt: skip
    with pytest.raises(PlaceByHand) as caught:
        obtain_all(wanted, tmp_path, pauses=())
    first, second = str(caught.value).splitlines()
    for line, name, inner in ((first, "left.zip", "left"), (second, "fine.zip", "fine")):
        assert line.startswith(f"{name}: get it from https://example.org/downloads/ (login)")
        assert f"put it at {tmp_path / name}" in line and str(tmp_path / inner) in line
    assert (tmp_path / NAME).read_bytes() == BODY

    (tmp_path / "left.zip").write_bytes(left)  # one as it was published
    (tmp_path / "fine").mkdir()  # the other as somebody unpacked it
    (tmp_path / "fine" / "a.png").write_bytes(b"fine")
    obtain_all(wanted, tmp_path, pauses=())
    assert (tmp_path / "left" / "a.png").read_bytes() == b"left"
    assert not (tmp_path / "license.txt").exists()


def test_what_is_not_needed_is_tried_once_and_its_absence_is_no_failure(server, tmp_path):
    wanted = (archive(server.url(NAME)), Archive("names", (server.url("names"),), 9, None))
    optional = (wanted[0], replace(wanted[1], needed=False))
    obtain_all(optional, tmp_path, pauses=QUICK)
    obtain_all(optional, tmp_path, pauses=QUICK)
    assert server.asked == [(NAME, None), ("names", None)]
    with pytest.raises(PlaceByHand, match="names cannot be downloaded"):
        obtain_all(wanted, tmp_path, pauses=QUICK)


def test_what_is_unpacked_is_left_alone(server, tmp_path):
    wanted = voc2007(server)[0]
    tell_tale = tmp_path / "VOC2007/ImageSets/Main/trainval.txt"
    tell_tale.parent.mkdir(parents=True)
    tell_tale.write_bytes(b"by hand")
    obtain_all((wanted,), tmp_path)
    assert server.asked == [] and tree_of(tmp_path) == {
        "VOC2007/ImageSets/Main/trainval.txt": b"by hand"
    }
    assert [path.name for path in tmp_path.iterdir()] == ["VOC2007"]  # not even a lock


@pytest.mark.parametrize("call", ["open", "mkdir"])
def test_a_folder_that_may_not_be_written_is_bad_input(server, tmp_path, monkeypatch, call):
    def refuse(path: Path, *arguments: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, call, refuse)
    with pytest.raises(BadInput, match=f"{tmp_path}.*: Permission denied; let this user"):
        obtain_all((archive(server.url(NAME)),), tmp_path, pauses=())


# --- room and company -----------------------------------------------------------------------------
def test_a_full_disk_is_told_before_anything_is_loaded(server, tmp_path):
    wanted = replace(archive(server.url(NAME)), size=10**18, parts=(Part("a", "a"),))
    with pytest.raises(BadInput, match=r"2000000000\.00 GB") as caught:
        obtain_all((wanted,), tmp_path, pauses=())
    assert str(tmp_path) in str(caught.value) and NAME in str(caught.value)
    assert server.asked == []


def test_what_has_arrived_needs_no_more_room(server, tmp_path, monkeypatch):
    (tmp_path / "archive.tar.partial").write_bytes(BODY[:-10])
    usage = unpacking.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage._replace(free=10))
    obtain_all((archive(server.url(NAME)),), tmp_path, pauses=())
    (tmp_path / NAME).unlink()
    with pytest.raises(BadInput, match="GB are free there"):
        obtain_all((archive(server.url(NAME)),), tmp_path, pauses=())


CHILD = """
import os, shutil, signal, sys
from pathlib import Path
from pipeline.datasets.archives import Archive, Part
from pipeline.datasets.download import obtain_all
archives, folder, kill_at, count = eval(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], 0
def killing(real):
    def call(*arguments):
        global count
        count += 1
        if count == int(kill_at.split()[1]):
            if real is shutil.copyfileobj:
                arguments[1].write(b"half")
                arguments[1].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return call
if kill_at.startswith("copying"):
    shutil.copyfileobj = killing(shutil.copyfileobj)
if kill_at.startswith("renaming"):
    os.replace = killing(os.replace)
obtain_all(archives, folder, pauses=())
"""


@contextmanager
def child(
    archives: tuple[Archive, ...], folder: Path, kill_at: str = ""
) -> Iterator[subprocess.Popen]:
    """`obtain_all` in a process of its own, which kills itself at the n-th call of something."""
    arguments = [sys.executable, "-c", CHILD, repr(archives), str(folder), kill_at]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


TRAINVAL = {
    "VOCdevkit/": None,
    "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt": b"000005\n",
    "VOCdevkit/VOC2007/JPEGImages/000005.jpg": BODY[:200_000],
    "VOCdevkit/VOC2007/Annotations/000005.xml": b"<annotation/>",
}
TEST = {
    "VOCdevkit/VOC2007/ImageSets/Main/test.txt": b"000001\n",
    "VOCdevkit/VOC2007/JPEGImages/000001.jpg": BODY[200_000:400_000],
    "VOCdevkit/VOC2007/Annotations/000001.xml": b"<annotation></annotation>",
}
BOTH = {k.removeprefix("VOCdevkit/"): v for k, v in (TRAINVAL | TEST).items() if v is not None}


def voc2007(server: FileServer) -> tuple[Archive, ...]:
    """The two archives of VOC2007 in small, served."""
    archives = []
    for split, content in (("trainval", TRAINVAL), ("test", TEST)):
        name = f"VOC{split}.tar"
        body = server.files[name] = tar_of(content)
        part = Part("VOCdevkit/VOC2007", "VOC2007", f"VOC2007/ImageSets/Main/{split}.txt")
        archives.append(Archive(name, (server.url(name),), len(body), md5(body), (part,)))
    return tuple(archives)


def voc2007_there(folder: Path) -> bool:
    tree = tree_of(folder)
    return {name: data for name, data in tree.items() if name.startswith("VOC2007/")} == BOTH


def test_two_archives_fill_one_folder(server, tmp_path):
    archives = voc2007(server)
    obtain_all(archives, tmp_path, pauses=())
    assert voc2007_there(tmp_path)
    asked = list(server.asked)
    obtain_all(archives, tmp_path, pauses=())
    assert server.asked == asked == [("VOCtrainval.tar", None), ("VOCtest.tar", None)]


def test_a_second_process_waits_and_loads_nothing_twice(server, tmp_path, capsys):
    archives = voc2007(server)
    server.answers["VOCtrainval.tar"] = [Answer(cut=1000, hold=True)]
    with child(archives, tmp_path) as first:
        assert server.held.wait(30)
        second = threading.Thread(target=obtain_all, args=(archives, tmp_path))
        second.start()
        while f"waiting for process {first.pid}" not in capsys.readouterr().err:
            assert second.is_alive()
            time.sleep(0.01)
        server.go_on.set()
        assert first.wait(30) == 0, first.stderr.read()
        second.join(30)
    assert voc2007_there(tmp_path)
    assert server.asked == [("VOCtrainval.tar", None), ("VOCtest.tar", None)]


# --- killed ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("cut", [1, 100_000, 204_799])
def test_killed_while_bytes_arrive_it_goes_on_from_there(server, tmp_path, cut):
    archives = voc2007(server)
    server.answers["VOCtrainval.tar"] = [Answer(cut=cut, hold=True)]
    with child(archives, tmp_path) as process:
        assert server.held.wait(30)
        partial = tmp_path / "VOCtrainval.tar.partial"
        while not (partial.exists() and partial.stat().st_size == cut):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    assert not (tmp_path / "VOC2007").exists()
    obtain_all(archives, tmp_path, pauses=())
    assert server.ranges_of("VOCtrainval.tar") == [None, f"bytes={cut}-"]
    assert voc2007_there(tmp_path)


MOMENTS = [
    *(f"copying {n}" for n in (1, 2, 3, 4, 6)),  # in the middle of a member, of either archive
    *(f"renaming {n}" for n in (1, 2, 3, 4, 5, 6)),  # downloads to their names, parts to theirs
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_it_unpacks_it_ends_the_same(server, tmp_path, moment):
    archives = voc2007(server)
    with child(archives, tmp_path, moment) as process:
        assert process.wait(30) == -signal.SIGKILL, process.stderr.read()
    there = [one.is_there(tmp_path) for one in archives]
    assert there != [True, True]
    for content, complete in zip((TRAINVAL, TEST), there, strict=True):
        files = {k.removeprefix("VOCdevkit/"): v for k, v in content.items() if v}
        assert not complete or files.items() <= tree_of(tmp_path).items()
    obtain_all(archives, tmp_path, pauses=())
    assert voc2007_there(tmp_path)
    assert not list(tmp_path.glob(".*unpacking")) and not list(tmp_path.glob("*.partial"))
    whole = [name for name, wanted in server.asked if wanted is None]
    assert whole == ["VOCtrainval.tar", "VOCtest.tar"]  # nothing was loaded twice
