"""Stage `code`: for each stage, the digests of the code it runs. Every stage depends on its own."""

import os
from pathlib import Path

from pipeline.code_digest import code_digest, stage_names


def code(root: Path) -> None:
    """Write data/code/<stage>.txt for every stage: one line per module that it imports."""
    folder = root / "data" / "code"
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stage_names(root):
        lines = [f"{digest}  {name}\n" for name, digest in code_digest(root, stage).items()]
        partial = folder / f".{stage}.txt.partial"
        partial.write_text("".join(lines))
        os.replace(partial, folder / f"{stage}.txt")
