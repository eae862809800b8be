"""Object masks from votes: beside the whole procedure in plain float64, and laws."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.boxes import iou
from pipeline.categories import SAMPLE
from pipeline.datasets import sample
from pipeline.instances import Instances, find_instances, find_votes
from pipeline.masks import decode_rle, encode_rle
from pipeline.params import AnyOverlap, BoxInstances, RegionIou

IOU, ANY = RegionIou(kind="iou", iou=0.3), AnyOverlap(kind="any_overlap")


def rule(*, top_masks=2, min_probability=0.0, nms_iou=0.5, region_nms=IOU, min_pixels=1):
    return BoxInstances(
        kind="boxes",
        vote_stride=1,
        top_masks=top_masks,
        min_probability=min_probability,
        nms_iou=nms_iou,
        region_nms=region_nms,
        min_pixels=min_pixels,
    )


# --- the procedure in plain float64 ---------------------------------------------------------------
class Found(NamedTuple):
    category: int
    score: float
    support: int
    mask: np.ndarray  # (H, W) bool
    vote: tuple[float, ...]
    cell: tuple[int, int]


def overlap(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def is_vote(box) -> bool:
    return bool(np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1])


def enlarged(maps, stride, size):
    maps = torch.from_numpy(maps.astype(np.float64))
    if stride > 1:
        maps = F.interpolate(maps[None], scale_factor=stride, mode="bilinear")[0]
    return maps[:, : size[0], : size[1]].numpy()


def in_mask(probabilities, category, k, least) -> bool:
    mine = probabilities[category]
    return bool(mine > 0 and mine >= least and (probabilities > mine).sum() < k)


def clusters_of(probabilities, boxes, category, k, stride, rule):
    """[(confidence, votes, box, cell)] of one mask, as greedy suppression finds them."""
    votes = []
    for i, j in np.ndindex(*boxes.shape[1:]):
        box = tuple(boxes[:, i, j].tolist())
        if in_mask(probabilities[:, i, j], category, k, rule.min_probability) and is_vote(box):
            x, y = (j + 0.5) * stride, (i + 0.5) * stride
            off = [
                (at - (low + high) / 2) / (high - low)
                for at, low, high in ((x, box[0], box[2]), (y, box[1], box[3]))
            ]
            votes.append((-probabilities[category, i, j], off[0] ** 2 + off[1] ** 2, i, j, box))
    votes.sort()
    found = []
    while votes:
        best = votes[0]
        cluster = [vote for vote in votes if overlap(vote[4], best[4]) >= rule.nms_iou]
        votes = [vote for vote in votes if vote not in cluster]
        mean = -np.mean([vote[0] for vote in cluster])
        found.append((mean, len(cluster), best[4], (best[2], best[3])))
    return found


def hypotheses_of(probabilities, boxes, category, stride, size, rule):
    pixels, pixel_boxes = enlarged(probabilities, stride, size), enlarged(boxes, stride, size)
    found = []
    for k in range(1, rule.top_masks + 1):
        mine = [
            Found(category, score, support, np.zeros(size, bool), vote, cell)
            for score, support, vote, cell in clusters_of(
                probabilities, boxes, category, k, stride, rule
            )
        ]
        for y, x in np.ndindex(*size):
            box = tuple(pixel_boxes[:, y, x].tolist())
            if in_mask(pixels[:, y, x], category, k, rule.min_probability) and is_vote(box):
                near = [one for one in mine if overlap(box, one.vote) >= rule.nms_iou]
                if near:
                    near[0].mask[y, x] = True
        found += mine
    return [one for one in found if one.mask.sum() >= max(rule.min_pixels, 1)]


def brute_force(probabilities, boxes, things, size, stride, rule):
    probabilities = probabilities.astype(np.float64)
    boxes = boxes.astype(np.float64)
    found = []
    for t, category in enumerate(things):
        kept: list[Found] = []
        hypotheses = hypotheses_of(probabilities, boxes[t], category, stride, size, rule)
        for one in sorted(hypotheses, key=lambda one: (-one.score, -one.support)):
            for other in kept:
                both = (one.mask & other.mask).sum()
                region_iou = both / (one.mask | other.mask).sum()
                if both > 0 and (rule.region_nms == ANY or region_iou >= rule.region_nms.iou):
                    break
            else:
                kept.append(one)
        found += kept
    return sorted(found, key=lambda one: (-one.score, -one.support))


def drawn_maps(seed, size, stride, categories=4):
    """Scores of no order; boxes of three objects, from each cell another guess of one of them."""
    generator = np.random.default_rng(seed)
    cells = tuple(-(-side // stride) for side in size)
    probabilities = generator.dirichlet(np.ones(categories), cells).transpose(2, 0, 1)
    height, width = size
    low = generator.uniform(-0.2, 0.8, (3, 2)) * (width, height)
    objects = np.concatenate(
        [low, low + generator.uniform(0.2, 0.6, (3, 2)) * (width, height)], axis=1
    )
    chosen = objects[generator.integers(3, size=(categories - 1, *cells))]  # (T, h, w, 4)
    jittered = chosen + generator.normal(0, 0.04 * max(size), chosen.shape)
    boxes = jittered.transpose(0, 3, 1, 2)
    return probabilities.astype(np.float32), np.ascontiguousarray(boxes, np.float32)


def check(found: Instances, expected: list[Found], size, stride):
    assert found.categories.tolist() == [one.category for one in expected]
    np.testing.assert_allclose(found.scores, [one.score for one in expected], rtol=1e-12)
    assert found.support.tolist() == [one.support for one in expected]
    for i, one in enumerate(expected):
        mask = decode_rle(found.rles[i], *size)
        assert (mask == one.mask).all()
        rows, columns = np.nonzero(mask)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found.boxes[i].tolist() == tight
        assert found.votes[i].tolist() == list(one.vote)
        peak = [stride * one.cell[1] + stride // 2, stride * one.cell[0] + stride // 2]
        assert found.peaks[i].tolist() == np.minimum(peak, (size[1] - 1, size[0] - 1)).tolist()


SETTINGS = [
    rule(),
    rule(region_nms=ANY),
    rule(top_masks=1, min_pixels=2),
    rule(top_masks=3, min_probability=0.25, region_nms=RegionIou("iou", 0.7)),
    rule(top_masks=9, nms_iou=0.3, min_probability=0.125),
    rule(nms_iou=0.8, region_nms=RegionIou("iou", 1.0)),
]


@pytest.mark.parametrize("setting", range(len(SETTINGS)))
@pytest.mark.parametrize(
    ("size", "stride"),
    [((7, 9), 1), ((19, 1), 1), ((16, 12), 4), ((17, 23), 4), ((1, 5), 4), ((25, 19), 8),
     ((3, 150), 8), ((10, 14), 3)],
)  # fmt: skip
def test_equals_the_procedure_in_plain_float64(setting, size, stride):
    number = 0
    for seed in range(3):
        probabilities, boxes = drawn_maps([seed, setting, *size], size, stride)
        arguments = probabilities, boxes, np.array([1, 2, 3])
        found = find_instances(*arguments, size=size, stride=stride, rule=SETTINGS[setting])
        check(found, brute_force(*arguments, size, stride, SETTINGS[setting]), size, stride)
        number += len(found.rles)
    assert number > 0


@pytest.mark.parametrize("seed", range(8))
def test_equals_it_with_equal_scores_and_equal_boxes(seed):
    size = (8, 9)
    generator = np.random.default_rng(seed)
    probabilities = generator.integers(0, 4, (3, *size)).astype(np.float32) / 4
    corners = np.sort(generator.integers(-2, 12, (2, 2, 2, *size)), axis=1)
    boxes = corners.reshape(2, 4, *size).astype(np.float32)  # some without area
    boxes[:, :, ::2] = boxes[:, :, :1, :1]
    boxes[0, 0, 3, 3] = np.nan
    arguments = probabilities, boxes, np.array([2, 1])
    found = find_instances(*arguments, size=size, stride=1, rule=rule(top_masks=3))
    expected = brute_force(*arguments, size, 1, rule(top_masks=3))
    check(found, expected, size, 1)


# --- laws -----------------------------------------------------------------------------------------
def as_set(found: Instances, flip_width=None):
    """What was found, without order; of a mirrored image as of the image itself."""
    rows = set()
    for i in range(len(found.rles)):
        vote = found.votes[i].tolist()
        box = found.boxes[i].tolist()
        if flip_width is not None:
            vote = [flip_width - vote[2], vote[1], flip_width - vote[0], vote[3]]
            box = [flip_width - box[2], box[1], flip_width - box[0], box[3]]
        rows.add(
            (int(found.categories[i]), float(found.scores[i]), tuple(vote), tuple(box))
            + (found.rles[i],)
        )
    assert len(rows) == len(found.rles)
    return rows


@st.composite
def exact_maps(draw):
    """Maps whose numbers are few bits: sums and mirrored boxes are exact. Scores are all different.

    Returns stride, probabilities (3, h, w), boxes (2, 4, h, w).
    """
    stride = draw(st.sampled_from([1, 4, 8]))
    h, w = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scores = generator.permutation(np.arange(1, 3 * h * w + 1)).reshape(3, h, w) / 2**8
    sides = generator.integers(-8, 4 * stride * max(h, w), (2, 2, 2, h, w)) / 4
    boxes = np.sort(sides, axis=1).reshape(2, 4, h, w)
    mean = boxes.mean(axis=(2, 3), keepdims=True).round()
    boxes = np.where(generator.random((2, 1, h, w)) < 0.6, mean, boxes)
    return stride, scores.astype(np.float32), boxes.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(maps=exact_maps(), top_masks=st.integers(1, 3), region_nms=st.sampled_from([IOU, ANY]))
def test_the_mirrored_image_has_the_mirrored_objects(maps, top_masks, region_nms):
    stride, probabilities, boxes = maps
    size = (probabilities.shape[1] * stride, probabilities.shape[2] * stride)
    width = size[1]
    given_rule = rule(top_masks=top_masks, region_nms=region_nms)
    arguments = {"things": np.array([1, 2]), "size": size, "stride": stride, "rule": given_rule}
    found = find_instances(probabilities, boxes, **arguments)
    mirrored = boxes[:, [2, 1, 0, 3], :, ::-1].copy()
    mirrored[:, [0, 2]] = width - mirrored[:, [0, 2]]
    flipped = find_instances(probabilities[:, :, ::-1], mirrored, **arguments)
    back = [encode_rle(decode_rle(rle, *size)[:, ::-1]) for rle in flipped.rles]
    assert as_set(flipped._replace(rles=back), width) == as_set(found)


@settings(max_examples=40, deadline=None)
@given(maps=exact_maps(), seed=st.integers(0, 99), top_masks=st.integers(1, 3))
def test_categories_in_another_order_give_the_same_objects(maps, seed, top_masks):
    stride, probabilities, boxes = maps
    size = (probabilities.shape[1] * stride, probabilities.shape[2] * stride)
    generator = np.random.default_rng(seed)
    arguments = {"size": size, "stride": stride, "rule": rule(top_masks=top_masks)}
    things = np.array([1, 2])
    found = find_instances(probabilities, boxes, things, **arguments)
    channels, rows = generator.permutation(3), generator.permutation(2)
    place = np.argsort(channels)  # the category c is at place[c] now
    moved = find_instances(probabilities[channels], boxes[rows], place[things[rows]], **arguments)
    assert as_set(moved._replace(categories=channels[moved.categories])) == as_set(found)


@settings(max_examples=40, deadline=None)
@given(maps=exact_maps(), top_masks=st.integers(1, 3))
def test_at_stride_1_masks_are_the_clusters(maps, top_masks):
    _, probabilities, boxes = maps
    size = probabilities.shape[1:]
    given_rule = rule(top_masks=top_masks, region_nms=RegionIou("iou", 1.0))
    found = find_instances(
        probabilities, boxes[:1], np.array([1]), size=size, stride=1, rule=given_rule
    )
    masks = {
        encode_rle(mask)
        for votes in find_votes(probabilities, boxes[0], 1, stride=1, rule=given_rule)
        for mask in cluster_masks(votes, size)
    }
    assert set(found.rles) == masks


def cluster_masks(votes, size):
    for number in range(len(votes.kept)):
        mask = np.zeros(size, bool)
        mask[tuple(votes.cells[votes.cluster == number].T)] = True
        yield mask


def true_maps(index):
    """A drawn image's truth as if two perfect networks had said it, and its objects."""
    truth = sample.draw("val", index)
    labels = np.append(0, truth.categories)[truth.visible]
    probabilities = (labels == np.arange(len(SAMPLE))[:, None, None]).astype(np.float32)
    boxes = np.append([[0, 0, 0, 0]], truth.boxes, axis=0)[truth.visible]  # (H, W, 4)
    things = np.arange(1, len(SAMPLE))
    maps = np.tile(boxes.transpose(2, 0, 1), (len(things), 1, 1, 1)).astype(np.float32)
    return truth, probabilities, maps, things


def overlapping(truth, least) -> bool:
    """Whether two boxes of a category overlap so much that they are one object to this method."""
    same = truth.categories[:, None] == truth.categories
    return bool((iou(truth.boxes, truth.boxes) * (same & ~np.eye(len(same), dtype=bool))
                 >= least).any())  # fmt: skip


def true_objects(truth):
    return {
        (int(category), encode_rle(truth.visible == number + 1))
        for number, category in enumerate(truth.categories)
    }


@pytest.mark.parametrize("region_nms", [IOU, ANY])
def test_true_scores_and_true_boxes_give_the_true_objects(region_nms):
    seen = 0
    for index in range(12):
        truth, probabilities, boxes, things = true_maps(index)
        found = find_instances(
            probabilities, boxes, things, size=truth.visible.shape, stride=1,
            rule=rule(region_nms=region_nms),
        )  # fmt: skip
        objects = set(zip(found.categories.tolist(), found.rles, strict=True))
        if overlapping(truth, 0.5):
            assert objects != true_objects(truth)
        else:
            seen += 1
            assert objects == true_objects(truth)
            assert (found.scores == 1).all()
            assert {tuple(box) for box in found.boxes.tolist()} == set(map(tuple, truth.boxes))
            assert (found.votes == found.boxes).all()
    assert seen >= 6


@settings(max_examples=25, deadline=None)
@given(index=st.integers(0, 30), seed=st.integers(0, 2**32))
def test_equal_scores_may_be_split_in_any_way(index, seed):
    truth, probabilities, boxes, things = true_maps(index)
    assume(not overlapping(truth, 0.5))
    order = np.random.default_rng(seed).permutation(probabilities[0].size)
    split = probabilities * (1 - order.reshape(probabilities.shape[1:]) * 2.0**-24)
    found = find_instances(
        split.astype(np.float32), boxes, things, size=truth.visible.shape, stride=1, rule=rule()
    )
    assert set(zip(found.categories.tolist(), found.rles, strict=True)) == true_objects(truth)


def test_equal_boxes_vote_for_one_object_whatever_the_other_scores():
    probabilities, _ = drawn_maps(0, (9, 8), 1, categories=2)
    boxes = np.tile(np.array([1, 1, 7, 7], np.float32)[:, None, None], (1, 1, 9, 8))
    found = find_instances(
        probabilities, boxes, np.array([1]), size=(9, 8), stride=1, rule=rule(top_masks=1)
    )
    mine = probabilities[1] > probabilities[0]
    assert [decode_rle(rle, 9, 8).tolist() for rle in found.rles] == [mine.tolist()]
    assert found.scores[0] == pytest.approx(probabilities[1][mine].astype(np.float64).mean())
