"""What the processes of a training share: a folder of unfinished work, held by the first."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import BadInput
from pipeline.machine import chosen_device
from pipeline.parallel import processes, rank, tell, training_processes
from pipeline.work import Work, open_work


@dataclass(frozen=True)
class SharedWork:
    """Made by `open_shared_work`."""

    folder: Path
    device: torch.device  # of this process
    held: Work | None  # in the first process

    def publish(self, outs: dict[Path, Path]) -> None:
        """What `Work.publish` does, in the first process; in the others nothing."""
        if self.held is not None:
            self.held.publish(outs)


@contextmanager
def open_shared_work(
    root: Path, *, stage: str, key: str, sections: list[str], inputs: list[Path]
) -> Iterator[SharedWork]:
    """`pipeline.work.open_work` for a stage that trains: on all GPUs, a process for each.

    Raises:
        BadInput: as `chosen_device`, `training_processes` and `open_work`; or another machine does
            not see the folder.
    """
    with training_processes(chosen_device(), [stage, key]) as device:
        if rank() == 0:
            with open_work(root, stage=stage, key=key, sections=sections, inputs=inputs) as work:
                tell(work.folder.relative_to(root).as_posix(), device)
                yield SharedWork(work.folder, device, work)
            return
        folder = root / tell("", device)
        if not folder.is_dir():
            raise BadInput(
                f"{folder}: not there; the {processes()} processes of a training must see one "
                "project folder: put it on a disk that all machines share"
            )
        yield SharedWork(folder, device, None)
