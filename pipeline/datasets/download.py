"""Downloads: continued where they broke off, checked, and unpacked whole or not at all."""

import hashlib
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import requests
from tqdm import tqdm

from pipeline.errors import BadInput, PlaceByHand

PAUSES = (1.0, 5.0, 20.0)  # seconds before trying again; one try more than pauses
PATIENCE = (10.0, 60.0)  # seconds to wait for a connection, for the next bytes
CHUNK = 1 << 14  # bytes; when a connection breaks off, the last unfinished chunk is lost


@dataclass(frozen=True)
class Archive:
    """A published archive, and what is kept of it."""

    name: str
    urls: tuple[str, ...]  # the same file in several places, best first
    md5: str
    inner: str  # the folder inside it that is kept
    place: str  # where that folder goes, below the dataset's folder; there = completely unpacked


VOC2012 = Archive(
    name="VOCtrainval_11-May-2012.tar",
    urls=("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",),
    md5="6cd6e144f989b92b3379bac3b3de84fd",
    inner="VOCdevkit/VOC2012",
    place="VOC2012",
)
SBD = Archive(
    name="benchmark.tgz",
    urls=(
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
        "semantic_contours/benchmark.tgz",
    ),
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
    inner="benchmark_RELEASE/dataset",
    place="benchmark_RELEASE/dataset",
)


def obtain(archive: Archive, folder: Path) -> None:
    """Have the archive's content below `folder`; nothing is done where it is there already.

    Raises:
        PlaceByHand: no address can be reached; says which file goes where.
        BadInput: the file is not the published one, or its content reaches out of its folder.
    """
    if (folder / archive.place).is_dir():
        return
    unpack(download(archive, folder), archive, folder)


def download(archive: Archive, folder: Path, *, pauses: Sequence[float] = PAUSES) -> Path:
    """The archive's file in `folder`, complete and with the published digest.

    A file put there by hand is taken; one that broke off goes on from where it is.

    Args:
        pauses: seconds to wait after each failed try of an address; progress starts them anew.

    Raises:
        PlaceByHand: no address can be reached; says which file goes where.
        BadInput: the digest is not the published one.
    """
    path, partial = folder / archive.name, folder / f"{archive.name}.partial"
    if path.is_file():
        _check_digest(path, archive, f"delete {path}, or put the published file in its place")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in archive.urls:
        failure = _try_address(url, partial, pauses)
        if failure is None:
            try:
                _check_digest(partial, archive, f"it came from {url}; the next try starts anew")
            except BadInput:
                partial.unlink()
                raise
            os.replace(partial, path)
            return path
        failures.append(f"{url} ({failure})")
    raise PlaceByHand(
        f"{archive.name} cannot be downloaded from {' or '.join(failures)}. "
        f"Fetch it by other means, put it at {path}, and run again"
    )


def _try_address(url: str, partial: Path, pauses: Sequence[float]) -> str | None:
    """Load the rest of a file from one address. Returns None when done, else what went wrong."""
    waiting = list(pauses)
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _load_rest(url, partial)
            return None
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            failure, final = f"status {status}", status in (401, 403, 404, 410)
        except requests.RequestException as error:
            failure, final = type(error).__name__, False
        if partial.exists() and partial.stat().st_size > before:
            waiting = list(pauses)
        if final or not waiting:
            return failure
        time.sleep(waiting.pop(0))


def _load_rest(url: str, partial: Path) -> None:
    """Append to `partial` what it lacks.

    Raises:
        requests.RequestException: the connection failed or broke off; what came is kept.
    """
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=PATIENCE) as answer:
        if answer.status_code == 416:  # nothing follows: complete, or longer than the file there
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return
            partial.unlink()
            raise requests.ConnectionError("the unfinished file is longer than the published one")
        answer.raise_for_status()
        if answer.status_code != 206:  # the server sends all from the start
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            partial.open("r+b" if have else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, disable=None) as progress,
        ):
            file.seek(have)
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and partial.stat().st_size < total:
        raise requests.ConnectionError(f"broke off at {partial.stat().st_size} of {total} bytes")


def _check_digest(path: Path, archive: Archive, remedy: str) -> None:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != archive.md5:
        raise BadInput(
            f"{path}: MD5 {md5}, but the published {archive.name} has {archive.md5}; {remedy}"
        )


def unpack(path: Path, archive: Archive, folder: Path) -> None:
    """Unpack the archive's inner folder to its place, which appears only when it is complete.

    Raises:
        BadInput: the archive is damaged, lacks that folder, or reaches out of its own.
    """
    unfinished = folder / f".{archive.name}.unpacking"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with tarfile.open(path) as tar:
            members = tqdm(tar, desc=f"unpacking {archive.name}", unit="file", disable=None)
            for member in members:
                tar.extract(member, unfinished, filter=_inside)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        shutil.rmtree(unfinished)
        raise BadInput(f"{path}: cannot be unpacked ({error}); delete it and run again") from error
    if not (unfinished / archive.inner).is_dir():
        shutil.rmtree(unfinished)
        raise BadInput(f"{path}: holds no folder {archive.inner}; delete it and run again")
    place = folder / archive.place
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(unfinished / archive.inner, place)
    shutil.rmtree(unfinished)


def _inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Python's "data" filter, which also refuses what it would quietly make harmless."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise tarfile.OutsideDestinationError(member, folder)
    return tarfile.data_filter(member, folder)
