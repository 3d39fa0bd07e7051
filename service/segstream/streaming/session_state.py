"""What a session keeps besides its pages, as bytes that another replica can read."""

import zstandard
from pydantic import BaseModel, ConfigDict, ValidationError

from segstream.memory.checksummed import RecordError
from segstream.streaming.recent_results import RecentResults, StoredResult

_MAX_BYTES = 64 * 2**20


class SessionState(BaseModel):
    """Goes with a snapshot. ``frame_size`` is (width, height) in pixels, None before any frame."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    next_frame_index: int = 0
    frame_size: tuple[int, int] | None = None
    num_label_maps: int = 0
    results: tuple[StoredResult, ...] = ()

    def recent_results(self) -> RecentResults:
        """The answers that can be given again."""
        return RecentResults(stored.result() for stored in self.results)

    def encode(self) -> bytes:
        """As JSON, compressed: label maps sent raw would be large."""
        return zstandard.compress(self.model_dump_json().encode(), 1)

    @classmethod
    def decode(cls, data: bytes) -> "SessionState":
        """The inverse of ``encode``, for bytes whose checksum held.

        Raises RecordError for what another version of the service wrote.
        """
        try:
            packed = zstandard.ZstdDecompressor().decompress(data, max_output_size=_MAX_BYTES)
            return cls.model_validate_json(packed)
        except (zstandard.ZstdError, ValidationError) as error:
            raise RecordError("the session's state is that of another version") from error
