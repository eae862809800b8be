"""What a copy of a dataset holds, and everything that is wrong with it."""

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from pipeline.categories import IGNORE
from pipeline.datasets import bsds, coco
from pipeline.datasets.form import JPEG_START, Sample, read_image
from pipeline.datasets.places import home, told_place
from pipeline.datasets.processes import in_processes, processors
from pipeline.datasets.readers import PlaceOf, open_dataset
from pipeline.datasets.tree import Place, Problems, Tree
from pipeline.errors import BadFile, BadInput
from pipeline.params_datasets import (
    Bsds500Dataset,
    CityscapesDataset,
    CocoDataset,
    ContextDataset,
    Dataset,
    FolderDataset,
    SampleDataset,
    SbdDataset,
    Voc2007Dataset,
    Voc2012Dataset,
)

CHUNK = 32  # images that are sent to a process at a time

# What `inspect NAME` reads; "coco" takes what years there are.
KINDS: dict[str, Dataset] = {
    "voc2012": Voc2012Dataset("voc2012"),
    "voc2007": Voc2007Dataset("voc2007"),
    "sbd": SbdDataset("sbd"),
    "context": ContextDataset("context"),
    "cityscapes": CityscapesDataset("cityscapes", instances="maps"),
    "coco2014": CocoDataset("coco", year=2014, categories="coco", others="background"),
    "coco2017": CocoDataset("coco", year=2017, categories="coco", others="background"),
    "bsds500": Bsds500Dataset("bsds500"),
    "folder": FolderDataset("folder", val_fraction=0.2, seed=0),
    "sample": SampleDataset("sample", train=1, extra=0, more=0, val=1),
}
COCO_YEARS = (2014, 2017)


@dataclass(frozen=True)
class Facts:
    """What one image adds to the counts; small, for it comes from another process."""

    image: bool  # it is there and whole
    label_map: bool
    masks: int
    boxes: Mapping[int, int]  # category: boxes
    crowds: int
    drawings: int  # of people, in BSDS500
    problems: tuple[BadFile, ...]


@dataclass
class Inspection:
    """The findings.

    In `splits`, images and semantic_masks count images, instance_masks and boxes objects. Crowds
    are among these in COCO, which publishes them with boxes; the groups of Cityscapes are not.
    """

    dataset: str
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)  # boxes of each in the whole copy
    notes: list[str] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)

    def as_json(self) -> str:
        return json.dumps(vars(self), indent=1) + "\n"  # in ASCII, whatever files are called

    def as_text(self) -> str:
        """Tables for people, the problems last."""
        names = ["images", "semantic_masks", "instance_masks", "boxes"]
        rows = [["split", *names]]
        rows += [[s, *(str(counts[n]) for n in names)] for s, counts in self.splits.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows] if self.splits else []
        if self.categories:
            boxes = ", ".join(f"{name} {count}" for name, count in self.categories.items())
            lines.append(f"boxes: {boxes}")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {p['path']}: {p['problem']}" for p in self.problems]
        lines.append(f"{len(self.problems) or 'no'} problem{'s' * (len(self.problems) != 1)}")
        return "\n".join(lines)


def inspect(dataset: str, folder: Path, project: Path) -> Inspection:
    """Look through the copy of a dataset in a folder, all images and annotations of it.

    Args:
        dataset: one of `KINDS`, or coco.
        folder: as people have it; for VOC the one that contains VOC2012/.
        project: where local.yaml may tell of other places (SBD, VOC2010), if they are not in
            `folder` too.

    Raises:
        BadInput: an unknown dataset, or no such folder.
    """
    if dataset != "coco" and dataset not in KINDS:
        raise BadInput(f"no dataset {dataset!r}; choose one of: coco, {', '.join(KINDS)}")
    if not os.path.isdir(folder):
        raise BadInput(f"{folder}: no such folder; name the folder that holds the dataset")

    def place_of(wanted: str) -> Place:
        own = dataset == "coco" or wanted == home(dataset, KINDS[dataset])
        told = None if own else told_place(project, wanted)
        return Place(wanted, told or folder)

    problems = Problems(collect=True)
    try:
        tree = _open(dataset, place_of, problems)
    except OSError as error:  # a folder that may not be read
        tree = Tree.nothing(())
        path = Path(error.filename or folder)
        problems.found.append(
            BadFile(path, f"not readable ({error.strerror})", "let this user read it")
        )
    return look_through(dataset, tree, problems)


def _open(dataset: str, place_of: PlaceOf, problems: Problems) -> Tree:
    if dataset == "coco":
        return coco.open_tree(
            Place("coco2017", place_of("coco").folder),
            problems,
            years=COCO_YEARS,
            categories="coco",
            others="background",
        )
    return open_dataset(dataset, KINDS[dataset], place_of, problems)


def look_through(dataset: str, tree: Tree, problems: Problems) -> Inspection:
    """The findings on a tree; `problems` are those that its reader met when it opened it."""
    facts = dict(_all_facts(tree))
    found = Inspection(dataset, notes=list(tree.notes))
    for split, listed in tree.splits.items():
        its = [facts[image_id] for image_id in listed]
        found.splits[split] = {
            "images": sum(f.image for f in its),
            "semantic_masks": sum(f.label_map for f in its),
            "instance_masks": sum(f.masks for f in its),
            "boxes": sum(sum(f.boxes.values()) for f in its),
        }
        official = tree.official.get(split, len(listed))
        if official != len(listed):
            found.notes.append(f"{split}: {len(listed)} images; officially {official}")
        if crowds := sum(f.crowds for f in its):
            told = "of the boxes are of crowds" if tree.counts_crowds else "groups are not counted"
            found.notes.append(f"{split}: {crowds} {told}")
        if people := [f.drawings for f in its if f.drawings]:
            most = f"at least {min(people)} and at most {max(people)} of one"
            found.notes.append(f"{split}: {sum(people)} drawings of {len(people)} images, {most}")
    boxes = sum((Counter(f.boxes) for f in facts.values()), Counter[int]())
    found.categories = {name: boxes[c] for c, name in enumerate(tree.categories) if boxes[c]}
    faults = [*problems.found, *(fault for f in facts.values() for fault in f.problems)]
    found.problems = [{"path": str(f.path), "problem": f"{f.problem}; {f.remedy}"} for f in faults]
    return found


def _all_facts(tree: Tree) -> Iterator[tuple[str, Facts]]:
    ids = tree.ids()
    starts = range(0, len(ids), CHUNK)

    def work() -> Iterator[list[tuple[str, Any, Mapping[str, Path]]]]:
        for start in starts:
            chunk = ids[start : start + CHUNK]
            yield [(i, tree.record(i), tree.files_of(i).must) for i in chunk]

    with tqdm(total=len(ids), desc="inspecting", unit="image", disable=None) as progress:
        for facts in in_processes(
            partial(_facts_of_each, tree.read, tree.counts_crowds),
            work(),
            min(processors(), len(starts)),
        ):
            yield from facts
            progress.update(len(facts))


def _facts_of_each(read: Any, counts_crowds: bool, work: list) -> list[tuple[str, Facts]]:
    return [
        (image_id, facts_of(read, record, files, counts_crowds)) for image_id, record, files in work
    ]


def facts_of(read: Any, record: Any, files: Mapping[str, Path], counts_crowds: bool) -> Facts:
    """Read one image and its annotation; whatever is wrong is among the facts.

    Args:
        read, record, counts_crowds: of a Tree.
        files: those that must be there, by published name.
    """
    problems = Problems(collect=True)
    sample: Sample | None = None
    image = False
    try:
        sample = read(record, problems)
        read_image(files[sample.path])
        if warning := jpeg_warning(files[sample.path]):
            raise BadFile(
                files[sample.path], f"damaged in the middle ({warning})", "copy the file anew"
            )
        image = True
    except BadFile as fault:
        problems.found.append(fault)
    except Exception as error:  # a reader lets none out; if one does, the check still goes on
        path = next(iter(files.values()), Path())
        said = f"its annotation cannot be read ({type(error).__name__}: {error})"
        problems.found.append(BadFile(path, said, "look at all files of this image"))
    objects = (sample.objects if sample else None) or ()
    counted = [o for o in objects if counts_crowds or not o.crowd]
    return Facts(
        image=image,
        label_map=sample is not None and sample.label_map is not None,
        masks=sum(o.mask_rle is not None for o in counted),
        boxes=Counter(o.category for o in counted if o.category != IGNORE),
        crowds=sum(o.crowd for o in objects),
        drawings=bsds.count_drawings(record.drawings) if isinstance(record, bsds.Files) else 0,
        problems=tuple(problems.found),
    )


def jpeg_warning(path: Path) -> str:
    """What libjpeg finds strange in a JPEG that it decodes all the same; empty if nothing.

    It tells so on stderr and nowhere else, and only OpenCV lets it.
    """
    data = np.fromfile(path, np.uint8)
    if data[:2].tobytes() != JPEG_START:
        return ""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as told:
        os.dup2(told.fileno(), 2)
        try:
            cv2.imdecode(data, cv2.IMREAD_COLOR)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        told.seek(0)
        lines = told.read().decode("utf-8", "replace").splitlines()
    return next((line for line in lines if "JPEG" in line), "")
