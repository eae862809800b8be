"""The parts of finding objects: suppression, interpolated masks, runs, and components."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from pycocotools import mask as coco

from pipeline.boxes import iou, tight_box
from pipeline.instances import component_instances
from pipeline.instances.pixel_masks import mask_numbers, most_probable
from pipeline.instances.regions import distinct, encode_regions, regions_of
from pipeline.instances.suppression import areas_of, suppress
from pipeline.instances.votes import by_score
from pipeline.masks import decode_rle, encode_rle
from pipeline.params import ComponentInstances


def drawn_votes(count, seed, kinds=6):
    """Scores, all different, and boxes around few places or, with as many kinds, around many."""
    generator = np.random.default_rng(seed)
    centres = generator.uniform(0, 100, (kinds, 2))[generator.integers(kinds, size=count)]
    sides = generator.uniform(20, 40, (count, 2))
    centres = centres + generator.normal(0, 5, (count, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    scores = generator.permutation(np.arange(1, count + 1)) / count
    return scores.astype(np.float32), boxes.astype(np.float32)


# --- suppression ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("count", "kinds"), [(1, 1), (63, 3), (64, 64), (65, 5), (700, 300)])
@pytest.mark.parametrize("overlap", [0.3, 0.5, 1.0])
def test_keeps_and_clusters_as_a_plain_loop_does(count, kinds, overlap):
    _, boxes = drawn_votes(count, count, kinds)
    kept, cluster = suppress(boxes, overlap)
    expected = np.full(count, -1)
    maxima = []
    overlaps = iou(boxes.astype(np.float64), boxes.astype(np.float64))
    for i in range(count):
        if expected[i] < 0:
            expected[(expected < 0) & (overlaps[i] >= overlap)] = len(maxima)
            maxima.append(i)
    assert kept.tolist() == maxima
    assert cluster.tolist() == expected.tolist()


@pytest.mark.parametrize("kinds", [3, 2000])
def test_keeps_what_torchvision_keeps(kinds):
    scores, boxes = drawn_votes(2000, 1, kinds)
    order = by_score(scores, boxes, np.zeros((2000, 2)))
    kept, _ = suppress(boxes[order], 0.5)
    theirs = torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5)
    assert order[kept].tolist() == theirs.tolist()


def test_scores_are_sorted_as_python_sorts_them():
    generator = np.random.default_rng(0)
    scores = generator.integers(1, 40, 500).astype(np.float32) / 8
    scores[:3] = [1e-45, 3e38, np.inf]
    boxes = np.array([(0, 0, 8, 4)] * 500, np.float32)
    places = generator.integers(0, 8, (500, 2)).astype(float)
    off = ((places[:, 0] - 4) / 8) ** 2 + ((places[:, 1] - 2) / 4) ** 2
    expected = sorted(range(500), key=lambda i: (-scores[i], off[i], i))
    assert by_score(scores, boxes, places).tolist() == expected


def test_areas_are_those_of_boxes_that_can_be_compared():
    boxes = [(0, 0, 2, 3), (2, 0, 0, 3), (0, 0, 0, 3), (0, 0, np.nan, 3), (0, 0, np.inf, 3)]
    assert areas_of(np.array(boxes, np.float32).T).tolist() == [6, 0, 0, 0, 0]


# --- pixels between cells -------------------------------------------------------------------------
def interpolated(maps, stride, size):
    whole = F.interpolate(
        torch.from_numpy(maps)[None].double(), scale_factor=stride, mode="bilinear"
    )
    return whole[0, :, : size[0], : size[1]].numpy()


@pytest.mark.parametrize(
    ("size", "stride"), [((16, 24), 8), ((13, 5), 4), ((7, 8), 3), ((4, 5), 1)]
)
def test_pixels_lie_between_cells_as_in_torch(size, stride):
    cells = tuple(-(-side // stride) for side in size)
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), cells).transpose(2, 0, 1).astype(np.float32)
    whole = interpolated(probabilities, stride, size)
    best, values = most_probable(probabilities, size=size, stride=stride)
    assert (best.T == whole.argmax(axis=0)).all()
    np.testing.assert_allclose(values.T, whole.max(axis=0), rtol=1e-14)
    ranks = (whole[:, None] > whole).sum(axis=0)  # how many are more probable
    for top_masks in (1, 2, 4):
        numbers = mask_numbers(
            probabilities, np.array([3, 1]), size=size, stride=stride,
            top_masks=top_masks, min_probability=0.125,
        )  # fmt: skip
        expected = np.where((ranks < top_masks) & (whole >= 0.125), ranks + 1, 0)[[3, 1]]
        assert (numbers.transpose(0, 2, 1) == expected).all()


def test_cells_that_are_not_numbers_reach_as_far_as_their_pixels_weigh():
    probabilities = np.array([[[0.5, np.nan, 0.5]]], np.float32)
    numbers = mask_numbers(
        probabilities, np.array([0]), size=(1, 9), stride=3, top_masks=1, min_probability=0.0
    )
    # The middle pixel of a cell is that cell's alone.
    assert numbers[0, :, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 1, 1]


# --- masks as runs --------------------------------------------------------------------------------
def drawn_numbers(seed, height, width, masks):
    """(W, H): some blobs, some speckles, some of nothing."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(-1, masks, (width // 5 + 1, height // 5 + 1))
    numbers = np.kron(coarse, np.ones((5, 5), int))[:width, :height]
    speckles = generator.random(numbers.shape) < 0.05
    numbers[speckles] = generator.integers(-1, masks, speckles.sum())
    return numbers


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (33, 47), (300, 200)])
def test_runs_have_the_areas_boxes_and_run_lengths_of_their_masks(height, width):
    numbers = drawn_numbers(0, height, width, 6)
    regions = regions_of(numbers, 6)
    rles = encode_regions(regions, np.arange(6), height * width)
    for number in range(6):
        mask = numbers.T == number
        assert regions.areas[number] == mask.sum()
        assert rles[number] == encode_rle(mask)
        if mask.any():
            assert regions.boxes[number].tolist() == tight_box(mask).tolist()


@pytest.mark.parametrize(
    "pixels",
    [[], [0], [5], [0, 5], [2, 3], range(6), [0, 1, 2], [3, 4, 5], [1, 4], [0, 2, 3, 5]],
)
def test_run_lengths_of_masks_of_three_columns(pixels):
    flat = np.full(6, -1)
    flat[list(pixels)] = 0
    numbers = flat.reshape(3, 2)
    regions = regions_of(numbers, 1)
    mask = numbers.T == 0
    assert encode_regions(regions, np.array([0]), 6) == [encode_rle(mask)]
    assert not pixels or regions.boxes[0].tolist() == tight_box(mask).tolist()


def test_run_lengths_of_a_large_mask_with_long_and_falling_runs():
    numbers = np.full((3000, 2000), -1)
    numbers[2, 7] = numbers[1000:2000] = numbers[2500, 3:1500:2] = 0
    regions = regions_of(numbers, 1)
    assert encode_regions(regions, np.array([0]), numbers.size) == [encode_rle(numbers.T == 0)]


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 1.0])
def test_masks_suppress_by_the_overlaps_that_pycocotools_finds(overlap):
    generator = np.random.default_rng(0)
    first = drawn_numbers(1, 30, 20, 12)
    second = np.where(generator.random(first.shape) < 0.7, first, drawn_numbers(2, 30, 20, 12))
    second[(first == 0) | (second == 0)] = first[(first == 0) | (second == 0)]  # this mask is equal
    both = np.concatenate([first, np.where(second < 0, -1, second + 12)])  # side by side
    apart = regions_of(both, 24)
    # The second image's masks laid over the first one's.
    bounds = apart.bounds - np.where(apart.bounds[:, :1] >= first.size, first.size, 0)
    boxes = apart.boxes - np.where(np.arange(24) >= 12, 20, 0)[:, None] * [1, 0, 1, 0]
    regions = apart._replace(bounds=bounds, boxes=boxes)
    rles = [
        {"size": [30, 20], "counts": rle}
        for rle in encode_regions(regions, np.arange(24), first.size)
    ]
    overlaps = coco.iou(rles, rles, [0] * 24)
    order = generator.permutation(24)
    expected: list[int] = []
    for mask in order.tolist():
        near = overlaps[mask, expected]
        if not ((near > 0) & (near >= overlap)).any():
            expected.append(mask)
    assert 0 < len(expected) < 24
    assert distinct(regions, order, overlap).tolist() == expected


# --- connected components -------------------------------------------------------------------------
def components(probabilities, things, size, stride, min_pixels=1):
    return component_instances(
        np.array(probabilities, np.float32), np.array(things, int), size=size, stride=stride,
        rule=ComponentInstances(kind="components", min_pixels=min_pixels),
    )  # fmt: skip


def test_components_by_hand():
    first = [[0.75, 0.0, 0.5], [0.0, 0.25, 0.0]]
    second = [[0.25, 0.0, 0.5], [0.0, 0.75, 0.875]]
    found = components([np.zeros((2, 3)), first, second], [2, 1], (2, 3), 1)
    assert found.categories.tolist() == [2, 1, 1]
    assert found.scores.tolist() == [(0.75 + 0.875) / 2, 0.75, 0.5]
    assert found.boxes.tolist() == [[1, 1, 3, 2], [0, 0, 1, 1], [2, 0, 3, 1]]
    assert found.votes.tolist() == found.boxes.tolist()
    assert found.peaks.tolist() == [[2, 1], [0, 0], [2, 0]]


def test_parts_that_touch_at_a_corner_are_one_component():
    found = components([[[0.0, 0.5], [0.5, 0.0]], [[1, 0], [0, 1.0]]], [1], (2, 2), 1)
    assert found.boxes.tolist() == [[0, 0, 2, 2]]


@pytest.mark.parametrize(("size", "stride"), [((37, 50), 8), ((12, 9), 4), ((20, 31), 1)])
def test_components_are_opencvs(size, stride):
    generator = np.random.default_rng(2)
    cells = tuple(-(-side // stride) for side in size)
    probabilities = generator.dirichlet(np.ones(4), cells).transpose(2, 0, 1).astype(np.float32)
    whole = interpolated(probabilities, stride, size)
    labels = whole.argmax(axis=0)
    expected = []
    for category in (1, 3):
        count, parts = cv2.connectedComponents((labels == category).astype(np.uint8), None, 8)
        for part in range(1, count):
            mask = parts == part
            if mask.sum() >= 3:
                expected.append((whole[category][mask].mean(), category, encode_rle(mask)))
    found = components(probabilities, [1, 3], size, stride, min_pixels=3)
    assert len(expected) > 1
    assert (np.diff(found.scores) <= 0).all()
    rows = sorted(zip(found.scores, found.categories, found.rles, strict=True))
    for (score, *mine), (value, *theirs) in zip(rows, sorted(expected), strict=True):
        assert score == pytest.approx(value, rel=1e-12)
        assert mine == theirs
    for box, (x, y), rle in zip(found.boxes, found.peaks, found.rles, strict=True):
        mask = decode_rle(rle, *size)
        assert box.tolist() == tight_box(mask).tolist()
        category = labels[y, x]
        assert whole[category, y, x] == whole[category][mask].max()


def test_a_map_without_things_has_no_component():
    found = components(np.ones((2, 3, 4)), [1], (3, 4), 1)  # background is the first of equals
    assert (found.rles, found.boxes.shape, found.peaks.shape) == ([], (0, 4), (0, 2))
    assert components(np.ones((2, 3, 4)), [], (3, 4), 1).rles == []


def test_components_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="cells"):
        components(np.ones((2, 3, 4)), [1], (3, 4), 2)
    with pytest.raises(ValueError, match="things"):
        components(np.ones((2, 3, 4)), [2], (3, 4), 1)
