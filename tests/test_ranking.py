"""The order of candidates: by hand, against plain arithmetic, and on photographs where they lie."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.matfile import encode_variables
from pipeline.errors import BadFile, BadInput
from pipeline.forests import open_ranker
from pipeline.params_proposals import GradientEdges, Mcg, Scg
from pipeline.proposals.edges import edges as contours
from pipeline.proposals.forest import Forest, predict
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.mcg import mcg
from pipeline.proposals.ranking import (
    FEATURES,
    borders,
    check_ranker,
    diverse,
    features,
    fit_ranker,
    rank,
    ranked,
    ranking_samples,
    reordered,
)
from pipeline.proposals.scg import scg
from pipeline.ranker_training import (
    Source,
    Truth,
    bsds_regions,
    fit_on,
    train_ranker,
    voc_objects,
)

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real" / "bsds500"
SETTINGS = Scg(
    kind="scg",
    edges=GradientEdges("gradient", sigma=1.0),
    min_area=12,
    singletons=200,
    pairs=300,
    triplets=100,
    quadruplets=0,
    max_overlap=0.95,
    max_candidates=1000,
    fill_holes=True,
)
edges = contours("gradient", sigma=1.0)


def some(seed: int, *, count: int = 60, blocks: int = 5) -> tuple[Proposals, np.ndarray]:
    """Random sets of blocks of random size, and a random strength of every pixel."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.integers(0, blocks, 20))
    columns = np.sort(rng.integers(0, blocks, 26))
    ids = np.unique(rows[:, None] * blocks + columns, return_inverse=True)[1]
    superpixels = ids.reshape(20, 26).astype(np.uint16)
    members = rng.random((count, int(superpixels.max()) + 1)) < 0.3
    members[np.arange(count), rng.integers(0, members.shape[1], count)] = True
    return from_membership(superpixels, members), rng.random((20, 26)).astype(np.float32)


def propose(image: np.ndarray) -> Proposals:
    return scg(image, SETTINGS, edges)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two ellipses of one colour each, before a striped ground. Returns image and object map."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :80]
    image = np.full((60, 80, 3), 120.0)
    image[:, (x[0] // 9) % 2 == 0] = 150
    objects = np.zeros((60, 80), np.uint8)
    for number, middle in enumerate((20, 58), start=1):
        across, down = rng.integers(8, 15, 2)
        inside = ((x - middle) / across) ** 2 + ((y - rng.integers(18, 42)) / down) ** 2 < 1
        image[inside] = rng.integers(0, 256, 3)
        objects[inside] = number
    image += rng.normal(0, 5, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), objects


def bytes_of(proposals: Proposals) -> list[bytes]:
    return [getattr(proposals, field.name).tobytes() for field in fields(Proposals)]


# --- borders -----------------------------------------------------------------------------------
def test_a_border_is_as_strong_as_the_merge_that_ends_it():
    # Three columns of two pixels, and a fourth region below all of them.
    superpixels = np.array([[0, 1, 2], [0, 1, 2], [3, 3, 3]], np.uint16)
    strength = np.array([[0.0, 0.2, 0.8], [0.0, 0.2, 0.8], [1.0, 1.0, 1.0]])
    around = borders(superpixels, strength)
    assert around.pairs.tolist() == [[0, 1], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert around.lengths.tolist() == [2, 1, 2, 1, 1]
    # 0 joins 1 at 0.1; both join 2 at 0.5, the mean between 1 and 2; all join 3 at the mean of
    # 0.5, 0.6 and 0.9.
    expected = [0.1, 2 / 3, 0.5, 2 / 3, 2 / 3]
    np.testing.assert_allclose(around.strengths, expected)


def test_an_id_without_pixels_changes_nothing():
    superpixels = np.array([[0, 1, 2], [0, 1, 2], [3, 3, 3]], np.uint16)
    strength = np.random.default_rng(0).random((3, 3))
    around, gap = borders(superpixels, strength), borders(superpixels * 2, strength)
    assert gap.pairs.tolist() == (around.pairs * 2).tolist()
    np.testing.assert_array_equal(gap.strengths, around.strengths)


def test_one_superpixel_has_no_border():
    around = borders(np.zeros((3, 4), np.uint16), np.ones((3, 4)))
    assert around.pairs.shape == (0, 2) and len(around.lengths) == len(around.strengths) == 0


# --- features ----------------------------------------------------------------------------------
def test_features_of_a_square_by_hand():
    superpixels = np.zeros((4, 8), np.uint16)
    superpixels[1:3, 0:2] = 1
    strength = np.full((4, 8), 0.25, np.float32)
    proposals = from_membership(superpixels, np.array([[False, True], [True, True]]))
    square, whole = features(proposals, borders(superpixels, strength)).T
    side = np.sqrt(32)
    outline = 6 + 2  # six steps to the ground, two sides on the image's border
    expected = [
        0.25, 0, 1, 4 / 32, outline / side, 6 * 0.25 / side, 0.25, outline**2 / 4, 6 * 0.25 / 2,
        0, 0.25, 0.25, 0.75, 4 / 32, 1, 0.5, 0,
    ]  # fmt: skip
    np.testing.assert_allclose(square, expected, rtol=1e-6)
    around_all = 24 / side
    expected = [1, 0.25, 1, 1, around_all, 0, 0, 24**2 / 32, 0, 0, 0, 1, 1, 1, 1, 8 / 12, np.log(2)]
    np.testing.assert_allclose(whole, expected, rtol=1e-6)


def test_features_are_those_of_the_masks():
    proposals, strength = some(3)
    around = borders(proposals.superpixels, strength)
    found = features(proposals, around)
    assert found.shape == (FEATURES, len(proposals)) and found.dtype == np.float32
    between = np.zeros((proposals.num_superpixels,) * 2)
    between[tuple(around.pairs.T)] = around.strengths
    between += between.T
    for p in range(len(proposals)):
        mask = proposals.mask(p)
        crossing, inside = [], [0.0]
        ids = proposals.superpixels
        for a, b, m, n in (
            (ids[1:], ids[:-1], mask[1:], mask[:-1]),
            (ids[:, 1:], ids[:, :-1], mask[:, 1:], mask[:, :-1]),
        ):
            crossing += between[a[m != n], b[m != n]].tolist()
            inside += between[a[m & n], b[m & n]].tolist()
        steps = len(crossing) + mask[0].sum() + mask[-1].sum() + mask[:, 0].sum()
        steps += mask[:, -1].sum()
        side = np.sqrt(mask.size)
        expected = [min(crossing), max(inside)]
        np.testing.assert_allclose(found[:2, p], expected, rtol=1e-6)
        expected = [steps / side, sum(crossing) / side, np.mean(crossing), steps**2 / mask.sum()]
        np.testing.assert_allclose(found[4:8, p], expected, rtol=1e-5)


def test_the_largest_run_is_a_share_of_the_area():
    superpixels = np.array([[0, 1, 1, 2, 3, 3, 3]], np.uint16)
    members = np.array([[1, 1, 0, 1], [1, 0, 1, 0], [1, 1, 1, 1]], bool)
    found = features(from_membership(superpixels, members), borders(superpixels, superpixels * 0.1))
    np.testing.assert_allclose(found[2], [3 / 6, 1 / 2, 1], rtol=1e-6)


# --- diversity ---------------------------------------------------------------------------------
def greedy(proposals: Proposals, scores: np.ndarray, first: int) -> list[int]:
    overlaps = proposals.iou_with_proposals(proposals)
    chosen: list[int] = []
    while len(chosen) < first:
        highest = overlaps[:, chosen].max(axis=1) if chosen else np.zeros(len(scores))
        values = scores * (1 - highest)
        values[chosen] = -1
        chosen.append(int(values.argmax()))
    return chosen


@pytest.mark.parametrize("seed", range(8))
def test_the_order_is_that_of_plain_greedy_choice(seed):
    proposals, _ = some(seed, count=120)
    scores = np.random.default_rng(seed).random(120)
    assert diverse(proposals, scores, first=120).tolist() == greedy(proposals, scores, 120)


def test_of_equal_candidates_the_first_stands_before():
    proposals, _ = some(1, count=80, blocks=2)  # few sets, so many are the same
    scores = np.round(np.random.default_rng(0).random(80), 1)
    assert diverse(proposals, scores, first=80).tolist() == greedy(proposals, scores, 80)


def test_after_the_first_ones_the_score_alone_decides():
    proposals, _ = some(2)
    scores = np.random.default_rng(5).random(60)
    order = diverse(proposals, scores, first=7)
    assert order[:7].tolist() == greedy(proposals, scores, 7)
    assert sorted(order) == list(range(60)) and (np.diff(scores[order[7:]]) <= 0).all()


def test_a_near_duplicate_waits_for_something_else():
    superpixels = np.arange(20, dtype=np.uint16)[None]
    members = np.zeros((3, 20), bool)
    members[0, :10] = members[1, :9] = members[2, 12:] = True
    proposals = from_membership(superpixels, members)
    assert diverse(proposals, np.array([0.9, 0.8, 0.3]), first=3).tolist() == [0, 2, 1]


# --- another order -----------------------------------------------------------------------------
def test_reordered_candidates_are_the_same_ones_with_falling_scores():
    proposals, _ = some(4)
    order = np.random.default_rng(0).permutation(60)
    other = reordered(proposals, order)
    assert (np.diff(other.scores) < 0).all() and other.scores[0] == 1
    for place, p in enumerate(order):
        np.testing.assert_array_equal(other.mask(place), proposals.mask(p))
        np.testing.assert_array_equal(other.boxes[place], proposals.boxes[p])
        assert other.areas[place] == proposals.areas[p]
    assert bytes_of(reordered(proposals, np.arange(60))) == bytes_of(proposals)


def constant() -> Forest:
    """A forest that finds one candidate as good as another."""
    return Forest(
        np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.float32), np.zeros((1, 2), np.float32),
        np.array(0, np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_candidates_can_be_ranked(count):
    proposals = from_membership(np.zeros((5, 6), np.uint16), np.ones((count, 1), bool))
    strength = np.zeros((5, 6), np.float32)
    assert bytes_of(ranked(proposals, strength, constant())) == bytes_of(proposals)
    assert features(proposals, borders(proposals.superpixels, strength)).shape == (FEATURES, count)


# --- the forest --------------------------------------------------------------------------------
def test_samples_hold_the_best_candidate_of_every_object():
    image, objects = drawn(0)
    proposals = propose(image)
    overlaps = proposals.iou_with_objects(objects, 2)
    rng = np.random.default_rng(0)
    rows, targets = ranking_samples(proposals, edges(image), overlaps, rng=rng)
    assert rows.shape == (FEATURES, len(targets)) and 100 <= len(targets) <= 102
    assert targets.max() == overlaps.max() and overlaps[:, 0].max() in targets


def test_a_fitted_forest_puts_objects_first():
    source = Source(tuple("012345"), (), lambda i: truth_of(int(i)))
    forest = fit_on(source, propose=propose, edges=edges, seed=0)
    first, random = [], []
    for seed in range(6, 10):
        image, objects = drawn(seed)
        proposals = propose(image)
        overlaps = proposals.iou_with_objects(objects, 2)
        order = rank(proposals, edges(image), forest)
        first.append(overlaps[order[:5]].max(axis=0))
        random.append(overlaps[np.random.default_rng(0).permutation(len(order))[:5]].max(axis=0))
    assert np.mean(first) > 0.8 > np.mean(random) + 0.2


def truth_of(seed: int) -> Truth:
    image, objects = drawn(seed)
    return Truth(image, np.stack([objects == 1, objects == 2]), np.zeros(objects.shape, bool))


def test_the_same_samples_give_the_same_forest():
    rng = np.random.default_rng(0)
    rows = rng.random((FEATURES, 300)).astype(np.float32)
    one, other = (fit_ranker(rows, rows[3].astype(float), seed=5) for _ in range(2))
    assert (predict(one, rows) == predict(other, rows)).all()
    assert np.corrcoef(predict(one, rows), rows[3])[0, 1] > 0.95


def test_a_forest_of_other_features_is_refused():
    forest = constant()
    assert check_ranker(forest) is forest
    wrong = Forest(forest.features + FEATURES, forest.thresholds, forest.leaves, forest.bias)
    with pytest.raises(ValueError, match="feature 17 of 17"):
        check_ranker(wrong)


# --- files -------------------------------------------------------------------------------------
@pytest.fixture
def voc(tmp_path) -> Path:
    """Six images, the last two of val; a strip of the first object is unclear."""
    root = tmp_path / "VOC2012"
    for name in ("JPEGImages", "SegmentationObject", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for seed in range(6):
        image, objects = drawn(seed)
        objects[:, 20] = np.where(objects[:, 20] == 1, 255, objects[:, 20])
        Image.fromarray(image).save(root / "JPEGImages" / f"2007_{seed}.jpg", quality=95)
        Image.fromarray(objects).save(root / "SegmentationObject" / f"2007_{seed}.png")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_4\n2007_5\n")
    return tmp_path


def test_objects_of_voc_are_read_and_val_is_not_fitted_on(voc):
    source = voc_objects(voc)
    assert source.fitting == tuple(f"2007_{n}" for n in range(4))
    assert source.reporting == ("2007_4", "2007_5")
    truth = source.read("2007_1")
    objects = drawn(1)[1]
    np.testing.assert_array_equal(truth.void, (objects == 1) & (np.arange(80) == 20))
    np.testing.assert_array_equal(truth.masks, [(objects == 1) & ~truth.void, objects == 2])
    assert truth.image.shape == (60, 80, 3)


def test_an_object_map_of_another_size_is_refused(voc):
    path = voc / "VOC2012" / "SegmentationObject" / "2007_0.png"
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(path)
    with pytest.raises(BadFile, match=r"2007_0.png: .*not the image's"):
        voc_objects(voc).read("2007_0")


def test_a_folder_without_object_maps_is_refused(tmp_path):
    with pytest.raises(BadFile, match="no VOC2012/SegmentationObject"):
        voc_objects(tmp_path)


def test_drawn_regions_of_bsds_are_read_but_for_small_ones(tmp_path):
    data = tmp_path / "BSDS500" / "data"
    people = np.empty((1, 2), object)
    for place, split in enumerate((30, 5)):
        regions = 1 + (np.arange(40) >= split).astype(np.uint16)[None].repeat(50, axis=0)
        people[0, place] = {"Segmentation": regions, "Boundaries": np.zeros((50, 40), np.uint8)}
    for kind in ("images", "groundTruth"):
        (data / kind / "train").mkdir(parents=True)
    for image_id in ("1", "2"):
        image = Image.fromarray(np.zeros((50, 40, 3), np.uint8))
        image.save(data / "images" / "train" / f"{image_id}.jpg")
        path = data / "groundTruth" / "train" / f"{image_id}.mat"
        path.write_bytes(encode_variables({"groundTruth": people}))
    source = bsds_regions(tmp_path)
    assert (source.fitting, source.reporting) == (("2",), ("1",))
    masks = source.read("2").masks
    assert masks.sum(axis=(1, 2)).tolist() == [1500, 500, 1750]  # 250 are too few


def test_a_ranker_is_trained_written_and_reported(voc, tmp_path, capsys):
    paths = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for path in paths:
        train_ranker(voc_objects(voc), path, propose=propose, edges=edges, seed=3)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert open_ranker(paths[0]).features.max() < FEATURES
    lines = capsys.readouterr().out.splitlines()
    assert "from 4 images" in lines[0] and "best overlap in 2 other images" in lines[1]
    assert [line.split()[0] for line in lines[2:6]] == ["random", "as", "forest", "ranked"]
    alls = {line.split()[-1] for line in lines[2:6]}
    assert len(alls) == 1 and float(alls.pop()) > 0.8  # all candidates, in whichever order


def test_images_without_masks_are_too_few(tmp_path):
    empty = Source(("1",), (), lambda _: truth_of(0)._replace(masks=np.zeros((0, 60, 80), bool)))
    with pytest.raises(BadInput, match="none of them with masks"):
        train_ranker(empty, tmp_path / "x.npz", propose=propose, edges=edges)
    with pytest.raises(BadInput, match="no place for a file"):
        train_ranker(empty, tmp_path, propose=propose, edges=edges)
    assert not (tmp_path / "x.npz").exists()


def test_what_is_no_ranker_is_refused(tmp_path):
    with pytest.raises(BadFile, match="not there"):
        open_ranker(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(BadFile, match="train-ranker"):
        open_ranker(tmp_path / "x.npz")


# --- photographs -------------------------------------------------------------------------------
PUBLISHED = Mcg(
    kind="mcg",
    edges=GradientEdges("gradient", sigma=2.0),
    min_area=200,
    align_cut=0.1,
    singletons=(90, 500, 200, 900),
    pairs=(2000, 3000, 5000, 700),
    triplets=(300, 10000, 5000, 700),
    quadruplets=(300, 4000, 300, 200),
    max_overlap=0.95,
    max_candidates=10000,
    fill_holes=True,
)


@pytest.mark.skipif(not REAL.is_dir(), reason="BSDS500 is not here")
def test_on_photographs_the_first_hundred_are_better_than_random_ones():
    strength = contours("gradient", sigma=2.0)

    def propose(image: np.ndarray) -> Proposals:
        return mcg(image, PUBLISHED, strength)

    source = bsds_regions(REAL)
    few = source._replace(fitting=source.fitting[::6])
    forest = fit_on(few, propose=propose, edges=strength, seed=0)
    best: list[list[float]] = [[], [], []]
    for image_id in source.reporting[::6]:
        truth = source.read(image_id)
        proposals = propose(truth.image)
        overlaps = proposals.iou_with_masks(truth.masks)
        orders = (
            rank(proposals, strength(truth.image), forest),
            np.random.default_rng(0).permutation(len(proposals)),
            np.arange(len(proposals)),
        )
        for firsts, order in zip(best, orders, strict=True):
            firsts += overlaps[order[:100]].max(axis=0).tolist()
    by_rank, random, as_listed = (np.mean(firsts) for firsts in best)
    assert by_rank > random + 0.1 and by_rank > as_listed
