"""The service: engine, sessions and wires under one roof, started and stopped in order."""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import structlog
import torch

from segstream import __version__
from segstream.api.addresses import is_loopback, join_address
from segstream.api.clips import make_clip_jobs
from segstream.api.grpc_doors import KeyInterceptor
from segstream.api.grpc_server import GrpcServer
from segstream.api.http_app import create_app
from segstream.api.http_server import HttpServer
from segstream.api.schemas import InfoSchema
from segstream.api.spilling import make_spill_tier
from segstream.build_info import BuildInfo
from segstream.doors.key_ring import KeyRing
from segstream.doors.tls import ServerTls
from segstream.engine import Engine
from segstream.engine.runtimes import runtime_of
from segstream.errors import InvalidInputError
from segstream.media.images import ImageLimits
from segstream.memory.page_storage import DeviceStorage, PageStorage
from segstream.memory.session_store import SessionStore
from segstream.settings import Settings
from segstream.streaming import MemoryTier, Resources, Segmenter, StreamLimits
from segstream.streaming.degradation import DegradationLadder
from segstream.telemetry.metrics import Metrics
from segstream.telemetry.tracing import Tracing, no_tracing, start_tracing

_log = structlog.get_logger(__name__)

# Each may hold a body of the largest size.
_MAX_UPLOADS = 16
_TIDY_PERIOD_SECONDS = 1.0
_KEYS_PERIOD_SECONDS = 1.0


class Service:
    """Serves ``engine`` as ``settings`` say; an async context manager.

    ``storage`` is where pages must lie for the engine; by default in the device's own memory.

    Entering it returns when both wires listen. Leaving it stops in order: refuse new sessions, let
    open streams answer what they took, hand their sessions over, close the wires, stop the engine.
    """

    def __init__(
        self, settings: Settings, engine: Engine, storage: PageStorage | None = None
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._codecs = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="codecs")
        self.metrics = Metrics()
        self._key_ring = KeyRing(settings.api_keys, self.metrics.quota_reached)
        self._image_limits = ImageLimits(
            max_bytes=settings.max_message_bytes, max_pixels=settings.max_image_pixels
        )
        self._tracing = _make_tracing(settings)
        self._spill_tier = make_spill_tier(settings, self.metrics)
        store = SessionStore(
            max_bytes=settings.max_memory_bytes,
            max_banks_per_pool=settings.max_sessions,
            storage=storage or DeviceStorage(getattr(torch, settings.page_dtype), settings.device),
            on_evict=partial(self.metrics.memory_moved, "evict", "device"),
        )
        resources = Resources(
            engine=engine,
            store=store,
            spill_tier=self._spill_tier,
            codecs=self._codecs,
            metrics=self.metrics,
            image_limits=self._image_limits,
            ladder=DegradationLadder(
                max(info.memory_length for info in engine.models.values()),
                settings.degrade_above_queue_seconds,
            ),
            replica_name=settings.replica_name,
            measures_consistency=settings.temporal_consistency == "on",
            tracing=self._tracing,
        )
        limits = StreamLimits(
            max_sessions=settings.max_sessions,
            max_pending_frames=settings.max_pending_frames,
            idle_seconds=settings.idle_seconds,
            spill_after_seconds=settings.spill_after_seconds,
            session_ttl_seconds=settings.session_ttl_seconds,
        )
        self._segmenter = Segmenter(resources, limits, next(iter(engine.models)))
        self._jobs = make_clip_jobs(settings, self._segmenter, resources)
        _add_gauges(self.metrics, store, self._segmenter)
        self._info = InfoSchema(
            **asdict(BuildInfo.here()),
            engine=settings.engine,
            runtime=runtime_of(next(iter(engine.models.values())).digest),
            device=settings.device,
            replica=settings.replica_name,
        )
        self.metrics.build_info(self._info.model_dump(exclude={"replica"}))
        self.metrics.gauge("clips_running", "Clips worked on here.", lambda: self._jobs.num_running)

    async def __aenter__(self) -> "Service":
        async with AsyncExitStack() as undo:
            undo.callback(_log.info, "stopped")
            undo.push_async_callback(asyncio.to_thread, self._tracing.close)
            undo.callback(self._codecs.shutdown)
            undo.push_async_callback(self._engine.stop)
            await self._spill_tier.start()
            undo.push_async_callback(self._spill_tier.stop)
            for work in (self._tidy, self._follow_keys):
                task = asyncio.create_task(work())
                undo.callback(task.cancel)
            await self._jobs.start()
            undo.push_async_callback(self._jobs.stop, self._settings.drain_seconds)
            self._build()
            undo.push_async_callback(self._shut_down)
            await self.grpc.start()
            await self.http.start()  # /readyz answers for both
            if self._settings.ready_file is not None:
                _write_ready_file(self._settings.ready_file, self.addresses)
            self._undo = undo.pop_all()
        _log.info("serving", models=list(self._engine.models), **self.addresses)
        _warn_if_exposed(self._settings, num_keys=self._key_ring.num_keys)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._undo.aclose()

    def _build(self) -> None:
        settings = self._settings
        tls = _tls(settings)
        self.grpc = GrpcServer(
            self._segmenter,
            host=settings.host,
            port=settings.port,
            max_sessions=settings.max_sessions,
            max_message_bytes=settings.max_message_bytes,
            tracing=self._tracing,
            door=KeyInterceptor(self._key_ring, self.metrics),
            tls=tls,
        )
        app = create_app(
            self._segmenter,
            self.metrics,
            self._image_limits,
            self._jobs,
            self._info,
            key_ring=self._key_ring,
            max_uploads=min(settings.max_sessions, _MAX_UPLOADS),
            max_clip_bytes=settings.max_clip_bytes,
            tracing=self._tracing,
            allowed_hosts=[*settings.allowed_hosts, settings.host],
            allowed_origins=settings.allowed_origins,
        )
        self.http = HttpServer(
            app,
            host=settings.host,
            port=settings.http_port,
            max_message_bytes=settings.max_message_bytes,
            tls=tls,
        )

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_PERIOD_SECONDS)
            try:
                await self._segmenter.sessions.tidy()
            except Exception:
                _log.exception("tidying failed")

    async def _follow_keys(self) -> None:
        """Whoever holds a key that is revoked is shown out."""
        while True:
            await asyncio.sleep(_KEYS_PERIOD_SECONDS)
            try:
                for account in await self._key_ring.refresh():
                    _log.info("API key revoked", key_id=account.key_id)
                    await self._segmenter.sessions.close_all(account)
            except Exception:
                _log.exception("following the API keys failed")

    async def _shut_down(self) -> None:
        _log.info("shutting down")
        if self._settings.ready_file is not None:
            with suppress(OSError):  # its folder may be gone; what follows must happen all the same
                self._settings.ready_file.unlink()
        await self.grpc.announce_shutdown()
        deadline_seconds = self._settings.drain_seconds
        await asyncio.gather(
            self._segmenter.drain(deadline_seconds), self._jobs.stop(deadline_seconds)
        )
        await asyncio.gather(self.grpc.stop(grace_seconds=1.0), self.http.stop())

    @property
    def addresses(self) -> dict[str, str]:
        """Where the wires listen."""
        scheme = "https" if self._settings.tls_cert else "http"
        return {
            "grpc": join_address(self.grpc.host, self.grpc.port),
            "http": f"{scheme}://{join_address(self.http.host, self.http.port)}",
        }


def _tls(settings: Settings) -> ServerTls | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return ServerTls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def _warn_if_exposed(settings: Settings, *, num_keys: int) -> None:
    """Tell of a service that is open wider than its operator may know."""
    if settings.api_keys is not None and not num_keys:
        _log.warning("no API key is in the file: nobody can come in", path=str(settings.api_keys))
    if is_loopback(settings.host):
        return
    if settings.api_keys is None and settings.tls_client_ca is None:
        _log.warning(
            "everybody who reaches this address may use the service; see api_keys, tls_client_ca",
            host=settings.host,
        )
    elif settings.tls_cert is None:
        _log.warning(
            "API keys and frames travel unencrypted unless a proxy adds TLS; see tls_cert",
            host=settings.host,
        )


def _make_tracing(settings: Settings) -> Tracing:
    if settings.otlp_endpoint is None:
        return no_tracing()
    return start_tracing(
        settings.otlp_endpoint,
        ratio=settings.trace_ratio,
        max_frames_per_second=settings.max_traced_frames_per_second,
        service_name=settings.trace_service_name,
        version=__version__,
        instance=settings.replica_name,
    )


def _add_gauges(metrics: Metrics, store: SessionStore, segmenter: Segmenter) -> None:
    sessions = segmenter.sessions
    metrics.gauge("streams", "Streams open now.", lambda: segmenter.num_streams)
    metrics.gauge(
        "sessions_parked", "Sessions that wait for their client.", lambda: sessions.num_parked
    )
    metrics.gauge(
        "pages_used", "Memory pages in use.", lambda: sum(pool.num_used for pool in store.pools)
    )
    metrics.gauge(
        "pages", "Memory pages in all pools.", lambda: sum(pool.num_pages for pool in store.pools)
    )
    metrics.gauge("memory_bytes", "Bytes of all page pools.", lambda: store.reserved_bytes)
    metrics.gauge("max_memory_bytes", "Bytes that they may have.", lambda: store.max_bytes)
    metrics.gauges(
        "sessions",
        "Sessions held here, by where their memory is.",
        "tier",
        {tier.value: partial(sessions.num_on_tier, tier) for tier in MemoryTier},
    )
    metrics.gauges(
        "session_bytes",
        "Bytes of the sessions held here, by where they are.",
        "tier",
        {tier.value: partial(sessions.num_bytes_on_tier, tier) for tier in MemoryTier},
    )


def _write_ready_file(path: Path, addresses: dict[str, str]) -> None:
    """It appears whole. Raises InvalidInputError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(addresses))
        temporary.replace(path)
    except OSError as error:
        raise InvalidInputError(
            f"ready_file {path} cannot be written: {error.strerror}", field="ready_file"
        ) from error
