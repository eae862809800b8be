"""Trees of regions: from contours, over another grid, of several scales together."""

import numpy as np
import pytest
from scipy.ndimage import label as connected

from pipeline.proposals.edges import gradient_edges
from pipeline.proposals.hierarchy import (
    Hierarchy,
    Tree,
    boundary_hierarchy,
    boundary_tree,
    combined,
    resampled,
)


def strength_of(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """Contours of a disc on a shaded, noisy ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.stack([y * 2 + 40, x + 60, 0 * x + 110], axis=2) + rng.normal(
        0, 6, (height, width, 3)
    )
    image[(x - 20) ** 2 + (y - 25) ** 2 < 14**2] += 90, -40, 0
    return gradient_edges(np.clip(image, 0, 255).astype(np.uint8), sigma=1.0)


def saliency(tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Altitude at which pixels side by side, and one above the other, become one region."""
    ancestors = [[n] for n in range(len(tree.parents))]
    for line in ancestors:
        while tree.parents[line[-1]] != line[-1]:
            line.append(int(tree.parents[line[-1]]))

    def meet(a: int, b: int) -> float:
        return min(tree.altitudes[n] for n in set(ancestors[a]) & set(ancestors[b]))

    across = np.vectorize(meet)(tree.regions[:, :-1], tree.regions[:, 1:])
    down = np.vectorize(meet)(tree.regions[:-1], tree.regions[1:])
    return across, down


def nodes_as_masks(tree: Hierarchy) -> np.ndarray:
    s = tree.superpixels
    return np.array([(a <= s) & (s < b) for a, b in zip(tree.first, tree.last, strict=True)])


# --- from contours -----------------------------------------------------------------------------
def test_the_strongest_contour_is_split_first():
    strength = np.zeros((6, 9), np.float32)
    strength[:, 3] = 0.3
    strength[:, 6] = 0.9
    tree = boundary_hierarchy(strength, min_area=1, max_leaves=100)
    assert list(tree.parent[:3]) == [-1, 0, 0]
    left = next(mask for mask in nodes_as_masks(tree)[1:3] if mask[0, 0])
    assert left[:, :6].all() and not left[:, 7:].any()


def test_nested_discs_have_the_tree_that_their_contours_say():
    y, x = np.mgrid[:61, :61]
    distance = np.hypot(x - 30, y - 30)
    strength = np.zeros((61, 61), np.float32)
    strength[abs(distance - 10) < 1] = 0.2
    strength[abs(distance - 20) < 1] = 0.6
    tree = boundary_tree(strength, min_area=20)
    assert tree.parents.tolist() == [4, 3, 3, 4, 4]
    np.testing.assert_allclose(tree.altitudes, [0, 0, 0, 0.195, 0.59], atol=0.01)
    inner, ring, outside = tree.regions[30, 30], tree.regions[30, 45], tree.regions[0, 0]
    assert {inner, ring} == {1, 2} and outside == 0


def test_every_square_of_a_checkerboard_is_a_region():
    strength = np.zeros((35, 35), np.float32)
    strength[8::9] = strength[:, 8::9] = 0.5
    tree = boundary_tree(strength, min_area=30)
    for y in range(0, 35, 9):
        for x in range(0, 35, 9):
            assert (tree.regions[y : y + 8, x : x + 8] == tree.regions[y, x]).all()
    assert int(tree.regions.max()) + 1 == 16


def test_a_region_is_the_basin_of_one_minimum():
    # The last 0 alone is no minimum between pixels: its way down leads over the 7.
    strength = np.array([[3, 1, 4, 6, 5, 2, 9, 0, 0, 7, 0]], np.float32) / 10
    tree = boundary_tree(strength, min_area=1)
    assert tree.regions.tolist() == [[0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2]]


def test_the_altitude_of_a_node_is_the_mean_strength_between_its_parts():
    strength = strength_of(0)
    tree = boundary_tree(strength, min_area=30)
    leaves = int(tree.regions.max()) + 1
    inside = [{n} for n in range(leaves)] + [set() for _ in range(leaves - 1)]
    for node, parent in enumerate(tree.parents[:-1]):
        inside[parent] |= inside[node]
    for node in range(leaves, len(tree.parents)):
        one, other = np.flatnonzero(tree.parents[:-1] == node)
        a = np.isin(tree.regions, list(inside[one]))
        b = np.isin(tree.regions, list(inside[other]))
        steps = []
        for p, q in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
            crossing = (a[p] & b[q]) | (b[p] & a[q])
            steps.append(((strength[p] + strength[q]) / 2)[crossing])
        assert tree.altitudes[node] == pytest.approx(np.concatenate(steps).mean(), rel=1e-5)
    assert (np.diff(tree.altitudes) >= 0).all()


def test_no_region_is_small_and_every_one_hangs_together():
    tree = boundary_tree(strength_of(2), min_area=25)
    assert np.bincount(tree.regions.ravel()).min() >= 25
    for region in range(tree.regions.max() + 1):
        assert connected(tree.regions == region)[1] == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (6, 1), (12, 17)])
def test_a_plain_image_is_one_region(shape):
    for strength in (np.zeros(shape, np.float32), np.full(shape, 0.3, np.float32)):
        tree = boundary_tree(strength, min_area=5 * strength.max() * shape[0] * shape[1])
        assert not tree.regions.any() and tree.parents.tolist() == [0]


# --- the top of a tree -------------------------------------------------------------------------
def test_every_node_is_a_run_of_superpixels_that_its_children_share_out():
    tree = boundary_hierarchy(strength_of(1), min_area=10, max_leaves=40)
    count = tree.superpixels.max() + 1
    assert count == 40 and len(tree.first) == 2 * count - 1
    assert (tree.first[0], tree.last[0]) == (0, count)
    for node in range(1, len(tree.first), 2):
        parent = tree.parent[node]
        assert parent == tree.parent[node + 1] and parent < node
        assert tree.first[parent] == tree.first[node]
        assert tree.last[node] == tree.first[node + 1]
        assert tree.last[node + 1] == tree.last[parent]


def test_a_cut_tree_is_the_top_of_the_whole_one():
    whole = nodes_as_masks(boundary_hierarchy(strength_of(3), min_area=10, max_leaves=1000))
    part = nodes_as_masks(boundary_hierarchy(strength_of(3), min_area=10, max_leaves=12))
    assert len(part) == 23
    np.testing.assert_array_equal(part, whole[:23])


def test_neighbours_are_the_superpixels_that_touch():
    tree = boundary_hierarchy(strength_of(4), min_area=10, max_leaves=30)
    s = tree.superpixels
    touching = set()
    for a, b in ((s[:, :-1], s[:, 1:]), (s[:-1], s[1:])):
        touching |= {(min(p, q), max(p, q)) for p, q in zip(a.flat, b.flat, strict=True) if p != q}
    assert {tuple(pair) for pair in tree.neighbours.tolist()} == touching


# --- another grid and several scales -----------------------------------------------------------
def test_the_same_grid_gives_the_same_contours():
    tree = boundary_tree(strength_of(5), min_area=15)
    again = resampled(tree, *tree.regions.shape)
    for ours, theirs in zip(saliency(again), saliency(tree), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_contours_are_ultrametric():
    tree = resampled(boundary_tree(strength_of(6), min_area=15), 45, 70)
    across, down = saliency(tree)
    # Around four pixels no contour is stronger than all the others.
    around = np.stack([across[:-1], across[1:], down[:, :-1], down[:, 1:]])
    strongest = np.sort(around, axis=0)
    np.testing.assert_array_equal(strongest[-1], strongest[-2])


def test_half_a_grid_keeps_the_regions_of_its_pixels():
    tree = boundary_tree(strength_of(7), min_area=4)
    half = resampled(tree, 30, 40)
    expected = tree.regions[1::2, 1::2]
    for a, b in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        np.testing.assert_array_equal(
            half.regions[a] == half.regions[b], expected[a] == expected[b]
        )
    assert set(np.unique(half.regions)) == set(range(half.regions.max() + 1))
    assert len(half.parents) == 2 * half.regions.max() + 1


def test_one_tree_combined_with_itself_is_itself_above_the_cut():
    tree = boundary_tree(strength_of(8), min_area=15)
    together = combined([tree, tree, tree], cut=0.0)
    np.testing.assert_array_equal(together.regions, tree.regions)
    np.testing.assert_allclose(together.altitudes, tree.altitudes, atol=1e-9)


def test_a_shifted_coarse_contour_lands_on_the_fine_one_and_strengths_are_averaged():
    def halves(column: int, altitude: float) -> Tree:
        regions = np.zeros((8, 12), np.int32)
        regions[:, column:] = 1
        return Tree(regions, np.array([2, 2, 2]), np.array([0, 0, altitude]))

    together = combined([halves(8, 0.9), halves(7, 0.6), halves(6, 0.3)], cut=0.1)
    np.testing.assert_array_equal(together.regions, halves(6, 0).regions)
    assert together.altitudes[-1] == pytest.approx(0.6)


def test_regions_that_join_below_the_cut_are_one():
    weak = Tree(
        np.repeat([[0, 1, 2, 3]], 3, axis=0).astype(np.int32),
        np.array([4, 4, 5, 5, 6, 6, 6]),
        np.array([0, 0, 0, 0, 0.05, 0.2, 0.5]),
    )
    together = combined([weak, weak], cut=0.1)
    assert together.regions[0].tolist() == [2, 2, 0, 1]
    assert together.altitudes[-2:].tolist() == pytest.approx([0.2, 0.5])
