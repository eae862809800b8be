"""How good labels from boxes are before any network learns, on real VOC2012, as a table.

    python benchmarks/label_quality.py --voc DIR --out FILE.md [--published DIR] [--images N]

Labels are estimated for all images that have both boxes and a label map, and compared with it as
label maps are everywhere: one confusion matrix over all images, mean IoU over the categories that
occur. Settings are those of params/dai2015.yaml; a candidate is chosen by the overlap of its box
alone, as in the first round. What each image gave is kept in --work, so a run that was stopped goes
on; remove that folder after a change of code. Minutes on a quiet core.

N boxes, P candidates, C categories.
"""

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.catalogue import load_catalogue
from pipeline.categories import VOC
from pipeline.datasets.form import Sample, read_image
from pipeline.datasets.tree import Place, Problems
from pipeline.datasets.voc import open_tree
from pipeline.labels import (
    choose,
    grabcut_mask,
    label_map_of,
    overlap_costs,
    paint,
    rectangle_labels,
)
from pipeline.machine import machine
from pipeline.masks import decode_index_png
from pipeline.metrics.semantic import confusion_matrix, scores
from pipeline.params import BoxSupLabels, GrabCut, Params
from pipeline.proposals.edges import edges
from pipeline.proposals.form import Proposals
from pipeline.proposals.methods import propose

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("mcg", "ss", "gop")
DRAWS = 3  # of the five candidates of a box
NAMES = {"mcg": "MCG, contours and order not learnt", "ss": "Selective Search", "gop": "GOP"}


# --- one image ------------------------------------------------------------------------------------
def estimates(image: np.ndarray, sample: Sample, params: Params, methods: list[str]) -> Iterable:
    """(estimator, label map) for each, and (estimator, numbers about its candidates)."""
    boxes = np.array([o.box for o in sample.objects or ()], np.int64).reshape(-1, 4)
    categories = np.array([o.category for o in sample.objects or ()], np.int64)
    yield "rectangles", rectangle_labels(boxes, categories, *sample.size)
    cut = params.boxsup["grabcut_voc"].estimator
    assert isinstance(cut, GrabCut)
    masks = [
        grabcut_mask(image, box, iterations=cut.iterations, min_area=cut.min_area) for box in boxes
    ]
    yield "grabcut", paint(masks, boxes, categories, *sample.size)
    for method in methods:
        algorithm = params.proposals[f"{method}_voc2012"].algorithm
        source = getattr(algorithm, "edges", None)
        strength = edges("gradient", sigma=source.sigma) if source else None
        candidates = propose(image, algorithm, strength, None)
        yield from by_overlap(method, candidates, boxes, categories, params)


def by_overlap(
    method: str, candidates: Proposals, boxes: np.ndarray, categories: np.ndarray, params: Params
) -> Iterable:
    """Labels by the nearest candidate, and by one of the five nearest, drawn a few times."""
    costs = overlap_costs(candidates, boxes)
    estimator = params.boxsup["boxsup_top5_voc"].estimator
    assert isinstance(estimator, BoxSupLabels)
    for top_k, draws in ((1, 1), (estimator.top_k, DRAWS)):
        for seed in range(draws):
            rng = np.random.default_rng(seed)
            choices = [
                choose(
                    cost,
                    np.full_like(cost, np.nan),
                    lam=0.0,
                    top_k=top_k,
                    min_box_iou=estimator.min_box_iou,
                    fallback_box_iou=estimator.fallback_box_iou,
                    fallback=estimator.fallback,
                    rng=rng,
                )
                for cost in costs
            ]
            label_map = label_map_of(choices, candidates, boxes, categories)
            yield f"{method} top-{top_k} {seed}", label_map
    yield (
        method,
        {
            "candidates": len(candidates),
            "overlaps": (1 - costs.min(axis=1, initial=1)).tolist(),
            "admissible": [choice.admissible for choice in choices],
            "unfit": sum(choice.reason == "unfit" for choice in choices),
        },
    )


def measured(image: np.ndarray, sample: Sample, params: Params, methods: list[str]) -> dict:
    """{estimator: confusion matrix (C, C + 1) as lists, or numbers}, and the number of boxes."""
    assert sample.label_map is not None
    found: dict[str, Any] = {"boxes": len(sample.objects or ())}
    for name, given in estimates(image, sample, params, methods):
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


def beside(published: Path, ids: dict[str, dict], truths: dict[str, np.ndarray]) -> list[str]:
    """What DeepLab's authors published, on the images that both have, and their own labels."""
    lines = []
    names = {"bbox": "network trained on rectangles", "bbox_crf": "on rectangles with CRF"}
    common = sorted(set(ids) & {path.stem for path in (published / "bbox").glob("*.png")})
    if common:
        lines += [f"\nOn {len(common)} images of val ({', '.join(common)}):\n"]
        lines += ["| | mean IoU, % |", "|---|---|"]
        images = [ids[image_id] for image_id in common]
        ours = {"rectangles": "rectangles", "GrabCut": "grabcut", "MCG nearest": "mcg top-1 0"}
        for label, name in ours.items():
            if name in images[0]:
                lines.append(f"| our labels, {label} | {100 * mean_iou(images, name):.1f} |")
        for folder, label in names.items():
            counts = sum(against(published / folder, i, truths[i]) for i in common)
            lines.append(f"| their output, {label} | {100 * scores(counts).mean_iou:.1f} |")
    own = sorted((published / "erode_bbox" / "gt").glob("*.png"))
    if own:
        lines += [
            f"\nTheir own labels of {len(own)} other images, against the truth beside them:\n"
        ]
        lines += ["| | mean IoU, % |", "|---|---|"]
        for folder, label in (("bbox", "rectangles"), ("crf", "rectangles refined by a CRF")):
            of_folder = published / "erode_bbox" / folder
            counts = sum(against(of_folder, path.stem, decode_index_png(path)) for path in own)
            lines.append(f"| their labels, {label} | {100 * scores(counts).mean_iou:.1f} |")
    return lines


def against(folder: Path, image_id: str, truth: np.ndarray) -> Any:
    return confusion_matrix(decode_index_png(folder / f"{image_id}.png"), truth, len(VOC))


def kept(path: Path, methods: list[str]) -> dict | None:
    found = json.loads(path.read_text()) if path.exists() else None
    return found if found and set(methods) <= set(found) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--voc", type=Path, required=True, help="the folder that holds VOC2012/")
    parser.add_argument("--published", type=Path, help="deeplab_weak_icml2015/")
    parser.add_argument("--out", type=Path, required=True, help="the table, a .md")
    parser.add_argument("--images", type=int, default=10**9, help="at most so many of each split")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["mcg"])
    parser.add_argument("--work", type=Path, default=Path("work/label_quality"))
    given = parser.parse_args()

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
            if sample.objects is None:
                without += 1
                continue
            path = given.work / f"{image_id}.json"
            found = kept(path, given.methods)
            if found is None:
                found = measured(read_image(record.image), sample, params, given.methods)
                path.write_text(json.dumps(found))
            by_split[split].append(found)
            by_id[image_id], truths[image_id] = found, sample.label_map
    lines = [
        "# Labels from boxes before any network learns: mean IoU against the masks, %\n",
        f"Made by `benchmarks/label_quality.py` on {machine()}. {without} images without boxes are "
        f"left out. One of five: mean ± standard deviation of {DRAWS} draws of all labels.\n",
        *table(by_split, given.methods),
    ]
    if given.published:
        lines += beside(given.published, by_id, truths)
    partial = given.out.with_name(f".{given.out.name}.partial")
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, given.out)


if __name__ == "__main__":
    main()
