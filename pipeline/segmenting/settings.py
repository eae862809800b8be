"""What `segment` is to do: the options, and the evaluation that they are beside.

Imports nothing heavy: what is wrong is told at once.
"""

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput, some
from pipeline.params import (
    ONE_VIEW,
    AnyOverlap,
    BoxInstances,
    Evaluation,
    RegionIou,
    RegionNms,
    Views,
)
from pipeline.params_checks import RANGES, bounds

SCALES = (0.05, 8.0)  # least and largest
SMALLEST_TILE = 256  # pixels: that of `pipeline.tiles`, which is slow to import
MIN_SCORE = 0.5  # of objects in overlays
ANY = "any_overlap"
OF_NETWORK = 0  # a vote stride: that of the semantic network
USUAL = BoxInstances(  # as params/wu2016.yaml has it
    kind="boxes",
    vote_stride=OF_NETWORK,
    top_masks=2,
    min_probability=0.05,
    nms_iou=0.5,
    region_nms=RegionIou(kind="iou", iou=0.3),
    min_pixels=32,
)
NUMBERS = ("top_masks", "nms_iou", "min_probability", "min_pixels", "vote_stride")  # of the rule


@dataclass(frozen=True)
class ObjectSettings:
    """How objects are found."""

    localization: str  # a run, or the file of a checkpoint
    rule: BoxInstances  # its vote stride may be `OF_NETWORK`
    min_score: float | None  # of objects in overlays; None: no overlays


@dataclass(frozen=True)
class Settings:
    """What is asked of every image. At most one of `tile`, `crf`, `objects` is there."""

    model: str  # a run, or the file of a checkpoint
    views: Views
    tile: int | None  # pixels; None: what memory allows
    crf: str | None  # of whom it was published
    objects: ObjectSettings | None


def settings_of(given: argparse.Namespace) -> Settings:
    """What the options mean, and the evaluation of params.yaml that --like names.

    Args:
        given: what `pipeline.segment_arguments` adds. What is None is as the evaluation has it,
            else as usual.

    Raises:
        BadInput: an option is out of its range, does not fit another, or is missing.
    """
    _check_tile_and_crf(given)
    like = None if given.like is None else _evaluation(given.like)
    model = given.model or _network(given.like, like, "model", "name a run before it")
    views = _views(given, ONE_VIEW if like is None else like.views)
    return Settings(model, views, given.tile, given.crf, _objects(given, like))


# --- the evaluation -------------------------------------------------------------------------------
def _evaluation(name: str) -> Evaluation:
    """An active evaluation that finds objects by boxes. Raises BadInput."""
    from pipeline.params_file import load_params  # slow beside the other imports

    every = load_params(Path("params.yaml")).evaluations
    by_boxes = [one for one, entry in every.items() if isinstance(entry.instances, BoxInstances)]
    if name not in by_boxes:
        raise BadInput(
            f"--like {name}: params.yaml has no evaluation of this name with instances of the kind "
            f"boxes; choose one of: {some(by_boxes) or 'none are active'}"
        )
    return every[name]


def _network(name: str | None, like: Evaluation | None, slot: str, remedy: str) -> str:
    """The network that an evaluation has in a slot. BadInput where there is none."""
    if like is None:
        raise BadInput(
            "no network is named; give a run or the file of a checkpoint, or --like EVALUATION"
        )
    network: str = getattr(like, slot)
    if network == "none":
        raise BadInput(f"--like {name}: the truth stands in for its {slot}; {remedy}")
    return network


# --- options --------------------------------------------------------------------------------------
def _check_tile_and_crf(given: argparse.Namespace) -> None:
    if given.tile is not None and given.tile < SMALLEST_TILE:
        raise BadInput(f"--tile {given.tile}: give {SMALLEST_TILE} pixels or more")
    if given.tile is not None and given.crf is not None:
        raise BadInput("--tile and --crf: a CRF takes an image whole; give one of them")
    if given.crf is not None:
        from pipeline.crf.dense import PUBLISHED  # compiles; needed with this option alone

        if given.crf not in PUBLISHED:
            raise BadInput(f"--crf {given.crf}: choose one of: {', '.join(PUBLISHED)}")


def _views(given: argparse.Namespace, views: Views) -> Views:
    """The views, but for what is given."""
    scales = views.scales if given.scales is None else _scales(given.scales)
    flip = views.flip if given.flip is None else given.flip
    shifts = views.shifts if given.shifts is None else given.shifts
    return Views(scales, flip, shifts)


def _scales(text: str) -> tuple[float, ...]:
    """The numbers of "0.8,1,1.2". Raises BadInput."""
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = (math.nan,)
    if not all(SCALES[0] <= scale <= SCALES[1] for scale in scales):
        raise BadInput(
            f"--scales {text}: give numbers from {SCALES[0]} to {SCALES[1]} with commas between "
            "them, as 0.8,1,1.2"
        )
    return scales


def _objects(given: argparse.Namespace, like: Evaluation | None) -> ObjectSettings | None:
    if given.instances is None and like is None:
        for name in (*NUMBERS, "min_score", "region_rule"):
            if getattr(given, name) is not None:
                option = _option(name)
                raise BadInput(f"{option} without --instances or --like: give one of them too")
        return None
    asked = "--like" if given.instances is None else "--instances"
    if given.crf is not None:
        raise BadInput(
            f"--crf and {asked}: objects are found in what the network says, which a CRF does not "
            "change; give one of them"
        )
    if given.tile is not None:
        raise BadInput(f"--tile and {asked}: objects are found in images whole; give one")
    if given.min_score is not None and not given.overlay:
        raise BadInput("--min-score is of overlays; give --overlay too")
    remedy = "name one with --instances"
    localization = given.instances or _network(given.like, like, "localization", remedy)
    rule = USUAL
    if like is not None:
        assert isinstance(like.instances, BoxInstances)
        rule = like.instances
    return ObjectSettings(localization, _rule(given, rule), _min_score(given))


def _rule(given: argparse.Namespace, rule: BoxInstances) -> BoxInstances:
    """The rule, but for what is given."""
    changes: dict[str, Any] = {}
    for name in NUMBERS:
        value = getattr(given, name)
        if value is not None:
            _check_range(_option(name), value, *RANGES[name])
            changes[name] = value
    if given.region_rule is not None:
        changes["region_nms"] = _region_nms(given.region_rule)
    return replace(rule, **changes)


def _min_score(given: argparse.Namespace) -> float | None:
    if not given.overlay:
        return None
    if given.min_score is None:
        return MIN_SCORE
    score: float = given.min_score
    _check_range("--min-score", score, 0, 1)
    return score


def _check_range(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise BadInput(f"{option} {value}: give a number {bounds(least, most)}")


def _region_nms(text: str) -> RegionNms:
    if text == ANY:
        return AnyOverlap(kind="any_overlap")
    least, most = RANGES["iou"]
    try:
        iou = float(text)
    except ValueError:
        iou = math.nan
    if not least <= iou <= most:
        raise BadInput(f"--region-rule {text}: give {ANY}, or an IoU above 0 and at most {most}")
    return RegionIou(kind="iou", iou=iou)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
