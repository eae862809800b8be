"""The files of `segment`: photographs, checkpoints, and the folder that is written to."""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.datasets.folder_files import IMAGE_SUFFIXES, list_files
from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile, BadInput, some
from pipeline.masks import FAST
from pipeline.places import write_text

SETTINGS = "segment.json"
OF_OVERLAYS = "min_score"  # the one setting that nothing but overlays depends on
SUFFIXES = IMAGE_SUFFIXES | {".gif"}


@dataclass(frozen=True)
class Photograph:
    """An image that was given."""

    name: str  # its path below the folder without ending
    path: Path
    notes: list[str] = field(default_factory=list)  # for the user


@dataclass(frozen=True)
class Places:
    """What lies where in the folder that is written to."""

    out: Path

    def labels(self, name: str) -> Path:
        """The label map of an image."""
        return self.out / "labels" / f"{name}.png"

    def drawn(self, name: str) -> Path:
        """The overlay of an image."""
        return self.out / "overlays" / f"{name}.png"

    def objects(self, name: str) -> Path:
        """The objects of an image: COCO results JSON."""
        return self.out / "instances" / f"{name}.json"

    def all_objects(self) -> Path:
        """The objects of all images: COCO results JSON."""
        return self.out / "instances.json"

    def images(self) -> Path:
        """What the images and categories of these objects are: COCO instances JSON."""
        return self.out / "images.json"

    def made(self) -> list[Path]:
        """All files and folders that there may be."""
        folders = [self.out / name for name in ("labels", "overlays", "instances")]
        return [*folders, self.all_objects(), self.images()]

    def anything(self) -> bool:
        """Whether any file was made."""
        return any(path.is_file() or any(path.rglob("*.*")) for path in self.made())


def images_in(folder: Path, out: Path) -> tuple[dict[str, Path], list[Path], list[str]]:
    """The images below a folder by path without ending, clashes, and the names of other files.

    Images that differ in their endings alone, whose label maps would have one name, are clashes.
    What lies in `out` is none of all these. Raises BadInput.
    """
    if not folder.is_dir():
        raise BadFile(folder, "no folder", "name a folder with images")
    if out.exists() and not out.is_dir():
        raise BadFile(out, "is there and no folder", "name another place for --out")
    own, given = out.resolve(), folder.resolve()
    if own == given or own in given.parents:
        problem = f"holds the images of {folder}, which may not lie in what is written"
        raise BadFile(out, problem, "name another folder for --out")
    found: dict[str, list[Path]] = {}
    others: list[str] = []
    for path in list_files(folder, Problems(collect=False), []):
        if own in path.resolve().parents:
            continue
        name = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES:
            others.append(name.as_posix())
            continue
        found.setdefault(name.with_suffix("").as_posix(), []).append(path)
    if not found:
        endings = ", ".join(sorted(SUFFIXES))
        raise BadFile(folder, f"no image in it ({endings})", "name a folder with images")
    images = {stem: paths[0] for stem, paths in found.items() if len(paths) == 1}
    return images, [path for paths in found.values() if len(paths) > 1 for path in paths], others


def model_file(model: str) -> Path:
    """The checkpoint that is named by its path, or by its run. Raises BadInput."""
    path = Path(model)
    if path.suffix or len(path.parts) != 1:
        return path
    models = Path("data") / "models"
    file = models / f"{model}.pt"
    if not file.is_file():
        there = some(sorted(path.stem for path in models.glob("*.pt"))) or "none"
        problem = f"not there; name a trained run (here: {there}) or the file of a checkpoint"
        raise BadInput(f"{file}: {problem}")
    return file


def claim(
    places: Places, settings: dict[str, Any], again: bool, *, min_score: float | None = None
) -> None:
    """Take a folder: new, empty, or begun with these settings; emptied, with `again`.

    Args:
        min_score: of objects in overlays. Overlays of another one are removed; with None, those
            that are there stay as they are.

    Raises:
        BadInput: it is not to be had, and nothing is changed.
    """
    out, told = places.out, places.out / SETTINGS
    stale = places.made() if again else []
    if told.is_file() and not again:
        before = _settings_of(told)
        shown = before.pop(OF_OVERLAYS, None)
        other = before != json.loads(json.dumps(settings))  # as they are read
        if other and places.anything():
            problem = "label maps of another network or of other settings are there"
            raise BadFile(told, problem, "name a new folder, or give --again to remove them")
        if min_score is None:
            min_score = shown
        elif min_score != shown:
            stale = [out / "overlays"]
    elif not told.is_file() and out.is_dir() and any(out.iterdir()):
        raise BadFile(out, "not empty, and not begun by this command", "name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for path in stale:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if min_score is not None:
        settings = {**settings, OF_OVERLAYS: min_score}
    write_text(told, json.dumps(settings, indent=1) + "\n")


def _settings_of(told: Path) -> dict[str, Any]:
    """What the file of settings says. BadFile where it is damaged."""
    try:
        settings = json.loads(told.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        remedy = "name a new folder, or give --again to make anew what is there"
        raise BadFile(told, "damaged: it does not tell how the folder was begun", remedy)
    return settings


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    picture.save(partial, format="PNG", compress_level=FAST)
    os.replace(partial, path)
