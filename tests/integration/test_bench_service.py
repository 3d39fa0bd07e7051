"""The benchmark of the service against a real one with a small model."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from segstream.bench.wires import SESSION_PREFIX
from segstream.cli.bench import app
from tests.integration.conftest import StartService
from tests.support.doors import new_key
from tests.support.service import RunningService

MODEL_STAGES = {"encode", "memory_read", "fuse_decode"}
OTHER_STAGES = {"queue", "image_decode", "label_map_encode"}


async def bench(service: RunningService, wire: str, *options: str) -> dict[str, Any]:
    addresses = service.service.addresses
    address = addresses["grpc" if wire == "grpc" else "http"].removeprefix("http://")
    command = ["service", "--json", "--wire", wire, "--server", address, "--size", "48x64"]
    command += ["--duration", "1", "--warm-up", "0.2", *options]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert done.exit_code == 0, done.output
    # The service of the test logs to the same stdout.
    result: dict[str, Any]
    result, _ = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{\n") :])
    return result


@pytest.mark.parametrize("wire", ["grpc", "websocket", "rest"])
async def test_the_json_tells_where_the_time_of_a_frame_went(
    service: RunningService, wire: str
) -> None:
    result = await bench(service, wire, "--streams", "2")
    assert (result["size"], result["encoding"], result["wire"]) == ("48x64", "jpeg", wire)
    assert result["streams"] == 2
    assert result["frames_per_second"] > 0
    assert set(result["stage_ms"]) == MODEL_STAGES | OTHER_STAGES
    for times in (*result["stage_ms"].values(), result["total_ms"], result["latency_ms"]):
        assert 0 <= times["p50"] <= times["p95"] <= times["p99"]
    assert 0 < result["overhead_ms_median"] < result["total_ms"]["p99"]
    assert result["drops"] == 0
    if wire == "rest":
        assert result["memory_bytes_per_session"] is None
    else:
        assert result["memory_bytes_per_session"] > 0
        assert result["mean_batch_size"] >= 1


@pytest.mark.parametrize("wire", ["grpc", "websocket", "rest"])
async def test_a_service_behind_a_key_is_measured_with_one(
    start_service: StartService, tmp_path: Path, wire: str
) -> None:
    keys = tmp_path / "keys.json"
    key = new_key(keys, "bench")
    service = await start_service(api_keys=keys)
    result = await bench(service, wire, "--api-key", key)
    assert result["frames_per_second"] > 0
    assert (result["memory_bytes_per_session"] is None) is (wire == "rest")


@pytest.mark.parametrize("encoding", ["png", "raw"])
async def test_frames_travel_in_other_encodings(service: RunningService, encoding: str) -> None:
    result = await bench(service, "grpc", "--encoding", encoding, "--rate", "20")
    assert result["encoding"] == encoding
    assert result["frames_per_second"] > 0


async def test_the_largest_number_of_sessions_is_found_and_drawn(
    service: RunningService, tmp_path: Path
) -> None:
    picture = tmp_path / "figure.png"
    options = ("--objective-ms", "0", "--think-time", "5", "--plot", str(picture))
    result = await bench(service, "grpc", *options)
    assert result["objective"]["streams"] == 0, "no frame takes no time"
    assert [trial["streams"] for trial in result["objective"]["trials"]] == [1]
    assert picture.stat().st_size > 0


@pytest.mark.parametrize("wire", ["grpc", "websocket"])
async def test_the_sessions_of_a_load_end_with_it(service: RunningService, wire: str) -> None:
    await bench(service, wire, "--streams", "3")
    listed = (await service.http.get("/v1/sessions")).json()["sessions"]
    assert not [s for s in listed if s["session_id"].startswith(SESSION_PREFIX)]
