"""The command: what is asked for, which rules are compared, and what is written."""

import subprocess
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

from pipeline.checkpoints import load_model
from pipeline.datasets.prepared import Prepared
from pipeline.errors import BadInput
from pipeline.instance_figures import sensitivity as draw_sensitivity
from pipeline.instance_finding import Finder, asked
from pipeline.machine import chosen_device, machine
from pipeline.markdown import flat_text, percent
from pipeline.params import AnyOverlap, BoxInstances, Evaluation, Params, RegionIou, RegionNms
from pipeline.places import need_places, write_text
from pipeline.sensitivity.measuring import (
    Searched,
    count_objects,
    first_look,
    measure,
    scratch,
    second_look,
)
from pipeline.sensitivity.page import (
    SETTINGS,
    Measured,
    csv_text,
    page,
    region_name,
    settings_cells,
    whose_images,
)
from pipeline.stages.predict import need_fit_networks

TOP_MASKS = (1, 2, 3)
NMS_IOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
REGION_RULES: tuple[RegionNms, ...] = (
    AnyOverlap("any_overlap"), RegionIou("iou", 0.3), RegionIou("iou", 0.5),
)  # fmt: skip
MIN_PROBABILITIES = (0.0, 0.05, 0.1, 0.2)
MIN_PIXELS = (0, 16, 32, 64)


def sensitivity(
    root: Path, params: Params, evaluation: str, *, split: str, images: int | None, out: Path
) -> str:
    """Write <out>/<evaluation>_<split>.md, .csv and .png. Returns what to tell of it.

    All combinations of `TOP_MASKS`, `NMS_IOUS` and `REGION_RULES` are measured; then, at the best
    of them by mAP^r_vol, `MIN_PROBABILITIES` and `MIN_PIXELS`, one at a time. What the evaluation
    itself says is measured too. Maps lie below work/ until all is measured.

    Args:
        split: any of the evaluation's dataset; the page says who knows its images.
        images: how many of these, evenly spread over the list; None: all.

    Raises:
        BadInput: no evaluation with instances of the kind boxes, a split without masks of objects,
            `out` is no place for files, a network says NaN, or an image is too large.
    """
    entry, own = _entry(params, evaluation)
    if images is not None and images < 1:
        raise BadInput(f"--images {images}: expected 1 or more")
    data = Prepared(root, entry.dataset)
    ids = _spread(data.ids(split), images)
    num_objects = count_objects(data, ids, split)
    files = _files(out, f"{evaluation}_{split}")
    searched = Searched(evaluation, data, ids, _finder(root, data, evaluation, entry, own))
    with scratch(root, evaluation) as folder:
        measured = _measure_all(searched, own, folder)
    total = len(data.ids(split))
    chosen = f"all {total}" if len(ids) == total else f"{len(ids)} of {total}, evenly spread"
    whose = whose_images(root, params, evaluation, ids)
    facts = [
        *_what(entry, own, searched),
        ("images", f"{chosen}; {num_objects} objects"),
        ("whose images", whose),
        ("machine", machine()),
        ("commit", _commit(root)),
    ]
    _write(files, measured, evaluation, entry.dataset, split, facts)
    best = dict(zip(SETTINGS, settings_cells(measured.best), strict=True))
    words = ", ".join(f"{name} {value}" for name, value in best.items())
    volume = percent(measured.scores[measured.best].volume)
    found = f"best of {len(measured.grid)}: {words}: mAP^r_vol {volume} %"
    return f"{found}\n{whose}\nwrote {files['md']}"


# --- what is asked for ----------------------------------------------------------------------------
def _entry(params: Params, evaluation: str) -> tuple[Evaluation, BoxInstances]:
    """An evaluation and its rule. BadInput unless it finds objects by boxes."""
    by_boxes = [
        name
        for name, entry in params.evaluations.items()
        if isinstance(entry.instances, BoxInstances)
    ]
    choose = f"choose one of: {', '.join(by_boxes) or 'none are active'}"
    if evaluation not in params.evaluations:
        raise BadInput(f"params.yaml: evaluations.{evaluation} is not there; {choose}")
    entry = params.evaluations[evaluation]
    if not isinstance(entry.instances, BoxInstances):
        raise BadInput(
            f"params.yaml: evaluations.{evaluation}.instances is not of the kind boxes, whose "
            f"settings are compared here; {choose}"
        )
    return entry, entry.instances


def _spread(ids: list[str], number: int | None) -> list[str]:
    """So many of the ids, evenly spread over the list; None, or more than there are: all."""
    if number is None or number >= len(ids):
        return ids
    return [ids[i * len(ids) // number] for i in range(number)]


def _files(out: Path, name: str) -> dict[str, Path]:
    """The files by their endings. Makes the folder. BadInput where they cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BadInput(f"--out {out}: a file is in the place of a folder; name a folder") from None
    files = {ending: out / f"{name}.{ending}" for ending in ("csv", "png", "md")}
    need_places(list(files.values()))
    return files


def _finder(
    root: Path, data: Prepared, evaluation: str, entry: Evaluation, own: BoxInstances
) -> Finder:
    """The evaluation's networks, ready to be asked. BadInput where one is missing or unfit."""
    device, models = chosen_device(), root / "data" / "models"
    networks = {entry.model, entry.localization} - {"none"}
    loaded = {name: load_model(models / f"{name}.pt", device) for name in networks}
    need_fit_networks(f"evaluations.{evaluation}", entry, data, loaded)
    ready = {name: asked(*one, device) for name, one in loaded.items()}
    semantic, localizer = ready.get(entry.model), ready.get(entry.localization)
    return Finder(data.categories, own, entry.views, semantic, localizer)


def _measure_all(searched: Searched, own: BoxInstances, folder: Path) -> Measured:
    """The grid, and the further settings at its best. Of equals the evaluation's own is best."""
    grid = [
        replace(own, top_masks=top_masks, nms_iou=nms_iou, region_nms=rule)
        for rule, top_masks, nms_iou in product(REGION_RULES, TOP_MASKS, NMS_IOUS)
    ]
    rules = list(dict.fromkeys([*grid, own]))
    scores = measure(searched, rules, first_look(searched), folder)
    best = max(sorted(grid, key=lambda rule: rule != own), key=lambda rule: scores[rule].volume)
    probabilities = [
        replace(best, min_probability=least)
        for least in sorted({*MIN_PROBABILITIES, own.min_probability})
    ]
    pixels = [replace(best, min_pixels=least) for least in sorted({*MIN_PIXELS, own.min_pixels})]
    left = [rule for rule in dict.fromkeys([*probabilities, *pixels]) if rule not in scores]
    scores |= measure(searched, left, second_look(folder), None)
    return Measured(scores, own, grid, best, probabilities, pixels)


# --- what is written ------------------------------------------------------------------------------
def _write(
    files: dict[str, Path],
    measured: Measured,
    evaluation: str,
    dataset: str,
    split: str,
    facts: list[tuple[str, str]],
) -> None:
    """The three files, the page last."""
    same = {"evaluation": evaluation, "dataset": dataset, "split": split}
    write_text(files["csv"], csv_text(measured, same))
    rows = [
        (rule.top_masks, rule.nms_iou, region_name(rule.region_nms), measured.scores[rule].volume)
        for rule in measured.grid
    ]
    title = f"{evaluation} on {dataset} {split}"
    draw_sensitivity(files["png"], title=f"mAP^r_vol of {title}", rows=rows)
    text = page(measured, title=f"Sensitivity of {title}", facts=facts, figure=files["png"].name)
    write_text(files["md"], text)


def _what(entry: Evaluation, own: BoxInstances, searched: Searched) -> list[tuple[str, str]]:
    """What the networks are, and how they are asked."""
    networks = [searched.finder.semantic, searched.finder.localizer]
    apart = "pixel" if None in networks else f"{own.vote_stride} pixels"
    precisions = sorted({one.precision for one in networks if one is not None})
    return [
        ("categories", "the true masks" if entry.model == "none" else entry.model),
        ("boxes", "the true boxes" if entry.localization == "none" else entry.localization),
        ("votes", f"one every {apart}; views {flat_text(asdict(entry.views))}"),
        ("precision", ", ".join(precisions) or "no network is asked"),
    ]


def _commit(root: Path) -> str:
    """The commit of the checkout, and whether the code or the parameters differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        changed = git("status", "--porcelain", "--", "pipeline", "params.yaml").strip()
    except (OSError, subprocess.CalledProcessError):
        return "not known"
    return f"{commit}, with changes" if changed else commit
