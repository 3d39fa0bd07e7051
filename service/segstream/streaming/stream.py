"""A stream: the time for which a client is attached to a session."""

import asyncio
from dataclasses import dataclass, field

from segstream.media.temporal_consistency import View, running_mean
from segstream.streaming.frame_trace import StreamTrace
from segstream.streaming.messages import SessionConfig, SessionEndReason
from segstream.streaming.scene_cut import SceneCutGuard


@dataclass(slots=True, eq=False)
class Stream:
    """What the client asked for, what lasts as long, and why the stream ends once it is asked to.

    ``first_index`` is that of its first new frame: those below were memorised before it.
    ``consistency``: the running mean of its label maps, None where none were compared.
    """

    config: SessionConfig
    trace: StreamTrace
    first_index: int
    guard: SceneCutGuard | None = None
    last_view: View | None = None
    consistency: float | None = None
    end_reason: SessionEndReason = SessionEndReason.CLIENT_CLOSED
    is_ending: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: "asyncio.Task[None] | None" = None

    def end(self, reason: SessionEndReason) -> None:
        """Ask the stream to end; the first reason counts."""
        if not self.is_ending.is_set():
            self.end_reason = reason
            self.is_ending.set()

    @property
    def is_cut_off(self) -> bool:
        """Whether it may answer nothing more, because the session is no longer its own."""
        return self.is_ending.is_set() and self.end_reason in (
            SessionEndReason.REPLACED,
            SessionEndReason.CLOSED,
        )

    def see(self, view: View) -> tuple[View, View] | None:
        """The view of the frame before, and this one; None where there was none."""
        before, self.last_view = self.last_view, view
        return None if before is None else (before, view)

    def compared(self, consistency: float) -> None:
        """Two of its label maps that follow each other were compared."""
        self.consistency = running_mean(self.consistency, consistency)
