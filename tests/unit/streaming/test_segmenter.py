import asyncio
from contextlib import AsyncExitStack

import pytest
from structlog.typing import EventDict

from segstream.errors import (
    AlreadyExistsError,
    ExhaustedError,
    NotFoundError,
    UnavailableError,
)
from segstream.streaming import SessionConfig
from tests.unit.streaming.fakes import MODEL, OTHER_MODEL, Service, make_frame, settle

pytestmark = pytest.mark.timeout(30)


async def test_session_without_an_id_gets_one_of_its_own(service: Service) -> None:
    async with service.open() as one, service.open() as other:
        assert one.id
        assert one.id != other.id
        assert SessionConfig(session_id=one.id).session_id == one.id


async def test_session_keeps_the_id_it_came_with(service: Service) -> None:
    async with service.open(SessionConfig(session_id="front:left")) as session:
        assert session.id == "front:left"
        assert service.holds("front:left")


async def test_id_in_use_is_refused_and_its_session_goes_on(service: Service) -> None:
    config = SessionConfig(session_id="a")
    async with service.open(config) as session:
        await session.segment(make_frame(0))
        with pytest.raises(AlreadyExistsError):
            async with service.open(config):
                pass
        assert (await session.segment(make_frame(1))).num_memory_frames == 1
    async with service.open(config) as session:
        assert (await session.segment(make_frame(0))).num_memory_frames == 0
    assert service.num_ended("client_closed") == 2


async def test_first_model_is_the_default(service: Service) -> None:
    async with service.open() as default, service.open(SessionConfig(model=OTHER_MODEL)) as other:
        assert (default.model.name, other.model.name) == (MODEL, OTHER_MODEL)


async def test_unknown_model_is_refused_with_the_known_ones(service: Service) -> None:
    with pytest.raises(NotFoundError, match=f"'dive'.*{MODEL}.*{OTHER_MODEL}") as refused:
        async with service.open(SessionConfig(model="dive")):
            pass
    assert refused.value.field == "config.model"
    assert service.segmenter.num_streams == 0


async def test_sessions_beyond_the_limit_are_refused(service: Service) -> None:
    async with AsyncExitStack() as sessions:
        for _ in range(4):
            await sessions.enter_async_context(service.open())
        with pytest.raises(ExhaustedError):
            async with service.open():
                pass
        assert service.segmenter.num_streams == 4
    async with service.open():
        pass


async def test_no_session_before_the_engine_is_ready(service: Service) -> None:
    service.engine.is_ready = False
    assert not service.segmenter.is_ready
    with pytest.raises(UnavailableError):
        async with service.open():
            pass
    service.engine.is_ready = True
    async with service.open():
        assert service.segmenter.is_ready


async def test_stopping_service_refuses_new_sessions(service: Service) -> None:
    await service.segmenter.drain(1.0)
    assert not service.segmenter.is_ready
    with pytest.raises(UnavailableError, match="another replica"):
        async with service.open():
            pass
    assert service.segmenter.num_streams == 0


async def test_drain_waits_for_the_last_session(service: Service) -> None:
    async with service.open() as one:
        async with service.open():
            draining = asyncio.create_task(service.segmenter.drain(30.0))
            await settle()
        await settle()
        assert not draining.done()
        await one.segment(make_frame(0))
    await draining


async def test_drain_gives_up_at_its_deadline(service: Service, logs: list[EventDict]) -> None:
    async with service.open():
        await service.segmenter.drain(0.01)
        assert logs[-1] == {
            "event": "drain deadline passed",
            "log_level": "warning",
            "streams": 1,
            "parked": 0,
        }


@pytest.mark.parametrize("deadline_seconds", [0.0, 1.0])
async def test_drain_of_nothing_ends_at_once(
    service: Service, logs: list[EventDict], deadline_seconds: float
) -> None:
    await service.segmenter.drain(deadline_seconds)
    assert logs == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (asyncio.CancelledError(), "client_gone"),
        (GeneratorExit(), "client_gone"),
        (ZeroDivisionError(), "fault"),
        (NotFoundError("gone"), "fault"),
    ],
)
async def test_what_ends_a_session_is_logged_and_counted(
    service: Service, logs: list[EventDict], error: BaseException, reason: str
) -> None:
    async def segment_and_end() -> None:
        async with service.open(SessionConfig(session_id="a")) as session:
            await session.segment(make_frame(0))
            raise error

    with pytest.raises(type(error)):
        await segment_and_end()
    await settle()
    assert service.num_ended(reason) == 1
    assert [event["event"] for event in logs] == ["stream began", "stream ended"]
    assert logs[-1] == {
        "event": "stream ended",
        "log_level": "info",
        "session_id": "a",
        "model": MODEL,
        "epoch": 2,
        "reason": reason,
        "num_label_maps": 1,
    }
    assert service.holds("a") is (reason != "client_closed")


async def test_models_are_those_of_the_engine(service: Service) -> None:
    assert service.segmenter.models == service.engine.models
    assert service.segmenter.default_model == MODEL
