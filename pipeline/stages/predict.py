"""Stage `predict`: the label map of every image of an evaluation's split."""

import os
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.checkpoints import load_model
from pipeline.datasets.leaks import refuse_leak
from pipeline.datasets.prepared import Prepared
from pipeline.errors import BadInput
from pipeline.inference import for_inference, predict_probabilities
from pipeline.masks import encode_index_png
from pipeline.params import Params
from pipeline.training import use_threads
from pipeline.work import open_work


def predict(root: Path, params: Params, evaluation: str) -> None:
    """Write data/predictions/<evaluation>/semantic/<image_id>.png, at the images' own size."""
    settings = params.evaluations[evaluation]
    prepared = root / "data" / "prepared" / settings.dataset
    model = root / "data" / "models" / f"{settings.model}.pt"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

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
        use_threads(saved["run"]["threads"])
        precision = saved["run"]["precision"]
        fast = for_inference(network, precision=precision)
        folder = work.folder / "predictions" / "semantic"
        folder.mkdir(parents=True, exist_ok=True)
        for image_id in tqdm(data.ids(settings.split), desc=evaluation, unit="image", disable=None):
            place = folder / f"{image_id}.png"
            if place.exists():  # from a run that was killed
                continue
            probabilities = predict_probabilities(
                fast,
                data.image(image_id),
                scales=settings.views.scales,
                flip=settings.views.flip,
                device=device,
                precision=precision,
            )
            label_map = probabilities.argmax(0).to(torch.uint8).cpu().numpy()
            partial = folder / f".{image_id}.partial"
            partial.write_bytes(encode_index_png(label_map))
            os.replace(partial, place)
        for left in folder.glob(".*.partial"):
            left.unlink()
        work.publish({folder.parent: root / "data" / "predictions" / evaluation})
