"""The server's end of a connection: whether it is admitted and allowed, by which policy and which clause.

The decisions are those of the data path: `admit_connect` or `admit_plaintext`, then `authorize`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ztunnel.bounds import DEFAULTS, ExplainBounds
from ztunnel.decide.admit import admit_connect, admit_plaintext
from ztunnel.decide.authorize import applicable_policies, authorize, explain_policy
from ztunnel.decide.balance import HBONE_PORT
from ztunnel.decide.mesh_view import MeshView
from ztunnel.decide.plans import ConnectFacts, OutboundPlan, OutboundProtocol, PolicyFacts, Refusal
from ztunnel.explain.explanation import ArrivalView, PolicyDecisionView
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity
from ztunnel.model.workload import Workload
from ztunnel.slices import Slices

POLICIES_SLICE = 20
"""Policies that are explained between two pauses."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What an explanation needs besides the mesh: settings of the node, and its bounds.

    The defaults are the product's.
    """

    network: str = ""
    illegal_ports: frozenset[int] = frozenset({15001, 15006, 15008})
    localhost_app_tunnel: bool = True
    cluster_domain: str = "cluster.local"
    bounds: ExplainBounds = DEFAULTS.explain


def client_address(source: Workload) -> SocketAddress:
    """Returns the client's own address, with an arbitrary port."""
    ip = source.addresses[0] if source.addresses else SocketAddress.parse("0.0.0.0:0").ip
    return SocketAddress(ip, 0)


def named(workload: Workload) -> str:
    """Returns ``namespace/name`` of a workload, its uid if it has no name."""
    return f"{workload.namespace}/{workload.name}" if workload.name else workload.uid


def arrive(
    view: MeshView, source: Workload, plan: OutboundPlan, setting: Setting, notes: list[str]
) -> Slices[ArrivalView | None]:
    """Returns what happens at the next hop; None if it has no ztunnel, or decides by itself (a waypoint).

    notes: a list to which remarks are added.
    """
    workload = plan.destination_workload
    if workload is None:
        return None
    if plan.protocol is OutboundProtocol.TCP:
        return None
    if plan.protocol is OutboundProtocol.DOUBLE_HBONE:
        notes.append("Beyond the network gateway the other cluster's ztunnel decides; ask it there.")
        return None
    if plan.resolve is not None:
        notes.append(f"{plan.resolve.hostname} is resolved when a connection is made.")
        return None
    if plan.waypoint and plan.next_hop.port != HBONE_PORT:
        notes.append("The waypoint takes the tunnel itself; its policies are Envoy's.")
        return None
    if plan.waypoint:
        notes.append(
            "Beyond the waypoint: policies that target the service or the waypoint are enforced there "
            "(layer 7 ones only there), and then it connects to an endpoint by itself."
        )
        if workload.native_tunnel:
            return None
    facts = ConnectFacts(
        method="CONNECT",
        authority=plan.authority or "",
        local=SocketAddress(plan.next_hop.ip, HBONE_PORT),
        peer=client_address(source),
        workload=workload,
        identity=source.identity,
        network=setting.network,
    )
    admitted = admit_connect(
        view,
        facts,
        illegal_ports=setting.illegal_ports,
        localhost_app_tunnel=setting.localhost_app_tunnel,
        spoof=False,
    )
    name = named(workload)
    if source.trust_domain != workload.trust_domain:
        notes.append(
            f"The trust domains differ: {source.trust_domain} and {workload.trust_domain}. "
            "The other end refuses certificates of other trust domains than its own and its aliases."
        )
    if isinstance(admitted, Refusal):
        return ArrivalView(
            name, why=admitted.why, allowed=False, reason=f"{admitted.text} ({admitted.kind.value})"
        )
    return (
        yield from _judge(
            view, source, workload, admitted.destination, source.identity, str(admitted.dial), admitted.why
        )
    )


def arrive_plain(
    view: MeshView, source: Workload, workload: Workload, destination: SocketAddress, setting: Setting
) -> Slices[ArrivalView]:
    """Returns what happens to plain TCP that arrives at a workload of the mesh."""
    admitted = admit_plaintext(
        view,
        workload,
        client_address(source),
        destination,
        illegal_ports=setting.illegal_ports,
        spoof=False,
    )
    if isinstance(admitted, Refusal):
        return ArrivalView(
            named(workload),
            why=admitted.why,
            allowed=False,
            reason=f"{admitted.text} ({admitted.kind.value})",
        )
    return (
        yield from _judge(
            view, source, workload, admitted.destination, None, str(admitted.dial), admitted.why
        )
    )


def _judge(
    view: MeshView,
    source: Workload,
    workload: Workload,
    destination: SocketAddress,
    identity: Identity | None,
    dials: str,
    why: tuple[str, ...],
) -> Slices[ArrivalView]:
    facts = PolicyFacts(client_address(source), destination, identity)
    verdict = authorize(view, workload, facts)
    policies, missing = applicable_policies(view, workload)
    views = []
    for number, policy in enumerate(sorted(policies, key=lambda one: one.key), 1):
        if number % POLICIES_SLICE == 0:
            yield
        matches, clues = explain_policy(policy, facts)
        views.append(
            PolicyDecisionView(
                policy.key,
                policy.action.value,
                policy.scope.value,
                matches,
                decides=verdict.policy == policy.key
                or (
                    not verdict.allowed
                    and verdict.policy is None
                    and policy.key in {clue.policy for clue in verdict.clues}
                ),
                dry_run=policy.dry_run,
                clues=tuple(clue.text for clue in clues[:8]),
            )
        )
    return ArrivalView(
        named(workload),
        dials=dials,
        sees=str(identity) if identity is not None else "no identity (plaintext)",
        why=why,
        policies=tuple(views),
        allowed=verdict.allowed,
        reason=verdict.reason or "",
        missing=missing,
    )
