"""`python -m flows.up` (`make up`): all that a deployment needs, on this machine alone.

A Prefect server, the work pool `local`, the deployments of prefect.yaml and a worker, which end
together with this command.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
PORT = 4200  # as in prefect.toml
POOL = "local"  # as in prefect.yaml
PATIENCE = 180.0  # seconds for the server's first start, which builds its database


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 ended by Ctrl-C or SIGTERM, 1 a part failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m flows.up", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT, help=f"of the server (default {PORT})")
    port = parser.parse_args(arguments).port
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return up(port)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def up(port: int) -> int:
    """Start everything and stay until a part of it ends or this process is interrupted.

    Raises:
        BadInput: the port is taken, or Prefect refuses prefect.yaml.
    """
    _check_free(port)
    url = f"http://{HOST}:{port}/api"
    environment = {**os.environ, "PREFECT_API_URL": url, "PYTHONUNBUFFERED": "1"}
    with ExitStack() as started:  # ended in the opposite order: the worker while a server hears it

        def start(name: str, *words: str) -> "subprocess.Popen[str]":
            return started.enter_context(_running(name, list(words), environment))

        server = start("server", "server", "start", "--host", HOST, "--port", str(port))
        if not _wait_until(lambda: _get(f"{url}/health") is True, server):
            print("the server did not start; its last lines say why", file=sys.stderr)
            return 1
        if _get(f"{url}/work_pools/{POOL}") is None:
            _do("prefect", ["work-pool", "create", POOL, "--type", "process"], environment)
        _do("prefect", ["--no-prompt", "deploy", "--all"], environment)
        _do("flows.unstick", [], environment)  # a worker that was killed leaves runs behind
        worker = start("worker", "worker", "start", "--pool", POOL, "--type", "process")
        if not _wait_until(
            lambda: (_get(f"{url}/work_pools/{POOL}") or {}).get("status") == "READY", worker
        ):
            print("the worker did not start; its last lines say why", file=sys.stderr)
            return 1
        _tell(port, url)
        while server.poll() is None and worker.poll() is None:
            time.sleep(0.5)
        print("the server or the worker ended by itself; ending the other", file=sys.stderr)
        return 1


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BadInput(
                f"port {port} of {HOST}: {error.strerror}; is a server running already? "
                "Otherwise choose another: python -m flows.up --port 4201"
            ) from None


def _do(module: str, words: list[str], environment: dict[str, str]) -> None:
    """Run a command to its end; what it prints is worth reading only if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise BadInput(f"`python -m {module} {' '.join(words)}` failed:\n{done.stdout}")


@contextmanager
def _running(
    name: str, words: list[str], environment: dict[str, str]
) -> Iterator["subprocess.Popen[str]"]:
    """`prefect WORDS` in a process group of its own, its output under `name`; ended on leaving."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", *words],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C comes here only, and here is decided who ends when
    )
    reader = threading.Thread(target=_print_lines, args=(name, process), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        _end(process)
        reader.join(5)


def _print_lines(name: str, process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(f"{name:>6} | {line.rstrip()}", flush=True)


def _end(process: "subprocess.Popen[str]", grace: float = 30.0) -> None:
    """SIGTERM, patience, SIGKILL to what is left of its group."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_until(ready: Callable[[], bool], process: "subprocess.Popen[str]") -> bool:
    """Whether it became so, before the process ended and patience with it."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(0.2)
    return False


def _get(url: str) -> Any:
    """The JSON at an address on this machine, asked without a proxy; None: no such answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return json.load(answer)
    except OSError:  # no connection yet, or an HTTP error such as 404
        return None


def _tell(port: int, url: str) -> None:
    prefix = "" if port == PORT else f"PREFECT_API_URL={url} "
    print(
        f"\nReady: http://{HOST}:{port} shows what runs. In another terminal, in this folder:\n"
        f"  {prefix}prefect deployment run train-sample --watch\n"
        f"  {prefix}prefect deployment run train-voc --watch\n"
        "or train-cityscapes, train-context, train-boxsup, train-instances.\n"
        "Ctrl-C here ends the server and the worker.\n",
        flush=True,
    )


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
