"""Connections that leave a pod (15001): find out where they wanted to go, decide, carry the decision out.

A connection that cannot be established is tried again on another endpoint of its service, as long as not
one byte has been forwarded and the failure is one that another endpoint may not have (refused, timed out, a
tunnel that died). The endpoint that failed is avoided for a short while by all connections of the pod.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence

import trio

from ztunnel.decide.headers import print_baggage, print_forwarded
from ztunnel.decide.plans import OutboundPlan, OutboundProtocol, OutboundRequest, Refusal
from ztunnel.decide.route import route, unresolved, with_ip
from ztunnel.dns.on_demand import NameResolutionError
from ztunnel.hbone import ErrorCode, HboneClient, error_text
from ztunnel.model.address import SocketAddress
from ztunnel.model.workload import Workload
from ztunnel.net.sockets import ConnectTimedOut, connect
from ztunnel.net.tls import RevokedCertificateError, SocketTls, StreamTls, TlsError
from ztunnel.observe.access_log import Direction
from ztunnel.proxy.connections import Outbound
from ztunnel.proxy.errors import (
    ConnectionFailure,
    ConnectTimeoutError,
    DialError,
    HboneTimeoutError,
    Http2Error,
    PoolClosedError,
    RefusedByPeerError,
    RelayError,
    RouteRefusedError,
    StreamRefusedError,
    os_error_text,
)
from ztunnel.proxy.podcontext import PodContext
from ztunnel.proxy.pool import Pool, PoolDrainingError, PoolKey
from ztunnel.proxy.relay import RelayEnd, relay_plain, relay_stream
from ztunnel.proxy.report import ConnectionReport
from ztunnel.proxy.stream import StreamClosedError, TunnelStream
from ztunnel.proxy.stream_transport import StreamTransport
from ztunnel.proxy.tunnel import Tunnel

CONNECT_TIMEOUT = 10.0
"""Seconds for a TCP connection, and again for the TLS handshake on it."""

ANSWER_TIMEOUT = 20.0
"""Seconds for the answer to CONNECT: the other end may itself wait ten for its application."""

ATTEMPTS = 3
"""Endpoints to try before a connection fails."""

PENALTY = 5.0
"""Seconds for which an endpoint that could not be reached is avoided, if there are others."""

_HOST_UNREACHABLE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET})


class OutboundProxy:
    """The outgoing side of one pod.

    pod: the pod and what it shares with the others.
    nursery: where its tunnels live; they end when it does.
    """

    def __init__(self, pod: PodContext, nursery: trio.Nursery) -> None:
        config = pod.shared.config
        self._pod = pod
        self._penalties: dict[str, float] = {}
        self.pool = Pool(
            nursery,
            self._dial_tunnel,
            max_streams=config.pool_max_streams_per_conn,
            idle_timeout=config.pool_unused_release_timeout,
        )

    async def serve(self, sock: socket.socket, client: SocketAddress, destination: SocketAddress) -> None:
        """Carry one connection from an application to ``destination``. ``sock`` stays the caller's to close.

        Returns when the connection is over; what went wrong is in its access log line.
        """
        pod = self._pod
        report = ConnectionReport(pod, Direction.OUTBOUND, client, destination)
        entry = Outbound(trio.CancelScope(), source=str(client), original_destination=str(destination))
        with entry.scope:
            async with report.closing(entry):
                source = await pod.local_workload()
                end = await self._carry(sock, client, destination, source, report, entry)
                if end.error is not None:
                    raise RelayError(end.error)

    async def _carry(
        self,
        sock: socket.socket,
        client: SocketAddress,
        destination: SocketAddress,
        source: Workload,
        report: ConnectionReport,
        entry: Outbound,
    ) -> RelayEnd:
        """Try endpoints until one takes the connection, then relay."""
        request = OutboundRequest(source, client, destination, self._pod.shared.config.network)
        table = self._pod.connections.outbound
        failed: set[str] = set()
        table.add(entry)
        try:
            while True:
                plan = await self._plan(request, failed, report)
                report.planned(plan)
                entry.actual_destination = str(plan.next_hop)
                entry.protocol = plan.protocol
                entry.expected = plan.expected
                entry.workload_uid = plan.destination_workload.uid if plan.destination_workload else ""
                established = False

                def on_established() -> None:
                    nonlocal established
                    established = True

                try:
                    return await self._run_plan(sock, client, plan, report, entry, on_established)
                except ConnectionFailure as failure:
                    if established or not self._worth_another_try(failure, plan, failed):
                        raise
                    report.retried(failure)
        finally:
            table.discard(entry)

    def _worth_another_try(self, failure: ConnectionFailure, plan: OutboundPlan, failed: set[str]) -> bool:
        """Whether another endpoint may do better; also remembers the one that failed."""
        unreachable = isinstance(failure, HboneTimeoutError | Http2Error) or (
            isinstance(failure, DialError) and failure.unreachable
        )
        if not unreachable or plan.destination_service is None or plan.destination_workload is None:
            return False
        uid = plan.destination_workload.uid
        self._penalties[uid] = trio.current_time() + PENALTY
        if uid in failed:
            return False
        failed.add(uid)
        return len(failed) < ATTEMPTS

    async def _plan(
        self, request: OutboundRequest, failed: set[str], report: ConnectionReport
    ) -> OutboundPlan:
        shared = self._pod.shared
        if shared.demands is not None:
            await shared.demands.destination(request.destination, request.source.network)
        avoid = failed | self._penalized()
        plan = route(
            shared.store, request, shared.random, illegal_ports=shared.config.illegal_ports, avoid=avoid
        )
        if isinstance(plan, OutboundPlan) and plan.resolve is not None:
            report.resolved_on_demand(plan.resolve.hostname, request.source)
            try:
                addresses = await shared.resolver.resolve(plan.resolve.hostname)
            except NameResolutionError as error:
                plan = unresolved(plan, str(error))
            else:
                plan = with_ip(plan, addresses, shared.random)
        if isinstance(plan, Refusal):
            raise RouteRefusedError(plan)
        return plan

    def _penalized(self) -> set[str]:
        penalties = self._penalties
        if not penalties:
            return set()
        now = trio.current_time()
        for uid in [uid for uid, until in penalties.items() if until <= now]:
            del penalties[uid]
        return set(penalties)

    # -- carrying out a plan -----------------------------------------------------------------------------

    async def _run_plan(
        self,
        sock: socket.socket,
        client: SocketAddress,
        plan: OutboundPlan,
        report: ConnectionReport,
        entry: Outbound,
        established: Callable[[], None],
    ) -> RelayEnd:
        if plan.protocol is OutboundProtocol.TCP:
            upstream = await self._connect(plan.next_hop)
            with upstream:
                established()
                return await relay_plain(
                    sock, upstream, pipes=self._pod.shared.pipes, received=report.received, sent=report.sent
                )
        fields = self._fields(plan, client, report)
        stream = await self._open(plan, client, fields)
        entry.tunnels = (stream.tunnel,)
        if plan.protocol is OutboundProtocol.HBONE:
            established()
            return await relay_stream(
                sock,
                stream,
                sent_to_stream=report.received,
                received_from_stream=report.sent,
                outbound=True,
            )
        try:
            return await self._run_inner(sock, stream, plan, fields, report, entry, established)
        finally:
            stream.close()

    def _fields(
        self, plan: OutboundPlan, client: SocketAddress, report: ConnectionReport
    ) -> list[tuple[str, str]]:
        """The header fields of the CONNECT, in the existing implementation's order."""
        service = plan.destination_service
        return [
            ("baggage", print_baggage(plan.source)),
            ("forwarded", print_forwarded(client, service.hostname if service else None)),
            ("traceparent", str(report.trace)),
        ]

    async def _open(
        self, plan: OutboundPlan, client: SocketAddress, fields: Sequence[tuple[str, str]]
    ) -> TunnelStream:
        """Open a stream to the next hop on a pooled tunnel and wait until it is accepted.

        A stream that the peer refused unseen (it is draining, and the GOAWAY was still on its way) is opened
        anew on another tunnel: RFC 9113 section 8.7 permits that for any request.
        """
        workload = plan.destination_workload
        key = PoolKey(
            plan.source.identity, plan.expected, client.ip, plan.next_hop, workload.uid if workload else ""
        )
        assert plan.authority is not None
        refusals = 0
        while True:
            try:
                tunnel = await self.pool.tunnel(key)
            except PoolDrainingError:
                raise PoolClosedError from None
            try:
                return await _accepted(tunnel.open(plan.authority, fields))
            except StreamRefusedError:
                refusals += 1
                if refusals == ATTEMPTS:
                    raise

    async def _connect(self, destination: SocketAddress) -> socket.socket:
        pod = self._pod
        try:
            return await connect(
                destination,
                mark=pod.mark,
                keepalive=pod.shared.keepalive,
                factory=pod.sockets,
                timeout=CONNECT_TIMEOUT,
            )
        except OSError as error:
            raise _dial_error(error) from error

    async def _dial_tunnel(self, key: PoolKey) -> Tunnel:
        """For the pool: connect, handshake, and see that the peer is one of those expected."""
        shared = self._pod.shared
        certificate = await shared.certificates.get(key.source)
        context = shared.certificates.client(certificate)
        try:
            sock = await self._connect(key.next_hop)
        except DialError as error:
            if error.timed_out:
                raise HboneTimeoutError("deadline has elapsed") from error
            raise
        tls = SocketTls(context, sock, key.expected)
        try:
            await tls.handshake(CONNECT_TIMEOUT)
        except (TlsError, OSError) as error:
            tls.close()
            if isinstance(error, RevokedCertificateError):
                shared.traffic.crl_rejected("source")
            text = os_error_text(error) if isinstance(error, OSError) else str(error)
            raise DialError(text) from error
        except BaseException:
            tls.close()
            raise
        return Tunnel(tls, HboneClient(shared.hbone_settings))

    async def _run_inner(
        self,
        sock: socket.socket,
        outer: TunnelStream,
        plan: OutboundPlan,
        fields: list[tuple[str, str]],
        report: ConnectionReport,
        entry: Outbound,
        established: Callable[[], None],
    ) -> RelayEnd:
        """The second tunnel of double HBONE: TLS and HTTP/2 inside the stream to the gateway."""
        shared = self._pod.shared
        certificate = await shared.certificates.get(plan.source.identity)
        context = shared.certificates.client(certificate)
        tls = StreamTls(context, StreamTransport(outer), plan.inner_expected)
        try:
            await tls.handshake(CONNECT_TIMEOUT)
        except (TlsError, OSError) as error:
            tls.close()
            raise DialError(str(error)) from error
        except BaseException:
            tls.close()
            raise
        tunnel = Tunnel(tls, HboneClient(shared.hbone_settings))
        entry.tunnels = (outer.tunnel, tunnel)
        failure: ConnectionFailure | None = None
        end = RelayEnd(None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tunnel.run, name=f"inner tunnel → {plan.authority}")
            try:
                assert plan.authority is not None
                forwarded = ("x-forwarded-network", shared.config.network)
                stream = await _accepted(tunnel.open(plan.authority, [*fields, forwarded]))
                assert stream.response is not None
                report.inner_peer(tls.peer_identity, stream.response.headers)
                established()
                end = await relay_stream(
                    sock,
                    stream,
                    sent_to_stream=report.received,
                    received_from_stream=report.sent,
                    outbound=True,
                )
            except ConnectionFailure as error:
                # Raised after the nursery, which would wrap it in a group.
                failure = error
            tunnel.stop()
        if failure is not None:
            raise failure
        return end


def _dial_error(error: OSError) -> DialError:
    if isinstance(error, ConnectTimedOut):
        return DialError(str(error), unreachable=True, timed_out=True)
    return DialError(os_error_text(error), unreachable=error.errno in _HOST_UNREACHABLE)


async def _accepted(stream: TunnelStream) -> TunnelStream:
    """Wait for the answer to a CONNECT; the stream is closed unless it is 200."""
    try:
        with trio.fail_after(ANSWER_TIMEOUT):
            response = await stream.wait_response()
    except trio.TooSlowError:
        stream.close()
        raise ConnectTimeoutError(ANSWER_TIMEOUT) from None
    except StreamClosedError as error:
        stream.close()
        if error.code is None:
            raise Http2Error(str(error)) from error
        if error.code == ErrorCode.REFUSED_STREAM:
            raise StreamRefusedError(error_text("stream", "received", error.code)) from error
        raise Http2Error(f"{error_text('stream', 'received', error.code)}") from error
    except BaseException:
        stream.close()
        raise
    if response.status != 200:
        stream.close()
        raise RefusedByPeerError(response.status)
    return stream
