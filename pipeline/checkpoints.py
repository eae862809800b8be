"""Finished models: `data/models/<run>.pt`, in the form of a checkpoint without an optimizer.

Starting weights have that form too; ``run["part"]`` tells what they hold: "none" or a "body".
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import BadInput
from pipeline.models.fcrn import Fcrn, fcrn
from pipeline.params import Network, build
from pipeline.training import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


def build_network(network: Network, num_categories: int, *, seed: int) -> Fcrn:
    """The network that a run describes, with fresh weights drawn from a seed."""
    torch.manual_seed(seed)
    return fcrn(
        depth=network.depth,
        stride=network.stride,
        kernel=network.kernel,
        dilation=network.dilation,
        num_categories=num_categories,
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


def load_model(path: Path, device: torch.device) -> tuple[Fcrn, dict[str, Any]]:
    """A trained network in evaluation mode, and the checkpoint it came from.

    Raises:
        BadInput: the file is missing, damaged, or holds no trained network.
    """
    saved = load_checkpoint(path, CPU)
    if "part" in saved["run"]:
        raise BadInput(f"{path}: starting weights, not a trained network; name a training run")
    description = build(Network, saved["run"]["network"], str(path), "network")
    network = build_network(description, len(saved["categories"]), seed=0)
    network.load_state_dict(saved["network"])
    return network.to(device).eval(), saved


def start_from(path: Path, network: Fcrn) -> None:
    """Put starting weights into a network: none, those of its body, or all of another run's.

    Raises:
        BadInput: the file is missing or damaged, or its weights are of another shape.
    """
    saved = load_checkpoint(path, CPU)
    part = saved["run"].get("part", "network")
    if part == "none":
        return
    target = network.body if part == "body" else network
    try:
        target.load_state_dict(saved["network"])
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:4]]
        raise BadInput(
            f"{path}: its weights do not fit this network ({' '.join(reasons)}); "
            "choose an `init` of the same network and categories"
        ) from error
