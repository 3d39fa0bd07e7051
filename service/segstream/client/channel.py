"""How the client's channels are set up, and what gRPC's statuses mean to it."""

import socket
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


def open_channel(address: str) -> grpc.Channel:
    """A channel to a service, or to its replicas: ``host:port``, several with commas between.

    Calls go to them in turn, and not to those that cannot be reached. Raises InvalidInputError.
    """
    addresses = [part.strip() for part in address.split(",") if part.strip()]
    if not addresses:
        raise InvalidInputError(f"server {address!r} names no host:port", field="server")
    target = addresses[0]
    if len(addresses) > 1:
        target = f"ipv4:{','.join(map(_to_ipv4, addresses))}"
    return grpc.insecure_channel(target, CHANNEL_OPTIONS)


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
