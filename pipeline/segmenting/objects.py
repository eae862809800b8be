"""`segment --instances`: the objects of any photographs, by two trained networks.

    OUT/labels/<image>.png      the category of each pixel, by the same probabilities
    OUT/instances/<image>.json  the objects of an image, by falling score: COCO results JSON
    OUT/instances.json          those of all images, in the order of their paths
    OUT/images.json             these images and the categories: COCO instances JSON
    OUT/overlays/<image>.png    the photograph under its objects, where they are asked for

The first two of an image are its own, and not made again: what was stopped goes on. The others are
made of them, so it ends with the same bytes. H x W pixels.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.datasets.coco_results import InstanceTruth, TruthImage, read_results
from pipeline.datasets.form import PNG_START
from pipeline.errors import BadFile, BadInput
from pipeline.instance_finding import Finder, Maps, bytes_of_finding, label_map_of
from pipeline.instances import Instances
from pipeline.masks import rle_box
from pipeline.object_overlays import Drawn, named_overlay
from pipeline.photographs import read_photograph
from pipeline.places import write_text
from pipeline.post_processing import in_two_steps
from pipeline.segmenting.files import Photograph, Places, save_png

DRAWN_BYTES = 12  # of drawing an overlay, by pixel

Entry = dict[str, Any]  # an object, as COCO's results have it


@dataclass(frozen=True)
class ObjectJob:
    """What is made of every image."""

    finder: Finder
    numbers: Mapping[int, int]  # of the categories that have objects: their ids in results
    colours: np.ndarray  # (256, 3) uint8, by category number, of label maps
    places: Places
    min_score: float | None  # of objects in overlays; None: no overlays
    workers: int  # threads that find and draw objects


@dataclass(frozen=True)
class Begun:
    """What the first step found: nothing of an image that is finished."""

    maps: Maps | None = None  # where objects are to be found
    image: np.ndarray | None = None  # (H, W, 3) uint8, where an overlay is drawn


# --- image by image -------------------------------------------------------------------------------
def find_objects(
    job: ObjectJob, photographs: Sequence[Photograph]
) -> Iterator[tuple[Photograph, Future[bool]]]:
    """Write what is not there of each image. Gives whether its objects were found now."""

    def begin(photograph: Photograph) -> Begun:
        name, places = photograph.name, job.places
        new = not (places.labels(name).exists() and places.objects(name).exists())
        draw = job.min_score is not None and (new or not places.drawn(name).exists())
        if not new and not draw:
            return Begun()
        _need_text(photograph)
        image = read_photograph(photograph.path, photograph.notes)
        return Begun(_maps(job, image) if new else None, image if draw else None)

    return in_two_steps(
        photographs, begin, partial(_finish, job), size=_bytes_of, workers=job.workers
    )


def _need_text(photograph: Photograph) -> None:
    try:
        photograph.name.encode("utf-8")
    except UnicodeEncodeError:
        problem = "its name is not UTF-8, and JSON cannot hold it"
        raise BadFile(photograph.path, problem, "rename it") from None


def _maps(job: ObjectJob, image: np.ndarray) -> Maps:
    try:
        return job.finder.maps(image, None)
    except BadInput as problem:  # which speaks of keys of params.yaml
        text = str(problem).replace("views.scales", "--scales")
        raise BadInput(text.replace("an instances.vote_stride", "a --vote-stride")) from problem


def _bytes_of(begun: Begun) -> int:
    maps = 0 if begun.maps is None else bytes_of_finding(begun.maps)
    return maps + (0 if begun.image is None else DRAWN_BYTES * begun.image[..., 0].size)


def _finish(job: ObjectJob, photograph: Photograph, begun: Begun) -> bool:
    """The second step: objects, and the files. The label map is there when the objects are."""
    name, image, maps = photograph.name, begun.image, begun.maps
    if maps is not None:
        entries = _entries(job, name, maps.size, job.finder.instances(maps))
        indices = Image.fromarray(label_map_of(maps))
        indices.putpalette(job.colours.tobytes())
        save_png(job.places.labels(name), indices)
        _write_list(job.places.objects(name), entries)
    elif image is not None:
        if _size(job.places.labels(name)) != image.shape[:2]:
            problem = f"{photograph.path} has another size, it was changed since"
            remedy = "remove this file, or give --again"
            raise BadFile(job.places.labels(name), problem, remedy)
        entries = _read_entries(job, name)
    if image is not None:
        save_png(job.places.drawn(name), _overlay(job, image, entries))
    return maps is not None


def _overlay(job: ObjectJob, image: np.ndarray, entries: list[Entry]) -> Image.Image:
    assert job.min_score is not None
    shown = [entry for entry in entries if entry["score"] >= job.min_score]
    drawn, texts, names = [], [], _things(job)
    for entry in shown:
        x, y, w, h = entry["bbox"]
        drawn.append(Drawn(entry["segmentation"]["counts"], (x, y, x + w, y + h)))
        texts.append(f"{names[entry['category_id']]} {entry['score']:.2f}")
    return named_overlay(image, drawn, texts)


# --- COCO's forms ---------------------------------------------------------------------------------
def write_all(job: ObjectJob, photographs: Sequence[Photograph]) -> int:
    """Write the images and categories, and the objects of all these images in one file.

    Returns:
        how many objects there are.

    Raises:
        BadFile: those of an image are not readable; the one file stays as it was.
    """
    images = [
        {"id": one.name, "file_name": one.name + one.path.suffix, "height": h, "width": w}
        for one in photographs
        for h, w in [_size(job.places.labels(one.name))]
    ]
    categories = [{"id": number, "name": name} for number, name in _things(job).items()]
    contents = {"images": images, "annotations": [], "categories": categories}
    write_text(job.places.images(), json.dumps(contents, indent=1) + "\n")
    entries = (entry for one in photographs for entry in _read_entries(job, one.name))
    return _write_list(job.places.all_objects(), entries)


def _write_list(path: Path, entries: Iterable[Entry]) -> int:
    """Write a JSON list, an entry a line, whole or not at all. Returns how many there are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count = path.with_name(f".{path.name}.partial"), 0
    with partial.open("w", encoding="utf-8") as file:
        file.write("[")
        for entry in entries:
            file.write((",\n" if count else "\n") + json.dumps(entry))
            count += 1
        file.write("\n]\n")
    os.replace(partial, path)
    return count


def _things(job: ObjectJob) -> dict[int, str]:
    """The names of the categories that have objects, by their ids in results."""
    return {published: job.finder.categories[n] for n, published in job.numbers.items()}


def _entries(job: ObjectJob, name: str, size: tuple[int, int], objects: Instances) -> list[Entry]:
    return [
        _entry(name, job.numbers[category], score, (x0, y0, x1, y1), size, rle)
        for category, score, (x0, y0, x1, y1), rle in zip(
            objects.categories.tolist(),
            objects.scores.tolist(),
            objects.boxes.tolist(),
            objects.rles,
            strict=True,
        )
    ]


def _entry(
    name: str,
    category: int,
    score: float,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    rle: str,
) -> Entry:
    x0, y0, x1, y1 = box
    return {
        "image_id": name,
        "category_id": category,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": {"size": list(size), "counts": rle},
        "score": score,
    }


def _read_entries(job: ObjectJob, name: str) -> list[Entry]:
    """The objects of a finished image. BadFile where the file was damaged or edited."""
    path, size = job.places.objects(name), _size(job.places.labels(name))
    known: dict[int | str, TruthImage] = {name: TruthImage(name, name, size, [])}
    try:
        results = read_results(path, InstanceTruth(job.places.images(), _things(job), known))
    except BadFile as error:
        raise BadFile(path, error.problem, "remove this file, or give --again") from error
    columns = (results.categories, results.scores.tolist(), results.texts)
    return [
        _entry(name, category, score, rle_box(rle, *size), size, rle)
        for category, score, rle in zip(*columns, strict=True)
    ]


def _size(path: Path) -> tuple[int, int]:
    """H, W of a label map. BadFile where it is damaged."""
    with path.open("rb") as file:
        start = file.read(24)
    if len(start) < 24 or not start.startswith(PNG_START):
        raise BadFile(path, "not a readable PNG", "remove this file, or give --again")
    return int.from_bytes(start[20:24]), int.from_bytes(start[16:20])
