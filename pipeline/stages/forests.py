"""Stage `forests`: what finds contours and what ranks candidates, fitted where the data are."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.datasets.manifest import check_manifest
from pipeline.datasets.places import home
from pipeline.datasets.readers import open_dataset, places
from pipeline.datasets.tree import Problems
from pipeline.edge_training import train_edges
from pipeline.forests import forest_path
from pipeline.params import Params
from pipeline.params_datasets import Bsds500Dataset
from pipeline.params_proposals import ContourForest, RankingForest
from pipeline.proposals.methods import propose
from pipeline.proposing import recipe_of
from pipeline.ranker_training import bsds_regions, train_ranker, voc_objects
from pipeline.work import open_work


def forests(root: Path, params: Params, name: str) -> None:
    """Fit data/forests/<name>.npz and print how good it is on images that it was not fitted to.

    Raises:
        BadInput: the dataset is not fetched or not as it was then, a file of it is damaged, or too
            few images are there.
    """
    entry = params.forests[name]
    dataset = params.datasets[entry.dataset]
    manifest = Path("data") / "raw" / f"{entry.dataset}.manifest.json"
    inputs = [manifest, forest_path(entry.contours)]
    with open_work(root, stage="forests", key=name, sections=["forests"], inputs=inputs) as work:
        place_of = places(root, entry.dataset, dataset)
        tree = open_dataset(entry.dataset, dataset, place_of, Problems(collect=False))
        check_manifest(root / manifest, tree, entry.dataset)
        folder = place_of(home(entry.dataset, dataset)).folder
        out = work.folder / "forest.npz"
        match entry:
            case ContourForest():
                train_edges(folder, out, seed=entry.seed)
            case RankingForest():
                drawn = isinstance(dataset, Bsds500Dataset)
                source = bsds_regions(folder) if drawn else voc_objects(folder)
                every = replace(entry.algorithm, max_candidates=sys.maxsize)
                recipe = recipe_of(root, every, contours=entry.contours, ranker="none")
                edges = recipe.edges_of("")
                assert edges is not None
                one = partial(propose, algorithm=every, edges=edges, ranker=None)
                train_ranker(source, out, propose=one, edges=edges, seed=entry.seed)
        work.publish({out: root / forest_path(name)})
