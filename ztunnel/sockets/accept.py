"""The accept loop.

It survives every error of accept, gives other tasks their turn, and sheds load at the limit.

Near the limit of descriptors a connection is still accepted. If it stayed in the backlog, its client would
wait for nothing, and the listener would stay readable forever. The connection is reset at once, and a log
line says, at most once a second, how many were. When no descriptor is left for that, the loop pauses and then
continues.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from ztunnel.bounds import DEFAULTS, ConnectionBounds
from ztunnel.errors import os_error_text
from ztunnel.model.address import SocketAddress
from ztunnel.observe.logging import get_logger
from ztunnel.sockets.addresses import from_sockaddr
from ztunnel.sockets.descriptor_limit import DescriptorBudget
from ztunnel.sockets.listen import Listener
from ztunnel.sockets.reset import close_with_reset

Handler: TypeAlias = Callable[[socket.socket, SocketAddress], Awaitable[object]]
"""Serves one accepted connection and always closes it. An exception that it raises ends the nursery."""

log = get_logger("proxy")

_ACCEPTS_PER_WAKEUP = 16
_LARGEST_BACKLOG = 4096

# The connection is lost, the listener is not: accept(2) also returns errors of the new socket.
_CONNECTION_ERRORS = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
        errno.ETIMEDOUT,
    }
)


class _Overload:
    """The connections that were reset since the last log line about them."""

    def __init__(self, component: str, report: float) -> None:
        self._component = component
        self._report = report
        self._count = 0
        self._next_report = 0.0
        self._said = False

    def turned_away(self, reason: str) -> None:
        self._count += 1
        now = trio.current_time()
        if not self._said or now >= self._next_report:
            log.warn(f"connections refused: {reason}", component=self._component, connections=self._count)
            self._count = 0
            self._said = True
            self._next_report = now + self._report

    def over(self) -> None:
        if self._said:
            log.info("connections accepted again", component=self._component, connections=self._count)
            self._said = False
            self._count = 0


async def accept_forever(
    listener: Listener,
    handler: Handler,
    nursery: trio.Nursery,
    *,
    component: str,
    budget: DescriptorBudget | None = None,
    bounds: ConnectionBounds = DEFAULTS.connection,
) -> None:
    """Accept until cancelled, or until the listener is closed. The caller closes the listener.

    handler: started in ``nursery`` for each connection, as ``{component} {peer}``; it owns the non-blocking
        socket.
    budget: a connection beyond its ``accept_line`` is reset; None accepts until the process has no
        descriptor left.
    """
    sock = listener.sock
    accept = sock.accept
    overload = _Overload(component, bounds.accept_report)
    while True:
        try:
            await listener.readable()
        except trio.ClosedResourceError:
            return
        for _ in range(_ACCEPTS_PER_WAKEUP):
            try:
                connection, sockaddr = accept()
            except BlockingIOError:
                break
            except OSError as error:
                if sock.fileno() < 0:
                    return
                if error.errno in _CONNECTION_ERRORS:
                    log.error(f"Failed TCP handshake {os_error_text(error)}", component=component)
                    continue
                overload.turned_away(os_error_text(error))
                await trio.sleep(bounds.accept_pause)
                break
            if budget is not None and budget.full(connection.fileno()):
                close_with_reset(connection)
                overload.turned_away(f"over {budget.accept_line} descriptors are open")
                continue
            overload.over()
            _start(nursery, handler, connection, sockaddr, component)


def accept_waiting(
    listener: Listener,
    handler: Handler,
    nursery: trio.Nursery,
    *,
    component: str,
    budget: DescriptorBudget | None = None,
) -> int:
    """Accept what waits in the listener's backlog.

    Returns how many; the kernel would reset them at the close.

    It does not wait, so the caller can close the listener right after it. Arguments as in `accept_forever`.
    """
    accepted = 0
    if listener.sock.fileno() < 0:
        return 0
    for _ in range(_LARGEST_BACKLOG):
        try:
            connection, sockaddr = listener.sock.accept()
        except OSError as error:
            if error.errno in _CONNECTION_ERRORS:
                continue
            break
        if budget is not None and budget.full(connection.fileno()):
            close_with_reset(connection)
            continue
        _start(nursery, handler, connection, sockaddr, component)
        accepted += 1
    return accepted


def _start(
    nursery: trio.Nursery,
    handler: Handler,
    connection: socket.socket,
    sockaddr: tuple[str, int],
    component: str,
) -> None:
    try:
        connection.settimeout(0)
        peer = from_sockaddr(sockaddr)
        nursery.start_soon(handler, connection, peer, name=f"{component} {peer}")
    except BaseException:
        connection.close()
        raise
