"""The drawn sample laid out as somebody's own images (see folder.py).

categories.txt, train.txt, val.txt, images/<id>.jpg, and of `form`
masks      masks/<id>.png
objects    masks/<id>.png, objects/<id>.png
xml        boxes/<id>.xml
coco       boxes/train.json, boxes/val.json: polygons, holes filled
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from pipeline.categories import SAMPLE
from pipeline.datasets.processes import map_in_order
from pipeline.datasets.sample import JPEG_QUALITY, Drawn, draw, image_id, voc_xml
from pipeline.datasets.sample_coco import polygons
from pipeline.masks import encode_index_png

Form = Literal["masks", "objects", "xml", "coco"]

FOLDERS: dict[Form, tuple[str, ...]] = {
    "masks": ("masks",), "objects": ("masks", "objects"), "xml": ("boxes",), "coco": ("boxes",),
}  # fmt: skip


def write_folder(root: Path, train: int, val: int, form: Form = "masks") -> None:
    """Draw the sample into `root`.

    Args:
        train, val: number of images.
        form: of the annotation.
    """
    for name in ("images", *FOLDERS[form]):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "categories.txt").write_text("".join(f"{name}\n" for name in SAMPLE))
    for split, count in (("train", train), ("val", val)):
        write = partial(_write_image, root, form, split)
        entries = list(map_in_order(write, range(count), "drawing"))
        ids = [image_id(split, index) for index in range(count)]
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids))
        if form == "coco":
            _write_json(root / "boxes" / f"{split}.json", entries)


def _write_image(
    root: Path, form: Form, split: str, index: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw one image and write its files. Returns what a JSON file says of it."""
    drawn, name = draw(split, index), image_id(split, index)
    Image.fromarray(drawn.image).save(root / "images" / f"{name}.jpg", quality=JPEG_QUALITY)
    if form in ("masks", "objects"):
        (root / "masks" / f"{name}.png").write_bytes(encode_index_png(drawn.label_map))
    if form == "objects":
        (root / "objects" / f"{name}.png").write_bytes(encode_index_png(drawn.object_map))
    if form == "xml":
        (root / "boxes" / f"{name}.xml").write_bytes(voc_xml(name, drawn))
    height, width = drawn.visible.shape
    image = {"id": index + 1, "file_name": f"{name}.jpg", "height": height, "width": width}
    return image, _annotations(drawn, index + 1) if form == "coco" else []


def _annotations(drawn: Drawn, image_number: int) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image_number,
            "category_id": int(category),
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "segmentation": polygons(drawn.visible == number),
            "iscrowd": 0,
        }
        for number, (category, (x0, y0, x1, y1)) in enumerate(
            zip(drawn.categories, drawn.boxes.tolist(), strict=True), start=1
        )
    ]


def _write_json(path: Path, entries: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
    annotations = [annotation for _, its_own in entries for annotation in its_own]
    content = {
        "images": [image for image, _ in entries],
        "annotations": [{"id": n, **entry} for n, entry in enumerate(annotations, start=1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(SAMPLE) if n > 0],
    }
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="ascii")
