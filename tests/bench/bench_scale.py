"""``make bench-scale``: a real ztunnel at a control plane with a big mesh, while traffic flows through it.

usage: python -m tests.bench.bench_scale [--workloads N ...] [--pushes N] [--lookups]

For each size, with a tenth as many services: the fake istiod streams the mesh over TLS gRPC to one ztunnel in
shared mode, which serves a client and a server pod (so that each connection passes it twice, over HBONE).
First a ztunnel that starts with hardly
anything and serves traffic, to which the whole mesh comes at once, then full pushes with every workload
changed, then single changes. After that a second ztunnel, without traffic, that starts with the whole mesh:
its figures are those of CPU and memory.

Memory is that of all processes of the ztunnel; there is one. Times of connections are from connect to the
first byte that the server has sent back; the longest ones without a push show what the machine does to them
by itself.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from tests.bench import scale
from tests.bench.setups import Setup, read
from tests.support import big_meshes as meshes
from tests.support.control_plane import ControlledMesh, deny, workload
from ztunnel.demo.dedicated import Ztunnel
from ztunnel.demo.machine import interruptible
from ztunnel.demo.namespaces import may_make_namespaces
from ztunnel.demo.processes import Process
from ztunnel.pb.istio import workload as pb
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE

SIZES = (1_000, 10_000, 100_000, 300_000)
PORT = 8080
PROBED_PORT = 9090
QUIET_SECONDS = 5.0
PAUSE = 0.002
SINGLE_CHANGES = 20
PUSH_SECONDS = 120.0

LIMITS = {
    "memory, steady, MB": 290,
    "memory, peak of the first sync, MB": 290,
    "memory, peak of a full push, MB": 290,
    "memory, peak of a reconnect, MB": 290,
    "first sync, CPU s": 6,
    "full push, all changed, CPU s": 6,
    "one policy in force, ms (median)": 20,
    "one workload in force, ms (median)": 20,
}
"""What must hold with 100,000 workloads."""


@dataclass
class Usage:
    """What a process has used: CPU seconds; MB of memory now (resident, proportional), and at most."""

    cpu: float
    resident: float
    proportional: float
    peak: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        status = Path(f"/proc/{pid}/status").read_text()

        def megabytes(text: str, name: str) -> float:
            return int(text.partition(f"\n{name}:")[2].split()[0]) / 1024

        return cls(
            ticks / os.sysconf("SC_CLK_TCK"),
            megabytes(rollup, "Rss"),
            megabytes(rollup, "Pss"),
            megabytes(status, "VmHWM"),
        )


def forget_peak(pid: int) -> None:
    """Let the kernel's record of the peak begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@dataclass
class Column:
    """The figures of one size, in the order in which they were measured."""

    workloads: int
    values: dict[str, float] = field(default_factory=dict)

    def setups(self, name: str, took: Sequence[Setup]) -> None:
        """Median, 99th percentile and longest of connections, in milliseconds."""
        times = sorted(setup.took * 1e3 for setup in took)
        self.values[f"connection set up, {name}, ms (median)"] = statistics.median(times)
        self.values[f"connection set up, {name}, ms (99 %)"] = times[int(len(times) * 0.99)]
        self.values[f"connection set up, {name}, ms (longest)"] = times[-1]


class ScaleBench:
    """One size on one machine."""

    def __init__(self, controlled: ControlledMesh, size: int, pushes: int) -> None:
        self.controlled = controlled
        self.istiod = controlled.istiod
        self.pushes = pushes
        self.column = Column(size)
        mesh = controlled.mesh
        # The node's name as in the big mesh, so that the node has its share of pods.
        self.client = mesh.node(meshes.NODE).pod("client")
        self.server = mesh.node(meshes.NODE).pod("server")
        self.resources = list(meshes.resources(size))
        self.revision = b"latest"

    # -- the control plane -------------------------------------------------------------------------------

    def changed(self) -> list[tuple[str, bytes]]:
        """The mesh with another revision of every workload."""
        self.revision = b"newest" if self.revision == b"latest" else b"latest"
        return [(one.name, one.body.replace(b"latest", self.revision)) for one in self.resources]

    def acknowledged(self, act: Callable[[], None], type_url: str = ADDRESS_TYPE) -> tuple[float, float]:
        """Do something that pushes, and wait for its ACK; gives when it began and when it was there."""
        began = time.monotonic()
        act()
        self.istiod.wait_settled(type_url, PUSH_SECONDS)
        ended = time.monotonic()
        nacks = [one for stream in self.istiod.streams for one in stream.nacks(type_url)]
        if nacks:
            raise RuntimeError(f"the push was refused: {nacks[0].error_detail}")
        return began, ended

    def push_all(self) -> tuple[float, float]:
        """Push the whole mesh, all workloads changed."""
        changed = self.changed()
        return self.acknowledged(lambda: self.istiod.put_all(changed))

    # -- with traffic ------------------------------------------------------------------------------------

    def serve(self, port: int) -> None:
        """An echo server in the server pod."""
        command = [sys.executable, "-m", "tests.bench.load", "serve", str(port)]
        server = self.controlled.mesh.machine.spawn(
            f"load-{port}", command, namespace=self.server.pod.namespace
        )
        server.wait_until(lambda: "listening" in server.output(), what="listening", timeout=20)

    def set_up_connections(self, path: Path) -> Process:
        """Begin to set up connections, one after the other."""
        command = [sys.executable, "-m", "tests.bench.setups", self.server.ipv4, str(PORT), str(path)]
        return self.controlled.mesh.machine.spawn(
            "setups", [*command, str(PAUSE)], namespace=self.client.pod.namespace
        )

    def with_traffic(self) -> Ztunnel:
        """The part in which connections are being set up all the time; gives the ztunnel, still running."""
        controlled, column = self.controlled, self.column
        controlled.start()
        ztunnel = controlled.deployment.ztunnel(self.client)
        self.serve(PORT)
        self.serve(PROBED_PORT)
        path = controlled.directory / "setups"
        client = self.set_up_connections(path)
        client.wait_until(lambda: path.exists() and len(read(path)[0]) > 50, what="serving", timeout=20)
        windows = {"quiet, hardly any workloads": [(time.monotonic(), time.monotonic() + QUIET_SECONDS)]}
        time.sleep(QUIET_SECONDS)
        windows["first sync"] = [self._window(self.push_all)]
        time.sleep(1)
        windows["quiet, whole mesh"] = [(time.monotonic(), time.monotonic() + QUIET_SECONDS)]
        time.sleep(QUIET_SECONDS)
        windows["config dump"] = [self._window(lambda: self._dumped(ztunnel)) for _ in range(self.pushes)]
        windows["full pushes"] = [self._window(self.push_all) for _ in range(self.pushes)]
        client.stop()
        setups, failures = read(path)
        if failures:
            raise RuntimeError(f"{len(failures)} connections failed: {failures[0]}")
        for name, spans in windows.items():
            column.setups(name, [one for one in setups if any(_overlap(one, span) for span in spans)])
        return ztunnel

    def _dumped(self, ztunnel: Ztunnel) -> tuple[float, float]:
        """Fetch the config dump; gives when that began and ended."""
        values = self.column.values
        cpu, began = Usage.of(ztunnel.process.pid).cpu, time.monotonic()
        status, body = ztunnel.http("GET", 15000, "/config_dump")
        ended = time.monotonic()
        if status != 200 or body.count('"workloadIps"') < self.column.workloads:
            raise RuntimeError(f"the dump is not whole: status {status}, {len(body)} bytes")
        for name, value in (
            ("config dump under traffic, s", ended - began),
            ("config dump under traffic, CPU s, connections too", Usage.of(ztunnel.process.pid).cpu - cpu),
        ):
            values[name] = min(values.get(name, value), value)
        return began, ended

    def _window(self, act: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        """A push, and the half second after it, in which garbage would be collected."""
        began, ended = act()
        time.sleep(0.5)
        return began, ended + 0.5

    def single_changes(self) -> None:
        """How long until one changed policy, and one changed workload, act on an established connection."""
        policies, workloads = [], []
        selected = deny("selected", port=PROBED_PORT, selector=True)
        self.acknowledged(lambda: self.istiod.put("default/selected", selected), AUTHORIZATION_TYPE)
        refers = pb.Address(workload=workload(self.server, policies=["default/selected"]))
        plain = pb.Address(workload=workload(self.server))
        denied = deny("probe", port=PROBED_PORT)
        for _ in range(SINGLE_CHANGES):
            self.istiod.wait_settled(ADDRESS_TYPE)
            policies.append(self._cut_after(lambda: self.istiod.put("default/probe", denied)))
            self.istiod.remove("default/probe", type_url=AUTHORIZATION_TYPE)
            self.istiod.wait_settled(AUTHORIZATION_TYPE)
            workloads.append(self._cut_after(lambda: self.istiod.put(self.server.uid, refers)))
            self.acknowledged(lambda: self.istiod.put(self.server.uid, plain))
        for name, times in (("policy", policies), ("workload", workloads)):
            self.column.values[f"one {name} in force, ms (median)"] = statistics.median(times) * 1e3
            self.column.values[f"one {name} in force, ms (longest)"] = max(times) * 1e3

    def _cut_after(self, act: Callable[[], None]) -> float:
        """Seconds from a change to the end of an established connection that it forbids."""
        with self.client.socket(socket.AF_INET) as connection:
            connection.settimeout(10)
            connection.connect((self.server.ipv4, PROBED_PORT))
            connection.sendall(b"ex")
            if connection.recv(1) != b"x":
                raise RuntimeError("the probed server did not answer")
            time.sleep(0.05)
            began = time.monotonic()
            act()
            try:
                rest = connection.recv(1)
            except ConnectionResetError:
                rest = b""
            took = time.monotonic() - began
        if rest:
            raise RuntimeError("the probed server said something unexpected")
        return took

    # -- without traffic ---------------------------------------------------------------------------------

    def cold(self) -> None:
        """A ztunnel that starts with the whole mesh: CPU and memory, from the start through a reconnect."""
        values = self.column.values
        node = self.controlled.deployment.nodes[meshes.NODE]
        began = time.monotonic()
        ztunnel = node.start()
        values["first sync, s until ready"] = time.monotonic() - began
        pid = ztunnel.process.pid
        self._certificates_settled()
        first = Usage.of(pid)
        values["first sync, CPU s"] = first.cpu
        values["memory, peak of the first sync, MB"] = first.peak
        time.sleep(1)
        steady = Usage.of(pid)
        values["memory, steady, MB"] = steady.resident
        values["memory, steady, proportional, MB"] = steady.proportional
        for name, act in (
            ("full push, all changed", self.push_all),
            ("full push of the same", self._push_the_same),
            ("reconnect", lambda: self.acknowledged(self._reconnect)),
        ):
            forget_peak(pid)
            before = Usage.of(pid).cpu
            act()
            time.sleep(1)
            after = Usage.of(pid)
            values[f"{name}, CPU s"] = after.cpu - before
            values[f"memory, peak of a {name.partition(',')[0]}, MB"] = after.peak
        values["memory after all, MB"] = Usage.of(pid).resident
        ztunnel.process.stop(grace=10)

    def idle(self) -> None:
        """A ztunnel with hardly any mesh: what the program itself takes."""
        node = self.controlled.deployment.nodes[meshes.NODE]
        ztunnel = node.start()
        self._certificates_settled()
        usage = Usage.of(ztunnel.process.pid)
        self.column.values["idle: memory, MB"] = usage.resident
        self.column.values["idle: start, CPU s"] = usage.cpu
        ztunnel.process.stop(grace=10)

    def _push_the_same(self) -> tuple[float, float]:
        stored = [(one.name, one.body.replace(b"latest", self.revision)) for one in self.resources]
        return self.acknowledged(lambda: self.istiod.put_all(stored))

    def _reconnect(self) -> None:
        """End the stream, and return when the next one has asked for the mesh."""
        count = len(self.istiod.streams)
        self.istiod.end_streams(grpc.StatusCode.OK)
        self.istiod.wait_until(
            lambda istiod: len(istiod.streams) > count and ADDRESS_TYPE in istiod.streams[-1].sent
        )

    def _certificates_settled(self) -> None:
        """Wait until no further certificate has been asked for, for a moment."""
        count = -1
        while count != len(self.istiod.issued):
            count = len(self.istiod.issued)
            time.sleep(0.7)

    def run(self, *, lookups: bool) -> Column:
        """Measure."""
        ztunnel = self.with_traffic()
        self.single_changes()
        ztunnel.process.stop(grace=10)
        self.column.values["certificates fetched"] = len(self.istiod.issued)
        self.cold()
        self.istiod.remove(*[one.name for one in self.resources])
        self.idle()
        values = self.column.values
        values["first sync, CPU s"] -= values["idle: start, CPU s"]
        if lookups:
            row = scale.run(self.column.workloads)
            values["lookup: workload by address, decoded, us"] = row.warm_lookup_us
            values["lookup: workload by address, not decoded yet, us"] = row.cold_lookup_us
            values["lookup: service by VIP with its endpoints, us"] = row.vip_lookup_us
        return self.column


def _overlap(setup: Setup, span: tuple[float, float]) -> bool:
    return setup.began < span[1] and setup.began + setup.took > span[0]


def measure(size: int, pushes: int, *, lookups: bool) -> Column:
    """Measure one size on a machine of its own."""
    with ControlledMesh.open(environment={"RUST_LOG": "warn", "LOG_FORMAT": "plain"}) as controlled:
        return ScaleBench(controlled, size, pushes).run(lookups=lookups)


def table(columns: Sequence[Column]) -> str:
    """All figures, one line each, as a Markdown table."""
    head = " | ".join(f"{column.workloads:,}" for column in columns)
    lines = [f"| workloads (and a tenth of services) | {head} |", "|---" * (len(columns) + 1) + "|"]
    for name in columns[0].values:
        cells = " | ".join(f"{column.values[name]:.3g}" for column in columns)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def broken_limits(column: Column) -> list[str]:
    """What does not hold with 100,000 workloads."""
    values = column.values
    broken = [
        f"{name}: {values[name]:.3g} > {limit}" for name, limit in LIMITS.items() if values[name] > limit
    ]
    quiet = values["connection set up, quiet, whole mesh, ms (longest)"]
    for name in ("first sync", "full pushes"):
        longest = values[f"connection set up, {name}, ms (longest)"]
        if longest - min(quiet, longest) > 150:
            broken.append(f"a connection took {longest:.0f} ms during {name}; without a push {quiet:.0f} ms")
    return broken


def main() -> int:
    """Measure all sizes, print the table; the status says whether the limits hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--pushes", type=int, default=3, help="full pushes under traffic")
    parser.add_argument("--no-lookups", action="store_true", help="leave out the times of lookups")
    options = parser.parse_args()
    if os.geteuid() != 0 or not may_make_namespaces():
        print("bench-scale needs root and the right to make network namespaces", file=sys.stderr)
        return 1
    columns = []
    with interruptible():
        for size in options.workloads:
            columns.append(measure(size, options.pushes, lookups=not options.no_lookups))
            print(f"{size:,} workloads measured", file=sys.stderr, flush=True)
    print(table(columns))
    broken = [text for column in columns if column.workloads == 100_000 for text in broken_limits(column)]
    for text in broken:
        print(f"LIMIT BROKEN with 100,000 workloads: {text}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
