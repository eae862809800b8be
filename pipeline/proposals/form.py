"""The one form in which every proposal method gives its candidates: sets of superpixels.

H x W pixels, S superpixels, P candidates, N boxes or masks, K columns of numbers.
"""

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np

from pipeline.boxes import iou
from pipeline.categories import IGNORE
from pipeline.superpixels import Runs, boxes_and_areas, runs_of_lists


@dataclass(frozen=True)
class Proposals:
    """The candidates of one image, best first.

    Nothing here ever makes P masks: whatever is asked about all candidates is first summed in each
    superpixel and then over each candidate's superpixels.
    """

    superpixels: np.ndarray  # (H, W) uint16, ids 0..S-1
    members: (
        np.ndarray
    )  # uint16, superpixel ids of all candidates one after another, rising in each
    offsets: np.ndarray  # (P + 1,) int32: candidate i is members[offsets[i]:offsets[i + 1]]
    scores: np.ndarray  # (P,) float32, falling
    boxes: np.ndarray  # (P, 4) int32, tight
    areas: np.ndarray  # (P,) int32, pixels

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def mask(self, i: int) -> np.ndarray:
        """Candidate i as a mask (H, W) bool."""
        chosen = np.zeros(self.num_superpixels, bool)
        chosen[self.members[self.offsets[i] : self.offsets[i + 1]]] = True
        return chosen[self.superpixels]

    @cached_property
    def num_superpixels(self) -> int:
        return int(self.superpixels.max()) + 1

    @cached_property
    def _runs(self) -> Runs:
        """Where superpixels are numbered along a tree, a candidate is two or three runs."""
        edges, offsets = runs_of_lists(self.members, self.offsets)
        return Runs(self.superpixels, edges, offsets, self.boxes, self.areas)

    def sums(self, per_superpixel: np.ndarray) -> np.ndarray:
        """Each candidate's sum of a number that every superpixel has.

        Args:
            per_superpixel: (S,) or (S, K).

        Returns:
            (P,) or (P, K) float64: exact where the numbers are whole, else to the rounding of
            the sum over all superpixels.
        """
        columns = per_superpixel.reshape(self.num_superpixels, -1)
        return self._runs.sums(columns).reshape(len(self), *per_superpixel.shape[1:])

    def iou_with_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Overlap of each candidate's tight box with boxes (N, 4). Returns (P, N) in [0, 1]."""
        return iou(self.boxes, boxes)

    def iou_with_masks(self, masks: np.ndarray, void: np.ndarray | None = None) -> np.ndarray:
        """Overlap of each candidate with masks (N, H, W) bool. Returns (P, N) in [0, 1].

        Args:
            void: (H, W) bool, pixels that are left out of intersection and union.
        """
        return self._iou(*self._inside(masks, void))

    def pixels_in_masks(
        self, masks: np.ndarray, void: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What overlaps are made of.

        Args:
            masks: (N, H, W) bool.
            void: (H, W) bool, pixels that count nowhere.

        Returns:
            (P, N), pixels in both of each candidate and mask, (P,) of each candidate and (N,) of
            each mask; float64, whole numbers.
        """
        inside, sizes = self._inside(masks, void)
        return self.sums(inside), sizes, inside.sum(axis=0)

    def _inside(self, masks: np.ndarray, void: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of each superpixel in each mask (S, N), and of each candidate (P,)."""
        count = self.num_superpixels
        superpixels, sizes = self.superpixels, self.areas
        if void is not None:
            masks, superpixels = masks[:, ~void], superpixels[~void]
            sizes = self.sums(np.bincount(superpixels, minlength=count))
        inside = np.empty((count, len(masks)))
        for i, mask in enumerate(masks):
            inside[:, i] = np.bincount(superpixels[mask], minlength=count)
        return inside, sizes

    def iou_with_proposals(self, other: "Proposals") -> np.ndarray:
        """Overlap of each candidate with each of another method, or of the same, in one image.

        Args:
            other: its superpixels (H, W) may be others; Q candidates.

        Returns:
            (P, Q) float64 in [0, 1].

        Raises:
            ValueError: superpixels of another size.
        """
        if other.superpixels.shape != self.superpixels.shape:
            shapes = f"{self.superpixels.shape} and {other.superpixels.shape}"
            raise ValueError(f"proposals of one image are wanted, not of {shapes} pixels")
        shape = self.num_superpixels, other.num_superpixels
        if other.superpixels is self.superpixels:
            owner = np.repeat(np.arange(len(other)), np.diff(other.offsets))
            inside = np.zeros((shape[0], len(other)), np.int32)  # (S, Q)
            sizes = np.bincount(self.superpixels.ravel(), minlength=shape[0])
            inside[other.members, owner] = sizes[other.members]
        else:
            key = self.superpixels.astype(np.int64) * shape[1] + other.superpixels
            table = np.bincount(key.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
            inside = other.sums(table.T).T
        return self._iou(inside, self.areas)

    def iou_with_objects(self, objects: np.ndarray, count: int) -> np.ndarray:
        """Overlap of each candidate with the objects of an object map.

        Args:
            objects: (H, W) integers, 1..count in an object, 0 in none; pixels of value IGNORE are
                left out of intersection and union.
            count: N, of objects; under IGNORE.

        Returns:
            (P, N) in [0, 1]; column j is object j + 1.
        """
        key = self.superpixels.astype(np.int64) * (IGNORE + 1) + objects
        table = np.bincount(key.ravel(), minlength=self.num_superpixels * (IGNORE + 1))
        table = table.reshape(-1, IGNORE + 1).astype(np.float64)  # (S, 256)
        valid = self.sums(table[:, :IGNORE].sum(axis=1))
        return self._iou(table[:, 1 : count + 1], valid)

    def _iou(self, inside: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Overlaps (P, N) from pixels of each superpixel in each object (S, N) and sizes (P,)."""
        total = np.zeros((self.num_superpixels + 1, inside.shape[1]), np.int32)
        np.cumsum(inside, axis=0, out=total[1:], dtype=np.int32)
        return _overlaps(total, self._runs.edges, self._runs.offsets, sizes.astype(np.int32))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _overlaps(total, edges, offsets, sizes):
    """Intersection over union (P, N), 0 where both are empty, from running totals (S + 1, N)."""
    count = total.shape[1]
    overlap = np.empty((len(sizes), count))
    shared = np.empty(count, np.int32)
    for p in range(len(sizes)):
        shared[:] = 0
        for e in range(offsets[p], offsets[p + 1], 2):
            before, behind = total[edges[e]], total[edges[e + 1]]
            for n in range(count):
                shared[n] += behind[n] - before[n]
        for n in range(count):
            union = max(sizes[p] + total[-1, n] - shared[n], np.int32(1))
            overlap[p, n] = np.float64(shared[n]) / np.float64(union)
    return overlap


def from_membership(superpixels: np.ndarray, members: np.ndarray) -> Proposals:
    """Candidates in the common form, scored by their place.

    Args:
        superpixels: (H, W) uint16, ids 0..S-1.
        members: (P, S) bool, no row empty; best first.
    """
    count = len(members)
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(np.count_nonzero(members, axis=1), out=offsets[1:])
    ids = (np.flatnonzero(members) % members.shape[1]).astype(np.uint16)
    boxes, areas = boxes_and_areas(superpixels, ids, offsets)
    return Proposals(
        superpixels=superpixels,
        members=ids,
        offsets=offsets,
        scores=(1 - np.arange(count) / max(count, 1)).astype(np.float32),
        boxes=boxes,
        areas=areas,
    )
