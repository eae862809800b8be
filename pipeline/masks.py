"""Masks and label maps as files and strings.

A label map (H, W) uint8 is kept as an index PNG (palette mode, VOC's colours); a mask (H, W) bool
as a COCO run-length string (column by column, compressed counts).
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.categories import colour_map
from pipeline.errors import BadInput


def encode_index_png(label_map: np.ndarray) -> bytes:
    """The index PNG of a label map (H, W) uint8, as bytes."""
    if label_map.dtype != np.uint8 or label_map.ndim != 2:
        raise ValueError(f"a label map is (H, W) uint8, not {label_map.shape} {label_map.dtype}")
    image = Image.fromarray(label_map)
    image.putpalette(colour_map().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_index_png(source: bytes | Path) -> np.ndarray:
    """The indices of a palette or grey 8-bit PNG, never its colours. Returns (H, W) uint8.

    Raises:
        BadInput: the file is unreadable or holds colours instead of indices.
    """
    name = "label map" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode not in ("P", "L"):
                raise BadInput(
                    f"{name}: mode {image.mode} instead of a palette PNG; "
                    "convert it so that each pixel holds a category number"
                )
            return np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError) as error:
        raise BadInput(f"{name}: not a readable PNG ({error}); replace the file") from error


def encode_rle(mask: np.ndarray) -> str:
    """COCO's compressed run-lengths of a mask (H, W) bool."""
    from pycocotools import mask as coco  # here, so that training runs where it is not installed

    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def decode_rle(counts: str, height: int, width: int) -> np.ndarray:
    """The mask (H, W) bool of COCO's compressed run-lengths."""
    from pycocotools import mask as coco

    return coco.decode({"size": [height, width], "counts": counts.encode("ascii")}).astype(bool)
