"""All open descriptors of this process and their use, for `/debug/sockets`.

The kernel lists the descriptors and their states; the pods know what each one is for.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import trio

from ztunnel.proxy.connection_table import OutboundEntry
from ztunnel.proxy.pod import PodProxy
from ztunnel.sockets.tcp_info import tcp_info
from ztunnel.tls.socket_and_stream_tls import SocketTls

_SLICE = 50
"""Descriptors that are looked at between two pauses: some system calls each."""


class _Use(NamedTuple):
    pod: str
    role: str
    since: float | None = None
    connection: str = ""


def descriptors(pods: Iterable[PodProxy]) -> Iterator[dict[str, Any] | None]:
    """Yields one mapping for each descriptor, by number. Those that close meanwhile are left out.

    Yields None in between, where the caller lets other tasks run.
    """
    uses: dict[int, _Use] = {}
    for pod in pods:
        found = _uses(pod)
        while part := list(islice(found, _SLICE)):
            uses.update(part)
            yield None
    now = trio.current_time()
    for looked, number in enumerate(sorted(map(int, os.listdir("/proc/self/fd"))), 1):  # noqa: PTH208
        shown = _descriptor(number, uses.get(number), now)
        if shown is not None:
            yield shown
        if looked % _SLICE == 0:
            yield None


def _uses(pod: PodProxy) -> Iterator[tuple[int, _Use]]:
    name = pod.context.name
    for component, listener in pod.listeners:
        yield listener.fileno(), _Use(name, f"{component} listener")
    table = pod.context.connections
    for entry in [*table.outbound, *table.inbound]:
        if entry.sock is not None and entry.report is not None:
            yield entry.sock.fileno(), _Use(name, "application", entry.opened, entry.report.id)
    for waiting in list(table.waiting):
        if waiting.sock is not None and waiting.report is not None:
            role = "application" if isinstance(waiting, OutboundEntry) else "tunnel of a peer"
            yield waiting.sock.fileno(), _Use(name, role, waiting.opened, waiting.report.id)
    if pod.outbound is not None:
        for key, tunnel in pod.outbound.pool.tunnels():
            if isinstance(tunnel.tls, SocketTls):
                yield tunnel.tls.socket.fileno(), _Use(name, f"tunnel to {key.next_hop}", tunnel.opened)
    if pod.inbound is not None:
        for served in list(pod.inbound.tunnels):
            if isinstance(served.tls, SocketTls):
                yield served.tls.socket.fileno(), _Use(name, "tunnel of a peer", served.opened)


def _descriptor(number: int, use: _Use | None, now: float) -> dict[str, Any] | None:
    try:
        mode = os.fstat(number).st_mode
        target = str(Path(f"/proc/self/fd/{number}").readlink())
    except OSError:
        return None
    shown: dict[str, Any] = {"fd": number, "pod": use.pod if use else "", "role": use.role if use else ""}
    if use is not None and use.since is not None:
        shown["ageSeconds"] = round(now - use.since, 3)
    if use is not None and use.connection:
        shown["connection"] = use.connection
    if stat.S_ISSOCK(mode):
        shown.update(_socket(number))
    else:
        shown["kind"] = target.partition(":")[0] if not target.startswith("/") else target
    return shown


def _socket(number: int) -> dict[str, Any]:
    try:
        sock = socket.socket(fileno=os.dup(number))
    except OSError:
        return {"kind": "socket"}
    with sock:
        kind = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "datagram"}.get(sock.type, "other")
        family = {socket.AF_INET: "inet", socket.AF_INET6: "inet6", socket.AF_UNIX: "unix"}.get(
            sock.family, "other"
        )
        shown: dict[str, Any] = {"kind": f"{family} {kind}"}
        if family.startswith("inet"):
            shown["local"] = address_of(sock, peer=False)
            shown["peer"] = address_of(sock, peer=True)
            info = tcp_info(sock)
            if info is not None:
                shown |= {"state": info.state, "sendQueue": info.unsent, "receiveQueue": info.unread}
                shown["idleSeconds"] = info.idle
        return shown


def address_of(sock: socket.socket, *, peer: bool) -> str:
    """Returns the socket's own address or its peer's as text, "" if it has none."""
    try:
        name = sock.getpeername() if peer else sock.getsockname()
    except OSError:
        return ""
    host = str(name[0]).removeprefix("::ffff:")
    return f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"
