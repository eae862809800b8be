"""`propose-images` on a folder: what it writes, what it does again, and what it refuses."""

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main


@pytest.fixture
def folder(tmp_path):
    """Two images, and a file that is none."""
    (tmp_path / "images").mkdir()
    for name in "ab":
        pixels = np.full((24, 32, 3), 90, np.uint8)
        pixels[4:15, 5:18] = 200
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "c.png").write_bytes(b"none")
    return tmp_path


def propose(folder, *more: str) -> int:
    where = ["--images", str(folder / "images"), "--out", str(folder / "out")]
    return main(["propose-images", "--method", "scg", *where, *more])


def files(folder):
    return {p.name: p.read_bytes() for p in (folder / "out").iterdir() if p.is_file()}


def test_a_finished_run_that_is_started_again_changes_nothing(folder):
    assert propose(folder) == 0
    before = files(folder)
    assert sorted(before) == ["part-000.parquet", "proposals.json", "timings.csv"]
    lines = before["timings.csv"].decode().splitlines()
    assert [line.split(",")[0] for line in lines] == ["image_id", "a", "b", "c"]
    assert "not a readable image" in lines[3]
    assert propose(folder) == 0 and files(folder) == before


def test_a_part_that_was_taken_away_is_made_again(folder):
    assert propose(folder) == 0
    part = folder / "out" / "part-000.parquet"
    before = part.read_bytes()
    part.unlink()
    assert propose(folder) == 0 and part.read_bytes() == before


def test_other_settings_are_refused_and_change_nothing(folder, capsys):
    assert propose(folder) == 0
    before = files(folder)
    assert propose(folder, "--most", "3") == 2
    assert "made with other settings" in capsys.readouterr().err and files(folder) == before
