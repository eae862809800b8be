"""The masks of a COCO file, read together: checked, and as the bounds of their runs.

pycocotools believes the run-lengths that it is given; from here it can be given the texts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np

from pipeline.datasets.coco_json import LONGEST_COUNT, ZERO, RunLengths, checked_mask
from pipeline.errors import BadFile

BATCH = 4096  # masks whose texts are joined at once

Drawn = list[list[float]] | RunLengths


class Runs(NamedTuple):
    """N masks as runs of pixels, which are counted down the columns, from the left one on."""

    bounds: np.ndarray  # (R,) uint32, rising in each mask: on from, off from, on from, off from ...
    ends: np.ndarray  # (N,) int64: where in `bounds` a mask ends and the next one begins
    areas: np.ndarray  # (N,) int64, pixels


def read_masks(
    drawn: Sequence[Drawn | None],
    sizes: Sequence[tuple[int, int]],
    wheres: Sequence[str],
    path: Path,
) -> tuple[list[str], Runs]:
    """The masks of polygons or run-lengths, as compressed run-lengths and as runs.

    Compressed run-lengths of the image, which nearly all are, are read together and kept as they
    are; others are written anew.

    Args:
        drawn: (N,) as the file has them.
        sizes: (N,) of their images, H x W.
        wheres: (N,) begins the message about each.

    Raises:
        BadFile: there is no mask, or none of an image of that size.
    """
    texts = [
        one.counts
        if isinstance(one, RunLengths)
        and one.size == size
        and isinstance(one.counts, str)
        and one.counts.isascii()
        else _written_anew(one, size, where, path)
        for one, size, where in zip(drawn, sizes, wheres, strict=True)
    ]
    runs, sound = read_texts(texts, sizes)
    if sound.all():
        return texts, runs
    for n in np.flatnonzero(~sound).tolist():
        texts[n] = _written_anew(drawn[n], sizes[n], wheres[n], path)
    return texts, read_texts(texts, sizes)[0]


def _written_anew(drawn: Drawn | None, size: tuple[int, int], where: str, path: Path) -> str:
    """Compressed run-lengths, by pycocotools. BadFile for what is no mask of such an image."""
    if drawn is None:
        raise BadFile(path, f"{where}no mask", "only masks can be scored, boxes cannot")
    try:
        return str(checked_mask(drawn, size)["counts"], "ascii")
    except ValueError as error:
        raise BadFile(path, f"{where}{error}", "correct the mask") from error


def runs_of(rles: Sequence[dict[str, Any]]) -> Runs:
    """The runs of pycocotools' run-lengths that were checked when they were read."""
    texts = [str(rle["counts"], "ascii") for rle in rles]
    return read_texts(texts, [rle["size"] for rle in rles])[0]


def read_texts(texts: Sequence[str], sizes: Sequence[tuple[int, int]]) -> tuple[Runs, np.ndarray]:
    """Compressed run-lengths (`decode_counts` says how they are written) as runs.

    Args:
        texts: (N,) of ASCII.
        sizes: (N,) of their images, H x W.

    Returns:
        the runs, and (N,) bool: which texts are sound, that is, counts of just the image's pixels
        and none of them 0 but the first, for pycocotools miscounts others. The runs of an unsound
        text mean nothing.
    """
    ends, areas = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
    sound = np.zeros(len(texts), np.bool_)
    pixels = np.array([height * width for height, width in sizes], np.int64)
    bounds = np.empty(sum(map(len, texts)), np.uint32)  # a count has a character or more
    used = 0
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        codes = np.frombuffer("".join(texts[part]).encode("ascii"), np.uint8)
        stops = np.cumsum([len(text) for text in texts[part]], dtype=np.int64)
        of_part = (ends[part], areas[part], sound[part])
        used = _read(codes, stops, pixels[part], bounds, used, *of_part)
    return Runs(bounds[:used], ends, areas), sound


@numba.njit(nogil=True, cache=True)
def _read(codes, stops, pixels, bounds, used, ends, areas, sound):
    """Read texts, each up to its stop in `codes`; how much of `bounds` is used then."""
    place = 0
    for n in range(stops.size):
        first = used
        number, at, on = 0, 0, 0  # counts, their sum, and that of every second one
        before, last = 0, 0  # the two counts before this one
        fine = True
        while fine and place < stops[n]:
            code = np.int64(codes[place]) - ZERO
            place += 1
            fine = 0 <= code < 64
            count, shift = code & 31, 5
            while fine and code >= 32:
                fine = place < stops[n] and shift < 5 * LONGEST_COUNT
                if fine:
                    code = np.int64(codes[place]) - ZERO
                    place += 1
                    fine = 0 <= code < 64
                    count |= (code & 31) << shift
                    shift += 5
            if code & 16:
                count -= 1 << shift
            if number > 2:
                count += before
            fine = fine and (count > 0 or (count == 0 and number == 0))
            at += count
            fine = fine and at <= pixels[n]
            if fine:
                bounds[used] = at
                used += 1
                on += count * (number & 1)
                number += 1
                before, last = last, count
        place = stops[n]
        sound[n] = fine and number > 0 and at == pixels[n]
        if number & 1:
            used -= 1  # what the last run of pixels that are off ends at
        if not sound[n]:
            used = first
        ends[n], areas[n] = used, on
    return used
