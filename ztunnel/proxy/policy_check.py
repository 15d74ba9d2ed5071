"""Checks policy for a new connection; `ztunnel.proxy.recheck` checks open ones again after a change."""

from __future__ import annotations

from collections.abc import Sequence

from ztunnel.decide.authorize import authorize
from ztunnel.decide.plans import PolicyFacts, Verdict
from ztunnel.model.identity import Identity
from ztunnel.model.policy import Action
from ztunnel.model.workload import Workload
from ztunnel.observe.logging import get_logger
from ztunnel.proxy.podcontext import PodContext
from ztunnel.proxy.report import ConnectionReport
from ztunnel.tunnel.failures import PolicyRejectedError

log = get_logger("state")


def check_policy(
    pod: PodContext,
    workload: Workload,
    facts: PolicyFacts,
    report: ConnectionReport,
    peer: Sequence[Identity] = (),
) -> None:
    """Return if the policies allow the connection; raise PolicyRejectedError if they do not.

    Logs which policy decided, and counts what dry-run policies would have done.

    peer: the identities of the tunnel's peer; empty for plaintext.
    """
    if is_foreign(peer, workload):
        raise PolicyRejectedError(
            f"no identity of the peer is of trust domain {workload.identity.trust_domain}"
        )
    verdict = authorize(pod.shared.store, workload, facts, pod.shared.bounds.explain)
    _log_decision(pod, verdict, report.id)
    report.judged(verdict)
    if verdict.dry_run or verdict.dry_run_refuses:
        _tell_dry_run(pod, verdict, report)
    if not verdict.allowed:
        assert verdict.reason is not None
        raise PolicyRejectedError(verdict.reason)


def is_foreign(peer: Sequence[Identity], workload: Workload) -> bool:
    """Returns whether the peer has identities and all of them are of other trust domains than the workload.

    A new handshake of such a peer would be refused. A tunnel may have been made before the workload's trust
    domain changed; its connections must be refused too.
    """
    return bool(peer) and all(one.trust_domain != workload.identity.trust_domain for one in peer)


def _log_decision(pod: PodContext, verdict: Verdict, connection: str) -> None:
    for key in verdict.missing:
        log.warning(f"skipping unknown policy {key}")
    say = log.info if pod.shared.config.authz_policy_info_logging else log.debug
    for message, policy in verdict.log:
        if policy is None:
            say(message, connection=connection)
        else:
            say(message, policy=policy, connection=connection)


def _tell_dry_run(pod: PodContext, verdict: Verdict, report: ConnectionReport) -> None:
    """Count and log what dry-run policies would have done."""
    shared = pod.shared
    for key in verdict.dry_run:
        policy = shared.store.policy(key)
        action = "deny" if policy is not None and policy.action is Action.DENY else "allow"
        shared.traffic.dry_run(key, action)
    if verdict.dry_run_refuses:
        report.log.info(
            "a dry-run policy would refuse this connection",
            **{"src.addr": report.source, "dst.addr": report.destination},
            policy=verdict.dry_run_refuses,
            connection=report.id,
        )
