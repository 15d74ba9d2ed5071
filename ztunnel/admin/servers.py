"""One server of the node (readiness, admin, metrics) as one task, from bind to the last answer."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ztunnel.admin.http import Handler, HttpServer
from ztunnel.admin.listen import open_listeners
from ztunnel.config import ListenAddress, Localhost
from ztunnel.model.address import SocketAddress, parse_ip
from ztunnel.observe.logging import get_logger

log = get_logger("hyper_util")


async def serve(
    name: str,
    where: ListenAddress | Sequence[trio.SocketListener],
    handler: Handler,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[list[SocketAddress]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a handler until ``stop`` is set and the requests that were under way are answered.

    ``where`` is an address to bind, or listeners that are open already and that this call closes. ``started``
    gives the addresses. When ``stop`` is set nothing is accepted any more from that moment on. Raises
    ListenError when the address cannot be bound.
    """
    listeners = open_listeners(name, where) if isinstance(where, SocketAddress | Localhost) else list(where)
    try:
        addresses = [_address(listener) for listener in listeners]
        for address in addresses:
            log.info("listener established", address=address, component=name)
        async with trio.open_nursery() as nursery:
            await nursery.start(HttpServer(name, handler).serve, listeners, stop, name=f"{name} server")
            task_status.started(addresses)
    finally:
        for listener in listeners:
            listener.socket.close()
    for address in addresses:
        log.info("listener drained", address=address, component=name)


def _address(listener: trio.SocketListener) -> SocketAddress:
    host, port, *_ = listener.socket.getsockname()
    return SocketAddress(parse_ip(host), port)
