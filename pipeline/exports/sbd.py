"""Predictions as .mat files in the layout of SBD: label maps as cls/, instances as inst/.

    cls/<image_id>.mat     struct GTcls:  Segmentation (H, W) uint8, category of each pixel
                                          CategoriesPresent (K, 1) uint8, those that occur, 1..20
    inst/<image_id>.mat    struct GTinst: Segmentation (H, W) uint8, number of the object, from 1
                                          Categories (N, 1) uint8, the category of each object
                                          Scores (N, 1) float64; SBD itself has none

SBD's Boundaries are left out. H x W pixels, N objects, K categories.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.categories import VOC
from pipeline.datasets.coco_json import decode_counts
from pipeline.datasets.coco_results import read_truth
from pipeline.datasets.label_maps import read_label_map
from pipeline.datasets.matfile import encode_variables
from pipeline.datasets.processes import map_in_threads
from pipeline.errors import BadFile, BadInput, some
from pipeline.exports.places import chosen_label_maps, new_folder
from pipeline.exports.predictions import read_predictions
from pipeline.exports.voc import need_voc_categories
from pipeline.tables import SCHEMAS

MOST = 255  # objects that uint8 can number


def export_sbd(predicted: Path, out: Path, *, truth: Path | None) -> str:
    """Write predictions as SBD's files into the new folder `out`.

    Args:
        predicted: a folder of index PNGs <image_id>.png, or a table of kind "predicted_instances".
        truth: for such a table COCO instances JSON: which images there are, and of which size.

    Returns:
        what was written, for the user.

    Raises:
        BadInput: `out` is not new, predictions are missing, not readable, of unknown images or of
            other categories than VOC's. Nothing is written then.
    """
    if predicted.is_dir():
        if truth is not None:
            raise BadInput(f"{predicted}: label maps have sizes of their own; leave out --truth")
        return _export_label_maps(predicted, out)
    if truth is None:
        raise BadInput(f"{predicted}: a table has no image sizes; name COCO instances with --truth")
    return _export_instances(predicted, out, truth)


# --- label maps -----------------------------------------------------------------------------------
def _export_label_maps(predicted: Path, out: Path) -> str:
    maps = list(chosen_label_maps(predicted, None).values())
    with new_folder(out) as folder:
        (folder / "cls").mkdir()
        for _ in map_in_threads(partial(_write_label_map, folder / "cls"), maps, "exporting"):
            pass
    return f"{len(maps)} label maps in {out / 'cls'}"


def _write_label_map(folder: Path, source: Path) -> None:
    label_map = read_label_map(source)
    present = np.unique(label_map)
    need_voc_categories(source, int(present.max(initial=0)))
    content = {"Segmentation": label_map, "CategoriesPresent": present[present > 0][:, None]}
    (folder / f"{source.stem}.mat").write_bytes(encode_variables({"GTcls": content}))


# --- instances ------------------------------------------------------------------------------------
def _export_instances(predicted: Path, out: Path, truth: Path) -> str:
    sizes = {image.name: image.size for image in read_truth(truth).images.values()}
    if nested := [name for name in sizes if "/" in name]:
        problem = f"names of images with a folder in them: {some(nested)}"
        raise BadFile(truth, problem, "SBD's files lie in one; give each a file name of its own")
    parts = list(read_predictions(predicted, sizes, range(1, len(VOC))))
    table = (
        pd.concat(parts) if parts else pd.DataFrame(columns=SCHEMAS["predicted_instances"].names)
    )
    rows = table.groupby("image_id").indices
    none = np.zeros(0, np.int64)
    items = [(name, size, table.iloc[rows.get(name, none)]) for name, size in sizes.items()]
    with new_folder(out) as folder:
        (folder / "inst").mkdir()
        write = partial(_write_objects, folder / "inst")
        left_out = sum(map_in_threads(write, items, "exporting"))
    told = f"{len(table) - left_out} objects of {len(items)} images in {out / 'inst'}"
    if left_out:
        told += f"\nnote: {left_out} more were left out: a file numbers the {MOST} best of an image"
    return told


def _write_objects(folder: Path, item: tuple[str, tuple[int, int], pd.DataFrame]) -> int:
    """Write the objects of an image, by falling score. Returns how many were left out."""
    image_id, size, rows = item
    best = rows.sort_values("score", ascending=False, kind="stable").iloc[:MOST]
    masks = [text.encode("ascii") for text in best["mask_rle"]]
    content = {
        "Segmentation": _numbers(decode_counts(masks), size),
        "Categories": best["category"].to_numpy(np.uint8)[:, None],
        "Scores": best["score"].to_numpy(np.float64)[:, None],
    }
    (folder / f"{image_id}.mat").write_bytes(encode_variables({"GTinst": content}))
    return len(rows) - len(best)


def _numbers(masks: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The number, from 1, of the first mask that has a pixel: (H, W) uint8, 0 where none has it.

    Args:
        masks: the counts of each mask's run-lengths.
    """
    columns = np.zeros(size[0] * size[1], np.uint8)  # run-lengths go down the columns
    for number in range(len(masks), 0, -1):  # the first last, over all others
        ends = np.cumsum(masks[number - 1]).tolist()
        for start, end in zip(ends[0::2], ends[1::2], strict=False):
            columns[start:end] = number
    return columns.reshape(size[1], size[0]).T
