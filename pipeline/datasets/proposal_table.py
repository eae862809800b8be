"""Candidates of a dataset on disk: <folder>/part-000.parquet, ..., schema "proposals".

One row per image, some hundred images per part. P candidates, H x W pixels.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BadInput
from pipeline.tables import SCHEMAS, read_arrow


def to_row(
    image_id: str,
    image_sha256: str,
    method: str,
    *,
    superpixels: np.ndarray,
    members: np.ndarray,
    offsets: np.ndarray,
    scores: np.ndarray,
    boxes: np.ndarray,
    areas: np.ndarray,
) -> dict[str, Any]:
    """The candidates of one image as a row of the table; arrays as `ProposalTable.of` gives them.

    Args:
        image_sha256: of the image's file, empty where there was none.
    """
    if superpixels.dtype != np.uint16:
        raise ValueError(f"superpixels are uint16, not {superpixels.dtype}")
    _, png = cv2.imencode(".png", superpixels)
    return {
        "image_id": image_id,
        "superpixels": png.tobytes(),
        "members": members,
        "offsets": offsets,
        "scores": scores,
        "boxes": boxes.ravel(),
        "areas": areas,
        "method": method,
        "image_sha256": image_sha256,
    }


class ProposalTable:
    """The candidates of a dataset, read part by part.

    Only the last part read is kept, so ask in the order of `ids` where many images are wanted.

    Attributes:
        ids: of all images that have a row, in the order of the files.
    """

    def __init__(self, folder: Path) -> None:
        """Read which image is where.

        Args:
            folder: data/proposals/<method>/<dataset>.

        Raises:
            BadInput: there is no part, one is unreadable, or an image is there twice.
        """
        self._folder = folder
        self._place: dict[str, tuple[Path, int]] = {}
        self._part: tuple[Path | None, pa.Table | None] = (None, None)
        parts = sorted(folder.glob("part-*.parquet"))
        if not parts:
            raise BadInput(
                f"{folder}: holds no part-*.parquet; name the folder of a dataset's proposals, "
                "data/proposals/<method>/<dataset>: `dvc repro` makes it"
            )
        for part in parts:
            try:
                if pq.read_schema(part).names != SCHEMAS["proposals"].names:
                    raise BadInput(f"{part}: no table of proposals, but of something else")
                column = pq.read_table(part, columns=["image_id"])["image_id"]
            except (pa.ArrowInvalid, KeyError, OSError) as error:
                raise BadInput(
                    f"{part}: not a table of proposals ({error}); make it anew"
                ) from error
            for row, image_id in enumerate(column.to_pylist()):
                if image_id in self._place:
                    raise BadInput(
                        f"{part}: candidates of the image {image_id!r} again, beside "
                        f"{self._place[image_id][0].name}; keep one row for each image"
                    )
                self._place[image_id] = (part, row)

    @property
    def ids(self) -> list[str]:
        return list(self._place)

    def of(self, image_id: str) -> dict[str, np.ndarray]:
        """The candidates of one image.

        Returns:
            superpixels (H, W) uint16, members uint16, offsets (P + 1,) int32, scores (P,) float32,
            boxes (P, 4) int32 and areas (P,) int32: what `proposals.form.Proposals` takes.

        Raises:
            BadInput: there is no such image, or its part is damaged.
        """
        if image_id not in self._place:
            raise BadInput(
                f"{self._folder}: no candidates of the image {image_id!r}; "
                "make them again for the dataset as it is now (`dvc repro`)"
            )
        path, row = self._place[image_id]
        if self._part[0] != path:
            self._part = (path, read_arrow(path, "proposals").combine_chunks())
        part = self._part[1]
        assert part is not None
        png = np.frombuffer(part["superpixels"][row].as_py(), np.uint8)
        superpixels = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
        if superpixels is None or superpixels.dtype != np.uint16 or superpixels.ndim != 2:
            raise BadInput(f"{path}: superpixels of {image_id!r} are no 16-bit PNG; make it anew")
        lists = {
            name: part[name][row].values.to_numpy()
            for name in ("members", "offsets", "scores", "boxes", "areas")
        }
        return {"superpixels": superpixels, **lists, "boxes": lists["boxes"].reshape(-1, 4)}
