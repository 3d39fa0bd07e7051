"""Keeps secrets out of texts that are kept, such as logs."""

import re
from typing import Final

from segstream.doors.keys import KEY
from segstream.doors.tickets import TICKET

_URL_PASSWORD: Final = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
_HIDDEN: Final = "[hidden]"


def redacted(text: str) -> str:
    """``text`` without API keys, tickets and passwords of URLs."""
    for secret in (KEY, TICKET, _URL_PASSWORD):
        text = secret.sub(_HIDDEN, text)
    return text
