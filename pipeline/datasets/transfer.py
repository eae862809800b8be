"""Transfer of one file from one address, continued where it broke off.

A server may lie: break off, ignore or misread the wanted range, change the file between two tries,
or send a page that says sorry. What it says of the whole file (address, ETag or date, length) is
kept beside the unfinished one, so that a later run can ask for the rest of the same file.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from pipeline.errors import BadFile, need_file

PATIENCE = (10.0, 60.0)  # seconds to wait for a connection, for the next bytes
CHUNK = 1 << 16  # bytes
GONE = (401, 403, 404, 410)  # statuses after which an address is not tried again


class Failed(Exception):
    """Why an address did not give the file; `final`: trying again is of no use."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class Misfit(Failed):
    """What came is not the file, or not all of the same one. It was removed."""


@dataclass(frozen=True)
class Origin:
    """Where the bytes of an unfinished file came from."""

    url: str
    validator: str  # strong ETag or date of the file there; "": the server names none
    total: int | None  # bytes of the whole file; None: not told


def size_of(partial: Path) -> int:
    """Bytes that have arrived; 0 where nothing has."""
    return partial.stat().st_size if partial.exists() else 0


def discard(partial: Path) -> None:
    """Remove an unfinished file, if it is there, and what is known of its origin."""
    partial.unlink(missing_ok=True)
    _origin_file(partial).unlink(missing_ok=True)


def _origin_file(partial: Path) -> Path:
    return partial.with_name(f".{partial.name}.json")


def fetch_rest(url: str, partial: Path, *, certain: bool, most: int) -> None:
    """Append to `partial` what it lacks, or begin anew where the file at `url` is another one.

    Args:
        certain: the digest will tell whether the parts fit. If not, only the same file of the same
            address, by its ETag or date, is continued.
        most: bytes that the file cannot have more of, whatever the server says: an answer may have
            no end.

    Raises:
        Failed: the connection failed or broke off; what came is kept.
        Misfit: another file, or more than it can be; what came is removed.
    """
    have, origin = size_of(partial), _read_origin(partial)
    headers = {"Accept-Encoding": "identity"}  # an archive is stored as it was packed
    same = origin is not None and origin.url == url and origin.validator
    if have and (certain or same):
        headers["Range"] = f"bytes={have}-"
        if same and origin:
            headers["If-Range"] = origin.validator
    try:
        with requests.get(url, headers=headers, stream=True, timeout=PATIENCE) as answer:
            if _is_complete(answer, partial, have):
                return
            _refuse_other_content(answer, partial)
            total = _begin(answer, url, partial, have, origin)
            if (total or 0) > most:
                discard(partial)
                raise Misfit(f"{total} bytes: not the published file", final=True)
            limit = most if total is None else total
            _write_body(answer, partial, total, limit)
    except requests.RequestException as error:
        raise Failed(type(error).__name__) from error
    arrived = size_of(partial)
    if arrived > limit:
        discard(partial)
        raise Misfit(f"more than {limit} bytes: not the published file", final=True)
    if total is not None and arrived < total:
        raise Failed(f"broke off at {arrived} of {total} bytes")


def _is_complete(answer: requests.Response, partial: Path, have: int) -> bool:
    """Whether the server says that nothing follows after what we have."""
    if answer.status_code != 416:
        return False
    if answer.headers.get("Content-Range") == f"bytes */{have}":
        return True
    discard(partial)
    raise Misfit("the unfinished file is longer than the one there")


def _refuse_other_content(answer: requests.Response, partial: Path) -> None:
    """Raises Failed for an error, or for something else in the file's place."""
    status, headers = answer.status_code, answer.headers
    if status not in (200, 206):
        raise Failed(f"status {status}", final=status in GONE)
    if headers.get("Content-Type", "").startswith("text/html"):
        raise Failed("a web page instead of the file", final=True)
    # Some servers call the compression of a tgz itself the encoding of a tar: then it is the file.
    encoding = headers.get("Content-Encoding", "identity")
    packed = partial.name.endswith("gz.partial") and encoding in ("gzip", "x-gzip")
    if encoding != "identity" and not packed:
        raise Failed(f"sent with the encoding {encoding}, not as it is", final=True)


def _begin(
    answer: requests.Response, url: str, partial: Path, have: int, origin: Origin | None
) -> int | None:
    """Make `partial` ready for the body of an answer. Returns the bytes of the whole file."""
    headers = answer.headers
    etag, date = headers.get("ETag", ""), headers.get("Last-Modified", "")
    validators = [value for value in (etag, date) if value and not value.startswith("W/")]
    if answer.status_code == 206:
        given = re.fullmatch(r"bytes (\d{1,15})-\d+/(\d{1,15})", headers.get("Content-Range", ""))
        total = int(given[2]) if given else None
        if given is None or int(given[1]) != have or _changed(origin, url, validators, total):
            discard(partial)
            raise Misfit("the file changed since the last try")
        return total
    length = headers.get("Content-Length", "")
    total = int(length) if re.fullmatch("[0-9]{1,15}", length) else None
    discard(partial)
    written = asdict(Origin(url, validators[0] if validators else "", total))
    _origin_file(partial).write_text(json.dumps(written))
    partial.touch()
    return total


def _changed(origin: Origin | None, url: str, validators: list[str], total: int | None) -> bool:
    """Whether the rest that is offered is known to be of another file than the beginning."""
    if origin is None:
        return False
    if origin.total is not None and origin.total != total:
        return True
    told = origin.url == url and origin.validator and validators
    return bool(told) and origin.validator not in validators


def _write_body(answer: requests.Response, partial: Path, total: int | None, limit: int) -> None:
    """Append the body to `partial`, up to the first bytes that make it longer than `limit`."""
    name = partial.name.removesuffix(".partial")
    have = size_of(partial)
    with (
        partial.open("ab") as file,
        tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True, disable=None) as bar,
    ):
        try:
            while have <= limit and (chunk := answer.raw.read1(CHUNK, decode_content=False)):
                file.write(chunk)
                file.flush()  # kept when the process is killed
                bar.update(len(chunk))
                have += len(chunk)
        except HTTPError as error:
            raise requests.ConnectionError(error) from error


def _read_origin(partial: Path) -> Origin | None:
    try:
        need_file(_origin_file(partial))
        return Origin(**json.loads(_origin_file(partial).read_text()))
    except (BadFile, OSError, ValueError, TypeError):
        return None
