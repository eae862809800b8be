"""Candidates of an image by a recipe, what is done where an algorithm fails, and the parts."""

import csv
from dataclasses import asdict, fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from candidates import same
from PIL import Image as Picture
from scipy.ndimage import uniform_filter

from pipeline import proposing, shards
from pipeline.datasets.edge_files import write_forest
from pipeline.datasets.proposal_table import ProposalTable, to_row
from pipeline.errors import BadFile, PlaceByHand
from pipeline.exports.proposals import export_proposals
from pipeline.params_proposals import (
    BoostedEdges,
    GradientEdges,
    Mcg,
    NoCandidates,
    Published,
    SavedEdges,
    Scg,
    StructuredEdges,
)
from pipeline.proposals.boosted import boosted_edges, edge_samples
from pipeline.proposals.edges import edges, on_one_scale
from pipeline.proposals.forest import Forest, fit
from pipeline.proposals.form import Proposals
from pipeline.proposals.mcg import mcg
from pipeline.proposals.methods import first
from pipeline.proposals.scg import scg
from pipeline.proposing import Image, Recipe, proposed, recipe_of, write_parts
from pipeline.tables import write_table

GRADIENT = GradientEdges("gradient", 1.0)
SCG = Scg("scg", GRADIENT, 10, 60, 40, 20, 0, 0.95, 100, False)
MCG = Mcg("mcg", GRADIENT, 10, 0.1, (20,) * 4, (20,) * 4, (9,) * 4, (0,) * 4, 0.95, 90, False)
SIZE = (24, 32)


def picture(number: int) -> np.ndarray:
    image = np.random.default_rng(number).normal(90, 5, (*SIZE, 3))
    image[4:15, 5 + number : 18 + number] += 90, 20, 0
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture
def images(tmp_path) -> list[Image]:
    """Five pictures in files."""
    found = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        Picture.fromarray(picture(number)).save(path)
        found.append(Image(str(number), path, SIZE))
    return found


@pytest.fixture(scope="module")
def forest() -> Forest:
    """Finds contours, fitted to one picture."""
    block = np.zeros(SIZE, bool)
    block[4:15, 6:19] = True
    inner = uniform_filter(block.astype(float), 3) > 0.99
    rows, targets, weights = edge_samples(
        picture(1), (block & ~inner)[None], count=500, rng=np.random.default_rng(0)
    )
    return fit(rows, targets, weights, trees=5, depth=2, rate=0.3, bins=16, share=0.5, seed=0)


def read(row: dict, folder: Path) -> Proposals:
    """The candidates of a row, by way of a table."""
    write_table(folder / "read" / "part-000.parquet", "proposals", [row])
    return Proposals(**ProposalTable(folder / "read").of(row["image_id"]))


def is_whole(proposals: Proposals) -> bool:
    return len(proposals) == 1 and bool(proposals.mask(0).all())


# --- contours of a recipe ------------------------------------------------------------------------
def test_contours_are_of_the_kind_that_the_algorithm_names(tmp_path, forest):
    image = picture(0)
    gradient = Recipe(SCG).edges_of("0")
    np.testing.assert_array_equal(gradient(image), edges("gradient", sigma=1.0)(image))
    boosted = Recipe(replace(SCG, edges=BoostedEdges("boosted")), contours=forest).edges_of("0")
    np.testing.assert_array_equal(boosted(image), on_one_scale(boosted_edges(image, forest)))
    assert Recipe(NoCandidates("none")).edges_of("0") is None
    assert Recipe(Published("published", "there", 5)).edges_of("0") is None


def test_saved_contours_are_those_of_the_image(tmp_path, images):
    strength = np.random.default_rng(0).random(SIZE).astype(np.float32)
    np.save(tmp_path / "0.npy", strength)
    recipe = Recipe(replace(SCG, edges=SavedEdges("file", "saved")), place=tmp_path)
    np.testing.assert_array_equal(recipe.edges_of("0", SIZE)(picture(0)), strength)
    with pytest.raises(BadFile, match="1.npy: not there, nor .png or .mat"):
        recipe.edges_of("no/1")
    found = proposed(recipe, images[0])
    alone = scg(picture(0), SCG, edges("file", saved=strength))
    assert same(read(found.row, tmp_path), alone) and found.timing["error"] == ""


def test_saved_contours_of_another_size_are_refused(tmp_path, images):
    np.save(tmp_path / "0.npy", np.zeros((12, 16), np.float32))
    recipe = Recipe(replace(SCG, edges=SavedEdges("file", "saved")), place=tmp_path)
    with pytest.raises(BadFile, match="strengths 12 x 16 of an image 24 x 32; save them anew"):
        recipe.edges_of("0", SIZE)
    found = proposed(recipe, images[0])
    assert is_whole(read(found.row, tmp_path)) and "12 x 16" in found.timing["error"]


def test_places_of_contours_are_looked_for_before_the_first_image(tmp_path, monkeypatch):
    monkeypatch.delenv("PIPELINE_DATA_NOWHERE", raising=False)
    (tmp_path / "params.yaml").touch()
    saved = replace(SCG, edges=SavedEdges("file", "nowhere"))
    with pytest.raises(BadFile, match="nowhere: no folder of saved contours"):
        recipe_of(tmp_path, saved, contours="none", ranker="none")
    structured = replace(SCG, edges=StructuredEdges("sf", "nowhere"))
    with pytest.raises(PlaceByHand, match="nowhere/model.yml.gz: not there; put"):
        recipe_of(tmp_path, structured, contours="none", ranker="none")
    model = tmp_path / "data/raw/nowhere/model.yml.gz"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"no model")
    with pytest.raises(BadFile, match="model.yml.gz: no structured forest"):
        recipe_of(tmp_path, structured, contours="none", ranker="none")


def test_a_recipe_has_the_forests_that_it_names(tmp_path, forest):
    (tmp_path / "data/forests").mkdir(parents=True)
    write_forest(tmp_path / "data/forests/one.npz", asdict(forest))
    boosted = replace(SCG, edges=BoostedEdges("boosted"))
    recipe = recipe_of(tmp_path, boosted, contours="one", ranker="none")
    np.testing.assert_array_equal(recipe.contours.leaves, forest.leaves)
    assert recipe.ranker is None
    with pytest.raises(BadFile, match="two.npz: not there"):
        recipe_of(tmp_path, boosted, contours="one", ranker="two")
    with pytest.raises(BadFile, match="one.npz: no forest that ranks candidates: it looks at"):
        recipe_of(tmp_path, boosted, contours="one", ranker="one")


# --- where an algorithm fails --------------------------------------------------------------------
def failing(monkeypatch, kinds: tuple[str, ...], error: Exception) -> None:
    """Have these algorithms raise."""
    real = proposing.propose

    def propose(image, algorithm, *rest):
        if algorithm.kind in kinds:
            raise error
        return real(image, algorithm, *rest)

    monkeypatch.setattr(proposing, "propose", propose)


@pytest.mark.parametrize(
    "error", [MemoryError("2 GB"), ValueError("too many"), cv2.error("bad size")]
)
def test_where_mcg_fails_its_single_scale_is_tried(tmp_path, images, monkeypatch, error):
    failing(monkeypatch, ("mcg",), error)
    found = proposed(Recipe(MCG), images[0])
    alone = scg(picture(0), proposing.single_scale(MCG), edges("gradient", sigma=1.0))
    assert len(alone) > 1 and same(read(found.row, tmp_path), alone)
    assert found.timing["error"] == f"{type(error).__name__}: {error}"
    assert found.timing["candidates"] == str(len(alone))


def test_an_image_too_large_to_be_read_ends_no_run(tmp_path, images, monkeypatch):
    def read_image(path: Path) -> np.ndarray:
        raise MemoryError("9 GB")

    monkeypatch.setattr(proposing, "read_image", read_image)
    found = proposed(Recipe(MCG), images[0])
    assert is_whole(read(found.row, tmp_path))
    assert found.timing["error"] == f"{images[0].path}: MemoryError: 9 GB"
    unknown = proposed(Recipe(MCG), images[0]._replace(size=None))
    assert unknown.row is None and "9 GB" in unknown.timing["error"]


def test_where_that_fails_too_the_whole_image_is_the_only_candidate(tmp_path, images, monkeypatch):
    failing(monkeypatch, ("mcg", "scg"), MemoryError("no"))
    for algorithm, problem in (
        (MCG, "MemoryError: no; at a single scale MemoryError: no"),
        (SCG, "MemoryError: no"),
    ):
        found = proposed(Recipe(algorithm), images[0])
        assert is_whole(read(found.row, tmp_path)) and found.row["method"] == algorithm.kind
        assert (found.timing["error"], found.timing["candidates"]) == (problem, "1")


def test_a_slip_in_the_code_is_not_taken_for_a_difficult_image(images, monkeypatch):
    failing(monkeypatch, ("scg",), TypeError("a slip"))
    with pytest.raises(TypeError, match="a slip"):
        proposed(Recipe(SCG), images[0])


def test_an_image_of_unknown_size_that_cannot_be_read_has_no_row(images):
    gone = images[0]._replace(path=images[0].path.with_name("gone.png"))
    assert proposed(Recipe(SCG), gone._replace(size=None)).row is None
    found = proposed(Recipe(SCG), gone)
    assert (found.row["height"], found.row["width"]) == SIZE
    assert found.row["image_sha256"] == "" and "gone.png" in found.timing["error"]
    assert proposed(Recipe(NoCandidates("none")), gone).timing["error"] == ""


# --- published candidates ------------------------------------------------------------------------
def published(folder: Path, image: Image, proposals: Proposals) -> Image:
    """The image with a file in the form of MCG."""
    arrays = {field.name: getattr(proposals, field.name) for field in fields(Proposals)}
    row = to_row(image.image_id, "", "mcg", **arrays)
    write_table(folder / "theirs" / "part-000.parquet", "proposals", [row])
    export_proposals(folder / "theirs", folder / "mat", kind="mcg")
    return image._replace(published=folder / "mat" / f"{image.image_id}.mat")


def test_the_first_published_candidates_are_taken(tmp_path, images):
    theirs = mcg(picture(0), MCG, edges("gradient", sigma=1.0))
    image = published(tmp_path, images[0], theirs)
    assert len(theirs) > 7
    found = proposed(Recipe(Published("published", "theirs", 7)), image)
    assert found.timing["error"] == "" and found.row["method"] == "published"
    assert same(read(found.row, tmp_path), first(theirs, 7))


def test_published_candidates_that_do_not_fit_are_told(tmp_path, images):
    recipe = Recipe(Published("published", "theirs", 7))
    missing = proposed(recipe, images[1])
    assert is_whole(read(missing.row, tmp_path))
    assert missing.timing["error"] == "no published candidates of 1"
    other = mcg(picture(0)[:20], MCG, edges("gradient", sigma=1.0))
    found = proposed(recipe, published(tmp_path, images[0], other))
    assert is_whole(read(found.row, tmp_path)) and "0.mat" in found.timing["error"]


# --- parts ---------------------------------------------------------------------------------------
@pytest.fixture
def two_in_a_part(monkeypatch):
    monkeypatch.setattr(proposing, "IMAGES_PER_PART", 2)


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_parts_and_timings_hold_every_image_in_order(tmp_path, images, two_in_a_part):
    images[1] = images[1]._replace(path=tmp_path / "gone.png", size=None)
    rows = write_parts(tmp_path / "parts", tmp_path / "timings", images, Recipe(SCG), None)
    assert [row["image_id"] for row in rows] == list("01234")
    assert [bool(row["error"]) for row in rows] == [False, True, False, False, False]
    assert ProposalTable(tmp_path / "parts").ids == ["0", "2", "3", "4"]
    assert list(parts(tmp_path / "parts")) == [f"part-00{n}.parquet" for n in range(3)]
    with (tmp_path / "timings" / "part-001.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == rows[2:4]


def test_what_was_stopped_goes_on(tmp_path, images, two_in_a_part, monkeypatch):
    where = tmp_path / "parts", tmp_path / "timings"
    seen = []

    def stopped(recipe, image):
        if image.image_id == "3":
            raise KeyboardInterrupt
        seen.append(image.image_id)
        return proposed(recipe, image)

    with monkeypatch.context() as patch:
        patch.setattr(proposing, "proposed", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_parts(*where, images, Recipe(SCG), None)
    assert list(parts(where[0])) == ["part-000.parquet"] and seen == ["0", "1", "2"]
    begun = where[0] / "part-000.parquet"
    stamp = begun.stat().st_mtime_ns
    rows = write_parts(*where, images, Recipe(SCG), None)
    assert begun.stat().st_mtime_ns == stamp and [row["image_id"] for row in rows] == list("01234")
    write_parts(tmp_path / "anew", tmp_path / "timings_anew", images, Recipe(SCG), None)
    assert parts(tmp_path / "anew") == parts(where[0])
    assert write_parts(*where, images, Recipe(SCG), None) == rows  # nothing is left to do


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(tmp_path, images, two_in_a_part, monkeypatch):
    monkeypatch.setattr(proposing, "IMAGES_PER_SHARD", 1)
    for processors in (1, 2):
        monkeypatch.setattr(shards, "processors", lambda count=processors: count)
        place = tmp_path / str(processors)
        write_parts(place / "parts", place / "timings", images, Recipe(MCG), None)
    assert parts(tmp_path / "1" / "parts") == parts(tmp_path / "2" / "parts")
