"""Streams that begin and end while something else happens: nothing is left or mixed up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
from structlog.typing import EventDict

from segstream.errors import NotFoundError
from segstream.streaming import Session, SessionConfig, SessionEndReason, Skipped
from segstream.wire import FramePolicy
from tests.unit.streaming.fakes import FakeSpillStore, Service, make_frame, settle

NAME = "drive"


class Held:
    """A stream in a task of its own, which ends when told to."""

    def __init__(self, opening: AbstractAsyncContextManager[Session]) -> None:
        self._may_end = asyncio.Event()
        self.is_open = asyncio.Event()
        self.task = asyncio.create_task(self._run(opening))

    async def _run(self, opening: AbstractAsyncContextManager[Session]) -> None:
        async with opening as self.session:
            self.is_open.set()
            await self._may_end.wait()

    async def end(self, reason: SessionEndReason) -> None:
        self.session.stream.end(reason)
        self._may_end.set()
        await settle()


async def hold(service: Service, session_id: str = NAME, num_frames: int = 1) -> Held:
    held = Held(service.open(SessionConfig(session_id=session_id)))
    await held.is_open.wait()
    for index in range(num_frames):
        await held.session.segment(make_frame(index))
    return held


@pytest.fixture
async def store() -> AsyncIterator[FakeSpillStore]:
    store = FakeSpillStore()
    yield store
    store.gate.set()
    await settle()


@pytest.mark.parametrize("reason", [SessionEndReason.CLIENT_CLOSED, SessionEndReason.SHUTDOWN])
async def test_who_is_cancelled_while_leaving_leaves_all_the_same(
    store: FakeSpillStore, reason: SessionEndReason
) -> None:
    service = Service(spill_store=store)
    async with service.open(SessionConfig(session_id=NAME)) as session:
        await session.segment(make_frame(0))
        store.gate.clear()
        session.stream.end(reason)
        leaving = asyncio.create_task(service.segmenter.leave(session, session.stream))
        await settle()
        leaving.cancel()
        await settle()
        assert leaving.cancelled()
        store.gate.set()
    assert service.spill_tier.num_leases == 0
    assert service.store.pools == ()
    assert (NAME in store.snapshots) is (reason is SessionEndReason.SHUTDOWN)
    assert (NAME in store.released) is (reason is SessionEndReason.SHUTDOWN)


async def test_who_is_cancelled_while_opening_gives_the_session_up() -> None:
    class Endless(FakeSpillStore):
        async def load(self, session_id: str) -> list[bytes] | None:
            await asyncio.Event().wait()
            return None

    service = Service(spill_store=Endless())
    opening = Held(service.open(SessionConfig(session_id=NAME, resume_from=3)))
    await settle()
    assert service.spill_tier.num_leases == 1
    opening.task.cancel()
    await settle()
    assert opening.task.cancelled()
    assert service.spill_tier.num_leases == 0
    assert service.segmenter.num_streams == 0


async def test_what_became_of_an_old_session_is_not_done_to_the_new_one_of_its_name(
    store: FakeSpillStore,
) -> None:
    service = Service(spill_store=store, spill_after_seconds=1e-6, session_ttl_seconds=1e-6)
    first, other = await hold(service, "first"), await hold(service)
    await other.end(SessionEndReason.IDLE)
    store.gate.clear()
    tidying = asyncio.create_task(service.segmenter.sessions.tidy())
    await settle()
    renewed = Held(service.open(SessionConfig(session_id=NAME)))
    store.gate.set()
    await renewed.is_open.wait()
    await tidying
    assert service.holds(NAME)
    for held in (first, renewed):
        await held.end(SessionEndReason.CLIENT_CLOSED)
    await settle()
    assert not service.holds(NAME)


async def test_a_session_is_closed_even_if_its_stream_was_ending_for_another_reason(
    store: FakeSpillStore,
) -> None:
    service = Service(spill_store=store)
    held = await hold(service)
    service.engine.gate.clear()
    frame = asyncio.create_task(held.session.segment(make_frame(1)))
    await service.engine.entered.acquire()
    await settle()
    await held.end(SessionEndReason.IDLE)
    closing = asyncio.create_task(service.segmenter.sessions.close(NAME))
    await settle()
    service.engine.gate.set()
    await closing
    await frame
    with pytest.raises(NotFoundError):
        service.segmenter.sessions.status(NAME)
    assert service.store.pools == ()


async def test_a_stream_that_was_opening_as_the_shutdown_began_is_told_of_it(
    store: FakeSpillStore,
) -> None:
    service = Service(spill_store=store)
    store.gate.clear()
    opening = Held(service.open(SessionConfig(session_id=NAME)))
    await settle()
    draining = asyncio.create_task(service.segmenter.drain(5))
    await settle()
    store.gate.set()
    await opening.is_open.wait()
    assert opening.session.stream.is_ending.is_set()
    assert opening.session.stream.end_reason is SessionEndReason.SHUTDOWN
    await opening.end(SessionEndReason.SHUTDOWN)
    await draining


async def test_a_store_that_hangs_does_not_hold_the_shutdown_up(
    store: FakeSpillStore, logs: list[EventDict]
) -> None:
    service = Service(spill_store=store)
    held = await hold(service)
    await held.end(SessionEndReason.IDLE)
    store.gate.clear()
    async with asyncio.timeout(5):
        await service.segmenter.drain(0.01)
    assert "drain deadline passed" in [event["event"] for event in logs]


async def test_sessions_parked_as_the_shutdown_waits_are_handed_over_too(
    store: FakeSpillStore,
) -> None:
    service = Service(spill_store=store)
    held = await hold(service)
    service.engine.gate.clear()
    frame = asyncio.create_task(held.session.segment(make_frame(1)))
    await settle()
    await held.end(SessionEndReason.IDLE)
    draining = asyncio.create_task(service.segmenter.drain(5))
    await settle()
    service.engine.gate.set()
    await asyncio.gather(draining, frame)
    assert store.released == [NAME]
    assert NAME in store.snapshots


async def test_a_skipped_frame_whose_answer_was_lost_is_answered_as_skipped_again(
    service: Service,
) -> None:
    config = SessionConfig(session_id=NAME, frame_policy=FramePolicy.LATEST)
    async with service.open(config) as session:
        work = session.begin(make_frame(0))
        await session.advance(work, is_superseded=True)
        await session.segment(make_frame(1))
        session.stream.end(SessionEndReason.IDLE)
    again = SessionConfig(session_id=NAME, frame_policy=FramePolicy.LATEST, resume_from=0)
    async with service.open(again) as session:
        skipped = await session.segment(make_frame(0))
        assert isinstance(skipped.outcome, Skipped)
        assert skipped.is_duplicate
