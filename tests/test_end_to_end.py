"""The whole graph on a miniature of the sample: what runs, what runs again, and what does not."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from scratch import PARAMS, dvc, make_project, repro, stages_run

from pipeline.datasets.sample import write_sample

TWO_RUNS = (
    PARAMS.replace(
        "boxsup: {}",
        """  other:
    <<: *run
    seed: 1
boxsup: {}""",
    )
    + """\
  other:
    <<: *evaluation
    model: other
"""
)

# A module that hides Prefect: it stands before the real one on the path, and cannot be imported.
NO_PREFECT = 'raise ImportError("Prefect is not installed here")\n'


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project in which everything has been made once, where Prefect cannot be imported."""
    folder = make_project(tmp_path_factory.mktemp("end") / "project", TWO_RUNS)
    (folder / "prefect.py").write_text(NO_PREFECT)  # the stages run in this folder
    hidden = folder.with_name("hidden")
    hidden.mkdir()
    (hidden / "prefect.py").write_text(NO_PREFECT)
    output = repro(folder, PYTHONPATH=str(hidden))
    assert "evaluate@other" in stages_run(output)
    git = ["git", "-c", "user.name=Test", "-c", "user.email=test@localhost"]
    subprocess.run([*git, "add", "--all"], cwd=folder, check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "All made"], cwd=folder, check=True)
    return folder


def test_the_report_and_the_metrics_agree(project):
    tables = (project / "reports" / "tables.md").read_text()
    metrics = json.loads((project / "reports" / "metrics.json").read_text())
    rows = pd.read_parquet(project / "data" / "metrics" / "mask.parquet")
    mean_iou = rows.loc[(rows["metric"] == "mean_iou"), "value"].item()
    assert metrics["mask"]["mean_iou"] == round(mean_iou, 4)
    assert f"{100 * mean_iou:.2f}" in tables
    assert "mean_iou" in dvc(project, "metrics", "show").stdout


def test_a_second_repro_runs_no_stage(project):
    assert stages_run(repro(project)) == []


def test_one_learning_rate_reruns_its_run_its_evaluation_and_the_report(project):
    changed = edit(project / "params.yaml", "    seed: 1\n", "    seed: 1\n    lr: 0.05\n")
    assert changed
    ran = stages_run(repro(project))
    assert ran == ["train@other", "predict@other", "evaluate@other", "report"]
    assert "semantic.other.lr" in dvc(project, "params", "diff").stdout
    metrics = dvc(project, "metrics", "diff").stdout
    assert "other.mean_iou" in metrics
    assert "mask.mean_iou" not in metrics


def test_other_views_rerun_prediction_evaluation_and_the_report(project):
    edit(
        project / "params.yaml",
        "    model: other\n",
        "    model: other\n    views: {scales: [0.75, 1.0], flip: true, shifts: 1}\n",
    )
    ran = stages_run(repro(project))
    assert ran == ["predict@other", "evaluate@other", "report"]
    assert "evaluations.other.views" in dvc(project, "params", "diff").stdout
    assert "other.mean_iou" in dvc(project, "metrics", "diff").stdout


def test_a_reworded_docstring_reruns_code_only(project):
    edit(project / "pipeline" / "losses.py", '"""What the networks minimise.', '"""Losses.')
    assert stages_run(repro(project)) == ["code"]


def test_changed_code_reruns_what_runs_it(project):
    edit(project / "pipeline" / "metrics" / "semantic.py", "mean_of(iou)", "mean_of(iou) + 0.0")
    ran = stages_run(repro(project))
    assert ran[0] == "code"
    assert {"evaluate@mask", "evaluate@other"} <= set(ran)
    assert not {"train@mask", "train@other", "predict@mask"} & set(ran)


def edit(path: Path, old: str, new: str) -> bool:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return True


def state_of(tree: Path) -> dict[str, tuple[str, int, int]]:
    """Content, mode and time of every file and folder below a tree."""
    return {
        path.relative_to(tree).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder",
            path.stat().st_mode,
            path.stat().st_mtime_ns,
        )
        for path in sorted(tree.rglob("*"))
    }


def test_a_users_copy_is_never_touched(tmp_path):
    copy = tmp_path / "VOCdevkit"
    write_sample(copy, train=2, extra=2, val=2)
    (copy / "VOC2012" / "notes.txt").write_text("the user's own")
    for xml in (copy / "VOC2012" / "Annotations").glob("*.xml"):  # VOC's names for the sample's
        text = xml.read_text()
        for ours, theirs in zip(
            ("ring", "star", "crescent", "plus", "rod", "fork", "triangle", "disc"),
            ("cat", "dog", "cow", "bus", "car", "bird", "boat", "train"),
            strict=True,
        ):
            text = text.replace(f"<name>{ours}</name>", f"<name>{theirs}</name>")
        xml.write_text(text)
    before = state_of(copy)
    params = PARAMS.replace("  sample: {kind", "  voc2012: {kind: voc2012}\n  sample: {kind")
    folder = make_project(tmp_path / "project", params)
    place = {"PIPELINE_DATA_VOC2012": str(copy)}
    repro(folder, "prepare@voc2012", **place)
    for command in (
        ["checkout", "--force"],
        ["gc", "--workspace", "--force"],
        ["remove", "prepare@voc2012", "--outs"],
        ["remove", "fetch@voc2012", "--outs"],
        ["gc", "--workspace", "--force"],
    ):
        dvc(folder, *command, **place)
    assert not (folder / "data" / "prepared" / "voc2012").exists()  # `remove` did remove
    assert state_of(copy) == before
    assert not any(path.is_symlink() for path in (folder / "data").rglob("*"))
    assert os.environ.get("PIPELINE_DATA_VOC2012") != str(copy)
