"""The command line in child processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_SECONDS = 60.0
RUN_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Finished:
    """What a command that ended has left."""

    exit_code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The one line that tells what went wrong; nothing else may look like an error."""
        assert self.exit_code != 0
        assert "Traceback" not in self.err, self.err
        [line] = (line for line in self.err.splitlines() if line.startswith("Error: "))
        assert self.err.splitlines()[-1] == line
        return line.removeprefix("Error: ")


@dataclass(frozen=True)
class ServeProcess:
    """A running ``segstream serve``."""

    process: "subprocess.Popen[bytes]"
    ready_file: Path
    log: Path
    grpc_address: str
    http_url: str

    def end(self, timeout_seconds: float) -> int:
        """Wait for the exit code."""
        return self.process.wait(timeout_seconds)


def run_segstream(*arguments: str | Path, **environment: str) -> Finished:
    result = subprocess.run(
        command(*arguments),
        env=_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_SECONDS,
        check=False,
    )
    return Finished(result.returncode, result.stdout, result.stderr)


@contextmanager
def serving(folder: Path, *arguments: str | Path, **environment: str) -> Iterator[ServeProcess]:
    """``segstream serve`` on free ports; whatever is left of it is killed when the block ends."""
    ready_file, log = folder / "ready.json", folder / "serve.log"
    options = ("--port", "0", "--http-port", "0", "--ready-file", ready_file, *arguments)
    environment = {"SEGSTREAM_CLIP_STORAGE": str(folder / "clips"), **environment}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command("serve", *options),
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        addresses = _wait_until_ready(process, ready_file, log)
        yield ServeProcess(process, ready_file, log, addresses["grpc"], addresses["http"])
    finally:
        process.kill()
        process.wait()


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "segstream", *map(str, arguments)]


def _environment(given: dict[str, str]) -> dict[str, str]:
    """This environment, less what would configure the service behind the test's back."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEGSTREAM_")}
    return kept | {"SEGSTREAM_NUM_THREADS": "1", "COLUMNS": "200"} | given


def _wait_until_ready(
    process: "subprocess.Popen[bytes]", ready_file: Path, log: Path
) -> dict[str, str]:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not ready_file.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    addresses: dict[str, str] = json.loads(ready_file.read_text())
    return addresses
