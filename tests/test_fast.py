"""Faster forms of layers: the same outputs as the layers they stand for."""

import pytest
import torch
from torch import nn

from pipeline.models.fast import (
    LEAST_CHANNELS,
    MOST_CATEGORIES,
    TapSum,
    merge_batch_norms,
    sum_taps,
)
from pipeline.models.fcrn import fcrn


def classifier(kernel: int = 3, dilation: int = 2, channels: int = 6, categories: int = 4):
    torch.manual_seed(0)
    padding = kernel // 2 * dilation
    return nn.Conv2d(channels, categories, kernel, padding=padding, dilation=dilation)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 3), (7, 2)])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 4), (12, 13), (17, 31)])
@torch.no_grad()
def test_the_sum_of_taps_is_the_convolution(kernel, dilation, size):
    convolution = classifier(kernel, dilation)
    features = torch.randn(2, 6, *size)
    given = TapSum(convolution)(features)
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, convolution(features), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_one_cell_spreads_the_flipped_kernel():
    convolution = classifier(categories=1, channels=1)
    convolution.weight.copy_(torch.arange(1.0, 10).view(1, 1, 3, 3))
    convolution.bias.fill_(0.5)
    features = torch.zeros(1, 1, 5, 5)
    features[0, 0, 2, 2] = 1
    expected = torch.full((5, 5), 0.5)
    expected[::2, ::2] += torch.tensor([[9.0, 8, 7], [6, 5, 4], [3, 2, 1]])
    torch.testing.assert_close(TapSum(convolution)(features)[0, 0], expected)


@torch.no_grad()
def test_half_precision_is_summed_in_single():
    convolution = classifier(5, 3, 64)
    features = torch.randn(1, 64, 20, 20)
    given = TapSum(convolution).bfloat16()(features.bfloat16())
    assert given.dtype == torch.float32
    exact = convolution.double()(features.double())
    assert 0 < (given - exact).abs().max() < 0.03 * exact.std()


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(2, 3, 3),
        nn.Conv2d(2, 3, 4, padding=1),
        nn.Conv2d(2, 3, (3, 1), padding=(1, 0)),
        nn.Conv2d(2, 3, 3, padding=1, stride=2),
        nn.Conv2d(2, 3, 3, padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.Conv2d(2, 3, 3, padding="same"),
    ],
    ids=str,
)
def test_other_convolutions_are_refused(convolution):
    with pytest.raises(ValueError, match="Conv2d"):
        TapSum(convolution)


@pytest.mark.parametrize(
    ("channels", "categories", "changed"),
    [
        (LEAST_CHANNELS, MOST_CATEGORIES, True),
        (LEAST_CHANNELS - 1, 2, False),
        (LEAST_CHANNELS, MOST_CATEGORIES + 1, torch.cpu._is_amx_tile_supported()),
    ],
)
def test_the_form_is_taken_where_it_is_faster(channels, categories, changed):
    network = nn.Sequential()
    network.classifier = classifier(1, 1, channels, categories)
    sum_taps(network)
    assert isinstance(network.classifier, TapSum) == changed


@torch.no_grad()
def test_no_batch_norm_is_left_and_outputs_stay():
    torch.manual_seed(0)
    network = fcrn(depth=14, stride=8, kernel=3, dilation=2, num_categories=3)
    nn.init.normal_(network.classifier.weight, std=0.1)
    network.train()(torch.randn(4, 3, 32, 32))
    network.eval()
    images = torch.randn(1, 3, 40, 32)
    expected = network(images)
    merge_batch_norms(network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
