"""The names and the splits of somebody's own folder (see folder.py)."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.categories import IGNORE
from pipeline.datasets.folder_files import list_some, names_in
from pipeline.datasets.lists import check_apart, is_image_id, read_ids
from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile, need_file

BACKGROUND, NO_LABEL = "background", "ignore"  # words of categories.txt
NO_SPLITS = {"categories", "readme", "license", "licence"}  # other .txt files
EVERY_LIST = "every .txt beside categories.txt lists a split"


@dataclass(frozen=True)
class Names:
    """What categories.txt says."""

    categories: tuple[str, ...]
    lines: int
    label_of: bytes  # the label of each of the 256 values of a mask; 255 = ignored

    @property
    def has_background(self) -> bool:
        return self.categories[0] == BACKGROUND


# --- the names ------------------------------------------------------------------------------------
def read_names(path: Path) -> Names:
    """The categories of a folder. BadFile: missing, not text, a name is empty or there twice."""
    if not os.path.lexists(path):
        remedy = f"write it: one name a line, first what the value 0 means ({BACKGROUND}, mostly)"
        raise BadFile(path, "not there", remedy)
    need_file(path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(path, f"not readable ({error})", "save it as plain text, UTF-8") from error
    while lines and not lines[-1]:
        lines.pop()
    categories = [name for name in lines if name != NO_LABEL]
    for number, name in enumerate(lines):
        if not name:
            remedy = f"name the value {number}; `{NO_LABEL}` if it has no label"
            raise BadFile(path, f"line {number} (from 0) is empty", remedy)
        if name != NO_LABEL and name in lines[:number]:
            raise BadFile(path, f"{name!r} is there twice", "give each category a name of its own")
    if len(categories) < 2 or len(lines) > IGNORE:
        problem = f"{len(categories)} categories in {len(lines)} lines"
        raise BadFile(path, problem, f"write 2 categories or more, one a line, up to {IGNORE}")
    label_of = np.full(256, IGNORE, np.uint8)
    for value, name in enumerate(lines):
        label_of[value] = IGNORE if name == NO_LABEL else categories.index(name)
    return Names(tuple(categories), len(lines), label_of.tobytes())


# --- the splits -----------------------------------------------------------------------------------
def find_lists(base: Path) -> dict[str, Path]:
    """The lists of splits by their names: every .txt but categories.txt, a readme and a licence.

    Raises:
        BadFile: the folder cannot be listed.
    """
    paths = [base / name for name in names_in(base) if name.endswith(".txt")]
    return {path.stem: path for path in paths if path.stem.lower() not in NO_SPLITS}


def listed_splits(
    lists: Mapping[str, Path], images: Mapping[str, Path], problems: Problems, notes: list[str]
) -> dict[str, list[str]]:
    """The images of each list.

    Raises:
        BadFile: through `problems`, an unusable list, no such image, an image to train on and test.
    """
    splits = {}
    for split, path in lists.items():
        with problems.noted():
            if not is_image_id(split) or split == "none":
                remedy = f"rename it with letters, digits, _ and -; {EVERY_LIST}"
                raise BadFile(path, f"{split!r} can be no name of a split", remedy)
            ids = read_ids(path, problems)
            splits[split] = [image_id for image_id in ids if image_id in images]
            if absent := [image_id for image_id in ids if image_id not in images]:
                problem = f"no such images in images/: {list_some(absent)}"
                raise BadFile(path, problem, f"correct the list; {EVERY_LIST}")
    check_apart(splits, lists, problems)
    unlisted = sorted({*images} - {i for ids in splits.values() for i in ids})
    if lists and unlisted:
        notes.append(f"in no list, not used: {list_some(unlisted)}")
    return splits


def folder_splits(top: Path, images: Mapping[str, Path], notes: list[str]) -> dict[str, list[str]]:
    """The folders of images/ as splits, if one of them is called train."""
    splits: dict[str, list[str]] = {}
    outside = []
    for image_id in sorted(images):
        first, *rest = images[image_id].relative_to(top).parts
        if rest and is_image_id(first):
            splits.setdefault(first, []).append(image_id)
        else:
            outside.append(image_id)
    if "train" not in splits:
        return {}
    if outside:
        notes.append(f"in no folder of images/ that can be a split, not used: {list_some(outside)}")
    return splits


def drawn_splits(
    ids: list[str], val_fraction: float, seed: int, notes: list[str]
) -> dict[str, list[str]]:
    """Train and val, drawn.

    Each image's place follows from its id and the seed alone: the first 8 bytes of the SHA-256 of
    "<seed>/<image id>", as a fraction of 2^64, are below `val_fraction` for val. So images that are
    added or taken out move no others, and the share of val is val_fraction on average only.
    """
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for image_id in ids:
        digest = hashlib.sha256(f"{seed}/{image_id}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        splits["val" if place < val_fraction else "train"].append(image_id)
    notes.append(
        f"no lists: {len(splits['train'])} images drawn for train, {len(splits['val'])} for val "
        f"(val_fraction {val_fraction:g}, seed {seed})"
    )
    return {split: chosen for split, chosen in splits.items() if chosen}
