"""The network of Wu et al.: fields of view, shared weights between strides, torchvision's names."""

import pytest
import torch
import torchvision

from pipeline.models.fcrn import fcrn
from pipeline.models.resnet import (
    CropClassifier,
    ResNet,
    freeze_batch_norm,
    load_body_weights,
    resnet,
)
from pipeline.params_networks import field_of_view


@pytest.mark.parametrize(
    ("kernel", "dilation", "stride", "pixels"),
    [  # every distinct setting of Wu2016 Tables 1 and 3
        (3, 6, 16, 208),
        (3, 6, 8, 104),
        (3, 12, 8, 200),
        (5, 6, 8, 200),
        (3, 18, 8, 296),
        (7, 6, 8, 296),
        (5, 12, 8, 392),
        (5, 18, 8, 584),
        (7, 12, 8, 584),
    ],
)
def test_field_of_view_is_that_of_the_papers_tables(kernel, dilation, stride, pixels):
    assert field_of_view(stride=stride, kernel=kernel, dilation=dilation) == pixels


def test_field_of_view_is_what_one_score_depends_on():
    classifier = fcrn(depth=14, stride=8, kernel=3, dilation=4, num_categories=2).classifier
    torch.nn.init.ones_(classifier.weight)
    features = torch.zeros(1, 96, 1, 25, requires_grad=True)
    classifier(features)[0, 0, 0, 12].backward()
    seen = features.grad[0, 0, 0].nonzero().flatten()
    cells = int(seen.max() - seen.min()) + 1
    assert cells * 8 == field_of_view(stride=8, kernel=3, dilation=4)


def test_two_layers_of_3x3_see_what_one_of_5x5_sees():
    assert field_of_view(stride=8, kernel=3, dilation=12, layers=2) == 392
    assert field_of_view(stride=8, kernel=5, dilation=12) == 392


def test_the_field_of_a_hidden_layer_is_what_one_score_depends_on():
    network = fcrn(depth=14, stride=8, kernel=3, dilation=4, num_categories=2, hidden=5)
    for convolution in (network.hidden[0], network.classifier):
        torch.nn.init.ones_(convolution.weight)
    features = torch.ones(1, 96, 1, 41, requires_grad=True)
    network.classifier(network.hidden(features))[0, 0, 0, 20].backward()
    seen = features.grad[0, 0, 0].nonzero().flatten()
    assert int(seen.max() - seen.min()) + 1 == 17
    assert network.field_of_view == 17 * 8


def randomise(body: ResNet) -> None:
    """Random statistics, gammas and betas, so that no layer is an accidental identity."""
    generator = torch.Generator().manual_seed(0)
    for module in body.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.state_dict()["running_mean"].normal_(0, 0.1, generator=generator)
            module.state_dict()["running_var"].uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.0, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)


@pytest.mark.parametrize(
    ("depth", "coarsest"),
    [
        (8, 16),
        (14, 16),
        (50, 32),
        pytest.param(101, 32, marks=pytest.mark.slow),
        pytest.param(152, 32, marks=pytest.mark.slow),
    ],
)
def test_a_finer_body_sampled_equals_the_coarse_one(depth, coarsest):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, 225, 225, generator=generator)
    coarse = resnet(depth=depth, stride=coarsest).eval()
    randomise(coarse)
    with torch.inference_mode():
        expected = coarse(images)
        assert expected.std() > 1e-3
        for stride in (s for s in (8, 16) if s < coarsest):
            fine = resnet(depth=depth, stride=stride).eval()
            fine.load_state_dict(coarse.state_dict())
            every = coarsest // stride
            sampled = fine(images)[:, :, ::every, ::every]
            error = (sampled - expected).abs().max() / expected.abs().max()
            assert error < 1e-5


def test_only_3x3_convolutions_are_dilated_and_a_first_block_keeps_the_dilation_before_it():
    body = resnet(depth=50, stride=8)
    dilations = {
        name: module.dilation[0]
        for name, module in body.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.dilation[0] > 1
    }
    layer3 = {f"layer3.{i}.conv2": 2 for i in range(1, 6)}
    assert dilations == {**layer3, "layer4.0.conv2": 2, "layer4.1.conv2": 4, "layer4.2.conv2": 4}


def test_the_small_body_is_dilated_after_its_left_out_stride():
    layer3 = resnet(depth=14, stride=8).layer3
    dilations = [c.dilation[0] for block in layer3 for c in (block.conv1, block.conv2)]
    assert dilations == [1, 2, 2, 2]


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_parameters_have_torchvisions_names_and_shapes(depth):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")().state_dict()
        ours = resnet(depth=depth, stride=8).state_dict()
    expected = {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in ours.items()} == expected


def test_torchvisions_weights_give_torchvisions_features():
    theirs = torchvision.models.resnet50().eval()
    ours = resnet(depth=50, stride=32).eval()
    load_body_weights(ours, theirs.state_dict())
    images = torch.randn(2, 3, 64, 96)
    features = torch.nn.Sequential(*list(theirs.children())[:-2])
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), features(images))


def test_weights_without_counters_of_batches_are_taken():
    state = resnet(depth=14, stride=16).state_dict()
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    body = resnet(depth=14, stride=16)
    load_body_weights(body, old)
    assert all(torch.equal(value, body.state_dict()[name]) for name, value in state.items())


def test_what_does_not_fit_is_told_in_few_words():
    state = resnet(depth=14, stride=16).state_dict()
    state["conv1.weight"] = torch.zeros(24, 3, 7, 7)
    state["head.bias"] = state.pop("bn1.bias")
    with pytest.raises(ValueError) as caught:
        load_body_weights(resnet(depth=14, stride=16), state)
    assert str(caught.value) == (
        "these weights do not fit the body (3 problems: conv1.weight is 24x3x7x7, not 24x3x3x3; "
        "head.bias is unknown; no bn1.bias)"
    )


def test_weights_of_another_depth_are_refused():
    with torch.device("meta"):
        theirs = torchvision.models.resnet18().state_dict()
    with pytest.raises(ValueError, match="do not fit the body"):
        load_body_weights(resnet(depth=50, stride=8), theirs)


@pytest.mark.parametrize(
    ("depth", "million"),  # He et al.'s bodies: 25.557, 44.549, 60.193 less 2.049 of the fc
    [(50, 23.508), (101, 42.500), (152, 58.144)],
)
def test_parameter_counts(depth, million):
    with torch.device("meta"):
        network = fcrn(depth=depth, stride=8, kernel=5, dilation=12, num_categories=21)
    body = sum(p.numel() for p in network.body.parameters())
    assert round(body / 1e6, 3) == million
    classifier = sum(p.numel() for p in network.classifier.parameters())
    assert classifier == 2048 * 25 * 21 + 21


@pytest.mark.parametrize("stride", [8, 16])
def test_logits_lie_on_the_score_grid_and_start_at_zero(stride):
    network = fcrn(depth=14, stride=stride, kernel=3, dilation=32 // stride, num_categories=9)
    logits = network(torch.randn(2, 3, 32, 48))
    assert logits.shape == (2, 9, 32 // stride, 48 // stride)
    assert network.stride == stride
    assert not logits.any()


@pytest.mark.parametrize(("depth", "stride"), [(14, 32), (14, 4), (50, 4), (18, 8)])
def test_an_impossible_depth_or_stride_is_refused(depth, stride):
    with pytest.raises(ValueError, match="choose one of"):
        resnet(depth=depth, stride=stride)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="odd"):
        fcrn(depth=14, stride=8, kernel=4, dilation=1, num_categories=2)


def test_frozen_batch_norm_keeps_its_statistics_while_gamma_learns():
    network = fcrn(depth=14, stride=16, kernel=3, dilation=2, num_categories=3)
    torch.nn.init.ones_(network.classifier.weight)
    network.train()
    freeze_batch_norm(network)
    before = network.body.bn1.running_mean.clone()
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert torch.equal(network.body.bn1.running_mean, before)
    assert network.body.bn1.weight.grad.abs().sum() > 0
    network.train()
    network(torch.randn(2, 3, 32, 32))
    assert not torch.equal(network.body.bn1.running_mean, before)


# --- hidden layer and dropout --------------------------------------------------------------------
def test_a_hidden_layer_is_a_convolution_and_a_relu():
    network = fcrn(depth=14, stride=8, kernel=3, dilation=4, num_categories=9, hidden=6)
    torch.nn.init.normal_(network.classifier.weight)
    images = torch.randn(1, 3, 32, 48)
    first, last = network.hidden[0], network.classifier
    assert (first.weight.shape, last.weight.shape) == ((6, 96, 3, 3), (9, 6, 3, 3))
    assert not first.bias.any()
    assert first.weight.std().item() == pytest.approx((2 / 864) ** 0.5, rel=0.05)
    network.eval()
    expected = last(first(network.body(images)).clamp(min=0))
    torch.testing.assert_close(network(images), expected)


def test_without_additions_the_network_is_the_vanilla_one():
    networks = []
    for additions in ({}, {"hidden": 0, "dropout": [0.0, 0.0]}):
        torch.manual_seed(3)
        networks.append(
            fcrn(depth=14, stride=8, kernel=3, dilation=4, num_categories=9, **additions)
        )
    one, two = (network.state_dict() for network in networks)
    assert list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert not any(isinstance(m, torch.nn.Dropout) for m in networks[1].modules())


@pytest.mark.parametrize("depth", [14, 50])
def test_dropout_sits_in_the_last_blocks_that_are_given_a_rate(depth):
    body = resnet(depth=depth, stride=8, dropout=[0.3, 0, 0.5])
    stages = [name for name, _ in body.named_children() if name.startswith("layer")]
    blocks = [block for name in stages for block in getattr(body, name)]
    rates = [block.dropout.p if block.dropout is not None else 0 for block in blocks]
    assert rates == [0] * (len(blocks) - 3) + [0.3, 0, 0.5]
    assert list(body.state_dict()) == list(resnet(depth=depth, stride=8).state_dict())


@pytest.mark.parametrize("depth", [14, 50])
def test_dropout_acts_on_the_residual_branch_and_in_training_only(depth):
    torch.manual_seed(0)
    body = resnet(depth=depth, stride=8, dropout=[0.5])
    block = list(body.children())[-1][-1]
    inputs = torch.rand(2, body.channels, 4, 4)  # as after a ReLU
    block.train()
    freeze_batch_norm(block)
    block.dropout.p = 1.0  # nothing of the branch is left
    torch.testing.assert_close(block(inputs), inputs)
    block.dropout.p = 0.5
    kept = (block(inputs) - inputs).abs() > 1e-6
    assert 0.3 < kept.float().mean() < 0.7
    assert ((block.eval()(inputs) - inputs).abs() > 1e-6).float().mean() > 0.9


def test_gradients_pass_through_dropout():
    network = fcrn(
        depth=14, stride=8, kernel=3, dilation=1, num_categories=3, hidden=4, dropout=[0.3, 0.5]
    )
    torch.nn.init.normal_(network.classifier.weight)
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_more_rates_than_blocks_are_refused():
    with pytest.raises(ValueError, match="7 rates of dropout, but 6 residual blocks"):
        resnet(depth=14, stride=8, dropout=[0.1] * 7)


def test_a_crop_classifiers_body_serves_the_segmentation_network():
    classifier = CropClassifier(resnet(depth=14, stride=16), 8)
    assert classifier(torch.randn(5, 3, 48, 48)).shape == (5, 8)
    network = fcrn(depth=14, stride=8, kernel=3, dilation=4, num_categories=9)
    load_body_weights(network.body, classifier.body.state_dict())
    assert torch.equal(network.body.conv1.weight, classifier.body.conv1.weight)
