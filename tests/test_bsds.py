"""BSDS500 as published: images, what people drew, and the published hierarchies."""

from pathlib import Path

import numpy as np
import pytest
from bsds_copy import H, W, borders, segmentations, write_drawn, write_mat
from PIL import Image

from pipeline.costs import num_categories, split_sizes
from pipeline.datasets.bsds import count_drawings, fitting_and_reporting, open_bsds, open_tree
from pipeline.datasets.matfile import encode_variables
from pipeline.datasets.tree import Place, Problems, Tree
from pipeline.errors import BadFile
from pipeline.params_datasets import Bsds500Dataset
from pipeline.wording import source_text, terms_text

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real" / "bsds500"
STRICT = Problems(collect=False)


@pytest.fixture
def copy(tmp_path) -> Path:
    """Eight images of train, the fourth with a published hierarchy."""
    for number in range(8):
        write_drawn(tmp_path / "BSDS500", "train", f"10{number}", number, ucm=number == 3)
    return tmp_path


@pytest.mark.parametrize("below", ["", "BSDS500", "BSDS500/data"])
def test_is_found_at_the_folder_and_around_it(copy, below):
    data = open_bsds(copy / below)
    assert data.folder == copy / "BSDS500"
    assert data.ids == {"train": tuple(f"10{n}" for n in range(8))}
    assert data.with_ucm == {"103"}


def test_reads_what_each_person_drew(copy):
    drawn = open_bsds(copy).read("101")
    assert drawn.image.shape == (H, W, 3) and drawn.image.dtype == np.uint8
    np.testing.assert_array_equal(drawn.segmentations, segmentations(1))
    np.testing.assert_array_equal(drawn.boundaries, [borders(s) for s in segmentations(1)])
    assert drawn.segmentations.dtype == np.uint16 and drawn.boundaries.dtype == bool


def test_reads_the_published_hierarchy(copy):
    ucm = open_bsds(copy).read_ucm("103")
    assert ucm.shape == (2 * H + 1, 2 * W + 1)
    assert (ucm[:, 16] == 0.5).all() and ucm.sum() == 0.5 * len(ucm)


def test_of_a_part_every_fourth_and_those_with_hierarchies_are_for_reporting(copy):
    fitting, reporting = fitting_and_reporting(open_bsds(copy))
    assert reporting == ("100", "103", "104")
    assert fitting == ("101", "102", "105", "106", "107")


def test_hierarchies_of_all_images_leave_some_to_fit_on(copy):
    for number in range(8):
        write_drawn(copy / "BSDS500", "train", f"10{number}", number, ucm=True)
    assert fitting_and_reporting(open_bsds(copy))[1] == ("100", "104")


def test_with_the_test_images_the_published_split_holds(copy):
    write_drawn(copy / "BSDS500", "val", "7", ucm=True)
    write_drawn(copy / "BSDS500", "test", "8", ucm=True)
    fitting, reporting = fitting_and_reporting(open_bsds(copy))
    assert reporting == ("8",)
    assert fitting == (*(f"10{n}" for n in range(8)), "7")


def test_an_empty_folder_says_what_belongs_there(tmp_path):
    with pytest.raises(BadFile, match="BSR_bsds500.tgz"):
        open_bsds(tmp_path)
    (tmp_path / "data" / "images" / "train").mkdir(parents=True)
    with pytest.raises(BadFile, match="no image with a groundTruth"):
        open_bsds(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable"),
        (b"a" * 300, "not a readable"),
        (encode_variables({"groundTruth": np.zeros((2, 2))}), "no groundTruth"),
        (encode_variables({"other": np.zeros((2, 2))}), "no groundTruth"),
        (encode_variables({"groundTruth": np.array([[{"a": 1.0}]], object)}), "no Segmentation"),
        (encode_variables({"groundTruth": np.zeros((1, 0), object)}), "no person's drawing"),
    ],
)
def test_a_wrong_file_of_drawings_is_named(copy, content, message):
    path = copy / "BSDS500" / "data" / "groundTruth" / "train" / "100.mat"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=message) as caught:
        open_bsds(copy).read("100")
    assert caught.value.path == path


def test_no_damage_to_a_file_of_drawings_gets_past(copy):
    path = copy / "BSDS500" / "data" / "groundTruth" / "train" / "100.mat"
    whole = path.read_bytes()
    data, rng = open_bsds(copy), np.random.default_rng(0)
    for cut in rng.integers(126, len(whole) - 1, 20):
        path.write_bytes(whole[:cut])
        with pytest.raises(BadFile):
            data.read("100")
    truth = data.read("101").segmentations.shape
    for at in rng.integers(126, len(whole), 200):
        broken = bytearray(whole)
        broken[at] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            assert data.read("100").segmentations.shape == truth
        except BadFile:
            pass


def test_drawings_of_another_size_are_refused(copy):
    path = copy / "BSDS500" / "data" / "images" / "train" / "100.jpg"
    Image.fromarray(np.zeros((H + 1, W, 3), np.uint8)).save(path)
    with pytest.raises(BadFile, match=f"{W}x{H} pixels, but the image has {W}x{H + 1}"):
        open_bsds(copy).read("100")


@pytest.mark.parametrize("shape", [(5,), (4, 5), (1, 1)])
def test_a_hierarchy_that_is_no_grid_is_refused(copy, shape):
    path = copy / "BSDS500" / "ucm2" / "train" / "103.mat"
    path.write_bytes(encode_variables({"ucm2": np.zeros(shape)}))
    with pytest.raises(BadFile, match="no grid"):
        open_bsds(copy).read_ucm("103")


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_a_hierarchy_of_what_are_no_strengths_is_refused(copy, value):
    path = copy / "BSDS500" / "ucm2" / "train" / "103.mat"
    write_mat(path, ucm2=np.full((2 * H + 1, 2 * W + 1), value))
    with pytest.raises(BadFile, match="no strengths"):
        open_bsds(copy).read_ucm("103")


@pytest.mark.parametrize("value", [np.nan, 1.5, -1.0, 70_000.0])
def test_numbers_that_are_of_no_region_are_refused(copy, value):
    drawn = {"Segmentation": np.full((H, W), value), "Boundaries": np.zeros((H, W), np.uint8)}
    path = copy / "BSDS500" / "data" / "groundTruth" / "train" / "100.mat"
    write_mat(path, groundTruth=np.array([[drawn]], object))
    with pytest.raises(BadFile, match="no numbers of regions"):
        open_bsds(copy).read("100")


def test_every_person_must_have_drawn_on_this_image(copy):
    one = {"Segmentation": np.ones((H, W), np.uint16), "Boundaries": np.zeros((H, W), np.uint8)}
    other = {name: drawn.T for name, drawn in one.items()}
    people = np.empty((1, 2), object)
    people[0] = one, other
    path = copy / "BSDS500" / "data" / "groundTruth" / "train" / "100.mat"
    write_mat(path, groundTruth=people)
    with pytest.raises(BadFile, match="rows and columns are exchanged"):
        open_bsds(copy).read("100")
    assert count_drawings(path) == 2
    assert count_drawings(path.with_name("gone.mat")) == 0


# --- as a dataset of the pipeline -----------------------------------------------------------------
def tree_of(folder: Path, problems: Problems = STRICT) -> Tree:
    return open_tree(Place("bsds500", folder), problems)


@pytest.mark.parametrize("below", ["", "BSDS500"])
def test_as_a_dataset_it_has_images_and_nothing_else(copy, below):
    write_drawn(copy / "BSDS500", "test", "7", ucm=False)
    tree = tree_of(copy / below)
    assert tree.splits == {"train": [f"10{n}" for n in range(8)], "test": ["7"]}
    assert tree.categories == ()
    sample = tree.read(tree.record("103"), STRICT)
    inner = "BSDS500/" if not below else ""
    assert sample.path == f"bsds500/{inner}data/images/train/103.jpg"
    assert (sample.size, sample.source) == ((H, W), "bsds500")
    assert sample.label_map is None and sample.objects is None


def test_the_files_of_an_image_are_its_drawings_and_perhaps_a_hierarchy(copy):
    files = tree_of(copy).files_of("103")
    base = "bsds500/BSDS500"
    image, drawings = f"{base}/data/images/train/103.jpg", f"{base}/data/groundTruth/train/103.mat"
    assert set(files.must) == {image, drawings}
    assert set(files.may) == {f"{base}/ucm2/train/103.mat"}
    assert all(path == copy / name.removeprefix("bsds500/") for name, path in files.must.items())


def test_its_notes_say_what_the_copy_lacks(copy):
    assert tree_of(copy).notes == (
        "no images of val; officially 100",
        "no images of test; officially 200",
        "train: published hierarchies (ucm2) of 1 of 8 images",
    )


def test_an_image_without_drawings_and_drawings_without_an_image_are_faults(copy):
    folder = copy / "BSDS500" / "data"
    (folder / "groundTruth" / "train" / "100.mat").unlink()
    (folder / "images" / "train" / "101.jpg").unlink()
    tree = tree_of(copy)
    for image_id in ("100", "101"):
        with pytest.raises(BadFile, match="not there"):
            tree.read(tree.record(image_id), STRICT)
    assert open_bsds(copy).ids["train"] == tuple(f"10{n}" for n in range(2, 8))


def test_all_faults_of_an_image_are_collected(copy):
    folder = copy / "BSDS500"
    (folder / "data" / "groundTruth" / "train" / "103.mat").write_bytes(b"")
    write_mat(folder / "ucm2" / "train" / "103.mat", ucm2=np.zeros((2 * W + 1, 2 * H + 1)))
    problems = Problems(collect=True)
    tree = tree_of(copy)
    assert tree.read(tree.record("103"), problems).size == (H, W)
    drawings, hierarchy = problems.found
    assert drawings.path.parent.parent.name == "groundTruth"
    assert f"of {H}x{W} pixels, but the image has {W}x{H}" in hierarchy.problem
    with pytest.raises(BadFile):
        tree.read(tree.record("103"), STRICT)


@pytest.mark.parametrize(("one", "other"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_no_image_is_in_two_splits(tmp_path, one, other):
    for split in (one, other):
        write_drawn(tmp_path / "BSDS500", split, "5", ucm=False)
    with pytest.raises(BadFile, match="1 of its images are in") as caught:
        tree_of(tmp_path)
    assert caught.value.path.name == other
    problems = Problems(collect=True)
    assert tree_of(tmp_path, problems).ids() == ["5"] and len(problems.found) == 1


def test_hidden_files_are_no_images_and_odd_names_are_told(copy):
    folder = copy / "BSDS500" / "data" / "images" / "train"
    (folder / "._100.jpg").write_bytes(b"beside it, by a file system")
    assert len(tree_of(copy).ids()) == len(open_bsds(copy).ids["train"]) == 8
    (folder / "copy of 100.jpg").write_bytes(b"")
    with pytest.raises(BadFile, match="no image id"):
        tree_of(copy)


def test_what_is_no_copy_is_refused_as_a_dataset(copy, tmp_path):
    with pytest.raises(BadFile, match="name the folder around it"):
        tree_of(copy / "BSDS500" / "data")
    empty = tmp_path / "empty"
    with pytest.raises(BadFile, match="BSR_bsds500.tgz"):
        tree_of(empty)
    (empty / "data" / "images" / "train").mkdir(parents=True)
    with pytest.raises(BadFile, match="no image in train/"):
        tree_of(empty)
    problems = Problems(collect=True)
    assert tree_of(empty, problems).ids() == [] and len(problems.found) == 1


def test_the_published_copy_has_500_images_and_no_categories():
    entry = Bsds500Dataset("bsds500")
    assert split_sizes(entry) == {"train": 200, "val": 100, "test": 200, "all": 500}
    assert num_categories(entry) is None
    assert source_text(entry) == "BSDS500" and "research use only" in terms_text(entry)


# --- the real part --------------------------------------------------------------------------------
@pytest.mark.skipif(not REAL.is_dir(), reason="no part of BSDS500 here")
def test_the_real_part_reads_as_scipy_reads_it():
    from scipy.io import loadmat

    data = open_bsds(REAL)
    fitting, reporting = fitting_and_reporting(data)
    assert len(fitting) + len(reporting) == 100 and not {*fitting} & {*reporting}
    assert len(data.with_ucm) == 10 and data.with_ucm <= {*reporting}
    for image_id in (fitting[0], *sorted(data.with_ucm)[:1]):
        drawn = data.read(image_id)
        path = data.folder / "data" / "groundTruth" / "train" / f"{image_id}.mat"
        people = loadmat(path)["groundTruth"][0]
        assert len(people) == len(drawn.segmentations)
        for person, segmentation, boundaries in zip(
            people, drawn.segmentations, drawn.boundaries, strict=True
        ):
            np.testing.assert_array_equal(person["Segmentation"][0, 0], segmentation)
            np.testing.assert_array_equal(person["Boundaries"][0, 0], boundaries)
    height, width = drawn.image.shape[:2]
    assert data.read_ucm(image_id).shape == (2 * height + 1, 2 * width + 1)
