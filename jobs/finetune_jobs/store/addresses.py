"""Addresses that somebody else names: whether they are any, and where they lead."""

import ipaddress
import socket

import httpx2


def can_be_reached(url: httpx2.URL) -> bool:
    """Whether it is an address at all: names of hosts and ports have bounds that clients check only as they connect."""
    try:
        url.host.encode("idna")
    except UnicodeError:
        return False
    return url.scheme in ("http", "https") and bool(url.host) and (url.port or 0) <= 65535


def is_inward(host: str) -> bool:
    """Whether a host is literally a loopback or link-local address, in any way of writing it that resolvers take."""
    name = host.lower().rstrip(".")
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(name))
        except OSError:
            return name == "localhost" or name.endswith(".localhost")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    return address.is_loopback or address.is_link_local or address.is_unspecified
