"""Listening: the options of a listening socket, which its connections inherit.

Linux copies TCP_NODELAY, keepalive, the user timeout, SO_LINGER, the mark and IP_TRANSPARENT from the
listening socket to each accepted connection. So they are set there, and accepting needs no further system
call.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import trio

from ztunnel.errors import ZtunnelError, os_error_text
from ztunnel.model.address import SocketAddress
from ztunnel.observe.logging import get_logger
from ztunnel.sockets import shared_wait
from ztunnel.sockets.factories import SocketFactory
from ztunnel.sockets.keepalive import Keepalive
from ztunnel.sockets.linux import IP_TRANSPARENT
from ztunnel.sockets.reset import set_reset_on_close
from ztunnel.sockets.takeover import steer_to_newest

log = get_logger("socket")

_REUSE_PORT_BACKLOG = 128
_BACKLOG = 1024


class BindError(ZtunnelError, OSError):
    """An address cannot be listened on.

    address: the address to bind. text: the operating system's message. errno: that of the failed call.
    """

    code = "ZT-NET-001"

    def __init__(self, address: SocketAddress, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.address = address
        self.text = os_error_text(error)

    def __str__(self) -> str:
        return f"failed to bind to address {self.address}: {self.text}"

    @property
    def brief(self) -> str:
        """The text for the CNI agent: ``Bind([::]:15008, Address already in use (os error 98))``."""
        return f"Bind({self.address}, {self.text})"


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """The options of a listening socket, which the accepted connections inherit.

    mark: SO_MARK, None or 0 for none. keepalive: None to leave it off.
    reset_on_close: the connections end with a reset, unless a relay has seen both ends
        (`ztunnel.sockets.reset`).
    """

    mark: int | None = None
    keepalive: Keepalive | None = None
    reset_on_close: bool = False


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket.

    Other processes may accept from it too; the kernel wakes one of those that wait.

    transparent: IP_TRANSPARENT is set on it, so sources may be spoofed.
    """

    sock: socket.socket
    address: SocketAddress
    transparent: bool

    async def readable(self) -> None:
        """Wait until there may be something to accept. Raises ClosedResourceError when it was closed."""
        if self.sock.fileno() < 0:
            raise trio.ClosedResourceError
        await shared_wait.readable(self.sock)

    def close(self) -> None:
        """Close the socket. Tasks that wait in accept get ClosedResourceError."""
        if self.sock.fileno() >= 0:
            shared_wait.closing(self.sock)
            self.sock.close()


async def listen(
    address: SocketAddress,
    *,
    factory: SocketFactory,
    options: SocketOptions = SocketOptions(),
    reuse_port: bool = False,
    transparent: bool | None = False,
    backlog: int | None = None,
) -> Listener:
    """Bind and listen. Returns the listener, which the caller closes.

    reuse_port: SO_REUSEPORT (a failure is only logged) and a backlog of 128, as in the pods. If another
        process listens on the port already, new connections come to this socket from now on (see
        `ztunnel.sockets.takeover`).
    transparent: True requires IP_TRANSPARENT, None tries it, False does not set it. Only the IPv4 option is
        set, also on an IPv6 socket, as in the Rust ztunnel.

    ``[::]`` accepts IPv4 too. If the kernel has no IPv6 at all, it becomes ``0.0.0.0``, and
    `Listener.address` shows that. For port 0 the kernel chooses a port. Raises `BindError`.
    """
    try:
        try:
            return await _listen(address, factory, options, transparent, backlog, reuse_port=reuse_port)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT or address.ip != _ANY_IPV6:
                raise
            any_ipv4 = SocketAddress(IPv4Address(0), address.port)
            return await _listen(any_ipv4, factory, options, transparent, backlog, reuse_port=reuse_port)
    except OSError as error:
        raise BindError(address, error) from error


_ANY_IPV6 = IPv6Address(0)


async def _listen(
    address: SocketAddress,
    factory: SocketFactory,
    options: SocketOptions,
    transparent: bool | None,  # noqa: FBT001 # internal, three values
    backlog: int | None,
    *,
    reuse_port: bool,
) -> Listener:
    version_6 = address.ip.version == 6
    sock = await factory.stream(socket.AF_INET6 if version_6 else socket.AF_INET)
    try:
        if version_6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        shared = reuse_port and _set_reuse_port(sock)
        # Also with SO_REUSEPORT: connections in TIME-WAIT inherit this option. Without it they would prevent,
        # for a minute, a successor that shares no ports from listening.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, options.mark)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if options.keepalive is not None:
            options.keepalive.apply(sock)
        if options.reset_on_close:
            set_reset_on_close(sock)
        is_transparent = transparent is not False and _set_transparent(sock, required=transparent is True)
        sock.bind((str(address.ip), address.port))
        default = _REUSE_PORT_BACKLOG if reuse_port else _BACKLOG
        sock.listen(default if backlog is None else backlog)
        if shared:
            steer_to_newest(sock)
        return Listener(sock, SocketAddress(address.ip, sock.getsockname()[1]), is_transparent)
    except BaseException:
        sock.close()
        raise


async def bind_datagram(
    address: SocketAddress, *, factory: SocketFactory, mark: int | None = None, reuse_port: bool = False
) -> socket.socket:
    """Bind a UDP socket, which the caller closes. ``mark``: as in `SocketOptions`.

    reuse_port: SO_REUSEPORT; a failure is only logged. Raises `BindError`.
    """
    version_6 = address.ip.version == 6
    try:
        sock = await factory.datagram(socket.AF_INET6 if version_6 else socket.AF_INET)
        try:
            shared = reuse_port and _set_reuse_port(sock)
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.bind((str(address.ip), address.port))
            if shared:
                steer_to_newest(sock)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise BindError(address, error) from error
    return sock


def _set_reuse_port(sock: socket.socket) -> bool:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        log.warn(f"failed to set SO_REUSEPORT: {os_error_text(error)}")
        return False
    return True


def is_transparent(sock: socket.socket) -> bool:
    """Returns whether a socket has IP_TRANSPARENT, by itself or from the listener that accepted it."""
    try:
        return bool(sock.getsockopt(socket.IPPROTO_IP, IP_TRANSPARENT))
    except OSError:
        return False


def _set_transparent(sock: socket.socket, *, required: bool) -> bool:
    try:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    except OSError:
        if required:
            raise
        return False
    return True
