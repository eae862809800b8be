"""Predicted instances as COCO results JSON.

    [{"image_id": 9, "category_id": 18, "segmentation": {"size": [H, W], "counts": "..."},
      "score": 0.5}, ...]

Images and categories have the ids of the truth, objects the order of the table. There is no bbox:
where results have one, pycocotools takes its area for the mask's, and other objects are small.
"""

import json
from pathlib import Path

from pipeline.categories import COCO_NAMES, COCO_OF_VOC, VOC
from pipeline.datasets.coco_results import InstanceTruth, read_truth
from pipeline.datasets.label_maps import categories_of
from pipeline.errors import BadFile, some
from pipeline.exports.places import new_file
from pipeline.exports.predictions import read_predictions


def export_coco(predicted: Path, truth: Path, out: Path, *, categories: str) -> str:
    """Write a table of kind "predicted_instances" as COCO results JSON, the new file `out`.

    Args:
        truth: COCO instances JSON: sizes, ids and category names.
        categories: of the predictions, as `categories_of` takes them.

    Returns:
        what was written, for the user.

    Raises:
        BadInput: `out` is not new, a file is not readable, a prediction is of an image or a
            category that the truth does not have, or is no mask of its image. Nothing is written.
    """
    known = read_truth(truth)
    ids = category_ids(known, categories_of(categories))
    numbers = {image.name: image.number for image in known.images.values()}
    sizes = {image.name: image.size for image in known.images.values()}
    count = 0
    with new_file(out) as place, place.open("w", encoding="utf-8") as file:
        file.write("[")
        for rows in read_predictions(predicted, sizes, ids):
            for row in rows.itertuples(index=False):
                entry = {
                    "image_id": numbers[row.image_id],
                    "category_id": ids[row.category],
                    "segmentation": {"size": sizes[row.image_id], "counts": row.mask_rle},
                    "score": row.score,
                }
                file.write((",\n" if count else "\n") + json.dumps(entry, allow_nan=False))
                count += 1
        file.write("\n]\n")
    return f"{count} objects in {out}"


def category_ids(truth: InstanceTruth, names: tuple[str, ...]) -> dict[int, int]:
    """The truth's category id of each of our numbers, by name; without those it does not have.

    VOC's categories are found by COCO's names for them as well.

    Raises:
        BadFile: the truth has none of the categories.
    """
    by_name = {name: number for number, name in truth.categories.items()}
    found = {}
    for number, name in enumerate(names):
        other = COCO_NAMES[COCO_OF_VOC[number - 1]] if names == VOC and number else name
        published = by_name.get(name, by_name.get(other))
        if published is not None:
            found[number] = published
    if not found:
        raise BadFile(
            truth.path,
            f"its categories are {some(list(by_name))}, none of those of the predictions",
            "name the categories of the predictions, or the truth they are of",
        )
    return found
