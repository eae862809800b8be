"""What a BoxSup run's labels were, round by round, and whose mistakes they share.

    python benchmarks/label_rounds.py --project DIR RUN...

DIR is a project, or the clone of a study (work/studies/STUDY/COMMIT), in which the runs were
trained; RUN as in its params.yaml. Labels are made again from choices and proposals, and compared
with the true masks of the images that they were made for. Minutes on a core; it changes nothing.

For each run:
- mean IoU of the labels of each round, and of the label that most rounds give a pixel;
- of the pixels that the trained network gets wrong, how many the last labels call the same; and of
  the pixels that the last labels get wrong, how many the network calls the same;
- of objects that are alone of their category and whose candidate was chosen in both rounds: the
  median size of the chosen mask beside the object, how much of the object it covers, how much of it
  is object, in the first and the last round;
- IoU of each category's labels in the first and the last round.

C categories, H x W pixels.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline.box_objects import Objects, objects_of
from pipeline.boxes import iou, tight_box
from pipeline.categories import IGNORE
from pipeline.checkpoints import load_model
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.proposal_table import ProposalTable
from pipeline.label_step import candidates_of, rebuilt_maps
from pipeline.masks import decode_index_png
from pipeline.metrics.semantic import confusion_matrix, scores
from pipeline.params import ONE_VIEW
from pipeline.params_file import load_params
from pipeline.params_training import BoxSupRun
from pipeline.stages.boxsup import supervision
from pipeline.tables import read_table
from pipeline.tiles import segmenter_of

CPU = torch.device("cpu")
SAME = 0.5  # box IoU from which an annotated box is that of the category's only region
Maps = dict[str, np.ndarray]  # image id: label map (H, W) uint8


def confusion(maps: Maps, truths: Maps, num_categories: int) -> np.ndarray:
    return np.sum([confusion_matrix(maps[i], truths[i], num_categories) for i in truths], axis=0)


def majority(rounds: list[Maps], image_id: str) -> np.ndarray:
    """The label that most rounds give a pixel; of equal ones the least."""
    stacked = np.stack([maps[image_id] for maps in rounds])
    counts = [(stacked == value).sum(axis=0) for value in range(IGNORE + 1)]
    return np.argmax(counts, axis=0).astype(np.uint8)


def shared_mistakes(predicted: Maps, labels: Maps, truths: Maps) -> tuple[float, float]:
    """Of the network's wrong pixels those that labels call the same, and the other way round."""
    same = of_network = of_labels = 0
    for image_id, truth in truths.items():
        known, said, label = truth != IGNORE, predicted[image_id], labels[image_id]
        same += np.count_nonzero(known & (said != truth) & (said == label))
        of_network += np.count_nonzero(known & (said != truth))
        of_labels += np.count_nonzero(known & (label != truth))
    return same / of_network, same / of_labels


def chosen_masks(
    data: Prepared, proposals: ProposalTable, image_id: str, objects: Objects, choices: pd.DataFrame
) -> dict[tuple[str, int], tuple[float, float, float]]:
    """Of objects alone of their category: size beside the object's, how much covered, how right."""
    truth = data.label_map(image_id)
    candidates = candidates_of(proposals, data, image_id)
    found = {}
    for box, category, chosen, instance in zip(
        objects.boxes, objects.categories, choices["proposal"], objects.instances, strict=True
    ):
        region = truth == category
        alone = np.count_nonzero(objects.categories == category) == 1 and region.any()
        if not alone or chosen < 0 or iou(box[None], tight_box(region)[None])[0, 0] < SAME:
            continue
        mask = candidates.mask(int(chosen)) & (truth != IGNORE)
        if not mask.any():
            continue
        both, own = np.count_nonzero(mask & region), np.count_nonzero(region)
        size = np.count_nonzero(mask)
        found[image_id, int(instance)] = size / own, both / own, both / size
    return found


def network_maps(root: Path, run_name: str, data: Prepared, ids: list[str]) -> Maps:
    network, saved = load_model(root / "data" / "models" / f"{run_name}.pt", CPU)
    segmenter = segmenter_of(network, saved, views=ONE_VIEW, device=CPU)
    return {image_id: segmenter.label_map(data.image(image_id), []) for image_id in ids}


def tell(root: Path, run_name: str, run: BoxSupRun) -> None:
    data = Prepared(root, run.dataset)
    ids = supervision(data, run)[1]
    truths = {image_id: data.label_map(image_id) for image_id in ids}
    proposals = ProposalTable(root / "data" / "proposals" / run.proposals / run.dataset)
    table = read_table(root / "data" / "models" / f"{run_name}.choices.parquet", "choices")
    of_epoch = dict(iter(table.groupby("epoch")))
    rounds = []
    for choices in of_epoch.values():
        pngs = rebuilt_maps(data, ids, proposals, choices)
        rounds.append({image_id: decode_index_png(pngs[image_id]) for image_id in ids})
    counts = [confusion(maps, truths, len(data.categories)) for maps in rounds]
    most = confusion({i: majority(rounds, i) for i in ids}, truths, len(data.categories))
    print(f"{run_name}\n  labels, mean IoU in %:")
    for epoch, of_round in zip(of_epoch, counts, strict=True):
        print(f"    epoch {epoch:<4} {100 * scores(of_round).mean_iou:.1f}")
    print(f"    majority   {100 * scores(most).mean_iou:.1f}")
    ours, theirs = shared_mistakes(network_maps(root, run_name, data, ids), rounds[-1], truths)
    print(f"  the network's wrong pixels, which the last labels call the same: {100 * ours:.1f} %")
    print(
        f"  the last labels' wrong pixels, which the network calls the same: {100 * theirs:.1f} %"
    )
    objects, (first, *_, last) = objects_of(data, ids), of_epoch.values()
    masks = []
    for choices in (first, last):
        of_image = dict(iter(choices.groupby("image_id")))
        found = {}
        for image_id in of_image:
            found |= chosen_masks(data, proposals, image_id, objects[image_id], of_image[image_id])
        masks.append(found)
    common = sorted(masks[0].keys() & masks[1].keys())
    for word, found in zip(("first", "last"), masks, strict=True):
        size, covered, right = np.array([found[key] for key in common]).T
        print(
            f"  {word} round, masks of {len(common)} objects alone of their category: median size "
            f"{np.median(size):.2f} of the object, {100 * covered.mean():.0f} % of it covered, "
            f"{100 * right.mean():.0f} % of the mask is object"
        )
    of_category = zip(data.categories, scores(counts[0]).iou, scores(counts[-1]).iou, strict=True)
    changes = ", ".join(f"{name} {100 * a:.0f} to {100 * b:.0f}" for name, a, b in of_category)
    print(f"  IoU in %, first to last round: {changes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, default=Path("."))
    parser.add_argument("runs", nargs="+", metavar="RUN")
    given = parser.parse_args()
    params = load_params(given.project / "params.yaml")
    for name in given.runs:
        tell(given.project, name, params.boxsup[name])


if __name__ == "__main__":
    main()
