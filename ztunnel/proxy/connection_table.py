"""The open connections of one pod: for the admin dump, and to close those that policy no longer allows."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

import trio

from ztunnel.decide.plans import OutboundPlan, OutboundProtocol, PolicyFacts
from ztunnel.messages import InboundConnection, OutboundConnection
from ztunnel.tunnel.client_tunnel import ClientTunnel
from ztunnel.tunnel.failures import ConnectionFailure
from ztunnel.tunnel.server_tunnel import ServerTunnel
from ztunnel.tunnel.tunnel_stream import TunnelStream

if TYPE_CHECKING:
    from ztunnel.proxy.report import ConnectionReport


@dataclass(slots=True, eq=False)
class ConnectionEntry:
    """One open connection. `close` ends its task from outside.

    closed_because: why it was ended from outside; its access log line shows this.
    tunnels: the tunnels that carry it: one for HBONE, two for double HBONE.
    opened: when it began, on Trio's clock. report: what is known of it.
    stream, sock: what carries its bytes while it is relayed: a stream of the last tunnel (None for plain
        TCP), and the application's socket. Until an incoming tunnel is established, ``sock`` is its peer's
        socket.
    """

    scope: trio.CancelScope
    closed_because: ConnectionFailure | None = None
    tunnels: tuple[ClientTunnel | ServerTunnel, ...] = ()
    opened: float = field(default_factory=trio.current_time)
    report: ConnectionReport | None = None
    stream: TunnelStream | None = None
    sock: socket.socket | None = None

    def close(self, why: ConnectionFailure) -> None:
        """End the connection's task for a reason. The first reason wins."""
        if self.closed_because is None:
            self.closed_because = why
            self.scope.cancel()


@dataclass(slots=True, eq=False)
class InboundEntry(ConnectionEntry):
    """An incoming connection, and the facts for which policy allowed it."""

    facts: PolicyFacts | None = None
    forwarded_host: str | None = None

    def view(self) -> InboundConnection:
        """Returns the entry as the admin dump shows it."""
        assert self.facts is not None
        return InboundConnection(
            src=str(self.facts.source),
            original_dst=self.forwarded_host,
            actual_dst=str(self.facts.destination),
            protocol="HBONE" if self.facts.identity is not None else "TCP",
        )


@dataclass(slots=True, eq=False)
class OutboundEntry(ConnectionEntry):
    """An outgoing connection. ``plan``: the plan that is tried now, None before there is one."""

    plan: OutboundPlan | None = None

    @property
    def workload_uid(self) -> str:
        """The uid of the next hop's workload, "" outside the mesh."""
        workload = None if self.plan is None else self.plan.destination_workload
        return "" if workload is None else workload.uid

    @property
    def expected(self) -> tuple[str, ...]:
        """The identities of which the next hop must present one."""
        return () if self.plan is None else self.plan.expected

    def planned(self, plan: OutboundPlan) -> None:
        """Note the plan that is tried now."""
        self.plan = plan
        self.tunnels = ()
        self.stream = None

    def view(self) -> OutboundConnection:
        """As the admin dump shows it."""
        report, plan = self.report, self.plan
        assert report is not None
        return OutboundConnection(
            src=str(report.source),
            original_dst=str(report.destination),
            actual_dst="" if plan is None else str(plan.next_hop),
            protocol=OutboundProtocol.TCP.value if plan is None else plan.protocol.value,
        )


class ConnectionTable:
    """The open connections of a pod.

    An entry is added before policy is checked. So a policy that changes in between is checked again for it.

    waiting: connections of which only the addresses are known. Policy and the dump ignore them.
    """

    def __init__(self) -> None:
        self.waiting: set[ConnectionEntry] = set()
        self.inbound: set[InboundEntry] = set()
        self.outbound: set[OutboundEntry] = set()

    def __len__(self) -> int:
        return len(self.inbound) + len(self.outbound)

    def awaiting(self, entry: ConnectionEntry) -> Awaiting:
        """Returns a context manager: ``entry`` is among ``waiting`` while its block runs."""
        return Awaiting(self.waiting, entry)

    def oldest(self) -> float | None:
        """Returns when the oldest open connection began, on Trio's clock; None if there is none."""
        return min((entry.opened for entry in (*self.inbound, *self.outbound)), default=None)


class Awaiting:
    """See `ConnectionTable.awaiting`. A class, because each connection passes here."""

    __slots__ = ("_entry", "_waiting")

    def __init__(self, waiting: set[ConnectionEntry], entry: ConnectionEntry) -> None:
        self._waiting = waiting
        self._entry = entry

    def __enter__(self) -> None:
        self._waiting.add(self._entry)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._waiting.discard(self._entry)
