"""The one error tree. Each kind maps to one gRPC status and one HTTP status, at the borders."""


class SegstreamError(Exception):
    """An error with a message fit for the caller and, where one is at fault, the request field.

    ``retry_after_seconds`` is when the caller may try the same again; None: never.
    """

    retry_after_seconds: float | None = None

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidInputError(SegstreamError):
    """What was sent cannot be used; sending it again will not help."""


class TooLargeError(InvalidInputError):
    """What was sent exceeds a limit of size."""


class UnauthenticatedError(SegstreamError):
    """Whoever asks has not shown that they may."""


class NotFoundError(SegstreamError):
    """The named thing does not exist."""


class AlreadyExistsError(SegstreamError):
    """The name is taken."""


class WrongStateError(SegstreamError):
    """The named thing exists but is not in the state that this takes; ``is_passing``: not yet."""

    def __init__(self, message: str, *, field: str = "", is_passing: bool = False) -> None:
        super().__init__(message, field=field)
        if is_passing:
            self.retry_after_seconds = 1.0


class ExhaustedError(SegstreamError):
    """A bounded resource is used up; it may help to try again later."""

    retry_after_seconds: float | None = 1.0


class UnavailableError(SegstreamError):
    """The service is starting, stopping or has lost its engine."""

    retry_after_seconds = 1.0


class EngineError(SegstreamError):
    """The engine failed on a frame that was in order."""


class ModelChangedError(EngineError):
    """The model has other weights now: the memory of the old ones is nothing to it."""
