"""The label maps of a prepared dataset as index PNGs: the truth for `score semantic`."""

from functools import partial
from pathlib import Path

from pipeline.datasets.prepared import Prepared
from pipeline.datasets.processes import map_in_threads
from pipeline.errors import BadInput, some
from pipeline.exports.places import new_folder
from pipeline.masks import encode_index_png


def export_labels(root: Path, dataset: str, split: str, out: Path) -> str:
    """Write <image_id>.png for each image of a split of data/prepared/<dataset> into `out`.

    Args:
        root: the project folder.
        dataset: its name in params.yaml.

    Returns:
        what was written, for the user.

    Raises:
        BadInput: `out` is not new, the dataset is not prepared, has no such split, or an image of
            it has no label map. Nothing is written then.
    """
    data = Prepared(root, dataset)
    ids = data.ids(split)
    chosen = data.images[data.images["split"] == split]
    if unmasked := chosen.loc[~chosen["has_masks"], "image_id"].tolist():
        raise BadInput(
            f"{dataset}, {split}: {len(unmasked)} of {len(ids)} images have no label map: "
            f"{some(unmasked)}; choose another split"
        )
    data.label_map(ids[0])  # reads the parts, before several threads ask for them
    with new_folder(out) as folder:
        for _ in map_in_threads(partial(_write, data, folder), ids, "exporting"):
            pass
    return f"{len(ids)} label maps in {out}"


def _write(data: Prepared, folder: Path, image_id: str) -> None:
    (folder / f"{image_id}.png").write_bytes(encode_index_png(data.label_map(image_id)))
