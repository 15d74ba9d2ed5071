"""What closes a connection that is open: it would be refused by now.

Three things change after a connection was let in. Each has its function here.

* Policy, or the pod's own workload: `close_forbidden` asks policy again about what came in.
* A workload that we have tunnels to: `evict_stale`. A tunnel was dialled for a workload at an address, with
  identities in mind. When the workload is gone, has moved, or would now be expected under another identity,
  no new stream may use the tunnel. Connections on it go on, unless the identity that they were promised is
  not the workload's any more: then they talk to somebody whom we would refuse by now.
* The revocation lists: `close_revoked` ends the tunnels whose peer has been revoked, and what they carry.
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

SLICE = 64
"""Connections asked about between two checkpoints: less than a millisecond."""


async def close_forbidden(pod: PodContext) -> int:
    """Close the incoming connections that policy would refuse by now. Returns how many there were.

    In slices, so that a pod with thousands of connections holds up nobody.

    Policies, the pod's own workload (its list of policies, its trust domain) and with it the meaning of the
    peer's identity may have changed. A pod whose workload is not known for the moment keeps its connections:
    a control plane that lost an object must not cut traffic.
    """
    entries = pod.connections.inbound
    if not entries:
        return 0
    workload = pod.known_workload()
    if workload is None:
        return 0
    closed = 0
    for number, entry in enumerate(list(entries), 1):
        if number % SLICE == 0:
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
    """Look at the tunnels to the workloads that changed, and at the connections on them."""
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
    """Whether a tunnel with this key would not be dialled like this for the workload any more.

    A workload that is reached by hostname has no address to compare.
    """
    if workload is None or str(workload.identity) not in key.expected:
        return True
    return bool(workload.addresses) and key.next_hop.ip not in workload.addresses


def close_revoked(pod: PodProxy, revocations: Revocations) -> int:
    """Close the tunnels of a pod whose peer is on one of the lists. Returns how many there were.

    Connections on them end with RevokedError. Expiry of a certificate, in contrast, never ends a tunnel.
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
