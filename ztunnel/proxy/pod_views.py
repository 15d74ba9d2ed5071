"""Views of a pod's open connections, tunnels and sockets, for the admin server.

Views are made when somebody asks, and nothing is stored for them: byte counts come from the metrics, idle
times and queues from the kernel, windows from the HTTP/2 connections.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any

import trio

from ztunnel.explain.connection_views import ConnectionView
from ztunnel.model.address import SocketAddress
from ztunnel.observe.access_log import Direction
from ztunnel.proxy.connection_table import ConnectionEntry, InboundEntry
from ztunnel.proxy.history import ClosedConnection
from ztunnel.proxy.phase import Phase
from ztunnel.proxy.pod import PodProxy
from ztunnel.proxy.report import ConnectionReport
from ztunnel.sockets.descriptor_views import address_of
from ztunnel.sockets.tcp_info import TcpInfo, tcp_info
from ztunnel.tls.socket_and_stream_tls import SocketTls
from ztunnel.tunnel.tunnel import Tunnel
from ztunnel.tunnel.tunnel_stream import TunnelStream


def open_entries(pod: PodProxy) -> list[ConnectionEntry]:
    """Returns the open connections of a pod, with those that still wait for their plan."""
    table = pod.context.connections
    return [*table.outbound, *table.inbound, *table.waiting]


def open_view(pod: PodProxy, entry: ConnectionEntry) -> ConnectionView | None:
    """Returns the view of one open connection; None when it has no report yet."""
    report = entry.report
    if report is None:
        return None
    known = report.entry
    outbound = report.direction is Direction.OUTBOUND
    received, sent = report.counted
    other = None if known is None else known.destination if outbound else known.source
    info = tcp_info(entry.sock) if entry.sock is not None else None
    bounds = pod.context.shared.bounds.connection
    stream = entry.stream
    return ConnectionView(
        id=report.id,
        state="open",
        direction=report.direction.value,
        pod=pod.context.name,
        client=str(report.source),
        destination=str(_judged_destination(entry) or report.destination),
        age_seconds=round(trio.current_time() - entry.opened, 3),
        peer=f"{other.namespace}/{other.shown}" if other is not None and other.shown else "",
        next_hop=str(report.next_hop or ""),
        service="" if known is None else known.service or "",
        protocol=report.protocol,
        peer_identity="" if other is None or known is None or not known.mtls else other.principal,
        idle_seconds=None if info is None else info.idle,
        received_bytes=received,
        sent_bytes=sent,
        waits_for=_unestablished(pod, report) or _waits_for(entry, info, bounds.settled, outbound=outbound),
        send_window=None if stream is None else stream.send_window,
        held_bytes=0 if stream is None else stream.held,
        route=report.route,
        attempts=report.attempts,
        trace=report.trace.trace_id,
    )


def idle_seconds(entry: ConnectionEntry) -> float:
    """Returns for how many seconds the application's socket has moved no byte, 0 if that is not known."""
    info = tcp_info(entry.sock) if entry.sock is not None else None
    return 0.0 if info is None else info.idle


def _judged_destination(entry: ConnectionEntry) -> SocketAddress | None:
    """Returns the address that policy was asked about, for an incoming connection that was admitted."""
    return entry.facts.destination if isinstance(entry, InboundEntry) and entry.facts is not None else None


def _unestablished(pod: PodProxy, report: ConnectionReport) -> str:
    """Returns what a connection waits for before bytes can flow, "" if they can."""
    phase = report.phase
    if phase is Phase.ENDPOINT:
        phase = _dialling(pod, report.next_hop) or phase
    return str(phase.value)


def _dialling(pod: PodProxy, next_hop: SocketAddress | None) -> Phase | None:
    """Returns how far the dial of a tunnel to a next hop has come, None if none is under way."""
    dials = {} if pod.outbound is None else pod.outbound.dials
    return next((phase for key, phase in dials.items() if key.next_hop == next_hop), None)


def _waits_for(entry: ConnectionEntry, info: TcpInfo | None, settled: float, *, outbound: bool) -> str:
    application, other = ("client", "server") if outbound else ("server", "client")
    stream = entry.stream
    if stream is not None:
        if stream.held:
            return application
        if stream.blocked:
            return "the tunnel's peer to read"
        if not stream.end_sent and not stream.send_window:
            return "peer's window"
    if info is not None and info.idle > settled:
        if info.unsent:
            return application
        if info.unread:
            return other
    return "nobody"


def closed_view(entry: ClosedConnection, now: float) -> ConnectionView:
    """Returns the view of a connection that has ended. ``now``: seconds since the epoch."""
    return ConnectionView(
        id=entry.id,
        state="closed",
        direction=entry.direction,
        pod=entry.pod,
        client=str(entry.client),
        destination=str(entry.destination),
        age_seconds=round(now - entry.began, 3),
        peer=entry.peer,
        next_hop="" if entry.next_hop is None else str(entry.next_hop),
        service=entry.service,
        protocol=entry.protocol,
        peer_identity=entry.peer_identity,
        duration_seconds=round(entry.seconds, 6),
        received_bytes=entry.received,
        sent_bytes=entry.sent,
        error=entry.error,
        code=entry.code,
        why=entry.why,
        policy=entry.policy,
        route=entry.route,
        attempts=entry.attempts,
        trace=entry.trace,
    )


def tunnels(pod: PodProxy) -> Iterator[dict[str, Any]]:
    """Returns the tunnels of a pod: those of its pool, and those that peers opened."""
    yield from pool_tunnels(pod)
    if pod.inbound is not None:
        for served in list(pod.inbound.tunnels):
            sock = _socket_of(served)
            yield {
                "pod": pod.context.name,
                "direction": "inbound",
                "peer": "" if sock is None else address_of(sock, peer=True),
                **_tunnel(served),
            }


def pool_tunnels(pod: PodProxy, next_hop: SocketAddress | None = None) -> Iterator[dict[str, Any]]:
    """Returns the tunnels of a pod's pool; only those to ``next_hop``, if it is given."""
    if pod.outbound is None:
        return
    for key, tunnel in pod.outbound.pool.tunnels():
        if next_hop is None or key.next_hop == next_hop:
            yield {
                "pod": pod.context.name,
                "direction": "outbound",
                "presents": str(key.source),
                "expects": list(key.expected),
                "peer": str(key.next_hop),
                "client": str(key.client),
                "workload": key.workload_uid,
                "canOpen": tunnel.can_open,
                "idleSeconds": None if tunnel.streams else round(trio.current_time() - tunnel.idle_since, 3),
                **_tunnel(tunnel),
            }


def _tunnel(tunnel: Tunnel[Any, Any]) -> dict[str, Any]:
    now = trio.current_time()
    windows = [stream.send_window for stream in tunnel.streams.values()]
    held = sum(stream.held for stream in tunnel.streams.values())
    return {
        "peerIdentities": [str(one) for one in tunnel.tls.peer_identities],
        "streams": len(tunnel.streams),
        "stalledStreams": sum(1 for stream in tunnel.streams.values() if _stalled(stream)),
        "heldBytes": held,
        "sendWindow": min(windows, default=None),
        "blocked": tunnel.blocked,
        "draining": tunnel.hbone.draining or tunnel.hbone.peer_is_draining,
        "ageSeconds": round(now - tunnel.opened, 3),
        "heardSecondsAgo": round(now - tunnel.heard, 3),
        "roundTripSeconds": None if tunnel.round_trip is None else round(tunnel.round_trip, 6),
    }


def _stalled(stream: TunnelStream) -> bool:
    if stream.held:
        return True
    return not stream.end_sent and not stream.dead and not stream.send_window


def stalled(entries: Iterable[ConnectionEntry]) -> tuple[int, int]:
    """Returns how many of their streams are stalled, and how many bytes are held for slow applications."""
    count = held = 0
    for entry in entries:
        stream = entry.stream
        if stream is not None and entry.report is not None and entry.report.phase is Phase.RELAY:
            count += _stalled(stream)
            held += stream.held
    return count, held


def _socket_of(tunnel: Tunnel[Any, Any]) -> socket.socket | None:
    return tunnel.tls.socket if isinstance(tunnel.tls, SocketTls) else None
