"""A segstream service of one's own, in a child process, for as long as a block runs."""

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from segstream.cli.signals import handling
from segstream.errors import UnavailableError

SERVE_COMMAND: Final = (
    *(sys.executable, "-m", "segstream", "serve", "--host", "127.0.0.1"),
    *("--clip-workers", "0"),  # uploaded clips are none of its business
)

_POLL_SECONDS = 0.05
_STOP_TIMEOUT_SECONDS = 15.0
_NUM_LOG_LINES = 20


class LocalServer(NamedTuple):
    """Where it listens, ``host:port`` each, and its process."""

    grpc: str
    http: str
    pid: int


@contextmanager
def local_server(
    *, start_timeout_seconds: float = 120.0, command: Sequence[str] = SERVE_COMMAND
) -> Iterator[LocalServer]:
    """Start a service on free ports of this machine and tell where it listens.

    It is stopped in order at the end of the block, whatever ends it, SIGTERM and SIGHUP included.
    If it dies by itself, the end of its log goes to stderr. Raises UnavailableError if it is not
    ready in time.
    """
    with tempfile.TemporaryDirectory(prefix="segstream-") as folder, _exit_on_signals():
        ready_file, log = Path(folder, "ready.json"), Path(folder, "serve.log")
        process = _start(command, ready_file, log)
        try:
            yield _wait_until_ready(process, ready_file, start_timeout_seconds)
        finally:
            if process.poll() is not None:
                _pass_on(log)
            _stop(process)


def _start(command: Sequence[str], ready_file: Path, log: Path) -> "subprocess.Popen[bytes]":
    ports = ("--port", "0", "--http-port", "0", "--ready-file", str(ready_file))
    with log.open("wb") as sink:
        # In a process group of its own: Ctrl-C is for this process, which then stops the service.
        return subprocess.Popen(
            [*command, *ports],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            process_group=0,
        )


def _wait_until_ready(
    process: "subprocess.Popen[bytes]", ready_file: Path, timeout_seconds: float
) -> LocalServer:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if (status := process.poll()) is not None:
            raise UnavailableError(f"the service ended with status {status} before it was ready")
        if (addresses := _read_addresses(ready_file)) is not None:
            http = addresses["http"].removeprefix("http://")
            return LocalServer(addresses["grpc"], http, process.pid)
        time.sleep(_POLL_SECONDS)
    raise UnavailableError(f"the service was not ready after {timeout_seconds:g} seconds")


def _read_addresses(ready_file: Path) -> dict[str, str] | None:
    try:
        addresses: dict[str, str] = json.loads(ready_file.read_text())
        return addresses
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _stop(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.terminate()
        process.wait(_STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()


def _pass_on(log: Path) -> None:
    for line in log.read_text(errors="replace").splitlines()[-_NUM_LOG_LINES:]:
        print(line, file=sys.stderr)


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, as Ctrl-C does; else the child would stay."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with handling({signal.SIGTERM: _exit, signal.SIGHUP: _exit}):
        yield


def _exit(signal_number: int, _: FrameType | None) -> None:
    sys.exit(128 + signal_number)
