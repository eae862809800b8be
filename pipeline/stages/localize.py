"""Stage `localize`: train a localisation network by the masks of objects."""

from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline.box_targets import Standard, TargetSums, standard_from, sums_of_objects
from pipeline.categories import things_of
from pipeline.checkpoints import SemanticNetwork, build_localizer, standard_of, start_from
from pipeline.datasets.leaks import refuse_leaks
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import map_in_threads
from pipeline.datasets.raw_cache import RawCache, pixels_of
from pipeline.errors import BadInput
from pipeline.fitting import Round, fit
from pipeline.losses import bootstrapped_box_loss
from pipeline.object_maps import need_object_masks, object_map
from pipeline.params import Params
from pipeline.params_training import Augmentation, InstanceRun, Targets
from pipeline.shared_work import open_shared_work
from pipeline.transforms import random_object_view


def localize(root: Path, params: Params, run_name: str) -> None:
    """Write data/models/<run>.pt and .history.parquet.

    Implements: Wu2016 Sec. 2.1 (the localisation network, trained apart from the semantic one).
    """
    run = params.instance[run_name]
    prepared = root / "data" / "prepared" / run.dataset
    init = root / "data" / "models" / f"{run.init}.pt"
    models = root / "data" / "models"

    refuse_leaks(root, params, model=run_name)
    with open_shared_work(
        root, stage="localize", key=run_name, sections=["instance"], inputs=[prepared, init]
    ) as work:
        data = Prepared(root, run.dataset)
        pixels = pixels_of(root, run.dataset, data)
        ids = data.ids(run.split)
        try:
            need_object_masks(data, ids)
            standard = standard_of_images(data, ids, run.targets)
        except BadInput as problem:
            told = f"instance.{run_name}: {run.dataset}, split {run.split}: {problem}"
            raise BadInput(told) from problem
        network = build_localizer(run.network, data.categories, standard, seed=run.seed)
        start_from(init, network, data.categories)

        view = partial(_object_view, data, pixels, network, run.augmentation)
        fit(
            work.folder,
            run,
            network,
            ids=ids,
            categories=data.categories,
            loss=partial(_loss, run, network),
            round_of=lambda network, epoch: Round(view, dict),
            round_epochs=run.epochs,
            device=work.device,
        )
        work.publish(
            {
                work.folder / "model.pt": models / f"{run_name}.pt",
                work.folder / "history.parquet": models / f"{run_name}.history.parquet",
            }
        )


def standard_of_images(data: Prepared, ids: list[str], targets: Targets) -> Standard:
    """What the targets of all objects of some images are less their means and deviations.

    Raises:
        BadInput: there is no object.
    """
    things = things_of(data.categories)

    def sums_of(image_id: str) -> TargetSums:
        numbers, boxes, _ = object_map(data, image_id, things)
        return sums_of_objects(numbers, boxes, targets)

    sums = sum(map_in_threads(sums_of, ids, "measuring objects"), TargetSums.none())
    if not sums.pixels:
        raise BadInput("no image has an object; there is nothing to learn boxes from")
    return standard_from(sums, targets)


def _object_view(
    data: Prepared,
    pixels: Prepared | RawCache,
    network: SemanticNetwork,
    augmentation: Augmentation,
    image_id: str,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A view (h, w, 3) uint8 and its truth (5, h / s, w / s) float32: `random_object_view`."""
    found = object_map(data, image_id, things_of(data.categories))
    return random_object_view(
        pixels.image(image_id),
        found.numbers,
        found.boxes,
        found.things,
        augmentation,
        rng,
        stride=network.stride,
        grid=network.grid,
    )


def _loss(run: InstanceRun, network: SemanticNetwork, outputs: Tensor, truth: Tensor) -> Tensor:
    return bootstrapped_box_loss(
        outputs,
        truth,
        grid=network.grid,
        stride=network.stride,
        targets=run.targets,
        standard=standard_of(network),
        beta=run.beta,
        weighting=run.weighting,
        bootstrapping=run.bootstrapping,
    )
