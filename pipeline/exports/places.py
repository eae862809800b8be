"""Where exports go and what they are made of: new files and folders, whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.datasets.label_maps import find_label_maps, listed, need_some
from pipeline.errors import BadFile, BadInput, some


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill: it appears at `out` when the block ends well, and else not at all.

    Raises:
        BadInput: something is there already, or no folder can be made there.
    """
    place, partial = _free_place(out)
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    try:
        partial.mkdir()
    except OSError as error:
        raise _no_place(out, error) from error
    try:
        yield partial
        os.replace(partial, place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """The path of a file to write: it appears at `out` when the block ends well, else not at all.

    Raises:
        BadInput: something is there already, or no file can be made there.
    """
    place, partial = _free_place(out)
    if place.is_dir():
        raise BadInput(f"{out}: a folder; name a file")
    try:
        partial.touch()
    except OSError as error:
        raise _no_place(out, error) from error
    try:
        yield partial
        os.replace(partial, place)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _free_place(out: Path) -> tuple[Path, Path]:
    """Where a new file or folder is put, and where it is made."""
    place = Path(os.path.realpath(out))
    filled = any(place.iterdir()) if place.is_dir() else place.exists()
    if filled:
        raise BadInput(f"{out}: is there already; name a new place, or remove what is there")
    return place, place.with_name(f".{place.name}.partial")


def _no_place(out: Path, error: OSError) -> BadInput:
    return BadInput(
        f"{out}: cannot be made there ({error.strerror}); name a place in a folder that is there "
        "and can be written to"
    )


def chosen_label_maps(folder: Path, ids: Path | None) -> dict[str, Path]:
    """The label maps <image_id>.png of a folder by image id, sorted.

    Args:
        ids: a list of image ids, one a line; None: all that are there.

    Raises:
        BadFile: none is there, or not one of each listed image.
    """
    found = find_label_maps(folder)
    need_some(found, folder)
    if ids is None:
        return dict(sorted(found.items()))
    chosen = sorted(listed(ids, found))
    if missing := [image_id for image_id in chosen if image_id not in found]:
        problem = f"{len(missing)} of {len(chosen)} label maps missing: {some(missing)}"
        raise BadFile(folder, problem, f"make them, or take them out of {ids}")
    return {image_id: found[image_id] for image_id in chosen}
