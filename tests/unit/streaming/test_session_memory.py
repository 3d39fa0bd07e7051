"""The memory of a session on its way between the tiers: what it was, or said to be lost."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segstream.errors import EngineError
from segstream.media.images import ImageEncoding, encode_image
from segstream.streaming import (
    Frame,
    FrameResult,
    MemoryTier,
    Session,
    SessionConfig,
    SessionEndReason,
)
from segstream.streaming.session_state import SessionState
from tests.unit.streaming.fakes import FakeSpillStore, Service, make_frame

NAME = "drive"


async def park(service: Service, num_frames: int) -> None:
    """Frames of a session whose service is then shut down in order."""
    async with service.open(SessionConfig(session_id=NAME)) as session:
        for index in range(num_frames):
            await session.segment(make_frame(index))
        session.stream.end(SessionEndReason.IDLE)
    await service.segmenter.drain(10)


def resumed(next_frame_index: int) -> SessionConfig:
    return SessionConfig(session_id=NAME, resume_from=next_frame_index)


def last_memory(service: Service) -> tuple[int, ...]:
    return service.engine.steps[-1].memory


async def test_memory_goes_on_in_another_process() -> None:
    store = FakeSpillStore()
    await park(Service(spill_store=store), 5)
    service = Service(spill_store=store)
    async with service.open(resumed(5)) as session:
        await session.segment(make_frame(5))
    assert last_memory(service) == (3, 4)


async def test_a_rebuild_never_takes_the_frames_after_a_restore_for_all_there_were() -> None:
    """Frame 5 is not the first of the session, though the first that this replica saw."""
    store = FakeSpillStore()
    await park(Service(spill_store=store), 5)
    service = Service(spill_store=store)
    async with service.open(resumed(5)) as session:
        await session.segment(make_frame(5))
        await session.memory.spill()
        store.snapshots.clear()
        lost = await session.segment(make_frame(6))
        after = await session.segment(make_frame(7))
    assert service.engine.steps[-2].memory == ()
    assert (lost.is_memory_reset, lost.num_memory_frames) == (True, 0)
    assert not after.is_memory_reset
    assert last_memory(service) == (6,)
    assert service.sample("memory_moves_total", kind="lose", tier="frames") == 1


async def test_a_memory_restored_without_its_frames_may_be_spilled_before_the_next_frame() -> None:
    store = FakeSpillStore()
    await park(Service(spill_store=store), 5)
    service = Service(spill_store=store)
    service.engine.failures[5] = EngineError("the forward failed")
    async with service.open(resumed(5)) as session:
        await session.segment(make_frame(5))
        await session.memory.spill()
        assert session.memory.tier is MemoryTier.SPILL
        await session.segment(make_frame(6))
    assert last_memory(service) == (3, 4)


async def test_a_snapshot_of_an_earlier_spill_is_not_taken_for_the_last() -> None:
    """The directory has an old one, and Redis, which had the newest, was wiped."""
    directory, redis = FakeSpillStore(), FakeSpillStore()
    service = Service(spill_store=directory, redis=redis)
    async with service.open(SessionConfig(session_id=NAME)) as session:
        await segment(session, 0, 1, 2)
        await session.memory.spill()
        directory.snapshots = dict(redis.snapshots)
        await segment(session, 3, 4, 5)
        await session.memory.spill()
        redis.snapshots.clear()
        await segment(session, 6)
    assert last_memory(service) == (4, 5)


async def test_a_cut_frame_that_fails_leaves_the_memory_as_it_was() -> None:
    service = Service()
    service.engine.failures[102] = EngineError("the forward failed")
    async with service.open(SessionConfig(has_scene_cut_guard=True)) as session:
        await session.segment(pattern(0))
        await session.segment(pattern(1))
        failed = await session.segment(pattern(2, turned=True))
        assert isinstance(failed.outcome, EngineError)
        after = await session.segment(pattern(3))
    assert not after.is_memory_reset
    assert after.num_memory_frames == 2


async def test_a_cut_forgets_what_was_before_it() -> None:
    service = Service()
    async with service.open(SessionConfig(has_scene_cut_guard=True)) as session:
        await session.segment(pattern(0))
        await session.segment(pattern(1))
        cut = await session.segment(pattern(2, turned=True))
        assert (cut.is_memory_reset, cut.num_memory_frames) == (True, 0)
        assert service.pool.num_used == 1
        assert len(session.memory.page_ages()) == 1
        after = await session.segment(pattern(3, turned=True))
    assert (after.is_memory_reset, after.num_memory_frames) == (False, 1)


async def test_a_cut_saves_bringing_the_memory_back() -> None:
    service = Service()
    async with service.open(SessionConfig(has_scene_cut_guard=True)) as session:
        await session.segment(pattern(0))
        await session.memory.spill()
        cut = await session.segment(pattern(1, turned=True))
        await session.segment(pattern(2, turned=True))
    assert cut.is_memory_reset
    assert service.sample("memory_moves_total", kind="restore", tier="fake") == 0
    assert len(last_memory(service)) == 1


async def test_answers_are_packed_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be megabytes."""
    packed_by: list[threading.Thread] = []
    encode = SessionState.encode

    def watched(state: SessionState) -> bytes:
        packed_by.append(threading.current_thread())
        return encode(state)

    monkeypatch.setattr(SessionState, "encode", watched)
    with ThreadPoolExecutor(1) as codecs:
        service = Service(codecs=codecs)
        async with service.open() as session:
            await session.segment(make_frame(0))
            await session.memory.spill()
    assert packed_by
    assert threading.main_thread() not in packed_by


async def test_bytes_are_shown_by_tier(service: Service) -> None:
    async with service.open(SessionConfig(session_id=NAME)) as session:
        await segment(session, 0, 1)
        page_bytes = service.pool.page_bytes
        assert session.status().device_bytes == 2 * page_bytes
        assert service.segmenter.sessions.num_bytes_on_tier(MemoryTier.DEVICE) == 2 * page_bytes
        await session.memory.spill()
        status = session.status()
        assert (status.device_bytes, status.spill_bytes) == (0, 2 * page_bytes)
        assert service.segmenter.sessions.num_bytes_on_tier(MemoryTier.DEVICE) == 0
        assert service.segmenter.sessions.num_bytes_on_tier(MemoryTier.SPILL) == 2 * page_bytes
        assert (
            service.segmenter.sessions.num_bytes_on_tier(MemoryTier.FRAMES)
            == status.frame_bytes
            > 0
        )


async def test_a_session_brought_here_shows_what_it_has_in_the_spill_tier() -> None:
    store = FakeSpillStore()
    await park(Service(spill_store=store), 5)
    service = Service(spill_store=store)
    async with service.open(resumed(5)) as session:
        status = session.status()
    assert status.tier is MemoryTier.SPILL
    assert status.spill_bytes > 0
    assert len(status.page_age_seconds) == 2


async def segment(session: Session, *indices: int) -> list[FrameResult]:
    return [await session.segment(make_frame(index)) for index in indices]


def pattern(index: int, *, turned: bool = False) -> Frame:
    """A scene, or its mirror image. The first pixel, by which the engine knows it, is its own."""
    ramp = np.linspace(0, 200, 64, dtype=np.uint8)[None, :, None].repeat(48, 0).repeat(3, 2)
    image = np.ascontiguousarray(ramp[:, ::-1] if turned else ramp)
    image[0, 0] = 100 + index
    return Frame(index, None, encode_image(image, ImageEncoding.PNG))
