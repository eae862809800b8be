"""Testing: padding, enlarging, views."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.inference import for_inference, predict_probabilities, view_probabilities
from pipeline.models.fcrn import Fcrn, fcrn
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


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def predict(net, picture, scales=(1.0,), flip=False, precision="fp32"):
    return predict_probabilities(
        net, picture, scales=scales, flip=flip, device=CPU, precision=precision
    )


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
