"""Sets of nodes that hang together, holes and duplicates, against plain loops."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes

from pipeline.proposals.grouping import adjacency, distinct, membership, packed, tuples, unpacked
from pipeline.proposals.hierarchy import Hierarchy, boundary_hierarchy

#          0                 superpixels 0 1 2 3 in a row, each touching the next
#      1       2
#     3 4     5 6
ROW = Hierarchy(
    superpixels=np.array([[0, 1, 2, 3]], np.uint16),
    first=np.array([0, 0, 2, 0, 1, 2, 3], np.int32),
    last=np.array([4, 2, 4, 1, 2, 3, 4], np.int32),
    parent=np.array([-1, 0, 0, 1, 1, 2, 2], np.int32),
    neighbours=np.array([[0, 1], [1, 2], [2, 3]], np.int32),
)


def tree(seed: int, leaves: int) -> Hierarchy:
    strength = np.random.default_rng(seed).random((24, 30)).astype(np.float32)
    return boundary_hierarchy(strength, min_area=9, max_leaves=leaves)


def sets(found: np.ndarray) -> list[frozenset[int]]:
    return [frozenset(int(n) for n in row if n >= 0) for row in found]


def listed(hierarchy: Hierarchy, size: int, limit: int) -> np.ndarray:
    limits = {"singletons": 0, "pairs": 0, "triplets": 0, "quadruplets": 0}
    limits[["singletons", "pairs", "triplets", "quadruplets"][size - 1]] = limit
    return tuples(hierarchy, **limits)


def by_plain_loops(hierarchy: Hierarchy, size: int) -> set[frozenset[int]]:
    """All sets of nodes that touch, one with the next, and hold no siblings and nothing nested."""
    touching = adjacency(hierarchy)
    spans = [set(range(a, b)) for a, b in zip(hierarchy.first, hierarchy.last, strict=True)]
    found = set()
    for chosen in combinations(range(len(spans)), size):
        if any(
            spans[a] & spans[b] or hierarchy.parent[a] == hierarchy.parent[b]
            for a, b in combinations(chosen, 2)
        ):
            continue
        reached = {chosen[0]}
        for _ in chosen:
            reached |= {n for n in chosen if any(touching[n, r] for r in reached)}
        if len(reached) == size:
            found.add(frozenset(chosen))
    return found


# --- sets of nodes -----------------------------------------------------------------------------
def test_nodes_touch_where_their_superpixels_do():
    touching = {tuple(pair) for pair in np.argwhere(np.triu(adjacency(ROW)))}
    assert touching == {(1, 2), (1, 5), (2, 4), (3, 4), (4, 5), (5, 6)}


def test_pairs_are_neighbours_that_are_no_siblings_from_the_top_down():
    assert listed(ROW, 2, 10)[:, :2].tolist() == [[4, 2], [5, 1], [5, 4]]


def test_triplets_hang_together_and_hold_no_siblings():
    # 0 1 2 and 1 2 3 need siblings; there is nothing else in a row of four.
    assert len(listed(ROW, 3, 10)) == 0
    star = replace(ROW, neighbours=np.array([[0, 1], [0, 2], [0, 3], [1, 2], [2, 3]], np.int32))
    assert len(listed(star, 3, 10)) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sets_equal_those_of_plain_loops_and_a_smaller_budget_is_their_beginning(size, seed):
    hierarchy = tree(seed, 12)
    every = listed(hierarchy, size, 100_000)
    expected = by_plain_loops(hierarchy, size)
    assert len(expected) > 10
    assert set(sets(every)) == expected and len(every) == len(expected)
    assert every[:, 0].tolist() == sorted(every[:, 0].tolist())
    assert (every[:, 0] == every.max(axis=1)).all()
    for limit in (0, 1, 7):
        np.testing.assert_array_equal(listed(hierarchy, size, limit), every[:limit])


def test_the_lists_stand_one_after_another():
    hierarchy = tree(3, 20)
    every = tuples(hierarchy, singletons=5, pairs=6, triplets=7, quadruplets=8)
    assert (every >= 0).sum(axis=1).tolist() == [1] * 5 + [2] * 6 + [3] * 7 + [4] * 8


# --- sets of superpixels -----------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_packing_and_unpacking_is_nothing(count):
    members = np.random.default_rng(count).random((20, count)) < 0.4
    words = packed(members)
    assert words.shape == (20, -(-count // 64)) and words.dtype == np.uint64
    np.testing.assert_array_equal(unpacked(words, count), members)
    assert int(words[3, 0]) == sum(1 << i for i in np.flatnonzero(members[3, :64]).tolist())


def test_a_set_holds_the_superpixels_of_its_nodes():
    nodes = np.array([[0, -1, -1, -1], [5, 1, -1, -1], [6, 4, -1, -1]], np.int32)
    found = membership(ROW, nodes, np.arange(4), fill_holes=False)
    assert unpacked(found, 4).tolist() == [
        [True, True, True, True],
        [True, True, True, False],
        [False, True, False, True],
    ]
    finer = membership(ROW, nodes[2:], np.array([0, 1, 1, 3, 2]), fill_holes=False)
    assert unpacked(finer, 5).tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("leaves", [10, 60, 150])
def test_holes_are_filled_as_in_pixels(leaves):
    strength = np.random.default_rng(leaves).random((40, 50)).astype(np.float32)
    hierarchy = boundary_hierarchy(strength, min_area=4, max_leaves=leaves)
    count = int(hierarchy.last[0])
    assert count == leaves
    # Sets of any leaves will do; of four at a time, and of three large nodes.
    rng = np.random.default_rng(0)
    nodes = tuples(hierarchy, singletons=2 * leaves, pairs=200, triplets=200, quadruplets=200)
    nodes = nodes[rng.permutation(len(nodes))[:300]]
    plain = unpacked(membership(hierarchy, nodes, np.arange(count), fill_holes=False), count)
    filled = unpacked(membership(hierarchy, nodes, np.arange(count), fill_holes=True), count)
    # In superpixels that touch at sides the ground hangs together by sides, as in pixels.
    expected = [binary_fill_holes(m[hierarchy.superpixels]) for m in plain]
    np.testing.assert_array_equal([m[hierarchy.superpixels] for m in filled], expected)
    assert (filled != plain).any()


@pytest.mark.parametrize("max_overlap", [0.0, 0.5, 0.8, 0.95, 1.0])
def test_duplicates_go_as_in_plain_loops(max_overlap):
    rng = np.random.default_rng(1)
    superpixels = np.sort(rng.integers(0, 90, (30, 40)), axis=1)
    superpixels = np.unique(superpixels, return_inverse=True)[1].reshape(30, 40)
    areas = np.bincount(superpixels.ravel())
    centres = rng.random((25, len(areas))) < 0.5
    flips = rng.random((20, 25, len(areas))) < rng.choice([0, 0.01, 0.03, 0.1], (20, 25, 1))
    members = (centres ^ flips).reshape(-1, len(areas))
    members[7] = False
    expected: list[int] = []
    for i, m in enumerate(members):
        overlaps = [areas[m & members[k]].sum() / areas[m | members[k]].sum() for k in expected]
        if m.any() and not any(overlap >= max_overlap for overlap in overlaps):
            expected.append(i)
    kept = distinct(packed(members), superpixels, max_overlap=max_overlap, limit=1000)
    assert kept.tolist() == expected
    few = distinct(packed(members), superpixels, max_overlap=max_overlap, limit=3)
    assert few.tolist() == expected[:3]
    assert max_overlap not in (0.8, 0.95) or 25 < len(expected) < 499
