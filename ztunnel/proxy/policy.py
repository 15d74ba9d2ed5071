"""Asking policy about a connection, when it comes and again whenever the mesh has changed."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ztunnel.decide.authorize import authorize
from ztunnel.decide.plans import PolicyFacts, Verdict
from ztunnel.model.identity import Identity
from ztunnel.model.workload import Workload
from ztunnel.observe.logging import get_logger
from ztunnel.proxy.podcontext import PodContext
from ztunnel.proxy.report import ConnectionReport
from ztunnel.tunnel.failures import PolicyChangedError, PolicyRejectedError

log = get_logger("state")

SLICE = 64
"""Connections asked about between two checkpoints: less than a millisecond."""


def check_policy(
    pod: PodContext,
    workload: Workload,
    facts: PolicyFacts,
    report: ConnectionReport,
    peer: Sequence[Identity] = (),
) -> None:
    """Let a connection pass or raise PolicyRejectedError.

    peer: the identities of the tunnel's peer; none for plaintext. Says in the log what decided, and in which
    words.
    """
    if is_foreign(peer, workload):
        raise PolicyRejectedError(
            f"no identity of the peer is of trust domain {workload.identity.trust_domain}"
        )
    verdict = authorize(pod.shared.store, workload, facts)
    _log_decision(pod, verdict)
    if not verdict.allowed:
        assert verdict.reason is not None
        report.denied(PolicyRejectedError.code, verdict)
        raise PolicyRejectedError(verdict.reason)


def is_foreign(peer: Sequence[Identity], workload: Workload) -> bool:
    """Whether a new handshake of this peer would be refused: it has identities, all of other trust domains.

    A tunnel outlives the trust domain in which it was made; what comes through it must not.
    """
    return bool(peer) and all(one.trust_domain != workload.identity.trust_domain for one in peer)


def _log_decision(pod: PodContext, verdict: Verdict) -> None:
    for key in verdict.missing:
        log.warning(f"skipping unknown policy {key}")
    say = log.info if pod.shared.config.authz_policy_info_logging else log.debug
    for message, policy in verdict.log:
        if policy is None:
            say(message)
        else:
            say(message, policy=policy)


async def recheck(pod: PodContext) -> int:
    """Close the connections of a pod that would be refused by now; gives how many there were.

    In slices, so that a pod with thousands of connections holds up nobody.

    Policies, the pod's own workload (its list of policies, its trust domain) and hence the meaning of the
    peer's identity may have changed. A pod whose workload is not known for the moment keeps its connections:
    a control plane that lost an object must not cut traffic.
    """
    entries = pod.connections.inbound
    if not entries:
        return 0
    info = pod.info
    workload = pod.shared.store.local_workload(info.name, info.namespace, info.service_account)
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
        log.info(
            f"connection {facts.source}({facts.identity})->{facts.destination} ({workload.uid}) closed "
            "because it's no longer allowed after a policy update"
        )
    return closed
