"""Objects as connected components of the label map: what voting for boxes has to beat.

C categories, T of them with objects; h x w cells, H x W pixels.
"""

import numpy as np
from skimage.measure import label

from pipeline.instances.decoding import Instances, best_first, check_maps
from pipeline.instances.pixel_masks import most_probable
from pipeline.instances.regions import encode_regions, regions_of
from pipeline.params import ComponentInstances


def component_instances(
    probabilities: np.ndarray,
    things: np.ndarray,
    *,
    size: tuple[int, int],
    stride: int,
    rule: ComponentInstances,
) -> Instances:
    """The connected parts (8 neighbours) of pixels whose most probable category is the same.

    The score is the mean probability of the category over the part, the support its number of
    pixels. The vote is the tight box, the peak the most probable pixel, of equals the first in the
    column furthest left.

    Args:
        probabilities: (C, h, w) float32. things: (T,), the categories that have objects.
        size: H, W. stride: pixels per cell; both as of `find_instances`.

    Returns:
        As `find_instances`.

    Raises:
        ValueError: arrays that do not fit together.
    """
    things = np.asarray(things, np.int64)
    check_maps(probabilities, things, size, stride)
    best, values = most_probable(probabilities, size=size, stride=stride)  # (W, H)
    row = np.full(len(probabilities), -1)
    row[things] = np.arange(len(things))
    numbers = label(row[best], background=-1, connectivity=2) - 1  # (W, H), -1 for none
    count = int(numbers.max()) + 1
    regions = regions_of(numbers, count)
    flat = np.flatnonzero(numbers >= 0)
    owners = numbers.ravel()[flat]
    scores = np.bincount(owners, weights=values.ravel()[flat], minlength=count) / regions.areas
    order = np.lexsort((-values.ravel()[flat], owners))  # by part, the most probable pixel first
    peaks = flat[order[np.searchsorted(owners[order], np.arange(count))]]
    rows = row[best.ravel()[peaks]]
    by_category = np.argsort(rows, kind="stable")
    chosen = by_category[best_first(scores[by_category], regions.areas[by_category])]
    chosen = chosen[regions.areas[chosen] >= rule.min_pixels]
    return Instances(
        things[rows[chosen]],
        scores[chosen],
        regions.areas[chosen],
        regions.boxes[chosen],
        encode_regions(regions, chosen, size[0] * size[1]),
        regions.boxes[chosen].astype(np.float32),
        np.stack(np.divmod(peaks[chosen], size[0]), axis=1),
    )
