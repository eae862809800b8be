"""The files of a dataset, as the stage `fetch` found them: names, sizes, digests."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from pipeline.datasets.processes import processors
from pipeline.datasets.tree import Tree
from pipeline.errors import BadInput

COMPARED_BY_SIZE = (".jpg", ".jpeg")  # images; annotations are compared byte by byte


def write_manifest(manifest: Path, tree: Tree, dataset: str) -> None:
    """List all files that are read, with sizes and digests, by their published names.

    Raises:
        BadInput: files of listed images are missing; names the first and counts them.
    """
    files = listed_files(tree, dataset)
    digests = _digests(files)
    facts = {
        name: {"size": path.stat().st_size, "sha256": digests[name]} for name, path in files.items()
    }
    partial = manifest.with_name(f".{manifest.name}.partial")
    partial.write_text(json.dumps({"dataset": dataset, "files": facts}, indent=1) + "\n")
    os.replace(partial, manifest)


def listed_files(tree: Tree, dataset: str) -> dict[str, Path]:
    """Every file of a tree that is read, by its published name, sorted.

    Raises:
        BadInput: files of listed images are missing; names the first and counts them.
    """
    found, missing = dict(tree.lists), []
    for image_id in tree.ids():
        files = tree.files_of(image_id)
        for name, path in files.must.items():
            if path.is_file():
                found[name] = path
            else:
                missing.append(path)
        found |= {name: path for name, path in files.may.items() if path.is_file()}
    if missing:
        first = ", ".join(str(path) for path in missing[:3])
        raise BadInput(
            f"{dataset}: the copy is incomplete: {len(missing)} files of listed images are "
            f"missing: {first}{', ...' if len(missing) > 3 else ''}. Copy or unpack it again"
        )
    return dict(sorted(found.items()))


def check_manifest(manifest: Path, tree: Tree, dataset: str) -> None:
    """The copy is what `fetch` listed: the same files of the same sizes, annotations byte by byte.

    Raises:
        BadInput: names the first file at fault.
    """
    remedy = f"run `dvc repro -f fetch@{dataset}` if that is meant, else put the old state back"
    listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    found = listed_files(tree, dataset)
    for name in sorted(listed.keys() ^ found.keys()):
        what = "gone" if name in listed else "new"
        raise BadInput(f"{found.get(name, name)}: {what} since {manifest} was written; {remedy}")
    for name, path in found.items():
        size, before = path.stat().st_size, listed[name]["size"]
        if size != before:
            raise BadInput(
                f"{path}: {size} bytes, but {before} when {manifest} was written; {remedy}"
            )
    compared = {n: p for n, p in found.items() if p.suffix.lower() not in COMPARED_BY_SIZE}
    for name, digest in _digests(compared).items():
        if digest != listed[name]["sha256"]:
            raise BadInput(f"{found[name]}: changed since {manifest} was written; {remedy}")


def _digests(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of each file; in threads, for hashing lets go of the interpreter."""
    with ThreadPoolExecutor(processors()) as threads:
        digests = threads.map(_digest, files.values())
        bar = tqdm(digests, desc="listing", unit="file", total=len(files), disable=None)
        return dict(zip(files, bar, strict=True))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
