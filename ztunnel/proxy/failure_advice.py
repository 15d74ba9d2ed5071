"""Explains why a connection failed, for the person who has to repair it.

The text of a failure is that of the Rust ztunnel and says what happened to the socket. The advice says what
that means: who refused, and where to look. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from ztunnel.bounds import HistoryBounds
from ztunnel.decide.plans import InboundPlan, OutboundPlan, OutboundProtocol, Verdict
from ztunnel.proxy.history import Failure, limited, short
from ztunnel.tls.tls_errors import TlsHandshakeError
from ztunnel.tunnel.failures import (
    ApplicationDialError,
    ConnectionFailure,
    ConnectTimeoutError,
    DialError,
    HboneTimeoutError,
    IdentityUnavailableError,
    PolicyRejectedError,
    RefusedByPeerError,
    RouteRefusedError,
)


class FailureAdvice(NamedTuple):
    """A code of docs/errors.md, and sentences. ``policy``: the policy that refused, None if none did."""

    code: str
    why: str
    policy: str | None = None


def code_of(failure: ConnectionFailure) -> str:
    """Returns the most exact code for a failure."""
    if isinstance(failure, RouteRefusedError):
        return failure.refusal.kind.value
    cause = failure.__cause__
    return cause.code if isinstance(cause, TlsHandshakeError) else failure.code


def failure_advice(
    failure: ConnectionFailure, plan: OutboundPlan | InboundPlan | None, verdict: Verdict | None
) -> FailureAdvice | None:
    """Returns what a failure means, None where its text says it all.

    plan: the plan of the last attempt, None without one. verdict: the verdict of the policies if they
    refused.
    """
    why = _why(failure, plan, verdict)
    if why is None:
        return None
    policy = verdict.policy if verdict is not None and isinstance(failure, PolicyRejectedError) else None
    return FailureAdvice(code_of(failure), why, policy)


def remembered_failure(
    failure: ConnectionFailure | None,
    advice: FailureAdvice | None,
    verdict: Verdict | None,
    attempts: tuple[str, ...],
    bounds: HistoryBounds,
) -> Failure:
    """Returns what the history keeps of a failure, and of attempts that failed before.

    verdict: as in `failure_advice`. attempts: their texts, limited. bounds: of the history.
    """
    if failure is None:
        return Failure(attempts=attempts)
    error = short(str(failure), bounds)
    why = "" if advice is None else short(advice.why, bounds)
    if not why and verdict is not None:
        why = error
    return Failure(
        error,
        code_of(failure),
        why,
        "" if advice is None else advice.policy or "",
        limited(failure.refusal.why, bounds) if isinstance(failure, RouteRefusedError) else None,
        attempts,
    )


def _why(
    failure: ConnectionFailure, plan: OutboundPlan | InboundPlan | None, verdict: Verdict | None
) -> str | None:
    cause = failure.__cause__
    if isinstance(cause, TlsHandshakeError):
        return cause.explanation
    match failure:
        case RouteRefusedError():
            return " ".join(failure.refusal.why) or failure.refusal.text
        case PolicyRejectedError():
            if verdict is None:
                return str(failure)
            return " ".join(clue.text for clue in verdict.clues) or verdict.reason
        case IdentityUnavailableError():
            return "This pod has no certificate: the CA refuses or is out of reach; see /debug/certificates."
    if isinstance(plan, InboundPlan):
        return _application(failure, plan)
    if isinstance(plan, OutboundPlan):
        return _peer(failure, plan)
    return None


def _application(failure: ConnectionFailure, plan: InboundPlan) -> str | None:
    if not isinstance(failure, ApplicationDialError):
        return None
    name = f"{plan.workload.namespace}/{plan.workload.name}"
    text = str(failure)
    if "refused" in text:
        return (
            f"Nothing listens on {plan.dial} in pod {name}: the application is down, not up yet, listens on "
            "another port than the Service's targetPort, or on 127.0.0.1 alone."
        )
    if "timed out" in text or "elapsed" in text:
        return (
            f"The application of pod {name} does not take connections on {plan.dial}: it hangs, or its "
            "queue of new connections is full."
        )
    return f"The application of pod {name} could not be reached on {plan.dial}."


def _peer(failure: ConnectionFailure, plan: OutboundPlan) -> str | None:
    name = _named(plan)
    if isinstance(failure, RefusedByPeerError):
        return _refused_by_peer(failure.status, name, plan)
    if isinstance(failure, HboneTimeoutError):
        return (
            f"Nobody answered on {plan.next_hop}: a NetworkPolicy or firewall drops port "
            f"{plan.next_hop.port}, or the node of {name} is gone."
        )
    if isinstance(failure, ConnectTimeoutError):
        return f"The tunnel to {name} stands, and nobody answers: its ztunnel or its application hangs."
    return _not_dialled(failure, name, plan) if isinstance(failure, DialError) else None


def _not_dialled(failure: DialError, name: str, plan: OutboundPlan) -> str | None:
    refused = "refused" in str(failure)
    if plan.protocol is OutboundProtocol.TCP:
        if refused:
            return f"Nothing listens on {plan.next_hop}. It is not in the mesh, so it gets plain TCP."
        if failure.timed_out:
            return f"Nobody answered on {plan.next_hop} (plain TCP): a firewall, or a host that is gone."
    elif refused:
        return (
            f"{plan.next_hop} refused: no ztunnel serves {name}. Is ztunnel up on its node, "
            "and the pod still in the mesh?"
        )
    return None


def _refused_by_peer(status: int, name: str, plan: OutboundPlan) -> str | None:
    beside = "Its ztunnel's log tells more, in a line with the same trace id"
    if status == 401:
        return (
            f"{name} refused: an authorization policy there does not allow {plan.source.identity}. {beside}, "
            "message `refused` and code ZT-POL-001: policy, rule and clause."
        )
    if status == 503:
        return (
            f"{name} was reached, and its application was not: nothing takes connections on "
            f"{plan.authority}. Is it up, and does it listen on the Service's targetPort? {beside} and code "
            "ZT-NET-012."
        )
    if status == 400:
        return f"{name} does not accept {plan.authority}; mostly its address was another pod's. {beside}."
    return None


def _named(plan: OutboundPlan) -> str:
    workload = plan.destination_workload
    if workload is None:
        return str(plan.next_hop)
    kind = "waypoint" if plan.waypoint else "pod"
    if plan.protocol is OutboundProtocol.DOUBLE_HBONE:
        kind = "network gateway"
    return f"{kind} {workload.namespace}/{workload.name}"
