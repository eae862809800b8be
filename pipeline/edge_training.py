"""`train-edges`: a forest that finds contours, from the contours that people drew for BSDS500."""

import time
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from pipeline.datasets.bsds import Bsds, fitting_and_reporting, open_bsds
from pipeline.datasets.edge_files import ucm_strength, write_forest
from pipeline.errors import BadInput
from pipeline.metrics.contours import count_matches, f_measures
from pipeline.proposals.boosted import edge_samples
from pipeline.proposals.edges import Edges, edges, thin_contours
from pipeline.proposals.forest import Forest, fit

SAMPLES = 3000  # per image
THRESHOLDS = np.linspace(0.02, 0.98, 49)


def train_edges(bsds: Path, out: Path, *, seed: int = 0) -> None:
    """Fit a forest, write it to `out` and print how well it and others find contours.

    Args:
        bsds: a copy of BSDS500 or of a part; see `fitting_and_reporting` for which images are
            fitted on and which are only measured.
        out: the forest, an .npz.

    Raises:
        BadInput: there is no place for `out`, or too few images.
        BadFile: the copy lacks something or is damaged.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise BadInput(f"{out}: no place for a file; name one in a folder that is there")
    cv2.setNumThreads(1)
    data = open_bsds(bsds)
    fitting, reporting = fitting_and_reporting(data)
    if not fitting:
        raise BadInput(f"{bsds}: {len(reporting)} images, none of them to fit on; copy more")
    begin = time.perf_counter()
    forest = fit_edges(data, fitting, seed=seed)
    write_forest(out, asdict(forest))
    print(f"{out}: from {len(fitting)} images in {time.perf_counter() - begin:.0f} s")
    sources: dict[str, Edges | None] = {
        "gradient": edges("gradient", sigma=1.5),
        "boosted": edges("boosted", forest=forest),
    }
    print(f"best F of contours, of {len(reporting)} other images (one threshold for all):")
    for name, source in sources.items():
        print(f"  {name:9} {best_f(data, reporting, source):.3f}")
    if compared := sorted(set(reporting) & data.with_ucm):
        print(f"of the {len(compared)} of them with a published gPb-UCM:")
        sources["gPb-UCM"] = None
        for name, source in sources.items():
            print(f"  {name:9} {best_f(data, tuple(compared), source):.3f}")


def fit_edges(data: Bsds, ids: tuple[str, ...], *, seed: int) -> Forest:
    """A forest fitted on images. The same for the same images and seed, bit for bit."""
    rng = np.random.default_rng(seed)
    drawn = []
    for image_id in tqdm(ids, desc="looking at images", disable=None):
        truth = data.read(image_id)
        drawn.append(edge_samples(truth.image, truth.boundaries, count=SAMPLES, rng=rng))
    rows, targets, weights = (np.concatenate(part, axis=-1) for part in zip(*drawn, strict=True))
    return fit(rows, targets, weights, trees=400, depth=6, rate=0.06, bins=64, share=0.5, seed=seed)


def best_f(data: Bsds, ids: tuple[str, ...], source: Edges | None) -> float:
    """F of contours at the threshold that is best for all these images together.

    Args:
        source: of the strengths; None for the published gPb-UCM.
    """
    counts = np.zeros((len(THRESHOLDS), 4), np.int64)
    for image_id in tqdm(ids, desc="measuring", disable=None):
        truth = data.read(image_id)
        if source is None:
            contours = ucm_strength(data.read_ucm(image_id))
        else:
            contours = thin_contours(source(truth.image))
        counts += count_matches(contours, truth.boundaries, THRESHOLDS)
    return float(f_measures(counts).max())
