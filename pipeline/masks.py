"""Masks and label maps as files and strings.

A label map (H, W) uint8 is kept as an index PNG (palette mode, VOC's colours); a mask (H, W) bool
as a COCO run-length string (column by column, compressed counts).
"""

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from pipeline.categories import colour_map
from pipeline.errors import BadFile, need_file

FAST = 1  # zlib's level for PNGs: a third of the time of its usual 6, a little larger


def encode_index_png(label_map: np.ndarray) -> bytes:
    """The index PNG of a label map (H, W) uint8, as bytes."""
    if label_map.dtype != np.uint8 or label_map.ndim != 2:
        raise ValueError(f"a label map is (H, W) uint8, not {label_map.shape} {label_map.dtype}")
    image = Image.fromarray(label_map)
    image.putpalette(_palette())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=FAST)
    return buffer.getvalue()


@cache
def _palette() -> bytes:
    return colour_map().tobytes()


def decode_index_png(source: bytes | Path) -> np.ndarray:
    """The indices of a palette or grey 8-bit PNG, never its colours. Returns (H, W) uint8.

    Raises:
        BadFile: the file is missing, unreadable, holds colours instead of indices, or is grey with
            other than 8 bits a pixel: fewer are spread over 0..255 when read, more do not fit.
    """
    name = Path("label map") if isinstance(source, bytes) else source
    if isinstance(source, Path):
        need_file(source)
    try:
        if isinstance(source, Path):
            verify_png(source)
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=["PNG"]) as image:
            if not image.tile:
                raise ValueError("no pixels in it")
            if image.mode != "P" and image.tile[0].args != "L":
                raise BadFile(name, *_no_indices(image))
            return np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile(name, f"not a readable PNG ({error})", "replace the file") from error


def verify_png(path: Path) -> None:
    """OSError, SyntaxError or ValueError for a PNG whose check sums do not fit its contents.

    Pillow decodes pixels without asking them.
    """
    with Image.open(path, formats=["PNG"]) as image:
        if not image.tile:
            raise ValueError("no pixels in it")
        image.verify()


def _no_indices(image: ImageFile.ImageFile) -> tuple[str, str]:
    """What a PNG holds instead of 8-bit indices, and the remedy."""
    bits = {"1": 1, "L;2": 2, "L;4": 4, "I;16B": 16}.get(str(image.tile[0].args))
    if bits is not None:
        return (
            f"a grey PNG of {bits} bits a pixel (mode {image.mode})",
            "save it with 8 bits a pixel",
        )
    if image.mode == "LA":
        return "a grey PNG with transparency", "save it without, as 8-bit grey"
    return (
        f"colours (mode {image.mode}) instead of the category numbers of a palette PNG",
        "`python -m pipeline export indices --colours voc|cityscapes --predicted DIR --out DIR` "
        "converts a folder of such masks",
    )


def encode_rle(mask: np.ndarray) -> str:
    """COCO's compressed run-lengths of a mask (H, W) bool."""
    from pycocotools import mask as coco  # here, so that training runs where it is not installed

    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def decode_rle(counts: str, height: int, width: int) -> np.ndarray:
    """The mask (H, W) bool of COCO's compressed run-lengths."""
    from pycocotools import mask as coco

    return coco.decode({"size": [height, width], "counts": counts.encode("ascii")}).astype(bool)


def encode_numbers(numbers: np.ndarray) -> dict[int, str]:
    """The run-lengths of each number's pixels in a map (H, W) of whole numbers, all in one pass.

    Returns:
        {number: COCO's compressed run-lengths}, ascending, without 0.
    """
    from pycocotools import mask as coco

    height, width = numbers.shape
    flat = numbers.ravel(order="F")  # run-lengths go down the columns
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], edges, [flat.size]])  # run i is edges[i]:edges[i + 1]
    values = flat[edges[:-1]]
    encoded = {}
    for number in np.unique(values).tolist():
        if number != 0:
            runs = np.flatnonzero(values == number)
            ends = np.zeros(2 * runs.size + 2, np.int64)
            ends[1:-1:2], ends[2:-1:2], ends[-1] = edges[runs], edges[runs + 1], flat.size
            counts = (ends[1:] - ends[:-1]).tolist()  # off, on, off, ...
            if counts[-1] == 0:
                counts.pop()
            rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
            encoded[number] = rle["counts"].decode("ascii")
    return encoded


def rle_box(counts: str, height: int, width: int) -> tuple[int, int, int, int]:
    """The smallest box around a mask's pixels, [x0, y0, x1, y1); all 0 for an empty mask."""
    from pycocotools import mask as coco

    rle = {"size": [height, width], "counts": counts.encode("ascii")}
    x, y, w, h = (int(side) for side in coco.toBbox(rle))
    return (x, y, x + w, y + h) if w and h else (0, 0, 0, 0)
