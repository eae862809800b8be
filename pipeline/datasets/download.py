"""Published files: downloaded, continued where they broke off, checked, and unpacked.

`obtain_all` is what others call. A file arrives under another name (`.partial`) and gets its own
when it is complete and has the published digest. However a run ends, the next one goes on from
there. One process at a time works in a dataset's folder.
"""

import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from pipeline.datasets.archives import Archive
from pipeline.datasets.transfer import Failed, Misfit, discard, fetch_rest, size_of
from pipeline.datasets.unpacking import need_room, remove_unfinished, unpack
from pipeline.errors import BadFile, BadInput, PlaceByHand

PAUSES = (1.0, 5.0, 20.0)  # seconds before all addresses are tried again
MARGIN = 1_000_000  # bytes that a file may have beyond twice its size in the table


@contextmanager
def _permitted() -> Iterator[None]:
    """BadInput for a file or folder that this user may not read or write."""
    try:
        yield
    except PermissionError as error:
        raise BadInput(
            f"{error.filename}: {error.strerror}; let this user read and write there, and run again"
        ) from error


@_permitted()
def obtain_all(
    archives: Sequence[Archive], folder: Path, *, pauses: Sequence[float] = PAUSES
) -> None:
    """Have the contents of archives below `folder`; nothing is done for what is there already.

    What can be obtained is obtained before the rest is asked for. What is not needed is tried once
    when something needed is missing.

    Args:
        folder: the dataset's folder. Archives put there by hand are taken, and unpacked trees.
        pauses: seconds to wait each time that no address gave anything.

    Raises:
        PlaceByHand: files cannot be downloaded; says which, from where, to which paths.
        BadInput: the disk has no room, or a file is not the published one.
    """
    missing = [archive for archive in archives if not archive.is_there(folder)]
    if not any(archive.needed for archive in missing):
        return
    folder.mkdir(parents=True, exist_ok=True)
    by_hand = []
    with _lock(folder):
        _need_room_for(missing, folder)
        for archive in missing:
            if archive.is_there(folder):  # it came with the one before
                continue
            try:
                path = download(archive, folder, pauses=pauses if archive.needed else ())
            except PlaceByHand as error:
                if archive.needed:
                    by_hand.append(str(error))
                continue
            if archive.parts:
                unpack(path, archive, folder)
    if by_hand:
        raise PlaceByHand("\n".join(by_hand))


def _need_room_for(archives: Sequence[Archive], folder: Path) -> None:
    """Check that the disk has room for what is still to be downloaded and unpacked."""
    size, names = 0, []
    for archive in archives:
        remove_unfinished(archive, folder)
        path, partial = folder / archive.name, _partial(archive, folder)
        if path.is_file():
            size += archive.unpacked or archive.size
        elif archive.urls:
            size += max(0, archive.size - size_of(partial))
            size += (archive.unpacked or archive.size) if archive.parts else 0
        else:
            continue
        names.append(archive.name)
    need_room(folder, size, f"{', '.join(names)} with what is unpacked from it")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a dataset's folder, once nobody else does; the system lets go of it however we end."""
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            print(
                f"{folder}: waiting for process {holder}, which is at work there", file=sys.stderr
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


# --- one file -------------------------------------------------------------------------------------
def download(archive: Archive, folder: Path, *, pauses: Sequence[float] = PAUSES) -> Path:
    """The published file in `folder`, complete and with the published digest.

    A file put there by hand is taken; one that broke off goes on from where it is. The addresses
    are tried in turn, each as long as bytes arrive; then all again after a pause. `obtain_all`
    sees to it that no other process does the same.

    Raises:
        PlaceByHand: no address gives the file; says where to get it and where to put it.
        BadInput: what is there, or at every address, has not the published digest.
    """
    path, partial = folder / archive.name, _partial(archive, folder)
    if path.is_file():
        if wrong := _wrong_digest(path, archive):
            raise BadFile(path, wrong, "delete it, or put the published file in its place")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, Failed] = {}
    urls = list(archive.urls)
    for pause in (0.0, *pauses):
        time.sleep(pause)
        for url in tuple(urls):
            try:
                _fetch_from(url, partial, archive)
            except Failed as failure:
                print(f"{url}: {failure}", file=sys.stderr)
                failures[url] = failure
                if failure.final:
                    urls.remove(url)
                continue
            os.replace(partial, path)
            discard(partial)
            return path
        if not urls:
            break
    told = " or ".join(f"{url} ({failure})" for url, failure in failures.items())
    if failures and all(isinstance(failure, Misfit) for failure in failures.values()):
        raise BadInput(f"{archive.name} cannot be downloaded from {told}; the next try starts anew")
    raise PlaceByHand(_by_hand(archive, folder, told))


def _by_hand(archive: Archive, folder: Path, told: str) -> str:
    """What somebody has to do who puts a file in place by hand."""
    if told:
        source = f" ({archive.source})" if archive.source else ""
        get = f"{archive.name} cannot be downloaded from {told}. Fetch it by other means{source}"
    else:
        get = f"{archive.name}: get it from {archive.source}"
    places = " and ".join(str(folder / part.place) for part in archive.parts if part.needed)
    unpacked = f" or have what it holds at {places}," if places else ""
    return f"{get}, put it at {folder / archive.name},{unpacked} and run again"


def _partial(archive: Archive, folder: Path) -> Path:
    return folder / f"{archive.name}.partial"


def _wrong_digest(path: Path, archive: Archive) -> str | None:
    """What is wrong about a file's digest; None if it is the published one, or none is known."""
    kind, _, published = (archive.digest or "sha256:").partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(total=size, desc="checking", unit="B", unit_scale=True, disable=None) as progress,
    ):
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            progress.update(len(chunk))
    found = digest.hexdigest()
    if not size:
        return f"empty, so not the published {archive.name}"
    if not published:
        print(f"{path}: {kind} {found}, {size} bytes; none is published", file=sys.stderr)
        return None
    if found.startswith(published):
        return None
    return f"{kind.upper()} {found}, but the published {archive.name} has {published}"


def _fetch_from(url: str, partial: Path, archive: Archive) -> None:
    """Complete `partial` from one address, going on as long as bytes arrive, and check it.

    Raises:
        Failed: this address does not give the published file now, or ever.
    """
    mixed = partial.exists()  # of several answers, which may not fit together
    begun_anew = False
    longest = 2 * archive.size + MARGIN
    most = size_of(partial)
    while True:
        try:
            fetch_rest(url, partial, certain=archive.digest is not None, most=longest)
            if wrong := _wrong_digest(partial, archive):
                discard(partial)
                raise Misfit(wrong, final=True)
            return
        except Misfit:
            if begun_anew or not mixed:
                raise
            begun_anew, mixed = True, False
        except Failed as failure:
            if failure.final or size_of(partial) <= most:
                raise
            most, mixed = size_of(partial), True
