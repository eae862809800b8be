"""Unfinished work of a stage: a locked folder named by all that the result depends on.

DVC deletes a stage's outs before it runs and records, when it ends, what params.yaml and the code
say then. So partial work lies in ``work/<stage>/<key>-<fingerprint>/``, where a killed stage finds
it again; and the fingerprint (parameters, code, inputs) is taken a second time before anything is
published, so that a stage during which something was edited publishes nothing.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.code_digest import code_digest
from pipeline.errors import BadInput
from pipeline.params_file import read_yaml

PUBLISHED = "published"  # the file that marks a folder whose outs have all been published


@dataclass(frozen=True)
class Work:
    """A stage's folder while it is held. Made by `open_work`."""

    root: Path
    stage: str
    key: str
    sections: tuple[str, ...]
    inputs: tuple[Path, ...]
    started_with: dict[str, str]
    folder: Path

    def publish(self, outs: dict[Path, Path]) -> None:
        """Bring finished files and folders to their places, each whole or not at all.

        Args:
            outs: {file or folder in `folder`: its place}. What was there before is replaced.

        Raises:
            BadInput: parameters, code or inputs changed since the stage began. Nothing is
                published; the message names what changed.
        """
        now = depends_on(self.root, self.stage, self.key, self.sections, self.inputs)
        changed = sorted(
            name
            for name in now.keys() | self.started_with.keys()
            if now.get(name) != self.started_with.get(name)
        )
        if changed:
            raise BadInput(
                f"{self.stage} {self.key}: while it ran, these changed: {', '.join(changed)}. "
                "Nothing was published. Run again for the new state, or put the old one back "
                "and run again: the work done is kept"
            )
        for source, place in outs.items():
            _copy_whole(source, place)
        (self.folder / PUBLISHED).touch()
        for other in self.folder.parent.glob(f"{self.key}-*"):
            if other != self.folder and (other / PUBLISHED).exists():
                shutil.rmtree(other)


@contextmanager
def open_work(
    root: Path, *, stage: str, key: str, sections: list[str], inputs: list[Path]
) -> Iterator[Work]:
    """Hold the folder of unfinished work of a stage, new or as a killed run left it.

    Args:
        root: the project folder.
        stage: as in dvc.yaml.
        key: the entry of params.yaml that the stage works for.
        sections: sections of params.yaml in which `key` is part of what the result depends on.
        inputs: files and folders, below root, that the result depends on.

    Raises:
        BadInput: an input is missing, another process holds the work of this stage and key, or the
            code was edited since the stage `code` listed it.
    """
    _check_code(root, stage, key)
    started_with = depends_on(root, stage, key, tuple(sections), tuple(inputs))
    text = json.dumps(started_with, indent=1, sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = root / "work" / stage / f"{key}-{fingerprint}"
    with _lock(folder.parent / f"{key}.lock", f"{stage} {key}"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "depends_on.json").write_text(text)
        yield Work(root, stage, key, tuple(sections), tuple(inputs), started_with, folder)


def _check_code(root: Path, stage: str, key: str) -> None:
    """The code is as the stage `code` listed it, so that what was imported is what DVC records.

    An edit while a stage still imports its modules would be neither in them nor noticed later.
    """
    listed = root / "data" / "code" / f"{stage}.txt"
    if not listed.is_file():  # stages run by hand, without DVC
        return
    before = {line.split("  ", 1)[1]: line for line in listed.read_text().splitlines()}
    now = {name: f"{digest}  {name}" for name, digest in code_digest(root, stage).items()}
    if changed := sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n)):
        raise BadInput(
            f"{stage} {key}: since {listed} was written, this code changed: {', '.join(changed)}. "
            "Run `dvc repro` again (or `python -m pipeline code`)"
        )


def depends_on(
    root: Path, stage: str, key: str, sections: tuple[str, ...], inputs: tuple[Path, ...]
) -> dict[str, str]:
    """All that a stage's result depends on, as it is now: {what: its value or digest}."""
    params = read_yaml(root / "params.yaml")
    state = {f"code {name}": digest for name, digest in code_digest(root, stage).items()}
    for section in sections:
        entry = (params.get(section) or {}).get(key)
        state |= _flat(f"params.yaml {section}.{key}", entry)
    for path in inputs:
        relative = path.relative_to(root) if path.is_absolute() else path
        state[f"input {relative.as_posix()}"] = content_digest(root / relative)
    return state


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder.

    Raises:
        BadInput: nothing is there.
    """
    if path.is_file():
        status = path.stat()
        return _file_digest(path, status.st_size, status.st_mtime_ns)
    if not path.is_dir():
        raise BadInput(f"{path}: not there; `dvc repro` makes it")
    lines = [
        f"{content_digest(file)} {file.relative_to(path).as_posix()}\n"
        for file in sorted(path.rglob("*"))
        if file.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@cache
def _file_digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for name in value for k, v in _flat(f"{prefix}.{name}", value[name]).items()}
    return {prefix: json.dumps(value)}


@contextmanager
def _lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file exclusively; the system lets go of it however the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BadInput(
                f"{path}: process {file.read().strip()} is at work on {what}; "
                "wait until it has ended, or end it, and run again"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _copy_whole(source: Path, place: Path) -> None:
    """Copy a file or folder so that `place` is complete whenever it is there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    if source.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        shutil.rmtree(place, ignore_errors=True)
    else:
        shutil.copyfile(source, partial)
    os.replace(partial, place)
