"""Putting together what several data planes have answered.

Counters are added up by `ztunnel.observe.metrics.ReportedMetrics`, which has to remember what a data plane
that has ended had counted; what is of the present is merged here.
"""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.messages import PodConnections, Report


def merged_connections(reports: Iterable[Report]) -> dict[str, PodConnections]:
    """Returns what each pod has open in all data planes, by its uid."""
    merged: dict[str, PodConnections] = {}
    for report in reports:
        for pod in report.pods:
            before = merged.get(pod.uid)
            if before is not None:
                inbound, outbound = before.inbound + pod.inbound, before.outbound + pod.outbound
                pod = PodConnections(pod.uid, inbound, outbound)  # noqa: PLW2901
            merged[pod.uid] = pod
    return merged
