"""Merges the answers of several data planes.

`ztunnel.observe.metrics.ReportedMetrics` adds up the counters, since it has to remember those of data planes
that have ended. What is about the present is merged here.
"""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.messages import PodConnections, Report


def merged_connections(reports: Iterable[Report]) -> dict[str, PodConnections]:
    """Returns the open connections of each pod in all data planes, by its uid."""
    merged: dict[str, PodConnections] = {}
    for report in reports:
        for pod in report.pods:
            before = merged.get(pod.uid)
            if before is not None:
                inbound, outbound = before.inbound + pod.inbound, before.outbound + pod.outbound
                pod = PodConnections(pod.uid, inbound, outbound)  # noqa: PLW2901
            merged[pod.uid] = pod
    return merged
