"""From the published archives to prepared data: every dataset, served on loopback in its layout."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from bsds_copy import write_bsds
from file_server import FileServer, md5, serving, tar_of, zip_of

from pipeline.categories import SAMPLE, VOC
from pipeline.datasets.archives import ARCHIVES, Archive
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.sample import write_sample, write_voc2007
from pipeline.datasets.sample_cityscapes import write_cityscapes
from pipeline.datasets.sample_coco import write_coco
from pipeline.datasets.sample_context import write_context
from pipeline.errors import BadInput, PlaceByHand
from pipeline.params import SECTIONS
from pipeline.params_file import load_params
from pipeline.params_proposals import NoCandidates, ProposalSet
from pipeline.stages import fetch as fetch_module
from pipeline.stages.fetch import fetch
from pipeline.stages.prepare import prepare
from pipeline.stages.propose import training_images

# dataset: its entry, the places it needs, and {split: images} once it is prepared
DATASETS = {
    "voc2012": ("{kind: voc2012}", ["voc2012", "sbd"], {"train": 2, "val": 1, "train_aug": 3}),
    "voc2007": ("{kind: voc2007}", ["voc2007"], {"train": 1, "test": 1, "all": 3}),
    "sbd": ("{kind: sbd}", ["sbd"], {"train": 2, "val": 1}),
    "context": ("{kind: context}", ["context", "voc2010"], {"train": 2, "val": 1}),
    "boxed": (
        "{kind: coco, year: 2014, categories: coco, others: background}",
        ["coco2014"],
        {"train2014": 2, "val2014": 1, "trainval2014": 3},
    ),
    "coco2017": (
        "{kind: coco, year: 2017, categories: voc, others: ignore}",
        ["coco2017"],
        {"train2017": 2, "val2017": 1},
    ),
    "bsds500": ("{kind: bsds500}", ["bsds500"], {"train": 3, "val": 1, "test": 2}),
    "both": (
        "{kind: mixture, masks: {kind: voc2012}, split: train_aug, boxes: [{kind: voc2007}, "
        "{kind: coco, year: 2014, categories: voc, others: background}]}",
        ["voc2012", "sbd", "voc2007", "coco2014"],
        {"train_aug": 3, "boxes": 6, "mixed": 9},
    ),
}


@pytest.fixture(autouse=True)
def no_told_places(monkeypatch):
    for name in [n for n in os.environ if n.startswith("PIPELINE_DATA_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """{place: {archive: its bytes}}: drawn copies, packed as the published ones are."""
    folder = tmp_path_factory.mktemp("copies")
    write_sample(folder / "voc2012", train=2, extra=1, val=1)
    for xml in (folder / "voc2012").rglob("*.xml"):  # the drawn kinds, called by VOC's names
        text = xml.read_text()
        for number, name in enumerate(SAMPLE[1:], start=1):
            text = text.replace(f"<name>{name}<", f"<name>{VOC[number]}<")
        xml.write_text(text)
    shutil.copytree(folder / "voc2012", folder / "sbd")
    write_voc2007(folder / "voc2007", train=1, val=1, test=1)
    write_context(folder / "context", 2, 1)
    shutil.copytree(folder / "context", folder / "voc2010")
    write_coco(folder / "coco2014", 2, 1, 2014)
    write_coco(folder / "coco2017", 2, 1, 2017)
    write_cityscapes(folder / "cityscapes", 2, 1)
    write_bsds(folder / "bsds500", 3, 1, 2)
    return {
        place: {archive.name: packed(archive, folder / place) for archive in archives}
        for place, archives in ARCHIVES.items()
    }


def packed(archive: Archive, folder: Path) -> bytes:
    if not archive.parts:
        return (folder / archive.name).read_bytes()
    content: dict[str, bytes | None] = {}
    for part in archive.parts:
        top = folder / part.place
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file():
                inner = path.relative_to(folder / part.place).as_posix()
                content[part.inner if inner == "." else f"{part.inner}/{inner}"] = path.read_bytes()
    if archive.name == "VOCtrainval_06-Nov-2007.tar":  # the test images come with the other one
        content = {name: data for name, data in content.items() if "test.txt" not in name}
    if archive.name.endswith(".zip"):
        return zip_of(content)
    return tar_of(content, mode="w:gz" if archive.name.endswith("gz") else "w")


@pytest.fixture
def server(published, monkeypatch):
    """Serves all archives but those that want a login; the table points to it."""
    with serving() as running:
        table = {}
        for place, archives in ARCHIVES.items():
            entries = []
            for archive in archives:
                body = published[place][archive.name]
                running.files[f"{place}/{archive.name}"] = body
                urls = (running.url(f"{place}/{archive.name}"),) if archive.urls else ()
                digest = archive.digest and md5(body)
                entries.append(
                    replace(archive, urls=urls, size=len(body), unpacked=10**7, digest=digest)
                )
            table[place] = tuple(entries)
        monkeypatch.setattr(fetch_module, "ARCHIVES", table)
        yield running


def project(folder: Path, dataset: str, entry: str) -> Path:
    others = "".join(f"{name}: {{}}\n" for name in SECTIONS if name != "datasets")
    (folder / "params.yaml").write_text(f"datasets: {{{dataset}: {entry}}}\n{others}")
    return folder


@pytest.mark.parametrize("dataset", DATASETS)
def test_what_is_published_becomes_prepared_data(server: FileServer, tmp_path, dataset):
    entry, places, counts = DATASETS[dataset]
    root = project(tmp_path, dataset, entry)
    params = load_params(root / "params.yaml")
    fetch(root, params, dataset)
    assert {name.split("/")[0] for name, _ in server.asked} == set(places)
    loaded = len(server.asked)
    prepare(root, params, dataset)
    data = Prepared(root, dataset)
    assert {split: len(data.ids(split)) for split in counts} == counts
    for image_id in data.images["image_id"].unique():
        assert data.image(image_id).shape[:2] == data.size(image_id)
    fetch(root, params, dataset)
    assert len(server.asked) == loaded  # nothing twice


def test_what_wants_a_login_is_taken_up_once_it_lies_there(server, published, tmp_path):
    root = project(tmp_path, "streets", "{kind: cityscapes, instances: maps}")
    params = load_params(root / "params.yaml")
    raw = root / "data" / "raw" / "cityscapes"
    with pytest.raises(PlaceByHand) as told:
        fetch(root, params, "streets")
    for name, body in published["cityscapes"].items():
        assert f"put it at {raw / name}" in str(told.value)
        assert "https://www.cityscapes-dataset.com/downloads/" in str(told.value)
        (raw / name).write_bytes(body)
    fetch(root, params, "streets")
    prepare(root, params, "streets")
    data = Prepared(root, "streets")
    assert (len(data.ids("train")), len(data.ids("val"))) == (2, 1)
    assert data.categories[0] == "road" and len(data.categories) == 19
    assert server.asked == []


def test_images_without_categories_are_prepared_as_images_alone(tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    write_bsds(copy, 2, 1, 1)
    monkeypatch.setenv("PIPELINE_DATA_BSDS500", str(copy))
    root = project(tmp_path, "bsds500", "{kind: bsds500}")
    params = load_params(root / "params.yaml")
    fetch(root, params, "bsds500")
    names = json.loads((root / "data/raw/bsds500.manifest.json").read_text())["files"]
    assert len(names) == 4 * 2 + 3  # three of the images have hierarchies
    prepare(root, params, "bsds500")
    data = Prepared(root, "bsds500")
    assert data.categories == () and len(data.instances) == 0
    assert not data.images["has_masks"].any() and not data.images["has_boxes"].any()
    assert len(data.objects("1000")) == 0
    with pytest.raises(BadInput, match="bsds500 has no label map of the image '1000'"):
        data.label_map("1000")
    (copy / "BSR/BSDS500/ucm2/val/2000.mat").unlink()  # the forests would be others
    with pytest.raises(BadInput, match="gone since"):
        prepare(root, params, "bsds500")


def test_a_copy_with_an_image_that_nobody_drew_on_is_not_taken(tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    write_bsds(copy, 2, 0, 0)
    (copy / "BSR/BSDS500/data/groundTruth/train/1001.mat").unlink()
    monkeypatch.setenv("PIPELINE_DATA_BSDS500", str(copy))
    root = project(tmp_path, "bsds500", "{kind: bsds500}")
    with pytest.raises(BadInput, match="1 files of listed images are missing: .*1001.mat"):
        fetch(root, load_params(root / "params.yaml"), "bsds500")


def test_candidates_are_made_of_all_its_images(tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    write_bsds(copy, 2, 1, 1)
    monkeypatch.setenv("PIPELINE_DATA_BSDS500", str(copy))
    root = project(tmp_path, "bsds500", "{kind: bsds500}")
    params = load_params(root / "params.yaml")
    fetch(root, params, "bsds500")
    prepare(root, params, "bsds500")
    entry = ProposalSet("none", "bsds500", "none", "none", NoCandidates("none"))
    images = training_images(root, "bsds500", entry)
    assert [image.image_id for image in images] == ["1000", "1001", "2000", "3000"]
    assert all(image.path.is_file() and image.size == (12, 17) for image in images)


# --- real copies ----------------------------------------------------------------------------------
REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
COCO = "{{kind: coco, year: 2017, categories: {}, others: ignore}}"
COPIES = {  # dataset: entry, place, folder, {split: images}, objects
    "coco80": (COCO.format("coco"), "coco2017", "coco", {"train2017": 80, "val2017": 40}, 1046),
    "coco20": (COCO.format("voc"), "coco2017", "coco", {"trainval2017": 120}, 385 + 160),
    "streets": (
        "{kind: cityscapes, instances: maps}",
        "cityscapes",
        "cityscapes_small",
        {"train": 72, "val": 18},
        1602 + 65,  # instances of the 8 categories, and groups
    ),
    "drawn_streets": (
        "{kind: cityscapes, instances: polygons}",
        "cityscapes",
        "cityscapes_small",
        {"train": 72, "val": 18},
        1602 + 65,
    ),
    "full_streets": (
        "{kind: cityscapes, instances: maps}", "cityscapes", "cityscapes", {"val": 3}, 0,
    ),
}  # fmt: skip


@pytest.mark.skipif(not REAL.exists(), reason="no real images here")
@pytest.mark.parametrize("dataset", COPIES)
def test_real_copies_are_prepared_where_they_lie(tmp_path, monkeypatch, dataset):
    entry, place, folder, counts, objects = COPIES[dataset]
    monkeypatch.setenv(f"PIPELINE_DATA_{place.upper()}", str(REAL / folder))
    root = project(tmp_path, dataset, entry)
    params = load_params(root / "params.yaml")
    fetch(root, params, dataset)
    prepare(root, params, dataset)
    data = Prepared(root, dataset)
    assert {split: len(data.ids(split)) for split in counts} == counts
    assert len(data.instances) == objects
    assert data.instances["mask_rle"].notna().all()
    assert data.images["path"].str.startswith(f"{place}/").all()
    for image_id in data.images["image_id"].unique():
        labels = data.label_map(image_id)
        assert labels.shape == data.size(image_id)
        assert labels[labels != 255].max(initial=0) < len(data.categories)


@pytest.mark.skipif(not REAL.exists(), reason="no real images here")
def test_the_real_part_of_bsds500_is_prepared_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_DATA_BSDS500", str(REAL / "bsds500"))
    root = project(tmp_path, "bsds500", "{kind: bsds500}")
    params = load_params(root / "params.yaml")
    fetch(root, params, "bsds500")
    names = json.loads((root / "data/raw/bsds500.manifest.json").read_text())["files"]
    assert len(names) == 100 + 100 + 10
    prepare(root, params, "bsds500")
    data = Prepared(root, "bsds500")
    assert set(data.images["split"]) == {"train"} and len(data.ids("train")) == 100
    assert set(map(tuple, data.images[["height", "width"]].to_numpy())) == {(321, 481), (481, 321)}
    assert data.image("100075").shape[:2] == data.size("100075")
