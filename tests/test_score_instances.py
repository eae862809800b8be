"""Scoring COCO results against COCO instances: numbers, forms of files, and what is refused."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.__main__ import main
from pipeline.datasets import run_lengths
from pipeline.datasets.coco_json import decode_counts
from pipeline.datasets.coco_results import read_results, read_truth
from pipeline.datasets.run_lengths import read_texts
from pipeline.errors import BadFile, BadInput
from pipeline.metrics.instance import VOLUME
from pipeline.scoring import instances
from pipeline.scoring.instances import COCO_NUMBERS, score_instances
from pipeline.scoring.outcome import document
from pipeline.tables import read_table

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
NAMES = {0: "ring", 4: "star", 7: "cross"}
SIZE = (6, 8)


def filled(box, size=SIZE):
    mask = np.zeros(size, np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    return mask


def rle(mask):
    encoded = coco.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def counted(mask):
    """Run-lengths as a list of numbers."""
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def annotation(number, image, category, mask, **more):
    return {
        "id": number, "image_id": image, "category_id": category, "iscrowd": 0,
        "area": int(mask.sum()), "segmentation": rle(mask),
    } | more  # fmt: skip


def result(image, category, score, mask):
    return {"image_id": image, "category_id": category, "score": score, "segmentation": rle(mask)}


A, B = filled((0, 0, 4, 2)), filled((4, 3, 8, 6))
HALF = filled((0, 0, 4, 1))  # IoU with A: 4 / 8


def the_truth():
    images = [{"id": n, "file_name": f"f/im{n}.jpg", "height": 6, "width": 8} for n in (0, 1, 2)]
    return {
        "images": images,
        "categories": [{"id": number, "name": name} for number, name in NAMES.items()],
        "annotations": [
            annotation(0, 0, 0, A), annotation(1, 0, 4, B), annotation(2, 1, 0, B),
            annotation(3, 2, 0, A, iscrowd=1, segmentation=counted(A)),
        ],
    }  # fmt: skip


def the_results():
    return [result(0, 0, 0.9, HALF), result(1, 0, 0.8, A), result(1, 0, 0.7, B), result(0, 4, 1, B)]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(the_truth()))
    (tmp_path / "results.json").write_text(json.dumps(the_results()))
    return tmp_path


def scored(folder, protocol="sds", thresholds=None, ids=None):
    outcome = score_instances(
        folder / "truth.json", folder / "results.json",
        protocol=protocol, thresholds=thresholds, ids=ids,
    )  # fmt: skip
    return document(outcome)


# --- numbers --------------------------------------------------------------------------------------
def test_sds_of_three_categories(files):
    found = scored(files)
    assert list(found["ap"]) == [f"{t:g}" for t in VOLUME]
    # ring: the half is right below 0.5 only; then wrong, right: 1/2 * 1 + 1/2 * 2/3
    low, high = 1 / 2 + 1 / 2 * 2 / 3, 1 / 2 * 1 / 3
    assert found["ap"]["0.4"] == pytest.approx({"ring": low, "star": 1, "cross": None})
    assert found["ap"]["0.5"] == pytest.approx({"ring": high, "star": 1, "cross": None})
    assert found["mean_ap"]["0.5"] == pytest.approx((high + 1) / 2)
    volume = (4 * low + 5 * high) / 9
    assert found["ap_vol"] == pytest.approx({"ring": volume, "star": 1, "cross": None})
    assert found["mean_ap_vol"] == pytest.approx((volume + 1) / 2)
    assert found["protocol"] == "sds"
    assert (found["num_images"], found["num_objects"], found["num_detections"]) == (3, 3, 4)
    assert found["notes"] == [
        "1 categories have no object and are left out of the means: cross",
        "1 crowd regions of the truth are no objects",
        "1 of 3 images have no detection",
    ]


def test_mnc11_takes_the_equal_overlap_and_counts_absent_categories_as_0(files):
    found = scored(files, "mnc11")
    # recalls 1/2, 1/2, 1 with precision 1, 1/2, 2/3: six points of 1, five of 2/3
    ring = (6 + 5 * 2 / 3) / 11
    assert found["ap"]["0.5"] == pytest.approx({"ring": ring, "star": 1, "cross": 0})
    assert found["mean_ap"]["0.5"] == pytest.approx((ring + 1) / 3)
    assert "1 categories have no object and count as 0: cross" in found["notes"]


def test_given_thresholds_come_besides(files):
    found = scored(files, thresholds=[0.55, 0.5])
    assert list(found["mean_ap"]) == "0.1 0.2 0.3 0.4 0.5 0.55 0.6 0.7 0.8 0.9".split()
    assert found["mean_ap_vol"] == scored(files)["mean_ap_vol"]


def test_listed_images_alone_are_scored(files):
    (files / "ids.txt").write_text("im0\n2\n")  # by name or by id
    found = scored(files, ids=files / "ids.txt")
    assert (found["num_images"], found["num_objects"], found["num_detections"]) == (2, 2, 2)
    assert found["ap"]["0.4"]["ring"] == 1


def test_no_detection_at_all_is_an_ap_of_0(files):
    (files / "results.json").write_text("[]")
    for protocol in ("sds", "mnc11", "coco"):
        assert scored(files, protocol)["mean_ap"]["0.5"] == 0


# --- beside pycocotools ---------------------------------------------------------------------------
def official(truth, results):
    """COCOeval as its users run it, from the files."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(truth))
        scoring = COCOeval(known, known.loadRes(str(results)), "segm")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return scoring


def test_coco_numbers_are_those_of_pycocotools_from_the_files(tmp_path):
    path = REAL / "coco" / "annotations" / "instances_val2017.json"
    if not path.exists():
        pytest.skip("no real data here")
    truth = read_truth(path)
    generator = np.random.default_rng(0)
    results = []
    for image in truth.images.values():
        for one in image.objects:
            shift = generator.integers(-6, 7, 2)
            mask = np.roll(coco.decode(one.rle), shift, axis=(0, 1))
            score = round(float(generator.random()), 1)
            results.append(result(image.number, one.category, score, mask))
    (tmp_path / "results.json").write_text(json.dumps(results))
    scoring = official(path, tmp_path / "results.json")
    found = document(
        score_instances(
            path, tmp_path / "results.json", protocol="coco", thresholds=[0.75], ids=None
        )
    )
    assert list(found["coco"].values()) == scoring.stats.tolist()
    assert [found[f"coco_{name}"] for name in COCO_NUMBERS] == scoring.stats.tolist()
    assert found["mean_ap"]["0.5"] == pytest.approx(scoring.stats[1], abs=1e-12)
    assert found["mean_ap"]["0.75"] == pytest.approx(scoring.stats[2], abs=1e-12)


def test_an_object_whose_id_is_0_can_be_found_as_if_it_had_another(files):
    def of_the_tool():
        return official(files / "truth.json", files / "results.json").stats.tolist()

    found = scored(files, "coco")
    numbers = [-1 if value is None else value for value in found["coco"].values()]
    assert numbers != of_the_tool()  # it takes 0 for "not matched"
    assert any("has the id 0, which pycocotools takes for none" in n for n in found["notes"])
    truth = the_truth()
    for one in truth["annotations"]:
        one["id"] += 1
    (files / "truth.json").write_text(json.dumps(truth))
    assert numbers == of_the_tool()
    again = scored(files, "coco")
    assert again["coco"] == found["coco"]
    assert not any("id 0" in note for note in again["notes"])
    assert not any("id 0" in note for note in scored(files, "sds")["notes"])


def large_scene(folder, boxes):
    """Objects of 20x20 (small), found as they are; the results have the boxes that are not None."""
    mask = filled((10, 10, 30, 30), (60, 60))
    images = [{"id": n, "height": 60, "width": 60} for n in range(1, len(boxes) + 1)]
    truth = {
        "images": images,
        "categories": [{"id": 4, "name": "star"}],
        "annotations": [annotation(n, n, 4, mask) for n in range(1, len(boxes) + 1)],
    }
    results = []
    for n, box in enumerate(boxes, start=1):
        shifted = np.roll(mask, 5 * (n % 2), axis=0)
        results.append(result(n, 4, 1 / n, shifted) | ({} if box is None else {"bbox": box}))
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))


@pytest.mark.parametrize(
    "boxes, counted",
    [
        ([[0, 0, 50, 50], [0, 0, 5, 5], [1.5, 2, 99.5, 100]], True),
        ([[0, 0, -3, 5], [0, 0, 0, 0], [0, 0, 1e6, 1e6]], True),
        ([None, [0, 0, 50, 50], [0, 0, 100, 100]], False),  # the first tells whether boxes count
        ([[], [0, 0, 50, 50], [0, 0, 100, 100]], False),
    ],
)
def test_boxes_give_the_areas_where_they_do_for_pycocotools(tmp_path, boxes, counted):
    large_scene(tmp_path, boxes)
    found = scored(tmp_path, "coco")
    stats = official(tmp_path / "truth.json", tmp_path / "results.json").stats.tolist()
    assert [-1 if value is None else value for value in found["coco"].values()] == stats
    assert any("the areas of their boxes" in note for note in found.get("notes", [])) == counted
    assert not any("boxes" in note for note in scored(tmp_path).get("notes", []))
    large_scene(tmp_path, [None] * 3)
    masks = scored(tmp_path, "coco")
    assert (masks["coco"] != found["coco"]) == counted
    assert not any("boxes" in note for note in masks.get("notes", []))


def test_a_detection_without_a_box_among_boxes_has_the_area_of_its_mask(tmp_path):
    large_scene(tmp_path, [[0, 0, 50, 50], None, [0, 0, 3, 5]])  # there pycocotools fails
    truth = read_truth(tmp_path / "truth.json")
    found = read_results(tmp_path / "results.json", truth)
    assert [one.area for one in found] == [2500, 400, 15]
    assert (len(found), found.num_boxes) == (3, 2)


@st.composite
def scenes(draw):
    """A truth and results: absent categories, empty images and masks, ties, one-pixel objects."""
    sizes = draw(st.lists(st.sampled_from([(1, 1), (3, 5), (6, 4)]), min_size=1, max_size=4))
    images = [{"id": n, "height": h, "width": w} for n, (h, w) in enumerate(sizes)]
    annotations, results = [], []
    for number, (height, width) in enumerate(sizes):
        for found in [False] * draw(st.integers(0, 3)) + [True] * draw(st.integers(0, 4)):
            xs = sorted(draw(st.tuples(*[st.integers(0, width)] * 2)))
            ys = sorted(draw(st.tuples(*[st.integers(0, height)] * 2)))
            mask = filled((xs[0], ys[0], xs[1], ys[1]), (height, width))
            category = draw(st.sampled_from([0, 4]))
            if found:
                score = draw(st.sampled_from([0.2, 0.5, 0.8]))
                results.append(result(number, category, score, mask))
            else:
                annotations.append(annotation(len(annotations), number, category, mask))
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return truth, draw(st.permutations(results))


def overlap(a, b):
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def plain_ap(truth, results, category, threshold, protocol):
    """Average precision from decoded masks, a detection at a time."""
    objects = [
        (one["image_id"], coco.decode(one["segmentation"]))
        for one in truth["annotations"]
        if one["category_id"] == category
    ]
    if not objects:
        return None if protocol == "sds" else 0
    mine = [one for one in results if one["category_id"] == category]
    taken, points, hits = set(), [], 0
    for rank, one in enumerate(sorted(mine, key=lambda one: -one["score"]), start=1):
        mask = coco.decode(one["segmentation"])
        best, place = -1.0, None
        for g, (image, truth_mask) in enumerate(objects):
            if image == one["image_id"] and not (protocol == "sds" and g in taken):
                if overlap(mask, truth_mask) > best:
                    best, place = overlap(mask, truth_mask), g
        enough = best > threshold if protocol == "sds" else best >= threshold
        if place is not None and enough and place not in taken:
            taken.add(place)
            hits += 1
        points.append((hits / len(objects), hits / rank))
    if protocol == "mnc11":
        levels = np.arange(0, 1.1, 0.1)
        return sum(max((p for r, p in points if r >= t), default=0) for t in levels) / 11
    recalls = sorted({r for r, _ in points} | {0.0})
    return sum(
        (high - low) * max(p for r, p in points if r >= high)
        for low, high in zip(recalls, recalls[1:], strict=False)
    )


@settings(max_examples=60, deadline=None)
@given(scenes(), st.sampled_from(["sds", "mnc11"]))
def test_files_are_scored_as_a_plain_loop_scores_masks(tmp_path_factory, scene, protocol):
    truth, results = scene
    folder = tmp_path_factory.mktemp("scene")
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    found = scored(folder, protocol)
    for threshold in VOLUME:
        expected = {
            name: plain_ap(truth, results, number, threshold, protocol)
            for number, name in NAMES.items()
        }
        assert found["ap"][f"{threshold:g}"] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(scenes(), st.booleans(), st.randoms(use_true_random=False))
def test_the_coco_protocol_is_pycocotools_itself(tmp_path_factory, scene, boxes, random):
    truth, results = scene
    folder = tmp_path_factory.mktemp("scene")
    for one in truth["annotations"]:
        one["id"] += 1  # it cannot find an object 0
    for one in results if boxes else []:
        one["bbox"] = [0, 0, random.choice([1, 30, 100]), random.choice([30, 100])]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    found = scored(folder, "coco")["coco"]
    if results:  # without any it cannot read the file
        expected = official(folder / "truth.json", folder / "results.json").stats
        assert [-1 if v is None else v for v in found.values()] == expected.tolist()


def test_how_many_masks_are_taken_at_once_changes_nothing(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    sizes = [(9, 11), (14, 6), (5, 5)] * 4
    images = [{"id": n, "height": h, "width": w} for n, (h, w) in enumerate(sizes)]
    masks = [[generator.random(size) < 0.7 for _ in range(6)] for size in sizes]
    draws = [(n, int(generator.choice([0, 4, 7])), m) for n, of in enumerate(masks) for m in of]
    annotations = [annotation(k, *one) for k, one in enumerate(draws[::2])]
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = [result(n, c, round(float(generator.random()), 1), m) for n, c, m in draws[1::2]]
    results[5]["segmentation"] = counted(draws[11][2])
    (tmp_path / "results.json").write_text(json.dumps(results))
    expected = {protocol: scored(tmp_path, protocol) for protocol in ("sds", "mnc11")}
    assert 0.1 < expected["sds"]["mean_ap"]["0.4"] < 0.9
    for few in (1, 3, 7):
        monkeypatch.setattr(run_lengths, "BATCH", few)
        monkeypatch.setattr(instances, "PART", few)
        assert {protocol: scored(tmp_path, protocol) for protocol in expected} == expected


# --- forms of files -------------------------------------------------------------------------------
def test_polygons_and_all_forms_of_run_lengths_are_the_same_mask(tmp_path):
    polygon = [[0, 0, 4, 0, 4, 2, 0, 2]]
    forms = [
        polygon,
        rle(A),
        counted(A),
        {"size": [6, 8], "counts": [0, 2, 2, 0, 2, 2, 4, 2, 4, 2, 28]},
    ]
    same = {"size": [6, 8], "counts": [0, 2, 4, 2, 0, 0, 4, 2, 4, 2, 28]}
    truth = the_truth()
    truth["annotations"] = [annotation(n, 0, 0, A, segmentation=f) for n, f in enumerate(forms[:3])]
    truth["annotations"].append(annotation(9, 0, 0, A, segmentation=same))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    objects = read_truth(tmp_path / "truth.json").images[0].objects
    assert all(np.array_equal(coco.decode(one.rle), A) for one in objects)
    results = [{"image_id": 0, "category_id": 0, "score": 1, "segmentation": f} for f in forms[:3]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = read_results(tmp_path / "results.json", read_truth(tmp_path / "truth.json"))
    assert all(np.array_equal(coco.decode(one.rle), A) for one in found)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-3, 30), min_size=1, max_size=6), st.integers(0, 40), st.booleans())
def test_run_lengths_pass_as_they_are_only_if_they_are_those_of_the_image(counts, cut, whole):
    if whole:  # make most of them fit
        counts = [*map(abs, counts), max(0, 48 - sum(map(abs, counts)))]
    text = written(counts)[: cut or None]
    good = rle(A)["counts"]  # beside it: what stands before and after is not touched
    runs, sound = read_texts([good, text, good], [(6, 8)] * 3)
    passed = bool(sound[1])
    try:
        read = decode_counts([text.encode()])[0].tolist()
    except ValueError:
        read = [-1]
    assert passed == (read[0] >= 0 and min(read[1:], default=1) > 0 and sum(read) == 48)
    assert sound[[0, 2]].all() and runs.areas[[0, 2]].tolist() == [8, 8]
    before, after = runs.bounds[: runs.ends[0]], runs.bounds[runs.ends[1] :]
    assert before.tolist() == after.tolist() == [0, 2, 6, 8, 12, 14, 18, 20]
    if passed:
        own = runs.bounds[runs.ends[0] : runs.ends[1]].tolist()
        bounds = np.cumsum(read)
        assert own == bounds[: len(bounds) // 2 * 2].tolist()
        assert runs.areas[1] == sum(read[1::2]) == sum(own[1::2]) - sum(own[::2])


def written(counts):
    """COCO's compressed text of counts, negative ones too."""
    text = ""
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        while True:
            digit, value = value & 31, value >> 5
            last = value == (-1 if digit & 16 else 0)
            text += chr(48 + digit + (0 if last else 32))
            if last:
                break
    return text


def test_what_annotations_may_leave_out(tmp_path):
    truth = the_truth()
    bare = {"image_id": 0, "category_id": 4, "segmentation": rle(B)}
    truth["annotations"] = [bare, bare]
    truth["images"] = [{"id": 0, "height": 6, "width": 8}]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    image = read_truth(tmp_path / "truth.json").images[0]
    assert image.name == "0"
    assert [(one.category, one.area, one.crowd) for one in image.objects] == [(4, 12, False)] * 2


def test_images_of_one_file_name_go_by_their_paths(tmp_path):
    files = ["a.jpg", "x/a.jpg", "x/b.v2.jpg", "/y/c.jpg", "y/c.jpg", "", None, "/"]
    truth = the_truth() | {"annotations": []}
    truth["images"] = [
        {"id": n, "file_name": file, "height": 6, "width": 8} for n, file in enumerate(files)
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "ids.txt").write_text("x/a\n6\n")
    known = read_truth(tmp_path / "truth.json").images.values()
    assert [one.name for one in known] == ["a", "x/a", "b.v2", "/y/c", "y/c", "5", "6", "7"]
    assert list(read_truth(tmp_path / "truth.json", tmp_path / "ids.txt").images) == [1, 6]


def test_image_ids_may_be_texts(tmp_path):
    text = json.dumps(the_truth()).replace('"image_id": 1', '"image_id": "x"')
    truth = json.loads(text.replace('{"id": 1, "file_name"', '{"id": "x", "file_name"'))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = json.dumps(the_results()).replace('"image_id": 1', '"image_id": "x"')
    (tmp_path / "results.json").write_text(results)
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "truth.json").write_text(json.dumps(the_truth()))
    (tmp_path / "same" / "results.json").write_text(json.dumps(the_results()))
    for protocol in ("sds", "coco"):
        assert scored(tmp_path, protocol) == scored(tmp_path / "same", protocol)


def test_json_and_table_hold_the_same_numbers(files, capsys):
    arguments = ["--truth", f"{files}/truth.json", "--predicted", f"{files}/results.json"]
    arguments += ["--json", f"{files}/s.json", "--table", f"{files}/s.parquet"]
    assert main(["score", "instances", "--protocol", "sds", *arguments]) == 0
    assert "mean_ap at 0.5" in capsys.readouterr().out
    found = json.loads((files / "s.json").read_text())
    table = read_table(files / "s.parquet", "metrics")
    mean = table[(table["metric"] == "mean_ap") & (table["at"] == 0.5)]["value"]
    assert mean.tolist() == [found["mean_ap"]["0.5"]]
    ring = table[(table["metric"] == "ap") & (table["category"] == "ring")]["value"]
    assert ring.tolist() == [found["ap"][f"{t:g}"]["ring"] for t in VOLUME]


# --- images by their files ------------------------------------------------------------------------
def numbered(files, *, names, rename):
    """A truth whose files have these names, and results that name images by their texts."""
    truth = the_truth()
    for image, name in zip(truth["images"], names, strict=True):
        image["file_name"] = name
    results = [*the_results(), result(2, 0, 0.95, B)]
    for entry in results:
        entry["image_id"] = rename[entry["image_id"]]
    (files / "truth.json").write_text(json.dumps(truth))
    (files / "results.json").write_text(json.dumps(results))


@pytest.mark.parametrize(
    ("names", "rename"),
    [
        (["a.jpg", "b c.png", "d.e.png"], ["a", "b c", "d.e"]),
        (["a.jpg", "b.png", "c.png"], ["x/a", "y/b", "c"]),  # longer than in the truth
        (["x/a.jpg", "x/y/b.png", "z/c.png"], ["a", "y/b", "z/c"]),  # shorter
        (["x/a.jpg", "y/a.jpg", "a.jpg"], ["x/a", "y/a", "a"]),  # the whole path before its end
        (["a.jpg", "b.jpg", "c.jpg"], [0, "b", "x/c"]),  # ids beside names
        (["1.jpg", "2.jpg", "0.jpg"], ["1", "2", "0"]),  # names, not ids
    ],
)
def test_results_may_name_images_by_their_files(files, names, rename):
    numbered(files, names=names, rename=[0, 1, 2])
    expected = scored(files)
    numbered(files, names=names, rename=rename)
    assert scored(files) == expected


def test_listed_images_are_found_by_their_files_too(files):
    (files / "ids.txt").write_text("im0\nim1\n")
    expected = scored(files, ids=files / "ids.txt")  # the results have none of im2
    numbered(files, names=[f"f/im{n}.jpg" for n in range(3)], rename=["im0", "im1", "im2"])
    assert scored(files, ids=files / "ids.txt") == expected


@pytest.mark.parametrize(
    ("names", "rename", "said"),
    [
        (["a.jpg", "b.jpg", "c.jpg"], ["d", "b", "c"], "result 0: image 'd' is not in .*truth.json"
         "; use the ids of the images there, or names of their files without ending"),
        (["x/a.jpg", "b.jpg", "c.jpg"], ["y/a", "b", "c"], "result 0: image 'y/a' is not in"),
        (["ba.jpg", "b.jpg", "c.jpg"], ["a", "b", "c"], "result 0: image 'a' is not in"),
        (["x/a.jpg", "y/a.jpg", "c.jpg"], ["a", "y/a", "c"],
         "image 'a' may be each of x/a, y/a in .*truth.json; use ids, or whole paths"),
        (["a.jpg", "b.jpg", "c.jpg"], ["x/a", "y/a", "c"],
         "images 'x/a' and 'y/a' may both be a in .*truth.json; use the ids there"),
    ],
)  # fmt: skip
def test_texts_that_fit_no_image_or_several_are_refused(files, names, rename, said):
    numbered(files, names=names, rename=rename)
    with pytest.raises(BadFile, match=f"results.json: {said}"):
        scored(files)


def test_texts_are_ids_where_the_truth_has_texts_for_ids(files):
    truth, results = the_truth(), the_results()
    for entry in truth["images"]:
        entry["file_name"] = f"im{(entry['id'] + 1) % 3}.jpg"
        entry["id"] = f"im{entry['id']}"
    for entry in truth["annotations"] + results:
        entry["image_id"] = f"im{entry['image_id']}"
    expected = scored(files)
    (files / "truth.json").write_text(json.dumps(truth))
    (files / "results.json").write_text(json.dumps(results))
    assert scored(files) == expected
    results[0]["image_id"] = "im0.jpg"
    (files / "results.json").write_text(json.dumps(results))
    with pytest.raises(BadFile, match="image 'im0.jpg' is not in"):
        scored(files)


# --- what is refused ------------------------------------------------------------------------------
WRONG_RESULTS = [
    ([{"image_id": 5}], "result 1: image 5 is not in .*truth.json"),
    ([{"image_id": "1"}], "result 1: image '1' is not in"),
    ([{"category_id": 3}], "result 1: category 3, but the categories of .* are 0 ring, 4 star"),
    ([{"score": None}], r"no COCO results \(Expected `float`, got `null`"),
    ([{"score": float("nan")}], "result 1: the score NaN is no number"),
    ([{"score": float("-inf")}], "result 1: the score -Infinity is no number"),
    ([{"score": "high"}], "no COCO results .*score"),
    ([{"bbox": [0, 0, 4]}], r"result 1: the box \[0.0, 0.0, 4.0\] is not four numbers"),
    ([{"bbox": [0, 0, 4, float("nan")]}], "no COCO results .*malformed"),
    ([{"segmentation": None}], "result 1: no mask; only masks can be scored, boxes cannot"),
    ([{"segmentation": []}], "result 1: it has no polygon"),
    ([{"segmentation": [[0, 0, 99, 0, 99, 9]]}], "result 1: a polygon from .* is not inside"),
    ([{"segmentation": {"size": [8, 6], "counts": rle(A)["counts"]}}],
     "result 1: run-lengths of 6x8 pixels, but the image has 8x6"),
    ([{"segmentation": {"size": [6, 8], "counts": [40]}}], "runs of 40 pixels together"),
    ([{"segmentation": {"size": [6, 8], "counts": [50, -2]}}], "a run of -2 pixels"),
    ([{"segmentation": {"size": [6, 8], "counts": "2"}}], "runs of 2 pixels together"),
    ([{"segmentation": {"size": [6, 8], "counts": ""}}], "result 1: .*cut off"),
    ([{"segmentation": {"size": [6, 8], "counts": "\u00e9"}}], "result 1: "),
    ([{"segmentation": {"size": [6, 8], "counts": "\u0001"}}], "result 1: .*other characters"),
]  # fmt: skip


@pytest.mark.parametrize("change, said", WRONG_RESULTS)
def test_faulty_results_are_refused(files, change, said, capsys):
    results = the_results()
    results[1] |= change[0]
    (files / "results.json").write_text(json.dumps(results))
    with pytest.raises(BadFile, match=f"results.json: .*{said}"):
        scored(files)
    arguments = ["--truth", f"{files}/truth.json", "--predicted", f"{files}/results.json"]
    assert main(["score", "instances", *arguments, "--json", f"{files}/s.json"]) == 2
    assert not (files / "s.json").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"annotations": []}', "[1]", "[{}]", "\x80", "[" * 9])
def test_what_is_no_results_file_is_refused(files, text):
    (files / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadFile, match="no COCO results .*they are a list of"):
        scored(files)


@pytest.mark.parametrize("beyond", ["1e999", "-1e999", "1" + 400 * "0"])
def test_numbers_beyond_all_are_refused(files, beyond):
    for new in (f'"score": {beyond}', f'"bbox": [0, 0, 1, {beyond}], "score": 0.9'):
        text = json.dumps(the_results()).replace('"score": 0.9', new)
        (files / "results.json").write_text(text)
        with pytest.raises(BadFile, match="results.json: no COCO results .*out of range"):
            scored(files)


def test_boxes_alone_are_refused(files):
    results = [{"image_id": 0, "category_id": 0, "score": 1, "bbox": [0, 0, 4, 2]}]
    (files / "results.json").write_text(json.dumps(results))
    with pytest.raises(BadFile, match="result 0: no mask; only masks can be scored"):
        scored(files)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t["images"].clear(), "no image in it"),
        (lambda t: t["categories"].clear(), "no category in it"),
        (lambda t: t["images"].append(t["images"][0]), "image 0 again"),
        (lambda t: t["images"].append(t["images"][0] | {"id": 9}), "image f/im0 again"),
        (lambda t: t["categories"].append({"id": 0, "name": "x"}), "category 0 again"),
        (lambda t: t["categories"].append({"id": 9, "name": "ring"}), "category ring again"),
        (lambda t: t["annotations"].append(t["annotations"][0]), "annotation 0 again"),
        (lambda t: t["annotations"][1].update(image_id=9), "annotation 1: of image 9"),
        (lambda t: t["annotations"][1].update(category_id=9), "annotation 1: category 9"),
        (lambda t: t["annotations"][1].pop("segmentation"), "annotation 1: no mask"),
        (lambda t: t["annotations"][1].update(area="x"), "not as COCO writes it"),
        (lambda t: t["annotations"][1].update(area=-1), "not as COCO writes it"),
        (lambda t: t.pop("images"), "not as COCO writes it .*images"),
    ],
)
def test_a_faulty_truth_is_refused(files, change, said):
    truth = the_truth()
    change(truth)
    (files / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(BadFile, match=f"truth.json: .*{said}"):
        scored(files)


def test_listed_images_that_are_not_there_are_refused(files):
    (files / "ids.txt").write_text("im0\nim7\n9\n")
    with pytest.raises(BadFile, match="2 of 3 images are not in .*truth.json: im7, 9"):
        scored(files, ids=files / "ids.txt")
    (files / "ids.txt").write_text("")
    with pytest.raises(BadFile, match="ids.txt: no image in it"):
        scored(files, ids=files / "ids.txt")


def test_thresholds_and_protocols_that_are_none_are_refused(files):
    with pytest.raises(BadInput, match="thresholds 1.5: an overlap is between 0 and 1"):
        scored(files, thresholds=[1.5])
    with pytest.raises(BadInput, match="an overlap is between"):
        scored(files, thresholds=[float("nan")])
    with pytest.raises(BadInput, match="two are equal to six digits"):
        scored(files, thresholds=[0.50000001])
    with pytest.raises(BadInput, match="choose sds, mnc11 or coco"):
        scored(files, protocol="voc")


def test_files_that_are_not_there_are_named(files):
    (files / "results.json").unlink()
    with pytest.raises(BadFile, match="results.json: not there"):
        scored(files)
