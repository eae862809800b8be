"""The two DeepLabs on VGG-16: what was published of them, their grid, training, checkpoints."""

import hashlib
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from scratch import PARAMS
from torch.utils.flop_counter import FlopCounterMode

from pipeline.checkpoints import build_network, load_model, read_body, save_weights, start_from
from pipeline.costs import multiply_adds_per_pixel, network_parameters
from pipeline.errors import BadInput
from pipeline.inference import for_inference, view_probabilities
from pipeline.losses import bootstrapped_cross_entropy
from pipeline.models.deeplab import deeplab, deeplab_largefov
from pipeline.models.fast import TapSum
from pipeline.models.frozen import with_frozen_pairs
from pipeline.models.resnet import resnet
from pipeline.models.vgg import CHANNELS, CONVOLUTIONS
from pipeline.params_file import load_params
from pipeline.params_networks import Deeplab, DeeplabLargeFov
from pipeline.params_training import AllPixels
from pipeline.stages.weights import imagenet_body
from pipeline.training import save_checkpoint, sgd
from pipeline.transforms import labels_on_grid
from pipeline.wording import network_cells, network_text

PLAIN = Deeplab("deeplab", dropout=0.5, last_lr_factor=10.0)
LARGE = DeeplabLargeFov("deeplab_largefov", dropout=0.5, last_lr_factor=10.0)
MAKERS = {PLAIN: deeplab, LARGE: deeplab_largefov}
CPU = torch.device("cpu")


def shapes_of(description, num_categories=21):
    """The network without numbers."""
    with torch.device("meta"):
        return MAKERS[description](num_categories=num_categories, dropout=0.5)


@pytest.fixture(scope="module")
def large():
    return build_network(LARGE, 5, seed=0)


# --- as published --------------------------------------------------------------------------------
@pytest.mark.parametrize(("description", "millions"), [(PLAIN, 65.1), (LARGE, 20.5)])
def test_there_are_as_many_parameters_as_published(description, millions):
    number = sum(p.numel() for p in shapes_of(description).parameters())
    assert round(number / 1e6, 1) == millions


@pytest.mark.parametrize("description", [PLAIN, LARGE])
def test_a_crop_of_321_has_41_by_41_scores(description):
    logits = shapes_of(description)(torch.empty(2, 3, 321, 321, device="meta"))
    assert logits.shape == (2, 21, 41, 41)
    assert labels_on_grid(torch.empty(2, 321, 321), 8, "corners").shape == (2, 41, 41)


@pytest.mark.parametrize(
    ("description", "cells", "published"), [(PLAIN, 13, 128), (LARGE, 25, 224)]
)
def test_the_field_of_view_is_what_one_score_depends_on(description, cells, published):
    network = shapes_of(description)
    fc6, features = network.body.fc6, torch.zeros(1, 1, 41, 41, requires_grad=True)
    kernel = torch.ones(1, 1, *fc6.kernel_size)
    scores = F.conv2d(features, kernel, padding=fc6.padding, dilation=fc6.dilation)
    assert scores.shape == features.shape
    scores[0, 0, 20, 20].backward()
    seen = features.grad[0, 0].any(0).nonzero().flatten()
    assert seen.float().mean() == 20
    assert int(seen.max() - seen.min()) + 1 == cells
    assert description.field_of_view == network.field_of_view == 8 * cells
    assert description.field_of_view + 24 == published  # as its makers count


def test_only_largefov_takes_means_before_fc6():
    plain, large = shapes_of(PLAIN), shapes_of(LARGE)
    assert isinstance(large.body.average, torch.nn.AvgPool2d)
    assert isinstance(plain.body.average, torch.nn.Identity)


def test_the_last_layer_starts_near_zero(large):
    assert large.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not large.classifier.bias.any()


def test_the_two_are_told_apart_in_reports():
    assert network_text(PLAIN) == "DeepLab on VGG-16"
    assert network_text(LARGE) == "DeepLab-LargeFOV on VGG-16"
    assert network_cells(PLAIN) == ("16 (DeepLab)", "1/8", "4", "4", "104")
    assert network_cells(LARGE) == ("16 (DeepLab-LargeFOV)", "1/8", "3", "12", "200")


@pytest.mark.parametrize("description", [PLAIN, LARGE])
def test_costs_are_those_that_torch_counts(description):
    network, side = shapes_of(description), 2049
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, 3, side, side, device="meta"))
    per_pixel = counter.get_total_flops() / 2 / side**2
    assert multiply_adds_per_pixel(description, num_categories=21) == pytest.approx(
        per_pixel, rel=0.01
    )
    numbers = sum(p.numel() for p in network.body.parameters())
    assert network_parameters(description) == pytest.approx(numbers, rel=1e-3)


# --- training ------------------------------------------------------------------------------------
def test_the_last_layer_learns_ten_times_as_fast_and_its_bias_twenty(large):
    groups = sgd(
        large, lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.5, bias_lr_factor=2.0,
        last_lr_factor=10.0,
    ).param_groups  # fmt: skip
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rates) == len(list(large.parameters()))
    assert rates[id(large.classifier.weight)] == pytest.approx((1.0, 0.5))
    assert rates[id(large.classifier.bias)] == pytest.approx((2.0, 0.0))
    assert rates[id(large.body.fc7.weight)] == pytest.approx((0.1, 0.5))
    assert rates[id(large.body.features[0].bias)] == pytest.approx((0.2, 0.0))


def test_without_a_factor_there_are_two_groups(large):
    settings = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.5, "bias_lr_factor": 2.0}
    assert len(sgd(large, lr=0.1, **settings).param_groups) == 2


def test_steps_of_training_lower_the_loss():
    network = build_network(replace(LARGE, dropout=0.0), 3, seed=0)
    torch.manual_seed(0)
    images, truth = torch.randn(2, 3, 33, 33), torch.randint(0, 3, (2, 33, 33))
    truth = labels_on_grid(truth, network.stride, network.grid)
    optimizer = sgd(
        network, lr=0.001, momentum=0.0, nesterov=False, weight_decay=0.0005, bias_lr_factor=2.0,
        last_lr_factor=10.0,
    )  # fmt: skip
    losses = []
    for _ in range(3):
        loss = bootstrapped_cross_entropy(network(images), truth, AllPixels("off"))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_dropout_is_of_the_training_only(large):
    images = torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        assert torch.equal(large.eval()(images), large(images))
        assert not torch.equal(large.train()(images), large(images))
    large.eval()


def test_without_batch_norm_the_frozen_form_is_the_network(large):
    twin, images = with_frozen_pairs(large.eval()), torch.randn(1, 3, 17, 17)
    with torch.no_grad():
        assert torch.equal(twin(images), large(images))
    for one, other in zip(twin.parameters(), large.parameters(), strict=True):
        assert one is other


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_the_copy_for_inference_differs_by_rounding_only(large, precision, tolerance):
    large.eval()
    fast = for_inference(large, precision=precision)
    assert isinstance(fast.classifier, TapSum) == (precision == "bf16")
    images = torch.randn(1, 3, 30, 41)
    expected = view_probabilities(large, images, precision="fp32")
    given = view_probabilities(fast, images, precision=precision)
    assert given.shape == (1, 5, 30, 41)
    assert expected.std() > 0.01
    assert (given - expected).abs().max() < tolerance


# --- checkpoints ---------------------------------------------------------------------------------
def names(count):
    return [f"category{i}" for i in range(count)]


def save_run(path, network, description):
    save_checkpoint(
        path, network=network, optimizer=None, step=5, run={"network": asdict(description)},
        categories=names(5),
    )  # fmt: skip


def test_a_trained_network_loads_again(large, tmp_path):
    save_run(tmp_path / "m.pt", large, LARGE)
    loaded, saved = load_model(tmp_path / "m.pt", CPU)
    assert saved["categories"] == names(5) and not loaded.training
    assert (loaded.grid, loaded.stride, loaded.field_of_view) == ("corners", 8, 200)
    images = torch.randn(1, 3, 9, 17)
    with torch.no_grad():
        assert torch.equal(loaded(images), large.eval()(images))
    other = build_network(LARGE, 3, seed=1)
    start_from(tmp_path / "m.pt", other, names(3))
    assert torch.equal(other.body.fc6.weight, large.body.fc6.weight)
    assert other.classifier.weight.shape[0] == 3


def test_one_deeplab_is_not_taken_for_the_other(large, tmp_path):
    save_run(tmp_path / "m.pt", large, PLAIN)
    with pytest.raises(BadInput, match=r"m\.pt: its weights are not those of the network it names"):
        load_model(tmp_path / "m.pt", CPU)


def published_state():
    """VGG-16 in timm's names, of few numbers that are repeated: small as a file."""
    state, number, inputs = {}, 0, 3
    for outputs, count in zip(CHANNELS, CONVOLUTIONS, strict=True):
        for _ in range(count):
            name = f"features.{number}"
            state[f"{name}.weight"] = torch.tensor(number / 100).expand(outputs, inputs, 3, 3)
            state[f"{name}.bias"] = torch.tensor(number / 10).expand(outputs)
            number, inputs = number + 2, outputs
        number += 1
    counted = torch.arange(4096.0)
    taps = torch.arange(49.0).view(7, 7)
    return state | {
        "pre_logits.fc1.weight": taps.expand(4096, 512, 7, 7),
        "pre_logits.fc1.bias": counted,
        "pre_logits.fc2.weight": counted[:, None, None, None].expand(4096, 4096, 1, 1),
        "pre_logits.fc2.bias": counted,
        "head.fc.weight": torch.zeros(3, 4096),
        "head.fc.bias": torch.zeros(3),
    }


def test_published_weights_start_either_network(tmp_path, monkeypatch):
    torch.save(published_state(), tmp_path / "unnamed.pth")
    digest = hashlib.sha256((tmp_path / "unnamed.pth").read_bytes()).hexdigest()[:8]
    path = (tmp_path / "unnamed.pth").rename(tmp_path / f"vgg16-{digest}.pth")
    url = f"http://127.0.0.1:9/models/{path.name}"  # nothing answers: the file is there
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=url))
    monkeypatch.setattr(torchvision.models, "VGG16_Weights", weights)
    save_weights(tmp_path / "vgg.pt", imagenet_body(16, tmp_path))
    for description, taps, every in ((PLAIN, [0, 2, 4, 6], 1), (LARGE, [0, 3, 6], 4)):
        network = build_network(description, 5, seed=1)
        before = network.classifier.weight.clone()
        start_from(tmp_path / "vgg.pt", network, names(5))
        assert network.body.fc6.weight[1, 2, 0].tolist() == taps
        assert network.body.fc7.bias.tolist() == list(range(0, 4096, every))
        assert (network.body.features[28].weight == 0.28).all()
        assert torch.equal(network.classifier.weight, before)


def test_weights_of_a_resnet_are_refused_by_name(tmp_path, large):
    save_weights(tmp_path / "body.pt", resnet(depth=14, stride=8))
    with pytest.raises(BadInput, match=r"body\.pt: its weights do not fit this network"):
        start_from(tmp_path / "body.pt", large, names(5))
    torch.save(resnet(depth=50, stride=32).state_dict(), tmp_path / "w.pth")
    with pytest.raises(BadInput, match=r"w\.pth: a ResNet-50, no VGG-16; correct `depth`"):
        read_body(tmp_path / "w.pth", 16)


def test_another_vgg_is_refused_by_name(tmp_path):
    state = published_state()
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(BadInput, match=r"vgg\.pth: no ResNet-50, but a VGG; correct `depth`"):
        read_body(tmp_path / "vgg.pth", 50)
    del state["features.28.weight"]
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(BadInput, match=r"do not fit the body .*features\.28\.weight.*; put wei"):
        read_body(tmp_path / "vgg.pth", 16)


# --- params.yaml ---------------------------------------------------------------------------------
FCRN = "{kind: fcrn, depth: 14, stride: 8, kernel: 3, dilation: 2}"
DEEPLAB = "{kind: deeplab, dropout: 0.5, last_lr_factor: 10.0}"
LARGEFOV = DEEPLAB.replace("deeplab", "deeplab_largefov")


def loaded(tmp_path, *changes):
    text = PARAMS.replace(FCRN, DEEPLAB).replace("crop: [64, 64]", "crop: [33, 65]")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (tmp_path / "params.yaml").write_text(text)
    return load_params(tmp_path / "params.yaml")


def test_both_kinds_are_read(tmp_path):
    assert loaded(tmp_path).semantic["mask"].network == PLAIN
    assert loaded(tmp_path, (DEEPLAB, LARGEFOV)).semantic["mask"].network == LARGE
    changes = ("none: {kind: none}", "none: {kind: none}\n  vgg: {kind: imagenet, depth: 16}")
    assert loaded(tmp_path, changes, ("init: none", "init: vgg")).semantic["mask"].init == "vgg"


RESNET = ("none: {kind: none}", "none: {kind: none}\n  resnet: {kind: imagenet, depth: 50}")
OTHER = (
    "boxsup:",
    "  other:\n    <<: *run\n    init: mask\n    network: " + LARGEFOV + "\nboxsup:",
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("[33, 65]", "[33, 64]")],
            "semantic.mask.augmentation.crop is [33, 64]; expected multiples of the network's "
            "stride, 8, and 1 more",
        ),
        ([("dropout: 0.5", "dropout: 1.0")], "semantic.mask.network.dropout is 1.0; expected"),
        ([("dropout: 0.5, ", "")], "semantic.mask.network.dropout is missing"),
        ([("factor: 10.0", "factor: -1")], "semantic.mask.network.last_lr_factor is -1.0"),
        ([("dropout: 0.5", "stride: 16, dropout: 0.5")], "network.stride is unknown"),
        (
            [RESNET, ("init: none", "init: resnet")],
            "init is 'resnet', a network of depth 50; the run's has depth 16",
        ),
        (
            [OTHER],
            "semantic.other.init is 'mask', of kind deeplab; the run's network is of kind "
            "deeplab_largefov",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(BadInput) as error:
        loaded(tmp_path, *changes)
    assert message in str(error.value)
