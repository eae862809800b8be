"""A prepared dataset as COCO instances JSON: the truth for `score instances` and `proposals`.

Images and annotations are numbered from 1 in the order of the split. Categories have our numbers;
those that have no objects (background, Cityscapes' stuff) are not listed. Where the categories are
COCO's, they and the images have COCO's published ids. A box is x, y, width, height; an area is in
pixels of the mask. Objects that have only a box are left out. VOC's difficult objects are like all
others: mAP^r does not tell them apart.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pandas as pd
from pycocotools import mask as coco

from pipeline.categories import COCO, COCO_NAMES, things_of
from pipeline.datasets.prepared import Prepared
from pipeline.errors import BadInput, some
from pipeline.exports.places import new_file

COCO_IMAGE = re.compile(r"(?:COCO_[a-z]+2014_)?([0-9]{12})")  # the end is the published id


def export_truth(root: Path, dataset: str, split: str, out: Path) -> str:
    """Write the objects of a split of data/prepared/<dataset> as COCO instances JSON.

    Args:
        root: the project folder.
        dataset: its name in params.yaml.

    Returns:
        what was written, for the user.

    Raises:
        BadInput: `out` is not new, the dataset is not prepared, has no such split, or its objects
            are not known or have no masks. Nothing is written then.
    """
    data = Prepared(root, dataset)
    ids = data.ids(split)
    chosen = data.images[data.images["split"] == split]
    objects = data.instances[data.instances["image_id"].isin(ids)]
    _need_masks(f"{dataset}, {split}", chosen, objects)
    info = {"description": f"{dataset}, {split}"}
    with new_file(out) as place, place.open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {json.dumps(info)}')
        _write_lists(file, data, chosen)
        file.write("}\n")
    masked = objects[objects["mask_rle"].notna()]
    crowds = int(masked["crowd"].sum())
    of_crowds = f", {crowds} of them crowds," if crowds else ""
    told = f"{len(masked)} objects{of_crowds} of {len(ids)} images in {out}"
    if boxes := len(objects) - len(masked):
        told += f"\nnote: {boxes} more have only a box, no mask, and are left out"
    return told


def category_numbers(categories: tuple[str, ...]) -> dict[int, int]:
    """The id in the JSON of each of our numbers whose category has objects."""
    if categories == COCO:
        return dict(enumerate(COCO_NAMES, start=1))
    return {number: number for number in things_of(categories)}


def image_numbers(ids: list[str], categories: tuple[str, ...]) -> dict[str, int]:
    """The id in the JSON of each image: COCO's own, or its place in the list from 1 on."""
    named = [COCO_IMAGE.fullmatch(image_id) for image_id in ids]
    if categories == COCO and all(named):
        return {match.string: int(match[1]) for match in named if match}
    return {image_id: number for number, image_id in enumerate(ids, start=1)}


def _need_masks(what: str, images: pd.DataFrame, objects: pd.DataFrame) -> None:
    """BadInput unless the objects of every image are known, and any has a mask."""
    unknown = images.loc[~images["has_boxes"], "image_id"].tolist()
    if unknown:
        raise BadInput(
            f"{what}: the objects of {len(unknown)} of {len(images)} images are not annotated: "
            f"{some(unknown)}; choose a split whose images all have object masks"
        )
    if len(objects) and objects["mask_rle"].isna().all():
        raise BadInput(f"{what}: its objects have only boxes; choose a split with object masks")


def _write_lists(file: IO[str], data: Prepared, chosen: pd.DataFrame) -> None:
    """The three lists of the JSON, an entry a line: never all of them in memory."""
    images = image_numbers(chosen["image_id"].tolist(), data.categories)
    categories = category_numbers(data.categories)
    names = [{"id": number, "name": data.categories[ours]} for ours, number in categories.items()]
    lists: dict[str, Iterator[dict[str, Any]]] = {
        "images": (_image(row, images[row.image_id]) for row in chosen.itertuples()),
        "annotations": _annotations(data, images, categories),
        "categories": iter(names),
    }
    for name, entries in lists.items():
        file.write(f',\n"{name}": [')
        between = "\n"
        for entry in entries:
            file.write(between + json.dumps(entry))
            between = ",\n"
        file.write("\n]")


def _image(row: Any, number: int) -> dict[str, Any]:
    name = f"{row.image_id}{PurePosixPath(row.path).suffix}"
    return {"id": number, "file_name": name, "height": row.height, "width": row.width}


def _annotations(
    data: Prepared, images: dict[str, int], categories: dict[int, int]
) -> Iterator[dict[str, Any]]:
    number = 0
    for image_id, image in images.items():
        size = list(data.size(image_id))
        for row in data.objects(image_id).itertuples(index=False):
            if row.mask_rle is None:
                continue
            number += 1
            rle = {"size": size, "counts": row.mask_rle}
            yield {
                "id": number,
                "image_id": image,
                "category_id": categories[row.category],
                "iscrowd": int(row.crowd),
                "area": int(coco.area(rle)),
                "bbox": [row.x0, row.y0, row.x1 - row.x0, row.y1 - row.y0],
                "segmentation": rle,
            }
