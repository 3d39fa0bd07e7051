import socket

import pytest

from segstream.api.hosts import AllowedHosts


@pytest.mark.parametrize(
    "host",
    [
        *("", "localhost", "LOCALHOST:8080", "127.0.0.1:8080", "192.168.1.5", "[::1]:8080"),
        *("segstream:8080", "app.localhost", "example.org:443", "Example.org", "example.org."),
        *("a.example.net", "a.b.example.net"),
        socket.gethostname(),
    ],
)
def test_hosts_that_are_safe_or_named_are_allowed(host: str) -> None:
    assert host in AllowedHosts(["example.org", "*.example.net"])


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "127.0.0.1.evil.example", "example.org.evil.example", "example.net"),
        *("a.example.org", "xexample.net", "[::1", "[x]", "evil.example:80@localhost"),
        *(
            "localhost.evil.example",
            "localhost/evil.example",
            "1.2.3.4.5",
            "evil.example#localhost",
        ),
    ],
)
def test_other_hosts_are_not(host: str) -> None:
    assert host not in AllowedHosts(["example.org", "*.example.net"])


def test_a_star_allows_every_host() -> None:
    assert "evil.example" in AllowedHosts(["*"])
