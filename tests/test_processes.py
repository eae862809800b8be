"""Work in several processes: in order, and broken in words."""

import os

import pytest

from pipeline.datasets.processes import in_processes, map_in_order
from pipeline.errors import BadInput


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(in_processes(abs, iter(range(-20, 0)), workers)) == list(range(20, 0, -1))


def test_items_are_taken_a_few_ahead_only():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = in_processes(abs, items(), 2)
    assert next(results) == 0
    assert len(taken) < 10
    results.close()


def test_few_items_stay_in_this_process():
    assert list(map_in_order(lambda item: (item, os.getpid()), "ab", "trying")) == [
        ("a", os.getpid()),
        ("b", os.getpid()),
    ]


def test_a_killed_process_is_told_in_words():
    with pytest.raises(BadInput, match="was killed, mostly for want of memory"):
        list(in_processes(os._exit, [1, 1, 1], 2))


def test_what_cannot_be_sent_fails_at_once():
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        list(in_processes(lambda item: item, [1, 2, 3], 2))
