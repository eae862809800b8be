"""Downloads over loopback: broken off, without Range, refused, hostile."""

import hashlib
import io
import re
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.download import CHUNK, SBD, VOC2012, Archive, download, obtain, unpack
from pipeline.errors import BadInput, PlaceByHand

QUICK = (0.0, 0.0)  # pauses
BODY = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves BODY; breaks off, fails or ignores Range as its attributes say."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.break_after: list[int] = []  # bytes of each of the first answers
        self.failures: list[int] = []  # statuses of the first answers
        self.ranges = True
        self.asked: list[str | None] = []  # the Range of every request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files/archive.tar"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.failures:
            self.send_error(server.failures.pop(0))
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: server.break_after.pop(0)] if server.break_after else part)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def archive(*urls: str, body: bytes = BODY) -> Archive:
    md5 = hashlib.md5(body).hexdigest()
    return Archive("archive.tar", urls, md5, inner="kit/VOC2012", place="VOC2012")


def test_a_file_arrives_whole(server, tmp_path):
    path = download(archive(server.url), tmp_path / "raw", pauses=QUICK)
    assert path == tmp_path / "raw" / "archive.tar"
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == ["archive.tar"]


def test_a_file_that_is_there_is_not_loaded_again(server, tmp_path):
    (tmp_path / "archive.tar").write_bytes(BODY)
    download(archive(server.url), tmp_path, pauses=QUICK)
    assert server.asked == []


def test_goes_on_where_it_broke_off(server, tmp_path):
    server.break_after = [6 * CHUNK, 3 * CHUNK]
    path = download(archive(server.url), tmp_path, pauses=QUICK)
    assert path.read_bytes() == BODY
    assert server.asked == [None, f"bytes={6 * CHUNK}-", f"bytes={9 * CHUNK}-"]


def test_goes_on_from_an_earlier_run(server, tmp_path):
    (tmp_path / "archive.tar.partial").write_bytes(BODY[:1234])
    assert download(archive(server.url), tmp_path, pauses=QUICK).read_bytes() == BODY
    assert server.asked == ["bytes=1234-"]


def test_a_partial_file_that_is_complete_needs_no_more(server, tmp_path):
    (tmp_path / "archive.tar.partial").write_bytes(BODY)
    assert download(archive(server.url), tmp_path, pauses=QUICK).read_bytes() == BODY


def test_a_partial_file_that_is_too_long_is_begun_anew(server, tmp_path):
    (tmp_path / "archive.tar.partial").write_bytes(BODY + b"more")
    assert download(archive(server.url), tmp_path, pauses=QUICK).read_bytes() == BODY


def test_a_server_without_range_sends_all_again(server, tmp_path):
    server.ranges = False
    server.break_after = [6 * CHUNK]
    assert download(archive(server.url), tmp_path, pauses=QUICK).read_bytes() == BODY
    assert server.asked == [None, f"bytes={6 * CHUNK}-"]


def test_progress_gives_new_tries(server, tmp_path):
    server.break_after = [2 * CHUNK] * 7  # more breaks than pauses
    assert download(archive(server.url), tmp_path, pauses=QUICK).read_bytes() == BODY


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.failures = [503, 503]
    assert download(archive(server.url), tmp_path, pauses=QUICK).read_bytes() == BODY


def test_a_file_that_is_gone_is_asked_for_once(server, tmp_path):
    server.failures = [404] * 5
    with pytest.raises(PlaceByHand, match=r"archive.tar cannot be downloaded from .* \(status 404"):
        download(archive(server.url), tmp_path, pauses=QUICK)
    assert len(server.asked) == 1


def test_the_next_address_takes_over(server, tmp_path):
    server.failures = [404]
    path = download(archive(server.url, server.url + "?mirror"), tmp_path, pauses=QUICK)
    assert path.read_bytes() == BODY


def test_a_wrong_digest_is_refused_and_begun_anew(server, tmp_path):
    server.body = BODY[:-1] + b"!"
    with pytest.raises(BadInput, match="MD5") as caught:
        download(archive(server.url), tmp_path, pauses=QUICK)
    assert archive().md5 in str(caught.value) and server.url in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    server.body = BODY
    assert download(archive(server.url), tmp_path, pauses=QUICK).read_bytes() == BODY


def test_a_wrong_file_put_by_hand_is_refused_and_kept(tmp_path):
    (tmp_path / "archive.tar").write_bytes(b"something else")
    with pytest.raises(BadInput, match="put the published file in its place"):
        download(archive(), tmp_path, pauses=QUICK)
    assert (tmp_path / "archive.tar").read_bytes() == b"something else"


def test_without_network_it_says_what_to_put_where(tmp_path):
    with socket.socket() as taken:  # bound but not listening: nobody answers here
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/archive.tar"
        with pytest.raises(PlaceByHand) as caught:
            download(archive(url), tmp_path, pauses=QUICK)
    assert url in str(caught.value)
    assert f"put it at {tmp_path / 'archive.tar'}" in str(caught.value)


# --- unpacking ------------------------------------------------------------------------------------
def a_tar(path: Path, *members: tuple[str, bytes | None] | tarfile.TarInfo, mode: str) -> bytes:
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data or b""))
    return path.read_bytes()


GOOD = (
    ("kit", None),
    ("kit/VOC2012/Annotations/a.xml", b"<annotation/>"),
    ("kit/VOC2012/JPEGImages/a.jpg", b"jpeg"),
    ("kit/readme", b"not kept"),
)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_the_inner_folder_is_unpacked_to_its_place(tmp_path, mode):
    body = a_tar(tmp_path / "archive.tar", *GOOD, mode=mode)
    obtain(archive(body=body), tmp_path)
    assert (tmp_path / "VOC2012/JPEGImages/a.jpg").read_bytes() == b"jpeg"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["VOC2012", "archive.tar"]


def test_what_is_unpacked_is_left_alone(server, tmp_path):
    (tmp_path / "VOC2012").mkdir()
    obtain(archive(server.url), tmp_path)
    assert server.asked == [] and list((tmp_path / "VOC2012").iterdir()) == []


def test_an_interrupted_unpacking_is_not_trusted(tmp_path):
    body = a_tar(tmp_path / "archive.tar", *GOOD, mode="w")
    left = tmp_path / ".archive.tar.unpacking" / "kit" / "VOC2012" / "JPEGImages"
    left.mkdir(parents=True)
    (left / "a.jpg").write_bytes(b"jp")  # half a file
    obtain(archive(body=body), tmp_path)
    assert (tmp_path / "VOC2012/JPEGImages/a.jpg").read_bytes() == b"jpeg"
    assert not left.exists()


def a_link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        ("../evil", b"x"),
        ("kit/VOC2012/../../../evil", b"x"),
        ("/evil", b"x"),
        a_link("kit/VOC2012/link", "../../../evil", tarfile.SYMTYPE),
        a_link("kit/VOC2012/link", "/etc/hostname", tarfile.SYMTYPE),
        a_link("kit/VOC2012/link", "../../evil", tarfile.LNKTYPE),
        a_link("kit/VOC2012/null", "", tarfile.CHRTYPE),
    ],
    ids=lambda member: member.name if isinstance(member, tarfile.TarInfo) else member[0],
)
def test_an_archive_that_reaches_out_is_refused(tmp_path, hostile):
    folder = tmp_path / "raw"
    folder.mkdir()
    (tmp_path / "evil").write_bytes(b"mine")
    a_tar(folder / "archive.tar", *GOOD, hostile, mode="w")
    with pytest.raises(BadInput, match="cannot be unpacked"):
        unpack(folder / "archive.tar", archive(), folder)
    assert [p.name for p in folder.iterdir()] == ["archive.tar"]
    assert (tmp_path / "evil").read_bytes() == b"mine"


@pytest.mark.parametrize("damage", ["cut", "no tar", "other content"])
def test_a_damaged_archive_is_refused(tmp_path, damage):
    path = tmp_path / "archive.tar"
    data = a_tar(path, *GOOD, mode="w:gz")
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "no tar":
        path.write_bytes(BODY)
    else:
        a_tar(path, ("other/file", b"x"), mode="w")
    with pytest.raises(BadInput, match="delete it and run again"):
        unpack(path, archive(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["archive.tar"]


def test_the_published_archives_are_named_as_published():
    for known in (VOC2012, SBD):
        assert re.fullmatch(r"[0-9a-f]{32}", known.md5)
        assert all(url.endswith("/" + known.name) for url in known.urls)
        assert known.inner.endswith(known.place)
