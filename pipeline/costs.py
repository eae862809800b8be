"""What runs would cost before any of them is started: arithmetic and bytes, by stated formulas."""

from collections.abc import Iterable

from pipeline.params import Fcrn, ImagenetWeights, Params, SampleDataset, SemanticRun

# Published sizes of the splits of VOC2012 + SBD, images.
_VOC_SPLITS = {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582}
_VOC_DOWNLOADS = 2.0e9 + 1.4e9  # bytes: VOCtrainval_11-May-2012.tar and SBD's benchmark.tgz
_BYTES_PER_PROPOSAL_TABLE_ROW = 46 * 1024  # measured: 2,000 candidates of a 375 x 500 photograph
_FLOP_PER_SECOND = 100e12  # assumed of a GPU, sustained; an H200's peak is 790e12 in bf16
_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # He et al., Table 1


def describe_costs(params: Params, added: Iterable[tuple[str, str]]) -> list[str]:
    """Lines on the bytes and the training time that entries of `params` mean.

    Args:
        added: the entries (section, name) to count.
    """
    added = list(added)
    parts = {"downloads": 0.0, "proposals": 0.0, "models": 0.0}
    flop, uncounted = 0.0, []
    for section, name in added:
        entry = getattr(params, section)[name]
        if section == "datasets" and entry.kind == "voc2012":
            parts["downloads"] += _VOC_DOWNLOADS
        elif section == "proposals" and entry.kind != "none":
            images = _num_images(params, entry.dataset, "train_aug") or 0
            parts["proposals"] += images * _BYTES_PER_PROPOSAL_TABLE_ROW
        elif isinstance(entry, ImagenetWeights):
            parts["models"] += 4 * body_parameters(entry.depth)
        elif section in ("semantic", "boxsup"):
            run_flop = training_flop(params, entry)
            if run_flop is None:
                uncounted.append(name)
            else:
                flop += run_flop
                parts["models"] += 4 * body_parameters(entry.network.depth)
    sizes = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
    lines = [
        f"GB: about {sum(parts.values()) / 1e9:.1f} ({sizes}; what archives unpack to is extra)"
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


def training_flop(params: Params, run: SemanticRun) -> float | None:
    """Floating-point operations of all steps of a training; None for nets without a formula.

    Forward and twice that backward; a multiply-add is two operations.
    """
    images = _num_images(params, run.dataset, run.split)
    if images is None or run.network.depth not in _BLOCKS:
        return None
    height, width = run.augmentation.crop
    multiply_adds = multiply_adds_per_pixel(run.network, num_categories=21) * height * width
    return 3 * 2 * multiply_adds * images * run.epochs


def multiply_adds_per_pixel(network: Fcrn, *, num_categories: int) -> float:
    """Multiply-adds of the convolutions in one forward pass, per pixel of the input.

    The 3x3 convolution of a stage's first block carries the stride.
    """
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
    return total + network.kernel**2 * channels * num_categories / reduction**2


def body_parameters(depth: int) -> int:
    """Weights of a ResNet's convolutions: nearly all of a checkpoint's numbers."""
    total, channels = 7 * 7 * 3 * 64, 64
    for blocks, width in zip(_BLOCKS[depth], (64, 128, 256, 512), strict=True):
        total += channels * width + (9 * width + 4 * width + 4 * channels) * width
        total += (blocks - 1) * 17 * width * width
        channels = 4 * width
    return total


def _num_images(params: Params, dataset: str, split: str) -> int | None:
    entry = params.datasets[dataset]
    if isinstance(entry, SampleDataset):
        sizes = {"train": entry.train, "train_aug": entry.train + entry.extra, "val": entry.val}
        return sizes.get(split)
    return _VOC_SPLITS.get(split)
