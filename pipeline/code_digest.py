"""What a stage's result depends on in our own code: the syntax, not the wording.

A reworded docstring, a comment or the layout changes no digest; a changed number does. So DVC
reruns a stage exactly when something that it imports would compute something else.
"""

import ast
import hashlib
from pathlib import Path

PACKAGE = "pipeline"


def stage_names(root: Path) -> list[str]:
    """The stages there are: the modules of pipeline/stages, sorted."""
    return sorted(p.stem for p in (root / PACKAGE / "stages").glob("[a-z]*.py"))


def code_digest(root: Path, stage: str) -> dict[str, str]:
    """Digest of every module of ours that the stage imports, itself included.

    Args:
        root: the project folder.
        stage: name of a module in pipeline/stages.

    Returns:
        {path below root: SHA-256 of its syntax}, sorted by path.
    """
    digests: dict[str, str] = {}
    waiting = _files_of(root, f"{PACKAGE}.stages.{stage}")
    while waiting:
        path = waiting.pop()
        name = path.relative_to(root).as_posix()
        if name in digests:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=name)
        digests[name] = _syntax_digest(tree)
        digests |= _data_digests(root, path)
        waiting += _imported_files(root, tree)
    return dict(sorted(digests.items()))


def _data_digests(root: Path, module: Path) -> dict[str, str]:
    """Digests of a module's data: those of `lists.py` are the texts in `published_lists/`."""
    files = module.with_name(f"published_{module.stem}").glob("*.txt")
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def _syntax_digest(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _imported_files(root: Path, tree: ast.Module) -> list[Path]:
    """Files of the package that a module imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return [file for name in names for file in _files_of(root, name)]


def _files_of(root: Path, name: str) -> list[Path]:
    """The files that importing a dotted name of the package runs; none for other packages."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return []
    places = [root.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    files = [p / "__init__.py" for p in places] + [p.with_suffix(".py") for p in places]
    return [file for file in files if file.is_file()]
