"""Stage `fetch`: bring a dataset to this machine and list its files."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from tqdm import tqdm

from pipeline.datasets import voc
from pipeline.datasets.download import SBD, VOC2012, obtain
from pipeline.datasets.places import dataset_root, told_place
from pipeline.datasets.sample import write_sample
from pipeline.errors import BadInput
from pipeline.params import Params, SampleDataset
from pipeline.work import open_work


def fetch(root: Path, params: Params, dataset: str) -> None:
    """Draw or download a dataset, or find the copy that the user has; write its manifest.

    A copy that the user told of is read where it lies and never written to.

    Raises:
        BadInput: the copy is incomplete, or a downloaded file is not the published one.
        PlaceByHand: a file cannot be downloaded; says which file goes where.
    """
    manifest = root / "data" / "raw" / f"{dataset}.manifest.json"
    if dataset not in params.datasets:
        raise BadInput(f"no dataset {dataset!r}; choose one of: {', '.join(params.datasets)}")
    with open_work(root, stage="fetch", key=dataset, sections=["datasets"], inputs=[]) as work:
        bring(root, params, dataset)
        listed = work.folder / "manifest.json"
        write_manifest(listed, voc.open_tree(root, dataset), dataset)
        work.publish({listed: manifest})


def bring(root: Path, params: Params, dataset: str) -> None:
    """Have the dataset's tree on this machine."""
    raw = root / "data" / "raw"
    entry = params.datasets[dataset]
    told = told_place(root, dataset)
    if isinstance(entry, SampleDataset):
        if told is None:
            draw_anew(raw / dataset, entry)
    else:
        if told is None:
            obtain(VOC2012, raw / dataset)
        else:
            voc.find_lists(root, dataset)  # a wrong folder is told before anything is downloaded
        has_masks = voc.find_sbd(root, dataset) or voc.has_aug_masks(dataset_root(root, dataset))
        if not has_masks and told_place(root, "sbd") is None:
            obtain(SBD, raw / "sbd")


def draw_anew(folder: Path, entry: SampleDataset) -> None:
    """Draw the sample; `folder` is replaced by it when it is complete."""
    if folder.is_symlink():
        raise BadInput(f"{folder}: a link, which is not written through; remove it and run again")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_sample(partial, entry.train, entry.extra, entry.val)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def write_manifest(manifest: Path, tree: voc.Tree, dataset: str) -> None:
    """List all files of the tree that are read, with sizes and digests, without their place."""
    files = {}
    for path in tqdm(voc.files(tree), desc="listing", unit="file", disable=None):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = voc.published_name(tree, path)
        files[name] = {"size": path.stat().st_size, "sha256": digest}
    manifest.parent.mkdir(parents=True, exist_ok=True)
    partial = manifest.with_name(f".{manifest.name}.partial")
    partial.write_text(json.dumps({"dataset": dataset, "files": files}, indent=1) + "\n")
    os.replace(partial, manifest)
