"""What Cityscapes scores beside each category: groups of categories, and objects of equal weight.

Large objects hold most pixels. In the IoU by objects, iIoU, the true pixels of each object are
weighted by how much smaller it is than the mean object of its category, so that objects count
about alike. A predicted pixel has no object: false positives keep the weight 1.

Maps hold published ids here, not train ids: a caravan or trailer is no category that is scored,
but as a prediction it is a vehicle. C = 19 categories by train id; L = 34 published ids; N objects
of an image; H x W pixels.
"""

from dataclasses import dataclass, field

import numba
import numpy as np

from pipeline.categories import CITYSCAPES, CITYSCAPES_IDS, CITYSCAPES_LABELS, CITYSCAPES_THINGS

GROUPS = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}  # fmt: skip
# The groups in which all objects are told apart, by published ids: caravan and trailer among them.
OBJECT_GROUPS = {"human": range(24, 26), "vehicle": range(26, 34)}
# Mean pixels of an object in the training images at full size, as the benchmark fixes them.
MEAN_PIXELS = {
    "person": 3462.4756337644, "rider": 3930.4788056518, "car": 12794.0202738185,
    "truck": 27855.1264367816, "bus": 35732.1511111111, "train": 67583.7075812274,
    "motorcycle": 6298.7200839748, "bicycle": 4672.3249222261,
}  # fmt: skip
PER_LABEL = 1000  # object n of a label has the number label * 1000 + n in a map of objects


# --- groups ---------------------------------------------------------------------------------------
def of_categories(by_label: np.ndarray) -> np.ndarray:
    """The counts (L, L + 1) by published id as counts (C, C + 1) of the categories.

    Pixels whose true label is not scored go; a predicted label that is not scored is an error of
    its pixel, in the last column.
    """
    rows = by_label[list(CITYSCAPES_IDS)]  # (C, L + 1)
    counts = np.empty((len(CITYSCAPES), len(CITYSCAPES) + 1), by_label.dtype)
    counts[:, :-1] = rows[:, list(CITYSCAPES_IDS)]
    counts[:, -1] = rows.sum(axis=1) - counts[:, :-1].sum(axis=1)
    return counts


def group_iou(confusion: np.ndarray) -> dict[str, float]:
    """The IoU of each group: within a group categories are not told apart.

    A predicted label that is not scored is an error, of whatever group it is.

    Args:
        confusion: (C, C + 1) counts, rows the truth, last column predictions of no category.

    Returns:
        fractions; NaN for a group in neither truth nor prediction.
    """
    found = {}
    for group, names in GROUPS.items():
        own = [CITYSCAPES.index(name) for name in names]
        right = confusion[np.ix_(own, own)].sum()
        true, predicted = confusion[own].sum(), confusion[:, own].sum()
        found[group] = _ratio(float(right), float(true + predicted - right))
    return found


# --- objects --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ObjectSums:
    """Weighted true pixels of all objects so far; changed in place by `add_objects`."""

    right: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MEAN_PIXELS, 0.0))
    wrong: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MEAN_PIXELS, 0.0))
    group_right: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OBJECT_GROUPS, 0.0))
    group_wrong: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OBJECT_GROUPS, 0.0))


def count_objects(predicted: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """How the pixels of each object of an image are predicted.

    Args:
        predicted: (H, W) uint8 published ids; other values are errors.
        numbers: (H, W) uint16: label * 1000 + n in object n of a label, less than 1000 elsewhere,
            in groups of objects too: those have no true pixels here.

    Returns:
        (N, 4) int64 by number: published id, pixels, those predicted as that label, those predicted
        as a label of its group. Objects of labels that are not scored are left out.

    Raises:
        ValueError: shapes or types differ from that, or a number is of a label without objects.
    """
    if predicted.shape != numbers.shape or (predicted.dtype, numbers.dtype) != (
        np.dtype(np.uint8),
        np.dtype(np.uint16),
    ):
        raise ValueError(
            f"uint8 labels and uint16 numbers of one shape are compared, not {predicted.shape} "
            f"{predicted.dtype} and {numbers.shape} {numbers.dtype}"
        )
    tally = np.zeros((1 << 16, 3), np.int32)
    _tally(np.ravel(predicted), np.ravel(numbers), _group_of_label(), tally)
    present = np.flatnonzero(tally[:, 0])
    label = present // PER_LABEL
    if unknown := present[~np.isin(label, CITYSCAPES_THINGS)].tolist():
        raise ValueError(f"number {unknown[0]} is of no label whose objects are told apart")
    scored = np.isin(label, CITYSCAPES_IDS)
    return np.column_stack([label, tally[present]])[scored].astype(np.int64)


def _group_of_label() -> np.ndarray:
    """(256,) uint8: a number for each of the groups with objects, 255 for every other value."""
    table = np.full(256, 255, np.uint8)
    for number, labels in enumerate(OBJECT_GROUPS.values()):
        table[list(labels)] = number
    return table


@numba.njit(nogil=True, cache=True)
def _tally(predicted, numbers, group_of_label, tally):
    """Add up, for each number above 1000: pixels, pixels of its label, pixels of its group."""
    for i in range(len(numbers)):
        number = numbers[i]
        if number > PER_LABEL:
            label = number // PER_LABEL
            tally[number, 0] += 1
            tally[number, 1] += predicted[i] == label
            tally[number, 2] += group_of_label[predicted[i]] == group_of_label[label]


def add_objects(sums: ObjectSums, objects: np.ndarray) -> None:
    """Add the objects (N, 4) of an image, as from `count_objects`, one after another."""
    group_of = {label: group for group, labels in OBJECT_GROUPS.items() for label in labels}
    for label, pixels, right, right_group in objects.tolist():
        name, group = CITYSCAPES_LABELS[label], group_of[label]
        weight = MEAN_PIXELS[name] / pixels
        sums.right[name] += right * weight
        sums.wrong[name] += (pixels - right) * weight
        sums.group_right[group] += right_group * weight
        sums.group_wrong[group] += (pixels - right_group) * weight


def object_iou(sums: ObjectSums, confusion: np.ndarray) -> dict[str, float]:
    """The iIoU of each category whose objects are told apart.

    weighted right pixels / (those + weighted wrong true pixels + false positives unweighted)

    Args:
        confusion: (C, C + 1) counts of the same images.

    Returns:
        fractions; NaN for a category without objects and without false positives.
    """
    found = {}
    for name in MEAN_PIXELS:
        own = CITYSCAPES.index(name)
        false = float(confusion[:, own].sum() - confusion[own, own])
        found[name] = _ratio(sums.right[name], sums.right[name] + false + sums.wrong[name])
    return found


def group_object_iou(sums: ObjectSums, by_label: np.ndarray) -> dict[str, float]:
    """The iIoU of each group in which all objects are told apart; see `object_iou`.

    Here every label of the group is one of its predictions: a car predicted as caravan is right,
    a road predicted as caravan a false positive of vehicles. In `group_iou` both are plain errors.

    Args:
        by_label: (L, L + 1) counts by published id of the same images.
    """
    found = {}
    for group, labels in OBJECT_GROUPS.items():
        others = [label for label in CITYSCAPES_IDS if label not in labels]
        false = float(by_label[np.ix_(others, list(labels))].sum())
        right, wrong = sums.group_right[group], sums.group_wrong[group]
        found[group] = _ratio(right, right + false + wrong)
    return found


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")
