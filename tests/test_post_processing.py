"""The CRF as a step: what it takes, and two steps of many images at a time."""

import threading
import time

import numpy as np
import pytest

from pipeline import params, post_processing
from pipeline.crf.dense import PUBLISHED, mean_field
from pipeline.errors import BadInput
from pipeline.post_processing import bytes_of_crf, crf_label_map, crf_of, in_two_steps

ENTRY = params.DenseCrf("dense", 4.0, 121.0, 5.0, 3.0, 3.0, 10, 0.0)


# --- the step ------------------------------------------------------------------------------------
def test_an_entry_of_params_names_every_number_of_the_crf():
    assert crf_of(ENTRY) == PUBLISHED["deeplab_largefov"]
    assert crf_of("none") is None


def test_the_label_map_is_the_best_of_the_mean_field():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    probabilities = generator.dirichlet(np.ones(4), (20, 30)).astype(np.float32)
    probabilities = np.ascontiguousarray(probabilities.transpose(2, 0, 1))
    crf = PUBLISHED["deeplab"]
    found = crf_label_map(probabilities, image, crf)
    assert found.dtype == np.uint8
    assert (found == mean_field(probabilities, image, crf).argmax(0)).all()
    assert (found != probabilities.argmax(0)).any()


def test_an_image_with_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(post_processing, "ROOM", bytes_of_crf(3, 20 * 30) - 1)
    probabilities, image = np.full((3, 20, 30), 1 / 3, np.float32), np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(BadInput, match=r"20 x 30 pixels are too many .* .at most 599 with 3 categ"):
        crf_label_map(probabilities, image, PUBLISHED["deeplab"])


# --- two steps -----------------------------------------------------------------------------------
def outcomes(pairs):
    """(item, result or what was raised) of every item."""
    return [(item, future.exception() or future.result()) for item, future in pairs]


def half(number):
    if number % 2:
        raise BadInput(f"{number} is odd")
    return number // 2


def inverse(number, halved):
    return number / (10 * halved)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_item_has_its_result_or_what_either_step_raised_in_order(workers):
    pairs = in_two_steps(range(8), half, inverse, size=lambda halved: 1, workers=workers)
    told = [(item, str(result)) for item, result in outcomes(pairs)]
    assert told == [
        (0, "division by zero"), (1, "1 is odd"), (2, "0.2"), (3, "3 is odd"),
        (4, "0.2"), (5, "5 is odd"), (6, "0.2"), (7, "7 is odd"),
    ]  # fmt: skip


def test_second_steps_go_on_beside_one_another_and_the_first():
    meeting = threading.Barrier(3, timeout=20)  # two second steps and the third first step

    def first(item):
        if item == 2:
            meeting.wait()
        return item

    def then(item, begun):
        if item < 2:
            meeting.wait()
        return threading.get_ident()

    found = outcomes(in_two_steps(range(3), first, then, size=lambda begun: 1, workers=2))
    assert len({thread for _, thread in found[:2]}) == 2
    assert threading.get_ident() not in {thread for _, thread in found}


@pytest.mark.parametrize(("room", "most"), [(10, 1), (19, 1), (20, 2), (45, 4), (5, 1)])
def test_no_more_images_are_at_work_than_there_is_room_for(monkeypatch, room, most):
    monkeypatch.setattr(post_processing, "ROOM", room)
    lock, seen, at_work = threading.Lock(), [], [0]

    def then(item, begun):
        with lock:
            at_work[0] += 1
            seen.append(at_work[0])
        time.sleep(0.02)
        with lock:
            at_work[0] -= 1

    outcomes(in_two_steps(range(12), lambda item: item, then, size=lambda begun: 10, workers=8))
    assert max(seen) <= most and len(seen) == 12


def test_what_has_begun_is_finished_when_the_caller_stops():
    finished = []

    def first(item):
        if item == 2:
            raise KeyboardInterrupt
        return item

    def then(item, begun):
        time.sleep(0.05)
        finished.append(item)

    with pytest.raises(KeyboardInterrupt):
        outcomes(in_two_steps(range(5), first, then, size=lambda begun: 1, workers=2))
    assert sorted(finished) == [0, 1]
