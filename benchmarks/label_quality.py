"""How good labels from boxes are, by overlap and with feedback, on real VOC2012, as tables.

    python benchmarks/label_quality.py --voc DIR --out FILE.md [--published DIR] [--images N]
        [--methods mcg_bsds mcg ss gop --contours FORESTS/bsds_contours.npz
         --ranker FORESTS/bsds_ranking.npz] [--networks MODELS/*.pt]

Labels are estimated for all images that have both boxes and a label map, and compared with it as
label maps are everywhere: one confusion matrix over all images, mean IoU over the categories that
occur. Settings are those of params/dai2015.yaml; a candidate is chosen by the overlap of its box
alone, as in the first round. mcg_bsds needs the two forests of that file, data/forests/ of a
project that has made them. A second table has the objects that are alone of their category in an
image, where the label map has their own mask: what is lost because no candidate fits them, and what
because another one is taken. A third has the labels that one label step of BoxSup makes with a
trained network's feedback, and with that of a network that would know the truth: what alternation
can do with these candidates. What each image gave is kept in --work, so a run that was stopped goes
on; remove that folder after a change of code. Minutes on a quiet core.

H x W pixels, N boxes, P candidates, C categories, K objects that are alone.
"""

import argparse
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pipeline.boxes import box_mask, iou, tight_box
from pipeline.catalogue import load_catalogue
from pipeline.categories import IGNORE, VOC
from pipeline.checkpoints import CPU, load_model
from pipeline.datasets.form import Sample, read_image
from pipeline.datasets.tree import Place, Problems
from pipeline.datasets.voc import open_tree
from pipeline.datasets.voc_boxes import MIN_BOX_IOU
from pipeline.forests import open_contours, open_ranker
from pipeline.inference import for_inference, view_probabilities
from pipeline.label_step import CLIP
from pipeline.labels import (
    Choice,
    choose,
    grabcut_mask,
    image_costs,
    label_map_of,
    overlap_costs,
    paint,
    rectangle_labels,
)
from pipeline.machine import machine
from pipeline.masks import decode_index_png
from pipeline.metrics.semantic import confusion_matrix, scores
from pipeline.params import Params
from pipeline.params_proposals import BoostedEdges, GradientEdges
from pipeline.params_training import BoxSupLabels, GrabCut
from pipeline.proposals.edges import edges
from pipeline.proposals.forest import Forest
from pipeline.proposals.form import Proposals
from pipeline.proposals.methods import propose
from pipeline.transforms import normalise

ROOT = Path(__file__).resolve().parents[1]
DRAWS = 3  # of the five candidates of a box
LAMBDAS = (0.1, 1.0)  # a weak feedback, and that of params/dai2015.yaml
SURE = 0.9  # probability of the true category, from what knows the truth
NAMES = {
    "mcg_bsds": "MCG, contours and order learnt from BSDS500",
    "mcg": "MCG, contours and order not learnt",
    "ss": "Selective Search",
    "gop": "GOP",
}
CHOICES = {  # of one object: which candidate is taken
    "nearest": "nearest",
    "five": "one of five, mean",
    "fitting": "best mask of those whose box fits",
    "best": "best mask of all",
}


# --- one image ------------------------------------------------------------------------------------
class Learnt(NamedTuple):
    """What has been learnt: by mcg_bsds, None where it is not measured, and by networks."""

    contours: Forest | None
    ranker: Forest | None
    networks: dict[str, nn.Module]


class Boxes(NamedTuple):
    """The annotated objects of an image, and the masks of those that are alone."""

    image_id: str
    boxes: np.ndarray  # (N, 4)
    categories: np.ndarray  # (N,)
    alone: np.ndarray  # (K,), places among the boxes
    masks: np.ndarray  # (K, H, W) bool
    truth: np.ndarray  # (H, W) uint8

    @property
    def void(self) -> np.ndarray:
        """Pixels (H, W) bool that count nowhere."""
        return self.truth == IGNORE


def boxes_of(sample: Sample) -> Boxes:
    """The objects; one is alone if no other box is of its category, and the mask fits its own."""
    assert sample.label_map is not None
    boxes = np.array([o.box for o in sample.objects or ()], np.int64).reshape(-1, 4)
    categories = np.array([o.category for o in sample.objects or ()], np.int64)
    masks = sample.label_map == categories[:, None, None]
    extents = np.array([tight_box(mask) for mask in masks]).reshape(-1, 4)
    fits = np.diagonal(iou(boxes, extents)) >= MIN_BOX_IOU
    alone = np.flatnonzero(fits & (np.bincount(categories, minlength=len(VOC))[categories] == 1))
    return Boxes(sample.image_id, boxes, categories, alone, masks[alone], sample.label_map)


def estimates(
    image: np.ndarray, found: Boxes, params: Params, methods: list[str], learnt: Learnt
) -> Iterable:
    """(estimator, label map (H, W)) for each, and (estimator, numbers about it)."""
    boxes, size = found.boxes, image.shape[:2]
    yield "rectangles", rectangle_labels(boxes, found.categories, *size)
    yield "rectangles alone", overlaps(found, [box_mask(boxes[i], *size) for i in found.alone])
    cut = params.boxsup["grabcut_voc"].estimator
    assert isinstance(cut, GrabCut)
    masks = [
        grabcut_mask(image, box, iterations=cut.iterations, min_area=cut.min_area) for box in boxes
    ]
    yield "grabcut", paint(masks, boxes, found.categories, *size)
    yield "grabcut alone", overlaps(found, [masks[i] for i in found.alone])
    settings = params.boxsup["boxsup_top5_voc"].estimator
    assert isinstance(settings, BoxSupLabels)
    logs = opinions(image, found, learnt.networks)
    for name, log in logs.items():
        yield name, np.array([0, *np.unique(found.categories)], np.uint8)[log.argmax(axis=0)]
    for method in methods:
        algorithm = params.proposals[f"{method}_voc2012"].algorithm
        match getattr(algorithm, "edges", None):
            case GradientEdges(sigma=sigma):
                strength = edges("gradient", sigma=sigma)
            case BoostedEdges():
                strength = edges("boosted", forest=learnt.contours)
            case _:
                strength = None
        ranker = learnt.ranker if method == "mcg_bsds" else None
        candidates = propose(image, algorithm, strength, ranker)
        yield from by_overlap(method, candidates, found, settings)
        yield from by_feedback(method, candidates, found, logs, settings)


def overlaps(found: Boxes, masks: list[np.ndarray]) -> list[float]:
    """IoU of each object that is alone with a mask (H, W) bool of its own."""
    counted = ~found.void
    return [
        float((truth & mask & counted).sum() / ((truth | mask) & counted).sum())
        for truth, mask in zip(found.masks, masks, strict=True)
    ]


@torch.inference_mode()
def opinions(
    image: np.ndarray, found: Boxes, networks: dict[str, nn.Module]
) -> dict[str, np.ndarray]:
    """log P of background and the image's categories in each pixel: of the truth, of networks."""
    wanted = np.array([0, *np.unique(found.categories)])
    right = found.truth == wanted[:, None, None]
    sure = np.where(right, SURE, (1 - SURE) / (len(VOC) - 1)).astype(np.float32)
    sure[:, found.void] = 1 / len(VOC)
    logs = {"truth": np.log(sure)}
    pixels = normalise(torch.from_numpy(image)[None])
    for name, network in networks.items():
        probabilities = view_probabilities(network, pixels, precision="bf16")
        logs[name] = probabilities[0, wanted].log().numpy()
    return logs


def choices_of(
    overlap: np.ndarray,
    regression: np.ndarray,
    settings: BoxSupLabels,
    *,
    lam: float,
    top_k: int,
    seed: list[int],
) -> list[Choice]:
    """What the label step chooses for each box, by costs (N, P)."""
    rng = np.random.default_rng(seed)
    return [
        choose(
            *costs,
            lam=lam,
            top_k=top_k,
            min_box_iou=settings.min_box_iou,
            fallback_box_iou=settings.fallback_box_iou,
            fallback=settings.fallback,
            rng=rng,
        )
        for costs in zip(overlap, regression, strict=True)
    ]


def by_feedback(
    method: str,
    candidates: Proposals,
    found: Boxes,
    logs: dict[str, np.ndarray],
    settings: BoxSupLabels,
) -> Iterable:
    """Labels by the cheapest candidate, with each feedback."""
    rows = 1 + np.unique(found.categories, return_inverse=True)[1]
    for name, log in logs.items():
        costs = image_costs(candidates, found.boxes, rows, log, clip=CLIP, costs=settings.costs)
        for lam in LAMBDAS:
            choices = choices_of(*costs, settings, lam=lam, top_k=1, seed=[])
            label_map = label_map_of(choices, candidates, found.boxes, found.categories)
            yield f"{method} {name} {lam}", label_map


def by_overlap(
    method: str, candidates: Proposals, found: Boxes, settings: BoxSupLabels
) -> Iterable:
    """Labels by the nearest candidate, and by one of the five nearest, drawn a few times."""
    costs = overlap_costs(candidates, found.boxes)
    unasked = np.full_like(costs, np.nan)
    nearest: list[Choice] = []
    for top_k, draws in ((settings.top_k, DRAWS), (1, 1)):
        for seed in range(draws):
            of_image = [seed, zlib.crc32(found.image_id.encode())]
            nearest = choices_of(costs, unasked, settings, lam=0.0, top_k=top_k, seed=of_image)
            label_map = label_map_of(nearest, candidates, found.boxes, found.categories)
            yield f"{method} top-{top_k} {seed}", label_map
    about = {
        "candidates": len(candidates),
        "overlaps": (1 - costs.min(axis=1, initial=1)).tolist(),
        "admissible": [choice.admissible for choice in nearest],
        "unfit": sum(choice.reason == "unfit" for choice in nearest),
    }
    yield method, about | of_alone(candidates, found, costs, nearest, settings)


def of_alone(
    candidates: Proposals,
    found: Boxes,
    costs: np.ndarray,
    nearest: list[Choice],
    settings: BoxSupLabels,
) -> dict[str, list[float]]:
    """IoU of each object that is alone with the candidates of `CHOICES`; with its box if unfit."""
    chosen: dict[str, list[float]] = {name: [] for name in CHOICES}
    inside = candidates.iou_with_masks(found.masks, found.void)  # (P, K)
    for k, i in enumerate(found.alone):
        values = inside[:, k]
        fitting = values[costs[i] <= 1 - settings.min_box_iou]
        closest = np.argsort(costs[i], kind="stable")[: settings.top_k]
        closest = closest[costs[i][closest] < 1]
        if nearest[i].reason == "unfit":
            rectangle = box_mask(found.boxes[i], *found.void.shape)
            one = overlaps(found._replace(masks=found.masks[[k]]), [rectangle])[0]
            values, closest, fitting = np.array([one]), np.array([0]), np.array([one])
        chosen["nearest"].append(float(values[closest[0]]))
        chosen["five"].append(float(values[closest].mean()))
        chosen["fitting"].append(float(fitting.max(initial=values[closest[0]])))
        chosen["best"].append(float(values.max()))
    return chosen


def measured(
    image: np.ndarray, sample: Sample, params: Params, methods: list[str], learnt: Learnt
) -> dict:
    """{estimator: confusion matrix (C, C + 1) as lists, or numbers}, and the number of boxes."""
    assert sample.label_map is not None
    boxes = boxes_of(sample)
    found: dict[str, Any] = {"boxes": len(boxes.boxes)}
    for name, given in estimates(image, boxes, params, methods, learnt):
        if isinstance(given, np.ndarray):
            given = confusion_matrix(given, sample.label_map, len(VOC)).tolist()
        found[name] = given
    return found


# --- all images -----------------------------------------------------------------------------------
def mean_iou(images: list[dict], name: str) -> float:
    return scores(np.sum([np.array(image[name]) for image in images], axis=0)).mean_iou


def row(label: str, groups: list[list[dict]], names: list[str], about: str) -> str:
    """A row of the table: mean IoU in each group, in the mean over draws, with their spread."""
    cells = []
    for images in groups:
        if not images:
            cells.append("–")
            continue
        values = 100 * np.array([mean_iou(images, name) for name in names])
        spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
        cells.append(f"{values.mean():.1f}{spread}")
    return f"| {label} | {' | '.join(cells)} | {about} |"


def about_candidates(images: list[dict], method: str) -> str:
    parts = [image[method] for image in images]
    boxes = sum(image["boxes"] for image in images)
    overlap = np.mean([value for part in parts for value in part["overlaps"]])
    admissible = np.median([value for part in parts for value in part["admissible"]])
    return (
        f"{np.mean([part['candidates'] for part in parts]):,.0f} candidates; best box IoU "
        f"{overlap:.3f} in the mean; {admissible:.0f} admissible (median); "
        f"{sum(part['unfit'] for part in parts)} of {boxes} boxes left to rectangles"
    )


def table(by_split: dict[str, list[dict]], methods: list[str]) -> list[str]:
    groups = [*by_split.values(), [image for images in by_split.values() for image in images]]
    counts = [f"{len(images)} images, {sum(i['boxes'] for i in images)} boxes" for images in groups]
    heads = [f"{name} ({n})" for name, n in zip([*by_split, "all"], counts, strict=True)]
    lines = [f"| labels | {' | '.join(heads)} | candidates |", "|---" * (len(heads) + 2) + "|"]
    lines.append(row("rectangles", groups, ["rectangles"], ""))
    lines.append(row("GrabCut", groups, ["grabcut"], ""))
    for method in methods:
        about = about_candidates(groups[-1], method)
        drawn = sorted(name for name in groups[-1][0] if name.startswith(f"{method} top-5"))
        lines.append(row(f"{NAMES[method]}: nearest", groups, [f"{method} top-1 0"], about))
        lines.append(row(f"{NAMES[method]}: one of five", groups, drawn, ""))
    return lines


def alone_table(images: list[dict], methods: list[str]) -> list[str]:
    """Overlap of objects that are alone with what each way of choosing takes."""
    count = sum(len(image["grabcut alone"]) for image in images)
    lines = [
        "\n## Objects that are alone of their category in the image\n",
        f"Mean IoU in per cent of {count} objects with what is taken for them. The best masks are "
        "found by the truth: bounds of what a choice among these candidates could reach.\n",
        "| candidates | " + " | ".join(CHOICES.values()) + " |",
        "|---" * (len(CHOICES) + 1) + "|",
    ]
    for name, label in (("rectangles", "the rectangle itself"), ("grabcut", "GrabCut")):
        value = mean_of_all(image[f"{name} alone"] for image in images)
        lines.append(f"| {label} | {value} |" + " |" * (len(CHOICES) - 1))
    for method in methods:
        cells = [mean_of_all(image[method][choice] for image in images) for choice in CHOICES]
        lines.append(f"| {NAMES[method]} | {' | '.join(cells)} |")
    return lines


def feedback_table(images: list[dict], methods: list[str], networks: list[str]) -> list[str]:
    """What one label step makes of each feedback, beside overlap alone."""
    if not images:
        return []
    heads = [f"{m}, lambda {lam}" for m in methods for lam in LAMBDAS]
    lines = [
        "\n## One label step with a network's feedback\n",
        "train_aug; mean IoU in per cent of the labels by the cheapest candidate. A network's own "
        "map is its best guess among background and the image's categories; beside it, how much of "
        f"the image that is no background. What knows the truth gives it {SURE}.\n",
        f"| feedback | its own map | of which objects | {' | '.join(heads)} |",
        "|---" * (len(heads) + 3) + "|",
    ]
    cells = [f"{100 * mean_iou(images, f'{m} top-1 0'):.1f}" for m in methods for _ in LAMBDAS]
    lines.append(f"| none: overlap alone | – | – | {' | '.join(cells)} |")
    for name in ("truth", *networks):
        names = [f"{m} {name} {lam}" for m in methods for lam in LAMBDAS]
        own = np.sum([np.array(image[name]) for image in images], axis=0)
        cells = [f"{100 * mean_iou(images, n):.1f}" for n in (name, *names)]
        cells.insert(1, f"{100 * own[:, 1:-1].sum() / own.sum():.1f} %")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def mean_of_all(of_images: Iterable[list[float]]) -> str:
    values = [value for of_image in of_images for value in of_image]
    return f"{100 * np.mean(values):.1f}" if values else "–"


def beside(
    published: Path, found: dict[str, dict], truths: dict[str, np.ndarray], methods: list[str]
) -> list[str]:
    """What DeepLab's authors published, on the images that both have, and their own labels."""
    lines = ["\n## What DeepLab's authors published\n"]
    names = {
        "bbox": "network trained on rectangles",
        "bbox_crf": "network trained on rectangles refined by a CRF",
    }
    theirs = sorted(set(truths) & {path.stem for path in (published / "bbox").glob("*.png")})
    common = [image_id for image_id in theirs if image_id in found]
    if theirs:
        lines += [
            f"Mean IoU in per cent on {len(theirs)} images of val, and on the {len(common)} of "
            f"them that have boxes here ({', '.join(common)}). Labels are made from the boxes of "
            "these images, outputs from the images alone.\n",
            f"| | {len(theirs)} images | {len(common)} images |",
            "|---|---|---|",
        ]
        ours = {"rectangles": "rectangles", "GrabCut": "grabcut"}
        ours |= {f"{NAMES[m]}: nearest": f"{m} top-1 0" for m in methods}
        for label, name in ours.items():
            score = 100 * mean_iou([found[i] for i in common], name) if common else np.nan
            lines.append(f"| our labels, {label} | – | {score:.1f} |")
        for folder, label in names.items():
            cells = [
                f"{agreement(published / folder, ids, truths):.1f}" for ids in (theirs, common)
            ]
            lines.append(f"| their output, {label} | {' | '.join(cells)} |")
    own = {p.stem: decode_index_png(p) for p in (published / "erode_bbox" / "gt").glob("*.png")}
    if own:
        lines += [
            f"\nTheir own labels of {len(own)} other images, against the truth beside them:\n",
            "| | mean IoU, % |",
            "|---|---|",
        ]
        for folder, label in (("bbox", "rectangles"), ("crf", "rectangles refined by a CRF")):
            score = agreement(published / "erode_bbox" / folder, sorted(own), own)
            lines.append(f"| their labels, {label} | {score:.1f} |")
    return lines


def agreement(folder: Path, ids: list[str], truths: dict[str, np.ndarray]) -> float:
    """Mean IoU, %, of the label maps of a folder; NaN for no image."""
    maps = ((decode_index_png(folder / f"{i}.png"), truths[i]) for i in ids)
    counts = [confusion_matrix(given, truth, len(VOC)) for given, truth in maps]
    return 100 * scores(np.sum(counts, axis=0)).mean_iou if counts else float("nan")


def kept(path: Path, names: set[str]) -> dict | None:
    found = json.loads(path.read_text()) if path.exists() else None
    return found if found and names <= set(found) else None


def opened(path: Path) -> nn.Module:
    return for_inference(load_model(path, CPU)[0], precision="bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--voc", type=Path, required=True, help="the folder that holds VOC2012/")
    parser.add_argument("--published", type=Path, help="deeplab_weak_icml2015/")
    parser.add_argument("--out", type=Path, required=True, help="the table, a .md")
    parser.add_argument("--images", type=int, default=10**9, help="at most so many of each split")
    parser.add_argument("--methods", nargs="+", choices=list(NAMES), default=["mcg"])
    parser.add_argument("--contours", type=Path, help="for mcg_bsds: bsds_contours.npz")
    parser.add_argument("--ranker", type=Path, help="for mcg_bsds: bsds_ranking.npz")
    parser.add_argument("--networks", nargs="+", type=Path, default=[], help="trained, *.pt")
    parser.add_argument("--work", type=Path, default=Path("work/label_quality"))
    given = parser.parse_args()
    if "mcg_bsds" in given.methods and not (given.contours and given.ranker):
        parser.error("mcg_bsds needs --contours and --ranker")
    learnt = Learnt(
        open_contours(given.contours) if given.contours else None,
        open_ranker(given.ranker) if given.ranker else None,
        {path.stem: opened(path) for path in given.networks},
    )

    params = load_catalogue(ROOT / "params" / "dai2015.yaml")
    problems = Problems(collect=False)
    tree = open_tree(Place("voc2012", given.voc), problems, sbd_place=None, categories=VOC)
    given.work.mkdir(parents=True, exist_ok=True)
    by_split: dict[str, list[dict]] = {}
    by_id, truths, without = {}, {}, 0
    for split in ("train_aug", "val"):
        by_split[split] = []
        for image_id in tqdm(tree.splits[split][: given.images], desc=split, disable=None):
            record = tree.record(image_id)
            sample = tree.read(record, problems)
            truths[image_id] = sample.label_map
            if sample.objects is None:
                without += 1
                continue
            path = given.work / f"{image_id}.json"
            found = kept(path, {*given.methods, *learnt.networks})
            if found is None:
                image = read_image(record.image)
                found = measured(image, sample, params, given.methods, learnt)
                path.write_text(json.dumps(found))
            by_split[split].append(found)
            by_id[image_id] = found
    lines = [
        "# Labels from boxes: mean IoU against the masks, %\n",
        f"Made by `benchmarks/label_quality.py` on {machine()}. {without} images without boxes are "
        f"left out. One of five: mean ± standard deviation of {DRAWS} draws of all labels.\n",
        *table(by_split, given.methods),
        *alone_table(list(by_id.values()), given.methods),
        *feedback_table(by_split["train_aug"], given.methods, list(learnt.networks)),
    ]
    if given.published:
        lines += beside(given.published, by_id, truths, given.methods)
    partial = given.out.with_name(f".{given.out.name}.partial")
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, given.out)


if __name__ == "__main__":
    main()
