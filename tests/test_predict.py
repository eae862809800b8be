"""Stage `predict`: a checkpoint and images on disk to label maps."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_report import evaluation, given
from test_segment import NETWORK, photograph, save_model

from pipeline import tiles
from pipeline.checkpoints import load_model
from pipeline.crf.dense import PUBLISHED, mean_field
from pipeline.errors import BadInput
from pipeline.inference import for_inference, predict_label_map, predict_probabilities
from pipeline.masks import decode_index_png
from pipeline.params import DenseCrf, Params, Views
from pipeline.params_file import build
from pipeline.stages import predict as stage
from pipeline.stages.predict import predict
from pipeline.tables import write_table

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SIZES = {"a": (40, 56), "b": (300, 280)}
CATEGORIES = ("background", "ring", "star")


@pytest.fixture
def project(tmp_path):
    """Two images, and a network whose classifier is drawn."""
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    params = given()
    params["evaluations"] = {"sample_mask": evaluation("sample_mask", "sample", [])}
    (tmp_path / "params.yaml").write_text("evaluations: {sample_mask: {model: sample_mask}}\n")
    folder = tmp_path / "data/raw/sample"
    folder.mkdir(parents=True)
    rows = []
    for number, (image_id, (height, width)) in enumerate(SIZES.items()):
        Image.fromarray(photograph(number, height, width)).save(folder / f"{image_id}.png")
        row = {"image_id": image_id, "split": "val", "source": "voc", "height": height}
        rows.append(row | {"path": f"sample/{image_id}.png", "width": width})
    rows = [row | {"has_masks": True, "has_boxes": True} for row in rows]
    prepared = tmp_path / "data/prepared/sample"
    write_table(prepared / "images.parquet", "images", rows)
    write_table(prepared / "instances.parquet", "instances", [])
    (prepared / "categories.json").write_text('["background", "ring", "star"]')
    save_model(tmp_path / "data/models/sample_mask.pt", CATEGORIES)
    return tmp_path, build(Params, params, "params.yaml", "")


def predicted(root: Path, image_id: str) -> np.ndarray:
    path = root / f"data/predictions/sample_mask/semantic/{image_id}.png"
    return decode_index_png(path.read_bytes())


@pytest.mark.parametrize("views", [Views((1.0,), False, 1), Views((0.5, 1.5), True, 2)])
def test_label_maps_are_the_most_probable_categories_of_all_views(project, views):
    root, params = project
    entry = replace(params.evaluations["sample_mask"], views=views)
    params.evaluations["sample_mask"] = entry
    predict(root, params, "sample_mask")
    network, _ = load_model(root / "data/models/sample_mask.pt", CPU)
    fast = for_inference(network, precision="fp32")
    for number, (image_id, (height, width)) in enumerate(SIZES.items()):
        image = photograph(number, height, width)
        expected = predict_probabilities(fast, image, views=views, device=CPU, precision="fp32")
        label_map = predicted(root, image_id)
        assert label_map.shape == (height, width) and len(np.unique(label_map)) > 1
        assert (label_map == expected.argmax(0).numpy()).mean() > 0.999


def test_an_image_that_does_not_fit_goes_in_tiles_and_this_is_said(project, monkeypatch, capsys):
    root, params = project

    def short_of_memory(network, image, **settings):
        if image.shape[0] > 256:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict_label_map(network, image, **settings)

    monkeypatch.setattr(tiles, "predict_label_map", short_of_memory)
    predict(root, params, "sample_mask")
    said = capsys.readouterr().err
    assert "b: out of memory on cpu: tiles of 256 from here on" in said
    assert "1 images went in tiles of 256" in said
    assert predicted(root, "b").shape == SIZES["b"]


# --- with a CRF ---------------------------------------------------------------------------------
CRF = DenseCrf("dense", 5.0, 50.0, 10.0, 3.0, 3.0, 10, 0.0)


def with_crf(params, **other):
    entry = replace(params.evaluations["sample_mask"], crf=CRF, **other)
    params.evaluations["sample_mask"] = entry


@pytest.mark.parametrize("threads", [1, 3])
def test_a_crf_follows_the_mean_of_all_views(project, threads):
    root, params = project
    views = Views((0.8, 1.0, 1.2), False, 1)
    with_crf(params, views=views)
    path = root / "data/models/sample_mask.pt"
    saved = torch.load(path, weights_only=True)
    saved["run"]["threads"] = threads
    torch.save(saved, path)
    before = torch.get_num_threads()
    predict(root, params, "sample_mask")
    torch.set_num_threads(before)
    network, _ = load_model(path, CPU)
    fast = for_inference(network, precision="fp32")
    changed = 0
    for number, (image_id, (height, width)) in enumerate(SIZES.items()):
        image = photograph(number, height, width)
        mean = predict_probabilities(fast, image, views=views, device=CPU, precision="fp32").numpy()
        expected = mean_field(mean, image, PUBLISHED["deeplab"]).argmax(0)
        assert (predicted(root, image_id) == expected).mean() > 0.999
        changed += (expected != mean.argmax(0)).sum()
    assert changed > 0


def test_an_image_that_must_go_in_tiles_is_refused_where_a_crf_follows(project, monkeypatch):
    root, params = project
    with_crf(params)
    monkeypatch.setattr("pipeline.tiles.largest_tile", lambda *given, **named: 256)
    with pytest.raises(BadInput, match=r"image b: 300 x 280 pixels do not fit .* image whole"):
        predict(root, params, "sample_mask")
    assert not (root / "data/predictions").exists()


def test_memory_that_does_not_do_is_told_where_a_crf_follows(project, monkeypatch):
    root, params = project
    with_crf(params)

    def short_of_memory(network, image, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiles, "predict_probabilities", short_of_memory)
    with pytest.raises(BadInput, match=r"image a: 40 x 56 pixels do not fit in one pass on cpu"):
        predict(root, params, "sample_mask")


def test_a_diverged_network_is_told_with_the_image(project, monkeypatch):
    root, params = project

    def diverged(path, device):
        network, saved = load_model(path, device)
        torch.nn.init.constant_(network.classifier.bias, torch.nan)
        return network, saved

    monkeypatch.setattr(stage, "load_model", diverged)
    with pytest.raises(BadInput, match=r"mask: image a: the network says NaN: .* Train it anew"):
        predict(root, params, "sample_mask")
    assert not (root / "data/predictions").exists()


def test_a_network_that_gives_no_numbers_is_told_with_the_image(project, monkeypatch):
    root, params = project
    with_crf(params)

    def diverged(network, image, **settings):
        return torch.full((3, *image.shape[:2]), torch.nan)

    monkeypatch.setattr(tiles, "predict_probabilities", diverged)
    with pytest.raises(BadInput, match=r"evaluations.sample_mask: image a: CRF: .* NaN"):
        predict(root, params, "sample_mask")


def test_a_killed_prediction_with_a_crf_goes_on_to_the_same_maps(project, monkeypatch):
    root, params = project
    with_crf(params)
    seen = []

    def killed(network, image, **settings):
        if seen:
            raise KeyboardInterrupt
        seen.append(image)
        return predict_probabilities(network, image, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(tiles, "predict_probabilities", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(root, params, "sample_mask")
    (first,) = (root / "work").rglob("semantic/*.png")
    before = first.stat().st_mtime_ns
    predict(root, params, "sample_mask")
    kept = root / "data/predictions/sample_mask/semantic" / first.name
    assert kept.stat().st_mtime_ns == before
    resumed = {name: predicted(root, name) for name in SIZES}
    shutil.rmtree(root / "work")
    predict(root, params, "sample_mask")
    for name, label_map in resumed.items():
        assert (predicted(root, name) == label_map).all()


# --- kills and bad input ------------------------------------------------------------------------
def test_what_was_predicted_before_a_kill_is_kept(project, monkeypatch):
    root, params = project
    seen = []

    def killed(network, image, **settings):
        if seen:
            raise KeyboardInterrupt
        seen.append(image)
        return predict_label_map(network, image, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(tiles, "predict_label_map", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(root, params, "sample_mask")
    assert not (root / "data/predictions").exists()
    (first,) = (root / "work").rglob("semantic/*.png")
    before = first.stat().st_mtime_ns
    predict(root, params, "sample_mask")
    kept = root / "data/predictions/sample_mask/semantic" / first.name
    assert kept.stat().st_mtime_ns == before and predicted(root, "b").shape == SIZES["b"]


def test_a_model_of_other_categories_is_refused(project):
    root, params = project
    save_model(root / "data/models/sample_mask.pt", (*CATEGORIES, "fork"))
    with pytest.raises(BadInput, match=r"sample_mask knows 4 categories, sample has 3 others"):
        predict(root, params, "sample_mask")
    assert not (root / "data/predictions").exists()


def test_a_network_description_that_its_weights_contradict_is_refused(project):
    root, params = project
    path = root / "data/models/sample_mask.pt"
    saved = torch.load(path, weights_only=True)
    saved["run"]["network"] = NETWORK | {"kernel": 5}
    torch.save(saved, path)
    with pytest.raises(BadInput, match=r"sample_mask.pt: its weights are not those of the network"):
        predict(root, params, "sample_mask")
