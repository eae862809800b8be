"""Stage `predict`: the label map of every image of an evaluation's split, and its objects."""

import io
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from pipeline.checkpoints import Loaded, is_localizer, load_model
from pipeline.crf.dense import DenseCrf
from pipeline.datasets.leaks import refuse_leak
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import processors
from pipeline.errors import BadInput
from pipeline.instance_finding import (
    Asked,
    Finder,
    Maps,
    asked,
    bytes_of_finding,
    label_map_of,
    maps_of,
)
from pipeline.instances import Instances, best_first
from pipeline.machine import chosen_device
from pipeline.masks import encode_index_png
from pipeline.object_maps import need_object_masks
from pipeline.params import Evaluation, Params
from pipeline.post_processing import bytes_of_crf, crf_label_map, crf_of, in_two_steps
from pipeline.tables import read_arrow, write_table
from pipeline.tiles import Segmenter, segmenter_of
from pipeline.work import open_work

Scores = tuple[np.ndarray, np.ndarray]  # an image; its label map, or before a CRF probabilities
Outcomes = Iterator[tuple[str, Future[None]]]  # the id of each image, and what became of it


def predict(root: Path, params: Params, evaluation: str) -> None:
    """Write data/predictions/<evaluation>/: what networks find in the images of a split.

        semantic/<image_id>.png     label maps at the images' own size, where there is a semantic
                                    network
        instances.parquet           where objects are found: those of all images, best first (see
                                    `best_first`)
        maps/<image_id>.npz         where objects are found by boxes: see `_write_maps`; of the
                                    first image of the split alone

    An image that does not fit in memory goes in tiles, and a line on stderr says so; where a CRF or
    objects follow, which take images whole, it is refused. These of several images go in threads.
    """
    settings = params.evaluations[evaluation]
    prepared = root / "data" / "prepared" / settings.dataset
    networks = [name for name in (settings.model, settings.localization) if name != "none"]
    models = {name: root / "data" / "models" / f"{name}.pt" for name in networks}
    device = chosen_device()

    with open_work(
        root,
        stage="predict",
        key=evaluation,
        sections=["evaluations"],
        inputs=[prepared, *models.values()],
    ) as work:
        refuse_leak(root, params, evaluation)
        data, folder = Prepared(root, settings.dataset), work.folder / "predictions"
        loaded = {name: load_model(path, device) for name, path in models.items()}
        need_fit_networks(f"evaluations.{evaluation}", settings, data, loaded)
        if settings.instances == "none":
            _predict_label_maps(data, evaluation, settings, loaded[settings.model], device, folder)
        else:
            ready = {name: asked(*one, device) for name, one in loaded.items()}
            _predict_instances(data, evaluation, settings, ready, work.folder)
        for partial in folder.rglob(".*.partial"):
            partial.unlink()
        work.publish({folder: root / "data" / "predictions" / evaluation})


def need_fit_networks(
    where: str, settings: Evaluation, data: Prepared, loaded: Mapping[str, Loaded]
) -> None:
    """BadInput unless each network is of its kind, and knows the dataset's categories.

    Args:
        where: begins the message.
        loaded: by name, as `load_model` gives them.
    """
    for name, (_, saved) in loaded.items():
        if tuple(saved["categories"]) != data.categories:
            raise BadInput(
                f"{where}: {name} knows {len(saved['categories'])} categories, {settings.dataset} "
                f"has {len(data.categories)} others; evaluate it on a dataset with the categories "
                "it was trained on"
            )
        if is_localizer(saved) != (name == settings.localization):
            kind = "no localisation" if name == settings.localization else "no semantic"
            raise BadInput(f"{where}: {name} is {kind} network; name one, or train {name} anew")


def _go_through(evaluation: str, outcomes: Outcomes, total: int, before: int) -> None:
    """Take the outcomes of all images, `before` of `total` done by a run that was killed."""
    with tqdm(desc=evaluation, total=total, unit="image", disable=None) as bar:
        bar.update(before)
        for image_id, outcome in outcomes:
            try:
                outcome.result()
            except BadInput as problem:
                told = f"evaluations.{evaluation}: image {image_id}: {problem}"
                raise BadInput(told) from problem
            bar.update()


def _write_whole(path: Path, contents: bytes) -> None:
    partial = path.with_name(f".{path.stem}.partial")
    partial.write_bytes(contents)
    os.replace(partial, path)


# --- label maps -----------------------------------------------------------------------------------
def _predict_label_maps(
    data: Prepared,
    evaluation: str,
    settings: Evaluation,
    loaded: Loaded,
    device: torch.device,
    folder: Path,
) -> None:
    """Write semantic/ below `folder`."""
    segmenter = segmenter_of(*loaded, views=settings.views, device=device)
    crf = crf_of(settings.crf)
    workers = 0 if crf is None else loaded[1]["run"]["threads"] or processors()
    maps = folder / "semantic"
    maps.mkdir(parents=True, exist_ok=True)
    ids = data.ids(settings.split)
    left = [i for i in ids if not (maps / f"{i}.png").exists()]  # by a run that was killed
    outcomes = _label_maps(data, left, segmenter, crf, maps, workers)
    _go_through(evaluation, outcomes, len(ids), len(ids) - len(left))
    if segmenter.tiled:
        print(f"{segmenter.tiled} images went in tiles of {segmenter.tile}", file=sys.stderr)


def _label_maps(
    data: Prepared,
    ids: list[str],
    segmenter: Segmenter,
    crf: DenseCrf | None,
    folder: Path,
    workers: int,
) -> Outcomes:
    """Write the label map of each image."""

    def scores(image_id: str) -> Scores:
        image, notes = data.image(image_id), list[str]()
        if crf is not None:
            return image, segmenter.probabilities(image)
        label_map = segmenter.label_map(image, notes)
        for note in notes:
            tqdm.write(f"{image_id}: {note}", file=sys.stderr)
        return image, label_map

    def write(image_id: str, found: Scores) -> None:
        image, scored = found
        label_map = scored if crf is None else crf_label_map(scored, image, crf)
        _write_whole(folder / f"{image_id}.png", encode_index_png(label_map))

    return in_two_steps(
        ids,
        scores,
        write,
        size=lambda found: bytes_of_crf(len(data.categories), found[0][..., 0].size),
        workers=workers,
    )


# --- objects --------------------------------------------------------------------------------------
def _predict_instances(
    data: Prepared, evaluation: str, settings: Evaluation, ready: dict[str, Asked], work: Path
) -> None:
    """Write predictions/ in the folder of work, the objects of each image by itself before."""
    assert settings.instances != "none"
    semantic, localizer = ready.get(settings.model), ready.get(settings.localization)
    finder = Finder(data.categories, settings.instances, settings.views, semantic, localizer)
    workers = max((one.threads for one in ready.values()), default=processors())
    parts, folder = work / "instances", work / "predictions"
    parts.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    ids = data.ids(settings.split)
    left = [i for i in ids if not (parts / f"{i}.parquet").exists()]  # by a run that was killed
    outcomes = _objects(data, left, finder, parts, folder, drawn=ids[0], workers=workers)
    _go_through(evaluation, outcomes, len(ids), len(ids) - len(left))
    kind = "predicted_instances"
    rows = pa.concat_tables([read_arrow(parts / f"{i}.parquet", kind) for i in ids])
    support = np.concatenate([np.load(parts / f"{i}.npy") for i in ids])
    rows = rows.take(best_first(rows["score"].to_numpy(), support))
    write_table(folder / "instances.parquet", kind, rows.combine_chunks().to_pandas())


def _objects(
    data: Prepared,
    ids: list[str],
    finder: Finder,
    parts: Path,
    folder: Path,
    *,
    drawn: str,
    workers: int,
) -> Outcomes:
    """Write what is found in each image; its objects last, so that all is there when they are."""
    if finder.asks_truth:
        need_object_masks(data, ids)
    label_maps, maps_to_draw = folder / "semantic", folder / "maps"
    if finder.semantic is not None:
        label_maps.mkdir(exist_ok=True)

    def write(image_id: str, maps: Maps) -> None:
        found = finder.instances(maps)
        if finder.semantic is not None:
            png = encode_index_png(label_map_of(maps))
            _write_whole(label_maps / f"{image_id}.png", png)
        if maps.boxes is not None and image_id == drawn:
            maps_to_draw.mkdir(exist_ok=True)
            _write_maps(maps_to_draw / f"{image_id}.npz", maps, maps.boxes)
        _write_array(parts / f"{image_id}.npy", found.support)
        write_table(parts / f"{image_id}.parquet", "predicted_instances", _columns(image_id, found))

    return in_two_steps(
        ids, partial(maps_of, finder, data), write, size=bytes_of_finding, workers=workers
    )


def _columns(image_id: str, found: Instances) -> dict[str, Any]:
    corners = dict(zip(("x0", "y0", "x1", "y1"), found.boxes.T, strict=True))
    return {
        "image_id": [image_id] * len(found.rles),
        "category": found.categories,
        "score": found.scores,
        **corners,
        "mask_rle": found.rles,
    }


def _write_array(path: Path, array: np.ndarray) -> None:
    contents = io.BytesIO()
    np.save(contents, array)
    _write_whole(path, contents.getvalue())


def _write_maps(path: Path, maps: Maps, boxes: np.ndarray) -> None:
    """What the objects of an image are found in, as an archive of arrays.

    probabilities (C, h, w) float16, boxes (T, 4, h, w) float32, things (T,) and stride: see `Maps`.
    """
    archive = io.BytesIO()
    np.savez_compressed(
        archive,
        probabilities=maps.probabilities.astype(np.float16),
        boxes=boxes,
        things=maps.things,
        stride=maps.stride,
    )
    _write_whole(path, archive.getvalue())
