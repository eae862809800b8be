"""How networks learn and how they are tested, in words."""

from pipeline.params import (
    AllPixels,
    AnyOverlap,
    Bootstrapping,
    BoxBootstrapping,
    Crf,
    DenseCrf,
    Evaluation,
    IouMinKept,
    LogSizeTargets,
    RegionNms,
    ScaledTargets,
    SizeWeights,
    Targets,
    TopK,
    Views,
    Weighting,
)


def bootstrapping_text(bootstrapping: Bootstrapping | BoxBootstrapping) -> str:
    """Which pixels a run learns from."""
    if isinstance(bootstrapping, AllPixels):
        return "all pixels"
    per = "crop" if bootstrapping.scope == "crop" else "batch"
    if isinstance(bootstrapping, TopK):
        return f"hardest {bootstrapping.keep} per {per}"
    if isinstance(bootstrapping, IouMinKept):
        return f"IoU <= {bootstrapping.iou:g}, at least {bootstrapping.keep} per {per}"
    return f"p <= {bootstrapping.threshold:g}, at least {bootstrapping.keep} per {per}"


def targets_text(targets: Targets) -> str:
    """In what units a localisation network learns offsets and sizes."""
    if isinstance(targets, ScaledTargets):
        return f"offsets, height and width in units of {targets.pixels:g} px"
    sizes = "log height and width" if isinstance(targets, LogSizeTargets) else "height and width"
    return f"offsets, {sizes}, standardised"


def weighting_text(weighting: Weighting) -> str:
    """What the pixels of an object count in the loss of a localisation network."""
    if not isinstance(weighting, SizeWeights):
        return "equal"
    bounds = f"{weighting.lowest:g} to {weighting.highest:g}"
    return f"(h w)^-{weighting.alpha:g}, {bounds}"


def region_text(rule: RegionNms) -> str:
    """Where a mask is dropped for one of more confidence."""
    return "any shared pixel" if isinstance(rule, AnyOverlap) else f"IoU >= {rule.iou:g}"


def views_text(views: Views) -> str:
    """The views whose probabilities are averaged."""
    text = ", ".join(f"{scale:g}" for scale in views.scales)
    text += " + flipped" * views.flip
    return text if views.shifts == 1 else f"{text}, at {views.shifts} x {views.shifts} shifts"


def crf_text(crf: Crf) -> str:
    """The CRF that follows, or none."""
    if not isinstance(crf, DenseCrf):
        return "none"
    near_and_alike = f"{crf.bilateral_weight:g} ({crf.bilateral_xy:g} px, {crf.bilateral_rgb:g})"
    near = f"{crf.gaussian_weight:g} ({crf.gaussian_xy:g} px)"
    text = f"yes: {near_and_alike} + {near}, {crf.iterations} rounds"
    return f"{text}, pruned at {crf.prune:g}" if crf.prune else text


def testing_text(entry: Evaluation) -> str:
    """How label maps are made of what a network says: views, and a CRF if one follows."""
    text = views_text(entry.views)
    return text if entry.crf == "none" else f"{text}, then a CRF"
