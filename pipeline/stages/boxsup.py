"""Stage `boxsup`: train a network by boxes, or by the masks of one split and boxes for the rest."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.box_labels import PngMaps, all_choices, check_kept, estimated_maps, label_quality
from pipeline.box_objects import Objects, need_boxes, objects_of, tell_of_left_out
from pipeline.checkpoints import SemanticNetwork, build_network, start_from
from pipeline.datasets.leaks import refuse_leaks
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.raw_cache import RawCache, pixels_of
from pipeline.errors import BadInput
from pipeline.fitting import Round, fit, labels_round
from pipeline.losses import bootstrapped_cross_entropy
from pipeline.masks import decode_index_png
from pipeline.parallel import rank
from pipeline.params import Params
from pipeline.params_training import BoxSupLabels, BoxSupRun
from pipeline.shared_work import open_shared_work
from pipeline.tables import read_table, write_table

COLLAPSE = 0.5  # labels that shrink to this part of the first round's area are warned of


def boxsup(root: Path, params: Params, run_name: str) -> None:
    """Write data/models/<run>.pt, .history.parquet and .choices.parquet.

    Implements: Dai2015 Sec. 4.3 (label steps and epochs by turns).
    """
    run = params.boxsup[run_name]
    prepared = root / "data" / "prepared" / run.dataset
    proposals = root / "data" / "proposals" / run.proposals / run.dataset
    init = root / "data" / "models" / f"{run.init}.pt"
    models = root / "data" / "models"

    need_background(Prepared(root, run.dataset), run, run_name)
    refuse_leaks(root, params, model=run_name)
    with open_shared_work(
        root,
        stage="boxsup",
        key=run_name,
        sections=["boxsup"],
        inputs=[prepared, proposals, init],
    ) as work:
        data = Prepared(root, run.dataset)
        pixels = pixels_of(root, run.dataset, data)
        masked, boxed = supervision(data, run)
        warn_of_unasked(run, run_name)
        objects = objects_to_label(data, boxed, run, run_name)
        if rank() == 0:
            tell_of_left_out(objects, run)
            check_kept(work.folder, rounds_learned(work.folder, run))

        def labels_of_round(network: SemanticNetwork, epoch: int) -> Round:
            maps = estimated_maps(
                data, objects, run, network, epoch, proposals=proposals, folder=work.folder
            )
            return labels_round(
                run,
                network,
                image_of=pixels.image,
                label_map_of=partial(_true_or_estimated, pixels, masked, maps),
                measure=partial(label_quality, data, maps),
            )

        network = build_network(run.network, len(data.categories), seed=run.seed)
        start_from(init, network, data.categories)
        fit(
            work.folder,
            run,
            network,
            ids=sorted(masked) + boxed,
            categories=data.categories,
            loss=partial(bootstrapped_cross_entropy, bootstrapping=run.bootstrapping),
            round_of=labels_of_round,
            round_epochs=epochs_of_round(run),
            device=work.device,
        )
        if rank() > 0:
            return
        write_table(work.folder / "choices.parquet", "choices", all_choices(work.folder))
        work.publish(
            {
                work.folder / "model.pt": models / f"{run_name}.pt",
                work.folder / "history.parquet": models / f"{run_name}.history.parquet",
                work.folder / "choices.parquet": models / f"{run_name}.choices.parquet",
            }
        )
        warn_of_collapse(run_name, read_table(work.folder / "history.parquet", "history"))


def need_background(data: Prepared, run: BoxSupRun, run_name: str) -> None:
    """BadInput for a dataset without it."""
    first = data.categories[0]
    if first != "background":
        raise BadInput(
            f"boxsup.{run_name}: what lies in no box is background, but {run.dataset} has none "
            f"(its category 0 is {first}); take a dataset with background"
        )


def epochs_of_round(run: BoxSupRun) -> int:
    """How long labels stay as they are: rectangles and GrabCut give the same ones for ever."""
    return run.estimator.round_epochs if isinstance(run.estimator, BoxSupLabels) else run.epochs


def warn_of_unasked(run: BoxSupRun, run_name: str) -> None:
    """Say on stderr if lambda counts in no label step, though it is above 0."""
    estimator = run.estimator
    if not isinstance(estimator, BoxSupLabels) or estimator.lam == 0 or rank() > 0:
        return
    if estimator.lam_start > (run.epochs - 1) // estimator.round_epochs * estimator.round_epochs:
        print(
            f"warning: {run_name}: lambda counts from epoch {estimator.lam_start} on, but there "
            f"are {run.epochs} epochs, in rounds of {estimator.round_epochs}: no label step asks "
            "the network. Lower lam_start",
            file=sys.stderr,
        )


def objects_to_label(
    data: Prepared, boxed: list[str], run: BoxSupRun, run_name: str
) -> dict[str, Objects]:
    """The objects of the images that are labelled from boxes. BadInput: none can be learnt from."""
    try:
        objects = objects_of(data, boxed)
        need_boxes(objects, run)
    except BadInput as problem:
        raise BadInput(f"boxsup.{run_name}: {run.dataset}, split {run.split}: {problem}") from None
    return objects


def rounds_learned(folder: Path, run: BoxSupRun) -> list[int]:
    """First epochs of the rounds from whose choices a kept checkpoint may have learned, ascending.

    Of a damaged history none: it is refused by whoever goes on from it.
    """
    chooses, checkpoint = isinstance(run.estimator, BoxSupLabels), folder / "checkpoint.pt"
    if not chooses or not checkpoint.exists():
        return []
    try:
        history = read_table(folder / "history.parquet", "history")
    except BadInput:
        return []
    return sorted(set(history.loc[history["name"] == "label_mean_area", "epoch"].tolist()))


def _true_or_estimated(
    pixels: Prepared | RawCache, masked: set[str], maps: PngMaps, image_id: str
) -> np.ndarray:
    return pixels.label_map(image_id) if image_id in masked else decode_index_png(maps[image_id])


def warn_of_collapse(run_name: str, history: pd.DataFrame) -> None:
    """Say on stderr if the labels of some round have shrunk towards nothing."""
    areas = history.loc[history["name"] == "label_mean_area"]
    shrunk = areas[areas["value"] < COLLAPSE * areas["value"].iloc[0]]
    if len(shrunk):
        print(
            f"warning: {run_name}: from epoch {shrunk['epoch'].iloc[0]} the estimated labels cover "
            f"under {COLLAPSE:.0%} of what they covered first: they collapse to background, and "
            "the network with them. Raise min_box_iou or lam_start, or lower lam",
            file=sys.stderr,
        )


def supervision(data: Prepared, run: BoxSupRun) -> tuple[set[str], list[str]]:
    """The run's images that keep their true masks, and those that are labelled from boxes.

    Images without box annotation are left out of the second, and counted on stderr.

    Raises:
        BadInput: no image is left.
    """
    ids = data.ids(run.split)
    masked = set() if run.mask_split == "none" else set(data.ids(run.mask_split)) & set(ids)
    with_boxes = set(data.images.loc[data.images["has_boxes"], "image_id"])
    boxed = sorted(set(ids) & with_boxes - masked)
    if left_out := len(ids) - len(masked) - len(boxed):
        print(f"{left_out} of {len(ids)} images have no boxes: left out", file=sys.stderr)
    if not boxed:
        raise BadInput(
            f"{run.dataset}, split {run.split}: no image with boxes to train on, beside the "
            f"{len(masked)} that keep their masks (mask_split {run.mask_split})"
        )
    return masked, boxed
