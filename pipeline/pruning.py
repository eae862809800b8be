"""Clearing work/: folders of unfinished and of finished work that nobody is at."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.params import SECTIONS
from pipeline.params_file import load_params
from pipeline.work import PUBLISHED


def prune(root: Path, *, all: bool) -> list[Path]:
    """Remove work folders that are finished, or whose run is no longer in params.yaml.

    A folder that a process holds is left alone.

    Args:
        root: the project folder.
        all: unfinished work of active runs and of studies too.

    Returns:
        The folders removed.

    Raises:
        BadInput: params.yaml is not valid, so that nobody knows which runs are active.
    """
    params = load_params(root / "params.yaml")
    active = {name for section in SECTIONS for name in getattr(params, section)}
    removed = []
    for folder, lock, is_active in _folders(root / "work", active):
        with _free(lock) as free:
            if free and (all or (folder / PUBLISHED).exists() or not is_active):
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


def _folders(work: Path, active: set[str]) -> Iterator[tuple[Path, Path, bool]]:
    """Every folder of work with its lock file, and whether somebody may want it.

    work/<stage>/<key>-<fingerprint>/ is locked by work/<stage>/<key>.lock,
    work/studies/<study>/<commit>/ by the file <commit>.lock beside it.
    """
    for folder in sorted(p for p in work.glob("*/*-*") if p.is_dir()):
        if folder.parent.name != "studies":
            key = folder.name.rpartition("-")[0]
            yield folder, folder.with_name(f"{key}.lock"), key in active
    for folder in sorted(p for p in work.glob("studies/*/*") if p.is_dir()):
        commit = folder.name.removeprefix(".").removesuffix(".partial")
        yield folder, folder.with_name(f"{commit}.lock"), True


@contextmanager
def _free(lock: Path) -> Iterator[bool]:
    """Whether nobody holds the lock file; if so it is held inside the block."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
