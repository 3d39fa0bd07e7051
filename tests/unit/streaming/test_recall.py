"""What a replica makes of snapshots and frame logs, against the memory as it truly was."""

import asyncio
from collections.abc import Iterable

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from segstream.engine import ModelInfo
from segstream.label_sets import CAMVID
from segstream.memory.frame_log import START, LoggedFrame
from segstream.memory.snapshot import Snapshot
from segstream.memory.spill_tier import SpillTier
from segstream.streaming.logged_frames import whole_memory
from segstream.streaming.recall import Recalled, recall
from segstream.streaming.session_state import SessionState
from segstream.wire import SessionOrigin
from tests.unit.streaming.fakes import FakeSpillStore

LENGTH = 3
MODEL = ModelInfo("drive", CAMVID, LENGTH, 3, digest="abc")
NAME = "session"


def logged(index: int, previous: int | None = None) -> LoggedFrame:
    previous = (index - 1 if index else START) if previous is None else previous
    return LoggedFrame(index, previous, "jpeg", 6, 4, b"frame", MODEL.digest)


def snapshot_after(index: int) -> Snapshot:
    """Of a session that has memorised every frame up to this one."""
    num_pages = min(LENGTH, index + 1)
    keys, values = (torch.zeros(num_pages, 2, 2, 1) for _ in range(2))
    state = SessionState(next_frame_index=index + 1).encode()
    return Snapshot(MODEL.digest, 1, index + 1, state, keys, values)


async def recalled_from(
    snapshot: Snapshot | None, frames: Iterable[LoggedFrame], resume_from: int
) -> Recalled:
    redis = FakeSpillStore()
    if snapshot is not None:
        redis.snapshots[NAME] = snapshot.encode()
    redis.logged[NAME] = [frame.encode() for frame in frames]
    tier = SpillTier(FakeSpillStore(), redis, owner="me", on_move=lambda *_: None)
    return await recall(tier, await tier.claim(NAME), MODEL, resume_from)


def pages_of(recalled: Recalled, snapshot: Snapshot | None) -> list[int]:
    """Indices of the frames in the memory that the session will go on with."""
    if recalled.snapshot is None:
        return [frame.index for frame in recalled.frames]
    assert snapshot is not None
    newest = snapshot.next_frame_index
    pages = [*range(newest - snapshot.num_pages, newest)]
    return [*pages, *(frame.index for frame in recalled.later_frames)][-LENGTH:]


@given(
    num_frames=st.integers(1, 12),
    dropped=st.sets(st.integers(0, 11)),
    snapshot_index=st.none() | st.integers(0, 11),
    num_unanswered=st.integers(0, 3),
    num_after=st.integers(1, 4),
)
@settings(max_examples=300, deadline=None)
def test_what_is_recalled_is_the_memory_as_it_was_or_none(
    num_frames: int,
    dropped: set[int],
    snapshot_index: int | None,
    num_unanswered: int,
    num_after: int,
) -> None:
    """Some entries never reached the log; a second hand-off has only what was logged after."""
    log = [logged(index) for index in range(num_frames) if index not in dropped]
    snapshot = None
    if snapshot_index is not None and snapshot_index < num_frames:
        snapshot = snapshot_after(snapshot_index)
    resume_from = max(0, num_frames - num_unanswered)
    recalled = asyncio.run(recalled_from(snapshot, log, resume_from))
    if recalled.origin is SessionOrigin.NEW:
        assert (recalled.snapshot, recalled.frames, recalled.num_pages) == (None, (), 0)
        return
    pages = pages_of(recalled, snapshot)
    newest = recalled.last_index
    assert pages == [*range(max(0, newest + 1 - LENGTH), newest + 1)]
    assert len(pages) == recalled.num_pages
    at_hand = list(recalled.frames)
    after = [logged(newest + 1 + i) for i in range(num_after)]
    rebuilt = whole_memory([*at_hand, *after], LENGTH)
    if rebuilt is not None:
        last = newest + num_after
        assert [frame.index for frame in rebuilt] == [*range(max(0, last + 1 - LENGTH), last + 1)]


async def test_the_newest_page_is_known_where_no_frame_is_at_hand() -> None:
    recalled = await recalled_from(snapshot_after(7), [], 8)
    assert (recalled.origin, recalled.last_index, recalled.frames) == ("restored", 7, ())


async def test_a_log_that_ends_before_the_snapshot_does_is_no_part_of_its_memory() -> None:
    recalled = await recalled_from(snapshot_after(7), map(logged, range(2, 6)), 8)
    assert (recalled.last_index, recalled.frames) == (7, ())


async def test_frames_memorised_anew_after_a_hand_off_stand_for_those_before() -> None:
    log = [logged(index) for index in (2, 3, 4, 5, 4, 5, 6)]
    recalled = await recalled_from(None, log, 7)
    assert recalled.origin is SessionOrigin.REBUILT
    assert [frame.index for frame in recalled.frames] == [4, 5, 6]


@pytest.mark.parametrize("state", [b"spoilt", zstandard.compress(b'{"a_later_field": 1}')])
async def test_the_state_of_another_version_is_refused_and_the_memory_rebuilt(
    state: bytes,
) -> None:
    whole = snapshot_after(5)
    other = Snapshot(whole.model_digest, 1, 6, state, whole.keys, whole.values)
    recalled = await recalled_from(other, map(logged, range(6)), 6)
    assert recalled.origin is SessionOrigin.REBUILT
    assert [frame.index for frame in recalled.frames] == [3, 4, 5]
