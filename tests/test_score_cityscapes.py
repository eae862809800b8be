"""Scoring Cityscapes: by hand, against the benchmark's own tool on the same files, bad input."""

import copy
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.categories import CITYSCAPES, CITYSCAPES_IDS, CITYSCAPES_LABELS, CITYSCAPES_THINGS
from pipeline.datasets.cityscapes import train_id_of_label
from pipeline.datasets.cityscapes_results import (
    categories_of_labels,
    holds_train_ids,
    pair_cityscapes,
    read_predicted,
    read_truth,
)
from pipeline.datasets.sample_cityscapes import write_cityscapes
from pipeline.errors import BadFile
from pipeline.metrics.cityscapes import (
    GROUPS,
    MEAN_PIXELS,
    OBJECT_GROUPS,
    ObjectSums,
    add_objects,
    count_objects,
    group_iou,
    group_object_iou,
    object_iou,
    of_categories,
)
from pipeline.scoring.cityscapes import score_cityscapes
from pipeline.scoring.outcome import document

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real"
SMALL, FULL = REAL / "cityscapes_small" / "gtFine", REAL / "cityscapes" / "gtFine"
ROAD, PARKING, SKY, PERSON, RIDER, CAR, BUS, CARAVAN = 7, 9, 23, 24, 25, 26, 28, 29
NAMES = ("ulm_000000_000019", "aachen_000001_000019", "ulm_000002_000019")


# --- files ----------------------------------------------------------------------------------------
def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, compress_level=1)


def write_truth(root: Path, image_id: str, labels, numbers=None) -> None:
    start = root / "truth" / image_id.split("_")[0] / f"{image_id}_gtFine_"
    write(Path(f"{start}labelIds.png"), np.asarray(labels, np.uint8))
    if numbers is not None:
        write(Path(f"{start}instanceIds.png"), np.asarray(numbers, np.uint16))


def write_predicted(root: Path, image_id: str, labels, ending: str = ".png") -> Path:
    path = root / "predicted" / f"{image_id}{ending}"
    write(path, np.asarray(labels, np.uint8))
    return path


def found_in(root: Path, *, instances: bool = False, **options) -> dict:
    """The JSON of the scores of `root`/truth and `root`/predicted."""
    given = {"ids": None, "allow_missing": False, "train_ids": False} | options
    where = root / "truth" if instances else None
    return document(score_cityscapes(root / "truth", root / "predicted", instances=where, **given))


@pytest.fixture
def one(tmp_path) -> Path:
    """One image of 2 x 3 pixels: road, sky and a person of two pixels; one of them is missed."""
    labels = [[ROAD, ROAD, PERSON], [SKY, PARKING, PERSON]]
    numbers = [[ROAD, ROAD, 24001], [SKY, PARKING, 24001]]
    write_truth(tmp_path, NAMES[0], labels, numbers)
    write_predicted(tmp_path, NAMES[0], [[ROAD, PERSON, PERSON], [SKY, PERSON, ROAD]])
    return tmp_path


# --- by hand --------------------------------------------------------------------------------------
def test_scores_a_small_image_as_by_hand(one):
    found = found_in(one, instances=True)
    road, sky, person = (CITYSCAPES.index(name) for name in ("road", "sky", "person"))
    confusion = np.zeros((19, 20), int)
    confusion[road, [road, person]] = confusion[person, [road, person]] = confusion[sky, sky] = 1
    assert found["confusion"] == confusion.tolist()
    assert found["categories"] == list(CITYSCAPES)
    assert found["iou"] == dict.fromkeys(CITYSCAPES) | {"road": 1 / 3, "person": 1 / 3, "sky": 1.0}
    assert found["mean_iou"] == pytest.approx(5 / 9)
    assert found["pixel_accuracy"] == 3 / 5
    assert found["mean_accuracy"] == pytest.approx(2 / 3)
    assert found["num_images"] == 1
    groups = dict.fromkeys(GROUPS) | {"flat": 1 / 3, "sky": 1.0, "human": 1 / 3}
    assert found["group_iou"] == groups
    assert found["mean_group_iou"] == pytest.approx(5 / 9)
    half = MEAN_PIXELS["person"] / 2  # weight 1/2 of the mean size, of one pixel right, one wrong
    expected = half / (half + 1 + half)
    assert found["iiou"] == dict.fromkeys(MEAN_PIXELS) | {"person": expected}
    assert found["group_iiou"] == {"human": expected, "vehicle": None}
    assert found["mean_iiou"] == found["mean_group_iiou"] == expected


def test_a_perfect_prediction_scores_one(tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        write_cityscapes(tmp_path / split, count, 0)
    for path in (tmp_path / "train" / "gtFine").rglob("*_labelIds.png"):
        (tmp_path / "predicted").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "predicted")
    (tmp_path / "truth").symlink_to(tmp_path / "train" / "gtFine" / "train")
    found = found_in(tmp_path, instances=True)
    for metric in ("iou", "group_iou", "iiou", "group_iiou"):
        assert found[f"mean_{metric}"] == 1
        assert set(found[metric].values()) <= {1, None}


def test_without_maps_of_objects_there_is_no_iiou(one):
    assert not {"iiou", "mean_iiou", "group_iiou"} & set(found_in(one))


@pytest.mark.parametrize("label", [0, PARKING, CARAVAN, 34, 77, 254, 255])
def test_a_label_that_is_not_scored_is_an_error_of_its_pixel(tmp_path, label):
    write_truth(tmp_path, NAMES[0], [[ROAD, ROAD, ROAD, PARKING]])
    write_predicted(tmp_path, NAMES[0], [[ROAD, ROAD, label, ROAD]])
    found = found_in(tmp_path)
    assert found["iou"]["road"] == found["group_iou"]["flat"] == found["pixel_accuracy"] == 2 / 3
    assert [row[-1] for row in found["confusion"]] == [1, *[0] * 18]


def test_a_car_predicted_as_caravan_is_right_for_the_vehicles_iiou_alone(tmp_path):
    write_truth(tmp_path, NAMES[0], [[CAR, CAR, ROAD]], [[26000, 26000, ROAD]])
    write_predicted(tmp_path, NAMES[0], [[CARAVAN, CARAVAN, CARAVAN]])
    found = found_in(tmp_path, instances=True)
    assert found["iou"]["car"] == found["group_iou"]["vehicle"] == found["iiou"]["car"] == 0
    weighted = MEAN_PIXELS["car"]
    assert found["group_iiou"]["vehicle"] == weighted / (weighted + 1)


def test_small_objects_weigh_as_much_as_large_ones():
    numbers = np.array([[26001] * 9 + [26002]], np.uint16)
    predicted = np.array([[CAR] * 9 + [ROAD]], np.uint8)
    sums = ObjectSums()
    add_objects(sums, count_objects(predicted, numbers))
    confusion = np.zeros((19, 20), np.int64)
    assert object_iou(sums, confusion)["car"] == pytest.approx(1 / 2)


def test_groups_of_objects_and_labels_that_are_not_scored_are_no_objects():
    numbers = np.array([[PERSON, ROAD, 0, 29001, 30000, 24000, 33999]], np.uint16)
    predicted = np.full((1, 7), PERSON, np.uint8)
    assert count_objects(predicted, numbers).tolist() == [[PERSON, 1, 1, 1], [33, 1, 0, 0]]


def test_objects_are_counted_in_any_memory_layout():
    rng = np.random.default_rng(4)
    numbers = rng.choice(np.array([0, 7, 24000, 26003, 33001], np.uint16), (5, 7))
    predicted = rng.choice(np.array([7, 24, 26, 29], np.uint8), (5, 7))
    expected = count_objects(predicted, numbers).tolist()
    assert count_objects(predicted.T, numbers.T).tolist() == expected
    assert count_objects(predicted[::-1], numbers[::-1]).tolist() == expected


@pytest.mark.parametrize("number", [1001, 7001, 34001, 65535])
def test_the_number_of_an_object_is_of_a_label_with_objects(number):
    numbers = np.array([[24001, number]], np.uint16)
    with pytest.raises(ValueError, match=f"number {number} "):
        count_objects(np.zeros((1, 2), np.uint8), numbers)


def test_objects_are_counted_in_maps_of_one_shape_and_the_right_types():
    for predicted, numbers in (
        (np.zeros((1, 2), np.uint8), np.zeros((2, 1), np.uint16)),
        (np.zeros((1, 2), np.int64), np.zeros((1, 2), np.uint16)),
        (np.zeros((1, 2), np.uint8), np.zeros((1, 2), np.int32)),
    ):
        with pytest.raises(ValueError, match="of one shape"):
            count_objects(predicted, numbers)


def test_the_groups_hold_every_category_once():
    assert [name for names in GROUPS.values() for name in names] == list(CITYSCAPES)
    assert list(MEAN_PIXELS) == [
        CITYSCAPES_LABELS[i] for i in CITYSCAPES_THINGS if i in CITYSCAPES_IDS
    ]
    assert [i for labels in OBJECT_GROUPS.values() for i in labels] == list(CITYSCAPES_THINGS)


# --- against the benchmark's tool -----------------------------------------------------------------
@pytest.fixture(scope="module")
def official() -> Callable[..., dict]:
    """The benchmark's own scoring of (prediction, truth) files; its iIoU needs instanceIds."""
    name = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    tool = pytest.importorskip(name, exc_type=ImportError)
    patch = pytest.MonkeyPatch()
    patch.setattr(np, "in1d", np.isin, raising=False)  # which numpy 2.4 has no more

    def run(files: Sequence[tuple[Path, Path]], *, instances: bool) -> dict:
        args = copy.copy(tool.args)
        args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, instances
        predicted, truth = zip(*files, strict=True)
        return tool.evaluateImgLists([str(p) for p in predicted], [str(t) for t in truth], args)

    yield run
    patch.undo()


def compare(root: Path, official: Callable[..., dict], *, instances: bool) -> None:
    """Every number that the tool gives is the same; means may differ in the order of adding."""
    pairs = pair_cityscapes(
        root / "truth", root / "predicted", ids=None, allow_missing=False, train_ids=False
    ).pairs
    files = [(pair.predicted, pair.truth) for pair in pairs]
    theirs = official(files, instances=instances)
    ours = found_in(root, instances=instances)

    matrix = np.array(theirs["confMatrix"])[list(CITYSCAPES_IDS)].astype(np.int64)
    confusion = np.array(ours["confusion"])
    np.testing.assert_array_equal(confusion[:, :-1], matrix[:, list(CITYSCAPES_IDS)])
    np.testing.assert_array_equal(confusion.sum(axis=1), matrix.sum(axis=1))
    metrics = {"iou": "classScores", "group_iou": "categoryScores"}
    means = {"mean_iou": "Classes", "mean_group_iou": "Categories"}
    if instances:
        metrics |= {"iiou": "classInstScores", "group_iiou": "categoryInstScores"}
        means |= {"mean_iiou": "InstClasses", "mean_group_iiou": "InstCategories"}
    for metric, key in metrics.items():
        assert known(ours[metric]) == known(theirs[key]), metric
    for metric, key in means.items():
        mean = theirs[f"averageScore{key}"]
        assert (ours[metric] is None) == math.isnan(mean)
        assert math.isnan(mean) or ours[metric] == pytest.approx(mean, rel=1e-13), metric


def known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: v for name, v in values.items() if v is not None and not math.isnan(v)}


# A region of an image: its published id, its number as an object (None: a group, or no object) and
# its box in tenths of the image.
TENTHS = st.integers(0, 10)
THING = st.sampled_from(CITYSCAPES_THINGS)
LABEL = st.one_of(st.sampled_from((ROAD, PARKING, SKY, PERSON, CAR, 0)), st.integers(0, 33), THING)
REGION = st.tuples(LABEL, st.none() | st.integers(0, 2), TENTHS, TENTHS, TENTHS, TENTHS)


@st.composite
def images(draw) -> list[np.ndarray]:
    """Truth, numbers of objects and prediction of an image, (H, W) each."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 17)))
    ground, guess = draw(LABEL), draw(LABEL)
    truth, predicted = np.full(shape, ground, np.uint8), np.full(shape, guess, np.uint8)
    numbers = truth.astype(np.uint16)
    for label, n, *box in draw(st.lists(REGION, max_size=5)):
        part = region(shape, *box)
        truth[part] = predicted[part] = label
        numbers[part] = label if n is None or label not in CITYSCAPES_THINGS else label * 1000 + n
    for label, _, *box in draw(st.lists(REGION, max_size=3)):
        predicted[region(shape, *box)] = label
    return [truth, numbers, predicted]


def region(shape: tuple[int, int], y0: int, x0: int, y1: int, x1: int) -> tuple[slice, slice]:
    """May be empty, or a single pixel."""
    height, width = shape
    return slice(y0 * height // 10, y1 * height // 10), slice(x0 * width // 10, x1 * width // 10)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=st.lists(images(), min_size=1, max_size=3))
def test_every_number_is_the_benchmarks(tmp_path, official, drawn):
    shutil.rmtree(tmp_path / "truth", ignore_errors=True)
    shutil.rmtree(tmp_path / "predicted", ignore_errors=True)
    for name, (truth, numbers, predicted) in zip(NAMES, drawn, strict=False):
        write_truth(tmp_path, name, truth, numbers)
        write_predicted(tmp_path, name, predicted)
    compare(tmp_path, official, instances=True)


def spoil(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A prediction: everything moved by some pixels, some labels exchanged, grains of noise."""
    spoilt = np.roll(labels, tuple(rng.integers(-6, 7, 2)), (0, 1))
    for old, new in zip(rng.integers(7, 34, 4), rng.integers(0, 34, 4), strict=True):
        spoilt[spoilt == old] = new
    noise = rng.random(labels.shape) < 0.01
    spoilt[noise] = rng.integers(0, 34, int(noise.sum()))
    return spoilt


def write_spoilt(root: Path, truth: Path) -> None:
    """Predictions of all label maps below `truth`, in the same folders of cities."""
    rng = np.random.default_rng(7)
    (root / "truth").symlink_to(truth)
    for path in sorted(truth.rglob("*_labelIds.png")):
        image_id = path.name.removesuffix("_gtFine_labelIds.png")
        labels = spoil(np.array(Image.open(path)), rng)
        write_predicted(root, f"{path.parent.name}/{image_id}", labels, "_leftImg8bit.png")


def test_the_drawn_sample_scores_as_the_benchmark_says(tmp_path, official):
    write_cityscapes(tmp_path / "sample", 0, 4)
    write_spoilt(tmp_path, tmp_path / "sample" / "gtFine" / "val")
    compare(tmp_path, official, instances=True)


@pytest.mark.skipif(not SMALL.is_dir(), reason="the real data are not here")
def test_real_street_scenes_score_as_the_benchmark_says(tmp_path, official):
    write_spoilt(tmp_path, SMALL / "val")
    compare(tmp_path, official, instances=True)


@pytest.mark.skipif(not FULL.is_dir(), reason="the real data are not here")
def test_real_frames_of_full_size_score_as_the_benchmark_says(tmp_path, official):
    write_spoilt(tmp_path, FULL / "val")
    compare(tmp_path, official, instances=False)


# --- train ids ------------------------------------------------------------------------------------
def test_train_ids_give_the_same_numbers_as_published_ids(tmp_path):
    rng = np.random.default_rng(3)
    scored = np.array(CITYSCAPES_IDS, np.uint8)
    for name in NAMES:
        labels = rng.choice(np.append(scored, [0, PARKING, CARAVAN]), (6, 9)).astype(np.uint8)
        numbers = np.where(np.isin(labels, CITYSCAPES_THINGS), labels * np.uint16(1000), labels)
        predicted = rng.choice(np.append(scored, 0), (6, 9))
        write_truth(tmp_path, name, labels, numbers)
        write_predicted(tmp_path, name, predicted)
        of = train_id_of_label()
        write_predicted(tmp_path / "trained", name, of[predicted])
        write(tmp_path / "trained" / "truth" / f"{name}_gtFine_labelTrainIds.png", of[labels])
    trained = score_cityscapes(
        tmp_path / "trained" / "truth",
        tmp_path / "trained" / "predicted",
        ids=None,
        allow_missing=False,
        train_ids=True,
        instances=tmp_path / "truth",
    )
    assert document(trained) == found_in(tmp_path, instances=True)


@pytest.mark.parametrize("train_ids", [False, True])
def test_a_value_of_the_truth_without_a_meaning_is_refused(tmp_path, train_ids):
    largest = 18 if train_ids else 33
    path = tmp_path / f"a_1_2_gtFine_label{'TrainIds' if train_ids else 'Ids'}.png"
    write(path, np.array([[largest, 255, largest + 1]], np.uint8))
    with pytest.raises(BadFile, match=f"Ids.png: value {largest + 1}, .*0..{largest} and 255"):
        read_truth(path, train_ids)


def test_maps_for_bands_hold_train_ids(tmp_path):
    path = tmp_path / "labels.png"
    write(path, np.array([[ROAD, PARKING, 33, 255, 0]], np.uint8))
    expected = [[0, 255, 18, 255, 255]]
    assert categories_of_labels(read_truth(path, False)).tolist() == expected
    write(path, np.array([[ROAD, PARKING, 33, 255, 77]], np.uint8))
    assert categories_of_labels(read_predicted(path, False)).tolist() == expected
    write(path, np.array([[0, 19, 18, 255, 77]], np.uint8))
    assert categories_of_labels(read_predicted(path, True)).tolist() == expected


def test_predictions_that_look_like_train_ids_are_noted(tmp_path):
    write_truth(tmp_path, NAMES[0], [[ROAD, SKY, CAR]])
    write_predicted(tmp_path, NAMES[0], [[0, 10, 13]])
    assert "say --train-ids" in found_in(tmp_path)["notes"][-1]
    write_predicted(tmp_path, NAMES[0], [[ROAD, SKY, CAR]])
    assert not [note for note in found_in(tmp_path)["notes"] if "--train-ids" in note]
    reverse = found_in(tmp_path, train_ids=True)["notes"]
    assert [note for note in reverse if "leave --train-ids away" in note]


def test_predicted_train_ids_are_scored_against_the_published_truth(tmp_path):
    write_truth(tmp_path, NAMES[0], [[ROAD, SKY, CAR, PARKING]])
    write_predicted(tmp_path, NAMES[0], [[0, 10, 0, 13]])
    found = found_in(tmp_path, train_ids=True)
    assert found["pixel_accuracy"] == 2 / 3
    assert found["iou"]["road"] == 1 / 2 and found["iou"]["sky"] == 1


@pytest.mark.parametrize(
    ("truths", "expected"),
    [
        ([[ROAD, 10], [ROAD, 26]], False),  # 26 is a published id only
        ([[0, 10], [0, 255]], True),  # 255 is a train id only
        ([[0, 10]], True),  # either: as the predictions
    ],
)
def test_values_tell_which_ids_the_truth_holds(tmp_path, truths, expected):
    paths = [tmp_path / f"a_{n}_0_gtFine_labelIds.png" for n in range(len(truths))]
    for path, values in zip(paths, truths, strict=True):
        write(path, np.array([values], np.uint8))
    assert holds_train_ids(paths) is expected


# --- which files ----------------------------------------------------------------------------------
def test_predictions_are_found_at_any_depth_whatever_their_ending(one):
    expected = found_in(one)
    path = one / "predicted" / f"{NAMES[0]}.png"
    (one / "predicted" / "a" / "b").mkdir(parents=True)
    path.rename(one / "predicted" / "a" / "b" / f"{NAMES[0]}_leftImg8bit_pred.png")
    (one / "predicted" / "readme.txt").write_text("not scored")
    (one / "predicted" / f".{NAMES[0]}.png").write_text("hidden")
    assert found_in(one) == expected


def test_cities_may_be_links(one):
    expected = found_in(one)
    shutil.move(one / "truth" / "ulm", one / "elsewhere")
    (one / "truth" / "ulm").symlink_to(one / "elsewhere")
    (one / "elsewhere" / "up").symlink_to(one / "truth")
    assert found_in(one) == expected


def test_two_predictions_of_an_image_are_refused_by_name(one):
    write_predicted(one, NAMES[0], [[0]], "_color.png")
    with pytest.raises(BadFile, match=f"{NAMES[0]}_color.png: a second .*{NAMES[0]}.png"):
        found_in(one)


def test_missing_and_extra_predictions_are_refused_and_listed(one):
    write_truth(one, NAMES[1], [[ROAD]])
    write_predicted(one, NAMES[2], [[ROAD]])
    write(one / "predicted" / "legend.png", np.zeros((1, 1), np.uint8))
    with pytest.raises(BadFile) as refused:
        found_in(one)
    for name in (NAMES[1], NAMES[2], "legend.png", "--allow-missing"):
        assert name in str(refused.value)


def test_a_missing_prediction_is_wrong_in_every_pixel_where_allowed(one):
    before = found_in(one, instances=True)
    write_truth(one, NAMES[1], [[ROAD, PERSON, PARKING]], [[ROAD, 24000, PARKING]])
    found = found_in(one, instances=True, allow_missing=True)
    assert found["num_images"] == 2
    assert found["pixel_accuracy"] == 3 / 7
    confusion = np.array(found["confusion"]) - before["confusion"]
    road, person = CITYSCAPES.index("road"), CITYSCAPES.index("person")
    assert confusion.sum() == 2 and confusion[[road, person], -1].tolist() == [1, 1]
    size = MEAN_PIXELS["person"]
    assert found["iiou"]["person"] == pytest.approx(size / 2 / (size / 2 + 1 + size / 2 + size))
    assert NAMES[1] in found["notes"][0]


def test_only_listed_images_are_scored(one):
    expected = found_in(one)
    write_truth(one, NAMES[1], [[ROAD]])
    (one / "val.txt").write_text(f"{NAMES[0]}\n")
    assert found_in(one, ids=one / "val.txt") == expected


def test_the_other_kind_of_truth_is_named(one):
    path = next((one / "truth").rglob("*labelIds.png"))
    path.rename(path.with_name(f"{NAMES[0]}_gtFine_labelTrainIds.png"))
    with pytest.raises(BadFile, match="labelIds.png in it .*score with --train-ids"):
        found_in(one)


def test_folders_that_are_not_there_or_empty_are_refused(one):
    shutil.rmtree(one / "predicted")
    with pytest.raises(BadFile, match="predicted: "):
        found_in(one)
    (one / "predicted").mkdir()
    with pytest.raises(BadFile, match="predicted: "):
        found_in(one)
    shutil.rmtree(one / "truth")
    with pytest.raises(BadFile, match="truth: "):
        found_in(one)


def test_two_truths_of_an_image_are_refused(one):
    shutil.copytree(one / "truth" / "ulm", one / "truth" / "copy")
    with pytest.raises(BadFile, match="is there, too"):
        found_in(one)


def test_a_truth_without_a_frames_name_is_refused(one):
    write_truth(one, "ulm", [[ROAD]])
    with pytest.raises(BadFile, match="its name is not <city>_<seq>_<frame>"):
        found_in(one)


# --- maps of objects ------------------------------------------------------------------------------
def test_sizes_that_differ_are_refused(one):
    write_predicted(one, NAMES[0], [[ROAD, ROAD], [ROAD, ROAD]])
    with pytest.raises(BadFile, match="2 x 2 pixels .*has 2 x 3"):
        found_in(one)


def objects_of(root: Path) -> Path:
    return next(root.rglob("*_instanceIds.png"))


def test_maps_of_objects_must_be_there_for_every_image(one):
    objects_of(one).unlink()
    with pytest.raises(BadFile, match=f"of 1 of 1 images: {NAMES[0]}"):
        found_in(one, instances=True)


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        (np.zeros((3, 2), np.uint16), "2x3 pixels, but the image has 3x2"),
        (np.zeros((2, 3), np.uint8), "16-bit"),
        (np.full((2, 3), 7001, np.uint16), "number 7001 is of no label"),
    ],
)
def test_maps_of_objects_that_are_none_are_refused(one, numbers, problem):
    write(objects_of(one), numbers)
    with pytest.raises(BadFile, match=f"instanceIds.png: .*{problem}"):
        found_in(one, instances=True)


# --- laws -----------------------------------------------------------------------------------------
def test_the_counts_of_labels_become_counts_of_categories():
    by_label = np.arange(34 * 35).reshape(34, 35)
    confusion = of_categories(by_label)
    assert confusion.shape == (19, 20)
    assert confusion[0, 0] == by_label[ROAD, ROAD]
    assert confusion[13, 11] == by_label[CAR, PERSON]
    np.testing.assert_array_equal(confusion.sum(axis=1), by_label[list(CITYSCAPES_IDS)].sum(axis=1))


def test_exchanging_categories_of_a_group_leaves_its_iou():
    confusion = np.random.default_rng(5).integers(0, 50, (19, 20))
    car, bus = CITYSCAPES.index("car"), CITYSCAPES.index("bus")
    moved = confusion.copy()
    moved[car, bus] += moved[car, car]
    moved[car, car] = 0
    assert group_iou(moved) == group_iou(confusion)


def test_nothing_counted_is_no_number():
    assert all(map(math.isnan, group_iou(np.zeros((19, 20), int)).values()))
    assert all(map(math.isnan, object_iou(ObjectSums(), np.zeros((19, 20), int)).values()))
    none = group_object_iou(ObjectSums(), np.zeros((34, 35), int))
    assert all(map(math.isnan, none.values()))


def test_false_positives_without_any_object_score_zero():
    confusion = np.zeros((19, 20), int)
    confusion[0, CITYSCAPES.index("car")] = 1
    assert object_iou(ObjectSums(), confusion)["car"] == 0
