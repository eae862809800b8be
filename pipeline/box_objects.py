"""The annotated objects of images: which are boxes to train on, and what becomes of the others.

N objects.
"""

import sys
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.boxes import area
from pipeline.categories import IGNORE
from pipeline.datasets.prepared import Prepared
from pipeline.errors import BadInput, some
from pipeline.labels import Choice, Reason, left_out
from pipeline.params_training import BoxSupRun


class Objects(NamedTuple):
    """The annotated objects of one image, N of them."""

    boxes: np.ndarray  # (N, 4)
    categories: np.ndarray  # (N,)
    instances: np.ndarray  # (N,), their numbers in the image
    reasons: tuple[Reason | None, ...]  # why one is no box to train on; None: it is one


def objects_of(data: Prepared, ids: list[str]) -> dict[str, Objects]:
    """The objects of images, by image.

    Raises:
        BadInput: a value is missing, a category has no name, or a box reaches out of its image.
    """
    rows = data.instances[data.instances["image_id"].isin(ids)]
    _refuse(rows, rows.drop(columns="mask_rle").isna().any(axis=1), "values are missing")
    boxes, categories = _boxes(rows), rows["category"].to_numpy()
    instances, sizes = rows["instance"].to_numpy(), [data.size(i) for i in rows["image_id"]]
    reasons = np.full(len(rows), None, object)
    reasons[rows["difficult"]] = "difficult"
    reasons[rows["crowd"]] = "crowd"
    reasons[area(boxes) == 0] = "empty"
    limits = np.array(sizes, np.int64).reshape(-1, 2)[:, ::-1]  # (N, 2): width, height
    outside = (boxes[:, :2] < 0).any(axis=1) | (boxes[:, 2:] > limits).any(axis=1)
    _refuse(rows, outside & (reasons != "empty"), "their boxes reach out of the image", limits)
    unnamed = (categories < 1) | (categories >= len(data.categories))
    _refuse(rows, unnamed, f"their categories are none of the {len(data.categories)} with a name")
    places = rows.groupby("image_id").indices
    nothing = np.zeros(0, np.int64)
    return {
        image_id: Objects(boxes[at], categories[at], instances[at], tuple(reasons[at]))
        for image_id in ids
        for at in [places.get(image_id, nothing)]
    }


def _boxes(rows: pd.DataFrame) -> np.ndarray:
    return rows[["x0", "y0", "x1", "y1"]].to_numpy()


def _refuse(
    rows: pd.DataFrame,
    wrong: np.ndarray | pd.Series,
    problem: str,
    limits: np.ndarray | None = None,
) -> None:
    """BadInput that names the objects; `limits` (N, 2), for the box and the size of the first."""
    if not wrong.any():
        return
    named = [f"{r.image_id} object {r.instance}" for r in rows[wrong].itertuples()]
    if limits is not None:
        (x0, y0, x1, y1), (width, height) = _boxes(rows[wrong])[0], limits[wrong][0]
        problem += f" (the first: x {x0}..{x1}, y {y0}..{y1} of {width} x {height} pixels)"
    raise BadInput(f"instances.parquet: {some(named)}: {problem}; correct them, prepare again")


def settled(objects: Objects, run: BoxSupRun) -> list[Choice | None]:
    """What is decided beforehand for each object; None: it is to be labelled."""
    return [_settled(reason, run) for reason in objects.reasons]


def _settled(reason: Reason | None, run: BoxSupRun) -> Choice | None:
    if reason is None:
        return None
    if reason == "difficult":
        return None if run.difficult == "box" else left_out(run.difficult, reason)
    return left_out(run.crowd if reason == "crowd" else "background", reason)


def need_boxes(objects: dict[str, Objects], run: BoxSupRun) -> None:
    """BadInput unless one object at least is a box to train on: all would be background."""
    if any(None in settled(of_image, run) for of_image in objects.values()):
        return
    counts = Counter(reason for of_image in objects.values() for reason in of_image.reasons)
    found = ", ".join(f"{n} {reason or 'plain'}" for reason, n in sorted(counts.items(), key=str))
    raise BadInput(
        f"no object of {len(objects)} images is a box to train on (objects: {found or 'none'}); "
        "choose another split, or look at the keys difficult and crowd"
    )


def tell_of_left_out(objects: dict[str, Objects], run: BoxSupRun) -> None:
    """Say on stderr how many objects are no boxes to train on, and how many images have none."""
    choices = (choice for of_image in objects.values() for choice in settled(of_image, run))
    counts = Counter((choice.reason, choice.label) for choice in choices if choice)
    for (reason, label), count in sorted(counts.items()):
        print(f"{count} objects ({reason}) are no boxes to train on: {label}", file=sys.stderr)
    if bare := sum(not of_image.reasons for of_image in objects.values()):
        print(
            f"{bare} of {len(objects)} images have no object: all of them is background",
            file=sys.stderr,
        )


def to_fill(objects: Objects, run: BoxSupRun) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) and categories (N,), 255 of those to be ignored, of what is painted."""
    labels = np.array([choice.label if choice else "" for choice in settled(objects, run)])
    painted = labels != "background"
    categories = np.where(labels == "ignore", IGNORE, objects.categories)
    return objects.boxes[painted], categories[painted]
