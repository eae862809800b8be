"""The label step of BoxSup: a candidate for every box, chosen with the network as it is.

Images are worked on in threads, one for each processor. While one asks the network, the others read
images, compare candidates and write PNGs. H x W pixels, C categories, K of them in an image.
"""

import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Semaphore

import numpy as np
import pandas as pd
import torch
from torch import nn

from pipeline.box_objects import Objects, objects_of, settled
from pipeline.checkpoints import SemanticNetwork
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import map_in_threads, processors
from pipeline.datasets.proposal_table import ProposalTable
from pipeline.errors import BadInput, some
from pipeline.inference import DIVERGED, for_inference, view_probabilities
from pipeline.labels import Choice, choose, image_costs, label_map_of
from pipeline.masks import encode_index_png
from pipeline.params_training import BoxSupLabels, BoxSupRun
from pipeline.superpixels import Runs
from pipeline.tables import SCHEMAS, read_table, write_table
from pipeline.transforms import normalise

CLIP = 10.0  # largest -log P of one pixel in the regression cost; a bound, not a setting
AT_ONCE = 8  # images of one size that a GPU is given together
SORTED = 256  # images that are sorted by size, so that some of one size come together

PngMaps = dict[str, bytes]  # image id: index PNG
Logs = np.ndarray  # (1 + K, H, W) float32: log P of background and of the K categories of an image
Ask = Callable[[list[str], list[np.ndarray]], list[Logs]]  # images of one size, what is wanted


def choices_store(folder: Path, epoch: int) -> Path:
    """Where the choices of the round that starts with an epoch are kept."""
    return folder / f"choices-{epoch:04d}.parquet"


def chosen_maps(
    data: Prepared,
    objects: dict[str, Objects],
    run: BoxSupRun,
    proposals: ProposalTable,
    network: SemanticNetwork,
    epoch: int,
    folder: Path,
) -> PngMaps:
    """The label step: for every box one of its cheapest candidates.

    The choices and, until the next round, the labels are kept in `folder`; where they are there,
    they are not made again. The choices come last: with them the step is complete.

    Implements: Dai2015 Sec. 4.3 (updating the labels with the network fixed).
    """
    store, kept = choices_store(folder, epoch), folder / f"labels-{epoch:04d}.parquet"
    if store.exists() and kept.exists():
        return read_maps(kept)
    if store.exists():
        return rebuilt_maps(data, list(objects), proposals, read_table(store, "choices"))
    settings = run.estimator
    assert isinstance(settings, BoxSupLabels)
    lam = settings.lam if epoch >= settings.lam_start else 0.0
    ordered = _in_order_of(proposals, objects, run)
    step = partial(
        _label_images,
        data=data,
        objects=objects,
        run=run,
        proposals=proposals,
        ask=_asking(data, run, network) if lam > 0 else None,
        lam=lam,
        epoch=epoch,
    )
    on_gpu = next(network.parameters()).is_cuda
    batches = _batches(data, ordered, AT_ONCE if on_gpu else 1)
    made: dict[str, tuple[list[Choice], bytes]] = {}
    for of_batch in map_in_threads(step, batches, f"labels, epoch {epoch}"):
        made |= of_batch
    maps = {image_id: made[image_id][1] for image_id in ordered}
    for path in folder.glob("labels-*.parquet"):
        path.unlink()
    write_table(kept, "semantic", {"image_id": list(maps), "png": list(maps.values())})
    write_table(store, "choices", _choice_rows(epoch, ordered, objects, made))
    return maps


def read_maps(path: Path) -> PngMaps:
    table = read_table(path, "semantic")
    return dict(zip(table["image_id"], table["png"], strict=True))


def _choice_rows(
    epoch: int,
    ordered: list[str],
    objects: dict[str, Objects],
    made: dict[str, tuple[list[Choice], bytes]],
) -> pd.DataFrame:
    rows = [
        (epoch, image_id, instance, *choice)
        for image_id in ordered
        for instance, choice in zip(objects[image_id].instances, made[image_id][0], strict=True)
    ]
    return pd.DataFrame(rows, columns=SCHEMAS["choices"].names)


def _in_order_of(
    proposals: ProposalTable, objects: dict[str, Objects], run: BoxSupRun
) -> list[str]:
    """The images in the order in which their candidates are stored. BadInput where some have none.

    An image without candidates for its boxes has a row too.
    """
    if missing := sorted(set(objects) - set(proposals.ids)):
        raise BadInput(
            f"{run.dataset}, split {run.split}: {len(missing)} images have no proposals: "
            f"{some(missing)}. They are made for train_aug or mixed, where there is one. Make them "
            f"again: dvc repro -f propose@{run.proposals}_{run.dataset}"
        )
    return [image_id for image_id in proposals.ids if image_id in objects]


def _batches(data: Prepared, ids: list[str], at_once: int) -> list[list[str]]:
    """Images of one size that stand near each other in the list, at most so many together."""
    batches = []
    for start in range(0, len(ids), SORTED):
        by_size: dict[tuple[int, int], list[str]] = {}
        for image_id in ids[start : start + SORTED]:
            by_size.setdefault(data.size(image_id), []).append(image_id)
        for same in by_size.values():
            batches += [same[i : i + at_once] for i in range(0, len(same), at_once)]
    return batches


def candidates_of(proposals: ProposalTable, data: Prepared, image_id: str) -> Runs:
    """The candidates of an image. BadInput: none, or made for an image of another size."""
    candidates = proposals.runs_of(image_id)
    if candidates.superpixels.shape != data.size(image_id):
        raise BadInput(
            f"the proposals of {image_id!r} are {candidates.superpixels.shape}, its image is "
            f"{data.size(image_id)}; make them again: dvc repro -f propose@..."
        )
    return candidates


def _label_images(
    ids: list[str],
    data: Prepared,
    objects: dict[str, Objects],
    run: BoxSupRun,
    proposals: ProposalTable,
    ask: Ask | None,
    lam: float,
    epoch: int,
) -> dict[str, tuple[list[Choice], bytes]]:
    """The choices and the label map of images of one size."""
    before = {image_id: settled(objects[image_id], run) for image_id in ids}
    asked = [image_id for image_id in ids if None in before[image_id]]
    wanted = [_wanted(objects[image_id], before[image_id]) for image_id in asked]
    logs = dict(zip(asked, ask(asked, wanted), strict=True)) if ask and asked else {}
    made = {}
    for image_id in ids:
        candidates = candidates_of(proposals, data, image_id)
        rng = np.random.default_rng([run.seed, epoch, zlib.crc32(image_id.encode())])
        choices = _choose(
            objects[image_id], before[image_id], candidates, logs.get(image_id), run, lam, rng
        )
        boxes, categories = objects[image_id].boxes, objects[image_id].categories
        label_map = label_map_of(choices, candidates, boxes, categories)
        made[image_id] = choices, encode_index_png(label_map)
    return made


def _wanted(objects: Objects, before: list[Choice | None]) -> np.ndarray:
    """The categories (K,) of the objects that are to be labelled, ascending."""
    return np.unique(objects.categories[[choice is None for choice in before]])


def _choose(
    objects: Objects,
    before: list[Choice | None],
    candidates: Runs,
    logs: Logs | None,
    run: BoxSupRun,
    lam: float,
    rng: np.random.Generator,
) -> list[Choice]:
    """A choice for each object that is not settled before."""
    settings = run.estimator
    assert isinstance(settings, BoxSupLabels)
    open_ = [choice is None for choice in before]
    rows = 1 + np.searchsorted(_wanted(objects, before), objects.categories[open_])
    overlap, regression = image_costs(
        candidates, objects.boxes[open_], rows, logs, clip=CLIP, costs=settings.costs
    )
    drawn = (
        choose(
            *costs,
            lam=lam,
            top_k=settings.top_k,
            min_box_iou=settings.min_box_iou,
            fallback_box_iou=settings.fallback_box_iou,
            fallback=settings.fallback,
            rng=rng,
        )
        for costs in zip(overlap, regression, strict=True)
    )
    return [choice or next(drawn) for choice in before]


# --- what the network says ------------------------------------------------------------------------
def _asking(data: Prepared, run: BoxSupRun, network: SemanticNetwork) -> Ask:
    """A function from images of one size and the categories wanted of each to what is said."""
    device = next(network.parameters()).device
    forwards = 1 if device.type == "cuda" else max(1, processors() // torch.get_num_threads())
    return partial(
        _ask,
        data=data,
        network=for_inference(network, precision=run.precision),
        run=run,
        device=device,
        turn=Semaphore(forwards),
    )


@torch.inference_mode()
def _ask(
    ids: list[str],
    wanted: list[np.ndarray],
    data: Prepared,
    network: nn.Module,
    run: BoxSupRun,
    device: torch.device,
    turn: Semaphore,
) -> list[Logs]:
    """log P of background and of the categories wanted, in each image.

    Raises:
        BadInput: it is no number.
    """
    images = torch.from_numpy(np.stack([data.image(image_id) for image_id in ids]))
    with turn:  # while others read images and compare candidates
        pixels = normalise(images.to(device))
        probabilities = view_probabilities(network, pixels, precision=run.precision)
        # One NaN among a cell's scores makes all its probabilities NaN, that of background too.
        broken = probabilities[:, 0].isnan().flatten(1).any(dim=1).tolist()
        if any(broken):
            raise BadInput(
                f"the network says NaN of the image {ids[broken.index(True)]!r}: {DIVERGED}"
            )
        return [
            probabilities[i, [0, *categories]].log().cpu().numpy()
            for i, categories in enumerate(wanted)
        ]


# --- the choices, again ---------------------------------------------------------------------------
def rebuilt_maps(
    data: Prepared, ids: list[str], proposals: ProposalTable, choices: pd.DataFrame
) -> PngMaps:
    """The labels of a round from its choices and the proposals alone: the same bytes again.

    Args:
        ids: images that were labelled from boxes.
        choices: table "choices", the rows of one epoch.

    Raises:
        BadInput: choices and objects of an image do not belong together.
    """
    objects = objects_of(data, ids)
    of_image = choices.groupby("image_id").indices

    def made(image_id: str) -> bytes:
        rows = choices.iloc[of_image.get(image_id, np.zeros(0, np.int64))]
        label_map = _rebuilt(data, image_id, proposals, objects[image_id], rows)
        return encode_index_png(label_map)

    wanted = set(ids)
    ordered = [image_id for image_id in proposals.ids if image_id in wanted]
    return dict(zip(ordered, map_in_threads(made, ordered, "labels, from choices"), strict=True))


def rebuilt_map(
    data: Prepared, image_id: str, proposals: ProposalTable, choices: pd.DataFrame
) -> np.ndarray:
    """`rebuilt_maps` of one image, as a label map (H, W) uint8."""
    rows = choices[choices["image_id"] == image_id]
    return _rebuilt(data, image_id, proposals, objects_of(data, [image_id])[image_id], rows)


def _rebuilt(
    data: Prepared, image_id: str, proposals: ProposalTable, objects: Objects, rows: pd.DataFrame
) -> np.ndarray:
    if rows["instance"].tolist() != objects.instances.tolist():
        raise BadInput(
            f"the choices of {image_id!r} are for the objects {some(rows['instance'].tolist())}, "
            f"it has {some(objects.instances.tolist())}: it was prepared anew since. Train again"
        )
    fields = rows[list(Choice._fields)].itertuples(index=False, name=None)
    choices = [Choice(*values) for values in fields]
    candidates = candidates_of(proposals, data, image_id)
    most = max((choice.proposal for choice in choices), default=-1)
    if most >= len(candidates):
        raise BadInput(
            f"the choices of {image_id!r} name candidate {most}, it has {len(candidates)}: they "
            "were made anew since. Train again"
        )
    return label_map_of(choices, candidates, objects.boxes, objects.categories)
