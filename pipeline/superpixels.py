"""What follows from sets of superpixels, whoever made them: boxes and areas.

H x W pixels, P sets.
"""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def boxes_and_areas(superpixels, members, offsets):
    """The tight box and the pixels of each set.

    Args:
        superpixels: (H, W) uint16, the superpixel of each pixel.
        members: uint16, the superpixels of all sets one after another, once each.
        offsets: (P + 1,) int32, set i is members[offsets[i]:offsets[i + 1]].

    Returns:
        (P, 4) int32 and (P,) int32. Of a set without pixels the area is 0, the box of no meaning.
    """
    height, width = superpixels.shape
    corners = np.empty((superpixels.max() + 1, 4), np.int32)
    corners[:, 0], corners[:, 1], corners[:, 2:] = width, height, 0
    sizes = np.zeros(len(corners), np.int32)
    for y in range(height):
        for x in range(width):
            corner = corners[superpixels[y, x]]
            corner[0], corner[1] = min(corner[0], x), min(corner[1], y)
            corner[2], corner[3] = max(corner[2], x + 1), max(corner[3], y + 1)
            sizes[superpixels[y, x]] += 1
    boxes = np.zeros((len(offsets) - 1, 4), np.int32)
    areas = np.zeros(len(boxes), np.int32)
    for p in range(len(boxes)):
        x0, y0, x1, y1 = width, height, 0, 0
        for m in members[offsets[p] : offsets[p + 1]]:
            x0, y0 = min(x0, corners[m, 0]), min(y0, corners[m, 1])
            x1, y1 = max(x1, corners[m, 2]), max(y1, corners[m, 3])
            areas[p] += sizes[m]
        boxes[p, 0], boxes[p, 1], boxes[p, 2], boxes[p, 3] = x0, y0, x1, y1
    return boxes, areas
