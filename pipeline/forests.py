"""Forests of files: those that find contours, and those that rank candidates."""

from pathlib import Path

from pipeline.datasets.edge_files import read_forest
from pipeline.errors import BadFile, need_file
from pipeline.proposals.boosted import check_features
from pipeline.proposals.forest import Forest
from pipeline.proposals.ranking import check_ranker


def forest_path(name: str) -> Path:
    """Where a forest lies, below the project folder; none.npz is for those who need none."""
    return Path("data") / "forests" / f"{name}.npz"


def open_contours(path: Path) -> Forest:
    """The forest of a file. Raises BadFile where it is missing, damaged or finds no contours."""
    arrays = read_forest(path)
    try:
        return check_features(Forest(**arrays))
    except ValueError as error:
        raise BadFile(path, str(error), "make it anew with `train-edges`") from error


def open_ranker(path: Path) -> Forest:
    """The forest of a file. Raises BadFile where it is missing, damaged or ranks no candidates."""
    remedy = "make it with `python -m pipeline train-ranker`"
    need_file(path)
    try:
        return check_ranker(Forest(**read_forest(path)))
    except BadFile as fault:
        raise BadFile(path, "no forest that ranks candidates", remedy) from fault
    except ValueError as error:
        raise BadFile(path, f"no forest that ranks candidates: {error}", remedy) from error
