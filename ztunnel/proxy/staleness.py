"""After a change of the mesh: which pooled tunnels must not be used any more, and which connections must end.

A tunnel was dialled for a workload at an address and with identities in mind. When the workload is gone, or
has moved, or would now be expected under another identity, no new stream may use the tunnel. Connections on
it go on, unless the identity that they were promised is not the workload's any more: then they are talking
to somebody whom we would refuse by now.
"""

from __future__ import annotations

from collections.abc import Collection

from ztunnel.model.workload import Workload
from ztunnel.proxy.pod import PodProxy
from ztunnel.tunnel.failures import PolicyChangedError
from ztunnel.tunnel.pool import PoolKey


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
