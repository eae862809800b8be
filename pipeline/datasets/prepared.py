"""A dataset in the common form: data/prepared/<dataset>/.

    images.parquet               one row per image and split
    instances.parquet            one row per annotated object
    semantic/part-000.parquet    label maps as index PNGs, of up to 250 images a part
    categories.json              names, background first

The images themselves stay in the dataset's own tree. Preparing goes image by image into parts, in
several processes; parts that are there are not made again. H x W pixels.
"""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.categories import IGNORE
from pipeline.datasets.form import Sample, read_image
from pipeline.datasets.places import dataset_root
from pipeline.datasets.processes import in_processes, processors
from pipeline.datasets.tree import Problems, Tree
from pipeline.errors import BadInput
from pipeline.masks import decode_index_png, encode_index_png
from pipeline.tables import SCHEMAS, read_arrow, read_table, write_table

IMAGES_PER_PART = 250

Read = Callable[[Any, Problems], Sample]


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
        self._root = root
        self._places: dict[str, Path] = {}
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
        place, inner = self._paths[image_id].split("/", 1)
        if place not in self._places:
            self._places[place] = dataset_root(self._root, place)
        return self._places[place] / inner

    def image(self, image_id: str) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB.

        Raises:
            BadInput: its file is missing, truncated, or of another size than when it was prepared.
        """
        path = self.image_path(image_id)
        if not path.is_file():
            place = self._paths[image_id].split("/", 1)[0]
            raise BadInput(
                f"{path}: not there. Name the copy that was fetched again "
                f"(PIPELINE_DATA_{place.upper()} or local.yaml), "
                f"or run `dvc repro -f fetch@{self._dataset}`"
            )
        image = read_image(path)
        if image.shape[:2] != self._sizes[image_id]:
            (height, width), was = image.shape[:2], self._sizes[image_id]
            raise BadInput(
                f"{path}: {height} x {width} pixels (height x width), but {was[0]} x {was[1]} when "
                f"{self._dataset} was prepared; run `dvc repro -f prepare@{self._dataset}`"
            )
        return image

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


def write_prepared(folder: Path, tree: Tree) -> None:
    """Read every image of the splits and write the four parts of the common form.

    Args:
        folder: gets `prepared/`, which is complete when this returns, and `parts/`, from which a
            broken preparation goes on.

    Raises:
        BadFile: what the reader says of the first image at fault.
    """
    ids, parts, done = tree.ids(), folder / "parts", folder / "prepared"
    chunks = [ids[start : start + IMAGES_PER_PART] for start in range(0, len(ids), IMAGES_PER_PART)]
    missing = [n for n in range(len(chunks)) if not _part(parts, "images", n).is_file()]

    def work() -> Iterator[tuple[int, list[Any]]]:
        for number in missing:
            yield number, [tree.record(image_id) for image_id in chunks[number]]

    with tqdm(total=len(ids), desc="preparing", unit="image", disable=None) as progress:
        progress.update(len(ids) - sum(len(chunks[number]) for number in missing))
        write = partial(_write_part, folder, tree.read)
        for count in in_processes(write, work(), min(processors(), len(missing))):
            progress.update(count)

    numbers = range(len(chunks))
    _join_parts([_part(parts, "instances", n) for n in numbers], done / "instances.parquet")
    facts = {row["image_id"]: row for n in numbers for row in _image_rows(parts, n)}
    rows = [{**facts[i], "split": split} for split, listed in tree.splits.items() for i in listed]
    write_table(done / "images.parquet", "images", rows)
    (done / "categories.json").write_text(json.dumps(tree.categories, indent=1) + "\n")


def _part(parts: Path, kind: str, number: int) -> Path:
    return parts / f"{kind}-{number:04d}.parquet"


def _write_part(folder: Path, read: Read, work: tuple[int, list[Any]]) -> int:
    """Write the three tables of a part, "images" last: with it the part is complete."""
    number, records = work
    parts = folder / "parts"
    strict = Problems(collect=False)
    images, objects, maps = [], [], []
    for record in records:
        row, its_objects, png = image_rows(read(record, strict))
        images.append({**row, "split": ""})
        objects += its_objects
        if png is not None:
            maps.append({"image_id": row["image_id"], "png": png})
    semantic = folder / "prepared" / "semantic" / f"part-{number:03d}.parquet"
    write_table(semantic, "semantic", maps)
    write_table(_part(parts, "instances", number), "instances", objects)
    write_table(_part(parts, "images", number), "images", images)
    return len(images)


def _image_rows(parts: Path, number: int) -> list[dict[str, Any]]:
    return read_arrow(_part(parts, "images", number), "images").to_pylist()


def _join_parts(parts: list[Path], place: Path) -> None:
    """One table of several, a part at a time in memory."""
    partial_file = place.with_name(f".{place.name}.partial")
    with pq.ParquetWriter(partial_file, SCHEMAS["instances"], compression="zstd") as writer:
        for path in parts:
            writer.write_table(read_arrow(path, "instances"))
    os.replace(partial_file, place)


def image_rows(
    sample: Sample,
) -> tuple[dict[str, Any], list[dict[str, Any]], bytes | None]:
    """One image as its row of "images" (without the split), of "instances", and its index PNG."""
    height, width = sample.size
    row = {
        "image_id": sample.image_id,
        "source": sample.source,
        "path": sample.path,
        "height": height,
        "width": width,
        "has_masks": sample.label_map is not None,
        "has_boxes": sample.objects is not None,
    }
    objects = []
    for number, o in enumerate(o for o in sample.objects or () if o.category != IGNORE):
        corners = dict(zip(("x0", "y0", "x1", "y1"), o.box, strict=True))
        objects.append(
            {"image_id": sample.image_id, "instance": number, "category": o.category, **corners}
            | {"difficult": o.difficult, "crowd": o.crowd, "mask_rle": o.mask_rle}
        )
    png = None if sample.label_map is None else encode_index_png(sample.label_map)
    return row, objects, png
