"""Stage `code`: for each stage, the digests of the code it runs. Every stage depends on its own.

And data/forests/none.npz, what a stage depends on in the place of a forest that it does not need.
"""

import os
from pathlib import Path

from pipeline.code_digest import code_digest, stage_names

NO_FOREST = "What needs no forest depends on this file instead.\n"


def code(root: Path) -> None:
    """Write data/code/<stage>.txt for every stage: one line per module that it imports."""
    for stage in stage_names(root):
        lines = [f"{digest}  {name}\n" for name, digest in code_digest(root, stage).items()]
        _write(root / "data" / "code" / f"{stage}.txt", "".join(lines))
    _write(root / "data" / "forests" / "none.npz", NO_FOREST)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
