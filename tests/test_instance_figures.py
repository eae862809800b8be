"""Pictures of objects: the steps that find them, overlays, curves, and how rules matter."""

import numpy as np
import pytest
from PIL import Image
from test_instance_reports import COMPONENTS, finding, make_params
from test_report import evaluation, project, write_files

from pipeline import instance_figures as figures
from pipeline import object_pictures
from pipeline.datasets.prepared import Prepared
from pipeline.errors import BadInput
from pipeline.instance_figures import RECALLS, Steps, mean_precision
from pipeline.label_pictures import with_own_maps
from pipeline.masks import encode_rle
from pipeline.object_overlays import Drawn, object_colours
from pipeline.object_pictures import object_jobs
from pipeline.stages.report import report
from pipeline.tables import write_table

assert project  # a fixture


@pytest.fixture
def kept(monkeypatch):
    """The figures that are drawn, instead of files."""
    found = []
    monkeypatch.setattr(figures, "write_png", lambda path, figure, **how: found.append(figure))
    return found


# --- objects over the image ----------------------------------------------------------------------
def whole(height: int, width: int) -> Drawn:
    """An object that fills its image."""
    return Drawn(encode_rle(np.ones((height, width), bool)), (0, 0, width, height))


def test_overlays_have_a_row_for_each_image_and_a_column_for_each_set(kept, tmp_path):
    image = np.zeros((6, 8, 3), np.uint8)
    rows = [("one", image, [[whole(6, 8)], []]), ("two", image[:3], [[], []])]
    figures.overlays(tmp_path / "a.png", ["image", "truth", "found"], rows)
    axes = kept[0].axes
    assert [axis.get_title() for axis in axes[:3]] == ["image", "truth", "found"]
    assert [axis.get_ylabel() for axis in axes[::3]] == ["one", "two"]
    shown = [axis.images[0].get_array() for axis in axes]
    assert (shown[1][0] == object_colours(1)).all() and not shown[2].any()


# --- from pixels to objects ----------------------------------------------------------------------
def some_steps():
    """Four cells of 8 pixels in a row: three vote for a box around themselves, one for another."""
    voted = np.array([[0, 0, 24, 8], [0, 0, 24, 8], [0, 0, 24, 8], [24, -8, 40, 8]], np.float32)
    return Steps(
        image=np.zeros((8, 30, 3), np.uint8),
        scores=np.array([[0.9, 0.8, 0.7, 0.6]]),
        stride=8,
        cells=np.array([[0, 0], [0, 1], [0, 2], [0, 3]]),
        weights=np.array([0.9, 0.8, 0.7, 0.6]),
        voted=voted,
        maxima=np.array([0, 3]),
        objects=[whole(8, 30)],
    )


def test_offsets_to_centres_are_told_by_hue_and_saturation():
    colours = figures.offset_colours(some_steps())
    assert colours.shape == (1, 4, 3)
    right, here, left, upper_right = colours[0]
    assert right.tolist() == [1, 0, 0]  # 8 pixels to the right, as far as any: full red
    assert here.tolist() == [1, 1, 1]
    assert left == pytest.approx([0, 1, 1])
    # (4, -4) from there: up and to the right, by 5.66 of 8 pixels
    assert upper_right == pytest.approx([1, 1 - 0.5**0.5, 1 - 0.5**0.5 / 4], abs=1e-6)


def test_cells_that_do_not_vote_are_white_and_none_may_vote():
    steps = some_steps()._replace(cells=np.zeros((0, 2), int), voted=np.zeros((0, 4)))
    assert (figures.offset_colours(steps) == 1).all()


def test_steps_without_any_vote_are_drawn(kept, tmp_path):
    nothing = some_steps()._replace(
        cells=np.zeros((0, 2), int), voted=np.zeros((0, 4)), weights=np.zeros(0),
        maxima=np.zeros(0, int), objects=[],
    )  # fmt: skip
    figures.draw_steps(tmp_path / "a.png", nothing, title="t", category="ring", objects="")
    assert kept[0].axes[3].get_title() == "0 votes for centres"


def test_the_steps_stand_in_six_panels(kept, tmp_path):
    figures.draw_steps(
        tmp_path / "a.png", some_steps(), title="t", category="ring", objects="1 object"
    )
    image, scores, transform, votes, maxima, objects = kept[0].axes
    headings = [axis.get_title() for axis in kept[0].axes]
    assert headings[1] == "scores of ring" and headings[3] == "4 votes for centres, 1 outside"
    assert headings[4:] == ["2 maxima", "1 object"]
    assert scores.images[1].get_extent() == [-0.5, 31.5, 7.5, -0.5]  # of 4 x 1 cells of 8 pixels
    assert all(axis.get_xlim() == (-0.5, 29.5) for axis in kept[0].axes)  # of the image
    points = votes.collections[0].get_offsets()
    assert points[-1].tolist() == [11.5, 3.5]  # the best vote in front: centre 12, 4
    boxes = [path.get_extents().extents.tolist() for path in maxima.collections[0].get_paths()]
    assert boxes == [[-0.5, -0.5, 23.5, 7.5], [23.5, -8.5, 39.5, 7.5]]
    assert (objects.images[0].get_array()[0] == object_colours(1)).all()
    assert image.images and transform.images


# --- precision and recall ------------------------------------------------------------------------
def test_the_mean_curve_is_the_best_precision_at_each_recall_or_beyond():
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    found = mean_precision([(recall, precision)])
    assert found.shape == RECALLS.shape
    assert (found[:51] == 1).all() and found[51:] == pytest.approx(2 / 3)


def test_a_category_counts_0_where_it_does_not_reach_a_recall_and_without_detections():
    curves = [(np.array([0.25]), np.array([0.5])), (np.zeros(0), np.zeros(0))]
    found = mean_precision(curves)
    assert found[:26] == pytest.approx(0.25) and not found[26:].any()


def test_curves_have_a_panel_for_each_overlap_and_a_line_for_each_evaluation(kept, tmp_path):
    line = np.linspace(1, 0, 101)
    lines = {0.5: {"a": line, "b": line / 2}, 0.7: {"a": line / 4, "b": line}}
    figures.precision_recall(tmp_path / "a.png", title="sample, val", lines=lines)
    left, right = kept[0].axes
    assert [line.get_label() for line in left.lines] == ["a", "b"]
    assert right.lines[0].get_ydata()[0] == 25 and right.lines[0].get_xdata()[-1] == 100
    assert "0.7" in right.get_title() and "mean over the categories" in kept[0]._suptitle.get_text()


# --- how the result depends on the rules ---------------------------------------------------------
def test_a_heat_map_for_each_rule_tells_every_value(kept, tmp_path):
    rows = [(2, 0.5, "any", 0.5), (1, 0.3, "any", 0.25), (1, 0.5, "any", 0.375), (2, 0.3, "iou", 1)]
    figures.sensitivity(tmp_path / "a.png", title="mAP^r", rows=rows)
    anything, by_iou = kept[0].axes
    grid = anything.images[0].get_array()
    assert (
        np.isnan(np.ma.filled(grid, np.nan)[1, 0])
        and grid[0].tolist() == [25, 37.5]
        and grid[1, 1] == 50
    )
    assert [t.get_text() for t in anything.texts] == ["25.0", "37.5", "50.0"]
    assert [t.get_text() for t in anything.get_xticklabels()] == ["0.3", "0.5"]
    assert [t.get_text() for t in anything.get_yticklabels()] == ["n = 1", "n = 2"]
    assert [t.get_text() for t in by_iou.texts] == ["100.0"]
    assert anything.images[0].get_clim() == by_iou.images[0].get_clim() == (25, 100)


def test_a_heat_map_of_one_value_or_of_none_is_drawn(tmp_path):
    for name, value in (("one", 0.5), ("none", float("nan"))):
        figures.sensitivity(tmp_path / f"{name}.png", title="x", rows=[(1, 0.5, "any", value)])
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 50


# --- what a report draws -------------------------------------------------------------------------
RING = np.zeros((12, 16), bool)
RING[2:8, 3:9] = True
NAMES = ("sample_found", "sample_peer", "sample_ceiling")


def write_objects(root, *, score=0.875):
    """Masks for the images of `write_files`, and what three evaluations found of them."""
    write_files(root, proposals=False)
    data = Prepared(root, "sample")
    rows = data.instances.assign(mask_rle=encode_rle(RING))
    write_table(root / "data/prepared/sample/instances.parquet", "instances", rows)
    for name in NAMES:
        found = rows[["image_id", "category", "x0", "y0", "x1", "y1", "mask_rle"]].copy()
        table = root / f"data/predictions/{name}/instances.parquet"
        write_table(table, "predicted_instances", found.assign(score=score))
    probabilities = np.zeros((3, 3, 4), np.float16)
    probabilities[0], probabilities[1, 1:2, 1:2] = 0.25, 0.75
    boxes = np.broadcast_to(np.array([3, 2, 9, 8], np.float32)[None, :, None, None], (2, 4, 3, 4))
    maps = root / "data/predictions/sample_found/maps/val_0.npz"
    maps.parent.mkdir()
    np.savez_compressed(
        maps, probabilities=probabilities, boxes=boxes, things=np.array([1, 2]), stride=4
    )


def evaluations():
    return {
        "sample_found": finding("sample_mask", "sample_boxes", "sample"),
        "sample_ceiling": finding("none", "none", "sample"),
        "sample_peer": finding("sample_mask", "none", "sample", instances=COMPONENTS),
    }


def test_the_stage_draws_steps_overlays_and_curves_and_links_them(project):
    write_objects(project)
    report(project, make_params(**evaluations()))
    drawn = {p.name for p in (project / "reports/figures").iterdir()}
    assert drawn >= {
        "sample_found_steps.png", "sample_found_objects.png", "sample_ceiling_objects.png",
        "sample_peer_objects.png", "sample_val_precision_recall.png",
    }  # fmt: skip
    text = (project / "reports/tables.md").read_text()
    assert all(f"(figures/{name})" in text for name in drawn)
    assert not list((project / "reports").rglob("*.partial"))


def test_objects_are_shown_beside_the_truth_and_connected_components(project, monkeypatch):
    write_objects(project)
    shown = {}

    def overlays(path, headings, rows):
        shown[path] = (headings, rows)

    monkeypatch.setattr(figures, "overlays", overlays)
    params = make_params(**evaluations())
    jobs = object_jobs(project, params, {"sample": Prepared(project, "sample")})
    for name, draw in jobs.overlays.items():
        draw(name)
    headings, rows = shown["sample_found"]
    assert headings == ["image", "truth", "sample_found\nscore >= 0.5", "sample_peer\nscore >= 0.5"]
    assert [name for name, _, _ in rows] == ["val_0", "val_1", "val_2"]
    assert rows[0][2] == [[Drawn(encode_rle(RING), (3, 2, 9, 8))]] * 3
    assert shown["sample_peer"][0] == ["image", "truth", "sample_peer\nscore >= 0.5"]
    assert set(jobs.steps) == {"sample_found"} and set(jobs.precision_recall) == {"sample_val"}


def test_objects_of_little_confidence_are_not_shown(project, monkeypatch):
    write_objects(project, score=0.25)
    shown = []
    monkeypatch.setattr(figures, "overlays", lambda path, headings, rows: shown.extend(rows))
    data = Prepared(project, "sample")
    table = project / "data/predictions/sample_found/instances.parquet"
    object_pictures.draw_objects(project / "a.png", data, "val", {"sample_found": table})
    assert [len(sets) for _, _, (_, *found) in shown for sets in found] == [0, 0, 0]


def test_label_maps_that_objects_are_found_in_are_drawn_once():
    plain = evaluation("sample_mask", "sample", [])
    params = make_params(**evaluations(), sample_mask=plain, other=plain | {"split": "train"})
    assert list(with_own_maps(params.evaluations)) == ["sample_mask", "other"]
    assert list(with_own_maps(make_params(**evaluations()).evaluations)) == ["sample_found"]


def test_the_steps_shown_are_those_of_the_category_of_most_objects(project, monkeypatch):
    write_objects(project)
    shown = {}

    def draw(path, steps, **words):
        shown.update(words, steps=steps)

    monkeypatch.setattr(figures, "draw_steps", draw)
    params = make_params(**evaluations())
    jobs = object_jobs(project, params, {"sample": Prepared(project, "sample")})
    jobs.steps["sample_found"](project / "a.png")
    steps = shown["steps"]
    assert shown["category"] == "ring"
    assert shown["title"] == "sample_found: image val_0, ring; votes of mask 1 of 2"
    assert shown["objects"] == "1 objects, score >= 0.5"
    assert steps.cells.tolist() == [[1, 1]] and steps.weights.tolist() == [0.75]
    assert steps.voted.tolist() == [[3, 2, 9, 8]] and steps.maxima.tolist() == [0]
    assert steps.objects == [Drawn(encode_rle(RING), (3, 2, 9, 8))]


def test_an_image_without_true_objects_shows_the_most_probable_category(project, monkeypatch):
    write_objects(project)
    shown = {}
    monkeypatch.setattr(figures, "draw_steps", lambda path, steps, **words: shown.update(words))
    data = Prepared(project, "sample")
    data.instances["crowd"] = True
    maps = project / "data/predictions/sample_found/maps/val_0.npz"
    boxes = np.full((2, 4, 3, 4), np.nan, np.float32)
    probabilities = np.stack([np.full((3, 4), p, np.float16) for p in (0.5, 0.125, 0.375)])
    np.savez_compressed(maps, probabilities=probabilities, boxes=boxes, things=[1, 2], stride=4)
    jobs = object_jobs(project, make_params(**evaluations()), {"sample": data})
    jobs.steps["sample_found"](project / "a.png")
    assert (shown["category"], shown["objects"]) == ("star", "0 objects, score >= 0.5")


def test_perfect_objects_have_precision_1_at_every_recall(project, monkeypatch):
    write_objects(project)
    shown = {}
    monkeypatch.setattr(
        figures, "precision_recall", lambda path, *, title, lines: shown.update(lines)
    )
    data = Prepared(project, "sample")
    table = project / "data/predictions/sample_found/instances.parquet"
    object_pictures.draw_curves(project / "a.png", data, "val", {"sample_found": table}, "t")
    assert set(shown) == {0.5, 0.7}
    assert (shown[0.5]["sample_found"] == 1).all()  # star has no object: left out of the mean


@pytest.mark.parametrize("damage", ["no archive", "an array less", "objects of Python"])
def test_damaged_maps_are_refused_by_name(project, damage):
    write_objects(project)
    maps = project / "data/predictions/sample_found/maps/val_0.npz"
    if damage == "no archive":
        maps.write_bytes(b"nothing")
    elif damage == "an array less":
        np.savez_compressed(maps, boxes=np.zeros(3))
    else:
        np.savez_compressed(maps, probabilities=np.array([{}], object))
    jobs = object_jobs(
        project, make_params(**evaluations()), {"sample": Prepared(project, "sample")}
    )
    with pytest.raises(BadInput, match="val_0.npz: no readable maps.*run predict"):
        jobs.steps["sample_found"](project / "a.png")


def test_maps_without_any_category_of_objects_are_not_drawn(project):
    write_objects(project)
    maps = project / "data/predictions/sample_ceiling/maps/val_0.npz"
    maps.parent.mkdir()
    empty = {"boxes": np.zeros((0, 4, 12, 16), np.float32), "things": np.zeros(0, np.int64)}
    np.savez_compressed(maps, probabilities=np.zeros((3, 12, 16), np.float16), stride=1, **empty)
    jobs = object_jobs(
        project, make_params(**evaluations()), {"sample": Prepared(project, "sample")}
    )
    with pytest.raises(BadInput, match="without any object"):
        jobs.steps["sample_ceiling"](project / "a.png")
