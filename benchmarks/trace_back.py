"""What the grid of votes costs objects, measured with an evaluation's images and networks.

    python benchmarks/trace_back.py --project DIR sample_instances

Prints mAP^r (`sds`), per cent, at 0.5, at 0.7 and vol: of what the networks find and of what could
be found with true masks and true boxes, at every pixel or at the cells of `vote_stride` alone;
each with a pixel's box between those of the cells around it, and with that of the nearest cell.
DIR holds params.yaml and data/ with the evaluation's dataset and networks.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import distance_transform_edt

from pipeline.checkpoints import load_model
from pipeline.datasets.prepared import Prepared
from pipeline.instance_finding import Finder, Maps, asked, maps_of
from pipeline.instances import best_first, regions
from pipeline.instances.pixel_masks import Taps, taps
from pipeline.params_file import load_params
from pipeline.scoring.predicted_instances import instance_rows

WANTED = (("mAP_r", 0.5), ("mAP_r", 0.7), ("mAP_r_vol", None))


def nearest_taps(pixels: int, cells: int, stride: int) -> Taps:
    """As `taps`, the nearer of both cells with all weight, of equally near ones the first."""
    both = taps(pixels, cells, stride)
    whole, first = both.near + both.far, both.near >= both.far
    return both._replace(near=np.where(first, whole, 0), far=np.where(first, 0, whole))


@contextmanager
def tracing(way: Callable[[int, int, int], Taps]) -> Iterator[None]:
    """Pixels are traced back with these weights of the cells around them."""
    before, regions.taps = regions.taps, way
    try:
        yield
    finally:
        regions.taps = before


def on_cells(maps: Maps, stride: int) -> Maps:
    """True maps of pixels as a network of this stride could give them.

    A cell has the shares of the categories of its pixels and the box of its middle. Outside the
    objects, where a network says something too, it has the box of the nearest object.
    """
    boxes = maps.boxes.copy()
    for own in boxes:
        unknown = ~((own[2] > own[0]) & (own[3] > own[1]) & np.isfinite(own).all(axis=0))
        if not unknown.all():
            nearest = distance_transform_edt(unknown, return_distances=False, return_indices=True)
            own[:] = own[:, *nearest]
    middles = [np.minimum(np.arange(0, side, stride) + stride // 2, side - 1) for side in maps.size]
    rows, columns = (len(middle) for middle in middles)
    beyond = [(0, 0), *((0, -side % stride) for side in maps.size)]
    padded = np.pad(maps.probabilities, beyond, mode="edge")
    shares = padded.reshape(len(padded), rows, stride, columns, stride).mean(axis=(2, 4))
    return maps._replace(
        probabilities=np.ascontiguousarray(shares, np.float32),
        boxes=np.ascontiguousarray(boxes[..., middles[0][:, None], middles[1]]),
        stride=stride,
    )


def score(finder: Finder, data: Prepared, split: str, every: dict[str, Maps]) -> str:
    rows, support = [], []
    for image_id, maps in every.items():
        found = finder.instances(maps)
        corners = dict(zip(("x0", "y0", "x1", "y1"), found.boxes.T, strict=True))
        columns = {"category": found.categories, "score": found.scores, "mask_rle": found.rles}
        rows.append(pd.DataFrame({"image_id": image_id} | columns | corners))
        support.append(found.support)
    table = pd.concat(rows, ignore_index=True)
    table = table.iloc[best_first(table["score"].to_numpy(), np.concatenate(support))]
    measured = {(row.metric, row.at): row.value for row in instance_rows(data, split, table)}
    return " ".join(f"{100 * measured[key]:6.1f}" for key in WANTED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, default=Path("."), metavar="DIR")
    parser.add_argument("evaluation")
    given = parser.parse_args()
    entry = load_params(given.project / "params.yaml").evaluations[given.evaluation]
    data, cpu = Prepared(given.project, entry.dataset), torch.device("cpu")
    models = given.project / "data" / "models"
    networks = [
        asked(*load_model(models / f"{name}.pt", cpu), cpu)
        for name in (entry.model, entry.localization)
    ]
    by_networks = Finder(data.categories, entry.instances, entry.views, *networks)
    by_truth = replace(by_networks, semantic=None, localizer=None)
    ids, stride = data.ids(entry.split), entry.instances.vote_stride
    networks_say = {image_id: maps_of(by_networks, data, image_id) for image_id in ids}
    truth = {image_id: maps_of(by_truth, data, image_id) for image_id in ids}
    cells = {image_id: on_cells(maps, stride) for image_id, maps in truth.items()}
    for what, maps in (("networks", networks_say), ("truth", truth), ("truth on cells", cells)):
        for name, way in (("between", taps), ("nearest", nearest_taps)):
            with tracing(way):
                print(f"{what:<16}{name:<9}", score(by_networks, data, entry.split, maps))


if __name__ == "__main__":
    main()
