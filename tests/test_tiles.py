"""Tiles: where they lie, what each counts, and label maps by them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.params import ONE_VIEW, Views
from pipeline.tiles import (
    SMALLEST_TILE,
    Segmenter,
    is_out_of_memory,
    label_map_of_tiles,
    largest_tile,
    spans,
    weights,
)

CPU = torch.device("cpu")


def picture(height: int, width: int) -> np.ndarray:
    """Blocks of random colour, and noise."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (-(-height // 20), -(-width // 20), 3))
    large = np.kron(blocks, np.ones((20, 20, 1)))[:height, :width]
    return np.clip(large + rng.normal(0, 20, large.shape), 0, 255).astype(np.uint8)


class Near(nn.Module):
    """Three categories from the 3 x 3 cells around each: sees 12 pixels from a cell's centre."""

    stride = 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return 4 * self.convolution(F.avg_pool2d(images, 8))


def segmenter(network: nn.Module, tile: int, **other) -> Segmenter:
    settings = {"stride": 8, "field_of_view": 24, "views": ONE_VIEW} | other
    return Segmenter(network.eval(), device=CPU, precision="fp32", tile=tile, **settings)


# --- where they lie, what they count --------------------------------------------------------------
def test_tiles_of_a_hundred_pixels_by_hand():
    assert spans(100, tile=40, overlap=16, align=4) == [(0, 40), (20, 60), (40, 80), (60, 100)]
    assert spans(101, tile=40, overlap=16, align=4) == [(0, 40), (24, 64), (44, 84), (64, 101)]
    assert spans(40, tile=40, overlap=16, align=4) == [(0, 40)]
    assert spans(41, tile=40, overlap=0, align=4) == [(0, 40), (4, 41)]


@settings(deadline=None)
@given(
    length=st.integers(1, 3000),
    tile=st.integers(1, 30),
    overlap=st.integers(0, 29),
    align=st.integers(1, 32),
)
def test_tiles_cover_an_axis_and_their_weights_sum_to_one(length, tile, overlap, align):
    tile, overlap = tile * align, min(overlap, tile - 1) * align
    found = spans(length, tile=tile, overlap=overlap, align=align)
    assert found[0][0] == 0 and found[-1][1] == length
    assert all(start % align == 0 and 0 < stop - start <= tile for start, stop in found)
    assert all(stop - start == tile for start, stop in found[:-1])
    for (before, end), (start, _) in zip(found, found[1:], strict=False):
        assert before < start <= end - overlap
    if len(found) > 1:  # one less would leave pixels out
        assert (len(found) - 1) * (tile - overlap) + overlap < length
    total = np.zeros(length)
    for (start, stop), weight in zip(found, weights(length, found, overlap=overlap), strict=True):
        assert (weight >= 0).all() and len(weight) == stop - start
        total[start:stop] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_an_overlap_is_nothing_then_a_ramp_then_all():
    left, right = weights(24, [(0, 16), (8, 24)], overlap=8)
    ramp = [1 / 8, 3 / 8, 5 / 8, 7 / 8]
    np.testing.assert_allclose(right, [0, 0, *ramp, 1, 1, *[1] * 8])
    np.testing.assert_allclose(left, right[::-1])


@pytest.mark.parametrize(("tile", "overlap"), [(30, 8), (32, 9), (32, 32), (32, -8)])
def test_tiles_that_do_not_fit_together_are_refused(tile, overlap):
    with pytest.raises(ValueError, match="multiples of 8"):
        spans(100, tile=tile, overlap=overlap, align=8)


# --- label maps -----------------------------------------------------------------------------------
def test_tiles_that_disagree_meet_in_the_middle_of_their_overlap():
    def of_the_left(part: np.ndarray) -> Tensor:
        """Category 0 for the tile with the first column, else category 1."""
        first = float(part[0, 0, 0] == 7)
        return torch.tensor([first, 1 - first])[:, None, None].expand(2, *part.shape[:2])

    image = np.zeros((10, 24, 3), np.uint8)
    image[:, 0] = 7
    label_map = label_map_of_tiles(of_the_left, image, tile=16, overlap=8, align=4)
    assert (label_map == np.repeat([0, 1], 12)).all()
    upright = label_map_of_tiles(of_the_left, image.swapaxes(0, 1), tile=16, overlap=8, align=4)
    assert (upright == label_map.T).all()


ALL_VIEWS = {"views": Views((0.75, 1.0, 1.25), flip=True, shifts=1)}


@pytest.mark.parametrize(
    ("size", "views"),
    [
        ((437, 280), {}),
        ((280, 437), {}),
        ((300, 301), {}),
        ((3, 22_000), {}),
        ((448, 288), ALL_VIEWS),
        ((288, 448), ALL_VIEWS),
    ],
)
def test_tiles_give_the_whole_images_label_map_where_the_network_sees_a_quarter_of_the_overlap(
    size, views
):
    image = picture(*size)
    whole = segmenter(Near(), 1000, **views).label_map(image, [])
    in_tiles = segmenter(Near(), 256, field_of_view=96, **views)  # 32 of 128 count nothing
    ours = in_tiles.label_map(image, [])
    assert len(np.unique(whole)) > 1 and ours.dtype == np.uint8
    assert in_tiles.tiled == 1
    assert (ours == whole).all()


def test_cells_of_other_views_lie_otherwise_where_the_sides_do_not_divide():
    image = picture(437, 283)
    whole = segmenter(Near(), 1000, **ALL_VIEWS).label_map(image, [])
    ours = segmenter(Near(), 256, field_of_view=96, **ALL_VIEWS).label_map(image, [])
    assert 0 < (ours != whole).mean() < 0.05  # mirrored ones start at the right border of a tile


def test_without_an_overlap_the_borders_show():
    image, sees = picture(300, 301), segmenter(Near(), 1000)
    whole = sees.label_map(image, [])
    apart = label_map_of_tiles(sees._probabilities, image, tile=128, overlap=0, align=32)
    assert (apart != whole).mean() > 0.01


def test_no_part_is_larger_than_a_tile_and_few_scores_are_kept():
    seen = []

    def uniform(part: np.ndarray) -> Tensor:
        seen.append(part.shape[:2])
        return torch.full((2, *part.shape[:2]), 0.5)

    label_map = label_map_of_tiles(uniform, picture(100, 500), tile=64, overlap=16, align=8)
    assert label_map.shape == (100, 500) and max(max(size) for size in seen) == 64
    assert len(seen) == len(spans(500, tile=64, overlap=16, align=8)) * 2


# --- memory ---------------------------------------------------------------------------------------
class Small(Near):
    """Has memory for views of so many pixels."""

    def __init__(self, pixels: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.pixels, self.error = pixels, error
        self.tried: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.tried.append(images.shape[2] * images.shape[3])
        if self.tried[-1] > self.pixels:
            raise self.error("CUDA out of memory. Tried to allocate 9 GiB")
        return super().forward(images)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_falls_back_to_tiles_of_half_the_side_and_says_so(error):
    network = Small(300**2, error)
    ours = segmenter(network, 2000)
    image, notes = picture(600, 840), list[str]()
    label_map = ours.label_map(image, notes)
    # 709 is the side of a square as large as the image
    said = [f"out of memory on cpu: tiles of {side} from here on" for side in (354, SMALLEST_TILE)]
    assert notes == said
    assert (
        network.tried[:3] == [600 * 840, 352 * 352, 256 * 256] and max(network.tried[2:]) == 2**16
    )
    assert ours.tiled == 1
    assert (label_map == segmenter(Near(), 2000).label_map(image, [])).all()
    network.tried.clear()
    notes.clear()
    ours.label_map(image, notes)
    assert not notes and max(network.tried) == 2**16  # what did not fit is not tried again


@pytest.mark.parametrize(("size", "said"), [((300, 400), "256 x 256"), ((40, 10), "20 x 20")])
def test_what_does_not_fit_in_the_smallest_tiles_is_told(size, said):
    with pytest.raises(BadInput, match=f"out of memory on cpu, even for {said} pixels"):
        segmenter(Small(50), 1000).label_map(picture(*size), [])


def test_other_failures_are_no_lack_of_memory():
    class Broken(Near):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("sizes differ")

    with pytest.raises(RuntimeError, match="sizes differ"):
        segmenter(Broken(), 1000).label_map(picture(40, 10), [])


def test_a_lack_of_memory_is_known_by_what_torch_and_numpy_say():
    for make in (lambda: torch.empty(1 << 60), lambda: np.empty(1 << 56)):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            make()
        assert is_out_of_memory(raised.value)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))


def test_the_first_tile_gets_smaller_with_scales_flips_and_categories():
    def side(device: str, categories: int = 21, scale: float = 1.0, flip: bool = False) -> int:
        device = torch.device(device)
        return largest_tile(device, num_categories=categories, views=Views((0.5, scale), flip, 1))

    assert side("cpu", 0) == int((3 * 2**30 / 400) ** 0.5)
    assert side("cpu", 0, 2.0) == side("cpu", 0) // 2 == side("cpu", 0, 0.7) // 2
    assert side("cpu", 81) < side("cpu", 21)
    assert side("cpu", flip=True) < side("cpu")
    assert side("cuda", 2) == 2**15 - 1  # 2 x 2^15 x 2^15 numbers are 2^31, one too many
    assert side("cuda", 2, 2.0) == 2**14 - 1 and side("cuda", 1, flip=True) == 2**15 - 1
