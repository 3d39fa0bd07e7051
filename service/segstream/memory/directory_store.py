"""Spilled memory in a directory of this machine."""

import asyncio
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from segstream.errors import InvalidInputError
from segstream.memory.spill_store import Claim, StoreUnavailableError

_SUFFIX = ".snapshot"
_UNFINISHED_SUFFIX = ".tmp"


class DirectoryStore:
    """One file per session, written whole or not at all; the oldest go beyond ``max_bytes``.

    One process at a time has the directory, so nobody's epoch is ever stale. Without a path it is
    a temporary directory. Raises InvalidInputError for a directory that cannot be had.
    """

    name = "directory"

    def __init__(self, path: Path | None, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._last_epoch = 0
        self._writing = threading.Lock()
        self._temporary = tempfile.TemporaryDirectory(prefix="segstream-") if path is None else None
        self._path = Path(self._temporary.name) if self._temporary is not None else path
        assert self._path is not None
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(self._path / ".lock")
            for unfinished in self._path.glob(f"*{_UNFINISHED_SUFFIX}"):
                unfinished.unlink()
        except OSError as error:
            raise InvalidInputError(
                f"spill_directory {self._path} cannot be used: {error.strerror}; it must be "
                "writable and no other service's",
                field="spill_directory",
            ) from error

    async def claim(self, session_id: str, owner: str) -> Claim:
        self._last_epoch = max(self._last_epoch + 1, time.time_ns() // 1000)
        return Claim(self._last_epoch)

    async def renew(self, owner: str, epochs: Mapping[str, int]) -> set[str]:
        return set()

    async def release(self, session_id: str, epoch: int) -> None:
        """There is nobody to release it to."""

    async def save(self, session_id: str, epoch: int, parts: Sequence[bytes]) -> None:
        await asyncio.to_thread(self._write, session_id, parts)

    async def load(self, session_id: str) -> list[bytes] | None:
        try:
            return [await asyncio.to_thread(self._file(session_id).read_bytes)]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailableError(f"cannot read a snapshot: {error.strerror}") from error

    async def append_frame(
        self, session_id: str, epoch: int, entry: bytes, max_frames: int
    ) -> None:
        """A log that dies with the process would help nobody."""

    async def frames(self, session_id: str) -> list[bytes]:
        return []

    async def forget(self, session_id: str, epoch: int) -> None:
        await asyncio.to_thread(self._forget, session_id)

    async def close(self) -> None:
        os.close(self._lock)
        if self._temporary is not None:
            await asyncio.to_thread(self._temporary.cleanup)

    def _file(self, session_id: str) -> Path:
        assert self._path is not None
        return self._path / f"{session_id}{_SUFFIX}"

    def _write(self, session_id: str, parts: Sequence[bytes]) -> None:
        target = self._file(session_id)
        temporary = target.with_suffix(_UNFINISHED_SUFFIX)
        size = sum(map(len, parts))
        try:
            if size > self._max_bytes:
                raise StoreUnavailableError(
                    f"a snapshot of {size} bytes exceeds max_spill_bytes {self._max_bytes}"
                )
            with self._writing:
                target.unlink(missing_ok=True)
                self._make_room(size)
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                    file.writelines(parts)
                temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreUnavailableError(f"cannot write a snapshot: {error.strerror}") from error

    def _forget(self, session_id: str) -> None:
        with self._writing:
            self._file(session_id).unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        assert self._path is not None
        stored = [(file.stat(), file) for file in self._path.glob(f"*{_SUFFIX}")]
        left = self._max_bytes - sum(stat.st_size for stat, _ in stored)
        for stat, file in sorted(stored, key=lambda item: item[0].st_mtime_ns):
            if size <= left:
                break
            file.unlink()
            left += stat.st_size


def _locked(path: Path) -> int:
    """A descriptor that has the file to itself. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
