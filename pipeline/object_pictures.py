"""The pictures of objects that a report shows, drawn from prepared data and predictions."""

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline import instance_figures
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.run_lengths import read_texts
from pipeline.errors import BadInput
from pipeline.instance_figures import Steps, mean_precision
from pipeline.instance_reports import OVERLAPS
from pipeline.instances import find_votes
from pipeline.masks import rle_box
from pipeline.metrics.instance import precision_recall
from pipeline.object_overlays import Drawn
from pipeline.params import BoxInstances, ComponentInstances, Evaluation, Params
from pipeline.scoring.instances import pools_of_rows, with_masks
from pipeline.tables import read_table

IMAGES_SHOWN = 3
SCORE_SHOWN = 0.5  # objects of less confidence are not drawn over images

Jobs = dict[str, Callable[[Path], None]]


@dataclass(frozen=True)
class ObjectJobs:
    """What can be drawn, each a function of the picture's path."""

    steps: Jobs  # by evaluation
    overlays: Jobs  # by evaluation
    precision_recall: Jobs  # by dataset and split, as `protocol.images_key`


def object_jobs(root: Path, params: Params, datasets: Mapping[str, Prepared]) -> ObjectJobs:
    """Every picture of objects for which the data are here.

    Args:
        datasets: the prepared ones that are here.
    """
    folder = root / "data" / "predictions"
    finding = {
        name: entry
        for name, entry in params.evaluations.items()
        if entry.instances != "none"
        and entry.dataset in datasets
        and (folder / name / "instances.parquet").is_file()
    }
    steps: Jobs = {}
    overlays: Jobs = {}
    curves: Jobs = {}
    for name, entry in finding.items():
        data = datasets[entry.dataset]
        shown = [name, *_peer(name, entry, finding)]
        tables = {other: folder / other / "instances.parquet" for other in shown}
        overlays[name] = partial(draw_objects, data=data, split=entry.split, tables=tables)
        maps = sorted((folder / name / "maps").glob("*.npz"))
        if maps and isinstance(entry.instances, BoxInstances):
            rule = entry.instances
            steps[name] = partial(
                draw_steps, data=data, maps=maps[0], table=tables[name], rule=rule
            )
        same = {n: e for n, e in finding.items() if _images(e) == _images(entry)}
        paths = {other: folder / other / "instances.parquet" for other in same}
        title = ", ".join(_images(entry))
        curves["_".join(_images(entry))] = partial(
            draw_curves, data=data, split=entry.split, tables=paths, title=title
        )
    return ObjectJobs(steps, overlays, curves)


def _images(entry: Evaluation) -> tuple[str, str]:
    return entry.dataset, entry.split


def _peer(name: str, entry: Evaluation, finding: Mapping[str, Evaluation]) -> list[str]:
    """The connected components beside which objects are shown: of the same network, or any."""
    others = [
        other
        for other, of_other in finding.items()
        if isinstance(of_other.instances, ComponentInstances)
        and _images(of_other) == _images(entry)
    ]
    if name in others:
        return []
    return sorted(others, key=lambda other: finding[other].model != entry.model)[:1]


# --- objects beside the truth --------------------------------------------------------------------
def draw_objects(path: Path, data: Prepared, split: str, tables: Mapping[str, Path]) -> None:
    """The first images of the split: image, true objects, those that each evaluation found.

    Implements: Wu2016 Fig. 5.
    """
    found = {name: read_table(table, "predicted_instances") for name, table in tables.items()}
    rows = []
    for image_id in data.ids(split)[:IMAGES_SHOWN]:
        sets = [_true_objects(data, image_id)]
        for table in found.values():
            chosen = table[(table["image_id"] == image_id) & (table["score"] >= SCORE_SHOWN)]
            sets.append(_drawn(data, image_id, chosen["mask_rle"]))
        rows.append((image_id, data.image(image_id), sets))
    headings = ["image", "truth", *(f"{name}\nscore >= {SCORE_SHOWN:g}" for name in found)]
    instance_figures.overlays(path, headings, rows)


def _true_objects(data: Prepared, image_id: str) -> list[Drawn]:
    """An image's objects, the smallest first. Crowds are none."""
    rles = with_masks(data.objects(image_id))["mask_rle"].tolist()
    areas = read_texts(rles, [data.size(image_id)] * len(rles))[0].areas
    return _drawn(data, image_id, [rles[n] for n in np.argsort(areas, kind="stable").tolist()])


def _drawn(data: Prepared, image_id: str, rles: Iterable[str]) -> list[Drawn]:
    return [Drawn(rle, rle_box(rle, *data.size(image_id))) for rle in rles]


# --- from pixels to objects ----------------------------------------------------------------------
def draw_steps(path: Path, data: Prepared, maps: Path, table: Path, rule: BoxInstances) -> None:
    """How the objects of one category are found in the image whose maps were kept.

    The category is the one that has most objects there. Votes are those of its first mask.

    Implements: Wu2016 Fig. 1.
    """
    image_id = maps.stem
    probabilities, boxes, things, stride = _read_maps(maps)
    if not things.size:
        raise BadInput(f"{maps}: an image without any object that could be shown")
    category = _category_shown(data, image_id, probabilities, things)
    own = boxes[things.tolist().index(category)]
    votes = find_votes(probabilities, own, category, stride=stride, rule=rule)[0]
    found = read_table(table, "predicted_instances")
    chosen = found[(found["image_id"] == image_id) & (found["score"] >= SCORE_SHOWN)]
    chosen = chosen[chosen["category"] == category]
    shown = Steps(
        image=data.image(image_id),
        scores=probabilities[category],
        stride=stride,
        cells=votes.cells,
        weights=votes.scores,
        voted=votes.boxes,
        maxima=votes.kept,
        objects=_drawn(data, image_id, chosen["mask_rle"]),
    )
    name = data.categories[category]
    title = f"{table.parent.name}: image {image_id}, {name}; votes of mask 1 of {rule.top_masks}"
    objects = f"{len(chosen)} objects, score >= {SCORE_SHOWN:g}"
    instance_figures.draw_steps(path, shown, title=title, category=name, objects=objects)


def _read_maps(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Probabilities (C, h, w), boxes (T, 4, h, w), things (T,), stride. BadInput for others."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            probabilities = kept["probabilities"].astype(np.float32)
            return probabilities, kept["boxes"], kept["things"], int(kept["stride"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(
            f"{path}: no readable maps ({error}); run predict for this evaluation again"
        ) from error


def _category_shown(
    data: Prepared, image_id: str, probabilities: np.ndarray, things: np.ndarray
) -> int:
    """The category with most true objects, or without any object the most probable one."""
    rows = data.objects(image_id)
    there = rows.loc[~rows["crowd"].to_numpy(bool), "category"].to_numpy(np.int64)
    counts = np.bincount(there, minlength=len(probabilities))[things]
    if counts.any():
        return int(things[counts.argmax()])
    return int(things[probabilities[things].mean(axis=(1, 2)).argmax()])


# --- precision and recall ------------------------------------------------------------------------
def draw_curves(
    path: Path, data: Prepared, split: str, tables: Mapping[str, Path], title: str
) -> None:
    """Precision over recall of evaluations on the same images, the mean over categories."""
    lines: dict[float, dict[str, np.ndarray]] = {overlap: {} for overlap in OVERLAPS}
    for name, table in tables.items():
        pools = pools_of_rows(data, split, read_table(table, "predicted_instances"))
        present = [pool for pool in pools if pool.num_objects]
        if not present:
            raise BadInput(f"{split} has no object; there is no recall to show")
        for overlap in OVERLAPS:
            curves = [precision_recall(pool, overlap) for pool in present]
            lines[overlap][name] = mean_precision(curves)
    instance_figures.precision_recall(path, title=title, lines=lines)
