"""What a queue of jobs does, whoever keeps it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

Work = Callable[[str], Awaitable[bool]]
"""Works on the clip of this id; False: it is to be given to a worker again."""


class JobQueue(Protocol):
    """Gives every clip to a worker, and again if that one dies; sometimes to two.

    Who may store what is therefore not the queue's affair: chunks and outcomes are created once.
    """

    async def put(self, clip_ids: Sequence[str]) -> None:
        """Add clips; those that are queued or worked on already stay as they are."""

    async def run(self, work: Work) -> None:
        """Do the work of the queue until cancelled; work begun is brought to its end first."""

    async def close(self) -> None:
        """Let go of files and connections."""
