"""The loss of the localisation network: which cells count, how much, and what of each."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pipeline.box_targets import Standard, cell_centres, normalise_targets, raw_targets
from pipeline.losses import bootstrapped_box_loss
from pipeline.params_training import (
    AllPixels,
    EqualWeights,
    IouMinKept,
    LogSizeTargets,
    ScaledTargets,
    SizeWeights,
    StandardisedTargets,
    TopK,
)

OFF = AllPixels("off")
EQUAL = EqualWeights("off")
SIZE = SizeWeights("size", 1.0, 0.1, 10.0)
PLAIN = StandardisedTargets("standardise")
LOG = LogSizeTargets("log_wh")
UNIT = Standard(torch.zeros(4), torch.ones(4))
STANDARDS = {
    PLAIN: Standard(torch.tensor([1.5, -2.0, 40.0, 50.0]), torch.tensor([20.0, 15.0, 30.0, 25.0])),
    ScaledTargets("scale", 50.0): Standard(torch.zeros(4), torch.full((4,), 50.0)),
    LOG: Standard(torch.tensor([1.5, -2.0, 3.0, 3.5]), torch.tensor([20.0, 15.0, 0.8, 0.9])),
}
RULES = {
    "off": OFF,
    "topk": TopK("topk", 5, "crop"),
    "topk of the batch": TopK("topk", 13, "device_batch"),
    "iou": IouMinKept("iou_minkept", 0.4, 4, "crop"),
    "iou of the batch": IouMinKept("iou_minkept", 0.4, 40, "device_batch"),
}
loss_of = partial(
    bootstrapped_box_loss,
    grid="centres",
    stride=8,
    targets=PLAIN,
    standard=UNIT,
    beta=1.0,
    weighting=EQUAL,
    bootstrapping=OFF,
)


def truth_of(cells: list[tuple[int, list[float]]]) -> torch.Tensor:
    """(1, 5, 1, w): in each cell the number of a thing + 1, and its box."""
    return torch.tensor([[number, *box] for number, box in cells]).T[None, :, None]


def told(truth: torch.Tensor, things: int, *, grid="centres", targets=PLAIN, standard=UNIT):
    """Outputs (B, 4 things, h, w) that say the true box in every channel."""
    xs, ys = cell_centres(*truth.shape[2:], stride=8, grid=grid)
    boxes = torch.where(truth[:, :1] > 0, truth[:, 1:], torch.tensor([0, 0, 1, 1.0])[:, None, None])
    return normalise_targets(raw_targets(boxes, xs, ys, targets), standard).repeat(1, things, 1, 1)


def drawn(seed: int, *, things: int = 3, targets=PLAIN, standard=UNIT, grid="centres"):
    """Outputs (3, 4 things, 5, 6), some near the truth and some far, and the truth.

    The last crop has two cells of an object, fewer than most rules keep.
    """
    generator = torch.Generator().manual_seed(seed)
    number = torch.randint(0, things + 1, (3, 1, 5, 6), generator=generator).float()
    number[2].flatten()[2:] = 0
    corners = torch.rand(3, 2, 5, 6, generator=generator) * 60 - 20
    sides = torch.rand(3, 2, 5, 6, generator=generator) * 60 + 3
    truth = torch.cat([number, corners, corners + sides], dim=1)
    near = told(truth, things, grid=grid, targets=targets, standard=standard)
    noise = torch.randn(near.shape, generator=generator)
    return near + noise * torch.rand(3, 1, 5, 6, generator=generator) ** 2, truth


# --- worked by hand ------------------------------------------------------------------------------
BOX = [0.0, 0.0, 8.0, 8.0]  # of the first cell, whose centre is (4, 4): targets (0, 0, 8, 8)


def test_four_smooth_distances_are_added():
    outputs = torch.tensor([0.5, -3.0, 8.0, 10.0])[None, :, None, None]
    loss = loss_of(outputs, truth_of([(1, BOX)]))
    assert loss.item() == pytest.approx(0.125 + 2.5 + 0 + 1.5)
    assert loss_of(outputs, truth_of([(1, BOX)]), beta=4.0).item() == pytest.approx(
        (0.25 + 9 + 0 + 4) / 8
    )


def test_only_the_channels_of_the_cells_own_thing_are_compared():
    outputs = torch.full((1, 12, 1, 2), 1000.0)
    outputs[0, 4:8, 0, 0] = torch.tensor([0, 0, 8, 8])
    outputs[0, 8:12, 0, 1] = torch.tensor([-8, 2, 8, 8])  # 2 lower than true
    loss = loss_of(outputs, truth_of([(2, BOX), (3, BOX)]))
    assert loss.item() == pytest.approx(1.5 / 2)


def test_targets_are_compared_in_deviations():
    standard = Standard(torch.tensor([0, 0, 6, 4.0]), torch.tensor([1, 1, 2, 4.0]))
    outputs = torch.tensor([0, 0, 1.0, 3.0])[None, :, None, None]  # a height of 8, a width of 16
    assert loss_of(outputs, truth_of([(1, BOX)]), standard=standard).item() == pytest.approx(1.5)


def test_a_pixel_counts_by_the_size_of_its_object():
    small, large = [0, 0, 10, 10], [0, 0, 10, 40]  # 1 / 100 and 1 / 400: with mean 1, 1.6 and 0.4
    truth = truth_of([(1, small), (1, large)])
    outputs = told(truth, 1)
    outputs[0, 0, 0] += torch.tensor([1.5, 2.5])  # losses 1 and 2
    assert loss_of(outputs, truth).item() == pytest.approx(3 / 2)
    weighted = loss_of(outputs, truth, weighting=SIZE)
    assert weighted.item() == pytest.approx((1.6 * 1 + 0.4 * 2) / 2)
    bounded = loss_of(outputs, truth, weighting=SizeWeights("size", 1.0, 0.5, 1.2))
    assert bounded.item() == pytest.approx((1.2 * 1 + 0.5 * 2) / 1.7)
    root = loss_of(outputs, truth, weighting=SizeWeights("size", 0.5, 0.0, 9.0))  # 4 / 3 and 2 / 3
    assert root.item() == pytest.approx((4 / 3 * 1 + 2 / 3 * 2) / 2)


def test_weights_are_brought_to_mean_one_over_the_kept_cells_only():
    truth = truth_of([(1, [0, 0, 10, 10]), (1, [0, 0, 10, 40]), (1, [0, 0, 1, 1])])
    outputs = told(truth, 1)
    outputs[0, 0, 0, :2] += torch.tensor([3.5, 2.5])
    two = TopK("topk", 2, "crop")  # the third is right and so the easiest
    weighted = loss_of(outputs, truth, weighting=SIZE, bootstrapping=two)
    assert weighted.item() == pytest.approx((1.6 * 3 + 0.4 * 2) / 2)


def test_the_hardest_are_those_whose_boxes_overlap_least():
    truth = truth_of([(1, [-4, 0, 12, 8]), (1, [4, 0, 20, 8]), (1, [-10, -46, 50, 54])])
    outputs = told(truth, 1)
    outputs[0, 0, 0] += torch.tensor(
        [8.0, 4.0, 12.0]
    )  # overlaps 1/3, 3/5, 2/3; losses 7.5 3.5 11.5
    for rule, kept in [
        (TopK("topk", 1, "crop"), [7.5]),
        (TopK("topk", 2, "crop"), [7.5, 3.5]),
        (IouMinKept("iou_minkept", 0.5, 0, "crop"), [7.5]),
        (IouMinKept("iou_minkept", 0.5, 2, "crop"), [7.5, 3.5]),
        (IouMinKept("iou_minkept", 0.65, 1, "crop"), [7.5, 3.5]),
        (IouMinKept("iou_minkept", 0.1, 0, "crop"), []),
    ]:
        mean = sum(kept) / max(len(kept), 1)
        assert loss_of(outputs, truth, bootstrapping=rule).item() == pytest.approx(mean)


def test_an_overlap_of_just_the_threshold_is_hard():
    outputs = told(truth_of([(1, BOX)]), 1)
    outputs[0, 2] -= 4  # half as high: IoU 1 / 2
    for iou, loss in [(0.5, 3.5), (0.49, 0)]:
        rule = IouMinKept("iou_minkept", iou, 0, "crop")
        assert loss_of(outputs, truth_of([(1, BOX)]), bootstrapping=rule).item() == loss


def test_scope_says_among_which_cells_the_hardest_are_sought():
    hard = truth_of([(1, BOX), (1, [8, 0, 16, 8])])
    truth = torch.cat([hard, hard])
    outputs = told(truth, 1)
    outputs[:, 0, 0] += torch.tensor([[5.5, 4.5], [2.5, 1.5]])  # losses 5 4 and 2 1
    per_crop = loss_of(outputs, truth, bootstrapping=TopK("topk", 1, "crop"))
    assert per_crop.item() == pytest.approx((5 + 2) / 2)
    whole = loss_of(outputs, truth, bootstrapping=TopK("topk", 2, "device_batch"))
    assert whole.item() == pytest.approx((5 + 4) / 2)


def test_among_equal_cells_exactly_keep_are_kept_the_first_ones():
    truth = truth_of([(1, [500, 500, 510, 510])]).repeat(2, 1, 20, 30)
    outputs = torch.zeros(2, 4, 20, 30, requires_grad=True)  # far off: all overlaps are 0
    loss_of(outputs, truth, bootstrapping=TopK("topk", 250, "crop")).backward()
    kept = (outputs.grad != 0).any(1).flatten(1)
    assert kept.sum(1).tolist() == [250, 250]
    assert kept[:, :250].all()


# --- against a loop ------------------------------------------------------------------------------
def smooth(d: float, beta: float) -> float:
    return d * d / (2 * beta) if abs(d) < beta else abs(d) - beta / 2


def overlap(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def cell_by_cell(outputs, truth, *, grid, targets, standard, beta, weighting, bootstrapping):
    """Loss and gradient (B, 4 T, h, w) in float64, from lists of plain numbers."""
    mean, deviation = (part.tolist() for part in standard)
    first = 4 if grid == "centres" else 0.5
    cells = []  # place, distances of the four, overlap, area
    for b, i, j in np.ndindex(len(truth), *truth.shape[2:]):
        number, x0, y0, x1, y1 = truth[b, :, i, j].tolist()
        if number == 0:
            continue
        x, y, channel = 8 * j + first, 8 * i + first, 4 * (int(number) - 1)
        sides = [y1 - y0, x1 - x0]
        if targets == LOG:
            sides = [math.log(v) for v in sides]
        raw = [(x0 + x1) / 2 - x, (y0 + y1) / 2 - y, *sides]
        said = outputs[b, channel : channel + 4, i, j].tolist()
        distances = [s - (r - m) / d for s, r, m, d in zip(said, raw, mean, deviation, strict=True)]
        dx, dy, high, wide = (s * d + m for s, m, d in zip(said, mean, deviation, strict=True))
        if targets == LOG:
            high, wide = math.exp(high), math.exp(wide)
        high, wide = max(high, 1), max(wide, 1)
        box = [x + dx - wide / 2, y + dy - high / 2, x + dx + wide / 2, y + dy + high / 2]
        place = (b, channel, i, j)
        cells.append((place, distances, overlap(box, [x0, y0, x1, y1]), (y1 - y0) * (x1 - x0)))
    kept = chosen(cells, len(truth), bootstrapping)
    weights = [1.0] * len(kept)
    if isinstance(weighting, SizeWeights) and kept:
        weights = [area**-weighting.alpha for *_, area in kept]
        average = sum(weights) / len(weights)
        weights = [min(max(w / average, weighting.lowest), weighting.highest) for w in weights]
    total = sum(weights) if kept else 1.0
    gradient = np.zeros(outputs.shape)
    loss = 0.0
    for weight, ((b, channel, i, j), distances, *_) in zip(weights, kept, strict=True):
        loss += weight * sum(smooth(d, beta) for d in distances) / total
        slopes = [min(max(d / beta, -1), 1) for d in distances]
        gradient[b, channel : channel + 4, i, j] = [weight * s / total for s in slopes]
    return loss, gradient


def chosen(cells: list, crops: int, rule) -> list:
    """The cells that a rule keeps."""
    if rule == OFF:
        return cells
    kept = []
    for group in range(crops) if rule.scope == "crop" else [None]:
        own = [cell for cell in cells if group in (None, cell[0][0])]
        own.sort(key=lambda cell: cell[2])  # stable
        limit = rule.iou if isinstance(rule, IouMinKept) else -1
        kept += [cell for rank, cell in enumerate(own) if rank < rule.keep or cell[2] <= limit]
    return kept


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weighting", [EQUAL, SIZE, SizeWeights("size", 0.5, 0.9, 1.1)])
@pytest.mark.parametrize("targets", STANDARDS, ids=lambda t: t.kind)
@pytest.mark.parametrize("grid", ["centres", "corners"])
def test_equals_a_loop_over_cells_and_so_does_the_gradient(grid, targets, weighting, rule):
    options = {
        "grid": grid,
        "targets": targets,
        "standard": STANDARDS[targets],
        "beta": 0.4,
        "weighting": weighting,
        "bootstrapping": RULES[rule],
    }
    outputs, truth = drawn(0, targets=targets, standard=STANDARDS[targets], grid=grid)
    outputs.requires_grad_()
    loss = loss_of(outputs, truth, **options)
    loss.backward()
    expected, gradient = cell_by_cell(outputs, truth, **options)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert outputs.grad.numpy() == pytest.approx(gradient, rel=1e-3, abs=1e-6)


def test_the_rules_keep_different_cells():
    losses = {
        name: loss_of(
            *drawn(0, standard=STANDARDS[PLAIN]), standard=STANDARDS[PLAIN], bootstrapping=r
        )
        for name, r in RULES.items()
    }
    assert len({round(loss.item(), 5) for loss in losses.values()}) == len(RULES)


# --- laws ----------------------------------------------------------------------------------------
def test_the_gradient_is_in_the_own_channels_of_kept_cells_only():
    outputs, truth = drawn(3)
    outputs.requires_grad_()
    loss_of(outputs, truth, bootstrapping=TopK("topk", 4, "crop")).backward()
    by_thing = outputs.grad.unflatten(1, (3, 4)).abs().sum(2)  # (B, T, h, w)
    number = truth[:, 0].long()
    own = torch.stack([number == t + 1 for t in range(3)], dim=1)
    assert not by_thing[~own].any()
    assert (by_thing > 0).sum((1, 2, 3)).tolist() == [4, 4, int((number[2] > 0).sum())]


@pytest.mark.parametrize("scope", ["crop", "device_batch"])
def test_keeping_as_many_as_there_are_is_keeping_all(scope):
    outputs, truth = drawn(4)
    everything = loss_of(outputs, truth, weighting=SIZE)
    for rule in (
        TopK("topk", 1000, scope),
        IouMinKept("iou_minkept", 0.2, 1000, scope),
        IouMinKept("iou_minkept", 1.0, 0, scope),
    ):
        assert torch.equal(loss_of(outputs, truth, weighting=SIZE, bootstrapping=rule), everything)


def test_without_an_exponent_size_weights_are_equal_weights():
    outputs, truth = drawn(5)
    for rule in RULES.values():
        equal, sized = (
            loss_of(outputs, truth, bootstrapping=rule, weighting=weighting)
            for weighting in (EQUAL, replace(SIZE, alpha=0.0))
        )
        assert torch.equal(equal, sized)


@pytest.mark.parametrize("targets", STANDARDS, ids=lambda t: t.kind)
def test_true_boxes_have_no_loss_and_are_easy(targets):
    _, truth = drawn(6)
    options = {"targets": targets, "standard": STANDARDS[targets]}
    right = told(truth, 3, **options)
    assert loss_of(right, truth, **options).item() == pytest.approx(0, abs=1e-10)
    easy = IouMinKept("iou_minkept", 0.99, 0, "crop")
    assert loss_of(right, truth, **options, bootstrapping=easy).item() == 0


def test_the_order_of_things_and_of_crops_does_not_matter():
    outputs, truth = drawn(7)
    rule = TopK("topk", 4, "crop")
    loss = loss_of(outputs, truth, weighting=SIZE, bootstrapping=rule)
    order = torch.tensor([2, 0, 1])
    by_thing = outputs.unflatten(1, (3, 4))[:, order].flatten(1, 2)
    number = truth[:, :1].long()
    moved = torch.where(number > 0, order.argsort()[number - 1] + 1, 0)
    renamed = torch.cat([moved.float(), truth[:, 1:]], dim=1)
    again = loss_of(by_thing, renamed, weighting=SIZE, bootstrapping=rule)
    assert torch.equal(loss, again)
    crops = loss_of(outputs[order], truth[order], weighting=SIZE, bootstrapping=rule)
    assert loss.item() == pytest.approx(crops.item(), rel=1e-5)


@pytest.mark.parametrize("grid, width", [("centres", 48), ("corners", 41)])
@pytest.mark.parametrize("targets", [PLAIN, LOG], ids=lambda t: t.kind)
def test_a_mirrored_scene_has_the_same_loss(targets, grid, width):
    mean, deviation = STANDARDS[targets]
    standard = Standard(mean * torch.tensor([0, 1, 1, 1]), deviation)
    outputs, truth = drawn(8, targets=targets, standard=standard, grid=grid)
    number, x0, y0, x1, y1 = truth.unbind(1)
    mirrored = torch.stack([number, width - x1, y0, width - x0, y1], dim=1).flip(-1)
    sign = torch.tensor([-1, 1, 1, 1]).repeat(3)[:, None, None]
    loss, again = (
        loss_of(
            *scene,
            grid=grid,
            targets=targets,
            standard=standard,
            weighting=SIZE,
            bootstrapping=IouMinKept("iou_minkept", 0.5, 3, "crop"),
        )
        for scene in ((outputs, truth), (sign * outputs.flip(-1), mirrored))
    )
    assert loss.item() == pytest.approx(again.item(), rel=1e-5)


# --- numbers of any kind -------------------------------------------------------------------------
def test_is_computed_in_single_precision_whatever_autocast_says():
    outputs, truth = drawn(9)
    options = {"weighting": SIZE, "bootstrapping": TopK("topk", 5, "crop")}
    half = outputs.bfloat16()
    expected = loss_of(half.float(), truth, **options)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (half, half.float(), half.double()):
            loss = loss_of(given, truth, **options)
            assert loss.dtype == torch.float32
            assert torch.equal(loss, expected)


def test_memory_layout_does_not_matter():
    outputs, truth = drawn(10)
    last = outputs.contiguous(memory_format=torch.channels_last)
    assert loss_of(last, truth).item() == pytest.approx(loss_of(outputs, truth).item(), rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weighting", [EQUAL, SIZE], ids=lambda w: w.kind)
@pytest.mark.parametrize("targets", STANDARDS, ids=lambda t: t.kind)
def test_a_batch_without_objects_has_loss_zero_and_a_graph(targets, weighting, rule):
    outputs = torch.randn(2, 8, 3, 2, requires_grad=True)
    options = {"targets": targets, "weighting": weighting, "bootstrapping": RULES[rule]}
    loss = loss_of(outputs, torch.zeros(2, 5, 3, 2), **options)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(outputs.grad, torch.zeros_like(outputs))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_an_output_that_is_no_number_shows_wherever_it_is(bad, rule):
    truth = truth_of([(1, BOX), (1, BOX), (0, [0] * 4)])
    right = told(truth, 2)
    right[0, 0, 0, 0] += 100  # one hard cell, one easy one, one without an object
    for channel, cell in np.ndindex(8, 3):
        outputs = right.clone()
        outputs[0, channel, 0, cell] = bad
        for targets in (PLAIN, LOG):
            loss = loss_of(outputs, truth, targets=targets, bootstrapping=RULES[rule])
            assert not loss.isfinite()


def test_a_cell_by_itself_is_a_batch():
    truth = truth_of([(1, BOX)])
    outputs = told(truth, 1)
    outputs[0, 2] += 2.5
    for rule in (OFF, TopK("topk", 3, "crop"), IouMinKept("iou_minkept", 0.1, 1, "device_batch")):
        loss = loss_of(outputs, truth, weighting=SIZE, bootstrapping=rule)
        assert loss.item() == pytest.approx(2)


@pytest.mark.parametrize("targets", [PLAIN, LOG], ids=lambda t: t.kind)
def test_a_true_box_that_is_no_box_shows(targets):
    for box in ([0, 0, math.nan, 8], [0, 0, math.inf, 8]):
        outputs = torch.zeros(1, 4, 1, 2)
        truth = truth_of([(1, box), (1, BOX)])
        assert not loss_of(outputs, truth, targets=targets).isfinite()
    empty = truth_of([(1, [3, 3, 3, 3])])
    assert not loss_of(torch.zeros(1, 4, 1, 1), empty, targets=LOG).isfinite()
    assert not loss_of(torch.zeros(1, 4, 1, 1), empty, weighting=SIZE).isfinite()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("targets", STANDARDS, ids=lambda t: t.kind)
def test_nothing_is_read_back_from_the_device(targets, rule):
    """A tensor on "meta" has no values: what needs one fails there."""
    loss = loss_of(
        torch.zeros(2, 8, 4, 3, device="meta", requires_grad=True),
        torch.zeros(2, 5, 4, 3, device="meta"),
        targets=targets,
        standard=Standard(*(part.to("meta") for part in UNIT)),
        weighting=SIZE,
        bootstrapping=RULES[rule],
    )
    loss.backward()
    assert loss.shape == ()


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
def test_a_gpu_does_not_wait_and_computes_the_same(rule):
    outputs, truth = drawn(11)
    options = {"weighting": SIZE, "bootstrapping": RULES[rule]}
    on_gpu, of_gpu = outputs.cuda().requires_grad_(), truth.cuda()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = loss_of(on_gpu, of_gpu, **options)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.testing.assert_close(loss.cpu(), loss_of(outputs, truth, **options))
