"""The inner tunnel of double HBONE: TLS and HTTP/2 with the destination, inside a stream to its gateway.

It belongs to one connection and is never shared. A pooled tunnel stays open after its streams and so has time
to write everything. This one ends with its only stream: when both directions are over, its last bytes may
still wait for the outer stream's window, and a reset of the outer stream would discard them, at the gateway
too. So it lingers: everything is written, then close_notify inside and END_STREAM outside, and then it waits
until the peer has ended its side (`ConnectionBounds.inner_linger`). If the client has reset its connection,
the wait is as short as for any other connection (`TunnelBounds.hangup_grace`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from ztunnel.bounds import Bounds
from ztunnel.decide.plans import OutboundPlan
from ztunnel.hbone import HboneClient
from ztunnel.proxy.connection_table import OutboundEntry
from ztunnel.proxy.podcontext import Shared
from ztunnel.proxy.relay import RelayEnd, relay_stream
from ztunnel.proxy.report import ConnectionReport
from ztunnel.sockets.hangup import Hangup
from ztunnel.tls.socket_and_stream_tls import StreamTls
from ztunnel.tls.tls_connection import TlsConnection
from ztunnel.tls.tls_errors import TlsError
from ztunnel.tunnel.client_tunnel import ClientStream, ClientTunnel
from ztunnel.tunnel.connect_answer import accepted
from ztunnel.tunnel.failures import ConnectionFailure, DialError
from ztunnel.tunnel.stream_transport import StreamTransport


async def relay_inside(
    sock: socket.socket,
    outer: ClientStream,
    plan: OutboundPlan,
    fields: list[tuple[str, str]],
    shared: Shared,
    report: ConnectionReport,
    entry: OutboundEntry,
    established: Callable[[], None],
    hangup: Hangup,
) -> RelayEnd:
    """Open a tunnel inside ``outer`` and a CONNECT in that tunnel, and relay ``sock`` through it.

    Calls ``established`` when the destination has accepted the connection; raises ConnectionFailure when it
    does not. The caller closes ``sock`` and ``outer``.

    hangup: the watch of ``sock``.
    """
    tls = await _handshake(outer, plan, shared)
    tunnel = ClientTunnel(tls, HboneClient(shared.hbone_settings, shared.window_budget), shared.bounds.tunnel)
    entry.tunnels = (outer.tunnel, tunnel)
    failure: ConnectionFailure | None = None
    end = RelayEnd(None)
    client_gone = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tunnel.run, name=f"inner tunnel → {plan.authority}")
        try:
            assert plan.authority is not None
            forwarded = ("x-forwarded-network", shared.config.network)
            stream = await accepted(tunnel.open(plan.authority, [*fields, forwarded]))
            assert stream.response is not None
            report.inner_peer(tls.peer_identity, stream.response.headers)
            established()
            end = await relay_stream(
                sock,
                stream,
                sent_to_stream=report.received,
                received_from_stream=report.sent,
                outbound=True,
                hangup=hangup,
            )
            client_gone = stream.sink_error is not None
        except ConnectionFailure as error:
            # Raised after the nursery, because a nursery would wrap it in an ExceptionGroup.
            failure = error
        await _end(tunnel, outer, shared.bounds, hangup, client_gone=client_gone)
    if failure is not None:
        raise failure
    return end


async def _handshake(outer: ClientStream, plan: OutboundPlan, shared: Shared) -> TlsConnection:
    certificate = await shared.certificates.get(plan.source.identity)
    context = shared.certificates.client(certificate)
    tls = StreamTls(context, StreamTransport(outer), plan.inner_expected)
    try:
        limits = shared.bounds.connection
        await tls.handshake(limits.handshake_timeout, alert_seconds=limits.alert_timeout)
    except (TlsError, OSError) as error:
        tls.close()
        # If the service expects no identity at all, every peer is refused: another attempt changes nothing.
        raise DialError(str(error), elsewhere=bool(plan.inner_expected)) from error
    except BaseException:
        tls.close()
        raise
    return tls


async def _end(
    tunnel: ClientTunnel, outer: ClientStream, bounds: Bounds, hangup: Hangup, *, client_gone: bool
) -> None:
    """End the tunnel: linger, if the peer cooperates. The tunnel has ended when this returns."""
    with trio.move_on_after(bounds.connection.inner_linger) as lingering:

        def hurry() -> None:
            latest = trio.current_time() + bounds.tunnel.hangup_grace
            lingering.deadline = min(lingering.deadline, latest)

        hangup.gone = hurry
        if client_gone or hangup.happened:
            hurry()
        if await tunnel.finish():
            outer.send_end()
            await tunnel.ended.wait()
    tunnel.stop()
