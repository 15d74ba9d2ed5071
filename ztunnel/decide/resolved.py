"""The last part of a routing decision, for a workload that is known by its hostname only.

A plan whose ``resolve`` is set says which name to look up. `with_ip` completes it with what the resolver
answered, and `unresolved` refuses it when the lookup failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from ztunnel.decide.balance import is_allowed_family
from ztunnel.decide.plans import LOOP_TEXT, OutboundPlan, Refusal, RefusalKind
from ztunnel.model.address import IPAddress, SocketAddress


def with_ip(plan: OutboundPlan, addresses: Sequence[IPAddress], random: Random) -> OutboundPlan | Refusal:
    """Complete a plan whose next hop is known by hostname, with the addresses that the resolver returned.

    Chooses a random address of the IP version that the plan prefers, else another random one. Returns a
    refusal if there is none. Returns a plan without ``resolve`` unchanged. For a failed lookup see
    `unresolved`.
    """
    resolve = plan.resolve
    if resolve is None:
        return plan
    allowed = [ip for ip in addresses if is_allowed_family(ip, resolve.families)] or addresses
    candidates = [ip for ip in allowed if ip.version == resolve.prefer] or allowed
    if not candidates:
        return Refusal(
            RefusalKind.NO_USABLE_ADDRESSES,
            f"ip addresses were resolved for workload {resolve.workload_uid}, "
            "but valid dns response had no A/AAAA records",
            why=(*plan.why, f"The name {resolve.hostname} has no addresses."),
            steps=plan.steps,
        )
    ip = candidates[int(random.random() * len(candidates))]
    why = (*plan.why, f"The name {resolve.hostname} resolves to {ip}.")
    next_hop = SocketAddress(ip, plan.next_hop.port)
    if is_ours(next_hop, resolve.illegal_ports):
        return Refusal(
            RefusalKind.LOOP, LOOP_TEXT, why=(*why, f"{next_hop} is our own port."), steps=plan.steps
        )
    authority = plan.authority
    if resolve.target_port is not None:
        authority = str(SocketAddress(ip, resolve.target_port))
    return replace(plan, next_hop=next_hop, authority=authority, resolve=None, why=why)


def unresolved(plan: OutboundPlan, error: str) -> Refusal:
    """Returns the refusal when the name that a plan needs could not be looked up.

    ``error`` says what went wrong.
    """
    resolve = plan.resolve
    uid = "" if resolve is None else resolve.workload_uid
    hostname = "" if resolve is None else resolve.hostname
    return Refusal(
        RefusalKind.NO_RESOLVED_ADDRESSES,
        f"no ip addresses were resolved for workload: {uid}",
        why=(*plan.why, f"The name {hostname} could not be resolved: {error}."),
        steps=plan.steps,
    )


def is_ours(address: SocketAddress, illegal_ports: frozenset[int]) -> bool:
    """Returns whether an address is one of our own listeners', by its port and loopback."""
    # Connecting to the unspecified address is connecting to loopback.
    return address.port in illegal_ports and (address.ip.is_loopback or address.ip.is_unspecified)
