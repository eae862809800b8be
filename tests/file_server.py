"""A real file server on this machine's loopback, which misbehaves when told to; and archives."""

import hashlib
import io
import re
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Answer:
    """How one request is answered. Left as it is: as it should be."""

    status: int | None = None  # an error of this status instead of the file
    redirect: str = ""
    cut: int | None = None  # break off after so many bytes of the body
    longer: int = 0  # added to the announced length
    shift: int = 0  # added to the beginning of the wanted range
    slow: float = 0.0  # seconds before each 16 KiB
    hold: bool = False  # after `cut` bytes, wait for the server's `go_on`
    headers: dict[str, str] = field(default_factory=dict)


class FileServer(ThreadingHTTPServer):
    """Serves `files`, {name: bytes}, and notes what it is asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = {}  # of the next requests for a name
        self.ranges = True
        self.validators = True
        self.obeys_if_range = True
        self.asked: list[tuple[str, str | None]] = []  # (name, Range) of every request
        self.held, self.go_on = threading.Event(), threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def ranges_of(self, name: str) -> list[str | None]:
        return [wanted for asked, wanted in self.asked if asked == name]

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that was killed


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        name, wanted = self.path[1:], self.headers.get("Range")
        self.server.asked.append((name, wanted))
        queue = self.server.answers.get(name, [])
        answer = queue.pop(0) if queue else Answer()
        body = self.server.files.get(name)
        if answer.redirect:
            self.send_response(302)
            self.send_header("Location", answer.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif answer.status or body is None:
            self.send_error(answer.status or 404)
        else:
            self.send_file(answer, body, wanted)

    def send_file(self, answer: Answer, body: bytes, wanted: str | None) -> None:
        server, etag = self.server, f'"{hashlib.md5(body).hexdigest()}"'
        stale = self.headers.get("If-Range", etag) != etag and server.obeys_if_range
        start = 0
        if wanted and server.ranges and not stale:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) + answer.shift
        if start >= len(body) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.validators:
            self.send_header("ETag", etag)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(part) + answer.longer))
        self.end_headers()
        self.send_body(answer, part)

    def send_body(self, answer: Answer, part: bytes) -> None:
        part = part if answer.cut is None or answer.hold else part[: answer.cut]
        if answer.hold:
            self.wfile.write(part[: answer.cut])
            self.wfile.flush()
            self.server.held.set()
            self.server.go_on.wait(60)
            part = part[answer.cut :]
        for start in range(0, len(part), 1 << 14) if answer.slow else ():
            time.sleep(answer.slow)
            self.wfile.write(part[start : start + (1 << 14)])
        if not answer.slow:
            self.wfile.write(part)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[FileServer]:
    """A file server that ends with the block."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()


# --- archives -------------------------------------------------------------------------------------
Content = dict[str, bytes | None] | list[tuple[str, bytes | None]]  # None: a folder


def tar_of(content: Content, *more: tarfile.TarInfo, mode: str = "w") -> bytes:
    """A tar ("w") or tgz ("w:gz") of named files and folders, then of bare members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in content.items() if isinstance(content, dict) else content:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
        for info in more:
            tar.addfile(info)
    return file.getvalue()


def zip_of(content: Content, *more: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    """A zip of named files and folders (names that end in "/"), then of bare members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in content.items() if isinstance(content, dict) else content:
            packed.writestr(zipfile.ZipInfo(name), data or b"", zipfile.ZIP_DEFLATED)
        for info, data in more:
            packed.writestr(info, data)
    return file.getvalue()


def md5(body: bytes) -> str:
    """The digest as the table of archives writes it."""
    return "md5:" + hashlib.md5(body).hexdigest()


def tree_of(folder: Path) -> dict[str, bytes]:
    """{path: content} of all files below a folder, hidden ones at its top left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }
