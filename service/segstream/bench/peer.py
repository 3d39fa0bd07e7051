"""Another server of the same network, as a process of this machine."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path

from segstream.bench.local_redis import free_port
from segstream.errors import UnavailableError

_START_SECONDS = 120.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.2
_NUM_LOG_CHARACTERS = 500


@asynccontextmanager
async def running_peer(name: str) -> AsyncIterator[str]:
    """Start the server of ``peers/<name>_server.py`` and yield its address once it is healthy.

    Raises UnavailableError where it is not installed or does not start.
    """
    if find_spec(name) is None:
        raise UnavailableError(f"{name} is not installed: pip install 'segstream[bench]'")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="segstream-") as folder:
        log = Path(folder, "log")
        process = await asyncio.to_thread(_start, name, port, log)
        try:
            await _wait_until_healthy(process, port, log, name)
            yield f"127.0.0.1:{port}"
        finally:
            await asyncio.to_thread(_stop, process)


def _start(name: str, port: int, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", f"segstream.bench.peers.{name}_server", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            process_group=0,  # LitServe has workers, which must end with it
        )


async def _wait_until_healthy(
    process: "subprocess.Popen[bytes]", port: int, log: Path, name: str
) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if await asyncio.to_thread(_is_healthy, port):
            return
        await asyncio.sleep(_POLL_SECONDS)
    raise UnavailableError(f"the {name} server did not start: {_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-_NUM_LOG_CHARACTERS:]


def _is_healthy(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=_START_SECONDS)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (HTTPException, OSError):
        return False
    finally:
        connection.close()


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
