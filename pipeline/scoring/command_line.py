"""`python -m pipeline score KIND`: anybody's predictions against the truth, no DVC needed."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.categories import CATEGORIES
from pipeline.errors import BadInput

if TYPE_CHECKING:
    from pipeline.scoring.outcome import Outcome

PUBLISHED = ("voc2012_val", "sbd_val", "coco2014_val")  # datasets of published curves
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
    _add_figure(new)
    _add_allow_missing(new)


def score(given: argparse.Namespace) -> str:
    """Score, and write what was asked for. Returns the numbers as text.

    Raises:
        BadInput: as the kinds of scoring say; nothing is written then.
    """
    from pipeline.places import need_places, write_text
    from pipeline.scoring.outcome import as_text, json_text, write_metrics

    need_places([given.json, given.table, given.figure])
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


def add_draw_proposals(parser: argparse.ArgumentParser) -> None:
    """Add what `draw-proposals` takes."""
    text = "with part-*.parquet"
    parser.add_argument("--proposals", type=_path, required=True, metavar="DIR", help=text)
    text = "that the proposals were made of"
    parser.add_argument("--images", type=_path, required=True, metavar="DIR", help=text)
    text = "COCO instances JSON; masks are not needed"
    parser.add_argument("--boxes", type=_path, required=True, metavar="FILE", help=text)
    text = "of the pictures, <image>.png"
    parser.add_argument("--out", type=_path, required=True, metavar="DIR", help=text)
    text = "regions of a box (default %(default)s)"
    parser.add_argument("--most", type=int, default=5, metavar="N", help=text)
    parser.add_argument("--ids", type=_path, metavar="FILE", help="only these images, one a line")


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
            return _proposals(given)


def _proposals(given: argparse.Namespace) -> "Outcome":
    """The numbers at the budgets that were asked for; the figure is written where one was."""
    from pipeline.scoring.proposals import score_proposals

    def scored(folder: Path, budgets: list[int]) -> "Outcome":
        return score_proposals(
            given.truth,
            folder,
            at=budgets,
            void=given.void,
            ids=given.ids,
            allow_missing=given.allow_missing,
        )

    asked, beside = _counts("--at", given.at), _named("--beside", given.beside)
    if given.figure is None:
        if given.beside or given.published:
            raise BadInput("--beside and --published are for a figure: give --figure FILE.png too")
        return scored(given.predicted, asked)
    if given.figure.suffix.lower() != ".png":
        raise BadInput(f"--figure {given.figure}: is written as PNG; let its name end with .png")
    from pipeline.scoring import proposal_figure as figure

    if len(beside) >= len(figure.COLOURS):
        raise BadInput(f"--beside: at most {len(figure.COLOURS) - 1} in one figure")
    published = []
    if given.published:
        published = figure.read_published(figure.PUBLISHED, given.published)
    budgets = sorted({*asked, *figure.BUDGETS, figure.ALL})
    outcome = scored(given.predicted, budgets)
    curves = [figure.curve_of(outcome, given.name or given.predicted.resolve().name)]
    curves += [figure.curve_of(scored(beside[name], budgets), name) for name in beside]
    images, objects = (int(row.value) for row in outcome.rows[:2])
    title = f"{objects} objects in {images} images"
    title += f"; grey: published, on {given.published}" if published else ""
    figure.draw_curves(given.figure, curves, published, title)
    return replace(outcome, rows=[row for row in outcome.rows if row.at in (None, *asked)])


# --- arguments ------------------------------------------------------------------------------------
def _kind(kinds: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    new = kinds.add_parser(name, help=text, description=text)
    new.add_argument("--ids", type=_path, metavar="FILE", help="only these images, one a line")
    new.set_defaults(figure=None)
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


def _add_figure(new: argparse.ArgumentParser) -> None:
    text = "draw best overlap and recall against the number of proposals"
    new.add_argument("--figure", type=_path, metavar="FILE.png", help=text)
    text = "draw the published curves of this dataset beside them"
    new.add_argument("--published", choices=PUBLISHED, help=text)
    new.add_argument("--name", default="", help="of --predicted in the figure (default its own)")
    text = "draw other proposals of the same images too; may be given again"
    new.add_argument("--beside", action="append", default=[], metavar="NAME=DIR", help=text)


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


def _named(option: str, texts: list[str]) -> dict[str, Path]:
    """Folders by name, of texts NAME=DIR. BadInput for anything else and for a name again."""
    found: dict[str, Path] = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not name or not folder or name in found:
            raise BadInput(f"{option} {text}: write NAME=DIR, each name once")
        found[name] = Path(folder)
    return found
