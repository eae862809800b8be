"""A dataset with masks, and the images of others with nothing but their boxes."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.datasets.form import Sample
from pipeline.datasets.tree import ImageFiles, Problems, Tree
from pipeline.errors import BadInput


def mix(trees: Mapping[str, Tree], *, split: str) -> Tree:
    """One Tree of several: the first with masks, of the others the boxes.

    Its splits are those of the first, `boxes`: all images of the others, and `mixed`: `split` of
    the first and `boxes`. Implements: Dai2015 Sec. 5.1 (masks of VOC with boxes of COCO and VOC07).

    Raises:
        BadInput: other categories than the first's, an image id twice, an unknown split.
    """
    (first_name, first), *others = trees.items()
    owner = dict.fromkeys(first.ids(), first_name)
    for name, tree in others:
        if tree.categories != first.categories:
            raise BadInput(
                f"{name} has {len(tree.categories)} categories, {first_name} has "
                f"{len(first.categories)} others; only datasets with the same ones can be mixed"
            )
        for image_id in tree.ids():
            if owner.setdefault(image_id, name) != name:
                raise BadInput(f"image {image_id} is in {owner[image_id]} and in {name}")
    if split not in first.splits:
        raise BadInput(
            f"{first_name} has no split {split!r}; choose one of: {', '.join(first.splits)}"
        )
    boxed = [image_id for _, tree in others for image_id in tree.ids()]
    readers = {name: tree.read for name, tree in trees.items()}

    def record(image_id: str) -> tuple[str, Any]:
        return owner[image_id], trees[owner[image_id]].record(image_id)

    def files_of(image_id: str) -> ImageFiles:
        return trees[owner[image_id]].files_of(image_id)

    return Tree(
        categories=first.categories,
        splits={**first.splits, "boxes": boxed, "mixed": [*first.splits[split], *boxed]},
        official=first.official,
        lists={name: path for tree in trees.values() for name, path in tree.lists.items()},
        files_of=files_of,
        record=record,
        read=partial(_read, readers, first_name),
        notes=tuple(f"{name}: {note}" for name, tree in trees.items() for note in tree.notes),
    )


def _read(
    readers: Mapping[str, Any], with_masks: str, record: tuple[str, Any], problems: Problems
) -> Sample:
    name, inner = record
    sample: Sample = readers[name](inner, problems)
    if name == with_masks:
        return sample
    objects = sample.objects and tuple(replace(o, mask_rle=None) for o in sample.objects)
    return replace(sample, label_map=None, objects=objects)
