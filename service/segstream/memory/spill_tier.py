"""The spill tier: where memories go that are not on the device, and whose each session is.

Redis, where there is one, can only help: what it cannot do now is done without it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog

from segstream.memory.checksummed import RecordError
from segstream.memory.circuit_breaker import CircuitBreaker
from segstream.memory.frame_log import LoggedFrame
from segstream.memory.lease import Lease
from segstream.memory.snapshot import Snapshot
from segstream.memory.spill_store import (
    SpillStore,
    StaleEpochError,
    StoreUnavailableError,
)

_R = TypeVar("_R")
_log = structlog.get_logger(__name__)

_OPERATION_SECONDS = 0.5
_BULK_SECONDS = 3.0
_FLUSH_SECONDS = 1.0
_MAX_QUEUED_BYTES = 64 * 2**20


class OnMove(Protocol):
    """Told of each spill, restore, refused record and dropped frame."""

    def __call__(self, kind: str, tier: str, seconds: float, num_bytes: int) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Append:
    lease: Lease
    frame: LoggedFrame
    max_frames: int


@dataclass(slots=True)
class _Backlog:
    """Frames on their way to the log; bounded, for a store that is slower than the frames."""

    queue: "asyncio.Queue[_Append]" = field(default_factory=asyncio.Queue)
    num_bytes: int = 0


class SpillTier:
    """Everything below a session's bank: snapshots, frame logs and leases.

    Without ``redis``, or while it is unavailable, snapshots go to ``directory`` and leases are this
    replica's own affair: unfenced. Belongs to one event loop.
    """

    def __init__(
        self,
        directory: SpillStore,
        redis: SpillStore | None = None,
        *,
        owner: str,
        lease_seconds: float = 1.0,
        on_move: OnMove,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self.on_lost: Callable[[str], None] = lambda _: None
        self._directory = directory
        self._redis = redis
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._on_move = on_move
        self._breaker = breaker or CircuitBreaker()
        self._leases: dict[str, Lease] = {}
        self._renewing = asyncio.Lock()
        self._backlog = _Backlog()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopping = False

    @property
    def is_degraded(self) -> bool:
        """Whether Redis is wanted but cannot be had."""
        return self._redis is not None and not self._breaker.is_closed

    @property
    def num_leases(self) -> int:
        """Sessions that are this replica's."""
        return len(self._leases)

    async def start(self) -> None:
        """Renew leases and write frame logs from now on."""
        self._tasks = [
            asyncio.create_task(self._keep_renewing()),
            asyncio.create_task(self._keep_logging()),
        ]

    async def stop(self) -> None:
        """Stop that, and let the stores go."""
        self._is_stopping = True  # a cancellation alone may get lost in the client of Redis
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for store in (self._redis, self._directory):
            if store is not None:
                await store.close()

    async def claim(self, session_id: str) -> Lease:
        """Make the session this replica's, whoever had it. Never fails: see ``Lease.is_fenced``."""
        asked_at = time.monotonic()
        claim = await self._ask_redis(lambda redis: redis.claim(session_id, self._owner))
        is_fenced = claim is not None
        if claim is None:
            claim = await self._directory.claim(session_id, self._owner)
        lease = Lease(session_id, claim, self._renew, is_fenced=is_fenced)
        if is_fenced:
            lease.confirmed(asked_at, self._lease_seconds)
        self._leases[session_id] = lease
        return lease

    async def release(self, lease: Lease) -> None:
        """Leave the session, and what is stored of it, to whoever claims it next."""
        await self._give_up(lease, lambda store: store.release(lease.session_id, lease.epoch))

    async def forget(self, lease: Lease) -> None:
        """The session is over: delete what is stored of it, and release it."""
        await self._give_up(lease, lambda store: store.forget(lease.session_id, lease.epoch))

    async def spill(self, lease: Lease, snapshot: Snapshot) -> str | None:
        """Store a snapshot; returns where, None if nowhere."""
        parts = await asyncio.to_thread(snapshot.encode)
        num_bytes = sum(map(len, parts))
        for store in (self._redis, self._directory):
            started = time.perf_counter()
            if store is None or lease.is_lost or not await self._save(store, lease, parts):
                continue
            self._on_move("spill", store.name, time.perf_counter() - started, num_bytes)
            return store.name
        if not lease.is_lost:
            self._on_move("fail", self._directory.name, 0.0, 0)
        return None

    async def restore(self, lease: Lease, *, model_digest: str) -> Snapshot | None:
        """The newest snapshot of the session that may be used, if there is one."""
        found = [
            snapshot
            for store in (self._redis, self._directory)
            if store is not None
            and (snapshot := await self._load(store, lease, model_digest)) is not None
        ]
        return max(
            found, key=lambda snapshot: (snapshot.epoch, snapshot.next_frame_index), default=None
        )

    async def logged_frames(self, lease: Lease, *, model_digest: str) -> list[LoggedFrame]:
        """The session's frame log as far as it may be used, oldest first."""
        entries = await self._ask_redis(
            lambda redis: redis.frames(lease.session_id), seconds=_BULK_SECONDS
        )
        decoded = await asyncio.to_thread(_decode_frames, entries or (), model_digest)
        for error in decoded:
            if isinstance(error, RecordError):
                self._refuse("redis", error)
        return [frame for frame in decoded if isinstance(frame, LoggedFrame)]

    def log_frame(self, lease: Lease, frame: LoggedFrame, max_frames: int) -> None:
        """Append to the frame log, behind the caller's back; dropped when the log falls behind."""
        if self._redis is None or lease.is_lost:
            return
        if not self._breaker.is_closed or self._backlog.num_bytes > _MAX_QUEUED_BYTES:
            self._on_move("drop_frame", "redis", 0.0, len(frame.data))
            return
        self._backlog.num_bytes += len(frame.data)
        self._backlog.queue.put_nowait(_Append(lease, frame, max_frames))

    async def flush(self) -> None:
        """Wait, not for ever, until the frames so far are logged."""
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._backlog.queue.join()
        except TimeoutError:
            _log.warning("frame log falls behind", num_frames=self._backlog.queue.qsize())

    async def _save(self, store: SpillStore, lease: Lease, parts: list[bytes]) -> bool:
        async def save(store: SpillStore) -> bool:
            await store.save(lease.session_id, lease.epoch, parts)
            return True

        try:
            if store is self._redis:
                return bool(await self._ask_redis(save, seconds=_BULK_SECONDS))
            return await save(store)
        except StaleEpochError:
            self._lose(lease)
        except StoreUnavailableError as error:
            _log.warning("cannot spill", tier=store.name, reason=str(error))
        return False

    async def _load(self, store: SpillStore, lease: Lease, model_digest: str) -> Snapshot | None:
        started = time.perf_counter()
        try:
            if store is self._redis:
                parts = await self._ask_redis(
                    lambda redis: redis.load(lease.session_id), seconds=_BULK_SECONDS
                )
            else:
                parts = await store.load(lease.session_id)
            if parts is None:
                return None
            snapshot = await asyncio.to_thread(Snapshot.decode, parts, model_digest=model_digest)
        except (RecordError, StoreUnavailableError) as error:
            self._refuse(store.name, error)
            return None
        if store is not self._redis and not lease.may_use(snapshot.epoch):
            return None
        num_bytes = sum(map(len, parts))
        self._on_move("restore", store.name, time.perf_counter() - started, num_bytes)
        return snapshot

    def _refuse(self, tier: str, error: RecordError | StoreUnavailableError) -> None:
        self._on_move("refuse", tier, 0.0, 0)
        _log.warning("stored memory refused", tier=tier, reason=str(error))

    async def _give_up(self, lease: Lease, do: Callable[[SpillStore], Awaitable[None]]) -> None:
        if self._leases.get(lease.session_id) is lease:
            del self._leases[lease.session_id]
        try:
            await self._ask_redis(do)
        except StaleEpochError:
            lease.lose()
        await do(self._directory)

    async def _ask_redis(
        self,
        ask: Callable[[SpillStore], Awaitable[_R]],
        *,
        seconds: float = _OPERATION_SECONDS,
    ) -> _R | None:
        """What Redis answers; None when it cannot be had. Raises StaleEpochError."""
        if self._redis is None or not self._breaker.allows():
            return None
        try:
            async with asyncio.timeout(seconds):
                answer = await ask(self._redis)
        except StaleEpochError:
            self._redis_answered()
            raise
        except (StoreUnavailableError, TimeoutError) as error:
            if self._breaker.failed():
                _log.warning("redis is unavailable: going on without", reason=str(error))
            self._on_move("fail", "redis", 0.0, 0)
            return None
        self._redis_answered()
        return answer

    def _redis_answered(self) -> None:
        if self._breaker.succeeded():
            _log.info("redis is back")

    async def _keep_renewing(self) -> None:
        while not self._is_stopping:
            await asyncio.sleep(self._lease_seconds / 4)
            try:
                await self._renew()
            except Exception:
                _log.exception("renewing leases failed")

    async def _renew(self) -> None:
        """Prolong all leases in one round trip; those that are lost say so to their holders."""
        if self._redis is None:
            return
        async with self._renewing:
            asked_at = time.monotonic()
            leases = {id_: lease for id_, lease in self._leases.items() if not lease.is_lost}
            epochs = {id_: lease.epoch for id_, lease in leases.items()}
            if not epochs:
                return
            lost = await self._ask_redis(lambda redis: redis.renew(self._owner, epochs))
            for session_id, lease in leases.items():
                if lost is None:
                    lease.unconfirmed()
                elif session_id in lost:
                    self._lose(lease)
                else:
                    lease.confirmed(asked_at, self._lease_seconds)

    def _lose(self, lease: Lease) -> None:
        if lease.is_lost:
            return
        lease.lose()
        if self._leases.get(lease.session_id) is lease:
            del self._leases[lease.session_id]
            self.on_lost(lease.session_id)

    async def _keep_logging(self) -> None:
        while not self._is_stopping:
            append = await self._backlog.queue.get()
            try:
                await self._log(append)
            except Exception:
                _log.exception("logging a frame failed")
            finally:
                self._backlog.num_bytes -= len(append.frame.data)
                self._backlog.queue.task_done()

    async def _log(self, append: _Append) -> None:
        lease, frame = append.lease, append.frame
        entry = await asyncio.to_thread(frame.encode)

        async def write(redis: SpillStore) -> bool:
            await redis.append_frame(lease.session_id, lease.epoch, entry, append.max_frames)
            return True

        try:
            if not await self._ask_redis(write):
                self._on_move("drop_frame", "redis", 0.0, len(entry))
        except StaleEpochError:
            self._lose(lease)


def _decode_frames(entries: Iterable[bytes], model_digest: str) -> list[LoggedFrame | RecordError]:
    decoded: list[LoggedFrame | RecordError] = []
    for entry in entries:
        try:
            decoded.append(LoggedFrame.decode(entry, model_digest=model_digest))
        except RecordError as error:
            decoded.append(error)
    return decoded
