"""Label maps as the evaluation server and the official scorer of Cityscapes take them.

<city>/<city>_<seq>_<frame>_gtFine_labelIds.png    published id of each pixel, 8-bit grey
results_cityscapes.zip                             the same files
"""

import io
import re
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.categories import CITYSCAPES
from pipeline.datasets.cityscapes_results import label_of_train_id
from pipeline.datasets.label_maps import read_label_map
from pipeline.datasets.processes import map_in_threads
from pipeline.errors import BadFile
from pipeline.exports.places import chosen_label_maps, new_folder

IMAGE_ID = re.compile(r"([A-Za-z0-9-]+)_[0-9]+_[0-9]+")
UNLABELED = 0  # the published id for what is none of the 19
ARCHIVE = "results_cityscapes.zip"
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # of a zip's calendar
PLAIN_FILE = 0o100644 << 16  # a zip's place for Unix' kind of file and permissions


def export_cityscapes(predicted: Path, out: Path, *, ids: Path | None) -> str:
    """Write label maps with published ids, and the archive of them, into the new folder `out`.

    Args:
        predicted: a folder of index PNGs <city>_<seq>_<frame>.png of train ids 0..18; pixels of
            other values become unlabeled, and are counted.
        ids: a list of the images; None: all in the folder.

    Returns:
        what was written, for the user.

    Raises:
        BadInput: `out` is not new, a name is none of an image, a label map is missing or not
            readable. Nothing is written then.
    """
    maps = chosen_label_maps(predicted, ids)
    for image_id, path in maps.items():
        if not IMAGE_ID.fullmatch(image_id):
            problem = "its name is not <city>_<seq>_<frame>.png"
            raise BadFile(path, problem, "name it by its image, and let it hold train ids")
    with new_folder(out) as folder:
        for city in {image_id.split("_")[0] for image_id in maps}:
            (folder / city).mkdir()
        outside, files = 0, []
        write = partial(_write_map, folder, label_of_train_id(UNLABELED))
        for file, count in map_in_threads(write, list(maps.values()), "exporting"):
            files.append(file)
            outside += count
        _write_archive(folder / ARCHIVE, folder, files)
    told = f"{len(maps)} label maps in {out}, all of them in {out / ARCHIVE}"
    if outside:
        told += f"\nnote: {outside} pixels hold no train id 0..{len(CITYSCAPES) - 1}: unlabeled now"
    return told


def _write_map(folder: Path, label_of: np.ndarray, source: Path) -> tuple[Path, int]:
    """Write one label map. Returns its file and the number of pixels that hold no train id."""
    train_ids = read_label_map(source)
    buffer = io.BytesIO()
    # The server limits uploads: zlib's usual level, not the fast one.
    Image.fromarray(label_of[train_ids]).save(buffer, format="PNG")
    path = folder / source.stem.split("_")[0] / f"{source.stem}_gtFine_labelIds.png"
    path.write_bytes(buffer.getvalue())
    return path, int(np.count_nonzero(train_ids >= len(CITYSCAPES)))


def _write_archive(path: Path, top: Path, files: Iterable[Path]) -> None:
    """A zip of files by their paths below `top`: the same bytes always, no time or user in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
        for file in files:
            member = zipfile.ZipInfo(file.relative_to(top).as_posix(), FIRST_DAY)
            member.create_system, member.external_attr = 3, PLAIN_FILE  # 3: Unix
            archive.writestr(member, file.read_bytes())
