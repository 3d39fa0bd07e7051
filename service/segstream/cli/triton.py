"""``segstream triton``: a Triton server of this machine, kept running."""

import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from segstream.checkpoints import DEFAULT
from segstream.cli.errors import one_line_errors
from segstream.cli.signals import handling
from segstream.errors import SegstreamError
from segstream.telemetry.logging import configure_logging

if TYPE_CHECKING:
    from segstream.triton.server import TritonServer

_log = structlog.get_logger(__name__)

_WATCH_SECONDS = 0.1
_MAX_RESTART_SECONDS = 10.0
# A server that ran for so long did not fail in starting.
_SETTLED_SECONDS = 30.0


def triton(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint to serve, a name or a file. May be given several times."),
    ] = None,
    model_repository: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Serve this repository instead of checkpoints."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="gRPC port.")] = 8001,
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="HTTP port.")] = 8000,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="Metrics port.")] = 8002,
    max_batch_size: Annotated[int, typer.Option(min=1, max=256, help="Frames in one batch.")] = 8,
    instances: Annotated[int, typer.Option(min=1, help="Processes of each model.")] = 1,
    num_threads: Annotated[
        int, typer.Option(min=0, help="Threads of a forward on CPU; 0 = all cores.")
    ] = 0,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where Triton sends traces, by OTLP over HTTP: http://collector:4318/v1/traces. "
            "Of frames that the service traces.",
        ),
    ] = None,
    log_file: Annotated[Path | None, typer.Option(help="File for Triton's own log.")] = None,
) -> None:
    """Run a Triton server with the backend of this package until SIGTERM or Ctrl-C.

    It is started anew when it dies. SIGHUP loads checkpoints that have changed; frames under way
    are finished first, and sessions go on with the new weights. Serve with it:
    segstream serve --engine triton
    """
    configure_logging("console", "info")
    with one_line_errors():
        from segstream.triton.repository import write_repository
        from segstream.triton.server import Ports, TritonServer, trace_options

        with tempfile.TemporaryDirectory(prefix="segstream-models-") as folder:
            repository = model_repository
            if repository is None:
                repository = Path(folder)
                write_repository(
                    repository,
                    model or [DEFAULT],
                    max_batch_size=max_batch_size,
                    num_instances=instances,
                    num_threads=num_threads,
                )
            with TritonServer(
                repository.resolve(),
                host=host,
                ports=Ports(port, http_port, metrics_port),
                log=log_file,
                options=trace_options(otlp_endpoint) if otlp_endpoint else (),
            ) as server:
                _Supervisor(server).run()


class _Supervisor:
    def __init__(self, server: "TritonServer") -> None:
        self._server = server
        self._is_stopping = False
        self._wants_reload = False

    def run(self) -> None:
        with handling(
            {
                signal.SIGTERM: self._stop,
                signal.SIGINT: self._stop,
                signal.SIGHUP: self._reload,
            }
        ):
            delay = 0.0
            while not self._is_stopping:
                started = time.monotonic()
                self._serve()
                if self._is_stopping:
                    break
                # Nothing of the old one may be in the way of the new.
                self._server.stop()
                is_settled = time.monotonic() - started > _SETTLED_SECONDS
                delay = 0.0 if is_settled else min(2 * delay + 0.1, _MAX_RESTART_SECONDS)
                _log.warning("triton ended; starting it anew", delay_seconds=delay)
                time.sleep(delay)

    def _serve(self) -> None:
        """Until it ends or is told to."""
        server = self._server
        server.start()
        is_told = False
        while not self._is_stopping and server.process.poll() is None:
            if not is_told and server.is_ready():
                is_told = True
                _log.info("triton serves", grpc=server.address, models=server.models)
            if self._wants_reload and is_told:
                self._wants_reload = False
                self._load_all()
            time.sleep(_WATCH_SECONDS)
        if not self._is_stopping and not is_told:
            print(server.log_tail(), file=sys.stderr)

    def _load_all(self) -> None:
        for model in self._server.models:
            try:
                self._server.load(model)
                _log.info("loaded", model=model)
            except SegstreamError as error:
                _log.error("not loaded", model=model, fault=error.message)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._is_stopping = True

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        self._wants_reload = True
