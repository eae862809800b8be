"""Transfer over loopback: broken off, changed, misread, silent, from several addresses."""

import hashlib
import os
from collections.abc import Iterator

import numpy as np
import pytest
import requests
from file_server import Answer, FileServer, Handler, md5, serving, tar_of

from pipeline.datasets.archives import Archive
from pipeline.datasets.download import MARGIN, download
from pipeline.datasets.transfer import CHUNK
from pipeline.errors import BadInput, PlaceByHand

QUICK = (0.0, 0.0)  # pauses
BODY = np.random.default_rng(0).bytes(600_000)
NAME = "archive.tar"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as server:
        server.files = {NAME: BODY}
        yield server


def archive(*urls: str, digest: str | None = "") -> Archive:
    """A plain file; `digest` "": the right one."""
    return Archive(NAME, urls, len(BODY), md5(BODY) if digest == "" else digest)


# --- one address ----------------------------------------------------------------------------------
def test_a_file_arrives_whole(server, tmp_path):
    path = download(archive(server.url(NAME)), tmp_path / "raw", pauses=QUICK)
    assert path == tmp_path / "raw" / NAME
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == [NAME]


def test_a_file_that_is_there_is_not_loaded_again(server, tmp_path):
    (tmp_path / NAME).write_bytes(BODY)
    download(archive(server.url(NAME)), tmp_path, pauses=QUICK)
    assert server.asked == []


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
def test_digests_of_every_kind_are_checked(server, tmp_path, kind):
    digest = f"{kind}:{hashlib.new(kind, BODY).hexdigest()}"
    download(archive(server.url(NAME), digest=digest), tmp_path / "right", pauses=())
    wrong = f"{kind}:{hashlib.new(kind, b'other').hexdigest()}"
    with pytest.raises(BadInput, match=f"{kind.upper()} .* but the published {NAME} has"):
        download(archive(server.url(NAME), digest=wrong), tmp_path / "wrong", pauses=())


def test_goes_on_where_it_broke_off(server, tmp_path):
    server.answers[NAME] = [Answer(cut=3 * CHUNK + 5), Answer(cut=2 * CHUNK)]
    path = download(archive(server.url(NAME)), tmp_path, pauses=QUICK)
    assert path.read_bytes() == BODY
    assert server.ranges_of(NAME) == [
        None, f"bytes={3 * CHUNK + 5}-", f"bytes={5 * CHUNK + 5}-",
    ]  # fmt: skip


def test_goes_on_from_an_earlier_run(server, tmp_path):
    (tmp_path / "archive.tar.partial").write_bytes(BODY[:1234])
    assert download(archive(server.url(NAME)), tmp_path, pauses=QUICK).read_bytes() == BODY
    assert server.ranges_of(NAME) == ["bytes=1234-"]


def test_a_partial_file_that_is_complete_needs_no_more(server, tmp_path):
    (tmp_path / "archive.tar.partial").write_bytes(BODY)
    assert download(archive(server.url(NAME)), tmp_path, pauses=QUICK).read_bytes() == BODY


def test_a_partial_file_that_is_too_long_is_begun_anew(server, tmp_path):
    (tmp_path / "archive.tar.partial").write_bytes(BODY + b"more")
    assert download(archive(server.url(NAME)), tmp_path, pauses=()).read_bytes() == BODY


def test_a_partial_file_of_something_else_is_begun_anew(server, tmp_path):
    (tmp_path / "archive.tar.partial").write_bytes(b"x" * 1234)
    assert download(archive(server.url(NAME)), tmp_path, pauses=()).read_bytes() == BODY
    assert server.ranges_of(NAME) == ["bytes=1234-", None]


def test_a_server_without_range_sends_all_again(server, tmp_path):
    server.ranges = False
    server.answers[NAME] = [Answer(cut=6 * CHUNK)]
    assert download(archive(server.url(NAME)), tmp_path, pauses=QUICK).read_bytes() == BODY
    assert server.ranges_of(NAME) == [None, f"bytes={6 * CHUNK}-"]


def test_a_server_that_sends_another_range_is_not_believed(server, tmp_path):
    server.answers[NAME] = [Answer(cut=CHUNK), Answer(shift=-100)]
    assert download(archive(server.url(NAME)), tmp_path, pauses=()).read_bytes() == BODY
    assert server.ranges_of(NAME) == [None, f"bytes={CHUNK}-", None]


def test_progress_gives_new_tries(server, tmp_path):
    server.answers[NAME] = [Answer(cut=CHUNK) for _ in range(7)]  # more than pauses
    assert download(archive(server.url(NAME)), tmp_path, pauses=()).read_bytes() == BODY


def test_a_server_that_never_gets_further_is_given_up(server, tmp_path):
    server.ranges = False
    server.answers[NAME] = [Answer(cut=CHUNK) for _ in range(99)]
    with pytest.raises(PlaceByHand, match="broke off at|ConnectionError"):
        download(archive(server.url(NAME)), tmp_path, pauses=QUICK)
    assert len(server.asked) <= 2 * (1 + len(QUICK))


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.answers[NAME] = [Answer(status=503), Answer(status=429)]
    assert download(archive(server.url(NAME)), tmp_path, pauses=QUICK).read_bytes() == BODY


def test_a_slow_server_is_waited_for(server, tmp_path):
    server.answers[NAME] = [Answer(slow=0.005)]
    assert download(archive(server.url(NAME)), tmp_path, pauses=()).read_bytes() == BODY
    assert len(server.asked) == 1


def test_a_server_that_falls_silent_is_left_and_asked_for_the_rest(server, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.datasets.transfer.PATIENCE", (5.0, 0.3))
    server.answers[NAME] = [Answer(cut=2 * CHUNK, hold=True)]
    assert download(archive(server.url(NAME)), tmp_path, pauses=()).read_bytes() == BODY
    assert server.ranges_of(NAME) == [None, f"bytes={2 * CHUNK}-"]


def test_an_announced_length_that_is_too_large_does_not_matter(server, tmp_path):
    server.answers[NAME] = [Answer(longer=10)]
    assert download(archive(server.url(NAME)), tmp_path, pauses=QUICK).read_bytes() == BODY


def test_an_announced_length_that_is_too_small_is_noticed_by_the_digest(server, tmp_path):
    server.answers[NAME] = [Answer(longer=-10)]
    with pytest.raises(BadInput, match="MD5"):
        download(archive(server.url(NAME)), tmp_path, pauses=QUICK)
    assert not (tmp_path / NAME).exists()


def test_redirections_are_followed(server, tmp_path):
    server.answers["old"] = [Answer(redirect=server.url(NAME))]
    assert download(archive(server.url("old")), tmp_path, pauses=()).read_bytes() == BODY


def test_a_web_page_is_not_taken_for_the_file(server, tmp_path):
    server.answers[NAME] = [Answer(headers={"Content-Type": "text/html; charset=utf-8"})]
    with pytest.raises(PlaceByHand, match="a web page instead of the file"):
        download(archive(server.url(NAME), digest=None), tmp_path, pauses=QUICK)
    assert len(server.asked) == 1 and list(tmp_path.iterdir()) == []


def test_a_tgz_stays_packed_though_the_server_calls_that_its_encoding(server, tmp_path):
    body = tar_of({"a": b"a"}, mode="w:gz")
    server.files["a.tgz"] = body
    server.answers["a.tgz"] = [Answer(headers={"Content-Encoding": "x-gzip"})]
    packed = Archive("a.tgz", (server.url("a.tgz"),), len(body), md5(body))
    assert download(packed, tmp_path, pauses=()).read_bytes() == body


def test_a_file_that_is_sent_encoded_is_not_taken(server, tmp_path):
    server.answers[NAME] = [Answer(headers={"Content-Encoding": "gzip"})]
    with pytest.raises(PlaceByHand, match="encoding gzip"):
        download(archive(server.url(NAME)), tmp_path, pauses=())


def test_only_this_machine_can_ask_the_server(server):
    assert server.server_address[0] == "127.0.0.1"
    requests.get(server.url(NAME), timeout=5).raise_for_status()


# --- answers without an end -----------------------------------------------------------------------
SENT = 64_000_000  # bytes: all that such an answer would be


class Endless(Handler):
    """Sends zeros, far more than the file has, until nobody takes them any more."""

    framing = "chunked"
    sent = 0

    def send_file(self, answer: Answer, body: bytes, wanted: str | None) -> None:
        kind = type(self)
        self.send_response(200)
        if kind.framing != "until closed":
            self.send_header("Transfer-Encoding", "chunked")
        if kind.framing == "chunked, with a length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        part = bytes(CHUNK)
        if kind.framing != "until closed":
            part = f"{CHUNK:x}\r\n".encode() + part + b"\r\n"
        try:
            while kind.sent < SENT:
                self.wfile.write(part)
                kind.sent += CHUNK
        except OSError:
            self.close_connection = True


@pytest.mark.parametrize("digest", ["", None], ids=["digest known", "no digest"])
@pytest.mark.parametrize("framing", ["chunked", "until closed", "chunked, with a length"])
def test_an_answer_without_end_is_broken_off_and_not_kept(
    server, tmp_path, monkeypatch, framing, digest
):
    monkeypatch.setattr(Endless, "framing", framing)
    monkeypatch.setattr(Endless, "sent", 0)
    server.RequestHandlerClass = Endless
    limit = len(BODY) if framing.endswith("length") else 2 * len(BODY) + MARGIN
    with pytest.raises(BadInput, match=f"more than {limit} bytes"):
        download(archive(server.url(NAME), digest=digest), tmp_path, pauses=QUICK)
    assert list(tmp_path.iterdir()) == []
    assert len(server.asked) == 1  # such an address is not tried again
    assert Endless.sent < SENT  # nobody listened any more


def test_a_file_far_larger_than_the_published_one_is_not_kept_either(server, tmp_path):
    server.files[NAME] = bytes(2 * len(BODY) + MARGIN + 1)
    with pytest.raises(BadInput, match=f"{2 * len(BODY) + MARGIN + 1} bytes: not the published"):
        download(archive(server.url(NAME), digest=None), tmp_path, pauses=QUICK)
    assert list(tmp_path.iterdir()) == [] and len(server.asked) == 1
    server.files[NAME] = bytes(2 * len(BODY) + MARGIN)
    download(archive(server.url(NAME), digest=None), tmp_path, pauses=())


@pytest.mark.parametrize("length", ["9" * 5000, "\u00b2", "-5", "", "1e3"])
def test_an_announced_length_that_is_no_number_is_as_good_as_none(
    server, tmp_path, monkeypatch, length
):
    send_header = Handler.send_header

    def send(self: Handler, keyword: str, value: str) -> None:
        send_header(self, keyword, length if keyword == "Content-Length" else value)

    monkeypatch.setattr(Handler, "send_header", send)
    assert download(archive(server.url(NAME)), tmp_path, pauses=()).read_bytes() == BODY


@pytest.mark.parametrize("given", ["bytes 1-2/" + "9" * 5000, f"bytes {'9' * 5000}-2/3", "1-2/3"])
def test_a_range_that_is_no_numbers_is_not_believed(server, tmp_path, monkeypatch, given):
    send_header = Handler.send_header

    def send(self: Handler, keyword: str, value: str) -> None:
        send_header(self, keyword, given if keyword == "Content-Range" else value)

    monkeypatch.setattr(Handler, "send_header", send)
    (tmp_path / "archive.tar.partial").write_bytes(BODY[:1234])
    assert download(archive(server.url(NAME)), tmp_path, pauses=()).read_bytes() == BODY
    assert server.ranges_of(NAME) == ["bytes=1234-", None]


def test_a_pipe_in_place_of_what_is_known_of_the_beginning_is_not_waited_for(server, tmp_path):
    (tmp_path / "archive.tar.partial").write_bytes(BODY[:1234])
    os.mkfifo(tmp_path / ".archive.tar.partial.json")
    assert download(archive(server.url(NAME)), tmp_path, pauses=()).read_bytes() == BODY


# --- a file that changes between two tries --------------------------------------------------------
OTHER = np.random.default_rng(1).bytes(len(BODY))


@pytest.mark.parametrize("digest", ["", None], ids=["digest known", "no digest"])
@pytest.mark.parametrize("obeys", [True, False], ids=["If-Range", "only told by its ETag"])
def test_a_file_that_changed_is_begun_anew(server, tmp_path, obeys, digest):
    server.obeys_if_range = obeys
    server.files[NAME] = OTHER
    server.answers[NAME] = [Answer(cut=2 * CHUNK), Answer(status=404)]
    wanted = archive(server.url(NAME), digest=digest)
    with pytest.raises(PlaceByHand):
        download(wanted, tmp_path, pauses=())
    server.files[NAME] = BODY
    assert download(wanted, tmp_path, pauses=()).read_bytes() == BODY
    assert server.ranges_of(NAME)[2] == f"bytes={2 * CHUNK}-"


def test_a_file_that_changed_without_a_sign_is_found_out_by_its_digest(server, tmp_path):
    server.validators = False
    server.files[NAME] = OTHER
    server.answers[NAME] = [Answer(cut=2 * CHUNK), Answer(status=404)]
    with pytest.raises(PlaceByHand):
        download(archive(server.url(NAME)), tmp_path, pauses=())
    server.files[NAME] = BODY
    assert download(archive(server.url(NAME)), tmp_path, pauses=()).read_bytes() == BODY
    assert server.ranges_of(NAME)[2:] == [f"bytes={2 * CHUNK}-", None]


def test_with_neither_digest_nor_sign_nothing_is_continued(server, tmp_path):
    server.validators = False
    server.answers[NAME] = [Answer(cut=2 * CHUNK)]
    wanted = archive(server.url(NAME), digest=None)
    assert download(wanted, tmp_path, pauses=()).read_bytes() == BODY
    assert server.ranges_of(NAME) == [None, None]


def test_without_a_published_digest_the_computed_one_is_told(server, tmp_path, capsys):
    download(archive(server.url(NAME), digest=None), tmp_path, pauses=())
    told = capsys.readouterr().err
    assert hashlib.sha256(BODY).hexdigest() in told and "none is published" in told


def test_an_empty_file_is_never_the_published_one(server, tmp_path):
    server.files[NAME] = b""
    with pytest.raises(BadInput, match="empty"):
        download(archive(server.url(NAME), digest=None), tmp_path, pauses=())


# --- several addresses ----------------------------------------------------------------------------
@pytest.mark.parametrize("status", [403, 404, 410, 500, 503])
def test_another_address_is_tried(server, tmp_path, status):
    server.answers["elsewhere"] = [Answer(status=status)]
    path = download(archive(server.url("elsewhere"), server.url(NAME)), tmp_path, pauses=())
    assert path.read_bytes() == BODY


def test_a_wrong_file_at_one_address_is_loaded_anew_from_the_next(server, tmp_path):
    server.files["mirror"] = OTHER
    path = download(archive(server.url("mirror"), server.url(NAME)), tmp_path, pauses=())
    assert path.read_bytes() == BODY
    assert server.asked == [("mirror", None), (NAME, None)]


def test_what_one_address_began_another_finishes(server, tmp_path):
    server.files["mirror"] = BODY
    server.answers["mirror"] = [Answer(cut=CHUNK), Answer(status=500)]
    path = download(archive(server.url("mirror"), server.url(NAME)), tmp_path, pauses=())
    assert path.read_bytes() == BODY
    assert server.ranges_of(NAME) == [f"bytes={CHUNK}-"]


def test_what_a_wrong_address_began_is_begun_anew_by_the_next(server, tmp_path):
    server.files["mirror"] = OTHER
    server.answers["mirror"] = [Answer(cut=CHUNK), Answer(status=404)]
    path = download(archive(server.url("mirror"), server.url(NAME)), tmp_path, pauses=())
    assert path.read_bytes() == BODY
    assert server.ranges_of(NAME) == [f"bytes={CHUNK}-", None]


def test_an_address_that_is_gone_is_not_asked_again(server, tmp_path):
    with pytest.raises(PlaceByHand, match="404"):
        download(archive(server.url("gone")), tmp_path, pauses=QUICK)
    assert len(server.asked) == 1


def test_a_file_with_another_digest_is_refused_and_begun_anew(server, tmp_path):
    server.files[NAME] = OTHER
    with pytest.raises(BadInput, match="MD5") as caught:
        download(archive(server.url(NAME)), tmp_path, pauses=QUICK)
    assert md5(BODY)[4:] in str(caught.value) and server.url(NAME) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    server.files[NAME] = BODY
    assert download(archive(server.url(NAME)), tmp_path, pauses=QUICK).read_bytes() == BODY
