"""Listening: the options of a listening socket, which its connections inherit, and who closes it.

Options that an accepted socket is to have are set on the listening socket: Linux hands down TCP_NODELAY,
keepalive, the user timeout, the mark and IP_TRANSPARENT to each connection, so that accepting costs no
further system call.
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
from ztunnel.sockets.takeover import steer_to_newest

log = get_logger("socket")

_REUSE_PORT_BACKLOG = 128
_BACKLOG = 1024


class BindError(ZtunnelError, OSError):
    """An address could not be listened on.

    address: what was to be bound; text: the operating system's words. errno is that of the failing call.
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
        """What the CNI agent is told: ``Bind([::]:15008, Address already in use (os error 98))``."""
        return f"Bind({self.address}, {self.text})"


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What a listening socket is given, and hands down to the connections that it accepts.

    mark: SO_MARK, None or 0 for none. keepalive: None to leave it off.
    """

    mark: int | None = None
    keepalive: Keepalive | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket.

    transparent: IP_TRANSPARENT is set on it, so sources may be spoofed. Other processes may accept from it
    too: of those that wait for a connection one is woken.
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
        """Close the socket; whoever waits in accept is told so."""
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
    """Bind and listen; the caller closes the listener.

    reuse_port: SO_REUSEPORT (a failure only warns) and a backlog of 128, as in the pods. Where another
    process listens already, what comes from now on comes here: see `ztunnel.sockets.takeover`.
    transparent: True requires IP_TRANSPARENT, None tries, False does not. Only the IPv4 option is set, on
    an IPv6 socket as well, as the Rust ztunnel does.

    ``[::]`` accepts IPv4 as well. Where the kernel has no IPv6 at all it becomes ``0.0.0.0``, and
    `Listener.address` tells. A port of 0 is chosen by the kernel. Raises `BindError`.
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
        # Beside SO_REUSEPORT as well: connections in TIME-WAIT inherit it, and without it would keep a
        # successor that shares no ports from listening for a minute.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, options.mark)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if options.keepalive is not None:
            options.keepalive.apply(sock)
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
    """Bind a UDP socket, which the caller closes. mark: as in `SocketOptions`.

    reuse_port: SO_REUSEPORT, a failure of which only warns. Raises `BindError`.
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
