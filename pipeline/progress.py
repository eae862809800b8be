"""What a training tells while it goes on: a bar on a terminal, elsewhere a line now and then."""

import sys
import time

from tqdm import tqdm

SECONDS = 30.0  # from one line to the next


class Progress:
    """Steps done of all, on stderr."""

    def __init__(self, done: int, total: int, *, hidden: bool) -> None:
        """
        Args:
            done, total: steps. hidden: say nothing.
        """
        self.bar = tqdm(total=total, initial=done, unit="step", disable=True if hidden else None)
        self.lines = self.bar.disable and not hidden  # nobody looks: a log, perhaps
        self.began, self.first, self.told = time.monotonic(), done, time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def say(self, text: str) -> None:
        """A line, beside the bar or without one."""
        if self.lines or not self.bar.disable:
            tqdm.write(text, file=sys.stderr)

    def at(self, done: int, loss: float) -> None:
        """So many steps are done; the loss of the last one."""
        self.bar.update(done - self.bar.n if not self.bar.disable else 0)
        now = time.monotonic()
        if self.lines and now - self.told >= SECONDS:
            seconds = (now - self.began) / max(done - self.first, 1) * (self.bar.total - done)
            left = f"about {seconds / 60:.0f} min left"
            self.say(f"step {done} of {self.bar.total}, loss {loss:.3f}, {left}")
            self.told = now
