"""Stage `propose`: candidates for every training image of a dataset."""

from pathlib import Path

from pipeline.datasets.edge_files import check_strengths
from pipeline.datasets.places import dataset_root
from pipeline.datasets.prepared import Prepared
from pipeline.datasets.published_proposals import find_published
from pipeline.errors import BadFile, BadInput, some
from pipeline.forests import forest_path
from pipeline.params import Params
from pipeline.params_proposals import ProposalSet, Published
from pipeline.proposing import Image, recipe_of, write_parts, write_timings
from pipeline.work import open_work


def propose(
    root: Path, params: Params, method: str, dataset: str, scheduler: str | None = None
) -> None:
    """Write data/proposals/<method>/<dataset>/ and the seconds per image beside it.

    Images are those of train_aug, in a dataset without it all. Parts that a killed run had finished
    are not made again.

    Args:
        scheduler: of dask; None: processes on this machine.

    Raises:
        BadInput: params.yaml has no such proposals, the dataset is not prepared, a forest is not
            made, or files of the user's are missing.
    """
    key = f"{method}_{dataset}"
    if key not in params.proposals:
        known = ", ".join(params.proposals)
        raise BadInput(f"params.yaml: proposals.{key} is not there; choose one of: {known}")
    entry = params.proposals[key]
    prepared = Path("data") / "prepared" / dataset
    inputs = [prepared, *(forest_path(name) for name in (entry.contours, entry.ranker))]
    published = root / "data" / "proposals" / method / dataset
    timings = published.with_name(f"{dataset}.timings.csv")
    with open_work(root, stage="propose", key=key, sections=["proposals"], inputs=inputs) as work:
        images = training_images(root, dataset, entry)
        recipe = recipe_of(root, entry.algorithm, contours=entry.contours, ranker=entry.ranker)
        if recipe.place and recipe.place.is_dir():
            check_strengths(recipe.place, [image.image_id for image in images])
        rows = write_parts(
            work.folder / "parts", work.folder / "timings", images, recipe, scheduler
        )
        write_timings(work.folder / "timings.csv", rows)
        work.publish({work.folder / "parts": published, work.folder / "timings.csv": timings})
    failed = sum(bool(row["error"]) for row in rows)
    mean = sum(int(row["candidates"]) for row in rows) / len(rows)
    print(f"{key}: {len(rows)} images, {mean:.0f} candidates on average, {failed} images failed")


def training_images(root: Path, dataset: str, entry: ProposalSet) -> list[Image]:
    """The images that need candidates, each once, by image id.

    Raises:
        BadInput: there is none, or published candidates are missing for some.
    """
    data = Prepared(root, dataset)
    rows = data.images
    for largest in ("mixed", "train_aug"):  # what is trained on, where the dataset has these splits
        if (rows["split"] == largest).any():
            rows = rows[rows["split"] == largest]
            break
    rows = rows.drop_duplicates("image_id").sort_values("image_id")
    ids = rows["image_id"].tolist()
    if not ids:
        raise BadInput(f"{root}/data/prepared/{dataset}: holds no image; prepare the dataset again")
    files: dict[str, Path] = {}
    if isinstance(entry.algorithm, Published):
        folder = dataset_root(root, entry.algorithm.place)
        files = find_published(folder, ids)
        if missing := [image_id for image_id in ids if image_id not in files]:
            problem = f"no candidates of {len(missing)} of {len(ids)} images: {some(missing)}"
            raise BadFile(folder, problem, "add them, or choose an algorithm of this project")
    return [
        Image(
            image_id,
            data.image_path(image_id).absolute(),
            (int(height), int(width)),
            files.get(image_id),
        )
        for image_id, height, width in zip(ids, rows["height"], rows["width"], strict=True)
    ]
