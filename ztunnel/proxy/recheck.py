"""Closes open connections that would be refused now.

Three things can change while a connection is open. Each has a function here.

* The policies, or the pod's own workload: `close_forbidden` checks policy again for incoming connections. * A
workload to which we have tunnels: `evict_stale`. A tunnel was dialled for a workload at an address, with
expected identities. When the workload is gone, has another address or another identity, no new stream may use
the tunnel. Connections on it continue, unless the workload no longer has the identity for which they were
made: then their peer would be refused now. * The revocation lists: `close_revoked` ends the tunnels whose
peer has been revoked, and their connections.
"""

from __future__ import annotations

from collections.abc import Collection

import trio

from ztunnel.decide.authorize import authorize
from ztunnel.model.workload import Workload
from ztunnel.observe.logging import get_logger
from ztunnel.proxy.pod import PodProxy
from ztunnel.proxy.podcontext import PodContext
from ztunnel.proxy.policy_check import is_foreign
from ztunnel.tls.revocation import Revocations
from ztunnel.tunnel.client_tunnel import ClientTunnel
from ztunnel.tunnel.failures import PolicyChangedError, RevokedError
from ztunnel.tunnel.pool import PoolKey
from ztunnel.tunnel.server_tunnel import ServerTunnel

state_log = get_logger("state")
tls_log = get_logger("tls::crl")

RECHECK_SLICE = 64
"""Connections that are checked between two checkpoints: less than a millisecond."""


async def close_forbidden(pod: PodContext) -> int:
    """Close the incoming connections that policy would refuse now. Returns how many were closed.

    Works in slices, so that a pod with thousands of connections does not delay other tasks.

    The policies may have changed, or the pod's own workload: its list of policies or its trust domain. If the
    workload is unknown at the moment, all connections are kept: a control plane that lost an object must not
    cut traffic.
    """
    entries = pod.connections.inbound
    if not entries:
        return 0
    workload = pod.known_workload()
    if workload is None:
        return 0
    closed = 0
    for number, entry in enumerate(list(entries), 1):
        if number % RECHECK_SLICE == 0:
            await trio.lowlevel.checkpoint()
        facts = entry.facts
        if facts is None or entry.closed_because is not None:
            continue
        peer = entry.tunnels[0].tls.peer_identities if entry.tunnels else ()
        if not is_foreign(peer, workload) and authorize(pod.shared.store, workload, facts).allowed:
            continue
        entry.close(PolicyChangedError())
        closed += 1
        state_log.info(
            f"connection {facts.source}({facts.identity})->{facts.destination} ({workload.uid}) closed "
            "because it's no longer allowed after a policy update"
        )
    return closed


def evict_stale(pod: PodProxy, uids: Collection[str]) -> None:
    """Evict the pooled tunnels that no longer fit the changed workloads, and close connections on them.

    uids: the workloads that have changed.
    """
    if pod.outbound is None:
        return
    pool = pod.outbound.pool
    store = pod.context.shared.store
    known = pool.workloads()
    touched = (
        [uid for uid in known if uid in uids] if len(known) < len(uids) else [u for u in uids if u in known]
    )
    for uid in touched:
        workload = store.workload(uid)
        if any(is_stale(key, workload) for key in pool.keys_of(uid)):
            pool.evict(uid)
    for entry in list(pod.context.connections.outbound):
        if entry.expected and entry.workload_uid in uids:
            workload = store.workload(entry.workload_uid)
            if workload is not None and str(workload.identity) not in entry.expected:
                entry.close(PolicyChangedError())


def is_stale(key: PoolKey, workload: Workload | None) -> bool:
    """Returns whether a new tunnel for the workload would get another key than this one.

    A workload that is reached by hostname has no addresses to compare.
    """
    if workload is None or str(workload.identity) not in key.expected:
        return True
    return bool(workload.addresses) and key.next_hop.ip not in workload.addresses


def close_revoked(pod: PodProxy, revocations: Revocations) -> int:
    """Close the tunnels of a pod whose peer is on a revocation list. Returns how many were closed.

    Connections on them end with RevokedError. The expiry of a certificate never ends a tunnel.
    """
    traffic = pod.context.shared.traffic
    closed = 0
    inbound = pod.inbound.tunnels if pod.inbound is not None else ()
    outbound = [tunnel for _, tunnel in pod.outbound.pool.tunnels()] if pod.outbound is not None else []
    single = {t for entry in pod.context.connections.outbound for t in entry.tunnels if t not in outbound}
    for reporter, tunnels in (("destination", list(inbound)), ("source", [*outbound, *single])):
        for tunnel in tunnels:
            if revocations.revoked(tunnel.tls.peer.chain) is None:
                continue
            closed += 1
            traffic.crl_rejected(reporter)
            tls_log.warn("a tunnel is closed: its peer's certificate has been revoked", pod=pod.context.name)
            _close(pod, tunnel)
    return closed


def _close(pod: PodProxy, tunnel: ClientTunnel | ServerTunnel) -> None:
    connections = pod.context.connections
    for entry in [*connections.inbound, *connections.outbound]:
        if tunnel in entry.tunnels:
            entry.close(RevokedError())
    tunnel.stop()
