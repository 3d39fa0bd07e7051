"""Replicas of the service as processes of this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from segstream.bench.local_redis import free_port

_START_SECONDS = 120.0
_POLL_SECONDS = 0.05


class Replica:
    """One ``segstream serve`` on a port that it keeps over restarts; its log is in ``folder``."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.port = free_port()
        self.http_port = free_port()
        self.ready_file = folder / f"{name}.json"
        self.log = folder / f"{name}.log"
        self._environment = environment
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        self.ready_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "segstream", "serve", "--clip-workers", "0"],
                env=os.environ
                | self._environment
                | {
                    "SEGSTREAM_PORT": str(self.port),
                    "SEGSTREAM_HTTP_PORT": str(self.http_port),
                    "SEGSTREAM_READY_FILE": str(self.ready_file),
                    "SEGSTREAM_REPLICA_NAME": self.name,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self.ready_file.exists() and json.loads(self.ready_file.read_text()):
                return
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended: see {self.log}")
            time.sleep(_POLL_SECONDS)
        raise TimeoutError(f"{self.name} was not ready: see {self.log}")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(60)

    def stop(self) -> None:
        if self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self._process.kill()
                self.wait()
