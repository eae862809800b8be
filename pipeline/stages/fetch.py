"""Stage `fetch`: bring a dataset to this machine and list its files."""

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.datasets import voc
from pipeline.datasets.archives import ARCHIVES
from pipeline.datasets.download import obtain_all
from pipeline.datasets.manifest import write_manifest
from pipeline.datasets.places import home, told_place
from pipeline.datasets.readers import open_dataset, places
from pipeline.datasets.sample import write_sample
from pipeline.datasets.tree import Problems, Tree
from pipeline.errors import BadInput, PlaceByHand
from pipeline.params import Params
from pipeline.params_datasets import (
    ContextDataset,
    Dataset,
    FolderDataset,
    MixtureDataset,
    SampleDataset,
    Voc2012Dataset,
)
from pipeline.work import open_work


def fetch(root: Path, params: Params, dataset: str) -> None:
    """Draw or download a dataset, or find the copy that the user has; write its manifest.

    A copy that the user told of is read where it lies and never written to.

    Raises:
        BadInput: the copy is incomplete, or a downloaded file is not the published one.
        PlaceByHand: a file cannot be downloaded; says which file goes where.
    """
    manifest = root / "data" / "raw" / f"{dataset}.manifest.json"
    if dataset not in params.datasets:
        raise BadInput(f"no dataset {dataset!r}; choose one of: {', '.join(params.datasets)}")
    entry = params.datasets[dataset]
    with open_work(root, stage="fetch", key=dataset, sections=["datasets"], inputs=[]) as work:
        bring(root, dataset, entry)
        tree = open_dataset(dataset, entry, places(root, dataset, entry), Problems(collect=False))
        _check_train_aug(root, dataset, entry, tree)
        for note in tree.notes:
            print(f"{dataset}: {note}", file=sys.stderr)
        listed = work.folder / "manifest.json"
        write_manifest(listed, tree, dataset)
        work.publish({listed: manifest})


# --- what there is to bring -----------------------------------------------------------------------
def bring(root: Path, dataset: str, entry: Dataset) -> None:
    """Have the dataset's files on this machine. Told copies are looked at, nothing is added.

    Raises:
        BadInput: a told place is not what it should be.
        PlaceByHand: after all that can be had is there; says of every other file where it goes.
    """
    if isinstance(entry, MixtureDataset):
        parts = (entry.masks, *entry.boxes)
        _do_all([partial(bring, root, home(dataset, part), part) for part in parts])
        return
    raw, own = root / "data" / "raw", home(dataset, entry)
    told = told_place(root, dataset) or told_place(root, own)
    if isinstance(entry, SampleDataset):
        if told is None:
            draw_anew(raw / own, entry)
        return
    if isinstance(entry, FolderDataset):
        if told is None and not (raw / own).is_dir():
            raise BadInput(
                f"{raw / own}: not there. Name the folder of your images in local.yaml "
                f"(`data: {{{own}: /path}}`) or in PIPELINE_DATA_{own.upper()}"
            )
        return
    wanted = [own] if told is None else []
    wanted += [p for p in _beside(root, dataset, entry) if told_place(root, p) is None]
    _do_all([partial(obtain_all, ARCHIVES[place], raw / place) for place in wanted])


def _do_all(steps: list[Callable[[], None]]) -> None:
    """Every step; what has to be placed by hand is told in the end, together."""
    by_hand = []
    for step in steps:
        try:
            step()
        except PlaceByHand as error:
            by_hand.append(str(error))
    if by_hand:
        raise PlaceByHand("\n".join(by_hand))


def _beside(root: Path, dataset: str, entry: Dataset) -> list[str]:
    """Other places whose files the dataset needs and does not have beside its own."""
    place_of = places(root, dataset, entry)
    if isinstance(entry, Voc2012Dataset):
        place = place_of("voc2012")
        if told_place(root, place.name):
            voc.find_lists(place, 2012)  # a wrong folder is told before anything is downloaded
        has_masks = voc.find_sbd(place, place_of("sbd")) or voc.has_aug_masks(place)
        return [] if has_masks else ["sbd"]
    if isinstance(entry, ContextDataset):
        has_images = any((place_of(p).folder / "VOC2010").is_dir() for p in ("context", "voc2010"))
        return [] if has_images else ["voc2010"]
    return []


def _check_train_aug(root: Path, dataset: str, entry: Dataset, tree: Tree) -> None:
    """BadInput for VOC2012 without SBD's masks."""
    if not isinstance(entry, SampleDataset | Voc2012Dataset) or "train_aug" in tree.splits:
        return
    place_of = places(root, dataset, entry)
    raise BadInput(
        f"{place_of(home(dataset, entry)).folder}: VOC2012 without SBD's masks. Unpack "
        f"benchmark.tgz so that {voc.sbd.INNER}/ lies in {place_of('sbd').folder}, or name the "
        "folder that holds it in PIPELINE_DATA_SBD; or add VOC2012/SegmentationClassAug/ and "
        "VOC2012/ImageSets/Segmentation/train_aug.txt"
    )


def draw_anew(folder: Path, entry: SampleDataset) -> None:
    """Draw the sample; `folder` is replaced by it when it is complete."""
    if folder.is_symlink():
        raise BadInput(f"{folder}: a link, which is not written through; remove it and run again")
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_sample(unfinished, entry.train, entry.extra + entry.more, entry.val)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
