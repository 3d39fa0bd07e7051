"""When the client goes on with a session whose call has ended, and how long it waits before."""

import random
import time
from typing import TYPE_CHECKING, Final

import grpc

from segstream.errors import UnavailableError
from segstream.wire import RETRY_HINT

if TYPE_CHECKING:
    from segstream.client.protocol import SessionProtocol

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 2.0
_MAX_INTERNAL: Final = 3

# What a call ends with whose replica is gone, or whose proxy lost it. CANCELLED is not the client's
# own: that one closes. INTERNAL comes from proxies, but may be the service's verdict as well.
_BROKEN: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
}


def may_resume(last: Exception, protocol: "SessionProtocol") -> bool:
    """Whether the session may go on after a call that ended with ``last``."""
    if not protocol.options.resume_timeout_seconds or protocol.info is None:
        return False
    if isinstance(last, grpc.RpcError):
        return last.code() in _BROKEN or _is_full_now(last)
    if protocol.end is not None:
        return protocol.end.reason.is_resumable
    return isinstance(last, UnavailableError)


def _is_full_now(last: grpc.RpcError) -> bool:
    """Whether the service has no room, but said that it may have later."""
    keys = {each.key for each in last.trailing_metadata() or ()}
    return last.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and RETRY_HINT in keys


class RetryPolicy:
    """Pauses that double from try to try, with jitter; the first try comes at once.

    Gives up when nothing was answered for ``timeout_seconds``.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self.progressed()

    def progressed(self) -> None:
        """The session got answers again."""
        self._since: float | None = None
        self._num_tries = 0
        self._num_internal = 0

    def next_pause(self, last: Exception) -> float | None:
        """Seconds before the next try; None to give up."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if isinstance(last, grpc.RpcError) and last.code() is grpc.StatusCode.INTERNAL:
            self._num_internal += 1
        if now - self._since > self._timeout_seconds or self._num_internal > _MAX_INTERNAL:
            return None
        self._num_tries += 1
        if self._num_tries == 1:
            return 0.0
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** (self._num_tries - 2))
        return pause * random.uniform(0.5, 1.0)
