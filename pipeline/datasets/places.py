"""What this machine is told: where the files of a dataset lie, and whether to keep them decoded."""

import os
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from pipeline.errors import BadInput
from pipeline.params_datasets import (
    CocoDataset,
    ContextDataset,
    Dataset,
    FolderDataset,
    MixtureDataset,
    SampleDataset,
    Voc2012Dataset,
)


def home(name: str, entry: Dataset) -> str:
    """The place of a dataset's own files; several entries of params.yaml may share one."""
    match entry:
        case SampleDataset() | FolderDataset() | MixtureDataset():
            return name
        case CocoDataset():
            return f"coco{entry.year}"
    return entry.kind


def read_places(name: str, entry: Dataset) -> list[str]:
    """Every place in which a dataset's files may lie, its home first."""
    match entry:
        case MixtureDataset():
            parts = (entry.masks, *entry.boxes)
            return [place for part in parts for place in read_places(home(name, part), part)]
        case Voc2012Dataset():
            return [home(name, entry), "sbd"]
        case ContextDataset():
            return [home(name, entry), "voc2010"]
    return [home(name, entry)]


def dataset_root(root: Path, dataset: str) -> Path:
    """The folder that holds a dataset's published tree.

    Args:
        root: the project folder.

    Raises:
        BadInput: the place that the user told is not there, or local.yaml is malformed.
    """
    told = told_place(root, dataset)
    return root / "data" / "raw" / dataset if told is None else told


def told_place(root: Path, dataset: str) -> Path | None:
    """Where the user says that a copy of the dataset lies; None where nothing is said.

    The environment variable PIPELINE_DATA_<DATASET> goes before ``data: {<dataset>: PATH}`` in
    local.yaml, whose relative paths start at the project folder.

    Raises:
        BadInput: the told place is no folder, or local.yaml is malformed.
    """
    variable, local = f"PIPELINE_DATA_{dataset.upper()}", root / "local.yaml"
    place: str | None = os.environ.get(variable) or None
    source = variable
    if place is None and local.exists():
        place, source = _read_local(local, dataset), f"{local}, data.{dataset}"
    if place is None:
        return None
    folder = root / Path(place).expanduser()
    if not folder.is_dir():
        raise BadInput(
            f"{source} says {place}, which is no folder; correct the path or take it out"
        )
    return folder


def wants_raw_cache(root: Path) -> bool:
    """Whether trainings on this machine read decoded images (see raw_cache.py); by default not.

    The environment variable PIPELINE_RAW_CACHE (1 or 0) goes before ``raw_cache: true`` in
    local.yaml.

    Raises:
        BadInput: another value, or local.yaml is malformed.
    """
    local = root / "local.yaml"
    said: object = os.environ.get("PIPELINE_RAW_CACHE") or None
    if said is not None:
        source, wanted = "PIPELINE_RAW_CACHE", {"0": False, "1": True}.get(str(said))
    else:
        said = _load(local).get("raw_cache", False)
        source, wanted = f"{local}, raw_cache", said if isinstance(said, bool) else None
    if wanted is None:
        raise BadInput(f"{source} is {said!r}; write true or false (1 or 0 in the environment)")
    return wanted


def _read_local(local: Path, dataset: str) -> str | None:
    places = _load(local).get("data") or {}
    if not isinstance(places, dict) or not isinstance(places.get(dataset, ""), str):
        raise BadInput(f"{local}: write places as `data: {{{dataset}: /path/to/folder}}`")
    return places.get(dataset)


def _load(local: Path) -> dict[str, Any]:
    """All that local.yaml says; nothing where it is not there."""
    if not local.exists():
        return {}
    try:
        content = YAML(typ="safe", pure=True).load(local.read_text(encoding="utf-8")) or {}
    except (MarkedYAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{local}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{local}: write places as `data: {{DATASET: /path/to/folder}}`")
    return content
