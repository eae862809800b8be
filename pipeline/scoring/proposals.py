"""`score proposals`: tables of proposals against the objects of COCO instances JSON.

P proposals of an image, N objects in it, H x W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco
from tqdm import tqdm

from pipeline.categories import IGNORE
from pipeline.datasets.coco_results import InstanceTruth, TruthImage, read_truth
from pipeline.datasets.label_maps import find_label_maps, read_label_map
from pipeline.datasets.processes import in_processes, processors
from pipeline.datasets.proposal_table import ProposalTable
from pipeline.errors import BadFile, BadInput, some
from pipeline.metrics.proposals import (
    RECALL_AT,
    SIZES,
    ProposalCounts,
    ProposalScores,
    count_proposals,
    proposal_scores,
)
from pipeline.proposals.form import Proposals
from pipeline.scoring.outcome import Outcome, Row

WORTH_A_PROCESS = 1000  # images: 5 s of work, about twice what starting a process costs

Arrays = Mapping[str, np.ndarray]


class Item(NamedTuple):
    """What a process needs of one image."""

    image: TruthImage
    arrays: Arrays | None  # of the table; None: no proposals
    void: Path | None


def score_proposals(
    truth: Path,
    predicted: Path,
    *,
    at: Sequence[int],
    void: Path | None,
    ids: Path | None,
    allow_missing: bool,
) -> Outcome:
    """Overlaps and recalls of the first proposals of each image.

    Args:
        truth: COCO instances JSON; crowd regions are no objects.
        predicted: a folder of part-*.parquet. A row is of the image whose file name, without its
            ending, is the row's image_id; of the image with that id where there are no file names.
        at: numbers of proposals, distinct, from 1 on.
        void: a folder of index PNGs <image name>.png; their pixels of 255 count nowhere.
        ids: a list of the images to score; None: all of the truth.
        allow_missing: an image without a row has no proposals, rows without truth are left out.

    Raises:
        BadInput: files are missing, too many, damaged or of other sizes.
    """
    if not at or min(at) < 1 or len(set(at)) < len(at):
        raise BadInput(f"numbers of proposals are distinct and from 1 on, not {list(at)}")
    objects = read_truth(truth, ids)
    table = ProposalTable(predicted)
    missing, extra = _compare(objects, table.ids, predicted)
    if ids is not None:
        extra = []  # what a list leaves out is no mistake
    if not allow_missing:
        _refuse(missing, extra, len(objects.images), predicted)
    voids = None if void is None else _find_voids(void, objects)
    numbers = {category: number for number, category in enumerate(objects.categories)}
    one = partial(_count_one, predicted, numbers, tuple(at))
    images = _in_order_of(table, objects)
    rows = set(table.ids)
    items = (
        Item(
            image,
            table.of(image.name) if image.name in rows else None,
            None if voids is None else voids[image.name],
        )
        for image in images
    )
    workers = min(processors(), len(images) // WORTH_A_PROCESS)
    progress = tqdm(
        in_processes(one, items, workers),
        total=len(images),
        desc="score",
        unit="image",
        disable=None,
    )
    counts = reduce(add, progress)
    notes = _notes(objects, missing, extra)
    return Outcome(_rows(counts, at), {"void": void is not None}, notes, by_at="at")


def _rows(counts: ProposalCounts, at: Sequence[int]) -> list[Row]:
    found = proposal_scores(counts, at)
    rows = [Row("num_images", counts.num_images), Row("num_objects", int(counts.objects[0]))]
    for k, budget in enumerate(at):
        rows += [Row(name, value, at=budget) for name, value in _at_budget(found, k)]
    return rows + [Row(f"auc{size}", float(v)) for size, v in zip(SIZES, found.auc, strict=True)]


def _at_budget(found: ProposalScores, k: int) -> Iterator[tuple[str, float]]:
    """(metric, value) of budget number k."""
    yield "jaccard_instance", float(found.jaccard_instance[k])
    yield "jaccard_class", float(found.jaccard_class[k])
    for i, t in enumerate(RECALL_AT):
        yield f"recall_{t:g}", float(found.recall[i, k])
    for i, size in enumerate(SIZES):
        yield f"average_recall{size}", float(found.average_recall[i, k])
    yield "mean_num", float(found.mean_num[k])


def _notes(truth: InstanceTruth, missing: Sequence[str], extra: Sequence[str]) -> list[str]:
    notes = []
    crowds = sum(thing.crowd for image in truth.images.values() for thing in image.objects)
    if crowds:
        notes.append(f"{crowds} crowd regions are no objects")
    if missing:
        notes.append(
            f"{len(missing)} of {len(truth.images)} images have no proposals and find nothing: "
            f"{some(missing)}"
        )
    if extra:
        notes.append(f"{len(extra)} images of the table are left out: {some(extra)}")
    return notes


# --- which files ----------------------------------------------------------------------------------
def _compare(
    truth: InstanceTruth, there: Sequence[str], folder: Path
) -> tuple[list[str], list[str]]:
    """Images without proposals, and proposals without an image. BadFile if no image has any."""
    wanted = [image.name for image in truth.images.values()]
    missing = sorted(set(wanted) - set(there))
    if len(missing) == len(wanted):
        raise BadFile(
            folder,
            f"no proposals of any of the {len(wanted)} images; wanted: {some(missing)}; "
            f"there: {some(there)}",
            "the image_id of a row is the name of the image's file without its ending",
        )
    return missing, sorted(set(there) - set(wanted))


def _refuse(missing: Sequence[str], extra: Sequence[str], wanted: int, folder: Path) -> None:
    """BadFile if proposals are missing or too many; both are told at once."""
    problems = []
    if missing:
        problems.append(f"no proposals of {len(missing)} of {wanted} images: {some(missing)}")
    if extra:
        problems.append(f"proposals of {len(extra)} images without truth: {some(extra)}")
    if problems:
        raise BadFile(
            folder,
            "; ".join(problems),
            "list the images to score with --ids FILE, or give --allow-missing: images without "
            "proposals find nothing, those without truth are left out",
        )


def _find_voids(folder: Path, truth: InstanceTruth) -> dict[str, Path]:
    """The label map of each image. BadFile if one has none."""
    found = find_label_maps(folder)
    wanted = [image.name for image in truth.images.values()]
    if missing := [name for name in wanted if name not in found]:
        problem = f"no label map of {len(missing)} of {len(wanted)} images: {some(missing)}"
        raise BadFile(folder, problem, "--void takes a folder with <image name>.png of each image")
    return found


def _in_order_of(table: ProposalTable, truth: InstanceTruth) -> list[TruthImage]:
    """The images in the order of the table, so that each part is read once; then those without."""
    by_name = {image.name: image for image in truth.images.values()}
    found = [by_name.pop(name) for name in table.ids if name in by_name]
    return [*found, *by_name.values()]


# --- one image ------------------------------------------------------------------------------------
def _count_one(
    folder: Path, numbers: Mapping[int, int], budgets: tuple[int, ...], item: Item
) -> ProposalCounts:
    """The counts of an image. BadFile if a size does not fit."""
    image = item.image
    # COCO's tool takes objects by category; where two overlaps are equal that decides.
    objects = sorted((o for o in image.objects if not o.crowd), key=lambda o: o.category)
    masks = np.zeros((len(objects), *image.size), bool)
    for mask, thing in zip(masks, objects, strict=True):
        mask[:] = coco.decode(thing.rle)
    void = None if item.void is None else _void(item.void, image)
    if item.arrays is None:
        valid = masks if void is None else masks & ~void
        pixels = valid.sum(axis=(1, 2)).astype(np.float64)
        shared, sizes = np.zeros((0, len(objects))), np.zeros(0)
    else:
        proposals = _checked(item.arrays, image, folder)
        shared, sizes, pixels = proposals.pixels_in_masks(masks, void)
    return count_proposals(
        shared,
        sizes,
        pixels,
        np.array([numbers[thing.category] for thing in objects], np.int64),
        np.array([thing.area for thing in objects], np.float64),
        budgets=budgets,
        num_categories=len(numbers),
    )


def _void(path: Path, image: TruthImage) -> np.ndarray:
    label_map = read_label_map(path)
    if label_map.shape != image.size:
        raise BadFile(path, _sizes(label_map.shape, image), "give label maps of the images' size")
    return label_map == IGNORE


def _checked(arrays: Arrays, image: TruthImage, folder: Path) -> Proposals:
    """The proposals of an image. BadFile if they are of an image of another size."""
    found = Proposals(**arrays)
    if found.superpixels.shape != image.size:
        wrong = f"superpixels of image {image.name}: {_sizes(found.superpixels.shape, image)}"
        raise BadFile(folder, wrong, "make the proposals from the images at their full size")
    return found


def _sizes(shape: tuple[int, ...], image: TruthImage) -> str:
    (h, w), (height, width) = shape, image.size
    return f"{h} x {w} pixels (height x width), but the truth says {height} x {width}"
