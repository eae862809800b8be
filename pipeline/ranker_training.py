"""`train-ranker`: a forest that ranks candidates, from masks of objects or of drawn regions.

Ranked proposals have seen masks, if only of other images; those of objects more than drawn regions.

H x W pixels, N objects, P candidates.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from pipeline.categories import IGNORE
from pipeline.datasets.bsds import fitting_and_reporting, open_bsds
from pipeline.datasets.edge_files import write_forest
from pipeline.datasets.form import read_image
from pipeline.datasets.lists import read_ids
from pipeline.datasets.tree import Problems
from pipeline.errors import BadFile, BadInput
from pipeline.masks import decode_index_png
from pipeline.proposals.edges import Edges
from pipeline.proposals.forest import Forest, predict
from pipeline.proposals.form import Proposals
from pipeline.proposals.ranking import (
    borders,
    features,
    fit_ranker,
    rank,
    ranking_samples,
)

REGION = 300  # pixels; smaller drawn regions count for nothing
NUMBERS = (100, 500, 1000)  # of first candidates that are reported
REPORTED = 100  # images at most, evenly spaced
SHUFFLES = 10  # random orders of the candidates of each image, whose mean is reported

Propose = Callable[[np.ndarray], Proposals]


class Truth(NamedTuple):
    """One image and what should be found in it."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    masks: np.ndarray  # (N, H, W) bool
    void: np.ndarray  # (H, W) bool, pixels that count nowhere


class Source(NamedTuple):
    """Images with masks."""

    fitting: tuple[str, ...]  # ids of the images to fit on
    reporting: tuple[str, ...]  # and of those that are only measured
    read: Callable[[str], Truth]


def bsds_regions(folder: Path) -> Source:
    """The regions that people drew for BSDS500. Raises BadFile where the copy lacks something."""
    data = open_bsds(folder)
    fitting, reporting = fitting_and_reporting(data)

    def read(image_id: str) -> Truth:
        drawn = data.read(image_id)
        masks = [
            person == number
            for person in drawn.segmentations
            for number in np.flatnonzero(np.bincount(person.ravel()) >= REGION)
        ]
        shape = drawn.image.shape[:2]
        return Truth(drawn.image, np.array(masks).reshape(-1, *shape), np.zeros(shape, bool))

    return Source(fitting, reporting, read)


def voc_objects(folder: Path, *, objects: str = "SegmentationObject") -> Source:
    """The objects of VOC2012; all but those of val are for fitting.

    Args:
        folder: VOC2012/, or what holds it.
        objects: the folder of the maps of objects: of each pixel its number from 1, 0 or 255.

    Raises:
        BadFile: the maps or the list of val are missing.
    """
    around = (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012")
    voc = next((place for place in around if (place / objects).is_dir()), None)
    if voc is None:
        raise BadFile(folder, f"no VOC2012/{objects} in it", "put VOC2012 there")
    lists = voc / "ImageSets" / "Segmentation"
    val = set(read_ids(lists / "val.txt", Problems(collect=False)))
    ids = sorted(path.stem for path in (voc / objects).glob("*.png"))

    def read(image_id: str) -> Truth:
        image = read_image(voc / "JPEGImages" / f"{image_id}.jpg")
        numbers = decode_index_png(voc / objects / f"{image_id}.png")
        if numbers.shape != image.shape[:2]:
            path = voc / objects / f"{image_id}.png"
            raise BadFile(path, f"{numbers.shape} pixels, not the image's", "copy both anew")
        present = np.setdiff1d(numbers, (0, IGNORE))
        return Truth(image, numbers == present[:, None, None], numbers == IGNORE)

    return Source(tuple(i for i in ids if i not in val), tuple(i for i in ids if i in val), read)


def train_ranker(
    source: Source, out: Path, *, propose: Propose, edges: Edges, seed: int = 0
) -> None:
    """Fit a forest, write it to `out` and print how good the first candidates are in each order.

    Args:
        out: the forest, an .npz.
        propose: the method whose candidates are ranked.
        edges: the contour strength of an image; the same is given to `ranked`.

    Raises:
        BadInput: there is no place for `out`, or too few images.
        BadFile: a file of the source is missing or damaged.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise BadInput(f"{out}: no place for a file; name one in a folder that is there")
    cv2.setNumThreads(1)
    begin = time.perf_counter()
    forest = fit_on(source, propose=propose, edges=edges, seed=seed)
    write_forest(out, asdict(forest))
    print(f"{out}: from {len(source.fitting)} images in {time.perf_counter() - begin:.0f} s")
    if source.reporting:
        report(source, forest, propose=propose, edges=edges, seed=seed)


def fit_on(source: Source, *, propose: Propose, edges: Edges, seed: int) -> Forest:
    """A forest fitted on images. The same for the same images and seed, bit for bit."""
    rng = np.random.default_rng(seed)
    rows, targets = [], []
    for image_id in tqdm(source.fitting, desc="looking at candidates", disable=None):
        truth = source.read(image_id)
        if len(truth.masks) == 0:
            continue
        proposals = propose(truth.image)
        overlaps = proposals.iou_with_masks(truth.masks, truth.void)
        found = ranking_samples(proposals, edges(truth.image), overlaps, rng=rng)
        rows.append(found[0])
        targets.append(found[1])
    if not rows:
        raise BadInput(f"{len(source.fitting)} images to fit on, none of them with masks; add some")
    return fit_ranker(np.concatenate(rows, axis=1), np.concatenate(targets), seed=seed)


def report(source: Source, forest: Forest, *, propose: Propose, edges: Edges, seed: int) -> None:
    """Print the mean best overlap with an object among the first candidates, in four orders."""
    rng = np.random.default_rng(seed)
    ids = source.reporting[:: -(-len(source.reporting) // REPORTED)]
    best: dict[str, list[np.ndarray]] = {"random": [], "as listed": [], "forest": [], "ranked": []}
    for image_id in tqdm(ids, desc="measuring", disable=None):
        truth = source.read(image_id)
        proposals, strength = propose(truth.image), edges(truth.image)
        overlaps = proposals.iou_with_masks(truth.masks, truth.void)
        found = features(proposals, borders(proposals.superpixels, strength))
        shuffled = [rng.permutation(len(proposals)) for _ in range(SHUFFLES)]
        best["random"].append(np.mean([_firsts(overlaps, order) for order in shuffled], axis=0))
        best["as listed"].append(_firsts(overlaps, np.arange(len(proposals))))
        alone = np.argsort(-predict(forest, found), kind="stable")
        best["forest"].append(_firsts(overlaps, alone))
        best["ranked"].append(_firsts(overlaps, rank(proposals, strength, forest)))
    print(f"best overlap in {len(ids)} other images, {', '.join(map(str, NUMBERS))}, all:")
    for name, parts in best.items():
        means = np.concatenate(parts, axis=1).mean(axis=1)
        print(f"  {name:9}", *(f"{mean:.3f}" for mean in means))


def _firsts(overlaps: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(4, N): of overlaps (P, N), each object's best among the first candidates and among all."""
    return np.stack([overlaps[order[:n]].max(axis=0) for n in (*NUMBERS, len(order))])
