"""What holds of the candidates of every method, for tests."""

import numpy as np

from pipeline.boxes import tight_box
from pipeline.proposals.form import Proposals


def same(one: Proposals, other: Proposals) -> bool:
    """Whether two sets of candidates are the same, byte by byte."""
    names = ("superpixels", "members", "offsets", "scores", "boxes", "areas")
    return all(getattr(one, n).tobytes() == getattr(other, n).tobytes() for n in names)


def check_boxes_and_areas(found: Proposals, masks: np.ndarray) -> None:
    """Assert that boxes are tight and areas those of the masks (P, H, W), and no id is skipped."""
    assert found.superpixels.dtype == np.uint16
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(found.boxes[i], tight_box(mask))
        assert found.areas[i] == mask.sum() > 0
    assert set(np.unique(found.superpixels)) == set(range(found.num_superpixels))
