"""One HTTP server of the node (readiness, admin, metrics) as one task, from bind to the last response.

It opens the listeners: their addresses, the IP versions, and the errors when one cannot be opened.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import ClassVar

import trio

from ztunnel.admin.early import listening
from ztunnel.admin.http import Handler, HttpServer, no_delay
from ztunnel.bounds import DEFAULTS, AdminBounds
from ztunnel.config.model import ListenAddress, Localhost
from ztunnel.errors import ZtunnelError
from ztunnel.model.address import SocketAddress, parse_ip
from ztunnel.observe.logging import get_logger

log = get_logger("hyper_util")

_LOOPBACK_WITHOUT_IPV6 = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")


class ListenError(ZtunnelError):
    """A server's address could not be bound."""

    code: ClassVar[str] = "ZT-OBS-001"


def loopback_has_ipv6() -> bool:
    """Returns whether IPv6 is enabled on ``lo`` of our network namespace."""
    try:
        return _LOOPBACK_WITHOUT_IPV6.read_text(encoding="ascii").strip() == "0"
    except OSError:
        return False


def bind(
    name: str,
    address: ListenAddress,
    *,
    has_ipv6: Callable[[], bool] = loopback_has_ipv6,
    early: socket.socket | None = None,
) -> list[socket.socket]:
    """Bind and listen, before there is an event loop. ``name``: the server's, for errors.

    early: sockets that are listening already. They are used if they have the right address, and closed if
        not.

    The caller closes what is returned. The IPv6 wildcard accepts IPv4 too; if the kernel has no IPv6, the
    IPv4 wildcard is used. Raises ListenError; then nothing is left open.
    """
    if early is not None:
        if early.getsockname()[:2] == _host_and_port(address):
            return [early]
        early.close()
    if not isinstance(address, Localhost):
        try:
            return [_listening(address)]
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT and address.ip == IPv6Address("::"):
                return bind(name, SocketAddress(IPv4Address(0), address.port))
            raise _failed(name, address, error) from error
    wanted = SocketAddress(IPv4Address("127.0.0.1"), address.port)
    opened: list[socket.socket] = []
    try:
        opened.append(_listening(wanted))
        if address.ipv6 and has_ipv6():
            port = opened[0].getsockname()[1]
            wanted = SocketAddress(IPv6Address("::1"), port)
            opened.append(_listening(wanted))
    except OSError as error:
        for sock in opened:
            sock.close()
        raise _failed(name, wanted, error) from error
    return opened


def open_listeners(
    name: str, address: ListenAddress, *, has_ipv6: Callable[[], bool] = loopback_has_ipv6
) -> list[trio.SocketListener]:
    """`bind`, for the event loop."""
    return [listener(sock) for sock in bind(name, address, has_ipv6=has_ipv6)]


def listener(sock: socket.socket) -> trio.SocketListener:
    """Returns the socket as a listener for the event loop. Closing one closes the other."""
    made = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    no_delay(made)
    return made


def _host_and_port(address: ListenAddress) -> tuple[str, int]:
    return (str(address.ip) if isinstance(address, SocketAddress) else "127.0.0.1", address.port)


def _listening(address: SocketAddress) -> socket.socket:
    family = socket.AF_INET if address.ip.version == 4 else socket.AF_INET6
    return listening(family, str(address.ip), address.port)


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
    """Serve a handler until ``stop`` is set and the requests in progress are answered.

    where: an address to bind, or open listeners, which this call closes. started: called with the addresses.

    Nothing is accepted after ``stop`` is set. Raises ListenError when the address cannot be bound.
    """
    listeners = open_listeners(name, where) if isinstance(where, SocketAddress | Localhost) else list(where)
    try:
        addresses = [_address(one) for one in listeners]
        for address in addresses:
            log.info("listener established", address=address, component=name)
        async with trio.open_nursery() as nursery:
            await nursery.start(
                HttpServer(name, handler, bounds).serve, listeners, stop, name=f"{name} server"
            )
            task_status.started(addresses)
    finally:
        for one in listeners:
            one.socket.close()
    for address in addresses:
        log.info("listener drained", address=address, component=name)


def _address(one: trio.SocketListener) -> SocketAddress:
    host, port, *_ = one.socket.getsockname()
    return SocketAddress(parse_ip(host), port)
