"""Views of images and label maps: where each pixel comes from."""

import cv2
import numpy as np
import pytest
import torch

from pipeline.box_targets import (
    Standard,
    boxes_of,
    cell_centres,
    normalise_targets,
    raw_targets,
)
from pipeline.boxes import tight_box
from pipeline.params_training import Augmentation, StandardisedTargets
from pipeline.transforms import (
    MEAN,
    PADDING,
    STD,
    boxes_in_view,
    draw_view,
    labels_on_grid,
    normalise,
    random_object_view,
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


# --- objects -------------------------------------------------------------------------------------
def objects_scene(
    height: int, width: int, *, seed: int = 0, count: int = 12
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """An image, its object map, the boxes around what is seen of each object, and their things."""
    draw = rng(seed)
    objects = np.zeros((height, width), np.uint16)
    for number in range(1, count + 1):
        x, y = draw.integers(0, (width - 4, height - 4))
        objects[y : y + draw.integers(4, 30), x : x + draw.integers(4, 30)] = number
    boxes = np.array([tight_box(objects == n) for n in range(1, count + 1)], np.float32)
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, objects, boxes, draw.integers(0, 5, count)


VARIED = Augmentation((48, 64), (0.5, 1.7), "both")


def test_an_object_view_is_the_view_of_the_same_draw():
    image, objects, boxes, things = objects_scene(61, 83)
    for seed in range(20):
        expected, labels = random_view(image, objects.astype(np.uint8), VARIED, rng(seed))
        view, truth = random_object_view(
            image, objects, boxes, things, VARIED, rng(seed), stride=8, grid="centres"
        )
        assert view.dtype == np.uint8 and truth.dtype == np.float32
        assert truth.shape == (5, 6, 8) and truth.flags.c_contiguous
        assert np.array_equal(view, expected)
        numbers = labels_on_grid(np.where(labels == 255, 0, labels), 8).astype(int)  # 255: outside
        assert np.array_equal(truth[0], np.where(numbers > 0, things[numbers - 1] + 1, 0))


@pytest.mark.parametrize("grid, size", [("centres", (48, 64)), ("corners", (49, 65))])
def test_truth_equals_a_loop_over_cells(grid, size):
    image, objects, boxes, things = objects_scene(61, 83)
    augmentation = Augmentation(size, (0.5, 1.7), "both")
    found = set()
    for seed in range(20):
        _, truth = random_object_view(
            image, objects, boxes, things, augmentation, rng(seed), stride=8, grid=grid
        )
        matrix = draw_view((61, 83), augmentation, rng(seed))
        numbers = random_view(image, objects.astype(np.uint8), augmentation, rng(seed))[1]
        image_to_view = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
        for i, j in np.ndindex(truth.shape[1:]):
            place = (8 * i + 4, 8 * j + 4) if grid == "centres" else (8 * i, 8 * j)
            number = numbers[place]
            if number in (0, 255):
                assert not truth[:, i, j].any()
                continue
            assert truth[0, i, j] == things[number - 1] + 1
            ends = [
                (image_to_view @ [x - 0.5, y - 0.5, 1])[:2] + 0.5
                for x, y in boxes[number - 1].reshape(2, 2)
            ]
            expected = [*np.minimum(*ends), *np.maximum(*ends)]
            assert truth[1:, i, j] == pytest.approx(expected, abs=1e-4)
            found.add(number)
    assert len(found) > 8


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.37, 2.0])
def test_every_pixel_of_an_object_lies_in_its_box(scale):
    image, objects, boxes, things = objects_scene(61, 83)
    pixels = 0
    for seed in range(10):
        augmentation = Augmentation((48, 64), (scale, scale), "both")
        _, truth = random_object_view(
            image, objects, boxes, things, augmentation, rng(seed), stride=1, grid="corners"
        )
        number, x0, y0, x1, y1 = truth
        y, x = np.mgrid[:48, :64] + 0.5
        there = number > 0
        rounding = 0.01  # OpenCV counts in parts of a pixel
        assert (np.maximum(x0 - x, x - x1)[there] < rounding).all()
        assert (np.maximum(y0 - y, y - y1)[there] < rounding).all()
        pixels += there.sum()
    assert pixels > 5000


def test_a_view_at_another_scale_has_boxes_and_targets_of_that_scale():
    image, objects, boxes, things = objects_scene(40, 48)
    ys, xs = np.mgrid[:40, :48]
    for scale in (1, 2, 3):
        augmentation = Augmentation((40 * scale, 48 * scale), (scale, scale), "none")
        _, truth = random_object_view(
            image, objects, boxes, things, augmentation, rng(), stride=scale, grid="centres"
        )
        there = objects > 0
        assert np.array_equal(truth[0] > 0, there)
        assert truth[1:, there] == pytest.approx(scale * boxes[objects[there] - 1].T)
        centres = cell_centres(40, 48, stride=scale, grid="centres")
        raw = raw_targets(torch.from_numpy(truth[1:]), *centres, StandardisedTargets("standardise"))
        once = (boxes[objects[there] - 1, 0] + boxes[objects[there] - 1, 2]) / 2 - xs[there] - 0.5
        assert raw[0].numpy()[there] == pytest.approx(scale * once)


@pytest.mark.parametrize("stride, grid, size", [(1, "centres", (40, 56)), (8, "corners", (41, 57))])
def test_targets_of_a_flipped_view_are_flipped_and_dx_is_negated(stride, grid, size):
    image, objects, boxes, things = objects_scene(*size)
    cells = cell_centres(*[(side - 1) // stride + 1 for side in size], stride=stride, grid=grid)
    seen = set()
    for seed in range(12):
        still, moved = (
            random_object_view(
                image,
                objects,
                boxes,
                things,
                Augmentation(size, (1.0, 1.0), flip),
                rng(seed),
                stride=stride,
                grid=grid,
            )[1]
            for flip in ("none", "both")
        )
        matrix = draw_view(size, Augmentation(size, (1.0, 1.0), "both"), rng(seed))
        x, y = np.sign(np.diag(matrix)).astype(int)
        assert np.array_equal(still[0, ::y, ::x], moved[0])
        there = moved[0] > 0
        targets = [
            raw_targets(torch.from_numpy(truth[1:]), *cells, StandardisedTargets("standardise"))
            for truth in (still, moved)
        ]
        expected = targets[0].numpy()[:, ::y, ::x] * np.array([x, y, 1, 1])[:, None, None]
        assert np.array_equal(expected[:, there], targets[1].numpy()[:, there])
        seen.add((x, y))
    assert len(seen) == 4


def test_a_view_that_cuts_an_object_keeps_its_whole_box():
    objects = np.zeros((40, 60), np.uint16)
    objects[5:35, 10:50] = 1
    augmentation = Augmentation((24, 32), (2.0, 2.0), "none")
    for seed in range(5):
        _, truth = random_object_view(
            np.zeros((40, 60, 3), np.uint8),
            objects,
            np.array([[10, 5, 50, 35]]),
            np.array([3]),
            augmentation,
            rng(seed),
            stride=8,
            grid="centres",
        )
        left, top = 2 * (draw_view((40, 60), augmentation, rng(seed))[:, 2] + 0.25)
        box = [20 - left, 10 - top, 100 - left, 70 - top]  # 80 x 60 pixels in a view of 32 x 24
        there = truth[0] == 4
        assert there.any()
        assert (truth[1:, there].T == box).all()


def test_an_object_on_no_cell_is_absent():
    objects = np.zeros((16, 16), np.uint16)
    objects[1:3, 1:3], objects[9:15, 9:15] = 1, 2
    _, truth = random_object_view(
        np.zeros((16, 16, 3), np.uint8),
        objects,
        np.array([[1, 1, 3, 3], [9, 9, 15, 15]]),
        np.array([0, 1]),
        Augmentation((16, 16), (1.0, 1.0), "none"),
        rng(),
        stride=8,
        grid="centres",
    )
    assert truth[:, 1, 1].tolist() == [2, 9, 9, 15, 15]
    assert np.count_nonzero(truth[0]) == 1 and not truth[:, 0].any() and not truth[:, 1, 0].any()


def test_an_image_without_objects_has_truth_of_zeros():
    image, label_map = noise(20, 30)
    view, truth = random_object_view(
        image,
        np.zeros((20, 30), np.uint16),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        Augmentation((16, 24), (0.8, 1.2), "both"),
        rng(1),
        stride=8,
        grid="centres",
    )
    expected, _ = random_view(image, label_map, Augmentation((16, 24), (0.8, 1.2), "both"), rng(1))
    assert np.array_equal(view, expected)
    assert truth.shape == (5, 2, 3) and not truth.any()


@pytest.mark.parametrize("count", [256, 300, 65_535])
def test_more_objects_than_a_byte_counts_are_told_apart(count):
    objects = np.arange(256 * 256).reshape(256, 256)
    objects = np.where(objects <= count, objects, 0).astype(np.uint16)
    boxes = np.arange(4 * count, dtype=np.float32).reshape(-1, 4)
    _, truth = random_object_view(
        np.zeros((256, 256, 3), np.uint8),
        objects,
        boxes,
        np.zeros(count, np.int64),
        Augmentation((256, 256), (1.0, 1.0), "none"),
        rng(),
        stride=1,
        grid="centres",
    )
    there = objects > 0
    assert there.sum() == count
    assert np.array_equal(truth[1, there], boxes[objects[there] - 1, 0])
    assert not truth[:, ~there].any()


@pytest.mark.parametrize(
    "boxes, things, told",
    [(65_536, 65_536, "65536 objects in an image"), (3, 2, "3 boxes"), (1, 1, "for 2 objects")],
)
def test_objects_that_cannot_be_told_apart_are_refused(boxes, things, told):
    with pytest.raises(ValueError, match=told):
        random_object_view(
            np.zeros((8, 8, 3), np.uint8),
            np.full((8, 8), 2, np.uint16),
            np.zeros((boxes, 4), np.float32),
            np.zeros(things, np.int64),
            Augmentation((8, 8), (1.0, 1.0), "none"),
            rng(),
            stride=8,
            grid="centres",
        )


def test_boxes_go_into_a_view_and_back():
    _, _, boxes, _ = objects_scene(61, 83)
    for seed in range(20):
        matrix = draw_view((61, 83), VARIED, rng(seed))
        moved = boxes_in_view(boxes, matrix)
        assert (moved[:, 2:] > moved[:, :2]).all()
        back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
        assert boxes_in_view(moved, back) == pytest.approx(boxes, abs=1e-9)
        assert (moved[:, 2:] - moved[:, :2]) * np.abs(matrix[0, 0]) == pytest.approx(
            boxes[:, 2:] - boxes[:, :2]
        )


@pytest.mark.parametrize("grid, size", [("centres", (48, 64)), ("corners", (49, 65))])
def test_a_network_that_says_the_targets_of_a_view_says_its_boxes(grid, size):
    image, objects, boxes, things = objects_scene(61, 83)
    augmentation = Augmentation(size, (0.8, 1.7), "both")
    targets = StandardisedTargets("standardise")
    standard = Standard(torch.tensor([1.0, 2, 20, 30]), torch.tensor([5.0, 6, 7, 8]))
    for seed in range(5):
        _, truth = random_object_view(
            image, objects, boxes, things, augmentation, rng(seed), stride=8, grid=grid
        )
        there, true = truth[0] > 0, torch.from_numpy(truth[1:])
        centres = cell_centres(*there.shape, stride=8, grid=grid)
        outputs = normalise_targets(raw_targets(true, *centres, targets), standard)
        said = boxes_of(outputs, *centres, targets, standard)
        torch.testing.assert_close(said[:, there], true[:, there], rtol=0, atol=1e-3)


# --- colours -------------------------------------------------------------------------------------
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
