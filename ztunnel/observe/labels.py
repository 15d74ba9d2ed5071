"""The labels of a connection's two ends, in metrics and in the access log. Pure.

An end is described by its workload if xDS knows it, otherwise by what the peer said (baggage) and proved (its
certificate). The two differ: ``app`` is the canonical name in the first case, and the workload's name in the
second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ztunnel.config.spelling import nearest
from ztunnel.decide.headers import Baggage
from ztunnel.model.identity import Identity
from ztunnel.model.service import Service
from ztunnel.model.workload import Workload

Reporter: TypeAlias = Literal["source", "destination"]
TrafficLabels: TypeAlias = tuple[str, ...]

_ENDS = (
    "{}_workload",
    "{}_canonical_service",
    "{}_canonical_revision",
    "{}_workload_namespace",
    "{}_principal",
    "{}_app",
    "{}_version",
    "{}_cluster",
)

TRAFFIC_LABELS: tuple[str, ...] = (
    "reporter",
    *(name.format("source") for name in _ENDS),
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    *(name.format("destination") for name in _ENDS),
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
)
"""The names of the values that `traffic_labels` returns. The last four may be missing together."""

FLAG = TRAFFIC_LABELS.index("response_flags")
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection. Empty fields are unknown.

    shown: its name in the access log: the pod's, if the pod is known.
    """

    shown: str = ""
    workload: str = ""
    canonical_service: str = ""
    canonical_revision: str = ""
    namespace: str = ""
    principal: str = ""
    app: str = ""
    cluster: str = ""
    region: str = ""
    zone: str = ""


UNKNOWN_END = End()


def unknown_labels(names: Iterable[str]) -> list[str]:
    """Returns a warning for each name that is no traffic label whose value could be dropped."""
    warnings = []
    for name in sorted(names):
        if name in ("reporter", "response_flags"):
            warnings.append(f"ZTUNNEL_METRICS_DROP_LABELS: the label {name} is always kept")
        elif name not in TRAFFIC_LABELS:
            meant = nearest(name, TRAFFIC_LABELS, 0.6)
            hint = f"did you mean {meant}?" if meant else "see docs/reference/metrics.md."
            warnings.append(f"ZTUNNEL_METRICS_DROP_LABELS: there is no traffic label {name}; {hint}")
    return warnings


def end_from_workload(workload: Workload, principal: Identity | None) -> End:
    """Returns an end that xDS knows.

    principal: the verified identity; for a source it is only what its certificate proves.
    """
    return End(
        shown=workload.name,
        workload=workload.workload_name,
        canonical_service=workload.canonical_name,
        canonical_revision=workload.canonical_revision,
        namespace=workload.namespace,
        principal="" if principal is None else str(principal),
        app=workload.canonical_name,
        cluster=workload.cluster_id,
        region=workload.locality.region,
        zone=workload.locality.zone,
    )


def end_from_baggage(baggage: Baggage, principal: Identity | None, *, show_workload: bool = False) -> End:
    """Returns an end that describes itself.

    show_workload: whether the log shows the workload's name, and not the canonical service.
    """
    workload = baggage.workload_name or ""
    service = baggage.service_name or ""
    return End(
        shown=workload if show_workload else service,
        workload=workload,
        canonical_service=service,
        canonical_revision=baggage.service_version or "",
        namespace=baggage.namespace or "",
        principal="" if principal is None else str(principal),
        app=workload,
        cluster=baggage.cluster or "",
        region=baggage.region or "",
        zone=baggage.zone or "",
    )


def inbound_source(
    workload: Workload | None, baggage: Baggage | None, principal: Identity | None
) -> End | None:
    """Returns the source as a destination sees it: by its address, else by baggage, else by its identity.

    None when nothing is known of it, not even an identity.
    """
    if workload is not None:
        return end_from_workload(workload, principal)
    if baggage is None and principal is None:
        return None
    return end_from_baggage(baggage or Baggage(), principal)


def traffic_labels(
    reporter: Reporter,
    source: End | None,
    destination: End | None,
    service: Service | None,
    *,
    mtls: bool,
) -> TrafficLabels:
    """Returns the label values of a connection, in the order of `TRAFFIC_LABELS`, with the flag ``-``.

    Missing and empty values are ``unknown``. Region and zone are left out when neither end is known at all.
    """
    s, d = source or UNKNOWN_END, destination or UNKNOWN_END
    host, namespace, name = (
        (_UNKNOWN, _UNKNOWN, _UNKNOWN)
        if service is None
        else (service.hostname or _UNKNOWN, service.namespace or _UNKNOWN, service.name or _UNKNOWN)
    )
    u = _UNKNOWN
    labels = (
        reporter,
        s.workload or u,
        s.canonical_service or u,
        s.canonical_revision or u,
        s.namespace or u,
        s.principal or u,
        s.app or u,
        s.canonical_revision or u,
        s.cluster or u,
        host,
        namespace,
        name,
        d.workload or u,
        d.canonical_service or u,
        d.canonical_revision or u,
        d.namespace or u,
        d.principal or u,
        d.app or u,
        d.canonical_revision or u,
        d.cluster or u,
        "tcp",
        "-",
        "mutual_tls" if mtls else u,
    )
    if source is None and destination is None:
        return labels
    return (*labels, s.region or u, s.zone or u, d.region or u, d.zone or u)


def with_flag(labels: TrafficLabels, flag: str) -> TrafficLabels:
    """Returns the same labels with other response flags."""
    return (*labels[:FLAG], flag, *labels[FLAG + 1 :])
