"""Records with a JSON header and a checksum: how memory is written where it may be spoilt."""

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any

_DIGEST_BYTES = 16
_MAX_HEADER_BYTES = 1 << 16
_PREFIX = struct.Struct(f"<4s{_DIGEST_BYTES}sI")


class RecordError(Exception):
    """A stored record that must not be used: spoilt, cut short, or of another kind."""


def pack(magic: bytes, header: dict[str, Any], payload: Iterable[bytes]) -> list[bytes]:
    """The record in parts: prefix and header, then the payload's own. ``magic`` has 4 bytes."""
    parts = list(payload)
    packed_header = json.dumps(header).encode()
    digest = _digest(packed_header, parts)
    return [_PREFIX.pack(magic, digest, len(packed_header)) + packed_header, *parts]


def unpack(magic: bytes, parts: Sequence[bytes]) -> tuple[dict[str, Any], list[memoryview]]:
    """Header and payload of a record. Raises RecordError unless every byte is as it was packed."""
    if not parts or len(parts[0]) < _PREFIX.size:
        raise RecordError("the record is cut short")
    found, digest, header_size = _PREFIX.unpack_from(parts[0])
    if found != magic:
        raise RecordError(f"the record is of kind {found!r}, not {magic!r}")
    first = memoryview(parts[0])[_PREFIX.size :]
    if header_size > min(len(first), _MAX_HEADER_BYTES):
        raise RecordError("the record's header is cut short")
    payload = [first[header_size:], *(memoryview(part) for part in parts[1:])]
    if _digest(first[:header_size], payload) != digest:
        raise RecordError("the record is spoilt: its checksum differs")
    header = json.loads(bytes(first[:header_size]))
    assert isinstance(header, dict), "what pack() was given"
    return header, payload


def _digest(header: bytes | memoryview, parts: Iterable[bytes | memoryview]) -> bytes:
    # The size first: else bytes could pass from the header to the payload unnoticed.
    state = hashlib.blake2b(struct.pack("<I", len(header)), digest_size=_DIGEST_BYTES)
    for part in (header, *parts):
        state.update(part)
    return state.digest()
