"""Stage `train`: train a semantic network by masks."""

from functools import partial
from pathlib import Path

from pipeline.checkpoints import SemanticNetwork, build_network, start_from
from pipeline.datasets.leaks import refuse_leaks
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.raw_cache import pixels_of
from pipeline.fitting import Round, fit, labels_round
from pipeline.losses import bootstrapped_cross_entropy
from pipeline.params import Params
from pipeline.shared_work import open_shared_work


def train(root: Path, params: Params, run_name: str) -> None:
    """Write data/models/<run>.pt and .history.parquet.

    On all GPUs that are given (CUDA_VISIBLE_DEVICES says which), one process for each.
    """
    run = params.semantic[run_name]
    prepared = root / "data" / "prepared" / run.dataset
    init = root / "data" / "models" / f"{run.init}.pt"
    models = root / "data" / "models"

    refuse_leaks(root, params, model=run_name)
    with open_shared_work(
        root,
        stage="train",
        key=run_name,
        sections=["semantic"],
        inputs=[prepared, init],
    ) as work:
        data = Prepared(root, run.dataset)
        pixels = pixels_of(root, run.dataset, data)

        def true_masks(network: SemanticNetwork, epoch: int) -> Round:
            return labels_round(run, network, image_of=pixels.image, label_map_of=pixels.label_map)

        network = build_network(run.network, len(data.categories), seed=run.seed)
        start_from(init, network, data.categories)
        fit(
            work.folder,
            run,
            network,
            ids=data.ids(run.split),
            categories=data.categories,
            loss=partial(bootstrapped_cross_entropy, bootstrapping=run.bootstrapping),
            round_of=true_masks,
            round_epochs=run.epochs,
            device=work.device,
        )
        work.publish(
            {
                work.folder / "model.pt": models / f"{run_name}.pt",
                work.folder / "history.parquet": models / f"{run_name}.history.parquet",
            }
        )
