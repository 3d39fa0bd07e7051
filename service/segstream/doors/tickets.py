"""Tickets: links that work for a while without the key that made them.

Browsers send no key with a download, or with the ranges of a video. A ticket is signed with the
stored digest of a key, so that every replica knows it and it dies with the key.
"""

import hashlib
import hmac
import re
import time
from typing import Final

from segstream.doors.keys import KeyRecord

TICKET: Final = re.compile(r"(?P<id>[0-9a-f]{12})\.(?P<until>[0-9]{1,12})\.(?P<mac>[0-9a-f]{64})")
"""The key's public id, seconds since 1970, and what signs both."""

# A ticket holds between one and two of these, and is the same for whoever asks within one.
_PERIOD_SECONDS: Final = 3600


def issue(record: KeyRecord, subject: str) -> str:
    """A ticket of a key for ``subject``."""
    until = (int(time.time()) // _PERIOD_SECONDS + 2) * _PERIOD_SECONDS
    return f"{record.id}.{until}.{_mac(record, until, subject)}"


def key_id_of(ticket: str) -> str:
    """The key that a ticket says it is of; empty for what is no ticket."""
    found = TICKET.fullmatch(ticket)
    return found["id"] if found else ""


def is_valid(ticket: str, record: KeyRecord, subject: str) -> bool:
    """Whether the key has let ``subject`` be read, and does so still."""
    found = TICKET.fullmatch(ticket)
    if found is None:
        return False
    until = int(found["until"])
    expected = _mac(record, until, subject)
    return hmac.compare_digest(found["mac"], expected) and time.time() < until


def _mac(record: KeyRecord, until: int, subject: str) -> str:
    message = f"ticket:{until}:{subject}".encode()
    return hmac.new(bytes.fromhex(record.sha256), message, hashlib.sha256).hexdigest()
