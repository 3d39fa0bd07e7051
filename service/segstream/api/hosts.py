"""The names under which the HTTP port may be reached.

A page of a foreign site can let its own name lead to this machine (DNS rebinding), and would then
be of the service's own origin. It cannot do so for an IP address, nor for a name without a dot.
"""

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit


class AllowedHosts:
    """``names`` besides what is safe anyway; ``*.example.org`` is any name below, ``*`` any."""

    def __init__(self, names: Sequence[str]) -> None:
        own = socket.gethostname().lower()
        self._names = {own, *(name for name in names if not name.startswith("*"))}
        # "*.example.org" leaves ".example.org", and "*" what every name ends with.
        self._endings = (".localhost", *(name[1:] for name in names if name.startswith("*")))

    def __contains__(self, host: str) -> bool:
        """Whether the value of a Host header is allowed; none at all comes from no browser."""
        if not host:
            return True
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if not name or any(letter in host for letter in "/\\@?#"):
            return False
        return _is_safe(name) or name in self._names or name.endswith(self._endings)


def _is_safe(name: str) -> bool:
    if "." not in name and ":" not in name:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
