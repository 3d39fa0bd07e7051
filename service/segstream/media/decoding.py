"""What the decoders of images and label maps share."""

from collections.abc import Iterator
from contextlib import contextmanager

from segstream.errors import InvalidInputError, SegstreamError


@contextmanager
def refusing_unreadable(field: str, form: str) -> Iterator[None]:
    """Let whatever a decoder raises be an InvalidInputError: ``field`` is broken ``form``."""
    # The decoders have no error tree: what broken data raises there is of many types.
    try:
        yield
    except SegstreamError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"{field} is truncated or corrupt {form}: {error}", field=field
        ) from error
