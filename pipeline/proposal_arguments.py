"""What the commands on proposals are asked with. Imports nothing: every command starts with it."""

import argparse
from pathlib import Path

METHODS = ("mcg", "scg", "ss", "gop")
RANKED = ("mcg", "scg")  # what a ranking can be fitted to
EDGES = ("gradient", "boosted=FILE", "file=DIR", "sf=FILE")
EDGES_HELP = (
    "gradient; boosted=FILE, a forest of train-edges; file=DIR, saved strengths <image>.npy, .png "
    "or .mat; sf=FILE, OpenCV's structured forest (default gradient)"
)


def add_propose_images(parser: argparse.ArgumentParser) -> None:
    _add_method(parser, (*METHODS, "published"))
    text = "for the method published: .mat files of others (MCG, SCG, GOP, Selective Search, ...)"
    parser.add_argument("--published", type=Path, metavar="DIR", help=text)
    parser.add_argument("--ranker", type=Path, metavar="FILE", help="a forest of train-ranker")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the tables")
    parser.add_argument("--most", type=int, metavar="N", help="candidates of an image")
    add_scheduler(parser)


def add_scheduler(parser: argparse.ArgumentParser) -> None:
    text = "of a dask cluster that sees the same files (default: processes on this machine)"
    parser.add_argument("--scheduler", metavar="ADDRESS", help=text)


def add_train_edges(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bsds", type=Path, required=True, metavar="DIR", help="BSDS500")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the forest, .npz")


def add_train_ranker(parser: argparse.ArgumentParser) -> None:
    _add_method(parser, RANKED)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bsds", type=Path, metavar="DIR", help="fit to the regions of BSDS500")
    source.add_argument("--voc", type=Path, metavar="DIR", help="fit to the objects of VOC2012")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the forest, .npz")


def _add_method(parser: argparse.ArgumentParser, methods: tuple[str, ...]) -> None:
    parser.add_argument("--method", choices=methods, default="mcg", help="(default mcg)")
    parser.add_argument("--edges", default="gradient", metavar="KIND", help=EDGES_HELP)
