"""The addresses of a socket in canonical form, and the original destination of a redirected connection.

A dual-stack socket shows an IPv4 peer as ``::ffff:a.b.c.d``. This module unmaps every address, so no other
module has to handle that form.
"""

from __future__ import annotations

import socket
import struct
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from ztunnel.model.address import IPAddress, SocketAddress, canonical, parse_ip

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number
_SOCKADDR_IN = struct.Struct("!HH4s8x")
_SOCKADDR_IN6 = struct.Struct("!HHI16sI")


@lru_cache(maxsize=8192)
def _ip(text: str) -> IPAddress:
    # Parsing takes microseconds, and a node sees the same addresses again and again.
    return parse_ip(text)


def from_sockaddr(sockaddr: Any) -> SocketAddress:
    """Returns an AF_INET or AF_INET6 address of ``socket`` in canonical form. A scope id is dropped."""
    return SocketAddress(_ip(sockaddr[0]), sockaddr[1])


def local_address(sock: socket.socket) -> SocketAddress:
    """Returns the address of this end. Raises OSError when the socket is closed."""
    return from_sockaddr(sock.getsockname())


class DestinationOrigin(Enum):
    """The source of an original destination. The value is its name in logs."""

    SO_ORIGINAL_DST = "SO_ORIGINAL_DST"
    IP6T_SO_ORIGINAL_DST = "IP6T_SO_ORIGINAL_DST"
    LOCAL_ADDRESS = "local address"


class OriginalDestination(NamedTuple):
    """The original destination of a redirected connection, and its source.

    errors: the answers of connection tracking to both questions if both failed (IPv4 first); otherwise None.
    """

    address: SocketAddress
    origin: DestinationOrigin
    errors: tuple[OSError, OSError] | None = None


def original_destination(sock: socket.socket) -> OriginalDestination:
    """Returns the destination of an accepted connection before an iptables REDIRECT.

    Asks connection tracking for IPv4, then for IPv6. If both fail (TPROXY, or no redirection), it is the
    socket's local address. Raises OSError only if the socket has no local address either, that is, when it is
    closed.
    """
    try:
        raw = sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
    except OSError as error:
        first = error
    else:
        _, port, packed = _SOCKADDR_IN.unpack(raw)
        return OriginalDestination(
            SocketAddress(IPv4Address(packed), port), DestinationOrigin.SO_ORIGINAL_DST
        )
    try:
        raw = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
    except OSError as error:
        return OriginalDestination(local_address(sock), DestinationOrigin.LOCAL_ADDRESS, (first, error))
    _, port, _, packed, _ = _SOCKADDR_IN6.unpack(raw)
    return OriginalDestination(
        SocketAddress(canonical(IPv6Address(packed)), port), DestinationOrigin.IP6T_SO_ORIGINAL_DST
    )
