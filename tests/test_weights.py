"""Starting weights: none, ImageNet's from a file, and those learned on drawn crops."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

from pipeline.checkpoints import build_network, save_weights, start_from
from pipeline.errors import BadInput, PlaceByHand
from pipeline.params import CropWeights, Fcrn
from pipeline.stages.weights import imagenet_body, train_on_crops

SMALL = Fcrn(kind="fcrn", depth=14, stride=8, kernel=3, dilation=2)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file of torchvision's form whose name ends in the start of its digest, at no address."""
    torch.manual_seed(0)
    state = torchvision.models.resnet50(weights=None, num_classes=3).state_dict()
    unnamed = tmp_path / "unnamed.pth"
    torch.save(state, unnamed)
    digest = hashlib.sha256(unnamed.read_bytes()).hexdigest()[:8]
    path = unnamed.rename(tmp_path / f"resnet50-{digest}.pth")
    url = f"http://127.0.0.1:9/models/{path.name}"  # the discard port: nothing answers
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=url))
    monkeypatch.setattr(torchvision.models, "ResNet50_Weights", weights)
    return path, state


def test_a_file_put_by_hand_is_taken(published):
    path, state = published
    body = imagenet_body(50, path.parent)
    for name, value in body.state_dict().items():
        assert torch.equal(value, state[name])


def test_what_cannot_be_downloaded_is_told_with_its_place(published, tmp_path):
    folder = tmp_path / "elsewhere"
    with pytest.raises(PlaceByHand, match=str(folder / published[0].name)):
        imagenet_body(50, folder)


def test_a_damaged_file_is_refused(published):
    path, _ = published
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match="damaged"):
        imagenet_body(50, path.parent)


def test_a_body_goes_into_any_network_of_its_depth(tmp_path):
    donor = build_network(SMALL, 9, seed=1)
    save_weights(tmp_path / "body.pt", donor.body)
    network = build_network(SMALL, 21, seed=2)
    start_from(tmp_path / "body.pt", network)
    for name, value in network.body.state_dict().items():
        assert torch.equal(value, donor.body.state_dict()[name])


def test_no_weights_leave_a_network_as_its_seed_made_it(tmp_path):
    save_weights(tmp_path / "none.pt", None)
    network = build_network(SMALL, 9, seed=3)
    start_from(tmp_path / "none.pt", network)
    for ours, fresh in zip(
        network.parameters(), build_network(SMALL, 9, seed=3).parameters(), strict=True
    ):
        assert torch.equal(ours, fresh)


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    deep = Fcrn(kind="fcrn", depth=50, stride=8, kernel=3, dilation=2)
    save_weights(tmp_path / "body.pt", build_network(SMALL, 9, seed=1).body)
    with pytest.raises(BadInput, match=r"body\.pt: its weights do not fit"):
        start_from(tmp_path / "body.pt", build_network(deep, 9, seed=1))


def test_crops_teach_a_body_the_same_each_time():
    settings = CropWeights(
        kind="crops", depth=14, crops=12, size=32, batch=4, steps=3, lr=0.05, seed=0,
        precision="fp32", threads=1,
    )  # fmt: skip
    one, two = (train_on_crops(settings).state_dict() for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
