"""What params.yaml must not say by numbers: those out of range, or that do not fit each other."""

import math
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput
from pipeline.params import TRAINED, Params
from pipeline.params_names import NAME
from pipeline.params_networks import Deeplab, Fcrn, FileWeights, Weights
from pipeline.params_training import BoxSupLabels, BoxSupRun, TrainingRun

# Lowest and highest value of a key, both allowed; `Kind.key` where a key means several things.
RANGES: dict[str, tuple[float, float]] = {
    "val_fraction": (0, 1),
    "train": (1, math.inf),
    "extra": (0, math.inf),
    "more": (0, math.inf),
    "val": (1, math.inf),
    "sigma": (0, math.inf),
    "min_area": (0, math.inf),
    "GrabCut.min_area": (0, 1),
    "singletons": (0, math.inf),
    "pairs": (0, math.inf),
    "triplets": (0, math.inf),
    "quadruplets": (0, math.inf),
    "align_cut": (0, 1),
    "max_superpixels": (1, 1 << 16),
    "colour": (1e-9, math.inf),
    "Gop.seeds": (1, math.inf),
    "levels": (1, math.inf),
    "max_overlap": (0, 1),
    "max_candidates": (1, math.inf),
    "depth": (1, math.inf),
    "crops": (1, math.inf),
    "size": (1, math.inf),
    "threads": (0, math.inf),
    "batch": (1, math.inf),
    "steps": (1, math.inf),
    "lr": (0, math.inf),
    "seed": (0, 2**32 - 1),
    "kernel": (1, math.inf),
    "dilation": (1, math.inf),
    "hidden": (0, math.inf),
    "dropout": (0, 0.99),
    "last_lr_factor": (0, math.inf),
    "keep": (1, math.inf),
    "threshold": (1e-9, 1),
    "warmup": (0, math.inf),
    "every": (1, math.inf),
    "factor": (0, 1),
    "power": (0, math.inf),
    "epochs": (1, math.inf),
    "momentum": (0, 1),
    "weight_decay": (0, math.inf),
    "bias_lr_factor": (0, math.inf),
    "iterations": (1, math.inf),
    "top_k": (1, math.inf),
    "lam": (0, math.inf),
    "lam_start": (0, math.inf),
    "round_epochs": (1, math.inf),
    "min_box_iou": (0, 1),
    "fallback_box_iou": (0, 1),
    "shifts": (1, 8),  # of a stride of 8
    "bilateral_weight": (0, 1e6),
    "bilateral_xy": (1e-3, 1e6),
    "bilateral_rgb": (1e-3, 1e6),
    "gaussian_weight": (0, 1e6),
    "gaussian_xy": (1e-3, 1e6),
    "DenseCrf.iterations": (1, 1000),
    "prune": (0, 1),
    "pixels": (1e-3, math.inf),
    "alpha": (0, 4),
    "lowest": (0, 1),
    "highest": (1, math.inf),
    "beta": (1e-6, math.inf),
    "iou": (1e-9, 1),
    "vote_stride": (1, 64),
    "top_masks": (1, 100),
    "min_probability": (0, 1),
    "nms_iou": (1e-9, 1),
    "min_pixels": (0, math.inf),
}


def check_values(params: Params) -> None:
    """Every number lies in its range, and numbers that belong together fit.

    Raises:
        BadInput: with the dotted key, its value and what was expected.
    """
    _check_ranges(params, "")
    for name, start in params.weights.items():
        if isinstance(start, FileWeights):
            _check_file(f"weights.{name}", start)
    for section in TRAINED:
        for name, run in getattr(params, section).items():
            _check_run(f"{section}.{name}", run, params)
    for name, evaluation in params.evaluations.items():
        scales = evaluation.views.scales
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise BadInput(
                f"evaluations.{name}.views.scales is {list(scales)}; give one or more above 0"
            )
        for row in evaluation.stands_for:
            if not re.fullmatch(r"\w+/[^/]+/\w+", row):
                raise BadInput(
                    f"evaluations.{name}.stands_for: {row!r} is not PAPER/TABLE/ROW, "
                    "as in wu2016/Table 7/1"
                )


def _check_ranges(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for name, entry in value.items():
            _check_ranges(entry, f"{where}.{name}")
    elif is_dataclass(value):
        for field in fields(value):
            entry = getattr(value, field.name)
            key = f"{where}.{field.name}".lstrip(".")
            kind = type(value).__name__
            allowed = RANGES.get(f"{kind}.{field.name}", RANGES.get(field.name))
            if allowed is None or isinstance(entry, dict):
                _check_ranges(entry, key)
                continue
            numbers = entry if isinstance(entry, tuple) else (entry,)
            if not all(allowed[0] <= n <= allowed[1] and math.isfinite(n) for n in numbers):
                raise BadInput(f"{key} is {entry}; expected {bounds(*allowed)}")


def bounds(lowest: float, highest: float) -> str:
    """A range in words."""
    above = "above 0" if 0 < lowest < 1e-3 else f"at least {lowest:g}"
    return above if highest == math.inf else f"{above} and at most {highest:g}"


def _check_file(where: str, start: FileWeights) -> None:
    if not NAME.fullmatch(start.place):
        raise BadInput(f"{where}.place is {start.place!r}; it may hold only a-z, 0-9 and _")
    if Path(start.file).name != start.file:
        raise BadInput(f"{where}.file is {start.file!r}; give a file's name without its folder")
    if start.sha256 != "none" and not re.fullmatch(r"[0-9a-f]{8,64}", start.sha256):
        raise BadInput(
            f"{where}.sha256 is {start.sha256!r}; give the first 8 to 64 digits of `sha256sum` "
            "(in quotes), or none"
        )


def _check_run(where: str, run: TrainingRun, params: Params) -> None:
    network, crop, scale = run.network, run.augmentation.crop, run.augmentation.scale
    if isinstance(network, Fcrn) and network.kernel % 2 == 0:
        raise BadInput(f"{where}.network.kernel is {network.kernel}; expected an odd number")
    if network.depth in (8, 14) and network.stride == 32:
        raise BadInput(f"{where}.network.stride is 32; with depth {network.depth} choose 8 or 16")
    if run.nesterov and run.momentum == 0:
        raise BadInput(f"{where}.nesterov needs a momentum above 0; set it to false")
    beyond = 1 if network.grid == "corners" else 0  # the last cell's corner
    if min(crop) < 1 or any((side - beyond) % network.stride for side in crop):
        raise BadInput(
            f"{where}.augmentation.crop is {list(crop)}; expected multiples of the network's "
            f"stride, {network.stride}{', and 1 more' * beyond}"
        )
    if not 0 < scale[0] <= scale[1] < math.inf:
        raise BadInput(f"{where}.augmentation.scale is {list(scale)}; expected 0 < low <= high")
    start = (params.weights | params.semantic | params.boxsup | params.instance)[run.init]
    depth = start.network.depth if isinstance(start, TrainingRun) else getattr(start, "depth", None)
    if depth not in (None, network.depth):
        raise BadInput(
            f"{where}.init is {run.init!r}, a network of depth {depth}; "
            f"the run's has depth {network.depth}"
        )
    if isinstance(network, Deeplab) and isinstance(start, TrainingRun):
        if start.network.kind != network.kind:
            raise BadInput(
                f"{where}.init is {run.init!r}, of kind {start.network.kind}; the run's network "
                f"is of kind {network.kind}"
            )
    if isinstance(run, BoxSupRun) and isinstance(run.estimator, BoxSupLabels):
        _check_label_steps(where, run, run.estimator, start)


def _check_label_steps(
    where: str, run: BoxSupRun, estimator: BoxSupLabels, start: Weights | TrainingRun
) -> None:
    network = run.network
    if run.proposals == "none":
        raise BadInput(
            f"{where}.proposals is 'none', but its estimator chooses among candidates: name a "
            "method of `proposals:`, or take the estimator {kind: rectangles}"
        )
    if isinstance(network, Deeplab):
        if estimator.lam > 0 and estimator.lam_start == 0 and not isinstance(start, TrainingRun):
            raise BadInput(
                f"{where}.estimator.lam_start is 0; the last layer of a {network.kind} is drawn at "
                "random and would be asked before it has learnt: expected at least 1"
            )
