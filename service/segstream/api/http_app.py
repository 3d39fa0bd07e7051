"""The HTTP wire: single images, clips, models, probes and metrics."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from segstream import __version__
from segstream.api.clip_uploads import ClipReceiver
from segstream.api.clips_app import add_clips
from segstream.api.docs_page import secure_docs
from segstream.api.head_requests import HeadRequests
from segstream.api.hosts import AllowedHosts
from segstream.api.http_doors import CallerAccount, Doors, document_keys
from segstream.api.origins import allow_origins
from segstream.api.problems import document_problems, install_problem_handlers
from segstream.api.schemas import (
    InfoSchema,
    ModelSchema,
    ModelsSchema,
    ProblemSchema,
    SessionSchema,
    SessionsSchema,
    StatusSchema,
)
from segstream.api.security_headers import SecurityHeaders
from segstream.api.uploads import UploadReader
from segstream.api.web_page import add_web_page
from segstream.api.websocket_server import add_stream, refuse_other_upgrades
from segstream.clips.jobs import ClipJobs
from segstream.doors.key_ring import KeyRing
from segstream.errors import SegstreamError, UnavailableError
from segstream.label_sets import LabelSet
from segstream.media.images import (
    ImageEncoding,
    ImageLimits,
    decode_image,
    detect_image_encoding,
    encode_image,
)
from segstream.media.label_maps import IdSpace, LabelMapEncoding, decode_label_map
from segstream.media.overlay import draw_overlay
from segstream.streaming import EncodedLabelMap, Frame, HeldSessions, Segmenter, SessionConfig
from segstream.telemetry.metrics import Metrics
from segstream.telemetry.tracing import Tracing

_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}}
            for media_type in ("image/jpeg", "image/png")
        },
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemSchema} for status in (400, 404, 408, 413, 422, 429, 503)
}


class ImageOutput(StrEnum):
    """``label_map``: palette PNG of class ids. ``overlay``: JPEG of the image with its classes."""

    LABEL_MAP = "label_map"
    OVERLAY = "overlay"


def create_app(
    segmenter: Segmenter,
    metrics: Metrics,
    limits: ImageLimits,
    jobs: ClipJobs,
    info: InfoSchema,
    *,
    key_ring: KeyRing,
    max_uploads: int,
    max_clip_bytes: int,
    tracing: Tracing,
    allowed_hosts: Sequence[str],
    allowed_origins: Sequence[str],
) -> FastAPI:
    """The application; everything it needs is handed in. ``max_uploads`` are read at once."""
    app = FastAPIOffline(
        title="segstream",
        redoc_url=None,
        version=__version__,
        description="Video semantic segmentation with memory. Streams go over gRPC, or over the "
        "WebSocket at /v1/stream.",
        telemetry={
            "tracer_provider": tracing.provider,
            "tracing": tracing.is_on,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            # Probes, scrapes and files are not worth a trace.
            "exclude": lambda scope: not scope["path"].startswith("/v1/"),
        },
    )
    install_problem_handlers(app)
    document_problems(app)
    document_keys(app, key_ring)
    secure_docs(app)
    uploads = UploadReader(max_bytes=limits.max_bytes, max_uploads=max_uploads)
    _add_images(app, segmenter, limits, uploads)
    receiver = ClipReceiver(max_bytes=max_clip_bytes, max_uploads=max_uploads)
    add_clips(app, jobs, segmenter, receiver, key_ring)
    _add_models(app, segmenter)
    _add_info(app, info)
    _add_sessions(app, segmenter.sessions)
    _add_probes(app, segmenter, metrics)
    add_stream(app, segmenter)
    add_web_page(app)
    refuse_other_upgrades(app)
    # The one that is added last comes first.
    app.add_middleware(HeadRequests)
    app.add_middleware(
        Doors,
        key_ring=key_ring,
        allowed_hosts=AllowedHosts(allowed_hosts),
        allowed_origins=allowed_origins,
        metrics=metrics,
    )
    allow_origins(app, allowed_origins)
    app.add_middleware(SecurityHeaders)
    return app


def _add_images(
    app: FastAPI, segmenter: Segmenter, limits: ImageLimits, uploads: UploadReader
) -> None:
    @app.post(
        "/v1/images",
        openapi_extra=_IMAGE_BODY,
        responses=_ERRORS
        | {200: {"content": {"image/png": {}, "image/jpeg": {}}, "description": "The result"}},
        response_class=Response,
    )
    async def segment_image(
        request: Request,
        account: CallerAccount,
        output: ImageOutput = ImageOutput.LABEL_MAP,
        model: Annotated[str, Query(description="Empty: the default model")] = "",
        id_space: IdSpace = IdSpace.TRAIN_ID,
        max_working_height: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    ) -> Response:
        """Segment one JPEG or PNG image, sent as the request's body, without memory."""
        account.take_frame()
        body = await uploads.read(request)
        config = SessionConfig(
            model=model,
            id_space=IdSpace.TRAIN_ID if output is ImageOutput.OVERLAY else id_space,
            max_working_height=max_working_height,
            label_map_encoding=LabelMapEncoding.PNG,
        )
        async with segmenter.open_alone(config) as session:
            result = await session.segment(Frame(0, None, body))
        if isinstance(result.outcome, SegstreamError):
            raise result.outcome
        assert isinstance(result.outcome, EncodedLabelMap), "an image is never skipped"
        headers = {
            "Server-Timing": ", ".join(
                f"{stage};dur={1000 * seconds:.2f}"
                for stage, seconds in result.stage_seconds.items()
            )
        }
        if output is ImageOutput.LABEL_MAP:
            return Response(result.outcome.data, 200, headers, "image/png")
        overlay = await run_in_threadpool(
            _overlay, body, result.outcome, session.model.label_set, limits
        )
        return Response(overlay, 200, headers, "image/jpeg")


def _add_models(app: FastAPI, segmenter: Segmenter) -> None:
    @app.get("/v1/models")
    async def list_models() -> ModelsSchema:
        """The models that are loaded, with their classes and the memory they keep."""
        return ModelsSchema(
            models=[
                ModelSchema.of(info, is_default=name == segmenter.default_model)
                for name, info in segmenter.models.items()
            ]
        )


def _add_info(app: FastAPI, info: InfoSchema) -> None:
    @app.get("/v1/info")
    async def get_info() -> InfoSchema:
        """What runs here: versions, the commit, engine and device."""
        return info


def _add_sessions(app: FastAPI, sessions: HeldSessions) -> None:
    @app.get("/v1/sessions")
    async def list_sessions(account: CallerAccount) -> SessionsSchema:
        """The sessions of the API key that this replica holds, streaming or parked."""
        return SessionsSchema(
            sessions=[SessionSchema.model_validate(status) for status in sessions.statuses(account)]
        )

    @app.get("/v1/sessions/{session_id}", responses={404: {"model": ProblemSchema}})
    async def get_session(session_id: str, account: CallerAccount) -> SessionSchema:
        """One session: who holds it, where its memory is, and how large that is."""
        return SessionSchema.model_validate(sessions.status(session_id, account))

    @app.delete(
        "/v1/sessions/{session_id}", status_code=204, responses={404: {"model": ProblemSchema}}
    )
    async def close_session(session_id: str, account: CallerAccount) -> None:
        """End a session for good and forget its memory; its stream ends with CLOSED."""
        await sessions.close(session_id, account)


def _add_probes(app: FastAPI, segmenter: Segmenter, metrics: Metrics) -> None:
    @app.get("/livez")
    async def live() -> StatusSchema:
        """Whether the process answers at all."""
        return StatusSchema(status="live")

    @app.get("/readyz", responses={503: {"model": ProblemSchema}})
    async def ready() -> StatusSchema:
        """Whether new sessions are taken; 503 while shutting down and without an engine.

        A service that starts does not answer at all: HTTP comes up last.
        """
        if not segmenter.is_ready:
            raise UnavailableError("the service is shutting down or has lost its engine")
        return StatusSchema(status="ready")

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus_metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _overlay(
    body: bytes, label_map: EncodedLabelMap, label_set: LabelSet, limits: ImageLimits
) -> bytes:
    image = decode_image(body, detect_image_encoding(body), limits=limits)
    train_ids = decode_label_map(
        label_map.data, label_map.encoding, label_map.width, label_map.height
    )
    return encode_image(draw_overlay(image, train_ids, label_set), ImageEncoding.JPEG, quality=90)
