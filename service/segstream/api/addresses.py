"""Hosts and ports as addresses are written."""

import ipaddress


def is_ipv6(host: str) -> bool:
    """Whether ``host`` is an IPv6 address rather than a name or an IPv4 one."""
    return ":" in host


def join_address(host: str, port: int) -> str:
    """``host:port``, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if is_ipv6(host) else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
