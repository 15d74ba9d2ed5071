"""Dialling: the options of a socket that connects, and the source address that it shows.

The socket is a raw, non-blocking ``socket.socket``. The system call comes first and the wait
(``trio.lowlevel.wait_writable``) only when it would block.
"""

from __future__ import annotations

import errno
import os
import socket

import trio

from ztunnel.bounds import DEFAULTS
from ztunnel.errors import ZtunnelError, os_error_text
from ztunnel.model.address import IPAddress, SocketAddress
from ztunnel.observe.logging import get_logger
from ztunnel.sockets.factories import SocketFactory
from ztunnel.sockets.keepalive import Keepalive
from ztunnel.sockets.linux import IP_FREEBIND, IP_TRANSPARENT, IPV6_FREEBIND, IPV6_TRANSPARENT

log = get_logger("socket")


class ConnectTimedOut(ZtunnelError, TimeoutError):
    """A dial took longer than it may."""

    code = "ZT-NET-002"

    def __str__(self) -> str:
        return "deadline has elapsed"


async def connect(
    destination: SocketAddress,
    *,
    factory: SocketFactory,
    source: SocketAddress | None = None,
    mark: int | None = None,
    keepalive: Keepalive | None = None,
    timeout: float = DEFAULTS.connection.dial_timeout,  # noqa: ASYNC109 # the limit is part of the contract of a dial
) -> socket.socket:
    """Dial; the caller closes the socket, which has TCP_NODELAY, and keepalive and mark when given.

    source: the client whose address the application is to see; its port is not used. Not bound when it is
    the destination's own address (a pod that calls itself) or of the other address family. When it cannot
    be bound, a warning is logged and the connection is made without. Not a checkpoint when the connection
    is made at once, as within one machine it is. Raises `ConnectTimedOut` after ``timeout`` seconds, and
    OSError otherwise; a mark that cannot be set is one.
    """
    with trio.move_on_after(timeout):
        sock = await factory.stream(socket.AF_INET6 if destination.ip.version == 6 else socket.AF_INET)
        try:
            _prepare(sock, destination.ip, source, mark, keepalive)
            await _finish(sock, (str(destination.ip), destination.port))
        except BaseException:
            sock.close()
            raise
        return sock
    raise ConnectTimedOut


def _prepare(
    sock: socket.socket,
    destination: IPAddress,
    source: SocketAddress | None,
    mark: int | None,
    keepalive: Keepalive | None,
) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive is not None:
        keepalive.apply(sock)
    if mark:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    if source is not None and source.ip != destination:
        _spoof(sock, destination, source.ip)


def _spoof(sock: socket.socket, destination: IPAddress, source: IPAddress) -> None:
    """Bind to an address that is not ours. A failure is only warned about; the application then sees ours."""
    if source.version != destination.version:
        log.warn(f"failed to bind local addr: {source} and {destination} are of different address families")
        return
    try:
        if source.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    except OSError as error:
        log.warn(f"failed to set freebind: {os_error_text(error)}")
        return
    try:
        # The client has a connection from that address to that destination itself, and this one must not get
        # its port: to connection tracking the two would be the same. bind prefers odd ports where connect
        # prefers even ones, so the port must be chosen here and not at connect (IP_BIND_ADDRESS_NO_PORT).
        sock.bind((str(source), 0))
    except OSError as error:
        log.warn(f"failed to bind local addr: {os_error_text(error)}")


async def _finish(sock: socket.socket, target: tuple[str, int]) -> None:
    status = sock.connect_ex(target)
    if status == errno.EINPROGRESS:
        # Within one machine the other end has answered by now, and asking again saves a trip through trio's
        # loop.
        status = sock.connect_ex(target)
        if status in {errno.EALREADY, errno.EINPROGRESS}:
            await trio.lowlevel.wait_writable(sock)
            status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if status not in {0, errno.EISCONN}:
        raise OSError(status, os.strerror(status))
