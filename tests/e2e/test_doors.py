"""``segstream serve`` with keys and TLS, as people use it; and what it writes about them."""

import json
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from segstream.client import Client
from segstream.doors.keys import KEY
from segstream.errors import UnauthenticatedError
from segstream.media.video import VideoReader
from tests.e2e.conftest import NUM_FRAMES
from tests.support.doors import Authority, bearing, id_of
from tests.support.process import run_segstream, serving

STOP_SECONDS = 60


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def make_key(keys: Path, *options: str) -> str:
    made = run_segstream("keys", "create", "--file", keys, *options)
    assert made.exit_code == 0, made.err
    key = made.out.strip()
    assert KEY.fullmatch(key)
    return key


def test_keys_are_made_listed_renewed_and_revoked(keys: Path) -> None:
    key = make_key(keys, "--name", "camera", "--max-sessions", "2")
    assert key not in keys.read_text()
    listed = run_segstream("keys", "list", "--file", keys)
    assert id_of(key) in listed.out
    assert "camera" in listed.out
    assert key not in listed.out
    told = json.loads(run_segstream("keys", "list", "--file", keys, "--json").out)
    [shown] = told["keys"]
    assert shown["limits"]["max_sessions"] == 2
    assert "sha256" not in shown
    renewed = run_segstream("keys", "renew", id_of(key), "--file", keys, "--json")
    assert json.loads(renewed.out)["id"] == id_of(key)
    assert run_segstream("keys", "revoke", id_of(key), "--file", keys).exit_code == 0
    assert json.loads(run_segstream("keys", "list", "--file", keys, "--json").out)["keys"] == []


def test_faults_of_keys_are_one_line(keys: Path) -> None:
    told = run_segstream("keys", "revoke", "0" * 12, "--file", keys).error_line
    assert "cannot be read: No such file" in told
    make_key(keys)
    assert "is not in" in run_segstream("keys", "renew", "x", "--file", keys).error_line
    fault = run_segstream("keys", "create", "--file", keys, "--max-frames-per-second", "-1")
    assert fault.error_line.startswith("max_frames_per_second is -1.0")
    served = run_segstream("serve", "--api-keys", keys.parent / "nothing.json")
    assert "nothing.json cannot be read" in served.error_line
    served = run_segstream("serve", "--tls-cert", keys)
    assert "tls_cert is given without tls_key" in served.error_line


def test_a_clip_goes_through_closed_doors(
    checkpoint: Path, clip: Path, keys: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    server, client = authority.sign("server"), authority.sign("client")
    key = make_key(keys)
    tls = ("--tls-cert", server.certificate, "--tls-key", server.key)
    ca = ("--tls-client-ca", authority.certificate)
    overlay = tmp_path / "overlay.mp4"
    shown = ("--tls-cert", client.certificate, "--tls-key", client.key)
    with serving(tmp_path, "--model", checkpoint, "--api-keys", keys, *tls, *ca) as served:
        command = ("segment", clip, "-o", overlay, "--server", served.grpc_address)
        access = ("--tls-roots", authority.certificate, *shown)
        done = run_segstream(*command, *access, SEGSTREAM_API_KEY=key)
        assert done.exit_code == 0, done.err
        told = run_segstream(*command, *access).error_line
        assert "an API key is needed" in told
    with VideoReader(overlay) as video:
        assert len(list(video)) == NUM_FRAMES


def test_the_log_holds_no_secret(checkpoint: Path, keys: Path, tmp_path: Path) -> None:
    """Not even at level debug, where libraries write what comes and goes."""
    key, wrong = make_key(keys), "segstream_000000000000_" + "S" * 43
    options = ("--model", checkpoint, "--api-keys", keys, "--log-level", "debug")
    redis = ("--redis-url", "redis://:hidden-password@127.0.0.1:1/0")
    with serving(tmp_path, *options, *redis) as served:
        for each in (key, wrong):
            use_everything(served.http_url, served.grpc_address, each)
        answer = httpx.get(f"{served.http_url}/metrics", headers=bearing(key), trust_env=False)
        assert answer.status_code == 200
        served.process.send_signal(signal.SIGTERM)
        assert served.end(STOP_SECONDS) == 0
        log = served.log.read_text()
    assert "Bearer [hidden]" in log  # somebody did try
    for text in (log, answer.text):
        for secret in (key, key.rpartition("_")[2], "S" * 20, "hidden-password"):
            assert secret not in text
        assert not re.search(KEY, text)


def use_everything(http_url: str, grpc_address: str, key: str) -> None:
    with httpx.Client(base_url=http_url, trust_env=False, timeout=20) as http:
        for headers in (bearing(key), {"X-Api-Key": key}):
            http.get("/v1/sessions", headers=headers)
            http.get("/v1/clips/nothing", headers=headers)
            http.post("/v1/images", content=b"no image", headers=headers)
        http.get("/v1/models", params={"api_key": key})
    url = http_url.replace("http", "ws") + "/v1/stream"
    ways: list[dict[str, Any]] = [
        {"subprotocols": ["segstream.v1", f"bearer.{key}"]},
        {"additional_headers": bearing(key)},
    ]
    for options in ways:
        with suppress(InvalidStatus), connect(url, proxy=None, **options) as socket:
            socket.send('{"config": {}}')
            socket.recv(timeout=20)
    with (
        Client(grpc_address, api_key=key) as client,
        suppress(UnauthenticatedError),
        client.stream(),
    ):
        pass
