"""Files that a command is asked to write: a place is looked at before the work, not after it."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import BadInput


def need_places(paths: Sequence[Path | None]) -> None:
    """BadInput unless a file can be written at each path, and no two are one.

    A file that is there will be replaced; a link stays, what it leads to is replaced.
    """
    seen = set()
    for path in filter(None, paths):
        place = os.path.realpath(path)
        folder = os.path.dirname(place)
        if place in seen:
            raise BadInput(f"{path}: asked for twice; give each file a name of its own")
        try:
            os.lstat(os.path.join(folder, f".{os.path.basename(place)}.partial"))  # as it is made
        except FileNotFoundError:
            pass
        except OSError as error:
            problem = f"{path}: no place for a file ({error.strerror})"
            raise BadInput(f"{problem}; name another place, or a shorter name") from error
        if os.path.lexists(place) and not os.path.isfile(place):
            raise BadInput(f"{path}: is there and no regular file; name a file")
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
            raise BadInput(
                f"{path}: no place for a file; name one in a folder that can be written to"
            )
        seen.add(place)


def write_text(path: Path, text: str) -> None:
    """Write a file (UTF-8): it appears whole or not at all. OSError if it cannot be written."""
    place = os.path.realpath(path)
    partial = os.path.join(os.path.dirname(place), f".{os.path.basename(place)[:200]}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, place)
