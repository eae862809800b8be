"""Stage `predict`: the label map of every image of an evaluation's split."""

import os
import sys
from pathlib import Path

from tqdm import tqdm

from pipeline.checkpoints import load_model
from pipeline.datasets.leaks import refuse_leak
from pipeline.datasets.prepared import Prepared
from pipeline.errors import BadInput
from pipeline.machine import chosen_device
from pipeline.masks import encode_index_png
from pipeline.params import Params
from pipeline.tiles import segmenter_of
from pipeline.work import open_work


def predict(root: Path, params: Params, evaluation: str) -> None:
    """Write data/predictions/<evaluation>/semantic/<image_id>.png, at the images' own size.

    An image that does not fit in memory goes in tiles, and a line on stderr says so.
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
        for image_id in tqdm(data.ids(settings.split), desc=evaluation, unit="image", disable=None):
            place = folder / f"{image_id}.png"
            if place.exists():  # from a run that was killed
                continue
            notes: list[str] = []
            label_map = segmenter.label_map(data.image(image_id), notes)
            for note in notes:
                tqdm.write(f"{image_id}: {note}", file=sys.stderr)
            partial = folder / f".{image_id}.partial"
            partial.write_bytes(encode_index_png(label_map))
            os.replace(partial, place)
        if segmenter.tiled:
            print(f"{segmenter.tiled} images went in tiles of {segmenter.tile}", file=sys.stderr)
        for left in folder.glob(".*.partial"):
            left.unlink()
        work.publish({folder.parent: root / "data" / "predictions" / evaluation})
