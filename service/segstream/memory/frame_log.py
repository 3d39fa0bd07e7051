"""The frame log's entries: encoded frames from which a memory can be made anew."""

from dataclasses import dataclass

from segstream.memory.checksummed import RecordError, pack, unpack

_MAGIC = b"SFL1"

START = -1
"""What a frame over an empty memory has for ``previous``."""


@dataclass(frozen=True, slots=True)
class LoggedFrame:
    """A memorised frame as it came over the wire; ``previous``: index of the one memorised before.

    ``encoding`` empty = told by the first bytes; ``width`` and ``height`` as ``data`` needs them.
    """

    index: int
    previous: int
    encoding: str
    width: int
    height: int
    data: bytes
    model_digest: str

    def encode(self) -> bytes:
        """The entry as one checksummed record."""
        header = {
            "index": self.index,
            "previous": self.previous,
            "encoding": self.encoding,
            "width": self.width,
            "height": self.height,
            "model_digest": self.model_digest,
        }
        return b"".join(pack(_MAGIC, header, [self.data]))

    @classmethod
    def decode(cls, entry: bytes, *, model_digest: str) -> "LoggedFrame":
        """The inverse of ``encode``. Raises RecordError for one spoilt or of another model."""
        header, [data] = unpack(_MAGIC, [entry])
        if header["model_digest"] != model_digest:
            raise RecordError("the frame was memorised by another model")
        return cls(data=bytes(data), **header)
