"""Unpacking of archives that are not trusted: tar, tgz and zip, whole or not at all.

Everything is first unpacked into a folder of its own beside the places of its parts. What was begun
and not finished is never used: the next run begins anew. A finished part is put to its place by one
rename; where the place is there already (VOC2007 comes in two archives) file by file, the tell-tale
file last. Files that are there are never overwritten, and links below the dataset's folder are not
written through.
"""

import errno
import filecmp
import gzip
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from pipeline.datasets.archives import Archive, Part
from pipeline.errors import BadFile, BadInput

MOST_MEMBERS = 400_000  # the largest published archive has some 120,000
MOST_SIZE = 3  # times what the archive is known to unpack to
TAR_FRAME = 1 << 20  # bytes beside: headers and padding of a tar of small files
MOST_AT_ONCE = 1 << 26  # bytes; no header is as long
CHUNK = 1 << 20  # bytes
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression that Python does not know
    ValueError,
    OverflowError,
)
ODD = {  # of an OSError: what forged names, offsets and contents lead to
    None, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL,
    errno.EILSEQ,
}  # fmt: skip


class _Refused(Exception):
    """Why an archive is not unpacked."""


@dataclass(frozen=True)
class _Member:
    """One entry of an archive, of either kind."""

    name: str
    size: int  # bytes, as declared
    kind: str  # file, folder, link, other
    leads_to: str  # of a link: a name from the archive's root, normal, or one that leaves it
    open: Callable[[], IO[bytes] | None]


def unpack(path: Path, archive: Archive, folder: Path) -> None:
    """Unpack the parts of an archive that are not there yet to their places below `folder`.

    The archive is read from its start to its end once and never held in memory.

    Raises:
        BadFile: it is damaged, encrypted, hostile, larger than it can be, or lacks a part. Nothing
            of it is at its place, and nothing outside of `folder` was touched.
        BadInput: the disk has no room for it, or something else lies in its place.
    """
    wanted = [part for part in archive.parts if not part.is_there(folder)]
    with _unfinished_folder(archive, folder) as unfinished:
        try:
            need_room(folder, _kept_size(path, archive, wanted), f"{archive.name} unpacked")
            most = MOST_SIZE * (archive.unpacked or archive.size)
            found = _members(path, most)
            members = tqdm(found, f"unpacking {path.name}", unit="file", disable=None)
            _write(members, most, wanted, unfinished)
        except (_Refused, OSError, *DAMAGE) as error:
            if isinstance(error, OSError) and error.errno not in ODD:
                raise  # the disk's fault, not the archive's
            problem = f"cannot be unpacked ({str(error) or type(error).__name__})"
            raise BadFile(path, problem, "delete it and run again") from error
        for part in wanted:
            if part.needed and not part.is_there(unfinished):
                lacking = f"holds no {part.inner}, or not all of it"
                raise BadFile(path, lacking, "delete it and run again")
        _put_in_place(archive, wanted, unfinished, folder)


def need_room(folder: Path, size: int, what: str) -> None:
    """Check that the disk of `folder` has `size` bytes free.

    Raises:
        BadInput: it has not; says how much is needed, for what and where.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise BadInput(
            f"{folder}: {what} needs {size / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free there; "
            "make room, or tell in local.yaml where a copy lies, and run again"
        )


def remove_unfinished(archive: Archive, folder: Path) -> None:
    """Remove what an unpacking that was killed left."""
    shutil.rmtree(folder / f".{archive.name}.unpacking", ignore_errors=True)


@contextmanager
def _unfinished_folder(archive: Archive, folder: Path) -> Iterator[Path]:
    remove_unfinished(archive, folder)
    unfinished = folder / f".{archive.name}.unpacking"
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    finally:
        remove_unfinished(archive, folder)


# --- reading --------------------------------------------------------------------------------------
def _members(path: Path, most: int) -> Iterator[_Member]:
    if path.suffix == ".zip":
        return _zip_members(path)
    return _tar_members(path, most + TAR_FRAME)


class _Frugal:
    """A file that refuses what only a forged header asks for: a large read, a far place.

    To get to a place in a compressed file, all before it is unpacked.
    """

    def __init__(self, file: IO[bytes], most: int) -> None:
        self.file, self.tell, self.most = file, file.tell, most
        self.last = b""  # what was read last

    def seek(self, place: int) -> int:
        if place > self.most:
            raise _Refused(f"more than {self.most} bytes")
        return self.file.seek(place)

    def read(self, size: int) -> bytes:
        if size > MOST_AT_ONCE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self.file.read(size)
        if self.tell() > self.most:
            raise _Refused(f"more than {self.most} bytes")
        return self.last


def _tar_members(path: Path, most: int) -> Iterator[_Member]:
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    opened: Any = gzip.open(path) if compressed else path.open("rb")
    frugal: Any = _Frugal(opened, most)
    with opened, tarfile.open(fileobj=frugal, mode="r:") as tar:
        for info in tar:
            yield _Member(
                name=info.name,
                size=info.size,
                kind=_tar_kind(info),
                leads_to=_target(info.name if info.issym() else "", info.linkname),
                open=partial(tar.extractfile, info),
            )
        # tarfile takes a damaged header in the middle for the end. There, zeros lie or nothing.
        if frugal.last.strip(b"\0"):
            raise tarfile.ReadError("cut off or damaged")
        while frugal.read(CHUNK):  # gzip's own checksum is at its end
            pass


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.isreg():
        return "file"
    if info.isdir():
        return "folder"
    return "link" if info.issym() or info.islnk() else "other"


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            if info.flag_bits & 1:
                raise _Refused(f"{info.filename!r} is encrypted")
            kind = _zip_kind(info)
            target = ""
            if kind == "link":
                with file.open(info) as content:
                    target = content.read(4096).decode(errors="replace")
            yield _Member(
                name=info.filename,
                size=info.file_size,
                kind=kind,
                leads_to=_target(info.filename, target),
                open=partial(file.open, info),
            )


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode == stat.S_IFLNK:
        return "link"
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "other"
    return "folder" if info.is_dir() else "file"


def _target(name: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


# --- writing --------------------------------------------------------------------------------------
def _write(members: Iterator[_Member], most: int, wanted: list[Part], unfinished: Path) -> None:
    """Write the members of the wanted parts below `unfinished`, each where its place will be.

    Args:
        most: bytes that all members may have together.

    Raises:
        _Refused: a member is hostile, or there are too many or too large ones.
    """
    size = 0
    for count, member in enumerate(members, start=1):
        size += member.size
        if count > MOST_MEMBERS or size > most:
            raise _Refused(f"more than {MOST_MEMBERS} members or {most} bytes")
        name = _checked_name(member)
        path = _path_in_part(name, wanted)
        if path is None:
            continue
        if member.kind == "link":
            raise _Refused(f"{member.name!r} is a link; no published part has any")
        target = unfinished / path
        if member.kind == "folder":
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        content = member.open()
        assert content is not None  # only of tar's folders and devices
        with content, target.open("xb") as file:  # x: refuses a name that comes twice
            shutil.copyfileobj(content, file, CHUNK)


def _checked_name(member: _Member) -> PurePosixPath:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise _Refused(f"{member.name!r} reaches out of the archive")
    if "\\" in member.name:
        raise _Refused(f"{member.name!r} has a backslash in its name")
    if member.kind == "other":
        raise _Refused(f"{member.name!r} is a device or the like")
    if member.kind == "link" and (member.leads_to.startswith("/") or _climbs(member.leads_to)):
        raise _Refused(f"{member.name!r} is a link that reaches out of the archive")
    return name


def _climbs(normal: str) -> bool:
    return normal.split("/", 1)[0] == ".."


def _path_in_part(name: PurePosixPath, wanted: list[Part]) -> Path | None:
    """Where a member goes, below the dataset's folder; None if it belongs to no part."""
    for part in wanted:
        if name.is_relative_to(part.inner):
            return Path(part.place) / name.relative_to(part.inner)
    return None


def _kept_size(path: Path, archive: Archive, wanted: list[Part]) -> int:
    """Bytes on the disk: exact for zip, whose list says it; the table's number for tar."""
    if path.suffix != ".zip":
        return archive.unpacked or archive.size
    with zipfile.ZipFile(path) as file:
        infos = file.infolist()
    kept = (i for i in infos if _path_in_part(PurePosixPath(i.filename), wanted) is not None)
    return sum(info.file_size for info in kept)


# --- placing --------------------------------------------------------------------------------------
def _put_in_place(archive: Archive, wanted: list[Part], unfinished: Path, folder: Path) -> None:
    """Move the unpacked parts to their places, after all of them were found to be free.

    Raises:
        BadInput: something else lies there, or a link.
    """
    moves: list[tuple[Path, Path]] = []
    for part in wanted:
        source, place = unfinished / part.place, folder / part.place
        if not source.exists():
            continue
        if place.is_dir() and source.is_dir() and any(place.iterdir()):
            last = unfinished / part.tell_tale
            files = [path for path in source.rglob("*") if path.is_file() and path != last]
            moves += [(path, place / path.relative_to(source)) for path in (*files, last)]
        else:
            moves.append((source, place))
    moves = [(source, target) for source, target in moves if _is_free(source, target, folder)]
    for source, target in moves:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)


def _is_free(source: Path, target: Path, folder: Path) -> bool:
    """Whether something is to be moved to `target`; False if the same file is there already."""
    for parent in (target, *target.parents):
        if parent == folder:
            break
        if parent.is_symlink():
            raise BadInput(f"{parent}: a link, which is not written through; remove it, run again")
    empty = source.is_dir() and target.is_dir() and not any(target.iterdir())
    if empty or not target.exists():
        return True
    if source.is_dir() or not target.is_file() or not filecmp.cmp(source, target, shallow=False):
        raise BadInput(
            f"{target}: not as published; move it out of {folder}, or complete the copy there, "
            "and run again"
        )
    return False
