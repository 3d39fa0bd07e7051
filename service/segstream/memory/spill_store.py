"""What a place for spilled memory must be able to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class StaleEpochError(Exception):
    """The session has a newer owner: this write was refused."""


class StoreUnavailableError(Exception):
    """The store could not do it now, for whatever reason."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The session is the claimer's under ``epoch``; the owner before had ``previous_epoch`` or 0.

    That owner may still answer for ``wait_seconds``; until then the new one must not.
    """

    epoch: int
    previous_epoch: int = 0
    wait_seconds: float = 0.0


class SpillStore(Protocol):
    """Keeps snapshots and frame logs of sessions, and says whose they are.

    Writes carry the writer's epoch. Every method may raise StoreUnavailableError, every write
    StaleEpochError.
    """

    name: str

    async def claim(self, session_id: str, owner: str) -> Claim:
        """Make the session ``owner``'s, whoever had it, under an epoch higher than any before."""

    async def renew(self, owner: str, epochs: Mapping[str, int]) -> set[str]:
        """Prolong leases, by session id; returns those that are lost."""

    async def release(self, session_id: str, epoch: int) -> None:
        """Give the lease up; what is stored stays."""

    async def save(self, session_id: str, epoch: int, parts: Sequence[bytes]) -> None:
        """Store a snapshot in place of the one before, all of it or nothing."""

    async def load(self, session_id: str) -> list[bytes] | None:
        """The snapshot's parts, however they were cut; None where there is none."""

    async def append_frame(
        self, session_id: str, epoch: int, entry: bytes, max_frames: int
    ) -> None:
        """Append to the frame log, of which the last ``max_frames`` entries are kept."""

    async def frames(self, session_id: str) -> list[bytes]:
        """The frame log, oldest entry first."""

    async def forget(self, session_id: str, epoch: int) -> None:
        """Delete everything of the session but its epoch, and release the lease."""

    async def close(self) -> None:
        """Let go of connections and files."""
