"""What the command line says when it cannot go on.

Exit codes of every command: 0 done, 1 found problems it was asked to look for,
2 bad input, 3 a file must be placed by hand.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMED = 8  # files or images that a message names one by one


class BadInput(Exception):
    """Something given is wrong: the message names it and says what to do. Exit code 2."""


class BadFile(BadInput):
    """A file of a dataset is missing, damaged or contradicts another."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(path, problem, remedy)
        self.path, self.problem, self.remedy = path, problem, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


def need_file(path: Path) -> None:
    """BadFile unless a regular file is there: opening a pipe or a device would wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise BadFile(path, "not there", "the copy is incomplete, or the name is wrong") from None
    except OSError as error:
        raise BadFile(path, f"not readable ({error})", "copy it anew") from error
    if stat.S_ISDIR(mode):
        raise BadFile(path, "a folder, not a regular file", "name a file")
    if not stat.S_ISREG(mode):
        raise BadFile(path, "not a regular file", "put the file there")


def some(names: Sequence[Any]) -> str:
    """Names for a message: all of a few, the first of many and how many more there are."""
    shown = ", ".join(str(name) for name in names[:NAMED])
    more = len(names) - NAMED
    return f"{shown} and {more} more" if more > 0 else shown


class PlaceByHand(Exception):
    """A file cannot be fetched: the message says which, from where, to which path. Exit code 3."""
