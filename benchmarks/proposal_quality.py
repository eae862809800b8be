"""How good the candidates of each method are, on images that nothing was fitted to, as a table.

    python benchmarks/proposal_quality.py --bsds DIR --voc DIR --out FILE.json [--images N]

Forests are fitted to BSDS500's fitting images (`ranked`) and to VOC2012's train objects (`ranked,
voc`). Forests and figures are kept in --work as they are found, so a run that was stopped goes on;
remove that folder after a change of code. Regions of BSDS500 are those of 300 pixels and more of
every person; Jaccard indices leave out what is void. Seconds are of the process, on one core, the
median over images. About a quarter of an hour on a quiet core.

H x W pixels, P candidates, N objects, K budgets.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from pipeline.boxes import iou, tight_box
from pipeline.categories import IGNORE
from pipeline.datasets.bsds import Bsds, fitting_and_reporting, open_bsds
from pipeline.datasets.edge_files import read_forest, ucm_strength, write_forest
from pipeline.datasets.form import read_image
from pipeline.datasets.lists import read_ids
from pipeline.datasets.tree import Problems
from pipeline.edge_training import fit_edges
from pipeline.masks import decode_index_png
from pipeline.metrics.proposals import count_proposals
from pipeline.params_proposals import GradientEdges, Mcg
from pipeline.proposals.edges import Edges, edges
from pipeline.proposals.forest import Forest
from pipeline.proposals.form import Proposals
from pipeline.proposals.gop import gop
from pipeline.proposals.grouping import leaves_for, tuples
from pipeline.proposals.hierarchy import combined, top
from pipeline.proposals.mcg import grouped, mcg, scale_trees, single_scale
from pipeline.proposals.ranking import rank
from pipeline.proposals.scg import scg
from pipeline.proposals.selective_search import selective_search
from pipeline.ranker_training import Source, bsds_regions, fit_on, voc_objects

BUDGETS = (100, 500, 650, 1000, 2000)  # then as many as Selective Search has, then all
ALL = 10**6
SHUFFLES = 2  # random orders of each image
PEERS = 10  # images for OpenCV's Selective Search
MCG = Mcg(
    kind="mcg",
    edges=GradientEdges("gradient", sigma=2.0),
    min_area=200,
    align_cut=0.1,
    singletons=(90, 500, 200, 900),
    pairs=(2000, 3000, 5000, 700),
    triplets=(300, 10000, 5000, 700),
    quadruplets=(300, 4000, 300, 200),
    max_overlap=0.95,
    max_candidates=ALL,
    fill_holes=True,
)
SCG = single_scale(MCG)
METHODS = ("ss", "mcg-gradient", "mcg-boosted", "scg-gradient", "scg-boosted", "gop-gradient",
           "gop-boosted")  # fmt: skip


class Truth(NamedTuple):
    """One image and what should be found in it."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    masks: np.ndarray  # (N, H, W) bool
    void: np.ndarray  # (H, W) bool
    category: np.ndarray  # (N,) from 0


class Images(NamedTuple):
    """Images that are measured."""

    ids: tuple[str, ...]
    read: Callable[[str], Truth]


# --- images ------------------------------------------------------------------------------------
def objects_of(ids: Iterable[str], source: Source) -> Images:
    def read(image_id: str) -> Truth:
        truth = source.read(image_id)
        return Truth(*truth, np.zeros(len(truth.masks), np.int64))

    return Images(tuple(ids), read)


def voc_folder(folder: Path) -> Path:
    """The folder that holds JPEGImages/."""
    around = (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012")
    return next(place for place in around if (place / "JPEGImages").is_dir())


def classes_of(folder: Path, split: str) -> Images:
    """What all objects of a category in an image cover together."""
    ids = read_ids(folder / "ImageSets/Segmentation" / f"{split}.txt", Problems(collect=False))

    def read(image_id: str) -> Truth:
        image = read_image(folder / "JPEGImages" / f"{image_id}.jpg")
        labels = decode_index_png(folder / "SegmentationClass" / f"{image_id}.png")
        present = np.setdiff1d(labels, (0, IGNORE))
        masks = labels == present[:, None, None]
        return Truth(image, masks, labels == IGNORE, present.astype(np.int64))

    there = (i for i in ids if (folder / "SegmentationClass" / f"{i}.png").exists())
    return Images(tuple(there), read)


# --- methods -----------------------------------------------------------------------------------
def kept_forest(path: Path, make: Callable[[], Forest]) -> Forest:
    if not path.exists():
        write_forest(path, asdict(make()))
    return Forest(**read_forest(path))


def contours(name: str, work: Path) -> Edges:
    """Of a method: boosted ones from work/boosted.npz, which must be there."""
    if name.endswith("boosted"):
        return edges("boosted", forest=Forest(**read_forest(work / "boosted.npz")))
    return edges("gradient", sigma=2.0)


def method(name: str, source: Edges) -> Callable[[np.ndarray], Proposals]:
    match name.split("-")[0]:
        case "mcg":
            return lambda image: mcg(image, MCG, source)
        case "scg":
            return lambda image: scg(image, SCG, source)
        case "gop":
            return lambda image: gop(image, edges=source)
        case _:
            return partial(selective_search, max_candidates=ALL)


# --- one method on some images -----------------------------------------------------------------
class Remembered:
    """A method that keeps the candidates of each image, and how long they took."""

    def __init__(self, propose: Callable[[np.ndarray], Proposals]) -> None:
        self.propose = propose
        self.found: dict[bytes, tuple[Proposals, float]] = {}

    def __call__(self, image: np.ndarray) -> Proposals:
        return self.timed(image)[0]

    def timed(self, image: np.ndarray) -> tuple[Proposals, float]:
        key = image.tobytes()
        if key not in self.found:
            begin = time.process_time()
            proposals = self.propose(image)
            self.found[key] = proposals, time.process_time() - begin
        return self.found[key]


def measured(
    images: Images,
    propose: Remembered,
    source: Edges,
    forests: dict[str, Forest],
    equal: dict[str, int],
    *,
    name: str,
) -> dict[str, Any]:
    """Figures of the candidates as listed, shuffled, and ranked by each forest.

    Args:
        forests: by the name of the order.
        equal: by image, how many candidates Selective Search has; none where it is measured.
    """
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    seconds: list[float] = []
    ranking: list[float] = []
    numbers = {}
    rng = np.random.default_rng(0)
    for image_id in tqdm(images.ids, desc=name, disable=None):
        truth = images.read(image_id)
        proposals, taken = propose.timed(truth.image)
        seconds.append(taken)
        numbers[image_id] = len(proposals)
        budgets = (*BUDGETS, equal.get(image_id, len(proposals)), ALL)
        orders = {"list": [np.arange(len(proposals))]}
        orders["random"] = [rng.permutation(len(proposals)) for _ in range(SHUFFLES)]
        strength = source(truth.image)
        for order, forest in forests.items():
            begin = time.process_time()
            orders[order] = [rank(proposals, strength, forest)]
            ranking.append(time.process_time() - begin)
        for order, places in orders.items():
            found.setdefault(order, []).extend(
                counted(truth, proposals, p, budgets) for p in places
            )
    return {
        "seconds": float(np.median(seconds)),
        "ranking_seconds": float(np.median(ranking)),
        "numbers": numbers,
        "orders": {order: figures(parts) for order, parts in found.items()},
    }


def counted(
    truth: Truth, proposals: Proposals, order: np.ndarray, budgets: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """What is added up over images."""
    shared, sizes, pixels = proposals.pixels_in_masks(truth.masks, truth.void)
    counts = count_proposals(
        shared[order],
        sizes[order],
        pixels,
        truth.category,
        pixels,
        budgets=[min(budget, 100_000) for budget in budgets],
        num_categories=IGNORE,
    )
    boxes = np.array([tight_box(mask) for mask in truth.masks]).reshape(-1, 4)
    overlaps = iou(proposals.boxes[order], boxes)
    best = np.array([overlaps[:budget].max(axis=0) for budget in budgets])  # (K, N)
    return {
        "images": np.array(1),
        "objects": counts.objects[0],
        "used": counts.proposals,
        "best": counts.best,
        "recalled": counts.recalled[:2],
        "boxes": np.array([(best >= least).sum(axis=1) for least in (0.5, 0.7)]),
        "shared": counts.shared,
        "union": counts.union,
    }


def figures(parts: list[dict[str, np.ndarray]]) -> dict[str, list]:
    """Means; each list is of budgets, in recalls of lists for 0.5 and 0.7."""
    total = {key: sum(part[key] for part in parts) for key in parts[0]}
    present = total["union"].any(axis=1)
    return {
        "candidates": (total["used"] / total["images"]).tolist(),
        "best": (total["best"] / total["objects"]).tolist(),
        "recall": (total["recalled"] / total["objects"]).tolist(),
        "box_recall": (total["boxes"] / total["objects"]).tolist(),
        "class": (total["shared"][present] / total["union"][present]).mean(axis=0).tolist(),
    }


# --- others ------------------------------------------------------------------------------------
def beside_opencv(images: Images) -> dict[str, list[float]]:
    """Boxes found at 0.5 and 0.7, boxes an image and seconds: of the peer and of ours."""

    def peer(setting: str) -> Callable[[np.ndarray], np.ndarray]:
        def search(image: np.ndarray) -> np.ndarray:
            grouping = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
            grouping.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
            getattr(grouping, f"switchToSelectiveSearch{setting}")()
            x, y, width, height = grouping.process().T
            return np.stack([x, y, x + width, y + height], axis=1)

        return search

    source = edges("gradient", sigma=2.0)
    methods = {
        "OpenCV fast": peer("Fast"),
        "OpenCV quality": peer("Quality"),
        "our Selective Search": lambda image: selective_search(image, max_candidates=ALL).boxes,
        "MCG, gradient": lambda image: mcg(image, MCG, source).boxes,
        "SCG, gradient": lambda image: scg(image, SCG, source).boxes,
    }
    rows = {}
    for name, search in methods.items():
        best, numbers, seconds = [], [], []
        for image_id in tqdm(images.ids, desc=name, disable=None):
            truth = images.read(image_id)
            begin = time.process_time()
            found = search(truth.image)
            seconds.append(time.process_time() - begin)
            numbers.append(len(np.unique(found, axis=0)))
            boxes = np.array([tight_box(mask) for mask in truth.masks]).reshape(-1, 4)
            best.append(iou(found, boxes).max(axis=0))
        every = np.concatenate(best)
        recalls = [float((every >= least).mean()) for least in (0.5, 0.7)]
        rows[name] = [*recalls, float(np.mean(numbers)), float(np.median(seconds))]
    return rows


def from_hierarchies(images: Images) -> tuple[float, float]:
    """Raw candidates an image, and seconds from four hierarchies to distinct candidates."""
    source = edges("gradient", sigma=2.0)
    raw, seconds = [], []
    for image_id in tqdm(images.ids, desc="from hierarchies", disable=None):
        trees = scale_trees(images.read(image_id).image, source, min_area=MCG.min_area)
        four = [combined(trees, cut=MCG.align_cut), *trees]
        begin = time.process_time()
        grouped(four, MCG)
        seconds.append(time.process_time() - begin)
        sizes = zip(MCG.singletons, MCG.pairs, MCG.triplets, MCG.quadruplets, strict=True)
        raw.append(
            sum(
                len(tuples(top(tree, max_leaves=leaves_for(a)), singletons=a, pairs=b, triplets=c,
                           quadruplets=d))
                for tree, (a, b, c, d) in zip(four, sizes, strict=True)
            )
        )  # fmt: skip
    return float(np.mean(raw)), float(np.median(seconds))


def peak_of(name: str, work: Path) -> float:
    """Megabytes at most of a fresh process that proposes for one image of 500 x 375 pixels."""
    command = [sys.executable, __file__, "--peak-of", name, "--work", str(work)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(shown.stdout)


def show_peak(name: str, work: Path) -> None:
    y, x = np.mgrid[:375, :500].astype(np.float32)
    rng = np.random.default_rng(0)
    waves = [np.sin(x / rng.uniform(5, 60) + y / rng.uniform(5, 60)) for _ in range(3)]
    image = np.stack(waves, axis=2) * 60 + 128 + rng.normal(0, 15, (375, 500, 3))
    if name != "nothing":
        method(name, contours(name, work))(np.clip(image, 0, 255).astype(np.uint8))
    status = Path("/proc/self/status").read_text()  # ru_maxrss has the parent's in it
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)


# --- the run -----------------------------------------------------------------------------------
def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, from the file where it was made before."""
    if not path.exists():
        unfinished = path.with_suffix(".partial")
        unfinished.write_text(json.dumps(make()))
        os.replace(unfinished, path)
    return json.loads(path.read_text())


def run(bsds: Path, voc: Path, work: Path, number: int, methods: list[str]) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    data = open_bsds(bsds)
    fitting, reporting = fitting_and_reporting(data)
    kept_forest(work / "boosted.npz", lambda: fit_edges(data, fitting, seed=0))
    drawn, derived = bsds_regions(bsds), voc_objects(voc, objects="SegmentationObjectDerived")
    # Of few images, for a trial, there is also little to fit to.
    drawn, derived = (s._replace(fitting=s.fitting[:number]) for s in (drawn, derived))
    sets = {
        "bsds": objects_of(reporting, drawn),
        "bsds-ucm": objects_of(sorted(data.with_ucm & set(reporting)), drawn),
        "voc-val": objects_of(derived.reporting, derived),
        "voc-val-classes": classes_of(voc_folder(voc), "val"),
        "voc-train": objects_of(derived.fitting, derived),
    }
    sets = {name: s._replace(ids=s.ids[:: -(-len(s.ids) // number)]) for name, s in sets.items()}
    out: dict[str, Any] = {name: {} for name in sets}
    for name in ("ss", *(name for name in methods if name != "ss")):
        fill(out, name, sets, drawn, derived, work)
    gpb = partial(of_gpb, data, sets["bsds-ucm"], out["bsds-ucm"]["ss"])
    out["bsds-ucm"]["gpb"] = kept(work / "bsds-ucm-gpb.json", gpb)
    few = sets["bsds"].ids
    some = sets["bsds"]._replace(ids=few[:: -(-len(few) // PEERS)])
    out["boxes"] = {
        "bsds": kept(work / "boxes-bsds.json", partial(beside_opencv, some)),
        "voc-val": kept(work / "boxes-voc.json", partial(beside_opencv, sets["voc-val"])),
    }
    out["from_hierarchies"] = kept(work / "candidates.json", partial(from_hierarchies, some))
    out["peak"] = {
        name: kept(work / f"peak-{name}.json", partial(peak_of, name, work))
        for name in ("nothing", *methods)
    }
    return out


def fill(
    out: dict[str, Any],
    name: str,
    sets: dict[str, Images],
    drawn: Source,
    derived: Source,
    work: Path,
) -> None:
    """The figures of one method on all sets; those of "ss" must be there for the others."""
    source = contours(name, work)
    propose = Remembered(method(name, source))
    propose(np.zeros((40, 40, 3), np.uint8))  # compiled before it is timed

    def ranker(label: str, images: Source) -> Forest:
        fit = partial(fit_on, images, propose=propose, edges=source, seed=0)
        return kept_forest(work / f"{name}-{label}.npz", fit)

    bsds = {"ranked": ranker("bsds", drawn)}
    both = dict(bsds)
    if name.startswith("mcg"):
        both["ranked, voc"] = ranker("voc", derived)
    for place, images in sets.items():
        forests = both if place.startswith("voc-val") else bsds
        equal = out[place]["ss"]["numbers"] if name != "ss" else {}
        label = f"{place}, {name}"
        make = partial(measured, images, propose, source, forests, equal, name=label)
        out[place][name] = kept(work / f"{place}-{name}.json", make)


def of_gpb(data: Bsds, images: Images, ss: dict[str, Any]) -> dict[str, dict]:
    """The published hierarchies through the same grouping, at one scale and at three."""
    found: dict[str, list[dict[str, np.ndarray]]] = {"scg": [], "mcg": []}
    for image_id in tqdm(images.ids, desc="gPb-UCM", disable=None):
        truth = images.read(image_id)
        source = edges("file", saved=ucm_strength(data.read_ucm(image_id)).astype(np.float32))
        budgets = (*BUDGETS, ss["numbers"][image_id], ALL)
        for name, proposals in (
            ("scg", scg(truth.image, SCG, source)),
            ("mcg", mcg(truth.image, MCG, source)),
        ):
            found[name].append(counted(truth, proposals, np.arange(len(proposals)), budgets))
    return {"orders": {name: figures(parts) for name, parts in found.items()}}


def table(out: dict[str, Any]) -> str:
    """All figures, in markdown."""
    lines = []
    heads = [*map(str, BUDGETS), "as many as SS", "all"]
    for place in ("bsds", "bsds-ucm", "voc-val", "voc-val-classes", "voc-train"):
        number = "class" if place.endswith("classes") else "best"
        what = {"class": "Jaccard class", "best": "best overlap"}[number]
        images = len(out[place]["ss"]["numbers"])
        lines += [f"\n{place}, {images} images, {what}\n"]
        lines += ["| method | order | candidates | " + " | ".join(heads) + " | recall .5 | .7 | "
                  "box recall .5 | .7 | seconds | ranking |"]  # fmt: skip
        lines += ["|" + "---|" * (len(heads) + 9)]
        for name, found in out[place].items():
            for order, f in found["orders"].items():
                cells = [name, order, f"{f['candidates'][-1]:.0f}"]
                cells += [f"{value:.3f}" for value in f[number]]
                cells += [
                    f"{f[key][i][-1]:.3f}" for key in ("recall", "box_recall") for i in (0, 1)
                ]
                cells += [seconds_of(found.get(k)) for k in ("seconds", "ranking_seconds")]
                lines += ["| " + " | ".join(cells) + " |"]
    for place, rows in out["boxes"].items():
        lines += [f"\nboxes, {place}\n", "| method | recall .5 | .7 | boxes | seconds |"]
        lines += ["|" + "---|" * 5]
        lines += [
            f"| {name} | {a:.3f} | {b:.3f} | {count:.0f} | {seconds:.2f} |"
            for name, (a, b, count, seconds) in rows.items()
        ]
    raw, seconds = out["from_hierarchies"]
    lines += [f"\nfrom hierarchies: {raw:.0f} raw candidates, {seconds:.3f} s"]
    lines += ["peak MB, 500 x 375: " + ", ".join(f"{n} {mb:.0f}" for n, mb in out["peak"].items())]
    return "\n".join(lines)


def seconds_of(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bsds", type=Path, help="BSDS500, or a part of it")
    parser.add_argument("--voc", type=Path, help="VOC2012/, with SegmentationObjectDerived/")
    parser.add_argument("--out", type=Path, help="all figures, a .json")
    parser.add_argument(
        "--images",
        type=int,
        default=ALL,
        help="at most so many of each set, for a trial (with a --work of its own)",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--work", type=Path, default=Path("work/proposal_quality"))
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if arguments.peak_of:
        show_peak(arguments.peak_of, arguments.work)
        return
    if None in (arguments.bsds, arguments.voc, arguments.out):
        parser.error("give --bsds, --voc and --out")
    number, methods = arguments.images, arguments.methods
    out = run(arguments.bsds, arguments.voc, arguments.work, number, methods)
    arguments.out.write_text(json.dumps(out, indent=1))
    print(table(out))


if __name__ == "__main__":
    main()
