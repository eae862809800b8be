"""A dataset in the common form: data/prepared/<dataset>/.

    images.parquet               one row per image and split
    instances.parquet            one row per annotated object
    semantic/part-000.parquet    label maps as index PNGs, up to 2,000 a part
    categories.json              names, background first

The images themselves stay in the dataset's own tree. H x W pixels.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.datasets.form import Sample, read_image
from pipeline.datasets.places import dataset_root
from pipeline.datasets.processes import map_in_order
from pipeline.errors import BadInput
from pipeline.masks import decode_index_png, encode_index_png, encode_rle
from pipeline.tables import read_arrow, read_table, write_table

MAPS_PER_PART = 2000


class Prepared:
    """A prepared dataset, read. Label maps are decoded when asked for.

    Attributes:
        images: table "images", one row per image and split, in the order of the lists.
        instances: table "instances"; mask_rle is None where there is only a box.
        categories: names, background first.
    """

    def __init__(self, root: Path, dataset: str) -> None:
        """Read the tables.

        Args:
            root: the project folder.
            dataset: its name in params.yaml.

        Raises:
            BadInput: the dataset is not prepared.
        """
        self._folder = root / "data" / "prepared" / dataset
        self._dataset = dataset
        self._tree = dataset_root(root, dataset)
        self.images = read_table(self._folder / "images.parquet", "images")
        self.instances = read_table(self._folder / "instances.parquet", "instances")
        rle = self.instances["mask_rle"].astype(object)
        self.instances["mask_rle"] = rle.where(rle.notna(), None)
        names = json.loads((self._folder / "categories.json").read_text(encoding="utf-8"))
        self.categories: tuple[str, ...] = tuple(names)
        self._paths = dict(zip(self.images["image_id"], self.images["path"], strict=True))
        sizes = zip(self.images["height"], self.images["width"], strict=True)
        self._sizes = dict(zip(self.images["image_id"], sizes, strict=True))
        self._rows = self.instances.groupby("image_id").indices
        self._parts: list[pa.Table] = []
        self._maps: dict[str, tuple[int, int]] = {}  # image_id: part and row of its label map

    def ids(self, split: str) -> list[str]:
        """The image ids of a split, in the order of its list. BadInput for an unknown split."""
        chosen = self.images.loc[self.images["split"] == split, "image_id"].tolist()
        if not chosen:
            known = ", ".join(self.images["split"].unique())
            raise BadInput(f"{self._dataset} has no split {split!r}; choose one of: {known}")
        return chosen

    def image_path(self, image_id: str) -> Path:
        """Where the image's file lies. BadInput for an image that is not in the dataset."""
        if image_id not in self._paths:
            raise BadInput(f"{self._dataset} has no image {image_id!r}")
        return self._tree / self._paths[image_id]

    def image(self, image_id: str) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB. BadInput if its file is missing or truncated."""
        path = self.image_path(image_id)
        if not path.is_file():
            raise BadInput(
                f"{path}: not there. Name the copy that was fetched again "
                f"(PIPELINE_DATA_{self._dataset.upper()} or local.yaml), "
                f"or run `dvc repro -f fetch@{self._dataset}`"
            )
        return read_image(path)

    def size(self, image_id: str) -> tuple[int, int]:
        """Height and width of an image, without reading it. BadInput if it has no such image."""
        self.image_path(image_id)
        return self._sizes[image_id]

    def label_map(self, image_id: str) -> np.ndarray:
        """Category of each pixel (H, W) uint8, 255 = ignore. BadInput if the image has none."""
        if not self._maps:
            self._read_label_maps()
        if image_id not in self._maps:
            raise BadInput(f"{self._dataset} has no label map of the image {image_id!r}")
        part, row = self._maps[image_id]
        return decode_index_png(self._parts[part]["png"][row].as_py())

    def objects(self, image_id: str) -> pd.DataFrame:
        """The rows of `instances` of one image, by instance; none if it has no boxes."""
        return self.instances.iloc[self._rows.get(image_id, np.zeros(0, np.int64))]

    def _read_label_maps(self) -> None:
        for number, path in enumerate(sorted((self._folder / "semantic").glob("part-*.parquet"))):
            part = read_arrow(path, "semantic")
            self._parts.append(part)
            for row, image_id in enumerate(part["image_id"].to_pylist()):
                self._maps[image_id] = (number, row)


def write_prepared(
    folder: Path,
    read: Callable[[str], Sample],
    splits: Mapping[str, list[str]],
    categories: tuple[str, ...],
) -> None:
    """Read every image of the splits and write the four parts of the common form into `folder`.

    Args:
        read: from image id to Sample; picklable, for it runs in other processes.

    Raises:
        BadInput: what `read` says of the first image at fault.
    """
    ids = sorted({image_id for listed in splits.values() for image_id in listed})
    facts: dict[str, dict[str, Any]] = {}
    objects: list[dict[str, Any]] = []
    maps: list[dict[str, Any]] = []
    parts = 0
    for row, its_objects, png in map_in_order(partial(_rows, read), ids, "preparing"):
        facts[row["image_id"]] = row
        objects += its_objects
        if png is not None:
            maps.append({"image_id": row["image_id"], "png": png})
        if len(maps) == MAPS_PER_PART:
            write_table(folder / "semantic" / f"part-{parts:03d}.parquet", "semantic", maps)
            maps, parts = [], parts + 1
    if maps or not parts:
        write_table(folder / "semantic" / f"part-{parts:03d}.parquet", "semantic", maps)
    rows = [{**facts[i], "split": split} for split, listed in splits.items() for i in listed]
    write_table(folder / "images.parquet", "images", rows)
    write_table(folder / "instances.parquet", "instances", objects)
    (folder / "categories.json").write_text(json.dumps(categories, indent=1) + "\n")


def _rows(
    read: Callable[[str], Sample], image_id: str
) -> tuple[dict[str, Any], list[dict[str, Any]], bytes | None]:
    """One image as its row of "images" (without the split), of "instances", and its index PNG."""
    sample = read(image_id)
    height, width = sample.image.shape[:2]
    row = {
        "image_id": image_id,
        "source": sample.source,
        "path": sample.path,
        "height": height,
        "width": width,
        "has_masks": sample.label_map is not None,
        "has_boxes": sample.objects is not None,
    }
    objects = []
    for number, o in enumerate(sample.objects or ()):
        corners = dict(zip(("x0", "y0", "x1", "y1"), o.box, strict=True))
        mask_rle = None if o.mask is None else encode_rle(o.mask)
        objects.append(
            {"image_id": image_id, "instance": number, "category": o.category, **corners}
            | {"difficult": o.difficult, "crowd": o.crowd, "mask_rle": mask_rle}
        )
    png = None if sample.label_map is None else encode_index_png(sample.label_map)
    return row, objects, png
