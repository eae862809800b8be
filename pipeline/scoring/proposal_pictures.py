"""`draw-proposals`: the regions that fit given boxes best, as pictures.

H x W pixels, N boxes, P proposals.
"""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tqdm import tqdm

from pipeline.datasets.coco_json import Side, decode, read_json
from pipeline.datasets.folder_files import IMAGE_SUFFIXES
from pipeline.datasets.form import read_image
from pipeline.datasets.label_maps import listed
from pipeline.datasets.proposal_table import ProposalTable
from pipeline.errors import BadFile, BadInput, some
from pipeline.figures import write_png
from pipeline.proposals.form import Proposals

DPI = 110
SIDE = 2.2  # inches, the longer side of one image
LEAST_WIDTH = 1.4  # inches, of what is written above it
MOST_BOXES = 12  # of an image, the largest ones: more rows are not looked at
TINT, LINE, BOX = (230, 159, 0), (213, 94, 0), "#56B4E9"  # Okabe and Ito's


class ImageEntry(msgspec.Struct, gc=False):
    id: int | str
    height: Side
    width: Side
    file_name: str | None = None


class CategoryEntry(msgspec.Struct, gc=False):
    id: int
    name: str


Length = Annotated[float, msgspec.Meta(gt=0)]


class AnnotationEntry(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, Length, Length]  # x, y, width, height
    iscrowd: Literal[0, 1] = 0


class BoxFile(msgspec.Struct):
    images: list[ImageEntry]
    annotations: list[AnnotationEntry]
    categories: list[CategoryEntry]


BOXES = msgspec.json.Decoder(BoxFile)


class Boxes(NamedTuple):
    """The boxes of an image, the largest first."""

    names: list[str]  # of their categories
    boxes: np.ndarray  # (N, 4) float64, half-open


# --- the command ----------------------------------------------------------------------------------
def draw_proposals(
    proposals: Path, images: Path, boxes: Path, out: Path, *, most: int, ids: Path | None
) -> str:
    """Write OUT/<image>.png: for each box, the regions whose tight boxes overlap it most.

    This is what BoxSup's first label step sees, when the network has not learnt anything yet. An
    image that cannot be drawn is left out and told.

    Args:
        proposals: a folder of part-*.parquet.
        images: a folder, with others in it or not, of <name>.jpg, .png, ...
        boxes: COCO instances JSON; of an annotation only `bbox` is used, crowds are left out.
        most: regions of a box, at least 1.
        ids: a list of the images to draw; None: all with a box.

    Returns:
        what was written, for the user.

    Raises:
        BadInput: no image can be drawn, or what is given is no such file or folder.
    """
    if most < 1:
        raise BadInput(f"--most {most}: ask for one region or more")
    table = ProposalTable(proposals)
    given = read_boxes(boxes)
    files = _image_files(images)
    wanted = list(given) if ids is None else listed(ids, given)
    order = {image_id: place for place, image_id in enumerate(table.ids)}
    wanted.sort(key=lambda name: order.get(name, len(order)))  # so that each part is read once
    if out.exists() and not out.is_dir():
        raise BadFile(out, "is there and no folder", "name another place")
    out.mkdir(parents=True, exist_ok=True)
    problems: dict[str, str] = {}
    for name in tqdm(wanted, desc="draw", unit="image", disable=None):
        try:
            _draw_one(out / f"{name}.png", name, table, files, given, most)
        except BadInput as error:
            problems[name] = str(error)
    told = [f"{name}: {problem}" for name, problem in problems.items()]
    if len(problems) == len(wanted):
        raise BadInput(f"none of {len(wanted)} images can be drawn: {some(told)}")
    lines = [f"{out}: {len(wanted) - len(problems)} pictures"]
    if told:
        lines += [f"note: {len(told)} images are left out: {some(told)}"]
    return "\n".join(lines)


def _draw_one(
    out: Path,
    name: str,
    table: ProposalTable,
    files: dict[str, list[Path]],
    given: dict[str, Boxes],
    most: int,
) -> None:
    """Write the picture of one image. BadInput if something of it is missing or does not fit."""
    if name not in given:
        raise BadInput("no box of it")
    if name not in files:
        raise BadInput("no image of that name")
    if len(files[name]) > 1:
        raise BadInput(f"images of one name: {some(files[name])}")
    path = files[name][0]
    image = read_image(path)
    found = Proposals(**table.of(name))
    if found.superpixels.shape != image.shape[:2]:
        (height, width), (h, w) = image.shape[:2], found.superpixels.shape
        problem = f"{height} x {width} pixels, its proposals are of {h} x {w}"
        raise BadFile(path, problem, "give the images that they were made of")
    if len(found) == 0:
        raise BadInput("no candidates of it")
    draw_regions(out, image, given[name], found, most)


# --- files ----------------------------------------------------------------------------------------
def read_boxes(path: Path) -> dict[str, Boxes]:
    """The boxes of COCO instances JSON by image name (its file's, without ending; or its id).

    Images without a box are left out.

    Raises:
        BadFile: no JSON of that form, a box of an unknown image or category, a name again.
    """
    contents = decode(BOXES, read_json(path), path, "")
    categories = {entry.id: entry.name for entry in contents.categories}
    names = {
        entry.id: Path(entry.file_name or "").stem or str(entry.id) for entry in contents.images
    }
    if len(set(names.values())) < len(contents.images):
        raise BadFile(path, "two images of one name or id", "list each image once")
    found: dict[str, list[tuple[str, list[float]]]] = {}
    for number, entry in enumerate(contents.annotations):
        if entry.image_id not in names or entry.category_id not in categories:
            problem = (
                f"annotation {number} of the JSON is of an image or category that is not listed"
            )
            raise BadFile(path, problem, "list it or take the annotation out")
        x, y, width, height = entry.bbox
        if not entry.iscrowd:
            box = [x, y, x + width, y + height]
            found.setdefault(names[entry.image_id], []).append((categories[entry.category_id], box))
    if not found:
        raise BadFile(path, "no box in it", "name COCO instances JSON with boxes")
    return {name: _sorted(boxes) for name, boxes in found.items()}


def _sorted(boxes: list[tuple[str, list[float]]]) -> Boxes:
    boxes = sorted(boxes, key=lambda b: -(b[1][2] - b[1][0]) * (b[1][3] - b[1][1]))
    return Boxes([name for name, _ in boxes], np.array([box for _, box in boxes]))


def _image_files(folder: Path) -> dict[str, list[Path]]:
    """The images of a folder and those below it, by name without ending."""
    if not folder.is_dir():
        raise BadFile(folder, "no folder", "name a folder with images")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found


# --- pictures -------------------------------------------------------------------------------------
def best_fitting(found: Proposals, box: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The candidates whose tight boxes overlap a box (4,) most; of equal ones the better ranked.

    Returns:
        their places in the list (K,), best overlap first, and the overlaps (K,); K <= most.
    """
    overlap = found.iou_with_boxes(box[None])[:, 0]
    best = np.argsort(-overlap, kind="stable")[:most]
    return best, overlap[best]


def draw_regions(path: Path, image: np.ndarray, given: Boxes, found: Proposals, most: int) -> None:
    """Write a PNG, a row for each box: the image with the box, then the regions that fit it best.

    Above a region stand the overlap of its tight box with the given one and its rank among all, 1
    for the first.

    Args:
        image: (H, W, 3) uint8.
        given: the first MOST_BOXES are drawn.
        found: at least one candidate.
    """
    rows, columns = min(len(given.boxes), MOST_BOXES), most + 1
    height, width = np.array(image.shape[:2]) * SIDE / max(image.shape[:2])
    figure = Figure(
        figsize=(max(width, LEAST_WIDTH) * columns, (height + 0.3) * rows), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for name, box, row in zip(given.names, given.boxes, axes, strict=False):
        for axis in row:
            axis.set_axis_off()
        _show(row[0], image, box, name)
        places, overlaps = best_fitting(found, box, most)
        for axis, place, overlap in zip(row[1:], places, overlaps, strict=False):
            shown = overlaid(image, found.mask(int(place)))
            _show(axis, shown, box, f"IoU {overlap:.2f}, rank {place + 1:,}")
    write_png(path, figure, dpi=DPI, palette=None)


def _show(axis: Axes, picture: np.ndarray, box: np.ndarray, title: str) -> None:
    axis.imshow(picture, interpolation="antialiased")
    x0, y0, x1, y1 = box - 0.5  # a pixel's centre is at its number
    axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=BOX, linewidth=1.5))
    axis.set_title(title, fontsize=8, parse_math=False)


def overlaid(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8, tinted in a region (H, W) bool and dark and grey outside."""
    dark = image.mean(axis=2, keepdims=True) * 0.4
    shown = np.where(mask[..., None], image * 0.65 + np.array(TINT) * 0.35, dark)
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    shown[mask & ~inner] = LINE
    return shown.astype(np.uint8)
