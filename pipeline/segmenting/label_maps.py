"""`segment`: the label maps of any photographs, by a trained network.

    OUT/labels/<image>.png     the category of each pixel, as an index PNG in the network's colours
    OUT/overlays/<image>.png   the photograph under these colours, where they are asked for
    OUT/segment.json           which networks and views made them; categories and their colours

With objects too: see `pipeline.segmenting.objects`. Folders of images are kept. What is there is
not made again, so what was stopped goes on. H x W pixels.
"""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from pipeline.crf.dense import DenseCrf
from pipeline.errors import BadFile
from pipeline.figures import blend
from pipeline.masks import decode_index_png
from pipeline.photographs import read_photograph
from pipeline.post_processing import bytes_of_crf, crf_label_map, in_two_steps
from pipeline.segmenting.files import Photograph, Places, save_png
from pipeline.tiles import Segmenter

STRIP = 256  # rows that are coloured at a time


@dataclass(frozen=True)
class LabelJob:
    """What is made of every image."""

    segmenter: Segmenter
    colours: np.ndarray  # (256, 3) uint8, by category number
    num_categories: int
    places: Places
    overlay: bool
    crf: DenseCrf | None
    workers: int  # threads for CRFs


@dataclass(frozen=True)
class Begun:
    """What the first step found: nothing of an image that is finished."""

    image: np.ndarray | None = None  # (H, W, 3) uint8
    scores: np.ndarray | None = None  # its label map, or before a CRF (C, H, W) probabilities
    draw: bool = False  # the overlay


def segmented(
    job: LabelJob, photographs: list[Photograph]
) -> Iterator[tuple[Photograph, Future[bool]]]:
    """Write what is not there of each image. Gives whether its label map was made now."""

    def begin(photograph: Photograph) -> Begun:
        new = not job.places.labels(photograph.name).exists()
        draw = job.overlay and (new or not job.places.drawn(photograph.name).exists())
        if not new and not draw:
            return Begun()
        image = read_photograph(photograph.path, photograph.notes)
        if not new:
            return Begun(image, draw=draw)
        if job.crf is not None:
            return Begun(image, job.segmenter.probabilities(image), draw)
        return Begun(image, job.segmenter.label_map(image, photograph.notes), draw)

    return in_two_steps(
        photographs,
        begin,
        partial(_finish, job),
        size=lambda begun: bytes_of_crf(
            job.num_categories, 0 if begun.image is None else begun.image[..., 0].size
        ),
        workers=0 if job.crf is None else job.workers,
    )


def _finish(job: LabelJob, photograph: Photograph, begun: Begun) -> bool:
    """The second step: the CRF, if there is one, and the files."""
    image, scores, labels = begun.image, begun.scores, job.places.labels(photograph.name)
    if image is None:
        return False
    if scores is None:
        label_map = decode_index_png(labels)
        if label_map.shape != image.shape[:2]:
            problem = f"{photograph.path} has another size, it was changed since"
            raise BadFile(labels, problem, "remove this file, or give --again")
    else:
        label_map = scores if job.crf is None else crf_label_map(scores, image, job.crf)
        indices = Image.fromarray(label_map)
        indices.putpalette(job.colours.tobytes())
        save_png(labels, indices)
    if begun.draw:
        save_png(job.places.drawn(photograph.name), _overlay(image, label_map, job.colours))
    return scores is not None


def _overlay(image: np.ndarray, label_map: np.ndarray, colours: np.ndarray) -> Image.Image:
    blended = np.empty_like(image)
    for top in range(0, len(image), STRIP):
        rows = slice(top, top + STRIP)
        blended[rows] = blend(image[rows], label_map[rows], colours)
    return Image.fromarray(blended)
