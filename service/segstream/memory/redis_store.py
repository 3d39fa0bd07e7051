"""Spilled memory in Redis (or Valkey), which replicas share: snapshots, frame logs, leases."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio
import redis.exceptions

from segstream.errors import InvalidInputError
from segstream.memory.redis_keys import (
    epoch_key,
    frames_key,
    incoming_key,
    lease_key,
    snapshot_key,
)
from segstream.memory.spill_store import Claim, StaleEpochError, StoreUnavailableError

# An epoch must outlive whatever a replica may still hold of its session.
_EPOCH_TTL_MS = 7 * 24 * 3600 * 1000

# Epochs are microseconds since 1970 or higher: they rise even over a Redis that lost its data.
_CLAIM = """
local before = tonumber(redis.call('GET', KEYS[1]) or '0')
local time = redis.call('TIME')
local epoch = math.max(before + 1, time[1] * 1000000 + time[2])
local holder = redis.call('GET', KEYS[2])
local wait = 0
if holder and holder ~= ARGV[1] then wait = redis.call('PTTL', KEYS[2]) end
redis.call('SET', KEYS[1], string.format('%.0f', epoch), 'PX', ARGV[3])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return {epoch, before, wait}
"""

# An older epoch, or none, is what is left of a Redis that lost its data: the holder goes on.
_IS_STALE = """
local found = tonumber(redis.call('GET', KEYS[1]) or '0')
local mine = tonumber(ARGV[1])
if found > mine then return 0 end
if found < mine then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
"""
_RENEW = f"{_IS_STALE} redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4]) return 1"
_RELEASE = f"{_IS_STALE} redis.call('DEL', KEYS[2]) return 1"
_APPEND = f"""{_IS_STALE}
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('LTRIM', KEYS[2], -tonumber(ARGV[4]), -1)
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 1
"""
_COMMIT = f"""{_IS_STALE}
redis.call('RENAME', KEYS[2], KEYS[3])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return 1
"""
_FORGET = f"{_IS_STALE} redis.call('DEL', KEYS[2], KEYS[3], KEYS[4]) return 1"


class RedisStore:
    """See ``SpillStore``. ``ttl_seconds``: how long an untouched session is kept.

    ``operation_seconds`` bounds each round trip. Raises InvalidInputError for a URL that is none.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        lease_seconds: float,
        ttl_seconds: float,
        operation_seconds: float = 0.25,
    ) -> None:
        options: dict[str, Any] = {} if password is None else {"password": password}
        try:
            self._client: Any = redis.asyncio.Redis.from_url(
                url,
                **options,
                socket_timeout=operation_seconds,
                socket_connect_timeout=operation_seconds,
                retry=None,
            )
        except ValueError as error:
            raise InvalidInputError(
                f"redis_url cannot be used: {error}", field="redis_url"
            ) from error
        self._lease_ms = round(lease_seconds * 1000)
        self._ttl_ms = round(ttl_seconds * 1000)
        self._claim = self._client.register_script(_CLAIM)
        self._renew = self._client.register_script(_RENEW)
        self._release = self._client.register_script(_RELEASE)
        self._append = self._client.register_script(_APPEND)
        self._commit = self._client.register_script(_COMMIT)
        self._forget = self._client.register_script(_FORGET)

    async def claim(self, session_id: str, owner: str) -> Claim:
        async with self._troubles():
            epoch, previous, wait_ms = await self._claim(
                [epoch_key(session_id), lease_key(session_id)],
                [owner, self._lease_ms, _EPOCH_TTL_MS],
            )
        return Claim(int(epoch), int(previous), max(0, wait_ms) / 1000)

    async def renew(self, owner: str, epochs: Mapping[str, int]) -> set[str]:
        async with self._troubles(), self._client.pipeline(transaction=False) as pipeline:
            for session_id, epoch in epochs.items():
                await self._renew(
                    [epoch_key(session_id), lease_key(session_id)],
                    [epoch, _EPOCH_TTL_MS, owner, self._lease_ms],
                    client=pipeline,
                )
            renewed = await pipeline.execute()
        return {id_ for id_, is_ours in zip(epochs, renewed, strict=True) if not is_ours}

    async def release(self, session_id: str, epoch: int) -> None:
        await self._write(
            self._release, session_id, [epoch_key(session_id), lease_key(session_id)], epoch
        )

    async def save(self, session_id: str, epoch: int, parts: Sequence[bytes]) -> None:
        incoming = incoming_key(session_id, epoch)
        keys = [epoch_key(session_id), incoming, snapshot_key(session_id)]
        async with self._troubles():
            await self._client.delete(incoming)
            for part in parts:  # one by one, so that the event loop gets its turn between them
                await self._push_incoming(incoming, part)
            try:
                await self._write(self._commit, session_id, keys, epoch, self._ttl_ms)
            except StaleEpochError:
                await self._client.delete(incoming)
                raise

    async def _push_incoming(self, key: str, part: bytes) -> None:
        # In one transaction: a writer that dies here must leave nothing that lives for ever.
        async with self._client.pipeline(transaction=True) as pipeline:
            pipeline.rpush(key, part)
            pipeline.pexpire(key, self._ttl_ms)
            await pipeline.execute()

    async def load(self, session_id: str) -> list[bytes] | None:
        key = snapshot_key(session_id)
        parts: list[bytes] = []
        async with self._troubles():
            while (part := await self._client.lindex(key, len(parts))) is not None:
                parts.append(part)
        return parts or None

    async def append_frame(
        self, session_id: str, epoch: int, entry: bytes, max_frames: int
    ) -> None:
        keys = [epoch_key(session_id), frames_key(session_id)]
        await self._write(self._append, session_id, keys, epoch, entry, max_frames, self._ttl_ms)

    async def frames(self, session_id: str) -> list[bytes]:
        async with self._troubles():
            entries: list[bytes] = await self._client.lrange(frames_key(session_id), 0, -1)
        return entries

    async def forget(self, session_id: str, epoch: int) -> None:
        names = (epoch_key, lease_key, frames_key, snapshot_key)
        await self._write(self._forget, session_id, [name(session_id) for name in names], epoch)

    async def close(self) -> None:
        await self._client.aclose()

    async def _write(
        self, script: Any, session_id: str, keys: Sequence[str], epoch: int, *args: Any
    ) -> None:
        async with self._troubles():
            is_ours = await script(keys, [epoch, _EPOCH_TTL_MS, *args])
        if not is_ours:
            raise StaleEpochError(f"session {session_id} has a newer owner")

    @asynccontextmanager
    async def _troubles(self) -> AsyncIterator[None]:
        """Turns whatever Redis may come up with into StoreUnavailableError."""
        try:
            yield
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            if isinstance(error, redis.exceptions.ConnectionError):
                # Those at rest are as dead as this one, and would fail one by one.
                await self._client.connection_pool.disconnect(inuse_connections=False)
            raise StoreUnavailableError(f"{type(error).__name__}: {error}") from error
