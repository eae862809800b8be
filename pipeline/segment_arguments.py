"""What `segment` is asked with. Imports nothing heavy: every command starts with it."""

import argparse
from pathlib import Path


def add_segment(parser: argparse.ArgumentParser) -> None:
    """Everything that `segment` takes. What is not given is None; `settings_of` says what it is."""
    text = "a trained run, or the file of a checkpoint; may be left out with --like"
    parser.add_argument("model", nargs="?", metavar="RUN_OR_CHECKPOINT", help=text)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the label maps")
    text = "colour the photographs too: by category, with objects by object"
    parser.add_argument("--overlay", action="store_true", help=text)
    text = "sizes that are looked at, with commas between (default 1)"
    parser.add_argument("--scales", metavar="S,S", help=text)
    text = "look at the mirror image too, or not (default)"
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, help=text)
    text = "look N x N times, moved by parts of a score cell (default 1)"
    parser.add_argument("--shifts", type=int, choices=range(1, 9), metavar="N", help=text)
    text = "sharpen with the dense CRF that was published for NAME (without a NAME: deeplab)"
    text += "; give it after the run"
    parser.add_argument("--crf", nargs="?", const="deeplab", metavar="NAME", help=text)
    text = "side of the tiles of images larger than one (default: what memory allows)"
    parser.add_argument("--tile", type=int, metavar="PIXELS", help=text)
    text = "(default: the GPU, where there is one)"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=text)
    text = "make anew what is there, also with other settings"
    parser.add_argument("--again", action="store_true", help=text)
    _add_instances(parser)


def _add_instances(parser: argparse.ArgumentParser) -> None:
    """How objects are found. What is given has a meaning with --instances or --like alone."""
    text = "find the objects too, with this localisation network: its run or checkpoint"
    parser.add_argument("--instances", metavar="LOCALIZATION", help=text)
    text = "find the objects as an evaluation of params.yaml does: its networks, views and "
    text += "instances, but for what is given beside"
    parser.add_argument("--like", metavar="EVALUATION", help=text)
    text = "defaults are those without --like"
    objects = parser.add_argument_group("with --instances or --like", text)

    def number(name: str, kind: type, metavar: str, text: str) -> None:
        objects.add_argument(name, type=kind, metavar=metavar, help=text)

    number("--top-masks", int, "N", "a category's masks: where it is among the N best (default 2)")
    number("--nms-iou", float, "IOU", "boxes that overlap so much are of one object (default 0.5)")
    text = "when a mask gives way to a better one: sharing any pixel, or so much (default 0.3)"
    objects.add_argument("--region-rule", metavar="any_overlap|IOU", help=text)
    number("--min-probability", float, "P", "pixels below it are in no mask (default 0.05)")
    number("--min-pixels", int, "N", "smaller masks are dropped (default 32)")
    number("--vote-stride", int, "N", "pixels between votes (default: the network's stride)")
    number("--min-score", float, "S", "objects below it are in no overlay (default 0.5)")
