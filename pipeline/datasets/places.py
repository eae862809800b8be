"""Where the files of a dataset lie on this machine."""

import os
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from pipeline.errors import BadInput


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


def _read_local(local: Path, dataset: str) -> str | None:
    try:
        content = YAML(typ="safe", pure=True).load(local.read_text(encoding="utf-8")) or {}
    except (MarkedYAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{local}: not valid YAML: {error}") from error
    places = (content.get("data") or {}) if isinstance(content, dict) else None
    if not isinstance(places, dict) or not isinstance(places.get(dataset, ""), str):
        raise BadInput(f"{local}: write places as `data: {{{dataset}: /path/to/folder}}`")
    return places.get(dataset)
