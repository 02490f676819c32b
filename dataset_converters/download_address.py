"""Which network addresses a data set's image addresses may lead to.

A metadata file is written by strangers: an image address in it may point at a router, a cloud
machine's metadata service or another program on this machine. So a host is resolved here, and the
connection goes to the very address that was checked: a name that resolves differently a moment
later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_MOST_ADDRESSES = 4  # tried for one host, so that a host with many dead ones ends

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressRefusedError(Exception):
    """A host has no address that may be connected to."""


def is_public(text: str) -> bool:
    """Whether an IP address belongs to the public internet.

    Private, loopback, link-local, shared, reserved, multicast and unspecified networks do not, nor
    do IPv6 addresses that carry such an IPv4 address (mapped, 6to4, NAT64).

    Raises:
        ValueError: `text` is no IP address.
    """
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
        elif address.is_site_local:
            return False
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_loopback
        or address.is_link_local
        or address.is_unspecified
    )


def connect(host: str, port: int, *, timeout: float, allow_private: bool) -> socket.socket:
    """Resolve a host, and connect to the first of its permitted addresses that answers.

    Args:
        timeout: seconds for each address.
        allow_private: permit every address.

    Raises:
        AddressRefusedError: no address of the host is public.
        OSError: the name does not resolve, or no permitted address answers.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    permitted = [entry for entry in found if allow_private or is_public(str(entry[4][0]))]
    if not permitted:
        where = ", ".join(dict.fromkeys(str(entry[4][0]) for entry in found))
        raise AddressRefusedError(f"{host} is {where}, which is no public address")
    problem: OSError | None = None
    for family, kind, protocol, _, address in permitted[:_MOST_ADDRESSES]:
        try:
            return _open(family, kind, protocol, address, timeout)
        except OSError as error:
            problem = error
    raise problem or OSError(f"{host} has no address")


def _open(family: int, kind: int, protocol: int, address: Any, timeout: float) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.settimeout(timeout)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.connect(address)
    except BaseException:
        made.close()
        raise
    return made
