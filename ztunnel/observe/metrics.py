"""The metrics of all processes together: the sum of the data planes' reports, and the control side's own.

A data plane reports the values of its series since its own start. The sum over several data planes must never
decrease, or Prometheus would take that for a restart and count everything again. So when a data plane is
replaced (or drops a series that another one still has), its reported values are kept as a base. Gauges are
not kept: they are about the present.

The small families of the control side use prometheus-client's counters and gauges.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import TypeAlias

from prometheus_client import Counter, Gauge

from ztunnel.messages import Sample
from ztunnel.observe import families
from ztunnel.observe.families import BY_SAMPLE, Family, MetricKind

Labels: TypeAlias = tuple[str, ...]
Key: TypeAlias = tuple[str, Labels]

_NOT_ADDED = {family.name for family in (families.DRAIN_REMAINING, families.DRAIN_OLDEST, families.MAX_FDS)}
"""For these families, the largest value of all data planes counts and not the sum."""


class ReportedMetrics:
    """The sum of the data planes' reports. A source is named by any hashable value: a worker's number."""

    def __init__(self) -> None:
        self._reports: dict[Hashable, dict[Key, float]] = {}
        self._base: dict[Key, float] = {}

    def merge(self, source: Hashable, samples: Iterable[Sample]) -> None:
        """Replace the last report of one data plane by a complete new one.

        Samples of families that are not in the catalogue are ignored.
        """
        report = {(s.family, s.labels): s.value for s in samples if s.family in BY_SAMPLE}
        before = self._reports.get(source, {})
        self._reports[source] = report
        for key in before.keys() - report.keys():
            # A series that one data plane has expired stays counted while others report it.
            if any(key in other for other in self._reports.values()):
                self._keep([(key, before[key])])
            else:
                self._base.pop(key, None)

    def restarted(self, source: Hashable) -> None:
        """A data plane has ended: its counters are kept, its gauges are dropped."""
        self._keep(self._reports.pop(source, {}).items())

    def _keep(self, values: Iterable[tuple[Key, float]]) -> None:
        for key, value in values:
            if BY_SAMPLE[key[0]].kind is not MetricKind.GAUGE:
                self._base[key] = self._base.get(key, 0) + value

    def totals(self) -> dict[str, dict[Labels, float]]:
        """Values by sample name and labels."""
        totals: dict[str, dict[Labels, float]] = {}
        for part in (self._base, *self._reports.values()):
            for (name, labels), value in part.items():
                series = totals.get(name)
                if series is None:
                    series = totals[name] = {}
                before = series.get(labels, 0)
                series[labels] = max(before, value) if name in _NOT_ADDED else before + value
        return totals


class ControlMetrics:
    """The control side's own metrics.

    version: of ``ISTIO_META_ISTIO_VERSION``, for ``istio_build``.
    shared: whether there are pods of a CNI (in-pod mode); otherwise ``workload_manager_*`` do not exist.
    """

    def __init__(self, version: str, *, shared: bool) -> None:
        self._all: list[tuple[Family, Counter | Gauge]] = []
        build = self._gauge(families.BUILD)
        build.labels("ztunnel", version or "unknown").set(1)
        self._terminations = self._counter(families.XDS_TERMINATIONS)
        self._messages = self._counter(families.XDS_MESSAGES)
        self._bytes = self._counter(families.XDS_BYTES)
        if shared:
            self.active_proxies = self._gauge(families.ACTIVE_PROXIES)
            self.pending_proxies = self._gauge(families.PENDING_PROXIES)
            self.proxies_started = self._counter(families.PROXIES_STARTED)
            self.proxies_stopped = self._counter(families.PROXIES_STOPPED)

    def _gauge(self, family: Family) -> Gauge:
        gauge = Gauge(family.name, family.help, family.labels, registry=None)
        self._all.append((family, gauge))
        return gauge

    def _counter(self, family: Family) -> Counter:
        counter = Counter(family.name, family.help, family.labels, registry=None)
        self._all.append((family, counter))
        return counter

    def xds_terminated(self, reason: str) -> None:
        """Count the end of an xDS stream: ConnectionError, Error, Reconnect or Complete."""
        self._terminations.labels(reason).inc()

    def xds_message(self, url: str, size: int) -> None:
        """Count a response by type URL; ``size`` is the sum of its resources' sizes in bytes."""
        self._messages.labels(url).inc()
        self._bytes.labels(url).inc(size)

    def samples(self) -> list[Sample]:
        """Returns the present values."""
        wanted = {name for family, _ in self._all for name in family.samples}
        return [
            Sample(sample.name, tuple(sample.labels.values()), sample.value)
            for _, metric in self._all
            for described in metric.collect()
            for sample in described.samples
            if sample.name in wanted
        ]


def by_family(*parts: Iterable[Sample]) -> dict[str, dict[Labels, float]]:
    """Returns samples in the form of `ReportedMetrics.totals`; equal ones are added."""
    totals: dict[str, dict[Labels, float]] = {}
    for sample in _chain(parts):
        series = totals.setdefault(sample.family, {})
        series[sample.labels] = series.get(sample.labels, 0) + sample.value
    return totals


def _chain(parts: Iterable[Iterable[Sample]]) -> Iterator[Sample]:
    for part in parts:
        yield from part
