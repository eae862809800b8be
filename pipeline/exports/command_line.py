"""`python -m pipeline export KIND`: predictions in the forms that servers and other tools take."""

import argparse
from pathlib import Path


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the kinds of export, and what each takes."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)

    new = _kind(kinds, "voc", "label maps as VOC's evaluation server takes them")
    _add_predicted(new, "DIR", "index PNGs named by image id")
    new.add_argument("--competition", choices=["comp5", "comp6"], default="comp6")
    new.add_argument("--split", default="test", help="in the names of the folders (default test)")
    new.add_argument("--ids", type=_path, metavar="FILE", help="these images, and no others")

    new = _kind(kinds, "cityscapes", "label maps as Cityscapes' evaluation server takes them")
    _add_predicted(new, "DIR", "index PNGs of train ids named <city>_<seq>_<frame>.png")
    new.add_argument("--ids", type=_path, metavar="FILE", help="these images, and no others")

    new = _kind(kinds, "coco", "predicted instances as COCO results JSON")
    _add_predicted(new, "FILE", "instances.parquet")
    new.add_argument(
        "--truth", type=_path, required=True, metavar="FILE", help="gives sizes and ids"
    )
    new.add_argument("--categories", required=True, metavar="NAME|FILE", help="of the predictions")

    new = _kind(kinds, "sbd", "label maps or instances as SBD's .mat files")
    _add_predicted(new, "DIR|FILE", "index PNGs, or instances.parquet")
    new.add_argument("--truth", type=_path, metavar="FILE", help="of instances: gives sizes")

    new = _kind(kinds, "proposals", "region proposals as COCO results JSON or MCG's .mat files")
    _add_predicted(new, "DIR", "a folder of part-*.parquet")
    new.add_argument("--form", required=True, choices=["coco", "mcg"])
    new.add_argument("--truth", type=_path, metavar="FILE", help="of coco: gives ids, and images")
    new.add_argument("--most", type=int, metavar="N", help="the first N of an image (default all)")

    new = _kind(kinds, "truth", "a prepared dataset as COCO instances JSON, to score against")
    new.add_argument("dataset", metavar="DATASET", help="a folder of data/prepared")
    new.add_argument("--split", required=True)

    new = _kind(kinds, "labels", "label maps of a prepared dataset as index PNGs")
    new.add_argument("dataset", metavar="DATASET", help="a folder of data/prepared")
    new.add_argument("--split", required=True)

    new = _kind(kinds, "indices", "masks that are coloured as index PNGs")
    _add_predicted(new, "DIR", "PNGs with a colour for each category")
    new.add_argument("--colours", required=True, choices=["voc", "cityscapes"])


def export(given: argparse.Namespace) -> str:
    """Write what is asked for. Returns what to tell the user.

    Raises:
        BadInput: as the kinds of export say; nothing is left then.
    """
    match given.kind:
        case "voc":
            from pipeline.exports.voc import export_voc

            return export_voc(
                given.predicted,
                given.out,
                competition=given.competition,
                split=given.split,
                ids=given.ids,
            )
        case "cityscapes":
            from pipeline.exports.cityscapes import export_cityscapes

            return export_cityscapes(given.predicted, given.out, ids=given.ids)
        case "coco":
            from pipeline.exports.coco import export_coco

            return export_coco(given.predicted, given.truth, given.out, categories=given.categories)
        case "sbd":
            from pipeline.exports.sbd import export_sbd

            return export_sbd(given.predicted, given.out, truth=given.truth)
        case "proposals":
            from pipeline.exports.proposals import export_proposals

            return export_proposals(
                given.predicted, given.out, kind=given.form, truth=given.truth, most=given.most
            )
        case "truth":
            from pipeline.exports.truth import export_truth

            return export_truth(Path(), given.dataset, given.split, given.out)
        case "labels":
            from pipeline.exports.labels import export_labels

            return export_labels(Path(), given.dataset, given.split, given.out)
        case _:
            from pipeline.exports.indices import export_indices

            return export_indices(given.predicted, given.out, colours=given.colours)


def _kind(kinds: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    new = kinds.add_parser(name, help=text, description=text)
    new.add_argument("--out", type=_path, required=True, metavar="PATH", help="what is written")
    return new


def _add_predicted(new: argparse.ArgumentParser, metavar: str, text: str) -> None:
    new.add_argument("--predicted", type=_path, required=True, metavar=metavar, help=text)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    return Path(text)
