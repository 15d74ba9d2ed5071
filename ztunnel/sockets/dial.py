"""Dialling: the options of a connecting socket, and the source address that it shows.

The socket is a plain, non-blocking ``socket.socket``. The system call comes first, and the wait
(``trio.lowlevel.wait_writable``) only if it would block.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import nullcontext

import trio

from ztunnel.bounds import DEFAULTS
from ztunnel.errors import ZtunnelError
from ztunnel.model.address import IPAddress, SocketAddress
from ztunnel.sockets.factories import SocketFactory
from ztunnel.sockets.keepalive import Keepalive
from ztunnel.sockets.reset import close_with_reset, set_reset_on_close
from ztunnel.sockets.source import ClientSources


class ConnectTimedOut(ZtunnelError, TimeoutError):
    """A dial took too long."""

    code = "ZT-NET-002"

    def __str__(self) -> str:
        return "deadline has elapsed"


async def connect(
    destination: SocketAddress,
    *,
    factory: SocketFactory,
    client: IPAddress | None = None,
    sources: ClientSources | None = None,
    mark: int | None = None,
    keepalive: Keepalive | None = None,
    reset_on_close: bool = False,
    timeout: float = DEFAULTS.connection.dial_timeout,  # noqa: ASYNC109 # the limit is part of the contract of a dial
) -> socket.socket:
    """Dial a TCP connection. Returns the socket, which the caller closes. It has TCP_NODELAY.

    client: the address that the application should see as the source, with the help of ``sources``. It is
        ignored if it is the destination's own address (a pod that connects to itself).
    mark, keepalive: set on the socket if given.
    reset_on_close: the connection ends with a reset, unless a relay has seen both ends
        (`ztunnel.sockets.reset`).

    It is no checkpoint when the connection is made at once, as it is within one machine. Raises
    `ConnectTimedOut` after ``timeout`` seconds, and OSError for other failures, also when the mark cannot be
    set.
    """
    version = destination.ip.version
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    if client == destination.ip:
        sources = None
    # Most dials do not wait, and a cancel scope costs as much as their system calls.
    waits = not factory.ready(family) or not (sources is None or sources.ready(version))
    with trio.move_on_after(timeout) if waits else nullcontext():
        sock = await factory.stream(family)
        try:
            _prepare(sock, mark, keepalive)
            if reset_on_close:
                set_reset_on_close(sock)
            if client is not None and sources is not None:
                await sources.prepare(sock, destination, client)
            if _connects(sock, (str(destination.ip), destination.port)):
                return sock
            with trio.move_on_after(timeout):
                await trio.lowlevel.wait_writable(sock)
                _check(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                return sock
        except BaseException:
            # The kernel may have established the connection by now. A reset tells the other end that it is
            # void.
            close_with_reset(sock)
            raise
        close_with_reset(sock)
    raise ConnectTimedOut


def _prepare(sock: socket.socket, mark: int | None, keepalive: Keepalive | None) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive is not None:
        keepalive.apply(sock)
    if mark:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)


def _connects(sock: socket.socket, target: tuple[str, int]) -> bool:
    """Start to connect. Returns whether the connection is established already. Raises OSError."""
    status = sock.connect_ex(target)
    if status == errno.EINPROGRESS:
        # Within one machine the other end has answered by now. Asking again saves a turn of Trio's loop.
        status = sock.connect_ex(target)
        if status in {errno.EALREADY, errno.EINPROGRESS}:
            return False
    if status != errno.EISCONN:
        _check(status)
    return True


def _check(status: int) -> None:
    if status:
        raise OSError(status, os.strerror(status))
