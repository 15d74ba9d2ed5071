"""The DNS proxy's sockets: one for UDP and one for TCP at each address."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from ztunnel.config.model import ListenAddress, Localhost
from ztunnel.model.address import SocketAddress
from ztunnel.sockets.factories import SocketFactory
from ztunnel.sockets.listen import Listener, SocketOptions, bind_datagram, listen

_RECEIVE_BUFFER = 2 * 1024 * 1024
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; the socket module lacks it


@dataclass
class DnsSockets:
    """A UDP socket and a TCP listener for each address, in the same order."""

    datagrams: list[socket.socket] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)

    def sockets(self) -> list[socket.socket]:
        """Returns all of them."""
        return [*self.datagrams, *(listener.sock for listener in self.listeners)]

    def close(self) -> None:
        """Close all sockets."""
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()
        self.close_datagrams()

    def close_datagrams(self) -> None:
        """Close the UDP sockets."""
        for sock in self.datagrams:
            sock.close()
        self.datagrams.clear()


async def open_dns_sockets(
    address: ListenAddress, sockets: SocketFactory, *, mark: int | None, reuse_port: bool
) -> DnsSockets:
    """Bind all sockets, or none. The caller closes them. Raises BindError.

    mark, reuse_port: as in `ztunnel.sockets.listen`.
    """
    made = DnsSockets()
    try:
        for one in await _addresses(address, sockets):
            datagrams = await bind_datagram(one, factory=sockets, mark=mark, reuse_port=reuse_port)
            made.datagrams.append(datagrams)
            _enlarge(datagrams)
            options = SocketOptions(mark=mark)
            made.listeners.append(await listen(one, factory=sockets, options=options, reuse_port=reuse_port))
    except BaseException:
        made.close()
        raise
    return made


async def _addresses(address: ListenAddress, sockets: SocketFactory) -> list[SocketAddress]:
    if not isinstance(address, Localhost):
        return [address]
    addresses = [SocketAddress(IPv4Address("127.0.0.1"), address.port)]
    if address.ipv6 and await sockets.ipv6_on_loopback():
        addresses.append(SocketAddress(IPv6Address("::1"), address.port))
    return addresses


def _enlarge(sock: socket.socket) -> None:
    """Enlarge the receive buffer for a thousand queries at once; by default it holds about 270."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    except OSError:
        # Without CAP_NET_ADMIN, within net.core.rmem_max.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
