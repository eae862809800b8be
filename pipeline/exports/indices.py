"""Masks that hold colours as index PNGs, which hold the numbers of categories. H x W pixels.

VOC's colours become VOC's numbers, (224, 224, 192) 255. Cityscapes' become train ids, those of
labels that are not scored 255; polegroup has the colour of pole, license plate that of car.
"""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.categories import (
    CITYSCAPES_COLOURS,
    CITYSCAPES_IDS,
    IGNORE,
    VOC,
    colour_map,
)
from pipeline.datasets.label_maps import files_below
from pipeline.datasets.processes import map_in_threads
from pipeline.errors import BadFile, BadInput, need_file
from pipeline.exports.cityscapes import IMAGE_ID
from pipeline.exports.places import new_folder
from pipeline.masks import encode_index_png, verify_png

NONE = 254  # in the table of indices: a colour of no category
OPAQUE = 255


def export_indices(predicted: Path, out: Path, *, colours: str) -> str:
    """Write an index PNG for each coloured PNG into the new folder `out`.

    It has the name of the coloured one, or if that begins with an image id of Cityscapes, as in
    ..._gtFine_color.png, the id alone.

    Args:
        predicted: a folder with, at any depth, PNGs of RGB, RGBA or palette mode; of the last the
            colours are taken as well.
        colours: voc or cityscapes.

    Returns:
        what was written, for the user.

    Raises:
        BadInput: `out` is not new, no PNG is there or one is not readable or has no colours, a
            pixel has a colour of no category or is transparent. Nothing is written then.
    """
    known = known_colours(colours)
    sources = list(_find(predicted).items())
    table = np.full(1 << 24, NONE, np.uint8)
    for (red, green, blue), index in known.items():
        table[red << 16 | green << 8 | blue] = index
    with new_folder(out) as folder:
        write = partial(_write_map, folder, table, colours)
        count = sum(1 for _ in map_in_threads(write, sources, "converting"))
    return f"{count} index PNGs in {out}"


def known_colours(colours: str) -> dict[tuple[int, int, int], int]:
    """The index of each colour (red, green, blue). Raises BadInput for another name of colours."""
    match colours:
        case "voc":
            drawn = [tuple(colour) for colour in colour_map().tolist()]
            return {drawn[index]: index for index in (*range(len(VOC)), IGNORE)}
        case "cityscapes":
            known = dict.fromkeys(CITYSCAPES_COLOURS, IGNORE)
            for train_id, label in enumerate(CITYSCAPES_IDS):
                known[CITYSCAPES_COLOURS[label]] = train_id
            return known
    raise BadInput(f"no colours {colours!r}; choose one of: voc, cityscapes")


def _find(top: Path) -> dict[str, Path]:
    """The PNGs below a folder by the name of what is made of them. Raises BadFile."""
    if not top.is_dir():
        raise BadFile(top, "not a folder", "name the folder in which the coloured PNGs lie")
    found: dict[str, Path] = {}
    for path in files_below(top):
        if path.suffix.lower() == ".png":
            image = IMAGE_ID.match(path.stem)
            name = image[0] if image else path.stem
            if name in found:
                raise BadFile(path, f"{found[name]} is of the same image", "take out one of them")
            found[name] = path
    if not found:
        raise BadFile(top, "no PNG in it", "name the folder in which the coloured PNGs lie")
    return found


def _write_map(folder: Path, table: np.ndarray, colours: str, named: tuple[str, Path]) -> None:
    name, source = named
    pixels = _read_colours(source)
    keys = np.zeros(pixels.shape[:2], np.int32)
    for channel in range(3):
        keys = keys << 8 | pixels[..., channel]
    indices = table[keys]
    if (indices == NONE).any():
        row, column = np.argwhere(indices == NONE)[0].tolist()
        colour = tuple(pixels[row, column].tolist())
        problem = f"the pixel in row {row}, column {column} is {colour}, none of {colours}'s"
        raise BadFile(source, problem, "give the mask as it was made: not blended, resized or JPEG")
    (folder / f"{name}.png").write_bytes(encode_index_png(indices))


def _read_colours(path: Path) -> np.ndarray:
    """The colours of a PNG: (H, W, 3) uint8. Raises BadFile."""
    need_file(path)
    try:
        verify_png(path)
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("RGB", "RGBA", "P"):
                raise BadFile(
                    path, f"mode {image.mode}: no colours", "score it as it is if it holds numbers"
                )
            pixels = np.array(image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile(path, f"not a readable PNG ({error})", "replace the file") from error
    if (pixels[..., 3] != OPAQUE).any():
        row, column = np.argwhere(pixels[..., 3] != OPAQUE)[0].tolist()
        problem = f"the pixel in row {row}, column {column} is transparent"
        raise BadFile(path, problem, "save the mask without transparency")
    return pixels[..., :3]
