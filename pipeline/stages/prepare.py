"""Stage `prepare`: check a dataset and bring it into the common form."""

import json
import sys
from pathlib import Path

from pipeline.datasets.prepared import Prepared, write_prepared
from pipeline.datasets.readers import open_dataset, places
from pipeline.datasets.tree import Problems, Tree
from pipeline.errors import BadInput
from pipeline.params import Params
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
    with open_work(
        root, stage="prepare", key=dataset, sections=["datasets"], inputs=[manifest]
    ) as work:
        entry = params.datasets[dataset]
        tree = open_dataset(dataset, entry, places(root, dataset, entry), Problems(collect=False))
        check_manifest(root / manifest, tree, dataset)
        write_prepared(work.folder, tree)
        folder = work.folder / "prepared"
        # The images stay where they are: this makes what is trained on them depend on their bytes.
        digest = content_digest(root / manifest)
        (folder / "manifest.sha256").write_text(f"{digest}\n", encoding="ascii")
        work.publish({folder: published})
    data = Prepared(root, dataset)
    images = data.images.drop_duplicates("image_id")
    counts = ", ".join(f"{len(ids)} {split}" for split, ids in tree.splits.items())
    print(f"{dataset}: {counts} images; {len(data.instances)} objects", file=sys.stderr)
    without = int((~images["has_boxes"]).sum())
    if 0 < without < len(images):
        print(f"{dataset}: {without} of {len(images)} images have no boxes", file=sys.stderr)


def check_manifest(manifest: Path, tree: Tree, dataset: str) -> None:
    """The files that fetch listed are there, with the sizes that they had.

    Raises:
        BadInput: names the first file at fault.
    """
    remedy = f"run `dvc repro -f fetch@{dataset}` if that is meant, else put the file back"
    listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    paths = dict(tree.lists)
    for image_id in tree.ids():
        files = tree.files_of(image_id)
        paths |= {**files.must, **files.may}
    for name, entry in listed.items():
        path = paths.get(name)
        if path is None:
            raise BadInput(f"{manifest}: lists {name}, which the lists no longer name; {remedy}")
        if not path.is_file():
            raise BadInput(f"{path}: gone since {manifest} was written; {remedy}")
        if path.stat().st_size != entry["size"]:
            raise BadInput(
                f"{path}: {path.stat().st_size} bytes, but {entry['size']} when {manifest} was "
                f"written; {remedy}"
            )
