"""Collects what is known of one connection, and reports it: metrics, access log, history.

A connection is *opened* as soon as its plan is known. After that it is closed exactly once, with or without a
failure. A connection that fails earlier is *refused*: only its addresses are known, so it gets one warning
and no metrics.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ztunnel.decide.headers import NO_HEADERS, ConnectHeaders, TraceParent, is_foreign_network, parse_baggage
from ztunnel.decide.plans import InboundPlan, OutboundPlan, OutboundProtocol, Verdict
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity
from ztunnel.model.service import Service
from ztunnel.model.workload import Workload
from ztunnel.observe.access_log import AccessLogEntry, Direction
from ztunnel.observe.filter import Level
from ztunnel.observe.labels import (
    End,
    Reporter,
    end_from_baggage,
    end_from_workload,
    inbound_source,
    traffic_labels,
)
from ztunnel.observe.logging import Logger, get_logger
from ztunnel.observe.traffic import ConnectionMetrics
from ztunnel.proxy.failure_advice import code_of, failure_advice, remembered_failure
from ztunnel.proxy.history import Failure, short
from ztunnel.proxy.phase import Phase
from ztunnel.proxy.podcontext import PodContext
from ztunnel.tunnel.failures import ConnectionFailure

_OUTBOUND_LOG = get_logger("proxy::outbound")
_INBOUND_LOG = get_logger("proxy::inbound")


class ConnectionReport:
    """The report of one connection, made when it begins. All its code runs inside `Closing`.

    direction, source, destination: as in the access log. authority: of the CONNECT, None for plaintext.
    headers: of the CONNECT.
    """

    __slots__ = (
        "_answered",
        "_attempts",
        "_authority",
        "_earlier",
        "_entry",
        "_failed",
        "_headers",
        "_inbound_plan",
        "_labels",
        "_metrics",
        "_number",
        "_plan",
        "_pod",
        "_seconds",
        "_verdict",
        "began",
        "destination",
        "direction",
        "phase",
        "source",
        "trace",
    )

    def __init__(
        self,
        pod: PodContext,
        direction: Direction,
        source: SocketAddress,
        destination: SocketAddress,
        *,
        authority: str | None = None,
        headers: ConnectHeaders = NO_HEADERS,
    ) -> None:
        self._pod = pod
        self.direction = direction
        self.source = source
        self.destination = destination
        self._authority = authority
        self._headers = headers
        self.began = trio.current_time()
        self._metrics: ConnectionMetrics | None = None
        self._entry: AccessLogEntry | None = None
        self._labels: tuple[str, ...] = ()
        self._plan: OutboundPlan | None = None
        self._inbound_plan: InboundPlan | None = None
        self._verdict: Verdict | None = None
        self._attempts: tuple[str, ...] = ()
        self._earlier = (0, 0)
        self._answered = False
        self._seconds = 0.0
        self._failed: Failure | None = None
        self._number = next(pod.shared.history.numbers)
        self.phase = Phase.WORKLOAD
        self.trace = headers.trace or TraceParent.generate(pod.shared.random)

    @property
    def log(self) -> Logger:
        """The connection's own logger; its lines have the trace id.

        It is made on demand, because most connections never need it.
        """
        outbound = self.direction is Direction.OUTBOUND
        log = (_OUTBOUND_LOG if outbound else _INBOUND_LOG).bind_span("proxy", wl=self._pod.name)
        if outbound:
            return log.bind_span("outbound", id=self.trace.trace_id)
        return log.bind_span("inbound", id=self.trace.trace_id, peer=self.source)

    @property
    def id(self) -> str:
        """The connection's id, made when it is written."""
        return self._pod.shared.history.id_of(self._number)

    @property
    def counted(self) -> tuple[int, int]:
        """Bytes so far, from client to server and back."""
        metrics = self._metrics
        received, sent = self._earlier
        return (received, sent) if metrics is None else (received + metrics.received, sent + metrics.sent)

    @property
    def cut_because(self) -> ConnectionFailure | None:
        """Why the pod has cancelled its connections, None while it has not."""
        return self._pod.cut_because

    @property
    def pod_name(self) -> str:
        """``namespace/name`` of the connection's pod."""
        return self._pod.name

    @property
    def next_hop(self) -> SocketAddress | None:
        """The address to which the connection is carried, None while it is not known."""
        if self._plan is not None:
            return self._plan.next_hop
        return None if self._inbound_plan is None else self._inbound_plan.dial

    @property
    def protocol(self) -> str:
        """The protocol between the nodes, "" while it is not known."""
        if self._plan is not None:
            return self._plan.protocol.value
        if self._inbound_plan is None:
            return ""
        return "TCP" if self._authority is None else "HBONE"

    @property
    def attempts(self) -> tuple[str, ...]:
        """The texts of the attempts that failed."""
        return self._attempts

    @property
    def route(self) -> tuple[str, ...]:
        """The reasons of the plan, empty without a plan."""
        plan = self._plan or self._inbound_plan
        return () if plan is None else plan.why

    @property
    def entry(self) -> AccessLogEntry | None:
        """The values for the access log, None while the plan is not known."""
        return self._entry

    # -- bytes -------------------------------------------------------------------------------------------

    def received(self, count: int) -> None:
        """Count ``count`` bytes that were written from client to server."""
        assert self._metrics is not None
        self._metrics.add_received(count)

    def sent(self, count: int) -> None:
        """Count ``count`` bytes that were written from server to client."""
        assert self._metrics is not None
        if not self._answered:
            self._answered = True
            pod = self._pod
            first_byte = pod.first_byte_out if self.direction is Direction.OUTBOUND else pod.first_byte_in
            first_byte.add(trio.current_time() - self.began)
        self._metrics.add_sent(count)

    # -- what becomes known ------------------------------------------------------------------------------

    def planned(self, plan: OutboundPlan) -> None:
        """Note the plan of an outgoing connection.

        The connection is opened now; with double HBONE it is opened by `inner_peer`.
        """
        mtls = plan.protocol is not OutboundProtocol.TCP
        workload = plan.destination_workload
        source = end_from_workload(plan.source, plan.source.identity if mtls else None)
        destination = end_from_workload(workload, workload.identity) if workload is not None else None
        self._plan = plan
        self.phase = Phase.ENDPOINT
        service = plan.destination_service
        self._describe(source, destination, plan.next_hop, plan.authority, service, mtls=mtls)
        if plan.protocol is not OutboundProtocol.DOUBLE_HBONE:
            self._open()

    def inner_peer(self, identity: Identity, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """The inner tunnel of double HBONE is established.

        The destination is the peer of its TLS handshake.
        """
        plan = self._plan
        assert plan is not None
        baggage = parse_baggage([value for name, value in headers if name == b"baggage"])
        source = end_from_workload(plan.source, plan.source.identity)
        destination = end_from_baggage(baggage, identity, show_workload=True)
        service = plan.destination_service
        self._describe(source, destination, plan.next_hop, plan.authority, service, mtls=True)
        self._open()

    def admitted(self, plan: InboundPlan, identity: Identity | None) -> None:
        """Note the plan of an incoming connection. It is opened now, before policy is checked."""
        self._inbound_plan = plan
        self.phase = Phase.APPLICATION
        shared = self._pod.shared
        config = shared.config
        headers = self._headers
        baggage = None
        if config.enable_response_baggage and self._authority is not None:
            baggage = parse_baggage(headers.baggage)
        peer: Workload | None = None
        if not is_foreign_network(headers.network, config.network):
            peer = shared.store.workload_by_address(config.network, self.source.ip)
        source = inbound_source(peer, baggage, identity)
        destination = end_from_workload(plan.workload, plan.workload.identity)
        mtls = identity is not None
        self._describe(source, destination, self.destination, self._authority, plan.service, mtls=mtls)
        self._open()

    def retried(self, failure: ConnectionFailure) -> None:
        """An attempt failed and another endpoint is tried.

        The metrics count a failed attempt as a connection of its own: otherwise the series of the endpoint
        that failed would not show it. The access log has one line for the connection, about its last attempt.
        """
        assert self._plan is not None
        bounds = self._pod.shared.history.bounds
        if len(self._attempts) < bounds.attempts:
            failed = short(f"{self._plan.next_hop}: {failure} ({code_of(failure)})", bounds)
            self._attempts = (*self._attempts, failed)
        self._pod.shared.traffic.retried(code_of(failure))
        self.log.info(
            "trying another endpoint",
            failed=self._plan.next_hop,
            error=str(failure),
            code=code_of(failure),
            connection=self.id,
        )
        self._open()
        self._close_metrics(failure.flag)

    def resolved_on_demand(self, hostname: str, source: Workload) -> None:
        """The next hop's hostname is being resolved."""
        self._pod.shared.traffic.on_demand_dns(source, hostname)

    def judged(self, verdict: Verdict) -> None:
        """Note the verdict of policy. A refusal is explained at the end."""
        if not verdict.allowed:
            self._verdict = verdict

    # -- the end -----------------------------------------------------------------------------------------

    def refused(self, failure: ConnectionFailure) -> None:
        """Report the end of a connection of which only the addresses are known."""
        code = code_of(failure)
        self._pod.access_log.failed(
            self.direction, self.source, self.destination, str(failure), code=code, connection=self.id
        )
        self._end(failure, Level.WARN, self.destination, trio.current_time() - self.began)

    def finish(self, failure: ConnectionFailure | None) -> None:
        """Count and log the end. Called once, by `Closing`."""
        if self._entry is None:
            if failure is not None:
                self.refused(failure)
            return
        self._open()
        assert self._metrics is not None
        received, sent = self.counted
        seconds = trio.current_time() - self.began
        self._close_metrics("-" if failure is None else failure.flag)
        self._pod.access_log.complete(
            self._entry,
            received=received,
            sent=sent,
            seconds=seconds,
            error=None if failure is None else str(failure),
            code=None if failure is None else code_of(failure),
            connection=self.id,
        )
        self._end(failure, Level.ERROR, self._entry.destination_address, seconds)

    def _end(
        self,
        failure: ConnectionFailure | None,
        level: Level,
        address: SocketAddress,
        seconds: float,
    ) -> None:
        """After the access log line, whose fields are fixed: log the advice, and add to the history."""
        explained = None
        if failure is not None:
            explained = failure_advice(failure, self._plan or self._inbound_plan, self._verdict)
            self._pod.shared.traffic.connection_failed(self.direction.value, code_of(failure))
        if explained is not None:
            fields = {
                "src.addr": self.source,
                "dst.addr": address,
                "direction": self.direction.value,
                "code": explained.code,
                "policy": explained.policy,
                "why": explained.why,
                "connection": self.id,
            }
            self.log.log(level, "refused", fields)
        history = self._pod.shared.history
        if history.keeps:
            self._seconds = seconds
            if failure is not None or self._attempts:
                self._failed = remembered_failure(
                    failure, explained, self._verdict, self._attempts, history.bounds
                )
            history.later(self)

    def remember(self) -> None:
        """Add the connection, which has ended, to the history; see `History.later`."""
        pod, entry, inbound = self._pod, self._entry, self._inbound_plan
        shared = pod.shared
        history = shared.history
        namespace = shown = service = identity = ""
        if entry is not None:
            service = entry.service or ""
            other = entry.destination if self.direction is Direction.OUTBOUND else entry.source
            if other is not None:
                namespace, shown = other.namespace, other.shown
                if entry.mtls:
                    identity = other.principal
        history.add(
            self._number,
            history.kind(
                self.direction.value, pod.name, namespace, shown, service, identity, self.protocol, self.route
            ),
            self.source,
            self.destination if inbound is None else inbound.destination,
            self.next_hop,
            shared.wall_clock() - (trio.current_time() - self.began),
            self._seconds,
            self.counted,
            self.trace.trace_id,
            self._failed,
        )

    # -- inside ------------------------------------------------------------------------------------------

    def _describe(
        self,
        source: End | None,
        destination: End | None,
        address: SocketAddress,
        authority: str | None,
        service: Service | None,
        *,
        mtls: bool,
    ) -> None:
        reporter: Reporter = "source" if self.direction is Direction.OUTBOUND else "destination"
        self._labels = traffic_labels(reporter, source, destination, service, mtls=mtls)
        self._entry = AccessLogEntry(
            self.direction,
            self.source,
            address,
            source,
            destination,
            authority,
            service.hostname if service is not None else None,
            mtls,
        )

    def _open(self) -> None:
        if self._metrics is None:
            assert self._entry is not None
            self._metrics = self._pod.shared.traffic.opened(self._labels)
            log = self._pod.access_log
            if log.tells_of_opening:
                log.opened(self._entry, self.id)

    def _close_metrics(self, flag: str) -> None:
        metrics = self._metrics
        if metrics is not None:
            metrics.closed(flag)
            self._earlier = (self._earlier[0] + metrics.received, self._earlier[1] + metrics.sent)
            self._metrics = None
