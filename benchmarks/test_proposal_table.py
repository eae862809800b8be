"""Bytes of a table of proposals, and what an image costs to write and to read.

    pytest benchmarks/test_proposal_table.py --benchmark-columns=min,median,rounds

MCG's candidates of one picture of 375 x 500 pixels, the first 2,000 and the first 5,000, in the
order in which they are enumerated and, as a ranking that knows nothing would leave them, shuffled.
The bytes are those of one row, without what parquet adds; -s prints them. The peer is what
candidates are kept as elsewhere: lists of superpixels, a PNG of 16 bits, boxes and areas, in zstd.
"""

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pipeline.datasets.proposal_table import ProposalTable, to_row
from pipeline.params_proposals import GradientEdges, Mcg
from pipeline.proposals.edges import gradient_edges
from pipeline.proposals.form import Proposals, from_membership
from pipeline.proposals.mcg import mcg
from pipeline.proposals.ranking import reordered
from pipeline.tables import write_table

HEIGHT, WIDTH = 375, 500
SETTINGS = Mcg(
    kind="mcg",
    edges=GradientEdges("gradient", sigma=2.0),
    min_area=200,
    align_cut=0.1,
    singletons=(90, 500, 200, 900),
    pairs=(2000, 3000, 5000, 700),
    triplets=(300, 10000, 5000, 700),
    quadruplets=(300, 4000, 300, 200),
    max_overlap=0.95,
    max_candidates=5000,
    fill_holes=True,
)
NAMES = ("superpixels", "members", "offsets", "scores", "boxes", "areas")


@pytest.fixture(scope="module")
def found() -> Proposals:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    layers = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for period, weight in ((90, 60), (40, 40), (15, 25), (4, 10)):
        coarse = rng.normal(0, 1, (HEIGHT // period + 2, WIDTH // period + 2, 3))
        layers += weight * cv2.resize(coarse.astype(np.float32), (WIDTH, HEIGHT))
    steps = np.round(layers / 40) * 40  # plains with contours between them
    image = np.clip(128 + 0.7 * steps + 0.3 * layers, 0, 255).astype(np.uint8)
    return mcg(image, SETTINGS, lambda scaled: gradient_edges(scaled, sigma=2.0))


@pytest.fixture(params=[(2000, False), (5000, False), (2000, True), (5000, True)], ids=str)
def arrays(request, found) -> dict[str, np.ndarray]:
    """Arrays of the first candidates, in their own order or shuffled."""
    count, shuffled = request.param
    order = np.random.default_rng(0).permutation(len(found)) if shuffled else np.arange(len(found))
    chosen = reordered(found, order[:count])
    return {name: getattr(chosen, name) for name in NAMES}


def lists_in_bytes(arrays: dict[str, np.ndarray]) -> int:
    """Bytes of the superpixels as a PNG and of every list under zstd."""
    codec = pa.Codec("zstd", compression_level=3)
    lists = [codec.compress(np.ascontiguousarray(arrays[name]).tobytes()) for name in NAMES[1:]]
    return len(cv2.imencode(".png", arrays["superpixels"])[1]) + sum(len(part) for part in lists)


@pytest.mark.benchmark(group="one image, 375 x 500")
def test_write(benchmark, arrays):
    row = benchmark(lambda: to_row("a", "", "mcg", **arrays))
    columns = row["columns"].astype(np.uint16).tobytes()
    size = len(row["superpixels"]) + len(row["members"]) + len(columns)
    as_lists = lists_in_bytes(arrays)
    print(f"\n{len(arrays['areas'])} candidates: {size} bytes, as lists {as_lists}")
    assert size < as_lists


@pytest.mark.benchmark(group="one image, 375 x 500")
def test_read(benchmark, arrays, tmp_path):
    row = to_row("a", "", "mcg", **arrays)
    write_table(tmp_path / "part-000.parquet", "proposals", [row])
    table = ProposalTable(tmp_path)
    read = benchmark(table.of, "a")
    assert all(np.array_equal(read[name], arrays[name]) for name in NAMES)


def gathered(superpixels: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
    """Lists, boxes and areas (as `from_membership` gives them) in numpy alone."""
    owner, ids = np.nonzero(members)
    offsets = np.searchsorted(owner, np.arange(len(members) + 1))
    y, x = np.indices(superpixels.shape)
    count = members.shape[1]
    least, most = np.full((count, 2), 1 << 20), np.zeros((count, 2), np.int64)
    places = np.stack([x.ravel(), y.ravel()], axis=1)
    np.minimum.at(least, superpixels.ravel(), places)
    np.maximum.at(most, superpixels.ravel(), places + 1)
    boxes = np.concatenate(
        [
            np.minimum.reduceat(least[ids], offsets[:-1]),
            np.maximum.reduceat(most[ids], offsets[:-1]),
        ],
        axis=1,
    )
    areas = np.add.reduceat(np.bincount(superpixels.ravel())[ids], offsets[:-1])
    return [ids, offsets, boxes, areas]


@pytest.mark.parametrize("way", ["from_membership", "numpy"])
@pytest.mark.benchmark(group="lists, boxes and areas of 5,000 candidates")
def test_from_membership(benchmark, found, way):
    members = np.zeros((len(found), found.num_superpixels), bool)
    members[np.repeat(np.arange(len(found)), np.diff(found.offsets)), found.members] = True
    made = from_membership(found.superpixels, members)
    lists = [made.members, made.offsets, made.boxes, made.areas]
    for ours, theirs in zip(lists, gathered(found.superpixels, members), strict=True):
        assert np.array_equal(ours, theirs)
    benchmark(from_membership if way == "from_membership" else gathered, found.superpixels, members)
