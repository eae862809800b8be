"""Starting weights: none, ImageNet's, a file's, those of drawn crops, and another run's."""

import hashlib
import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from file_server import Answer, serving
from scratch import PARAMS

from pipeline.checkpoints import (
    build_network,
    load_model,
    read_body,
    read_state_dict,
    save_weights,
    start_from,
)
from pipeline.errors import BadInput, PlaceByHand
from pipeline.models.resnet import resnet
from pipeline.params_file import load_params
from pipeline.params_networks import CropWeights, Fcrn, FcrnExtended, FileWeights
from pipeline.stages.weights import file_body, imagenet_body, train_on_crops, weights
from pipeline.training import save_checkpoint

SMALL = Fcrn(kind="fcrn", depth=14, stride=8, kernel=3, dilation=2)
EXTENDED = FcrnExtended("fcrn_extended", 14, 8, 3, 2, hidden=4, dropout=(0.3, 0.5))
CPU = torch.device("cpu")


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
        imagenet_body(50, folder, pauses=())


def test_a_download_goes_on_where_it_broke_off(published, tmp_path):
    path, state = published
    folder = tmp_path / "elsewhere"
    with serving() as server:
        server.files = {path.name: path.read_bytes()}
        server.answers = {path.name: [Answer(cut=1_000_000)]}
        torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url = server.url(path.name)
        body = imagenet_body(50, folder, pauses=())
        assert server.ranges_of(path.name) == [None, "bytes=1000000-"]
    assert torch.equal(body.state_dict()["conv1.weight"], state["conv1.weight"])
    assert [file.name for file in folder.glob("*.pth*")] == [path.name]


def test_another_file_at_the_address_is_not_kept(published, tmp_path):
    path, _ = published
    folder = tmp_path / "elsewhere"
    with serving() as server:
        server.files = {path.name: b"PK" + bytes(1000)}
        torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url = server.url(path.name)
        with pytest.raises(BadInput, match=f"but the published {path.name} has"):
            imagenet_body(50, folder, pauses=())
    assert not list(folder.glob("*.pth*"))


def test_a_damaged_file_is_refused(published):
    path, _ = published
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match="damaged") as caught:
        imagenet_body(50, path.parent)
    expected, found = path.stem.rsplit("-", 1)[1], hashlib.sha256(content).hexdigest()
    assert f"its SHA-256 is {found}, and does not start with {expected};" in str(caught.value)


def test_a_body_goes_into_any_network_of_its_depth(tmp_path):
    donor = build_network(SMALL, 9, seed=1)
    save_weights(tmp_path / "body.pt", donor.body)
    network = build_network(SMALL, 21, seed=2)
    start_from(tmp_path / "body.pt", network, names(21))
    for name, value in network.body.state_dict().items():
        assert torch.equal(value, donor.body.state_dict()[name])


def test_no_weights_leave_a_network_as_its_seed_made_it(tmp_path):
    save_weights(tmp_path / "none.pt", None)
    network = build_network(SMALL, 9, seed=3)
    start_from(tmp_path / "none.pt", network, names(9))
    for ours, fresh in zip(
        network.parameters(), build_network(SMALL, 9, seed=3).parameters(), strict=True
    ):
        assert torch.equal(ours, fresh)


@pytest.mark.parametrize("name", ["none", "imagenet"])
def test_a_file_of_weights_has_the_same_bytes_each_time(published, tmp_path, name):
    path, _ = published
    folder = tmp_path / "data" / "raw" / "weights"
    folder.mkdir(parents=True)
    path.rename(folder / path.name)
    (tmp_path / "pipeline").symlink_to(Path(__file__).resolve().parents[1] / "pipeline")
    text = PARAMS.replace("weights:\n", "weights:\n  imagenet: {kind: imagenet, depth: 50}\n")
    (tmp_path / "params.yaml").write_text(text)
    contents = []
    for seed in (1, 2):  # as of two processes: each begins with another state
        torch.manual_seed(seed)
        weights(tmp_path, load_params(tmp_path / "params.yaml"), name)
        model = tmp_path / "data" / "models" / f"{name}.pt"
        contents.append(model.read_bytes())
        model.unlink()
        for published_before in (tmp_path / "work").rglob("published"):
            published_before.unlink()
    assert contents[0] == contents[1]


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    deep = Fcrn(kind="fcrn", depth=50, stride=8, kernel=3, dilation=2)
    save_weights(tmp_path / "body.pt", build_network(SMALL, 9, seed=1).body)
    with pytest.raises(BadInput, match=r"body\.pt: its weights do not fit"):
        start_from(tmp_path / "body.pt", build_network(deep, 9, seed=1), names(9))


def test_crops_teach_a_body_the_same_each_time():
    settings = CropWeights(
        kind="crops", depth=14, crops=12, size=32, batch=4, steps=3, lr=0.05, seed=0,
        precision="fp32", threads=1,
    )  # fmt: skip
    one, two = (train_on_crops(settings).state_dict() for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


# --- files of others -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def state():
    """A ResNet-50 in torchvision's names, with a classifier of ImageNet's form."""
    torch.manual_seed(0)
    return torchvision.models.resnet50(weights=None, num_classes=3).state_dict()


def write_safetensors(path, tensors, metadata=True):
    """By the published layout, not by the reader's code."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    header, parts, at = {"__metadata__": {"format": "pt"}} if metadata else {}, [], 0
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(raw)],
        }
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def same_body(body, state):
    own = body.state_dict()
    return all(torch.equal(own[name], state[name]) for name in own)


def test_a_safetensors_file_gives_its_tensors(tmp_path):
    tensors = {
        "a": torch.tensor([[1.5, -2.0], [0.25, 3.0]]),
        "b.half": torch.tensor([1.0, 65504.0], dtype=torch.float16),
        "b.brain": torch.tensor([3.0, -0.5], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    write_safetensors(tmp_path / "w.safetensors", tensors)
    found = read_state_dict(tmp_path / "w.safetensors")
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)


def test_a_state_dict_is_taken_from_every_form(state, tmp_path):
    torch.save(state, tmp_path / "plain.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    named = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 3, "state_dict": named}, tmp_path / "parallel.pth.tar")
    torch.save({"model": state}, tmp_path / "reference.pth")
    write_safetensors(tmp_path / "model.safetensors", state)
    for path in sorted(tmp_path.iterdir()):
        assert same_body(read_body(path, 50), state), path.name


def test_half_precision_is_taken(state, tmp_path):
    half = {name: v.half() if v.is_floating_point() else v for name, v in state.items()}
    write_safetensors(tmp_path / "half.safetensors", half)
    body = read_body(tmp_path / "half.safetensors", 50)
    assert body.conv1.weight.dtype == torch.float32
    assert torch.equal(body.conv1.weight, state["conv1.weight"].half().float())


def test_another_depth_is_told(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BadInput, match=r"w\.pth: a ResNet-50, not -101; correct `depth`"):
        read_body(tmp_path / "w.pth", 101)


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small"])
def test_another_architecture_is_told(model, tmp_path):
    torch.save(getattr(torchvision.models, model)().state_dict(), tmp_path / "w.pth")
    with pytest.raises(BadInput, match=r"do not fit the body \(\d+ problems: .*; put weights of"):
        read_body(tmp_path / "w.pth", 50)


class Marker:
    """Pickled, it asks for a file to be made when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def with_code(path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump({"conv1.weight": Marker(path.with_name("ran"))}, file)


def cut(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def header(entry: object, tail: bytes = bytes(8)):
    def write(path: Path) -> None:
        text = json.dumps({"w": entry} if isinstance(entry, dict) else entry).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + tail)

    return write


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (with_code, "code, which is not run; save its state dict alone"),
        (lambda path: torch.save(torch.nn.Linear(2, 2), path), "objects of a program"),
        (cut, "not a readable file of weights"),
        (flipped, "not a readable file of weights"),
        (lambda path: path.write_bytes(b""), "neither torch's nor a safetensors"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "neither torch's nor"),
        (lambda path: torch.save([1, 2], path), "no state dict"),
        (lambda path: torch.save({}, path), "no state dict"),
        (lambda path: torch.save({"epoch": 3}, path), "epoch in it is no tensor"),
        (lambda path: torch.save({"w": torch.tensor([np.nan])}, path), "w in it is not finite"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: path.write_bytes(bytes([255] * 8) + b"{}"), "cut off in its header"),
        (lambda path: path.write_bytes(bytes([2] + [0] * 7) + b"{,"), "not a readable safetensors"),
        (header({"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}), "bytes 0 to 9 of 8"),
        (header({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}), "shape"),
        (header({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}), "8 bytes for F32"),
        (header({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}), "bytes 8 to 0"),
        (header({"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}), "'C64'"),
        (header({"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}), "not a readable"),
        (header({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}), "not a readable"),
        (header({"dtype": "F32"}), "not a readable safetensors"),
        (header({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}), "not a readable"),
        (header({"F32": 1, "dtype": 2}), "not a readable safetensors"),
        (header({}), "not a readable safetensors"),
    ],
)
def test_a_file_that_is_no_weights_is_told_and_runs_nothing(tmp_path, write, said):
    path = tmp_path / "w.pth"
    write(path)
    with pytest.raises(BadInput, match=said) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


def file_weights(path, sha256="none", depth=50):
    return FileWeights(kind="file", depth=depth, place="mine", file=path.name, sha256=sha256)


def test_a_file_of_the_users_gives_a_body(state, tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for given in ("none", digest[:8], digest):
        assert same_body(file_body(file_weights(path, given), tmp_path), state)


def test_a_file_of_another_digest_is_refused(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    found = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    said = f"w.pth: its SHA-256 is {found}, and does not start with 00000000; correct `sha256`"
    with pytest.raises(BadInput, match=said):
        file_body(file_weights(tmp_path / "w.pth", "00000000"), tmp_path)


def test_a_file_that_is_missing_is_told_with_its_place(tmp_path):
    with pytest.raises(
        PlaceByHand, match=f"{tmp_path}/w.pth is not there. Put .* ResNet-152 there"
    ):
        file_body(file_weights(tmp_path / "w.pth", depth=152), tmp_path)


def test_a_missing_file_of_vgg_16_is_told_as_such(tmp_path):
    with pytest.raises(PlaceByHand, match="Put the weights of VGG-16 there"):
        file_body(file_weights(tmp_path / "w.pth", depth=16), tmp_path)


def test_the_stage_takes_a_file_from_where_the_user_says(state, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    torch.save(state, tmp_path / "elsewhere" / "w.pth")
    monkeypatch.setenv("PIPELINE_DATA_MINE", str(tmp_path / "elsewhere"))
    entry = "{kind: file, depth: 50, place: mine, file: w.pth, sha256: none}"
    text = PARAMS.replace("none: {kind: none}", f"none: {{kind: none}}\n  mine: {entry}")
    (tmp_path / "params.yaml").write_text(text)
    weights(tmp_path, load_params(tmp_path / "params.yaml"), "mine")
    network = build_network(replace(SMALL, depth=50), 21, seed=0)
    start_from(tmp_path / "data" / "models" / "mine.pt", network, names(21))
    assert same_body(network.body, state)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("place: ../mine, file: w.pth, sha256: none", "may hold only a-z"),
        ("place: mine, file: ../w.pth, sha256: none", "without its folder"),
        ("place: mine, file: w.pth, sha256: abc", "first 8 to 64 digits"),
        ("place: mine, file: w.pth, sha256: 12345678", "expected a text"),
        ("place: mine, file: w.pth, sha256: 0676BA61", "first 8 to 64 digits"),
    ],
)
def test_an_entry_that_names_no_file_is_refused(tmp_path, entry, said):
    line = f"mine: {{kind: file, depth: 50, {entry}}}"
    text = PARAMS.replace("none: {kind: none}", f"none: {{kind: none}}\n  {line}")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(BadInput, match=f"weights.mine.*{said}"):
        load_params(tmp_path / "params.yaml")


# --- from one label space to another -------------------------------------------------------------
def save_run(path, network, description, categories):
    save_checkpoint(
        path, network=network, optimizer=None, step=5, run={"network": asdict(description)},
        categories=categories,
    )  # fmt: skip


def names(count):
    return [f"category{i}" for i in range(count)]


@pytest.fixture
def coco(tmp_path):
    """A network trained on 81 categories, its last layer not at zero."""

    def build(description):
        network = build_network(description, 81, seed=1)
        torch.nn.init.normal_(network.classifier.weight)
        torch.nn.init.normal_(network.classifier.bias)
        save_run(tmp_path / "coco.pt", network, description, names(81))
        return network

    return build


@pytest.mark.parametrize("description", [SMALL, EXTENDED], ids=["linear", "two layers"])
@pytest.mark.parametrize("count", [21, 60])
def test_another_label_space_keeps_all_but_the_last_layer(
    tmp_path, coco, description, count, capsys
):
    donor = coco(description).state_dict()
    network = build_network(description, count, seed=2)
    start_from(tmp_path / "coco.pt", network, names(count))
    for name, value in network.state_dict().items():
        if name.startswith("classifier."):
            assert not value.any()
        else:
            assert torch.equal(value, donor[name]), name
    told = capsys.readouterr().err
    assert f"81 categories, here {count}, not the same: the last layer starts anew" in told


def test_the_same_label_space_keeps_the_last_layer_too(tmp_path, coco, capsys):
    donor = coco(SMALL).state_dict()
    network = build_network(SMALL, 81, seed=2)
    start_from(tmp_path / "coco.pt", network, tuple(names(81)))
    for name, value in network.state_dict().items():
        assert torch.equal(value, donor[name])
    assert capsys.readouterr().err == ""


def test_as_many_other_categories_are_another_label_space(tmp_path, coco):
    coco(SMALL)
    network = build_network(SMALL, 81, seed=2)
    start_from(tmp_path / "coco.pt", network, [*names(80), "another"])
    assert not network.classifier.weight.any()


def test_a_network_with_another_body_or_hidden_layer_is_refused(tmp_path, coco):
    coco(SMALL)
    for other in (EXTENDED, replace(SMALL, depth=8)):
        with pytest.raises(BadInput, match="do not fit this network .* `init` of the same network"):
            start_from(tmp_path / "coco.pt", build_network(other, 21, seed=2), names(21))


def test_a_transferred_network_trains_and_loads_again(tmp_path, coco):
    coco(EXTENDED)
    network = build_network(EXTENDED, 60, seed=2)
    start_from(tmp_path / "coco.pt", network, names(60))
    save_run(tmp_path / "context.pt", network, EXTENDED, names(60))
    loaded, saved = load_model(tmp_path / "context.pt", CPU)
    assert saved["categories"] == names(60) and not loaded.training
    assert loaded.field_of_view == 8 * (2 * 2 * 2 + 1)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), network.eval()(images))


# --- finished models -----------------------------------------------------------------------------
def test_a_model_whose_weights_are_of_another_network_is_refused(tmp_path):
    network = build_network(SMALL, 9, seed=0)
    wrong = replace(SMALL, kernel=5)
    save_run(tmp_path / "m.pt", network, wrong, names(9))
    with pytest.raises(BadInput, match=r"m\.pt: its weights are not those of the network it names"):
        load_model(tmp_path / "m.pt", CPU)
    save_run(tmp_path / "m.pt", network, SMALL, names(8))
    with pytest.raises(BadInput, match=r"classifier\.weight"):
        load_model(tmp_path / "m.pt", CPU)


@pytest.mark.parametrize("kernel", [2, 1_000_001, 10**12 + 1])
def test_a_model_that_claims_to_be_impossible_or_enormous_is_refused(tmp_path, kernel):
    network = build_network(SMALL, 9, seed=0)
    save_run(tmp_path / "m.pt", network, replace(SMALL, kernel=kernel), names(9))
    with pytest.raises(BadInput, match="not those of the network it names"):
        load_model(tmp_path / "m.pt", CPU)


@pytest.mark.parametrize("wrong", [{"run": [1]}, {"categories": 9}, {"run": {"network": "fcrn"}}])
def test_a_checkpoint_of_wrong_parts_is_refused(tmp_path, wrong):
    network = build_network(SMALL, 9, seed=0)
    given = {"run": {"network": asdict(SMALL)}, "categories": names(9)}
    save_run(tmp_path / "m.pt", network, SMALL, names(9))
    state = torch.load(tmp_path / "m.pt", weights_only=True)
    torch.save(state | given | wrong, tmp_path / "m.pt")
    with pytest.raises(BadInput, match=r"m\.pt: (not a checkpoint of|does not say)"):
        load_model(tmp_path / "m.pt", CPU)


def test_starting_weights_and_a_nameless_model_are_no_trained_network(tmp_path):
    save_weights(tmp_path / "body.pt", resnet(depth=14, stride=16))
    with pytest.raises(BadInput, match="starting weights, not a trained network"):
        load_model(tmp_path / "body.pt", CPU)
    save_checkpoint(
        tmp_path / "m.pt", network=torch.nn.Linear(1, 1), optimizer=None, step=0, run={},
        categories=[],
    )  # fmt: skip
    with pytest.raises(BadInput, match="does not say which network it holds"):
        load_model(tmp_path / "m.pt", CPU)
