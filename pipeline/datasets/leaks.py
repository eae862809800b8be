"""No model is measured on images that it, or a model it started from, was trained on.

The case that it is for: 4,629 of the 5,732 images on which instance segmentation is measured
(SBD's instance_val) are in VOC's train_aug, so a semantic network trained on train_aug must not be
used there. Images are told apart by their ids, which VOC2012, SBD and PASCAL-Context share; what is
000033 in VOC2007 is 2007_000033 in VOC2012.

Implements: Wu2016 Sec. 3.2 (trained on 5,623 images, measured on 5,732 others).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.datasets.places import home
from pipeline.errors import BadInput
from pipeline.params import Params, trained_runs
from pipeline.params_datasets import CocoDataset, Dataset, MixtureDataset
from pipeline.tables import read_table

SHARED_IDS = ("voc2012", "voc2007", "sbd", "context")
ID_OF_2007 = re.compile(r"\d{6}")
COCO_ID = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})")


def refuse_leaks(root: Path, params: Params, *, model: str) -> None:
    """Check every evaluation for which `model` is trained, as far as its dataset is prepared.

    Raises:
        BadInput: names the evaluation, both lists and how many images they share.
    """
    for name, entry in params.evaluations.items():
        behind = [*trained_for(params, entry.model), *trained_for(params, entry.localization)]
        if model in behind and _prepared(root, entry.dataset):
            refuse_leak(root, params, name)


def refuse_leak(root: Path, params: Params, evaluation: str) -> None:
    """Check one evaluation, whose dataset is prepared. Raises BadInput as `refuse_leaks`."""
    entry = params.evaluations[evaluation]
    measured = _images(root, params, entry.dataset, entry.split)
    trained = trained_runs(params)
    behind = [*trained_for(params, entry.model), *trained_for(params, entry.localization)]
    for model in behind:
        run = trained[model]
        if not _prepared(root, run.dataset):
            continue
        if shared := measured & _images(root, params, run.dataset, run.split):
            raise BadInput(
                f"evaluations.{evaluation}: {model} is trained on {len(shared)} of the "
                f"{len(measured)} images it would be measured on ({run.dataset} {run.split} and "
                f"{entry.dataset} {entry.split}; one is {min(shared)[1]}). Train it on images "
                "apart from these, as sbd's instance_train is from its instance_val"
            )


def trained_for(params: Params, model: str) -> Iterator[str]:
    """A model and those it started from, one after another, as far as they are trained here."""
    runs = trained_runs(params)
    seen: set[str] = set()
    while model in runs and model not in seen:
        seen.add(model)
        yield model
        model = runs[model].init


def _prepared(root: Path, dataset: str) -> bool:
    return _table(root, dataset).is_file()


def _table(root: Path, dataset: str) -> Path:
    return root / "data" / "prepared" / dataset / "images.parquet"


def _images(root: Path, params: Params, dataset: str, split: str) -> set[tuple[str, str]]:
    """The images of a split as (whose ids they are, id)."""
    entry, images = params.datasets[dataset], read_table(_table(root, dataset), "images")
    ids = images.loc[images["split"] == split, "image_id"]
    return {identity(dataset, entry, image_id) for image_id in ids}


def identity(dataset: str, entry: Dataset, image_id: str) -> tuple[str, str]:
    """Whose ids these are, and the id: equal for the same image, however it is called."""
    of_coco = COCO_ID.fullmatch(image_id)
    if of_coco and isinstance(entry, CocoDataset | MixtureDataset):
        return "coco", of_coco[1]
    if isinstance(entry, MixtureDataset):
        entry = entry.masks
    if entry.kind == "sample":  # the same pictures, however many are drawn
        return entry.kind, image_id
    if entry.kind not in SHARED_IDS:
        return home(dataset, entry), image_id
    return "voc", f"2007_{image_id}" if ID_OF_2007.fullmatch(image_id) else image_id
