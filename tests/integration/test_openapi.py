"""The HTTP wire against its own OpenAPI document, by schemathesis."""

import asyncio
import sys
from pathlib import Path

from segstream.media.images import ImageEncoding, encode_image
from tests.integration.conftest import StartService
from tests.support.models import make_video

# Its stream lasts as long as the job, and there is no worker.
WITHOUT_END = "^/v1/clips/{clip_id}/events$"


async def test_schemathesis_finds_nothing(start_service: StartService, tmp_path: Path) -> None:
    """Every operation with good and bad requests: no 5xx, nothing that is not documented."""
    service = await start_service(clip_workers=0)
    png = encode_image(make_video(1)[0], ImageEncoding.PNG)
    assert (await service.http.post("/v1/clips", content=png)).status_code == 202
    call = service.call()
    await call.open(session_id="0")  # the name that schemathesis tries first
    status, output = await schemathesis(service.service.addresses["http"], tmp_path)
    assert status == 0, output
    assert "Failures" not in output, output


async def schemathesis(url: str, folder: Path) -> tuple[int, str]:
    """Run it, always with the same requests; its exit status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        *("run", f"{url}/openapi.json"),
        *("--phases", "examples,coverage,fuzzing", "--mode", "all", "--checks", "all"),
        *("--max-examples", "8", "--generation-deterministic"),
        *("--suppress-health-check", "all", "--exclude-path-regex", WITHOUT_END),
        *("--request-timeout", "60", "--continue-on-failure", "--no-color"),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return await process.wait(), output.decode()
