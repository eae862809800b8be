"""A photograph under its objects: by hand on small images."""

import numpy as np
import pytest

from pipeline.masks import encode_rle
from pipeline.object_overlays import Drawn, named_overlay, object_colours, object_overlay


def test_each_object_has_a_colour_of_its_own_and_an_outline():
    image = np.full((40, 60, 3), 200, np.uint8)
    boxes = [(2, 20, 20, 38), (30, 20, 58, 38)]
    masks = [np.zeros((40, 60), bool) for _ in boxes]
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    drawn = [drawn_of(mask, box) for mask, box in zip(masks, boxes, strict=True)]
    picture = object_overlay(image, drawn).astype(int)
    assert (picture[:14] == 100).all() and (picture[20:38, 20:30] == 100).all()
    colours = object_colours(2).astype(int)
    assert (colours[0] != colours[1]).any()
    for colour, (x0, y0, x1, y1) in zip(colours, boxes, strict=True):
        edge = np.ones((y1 - y0, x1 - x0), bool)
        edge[1:-1, 1:-1] = False
        region = picture[y0:y1, x0:x1]
        assert (region[edge] == colour).all()
        assert np.abs(region[~edge] - (0.55 * 200 + 0.45 * colour)).max() <= 1


def drawn_of(mask: np.ndarray, box: tuple[int, int, int, int]) -> Drawn:
    return Drawn(encode_rle(mask), box)


def test_the_better_object_lies_over_the_others():
    image = np.zeros((30, 30, 3), np.uint8)
    whole, part = np.ones((30, 30), bool), np.zeros((30, 30), bool)
    part[10:20, 10:20] = True
    both = [drawn_of(part, (10, 10, 20, 20)), drawn_of(whole, (0, 0, 30, 30))]
    picture, colours = object_overlay(image, both), object_colours(2)
    assert (picture[10, 15] == colours[0]).all() and (picture[0, 25] == colours[1]).all()
    picture = object_overlay(image, both[::-1])
    assert (picture[15, 15] == (0.45 * colours[0]).astype(int)).all()


@pytest.mark.parametrize("box", [(0, 0, 7, 5), (0, 2, 3, 5), (3, 0, 7, 1), (6, 4, 7, 5)])
def test_masks_are_read_in_their_boxes_alone(box):
    x0, y0, x1, y1 = box
    inner = np.random.default_rng(0).random((y1 - y0, x1 - x0)) < 0.6
    inner[:, [0, -1]] = inner[[0, -1]] = True
    mask = np.zeros((5, 7), bool)
    mask[y0:y1, x0:x1] = inner
    picture = object_overlay(np.zeros((5, 7, 3), np.uint8), [drawn_of(mask, box)])
    assert ((picture != 0).any(axis=2) == mask).all()


def test_outlines_grow_with_the_image():
    image = np.zeros((900, 900, 3), np.uint8)
    mask = np.zeros((900, 900), bool)
    mask[300:600, 300:600] = True
    picture = object_overlay(image, [drawn_of(mask, (300, 300, 600, 600))])
    colour = object_colours(1)[0]
    assert [(picture[450, x] == colour).all() for x in (300, 302, 303)] == [True, True, False]


def test_texts_stand_where_there_is_a_place_for_them():
    image = np.zeros((120, 160, 3), np.uint8)
    mask = np.zeros((120, 160), bool)
    mask[60:100, 40:120] = True
    one = drawn_of(mask, (40, 60, 120, 100))

    def written(*texts: str) -> list[int]:
        """Rows in which the pictures with and without texts differ: first and last."""
        objects = [one] * len(texts)
        picture = np.array(named_overlay(image, objects, texts))
        rows = np.flatnonzero((picture != object_overlay(image, objects)).any(axis=(1, 2)))
        return [] if not rows.size else [int(rows[0]), int(rows[-1])]

    above = written("disc 0.90")
    assert 40 < above[0] and above[1] == 59
    inside = written("disc 0.90", "disc 0.80")
    assert inside[0] == above[0] and 60 < inside[1] < 80
    below = written("disc 0.90", "disc 0.80", "disc 0.70")
    assert 100 < below[1] < 120
    assert written(*["disc 0.90"] * 4) == below  # no place for the fourth
    assert written("a name that is far wider than the image") == []


def test_texts_at_the_border_stay_in_the_image():
    image = np.zeros((60, 100, 3), np.uint8)
    mask = np.zeros((60, 100), bool)
    mask[0:20, 90:100] = True
    one = drawn_of(mask, (90, 0, 100, 20))
    changed = np.array(named_overlay(image, [one], ["disc 0.90"])) != 0
    columns = np.flatnonzero(changed.any(axis=(0, 2)))
    assert columns[0] < 60 and columns[-1] == 99  # moved to the left


def test_many_objects_have_different_colours():
    assert len(np.unique(object_colours(200), axis=0)) == 200
    assert object_colours(0).shape == (0, 3)
