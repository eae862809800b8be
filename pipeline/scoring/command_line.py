"""`python -m pipeline score KIND`: anybody's predictions against the truth, no DVC needed."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.categories import CATEGORIES
from pipeline.errors import BadInput

if TYPE_CHECKING:
    from pipeline.scoring.outcome import Outcome

MOST = 100_000  # the largest width of a band, and number of proposals


def add_score(parser: argparse.ArgumentParser) -> None:
    """Add the four kinds of scoring, and what each takes."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)

    new = _kind(kinds, "semantic", "label maps: IoU of each category, mean IoU, accuracies")
    _add_label_maps(new)
    new.add_argument("--instances", type=_path, metavar="DIR", help="Cityscapes: iIoU by these")

    new = _kind(kinds, "boundary", "label maps within and outside bands around the void border")
    _add_label_maps(new)
    new.add_argument(
        "--widths", default="1,2,5,10,20,40", help="of the bands, pixels (default %(default)s)"
    )

    new = _kind(kinds, "instances", "instance masks: mAP^r at overlaps 0.1 ... 0.9 and over all")
    _add_coco_truth(new)
    new.add_argument(
        "--predicted", type=_path, required=True, metavar="FILE", help="COCO results JSON"
    )
    new.add_argument(
        "--protocol", choices=["sds", "mnc11", "coco"], default="sds", help="(default sds)"
    )
    new.add_argument("--thresholds", default="", help="further overlaps, e.g. 0.55,0.95")

    new = _kind(kinds, "proposals", "region proposals: Jaccard, recall, average recall")
    _add_coco_truth(new)
    new.add_argument(
        "--predicted", type=_path, required=True, metavar="DIR", help="with part-*.parquet"
    )
    new.add_argument(
        "--at", default="10,100,1000", help="numbers of proposals (default %(default)s)"
    )
    new.add_argument(
        "--void", type=_path, metavar="DIR", help="index PNGs; pixels of 255 are not counted"
    )
    _add_allow_missing(new)


def score(given: argparse.Namespace) -> str:
    """Score, and write what was asked for. Returns the numbers as text.

    Raises:
        BadInput: as the kinds of scoring say; nothing is written then.
    """
    from pipeline.places import need_places, write_text
    from pipeline.scoring.outcome import as_text, json_text, write_metrics

    need_places([given.json, given.table])
    outcome = _outcome(given)
    as_json = json_text(outcome)
    if given.table:
        split = given.ids.stem if given.ids else "all"
        predicted, truth = given.predicted.resolve(), given.truth.resolve()
        table = Path(os.path.realpath(given.table))
        write_metrics(table, outcome, predicted.name, truth.name, split)
    if given.json:
        write_text(given.json, as_json)
    return as_text(outcome)


def _outcome(given: argparse.Namespace) -> "Outcome":
    match given.kind:
        case "semantic":
            from pipeline.scoring.semantic import score_semantic

            return score_semantic(
                given.truth,
                given.predicted,
                categories=given.categories,
                ids=given.ids,
                allow_missing=given.allow_missing,
                train_ids=given.train_ids,
                instances=given.instances,
            )
        case "boundary":
            from pipeline.scoring.boundary import score_boundary

            return score_boundary(
                given.truth,
                given.predicted,
                categories=given.categories,
                widths=_counts("--widths", given.widths),
                ids=given.ids,
                allow_missing=given.allow_missing,
                train_ids=given.train_ids,
            )
        case "instances":
            from pipeline.scoring.instances import score_instances

            return score_instances(
                given.truth,
                given.predicted,
                protocol=given.protocol,
                thresholds=_thresholds("--thresholds", given.thresholds),
                ids=given.ids,
            )
        case _:
            from pipeline.scoring.proposals import score_proposals

            return score_proposals(
                given.truth,
                given.predicted,
                at=_counts("--at", given.at),
                void=given.void,
                ids=given.ids,
                allow_missing=given.allow_missing,
            )


# --- arguments ------------------------------------------------------------------------------------
def _kind(kinds: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    new = kinds.add_parser(name, help=text, description=text)
    new.add_argument("--ids", type=_path, metavar="FILE", help="only these images, one a line")
    new.add_argument("--json", type=_path, metavar="FILE", help="write the numbers there")
    new.add_argument(
        "--table", type=_path, metavar="FILE", help="the same as parquet, a row a number"
    )
    return new


def _add_label_maps(new: argparse.ArgumentParser) -> None:
    known = ", ".join(CATEGORIES)
    new.add_argument("--categories", required=True, metavar="NAME|FILE", help=f"{known}, or a file")
    new.add_argument("--truth", type=_path, required=True, metavar="DIR", help="index PNGs")
    new.add_argument("--predicted", type=_path, required=True, metavar="DIR", help="index PNGs")
    new.add_argument(
        "--train-ids", action="store_true", help="Cityscapes: predictions hold train ids"
    )
    _add_allow_missing(new)


def _add_coco_truth(new: argparse.ArgumentParser) -> None:
    new.add_argument(
        "--truth", type=_path, required=True, metavar="FILE", help="COCO instances JSON"
    )


def _add_allow_missing(new: argparse.ArgumentParser) -> None:
    text = "count images without prediction as all wrong, leave out predictions without truth"
    new.add_argument("--allow-missing", action="store_true", help=text)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    return Path(text)


def _counts(option: str, text: str) -> list[int]:
    """Whole numbers from 1 to MOST, separated by commas. BadInput for anything else."""
    numbers = _split(option, text)
    if not all(1 <= n <= MOST and n.is_integer() for n in numbers) or not numbers:
        raise BadInput(
            f"{option}: {text!r} is no list of whole numbers from 1 to {MOST} such as 1,10,100"
        )
    return [int(number) for number in numbers]


def _thresholds(option: str, text: str) -> list[float]:
    """Numbers in [0, 1], separated by commas; none in an empty text. BadInput for anything else."""
    numbers = _split(option, text)
    if not all(0 <= number <= 1 for number in numbers):
        raise BadInput(f"{option}: {text!r} is no list of numbers from 0 to 1 such as 0.55,0.95")
    return numbers


def _split(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BadInput(f"{option}: {text!r} holds something that is no number") from None
    if len(set(numbers)) < len(numbers):
        raise BadInput(f"{option}: {text!r} has a number twice")
    return numbers
