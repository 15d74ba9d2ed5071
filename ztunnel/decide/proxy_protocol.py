"""Makes the PROXY protocol v2 header that is sent to a sandwiched waypoint before the first byte.

Format: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt section 2.2. Istio adds a TLV of type
0xD0 with the peer's SPIFFE URI. Type 0xD1 (service hostname) is reserved there and never written.
"""

from __future__ import annotations

from struct import pack

from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
VERSION_AND_COMMAND = 0x21
TLV_IDENTITY = 0xD0

_UNSPECIFIED, _TCP_OVER_IPV4, _TCP_OVER_IPV6 = 0x01, 0x11, 0x21
_MAX_IDENTITY = 0xFFFF - 3 - 36


def proxy_header(source: SocketAddress, destination: SocketAddress, identity: Identity | None) -> bytes:
    """Returns the bytes of the header.

    If the addresses are of different IP versions, they are left out (UNSPEC).

    An identity too long for the header is left out too: the application then sees an unauthenticated peer.
    """
    if source.ip.version != destination.ip.version:
        family, addresses = _UNSPECIFIED, b""
    else:
        family = _TCP_OVER_IPV4 if source.ip.version == 4 else _TCP_OVER_IPV6
        addresses = source.ip.packed + destination.ip.packed + pack("!HH", source.port, destination.port)
    tlv = b""
    if identity is not None:
        uri = str(identity).encode()
        if len(uri) <= _MAX_IDENTITY:
            tlv = pack("!BH", TLV_IDENTITY, len(uri)) + uri
    length = len(addresses) + len(tlv)
    return SIGNATURE + pack("!BBH", VERSION_AND_COMMAND, family, length) + addresses + tlv
