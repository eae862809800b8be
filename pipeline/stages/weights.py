"""Stage `weights`: what networks start from."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from pipeline.checkpoints import read_body, save_weights
from pipeline.datasets.archives import Archive
from pipeline.datasets.download import PAUSES, obtain_all
from pipeline.datasets.places import dataset_root
from pipeline.datasets.processes import map_in_order
from pipeline.datasets.sample import draw_crop
from pipeline.errors import BadFile, PlaceByHand, need_file
from pipeline.models.resnet import CropClassifier, resnet
from pipeline.params import Params
from pipeline.params_networks import CropWeights, FileWeights, ImagenetWeights
from pipeline.training import set_learning_rate, sgd, use_threads
from pipeline.transforms import normalise
from pipeline.work import open_work


def weights(root: Path, params: Params, name: str) -> None:
    """Write data/models/<name>.pt: no weights, ImageNet's, a file's, or a body trained on crops."""
    settings = params.weights[name]
    # torch's generator is in every file, and begins at another place each time
    torch.manual_seed(0)
    with open_work(root, stage="weights", key=name, sections=["weights"], inputs=[]) as work:
        model = work.folder / "model.pt"
        if isinstance(settings, CropWeights):
            save_weights(model, train_on_crops(settings))
        elif isinstance(settings, ImagenetWeights):
            save_weights(model, imagenet_body(settings.depth, root / "data/raw/weights"))
        elif isinstance(settings, FileWeights):
            save_weights(model, file_body(settings, dataset_root(root, settings.place)))
        else:
            save_weights(model, None)
        work.publish({model: root / "data" / "models" / f"{name}.pt"})


def imagenet_body(depth: int, folder: Path, pauses: Sequence[float] = PAUSES) -> nn.Module:
    """A body with torchvision's ImageNet weights, downloaded or as put into `folder`.

    Args:
        depth: 16 for VGG-16, 50, 101 or 152 for a ResNet.
        pauses: seconds to wait each time that the address gave nothing.

    Raises:
        PlaceByHand: the file is not there and cannot be fetched.
        BadInput: the file has another digest than its name says, or other weights.
    """
    from torchvision import models  # here: slow to import, and needed for this kind only

    url = {
        16: models.VGG16_Weights.IMAGENET1K_V1,
        50: models.ResNet50_Weights.IMAGENET1K_V1,
        101: models.ResNet101_Weights.IMAGENET1K_V1,
        152: models.ResNet152_Weights.IMAGENET1K_V1,
    }[depth].url
    path = folder / url.rsplit("/", 1)[1]
    digest = path.stem.rsplit("-", 1)[1]  # torchvision's names end in the start of their SHA-256
    # bytes, about
    size = {16: 553_400_000, 50: 102_500_000, 101: 178_800_000, 152: 241_600_000}[depth]
    file = Archive(path.name, (url,), size, f"sha256:{digest}")
    obtain_all([file], folder, pauses=pauses)
    need_digest(path, digest, "damaged, or another file; delete it and run again")
    return read_body(path, depth)


def file_body(settings: FileWeights, folder: Path) -> nn.Module:
    """A body with the weights in a file of the user's.

    Raises:
        PlaceByHand: the file is not there.
        BadInput: it has another digest than `settings` says, or other weights.
    """
    path = folder / settings.file
    body = "VGG-16" if settings.depth == 16 else f"a ResNet-{settings.depth}"
    if not path.exists():
        raise PlaceByHand(
            f"{path} is not there. Put the weights of {body} there (torch or safetensors, in "
            "torchvision's or timm's names), and run again"
        )
    if settings.sha256 != "none":
        need_digest(path, settings.sha256, "correct `sha256`, or put the right file there")
    return read_body(path, settings.depth)


def need_digest(path: Path, digest: str, remedy: str) -> None:
    """BadFile unless the SHA-256 of a file starts with `digest`."""
    need_file(path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digest):
        raise BadFile(path, f"its SHA-256 is {found}, and does not start with {digest}", remedy)


def train_on_crops(settings: CropWeights) -> nn.Module:
    """A body that has learned to tell the sample's kinds on drawn crops of one object each.

    It stands in for ImageNet: classification, on other pictures than those of the sample.
    """
    draw = partial(draw_crop, size=settings.size, seed=settings.seed)
    crops, kinds = zip(*map_in_order(draw, range(settings.crops), "drawing crops"), strict=True)
    images, truth = np.stack(crops), torch.tensor(kinds)

    use_threads(settings.threads)
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    body = resnet(depth=settings.depth, stride=16)
    network = CropClassifier(body, int(truth.max()) + 1).to(memory_format=torch.channels_last)
    optimizer = sgd(
        network, lr=settings.lr, momentum=0.9, nesterov=True, weight_decay=5e-4, bias_lr_factor=1.0
    )
    for step in tqdm(range(settings.steps), desc="learning crops", disable=None):
        chosen = rng.choice(len(images), settings.batch, replace=False)
        flips = rng.integers(0, 2, 2) * 2 - 1  # the same for the batch: up or down, left or right
        batch = np.ascontiguousarray(images[chosen, :: flips[0], :: flips[1]])
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            logits = network(normalise(torch.from_numpy(batch)))
        loss = F.cross_entropy(logits.float(), truth[chosen])
        set_learning_rate(optimizer, settings.lr * (1 - step / settings.steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return body
