"""Which files of somebody's own folder belong to which image (see folder.py)."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.datasets.lists import is_image_id
from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile, need_file

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
LEFT_BEHIND = {"thumbs.db", "desktop.ini", "__macosx"}  # by systems; so are names with a dot first
SHOWN = 3  # names in a note
PNG_START, PNG_COLOUR_TYPE, PNG_ALPHA = b"\x89PNG\r\n\x1a\n", 25, (4, 6)


def list_some(names: Iterable[str]) -> str:
    """The first names, and how many there are."""
    every = list(names)
    more = f", ... ({len(every)} together)" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, sorted, without hidden files. Raises BadFile."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        problem = f"not a readable folder ({error.strerror})"
        raise BadFile(folder, problem, "correct the link or the permissions") from error


def list_files(top: Path, problems: Problems, notes: list[str]) -> list[Path]:
    """Every file below a folder, sorted; none if it is not there.

    Links are followed, but not to a folder that was read already or that contains `top` with all
    that lies beside it. Hidden files and those that systems leave behind are passed over.
    """
    files: list[Path] = []
    folders = [top] if os.path.lexists(top) else []
    seen = set()
    above = _folders_above(top)
    while folders:
        folder = folders.pop()
        with problems.noted():
            try:
                status = folder.stat()
                entries = sorted(folder.iterdir())
            except OSError as error:
                problem = f"not a readable folder ({error.strerror})"
                raise BadFile(folder, problem, "correct the link or the permissions") from error
            if (status.st_dev, status.st_ino) in seen:
                notes.append(f"{folder}: leads to a folder that is read already, not followed")
                continue
            if (status.st_dev, status.st_ino) in above:
                notes.append(f"{folder}: leads to a folder that contains {top}, not followed")
                continue
            seen.add((status.st_dev, status.st_ino))
            shown = [p for p in entries if p.name[0] != "." and p.name.lower() not in LEFT_BEHIND]
            files += [path for path in shown if not os.path.isdir(path)]
            folders += reversed([path for path in shown if os.path.isdir(path)])
    return sorted(files)


def _folders_above(top: Path) -> set[tuple[int, int]]:
    """Device and number of every folder that contains one, by its path and, of a link, by both."""
    above = set()
    for path in {*Path(os.path.abspath(top)).parents, *Path(os.path.realpath(top)).parents}:
        with suppress(OSError):
            status = os.stat(path)
            above.add((status.st_dev, status.st_ino))
    return above


def find_images(folder: Path, problems: Problems, notes: list[str]) -> dict[str, Path]:
    """The images below images/, by id.

    Raises:
        BadFile: no images; through `problems`, names that are no ids or are there twice.
    """
    top = folder / "images"
    if not os.path.lexists(top):
        raise _no_images(folder)
    files = list_files(top, problems, notes)
    images: dict[str, Path] = {}
    others = [path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES]
    for path in files:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            with problems.noted():
                _add(path, path.stem, images)
    if len(others) == len(files):
        raise BadFile(top, "no image in it", "put JPEG, PNG, TIFF, BMP or WebP files there")
    if others:
        notes.append(f"images/: no images by their names: {_some_inside(others, top)}")
    if alpha := [path for path in images.values() if _has_alpha(path)]:
        notes.append(f"images/: transparency is dropped: {_some_inside(alpha, top)}")
    return images


def find_named(
    top: Path,
    files: list[Path],
    suffix: str,
    images: Mapping[str, Path],
    problems: Problems,
    notes: list[str],
) -> dict[str, Path]:
    """The files of a folder of annotation by the image that each belongs to.

    A file has the name of its image and the ending that most files of the folder have: none, or a
    text that begins with _, - or a dot.

    Args:
        top: the folder.
        files: in it; those without `suffix` are left alone.

    Raises:
        BadFile: no file has the name of an image; through `problems`, two files of one image.
    """
    found: dict[str, Path] = {}
    files = [path for path in files if path.suffix.lower() == suffix]
    endings = Counter(_ending(path.stem, images) for path in files)
    endings.pop(None, None)
    if files and not endings:
        problem = f"none of its {len(files)} {suffix} files has the name of an image"
        raise BadFile(top, problem, "name them as their images, or all with the same ending")
    ending = max(endings, key=lambda e: (endings[e], not e), default=None) or ""
    strays = []
    for path in files:
        image_id = path.stem.removesuffix(ending)
        if image_id in images and path.stem == image_id + ending:
            with problems.noted():
                _add(path, image_id, found)
        else:
            strays.append(path)
    if strays:
        notes.append(f"{top.name}/: of no image: {_some_inside(strays, top)}")
    return found


def find_maps(
    top: Path, images: Mapping[str, Path], problems: Problems, notes: list[str]
) -> dict[str, Path]:
    """The index PNGs of a folder by the image that each belongs to; as `find_named`."""
    files = list_files(top, problems, notes)
    for path in files:
        with problems.noted():
            if path.suffix.lower() in IMAGE_SUFFIXES - {".png"}:
                raise BadFile(path, "not a PNG", "save numbers as index PNGs: JPEG changes them")
    return find_named(top, files, ".png", images, problems, notes)


def _no_images(folder: Path) -> BadFile:
    hint, names = "", names_in(folder)
    if folder.name == "images":
        hint = f" (this is that folder itself: name the one above, {folder.parent})"
    elif other := [name for name in names if name.lower() == "images"]:
        hint = f" ({other[0]}/ is: rename it)"
    elif any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        hint = " (images lie beside: move them into it)"
    return BadFile(
        folder / "images", f"not there{hint}", "docs/OWN_IMAGES.md shows how a folder is laid out"
    )


def _add(path: Path, image_id: str, found: dict[str, Path]) -> None:
    if not is_image_id(image_id):
        remedy = "rename it, and its annotation, with letters, digits, _ and -"
        raise BadFile(path, f"{image_id!r} can be no image id", remedy)
    if image_id in found:
        problem = f"{image_id} is there already: {found[image_id]}"
        raise BadFile(path, problem, "give each a name of its own, whatever its folder")
    found[image_id] = path


def _ending(stem: str, images: Mapping[str, Path]) -> str | None:
    """What follows the longest image id that the stem begins with; None if there is no such id."""
    if stem in images:
        return ""
    cuts = [match.start() for match in re.finditer("[-_.]", stem)]
    return next((stem[cut:] for cut in reversed(cuts) if stem[:cut] in images), None)


def _some_inside(paths: Iterable[Path], top: Path) -> str:
    return list_some(path.relative_to(top).as_posix() for path in paths)


def _has_alpha(path: Path) -> bool:
    """Whether a PNG's header announces transparency pixel by pixel."""
    if path.suffix.lower() != ".png":
        return False
    try:
        need_file(path)
        with path.open("rb") as file:
            start = file.read(PNG_COLOUR_TYPE + 1)
    except (BadFile, OSError):
        return False  # whoever reads the image says so
    return start.startswith(PNG_START) and start[-1] in PNG_ALPHA
