"""What runs would cost before any of them is started: arithmetic and bytes, by stated formulas."""

from collections.abc import Iterable

from pipeline.categories import CITYSCAPES, COCO, CONTEXT, SAMPLE, VOC, things_of
from pipeline.datasets import bsds, cityscapes, coco, context, sbd, voc
from pipeline.datasets.archives import ARCHIVES
from pipeline.datasets.places import home
from pipeline.params import Params
from pipeline.params_datasets import (
    Bsds500Dataset,
    CityscapesDataset,
    CocoDataset,
    ContextDataset,
    Dataset,
    FolderDataset,
    MixtureDataset,
    SampleDataset,
    SbdDataset,
    Voc2007Dataset,
    Voc2012Dataset,
)
from pipeline.params_networks import (
    Deeplab,
    DeeplabLargeFov,
    Fcrn,
    FcrnExtended,
    ImagenetWeights,
    Network,
)
from pipeline.params_training import InstanceRun, TrainingRun

_BYTES_PER_PROPOSAL_TABLE_ROW = 39 * 1024  # measured: 5,000 candidates of a 375 x 500 photograph
_FLOP_PER_SECOND = 100e12  # assumed of a GPU, sustained; an H200's peak is 790e12 in bf16
_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # He et al., Table 1
# VGG-16's groups in DeepLab: convolutions, channels, pixels per cell
_VGG = ((2, 64, 1), (2, 128, 2), (3, 256, 4), (3, 512, 8), (3, 512, 8))
_CHANNELS = {Deeplab: 4096, DeeplabLargeFov: 1024}  # of fc6 and fc7


def describe_costs(params: Params, added: Iterable[tuple[str, str]]) -> list[str]:
    """Lines on the bytes and the training time that entries of `params` mean.

    Args:
        added: the entries (section, name) to count.
    """
    added = list(added)
    datasets = {name for section, name in added if section == "datasets"}
    downloads, by_hand = bytes_to_fetch(params, datasets)
    parts = {"downloads": downloads, "behind a login": by_hand, "proposals": 0, "models": 0}
    flop, uncounted = 0.0, []
    for section, name in added:
        entry = getattr(params, section)[name]
        if section == "proposals" and entry.algorithm.kind != "none":
            sizes = split_sizes(params.datasets[entry.dataset])
            images = next((sizes[s] for s in ("mixed", "train_aug", "all") if s in sizes), 0)
            parts["proposals"] += images * _BYTES_PER_PROPOSAL_TABLE_ROW
        elif isinstance(entry, ImagenetWeights):
            parts["models"] += 4 * body_parameters(entry.depth)
        elif isinstance(entry, TrainingRun):
            run_flop = training_flop(params, entry)
            if run_flop is None:
                uncounted.append(name)
            else:
                flop += run_flop
                parts["models"] += 4 * network_parameters(entry.network)
    told = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
    lines = [
        f"GB: about {sum(parts.values()) / 1e9:.1f} ({told}; less what there are copies of; "
        "what archives unpack to is extra)"
    ]
    if flop:
        lines.append(
            f"GPU-hours: about {flop / _FLOP_PER_SECOND / 3600:.1f}, if a GPU sustains 100 TFLOP/s "
            f"on the {flop / 1e18:.2f} EFLOP of the training steps; label steps, testing and "
            "reading are extra"
        )
    if uncounted:
        lines.append(f"GPU-hours: not estimated for {', '.join(uncounted)}")
    return lines


def bytes_to_fetch(params: Params, added: set[str]) -> tuple[int, int]:
    """Bytes of the archives that datasets mean and that no other dataset of `params` has.

    Args:
        added: names of datasets.

    Returns:
        What is downloaded, and what somebody with an account puts in place by hand.
    """
    there = {p for n, entry in params.datasets.items() if n not in added for p in _archives(entry)}
    wanted = {p for name in added for p in _archives(params.datasets[name])}
    archives = [archive for place in wanted - there for archive in ARCHIVES[place]]
    by_hand = sum(archive.size for archive in archives if not archive.urls)
    return sum(archive.size for archive in archives) - by_hand, by_hand


def _archives(entry: Dataset) -> set[str]:
    """The keys of ARCHIVES that a dataset needs."""
    match entry:
        case SampleDataset() | FolderDataset():
            return set()
        case Voc2012Dataset():
            return {"voc2012", "sbd"}
        case ContextDataset():
            return {"context", "voc2010"}
        case MixtureDataset():
            return set().union(*(_archives(part) for part in (entry.masks, *entry.boxes)))
    return {home("", entry)}


def split_sizes(entry: Dataset) -> dict[str, int]:
    """Published number of images of each split, and of `all`; empty for a folder."""
    match entry:
        case SampleDataset():
            both = entry.train + entry.extra
            sizes = {"train": entry.train, "train_aug": both, "val": entry.val}
            return sizes | ({"mixed": both + entry.more} if entry.more else {})
        case Voc2012Dataset():
            return voc.OFFICIAL
        case Voc2007Dataset():
            return voc.OFFICIAL_2007
        case SbdDataset():
            return sbd.OFFICIAL | {"all": sbd.OFFICIAL["train"] + sbd.OFFICIAL["val"]}
        case ContextDataset():
            return context.OFFICIAL | {"all": sum(context.OFFICIAL.values())}
        case CityscapesDataset():
            return cityscapes.OFFICIAL | {"all": sum(cityscapes.OFFICIAL.values())}
        case CocoDataset():
            return coco.OFFICIAL | {"all": coco.OFFICIAL[f"trainval{entry.year}"]}
        case Bsds500Dataset():
            return bsds.OFFICIAL | {"all": sum(bsds.OFFICIAL.values())}
        case MixtureDataset():
            masks, boxes = split_sizes(entry.masks), [split_sizes(b) for b in entry.boxes]
            if entry.split not in masks or not all("all" in sizes for sizes in boxes):
                return masks
            boxed = sum(sizes["all"] for sizes in boxes)
            return masks | {"boxes": boxed, "mixed": masks[entry.split] + boxed}
    return {}


def num_categories(entry: Dataset) -> int | None:
    """Categories that a network for this dataset tells apart.

    Returns:
        None for a folder, which says itself, and for BSDS500, which has none.
    """
    names = _category_names(entry)
    return None if names is None else len(names)


def _category_names(entry: Dataset) -> tuple[str, ...] | None:
    match entry:
        case FolderDataset() | Bsds500Dataset():
            return None
        case SampleDataset():
            return SAMPLE
        case CityscapesDataset():
            return CITYSCAPES
        case ContextDataset():
            return CONTEXT
        case CocoDataset(categories="coco"):
            return COCO
        case MixtureDataset():
            return _category_names(entry.masks)
    return VOC


def num_outputs(params: Params, run: TrainingRun) -> int | None:
    """Channels that a run's network ends in; None where `num_categories` is."""
    names = _category_names(params.datasets[run.dataset])
    if names is None:
        return None
    return 4 * len(things_of(names)) if isinstance(run, InstanceRun) else len(names)


def training_flop(params: Params, run: TrainingRun) -> float | None:
    """Floating-point operations of all steps of a training.

    Forward and twice that backward; a multiply-add is two operations.

    Returns:
        None for a network without a formula, and for somebody's own images, as yet uncounted.
    """
    images = split_sizes(params.datasets[run.dataset]).get(run.split)
    outputs = num_outputs(params, run)
    counted = isinstance(run.network, Deeplab) or run.network.depth in _BLOCKS
    if images is None or outputs is None or not counted:
        return None
    height, width = run.augmentation.crop
    per_pixel = multiply_adds_per_pixel(run.network, num_categories=outputs)
    return 3 * 2 * per_pixel * height * width * images * run.epochs


def multiply_adds_per_pixel(network: Network, *, num_categories: int) -> float:
    """Multiply-adds of the convolutions in one forward pass, per pixel of the input.

    The 3x3 convolution of a ResNet stage's first block carries the stride. Of DeepLab's cells on
    corners the outer halves are left out.

    Args:
        num_categories: channels of the output; `num_outputs` of a run.
    """
    if isinstance(network, Fcrn):
        return _fcrn_multiply_adds(network, num_categories)
    total, inputs = 0.0, 3
    for layers, width, reduction in _VGG:
        total += 9 * (inputs + (layers - 1) * width) * width / reduction**2
        inputs = width
    channels = _CHANNELS[type(network)]
    full = (network.kernel**2 * inputs + channels + num_categories) * channels
    return total + full / network.stride**2


def _fcrn_multiply_adds(network: Fcrn, num_categories: int) -> float:
    total = 7 * 7 * 3 * 64 / 2**2
    channels, reduction = 64, 4  # after the stem: 1 / 4 of the height and of the width
    for stage, (blocks, width) in enumerate(
        zip(_BLOCKS[network.depth], (64, 128, 256, 512), strict=True)
    ):
        before = reduction
        if stage > 0:
            reduction = min(2 * reduction, network.stride)
        first = channels * width / before**2
        first += (9 * width + 4 * width + 4 * channels) * width / reduction**2
        others = (4 * width + 9 * width + 4 * width) * width / reduction**2
        total += first + (blocks - 1) * others
        channels = 4 * width
    outputs = num_categories
    if isinstance(network, FcrnExtended) and network.hidden:
        channels, outputs = network.hidden, channels + num_categories  # two layers of one kernel
    return total + network.kernel**2 * channels * outputs / reduction**2


def network_parameters(network: Network) -> int:
    """Nearly all numbers of a trained network: those of its body's convolutions."""
    if isinstance(network, Fcrn):
        return body_parameters(network.depth)
    return _vgg_parameters(network.kernel, _CHANNELS[type(network)])


def _vgg_parameters(kernel: int, channels: int) -> int:
    total, inputs = 0, 3
    for layers, width, _ in _VGG:
        total += 9 * (inputs + (layers - 1) * width) * width
        inputs = width
    return total + (kernel**2 * inputs + channels) * channels


def body_parameters(depth: int) -> int:
    """Weights of a body: nearly all numbers of a file of starting weights.

    Of 16: VGG-16 with its full layers; of others: a ResNet's convolutions.
    """
    if depth == 16:
        return _vgg_parameters(7, 4096)
    total, channels = 7 * 7 * 3 * 64, 64
    for blocks, width in zip(_BLOCKS[depth], (64, 128, 256, 512), strict=True):
        total += channels * width + (9 * width + 4 * width + 4 * channels) * width
        total += (blocks - 1) * 17 * width * width
        channels = 4 * width
    return total
