"""The annotated objects of an image as arrays: whose pixel each is, and the box around each.

N objects, H x W pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.boxes import tight_box
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.run_lengths import read_texts
from pipeline.errors import BadInput
from pipeline.masks import decode_rle


class ObjectMap(NamedTuple):
    """The objects of one image that have a mask. Crowds are none of them, nor is what hides."""

    numbers: np.ndarray  # (H, W) uint16: object + 1, 0 for none; of two the smaller is on top
    boxes: np.ndarray  # (N, 4) float32, around all pixels of each, half-open
    things: np.ndarray  # (N,) int64, the place of its category among those with objects


def need_object_masks(data: Prepared, ids: Sequence[str]) -> None:
    """BadInput unless the objects of these images have masks.

    One of them may have none in spite of it: in VOC's masks a sliver can be all border (255).
    """
    images = data.images[data.images["image_id"].isin(ids)].drop_duplicates("image_id")
    bare = images.loc[images["has_boxes"] & ~images["has_masks"], "image_id"].tolist()
    sources = dict(zip(images["image_id"], images["source"], strict=True))
    objects = data.instances[data.instances["image_id"].isin(sources) & ~data.instances["crowd"]]
    masked = objects["mask_rle"].notna().groupby(objects["image_id"].map(sources)).any()
    without = [source for source, any_mask in masked.items() if not any_mask]
    if bare or without:
        which = f"images as {bare[0]} have" if bare else f"no object of the source {without[0]} has"
        raise BadInput(
            f"{which} {'boxes only' if bare else 'a mask'}; instances are learnt from the masks of "
            "objects and measured by them: take a split, or a dataset, that has them"
        )


def masked_objects(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of rows of table "instances" that have a mask. Crowds are no objects."""
    return rows[~rows["crowd"].to_numpy(bool) & rows["mask_rle"].notna().to_numpy()]


def object_map(data: Prepared, image_id: str, things: Sequence[int]) -> ObjectMap:
    """The objects of an image.

    Args:
        things: the categories that have objects, ascending.

    Raises:
        BadInput: an object is of no such category, or its mask is damaged.
    """
    height, width = data.size(image_id)
    rows = masked_objects(data.objects(image_id))
    categories = rows["category"].to_numpy(np.int64)
    unknown = ~np.isin(categories, things)
    if unknown.any():
        raise BadInput(
            f"image {image_id}: an object of category {categories[unknown][0]}, which has none"
        )
    texts = rows["mask_rle"].tolist()
    _, sound = read_texts(texts, [(height, width)] * len(texts))
    if not sound.all():
        raise BadInput(f"image {image_id}: the mask of an object is damaged; prepare it anew")
    masks = [decode_rle(text, height, width) for text in texts]
    boxes = np.array([tight_box(mask) for mask in masks], np.float32).reshape(-1, 4)
    numbers = np.zeros((height, width), np.uint16)
    for n in np.argsort([-np.count_nonzero(mask) for mask in masks], kind="stable").tolist():
        numbers[masks[n]] = n + 1
    return ObjectMap(numbers, boxes, np.searchsorted(things, categories))
