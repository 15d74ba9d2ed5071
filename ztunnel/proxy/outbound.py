"""Connections that leave a pod (15001): find their destination, make a plan, carry the plan out.

A connection that cannot be established is tried again on another endpoint of its service, as long as no byte
was forwarded (see `ztunnel.proxy.attempts`). Until it is established, the application's bytes stay in its
socket: nothing reads them.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Sequence

import trio

from ztunnel.decide.plans import OutboundPlan, OutboundRequest, Refusal
from ztunnel.decide.resolved import unresolved, with_ip
from ztunnel.decide.route import route
from ztunnel.dns.dns_errors import NameResolutionError
from ztunnel.errors import os_error_text
from ztunnel.hbone import HboneClient
from ztunnel.model.address import SocketAddress
from ztunnel.model.workload import Workload
from ztunnel.observe import families
from ztunnel.observe.access_log import Direction
from ztunnel.proxy.attempts import Attempts, OutlierEjection
from ztunnel.proxy.closing import Closing
from ztunnel.proxy.connection_table import OutboundEntry
from ztunnel.proxy.outbound_attempt import OutboundAttempt
from ztunnel.proxy.phase import Phase
from ztunnel.proxy.podcontext import PodContext
from ztunnel.proxy.relay import RelayEnd
from ztunnel.proxy.report import ConnectionReport
from ztunnel.sockets.dial import ConnectTimedOut, connect
from ztunnel.sockets.hangup import Hangup
from ztunnel.tls.socket_and_stream_tls import SocketTls
from ztunnel.tls.tls_errors import RevokedCertificateError, TlsError
from ztunnel.tunnel.client_tunnel import ClientStream, ClientTunnel
from ztunnel.tunnel.connect_answer import accepted
from ztunnel.tunnel.failures import (
    ClientGoneError,
    ConnectionFailure,
    ConnectTimeoutError,
    DialError,
    EndpointSlowError,
    HboneTimeoutError,
    PoolClosedError,
    RelayError,
    RouteRefusedError,
    StreamRefusedError,
    TunnelLostError,
)
from ztunnel.tunnel.pool import Pool, PoolDrainingError, PoolKey

_LOCAL_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""Errors of a dial that are caused by this machine and not by the endpoint."""


class OutboundProxy:
    """The outgoing side of one pod.

    pod: the pod and what it shares with the other pods.
    nursery: runs the tasks of its tunnels; the tunnels end with it.
    """

    def __init__(self, pod: PodContext, nursery: trio.Nursery) -> None:
        config = pod.shared.config
        self.shared = pod.shared
        self._pod = pod
        self.dials: dict[PoolKey, Phase] = {}
        """How far the dial for each tunnel to be has come; of several for one key, the last."""
        self._answers = pod.shared.traffic.histogram(families.CONNECT_ANSWER)
        self.ejection = OutlierEjection(pod.shared.bounds.connection, pod.shared.traffic.ejected)
        self.pool = Pool(
            nursery,
            self._dial_tunnel,
            max_streams=config.pool_max_streams_per_conn,
            idle_timeout=config.pool_unused_release_timeout,
            bounds=pod.shared.bounds.tunnel,
        )

    async def serve(self, sock: socket.socket, client: SocketAddress, destination: SocketAddress) -> None:
        """Carry one connection from an application to ``destination``. The caller closes ``sock``.

        ``sock`` is one that ends with a reset when it is closed (`ztunnel.sockets.reset`); only a relay that
        has seen both ends changes that. So a client never takes a failure for an empty or a whole answer.
        Returns when the connection has ended. Failures are in its access log line and not raised.
        """
        pod = self._pod
        report = ConnectionReport(pod, Direction.OUTBOUND, client, destination)
        entry = OutboundEntry(trio.CancelScope(), opened=report.began, report=report, sock=sock)
        with entry.scope, self._watch(sock, entry) as hangup, Closing(report, entry):
            source = pod.known_workload() or await self._own_workload(entry)
            request = OutboundRequest(source, client, destination, pod.shared.config.network)
            end = await self._carry(sock, request, report, entry, hangup)
            if end.error is not None:
                raise RelayError(end.error)

    def _watch(self, sock: socket.socket, entry: OutboundEntry) -> Hangup:
        """Returns the watch that ends the connection when its client resets it before it is established.

        Nobody reads the socket until then, so nothing else would notice the reset.
        """
        return self.shared.hangups.watch(sock, lambda: entry.close(ClientGoneError()))

    async def _own_workload(self, entry: OutboundEntry) -> Workload:
        """Wait for the pod's own workload, while the entry is among the waiting connections."""
        with self._pod.connections.awaiting(entry):
            return await self._pod.local_workload()

    async def _carry(
        self,
        sock: socket.socket,
        request: OutboundRequest,
        report: ConnectionReport,
        entry: OutboundEntry,
        hangup: Hangup,
    ) -> RelayEnd:
        """Try endpoints until one accepts the connection, then relay."""
        table = self._pod.connections.outbound
        attempts = Attempts(self.ejection)
        table.add(entry)
        try:
            plan = await self._plan(request, attempts, report)
            while True:
                report.planned(plan)
                entry.planned(plan)
                attempt = OutboundAttempt(self, sock, request.client, plan, report, entry, hangup)
                try:
                    return await attempt.run(attempts)
                except ConnectionFailure as failure:
                    another = None
                    if attempts.failed(plan, attempt.progress, failure):
                        another = await self._plan_another(request, attempts, report)
                    if another is not None:
                        report.retried(failure)
                        plan = another
                    elif isinstance(failure, EndpointSlowError):
                        attempts.insist(failure.waited)
                    else:
                        raise
        finally:
            table.discard(entry)

    async def _plan_another(
        self, request: OutboundRequest, attempts: Attempts, report: ConnectionReport
    ) -> OutboundPlan | None:
        """Returns a plan with another endpoint than those that failed, None when there is none."""
        try:
            plan = await self._plan(request, attempts, report)
        except RouteRefusedError:
            # The mesh has changed meanwhile. The failure of the earlier attempt is the one to report.
            return None
        return plan if attempts.is_new(plan) else None

    async def _plan(
        self, request: OutboundRequest, attempts: Attempts, report: ConnectionReport
    ) -> OutboundPlan:
        shared = self._pod.shared
        if shared.demands is not None:
            report.phase = Phase.DESTINATION
            await shared.demands.destination(request.destination, request.source.network)
        plan = route(
            shared.store,
            request,
            shared.random,
            illegal_ports=shared.config.illegal_ports,
            avoid=attempts.avoid,
        )
        if isinstance(plan, OutboundPlan) and plan.resolve is not None:
            report.resolved_on_demand(plan.resolve.hostname, request.source)
            report.phase = Phase.NAME
            port = plan.next_hop.port
            try:
                addresses = await shared.resolver.resolve(plan.resolve.hostname)
            except NameResolutionError as error:
                plan = unresolved(plan, str(error))
            else:
                fresh = [ip for ip in addresses if not attempts.has_tried(SocketAddress(ip, port))]
                # An empty answer counts as a failed lookup, as in the Rust ztunnel.
                found = fresh or addresses
                plan = (
                    with_ip(plan, found, shared.random) if found else unresolved(plan, "it has no addresses")
                )
        if isinstance(plan, Refusal):
            raise RouteRefusedError(plan)
        return plan

    async def open(
        self,
        plan: OutboundPlan,
        client: SocketAddress,
        fields: Sequence[tuple[str, str]],
        try_timeout: float,
    ) -> ClientStream:
        """Open a stream to the plan's next hop on a pooled tunnel and wait until it is accepted.

        Returns the stream, which the caller closes. Raises EndpointSlowError when there is no tunnel after
        ``try_timeout`` seconds (the dial continues, for other connections and for a later attempt), and
        another ConnectionFailure for any other error.

        A tunnel may be ending when we use it. The peer refuses the stream unseen, because it is draining and
        its GOAWAY is still on the way; RFC 9113 section 8.7 allows to retry any such request. Or a tunnel
        that worked before turns out to be dead. Neither means that the endpoint has failed, so another tunnel
        to the same endpoint is tried first. If the peer refuses a stream while other streams of ours are open
        on the tunnel, the peer's limit was reached: this does not count as a failed tunnel, and for
        ``refused_wait`` seconds the connection continues to look for room.
        """
        workload = plan.destination_workload
        key = PoolKey(
            plan.source.identity, plan.expected, client.ip, plan.next_hop, workload.uid if workload else ""
        )
        assert plan.authority is not None
        tunnels = 0
        began = trio.current_time()
        while True:
            try:
                tunnel = self.pool.at_hand(key)
                if tunnel is None:
                    with trio.move_on_after(try_timeout):
                        tunnel = await self.pool.tunnel(key)
            except PoolDrainingError:
                raise PoolClosedError from None
            if tunnel is None:
                raise EndpointSlowError(try_timeout)
            tunnels += 1
            had_worked = tunnel.answered
            asked = trio.current_time()
            try:
                return await accepted(tunnel.open(plan.authority, fields))
            except (StreamRefusedError, TunnelLostError, ConnectTimeoutError) as failure:
                if isinstance(failure, StreamRefusedError) and tunnel.streams and tunnel.can_open:
                    if trio.current_time() > began + self.shared.bounds.connection.refused_wait:
                        raise
                    tunnels -= 1
                    continue
                self.pool.retire(key, tunnel)
                again = isinstance(failure, StreamRefusedError) or (
                    isinstance(failure, TunnelLostError) and had_worked
                )
                if not again or tunnels == self.shared.bounds.connection.tunnels:
                    raise
            finally:
                self._answers.add(trio.current_time() - asked)

    async def connect(
        self,
        destination: SocketAddress,
        try_timeout: float = math.inf,
        waited: float = 0.0,
        *,
        reset_on_close: bool = False,
    ) -> socket.socket:
        """Dial a TCP connection from the pod. Returns the socket, which the caller closes.

        Raises EndpointSlowError after ``try_timeout`` seconds, DialError for any other failure.

        waited: seconds of ``dial_timeout`` that an earlier attempt at this endpoint has used.
        reset_on_close: as in `ztunnel.sockets.dial.connect`.
        """
        pod = self._pod
        left = max(pod.shared.bounds.connection.dial_timeout - waited, 0.0)
        began = trio.current_time()
        try:
            sock = await connect(
                destination,
                mark=pod.mark,
                keepalive=pod.shared.keepalive,
                factory=pod.sockets,
                reset_on_close=reset_on_close,
                timeout=min(left, try_timeout),
            )
        except ConnectTimedOut as error:
            if try_timeout < left:
                raise EndpointSlowError(try_timeout) from error
            raise DialError(str(error), elsewhere=True, timed_out=True) from error
        except OSError as error:
            raise DialError(os_error_text(error), elsewhere=error.errno not in _LOCAL_ERRORS) from error
        pod.shared.traffic.duration(families.TCP_CONNECT, trio.current_time() - began)
        return sock

    async def _dial_tunnel(self, key: PoolKey) -> ClientTunnel:
        """For the pool: dial, do the TLS handshake, and check that the peer has an expected identity."""
        self.dials[key] = Phase.CERTIFICATE
        try:
            return await self._dial_in_stages(key)
        finally:
            self.dials.pop(key, None)

    async def _dial_in_stages(self, key: PoolKey) -> ClientTunnel:
        shared = self._pod.shared
        certificate = await shared.certificates.get(key.source)
        context = shared.certificates.client(certificate)
        self.dials[key] = Phase.DIAL
        try:
            sock = await self.connect(key.next_hop)
        except DialError as error:
            if error.timed_out:
                raise HboneTimeoutError("deadline has elapsed") from error
            raise
        self.dials[key] = Phase.HANDSHAKE
        tls = SocketTls(context, sock, key.expected)
        began = trio.current_time()
        try:
            limits = shared.bounds.connection
            await tls.handshake(limits.handshake_timeout, alert_seconds=limits.alert_timeout)
        except (TlsError, OSError) as error:
            tls.close()
            if isinstance(error, RevokedCertificateError):
                shared.traffic.crl_rejected("source")
            text = os_error_text(error) if isinstance(error, OSError) else str(error)
            # Another process may have this address by now, so another endpoint is worth trying.
            raise DialError(text, elsewhere=True) from error
        except BaseException:
            tls.close()
            raise
        shared.traffic.duration(families.TLS_HANDSHAKE, trio.current_time() - began, "source")
        return ClientTunnel(
            tls, HboneClient(shared.hbone_settings, shared.window_budget), shared.bounds.tunnel
        )
