"""Stage `prepare`: check a dataset and bring it into the common form."""

import json
import sys
from functools import partial
from pathlib import Path

from pipeline.categories import CATEGORIES
from pipeline.datasets import voc
from pipeline.datasets.prepared import Prepared, write_prepared
from pipeline.errors import BadInput
from pipeline.params import Params, SampleDataset
from pipeline.work import content_digest, open_work


def prepare(root: Path, params: Params, dataset: str) -> None:
    """Read every image and annotation of a dataset and write data/prepared/<dataset>/.

    Raises:
        BadInput: a file is missing, damaged or contradicts another; names it and the remedy.
    """
    manifest = Path("data") / "raw" / f"{dataset}.manifest.json"
    published = root / "data" / "prepared" / dataset
    if dataset not in params.datasets:
        raise BadInput(f"no dataset {dataset!r}; choose one of: {', '.join(params.datasets)}")
    inputs = [manifest]
    with open_work(
        root, stage="prepare", key=dataset, sections=["datasets"], inputs=inputs
    ) as work:
        drawn = isinstance(params.datasets[dataset], SampleDataset)
        categories = CATEGORIES["sample" if drawn else "voc"]
        tree = voc.open_tree(root, dataset)
        check_manifest(root / manifest, tree, dataset)
        folder = work.folder / "prepared"
        read = partial(voc.read_sample, tree, categories)
        write_prepared(folder, read, tree.splits, categories)
        # The images stay where they are: this makes what is trained on them depend on their bytes.
        digest = content_digest(root / manifest)
        (folder / "manifest.sha256").write_text(f"{digest}\n", encoding="ascii")
        work.publish({folder: published})
    data = Prepared(root, dataset)
    images = data.images.drop_duplicates("image_id")
    counts = ", ".join(f"{len(ids)} {split}" for split, ids in tree.splits.items())
    print(f"{dataset}: {counts} images; {len(data.instances)} objects", file=sys.stderr)
    if without := int((~images["has_boxes"]).sum()):
        print(f"{dataset}: {without} of {len(images)} images have no boxes", file=sys.stderr)


def check_manifest(manifest: Path, tree: voc.Tree, dataset: str) -> None:
    """The files that fetch listed are there, with the sizes that they had.

    Raises:
        BadInput: names the first file at fault.
    """
    remedy = f"run `dvc repro -f fetch@{dataset}` if that is meant, else put the file back"
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    for name, entry in files.items():
        path = voc.place(tree, name)
        if not path.is_file():
            raise BadInput(f"{path}: gone since {manifest} was written; {remedy}")
        if path.stat().st_size != entry["size"]:
            raise BadInput(
                f"{path}: {path.stat().st_size} bytes, but {entry['size']} when {manifest} was "
                f"written; {remedy}"
            )
