"""How the client's channels are set up, and what gRPC's statuses mean to it."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from segstream.errors import EngineError, InvalidInputError, SegstreamError, UnavailableError
from segstream.rpc_status import error_of_call

MAX_MESSAGE_BYTES: Final = 64 * 2**20

# A peer that froze is noticed only with ping_timeout_ms; a quiet session must be pinged too.
CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How the client makes sure of the service, and the service of the client. Files are PEM.

    ``root_certificates``: whose signature the service's certificate needs; None: one of the
    authorities that gRPC knows. ``certificate`` and ``key``: what the client shows, if the service
    asks for it.
    """

    root_certificates: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises InvalidInputError for files that cannot be read."""
        if (self.certificate is None) is not (self.key is None):
            raise InvalidInputError(
                "a client's certificate needs its key, and the key its certificate", field="tls"
            )
        return grpc.ssl_channel_credentials(
            *map(_read, (self.root_certificates, self.key, self.certificate))
        )


def open_channel(address: str, tls: ClientTls | None = None) -> grpc.Channel:
    """A channel to a service, or to its replicas: ``host:port``, several with commas between.

    Calls go to them in turn, and not to those that cannot be reached. With ``tls`` all of several
    replicas must have a certificate for the host that is named first. Raises InvalidInputError.
    """
    addresses = [part.strip() for part in address.split(",") if part.strip()]
    if not addresses:
        raise InvalidInputError(f"server {address!r} names no host:port", field="server")
    target, options = addresses[0], list[tuple[str, int | str]](CHANNEL_OPTIONS)
    if len(addresses) > 1:
        target = f"ipv4:{','.join(map(_to_ipv4, addresses))}"
        host = addresses[0].rpartition(":")[0]
        options.append(("grpc.ssl_target_name_override", host))
    if tls is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, tls.credentials(), options)


def key_metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    """What each call tells of the key; nothing for none. Raises InvalidInputError."""
    if not api_key:
        return ()
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise InvalidInputError("api_key has letters that no key has", field="api_key")
    return (("authorization", f"Bearer {api_key}"),)


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}", field="tls") from error


def _to_ipv4(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        return f"{socket.gethostbyname(host)}:{int(port)}"
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"server {address!r} is no host:port of IPv4", field="server"
        ) from error


def error_of(call: grpc.RpcError, address: str) -> SegstreamError:
    """The error that ended a call to ``address``."""
    error = error_of_call(call)
    if isinstance(error, UnavailableError):
        return error.retold(f"segstream at {address} is unavailable: {error.message}")
    if isinstance(error, EngineError):
        status = call.code() or grpc.StatusCode.UNKNOWN
        return error.retold(f"segstream at {address} failed with {status.name}: {error.message}")
    return error


def no_service(address: str) -> UnavailableError:
    """Nothing answered at ``address`` in time."""
    return UnavailableError(f"no segstream service at {address}", field="server")
