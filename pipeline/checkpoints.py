"""Finished models: `data/models/<run>.pt`, in the form of a checkpoint without an optimizer.

Starting weights have that form too; ``run["part"]`` tells what they hold: "none" or a "body".
Bodies come from files of weights that others wrote, too. No file can run code.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.box_targets import Standard
from pipeline.categories import things_of
from pipeline.errors import BadFile, BadInput
from pipeline.models.deeplab import Deeplab, deeplab, deeplab_largefov
from pipeline.models.fcrn import Fcrn, fcrn
from pipeline.models.resnet import PLANS, ResNet, load_body_weights, resnet
from pipeline.models.vgg import Vgg, convolutional, subsampled, vgg16
from pipeline.params_file import build
from pipeline.params_networks import DeeplabLargeFov, FcrnExtended, Network
from pipeline.params_networks import Fcrn as FcrnDescription
from pipeline.training import LAST_LAYER, load_checkpoint, save_checkpoint
from pipeline.weight_files import read_state_dict

SemanticNetwork = Fcrn | Deeplab
Loaded = tuple[SemanticNetwork, dict[str, Any]]  # as `load_model` gives it
CPU = torch.device("cpu")


# --- ours ----------------------------------------------------------------------------------------
def build_network(network: Network, num_categories: int, *, seed: int) -> SemanticNetwork:
    """The network that a run describes, with fresh weights drawn from a seed."""
    torch.manual_seed(seed)
    return _described(network, num_categories)


def build_localizer(
    network: Network, categories: Sequence[str], standard: Standard, *, seed: int
) -> SemanticNetwork:
    """The same, with four outputs for each category that has objects: see `pipeline.box_targets`.

    What its outputs are multiplied by and moved by stays with its weights, in the buffers
    `target_mean` and `target_deviation`.
    """
    torch.manual_seed(seed)
    return _localizer(network, categories, standard)


def _localizer(network: Network, categories: Sequence[str], standard: Standard) -> SemanticNetwork:
    built = _described(network, 4 * len(things_of(categories)))
    built.register_buffer("target_mean", standard.mean)
    built.register_buffer("target_deviation", standard.deviation)
    return built


def standard_of(network: nn.Module) -> Standard:
    """What the outputs of a localisation network are multiplied by and moved by."""
    return Standard(network.target_mean, network.target_deviation)  # type: ignore[arg-type]


def _described(network: Network, num_categories: int) -> SemanticNetwork:
    if not isinstance(network, FcrnDescription):
        made = deeplab_largefov if isinstance(network, DeeplabLargeFov) else deeplab
        return made(num_categories=num_categories, dropout=network.dropout)
    return fcrn(
        depth=network.depth,
        stride=network.stride,
        kernel=network.kernel,
        dilation=network.dilation,
        num_categories=num_categories,
        hidden=network.hidden if isinstance(network, FcrnExtended) else 0,
        dropout=network.dropout if isinstance(network, FcrnExtended) else (),
    )


def save_weights(path: Path, body: nn.Module | None) -> None:
    """Write starting weights: those of a body, or none."""
    save_checkpoint(
        path,
        network=nn.Module() if body is None else body,
        optimizer=None,
        step=0,
        run={"part": "none" if body is None else "body"},
        categories=[],
    )


def is_localizer(saved: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds a localisation network: only such a run names its targets."""
    return "targets" in saved["run"]


def load_model(path: Path, device: torch.device) -> Loaded:
    """A trained network in evaluation mode, and the checkpoint it came from.

    Raises:
        BadInput: the file is missing, damaged, or holds no trained network.
    """
    saved = _load(path)
    if "part" in saved["run"]:
        raise BadInput(f"{path}: starting weights, not a trained network; name a training run")
    if not isinstance(saved["run"].get("network"), dict):
        raise BadInput(f"{path}: does not say which network it holds; train it anew")
    values = saved["run"]["network"].items()
    as_read = {name: list(v) if isinstance(v, tuple) else v for name, v in values}
    description = build(Network, as_read, str(path), "network")
    try:
        with torch.device("meta"):  # no more memory than the file's own, whatever the file says
            categories = saved["categories"]
            if is_localizer(saved):
                unknown = Standard(torch.zeros(4), torch.ones(4))
                network = _localizer(description, categories, unknown)
            else:
                network = _described(description, len(categories))
        network.load_state_dict(saved["network"], assign=True)
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            f"{path}: its weights are not those of the network it names ({_reasons(error)}); "
            "train it anew"
        ) from error
    return network.to(device, torch.float32).eval(), saved


def start_from(path: Path, network: SemanticNetwork, categories: Sequence[str]) -> None:
    """Put starting weights into a network: none, those of its body, or all of another run's.

    Those of VGG-16's full layers are subsampled where the network's are smaller. Another run's last
    layer is left out, and stays as it is in `network`, where that run had other categories.

    Args:
        categories: names of those of `network`, background first.

    Raises:
        BadInput: the file is missing or damaged, or its weights are of another shape.
    """
    saved = _load(path)
    part = saved["run"].get("part", "network")
    if part == "none":
        return
    target, state = (network.body if part == "body" else network), saved["network"]
    if isinstance(target, Vgg):
        state = subsampled(state, target)
    if part == "network" and saved["categories"] != list(categories):
        print(
            f"{path}: {len(saved['categories'])} categories, here {len(categories)}, "
            "not the same: the last layer starts anew",
            file=sys.stderr,
        )
        own = network.state_dict().items()
        last = (LAST_LAYER, "target_")
        state = state | {name: value for name, value in own if name.startswith(last)}
    try:
        target.load_state_dict(state)
    except RuntimeError as error:
        raise BadInput(
            f"{path}: its weights do not fit this network ({_reasons(error)}); "
            "choose an `init` of the same network"
        ) from error


def _load(path: Path) -> dict[str, Any]:
    saved = load_checkpoint(path, CPU)
    kinds = {"run": dict, "network": dict, "categories": list}
    for name, kind in kinds.items():
        if not isinstance(saved[name], kind):
            raise BadInput(f"{path}: not a checkpoint of this project ({name}); make it anew")
    return saved


def _reasons(error: Exception) -> str:
    """The first of what torch finds wrong with a state dict."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = lines[1:3] or lines
    return " ".join(line if len(line) < 200 else f"{line[:200]}..." for line in lines)


# --- others' -------------------------------------------------------------------------------------
def read_body(path: Path, depth: int) -> ResNet | Vgg:
    """A body from a file of torchvision's or timm's names.

    Args:
        path: a state dict as torch or safetensors writes it, alone or as a training program wraps
            it, with or without the last layer, of ImageNet's categories.
        depth: 50, 101 or 152: a ResNet's; 16: VGG-16, with its full layers.

    Raises:
        BadFile: not there, not readable, no state dict, or not of this body.
    """
    state = read_state_dict(path)
    return _vgg(path, state) if depth == 16 else _resnet(path, state, depth)


def _vgg(path: Path, state: Mapping[str, Tensor]) -> Vgg:
    """VGG-16 with its full layers as they are: fc6 of 7x7, which keeps the size."""
    with torch.device("meta"):
        body = vgg16(kernel=7, dilation=1, channels=4096)
    try:
        body.load_state_dict(convolutional(state), assign=True)
    except (RuntimeError, ValueError) as error:
        found = _depth(state)
        if found is not None:
            raise BadFile(path, f"a ResNet-{found}, no VGG-16", "correct `depth`") from error
        problem = f"these weights do not fit the body ({_reasons(error)})"
        remedy = "put weights of VGG-16 there, without BatchNorm, in torchvision's or timm's form"
        raise BadFile(path, problem, remedy) from error
    return body.float()


def _resnet(path: Path, state: Mapping[str, Tensor], depth: int) -> ResNet:
    body = resnet(depth=depth, stride=32)
    try:
        load_body_weights(body, state)
    except ValueError as error:
        found = _depth(state)
        if "features.0.weight" in state:
            raise BadFile(path, f"no ResNet-{depth}, but a VGG", "correct `depth`") from error
        if found not in (None, depth):
            raise BadFile(path, f"a ResNet-{found}, not -{depth}", "correct `depth`") from error
        remedy = f"put weights of an original ResNet-{depth} there, in torchvision's or timm's form"
        raise BadFile(path, str(error), remedy) from error
    return body


def _depth(state: Mapping[str, Tensor]) -> int | None:
    """Which of our bodies has these blocks, by their names."""
    names = [name.split(".") for name in state]
    blocks = {(part[0], part[1]) for part in names if part[0].startswith("layer")}
    counts = tuple(sum(layer == f"layer{n}" for layer, _ in blocks) for n in (1, 2, 3, 4))
    found = (depth for depth, plan in PLANS.items() if plan.blocks == counts)
    return next(found, None) if "layer1.0.conv3.weight" in state else None
