"""Maps on the grid of votes: of networks over views, and of the truth."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.box_targets import Standard
from pipeline.categories import CITYSCAPES, things_of
from pipeline.errors import BadInput
from pipeline.inference import for_inference, view_probabilities
from pipeline.instance_maps import box_maps, semantic_maps, true_box_maps, true_semantic_maps
from pipeline.models.fcrn import fcrn
from pipeline.object_maps import ObjectMap
from pipeline.params import Views
from pipeline.params_training import LogSizeTargets, StandardisedTargets
from pipeline.transforms import normalise

CPU = torch.device("cpu")
ONE = Views((1.0,), False, 1)
EVERY = Views((0.75, 1.3), True, 2)
TARGETS = StandardisedTargets("standardise")
STANDARD = Standard(torch.tensor([1.0, -2.0, 20.0, 30.0]), torch.tensor([9.0, 7.0, 5.0, 6.0]))


def image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def network(num_outputs=8):
    """A small network with a classifier that says something."""
    torch.manual_seed(0)
    net = fcrn(depth=14, stride=8, kernel=3, dilation=2, num_categories=num_outputs)
    nn.init.normal_(net.classifier.weight, std=0.05)
    return net.eval()


class Drawn(nn.Module):
    """Outputs of 8 channels at every cell, drawn anew for each size of what it is given."""

    stride = 8

    def forward(self, images):
        down, across = images.shape[2] // 8, images.shape[3] // 8
        generator = torch.Generator().manual_seed(down * 1000 + across)
        return torch.randn(len(images), 8, down, across, generator=generator)


class DrawnOnCorners(Drawn):
    """The same with cells on corners."""

    grid = "corners"

    def forward(self, images):
        return super().forward(F.pad(images, (0, 7, 0, 7)))


def probabilities(net, picture, views=ONE, vote_stride=8, precision="fp32"):
    return semantic_maps(
        net, picture, views=views, vote_stride=vote_stride, device=CPU, precision=precision
    )


def boxes(net, picture, views=ONE, vote_stride=8, standard=STANDARD, targets=TARGETS, **more):
    return box_maps(
        net, picture, targets=targets, standard=standard, views=views, vote_stride=vote_stride,
        device=CPU, precision="fp32", **more,
    )  # fmt: skip


# --- beside a double loop ------------------------------------------------------------------------
def looked_up(cells, x, y):
    """Numbers (C, h, w) at a place counted in cells, linear between, the outermost beyond."""
    (_, h, w), out = cells.shape, 0.0
    x, y = min(max(x, 0), w - 1), min(max(y, 0), h - 1)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            if weight:
                out = out + weight * cells[:, row, column].astype(np.float64)
    return out


def plainly(net, size, views, vote_stride, of_boxes):
    """Cell by cell of the grid and view by view, in float64."""
    height, width = size
    corners = getattr(net, "grid", "centres") == "corners"
    first = 0.5 if corners else 4
    h, w = (math.ceil(side / vote_stride) for side in size)
    total, count = np.zeros((8, h, w)), 0
    for scale in views.scales:
        view = (max(round(height * scale), 1), max(round(width * scale), 1))
        for move in [(n * 8 // views.shifts, m * 8 // views.shifts)
                     for n in range(views.shifts) for m in range(views.shifts)]:  # fmt: skip
            sides = [side + by for side, by in zip(view, move, strict=True)]
            padded = [8 * math.ceil((side - corners) / 8) + corners for side in sides]
            said = net(torch.zeros(1 + views.flip, 3, *padded))
            for number, of_view in enumerate(said):
                cells = of_view if of_boxes else of_view.softmax(0)
                cells = cells.numpy()
                if of_boxes:
                    cells = corners_of(cells, first, move, view, size, mirrored=number == 1)
                for i in range(h):
                    for j in range(w):
                        x = (j + 0.5) * vote_stride * view[1] / width
                        y = (i + 0.5) * vote_stride * view[0] / height
                        x = view[1] - x if number == 1 else x
                        at = (x + move[1] - first) / 8, (y + move[0] - first) / 8
                        total[:, i, j] += looked_up(cells, *at)
                count += 1
    return (total / count).reshape(2, 4, h, w) if of_boxes else total / count


def corners_of(cells, first, move, view, size, mirrored):
    """Outputs (8, h, w) to corners (8, h, w) in pixels of the image."""
    out = np.zeros(cells.shape)
    for thing in range(2):
        for i in range(cells.shape[1]):
            for j in range(cells.shape[2]):
                mean, deviation = (part.numpy().astype(np.float64) for part in STANDARD)
                dx, dy, h, w = cells[4 * thing : 4 * thing + 4, i, j] * deviation + mean
                cx, cy = first + 8 * j - move[1] + dx, first + 8 * i - move[0] + dy
                h, w = max(h, 1), max(w, 1)
                cx = view[1] - cx if mirrored else cx
                box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
                box[[0, 2]] *= size[1] / view[1]
                box[[1, 3]] *= size[0] / view[0]
                out[4 * thing : 4 * thing + 4, i, j] = box
    return out


@pytest.mark.parametrize("kind", [Drawn, DrawnOnCorners])
@pytest.mark.parametrize(
    ("size", "views", "vote_stride"),
    [
        ((24, 40), ONE, 8),
        ((21, 35), ONE, 4),
        ((21, 35), Views((1.0,), True, 1), 8),
        ((9, 30), Views((1.0,), False, 3), 5),
        ((21, 18), EVERY, 8),
        ((13, 11), EVERY, 3),
        ((1, 1), EVERY, 1),
        ((33, 2), Views((0.3, 2.1), True, 1), 16),
    ],
)
def test_maps_are_those_of_a_loop_over_views_and_cells(kind, size, views, vote_stride):
    net, picture = kind().eval(), image(*size)
    given = probabilities(net, picture, views, vote_stride)
    assert given.dtype == np.float32
    expected = plainly(net, size, views, vote_stride, of_boxes=False)
    np.testing.assert_allclose(given, expected, atol=2e-6)
    given = boxes(net, picture, views, vote_stride)
    assert given.dtype == np.float32
    expected = plainly(net, size, views, vote_stride, of_boxes=True)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("size", [(64, 80), (61, 75)])
@pytest.mark.parametrize("vote_stride", [1, 2, 4])
def test_a_finer_grid_lies_between_the_cells_as_torch_interpolates(size, vote_stride):
    net, picture = network(), image(*size)
    pixels = normalise(torch.from_numpy(picture[None]))
    pixels = F.pad(pixels, (0, -size[1] % 8, 0, -size[0] % 8))
    with torch.no_grad():
        cells = net(pixels).softmax(1)
    expected = F.interpolate(cells, scale_factor=8 / vote_stride, mode="bilinear")[0].numpy()
    given = probabilities(net, picture, ONE, vote_stride)
    h, w = given.shape[1:]
    assert (h, w) == (math.ceil(size[0] / vote_stride), math.ceil(size[1] / vote_stride))
    np.testing.assert_allclose(given, expected[:, :h, :w], atol=1e-6)


@pytest.mark.parametrize("size", [(64, 80), (61, 75), (3, 5)])
def test_of_one_view_at_its_stride_a_network_s_own_cells_are_taken(size):
    net, picture = network(), image(*size)
    pixels = normalise(torch.from_numpy(picture[None]))
    pixels = F.pad(pixels, (0, -size[1] % 8, 0, -size[0] % 8))
    with torch.inference_mode():
        said = net(pixels.contiguous(memory_format=torch.channels_last))
    np.testing.assert_array_equal(probabilities(net, picture), said.softmax(1)[0].numpy())


def test_at_every_pixel_probabilities_are_those_of_the_label_map():
    net, picture = network(), image(61, 75)
    pixels = normalise(torch.from_numpy(picture[None]))
    expected = view_probabilities(net, pixels, precision="fp32")[0].numpy()
    np.testing.assert_allclose(probabilities(net, picture, ONE, 1), expected, atol=1e-6)


# --- laws ----------------------------------------------------------------------------------------
class Knowing(nn.Module):
    """Says of every cell, of both things, the same box of its view; the second view is mirrored.

    Only of views that need no padding, and are not moved.
    """

    stride = 8
    box = (0.125, 0.5, 0.75, 1.25)  # x0, y0, x1, y1 in sides of the view

    def forward(self, images):
        height, width = images.shape[2:]
        xs, ys = torch.arange(width // 8) * 8 + 4, torch.arange(height // 8) * 8 + 4
        said = []
        for number in range(len(images)):
            x0, y0, x1, y1 = self.box
            x0, x1 = (1 - x1, 1 - x0) if number == 1 else (x0, x1)
            dx = ((x0 + x1) / 2 * width - xs).expand(height // 8, -1)
            dy = ((y0 + y1) / 2 * height - ys)[:, None].expand(-1, width // 8)
            sides = [
                torch.full(dx.shape, (y1 - y0) * height),
                torch.full(dx.shape, (x1 - x0) * width),
            ]
            said.append(torch.stack([dx, dy, *sides] * 2))
        outputs = torch.stack(said).unflatten(1, (2, 4))
        mean, deviation = (part[:, None, None] for part in STANDARD)
        return ((outputs - mean) / deviation).flatten(1, 2)


@pytest.mark.parametrize("vote_stride", [1, 4, 8, 16])
@pytest.mark.parametrize("views", [ONE, Views((0.5, 1.0, 1.5), True, 1), Views((2.0,), True, 1)])
def test_a_box_that_every_view_says_is_the_box_in_the_image(views, vote_stride):
    given = boxes(Knowing().eval(), image(32, 48), views, vote_stride)
    expected = np.array([0.125 * 48, 0.5 * 32, 0.75 * 48, 1.25 * 32])
    np.testing.assert_allclose(
        given, np.broadcast_to(expected[:, None, None], given.shape), rtol=1e-5
    )


def test_flipping_the_image_flips_the_maps():
    net, picture, views = network(), image(61, 80), Views((1.0, 1.5), True, 1)
    straight, flipped = (probabilities(net, p, views, 4) for p in (picture, picture[:, ::-1]))
    np.testing.assert_allclose(flipped[..., ::-1], straight, atol=1e-5)
    assert abs(straight - probabilities(net, picture, ONE, 4)).max() > 1e-3
    straight, flipped = (boxes(net, p, views, 4) for p in (picture, picture[:, ::-1]))
    mirrored = flipped[..., ::-1][:, [2, 1, 0, 3]]
    mirrored[:, [0, 2]] = 80 - mirrored[:, [0, 2]]
    np.testing.assert_allclose(mirrored, straight, atol=1e-3)


def test_boxes_of_some_things_are_rows_of_all():
    net, picture = Drawn().eval(), image(21, 18)
    every = boxes(net, picture, EVERY, 3)
    np.testing.assert_array_equal(boxes(net, picture, EVERY, 3, rows=[1]), every[1:])
    assert boxes(net, picture, EVERY, 3, rows=[]).shape == (0, 4, 7, 6)


def test_sizes_may_be_logarithms():
    standard = Standard(torch.tensor([0.0, 0.0, 3.0, 2.0]), torch.ones(4))
    kind = LogSizeTargets("log_wh")
    given = boxes(Drawn().eval(), image(16, 24), standard=standard, targets=kind)[1]
    said = Drawn()(torch.zeros(1, 3, 16, 24))[0, 4:]
    width, height = given[2] - given[0], given[3] - given[1]
    np.testing.assert_allclose(height, (said[2] + 3).clamp(min=0).exp(), rtol=1e-4)
    np.testing.assert_allclose(width, (said[3] + 2).clamp(min=0).exp(), rtol=1e-4)


def test_half_precision_is_of_the_network_alone():
    picture = image(64, 80)
    for ask in (probabilities, boxes):
        single = ask(network(), picture)
        views = dict(views=ONE, vote_stride=8, device=CPU, precision="bf16")
        half = for_inference(network(), precision="bf16")
        if ask is probabilities:
            given = semantic_maps(half, picture, **views)
        else:
            given = box_maps(half, picture, targets=TARGETS, standard=STANDARD, **views)
        assert given.dtype == np.float32
        difference = abs(given - single) / abs(single).max()
        assert 0 < difference.max() < 0.05


# --- no numbers ----------------------------------------------------------------------------------
class Spoilt(Drawn):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        outputs = super().forward(images)
        outputs[-1, 5, 1, 2] = self.value
        return outputs


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("views", [ONE, EVERY])
def test_a_network_that_says_no_number_is_refused(value, views):
    net, picture = Spoilt(value).eval(), image(24, 32)
    with pytest.raises(BadInput, match="the network says NaN: its training has diverged. Train it"):
        boxes(net, picture, views)
    if value == -torch.inf:  # a category that is impossible
        assert np.isfinite(probabilities(net, picture, views)).all()
        return
    with pytest.raises(BadInput, match="the network says NaN"):
        probabilities(net, picture, views)


def test_a_network_in_training_mode_is_refused():
    for ask in (probabilities, boxes):
        with pytest.raises(ValueError, match="eval"):
            ask(network().train(), image(16, 16))


# --- the truth -----------------------------------------------------------------------------------
NUMBERS = np.array([[0, 1, 1, 0], [2, 2, 1, 0], [2, 2, 3, 3]], np.uint16)
BOXES = np.array([[1, 0, 3, 2], [0, 1, 2, 3], [2, 2, 4, 3]], np.float32)
OBJECTS = ObjectMap(NUMBERS, BOXES, np.array([1, 0, 1]))
NAMES = ("background", "ring", "star", "rod")


def test_the_true_category_is_1_and_all_others_are_0():
    maps = true_semantic_maps(OBJECTS, NAMES)
    assert maps.shape == (4, 3, 4) and maps.dtype == np.float32
    np.testing.assert_array_equal(maps.argmax(0), [[0, 2, 2, 0], [1, 1, 2, 0], [1, 1, 2, 2]])
    np.testing.assert_array_equal(maps.sum(0), 1)


def test_true_boxes_are_at_the_pixels_of_their_objects_alone():
    maps = true_box_maps(OBJECTS, [0, 1])
    assert maps.shape == (2, 4, 3, 4) and maps.dtype == np.float32
    for row, y, x in np.ndindex(2, 3, 4):
        number = NUMBERS[y, x]
        if number and OBJECTS.things[number - 1] == row:
            np.testing.assert_array_equal(maps[row, :, y, x], BOXES[number - 1])
        else:
            assert np.isnan(maps[row, :, y, x]).all()
    np.testing.assert_array_equal(true_box_maps(OBJECTS, [1]), maps[1:])


def test_without_background_no_category_is_where_no_object_is():
    person, car = (things_of(CITYSCAPES).index(CITYSCAPES.index(n)) for n in ("person", "car"))
    objects = OBJECTS._replace(things=np.array([car, person, car]))
    maps = true_semantic_maps(objects, CITYSCAPES)
    assert maps.shape == (19, 3, 4)
    np.testing.assert_array_equal(maps.sum(0), NUMBERS > 0)
    np.testing.assert_array_equal(maps[CITYSCAPES.index("person")], NUMBERS == 2)
    np.testing.assert_array_equal(maps[CITYSCAPES.index("car")], np.isin(NUMBERS, [1, 3]))


def test_an_image_without_objects_is_background_and_has_no_boxes():
    nothing = ObjectMap(
        np.zeros((2, 3), np.uint16), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    )
    maps = true_semantic_maps(nothing, NAMES)
    np.testing.assert_array_equal(maps[0], 1)
    assert not maps[1:].any()
    assert true_box_maps(nothing, []).shape == (0, 4, 2, 3)
    assert not true_semantic_maps(nothing, CITYSCAPES).any()


# --- on a GPU ------------------------------------------------------------------------------------
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("vote_stride", [3, 8])
def test_a_gpu_gives_the_maps_of_a_cpu(vote_stride):
    net, picture, gpu = network(), image(61, 75), torch.device("cuda")
    on_cpu = (
        probabilities(net, picture, EVERY, vote_stride),
        boxes(net, picture, EVERY, vote_stride),
    )
    net = net.to(gpu)
    settings = dict(views=EVERY, vote_stride=vote_stride, device=gpu, precision="fp32")
    on_gpu = (
        semantic_maps(net, picture, **settings),
        box_maps(net, picture, targets=TARGETS, standard=STANDARD, **settings),
    )
    for one, other in zip(on_cpu, on_gpu, strict=True):
        np.testing.assert_allclose(other, one, atol=0.02)
