"""Views of images and label maps: where each pixel comes from."""

import cv2
import numpy as np
import pytest
import torch

from pipeline.params import Augmentation
from pipeline.transforms import (
    MEAN,
    PADDING,
    STD,
    draw_view,
    labels_on_grid,
    normalise,
    random_view,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8),
        rng(2).integers(0, 21, (height, width), dtype=np.uint8),
    )


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Red grows by 2 a column and green by 2 a row; the label numbers blocks of 8x8 pixels."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([2 * x, 2 * y, 0 * x], axis=-1).astype(np.uint8)
    return image, (y // 8 * 12 + x // 8).astype(np.uint8)


def test_a_full_size_view_at_scale_one_is_the_image():
    image, label_map = noise(37, 53)
    view, labels = random_view(image, label_map, Augmentation((37, 53), (1.0, 1.0), "none"), rng())
    assert np.array_equal(view, image)
    assert np.array_equal(labels, label_map)


def test_flips_are_exact_and_all_of_them_occur():
    image, label_map = noise(20, 30)
    flips = {
        "none": lambda a: a,
        "horizontal": lambda a: a[:, ::-1],
        "vertical": lambda a: a[::-1],
        "both": lambda a: a[::-1, ::-1],
    }
    for mode, expected in (
        ("none", {"none"}),
        ("horizontal", {"none", "horizontal"}),
        ("both", set(flips)),
    ):
        seen = set()
        for seed in range(40):
            view, labels = random_view(
                image, label_map, Augmentation((20, 30), (1.0, 1.0), mode), rng(seed)
            )
            name = next(n for n, flip in flips.items() if np.array_equal(flip(image), view))
            assert np.array_equal(flips[name](label_map), labels)
            seen.add(name)
        assert seen == expected


def test_the_flip_of_a_view_is_the_view_of_the_flip():
    image, label_map = noise(61, 83)
    for seed in range(30):
        still, moved = (
            random_view(image, label_map, Augmentation((48, 64), (0.5, 1.5), flip), rng(seed))
            for flip in ("none", "both")
        )
        matrix = draw_view((61, 83), Augmentation((48, 64), (0.5, 1.5), "both"), rng(seed))
        x, y = np.sign(np.diag(matrix)).astype(int)
        mirrored = [array[::y, ::x] for array in still]
        assert np.abs(mirrored[0].astype(int) - moved[0]).max() <= 1  # uint8 rounds
        assert np.array_equal(mirrored[1], moved[1])


def test_four_channels_are_warped_to_the_same_bits_as_three():
    image, label_map = noise(61, 83)
    augmentation = Augmentation((48, 64), (0.5, 1.5), "both")
    for seed in range(30):
        view, _ = random_view(image, label_map, augmentation, rng(seed))
        expected = cv2.warpAffine(
            image,
            draw_view((61, 83), augmentation, rng(seed)),
            (64, 48),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=PADDING,
        )
        assert np.array_equal(view, expected)


def test_a_crop_at_scale_one_is_a_part_of_the_image_anywhere():
    image, label_map = noise(20, 30)
    corners = set()
    for seed in range(300):
        augmentation = Augmentation((16, 24), (1.0, 1.0), "none")
        view, labels = random_view(image, label_map, augmentation, rng(seed))
        matrix = draw_view((20, 30), augmentation, rng(seed))
        x, y = matrix[:, 2].astype(int)
        assert np.array_equal(view, image[y : y + 16, x : x + 24])
        assert np.array_equal(labels, label_map[y : y + 16, x : x + 24])
        corners.add((x, y))
    assert {x for x, _ in corners} == set(range(7))
    assert {y for _, y in corners} == set(range(5))


def test_outside_the_image_are_the_mean_colour_and_no_label():
    image, label_map = noise(10, 10)
    augmentation = Augmentation((16, 14), (1.0, 1.0), "none")
    view, labels = random_view(image, label_map, augmentation, rng(3))
    x, y = -draw_view((10, 10), augmentation, rng(3))[:, 2].astype(int)
    inside = np.zeros((16, 14), bool)
    inside[y : y + 10, x : x + 10] = True
    assert np.array_equal(view[inside].reshape(10, 10, 3), image)
    assert np.array_equal(labels[inside].reshape(10, 10), label_map)
    assert (view[~inside] == PADDING).all()
    assert (labels[~inside] == 255).all()


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.37, 2.0])
def test_image_and_labels_of_a_view_come_from_the_same_place(scale):
    image, label_map = coordinates(90, 94)
    for seed in range(8):
        augmentation = Augmentation((64, 64), (scale, scale), "both")
        view, labels = random_view(image, label_map, augmentation, rng(seed))
        matrix = draw_view((90, 94), augmentation, rng(seed))
        y, x = np.mgrid[:64, :64]
        source_x, source_y = np.einsum("ij,jhw->ihw", matrix, np.stack([x, y, np.ones_like(x)]))
        inside = (source_x > 0) & (source_x < 93) & (source_y > 0) & (source_y < 89)
        assert inside.mean() > 0.8
        assert np.abs(view[..., 0] / 2 - source_x)[inside].max() < 0.35  # of a pixel; uint8 rounds
        assert np.abs(view[..., 1] / 2 - source_y)[inside].max() < 0.35
        # at a distance from a block's border the nearest pixel's label is beyond doubt
        sure = inside & (np.abs((source_x + 0.5) % 8 - 4) < 3.4)
        sure &= np.abs((source_y + 0.5) % 8 - 4) < 3.4
        expected = (source_y + 0.5) // 8 * 12 + (source_x + 0.5) // 8
        assert np.array_equal(labels[sure], expected[sure])


def test_pixel_centres_are_at_one_half():
    matrix = draw_view((8, 8), Augmentation((16, 16), (2.0, 2.0), "none"), rng())
    assert matrix.tolist() == [[0.5, 0.0, -0.25], [0.0, 0.5, -0.25]]


def test_scales_are_drawn_between_the_bounds():
    augmentation = Augmentation((16, 16), (0.5, 2.0), "none")
    scales = [1 / draw_view((16, 16), augmentation, rng(s))[0, 0] for s in range(200)]
    assert 0.5 <= min(scales) < 0.6
    assert 1.9 < max(scales) <= 2.0


def test_a_view_is_a_function_of_the_generators_seed():
    image, label_map = noise(40, 40)
    augmentation = Augmentation((32, 32), (0.8, 1.25), "both")
    first, again, other = (random_view(image, label_map, augmentation, rng(s)) for s in (5, 5, 6))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_a_cell_has_the_label_at_its_centre():
    label_map = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24)
    assert labels_on_grid(label_map, 8).tolist() == [
        [4 * 24 + 4, 4 * 24 + 12, 4 * 24 + 20],
        [12 * 24 + 4, 12 * 24 + 12, 12 * 24 + 20],
    ]
    batch = torch.from_numpy(label_map.astype(np.int64))[None]
    assert labels_on_grid(batch, 8).shape == (1, 2, 3)


def test_a_crop_that_does_not_divide_into_cells_is_refused():
    with pytest.raises(ValueError, match="multiples of the stride"):
        labels_on_grid(np.zeros((16, 20), np.uint8), 8)


def test_on_corners_a_cell_has_the_label_there():
    label_map = np.arange(9 * 17, dtype=np.uint16).reshape(9, 17)
    assert labels_on_grid(label_map, 8, "corners").tolist() == [
        [0, 8, 16],
        [8 * 17, 8 * 17 + 8, 8 * 17 + 16],
    ]
    batch = torch.from_numpy(label_map.astype(np.int64))[None]
    assert labels_on_grid(batch, 8, "corners").shape == (1, 2, 3)
    assert labels_on_grid(label_map[:1, :1], 8, "corners").tolist() == [[0]]


@pytest.mark.parametrize("axis", [0, 1])
def test_labels_of_the_flip_are_the_flip_of_the_labels_on_corners(axis):
    _, label_map = noise(33, 41)
    expected = np.flip(labels_on_grid(label_map, 8, "corners"), axis)
    assert np.array_equal(labels_on_grid(np.flip(label_map, axis), 8, "corners"), expected)


@pytest.mark.parametrize("size", [(16, 17), (17, 16), (24, 24)])
def test_a_crop_without_cells_on_its_corners_is_refused(size):
    with pytest.raises(ValueError, match="multiples of the stride, and 1 more"):
        labels_on_grid(np.zeros(size, np.uint8), 8, "corners")


def test_normalising_takes_the_mean_colour_to_zero():
    images = torch.tensor([0, 255, 124], dtype=torch.uint8).repeat_interleave(3).reshape(1, 1, 3, 3)
    out = normalise(images)
    assert out.shape == (1, 3, 1, 3)
    expected = [[(v - m) / s for v in (0, 1, 124 / 255)] for m, s in zip(MEAN, STD, strict=True)]
    torch.testing.assert_close(out[0, :, 0], torch.tensor(expected))
    assert out[0, 0, 0, 2].abs() < 0.01
    assert normalise(torch.zeros(2, 4, 6, 3, dtype=torch.uint8)).is_contiguous(
        memory_format=torch.channels_last
    )
