"""What params.yaml may say of localisation networks, and of evaluations that find objects."""

import textwrap
from pathlib import Path

import pytest
from scratch import PARAMS

from pipeline.errors import BadInput
from pipeline.params import RegionIou
from pipeline.params_file import load_params
from pipeline.params_training import IouMinKept, ScaledTargets, SizeWeights

ROOT = Path(__file__).resolve().parents[1]
FOUND = (
    "{kind: boxes, vote_stride: 8, top_masks: 2, min_probability: 0.05, nms_iou: 0.5, "
    "region_nms: {kind: iou, iou: 0.3}, min_pixels: 32}"
)
COMPONENTS = "{kind: components, min_pixels: 9}"
CRF = (
    "{kind: dense, bilateral_weight: 5, bilateral_xy: 50, bilateral_rgb: 10, gaussian_weight: 3, "
    "gaussian_xy: 3, iterations: 10, prune: 0}"
)
BOXES = """\
instance:
  boxes: &boxes
    <<: *run
    init: empty
    augmentation: {crop: [32, 32], scale: [0.8, 1.25], flip: both}
    bootstrapping: {kind: iou_minkept, iou: 0.8, keep: 40, scope: crop}
    targets: {kind: scale, pixels: 100}
    weighting: {kind: size, alpha: 1, lowest: 0.1, highest: 10}
    beta: 1
  more: {<<: *boxes, init: boxes, targets: {kind: log_wh}, weighting: {kind: "off"}}
"""


def changed(text, *changes):
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


PLAIN = changed(
    PARAMS,
    ("  none: {kind: none}\n", "  none: {kind: none}\n  empty: {kind: none}\n"),
    ("    init: none\n", "    init: empty\n"),
)
FINDING = changed(
    PLAIN,
    ("instance: {}\n", BOXES),
    ("localization: none", "localization: boxes"),
    ("instances: none", f"instances: {FOUND}"),
)


def load(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return load_params(path)


def test_a_run_for_boxes_and_an_evaluation_that_finds_objects_are_read(tmp_path):
    params = load(tmp_path, FINDING)
    run, more = params.instance["boxes"], params.instance["more"]
    assert run.targets == ScaledTargets("scale", 100.0)
    assert run.weighting == SizeWeights("size", 1.0, 0.1, 10.0)
    assert run.bootstrapping == IouMinKept("iou_minkept", 0.8, 40, "crop")
    assert (more.targets.kind, more.weighting.kind, more.beta) == ("log_wh", "off", 1.0)
    found = params.evaluations["mask"].instances
    assert found.region_nms == RegionIou("iou", 0.3)
    assert (found.vote_stride, found.top_masks, found.min_pixels) == (8, 2, 32)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model: mask", "model: none"),
        ("localization: boxes", "localization: none"),
        ("model: mask\n    localization: boxes", "model: none\n    localization: none"),
        ("region_nms: {kind: iou, iou: 0.3}", "region_nms: {kind: any_overlap}"),
    ],
)
def test_the_truth_may_stand_in_for_a_network_where_boxes_are_counted(tmp_path, old, new):
    assert load(tmp_path, changed(FINDING, (old, new))).evaluations["mask"].instances != "none"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: scale, pixels", "kind: size, pixels", "instance.boxes.targets.kind is 'size'; ch"),
        ("pixels: 100", "deviation: 9", "instance.boxes.targets.deviation is unknown"),
        ("{kind: scale, pixels: 100}", "{kind: scale}", "instance.boxes.targets.pixels is missing"),
        ("    beta: 1\n", "", "instance.boxes.beta is missing"),
        ("{kind: size, alpha: 1, lo", "{kind: area, alpha: 1, lo", "weighting.kind is 'area'; ch"),
        ("alpha: 1, lowest: 0.1", "alpha: 1", "instance.boxes.weighting.lowest is missing"),
        ("iou_minkept", "thresh_minkept", "boxes.bootstrapping.kind is 'thresh_minkept'; choose"),
        ("keep: 40, scope: crop", "keep: 40", "instance.boxes.bootstrapping.scope is missing"),
        ("keep: 40, scope: crop", "keep: 40, scope: all", "bootstrapping.scope is 'all'; choose"),
        ("empty\n    aug", "mask\n    aug", "boxes.init is 'mask'; choose one of: none, empty, m"),
        ("init: boxes", "init: more", "more.init is 'more'; choose one of: none, empty, boxes"),
        ("  more: {", "  mask: {", "instance.mask is also in semantic; rename one of them"),
        ("empty\n    net", "boxes\n    net", "mask.init is 'boxes'; choose one of: none, empty"),
        ("localization: boxes", "localization: mask", "mask.localization is 'mask'; choose one of"),
        ("model: mask", "model: boxes", "mask.model is 'boxes'; choose one of: mask, none"),
        ("kind: boxes,", "kind: box,", "instances is 'box'; choose one of: none, {kind: boxes"),
        ("top_masks: 2, ", "", "evaluations.mask.instances.top_masks is missing"),
        ("kind: iou, iou: 0.3", "kind: any_overlap, iou: 0.3", "region_nms.iou is unknown"),
        ("kind: iou, iou: 0.3", "kind: nms", "instances.region_nms.kind is 'nms'; choose one of"),
        (
            "region_nms: {kind: iou, iou: 0.3}",
            "region_nms: 0.3",
            "instances.region_nms is 0.3; give a mapping, one of: {kind: iou, iou: ...}, "
            "{kind: any_overlap}",
        ),
        ("kind: iou, iou: 0.3", "iou: 0.3", "region_nms.kind is missing; choose one of: iou"),
        (f"instances: {FOUND}", "instances: boxes", "mask.instances is 'boxes'; choose one"),
        (f"instances: {FOUND}", "instances: 0.3", "instances is 0.3; choose one of: none, {kind:"),
        (f"instances: {FOUND}", "instances: none", "'boxes', but the evaluation asks no network"),
        (f"instances: {FOUND}", f"instances: {COMPONENTS}", "'boxes', but the eval"),
        ("crf: none", f"crf: {CRF}", "evaluations.mask.crf and .instances: objects are"),
    ],
)  # fmt: skip
def test_refuses_runs_for_boxes_that_do_not_fit(tmp_path, old, new, message):
    with pytest.raises(BadInput) as error:
        load(tmp_path, changed(FINDING, (old, new)))
    assert message in str(error.value)
    assert str(tmp_path / "params.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ("model: none\n    localization: boxes", "evaluations.mask.model is 'none'; add weights"),
        ("model: mask\n    localization: none", "mask.localization is 'none'; add weights.none"),
    ],
)
def test_the_empty_model_that_a_slot_names_must_be_there(tmp_path, slots, message):
    text = changed(
        FINDING,
        ("  none: {kind: none}\n", ""),
        ("model: mask\n    localization: boxes", slots),
    )
    with pytest.raises(BadInput) as error:
        load(tmp_path, text)
    assert message in str(error.value)


def test_an_evaluation_without_boxes_needs_a_semantic_network(tmp_path):
    with pytest.raises(BadInput, match="evaluations.mask.model is 'none'; choose one of: mask$"):
        load(tmp_path, changed(PLAIN, ("model: mask", "model: none")))
    components = changed(PLAIN, ("instances: none", f"instances: {COMPONENTS}"))
    assert load(tmp_path, components).evaluations["mask"].instances.min_pixels == 9
    with pytest.raises(BadInput, match="evaluations.mask.model is 'none'; choose one of: mask$"):
        load(tmp_path, changed(components, ("model: mask", "model: none")))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pixels: 100}", "pixels: 0}", "instance.boxes.targets.pixels is 0.0; expected at least"),
        ("pixels: 100}", "pixels: .inf}", "instance.boxes.targets.pixels is inf"),
        ("alpha: 1", "alpha: -1", "instance.boxes.weighting.alpha is -1.0; expected at least 0"),
        ("alpha: 1", "alpha: 5", "alpha is 5.0; expected at least 0 and at most 4"),
        ("lowest: 0.1", "lowest: 1.1", "instance.boxes.weighting.lowest is 1.1; expected at lea"),
        ("lowest: 0.1", "lowest: .nan", "instance.boxes.weighting.lowest is nan"),
        ("highest: 10", "highest: 0.9", "instance.boxes.weighting.highest is 0.9; expected at l"),
        ("highest: 10", "highest: .inf", "instance.boxes.weighting.highest is inf"),
        ("    beta: 1\n", "    beta: 0\n", "instance.boxes.beta is 0.0; expected above 0"),
        ("iou: 0.8", "iou: 0", "instance.boxes.bootstrapping.iou is 0.0; expected above 0 and"),
        ("iou: 0.8", "iou: 1.5", "instance.boxes.bootstrapping.iou is 1.5"),
        ("keep: 40", "keep: 0", "instance.boxes.bootstrapping.keep is 0; expected at least 1"),
        ("keep: 40", "keep: 1.5", "instance.boxes.bootstrapping.keep is 1.5; expected a whole"),
        ("[32, 32]", "[32, 30]", "instance.boxes.augmentation.crop is [32, 30]; expected multi"),
        ("vote_stride: 8", "vote_stride: 0", "evaluations.mask.instances.vote_stride is 0"),
        ("vote_stride: 8", "vote_stride: 65", "evaluations.mask.instances.vote_stride is 65"),
        ("top_masks: 2", "top_masks: 0", "evaluations.mask.instances.top_masks is 0"),
        ("min_probability: 0.05", "min_probability: -0.1", "instances.min_probability is -0.1"),
        ("min_probability: 0.05", "min_probability: 1.1", "instances.min_probability is 1.1"),
        ("nms_iou: 0.5", "nms_iou: 0", "evaluations.mask.instances.nms_iou is 0.0"),
        ("nms_iou: 0.5", "nms_iou: 1.01", "nms_iou is 1.01; expected above 0 and at most 1"),
        ("iou: 0.3}", "iou: 0}", "evaluations.mask.instances.region_nms.iou is 0.0"),
        ("min_pixels: 32", "min_pixels: -1", "evaluations.mask.instances.min_pixels is -1"),
    ],
)
def test_refuses_numbers_of_instances_out_of_range(tmp_path, old, new, message):
    with pytest.raises(BadInput) as error:
        load(tmp_path, changed(FINDING, (old, new)))
    assert message in str(error.value)


# --- the how-to -----------------------------------------------------------------------------------
def test_the_parameters_of_the_how_to_for_objects_are_valid(tmp_path):
    text = (ROOT / "docs" / "OWN_IMAGES.md").read_text(encoding="utf-8")
    block = text[text.index("    datasets:\n") : text.index("\nThen\n")]
    rest = text[text.index("    instance:\n") : text.index("\nThen `dvc repro evaluate@people_ob")]
    run, evaluation = rest.split("\nand to `evaluations:`\n")
    network, found = block.split("    evaluations:\n")
    whole = f"{network}{run}    evaluations:\n{found}{evaluation}"
    params = load(
        tmp_path, textwrap.dedent(whole) + "forests: {}\nweights:\n  none: {kind: none}\n"
    )
    assert set(params.instance) == {"people_objects"}
    entry = params.evaluations["people_objects"]
    assert (entry.model, entry.localization) == ("people_masks", "people_objects")
    assert entry.instances.kind == "boxes"
