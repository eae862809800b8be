"""Stage `predict`: the label map of every image of an evaluation's split."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.checkpoints import load_model
from pipeline.crf.dense import DenseCrf
from pipeline.datasets.leaks import refuse_leak
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import processors
from pipeline.errors import BadInput
from pipeline.machine import chosen_device
from pipeline.masks import encode_index_png
from pipeline.params import Params
from pipeline.post_processing import bytes_of_crf, crf_label_map, crf_of, in_two_steps
from pipeline.tiles import Segmenter, segmenter_of
from pipeline.work import open_work

Scores = tuple[np.ndarray, np.ndarray]  # an image; its label map, or before a CRF probabilities


def predict(root: Path, params: Params, evaluation: str) -> None:
    """Write data/predictions/<evaluation>/semantic/<image_id>.png, at the images' own size.

    An image that does not fit in memory goes in tiles, and a line on stderr says so; where a CRF
    follows, which takes images whole, it is refused. The CRFs of several images go in threads.
    """
    settings = params.evaluations[evaluation]
    prepared = root / "data" / "prepared" / settings.dataset
    model = root / "data" / "models" / f"{settings.model}.pt"
    device = chosen_device()

    with open_work(
        root, stage="predict", key=evaluation, sections=["evaluations"], inputs=[prepared, model]
    ) as work:
        refuse_leak(root, params, evaluation)
        data = Prepared(root, settings.dataset)
        network, saved = load_model(model, device)
        if tuple(saved["categories"]) != data.categories:
            raise BadInput(
                f"evaluations.{evaluation}: {settings.model} knows {len(saved['categories'])} "
                f"categories, {settings.dataset} has {len(data.categories)} others; "
                "evaluate it on a dataset with the categories it was trained on"
            )
        segmenter = segmenter_of(network, saved, views=settings.views, device=device)
        folder = work.folder / "predictions" / "semantic"
        folder.mkdir(parents=True, exist_ok=True)
        crf = crf_of(settings.crf)
        workers = 0 if crf is None else saved["run"]["threads"] or processors()
        ids = data.ids(settings.split)
        left = [i for i in ids if not (folder / f"{i}.png").exists()]  # by a run that was killed
        with tqdm(desc=evaluation, total=len(ids), unit="image", disable=None) as bar:
            bar.update(len(ids) - len(left))
            for image_id, outcome in _label_maps(data, left, segmenter, crf, folder, workers):
                try:
                    outcome.result()
                except BadInput as problem:
                    told = f"evaluations.{evaluation}: image {image_id}: {problem}"
                    raise BadInput(told) from problem
                bar.update()
        if segmenter.tiled:
            print(f"{segmenter.tiled} images went in tiles of {segmenter.tile}", file=sys.stderr)
        for partial in folder.glob(".*.partial"):
            partial.unlink()
        work.publish({folder.parent: root / "data" / "predictions" / evaluation})


def _label_maps(
    data: Prepared,
    ids: list[str],
    segmenter: Segmenter,
    crf: DenseCrf | None,
    folder: Path,
    workers: int,
) -> Iterator[tuple[str, Future[None]]]:
    """Write the label map of each image: its id, and what became of it."""

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
        partial = folder / f".{image_id}.partial"
        partial.write_bytes(encode_index_png(label_map))
        os.replace(partial, folder / f"{image_id}.png")

    return in_two_steps(
        ids,
        scores,
        write,
        size=lambda found: bytes_of_crf(len(data.categories), found[0][..., 0].size),
        workers=workers,
    )
