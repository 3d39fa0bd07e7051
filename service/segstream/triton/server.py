"""A Triton server as a child process: started, watched, reloaded, and cleared away."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from segstream.errors import UnavailableError
from segstream.triton.installation import Installation
from segstream.triton.repository import write_backend

_POLL_SECONDS = 0.05
_READY_LINES = ("Started GRPCInferenceService", "Started HTTPService", "Started Metrics Service")
_NUM_TOLD_BYTES = 4000
_LOAD_SECONDS = 120.0
# Triton's own wait for models that do not end; it does not cut a forward that runs.
_EXIT_TIMEOUT_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens."""

    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002


def trace_options(otlp_endpoint: str) -> tuple[str, ...]:
    """Let the server send OpenTelemetry spans of those requests alone that bring a traceparent."""
    told = (
        "mode=opentelemetry",
        f"opentelemetry,url={otlp_endpoint}",
        "level=TIMESTAMPS",
        "rate=0",
    )
    return tuple(f"--trace-config={each}" for each in told)


class TritonServer:
    """Serves every model of ``repository`` from ``host``; a context manager.

    Its processes, their shared memory and files go with the context, however the server ended.
    Raises UnavailableError where there is no server to start.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        ports: Ports | None = None,
        backends: Path | None = None,
        log: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.repository = repository
        self.host = host
        self.ports = ports or Ports()
        self._installation = Installation.find()
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="segstream-triton-")
        self.log = log or Path(self._folder.name, "tritonserver.log")
        self._backends = Path(self._folder.name, "backends")
        self._installation.copy_python_backend(self._backends)
        if backends is None:
            write_backend(self._backends)
        else:
            shutil.copytree(backends, self._backends, dirs_exist_ok=True)
        # By this the regions of the stubs are found when they could not clear them away.
        self._region_prefix = f"segstream-stub-{os.getpid()}-{id(self):x}-"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Of its gRPC port."""
        return f"{self.host}:{self.ports.grpc}"

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "start() comes first"
        return self._process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Start it, without waiting for its models."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self._installation.environment,
                cwd=self._folder.name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self, timeout_seconds: float = 120.0) -> None:
        """Until every port is served. Raises UnavailableError with the end of its log."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise UnavailableError(f"tritonserver ended:\n{self.log_tail()}")
            if self.is_ready():
                return
            time.sleep(_POLL_SECONDS)
        raise UnavailableError(f"tritonserver was not ready in time:\n{self.log_tail()}")

    def is_ready(self) -> bool:
        """Whether it serves all its ports."""
        # Each says so itself: the first answers before the last could fail to bind.
        log = self.log.read_text(errors="replace")
        return all(line in log for line in _READY_LINES)

    @property
    def models(self) -> list[str]:
        """The names of the models in its repository."""
        return sorted(path.parent.name for path in self.repository.glob("*/config.pbtxt"))

    def load(self, model: str) -> None:
        """Load a model again, for a checkpoint that has changed.

        The new one takes its place when it is ready; frames under way are finished first. Raises
        UnavailableError where that fails: the old one then goes on.
        """
        for settings in self.repository.glob(f"{model}/*/model.json"):
            settings.touch()  # Triton loads again only what has changed in the repository
        url = f"http://{self.host}:{self.ports.http}/v2/repository/models/{model}/load"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=_LOAD_SECONDS):
                pass
        except OSError as error:
            detail = error.read().decode() if isinstance(error, urllib.error.HTTPError) else error
            raise UnavailableError(f"Triton could not load {model!r}: {detail}") from error

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """In order if it can be had in time; nothing is left behind in any case."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_seconds)
        # Stubs that outlived a server which crashed at work would wait for it for ever.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for region in Path("/dev/shm").glob(f"{self._region_prefix}*"):
            region.unlink(missing_ok=True)

    def log_tail(self) -> str:
        """The end of the server's log."""
        return self.log.read_bytes()[-_NUM_TOLD_BYTES:].decode(errors="replace")

    def _command(self) -> list[str]:
        installation, ports = self._installation, self.ports
        caches = installation.caches
        setpriv = shutil.which("setpriv")
        return [
            # Else the server would stay when this process is killed.
            *([setpriv, "--pdeathsig", "TERM"] if setpriv else []),
            str(installation.server),
            f"--model-repository={self.repository}",
            f"--backend-directory={self._backends}",
            *([f"--cache-directory={caches}"] if caches else []),
            *(f"--http-address={self.host}", f"--http-port={ports.http}"),
            *(f"--grpc-address={self.host}", f"--grpc-port={ports.grpc}"),
            f"--metrics-port={ports.metrics}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={_EXIT_TIMEOUT_SECONDS}",
            f"--backend-config=python,shm-region-prefix-name={self._region_prefix}",
            *self._options,
        ]
