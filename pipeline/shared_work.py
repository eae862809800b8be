"""A stage's folder of unfinished work, which the first of several processes holds for all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import BadInput
from pipeline.parallel import processes, rank, tell
from pipeline.work import Work, open_work


@dataclass(frozen=True)
class SharedWork:
    """Made by `open_shared_work`."""

    folder: Path
    held: Work | None  # in the first process

    def publish(self, outs: dict[Path, Path]) -> None:
        """What `Work.publish` does, in the first process; in the others nothing."""
        if self.held is not None:
            self.held.publish(outs)


@contextmanager
def open_shared_work(
    root: Path,
    device: torch.device,
    *,
    stage: str,
    key: str,
    sections: list[str],
    inputs: list[Path],
) -> Iterator[SharedWork]:
    """`pipeline.work.open_work` for processes that train together.

    Args:
        device: of this process.

    Raises:
        BadInput: as `open_work`; or another machine does not see the folder.
    """
    if rank() == 0:
        with open_work(root, stage=stage, key=key, sections=sections, inputs=inputs) as work:
            tell(work.folder.relative_to(root).as_posix(), device)
            yield SharedWork(work.folder, work)
        return
    folder = root / tell("", device)
    if not folder.is_dir():
        raise BadInput(
            f"{folder}: not there; the {processes()} processes of a training must see one project "
            "folder: put it on a disk that all machines share"
        )
    yield SharedWork(folder, None)
