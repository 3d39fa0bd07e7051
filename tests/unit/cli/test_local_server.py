import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segstream.cli import local_server as module
from segstream.cli.local_server import local_server
from segstream.errors import UnavailableError

SERVE = """
import json, os, pathlib, signal, sys, time
ready_file = pathlib.Path(sys.argv[sys.argv.index("--ready-file") + 1])
stopped = pathlib.Path({stopped!r})
def stop(*_):
    stopped.write_text("in order")
    sys.exit(0)
signal.signal(signal.SIGTERM, {on_term})
ready_file.write_text(json.dumps({{"grpc": "127.0.0.1:1", "http": "http://127.0.0.1:2"}}))
time.sleep(60)
"""


def serve(tmp_path: Path, on_term: str = "stop") -> list[str]:
    source = SERVE.format(stopped=str(tmp_path / "stopped"), on_term=on_term)
    return [sys.executable, "-c", source]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_service_runs_as_long_as_the_block(tmp_path: Path) -> None:
    with local_server(command=serve(tmp_path)) as server:
        assert is_alive(server.pid)
        assert (server.grpc, server.http) == ("127.0.0.1:1", "127.0.0.1:2")
    assert not is_alive(server.pid)
    assert (tmp_path / "stopped").read_text() == "in order"


def test_ctrl_c_stops_the_service(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), local_server(command=serve(tmp_path)) as server:
        raise KeyboardInterrupt
    assert not is_alive(server.pid)


def test_a_service_that_will_not_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STOP_TIMEOUT_SECONDS", 0.2)
    with local_server(command=serve(tmp_path, "signal.SIG_IGN")) as server:
        pass
    assert not is_alive(server.pid)


def test_a_service_that_dies_at_once_tells_why(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "raise SystemExit('port 0 is on fire')"]
    with (
        pytest.raises(UnavailableError, match="ended with status 1 before it was ready"),
        local_server(command=command),
    ):
        pass
    assert "port 0 is on fire" in capfd.readouterr().err


def test_a_service_that_is_never_ready_is_given_up() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    started_at = time.monotonic()
    with (
        pytest.raises(UnavailableError, match=r"not ready after 0\.3 seconds"),
        local_server(command=command, start_timeout_seconds=0.3),
    ):
        pass
    assert time.monotonic() - started_at < 10


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_no_signal_leaves_the_service_behind(tmp_path: Path, signal_number: signal.Signals) -> None:
    program = (
        "import sys, time\n"
        "from segstream.cli.local_server import local_server\n"
        "with local_server(command=sys.argv[1:]) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, *serve(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal_number)
        assert parent.wait(20) != 0
    assert not is_alive(pid)
    assert (tmp_path / "stopped").read_text() == "in order"
