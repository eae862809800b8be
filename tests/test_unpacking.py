"""Unpacking of good, damaged and hostile archives of both kinds."""

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from file_server import tar_of, tree_of, zip_of

from pipeline.datasets import unpacking
from pipeline.datasets.archives import Archive, Part
from pipeline.datasets.unpacking import unpack
from pipeline.errors import BadInput

PART = Part("kit/VOC2012", "VOC2012", "VOC2012/val.txt")
GOOD: dict[str, bytes | None] = {
    "kit/": None,
    "kit/VOC2012/Annotations/a.xml": b"<annotation/>",
    "kit/VOC2012/JPEGImages/a.jpg": b"jpeg",
    "kit/VOC2012/val.txt": b"a\n",
    "kit/readme": b"not kept",
}
UNPACKED = {
    "VOC2012/Annotations/a.xml": b"<annotation/>",
    "VOC2012/JPEGImages/a.jpg": b"jpeg",
    "VOC2012/val.txt": b"a\n",
}


def put(folder: Path, name: str, body: bytes, *parts: Part, unpacked: int = 100_000) -> Archive:
    """An archive of these bytes, lying in `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(body)
    return Archive(name, (), len(body), None, parts or (PART,), unpacked)


def unpack_in(folder: Path, archive: Archive) -> None:
    unpack(folder / archive.name, archive, folder)


# --- good ones ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.tar", tar_of(GOOD)),
        ("a.tgz", tar_of(GOOD, mode="w:gz")),
        ("a.zip", zip_of(GOOD)),
        ("dots.tar", tar_of({f"./{name}": data for name, data in GOOD.items()})),
    ],
)
def test_a_part_is_unpacked_to_its_place_and_nothing_else(tmp_path, name, body):
    unpack_in(tmp_path, put(tmp_path, name, body))
    assert tree_of(tmp_path) == UNPACKED | {name: body}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VOC2012", name]


def test_single_files_are_taken_out_of_an_archive(tmp_path):
    names = ("annotations/train.json", "annotations/val.json")
    body = zip_of({names[0]: b"[]", names[1]: b"{}", "annotations/captions.json": b"-"})
    unpack_in(tmp_path, put(tmp_path, "a.zip", body, *(Part(name, name) for name in names)))
    assert tree_of(tmp_path) == {names[0]: b"[]", names[1]: b"{}", "a.zip": body}


@pytest.mark.parametrize("has_it", [True, False])
def test_a_part_that_is_not_needed_may_be_absent(tmp_path, has_it):
    content = {"trainval/1.mat": b"mat"} | ({"labels.txt": b"1: a"} if has_it else {})
    parts = (Part("trainval", "trainval"), Part("labels.txt", "labels.txt", needed=False))
    archive = put(tmp_path, "a.tar.gz", tar_of(content, mode="w:gz"), *parts)
    unpack_in(tmp_path, archive)
    assert archive.is_there(tmp_path) and (tmp_path / "labels.txt").exists() == has_it


def test_a_tar_without_end_marks_is_taken(tmp_path):
    body = tar_of(GOOD).rstrip(b"\0")
    unpack_in(tmp_path, put(tmp_path, "a.tar", body + bytes(-len(body) % 512)))
    assert PART.is_there(tmp_path)


def test_what_the_archive_says_of_owners_and_rights_is_not_taken(tmp_path):
    info = tarfile.TarInfo("kit/VOC2012/val.txt")
    info.mode, info.uid = 0o6777, 12345
    unpack_in(tmp_path, put(tmp_path, "a.tar", tar_of({}, info)))
    status = (tmp_path / "VOC2012/val.txt").stat()
    assert stat.S_IMODE(status.st_mode) & 0o7111 == 0 and status.st_uid != 12345


# --- what is there already ------------------------------------------------------------------------
def test_an_interrupted_unpacking_is_not_trusted(tmp_path):
    left = tmp_path / ".a.tar.unpacking" / "VOC2012" / "JPEGImages"
    left.mkdir(parents=True)
    (left / "a.jpg").write_bytes(b"jp")  # half a file
    (left / "b.jpg").write_bytes(b"from another time")
    unpack_in(tmp_path, put(tmp_path, "a.tar", body := tar_of(GOOD)))
    assert tree_of(tmp_path) == UNPACKED | {"a.tar": body}
    assert not left.exists()


def test_an_incomplete_copy_is_completed(tmp_path):
    (tmp_path / "VOC2012" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "VOC2012" / "JPEGImages" / "a.jpg").write_bytes(b"jpeg")
    (tmp_path / "VOC2012" / "my notes").write_bytes(b"mine")
    unpack_in(tmp_path, put(tmp_path, "a.tar", body := tar_of(GOOD)))
    assert tree_of(tmp_path) == UNPACKED | {"a.tar": body, "VOC2012/my notes": b"mine"}


def test_a_file_that_differs_is_never_overwritten(tmp_path):
    (tmp_path / "VOC2012" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "VOC2012" / "JPEGImages" / "a.jpg").write_bytes(b"mine")
    archive = put(tmp_path, "a.tar", tar_of(GOOD))
    before = tree_of(tmp_path)
    with pytest.raises(BadInput, match=r"JPEGImages/a\.jpg: not as published; move it"):
        unpack_in(tmp_path, archive)
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize("link", ["VOC2012", "VOC2012/JPEGImages", "VOC2012/JPEGImages/a.jpg"])
def test_a_link_to_somebodys_own_data_is_not_written_through(tmp_path, link):
    own = tmp_path / "own"
    own.mkdir()
    (own / "kept").write_bytes(b"mine")
    folder = tmp_path / "raw"
    path = folder / link
    path.parent.mkdir(parents=True)
    path.symlink_to(own)
    with pytest.raises(BadInput, match="a link, which is not written through"):
        unpack_in(folder, put(folder, "a.tar", tar_of(GOOD)))
    assert tree_of(own) == {"kept": b"mine"}


def test_a_linked_copy_that_is_complete_is_there(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "val.txt").write_bytes(b"a\n")
    (tmp_path / "VOC2012").symlink_to(own)
    assert PART.is_there(tmp_path)


def test_an_empty_folder_is_not_taken_for_the_content(tmp_path):
    part = Part("train2017", "train2017")
    (tmp_path / "train2017").mkdir()
    assert not part.is_there(tmp_path)
    unpack_in(tmp_path, put(tmp_path, "a.zip", zip_of({"train2017/1.jpg": b"jpeg"}), part))
    assert part.is_there(tmp_path)


def test_room_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    usage = unpacking.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage._replace(free=19))
    kept = sum(map(len, UNPACKED.values()))
    assert kept == 19
    unpack_in(tmp_path / "zip", put(tmp_path / "zip", "a.zip", zip_of(GOOD)))  # its list says 19
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage._replace(free=99_999))
    with pytest.raises(BadInput, match=r"a\.tar unpacked needs .* GB are free there"):
        unpack_in(tmp_path / "tar", put(tmp_path / "tar", "a.tar", tar_of(GOOD)))
    assert [path.name for path in (tmp_path / "tar").iterdir()] == ["a.tar"]


# --- hostile ones ---------------------------------------------------------------------------------
def tar_member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_member(name: str, mode: int, content: bytes = b"x") -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info, content


NAMES = ["../evil", "kit/VOC2012/../../../evil", "/evil", "kit\\VOC2012\\evil", "..\\evil"]
TAR_MEMBERS = [
    tar_member("kit/VOC2012/link", tarfile.SYMTYPE, "../../../evil"),
    tar_member("kit/VOC2012/link", tarfile.SYMTYPE, "/etc/hostname"),
    tar_member("kit/VOC2012/link", tarfile.SYMTYPE, "val.txt"),  # inside: no part has any
    tar_member("kit/VOC2012/hard", tarfile.LNKTYPE, "../evil"),
    tar_member("kit/VOC2012/hard", tarfile.LNKTYPE, "/etc/hostname"),
    tar_member("elsewhere", tarfile.SYMTYPE, "../evil"),
    tar_member("kit/VOC2012/null", tarfile.CHRTYPE),
    tar_member("kit/VOC2012/disk", tarfile.BLKTYPE),
    tar_member("pipe", tarfile.FIFOTYPE),
]
ZIP_MEMBERS = [
    zip_member("kit/VOC2012/link", stat.S_IFLNK | 0o777, b"../../../evil"),
    zip_member("kit/VOC2012/link", stat.S_IFLNK | 0o777, b"/etc/hostname"),
    zip_member("kit/VOC2012/link", stat.S_IFLNK | 0o777, b"val.txt"),
    zip_member("elsewhere", stat.S_IFLNK | 0o777, b"../evil"),
    zip_member("kit/VOC2012/pipe", stat.S_IFIFO | 0o666),
    zip_member("kit/VOC2012/null", stat.S_IFCHR | 0o666),
]
HOSTILE = {
    **{f"tar {name}": ("a.tar", tar_of([*GOOD.items(), (name, b"x")])) for name in NAMES},
    **{f"zip {name}": ("a.zip", zip_of([*GOOD.items(), (name, b"x")])) for name in NAMES},
    **{
        f"tar {info.name} {info.type!r} {info.linkname}": ("a.tar", tar_of(GOOD, info))
        for info in TAR_MEMBERS
    },
    **{
        f"zip {info.filename} {oct(info.external_attr >> 16)} {data!r}": (
            "a.zip", zip_of(GOOD, (info, data)),
        ) for info, data in ZIP_MEMBERS
    },
}  # fmt: skip


def refused(tmp_path: Path, archive: Archive, match: str) -> None:
    """Unpacking fails, names the archive, and leaves nothing, inside or outside."""
    folder = tmp_path / "raw"
    (tmp_path / "evil").write_bytes(b"mine")
    with pytest.raises(BadInput, match=match) as caught:
        unpack_in(folder, archive)
    assert str(caught.value).startswith(f"{folder / archive.name}: ")
    assert "delete it and run again" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == [archive.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil", "raw"]
    assert (tmp_path / "evil").read_bytes() == b"mine"


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_reaches_out_is_refused(tmp_path, name):
    archive = put(tmp_path / "raw", *HOSTILE[name])
    refused(tmp_path, archive, "reaches out|backslash|is a link|is a device")


@pytest.mark.parametrize("pack", [tar_of, zip_of])
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize(
    "twice",
    [
        [("kit/VOC2012/val.txt", b"a\n"), ("kit/VOC2012/val.txt", b"other")],
        [("kit/VOC2012/val.txt", b"a\n"), ("kit/VOC2012/./val.txt", b"other")],
        [("kit/VOC2012/val.txt", b"a\n"), ("kit/VOC2012/val.txt/inside", b"other")],
        [("kit/VOC2012/val.txt/inside", b"other"), ("kit/VOC2012/val.txt", b"a\n")],
    ],
)
def test_a_name_that_comes_twice_is_refused(tmp_path, pack, twice):
    name = "a.tar" if pack is tar_of else "a.zip"
    refused(tmp_path, put(tmp_path / "raw", name, pack(twice)), "exists|directory")


def test_names_that_differ_by_case_stay_two_files_or_are_refused(tmp_path):
    content = [("kit/VOC2012/val.txt", b"a\n"), ("kit/VOC2012/VAL.txt", b"other")]
    archive = put(tmp_path, "a.tar", tar_of(content))
    try:
        unpack_in(tmp_path, archive)
    except BadInput:  # a disk that takes them for one
        assert not (tmp_path / "VOC2012").exists()
    else:
        assert (tmp_path / "VOC2012/val.txt").read_bytes() == b"a\n"


# --- bombs ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.tgz", "a.zip"])
@pytest.mark.parametrize("inner", ["kit/VOC2012/zeros", "not kept"])
def test_an_archive_that_unpacks_to_far_too_much_is_refused(tmp_path, name, inner):
    content = GOOD | {inner: bytes(400_000)}
    body = zip_of(content) if name == "a.zip" else tar_of(content, mode="w:gz")
    assert len(body) < 5000
    archive = put(tmp_path / "raw", name, body, unpacked=100_000)
    refused(tmp_path, archive, "more than .* members or 300000 bytes")


def test_an_archive_of_too_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST_MEMBERS", 50)
    many = GOOD | {f"kit/VOC2012/{n}": b"" for n in range(50)}
    refused(tmp_path, put(tmp_path / "raw", "a.zip", zip_of(many)), "more than 50 members")


def test_a_zip_that_holds_more_than_it_declares_is_refused(tmp_path):
    body = zip_of({"kit/VOC2012/val.txt": bytes(50_000)})
    sizes = (50_000).to_bytes(4, "little")
    assert body.count(sizes) == 2  # in the member's header and in the list
    forged = body.replace(sizes, (10).to_bytes(4, "little"))
    refused(tmp_path, put(tmp_path / "raw", "a.zip", forged), "Bad CRC-32")


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST_AT_ONCE", 100_000)
    info = tarfile.TarInfo("kit/VOC2012/val.txt")
    info.pax_headers = {"comment": "x" * 200_000}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    refused(tmp_path, put(tmp_path / "raw", "a.tgz", packed.getvalue()), "a header of 2")


def test_far_too_much_behind_the_end_of_a_tar_is_refused(tmp_path):
    behind = bytes(2_000_000)
    body = gzip.compress(tar_of(GOOD)) + gzip.compress(behind)
    archive = put(tmp_path / "raw", "a.tgz", body, unpacked=100_000)
    refused(tmp_path, archive, f"more than {300_000 + unpacking.TAR_FRAME} bytes")
    unpack_in(tmp_path / "raw", put(tmp_path / "raw", "a.tgz", body, unpacked=1_000_000))


def test_a_tar_whose_members_hide_far_more_than_they_declare_is_refused(tmp_path):
    """A sparse member: 2 MB are stored, 0 are declared to be there when it is unpacked."""
    info = tarfile.TarInfo("not kept")
    info.size, info.type = 2_000_000, tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"0" * 11 + b"\0"  # the size when it is unpacked
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    body = gzip.compress(bytes(header) + bytes(2_000_384) + tar_of(GOOD))
    archive = put(tmp_path / "raw", "a.tgz", body, unpacked=100_000)
    refused(tmp_path, archive, f"more than {300_000 + unpacking.TAR_FRAME} bytes")


# --- damaged ones ---------------------------------------------------------------------------------
NOISE = np.random.default_rng(0).bytes(3000)
LONG = GOOD | {"kit/VOC2012/JPEGImages/b.jpg": NOISE}


def damaged_middle() -> bytes:
    body = bytearray(tar_of(LONG))
    start = body.index(b"kit/VOC2012/val.txt")  # a header after others
    body[start : start + 200] = b"?" * 200
    return bytes(body)


DAMAGED = {
    "tar cut in a member": ("a.tar", tar_of(LONG)[:4600]),
    "tar cut in a header": ("a.tar", tar_of(LONG)[:1800]),
    "tar with a damaged header": ("a.tar", damaged_middle()),
    "tgz cut": ("a.tgz", tar_of(LONG, mode="w:gz")[:-20]),
    "tgz cut in the middle": ("a.tgz", tar_of(LONG, mode="w:gz")[:900]),
    "tgz with another checksum": ("a.tgz", gzip.compress(tar_of(LONG))[:-8] + bytes(8)),
    "zip cut": ("a.zip", zip_of(LONG)[:-30]),
    "zip cut in the middle": ("a.zip", zip_of(LONG)[:1000]),
    "zip with other content": ("a.zip", zip_of(LONG).replace(NOISE[:9], bytes(9))),
    "no tar": ("a.tar", NOISE),
    "no tgz": ("a.tgz", b"\x1f\x8b" + NOISE),
    "no zip": ("a.zip", NOISE),
    "zip of a name that is no zip": ("a.zip", tar_of(GOOD)),
    "empty file, tar": ("a.tar", b""),
    "empty file, zip": ("a.zip", b""),
    "tar of nothing": ("a.tar", tar_of({})),
    "zip of nothing": ("a.zip", zip_of({})),
    "tar of other things": ("a.tar", tar_of({"other/file": b"x"})),
    "zip of other things": ("a.zip", zip_of({"other/file": b"x"})),
    "part without its tell-tale": ("a.tar", tar_of({"kit/VOC2012/a": b"x"})),
    "a name too long": ("a.zip", zip_of(GOOD | {"kit/VOC2012/" + "n" * 300: b"x"})),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_refused(tmp_path, name):
    archive = put(tmp_path / "raw", *DAMAGED[name])
    refused(tmp_path, archive, "cannot be unpacked|holds no kit/VOC2012")


def test_an_encrypted_zip_is_refused(tmp_path):
    body = bytearray(zip_of(GOOD))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = body.index(signature)
        while start >= 0:
            body[start + offset] |= 1
            start = body.find(signature, start + 1)
    refused(tmp_path, put(tmp_path / "raw", "a.zip", bytes(body)), "is encrypted")


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_random_damage_never_does_more_than_being_refused(tmp_path, name):
    rng = np.random.default_rng(0)
    packed = {"a.tar": tar_of(LONG), "a.tgz": tar_of(LONG, mode="w:gz"), "a.zip": zip_of(LONG)}
    for trial in range(60):
        body = bytearray(packed[name])
        for place in rng.integers(0, len(body.rstrip(b"\0")), size=rng.integers(1, 6)):
            body[place] = rng.integers(0, 256)
        folder = tmp_path / str(trial)
        archive = put(folder, name, bytes(body))
        try:
            unpack_in(folder, archive)
        except BadInput:
            assert [path.name for path in folder.iterdir()] == [name]
        else:
            assert archive.is_there(folder)
        assert {path.name for path in folder.iterdir()} <= {name, "VOC2012"}
