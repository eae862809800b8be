"""Which reader opens which kind of dataset, and in which places its files lie."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.categories import SAMPLE, VOC
from pipeline.datasets import bsds, cityscapes, coco, context, folder, sbd, voc
from pipeline.datasets.mixture import mix
from pipeline.datasets.places import dataset_root, home, told_place
from pipeline.datasets.tree import Place, Problems, Tree
from pipeline.params_datasets import (
    Bsds500Dataset,
    CityscapesDataset,
    CocoDataset,
    ContextDataset,
    Dataset,
    FolderDataset,
    MixtureDataset,
    SampleDataset,
    SbdDataset,
    Voc2007Dataset,
    Voc2012Dataset,
)

PlaceOf = Callable[[str], Place]


def places(root: Path, name: str, entry: Dataset) -> PlaceOf:
    """Where each place is for this dataset: what is told for its own name goes before its home.

    Args:
        root: the project folder.
        name: the dataset's name in params.yaml.
    """

    def place_of(wanted: str) -> Place:
        own = wanted == home(name, entry) and told_place(root, name) is not None
        chosen = name if own else wanted
        return Place(chosen, dataset_root(root, chosen))

    return place_of


def open_dataset(name: str, entry: Dataset, place_of: PlaceOf, problems: Problems) -> Tree:
    """Find a dataset's files and read its lists.

    Args:
        place_of: where a place is.

    Raises:
        BadFile: a folder or list is missing or faulty; says what to put where.
    """
    own = home(name, entry)
    match entry:
        case SampleDataset(more=more):
            tree = voc.open_tree(place_of(own), problems, sbd_place=None, categories=SAMPLE)
            return tree if more == 0 else _set_apart(tree, more)
        case Voc2012Dataset():
            return voc.open_tree(place_of(own), problems, sbd_place=place_of("sbd"), categories=VOC)
        case Voc2007Dataset():
            return voc.open_tree_2007(place_of(own), problems)
        case SbdDataset():
            return sbd.open_tree(place_of(own), problems)
        case ContextDataset():
            labels = place_of(own)
            beside = (labels.folder / "VOC2010").is_dir()
            return context.open_tree(labels, labels if beside else place_of("voc2010"), problems)
        case CityscapesDataset():
            return cityscapes.open_tree(place_of(own), problems, instances=entry.instances)
        case CocoDataset():
            return coco.open_tree(
                place_of(own),
                problems,
                years=(entry.year,),
                categories=entry.categories,
                others=entry.others,
            )
        case Bsds500Dataset():
            return bsds.open_tree(place_of(own), problems)
        case FolderDataset():
            return folder.open_tree(
                place_of(own), problems, val_fraction=entry.val_fraction, seed=entry.seed
            )
        case MixtureDataset():
            parts = [(home(name, part), part) for part in (entry.masks, *entry.boxes)]
            trees = {n: open_dataset(n, part, place_of, problems) for n, part in parts}
            return mix(trees, split=entry.split)


def _set_apart(tree: Tree, more: int) -> Tree:
    """The sample's tree with its last images in split `mixed` only, not in train_aug."""
    mixed = tree.splits["train_aug"]
    return replace(tree, splits={**tree.splits, "train_aug": mixed[:-more], "mixed": mixed})
