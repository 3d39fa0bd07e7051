"""The gRPC wire: the segmentation service, health and reflection on one port."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.context import attach
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

from segstream.api.addresses import join_address
from segstream.api.grpc_doors import KeyInterceptor, account_of_call, server_credentials
from segstream.api.grpc_messages import (
    config_from_pb,
    ended_to_pb,
    frame_from_pb,
    ready_to_pb,
    result_to_pb,
    status_to_pb,
)
from segstream.api.grpc_parsing import ParsingInterceptor, parsed
from segstream.doors.tls import ServerTls
from segstream.errors import EngineError, InvalidInputError, SegstreamError
from segstream.rpc_status import trailing_metadata
from segstream.streaming import Frame, Segmenter
from segstream.telemetry.tracing import Tracing
from segstream.trace_context import context_of
from segstream.v1 import segmentation_pb2 as pb
from segstream.v1 import segmentation_pb2_grpc as pb_grpc
from segstream.wire import status_of

_SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"].full_name
_log = structlog.get_logger(__name__)

_MAX_HANDSHAKE_SECONDS = 10.0
_HEALTH_PERIOD_SECONDS = 1.0
# Health and reflection beside the sessions; watching health takes a call for as long as it lasts.
_NUM_SPARE_RPCS = 16

# The pings bound how long a vanished peer is taken for a silent one. They are what a thousand idle
# sessions cost: every 20 seconds they took one percent of a core.
_KEEPALIVE_OPTIONS = (
    ("grpc.keepalive_time_ms", 90_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class SegmentationServicer(pb_grpc.SegmentationServiceServicer):
    """Carries sessions over StreamSegment, and shows them."""

    def __init__(self, segmenter: Segmenter, tracing: Tracing) -> None:
        self._segmenter = segmenter
        self._tracing = tracing
        self._handshake_seconds = min(segmenter.limits.idle_seconds, _MAX_HANDSHAKE_SECONDS)

    async def StreamSegment(
        self,
        request_iterator: AsyncIterator[pb.StreamSegmentRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.StreamSegmentResponse]:
        """One session; see the proto."""
        async with _traced(context, self._tracing), _statuses(context):
            first = await self._first(request_iterator)
            config = config_from_pb(first)
            async with self._segmenter.open(config, account_of_call()) as session:
                stream = session.stream
                yield ready_to_pb(session)
                pipeline = self._segmenter.pipeline(session)
                async with aclosing(pipeline.results(_frames(request_iterator))) as results:
                    async for result in results:
                        yield result_to_pb(result)
                await self._segmenter.leave(session, stream)
                yield ended_to_pb(session, stream)

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListSessionsResponse:
        """See the proto."""
        return pb.ListSessionsResponse(
            sessions=[
                status_to_pb(status)
                for status in self._segmenter.sessions.statuses(account_of_call())
            ]
        )

    async def GetSession(
        self, request: pb.GetSessionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetSessionResponse:
        """See the proto."""
        async with _statuses(context):
            status = self._segmenter.sessions.status(parsed(request).session_id, account_of_call())
        return pb.GetSessionResponse(session=status_to_pb(status))

    async def CloseSession(
        self, request: pb.CloseSessionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CloseSessionResponse:
        """See the proto."""
        async with _statuses(context):
            await self._segmenter.sessions.close(parsed(request).session_id, account_of_call())
        return pb.CloseSessionResponse()

    async def _first(
        self, requests: AsyncIterator[pb.StreamSegmentRequest]
    ) -> pb.StreamSegmentRequest | None:
        """The first message, or None; a call that says nothing is not kept for ever."""
        try:
            async with asyncio.timeout(self._handshake_seconds):
                first = await anext(requests, None)
        except TimeoutError as error:
            raise InvalidInputError(
                f"config was not there within {self._handshake_seconds:g} seconds; "
                "send it as the first message",
                field="config",
                limit=self._handshake_seconds,
            ) from error
        return None if first is None else parsed(first)


async def _frames(requests: AsyncIterator[pb.StreamSegmentRequest]) -> AsyncIterator[Frame]:
    async for request in requests:
        if parsed(request).HasField("end_of_frames"):
            return
        yield frame_from_pb(request)


@asynccontextmanager
async def _traced(
    context: grpc.aio.ServicerContext[Any, Any], tracing: Tracing
) -> AsyncIterator[None]:
    """A span of the call, current from now on.

    It is never detached: the call has a task of its own, whose context goes with it, and a call
    that is cut off is closed by another task, which could not.
    """
    if not tracing.is_on:
        yield
        return
    headers = {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    span = tracing.tracer.start_span(
        f"{_SERVICE}/StreamSegment",
        context_of(headers),
        SpanKind.SERVER,
        {"rpc.system.name": "grpc", "rpc.method": f"{_SERVICE}/StreamSegment"},
    )
    attach(set_span_in_context(span))
    try:
        yield
    except Exception:
        span.set_status(StatusCode.ERROR)
        raise
    finally:
        span.set_attribute("rpc.response.status_code", _status_name(context))
        span.end()


def _status_name(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else grpc.StatusCode.OK.name


@asynccontextmanager
async def _statuses(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Turns the error tree into gRPC statuses, and whatever else is raised into INTERNAL."""
    try:
        yield
    except SegstreamError as error:
        await _abort(context, error)
    except Exception:
        _log.exception("unexpected error")
        await _abort(context, EngineError("internal error; see the service's log"))


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: SegstreamError) -> None:
    await context.abort(status_of(error), error.message, trailing_metadata(error))


class GrpcServer:
    """The listening server; ``port`` is the one it was given or, for 0, the one it found."""

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        host: str,
        port: int,
        max_sessions: int,
        max_message_bytes: int,
        tracing: Tracing,
        door: KeyInterceptor,
        tls: ServerTls | None = None,
    ) -> None:
        self._segmenter = segmenter
        self._server = grpc.aio.server(
            options=[
                *_KEEPALIVE_OPTIONS,
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                ("grpc.so_reuseport", 0),
            ],
            # Twice: a call that is one too many is told so, and why, by the session store.
            maximum_concurrent_rpcs=2 * max_sessions + _NUM_SPARE_RPCS,
            interceptors=[door, ParsingInterceptor(_SERVICE)],
        )
        pb_grpc.add_SegmentationServiceServicer_to_server(
            SegmentationServicer(segmenter, tracing), self._server
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self._health_task: asyncio.Task[None] | None = None
        self.host = host
        address = join_address(host, port)
        try:
            self.port = (
                self._server.add_secure_port(address, server_credentials(tls))
                if tls
                else self._server.add_insecure_port(address)
            )
        except RuntimeError as error:
            raise InvalidInputError(
                f"cannot listen on {address}: the port is in use or the address not this machine's",
                field="port",
            ) from error

    async def start(self) -> None:
        """Listen, and let the health service tell from now on whether sessions are taken."""
        is_ready = self._segmenter.is_ready
        await self._tell_health(is_ready)
        await self._server.start()
        self._health_task = asyncio.create_task(self._follow_readiness(is_ready))

    async def announce_shutdown(self) -> None:
        """NOT_SERVING from now on; open streams go on."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_seconds: float) -> None:
        """Close the listener; calls still open after the grace are cancelled."""
        if self._health_task is not None:
            self._health_task.cancel()
        await self._server.stop(grace_seconds)

    async def _follow_readiness(self, was_ready: bool) -> None:
        """An engine that died tells nobody, so it is asked."""
        while True:
            await asyncio.sleep(_HEALTH_PERIOD_SECONDS)
            is_ready = self._segmenter.is_ready
            if is_ready is not was_ready:
                await self._tell_health(is_ready)
                was_ready = is_ready

    async def _tell_health(self, is_ready: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in ("", _SERVICE):
            await self._health.set(name, status.SERVING if is_ready else status.NOT_SERVING)
