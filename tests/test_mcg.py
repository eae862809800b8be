"""MCG's candidates: laws on drawn pictures, and how good they are on photographs where they lie."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from candidates import check_boxes_and_areas, same
from PIL import Image
from scipy.ndimage import binary_fill_holes

from pipeline.errors import BadInput
from pipeline.params import Params
from pipeline.params_checks import check_values
from pipeline.params_file import build
from pipeline.params_proposals import GradientEdges, Mcg, Scg
from pipeline.proposals.edges import edges
from pipeline.proposals.form import Proposals
from pipeline.proposals.hierarchy import Hierarchy
from pipeline.proposals.mcg import MAX_PIXELS, fused
from pipeline.proposals.methods import propose

SETTINGS = Mcg(
    kind="mcg",
    edges=GradientEdges("gradient", sigma=1.0),
    min_area=20,
    align_cut=0.1,
    singletons=(90, 200, 200, 300),
    pairs=(200, 300, 300, 100),
    triplets=(100, 300, 300, 100),
    quadruplets=(100, 300, 100, 100),
    max_overlap=0.95,
    max_candidates=5000,
    fill_holes=True,
)
BSDS = Path(__file__).resolve().parents[1].parent / "shared" / "real" / "bsds500" / "BSDS500"


def found_by(image: np.ndarray, settings: Mcg | Scg) -> Proposals:
    return propose(image, settings, edges("gradient", sigma=settings.edges.sigma), None)


def drawn(seed: int, height: int = 90, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """A disc, a two-coloured block and a ring on noise. Returns the image and an object map."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    disc = (x - 25) ** 2 + (y - 30) ** 2 < 16**2
    block = (abs(x - 85) < 16) & (abs(y - 25) < 12)
    distance = np.hypot(x - 60, y - 68)
    image = np.full((height, width, 3), 110.0)
    image[disc] = 200, 40, 40
    image[block & (x < 85)] = 40, 190, 60
    image[block & (x >= 85)] = 240, 230, 60
    image[(distance < 18) & (distance > 9)] = 40, 60, 220
    image += rng.normal(0, 6, image.shape)
    objects = disc + 2 * block.astype(np.uint8) + 3 * (distance < 18).astype(np.uint8)
    return np.clip(image, 0, 255).astype(np.uint8), objects


@pytest.fixture(scope="module")
def found() -> Proposals:
    return found_by(drawn(0)[0], SETTINGS)


@pytest.fixture(scope="module")
def masks(found) -> np.ndarray:
    return np.array([found.mask(i) for i in range(len(found))])


# --- laws --------------------------------------------------------------------------------------
def test_every_candidate_has_its_tight_box_and_area(found, masks):
    assert len(found) > 200
    check_boxes_and_areas(found, masks)


def test_no_two_candidates_are_duplicates_and_none_has_a_hole(found, masks):
    overlaps = found.iou_with_masks(masks)
    np.fill_diagonal(overlaps, 0)
    assert overlaps.max() < SETTINGS.max_overlap
    superpixel_holes = [(binary_fill_holes(m) & ~m).sum() for m in masks]
    # A region that the nearest pixels of another scale cut may close around a pixel or two.
    assert max(superpixel_holes) <= 4


def test_the_whole_image_comes_first(found):
    assert found.mask(0).all()


def test_drawn_objects_are_found():
    for seed in range(3):
        image, objects = drawn(seed)
        best = found_by(image, SETTINGS).iou_with_objects(objects, 3).max(axis=0)
        assert (best > 0.9).all()


def test_an_object_of_two_parts_needs_pairs():
    image = np.full((60, 90, 3), 100, np.uint8)
    image[15:45, 20:45] = 125, 100, 100
    image[15:45, 45:70] = 250, 250, 40
    noise = np.random.default_rng(0).normal(0, 1.5, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    truth = np.zeros((1, 60, 90), bool)
    truth[0, 15:45, 20:70] = True
    none = (0, 0, 0, 0)
    alone = replace(SETTINGS, pairs=none, triplets=none, quadruplets=none)
    paired = replace(SETTINGS, triplets=none, quadruplets=none)
    assert found_by(image, alone).iou_with_masks(truth).max() < 0.8
    assert found_by(image, paired).iou_with_masks(truth).max() > 0.9


def test_a_node_of_the_combined_hierarchy_is_a_run_of_superpixels():
    nothing = (0, 0, 0, 0)
    only = replace(
        SETTINGS, singletons=(90, 0, 0, 0), pairs=nothing, triplets=nothing, quadruplets=nothing
    )
    nodes = found_by(drawn(1)[0], replace(only, fill_holes=False))
    for a, b in zip(nodes.offsets[:-1], nodes.offsets[1:], strict=True):
        assert (np.diff(nodes.members[a:b].astype(int)) == 1).all()


def test_hierarchies_and_sizes_of_sets_take_turns():
    image = drawn(1)[0]
    nothing = (0, 0, 0, 0)
    nodes_only = {"pairs": nothing, "triplets": nothing, "quadruplets": nothing}
    of_each = [
        found_by(image, replace(SETTINGS, singletons=chosen, max_overlap=1.0, **nodes_only))
        for chosen in ((7, 0, 0, 0), (0, 7, 0, 0), (0, 0, 7, 0), (0, 0, 0, 7))
    ]
    every = found_by(image, replace(SETTINGS, singletons=(7,) * 4, max_overlap=1.0, **nodes_only))
    masks = {every.mask(i).tobytes(): i for i in range(len(every))}
    # A node that another hierarchy has too stands where the first of them has it.
    for own in of_each:
        places = [masks[own.mask(i).tobytes()] for i in range(len(own))]
        assert all(place <= 4 * turn + 3 for turn, place in enumerate(places))


def test_the_same_image_gives_the_same_bytes(found):
    assert same(found, found_by(drawn(0)[0].copy(), SETTINGS))


def test_a_smaller_limit_gives_the_beginning(found):
    few = found_by(drawn(0)[0], replace(SETTINGS, max_candidates=50))
    assert len(few) == 50
    np.testing.assert_array_equal(few.boxes, found.boxes[:50])
    np.testing.assert_array_equal(few.members, found.members[: found.offsets[50]])


def test_a_mirrored_image_has_mirrored_candidates_mostly(found, masks):
    image = drawn(0)[0]
    mirrored = found_by(np.ascontiguousarray(image[:, ::-1]), SETTINGS)
    large = masks.sum(axis=(1, 2)) > 100
    best = mirrored.iou_with_masks(masks[large][:, :, ::-1]).max(axis=0)
    assert best.mean() > 0.85


def test_edges_are_asked_for_at_three_scales_and_used():
    image, objects = drawn(2)
    shapes = []

    def noted(scaled: np.ndarray) -> np.ndarray:
        shapes.append(scaled.shape)
        return edges("gradient", sigma=1.0)(scaled)

    assert same(propose(image, SETTINGS, noted, None), found_by(image, SETTINGS))
    assert shapes == [(45, 60, 3), (90, 120, 3), (180, 240, 3)]
    plain = propose(image, SETTINGS, lambda scaled: np.zeros(scaled.shape[:2], np.float32), None)
    assert len(plain) == 1 and plain.mask(0).all()


# --- images of all kinds -----------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (14, 300), (15, 15), (40, 31)])
def test_a_plain_image_is_one_region(shape):
    only = found_by(np.full((*shape, 3), 77, np.uint8), SETTINGS)
    assert len(only) == 1 and only.mask(0).all()
    assert only.boxes.tolist() == [[0, 0, shape[1], shape[0]]]


@pytest.mark.parametrize("shape", [(2, 3), (15, 15), (16, 97), (61, 40)])
def test_noise_of_any_size_has_candidates(shape):
    grey = np.random.default_rng(0).integers(0, 256, (*shape, 1), np.uint8).repeat(3, axis=2)
    some = found_by(grey, replace(SETTINGS, min_area=1, edges=GradientEdges("gradient", 0.0)))
    assert len(some) >= 1 and some.mask(0).all() and some.superpixels.shape == shape


def test_a_large_image_has_one_scale_only():
    image = np.full((1300, 2000, 3), 90, np.uint8)
    assert image.shape[0] * image.shape[1] > MAX_PIXELS
    image[300:900, 500:1500] = 220, 80, 40
    sides: list[tuple[int, ...]] = []

    def noted(scaled: np.ndarray) -> np.ndarray:
        sides.append(scaled.shape)
        return edges("gradient", sigma=1.0)(scaled)

    only = propose(image, SETTINGS, noted, None)
    best = only.iou_with_masks((image[:, :, 0] == 220)[None]).max()
    assert best > 0.97 and sides == [(1300, 2000, 3)]


def test_what_is_no_image_is_refused():
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(ValueError, match="an image is"):
            found_by(wrong, SETTINGS)


# --- common superpixels ------------------------------------------------------------------------
def hierarchy_of(superpixels: list[list[int]]) -> Hierarchy:
    none = np.zeros(0, np.int32)
    return Hierarchy(np.array(superpixels, np.uint16), none, none, none, np.zeros((0, 2), np.int32))


def test_superpixels_cut_each_other_and_keep_the_first_ones_order():
    rows = hierarchy_of([[1, 1, 1], [0, 0, 0]])
    columns = hierarchy_of([[2, 0, 0], [2, 0, 1]])
    superpixels, places = fused([rows, columns])
    assert superpixels.tolist() == [[4, 3, 3], [2, 0, 1]]
    assert places.tolist() == [[0, 0, 0, 1, 1], [0, 1, 2, 0, 2]]


def test_more_superpixels_than_ids_are_refused():
    rows = hierarchy_of([[y] * 300 for y in range(300)])
    columns = hierarchy_of([list(range(300))] * 300)
    with pytest.raises(ValueError, match="90000 superpixels; at most 65536"):
        fused([rows, columns])


# --- settings ----------------------------------------------------------------------------------
def test_settings_are_read_and_their_lists_checked():
    algorithm = {
        "kind": "mcg",
        "edges": {"kind": "gradient", "sigma": 2},
        "min_area": 200,
        "align_cut": 0.1,
        "singletons": [90, 500, 200, 900],
        "pairs": [1, 2, 3, 4],
        "triplets": [0, 0, 0, 0],
        "quadruplets": [0, 0, 0, 0],
        "max_overlap": 0.95,
        "max_candidates": 5000,
        "fill_holes": True,
    }
    sections = {name: {} for name in Params.__dataclass_fields__}

    def read(**other: object) -> Params:
        entry = {"method": "mcg", "dataset": "sample", "contours": "none", "ranker": "none"}
        entry |= {"algorithm": algorithm | other}
        return build(Params, sections | {"proposals": {"mcg_sample": entry}}, "f", "")

    assert read().proposals["mcg_sample"].algorithm.pairs == (1, 2, 3, 4)
    check_values(read())
    with pytest.raises(BadInput, match="proposals.mcg_sample.algorithm.pairs"):
        check_values(read(pairs=[1, 2, -3, 4]))
    with pytest.raises(BadInput, match="has 3 entries; expected 4"):
        read(pairs=[1, 2, 3])


# --- photographs -------------------------------------------------------------------------------
PUBLISHED = replace(
    SETTINGS,
    edges=GradientEdges("gradient", sigma=2.0),
    min_area=200,
    singletons=(90, 500, 200, 900),
    pairs=(2000, 3000, 5000, 700),
    triplets=(300, 10000, 5000, 700),
    quadruplets=(300, 4000, 300, 200),
)


@pytest.mark.skipif(not BSDS.is_dir(), reason="BSDS500 is not here")
def test_photographs_keep_their_quality():
    loadmat = pytest.importorskip("scipy.io").loadmat
    folder = BSDS / "data" / "images" / "train"
    ids = sorted(path.stem for path in folder.glob("*.jpg"))[1::20]
    best: list[np.ndarray] = []
    single: list[np.ndarray] = []
    for image_id in ids:
        image = np.asarray(Image.open(folder / f"{image_id}.jpg"))
        truth = loadmat(BSDS / "data" / "groundTruth" / "train" / f"{image_id}.mat")
        masks = []
        for person in truth["groundTruth"].ravel():
            segments = person["Segmentation"][0, 0]
            masks += [segments == s for s in np.unique(segments) if (segments == s).sum() >= 300]
        best.append(found_by(image, PUBLISHED).iou_with_masks(np.array(masks)).max(axis=0))
        single.append(found_by(image, scg_settings()).iou_with_masks(np.array(masks)).max(axis=0))
    assert np.concatenate(best).mean() > 0.65
    assert np.concatenate(best).mean() > np.concatenate(single).mean() + 0.01


def scg_settings() -> Scg:
    return Scg(
        kind="scg",
        edges=PUBLISHED.edges,
        min_area=PUBLISHED.min_area,
        singletons=700,
        pairs=4000,
        triplets=6000,
        quadruplets=3000,
        max_overlap=0.95,
        max_candidates=5000,
        fill_holes=True,
    )
