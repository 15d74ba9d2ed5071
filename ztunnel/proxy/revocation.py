"""After a reload of the revocation lists: tunnels end whose peer has been revoked, and their connections."""

from __future__ import annotations

from ztunnel.observe.logging import get_logger
from ztunnel.proxy.pod import PodProxy
from ztunnel.tls.revocation import Revocations
from ztunnel.tunnel.failures import RevokedError
from ztunnel.tunnel.tunnel import Tunnel

log = get_logger("tls::crl")


def close_revoked(pod: PodProxy, revocations: Revocations) -> int:
    """Close the tunnels of a pod whose peer is on one of the lists; gives how many there were.

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
            log.warn("a tunnel is closed: its peer's certificate has been revoked", pod=pod.context.name)
            _close(pod, tunnel)
    return closed


def _close(pod: PodProxy, tunnel: Tunnel) -> None:
    connections = pod.context.connections
    for entry in [*connections.inbound, *connections.outbound]:
        if tunnel in entry.tunnels:
            entry.close(RevokedError())
    tunnel.stop()
