"""Selective Search: likeness and merging by hand, laws on drawn pictures, photographs."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from candidates import check_boxes_and_areas, same
from PIL import Image
from scipy.ndimage import binary_fill_holes

from pipeline.proposals import selective_search as module
from pipeline.proposals.colour_regions import first_regions
from pipeline.proposals.form import Proposals
from pipeline.proposals.selective_search import (
    COLOUR_BINS,
    GROUPED_BY,
    Regions,
    described,
    likeness_tree,
    selective_search,
)

BSDS = Path(__file__).resolve().parents[1].parent / "shared" / "real" / "bsds500" / "BSDS500"


def drawn(seed: int, height: int = 90, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """A disc, a block and a ring on noise. Returns the image and an object map."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    disc = (x - 25) ** 2 + (y - 30) ** 2 < 16**2
    block = (abs(x - 85) < 16) & (abs(y - 25) < 12)
    distance = np.hypot(x - 60, y - 68)
    image = np.full((height, width, 3), 110.0)
    image[disc] = 200, 40, 40
    image[block] = 40, 190, 60
    image[(distance < 18) & (distance > 9)] = 40, 60, 220
    image += rng.normal(0, 6, image.shape)
    objects = disc + 2 * block.astype(np.uint8) + 3 * (distance < 18).astype(np.uint8)
    return np.clip(image, 0, 255).astype(np.uint8), objects


@pytest.fixture(scope="module")
def found() -> Proposals:
    return selective_search(drawn(0)[0])


@pytest.fixture(scope="module")
def masks(found) -> np.ndarray:
    return np.array([found.mask(i) for i in range(len(found))])


# --- laws --------------------------------------------------------------------------------------
def test_every_candidate_has_its_tight_box_and_area(found, masks):
    assert len(found) > 5
    check_boxes_and_areas(found, masks)


def test_no_two_candidates_are_duplicates_and_none_has_a_hole(found, masks):
    overlaps = found.iou_with_masks(masks)
    np.fill_diagonal(overlaps, 0)
    assert overlaps.max() < 0.95
    # Regions hang together by corners too, so what is left outside may.
    holes = [(binary_fill_holes(m, np.ones((3, 3))) & ~m).sum() for m in masks]
    assert max(holes) < module.MIN_PIECE  # a region that a small piece held together


def test_the_whole_image_comes_first(found):
    assert found.mask(0).all()


def test_drawn_objects_are_found_and_the_ring_with_its_hole():
    for seed in range(3):
        image, objects = drawn(seed)
        best = selective_search(image).iou_with_objects(objects, 3).max(axis=0)
        assert (best > 0.85).all()


def test_holes_stay_open_where_asked():
    image = np.full((90, 120, 3), 110, np.uint8)
    y, x = np.mgrid[:90, :120]
    distance = np.hypot(x - 60, y - 45)
    ring = ((distance < 25) & (distance > 12))[None]
    image[ring[0]] = 40, 60, 220
    assert selective_search(image, fill_holes=False).iou_with_masks(ring).max() > 0.85
    assert selective_search(image).iou_with_masks(ring).max() < 0.8


def test_the_same_image_gives_the_same_bytes(found):
    assert same(found, selective_search(drawn(0)[0].copy()))


def test_a_smaller_limit_gives_the_beginning(found):
    few = selective_search(drawn(0)[0], max_candidates=5)
    assert len(few) == 5
    np.testing.assert_array_equal(few.boxes, found.boxes[:5])
    np.testing.assert_array_equal(few.members, found.members[: found.offsets[5]])


def test_more_colours_scales_and_ways_give_more_candidates():
    image = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    image = np.asarray(Image.fromarray(image).resize((160, 120), Image.Resampling.BICUBIC))
    one = {"colours": ("lab",), "scales": (100,), "likeness": ("ctsf",)}
    fewest = len(selective_search(image, **one))
    for more in ({"colours": ("lab", "hsv", "rgb")}, {"scales": (50, 100)}, {"likeness": ("s",)}):
        if "likeness" in more:
            more = {"likeness": ("ctsf", "s")}
        assert len(selective_search(image, **(one | more))) > fewest


# --- images of all kinds -----------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (2, 3), (40, 31)])
def test_a_plain_image_is_one_region(shape):
    only = selective_search(np.full((*shape, 3), 77, np.uint8))
    assert len(only) == 1 and only.mask(0).all()
    assert only.boxes.tolist() == [[0, 0, shape[1], shape[0]]]


@pytest.mark.parametrize("shape", [(2, 3), (1, 30), (16, 97), (61, 40)])
def test_noise_of_any_size_has_candidates(shape):
    grey = np.random.default_rng(0).integers(0, 256, (*shape, 1), np.uint8).repeat(3, axis=2)
    some = selective_search(grey, scales=(1, 5))
    assert some.mask(0).all() and some.superpixels.shape == shape


def test_a_large_image_is_searched_at_a_smaller_size(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 5000)
    image = np.full((301, 203, 3), 90, np.uint8)
    image[100:240, 50:150] = 220, 80, 40
    found = selective_search(image, scales=(20,))
    assert found.superpixels.shape == (301, 203)
    assert set(np.unique(found.superpixels)) == set(range(found.num_superpixels))
    assert found.iou_with_masks((image[:, :, 0] == 220)[None]).max() > 0.93


def test_too_many_pieces_for_16_bits_are_made_fewer(monkeypatch):
    seen = []

    def few(hierarchies):
        seen.append(int(hierarchies[0].last[0]))
        if seen[-1] > 10:
            raise ValueError("too many")
        return fused(hierarchies)

    fused = module.fused
    monkeypatch.setattr(module, "fused", few)
    monkeypatch.setattr(module, "MAX_LEAVES", 32)
    assert len(selective_search(drawn(0)[0], scales=(5,))) > 1
    assert seen == [32, 16, 8]


def test_small_pieces_go_to_the_nearest_large_one(monkeypatch):
    monkeypatch.setattr(module, "MIN_PIECE", 3)
    superpixels = np.array([[2, 2, 2, 0, 0, 4, 4, 4], [2, 2, 1, 0, 3, 4, 4, 4]], np.uint16)
    places = np.array([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
    merged, kept = module._without_slivers(superpixels, places)
    assert merged.tolist() == [
        [1, 1, 1, 0, 0, 2, 2, 2],
        [1, 1, merged[1, 2], 0, merged[1, 4], 2, 2, 2],
    ]
    assert merged[1, 2] in (0, 1) and merged[1, 4] in (0, 2)  # as near to both
    assert kept.tolist() == [[0, 2, 4], [4, 2, 0]]
    monkeypatch.setattr(module, "MIN_PIECE", 7)
    assert module._without_slivers(superpixels, places)[0] is superpixels  # none is large


def test_what_is_no_image_or_no_colour_space_is_refused():
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(ValueError, match="an image is"):
            selective_search(wrong)
    with pytest.raises(ValueError, match="'cmyk' is none of hsv, lab, rgb"):
        selective_search(np.zeros((5, 5, 3), np.uint8), colours=("cmyk",))


# --- regions and what they look like -----------------------------------------------------------
LABELS = np.array([[0, 0, 1], [2, 2, 1]], np.int32)


def test_regions_are_counted_by_hand():
    channels = np.zeros((2, 3, 3), np.uint8)
    channels[0, 1] = 255, 0, 128
    regions, pairs = described(LABELS, channels)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert regions.sizes.tolist() == [2, 2, 2]
    assert regions.boxes.tolist() == [[0, 0, 2, 1], [2, 0, 3, 2], [0, 1, 2, 2]]
    colours = regions.colours[0].reshape(3, COLOUR_BINS) * 6
    assert colours[0, 0] == colours[0, -1] == 1 and colours[1, 0] == 2
    assert colours[2, 0] == colours[2, 128 * COLOUR_BINS // 256] == 1
    np.testing.assert_allclose(regions.colours.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(regions.textures.sum(axis=1), 1, rtol=1e-6)


def test_a_slope_is_of_the_texture_in_the_direction_in_which_it_rises():
    ramp = np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], 3, axis=2)
    channels = np.ascontiguousarray(np.repeat(ramp, 20, axis=0))
    regions, _ = described(np.zeros(channels.shape[:2], np.int32), channels)
    steep = regions.textures[0].reshape(3, 8, 10)[0] @ np.arange(10)  # of each direction
    assert steep[0] > steep[1] > steep[2]  # to the right, a quarter turn of it, down
    np.testing.assert_allclose(steep[1], steep[7], rtol=1e-6)
    assert (steep[2:7] == 0).all()


def test_first_regions_follow_their_definition():
    channels = np.random.default_rng(4).integers(0, 256, (9, 11, 3), np.uint8)
    channels[2:7, 2:8] = 128
    smooth = cv2.GaussianBlur(channels.astype(np.float32), (0, 0), 0.8)
    steps = []
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        for (y, x), _ in np.ndenumerate(channels[..., 0]):
            v, u = y + down, x + across
            if v < 9 and 0 <= u < 11:
                step = np.sqrt(((smooth[y, x] - smooth[v, u]) ** 2).sum())
                steps.append((np.floor(step * 64) / 64, (y, x), (v, u)))
    steps.sort(key=lambda s: s[0])
    region = {(y, x): frozenset([(y, x)]) for y in range(9) for x in range(11)}
    within = dict.fromkeys(region.values(), 0.0)
    for smallest in (False, True):
        for step, a, b in steps:
            a, b = region[a], region[b]
            fits = all(step <= within[r] + 60 / len(r) for r in (a, b))
            if a != b and (min(len(a), len(b)) < 60 if smallest else fits):
                within[a | b] = step
                region |= dict.fromkeys(a | b, a | b)
        if not smallest:
            assert 5 < len(set(region.values())) < 99
    (labels,) = first_regions(channels, (60,))
    found = {frozenset(zip(*np.nonzero(labels == i), strict=True)) for i in range(labels.max() + 1)}
    assert {frozenset((int(y), int(x)) for y, x in r) for r in found} == set(region.values())


def test_first_regions_are_larger_at_a_larger_scale():
    image = drawn(0)[0]
    few, many = first_regions(image, (200, 20))
    assert few.max() < many.max()
    assert np.bincount(few.ravel()).min() >= 200 and np.bincount(many.ravel()).min() >= 20


# --- merging -----------------------------------------------------------------------------------
def by_definition(regions: Regions, pairs: np.ndarray, use: np.ndarray, total: int) -> list:
    """The merges as the paper has them: pairs of sets of leaves, in a plain dictionary."""
    nodes = {
        frozenset([i]): [x[i].astype(np.float64) for x in regions]
        for i in range(len(regions.sizes))
    }
    near = {frozenset([frozenset([a]), frozenset([b])]) for a, b in pairs.tolist()}

    def alike(pair) -> float:
        (s, box, c, t), (z, cab, d, u) = (nodes[n] for n in pair)
        sides = np.maximum(box[2:], cab[2:]) - np.minimum(box[:2], cab[:2])
        terms = np.minimum(c, d).sum(), np.minimum(t, u).sum(), 1 - (s + z) / total
        return float(use @ [*terms, 1 - (sides.prod() - s - z) / total])

    merges = []
    while near:
        pair = max(near, key=alike)
        a, b = pair
        (s, box, c, t), (z, cab, d, u) = nodes[a], nodes[b]
        corners = np.minimum(box[:2], cab[:2]), np.maximum(box[2:], cab[2:])
        nodes[a | b] = [
            s + z, np.concatenate(corners), (s * c + z * d) / (s + z), (s * t + z * u) / (s + z)
        ]  # fmt: skip
        near = {frozenset(a | b if n in pair else n for n in other) for other in near - {pair}}
        merges.append(a | b)
    return merges


@pytest.mark.parametrize("way", sorted(GROUPED_BY))
def test_the_most_alike_neighbours_merge_first(way):
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (5, 6, 3), np.uint8)
    channels = np.ascontiguousarray(np.kron(small, np.ones((4, 5, 1), np.uint8)))
    labels = np.kron(rng.permutation(30).reshape(5, 6), np.ones((4, 5), int)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.1] = 0  # sizes and boxes that differ
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)
    regions, pairs = described(labels, channels)
    part = rng.random((len(regions.sizes), 4), np.float32)  # so that no two pairs are as alike
    regions = regions._replace(sizes=regions.sizes + part[:, 0], boxes=regions.boxes + part)
    tree = likeness_tree(labels, regions, pairs, GROUPED_BY[way])
    count = len(regions.sizes)
    sets = [frozenset([i]) for i in range(count)]
    for node in range(count, len(tree.parents)):
        children = [c for c in range(node) if tree.parents[c] == node]
        assert len(children) == 2
        sets.append(sets[children[0]] | sets[children[1]])
    expected = by_definition(regions, pairs, np.array(GROUPED_BY[way], float), labels.size)
    assert sets[count:] == expected
    assert tree.altitudes[:count].max() == 0 and (np.diff(tree.altitudes[count:]) == 1).all()


# --- photographs -------------------------------------------------------------------------------
@pytest.mark.skipif(not BSDS.is_dir(), reason="BSDS500 is not here")
def test_photographs_keep_their_quality():
    loadmat = pytest.importorskip("scipy.io").loadmat
    folder = BSDS / "data" / "images" / "train"
    best = []
    for path in sorted(folder.glob("*.jpg"))[1::25]:
        truth = loadmat(BSDS / "data" / "groundTruth" / "train" / f"{path.stem}.mat")
        masks = []
        for person in truth["groundTruth"].ravel():
            segments = person["Segmentation"][0, 0]
            masks += [segments == s for s in np.unique(segments) if (segments == s).sum() >= 300]
        found = selective_search(np.asarray(Image.open(path)))
        best.append(found.iou_with_masks(np.array(masks)).max(axis=0))
    assert np.concatenate(best).mean() > 0.66
