"""`segment`: from options and photographs to what is told. Imports nothing heavy at the start."""

import argparse
import sys
import time
from collections.abc import Iterable
from concurrent.futures import Future

from tqdm import tqdm

from pipeline.errors import BadFile, BadInput, some
from pipeline.segmenting.files import Photograph, images_in, model_file
from pipeline.segmenting.settings import settings_of

Outcomes = Iterable[tuple[Photograph, Future[bool]]]  # of each image, whether it was made now


def segment(given: argparse.Namespace) -> str:
    """Segment all images of a folder.

    An image that cannot be segmented is told and left out; the others go on.

    Args:
        given: what `pipeline.segment_arguments` adds.

    Returns:
        what was made, for the user.

    Raises:
        BadInput: what is given is wrong, and nothing is changed; or images were left out, and all
            others are finished.
    """
    settings = settings_of(given)
    model = model_file(settings.model)
    boxes = None if settings.objects is None else model_file(settings.objects.localization)
    images, clashes, others = images_in(given.images, given.out)

    # Slow to import, so what can be wrong without them is told before.
    from pipeline.segmenting.jobs import Folder, job_of
    from pipeline.segmenting.label_maps import segmented
    from pipeline.segmenting.objects import ObjectJob, find_objects, write_all

    device = "" if given.device == "auto" else given.device
    job = job_of(settings, model, boxes, Folder(given.out, given.overlay, given.again), device)
    for path in clashes:
        print(f"not segmented: {path}: another image has its name; rename one", file=sys.stderr)
    photographs = [Photograph(name, path) for name, path in images.items()]
    begin = time.perf_counter()
    outcomes: Outcomes
    if isinstance(job, ObjectJob):
        outcomes = find_objects(job, photographs)
    else:
        outcomes = segmented(job, photographs)
    done, made = _go_through(outcomes, len(photographs))
    number = len(photographs) + len(clashes)
    text = f"{given.out}: label maps of {len(done)} images, {made} made now"
    if made:
        text += f" in {(time.perf_counter() - begin) / made:.2f} s each"
    if isinstance(job, ObjectJob):
        objects = write_all(job, done)
        text += f"; {objects} objects in {job.places.all_objects()}"
    elif job.segmenter.tiled:
        text += f", {job.segmenter.tiled} of them in tiles (the last by {job.segmenter.tile})"
    if others:
        text += f"\nnote: passed over, no images by their names: {some(others)}"
    if failed := number - len(done):
        raise BadInput(f"{failed} of {number} images are not segmented, see above. {text}")
    return text


def _go_through(outcomes: Outcomes, total: int) -> tuple[list[Photograph], int]:
    """Take the outcomes of all images; tell those that failed.

    Returns:
        the images that are finished, and how many of them were made now.
    """
    done, made = [], 0
    with tqdm(desc="segment", total=total, unit="image", disable=None) as bar:
        for photograph, outcome in outcomes:
            notes = photograph.notes
            try:
                made += outcome.result()
                done.append(photograph)
            except BadInput as problem:
                named = problem if isinstance(problem, BadFile) else f"{photograph.path}: {problem}"
                notes.append(f"not segmented: {named}")
            for note in notes:
                tqdm.write(note, file=sys.stderr)
            bar.update()
    return done, made
