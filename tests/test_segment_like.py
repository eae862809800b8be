"""`segment --like`: the networks and settings of an evaluation, and the score that it has."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_params_instances import COMPONENTS, FINDING, FOUND, changed
from test_segment_instances import SAMPLE, photograph, save_localizer, save_semantic

from pipeline.__main__ import main
from pipeline.categories import things_of
from pipeline.datasets.form import AnnotatedObject, Sample
from pipeline.datasets.prepared import write_prepared
from pipeline.datasets.tree import ImageFiles, Tree
from pipeline.masks import decode_rle, encode_rle, rle_box
from pipeline.params_file import load_params
from pipeline.stages.evaluate import evaluate
from pipeline.stages.predict import predict
from pipeline.tables import read_table

PROJECT = Path(__file__).resolve().parents[1]
SIZES = {"a": (48, 64), "b": (40, 56), "c": (64, 40)}  # H, W
FILES = {"a": "a.png", "b": "trip/b.png", "c": "trip/on/c.png"}  # below the folder of images
RULE = {"top_masks: 2": "top_masks: 3", "nms_iou: 0.5": "nms_iou: 0.4"} | {
    "kind: iou, iou: 0.3": "kind: any_overlap", "min_pixels: 32": "min_pixels: 9"
}  # fmt: skip
PARAMS = changed(
    FINDING,
    *RULE.items(),
    ("scales: [1.0], flip: false", "scales: [0.75, 1.0], flip: true"),
)
VIEWS = {"scales": [0.75, 1.0], "flip": True, "shifts": 1}
IMAGES = "data/raw/sample"


def make_project(root: Path) -> Path:
    """Two networks that were never trained, and three images."""
    (root / "pipeline").symlink_to(PROJECT / "pipeline")
    (root / "params.yaml").write_text(PARAMS)
    save_semantic(root / "data" / "models" / "mask.pt")
    save_localizer(root / "data" / "models" / "boxes.pt")
    for number, (name, file) in enumerate(FILES.items()):
        path = root / IMAGES / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(number, *SIZES[name])).save(path)
    return root


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(make_project(tmp_path))
    return tmp_path


def run(*options: str, out: str = "out") -> int:
    return main(["segment", *options, "--images", IMAGES, "--out", out])


def settings(out: str = "out") -> dict:
    return json.loads((Path(out) / "segment.json").read_text())


def results(out: str = "out") -> list[dict]:
    return json.loads((Path(out) / "instances.json").read_text())


def prepare(root: Path, objects: dict[str, list[AnnotatedObject]]) -> None:
    """These objects as the truth: data/prepared/sample."""

    def read(image_id: str, _: object) -> Sample:
        label_map = np.zeros(SIZES[image_id], np.uint8)
        for one in objects[image_id]:
            label_map[decode_rle(one.mask_rle, *SIZES[image_id])] = one.category
        path = f"sample/{FILES[image_id]}"
        return Sample(image_id, path, SIZES[image_id], "voc", label_map, tuple(objects[image_id]))

    tree = Tree(SAMPLE, {"val": list(SIZES)}, {}, {}, lambda _: ImageFiles({}), str, read)
    write_prepared(root / "work" / "mine", tree)
    (root / "data" / "prepared").mkdir()
    (root / "work" / "mine" / "prepared").rename(root / "data" / "prepared" / "sample")


def annotated(entry: dict, move: int) -> AnnotatedObject:
    """A found object as a true one, moved to the right."""
    size, category = entry["segmentation"]["size"], entry["category_id"]
    mask = np.roll(decode_rle(entry["segmentation"]["counts"], *size), move, axis=1)
    rle = encode_rle(mask)
    return AnnotatedObject(category, rle_box(rle, *size), False, False, rle)


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A project whose evaluation is measured, on most of what is found, moved a little."""
    root = make_project(tmp_path_factory.mktemp("scored"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert run("--like", "mask", "--min-pixels", "60", out="truth") == 0
        objects = {name: [] for name in SIZES}
        for number, entry in enumerate(results("truth")):
            if number % 4:
                name = entry["image_id"].rpartition("/")[2]
                objects[name].append(annotated(entry, number % 4))
        prepare(root, objects)
        params = load_params(root / "params.yaml")
        predict(root, params, "mask")
        evaluate(root, params, "mask")
        assert run("--like", "mask") == 0
    return root


# --- what it does ---------------------------------------------------------------------------------
@pytest.mark.parametrize(("protocol", "ending"), [("sds", ""), ("mnc11", "_mnc11")])
def test_its_results_have_the_score_of_the_evaluation(
    scored, tmp_path, monkeypatch, protocol, ending
):
    monkeypatch.chdir(scored)
    truth, scores = str(tmp_path / "truth.json"), str(tmp_path / "scores.json")
    assert main(["export", "truth", "sample", "--split", "val", "--out", truth]) == 0
    command = ["score", "instances", "--protocol", protocol, "--truth", truth]
    assert main([*command, "--predicted", "out/instances.json", "--json", scores]) == 0
    found = json.loads(Path(scores).read_text())
    table = read_table(scored / "data" / "metrics" / "mask.parquet", "metrics")
    measured = {
        name: table[table["metric"] == f"{name}{ending}"] for name in ("mAP_r", "mAP_r_vol", "AP_r")
    }
    means = {f"{row.at:g}": row.value for row in measured["mAP_r"].itertuples()}
    assert found["mean_ap"] == means and 0.05 < means["0.5"] < 0.95
    assert found["mean_ap_vol"] == measured["mAP_r_vol"]["value"].item()
    for row in measured["AP_r"].itertuples():
        value = found["ap"][f"{row.at:g}"][row.category]
        assert value == row.value or (value is None and np.isnan(row.value))
    assert len(measured["AP_r"]) == 9 * len(things_of(SAMPLE))


def test_it_finds_what_the_evaluation_finds(scored):
    table = read_table(scored / "data/predictions/mask/instances.parquet", "predicted_instances")
    made = results(str(scored / "out"))
    assert len(made) == len(table) > 5
    for name, file in FILES.items():
        rows = table[table["image_id"] == name]
        mine = [e for e in made if e["image_id"] == file.removesuffix(".png")]
        assert [e["score"] for e in mine] == rows["score"].tolist()
        assert [e["category_id"] for e in mine] == rows["category"].tolist()
        assert [e["segmentation"]["counts"] for e in mine] == rows["mask_rle"].tolist()


def test_networks_views_and_rule_are_those_of_the_evaluation(project):
    assert run("--like", "mask") == 0
    told = settings()
    rule = load_params(project / "params.yaml").evaluations["mask"].instances
    assert told["instances"] == {**vars(rule), "region_nms": {"kind": "any_overlap"}}
    assert told["instances"]["top_masks"] == 3 and told["instances"]["vote_stride"] == 8
    assert {key: told[key] for key in VIEWS} == VIEWS
    assert (told["model"], told["localization"]) == ("mask.pt", "boxes.pt")


def test_what_is_given_beside_wins(project):
    save_localizer(project / "data" / "models" / "coarse.pt", stride=16)
    shutil.copyfile("data/models/mask.pt", "other.pt")
    options = ["other.pt", "--like", "mask", "--instances", "coarse", "--no-flip"]
    options += ["--scales", "1", "--top-masks", "1", "--region-rule", "0.6", "--vote-stride", "4"]
    assert run(*options) == 0
    told = settings()
    assert told["instances"] == {
        "kind": "boxes", "vote_stride": 4, "top_masks": 1, "min_probability": 0.05, "nms_iou": 0.4,
        "region_nms": {"kind": "iou", "iou": 0.6}, "min_pixels": 9,
    }  # fmt: skip
    assert (told["scales"], told["flip"], told["shifts"]) == ([1], False, 1)
    assert (told["model"], told["localization"]) == ("other.pt", "coarse.pt")


def test_the_same_settings_by_options_go_on_where_it_stopped(project, capsys):
    assert run("--like", "mask") == 0
    options = ["--scales", "0.75,1", "--flip", "--top-masks", "3", "--nms-iou", "0.4"]
    options += ["--region-rule", "any_overlap", "--min-pixels", "9"]
    assert run("mask", "--instances", "boxes", *options) == 0
    assert "label maps of 3 images, 0 made now; " in capsys.readouterr().out


# --- what is refused ------------------------------------------------------------------------------
ORACLE = changed(PARAMS, ("    model: mask\n", "    model: none\n"))
CEILING = changed(ORACLE, ("    localization: boxes\n", "    localization: none\n"))


@pytest.mark.parametrize(
    ("params", "options", "said"),
    [
        (PARAMS, ["--like", "no"], "--like no: params.yaml has no evaluation of this name with"),
        (PARAMS, ["--like", "no"], "instances of the kind boxes; choose one of: mask"),
        (changed(FINDING, (FOUND, COMPONENTS), ("localization: boxes", "localization: none")),
         ["--like", "mask"], "kind boxes; choose one of: none are active"),
        (ORACLE, ["--like", "mask"], "--like mask: the truth stands in for its model; name a run"),
        (CEILING, ["mask", "--like", "mask"],
         "--like mask: the truth stands in for its localization; name one with --instances"),
        (PARAMS, ["--like", "mask", "--crf"], "--crf and --like: objects are found in what"),
        (PARAMS, ["--like", "mask", "--tile", "256"], "--tile and --like: objects are found in"),
        (PARAMS, ["--like", "mask", "--nms-iou", "2"], "--nms-iou 2.0: give a number above 0"),
        (PARAMS, [], "no network is named; give a run or the file of a checkpoint, or --like"),
        (PARAMS + "more: {}\n", ["--like", "mask"], "params.yaml: more is unknown"),
    ],
)  # fmt: skip
def test_what_does_not_do_is_told(project, capsys, params, options, said):
    (project / "params.yaml").write_text(params)
    assert run(*options) == 2
    assert said in capsys.readouterr().err
    assert not (project / "out").exists()


def test_with_networks_beside_it_the_truth_s_places_in_the_evaluation_do_not_matter(project):
    (project / "params.yaml").write_text(CEILING)
    assert run("mask", "--like", "mask", "--instances", "boxes") == 0
    assert (settings()["model"], settings()["localization"]) == ("mask.pt", "boxes.pt")
