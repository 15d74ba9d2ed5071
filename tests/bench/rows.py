"""What the benchmark measures: each function gives some rows; rounds alternate between the pairs."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.bench.load import THOUSAND, WARM_UP
from tests.bench.pairs import DIRECT, ENVOY, OURS, Pair, Result
from tests.support.processes import memory
from ztunnel.demo.processes import ProcessEndedError

GIBIBYTE = 1024**3
Figure = Callable[[Result], float]


@dataclass
class Row:
    """One line of the table: a value of each pair, and whether less is better."""

    name: str
    unit: str
    values: dict[str, float] = field(default_factory=dict)
    less: bool = True

    def ratio(self, pair: str) -> float | None:
        """The value beside the direct connection's, None without one."""
        direct = self.values.get(DIRECT)
        value = self.values.get(pair)
        return None if not direct or value is None or pair == DIRECT else value / direct

    def plain(self) -> dict[str, Any]:
        """As it is written into the file of results."""
        return asdict(self)


@dataclass
class Bench:
    """The pairs, how often each measurement is repeated, and how much load there is (1 is all)."""

    pairs: Sequence[Pair]
    rounds: int
    scale: float

    def count(self, full: int) -> int:
        """So many, scaled."""
        return max(int(full * self.scale), 200)

    def each(self, command: str, *arguments: int) -> dict[str, list[Result]]:
        """The results of all rounds, by pair."""
        results: dict[str, list[Result]] = {pair.name: [] for pair in self.pairs}
        for _ in range(self.rounds):
            for pair in self.pairs:
                results[pair.name].append(pair.run(command, *arguments))
        return results


def medians(
    name: str, unit: str, results: dict[str, list[Result]], figure: Figure, *, less: bool = True
) -> Row:
    """A row with the median of each pair's rounds."""
    return Row(
        name, unit, {pair: statistics.median(map(figure, each)) for pair, each in results.items()}, less
    )


def cpu(name: str, unit: str, results: dict[str, list[Result]], factor: float) -> Row:
    """A row with the CPU time of the proxies; the direct connection has none."""
    row = medians(name, unit, results, lambda result: result.cpu * factor)
    row.values.pop(DIRECT, None)
    return row


def bulk(bench: Bench) -> list[Row]:
    """One stream each way, and eight at once."""
    total = int(GIBIBYTE * bench.scale)
    rows = []
    for name, command, streams in (
        ("one stream up", "upload", 1),
        ("one stream down", "download", 1),
        ("eight streams up", "upload", 8),
    ):
        results = bench.each(command, total, streams)
        rows += [
            medians(
                name, "Gbit/s", results, lambda result: total * 8 / result.values["seconds"] / 1e9, less=False
            ),
            cpu(f"{name}, CPU", "s a GiB", results, GIBIBYTE / total),
        ]
    return rows


def round_trips(bench: Bench) -> list[Row]:
    """A 64-byte message there and back."""
    count = bench.count(5000)
    results = bench.each("roundtrips", count)
    return [
        medians("64-byte round trip p50", "µs", results, _value("p50", 1e6)),
        medians("64-byte round trip p99", "µs", results, _value("p99", 1e6)),
        cpu("64-byte round trip, CPU", "µs", results, 1e6 / (count + 100)),
    ]


def new_connections(bench: Bench) -> list[Row]:
    """Connections until their first byte is back: one after the other, and eight clients at once."""
    count = bench.count(1000)
    alone = bench.each("connects", count, 1)
    together = bench.each("connects", 2 * count, 8)
    return [
        medians("new connection p50", "µs", alone, _value("p50", 1e6)),
        cpu("new connection, CPU", "µs", alone, 1e6 / (count + WARM_UP)),
        medians("8 clients opening", "a second", together, _value("per_second"), less=False),
        cpu("8 clients opening, CPU", "µs", together, 1e6 / (2 * count + WARM_UP)),
    ]


def requests(bench: Bench) -> list[Row]:
    """HTTP over eight connections that are kept alive, a KiB an answer."""
    count = bench.count(8000)
    results = bench.each("requests", count, 8)
    return [
        medians("HTTP requests, 8 kept alive", "a second", results, _value("per_second"), less=False),
        medians("HTTP request p99", "ms", results, _value("p99", 1e3)),
        cpu("HTTP request, CPU", "µs", results, 1e6 / (count + 80)),
    ]


def storm(bench: Bench) -> list[Row]:
    """20,000 connections from one address: how the last thousand compare with the first."""
    count = max(int(20_000 * bench.scale) // THOUSAND, 2) * THOUSAND
    rows = [
        Row(f"storm of {count:,} connections", "a second", less=False),
        Row("storm: the last thousand, against the first", "times as long"),
    ]
    for pair in bench.pairs:
        values = pair.run("storm", count, 8).values
        rows[0].values[pair.name] = values["per_second"]
        rows[1].values[pair.name] = values["last"] / values["first"]
    return rows


def neighbour(bench: Bench) -> list[Row]:
    """Round trips of another pod: quiet, and while bulk fills this one."""
    count = bench.count(3000)
    results: dict[str, dict[str, list[Result]]] = {"quiet": {}, "busy": {}}
    for _ in range(bench.rounds):
        for pair in bench.pairs:
            other = pair.others[0]
            results["quiet"].setdefault(pair.name, []).append(pair.run("roundtrips", count, client=other))
            filler = pair.spawn("filler", "upload", 1 << 40, 1)
            try:
                results["busy"].setdefault(pair.name, []).append(pair.run("roundtrips", count, client=other))
            finally:
                filler.stop(grace=0)
    rows = []
    for quantile in ("p50", "p99"):
        figure = _value(quantile, 1e6)
        quiet = medians(f"another pod's round trip {quantile}, quiet", "µs", results["quiet"], figure)
        busy = medians(f"{quantile} while bulk fills the first pod", "µs", results["busy"], figure)
        times = {name: value / quiet.values[name] for name, value in busy.values.items()}
        rows += [quiet, busy, Row(f"  {quantile} as a multiple of quiet", "times", times)]
    without_core = medians(
        "  the proxies are ready and have no core",
        "% of this time",
        results["busy"],
        lambda result: result.waited / result.seconds * 100,
    )
    without_core.values.pop(DIRECT, None)
    return [*rows, without_core]


def idle(bench: Bench) -> list[Row]:
    """Memory: of the process when idle, and of each idle connection."""
    proxies = [pair for pair in bench.pairs if pair.name != DIRECT]
    rows = [Row("idle memory", "MiB PSS"), Row("idle memory, resident", "MiB RSS")]
    for pair in proxies:
        used = memory(pair.roots())
        rows[0].values[pair.name] = used.pss / 1024
        rows[1].values[pair.name] = used.rss / 1024
    # In one ztunnel for both pods a connection has two sockets. The limit is the machine's, not the proxies'.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 1000
    for count in (1000, min(10_000, most)):
        if count > 10_000 * bench.scale:
            continue
        row = Row(f"{count:,} idle connections", "KB each")
        for pair in proxies:
            before = memory(pair.roots()).pss
            client = pair.spawn(f"idle-{count}", "idle", count)
            try:
                client.wait_until(lambda: "seconds" in client.output(), what="connected", timeout=240)  # noqa: B023
            except ProcessEndedError:
                if pair.name != ENVOY:
                    raise
                continue  # it holds four descriptors for each, more than the machine may allow
            row.values[pair.name] = (memory(pair.roots()).pss - before) * 1024 / 1000 / count
            client.stop(grace=5)
        rows.append(row)
    return rows


def start(bench: Bench) -> list[Row]:
    """From the start of a ztunnel's process until it is ready, as a successor on the same node."""
    row = Row("start to ready", "ms")
    for pair in bench.pairs:
        if pair.node is None:
            continue
        times = []
        for _ in range(bench.rounds):
            began = _now()
            pair.node.start()
            times.append((_now() - began) * 1e3)
            pair.node.ztunnels.pop().process.stop(grace=10)
        row.values[pair.name] = statistics.median(times)
    return [row]


def many_pods(bench: Bench) -> list[Row]:
    """A storm of connections from all client pods at once, and eight bulk streams."""
    total = int(2 * GIBIBYTE * bench.scale)
    each = bench.count(1500)
    streams: dict[str, list[Result]] = {pair.name: [] for pair in bench.pairs}
    rates: dict[str, list[float]] = {pair.name: [] for pair in bench.pairs}
    for _ in range(bench.rounds):
        for pair in bench.pairs:
            streams[pair.name].append(pair.run("upload", total, 8))
            began = _now()
            clients = [
                pair.spawn("storm", "connects", each, 2, client=pod) for pod in [pair.client, *pair.others]
            ]
            for client in clients:
                client.wait(240)
                if client.returncode != 0:
                    raise SystemExit(client.output())
            rates[pair.name].append(len(clients) * (each + WARM_UP) / (_now() - began))
    used = {pair.name: memory(pair.roots()).pss / 1024 for pair in bench.pairs if pair.name == OURS}
    storms = {name: statistics.median(values) for name, values in rates.items()}
    return [
        medians(
            "eight streams up",
            "Gbit/s",
            streams,
            lambda result: total * 8 / result.values["seconds"] / 1e9,
            less=False,
        ),
        Row("a storm from many pods", "connections a second", storms, less=False),
        Row("memory", "MiB PSS", used),
    ]


def _value(name: str, factor: float = 1) -> Figure:
    return lambda result: result.values[name] * factor


def _now() -> float:
    return time.monotonic()


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {
    "idle": idle,
    "bulk": bulk,
    "roundtrip": round_trips,
    "connect": new_connections,
    "http": requests,
    "neighbour": neighbour,
    "start": start,
    "storm": storm,
}
"""The rows of the main table by the names that ``--rows`` takes, in their order."""
