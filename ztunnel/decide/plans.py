"""The results of decisions: what to do with one connection, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ztunnel.decide.steps import Step
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity
from ztunnel.model.service import IpFamilies, Service
from ztunnel.model.workload import Workload


class OutboundProtocol(Enum):
    """The protocol to the next hop. The value is the text in the admin dump."""

    TCP = "TCP"
    HBONE = "HBONE"
    DOUBLE_HBONE = "DOUBLEHBONE"


@dataclass(frozen=True, slots=True)
class OutboundRequest:
    """The facts of one outgoing connection.

    client: the application's own socket address. destination: the original destination. network: the network
    of this node's configuration (``source`` has the workload's own).
    """

    source: Workload
    client: SocketAddress
    destination: SocketAddress
    network: str = ""


@dataclass(frozen=True, slots=True)
class Resolve:
    """The next hop is known only by a hostname, which has to be resolved before it can be dialled.

    prefer: the destination's IP version (4 or 6); addresses of this version are preferred. families: the IP
    versions on which the service is offered. target_port: if set, the authority becomes the resolved address
    with this port.
    illegal_ports: our own ports, which must never be dialled on loopback.
    """

    hostname: str
    workload_uid: str
    prefer: int
    families: IpFamilies | None = None
    target_port: int | None = None
    illegal_ports: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class OutboundPlan:
    """Where a connection goes.

    next_hop: address to dial; while ``resolve`` is set its ``ip`` has no meaning (see `with_ip`).
    authority: of the (outer) CONNECT, None for TCP.
    expected: identities of which the next hop must present at least one, in the pool's key order;
        empty for TCP.
    inner_expected: the same for the inner tunnel of double HBONE.
    destination_workload: the next hop's workload, None for a destination outside the mesh.
    destination_service: the service that was addressed, None if no service was.
    endpoint_uid: uid of the workload behind the network gateway, for which the gateway was chosen (double
        HBONE); empty otherwise.
    waypoint: whether the next hop is a waypoint, or (double HBONE) the inner tunnel ends at one.
    why: full sentences, first cause first.
    steps: the boxes of the chart in docs/routing.md that the decision went through.
    """

    protocol: OutboundProtocol
    next_hop: SocketAddress
    destination: SocketAddress
    source: Workload
    destination_workload: Workload | None = None
    destination_service: Service | None = None
    authority: str | None = None
    expected: tuple[str, ...] = ()
    inner_expected: tuple[str, ...] = ()
    resolve: Resolve | None = None
    waypoint: bool = False
    why: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    endpoint_uid: str = ""


class RefusalKind(Enum):
    """Why no plan exists. The value is the stable code of docs/errors.md."""

    LOOP = "ZT-RTE-001"
    NO_HEALTHY_UPSTREAM = "ZT-RTE-002"
    NO_SERVICE = "ZT-RTE-003"
    UNKNOWN_WAYPOINT = "ZT-RTE-004"
    UNKNOWN_NETWORK_GATEWAY = "ZT-RTE-005"
    NO_VALID_DESTINATION = "ZT-RTE-006"
    NO_RESOLVED_ADDRESSES = "ZT-RTE-007"
    NO_USABLE_ADDRESSES = "ZT-RTE-008"
    IP_MISMATCH = "ZT-ADM-001"
    UNKNOWN_HOSTNAME = "ZT-ADM-002"
    UNKNOWN_PORT = "ZT-ADM-003"
    NO_SERVICE_ADDRESS = "ZT-ADM-004"
    BAD_AUTHORITY = "ZT-ADM-005"
    BAD_METHOD = "ZT-ADM-006"


LOOP_TEXT = "attempted recursive call to ourselves"
"""The text of every refusal of kind LOOP, incoming and outgoing."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A connection that cannot be routed or admitted. ``text``: the log text, as in the Rust ztunnel.

    ``steps`` as in `OutboundPlan`; empty for an incoming connection.
    """

    kind: RefusalKind
    text: str
    status: int = 503
    why: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class ConnectFacts:
    """The facts of one CONNECT that arrived on 15008.

    local, peer: the socket addresses of the tunnel's ends. identity: of the peer. forwarded_host: ``host=``
    in the Forwarded header. workload: the pod of the listener.
    """

    method: str
    authority: str
    local: SocketAddress
    peer: SocketAddress
    workload: Workload
    identity: Identity | None
    forwarded_host: str | None = None
    network: str = ""


@dataclass(frozen=True, slots=True)
class InboundPlan:
    """What to do with a connection that a pod receives, if policy allows it.

    dial: address of the application.
    spoof: address to show to the application as the source, None to let the kernel choose.
    loopback: the application is dialled on loopback, from the same loopback address.
    destination: address and port that policy sees (the final port).
    proxy_header: PROXY protocol v2 bytes to write before the first byte, None for none.
    service: for labels, the service through which the client came.
    """

    dial: SocketAddress
    destination: SocketAddress
    workload: Workload
    spoof: SocketAddress | None = None
    loopback: bool = False
    proxy_header: bytes | None = None
    service: Service | None = None
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Clue:
    """The part of a policy that decided: the indexes of rule and clause, and the field that did not hold."""

    policy: str
    rule: int | None = None
    clause: int | None = None
    field: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision of the policies. ``reason``: the text of the Rust ztunnel, None if allowed.

    policy: key of the policy that decided, None if none did.
    log: (message, policy key or None) pairs in order, for the scope ``ztunnel::state``.
    dry_run: keys of the dry-run policies that matched.
    dry_run_refuses: the dry-run policy that would refuse, ``*`` when no dry-run ALLOW would allow, "" else.
    missing: keys that the workload refers to and that are not known.
    """

    allowed: bool
    reason: str | None = None
    policy: str | None = None
    clues: tuple[Clue, ...] = ()
    log: tuple[tuple[str, str | None], ...] = ()
    dry_run: tuple[str, ...] = ()
    dry_run_refuses: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """The input of policies: ``source`` and ``identity`` of the peer, ``destination`` as finally dialled."""

    source: SocketAddress
    destination: SocketAddress
    identity: Identity | None = None
