"""Stage `prepare`: check a dataset and bring it into the common form."""

import sys
from pathlib import Path

from pipeline.datasets.manifest import check_manifest
from pipeline.datasets.prepared import Prepared, write_prepared
from pipeline.datasets.readers import open_dataset, places
from pipeline.datasets.tree import Problems
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
