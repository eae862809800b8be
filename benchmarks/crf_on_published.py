"""The dense CRF on label maps that a published network gave without one, against their own CRF.

    python benchmarks/crf_on_published.py --published DIR --voc DIR --out FILE.md

A folder of published outputs holds, for images of VOC 2012 val, `gt`, `res_none` (the network's
labels before a CRF) and `res_crf` (after it). The network's scores are not there. They are made up
from its labels, in these ways, all of them reported. They were set before this script had any
result; a trial with blurred labels and one CRF, which had raised mean IoU, was known:

    confidence   p of 0.5, 0.7 and 0.9 on the label, the rest spread evenly over the others
    blur         none; or the labels, a map of 0 and 1 for each category, blurred beforehand by a
                 Gaussian of 8 pixels, for the network had a score for each 8 x 8 pixels
    CRF          all eight published sets of numbers of `pipeline.crf.dense.PUBLISHED`

Blurred labels have other best categories than the labels had, so a row "blur alone" says what that
does without a CRF.

`ABOUT`, which goes to the table, says what is measured. Three minutes of a core.

C categories, H x W pixels, I images.
"""

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from pipeline.categories import VOC
from pipeline.crf.dense import PUBLISHED, mean_field
from pipeline.datasets.form import read_image
from pipeline.datasets.processes import map_in_threads
from pipeline.machine import machine
from pipeline.masks import decode_index_png
from pipeline.metrics.semantic import confusion_matrix, scores

CONFIDENCES = (0.5, 0.7, 0.9)
CELL = 8  # pixels; the stride of the published network's scores
BLURS = (0, CELL)  # sigma in pixels; 0: none
ABOUT = """\
The published outputs are label maps of a network before and after its own CRF; which of DeepLab's
networks it is, they do not say. Its scores are not there, so scores are made up from the labels
before the CRF: p on the label, the rest spread evenly, with and without a blur of the labels by 8
pixels, a cell of the network. The settings were set before the first version of this table, and all
are here; one trial with a blur and one CRF, which had raised mean IoU, was known. What a CRF gains
on the network's own scores this cannot tell; only whether ours goes the same way.

Mean IoU, in %, is of one confusion matrix over all images: first over the categories that the truth
holds, by which images go up and down; then, as the pipeline has it, over those too that are only
predicted, each 0. The second was in the first version of this table alone; the first, that of the
known answer for these maps, was added after it was seen: some pixels of two categories that no
image holds are in the labels before the CRF, and the second mean moves by up to 6 points when a CRF
or a blur removes them.
"""
Counts = np.ndarray  # (I, C, C + 1) int64: a confusion matrix of each image


# --- scores and labels ----------------------------------------------------------------------------
def shares(labels: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W) labels as (C, H, W) float32, 0..1: how much of a pixel is of each category."""
    hot = (labels == np.arange(len(VOC))[:, None, None]).astype(np.float32)
    if sigma == 0:
        return hot
    return np.array([cv2.GaussianBlur(h, (0, 0), sigma) for h in hot])


def probabilities(share: np.ndarray, confidence: float) -> np.ndarray:
    """`confidence` on a category that has all of a pixel, the rest spread. (C, H, W) float32."""
    rest = (1 - confidence) / (len(share) - 1)
    return np.float32(confidence - rest) * share + np.float32(rest)


def best(maps: np.ndarray) -> np.ndarray:
    return maps.argmax(axis=0).astype(np.uint8)


# --- one image ------------------------------------------------------------------------------------
def label_maps(before: np.ndarray, image: np.ndarray) -> dict[tuple, np.ndarray]:
    """All estimates from the labels before a CRF: {(blur, confidence, CRF): (H, W) uint8}.

    A blur alone is under (blur, None, None).
    """
    found = {}
    for sigma in BLURS:
        share = shares(before, sigma)
        if sigma > 0:
            found[sigma, None, None] = best(share)
        for confidence in CONFIDENCES:
            unary = probabilities(share, confidence)
            for name, crf in PUBLISHED.items():
                found[sigma, confidence, name] = best(mean_field(unary, image, crf))
    return found


def counts_of_image(published: Path, images: Path, image_id: str) -> dict[object, np.ndarray]:
    """{"before" | "after" | as `label_maps`: confusion matrix (C, C + 1)}."""
    truth, before, after = (
        decode_index_png(published / kind / f"{image_id}.png")
        for kind in ("gt", "res_none", "res_crf")
    )
    maps: dict[object, np.ndarray] = {"before": before, "after": after}
    maps |= label_maps(before, read_image(images / f"{image_id}.jpg"))
    return {name: confusion_matrix(made, truth, len(VOC)) for name, made in maps.items()}


# --- the table ------------------------------------------------------------------------------------
def mean_iou(matrix: np.ndarray) -> float:
    """Over the categories that the truth holds, 0..1, of a confusion matrix (C, C + 1)."""
    return float(scores(matrix).iou[matrix.sum(axis=1) > 0].mean())


def of_all(counts: Counts) -> float:
    return mean_iou(counts.sum(axis=0))


def row(label: str, counts: Counts, before: Counts, after: Counts) -> str:
    """A line: scores over all images, their gain, and in how many images they rose and fell."""
    own, gain = scores(counts.sum(axis=0)), of_all(counts) - of_all(before)
    change = np.array([mean_iou(a) - mean_iou(b) for a, b in zip(counts, before, strict=True)])
    return (
        f"| {label} | {100 * of_all(counts):.1f} | {100 * gain:+.1f} | "
        f"{gain / (of_all(after) - of_all(before)):.2f} | {100 * own.mean_iou:.1f} | "
        f"{100 * own.pixel_accuracy:.1f} | {(change > 0).sum()} | {(change < 0).sum()} |"
    )


def table(counts: dict[object, Counts]) -> list[str]:
    before, after = counts["before"], counts["after"]
    lines = [
        "| scores from labels | CRF | mean IoU, categories in the truth | gain | part of the "
        "published gain | mean IoU, all that occur | pixels right | images up | images down |",
        "|---" * 9 + "|",
        row("the network's labels | none", before, before, after),
        row("(its own scores) | published maps", after, before, after),
    ]
    for name, of_name in counts.items():
        if not isinstance(name, tuple):
            continue
        sigma, confidence, crf = name
        how = "no blur" if sigma == 0 else f"blur of {sigma}"
        label = f"{how} alone | none" if crf is None else f"{how}, p {confidence} | {crf}"
        lines.append(row(label, of_name, before, after))
    return lines


def summary(counts: dict[object, Counts]) -> str:
    before = of_all(counts["before"])
    by_blur: dict[int, list[float]] = {sigma: [] for sigma in BLURS}
    for name, of_name in counts.items():
        if isinstance(name, tuple) and name[2] is not None:
            by_blur[name[0]].append(100 * (of_all(of_name) - before))
    parts = [
        f"{sum(gain > 0 for gain in gains)} of {len(gains)} settings "
        f"{'with' if sigma else 'without'} blur (gains from {min(gains):+.2f} to {max(gains):+.2f})"
        for sigma, gains in by_blur.items()
    ]
    return (
        f"The published CRF moves mean IoU over the categories in the truth by "
        f"{100 * (of_all(counts['after']) - before):+.1f}. Ours moves it in the same direction in "
        f"{' and '.join(parts)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    text = "the folder that holds gt/, res_none/, res_crf/"
    parser.add_argument("--published", type=Path, required=True, help=text)
    parser.add_argument("--voc", type=Path, required=True, help="the folder that holds VOC2012/")
    parser.add_argument("--out", type=Path, required=True, help="the table, a .md")
    given = parser.parse_args()

    images = given.voc / "VOC2012" / "JPEGImages"
    ids = sorted(path.stem for path in (given.published / "gt").glob("*.png"))
    if missing := [image_id for image_id in ids if not (images / f"{image_id}.jpg").is_file()]:
        parser.error(f"{images}: no image of {', '.join(missing)}")
    if not ids:
        parser.error(f"{given.published / 'gt'}: no label map in it")

    def counted(image_id: str) -> dict[object, np.ndarray]:
        return counts_of_image(given.published, images, image_id)

    of_images = list(map_in_threads(counted, ids, "images"))
    counts = {name: np.array([c[name] for c in of_images]) for name in of_images[0]}
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba"))
    lines = [
        "# The dense CRF on published label maps\n",
        f"`python benchmarks/crf_on_published.py --published DIR --voc DIR --out FILE.md` on "
        f"{machine()}, Python {platform.python_version()}, {versions}.\n",
        ABOUT,
        f"{len(ids)} images of VOC 2012 val: {', '.join(ids)}.\n",
        f"{summary(counts)}\n",
        *table(counts),
    ]
    partial = given.out.with_name(f".{given.out.name}.partial")
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, given.out)


if __name__ == "__main__":
    main()
