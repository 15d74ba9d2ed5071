"""The open connections of one pod: for the admin dump, and to close those that would be refused by now."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
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
    """A connection's task can be ended from outside; ``closed_because`` then is what its log line says.

    tunnels: those that carry it: one for HBONE, two for double HBONE.
    opened: when it began, on trio's clock. report: its account. stream, sock: what carries its bytes while it
    is relayed: a stream of the last tunnel (None for plain TCP), and the application's socket; while an
    incoming tunnel is not established yet, the socket of its peer.
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
    """An incoming connection and what policy looked at when it was let in."""

    facts: PolicyFacts | None = None
    forwarded_host: str | None = None

    def view(self) -> InboundConnection:
        """As the admin dump shows it."""
        assert self.facts is not None
        return InboundConnection(
            src=str(self.facts.source),
            original_dst=self.forwarded_host,
            actual_dst=str(self.facts.destination),
            protocol="HBONE" if self.facts.identity is not None else "TCP",
        )


@dataclass(slots=True, eq=False)
class OutboundEntry(ConnectionEntry):
    """An outgoing connection. plan: where it goes now, None while that is not known."""

    plan: OutboundPlan | None = None

    @property
    def workload_uid(self) -> str:
        """The next hop's, empty outside the mesh."""
        workload = None if self.plan is None else self.plan.destination_workload
        return "" if workload is None else workload.uid

    @property
    def expected(self) -> tuple[str, ...]:
        """The identities that the next hop may prove."""
        return () if self.plan is None else self.plan.expected

    def planned(self, plan: OutboundPlan) -> None:
        """Where it goes now."""
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
    """What a pod has open.

    Entries are added before policy is asked, so that no change is missed in between. waiting: those of which
    nothing but addresses is known yet, so that neither policy nor the dump has to do with them.
    """

    def __init__(self) -> None:
        self.waiting: set[ConnectionEntry] = set()
        self.inbound: set[InboundEntry] = set()
        self.outbound: set[OutboundEntry] = set()

    def __len__(self) -> int:
        return len(self.inbound) + len(self.outbound)

    def oldest(self) -> float | None:
        """When the oldest that is open began, on trio's clock; None when nothing is."""
        return min((entry.opened for entry in (*self.inbound, *self.outbound)), default=None)
