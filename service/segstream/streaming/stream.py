"""A stream: the time for which a client is attached to a session."""

import asyncio
from dataclasses import dataclass, field

from segstream.streaming.messages import SessionConfig, SessionEndReason


@dataclass(slots=True, eq=False)
class Stream:
    """What the client asked for, and why the stream ends once it is asked to."""

    config: SessionConfig
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
