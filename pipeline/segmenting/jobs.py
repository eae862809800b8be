"""`segment`: the networks that are asked for, loaded, and the folder, taken."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoints import Loaded, is_localizer, load_model
from pipeline.crf.dense import PUBLISHED
from pipeline.datasets.processes import processors
from pipeline.errors import BadInput, some
from pipeline.exports.truth import category_numbers
from pipeline.figures import colours_of
from pipeline.instance_finding import Finder, asked
from pipeline.machine import chosen_device
from pipeline.params import Views
from pipeline.segmenting.files import Places, claim
from pipeline.segmenting.label_maps import LabelJob
from pipeline.segmenting.objects import ObjectJob
from pipeline.segmenting.settings import OF_NETWORK, ObjectSettings, Settings
from pipeline.tiles import segmenter_of


@dataclass(frozen=True)
class Folder:
    """The folder that is written to."""

    out: Path
    overlay: bool
    again: bool  # emptied first, also of what other settings made


def job_of(
    settings: Settings, model: Path, boxes: Path | None, folder: Folder, device: str
) -> LabelJob | ObjectJob:
    """Load the networks, and take the folder.

    Args:
        model, boxes: the files of the semantic and the localisation network.
        device: as `chosen_device` takes it; "" for the GPU, where there is one.

    Raises:
        BadInput: a file is no such network, they know different categories, or the folder is not
            to be had. Nothing is changed then.
    """
    chosen = chosen_device(device)
    loaded = load_model(model, chosen)
    if is_localizer(loaded[1]):
        raise BadInput(
            f"{model}: a localisation network, which knows boxes and no categories; name a "
            "semantic one first, and this one after --instances"
        )
    if settings.objects is None or boxes is None:
        return _label_job(settings, loaded, model, folder, chosen)
    return _object_job(settings.views, settings.objects, loaded, (model, boxes), folder, chosen)


def _label_job(
    settings: Settings, loaded: Loaded, file: Path, folder: Folder, device: torch.device
) -> LabelJob:
    crf = None if settings.crf is None else PUBLISHED[settings.crf]
    segmenter = segmenter_of(*loaded, views=settings.views, device=device, tile=settings.tile)
    categories, places = loaded[1]["categories"], Places(folder.out)
    told = {
        **_digest(file, "model", "sha256"),
        **asdict(settings.views),
        **({} if crf is None else {"crf": asdict(crf)}),
        "tile": settings.tile,
        "categories": _coloured(categories),
    }
    claim(places, told, folder.again)
    workers = loaded[1]["run"]["threads"] or processors()
    colours = colours_of(categories)
    return LabelJob(segmenter, colours, len(categories), places, folder.overlay, crf, workers)


def _object_job(
    views: Views,
    objects: ObjectSettings,
    loaded: Loaded,
    files: tuple[Path, Path],
    folder: Folder,
    device: torch.device,
) -> ObjectJob:
    of_boxes = load_model(files[1], device)
    _need_pair(files, loaded[1], of_boxes[1])
    rule = objects.rule
    if rule.vote_stride == OF_NETWORK:
        rule = replace(rule, vote_stride=loaded[0].stride)
    semantic, localizer = asked(*loaded, device), asked(*of_boxes, device)
    categories, places = tuple(loaded[1]["categories"]), Places(folder.out)
    numbers = category_numbers(categories)
    told = {
        **_digest(files[0], "model", "sha256"),
        **_digest(files[1], "localization", "localization_sha256"),
        **asdict(views),
        "instances": asdict(rule),
        "categories": _coloured(categories, numbers),
    }
    claim(places, told, folder.again, min_score=objects.min_score)
    finder = Finder(categories, rule, views, semantic, localizer)
    workers = max(semantic.threads, localizer.threads)
    colours = colours_of(categories)
    return ObjectJob(finder, numbers, colours, places, objects.min_score, workers)


def _need_pair(
    files: tuple[Path, Path], saved: dict[str, Any], saved_boxes: dict[str, Any]
) -> None:
    """BadInput unless the second is a localisation network of the categories of the first."""
    file, box_file = files
    if not is_localizer(saved_boxes):
        raise BadInput(
            f"--instances {box_file}: a semantic network, which knows no boxes; name a "
            "localisation network"
        )
    one, other = saved["categories"], saved_boxes["categories"]
    if one != other:
        raise BadInput(
            f"--instances {box_file}: knows other categories ({some(other)}) than {file} "
            f"({some(one)}); name two networks that were trained on the same ones"
        )


def _digest(file: Path, name: str, digest: str) -> dict[str, str]:
    return {name: file.name, digest: hashlib.sha256(file.read_bytes()).hexdigest()}


def _coloured(
    categories: Sequence[str], published: Mapping[int, int] | None = None
) -> list[dict[str, Any]]:
    """Number, name and colour of each category; its id in results too, where that is given."""
    colours = colours_of(categories)
    return [
        {"number": number, "name": name, "colour": colours[number].tolist()}
        | ({"category_id": published[number]} if published and number in published else {})
        for number, name in enumerate(categories)
    ]
