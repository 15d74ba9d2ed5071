"""All open descriptors of this process and their use, for `/debug/sockets`.

The kernel lists them with their states (`ztunnel.sockets.descriptor_views`), the pods know their use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import trio

from ztunnel.dns.upstream import PORT
from ztunnel.proxy.connection_table import OutboundEntry
from ztunnel.proxy.pod import PodProxy
from ztunnel.sockets.descriptor_views import Use, shown_descriptors
from ztunnel.tls.socket_and_stream_tls import SocketTls

_SLICE = 500
"""Uses that are gathered between two pauses."""


def descriptors(pods: Iterable[PodProxy], dns_port: int) -> Iterator[dict[str, Any] | None]:
    """Yields one mapping for each descriptor, by number. Those that close meanwhile are left out.

    Yields None in between, where the caller lets other tasks run. ``dns_port``: of pods' DNS proxies.
    """
    uses: dict[int, Use] = {}
    for pod in pods:
        found = _uses(pod)
        while part := list(islice(found, _SLICE)):
            uses.update(part)
            yield None
    for shown in shown_descriptors(uses, trio.current_time()):
        if shown is not None and not shown["role"]:
            shown["role"] = _dns_role(shown.get("local", ""), shown.get("peer", ""), dns_port)
        yield shown


def _dns_role(local: str, peer: str, dns_port: int) -> str:
    """Returns the role of a socket of the DNS proxy, which keeps no account of them; "" for another one."""
    if local.endswith(f":{dns_port}"):
        return "dns client"
    return "dns query to a nameserver" if peer.endswith(f":{PORT}") else ""


def _uses(pod: PodProxy) -> Iterator[tuple[int, Use]]:
    name = pod.context.name
    for component, listener in pod.listeners:
        yield listener.fileno(), Use(name, f"{component} listener")
    table = pod.context.connections
    for entry in [*table.outbound, *table.inbound]:
        if entry.sock is not None and entry.report is not None:
            yield entry.sock.fileno(), Use(name, "application", entry.opened, entry.report.id)
    for waiting in list(table.waiting):
        if waiting.sock is not None and waiting.report is not None:
            role = "application" if isinstance(waiting, OutboundEntry) else "tunnel of a peer"
            yield waiting.sock.fileno(), Use(name, role, waiting.opened, waiting.report.id)
    if pod.outbound is not None:
        for key, tunnel in pod.outbound.pool.tunnels():
            if isinstance(tunnel.tls, SocketTls):
                yield tunnel.tls.socket.fileno(), Use(name, f"tunnel to {key.next_hop}", tunnel.opened)
    if pod.inbound is not None:
        for served in list(pod.inbound.tunnels):
            if isinstance(served.tls, SocketTls):
                yield served.tls.socket.fileno(), Use(name, "tunnel of a peer", served.opened)
