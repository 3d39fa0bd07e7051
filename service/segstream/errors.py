"""The one error tree. Each kind maps to one gRPC status and one HTTP status, at the borders."""

from typing import ClassVar, Final, Self

# With its details an error must fit into the headers of one gRPC status.
_MAX_MESSAGE_BYTES: Final = 1024
_MAX_VALUE_BYTES: Final = 256


class SegstreamError(Exception):
    """An error with a message fit for the caller and, where one is at fault, the request field.

    The message names the field, the value and the limit, and what to do. ``value`` is the name that
    was asked for, ``limit`` the bound that was passed, in the unit of the message; empty and None
    where there is none. ``retry_after_seconds`` is when the caller may try the same again; None:
    never. ``reason`` names the kind to programs, on every wire.
    """

    reason: ClassVar[str]
    retry_after_seconds: float | None = None

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        value: str = "",
        limit: float | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(_bounded(message, _MAX_MESSAGE_BYTES))
        self.field = field
        self.value = _bounded(value, _MAX_VALUE_BYTES)
        self.limit = limit
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds

    @property
    def message(self) -> str:
        """What the caller is told."""
        return str(self.args[0])

    def retold(self, message: str) -> Self:
        """The same error in other words."""
        self.args = (_bounded(message, _MAX_MESSAGE_BYTES),)
        return self

    def renamed(self, field: str) -> Self:
        """The same error of a field that is called otherwise, as its message begins with it."""
        if self.message.startswith(self.field):
            self.retold(field + self.message.removeprefix(self.field))
        self.field = field
        return self


class InvalidInputError(SegstreamError):
    """What was sent cannot be used; sending it again will not help."""

    reason = "INVALID_INPUT"


class TooLargeError(InvalidInputError):
    """What was sent exceeds a limit of size."""

    reason = "TOO_LARGE"


class UnauthenticatedError(SegstreamError):
    """Whoever asks has not shown that they may."""

    reason = "UNAUTHENTICATED"


class NotFoundError(SegstreamError):
    """The named thing does not exist."""

    reason = "NOT_FOUND"


class AlreadyExistsError(SegstreamError):
    """The name is taken."""

    reason = "ALREADY_EXISTS"


class WrongStateError(SegstreamError):
    """The named thing exists but is not in the state that this takes."""

    reason = "WRONG_STATE"


class ExhaustedError(SegstreamError):
    """A bounded resource is used up; it may help to try again later."""

    reason = "EXHAUSTED"
    retry_after_seconds: float | None = 1.0


class UnavailableError(SegstreamError):
    """The service is starting, stopping or has lost its engine."""

    reason = "UNAVAILABLE"
    retry_after_seconds = 1.0


class EngineError(SegstreamError):
    """The engine failed on a frame that was in order."""

    reason = "ENGINE"


class ModelChangedError(EngineError):
    """The model has other weights now: the memory of the old ones is nothing to it."""

    reason = "MODEL_CHANGED"


def _bounded(text: str, max_bytes: int) -> str:
    """Whatever the caller sent and is told again, it is Unicode and no longer than this."""
    data = text.encode(errors="replace")
    if len(data) <= max_bytes:
        return data.decode()
    return data[:max_bytes].decode(errors="ignore") + "…"
