"""What params.yaml may say of proposals: edges, algorithms, forests, and what they are put to."""

from dataclasses import dataclass
from typing import Literal


# --- edges ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class GradientEdges:
    """The length of the colour gradient: nothing is learnt."""

    kind: Literal["gradient"]
    sigma: float  # of the Gaussian before the gradient, pixels


@dataclass(frozen=True)
class BoostedEdges:
    """Contours as the forest in the slot `contours` finds them."""

    kind: Literal["boosted"]


@dataclass(frozen=True)
class SavedEdges:
    """One file of strengths for each image, in a folder of the user's."""

    kind: Literal["file"]
    place: str  # data/raw/<place>, or where local.yaml or PIPELINE_DATA_<PLACE> says


@dataclass(frozen=True)
class StructuredEdges:
    """OpenCV's structured forest, from a model file of the user's."""

    kind: Literal["sf"]
    place: str  # as of SavedEdges, but of a file


Edges = GradientEdges | BoostedEdges | SavedEdges | StructuredEdges


# --- algorithms ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class NoCandidates:
    """No candidate at all: every box is left to its rectangle."""

    kind: Literal["none"]


@dataclass(frozen=True)
class Scg:
    """Single-scale combinatorial grouping over one hierarchy."""

    kind: Literal["scg"]
    edges: Edges
    min_area: int  # smaller regions are merged away, pixels
    singletons: int
    pairs: int
    triplets: int
    quadruplets: int
    max_overlap: float  # Jaccard from which a later candidate is a duplicate
    max_candidates: int
    fill_holes: bool


PerHierarchy = tuple[int, int, int, int]  # the combined one, half, full and double size


@dataclass(frozen=True)
class Mcg:
    """Multiscale combinatorial grouping over four hierarchies."""

    kind: Literal["mcg"]
    edges: Edges  # its sigma is in pixels of each scale
    min_area: int  # smaller regions are merged away, pixels: half as many at double size
    align_cut: float  # contours below this strength are no place for those of coarser scales
    singletons: PerHierarchy
    pairs: PerHierarchy
    triplets: PerHierarchy
    quadruplets: PerHierarchy
    max_overlap: float  # Jaccard from which a later candidate is a duplicate
    max_candidates: int
    fill_holes: bool


@dataclass(frozen=True)
class SelectiveSearch:
    """Selective Search, each region with its mask: one hierarchy for each of the combinations."""

    kind: Literal["ss"]
    colours: tuple[Literal["hsv", "lab", "rgb"], ...]
    scales: tuple[int, ...]  # of the first regions; larger: fewer
    likeness: tuple[Literal["ctsf", "tsf", "sf", "f", "s"], ...]  # colour, texture, size, fill
    max_overlap: float
    max_candidates: int
    fill_holes: bool


@dataclass(frozen=True)
class Gop:
    """Geodesic object proposals, from seeds that are not learnt."""

    kind: Literal["gop"]
    edges: Edges
    min_area: int  # smaller superpixels are merged away, pixels
    max_superpixels: int
    colour: float  # distance in Lab that is as long a step as a contour of strength 1
    seeds: int
    levels: int  # of each seed and background
    max_overlap: float
    max_candidates: int
    fill_holes: bool


@dataclass(frozen=True)
class Published:
    """Files of candidates that others made, one for each image, in a folder of the user's."""

    kind: Literal["published"]
    place: str  # data/raw/<place>, or where local.yaml or PIPELINE_DATA_<PLACE> says
    max_candidates: int  # the first ones of each file


Algorithm = NoCandidates | Scg | Mcg | SelectiveSearch | Gop | Published


# --- forests -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ContourForest:
    """Finds contours; fitted to those that people drew."""

    kind: Literal["contours"]
    dataset: str  # of kind bsds500
    contours: Literal["none"]
    seed: int


@dataclass(frozen=True)
class RankingForest:
    """Ranks candidates; fitted to the masks of objects, or of regions that people drew."""

    kind: Literal["ranking"]
    dataset: str  # of kind voc2012: its objects; bsds500: the regions
    contours: str  # a forest that finds contours, or none
    algorithm: Scg | Mcg  # whose candidates
    seed: int


Forest = ContourForest | RankingForest


@dataclass(frozen=True)
class ProposalSet:
    """The candidates of one dataset by one method."""

    method: str  # the name under which runs ask for these proposals
    dataset: str
    contours: str  # a forest that finds contours, or none
    ranker: str  # a forest that ranks candidates, or none: they keep the algorithm's order
    algorithm: Algorithm
