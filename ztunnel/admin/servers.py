"""One server of the node (readiness, admin, metrics) as one task, from bind to the last answer.

Its listeners: where, in which families, and what is said when one cannot be opened.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import ClassVar

import trio

from ztunnel.admin.http import Handler, HttpServer, no_delay
from ztunnel.bounds import DEFAULTS, AdminBounds
from ztunnel.config.model import ListenAddress, Localhost
from ztunnel.errors import ZtunnelError
from ztunnel.model.address import SocketAddress, parse_ip
from ztunnel.observe.logging import get_logger

log = get_logger("hyper_util")

_LOOPBACK_WITHOUT_IPV6 = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
_BACKLOG = 128


class ListenError(ZtunnelError):
    """A server's address could not be bound."""

    code: ClassVar[str] = "ZT-OBS-001"


def loopback_has_ipv6() -> bool:
    """Whether IPv6 is enabled on ``lo`` of our network namespace."""
    try:
        return _LOOPBACK_WITHOUT_IPV6.read_text(encoding="ascii").strip() == "0"
    except OSError:
        return False


def open_listeners(
    name: str, address: ListenAddress, *, has_ipv6: Callable[[], bool] = loopback_has_ipv6
) -> list[trio.SocketListener]:
    """Bind and listen. ``name`` is the server's, for errors. The caller closes what is returned.

    The wildcard of IPv6 takes IPv4 too, and where the kernel has no IPv6 it becomes that of IPv4. Raises
    ListenError; then nothing is left open.
    """
    if not isinstance(address, Localhost):
        try:
            return [_listener(address)]
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT and address.ip == IPv6Address("::"):
                return open_listeners(name, SocketAddress(IPv4Address(0), address.port))
            raise _failed(name, address, error) from error
    wanted = SocketAddress(IPv4Address("127.0.0.1"), address.port)
    opened: list[trio.SocketListener] = []
    try:
        opened.append(_listener(wanted))
        if address.ipv6 and has_ipv6():
            port = opened[0].socket.getsockname()[1]
            wanted = SocketAddress(IPv6Address("::1"), port)
            opened.append(_listener(wanted))
    except OSError as error:
        for listener in opened:
            listener.socket.close()
        raise _failed(name, wanted, error) from error
    return opened


def _listener(address: SocketAddress) -> trio.SocketListener:
    family = socket.AF_INET if address.ip.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            only = 0 if address.ip == IPv6Address("::") else 1
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind((str(address.ip), address.port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    no_delay(listener)
    return listener


def _failed(name: str, address: SocketAddress, error: OSError) -> ListenError:
    return ListenError(f"cannot listen on {address} for {name}: {error.strerror or error}")


async def serve(
    name: str,
    where: ListenAddress | Sequence[trio.SocketListener],
    handler: Handler,
    stop: trio.Event,
    *,
    bounds: AdminBounds = DEFAULTS.admin,
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
            await nursery.start(
                HttpServer(name, handler, bounds).serve, listeners, stop, name=f"{name} server"
            )
            task_status.started(addresses)
    finally:
        for listener in listeners:
            listener.socket.close()
    for address in addresses:
        log.info("listener drained", address=address, component=name)


def _address(listener: trio.SocketListener) -> SocketAddress:
    host, port, *_ = listener.socket.getsockname()
    return SocketAddress(parse_ip(host), port)
