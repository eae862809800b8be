"""Opening and preparing the whole of COCO: seconds and memory; opening, beside the COCO API.

    python -m pytest benchmarks/test_open_coco.py -m slow -s

An annotation file of the size of train2017's is drawn, 118,287 images and 860,001 annotations, and
removed at the end. Each reader opens it in a process of its own; ours makes all records besides.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.categories import COCO_NAMES

PROJECT = Path(__file__).resolve().parents[1]
TRAIN2017 = {"images": 118287, "annotations": 860001}


def annotation_starts(rng: np.random.Generator) -> list[str]:
    """The first half of annotations: a polygon in an image of 640x480, its area and its box."""
    starts = []
    for _ in range(5000):
        points = max(4, int(rng.lognormal(3.1, 0.6)))
        radius = rng.lognormal(3.43, 0.87)  # a 28th below 64 pixels of area, as in the real ones
        angles = np.sort(rng.uniform(0, 2 * np.pi, points))
        xs = np.clip(rng.uniform(0, 640) + radius * np.cos(angles), 0, 640)
        ys = np.clip(rng.uniform(0, 480) + radius * np.sin(angles), 0, 480)
        numbers = ",".join(f"{v:.2f}" for v in np.stack([xs, ys], axis=1).ravel())
        box = f"[{xs.min():.2f},{ys.min():.2f},{np.ptp(xs):.2f},{np.ptp(ys):.2f}]"
        area = np.pi * radius**2 / 2
        starts.append(f'{{"segmentation":[[{numbers}]],"area":{area:.4f},"bbox":{box},')
    return starts


def write_whole_coco(root: Path) -> Path:
    """An annotation file of the size of train2017's, with an empty folder for its images."""
    rng = np.random.default_rng(0)
    starts = annotation_starts(rng)
    ids = rng.permutation(600000)[: TRAIN2017["images"]]
    owners = rng.choice(ids, TRAIN2017["annotations"]).tolist()
    kinds = rng.choice(list(COCO_NAMES), TRAIN2017["annotations"]).tolist()
    (root / "train2017").mkdir(parents=True)
    path = root / "annotations" / "instances_train2017.json"
    path.parent.mkdir()
    address = "http://images.cocodataset.org/train2017/000000000000.jpg"
    with path.open("w", encoding="ascii") as file:
        file.write('{"info":{},"licenses":[],"images":[')
        for n, number in enumerate(ids.tolist()):
            file.write("," if n else "")
            file.write(
                f'{{"license":3,"file_name":"{number:012d}.jpg","coco_url":"{address}",'
                f'"height":480,"width":640,"date_captured":"2013-11-14 11:18:45","id":{number}}}'
            )
        file.write('],"annotations":[')
        for n, (owner, kind) in enumerate(zip(owners, kinds, strict=True)):
            file.write("," if n else "")
            file.write(
                f'{starts[n % len(starts)]}"iscrowd":0,"image_id":{owner},'
                f'"category_id":{kind},"id":{n + 1}}}'
            )
        names = [{"id": number, "name": name} for number, name in COCO_NAMES.items()]
        file.write(f'],"categories":{json.dumps(names)}}}')
    return path


OPENERS = {
    "ours": """
from pathlib import Path
from pipeline.datasets import coco
from pipeline.datasets.tree import Place, Problems
place = Place("coco2017", Path(sys.argv[1]))
tree = coco.open_tree(
    place, Problems(collect=False), years=(2017,), categories="coco", others="background"
)
marks.append(time.perf_counter())
for image_id in tree.ids():
    tree.record(image_id)
""",
    "plain": """
from pycocotools.coco import COCO
COCO(sys.argv[1] + "/annotations/instances_train2017.json")
marks.append(time.perf_counter())
""",
}
TIMED = """
import json, re, sys, time
marks = [time.perf_counter()]
{opener}
marks.append(time.perf_counter())
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20
print(json.dumps([marks[1] - marks[0], marks[2] - marks[1], peak]))
"""


@pytest.mark.slow
def test_opening_the_whole_of_coco(tmp_path):
    path = write_whole_coco(tmp_path)
    print(f"\n{path.name}: {path.stat().st_size / 1e9:.2f} GB")
    try:
        for reader, opener in OPENERS.items():
            script = TIMED.format(opener=opener)
            command = [sys.executable, "-c", script, str(tmp_path)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            opening, records, peak = json.loads(output.splitlines()[-1])
            print(f"{reader}: opened in {opening:.1f} s, records {records:.1f} s, {peak:.2f} GiB")
            assert reader != "ours" or peak < 3
    finally:
        path.unlink()


PREPARE = """
import sys, time
from pathlib import Path
from pipeline.datasets import coco
from pipeline.datasets.prepared import write_prepared
from pipeline.datasets.tree import Place, Problems

if __name__ == "__main__":
    begin = time.perf_counter()
    root = Path(sys.argv[1])
    tree = coco.open_tree(
        Place("coco2017", root),
        Problems(collect=False),
        years=(2017,),
        categories="voc",
        others="background",
    )
    write_prepared(root / "work", tree)
    print(f"{len(tree.ids())} images in {time.perf_counter() - begin:.0f} s", end="; ")
"""


@pytest.mark.slow
def test_preparing_the_whole_of_coco(tmp_path):
    """Every image is the same drawn JPEG under another name; the annotations are all there."""
    path = write_whole_coco(tmp_path)
    Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(tmp_path / "image.jpg")
    for name in re.findall(rb'"file_name":"(\d+\.jpg)"', path.read_bytes()):
        os.symlink(tmp_path / "image.jpg", tmp_path / "train2017" / name.decode())
    script = tmp_path / "script.py"
    script.write_text(PREPARE)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    try:
        running = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
        most = 0.0
        while running.poll() is None:
            most = max(most, memory_of(psutil.Process(running.pid)))
            time.sleep(0.2)
        print(f"{most:.2f} GiB, all {os.cpu_count()} processes together")
        assert running.returncode == 0 and most < 3
    finally:
        shutil.rmtree(tmp_path)


def memory_of(process: psutil.Process) -> float:
    """GiB that a process and those it started hold now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        return sum(each.memory_info().rss for each in family) / 2**30
    return 0.0
