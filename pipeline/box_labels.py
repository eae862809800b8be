"""Label maps of images that have only boxes: what Dai et al. train on, round by round.

Each function gives {image id: index PNG}, so that a round of a large dataset fits in memory.
"""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn
from tqdm import tqdm

from pipeline.datasets.prepared import Prepared
from pipeline.datasets.proposal_table import ProposalTable
from pipeline.errors import BadInput
from pipeline.inference import for_inference, predict_probabilities
from pipeline.labels import (
    Choice,
    choose,
    grabcut_mask,
    image_costs,
    label_map_of,
    paint,
    rectangle_labels,
)
from pipeline.masks import decode_index_png, encode_index_png
from pipeline.metrics.semantic import confusion_matrix, scores
from pipeline.models.fcrn import Fcrn
from pipeline.params import ONE_VIEW, BoxSupLabels, BoxSupRun, GrabCut
from pipeline.proposals.form import Proposals
from pipeline.tables import SCHEMAS, read_table, write_table

CLIP = 10.0  # largest -log P of one pixel in the regression cost; a bound, not a setting

PngMaps = dict[str, bytes]


def estimated_maps(
    data: Prepared,
    ids: list[str],
    run: BoxSupRun,
    network: Fcrn,
    epoch: int,
    *,
    proposals: Path,
    folder: Path,
) -> PngMaps:
    """The labels of one round, by the run's estimator.

    Args:
        ids: the images that have only boxes.
        network: in evaluation mode, as trained up to `epoch`.
        proposals: folder of the run's proposals.
        folder: of unfinished work; what was decided or is slow to make again is kept in it.
    """
    settings = run.estimator
    if isinstance(settings, BoxSupLabels):
        store = choices_store(folder, epoch)
        return chosen_maps(data, ids, run, ProposalTable(proposals), network, epoch, store)
    if isinstance(settings, GrabCut):
        return grabcut_maps(data, ids, settings, folder / "grabcut.parquet")
    return rectangle_maps(data, ids)


def choices_store(folder: Path, epoch: int) -> Path:
    """Where the choices of the round that starts with an epoch are kept."""
    return folder / f"choices-{epoch:04d}.parquet"


def boxes_of(data: Prepared, image_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image's boxes (N, 4), their categories (N,) and instance numbers (N,), without crowds."""
    objects = data.objects(image_id)
    objects = objects[~objects["crowd"]]
    boxes = objects[["x0", "y0", "x1", "y1"]].to_numpy()
    return boxes, objects["category"].to_numpy(), objects["instance"].to_numpy()


def rectangle_maps(data: Prepared, ids: list[str]) -> PngMaps:
    """Every box filled with its category."""
    maps = {}
    for image_id in ids:
        boxes, categories, _ = boxes_of(data, image_id)
        height, width = data.size(image_id)
        maps[image_id] = encode_index_png(rectangle_labels(boxes, categories, height, width))
    return maps


def grabcut_maps(data: Prepared, ids: list[str], settings: GrabCut, store: Path) -> PngMaps:
    """What GrabCut finds in every box; kept in the table `store`, for it is slow."""
    if not store.exists():
        rows = []
        for image_id in tqdm(ids, desc="GrabCut", unit="image", disable=None):
            boxes, categories, _ = boxes_of(data, image_id)
            image = data.image(image_id)
            masks = [
                grabcut_mask(image, box, iterations=settings.iterations, min_area=settings.min_area)
                for box in boxes
            ]
            label_map = paint(masks, boxes, categories, *image.shape[:2])
            rows.append({"image_id": image_id, "png": encode_index_png(label_map)})
        write_table(store, "semantic", rows)
    table = read_table(store, "semantic")
    return dict(zip(table["image_id"], table["png"], strict=True))


def chosen_maps(
    data: Prepared,
    ids: list[str],
    run: BoxSupRun,
    proposals: ProposalTable,
    network: Fcrn,
    epoch: int,
    store: Path,
) -> PngMaps:
    """The label step: for every box one of its cheapest candidates.

    The choices are kept in the table `store`; where it is there, they are not made again.

    Implements: Dai2015 Sec. 4.3 (updating the labels with the network fixed).

    Raises:
        BadInput: an image has no proposals, or they were made for an image of another size.
    """
    made = _read_choices(store) if store.exists() else None
    fast = network if made else for_inference(network, precision=run.precision)
    maps, rows = {}, []
    wanted = set(ids)
    if missing := wanted - set(proposals.ids):
        raise BadInput(
            f"{run.dataset}, split {run.split}: {len(missing)} images have no proposals, the first "
            f"is {min(missing)!r}. They are made for train_aug: choose that split or train"
        )
    ordered = [image_id for image_id in proposals.ids if image_id in wanted]
    for image_id in tqdm(ordered, desc=f"labels, epoch {epoch}", unit="image", disable=None):
        boxes, categories, instances = boxes_of(data, image_id)
        candidates = Proposals(**proposals.of(image_id))
        if candidates.superpixels.shape != data.size(image_id):
            raise BadInput(
                f"the proposals of {image_id!r} are {candidates.superpixels.shape}, its image is "
                f"{data.size(image_id)}; make them again: dvc repro -f propose@..."
            )
        if made is None:
            choices = _choose(data, image_id, run, candidates, boxes, categories, fast, epoch)
            rows += [
                {"epoch": epoch, "image_id": image_id, "instance": instance, **choice._asdict()}
                for instance, choice in zip(instances, choices, strict=True)
            ]
        else:
            choices = [made[image_id, instance] for instance in instances]
        maps[image_id] = encode_index_png(label_map_of(choices, candidates, boxes, categories))
    if made is None:
        write_table(store, "choices", rows)
    return maps


def _choose(
    data: Prepared,
    image_id: str,
    run: BoxSupRun,
    candidates: Proposals,
    boxes: np.ndarray,
    categories: np.ndarray,
    network: nn.Module,
    epoch: int,
) -> list[Choice]:
    settings = run.estimator
    assert isinstance(settings, BoxSupLabels)
    lam = settings.lam if epoch >= settings.lam_start else 0.0
    log_probabilities = None
    if lam > 0 and len(boxes):
        device = next(network.parameters()).device
        probabilities = predict_probabilities(
            network,
            data.image(image_id),
            views=ONE_VIEW,
            device=device,
            precision=run.precision,
        )
        log_probabilities = probabilities.log().cpu().numpy()
    overlap, regression = image_costs(candidates, boxes, categories, log_probabilities, clip=CLIP)
    rng = np.random.default_rng([run.seed, epoch, zlib.crc32(image_id.encode())])
    return [
        choose(
            overlap[i],
            regression[i],
            lam=lam,
            top_k=settings.top_k,
            min_box_iou=settings.min_box_iou,
            fallback_box_iou=settings.fallback_box_iou,
            rng=rng,
        )
        for i in range(len(boxes))
    ]


def _read_choices(store: Path) -> dict[tuple[str, int], Choice]:
    return {
        (row.image_id, row.instance): Choice(
            row.proposal, row.rank, row.overlap_cost, row.regression_cost
        )
        for row in read_table(store, "choices").itertuples()
    }


def all_choices(folder: Path) -> pd.DataFrame:
    """The choices of all rounds kept in a folder, in order, as one table "choices"."""
    tables = [read_table(path, "choices") for path in sorted(folder.glob("choices-*.parquet"))]
    return pd.concat(tables) if tables else pd.DataFrame({n: [] for n in SCHEMAS["choices"].names})


def label_quality(data: Prepared, maps: PngMaps) -> dict[str, float]:
    """How good the estimated labels are: only measured, never trained on.

    Returns:
        label_mean_iou against the true masks, over the images that have one (absent if none has);
        label_mean_area, the part of all pixels that is labelled as an object.
    """
    confusion = np.zeros((len(data.categories), len(data.categories) + 1), np.int64)
    labelled = pixels = 0
    with_masks = set(data.images.loc[data.images["has_masks"], "image_id"])
    for image_id, png in maps.items():
        estimated = decode_index_png(png)
        labelled += int((estimated > 0).sum())
        pixels += estimated.size
        if image_id in with_masks:
            truth = data.label_map(image_id)
            confusion += confusion_matrix(estimated, truth, len(data.categories))
    quality = {"label_mean_area": labelled / pixels}
    if confusion.any():
        quality["label_mean_iou"] = scores(confusion).mean_iou
    return quality
