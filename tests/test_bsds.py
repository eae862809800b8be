"""BSDS500 as published: images, what people drew, and the published hierarchies."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.bsds import fitting_and_reporting, open_bsds
from pipeline.datasets.matfile import encode_variables
from pipeline.errors import BadFile

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "real" / "bsds500"
H, W = 12, 17


def segmentations(number: int) -> list[np.ndarray]:
    """What two people drew on an image: halves, and thirds."""
    columns = np.arange(W)[None].repeat(H, axis=0)
    return [
        (1 + (columns >= 8 + number % 3)).astype(np.uint16),
        (1 + columns // 6).astype(np.uint16),
    ]


def borders(segmentation: np.ndarray) -> np.ndarray:
    """True left of where the region changes."""
    return np.diff(segmentation, axis=1, append=segmentation[:, -1:]) != 0


def write_drawn(folder: Path, split: str, image_id: str, number: int = 0, *, ucm: bool) -> None:
    paths = {
        kind: folder / kind / split / f"{image_id}{suffix}"
        for kind, suffix in (
            ("data/images", ".jpg"),
            ("data/groundTruth", ".mat"),
            ("ucm2", ".mat"),
        )
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    drawn = segmentations(number)
    image = np.dstack([drawn[0] * 100] * 3).astype(np.uint8)
    Image.fromarray(image).save(paths["data/images"], quality=95)
    people = np.empty((1, len(drawn)), object)
    for place, segmentation in enumerate(drawn):
        people[0, place] = {
            "Segmentation": segmentation,
            "Boundaries": borders(segmentation).astype(np.uint8),
        }
    paths["data/groundTruth"].write_bytes(encode_variables({"groundTruth": people}))
    if ucm:
        grid = np.zeros((2 * H + 1, 2 * W + 1))
        grid[:, 16] = 0.5
        paths["ucm2"].write_bytes(encode_variables({"ucm2": grid}))


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
    with pytest.raises(BadFile, match="of the image's size"):
        open_bsds(copy).read("100")


@pytest.mark.parametrize("shape", [(5,), (4, 5), (1, 1)])
def test_a_hierarchy_that_is_no_grid_is_refused(copy, shape):
    path = copy / "BSDS500" / "ucm2" / "train" / "103.mat"
    path.write_bytes(encode_variables({"ucm2": np.zeros(shape)}))
    with pytest.raises(BadFile, match="no grid"):
        open_bsds(copy).read_ucm("103")


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
