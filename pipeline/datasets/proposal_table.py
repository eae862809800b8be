"""Candidates of a dataset on disk: <folder>/part-000.parquet, ..., schema "proposals".

One row per image, some hundred images per part. H x W pixels, S superpixels, P candidates.

A candidate is a set of superpixels, so all of them are a table of S x P bits. Superpixels that few
candidates tell apart have nearly the same bits, which is why the table is stored superpixel by
superpixel: a compressor then finds each row among the rows before. Boxes, areas and lists of
superpixels follow from the bits and are computed when an image is read. Both blobs are xz files:

    superpixels   (H, W) uint16, little-endian: the superpixel of each pixel, ids 0..S-1
    members       (S, ceil(P / 8)) uint8: bit 7 - c % 8 of byte c // 8 in row s tells whether
                  superpixel s belongs to the candidate in column c
    columns       (P,) the column of each candidate, best first; none: candidate i is in column i
    scores        (P,) falling; none: 1 - i / P, candidate i's place in the list

Columns are in the order of the candidates' superpixels where that takes fewer bytes, which it does
where a ranking has shuffled them. Candidate i of one image as a mask, without this project:

    import lzma
    import numpy, pandas

    row = pandas.read_parquet("part-000.parquet").set_index("image_id").loc["2007_000042"]
    pixels = numpy.frombuffer(lzma.decompress(row["superpixels"]), "<u2")
    superpixels = pixels.reshape(row["height"], row["width"])
    bits = numpy.frombuffer(lzma.decompress(row["members"]), "u1")
    inside = numpy.unpackbits(bits.reshape(superpixels.max() + 1, -1), axis=1).astype(bool)
    column = row["columns"][i] if len(row["columns"]) else i
    mask = inside[superpixels, column]
"""

import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BadFile, BadInput
from pipeline.superpixels import Runs, boxes_and_areas_of_runs, lists
from pipeline.tables import SCHEMAS, read_arrow

Arrays = dict[str, np.ndarray]

# Preset 3 takes a tenth of the time of 6 and a tenth more bytes. What is stored has no text in it.
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 3, "lc": 0, "lp": 0, "pb": 0}]
_MEMORY = 64 << 20  # bytes that unpacking may use beside what it gives
_LISTS = ("columns", "scores")


def to_row(
    image_id: str,
    image_sha256: str,
    method: str,
    *,
    superpixels: np.ndarray,
    members: np.ndarray,
    offsets: np.ndarray,
    scores: np.ndarray,
    boxes: np.ndarray,
    areas: np.ndarray,
) -> dict[str, Any]:
    """The candidates of one image as a row of the table; arrays as `ProposalTable.of` gives them.

    Args:
        image_sha256: of the image's file, empty where there was none.

    Raises:
        ValueError: reading the row would not give these arrays: a type or a length is wrong, a
            candidate has no pixel, its superpixels do not rise, its box is not tight, scores do
            not fall, ...
    """
    given = {
        "superpixels": superpixels,
        "members": members,
        "offsets": offsets,
        "scores": scores,
        "boxes": boxes,
        "areas": areas,
    }
    _check_lists(superpixels, members, offsets)
    count = len(offsets) - 1
    blob, columns = _packed(superpixels, members, offsets)
    row = {
        "image_id": image_id,
        "height": superpixels.shape[0],
        "width": superpixels.shape[1],
        "superpixels": _compressed(superpixels.astype("<u2")),
        "candidates": count,
        "members": blob,
        "columns": columns.astype(np.int32),
        "scores": scores[:0] if np.array_equal(scores, _places(count)) else scores,
        "method": method,
        "image_sha256": image_sha256,
    }
    for name, read in _arrays(row).items():
        same = np.array_equal(read, given[name])
        if not same or read.dtype != given[name].dtype:
            raise ValueError(f"{name} of {image_id!r} are not what its candidates have")
    return row


def _check_lists(superpixels: np.ndarray, members: np.ndarray, offsets: np.ndarray) -> None:
    """ValueError for lists that cannot be turned into bits."""
    if superpixels.dtype != np.uint16 or superpixels.ndim != 2 or not superpixels.size:
        raise ValueError(f"superpixels are (H, W) uint16, not {superpixels.shape} of another type")
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(members):
        raise ValueError("the offsets do not begin with 0 and end with the number of members")
    if (np.diff(offsets) < 1).any():
        raise ValueError("a candidate has no superpixels")
    if len(members) and members.max() > superpixels.max():
        raise ValueError(f"superpixel {members.max()}, but there are {superpixels.max() + 1}")


def _packed(
    superpixels: np.ndarray, members: np.ndarray, offsets: np.ndarray
) -> tuple[bytes, np.ndarray]:
    """The blob of bits, and the column of each candidate; none where they stand in their order."""
    count, size = int(superpixels.max()) + 1, len(offsets) - 1
    ids = members.astype(">u2")  # so that bytes compare as numbers do
    sets = [ids[begin:end].tobytes() for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]
    columns = np.empty(size, np.int64)
    columns[sorted(range(size), key=sets.__getitem__)] = np.arange(size)
    as_given = _compressed(_bits(members, offsets, np.arange(size), count))
    by_members = _compressed(_bits(members, offsets, columns, count))
    if len(by_members) + 2 * size < len(as_given):  # a column takes up to two bytes
        return by_members, columns
    return as_given, columns[:0]


def _places(count: int) -> np.ndarray:
    """The scores (count,) of candidates that have none but their place."""
    return (1 - np.arange(count) / max(count, 1)).astype(np.float32)


def _compressed(array: np.ndarray) -> bytes:
    return lzma.compress(array.tobytes(), lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=_XZ)


# --- back ----------------------------------------------------------------------------------------
def _arrays(row: dict[str, Any]) -> Arrays:
    """The arrays of a row. ValueError for what is damaged."""
    runs, scores = _read(row)
    members, offsets = lists(runs.edges, runs.offsets)
    return {
        "superpixels": runs.superpixels,
        "members": members,
        "offsets": offsets,
        "scores": scores,
        "boxes": runs.boxes,
        "areas": runs.areas,
    }


def _read(row: dict[str, Any]) -> tuple[Runs, np.ndarray]:
    """The candidates of a row and their scores. ValueError for what is damaged."""
    height, width, count = row["height"], row["width"], row["candidates"]
    if min(height, width) < 1 or count < 0:
        raise ValueError(f"{count} candidates of {height} x {width} pixels")
    pixels = _unpacked(row["superpixels"], 2 * height * width).view("<u2").astype(np.uint16)
    superpixels = pixels.reshape(height, width)
    size = int(superpixels.max()) + 1
    bits = _unpacked(row["members"], size * -(-count // 8)).reshape(size, -(-count // 8))
    if count % 8 and (bits[:, -1] << count % 8 & 255).any():
        raise ValueError(f"a candidate in column {count} or behind")
    columns = np.asarray(row["columns"]) if len(row["columns"]) else np.arange(count)
    if len(columns) != count or (np.sort(columns) != np.arange(count)).any():
        raise ValueError("candidates that share a column or have none")
    scores = np.asarray(row["scores"], np.float32) if len(row["scores"]) else _places(count)
    if len(scores) != count:
        raise ValueError(f"{len(scores)} scores of {count} candidates")
    if not np.isfinite(scores).all() or (np.diff(scores) > 0).any():
        raise ValueError("the scores are not numbers that fall: candidates stand best first")
    edges, offsets = _edges(bits, np.argsort(columns))
    boxes, areas = boxes_and_areas_of_runs(superpixels, edges, offsets)
    if count and not areas.all():
        raise ValueError("a candidate without pixels")
    return Runs(superpixels, edges, offsets, boxes, areas), scores


def _unpacked(blob: bytes, size: int) -> np.ndarray:
    """The bytes (size,) of an xz file. ValueError if it is damaged or holds more or fewer."""
    reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
    try:
        found = reader.decompress(blob, max_length=size + 1)
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from error
    if len(found) != size or not reader.eof or reader.unused_data:
        raise ValueError(f"not {size} bytes in an xz file")
    return np.frombuffer(found, np.uint8)


@numba.njit(cache=True, nogil=True)
def _bits(members, offsets, columns, count):
    """(count, ceil(P / 8)) uint8, a bit for each superpixel and candidate."""
    bits = np.zeros((count, (len(columns) + 7) // 8), np.uint8)
    for p in range(len(columns)):
        byte, bit = columns[p] // 8, np.uint8(128 >> columns[p] % 8)
        for m in range(offsets[p], offsets[p + 1]):
            bits[members[m], byte] |= bit
    return bits


def _edges(bits: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The runs of each candidate, as in `superpixels.Runs`.

    A candidate's superpixels are a few runs of ids, which begin and end where a bit changes from
    one row to the next.

    Args:
        candidates: (P,) int64, which one is in each column.
    """
    changes = np.empty((len(bits) + 1, bits.shape[1]), np.uint8)
    changes[:1], changes[-1:] = bits[:1], bits[-1:]
    np.bitwise_xor(bits[1:], bits[:-1], out=changes[1:-1])
    return _from_changes(changes, np.flatnonzero(changes != 0), candidates)


@numba.njit(cache=True, nogil=True)
def _from_changes(changes, places, candidates):
    """`_edges` from where rows change: `places` are those of the bytes that are not 0."""
    flat, width = changes.ravel(), changes.shape[1]
    offsets = np.zeros(len(candidates) + 1, np.int32)
    for place in places:
        column = place % width * 8
        for bit in range(8):
            if flat[place] & 128 >> bit:
                offsets[candidates[column + bit] + 1] += 1
    offsets[:] = np.cumsum(offsets)
    edges = np.empty(offsets[-1], np.int32)
    used = offsets[:-1].copy()
    for place in places:
        row, column = place // width, place % width * 8
        for bit in range(8):
            if flat[place] & 128 >> bit:
                p = candidates[column + bit]
                edges[used[p]] = row
                used[p] += 1
    return edges, offsets


class ProposalTable:
    """The candidates of a dataset, read part by part.

    Only the last part read is kept, so ask in the order of `ids` where many images are wanted.

    Attributes:
        ids: of all images that have a row, in the order of the files.
    """

    def __init__(self, folder: Path) -> None:
        """Read which image is where.

        Args:
            folder: data/proposals/<method>/<dataset>.

        Raises:
            BadInput: there is no part, one is unreadable or of an earlier form, or an image is
                there twice.
        """
        self._folder = folder
        self._place: dict[str, tuple[Path, int]] = {}
        self._part: tuple[Path | None, pa.Table | None] = (None, None)
        parts = sorted(folder.glob("part-*.parquet"))
        if not parts:
            raise BadInput(
                f"{folder}: holds no part-*.parquet; name the folder of a dataset's proposals, "
                "data/proposals/<method>/<dataset>: `dvc repro` makes it"
            )
        for part in parts:
            for row, image_id in enumerate(_ids(part)):
                if image_id in self._place:
                    raise BadInput(
                        f"{part}: candidates of the image {image_id!r} again, beside "
                        f"{self._place[image_id][0].name}; keep one row for each image"
                    )
                self._place[image_id] = (part, row)

    @property
    def ids(self) -> list[str]:
        return list(self._place)

    def of(self, image_id: str) -> Arrays:
        """The candidates of one image.

        Returns:
            superpixels (H, W) uint16, members uint16, offsets (P + 1,) int32, scores (P,) float32,
            boxes (P, 4) int32 and areas (P,) int32: what `proposals.form.Proposals` takes. The
            offsets fit the members, which rise in each candidate and are at most the highest id of
            `superpixels`; no candidate is without pixels; boxes are tight; scores are
            finite and fall.

        Raises:
            BadInput: there is no such image, or its part is damaged.
        """
        with self._named(image_id):
            return _arrays(self._row(image_id))

    def runs_of(self, image_id: str) -> Runs:
        """The candidates of one image as runs, which take less time than the lists of `of`.

        Raises:
            BadInput: as `of`.
        """
        with self._named(image_id):
            return _read(self._row(image_id))[0]

    def _row(self, image_id: str) -> dict[str, Any]:
        """ValueError: a value is missing."""
        path, row = self._place[image_id]
        last, part = self._part  # once: other threads may ask for other parts
        if last != path or part is None:
            part = read_arrow(path, "proposals").combine_chunks()
            self._part = (path, part)
        scalars = {name: part[name][row] for name in part.schema.names}
        if missing := [name for name, value in scalars.items() if not value.is_valid]:
            raise ValueError(f"no {missing[0]}")
        return {
            name: value.values.to_numpy() if name in _LISTS else value.as_py()
            for name, value in scalars.items()
        }

    @contextmanager
    def _named(self, image_id: str) -> Iterator[None]:
        """BadInput: there is no such image; for a ValueError, that its candidates are damaged."""
        if image_id not in self._place:
            raise BadInput(
                f"{self._folder}: no candidates of the image {image_id!r}; "
                "make them again for the dataset as it is now (`dvc repro`)"
            )
        try:
            yield
        except ValueError as error:
            problem = f"proposals of image {image_id} are damaged ({error})"
            raise BadFile(self._place[image_id][0], problem, "make it anew") from error


def _ids(part: Path) -> list[str]:
    """The images of a part, in its order. BadInput if it is no table of this form."""
    try:
        if not pq.read_schema(part).equals(SCHEMAS["proposals"]):
            raise BadInput(
                f"{part}: no table of proposals, or one of an earlier form; make it anew, "
                "where it is the pipeline's own with `dvc repro`"
            )
        return pq.read_table(part, columns=["image_id"])["image_id"].to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{part}: not a table of proposals ({error}); make it anew") from error
