"""Lists of image ids: those of a copy, and the published ones that are kept in published_lists/."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile, need_file

IMAGE_ID = re.compile(r"[A-Za-z0-9_-]+")
PUBLISHED = Path(__file__).parent / "published_lists"


def is_image_id(text: str) -> bool:
    """Whether a text can be a file's name everywhere: letters, digits, _ and - only."""
    return IMAGE_ID.fullmatch(text) is not None


def read_ids(path: Path, problems: Problems) -> list[str]:
    """The image ids of a list, one a line, in order and once each.

    Some lists have the image's and the mask's path for the id: the first one's stem is taken.

    Raises:
        BadFile: the list is missing or empty, repeats an id, or holds something that is none.
    """
    ids: dict[str, None] = {}
    with problems.noted():
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip():
                continue
            with problems.noted():
                image_id = _id_of(path, number, line)
                if image_id in ids:
                    raise BadFile(path, f"line {number}: {image_id} again", "list each image once")
                ids[image_id] = None
        if not ids:
            raise BadFile(path, "no image in it", "write the image ids there, one a line")
    return list(ids)


def published(name: str) -> list[str]:
    """A list that is kept here, such as ``sbd_instance_val``; its README.md has the sources."""
    return (PUBLISHED / f"{name}.txt").read_text(encoding="ascii").split()


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. BadFile if it cannot be read as UTF-8."""
    need_file(path)
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(path, f"not a readable list ({error})", "copy it anew") from error


def _id_of(path: Path, number: int, line: str) -> str:
    entries = line.split()
    first = PurePosixPath(entries[0])
    if len(entries) == 1 and len(first.parts) > 1 and not first.suffix:
        image_id = entries[0]  # a slash in what should be an id
    else:
        image_id = first.stem if first.suffix else first.name
    if not is_image_id(image_id):
        raise BadFile(path, f"line {number}: {entries[0]!r} is no image id", "correct the list")
    return image_id


APART = (("train", "val"), ("train", "test"), ("trainval", "test"))  # share no image


def check_apart(
    splits: Mapping[str, list[str]], paths: Mapping[str, Path], problems: Problems
) -> None:
    """Lists to learn from and to measure on share no image.

    Raises:
        BadFile: the second list of a pair, for the images that are in the first too.
    """
    for first, second in APART:
        if first in splits and second in splits:
            with problems.noted():
                if shared := sorted(set(splits[first]) & set(splits[second])):
                    raise BadFile(
                        paths[second],
                        f"{len(shared)} of its images are in {paths[first].name} too, "
                        f"{shared[0]} among them",
                        "an image to be measured on must not be trained on: correct the lists",
                    )
