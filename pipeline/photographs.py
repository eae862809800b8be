"""Image files of any origin, read as people see them. H x W pixels."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipeline.datasets.form import image_size
from pipeline.errors import BadFile, need_file

WHITE = 65535  # in 16 bits


def read_photograph(path: Path, notes: list[str]) -> np.ndarray:
    """An image file as people see it: (H, W, 3) uint8 RGB.

    Turned as its EXIF tag says. 16-bit grey is brought to 8 bits, CMYK to RGB without its colour
    profile, transparency dropped; of several pictures in one file the first is taken.

    Args:
        notes: gets a line for the user where a file holds more than is taken.

    Raises:
        BadFile: missing, damaged, no image, of a kind without a defined range, or too large.
    """
    need_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: a large image, strange EXIF data
            with Image.open(path) as image:
                return _pixels(image, path, notes)
    except BadFile:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadFile(path, f"more than {limit:,} pixels", "make it smaller or cut it") from error
    except Exception as error:  # each kind of damage has an exception of its own
        problem = f"not a readable image ({str(error) or type(error).__name__})"
        raise BadFile(path, problem, "copy it anew, or save it as JPEG or PNG") from error


def _pixels(image: Image.Image, path: Path, notes: list[str]) -> np.ndarray:
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != "MPO":  # that holds a camera's previews
        notes.append(f"{path}: {pages} pictures in one file, the first is taken")
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):
        wide = np.array(ImageOps.exif_transpose(image)).astype(np.float32)  # (H, W)
        grey = (wide * (255 / WHITE) + 0.5).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        problem = f"numbers without a range (mode {image.mode})"
        raise BadFile(path, problem, "convert it to 8-bit RGB")
    image_size(path)  # refuses what is cut off, which Pillow fills with grey
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))
