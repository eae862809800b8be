"""Label maps of images that have only boxes: what Dai et al. train on, round by round.

Each function gives {image id: index PNG}, so that a round of a large dataset fits in memory.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.box_objects import Objects, to_fill
from pipeline.boxes import box_mask
from pipeline.categories import IGNORE
from pipeline.checkpoints import SemanticNetwork
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import map_in_threads
from pipeline.datasets.proposal_table import ProposalTable
from pipeline.errors import BadInput, some
from pipeline.label_step import PngMaps, choices_store, chosen_maps, read_maps
from pipeline.labels import grabcut_mask, paint, rectangle_labels
from pipeline.masks import decode_index_png, encode_index_png
from pipeline.metrics.semantic import confusion_matrix, scores
from pipeline.params_training import BoxSupLabels, BoxSupRun, GrabCut
from pipeline.tables import SCHEMAS, read_table, write_table

KEPT = 256  # images whose GrabCut labels are kept as one file


def estimated_maps(
    data: Prepared,
    objects: dict[str, Objects],
    run: BoxSupRun,
    network: SemanticNetwork,
    epoch: int,
    *,
    proposals: Path,
    folder: Path,
) -> PngMaps:
    """The labels of one round, by the run's estimator.

    Args:
        objects: of the images that have only boxes.
        network: in evaluation mode, as trained up to `epoch`.
        proposals: folder of the run's proposals.
        folder: of unfinished work; what was decided or is slow to make again is kept in it.

    Raises:
        BadInput: proposals that do not fit (`candidates_of`), or a network that is broken.
    """
    if isinstance(run.estimator, BoxSupLabels):
        return chosen_maps(data, objects, run, ProposalTable(proposals), network, epoch, folder)
    if isinstance(run.estimator, GrabCut):
        return grabcut_maps(data, objects, run, folder / "grabcut")
    return rectangle_maps(data, objects, run)


def rectangle_maps(data: Prepared, objects: dict[str, Objects], run: BoxSupRun) -> PngMaps:
    """Every box filled with its category."""

    def made(image_id: str) -> bytes:
        boxes, categories = to_fill(objects[image_id], run)
        return encode_index_png(rectangle_labels(boxes, categories, *data.size(image_id)))

    ids = list(objects)
    return dict(zip(ids, map_in_threads(made, ids, "rectangles"), strict=True))


def grabcut_maps(
    data: Prepared, objects: dict[str, Objects], run: BoxSupRun, folder: Path
) -> PngMaps:
    """What GrabCut finds in every box; kept in `folder` part by part, for it is slow."""
    settings = run.estimator
    assert isinstance(settings, GrabCut)

    def made(image_id: str) -> dict[str, str | bytes]:
        boxes, categories = to_fill(objects[image_id], run)
        image = data.image(image_id)
        masks = [
            box_mask(box, *image.shape[:2])
            if category == IGNORE
            else grabcut_mask(
                image, box, iterations=settings.iterations, min_area=settings.min_area
            )
            for box, category in zip(boxes, categories, strict=True)
        ]
        label_map = paint(masks, boxes, categories, *image.shape[:2])
        return {"image_id": image_id, "png": encode_index_png(label_map)}

    ids = list(objects)
    maps: PngMaps = {}
    for start in range(0, len(ids), KEPT):
        part, chosen = folder / f"{start:06d}.parquet", ids[start : start + KEPT]
        if not part.exists():
            what = f"GrabCut, {start} of {len(ids)} done"
            write_table(part, "semantic", list(map_in_threads(made, chosen, what)))
        maps |= read_maps(part)
    return maps


def check_kept(folder: Path, learned: list[int]) -> None:
    """See that the label steps from which a training has learned are whole.

    A damaged file of another step, as the machine leaves it when it goes down, is removed and told:
    that step is made again. So are labels, which follow from the choices.

    Args:
        folder: of unfinished work.
        learned: first epochs of the rounds from whose choices a checkpoint may have learned.

    Raises:
        BadInput: choices of a round in `learned` are gone or damaged. The network has moved on, so
            they cannot be made again.
    """
    stores = [choices_store(folder, epoch) for epoch in learned]
    if lost := [path.name for path in stores if not _is_whole(path)]:
        raise BadInput(
            f"{folder}: {some(lost)}: gone or damaged, but the training has learned from these "
            f"choices, and they cannot be made again. Delete {folder} and run again: it begins anew"
        )
    for path in sorted([*folder.glob("*-*.parquet"), *folder.glob("grabcut/*.parquet")]):
        if not _is_whole(path):
            path.unlink()
            print(f"{path}: damaged, removed; it is made again", file=sys.stderr)


def _is_whole(path: Path) -> bool:
    """Whether a parquet file is there with its end, which is written last."""
    try:
        pq.read_metadata(path)
    except (FileNotFoundError, pa.ArrowException, OSError):
        return False
    return True


def all_choices(folder: Path) -> pd.DataFrame:
    """The choices of all rounds kept in a folder, in order, as one table "choices"."""
    tables = [read_table(path, "choices") for path in sorted(folder.glob("choices-*.parquet"))]
    return pd.concat(tables) if tables else pd.DataFrame({n: [] for n in SCHEMAS["choices"].names})


def label_quality(data: Prepared, maps: PngMaps) -> dict[str, float]:
    """How good the estimated labels are: only measured, never trained on.

    Returns:
        label_mean_iou against the true masks, over the images that have one (absent if none has),
        where a pixel of 255 is one in error; label_mean_area, the part of all pixels that is
        labelled as an object.
    """
    with_masks = set(data.images.loc[data.images["has_masks"], "image_id"])
    if known := with_masks & set(maps):
        data.label_map(min(known))  # reads all that are stored, which is not for threads

    def counted(image_id: str) -> tuple[int, int, np.ndarray | None]:
        estimated = decode_index_png(maps[image_id])
        objects = int(np.count_nonzero((estimated > 0) & (estimated < IGNORE)))
        if image_id not in known:
            return objects, estimated.size, None
        truth = data.label_map(image_id)
        return objects, estimated.size, confusion_matrix(estimated, truth, len(data.categories))

    confusion = np.zeros((len(data.categories), len(data.categories) + 1), np.int64)
    labelled = pixels = 0
    for objects, size, counts in map_in_threads(counted, list(maps), "label quality"):
        labelled, pixels = labelled + objects, pixels + size
        confusion += 0 if counts is None else counts
    quality = {"label_mean_area": labelled / pixels}
    if confusion.any():
        quality["label_mean_iou"] = scores(confusion).mean_iou
    return quality
