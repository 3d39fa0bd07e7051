"""What a replica finds of a session that it did not hold, and how it goes on from there."""

import asyncio
from dataclasses import dataclass, field

import structlog

from segstream.engine import ModelInfo
from segstream.memory.checksummed import RecordError
from segstream.memory.frame_log import START, LoggedFrame
from segstream.memory.lease import Lease
from segstream.memory.snapshot import Snapshot
from segstream.memory.spill_tier import SpillTier
from segstream.streaming.logged_frames import frames_after, whole_memory, without_repeats
from segstream.streaming.session_state import SessionState
from segstream.wire import SessionOrigin

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Recalled:
    """Where to go on: from ``snapshot`` and then ``later_frames``, or from ``frames`` alone.

    ``frames`` are the last ones of the memory as far as they are at hand, those of the snapshot
    among them; ``last_index`` is that of the newest page, START where there is none.
    """

    origin: SessionOrigin = SessionOrigin.NEW
    state: SessionState = field(default_factory=SessionState)
    snapshot: Snapshot | None = None
    later_frames: tuple[LoggedFrame, ...] = ()
    frames: tuple[LoggedFrame, ...] = ()
    num_pages: int = 0
    last_index: int = START


async def recall(
    spill_tier: SpillTier, lease: Lease, model: ModelInfo, resume_from: int
) -> Recalled:
    """The newest state that a client can go on from which lacks the answers from ``resume_from``.

    A memory that cannot be made whole is none: the session then begins anew, and its client, which
    is told so, may send the last frames again.
    """
    snapshot = await spill_tier.restore(lease, model_digest=model.digest)
    logged = await spill_tier.logged_frames(lease, model_digest=model.digest)
    frames = [frame for frame in without_repeats(logged) if frame.index < resume_from]
    if snapshot is not None:
        recalled = await asyncio.to_thread(
            _from_snapshot, snapshot, frames, model.memory_length, resume_from
        )
        if recalled is not None:
            return recalled
    memory = whole_memory(frames, model.memory_length)
    if memory is None:
        return Recalled()
    return Recalled(
        SessionOrigin.REBUILT,
        SessionState(next_frame_index=memory[-1].index + 1),
        frames=tuple(memory),
        num_pages=len(memory),
        last_index=memory[-1].index,
    )


def _from_snapshot(
    snapshot: Snapshot, frames: list[LoggedFrame], memory_length: int, resume_from: int
) -> Recalled | None:
    try:
        state = SessionState.decode(snapshot.state)
    except RecordError as error:
        _log.warning("stored memory refused", reason=str(error))
        return None
    last_index = snapshot.next_frame_index - 1
    is_ahead = state.next_frame_index > resume_from
    if is_ahead and not state.recent_results().covers(resume_from):
        return None
    later = frames_after(frames, last_index)
    if later is None or len(later) >= memory_length:
        return None
    next_frame_index = later[-1].index + 1 if later else state.next_frame_index
    at_hand = [frame for frame in frames if frame.index <= last_index]
    if at_hand and at_hand[-1].index < last_index:
        at_hand = []  # the log lacks frames that the snapshot holds
    return Recalled(
        SessionOrigin.RESTORED,
        state.model_copy(update={"next_frame_index": next_frame_index}),
        snapshot,
        tuple(later),
        tuple(whole_memory(at_hand + later, memory_length) or later),
        min(memory_length, snapshot.num_pages + len(later)),
        later[-1].index if later else last_index,
    )
