"""Settings of the service. The one place where the environment is read."""

import json
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from segstream.checkpoints import DEFAULT

_MIB = 1024 * 1024
# gRPC counts the bytes of a message in a signed 32-bit integer.
_MAX_GRPC_BYTES = 2**31 - 1
_TRACES_PATH = "/v1/traces"
_ORIGIN = re.compile(r"https?://[^/?#\s]+", re.IGNORECASE)
_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class Settings(BaseSettings):
    """Every setting may come from the environment as ``SEGSTREAM_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="SEGSTREAM_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on; loopback unless told.")
    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 = any free one.")
    http_port: int = Field(8080, ge=0, le=65535, description="HTTP port; 0 = any free one.")
    models: Annotated[list[str], NoDecode] = Field(
        [DEFAULT],
        min_length=1,
        description="Checkpoints to serve: names or files. The first one is the default model.",
    )
    networks: Annotated[list[str], NoDecode] = Field(
        [],
        description="Networks of your own that checkpoints name, each NAME=MODULE:FUNCTION; the "
        "module's code is run. See docs/your_network.md.",
    )
    engine: Literal["in-process", "triton"] = Field(
        "in-process", description="Where frames are computed: here, or in a Triton server."
    )
    triton: str = Field(
        "127.0.0.1:8001",
        pattern=r"^[^\s/]+:\d{1,5}$",
        description="HOST:PORT of the Triton server's gRPC port (engine triton).",
    )
    triton_pages: Literal["auto", "shared", "tensors"] = Field(
        "auto",
        description="How Triton gets at the memory: it maps the pages (shared; one machine), or "
        "they travel with each frame (tensors); auto: shared where it can.",
    )
    triton_timeout_seconds: float = Field(
        30.0, gt=0, description="A frame waits so long for a Triton that fails or hangs."
    )
    triton_start_seconds: float = Field(
        120.0, gt=0, description="The start waits so long for Triton and its models."
    )
    device: str = Field("cpu", description="Where the network runs: cpu, cuda, cuda:1, ...")
    runtime: Literal["auto", "native", "onnx", "torch"] = Field(
        "auto",
        description="What runs the network; auto: native (this package's C++) on CPU, torch "
        "elsewhere. Replicas that share sessions must run the same.",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="What the network computes with on a CUDA device; float32 where the label maps "
        "would differ too much. With page_dtype alike, tensor cores read the memory.",
    )
    num_threads: int = Field(0, ge=0, description="Threads of a forward on CPU; 0 = all cores.")
    max_batch_size: int = Field(
        8,
        ge=1,
        le=256,
        description="Frames in one forward; runtime native takes them one by one in any case.",
    )
    max_sessions: int = Field(64, ge=1, description="Sessions streaming at once.")
    max_memory_bytes: int = Field(
        2048 * _MIB,
        ge=_MIB,
        description="Bytes of all memory banks on the device; beyond it the least recently used "
        "are spilled.",
    )
    page_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="How keys and values are stored."
    )
    max_pending_frames: int = Field(
        2, ge=1, le=64, description="Frames a stream may have waiting in each stage."
    )
    max_message_bytes: int = Field(
        64 * _MIB,
        ge=_MIB,
        le=_MAX_GRPC_BYTES,
        description="Largest gRPC and WebSocket message and HTTP body.",
    )
    allowed_origins: Annotated[list[str], NoDecode] = Field(
        [],
        description="Origins, such as https://example.org, whose pages may use the HTTP API and "
        "the WebSocket besides the service's own.",
    )
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        [],
        description="Names under which browsers may reach the HTTP port, such as example.org or "
        "*.example.org, besides IP addresses and names without a dot; * = any.",
    )
    api_keys: Path | None = Field(
        None,
        description="File of the API keys that clients must have; segstream keys makes it, and it "
        "is read again when it changes. Without it everybody may come in.",
    )
    tls_cert: Path | None = Field(
        None, description="PEM file with the certificate, and its chain, for TLS on both ports."
    )
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key.")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file with the authorities that sign the clients' certificates; clients "
        "without one are turned away on both ports.",
    )
    max_image_pixels: int = Field(4096 * 2304, ge=64, description="Largest image, in pixels.")
    idle_seconds: float = Field(300.0, gt=0, description="A silent stream ends after so long.")
    drain_seconds: float = Field(
        20.0,
        ge=0,
        description="On SIGTERM, time to answer what was taken and to hand sessions over.",
    )
    spill_after_seconds: float = Field(
        60.0, gt=0, description="A memory unused for so long leaves the device."
    )
    session_ttl_seconds: float = Field(
        600.0, gt=0, description="A session without a stream is forgotten after so long."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Redis (or Valkey) that replicas share: redis://, rediss:// or unix://. "
        "Without it sessions stay on this machine.",
    )
    redis_password_file: Path | None = Field(
        None, description="File with the password of Redis, for URLs without one."
    )
    spill_directory: Path | None = Field(
        None,
        description="Where memories are spilled without Redis; sessions there outlive the service. "
        "Default: a temporary directory.",
    )
    max_spill_bytes: int = Field(
        4096 * _MIB, ge=_MIB, description="Bytes of the spill directory; the oldest go first."
    )
    lease_seconds: float = Field(
        1.0,
        ge=0.1,
        le=60,
        description="How long a replica that fell silent still counts as a session's owner.",
    )
    replica_name: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        description="How this replica is called. Default: host and process.",
    )
    degrade_above_queue_seconds: float = Field(
        0.0,
        ge=0,
        description="Read less memory while frames wait longer than this; 0 = never.",
    )
    clip_storage: str = Field(
        default_factory=lambda: str(platformdirs.user_data_path("segstream") / "clips"),
        description="Where uploaded clips and their results lie: a directory, or s3://bucket/path "
        "and whatever else fsspec knows. Default: the user's data directory.",
    )
    max_clip_bytes: int = Field(1024 * _MIB, ge=1, description="Largest clip to upload.")
    max_clip_seconds: float = Field(600.0, gt=0, description="Longest clip.")
    max_clip_decoder_bytes: int = Field(
        2048 * _MIB,
        ge=256 * _MIB,
        description="Memory of the process that decodes a clip.",
    )
    clip_workers: int = Field(
        1, ge=0, le=64, description="Clips worked on at once; 0 = leave them to other replicas."
    )
    clip_ttl_seconds: float = Field(
        7 * 24 * 3600.0, gt=0, description="A clip is removed so long after its job ended."
    )
    log_format: Literal["console", "json"] = Field("console", description="Form of the log.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least serious lines that the log holds."
    )
    temporal_consistency: Literal["on", "off"] = Field(
        "on", description="Measure how many pixels keep their label from frame to frame."
    )
    otlp_endpoint: str | None = Field(
        default_factory=lambda: _otlp_endpoint(),
        validate_default=True,
        pattern=r"^https?://[^\s]+$",
        description="Where traces go, by OTLP over HTTP: http://collector:4318, or a whole URL. "
        "Without it nothing is traced. Default: as OTEL_EXPORTER_OTLP_ENDPOINT says.",
    )
    trace_ratio: float = Field(
        default_factory=lambda: _trace_ratio(),
        ge=0,
        le=1,
        validate_default=True,
        description="The part of the traces that begin here which is recorded; one that began "
        "elsewhere is recorded if it is there. Default: as OTEL_TRACES_SAMPLER says, else 0.1.",
    )
    max_traced_frames_per_second: float = Field(
        1.0, gt=0, description="Of a stream that is recorded, so many frames are."
    )
    trace_service_name: str = Field(
        default_factory=lambda: os.environ.get("OTEL_SERVICE_NAME") or "segstream",
        description="How traces name the service. Default: OTEL_SERVICE_NAME, else segstream.",
    )
    ready_file: Path | None = Field(
        None, description="Written with the bound addresses once the service is ready."
    )

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin, such as https://example.org:8443")
        return [origin.lower() for origin in origins]

    @field_validator("otlp_endpoint")
    @classmethod
    def _whole_url(cls, endpoint: str | None) -> str | None:
        is_base = endpoint is not None and not urlsplit(endpoint).path.strip("/")
        return f"{str(endpoint).rstrip('/')}{_TRACES_PATH}" if is_base else endpoint

    @model_validator(mode="after")
    def _triton_can_reach_the_pages(self) -> Self:
        if self.engine == "triton" and self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise ValueError(
                f"engine is 'triton', which takes pages on device cpu or cuda, got {self.device!r}"
            )
        return self

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is no name of a host, such as example.org, and no port")
        return [host.lower() for host in hosts]

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) is not (self.tls_key is None):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise ValueError(f"{given} is given without {missing}; TLS takes both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca is given without tls_cert and tls_key")
        return self

    @field_validator("models", "networks", "allowed_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        """The environment gives a JSON list, or names with commas between them."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [name for part in value.split(",") if (name := part.strip())]


def _otlp_endpoint() -> str | None:
    """As OpenTelemetry's environment has it. The SDK reads what else it holds (OTEL_BSP_*, ...)."""
    environment = os.environ
    is_off = environment.get("OTEL_TRACES_EXPORTER") == "none"
    if is_off or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if whole := environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return whole
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return f"{base.rstrip('/')}{_TRACES_PATH}" if base else None


def _trace_ratio() -> Any:
    sampler = os.environ.get("OTEL_TRACES_SAMPLER", "").removeprefix("parentbased_")
    ratios = {"always_on": 1.0, "always_off": 0.0}
    if sampler == "traceidratio":
        return os.environ.get("OTEL_TRACES_SAMPLER_ARG") or 1.0
    return ratios.get(sampler, 0.1)
