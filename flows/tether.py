"""Runs a command that ends with whoever started it, however that one ends.

Start this file in a process group of its own, with a pipe as its input and the command as its
arguments. When the other end of the pipe closes, because it was closed or because the process that
held it was killed, all processes of the group get SIGTERM and, where that does not help, SIGKILL.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil

GRACE = 10.0  # seconds between the two


def main(command: list[str]) -> int:
    """Run the command. Returns its exit code, or 128 + the number of the signal that ended it."""
    # SIGTERM is meant for the others of the group; a handler, unlike SIG_IGN, is not inherited
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    cut = threading.Event()
    threading.Thread(target=_end_with_the_pipe, args=(cut,), daemon=True).start()
    code = child.wait()
    if cut.is_set():
        signal.pause()  # until the others have ended too, and SIGKILL comes
    return code if code >= 0 else 128 - code


def _end_with_the_pipe(cut: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):  # nothing: the pipe is closed
        pass
    cut.set()
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while _others() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(0, signal.SIGKILL)  # this process too


def _others() -> bool:
    """Whether another process of this group lives."""
    for process in psutil.process_iter(["pid", "status"]):
        try:
            ours = os.getpgid(process.pid) == os.getpgrp()
        except ProcessLookupError:
            continue
        if ours and process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
