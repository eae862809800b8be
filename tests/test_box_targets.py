"""Targets of the localisation network: from boxes to numbers, back, and their statistics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.box_targets import (
    Standard,
    TargetSums,
    box_iou,
    boxes_of,
    cell_centres,
    normalise_targets,
    raw_targets,
    restore_targets,
    standard_from,
    sums_of_objects,
)
from pipeline.boxes import iou
from pipeline.params_training import LogSizeTargets, ScaledTargets, StandardisedTargets

PLAIN = StandardisedTargets("standardise")
SCALED = ScaledTargets("scale", 100.0)
LOG = LogSizeTargets("log_wh")
KINDS = [PLAIN, SCALED, LOG]
UNIT = Standard(torch.zeros(4), torch.ones(4))
TYPICAL = Standard(torch.tensor([1.5, -2.0, 5.0, 6.0]), torch.tensor([60.0, 40.0, 2.0, 3.0]))


def on_cells(box: list[float], height: int, width: int) -> torch.Tensor:
    """One box for all cells, (4, h, w) float64."""
    return torch.tensor(box, dtype=torch.float64)[:, None, None].expand(4, height, width)


def random_boxes(seed: int, *shape: int) -> torch.Tensor:
    """Boxes (*shape, 4, h, w) of 1 to 400 pixels a side, some outside of any image, float64."""
    rng = np.random.default_rng(seed)
    *many, height, width = shape
    corners = rng.uniform(-200, 300, (*many, 2, height, width))
    sides = np.exp(rng.uniform(0, math.log(400), corners.shape))
    return torch.from_numpy(np.concatenate([corners, corners + sides], axis=-3))


# --- where cells look ----------------------------------------------------------------------------
def test_a_cell_on_centres_looks_from_the_middle_of_its_pixels():
    xs, ys = cell_centres(2, 3, stride=8, grid="centres")
    assert xs.tolist() == [4, 12, 20] and ys.tolist() == [4, 12]
    xs, ys = cell_centres(1, 2, stride=1, grid="centres")
    assert xs.tolist() == [0.5, 1.5] and ys.tolist() == [0.5]
    assert xs.dtype == ys.dtype == torch.float32


def test_a_cell_on_corners_looks_from_the_middle_of_one_pixel():
    xs, ys = cell_centres(2, 3, stride=8, grid="corners")
    assert xs.tolist() == [0.5, 8.5, 16.5] and ys.tolist() == [0.5, 8.5]


# --- targets -------------------------------------------------------------------------------------
def test_targets_are_offsets_to_the_centre_then_height_then_width():
    xs, ys = cell_centres(1, 2, stride=8, grid="centres")  # (4, 4) and (12, 4)
    box = on_cells([10, 20, 14, 50], 1, 2)  # centre (12, 35), 30 high, 4 wide
    assert raw_targets(box, xs, ys, PLAIN)[:, 0].T.tolist() == [[8, 31, 30, 4], [0, 31, 30, 4]]
    logarithms = raw_targets(box, xs, ys, LOG)[:, 0, 0].tolist()
    assert logarithms == pytest.approx([8, 31, math.log(30), math.log(4)])


@pytest.mark.parametrize("targets", KINDS, ids=lambda t: t.kind)
@pytest.mark.parametrize("grid", ["centres", "corners"])
def test_targets_equal_a_loop_over_cells(grid, targets):
    boxes = random_boxes(1, 2, 3, 4, 5)  # (2, 3, 4 corners, 4, 5)
    xs, ys = cell_centres(4, 5, stride=16, grid=grid)
    ours = normalise_targets(raw_targets(boxes, xs, ys, targets), TYPICAL)
    mean, deviation = (part.tolist() for part in TYPICAL)
    for first, second, i, j in np.ndindex(2, 3, 4, 5):
        x0, y0, x1, y1 = boxes[first, second, :, i, j].tolist()
        x, y = (16 * j + 8, 16 * i + 8) if grid == "centres" else (16 * j + 0.5, 16 * i + 0.5)
        raw = [(x0 + x1) / 2 - x, (y0 + y1) / 2 - y, y1 - y0, x1 - x0]
        if targets is LOG:
            raw[2:] = math.log(raw[2]), math.log(raw[3])
        expected = [(r - m) / d for r, m, d in zip(raw, mean, deviation, strict=True)]
        assert ours[first, second, :, i, j].tolist() == pytest.approx(expected, rel=1e-9)


def test_normalised_targets_are_restored():
    raw = random_boxes(2, 4, 5, 6)
    torch.testing.assert_close(restore_targets(normalise_targets(raw, TYPICAL), TYPICAL), raw)


def test_targets_of_a_scaled_scene_are_scaled():
    boxes = random_boxes(3, 3, 4)
    xs, ys = cell_centres(3, 4, stride=8, grid="centres")
    once, thrice = (raw_targets(r * boxes, r * xs, r * ys, PLAIN) for r in (1, 3))
    torch.testing.assert_close(thrice, 3 * once)
    once, thrice = (raw_targets(r * boxes, r * xs, r * ys, LOG) for r in (1, 3))
    torch.testing.assert_close(thrice[:2], 3 * once[:2])
    torch.testing.assert_close(thrice[2:], once[2:] + math.log(3))


@pytest.mark.parametrize("grid, width", [("centres", 40), ("corners", 33)])
@pytest.mark.parametrize("targets", [PLAIN, LOG], ids=lambda t: t.kind)
def test_targets_of_a_mirrored_scene_have_the_other_sign_in_x_only(targets, grid, width):
    boxes = random_boxes(4, 3, 5)
    x0, y0, x1, y1 = boxes
    mirrored = torch.stack([width - x1, y0, width - x0, y1]).flip(-1)
    xs, ys = cell_centres(3, 5, stride=8, grid=grid)
    sign = torch.tensor([-1, 1, 1, 1])[:, None, None]
    torch.testing.assert_close(
        raw_targets(mirrored, xs, ys, targets),
        sign * raw_targets(boxes, xs, ys, targets).flip(-1),
    )


# --- and back ------------------------------------------------------------------------------------
coordinate = st.floats(-2000, 3000)
side = st.floats(1, 4000)


@settings(max_examples=60, deadline=None)
@given(coordinate, coordinate, side, side, st.sampled_from(KINDS), st.sampled_from([1, 8, 32]))
def test_boxes_of_their_own_targets_are_themselves(x, y, width, height, targets, stride):
    boxes = on_cells([x, y, x + width, y + height], 2, 3)
    xs, ys = cell_centres(2, 3, stride=stride, grid="centres")
    normalised = normalise_targets(raw_targets(boxes, xs, ys, targets), TYPICAL)
    torch.testing.assert_close(boxes_of(normalised, xs, ys, targets, TYPICAL), boxes)
    single = boxes_of(normalised.float(), xs, ys, targets, TYPICAL)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), boxes, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("targets", KINDS, ids=lambda t: t.kind)
def test_a_predicted_side_is_at_least_one_pixel(targets):
    xs, ys = cell_centres(1, 1, stride=8, grid="centres")
    outputs = torch.tensor([0, 0, -1e30, -3.0])[:, None, None]
    assert boxes_of(outputs, xs, ys, targets, UNIT)[:, 0, 0].tolist() == [3.5, 3.5, 4.5, 4.5]


def test_a_logarithm_without_bound_gives_a_finite_box():
    xs, ys = cell_centres(1, 1, stride=8, grid="centres")
    for huge in (1e4, 3e38, math.inf):
        outputs = torch.tensor([0, 0, huge, 2.0])[:, None, None]
        box = boxes_of(outputs, xs, ys, LOG, UNIT)
        assert box.isfinite().all()
        assert (box[3] - box[1]).item() == pytest.approx(1e6, rel=1e-4)
        assert box_iou(box, on_cells([0, 0, 8, 8], 1, 1).float(), dim=0).isfinite().all()


@pytest.mark.parametrize("targets", KINDS, ids=lambda t: t.kind)
def test_the_box_of_no_number_is_no_number(targets):
    xs, ys = cell_centres(1, 2, stride=8, grid="centres")
    for channel in range(4):
        outputs = torch.zeros(4, 1, 2)
        outputs[channel, 0, 0] = math.nan
        boxes = boxes_of(outputs, xs, ys, targets, UNIT)
        assert boxes[:, 0, 0].isnan().any() and not boxes[:, 0, 1].isnan().any()


def test_half_precision_widens_before_it_is_added_to_a_place():
    xs, ys = cell_centres(1, 300, stride=8, grid="centres")
    boxes = boxes_of(torch.zeros(4, 1, 300).bfloat16(), xs, ys, PLAIN, UNIT)
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes[0, 0] + 0.5, xs)


@pytest.mark.parametrize("targets", KINDS, ids=lambda t: t.kind)
def test_gradients_of_both_ways_are_those_of_small_differences(targets):
    boxes = random_boxes(5, 2, 3).requires_grad_()
    xs, ys = (axis.double() for axis in cell_centres(2, 3, stride=8, grid="centres"))
    standard = Standard(*(part.double() for part in TYPICAL))

    def forth(boxes):
        return normalise_targets(raw_targets(boxes, xs, ys, targets), standard)

    def back(outputs):
        return boxes_of(outputs, xs, ys, targets, standard)

    assert torch.autograd.gradcheck(forth, boxes)
    assert torch.autograd.gradcheck(back, forth(boxes).detach().requires_grad_())


# --- overlap -------------------------------------------------------------------------------------
def test_overlap_of_boxes_worked_by_hand():
    a = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 2, 2], [1, 1, 1, 1], [0, 0, 4, 4.0]])
    b = torch.tensor([[2, 0, 6, 4], [0, 0, 4, 4], [2, 2, 4, 4], [1, 1, 1, 1], [3, 3, 1, 1.0]])
    expected = [8 / 24, 1, 0, 0, 0]
    assert box_iou(a, b, dim=1).tolist() == pytest.approx(expected)
    assert torch.equal(box_iou(a.T, b.T, dim=0), box_iou(b, a, dim=-1))


def test_overlap_of_boxes_equals_that_of_numpy():
    a, b = (random_boxes(seed, 1, 400)[:, 0] for seed in (6, 7))  # (4, 400)
    ours = box_iou(a, b, dim=0).numpy()
    assert (ours > 0).sum() > 20
    assert ours == pytest.approx(np.diag(iou(a.T.numpy(), b.T.numpy())))


def test_overlap_with_no_number_is_no_number():
    box = torch.tensor([0, 0, 4, 4.0])
    for corner in range(4):
        other = box.clone()
        other[corner] = math.nan
        assert box_iou(box, other, dim=0).isnan() and box_iou(other, box, dim=0).isnan()


# --- statistics ----------------------------------------------------------------------------------
def scene(seed: int, *, fractions: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """An object map (30, 40) of five objects, one of them hidden, and the boxes around them."""
    rng = np.random.default_rng(seed)
    numbers, boxes = np.zeros((30, 40), np.uint16), []
    for number in range(1, 6):
        x0, y0 = rng.integers(0, (30, 20))
        width, height = rng.integers(2, 10, 2)
        shape = rng.random((height, width)) < 0.7
        numbers[y0 : y0 + height, x0 : x0 + width][shape] = number
        moved = rng.uniform(-0.9, 0.9, 4) * fractions  # a border may cut its pixels
        boxes.append(np.array([x0, y0, x0 + width, y0 + height]) + moved)
    numbers[numbers == 3] = 0
    return numbers, np.array(boxes)


def pixel_by_pixel(numbers: np.ndarray, boxes: np.ndarray, targets) -> np.ndarray:
    """Raw targets (n, 4) of all pixels of all objects."""
    rows = []
    for y, x in np.ndindex(numbers.shape):
        if numbers[y, x]:
            x0, y0, x1, y1 = (float(v) for v in boxes[numbers[y, x] - 1])
            sides = [y1 - y0, x1 - x0]
            if targets is LOG:
                sides = [math.log(v) for v in sides]
            rows.append([(x0 + x1) / 2 - (x + 0.5), (y0 + y1) / 2 - (y + 0.5), *sides])
    return np.array(rows)


@pytest.mark.parametrize("targets", [PLAIN, LOG], ids=lambda t: t.kind)
@pytest.mark.parametrize("fractions", [False, True])
def test_sums_equal_a_loop_over_pixels(targets, fractions):
    for seed in range(5):
        numbers, boxes = scene(seed, fractions=fractions)
        each = pixel_by_pixel(numbers, boxes, targets)
        sums = sums_of_objects(numbers, boxes, targets)
        assert sums.pixels == len(each) == np.count_nonzero(numbers)
        assert sums.sums == pytest.approx(each.sum(0), abs=1e-9)
        assert sums.squares == pytest.approx((each**2).sum(0))
        if targets is PLAIN and not fractions:
            assert np.array_equal(sums.sums, each.sum(0))
            assert np.array_equal(sums.squares, (each**2).sum(0))


@pytest.mark.parametrize("targets", [PLAIN, LOG], ids=lambda t: t.kind)
def test_mean_and_deviation_are_those_of_all_pixels_of_all_images(targets):
    scenes = [scene(seed) for seed in range(6)]
    each = np.concatenate([pixel_by_pixel(*one, targets) for one in scenes])
    sums = sum((sums_of_objects(*one, targets) for one in scenes), TargetSums.none())
    standard = standard_from(sums, targets)
    assert standard.mean.dtype == standard.deviation.dtype == torch.float32
    assert standard.mean.numpy() == pytest.approx(each.mean(0), rel=1e-6, abs=1e-6)
    assert standard.deviation.numpy() == pytest.approx(each.std(0), rel=1e-6)
    normalised = (each - standard.mean.numpy()) / standard.deviation.numpy()
    assert normalised.mean(0) == pytest.approx(0, abs=1e-5)
    assert normalised.std(0) == pytest.approx(1, abs=1e-5)


def test_one_rectangle_worked_by_hand():
    numbers = np.zeros((5, 9), np.uint16)
    numbers[1:3, 4:8] = 1  # offsets in x: -1.5 -0.5 0.5 1.5, in y: -0.5 0.5
    sums = sums_of_objects(numbers, np.array([[4, 1, 8, 3]], np.float32), PLAIN)
    assert sums.pixels == 8
    assert sums.sums.tolist() == [0, 0, 8 * 2, 8 * 4]
    assert sums.squares.tolist() == [10, 2, 8 * 4, 8 * 16]


@pytest.mark.parametrize("targets", [PLAIN, LOG], ids=lambda t: t.kind)
def test_what_does_not_vary_has_deviation_one(targets):
    numbers = np.zeros((40, 50), np.uint16)
    numbers[3:40, 5:48] = 1
    one = sums_of_objects(numbers, np.array([[5, 3, 48, 40]]), targets)
    many = sum([one] * 1000, TargetSums.none())  # logarithms of 37 and 43 add up inexactly
    for sums in (one, many):
        standard = standard_from(sums, targets)
        assert standard.deviation[2:].tolist() == [1, 1]
        sides = [math.log(37), math.log(43)] if targets is LOG else [37, 43]
        assert standard.mean[2:].tolist() == pytest.approx(sides)
        assert standard.deviation[:2].tolist() == pytest.approx(
            [math.sqrt((43**2 - 1) / 12), math.sqrt((37**2 - 1) / 12)]
        )


def test_one_pixel_has_deviation_one_in_everything():
    standard = standard_from(
        sums_of_objects(np.ones((1, 1), np.uint16), np.array([[0, 0, 1, 1]]), PLAIN), PLAIN
    )
    assert standard.mean.tolist() == [0, 0, 1, 1]
    assert standard.deviation.tolist() == [1, 1, 1, 1]


def test_scaled_targets_need_no_statistics():
    standard = standard_from(TargetSums.none(), SCALED)
    assert standard.mean.tolist() == [0, 0, 0, 0]
    assert standard.deviation.tolist() == [100, 100, 100, 100]


def test_an_image_without_objects_adds_nothing_and_nothing_is_no_standard():
    sums = sums_of_objects(np.zeros((4, 5), np.uint16), np.zeros((0, 4)), PLAIN)
    assert sums.pixels == 0 and not sums.sums.any() and not sums.squares.any()
    with pytest.raises(ValueError, match="no pixel of an object"):
        standard_from(sums, PLAIN)


def test_a_box_may_lie_beyond_the_image():
    numbers = np.zeros((6, 6), np.uint16)
    numbers[0, 0] = 1
    sums = sums_of_objects(numbers, np.array([[-9, -4, 1, 2]]), PLAIN)
    assert sums.sums.tolist() == [-4.5, -1.5, 6, 10]


@pytest.mark.parametrize(
    "box, told",
    [
        ([0, 0, 3, 2], "outside the box"),  # too small
        ([2, 2, 2, 2], "outside the box"),  # empty
        ([4, 4, 0, 0], "outside the box"),  # corners the wrong way round
        ([50, 50, 60, 60], "outside the box"),
        ([0, 0, math.nan, 4], "no finite number"),
        ([-math.inf, 0, 4, 4], "no finite number"),
    ],
)
def test_a_box_that_does_not_hold_its_object_is_refused(box, told):
    for targets in (PLAIN, LOG):
        with pytest.raises(ValueError, match=told):
            sums_of_objects(np.ones((4, 4), np.uint16), np.array([box], np.float64), targets)


def test_a_pixel_of_an_object_without_a_box_is_refused():
    with pytest.raises(ValueError, match="outside the box"):
        sums_of_objects(np.full((2, 2), 2, np.uint16), np.array([[0, 0, 2, 2]]), PLAIN)
