"""Imports point down: held by walking the syntax trees of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = {
    "categories", "boxes", "masks", "superpixels", "errors", "params", "params_datasets",
    "params_proposals", "params_networks", "params_training",
}  # fmt: skip
PAPERS = {
    "models", "losses", "labels", "box_targets", "instances", "crf", "proposals", "transforms",
    "metrics",
}  # fmt: skip
DISK = {
    "datasets", "tables", "reports", "semantic_reports", "instance_reports", "figures",
    "instance_figures", "protocol", "departures", "paper_tables", "markdown", "wording",
    "object_overlays", "exports", "params_file", "params_names",
    "params_checks",
}  # fmt: skip
BETWEEN = {
    "training", "inference", "fitting", "checkpoints", "box_labels",
    "shards", "proposing", "forests", "edge_training", "ranker_training",
    "tiles", "parallel", "gradients", "weight_files", "memory", "progress", "box_objects",
    "label_step", "post_processing", "object_maps", "instance_maps", "instance_finding",
}  # fmt: skip
TOP = {
    "stages", "shared_work", "scoring", "proposal_commands", "proposal_arguments", "segmenting",
    "segment_arguments", "object_pictures",
    "label_pictures", "photographs", "sensitivity", "__main__",
}  # fmt: skip
TOOLS = {  # behind the command line: folders of work, and files about runs
    "work", "code_digest", "catalogue", "costs", "yaml_edit", "study", "study_report", "pruning",
    "paper_map", "machine", "places",
}  # fmt: skip
MAY_IMPORT = (
    {part: VOCABULARY for part in VOCABULARY}
    | {part: VOCABULARY | PAPERS for part in PAPERS}
    | {part: VOCABULARY | DISK for part in DISK}
    | {part: VOCABULARY | PAPERS | DISK | BETWEEN for part in BETWEEN}
    | {part: VOCABULARY | DISK | TOOLS for part in TOOLS}
    | {part: VOCABULARY | PAPERS | DISK | BETWEEN | TOOLS | TOP for part in TOP}
)
MODULES = sorted((ROOT / "pipeline").rglob("*.py"))
EMPTY_NAMES = {"utils", "misc", "common", "helpers", "engine", "core", "manager"}


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports by relative name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline").with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("pipeline.")}
    if part_of(path) == "__init__":
        assert not ours
        return
    assert part_of(path) in MAY_IMPORT, f"{path.name}: say in this test to which layer it belongs"
    assert ours <= MAY_IMPORT[part_of(path)]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_in_the_pipeline_knows_prefect_or_the_flows(path):
    assert not {name.split(".")[0] for name in imported(path)} & {"prefect", "flows"}


def test_the_flows_know_of_the_pipeline_only_its_parameters():
    for path in (ROOT / "flows").rglob("*.py"):
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("pipeline.")}
        assert ours <= {"params", "params_file", "errors", "catalogue"}, path


def test_the_file_of_a_paper_imports_other_models_only():
    for path in (ROOT / "pipeline" / "models").glob("*.py"):
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("pipeline.")}
        assert ours <= VOCABULARY | {"models"}, path


def test_the_disk_half_and_the_vocabulary_need_no_torch():
    for path in MODULES:
        if part_of(path) in VOCABULARY | DISK:
            assert not {n.split(".")[0] for n in imported(path)} & {"torch", "torchvision"}, path


def test_file_names_are_nouns_of_the_field():
    assert not {path.stem for path in MODULES} & EMPTY_NAMES
    assert not {path.parent.name for path in MODULES} & EMPTY_NAMES
