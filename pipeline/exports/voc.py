"""Label maps as the evaluation server of VOC2012 takes them.

    results/VOC2012/Segmentation/<competition>_<split>_cls/<image_id>.png    VOC's palette, 0..20
    results_VOC2012_<competition>_<split>.tgz                                holds `results/...`

comp5 is for methods that learnt from VOC2012's own annotation alone, comp6 for all others.
"""

import gzip
import tarfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from pipeline.categories import IGNORE, VOC
from pipeline.datasets.label_maps import read_label_map
from pipeline.datasets.lists import is_image_id
from pipeline.datasets.processes import map_in_threads
from pipeline.errors import BadFile, BadInput
from pipeline.exports.places import chosen_label_maps, new_folder
from pipeline.masks import encode_index_png

COMPETITIONS = ("comp5", "comp6")
NUM_IMAGES = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456}  # of the official lists


def export_voc(
    predicted: Path, out: Path, *, competition: str, split: str, ids: Path | None
) -> str:
    """Write label maps, and the archive of them, into the new folder `out`.

    Args:
        predicted: a folder of index PNGs <image_id>.png.
        competition: comp5 or comp6.
        split: whose images they are; only a part of names.
        ids: a list of the images; None: all in the folder.

    Returns:
        what was written, for the user.

    Raises:
        BadInput: `out` is not new, a name is none, a label map is missing or not readable, or it
            holds another number than 0..20. Nothing is written then.
    """
    if competition not in COMPETITIONS:
        raise BadInput(f"no competition {competition!r}; choose one of: {', '.join(COMPETITIONS)}")
    if not is_image_id(split):
        raise BadInput(f"{split!r} is no name of a split; use one such as test or val")
    maps = chosen_label_maps(predicted, ids)
    inner = Path("results", "VOC2012", "Segmentation", f"{competition}_{split}_cls")
    archive = f"results_VOC2012_{competition}_{split}.tgz"
    with new_folder(out) as folder:
        (folder / inner).mkdir(parents=True)
        write = partial(_write_map, folder / inner)
        files = list(map_in_threads(write, list(maps.values()), "exporting"))
        _write_archive(folder / archive, folder, files)
    told = f"{len(maps)} label maps in {out / inner}, all of them in {out / archive}"
    wanted = NUM_IMAGES.get(split, len(maps))
    if len(maps) != wanted:
        told += f"\nnote: VOC2012's {split} has {wanted} images; the server takes all or none"
    return told


def need_voc_categories(path: Path, largest: int) -> None:
    """BadFile if a label map's largest number is no category of VOC."""
    if largest < len(VOC):
        return
    what = " (a pixel without label)" if largest == IGNORE else ""
    raise BadFile(
        path,
        f"value {largest}{what}, but predictions hold VOC's categories 0..{len(VOC) - 1} alone",
        "give every pixel one of them",
    )


def _write_map(folder: Path, source: Path) -> Path:
    label_map = read_label_map(source)
    need_voc_categories(source, int(label_map.max(initial=0)))
    path = folder / f"{source.stem}.png"
    path.write_bytes(encode_index_png(label_map))
    return path


def _write_archive(path: Path, top: Path, files: Iterable[Path]) -> None:
    """A tgz of files by their paths below `top`: the same bytes always, no time or user in it."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(mode="w", fileobj=packed) as archive,
    ):
        for file in files:
            member = tarfile.TarInfo(file.relative_to(top).as_posix())
            member.size, member.mode = file.stat().st_size, 0o644
            with file.open("rb") as content:
                archive.addfile(member, content)
