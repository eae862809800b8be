"""Testing: padding, enlarging, views."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import BadInput
from pipeline.inference import (
    for_inference,
    predict_label_map,
    predict_probabilities,
    view_probabilities,
)
from pipeline.models.fast import TapSum
from pipeline.models.fcrn import Fcrn, fcrn
from pipeline.params import Views
from pipeline.transforms import MEAN, STD

CPU = torch.device("cpu")


def network(stride: int = 8) -> Fcrn:
    """A small network with a classifier that says something."""
    torch.manual_seed(0)
    net = fcrn(depth=14, stride=stride, kernel=3, dilation=2, num_categories=4)
    nn.init.normal_(net.classifier.weight, std=0.05)
    net.train()
    net(torch.randn(4, 3, 64, 64))  # gives the BatchNorms statistics of their own
    return net.eval()


class Brightness(nn.Module):
    """Two categories; the log-odds of the second are the red at the cells' centres."""

    stride = 4

    def forward(self, images):
        red = F.avg_pool2d(images[:, :1], 4)
        return torch.cat([torch.zeros_like(red), red], dim=1)


def normalised_red(picture: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(picture[..., 0].copy()).float() / 255 - MEAN[0]) / STD[0]


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def predict(net, picture, scales=(1.0,), flip=False, shifts=1, precision="fp32"):
    views = Views(scales, flip, shifts)
    return predict_probabilities(net, picture, views=views, device=CPU, precision=precision)


@pytest.mark.parametrize("size", [(64, 80), (61, 75), (5, 9)])
@pytest.mark.parametrize("flip", [False, True])
def test_each_pixel_of_an_image_of_any_size_has_a_distribution(size, flip):
    probabilities = predict(network(), image(*size), (0.75, 1.0, 1.25), flip)
    assert probabilities.shape == (4, *size)
    assert probabilities.dtype == torch.float32
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(0), torch.ones(size))


@pytest.mark.parametrize("width", [80, 75])
def test_flipping_the_image_flips_the_result(width):
    picture = image(61, width)
    net = network()
    straight = predict(net, picture, (1.0, 1.5), True)
    flipped = predict(net, picture[:, ::-1], (1.0, 1.5), True)
    torch.testing.assert_close(flipped.flip(2), straight)
    alone = predict(net, picture)
    assert (alone - straight).abs().max() > 1e-3


def test_probabilities_not_logits_are_enlarged_with_half_pixel_centres():
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, 4:] = 255
    odds = torch.tensor([(v - MEAN[0]) / STD[0] for v in (0.0, 1.0)])
    left, right = torch.sigmoid(odds).tolist()
    part = [0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1]  # of the way between the centres, 2 and 6
    expected = torch.tensor([left + (right - left) * t for t in part])
    torch.testing.assert_close(predict(Brightness().eval(), picture)[1], expected.expand(4, 8))


class CornerBrightness(nn.Module):
    """As Brightness, but a cell is the red of the pixel on its corner."""

    stride, grid = 4, "corners"

    def forward(self, images):
        red = images[:, :1, ::4, ::4]
        return torch.cat([torch.zeros_like(red), red], dim=1)


def test_on_corners_probabilities_are_enlarged_from_pixel_to_pixel():
    picture = np.zeros((5, 9, 3), np.uint8)
    picture[:, 4], picture[:, 8] = 255, 124
    picture[:, [1, 2, 3, 5, 6, 7]] = 77  # between the cells, which are at 0, 4 and 8
    at = [0, 255, 124]
    first, second, third = (float(normalised_red(np.full((1, 1, 1), v))) for v in at)
    a, b, c = torch.sigmoid(torch.tensor([first, second, third])).tolist()
    expected = torch.tensor(
        [a, (3 * a + b) / 4, (a + b) / 2, (a + 3 * b) / 4]
        + [b, (3 * b + c) / 4, (b + c) / 2, (b + 3 * c) / 4, c]
    )
    torch.testing.assert_close(
        predict(CornerBrightness().eval(), picture)[1], expected.expand(5, 9)
    )


@pytest.mark.parametrize(
    ("size", "given"), [((6, 9), (9, 9)), ((1, 1), (1, 1)), ((8, 10), (9, 13))]
)
def test_on_corners_sizes_are_brought_to_a_multiple_of_the_stride_and_1(size, given):
    sizes, padding = [], []

    class Recorder(CornerBrightness):
        def forward(self, images):
            sizes.append(tuple(images.shape[2:]))
            padding.append(images[:, :, size[0] :].abs().sum() + images[..., size[1] :].abs().sum())
            return super().forward(images)

    assert predict(Recorder().eval(), image(*size)).shape == (2, *size)
    assert sizes == [given]
    assert padding == [0]


def test_on_corners_an_image_has_its_own_probabilities_at_the_cells():
    picture = image(17, 21)
    probabilities = predict(CornerBrightness().eval(), picture)[1]
    expected = torch.sigmoid(normalised_red(picture))
    torch.testing.assert_close(probabilities[::4, ::4], expected[::4, ::4])


def test_on_corners_shifted_views_look_between_the_score_cells():
    """Four shifts of stride 4: every pixel is a cell of one of them."""
    picture = image(13, 17)
    total = torch.zeros(13, 17)
    for down in range(4):
        for right in range(4):
            padded = F.pad(normalised_red(picture), (right, (-17 - right + 1) % 4, down, 0))
            padded = F.pad(padded, (0, 0, 0, (1 - padded.shape[0]) % 4))
            cells = torch.sigmoid(padded[::4, ::4])[None, None]
            pixels = F.interpolate(
                cells, size=tuple(padded.shape), mode="bilinear", align_corners=True
            )
            total += pixels[0, 0, down : down + 13, right : right + 17] / 16
    given = predict(CornerBrightness().eval(), picture, shifts=4)[1]
    torch.testing.assert_close(given, total)


def test_on_corners_a_part_of_an_image_has_the_cells_of_the_whole():
    """As tiles need it: the part starts on a cell, and ends on one."""
    picture, net = image(13, 41), CornerBrightness().eval()
    part = predict(net, picture[4:13, 8:25])
    torch.testing.assert_close(part, predict(net, picture)[:, 4:13, 8:25])


def test_on_corners_flipping_the_image_flips_the_result():
    picture, net = image(13, 17), CornerBrightness().eval()
    torch.testing.assert_close(predict(net, picture[:, ::-1]).flip(2), predict(net, picture))


def test_padding_is_of_the_mean_colour_and_cut_off():
    picture = image(6, 7)
    sizes, corners = [], []

    class Recorder(Brightness):
        def forward(self, images):
            sizes.append(tuple(images.shape[2:]))
            corners.append(images[:, :, 6:, :].abs().sum() + images[:, :, :, 7:].abs().sum())
            return super().forward(images)

    assert predict(Recorder().eval(), picture).shape == (2, 6, 7)
    assert sizes == [(8, 8)]
    assert corners == [0]


def test_views_are_averaged_arithmetically_on_the_images_grid():
    picture, net = image(64, 80), network()
    one, half = predict(net, picture), predict(net, picture, (0.5,))
    torch.testing.assert_close(predict(net, picture, (1.0, 0.5)), (one + half) / 2)
    mirrored = predict(net, picture[:, ::-1]).flip(2)
    torch.testing.assert_close(predict(net, picture, (1.0,), True), (one + mirrored) / 2)


def test_shifted_views_look_between_the_score_cells():
    """Stride 4, two shifts: means of 4 x 4 pixels at every second pixel, each enlarged alone."""
    picture = image(16, 24)
    red = normalised_red(picture)
    expected = torch.zeros(16, 24)
    for down, right in [(0, 0), (0, 2), (2, 0), (2, 2)]:
        padded = F.pad(red, (right, 4 - right if right else 0, down, 4 - down if down else 0))
        cells = torch.sigmoid(F.avg_pool2d(padded[None, None], 4))
        pixels = F.interpolate(cells, scale_factor=4.0, mode="bilinear")[0, 0]
        expected += pixels[down : down + 16, right : right + 24] / 4
    given = predict(Brightness().eval(), picture, shifts=2)
    torch.testing.assert_close(given[1], expected)
    assert (given[1] - predict(Brightness().eval(), picture)[1]).abs().max() > 0.05


def test_views_of_one_scale_share_a_forward_pass():
    batches = []
    net = network()
    net.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    predict(net, image(32, 32), (1.0, 2.0), True)
    assert batches == [2, 2]


def test_half_precision_is_close_and_gives_single_precision():
    single = predict(network(), image(64, 80))
    half = predict(network(), image(64, 80), precision="bf16")
    assert half.dtype == torch.float32
    assert 0 < (single - half).abs().max() < 0.05


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        predict(network().train(), image(16, 16))


def test_an_image_that_may_not_be_written_to_is_fine():
    picture = image(16, 16)
    picture.flags.writeable = False
    assert predict(network(), picture).shape == (4, 16, 16)


@pytest.mark.parametrize("depth", [14, 50])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_the_copy_for_inference_differs_by_rounding_only(depth, precision, tolerance):
    torch.manual_seed(1)
    net = fcrn(depth=depth, stride=8, kernel=3, dilation=2, num_categories=4)
    nn.init.normal_(net.classifier.weight)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.6)
    net.eval()
    views = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        net.classifier.weight /= net(views).std()  # probabilities neither flat nor decided
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fast = for_inference(net, precision=precision)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    expected = view_probabilities(net, views, precision="fp32")
    assert expected.std() > 0.01
    given = view_probabilities(fast, views, precision=precision)
    assert (given - expected).abs().max() < tolerance
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


# --- label maps -----------------------------------------------------------------------------------
def label_map(net, picture, scales=(1.0,), flip=False, shifts=1) -> np.ndarray:
    views = Views(scales, flip, shifts)
    return predict_label_map(net, picture, views=views, device=CPU, precision="fp32")


class Cells(nn.Module):
    """Logits of nine categories at every cell, drawn anew for each size: noise, or smooth."""

    stride = 8

    def __init__(self, coherent: bool):
        super().__init__()
        self.coherent = coherent

    def forward(self, images):
        count, down, across = len(images), images.shape[2] // 8, images.shape[3] // 8
        generator = torch.Generator().manual_seed(down * 1000 + across)
        size = (-(-down // 8), -(-across // 8)) if self.coherent else (down, across)
        drawn = torch.randn(count, 9, *size, generator=generator) * 3
        return F.interpolate(drawn, size=(down, across), mode="nearest")


class CornerCells(Cells):
    """The same with cells on corners."""

    grid = "corners"

    def forward(self, images):
        return super().forward(F.pad(images, (0, 7, 0, 7)))


@pytest.mark.parametrize("kind", [Cells, CornerCells])
@pytest.mark.parametrize("coherent", [True, False])
@pytest.mark.parametrize("size", [(64, 80), (61, 75), (5, 9), (1, 1), (1, 30), (30, 1)])
@pytest.mark.parametrize(
    "views",
    [
        ((1.0,), False),
        ((1.0,), True),
        ((0.75, 1.0, 1.25), True),
        ((0.3,), False),
        ((2.1,), True),
        ((1.0,), False, 2),
        ((0.75, 1.5), True, 3),
    ],
)
def test_the_label_map_has_the_most_probable_categories(size, views, coherent, kind):
    net, picture = kind(coherent).eval(), image(*size)
    probabilities = predict(net, picture, *views)
    given = label_map(net, picture, *views)
    assert given.dtype == np.uint8
    assert given.shape == size
    chosen = probabilities.gather(0, torch.from_numpy(given.astype(np.int64))[None])[0]
    assert (probabilities.amax(0) - chosen).max() < 1e-6  # another one only where they are equal
    assert (given != probabilities.argmax(0).numpy()).mean() < 0.001


def test_of_equal_categories_the_first_is_taken():
    class Even(Brightness):
        def forward(self, images):
            return torch.zeros(len(images), 3, images.shape[2] // 4, images.shape[3] // 4)

    assert not label_map(Even().eval(), image(9, 13), (1.0, 0.5), True).any()


def test_each_half_of_the_way_between_two_cells_is_of_the_nearer_one():
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, 4:] = 255  # the red's log-odds are -2.1 and 2.2
    expected = np.zeros((4, 8), np.uint8)
    expected[:, 4:] = 1
    np.testing.assert_array_equal(label_map(Brightness().eval(), picture), expected)


def test_a_label_map_of_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        label_map(network().train(), image(16, 16))


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_an_image_one_pixel_wide_is_resized_as_one_that_is_one_pixel_high(scale):
    column = image(30, 1)
    lying = predict(Brightness().eval(), column.swapaxes(0, 1), (scale,))
    standing = predict(Brightness().eval(), column, (scale,))
    torch.testing.assert_close(standing, lying.mT)
    assert standing.std(1).max() > 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_copy_for_inference_sums_taps_in_half_precision_only(precision):
    net = fcrn(depth=50, stride=16, kernel=3, dilation=2, num_categories=4).eval()
    fast = for_inference(net, precision=precision)
    assert isinstance(fast.classifier, TapSum) == (precision == "bf16")
    assert isinstance(net.classifier, nn.Conv2d)


# --- no numbers -----------------------------------------------------------------------------------
class SomewhereNan(Brightness):
    """One logit of the views of a width is no finite number."""

    def __init__(self, width: int, value: float):
        super().__init__()
        self.width, self.value = width, value

    def forward(self, images):
        logits = super().forward(images)
        if images.shape[3] == self.width:
            logits[-1, 1, 2, 3] = self.value
        return logits


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("width", [24, 48])  # of the first scale, and of the second
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("asked", [predict, label_map])
def test_a_network_that_says_nan_is_refused(asked, flip, width, value):
    net = SomewhereNan(width, value).eval()
    with pytest.raises(BadInput, match="the network says NaN: its training has diverged. Train it"):
        asked(net, image(16, 24), (1.0, 2.0), flip)
    asked(net, image(16, 28), (1.0, 2.0), flip)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_network_that_says_nan_is_refused_on_a_gpu():
    gpu = torch.device("cuda")
    for asked in (predict_probabilities, predict_label_map):
        with pytest.raises(BadInput, match="the network says NaN"):
            asked(
                SomewhereNan(24, torch.nan).eval(),
                image(16, 24),
                views=Views((1.0, 2.0), flip=True, shifts=1),
                device=gpu,
                precision="fp32",
            )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_label_map_of_the_cpu():
    gpu, picture = torch.device("cuda"), image(61, 75)
    expected = label_map(network(), picture, (1.0, 1.5), True)
    given = predict_label_map(
        network().to(gpu),
        picture,
        views=Views((1.0, 1.5), flip=True, shifts=1),
        device=gpu,
        precision="fp32",
    )
    assert given.dtype == np.uint8
    assert (given == expected).mean() > 0.99
