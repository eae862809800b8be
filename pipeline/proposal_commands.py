"""`propose-images` and `train-ranker`: proposals without params.yaml.

Numbers of the methods are those for photographs in params/dai2015.yaml.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

from pipeline.catalogue import load_catalogue
from pipeline.datasets.edge_files import check_strengths
from pipeline.datasets.folder_files import IMAGE_SUFFIXES
from pipeline.datasets.published_proposals import find_published
from pipeline.errors import BadFile, BadInput, some
from pipeline.forests import open_contours, open_ranker
from pipeline.params_proposals import (
    BoostedEdges,
    Edges,
    Gop,
    Mcg,
    Published,
    SavedEdges,
    Scg,
    SelectiveSearch,
    StructuredEdges,
)
from pipeline.places import write_text
from pipeline.proposal_arguments import EDGES
from pipeline.proposals.forest import Forest
from pipeline.proposals.methods import propose
from pipeline.proposing import Image, Recipe, write_parts, write_timings
from pipeline.ranker_training import bsds_regions, train_ranker, voc_objects

CATALOGUE = Path("params") / "dai2015.yaml"
SETTINGS = "proposals.json"  # beside the parts: with what they were made


# --- the commands --------------------------------------------------------------------------------
def propose_images(given: argparse.Namespace) -> str:
    """Write OUT/part-*.parquet and OUT/timings.csv of all images of a folder.

    An image that cannot be read has no row, but one in the timings, with what is wrong with it.

    Returns:
        what was made, for the user.

    Raises:
        BadInput: no images, two of one name, or OUT holds what was made otherwise; nothing that is
            there is changed.
    """
    recipe = recipe_given(given)
    images = _images(given.images)
    if given.published:
        files = find_published(given.published, [image.image_id for image in images])
        images = [image._replace(published=files.get(image.image_id)) for image in images]
    if recipe.place and recipe.place.is_dir():
        check_strengths(recipe.place, [image.image_id for image in images])
    _claim(given.out, recipe, images)
    timings = given.out / "timings"
    rows = write_parts(given.out, timings, images, recipe, given.scheduler)
    write_timings(given.out / "timings.csv", rows)
    failed = [row["image_id"] for row in rows if row["error"]]
    if len(failed) == len(rows):
        raise BadInput(
            f"{given.out}: every image failed, as timings.csv says; the first: {rows[0]['error']}. "
            "Mend it, remove this folder and run again"
        )
    seconds = sum(float(row["seconds"]) for row in rows) / len(rows)
    counts = [int(row["candidates"]) for row in rows]
    text = f"{given.out}: {len(rows)} images, {sum(counts) / len(rows):.0f} candidates and "
    text += f"{seconds:.2f} s each on average"
    if failed:
        text += f"; {len(failed)} failed, see timings.csv: {some(failed)}"
    return text


def run_train_ranker(given: argparse.Namespace) -> None:
    given.ranker, given.most, given.published = None, sys.maxsize, None
    recipe = recipe_given(given)
    algorithm = recipe.algorithm
    if not isinstance(algorithm, Mcg | Scg) or isinstance(algorithm.edges, SavedEdges):
        raise BadInput("what ranks is fitted with --method mcg or scg, and edges of any image")
    edges = recipe.edges_of("")
    assert edges is not None
    one = partial(propose, algorithm=algorithm, edges=edges, ranker=None)
    source = voc_objects(given.voc) if given.voc else bsds_regions(given.bsds)
    train_ranker(source, given.out, propose=one, edges=edges)


# --- what was asked for --------------------------------------------------------------------------
def recipe_given(given: argparse.Namespace) -> Recipe:
    """The method with its edges and forests. Raises BadInput for what does not fit together."""
    if given.most is not None and given.most < 1:
        raise BadInput(f"--most {given.most}: ask for one or more candidates")
    if (given.method == "published") != bool(given.published):
        raise BadInput("--method published and --published DIR belong together")
    if given.method == "published":
        if given.edges != "gradient" or given.ranker:
            raise BadInput("published candidates are as they are: leave --edges and --ranker out")
        return Recipe(Published("published", str(given.published), given.most or sys.maxsize))
    algorithm = native(given.method)
    kind, _, value = given.edges.partition("=")
    if bool(value) == (kind == "gradient") or kind not in {text.split("=")[0] for text in EDGES}:
        raise BadInput(f"--edges {given.edges}: choose one of: {', '.join(EDGES)}")
    if given.most is not None:
        algorithm = replace(algorithm, max_candidates=given.most)
    if isinstance(algorithm, SelectiveSearch):
        if kind != "gradient" or given.ranker:
            raise BadInput("Selective Search has no contours: leave --edges and --ranker out")
        return Recipe(algorithm)
    if given.ranker and not isinstance(algorithm, Mcg | Scg):
        raise BadInput(f"candidates of {given.method} are not ranked: leave --ranker out")
    chosen: Edges = algorithm.edges
    match kind:
        case "boosted":
            chosen = BoostedEdges("boosted")
        case "file":
            chosen = SavedEdges("file", value)
        case "sf":
            chosen = StructuredEdges("sf", value)
    return Recipe(
        replace(algorithm, edges=chosen),
        open_contours(Path(value)) if kind == "boosted" else None,
        open_ranker(given.ranker) if given.ranker else None,
        Path(value) if kind in ("file", "sf") else None,
    )


def native(method: str) -> Mcg | Scg | SelectiveSearch | Gop:
    """The method as params/dai2015.yaml has it. Raises BadInput where that file is not here."""
    found = load_catalogue(CATALOGUE).proposals[f"{method}_voc2012"].algorithm
    assert isinstance(found, Mcg | Scg | SelectiveSearch | Gop)
    return found


def _images(folder: Path) -> list[Image]:
    """The images of a folder and those below it, by name without ending. Raises BadInput."""
    if not folder.is_dir():
        raise BadFile(folder, "no folder", "name a folder with images")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            problem = f"{found[path.stem]} has the same name; a name is the id of an image"
            raise BadFile(path, problem, "rename one of them")
        found[path.stem] = path.absolute()
    if not found:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise BadFile(folder, f"no image in it ({endings})", "name a folder with images")
    return [Image(name, path) for name, path in sorted(found.items())]


def _claim(out: Path, recipe: Recipe, images: list[Image]) -> None:
    """Take `out`, new, empty or begun with the same recipe and images. Raises BadInput."""
    forests = [forest and _digest(forest) for forest in (recipe.contours, recipe.ranker)]
    names = hashlib.sha256("\n".join(str(i.path.resolve()) for i in images).encode()).hexdigest()
    said = {
        "algorithm": asdict(recipe.algorithm),
        "contours": forests[0],
        "ranker": forests[1],
        "images": f"{len(images)}, {names}",
    }
    text = json.dumps(said, indent=1) + "\n"
    told = out / SETTINGS
    if out.exists() and not out.is_dir():
        raise BadFile(out, "is there and no folder", "name another place")
    if told.is_file():
        if told.read_text(encoding="utf-8") != text:
            problem = "made with other settings or from other images"
            raise BadFile(told, problem, "name a new folder, or remove this one")
        return
    if out.is_dir() and any(out.iterdir()):
        raise BadFile(out, "not empty, and not begun by this command", "name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(told, text)


def _digest(forest: Forest) -> str:
    arrays = [getattr(forest, field.name) for field in fields(forest)]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
