"""Work in several processes: in order, and broken in words."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.datasets.processes import in_processes, map_in_order
from pipeline.errors import BadInput

PROJECT = Path(__file__).resolve().parents[1]


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


SCRIPT = """
import os, time
from pipeline.datasets.processes import in_processes

def work(item):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    list(in_processes(work, range(2), 2))
"""


def test_processes_end_with_the_one_that_started_them(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(tmp_path / "script.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        workers = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_what_cannot_be_sent_fails_at_once():
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        list(in_processes(lambda item: item, [1, 2, 3], 2))
