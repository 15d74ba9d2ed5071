"""The counters of a data plane: connections, bytes, sockets, DNS.

The hot path is `ConnectionMetrics`: a connection looks up its series once, when it opens, and then adds to
two integers. There is no rendering and no lock, because a data plane is one thread. The values leave as
`Sample` values, which the control side adds up and prints.

The number of series is limited. A series without open connections and without changes may be dropped after a
while. If there are still too many, further connections are counted with labels ``unknown``, so that sums stay
right, and this overflow is counted too.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import islice

from ztunnel.messages import Sample
from ztunnel.model.workload import Workload
from ztunnel.observe import families
from ztunnel.observe.families import DNS_BUCKETS, DURATION_BUCKETS, Family
from ztunnel.observe.labels import (
    FLAG,
    TRAFFIC_LABELS,
    Reporter,
    TrafficLabels,
    end_from_workload,
    traffic_labels,
    with_flag,
)

_OPENED = families.OPENED.samples[0]
_CLOSED = families.CLOSED.samples[0]
_RECEIVED = families.RECEIVED.samples[0]
_SENT = families.SENT.samples[0]
_FAILED = families.FAILED.samples[0]
_SOCKETS = families.SOCKETS_OPEN.samples[0]
_OVERFLOW = families.SERIES_OVERFLOW.samples[0]
NO_FLAG = "-"


class _Series:
    """All counters of one set of labels. ``opened`` counts only where the flag is ``-``."""

    __slots__ = ("closed", "failed", "labels", "live", "opened", "received", "sent", "used")

    def __init__(self, labels: TrafficLabels) -> None:
        self.labels = labels
        self.opened = self.closed = self.failed = self.received = self.sent = 0
        self.live = 0
        self.used = 0.0


class ConnectionMetrics:
    """The counters of one open connection. Call `closed` once; further calls do nothing."""

    __slots__ = ("_owner", "_series", "received", "sent")

    def __init__(self, owner: TrafficMetrics, series: _Series) -> None:
        self._owner: TrafficMetrics | None = owner
        self._series = series
        self.received = 0
        self.sent = 0

    def add_received(self, count: int) -> None:
        """Count bytes from client to server."""
        self.received += count
        self._series.received += count

    def add_sent(self, count: int) -> None:
        """Count bytes from server to client."""
        self.sent += count
        self._series.sent += count

    def closed(self, flag: str = NO_FLAG) -> None:
        """Count the end.

        ``flag``: the response flag, ``-`` for success and for connections closed by a drain.
        """
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.count_closed(self._series, flag)


class _OpenSocket:
    """Counts a socket while the block runs.

    It is reentrant, so one object serves all sockets of a reporter.
    """

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = 0

    def __enter__(self) -> None:
        self.open += 1

    def __exit__(self, *_: object) -> None:
        self.open -= 1


class Histogram:
    """Durations of one series. It is printed once there is one."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Record how long something took."""
        self.total += seconds
        self.buckets[bisect_left(self.bounds, seconds)] += 1

    def samples(self, family: Family, labels: tuple[str, ...]) -> Iterator[Sample]:
        """Returns the samples of the series."""
        total, count, bucket = family.samples
        yield Sample(total, labels, self.total)
        yield Sample(count, labels, sum(self.buckets))
        below = 0
        for bound, number in zip((*map(str, self.bounds), "+Inf"), self.buckets, strict=True):
            below += number
            yield Sample(bucket, (*labels, bound), below)


class TrafficMetrics:
    """The counters of one data plane.

    max_series: the most sets of labels; further ones are counted as overflow.
    drop_labels: the names of labels whose value is always ``unknown``.
    now: returns seconds of a monotonic clock; only for `expire`.
    """

    def __init__(
        self,
        *,
        max_series: int = 100_000,
        drop_labels: frozenset[str] = frozenset(),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max = max_series
        self._dropped = [
            index
            for index, name in enumerate(TRAFFIC_LABELS)
            if name in drop_labels and index not in (0, FLAG)
        ]
        self._now = now
        self._series: dict[TrafficLabels, _Series] = {}
        self._overflow: dict[TrafficLabels, _Series] = {}
        self._overflowed = 0
        self._sockets: dict[str, _OpenSocket] = {}
        # Counters without labels begin at 0, for a rate to see the first event.
        self._counters: dict[Family, dict[tuple[str, ...], int]] = {families.EJECTIONS: {(): 0}}
        self._histograms: dict[tuple[Family, tuple[str, ...]], Histogram] = {}

    def __len__(self) -> int:
        return len(self._series)

    # -- connections ----------------------------------------------------------------------------------

    def opened(self, labels: TrafficLabels) -> ConnectionMetrics:
        """Count a connection that opens; its byte series exist from now on. The caller calls ``closed``."""
        if self._dropped:
            labels = self._without_dropped(labels)
        series = self._find(labels)
        if series.labels != labels:
            self._overflowed += 1
        series.opened += 1
        series.live += 1
        series.used = self._now()
        return ConnectionMetrics(self, series)

    def count_closed(self, opened: _Series, flag: str) -> None:
        """For `ConnectionMetrics.closed`."""
        opened.live -= 1
        opened.used = self._now()
        if flag == NO_FLAG:
            opened.closed += 1
            return
        series = self._find(with_flag(opened.labels, flag))
        series.closed += 1
        series.failed += 1
        series.used = opened.used

    def _without_dropped(self, labels: TrafficLabels) -> TrafficLabels:
        changed = list(labels)
        for index in self._dropped:
            if index < len(changed):
                changed[index] = "unknown"
        return tuple(changed)

    def _find(self, labels: TrafficLabels) -> _Series:
        found = self._series.get(labels)
        if found is not None:
            return found
        if len(self._series) < self._max:
            created = self._series[labels] = _Series(labels)
            return created
        reporter: Reporter = "source" if labels[0] == "source" else "destination"
        collapsed = traffic_labels(reporter, None, None, None, mtls=labels[FLAG + 1] == "mutual_tls")
        collapsed = with_flag(collapsed, labels[FLAG])
        return self._overflow.setdefault(collapsed, _Series(collapsed))

    def expire(self, ttl: float, still_known: Callable[[str, str], bool] | None = None) -> int:
        """Drop series without open connections that did not change for ``ttl`` seconds. Returns how many.

        ``still_known(namespace, workload)``: series are kept if both of their ends still exist; without it
        all idle series are dropped.
        """
        before = self._now() - ttl

        def gone(labels: TrafficLabels) -> bool:
            if still_known is None:
                return True
            return not (still_known(labels[4], labels[1]) and still_known(labels[15], labels[12]))

        idle = [
            s.labels for s in self._series.values() if s.live == 0 and s.used <= before and gone(s.labels)
        ]
        for labels in idle:
            del self._series[labels]
        return len(idle)

    # -- everything else ------------------------------------------------------------------------------

    def socket_open(self, reporter: str) -> _OpenSocket:
        """Returns a context manager that counts an accepted socket as open while its block runs."""
        found = self._sockets.get(reporter)
        if found is None:
            found = self._sockets[reporter] = _OpenSocket()
        return found

    def on_demand_dns(self, source: Workload, hostname: str) -> None:
        """Count a connection whose next hop had to be resolved from a hostname."""
        labels = traffic_labels("source", end_from_workload(source, None), None, None, mtls=False)
        self._count(families.ON_DEMAND_DNS, (*labels[1:9], hostname or "unknown"))

    def connection_failed(self, direction: str, code: str) -> None:
        """Count a connection that was refused or failed, by its code of docs/errors.md."""
        self._count(families.FAILURES, (direction, code))

    def dry_run(self, policy: str, verdict: str) -> None:
        """Count a connection that a dry-run policy matched; ``verdict`` is ``allow`` or ``deny``."""
        self._count(families.DRY_RUN, (policy, verdict))

    def handshake_delayed(self) -> None:
        """Count a client's handshake that waited, since many before it came to nothing."""
        self._count(families.HANDSHAKES_DELAYED, ())

    def crl_rejected(self, reporter: str) -> None:
        """Count a connection refused or cut because of a revoked certificate."""
        self._count(families.CRL_REJECTIONS, (reporter,))

    def crl_untracked(self, reporter: str) -> None:
        """Count a connection that a later revocation cannot reach."""
        self._count(families.CRL_UNTRACKED, (reporter,))

    def dns_request(self, labels: tuple[str, ...]) -> None:
        """Count a DNS request. Labels as `dns_labels` gives them."""
        self._count(families.DNS_REQUESTS, labels)

    def dns_upstream_request(self, labels: tuple[str, ...]) -> None:
        """Count a DNS request that was forwarded."""
        self._count(families.DNS_UPSTREAM_REQUESTS, labels)

    def dns_upstream_failure(self, labels: tuple[str, ...]) -> None:
        """Count a forwarded DNS request that got no answer."""
        self._count(families.DNS_UPSTREAM_FAILURES, labels)

    def dns_upstream_duration(self, labels: tuple[str, ...], seconds: float) -> None:
        """Record how long the answer to a forwarded DNS request took."""
        self._observe(families.DNS_UPSTREAM_DURATION, labels, seconds, DNS_BUCKETS)

    def duration(self, family: Family, seconds: float, *labels: str) -> None:
        """Record how long something took."""
        self._observe(family, labels, seconds, DURATION_BUCKETS)

    def histogram(self, family: Family, *labels: str) -> Histogram:
        """Returns the series that `duration` adds to, for what happens with each connection."""
        return self._histogram(family, labels, DURATION_BUCKETS)

    def retried(self, code: str) -> None:
        """Count an attempt that failed with this code, and after which another endpoint is tried."""
        self._count(families.RETRIES, (code,))

    def ejected(self) -> None:
        """Count an endpoint that becomes ejected."""
        self._count(families.EJECTIONS, ())

    def _observe(
        self, family: Family, labels: tuple[str, ...], seconds: float, bounds: tuple[float, ...]
    ) -> None:
        self._histogram(family, labels, bounds).add(seconds)

    def _histogram(self, family: Family, labels: tuple[str, ...], bounds: tuple[float, ...]) -> Histogram:
        found = self._histograms.get((family, labels))
        if found is None:
            if len(self._histograms) >= self._max:
                labels = ("unknown",) * len(labels)
            found = self._histograms.setdefault((family, labels), Histogram(bounds))
        return found

    def _count(self, family: Family, labels: tuple[str, ...]) -> None:
        counters = self._counters.setdefault(family, {})
        if labels not in counters and len(counters) >= self._max:
            labels = ("unknown",) * len(labels)
        counters[labels] = counters.get(labels, 0) + 1

    # -- out ------------------------------------------------------------------------------------------

    def samples(self) -> list[Sample]:
        """Returns everything counted since the start. `sample_slices` gives the same in pieces."""
        return [sample for part in self.sample_slices(len(self._series) + 1) for sample in part]

    def sample_slices(self, series: int = 500) -> Iterator[list[Sample]]:
        """Returns everything counted, in pieces with a limited number of series.

        The caller may await between pieces. Each piece is consistent in itself; series that are added
        meanwhile may be missing.
        """
        yield self._small_samples()
        everything = iter([*self._series.values(), *self._overflow.values()])
        while part := list(islice(everything, series)):
            yield [sample for one in part for sample in _samples_of(one)]

    def _small_samples(self) -> list[Sample]:
        samples = [Sample(_SOCKETS, (reporter,), s.open) for reporter, s in self._sockets.items()]
        for family, counters in self._counters.items():
            name = family.samples[0]
            samples += [Sample(name, labels, value) for labels, value in counters.items()]
        for (family, labels), histogram in self._histograms.items():
            if any(histogram.buckets):
                samples += histogram.samples(family, labels)
        return [*samples, Sample(_OVERFLOW, (), self._overflowed)]


def _samples_of(series: _Series) -> Iterator[Sample]:
    labels = series.labels
    if series.opened:
        yield Sample(_OPENED, labels, series.opened)
        yield Sample(_RECEIVED, labels, series.received)
        yield Sample(_SENT, labels, series.sent)
    if series.closed:
        yield Sample(_CLOSED, labels, series.closed)
    if series.failed:
        yield Sample(_FAILED, labels, series.failed)


def dns_labels(query_type: str, protocol: str, source: Workload | None) -> tuple[str, ...]:
    """Returns the labels of DNS counters: type as text (``A``), ``udp`` or ``tcp``, and who asked."""
    name = source.canonical_name if source is not None else ""
    revision = source.canonical_revision if source is not None else ""
    return (query_type.lower(), protocol, name or "unknown", revision or "unknown")
