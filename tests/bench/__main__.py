"""``make bench``: what going through the mesh costs, beside the direct connection, in one run.

Two pairs of pods on two nodes: one pair is served by ztunnel (one process a pod, so that a connection passes
two), the other is not. The same load runs between both. CPU time is that of the two ztunnel processes alone.
Each figure is the best of a few rounds, which alternate between the pairs: another job on the machine
disturbs both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.load import WARM_UP
from tests.e2e.census import cpu_seconds
from tests.e2e.mesh import Mesh
from tests.e2e.pod import MeshPod
from ztunnel.demo.machine import interruptible
from ztunnel.demo.namespaces import may_make_namespaces
from ztunnel.demo.processes import Process

PORT = 8080
GIBIBYTE = 1024**3


@dataclass(frozen=True)
class Result:
    """One measurement: what the client printed, and what the ztunnels used meanwhile."""

    values: dict[str, float]
    cpu: float


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    unit: str
    ztunnel: float
    direct: float | None = None


def memory(pod: MeshPod) -> tuple[int, int]:
    """Resident and proportional memory of a pod's ztunnel, in KiB."""
    values = {}
    for line in Path(f"/proc/{pod.ztunnel.process.pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        values[name] = int(value.split()[0])
    return values["Rss"], values["Pss"]


def wait_listening(server: Process) -> None:
    """Return when the load's server is there."""
    server.wait_until(lambda: "listening" in server.output(), what="listening", timeout=20)


class Bench:
    """The two pairs of pods and the load between them."""

    def __init__(self, mesh: Mesh, rounds: int) -> None:
        self.mesh = mesh
        self.rounds = rounds
        self.client = mesh.node("a").pod("client")
        self.server = mesh.node("b").pod("server")
        self.direct_client = mesh.node("a").pod("direct-client", captured=False, registered=False)
        self.direct_server = mesh.node("b").pod("direct-server", captured=False, registered=False)
        mesh.start()
        for pod in (self.server, self.direct_server):
            command = [sys.executable, "-m", "tests.bench.load", "serve", str(PORT)]
            server = mesh.machine.spawn(f"load-{pod.name}", command, namespace=pod.pod.namespace)
            wait_listening(server)

    def _run(self, client: MeshPod, server: MeshPod, command: str, *arguments: int) -> Result:
        before = cpu_seconds(self.client, self.server)
        words = [
            sys.executable,
            "-m",
            "tests.bench.load",
            command,
            server.ipv4,
            str(PORT),
            *map(str, arguments),
        ]
        done = client.run(*words, timeout=300)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
        cpu = cpu_seconds(self.client, self.server) - before
        return Result(json.loads(done.stdout), cpu)

    def both(self, command: str, *arguments: int) -> tuple[list[Result], list[Result]]:
        """The results of all rounds: through ztunnel, and direct."""
        through, direct = [], []
        for _ in range(self.rounds):
            through.append(self._run(self.client, self.server, command, *arguments))
            direct.append(self._run(self.direct_client, self.direct_server, command, *arguments))
        return through, direct


Figure = Callable[[Result], float]


def best(results: list[Result], figure: Figure, *, smaller: bool = True) -> float:
    """The best of all rounds."""
    return (min if smaller else max)(map(figure, results))


def compared(
    name: str, unit: str, results: tuple[list[Result], list[Result]], figure: Figure, *, smaller: bool = True
) -> Row:
    """A row with both sides."""
    through, direct = results
    return Row(name, unit, best(through, figure, smaller=smaller), best(direct, figure, smaller=smaller))


def alone(name: str, unit: str, results: tuple[list[Result], list[Result]], figure: Figure) -> Row:
    """A row with the ztunnels' side only."""
    return Row(name, unit, best(results[0], figure))


def value(name: str, factor: float = 1) -> Figure:
    """A figure that the client printed."""
    return lambda result: result.values[name] * factor


def measure(bench: Bench, total: int, messages: int, connections: int) -> list[Row]:
    """All rows of the table."""
    rows = []
    pods = (bench.client, bench.server)
    idle = [memory(pod) for pod in pods]
    for name, command in (("client to server", "upload"), ("server to client", "download")):
        results = bench.both(command, total)
        rows += [
            compared(
                f"bulk, {name}",
                "Gbit/s",
                results,
                lambda result: total * 8 / result.values["seconds"] / 1e9,
                smaller=False,
            ),
            alone("  both ztunnels", "CPU-s/GiB", results, lambda result: result.cpu * GIBIBYTE / total),
            compared("  load client", "CPU-s/GiB", results, value("cpu", GIBIBYTE / total)),
        ]
    results = bench.both("roundtrips", messages)
    rows += [
        compared("64-byte round trip p50", "µs", results, value("p50", 1e6)),
        compared("64-byte round trip p99", "µs", results, value("p99", 1e6)),
        alone("  both ztunnels", "CPU-µs each", results, lambda result: result.cpu * 1e6 / (messages + 100)),
    ]
    results = bench.both("connects", connections, 1)
    rows += [
        compared("new connection p50", "µs", results, value("p50", 1e6)),
        alone(
            "  both ztunnels",
            "CPU-µs each",
            results,
            lambda result: result.cpu * 1e6 / (connections + WARM_UP),
        ),
    ]
    results = bench.both("connects", connections, 8)
    rows.append(
        compared("new connections, 8 clients", "a second", results, value("per_second"), smaller=False)
    )
    for name, values in (("idle", idle), ("after the load", [memory(pod) for pod in pods])):
        rows.append(Row(f"memory of a ztunnel, {name}", "MiB RSS", max(rss for rss, _ in values) / 1024))
        rows.append(Row("", "MiB PSS", max(pss for _, pss in values) / 1024))
    return rows


def show(rows: list[Row]) -> None:
    """The table, ratios first."""
    print(f"{'':32}{'ratio':>8}  {'ztunnel':>10}  {'direct':>10}  unit")
    for row in rows:
        ratio = "" if row.direct is None else f"{row.ztunnel / row.direct:.2f}"
        direct = "" if row.direct is None else f"{row.direct:,.2f}"
        print(f"{row.name:32}{ratio:>8}  {row.ztunnel:>10,.2f}  {direct:>10}  {row.unit}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--gib", type=float, default=1, help="size of a bulk transfer (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the best counts (default 3)")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, one round")
    options = parser.parse_args()
    if not may_make_namespaces():
        print("The benchmark needs the right to make network namespaces; run it as root.", file=sys.stderr)
        return 1
    scale = 0.1 if options.quick else 1
    with interruptible(), Mesh.open(environment={"LOG_FORMAT": "plain", "RUST_LOG": "info"}) as mesh:
        bench = Bench(mesh, 1 if options.quick else options.rounds)
        rows = measure(bench, int(options.gib * scale * GIBIBYTE), int(5000 * scale), int(1000 * scale))
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
