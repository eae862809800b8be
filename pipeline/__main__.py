"""The one command line: `python -m pipeline <command>`. A stage is imported only when it runs."""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import BadInput, PlaceByHand
from pipeline.exports.command_line import add_export
from pipeline.proposal_arguments import (
    add_propose_images,
    add_scheduler,
    add_train_edges,
    add_train_ranker,
)
from pipeline.scoring.command_line import add_draw_proposals, add_score
from pipeline.segment_arguments import add_segment

# stage: ({argument: section of params.yaml that it names an entry of, if any}, what it does)
STAGES: dict[str, tuple[dict[str, str | None], str]] = {
    "code": ({}, "write the digests of the code that each stage runs"),
    "fetch": ({"dataset": "datasets"}, "bring a dataset to this machine and list its files"),
    "prepare": ({"dataset": "datasets"}, "check a dataset and bring it into the common form"),
    "forests": ({"name": "forests"}, "fit what finds contours or ranks candidates"),
    "propose": ({"method": None, "dataset": "datasets"}, "make region proposals"),
    "weights": ({"name": "weights"}, "make or fetch starting weights"),
    "train": ({"run": "semantic"}, "train a network by masks"),
    "boxsup": ({"run": "boxsup"}, "train a network by boxes"),
    "localize": ({"run": "instance"}, "train a network to find the boxes of objects"),
    "predict": ({"evaluation": "evaluations"}, "segment the images of an evaluation"),
    "evaluate": ({"evaluation": "evaluations"}, "measure the predictions of an evaluation"),
    "report": ({}, "write reports/ from all that was measured"),
}

FULL = "the disk is full. What was finished is kept; make room and run again"
SAID = {  # faults of the machine rather than of an input
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EACCES: "permission denied; name a place that can be read or written",
    errno.ENOTDIR: "a file is in the place of a folder; name another place",
    errno.ELOOP: "links that lead to each other; name another place",
    errno.EROFS: "cannot be written to; name another place",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns its exit code, as listed in `pipeline.errors`."""
    given = _parser().parse_args(arguments)
    try:
        return given.call(given) or 0
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PlaceByHand as error:
        print(f"needs a file: {error}", file=sys.stderr)
        return 3
    except OSError as error:
        if error.errno not in SAID:
            raise
        print(f"error: {error.filename or 'a file'}: {SAID[error.errno]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run it again, what was finished is kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, text: str, call: Callable) -> argparse.ArgumentParser:
        new = commands.add_parser(name, help=text, description=text)
        new.set_defaults(call=call)
        return new

    for stage, (names, text) in STAGES.items():
        new = command(stage, f"stage: {text}", _run_stage)
        new.set_defaults(stage=stage)
        for name in names:
            new.add_argument(name)
        if stage == "propose":
            add_scheduler(new)

    new = command("inspect", "check a copy of a dataset: what it holds, what is wrong", _inspect)
    new.add_argument("dataset", metavar="DATASET", help="voc2012, sbd, coco, folder, ...")
    new.add_argument("--root", type=Path, required=True, metavar="DIR", help="where the copy lies")
    new.add_argument("--json", type=Path, metavar="FILE", help="write the findings there too")
    text = "label maps, and objects, of the images in any folder, by networks"
    new = command("segment", text, _segment)
    add_segment(new)
    new = command("score", "score predictions, anybody's, by the official protocols", _score)
    add_score(new)
    new = command("export", "write predictions in the forms that servers and tools take", _export)
    add_export(new)
    new = command(
        "activate", "copy runs, datasets or proposals of the catalogue into params.yaml", _activate
    )
    new.add_argument("names", nargs="+", metavar="FILE/NAME", help="e.g. wu2016/table7_voc")
    new.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    new.add_argument("--dry-run", action="store_true", help="only say what that means")
    new = command("deactivate", "take runs, datasets or proposals out of params.yaml", _deactivate)
    new.add_argument("names", nargs="+", metavar="NAME")
    new = command("study", "run a group of the catalogue over several seeds", _study)
    new.add_argument("name")
    new.add_argument("--jobs", type=int, default=2, help="trainings at a time (default 2)")
    new = command("prune", "remove finished work folders", _prune)
    new.add_argument("--all", action="store_true", help="unfinished ones too")
    text = "region proposals of the images in any folder"
    add_propose_images(command("propose-images", text, _propose_images))
    text = "draw the regions that fit given boxes best"
    add_draw_proposals(command("draw-proposals", text, _draw_proposals))
    new = command("train-edges", "fit the forest that finds contours, on BSDS500", _train_edges)
    add_train_edges(new)
    new = command("train-ranker", "fit the forest that ranks candidates", _train_ranker)
    add_train_ranker(new)
    text = "how much settings that the paper does not print matter to what objects are found"
    _add_sensitivity(command("sensitivity", text, _sensitivity))
    command("paper-map", "write docs/PAPER_MAP.md: equation to line", _paper_map)
    return parser


def _add_sensitivity(parser: argparse.ArgumentParser) -> None:
    text = "an active one with instances of the kind boxes"
    parser.add_argument("evaluation", metavar="EVALUATION", help=text)
    text = "of the evaluation's dataset, e.g. what its networks were trained on"
    parser.add_argument("--split", required=True, metavar="SPLIT", help=text)
    text = "so many, evenly spread (default: all of the split)"
    parser.add_argument("--images", type=int, metavar="N", help=text)
    text = "of page, table and heat map (default reports/sensitivity)"
    out = Path("reports") / "sensitivity"
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help=text)


def _run_stage(given: argparse.Namespace) -> None:
    root = Path()
    run = getattr(importlib.import_module(f"pipeline.stages.{given.stage}"), given.stage)
    if given.stage == "code":  # needs no parameters, and must run while they are being edited
        run(root)
        return
    from pipeline.params_file import load_params

    params = load_params(root / "params.yaml")
    keys = []
    for name, section in STAGES[given.stage][0].items():
        key = getattr(given, name)
        if section is not None and key not in getattr(params, section):
            known = ", ".join(getattr(params, section)) or "none are active"
            raise BadInput(f"params.yaml: {section}.{key} is not there; choose one of: {known}")
        keys.append(key)
    if given.stage == "propose":
        run(root, params, *keys, scheduler=given.scheduler)
    else:
        run(root, params, *keys)


def _inspect(given: argparse.Namespace) -> int:
    from pipeline.datasets.inspection import inspect
    from pipeline.places import need_places, write_text

    need_places([given.json])
    found = inspect(given.dataset, given.root, Path())
    if given.json:
        write_text(given.json, found.as_json())
    _tell(found.as_text())
    return 1 if found.problems else 0


def _tell(text: str) -> None:
    """Print, in whatever encoding; that the reader goes away, as `head` does, is no fault."""
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _score(given: argparse.Namespace) -> None:
    from pipeline.scoring.command_line import score

    _tell(score(given))


def _export(given: argparse.Namespace) -> None:
    from pipeline.exports.command_line import export

    _tell(export(given))


def _segment(given: argparse.Namespace) -> None:
    from pipeline.segmenting import segment

    _tell(segment(given))


def _activate(given: argparse.Namespace) -> None:
    from pipeline import catalogue

    overrides = catalogue.parse_overrides(given.overrides)
    if given.dry_run:
        print(catalogue.dry_run(Path(), given.names, overrides))
    else:
        print("\n".join(catalogue.activate(Path(), given.names, overrides)))


def _deactivate(given: argparse.Namespace) -> None:
    from pipeline import catalogue

    catalogue.deactivate(Path(), given.names)


def _study(given: argparse.Namespace) -> None:
    from pipeline.study import study

    study(Path(), given.name, jobs=given.jobs)


def _prune(given: argparse.Namespace) -> None:
    from pipeline.pruning import prune

    for folder in prune(Path(), all=given.all):
        print(f"removed {folder}")


def _propose_images(given: argparse.Namespace) -> None:
    from pipeline.proposal_commands import propose_images

    _tell(propose_images(given))


def _draw_proposals(given: argparse.Namespace) -> None:
    from pipeline.scoring.proposal_pictures import draw_proposals

    _tell(
        draw_proposals(
            given.proposals, given.images, given.boxes, given.out, most=given.most, ids=given.ids
        )
    )


def _train_edges(given: argparse.Namespace) -> None:
    from pipeline.edge_training import train_edges

    train_edges(given.bsds, given.out)


def _train_ranker(given: argparse.Namespace) -> None:
    from pipeline.proposal_commands import run_train_ranker

    run_train_ranker(given)


def _sensitivity(given: argparse.Namespace) -> None:
    from pipeline.params_file import load_params
    from pipeline.sensitivity import sensitivity

    root = Path()
    params = load_params(root / "params.yaml")
    _tell(
        sensitivity(
            root, params, given.evaluation, split=given.split, images=given.images, out=given.out
        )
    )


def _paper_map(given: argparse.Namespace) -> None:
    from pipeline.paper_map import write_paper_map

    write_paper_map(Path())


if __name__ == "__main__":
    sys.exit(main())
