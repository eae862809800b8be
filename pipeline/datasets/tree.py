"""A copy of a dataset on disk, as its reader finds it: lists read, images and annotations not yet.

Every reader has `open_tree(...) -> Tree`; all that works on datasets works on Trees.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.datasets.form import Sample
from pipeline.errors import BadFile


class Problems:
    """What is wrong with a copy: the first fault is raised, or all of them are collected."""

    def __init__(self, *, collect: bool) -> None:
        self.collect = collect
        self.found: list[BadFile] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Collect the BadFile that is raised inside and go on after the block, or let it pass."""
        try:
            yield
        except BadFile as fault:
            if not self.collect:
                raise
            self.found.append(fault)


@dataclass(frozen=True)
class Place:
    """A folder with published files. Their names begin with the place's name, wherever it lies."""

    name: str
    folder: Path

    def name_of(self, path: Path) -> str:
        """The published name of a file of this place: ``voc2012/VOC2012/JPEGImages/x.jpg``."""
        return f"{self.name}/{path.relative_to(self.folder).as_posix()}"


@dataclass(frozen=True)
class ImageFiles:
    """The files of one image, by published name."""

    must: Mapping[str, Path]  # without these the copy is incomplete
    may: Mapping[str, Path] = field(default_factory=dict)  # read where they are there


@dataclass(frozen=True)
class Tree:
    """One dataset, found."""

    categories: tuple[str, ...]  # names in the order of our numbers
    splits: Mapping[str, list[str]]  # image ids in the order of the lists
    official: Mapping[str, int]  # published number of images of a split, where it is known
    lists: Mapping[str, Path]  # files that belong to no single image, by published name
    files_of: Callable[[str], ImageFiles]
    record: Callable[[str], Any]  # all that `read` needs to know of an image; small, picklable
    read: Callable[[Any, Problems], Sample]  # raises BadFile where there is no readable image
    notes: tuple[str, ...] = ()  # what a user should know about this copy
    counts_crowds: bool = False  # whether crowds are published as objects, with boxes

    @classmethod
    def nothing(cls, categories: tuple[str, ...]) -> "Tree":
        """What is left of a copy in which nothing can be found."""

        def unknown(image_id: str) -> Any:
            raise KeyError(image_id)

        def unreadable(record: Any, problems: Problems) -> Sample:
            raise KeyError(record)

        return cls(categories, {}, {}, {}, files_of=unknown, record=unknown, read=unreadable)

    def ids(self) -> list[str]:
        """Every image of the splits once, sorted."""
        return sorted({image_id for ids in self.splits.values() for image_id in ids})
