"""Contour strength: four sources on one scale, and the files that they come from."""

import io
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.bsds import fitting_and_reporting, open_bsds
from pipeline.datasets.edge_files import (
    open_structured_edges,
    read_forest,
    read_strength,
    ucm_strength,
    write_forest,
)
from pipeline.datasets.matfile import encode_variables
from pipeline.edge_training import best_f, fit_edges, train_edges
from pipeline.errors import BadFile, BadInput, PlaceByHand
from pipeline.forests import open_contours
from pipeline.metrics.contours import count_matches, f_measures
from pipeline.proposals.boosted import FEATURES, boosted_edges, edge_features, edge_samples
from pipeline.proposals.edges import (
    calibrated_gradient,
    edges,
    gradient_edges,
    on_one_scale,
    thin_contours,
)
from pipeline.proposals.forest import Forest, fit

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real" / "bsds500"
FIT = {"trees": 20, "depth": 3, "rate": 0.3, "bins": 32, "share": 0.5, "seed": 0}
MODEL = """%YAML:1.0
---
options:
   numberOfTrees: 1
   numberOfTreesToEvaluate: 1
   selfsimilarityGridSize: 5
   stride: 2
   shrinkNumber: 2
   patchSize: 32
   patchInnerSize: 16
   numberOfGradientOrientations: 4
   gradientSmoothingRadius: 0
   regFeatureSmoothingRadius: 2
   ssFeatureSmoothingRadius: 8
   gradientNormalizationRadius: 4
childs: [ [ 0 ] ]
featureIds: [ [ 0 ] ]
thresholds: [ [ 0. ] ]
edgeBoundaries: [ [ 0, 3 ] ]
edgeBins: [ [ 136, 137, 138 ] ]
"""


def drawn(seed: int, height: int = 60, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """A disc on noise, and the contour (1, H, W) around it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    disc = (x - 20 - 3 * seed) ** 2 + (y - 25 - seed) ** 2 < 14**2
    image = np.where(disc[..., None], (200, 60, 40), (90, 110, 130)) + rng.normal(0, 12, 3)
    image = image + rng.normal(0, 12, (height, width, 3))
    contour = disc & (cv2.erode(disc.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)
    return np.clip(image, 0, 255).astype(np.uint8), contour[None]


@pytest.fixture(scope="module")
def forest() -> Forest:
    """Fitted on four drawn images."""
    rng = np.random.default_rng(0)
    parts = [edge_samples(*drawn(seed), count=2000, rng=rng) for seed in range(4)]
    rows, targets, weights = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    return fit(rows, targets, weights, **FIT)


# --- features and boosted edges ------------------------------------------------------------------
def test_a_turned_image_has_turned_features():
    image = drawn(0, 64, 64)[0]
    features, turned = edge_features(image), edge_features(np.rot90(image).copy())
    inner = (slice(None), slice(12, -12), slice(12, -12))
    spread = features[inner].std(axis=(1, 2), keepdims=True)
    apart = np.abs(np.rot90(features, axes=(1, 2))[inner] - turned[inner]) / spread
    assert np.quantile(apart, 0.99) < 0.05


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (40, 7)])
def test_images_of_any_size_have_features(size, forest):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    features = edge_features(image)
    assert features.shape == (FEATURES, *size) == (31, *size) and np.isfinite(features).all()
    assert boosted_edges(image, forest).shape == size


def test_a_plain_image_has_the_same_strength_everywhere(forest):
    strength = boosted_edges(np.full((30, 40, 3), 77, np.uint8), forest)
    assert strength.min() == strength.max() < 0.1


def test_a_large_image_gives_the_same_in_parts(forest, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (83, 9, 3)).astype(np.uint8)
    image = cv2.resize(image, (72, 664), interpolation=cv2.INTER_CUBIC)
    whole = boosted_edges(image, forest)
    monkeypatch.setattr("pipeline.proposals.boosted.ROWS", 200)
    np.testing.assert_allclose(boosted_edges(image, forest), whole, atol=1e-6)


def test_samples_stand_for_all_pixels_of_the_image():
    image, boundaries = drawn(1)
    people = np.concatenate([boundaries, np.zeros_like(boundaries)])  # the second drew nothing
    rows, targets, weights = edge_samples(image, people, count=1000, rng=np.random.default_rng(0))
    assert rows.shape == (31, len(targets)) and len(targets) <= 1000
    assert weights.sum() == pytest.approx(boundaries[0].size)
    assert set(np.unique(targets)) == {0.0, 0.5}
    on = cv2.dilate(boundaries[0].astype(np.uint8), np.ones((3, 3), np.uint8)).sum()
    assert weights[targets > 0].sum() == pytest.approx(on)


def test_finds_the_contour_of_another_disc(forest):
    image, boundaries = drawn(5)
    strength = boosted_edges(image, forest)
    assert strength.dtype == np.float32 and 0 <= strength.min() and strength.max() <= 1
    thresholds = np.linspace(0.05, 0.95, 10)
    best = {
        name: f_measures(
            count_matches(thin_contours(found), boundaries, thresholds, tolerance=0.02)
        ).max()
        for name, found in (("forest", strength), ("plain", gradient_edges(image, sigma=1.5)))
    }
    assert best["forest"] > 0.9 and best["forest"] > best["plain"]


# --- one scale -----------------------------------------------------------------------------------
def test_the_calibrated_gradient_keeps_the_order_and_is_weaker():
    image = drawn(0)[0]
    plain, calibrated = (f(image, sigma=1.5) for f in (gradient_edges, calibrated_gradient))
    order = np.argsort(plain, axis=None)
    assert (np.diff(calibrated.ravel()[order]) >= 0).all()
    assert calibrated.dtype == np.float32 and (calibrated <= plain).all()


def test_the_scale_is_the_root_and_half_of_it_beside_a_ridge():
    probability = np.zeros((20, 21), np.float32)
    probability[:, 9:12] = 0.16, 0.64, 0.16
    strength = on_one_scale(probability)
    np.testing.assert_allclose(strength[:, 9:12], [[0.2, 0.8, 0.2]] * 20, rtol=1e-6)
    assert strength[:, :9].max() == strength[:, 12:].max() == 0


def test_each_kind_gives_a_function_of_the_image(forest, tmp_path):
    model = tmp_path / "model.yml"
    model.write_text(MODEL)
    image = drawn(0)[0]
    sources = [
        edges("gradient", sigma=1.5),
        edges("boosted", forest=forest),
        edges("file", saved=np.full((60, 80), 0.25, np.float32)),
        edges("sf", detector=open_structured_edges(model)),
    ]
    for source in sources:
        for part in (image, image[:1, :1], image[:5, :40], cv2.resize(image, (160, 120))):
            strength = source(part)
            assert strength.shape == part.shape[:2] and strength.dtype == np.float32
            assert 0 <= strength.min() and strength.max() <= 1
    assert (sources[2](image) == np.float32(0.25)).all()


@pytest.mark.parametrize("kind", ["gradient", "boosted", "file", "sf", "canny"])
def test_a_kind_without_what_it_needs_is_refused(kind):
    with pytest.raises(ValueError, match=kind):
        edges(kind)


# --- files ---------------------------------------------------------------------------------------
def test_a_forest_comes_back_from_its_file_and_the_file_is_the_same_every_time(forest, tmp_path):
    for name in ("one.npz", "two.npz"):
        write_forest(tmp_path / name, asdict(forest))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    back = open_contours(tmp_path / "one.npz")
    for name, array in asdict(forest).items():
        np.testing.assert_array_equal(array, getattr(back, name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.npz", "two.npz"]


def test_a_file_that_is_no_forest_is_named(forest, tmp_path):
    path = tmp_path / "forest.npz"
    with pytest.raises(BadFile, match="train-edges"):
        read_forest(path)
    write_forest(path, asdict(forest))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(BadFile, match="no forest"):
            read_forest(path)
    write_forest(path, asdict(forest) | {"leaves": forest.leaves[:1]})
    with pytest.raises(BadFile, match="leaves is"):
        open_contours(path)
    write_forest(path, asdict(forest) | {"features": forest.features + np.uint8(31)})
    with pytest.raises(BadFile, match="looks at feature"):
        open_contours(path)


def test_strengths_are_read_from_arrays_pictures_and_hierarchies(tmp_path):
    values = np.array([[0, 51, 255]], np.uint8)
    np.save(tmp_path / "a.npy", values / 255)
    Image.fromarray(values).save(tmp_path / "b.png")
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "c.png")
    for image_id in "abc":
        strength = read_strength(tmp_path, image_id)
        assert strength.dtype == np.float32
        np.testing.assert_allclose(strength, [[0, 0.2, 1]], atol=1e-6)
    grid = np.zeros((3, 7))
    grid[:, 4] = 0.5  # between the second pixel and the third
    (tmp_path / "d.mat").write_bytes(encode_variables({"ucm2": grid}))
    assert read_strength(tmp_path, "d").tolist() == [[0, 0.5, 0.5]]


def test_the_strength_of_a_pixel_is_that_of_its_strongest_side():
    grid = np.zeros((5, 5))
    grid[2, 1], grid[1, 2], grid[2, 2] = 0.25, 0.5, 1.0  # below and right of the first; a corner
    assert ucm_strength(grid).tolist() == [[0.5, 0.5], [0.25, 0]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", b"no array", "no map"),
        ("x.png", b"no picture", "no map"),
        ("x.mat", b"no matrix", "not a readable"),
        ("y.npy", b"", "nor .png or .mat"),
    ],
)
def test_a_missing_or_damaged_map_of_strengths_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match=message):
        read_strength(tmp_path, "x")


@pytest.mark.parametrize(
    "array",
    [np.zeros(3), np.zeros((2, 2, 3)), np.full((2, 2), 1.5), np.full((2, 2), np.nan),
     np.zeros((0, 4)), np.zeros((2, 2), complex), np.array([["a"]])],
)  # fmt: skip
def test_an_array_of_something_else_is_refused(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(BadFile):
        read_strength(tmp_path, "x")


def test_pickled_arrays_and_colour_pictures_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(BadFile, match="no map"):
        read_strength(tmp_path, "x")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "y.png")
    with pytest.raises(BadFile, match="not grey"):
        read_strength(tmp_path, "y")


def test_the_structured_forest_says_what_to_put_where(tmp_path):
    path = tmp_path / "model.yml.gz"
    with pytest.raises(PlaceByHand, match="opencv_extra"):
        open_structured_edges(path)
    other = tmp_path / "other.yml"
    for content in (
        "",
        "no yaml",
        "%YAML:1.0\n---\na: 1\n",
        MODEL.replace("stride: 2", "stride: 0"),
    ):
        other.write_text(content)
        with pytest.raises(BadFile, match="no structured forest"):
            open_structured_edges(other)


def test_an_opencv_without_structured_edges_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "model.yml").write_text(MODEL)
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(BadFile, match="opencv-contrib-python-headless"):
        open_structured_edges(tmp_path / "model.yml")


# --- the command ---------------------------------------------------------------------------------
def write_bsds(folder: Path, count: int) -> None:
    for number in range(count):
        image, boundaries = drawn(number, 180, 240)  # two pixels are within the tolerance
        people = np.empty((1, 1), object)
        people[0, 0] = {
            "Segmentation": np.ones(boundaries[0].shape, np.uint16),
            "Boundaries": boundaries[0].astype(np.uint8),
        }
        content = encode_variables({"groundTruth": people})
        picture = io.BytesIO()
        Image.fromarray(image).save(picture, "JPEG", quality=95)
        for kind, suffix, data in (
            ("images", "jpg", picture.getvalue()), ("groundTruth", "mat", content)
        ):  # fmt: skip
            path = folder / "data" / kind / "train" / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def test_trains_a_forest_and_says_how_good_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.edge_training.SAMPLES", 500)
    write_bsds(tmp_path, 5)
    out = tmp_path / "forest.npz"
    train_edges(tmp_path, out)
    lines = capsys.readouterr().out.splitlines()
    assert "from 3 images" in lines[0] and "of 2 other images" in lines[1]
    strength = {words[0]: float(words[1]) for words in map(str.split, lines[2:])}
    assert strength.keys() == {"gradient", "boosted"} and strength["boosted"] > 0.8
    assert open_contours(out).features.shape == (400, 6)


def test_the_command_refuses_what_cannot_work_before_it_begins(tmp_path):
    write_bsds(tmp_path, 1)
    with pytest.raises(BadInput, match="none of them to fit on"):
        train_edges(tmp_path, tmp_path / "forest.npz")
    with pytest.raises(BadInput, match="no place for a file"):
        train_edges(tmp_path, tmp_path / "missing" / "forest.npz")
    with pytest.raises(BadInput, match="no place for a file"):
        train_edges(tmp_path, tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="no part of BSDS500 here")
def test_on_photographs_the_forest_beats_the_gradient():
    data = open_bsds(REAL)
    fitting, reporting = fitting_and_reporting(data)
    forest = fit_edges(data, fitting[::5], seed=0)
    boosted = best_f(data, reporting[:3], edges("boosted", forest=forest))
    gradient = best_f(data, reporting[:3], edges("gradient", sigma=1.5))
    assert boosted > gradient + 0.03
