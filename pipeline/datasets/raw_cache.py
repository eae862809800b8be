"""Images and label maps of a prepared dataset, decoded once into one file that is mapped to memory.

    work/raw_cache/<dataset>-<digest>/pixels.raw    image by image: (H, W, 3) RGB, its label map
    work/raw_cache/<dataset>.lock                   shared by those who read, so that `prune` waits

It is a matter of the machine, not of a run: a training reads the same numbers with and without it.
The digest is that of the prepared dataset and of what decodes it. H x W pixels, all uint8.
"""

import fcntl
import hashlib
import math
import os
import shutil
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import cv2
import numpy as np
import PIL
from tqdm import tqdm

from pipeline import masks
from pipeline.datasets import form
from pipeline.datasets.places import wants_raw_cache
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import processors
from pipeline.errors import BadInput


class Place(NamedTuple):
    """Where an image begins in the file; its label map, if it has one, comes right after it."""

    start: int
    height: int
    width: int
    has_map: bool

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def end(self) -> int:
        return self.start + self.pixels * (4 if self.has_map else 3)


def pixels_of(root: Path, dataset: str, data: Prepared) -> "Prepared | RawCache":
    """What a training reads images and label maps from.

    The raw cache where this machine is told to keep one, which is made if it is not there yet; else
    the prepared dataset itself.

    Raises:
        BadInput: as RawCache does; what the machine is told is malformed.
    """
    return RawCache(root, dataset, data) if wants_raw_cache(root) else data


class RawCache:
    """A dataset's images and label maps as read-only arrays that lie in the mapped file.

    Sent to another process it takes its list of places along, not the pixels.
    """

    def __init__(self, root: Path, dataset: str, data: Prepared) -> None:
        """Open the cache; make it first if it is not there, is cut off, or is of another state.

        Args:
            root: the project folder.
            dataset: its name in params.yaml.
            data: the dataset, for what is not in the cache yet.

        Raises:
            BadInput: the disk has no room for it, or an image is damaged.
        """
        folder = root / "work" / "raw_cache" / f"{dataset}-{_digest(root, dataset)}"
        self._dataset = dataset
        self._file = folder / "pixels.raw"
        self._places = _places(data)
        self._pixels: np.ndarray | None = None
        folder.parent.mkdir(parents=True, exist_ok=True)
        weakref.finalize(self, _hold(folder, dataset).close)
        folder.mkdir(exist_ok=True)
        size = max((place.end for place in self._places.values()), default=0)
        with _alone(folder / "making.lock", f"the raw cache of {dataset}"):
            if not self._file.is_file() or self._file.stat().st_size != size:
                _make(self._file, data, self._places, size)

    def image(self, image_id: str) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB, read-only. BadInput if there is no such image."""
        start, height, width, _ = self._place(image_id)
        return self._read(start, (height, width, 3))

    def label_map(self, image_id: str) -> np.ndarray:
        """Category per pixel (H, W) uint8, 255 = ignore, read-only. BadInput if there is none."""
        place = self._place(image_id)
        if not place.has_map:
            raise BadInput(f"{self._dataset} has no label map of the image {image_id!r}")
        return self._read(place.start + 3 * place.pixels, (place.height, place.width))

    def _place(self, image_id: str) -> Place:
        if image_id not in self._places:
            raise BadInput(f"{self._dataset} has no image {image_id!r}")
        return self._places[image_id]

    def _read(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        if self._pixels is None:  # each process maps the file for itself
            self._pixels = np.asarray(np.memmap(self._file, np.uint8, mode="r"))
        return self._pixels[start : start + math.prod(shape)].reshape(shape)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}


def _digest(root: Path, dataset: str) -> str:
    """Of the prepared dataset, whose manifest stands for the images, and of what decodes them."""
    prepared = root / "data" / "prepared" / dataset
    code = [Path(module.__file__ or "") for module in (form, masks)]
    digest = hashlib.sha256(f"Pillow {PIL.__version__}, OpenCV {cv2.__version__}".encode())
    for path in [*sorted(p for p in prepared.rglob("*") if p.is_file()), *code]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _places(data: Prepared) -> dict[str, Place]:
    """Where each image lies: one after the other by their ids."""
    images = data.images.drop_duplicates("image_id").sort_values("image_id")
    places, end = {}, 0
    for image_id, has_map in zip(images["image_id"], images["has_masks"], strict=True):
        height, width = (int(side) for side in data.size(image_id))
        places[image_id] = Place(end, height, width, bool(has_map))
        end = places[image_id].end
    return places


def _hold(folder: Path, dataset: str) -> IO[str]:
    """Hold the dataset's caches as one who reads them, as long as the file returned is open.

    Caches of other states of the dataset are removed if nobody else reads any.
    """
    lock = folder.with_name(f"{dataset}.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        for other in folder.parent.glob(f"{dataset}-*"):
            if other != folder:
                shutil.rmtree(other)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


@contextmanager
def _alone(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, after whoever holds it now."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process makes {what}: waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(file: Path, data: Prepared, places: dict[str, Place], size: int) -> None:
    """Write the cache to `file`, which appears when it is whole."""
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)  # of a process that was killed
    free = shutil.disk_usage(file.parent).free
    print(f"raw cache: {size / 1e9:.2f} GB in {file.parent}", file=sys.stderr)
    if free < size:
        raise _no_room(file, size, f"{free / 1e9:.2f} GB are free")
    for image_id in [name for name, place in places.items() if place.has_map][:1]:
        data.label_map(image_id)  # reads the tables of label maps, before the threads start
    try:
        with partial.open("wb") as out:
            out.truncate(size)
            _fill(out.fileno(), data, places)
            os.fsync(out.fileno())
        os.replace(partial, file)
    except OSError as error:
        raise _no_room(file, size, str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def _fill(out: int, data: Prepared, places: dict[str, Place]) -> None:
    """Decode everything into an open file.

    Threads do it: decoding lets go of the interpreter, and the dataset need not be sent anywhere.
    """
    threads = ThreadPoolExecutor(processors())
    try:
        written = threads.map(lambda item: _write(out, data, *item), places.items())
        for _ in tqdm(written, "decoding", len(places), unit="image", disable=None):
            pass
    finally:
        threads.shutdown(cancel_futures=True)


def _write(out: int, data: Prepared, image_id: str, place: Place) -> None:
    """Decode one image, and its label map, into its place."""
    planes = [data.image(image_id)] + ([data.label_map(image_id)] if place.has_map else [])
    for plane in planes:
        if plane.shape[:2] != (place.height, place.width):
            raise BadInput(
                f"{image_id}: {plane.shape[0]}x{plane.shape[1]} pixels, but "
                f"{place.height}x{place.width} when the dataset was prepared; prepare it again"
            )
    content = np.concatenate([plane.ravel() for plane in planes]).data
    at = place.start
    while len(content):
        done = os.pwrite(out, content, at)
        content, at = content[done:], at + done


def _no_room(file: Path, size: int, reason: str) -> BadInput:
    return BadInput(
        f"{file}: {size / 1e9:.2f} GB could not be written: {reason}; make room, or take "
        "raw_cache out of local.yaml (PIPELINE_RAW_CACHE=0)"
    )
