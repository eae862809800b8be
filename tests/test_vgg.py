"""VGG-16 as a body: torchvision's features but for the stride, and its full layers."""

import pytest
import torch
import torchvision
from torch import nn

from pipeline.models.vgg import Vgg, convolutional, subsampled, vgg16

CONV5_3 = 30  # layers of torchvision's `features` up to its ReLU


@pytest.fixture(scope="module")
def theirs():
    """torchvision's, with full layers of its size and random weights."""
    torch.manual_seed(0)
    return torchvision.models.vgg16(weights=None, num_classes=3).eval()


@pytest.fixture(scope="module")
def ours(theirs):
    """The same weights in our form, fc6 of 7x7."""
    with torch.device("meta"):
        body = vgg16(kernel=7, dilation=1, channels=4096)
    body.load_state_dict(convolutional(theirs.state_dict()), assign=True)
    return body.eval()


def bodies():
    """The two that DeepLab has, without numbers."""
    with torch.device("meta"):
        plain = vgg16(kernel=4, dilation=4, channels=4096)
        large = vgg16(kernel=3, dilation=12, channels=1024, average=True)
    return plain, large


@torch.no_grad()
def test_the_first_convolutions_are_torchvisions(theirs, ours):
    images = torch.randn(1, 3, 17, 17)
    assert torch.equal(ours.features[:4](images), theirs.features[:4](images))


@torch.no_grad()
def test_conv5_3_is_torchvisions_at_every_second_cell(theirs, ours):
    """Where torchvision has stride 16, ours has 8 and spreads its kernels; poolings are 3x3."""
    pooled = nn.Sequential(
        *(
            nn.MaxPool2d(3, stride=2, padding=1) if isinstance(layer, nn.MaxPool2d) else layer
            for layer in theirs.features[:CONV5_3]
        )
    )
    images = torch.randn(1, 3, 65, 81)
    expected = pooled(images)
    given = ours.features[:CONV5_3](images)
    assert expected.shape[2:] == (5, 6) and given.shape[2:] == (9, 11)
    assert expected.std() > 0.1
    torch.testing.assert_close(given[..., ::2, ::2], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_full_layers_are_convolutions(theirs, ours):
    """In the middle of 7 x 7 cells fc6 and fc7 give what they gave as matrices."""
    cells = torch.rand(1, 512, 7, 7)
    expected = theirs.classifier[3](theirs.classifier[0](cells.flatten(1)).relu())
    given = ours.fc7(ours.fc6(cells).relu())[:, :, 3, 3]
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "cells"), [(321, 41), (306, 39), (513, 65), (9, 2), (1, 1)])
def test_sides_of_8n_and_1_have_n_and_1_cells(side, cells):
    for body, channels in zip(bodies(), (4096, 1024), strict=True):
        features = body(torch.empty(1, 3, side, 17, device="meta"))
        assert features.shape == (1, channels, cells, 3)


@torch.no_grad()
def test_the_first_and_the_last_cell_lie_on_the_corners():
    """With kernels that are their own mirror images, the mirrored image has mirrored features."""
    torch.manual_seed(0)
    features = vgg16(kernel=3, dilation=1, channels=1).features
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            layer.weight.copy_((layer.weight + layer.weight.flip(3)) / 2)
    images = torch.randn(1, 3, 9, 49)
    torch.testing.assert_close(features(images.flip(3)), features(images).flip(3))
    even = images[..., :48]
    assert (features(even.flip(3)) - features(even).flip(3)).abs().max() > 0.01


def test_the_convolutions_have_as_many_parameters_as_published():
    assert sum(p.numel() for p in bodies()[0].features.parameters()) == 14_714_688


def test_kernels_that_would_change_the_size_are_refused():
    with pytest.raises(ValueError, match="4 with dilation 1 does not keep the size"):
        vgg16(kernel=4, dilation=1, channels=1)


# --- full layers that shrink ---------------------------------------------------------------------
def full_layers():
    """fc6 whose weights are 10 row + column, and fc6's and fc7's biases that count channels."""
    taps = torch.arange(7.0)[:, None] * 10 + torch.arange(7.0)
    counted = torch.arange(4096.0)
    return {
        "fc6.weight": taps.expand(4096, 512, 7, 7),
        "fc6.bias": counted,
        "fc7.weight": counted[:, None, None, None].expand(4096, 4096, 1, 1),
        "fc7.bias": counted,
    }


def test_four_of_seven_taps_are_every_second_one():
    plain, _ = bodies()
    taken = subsampled(full_layers(), plain)
    assert taken["fc6.weight"].shape == (4096, 512, 4, 4)
    assert taken["fc6.weight"][7, 5].tolist() == [
        [0, 2, 4, 6],
        [20, 22, 24, 26],
        [40, 42, 44, 46],
        [60, 62, 64, 66],
    ]
    assert taken["fc7.weight"].shape == (4096, 4096, 1, 1)
    assert torch.equal(taken["fc7.bias"], torch.arange(4096.0))


def test_three_of_seven_taps_are_every_third_one_and_channels_every_fourth():
    _, large = bodies()
    taken = subsampled(full_layers(), large)
    assert taken["fc6.weight"].shape == (1024, 512, 3, 3)
    assert taken["fc6.weight"][7, 5].tolist() == [[0, 3, 6], [30, 33, 36], [60, 63, 66]]
    assert taken["fc6.bias"].tolist() == list(range(0, 4096, 4))
    assert taken["fc7.weight"].shape == (1024, 1024, 1, 1)
    assert taken["fc7.weight"][:, 9, 0, 0].tolist() == list(range(0, 4096, 4))


def test_inputs_of_fc7_are_those_channels_that_fc6_keeps():
    _, large = bodies()
    columns = torch.arange(4096.0)[None, :, None, None].expand(4096, 4096, 1, 1)
    taken = subsampled({"fc7.weight": columns}, large)["fc7.weight"]
    assert taken[3, :, 0, 0].tolist() == list(range(0, 4096, 4))


def test_weights_of_the_bodys_own_shape_stay():
    _, large = bodies()
    state = {name: torch.zeros(value.shape) for name, value in large.state_dict().items()}
    taken = subsampled(state, large)
    assert taken.keys() == state.keys()
    assert all(taken[name].shape == value.shape for name, value in state.items())


def test_full_layers_of_another_network_are_told():
    with pytest.raises(ValueError, match=r"classifier.0.weight is \(8, 8\): not of VGG-16"):
        convolutional({"classifier.0.weight": torch.zeros(8, 8)})


def test_the_last_layer_of_imagenet_is_left_out():
    state = {"classifier.6.weight": torch.zeros(1), "head.fc.bias": torch.zeros(1)}
    assert convolutional(state) == {}


def test_a_body_says_its_channels_and_stride():
    plain, large = bodies()
    assert isinstance(plain, Vgg)
    assert (plain.channels, large.channels) == (4096, 1024)
    assert plain.stride == large.stride == 8
