"""The pairs of pods between which the benchmark runs the same load: direct, through ours, through Envoy.

All live in one mesh of namespaces. In the layout `ONE` client and server are on one node, so that one
ztunnel serves both; in `TWO` they are on two.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.bench.envoy_ztunnel import EnvoyZtunnel
from tests.support.mesh import Mesh
from tests.support.node_deployment import NodeDeployment, NodeZtunnel
from tests.support.pod import MeshPod
from tests.support.processes import cpu_seconds, waited_for_a_core
from ztunnel.demo.processes import Process

PORT = 8080
DIRECT, OURS, ENVOY, BASE = "direct", "ours", "Envoy", "base"


class Layout(NamedTuple):
    """Where the pods of a pair are."""

    title: str
    nodes: int


ONE = Layout("one ztunnel for both pods", 1)
TWO = Layout("two nodes", 2)


@dataclass
class Result:
    """What the client printed, and meanwhile the proxies' CPU seconds and those in which they had no core.

    seconds: how long it took.
    """

    values: dict[str, float]
    cpu: float
    waited: float
    seconds: float


@dataclass
class Pair:
    """Client and server, further clients, and the processes between them."""

    name: str
    client: MeshPod
    server: MeshPod
    others: list[MeshPod] = field(default_factory=list)
    roots: Callable[[], list[int]] = list
    node: NodeZtunnel | None = None

    def words(self, command: str, *arguments: int) -> list[str]:
        """The command line of a client of `tests.bench.load`."""
        script = [sys.executable, "-m", "tests.bench.load", command, self.server.ipv4, str(PORT)]
        return [*script, *map(str, arguments)]

    def run(self, command: str, *arguments: int, client: MeshPod | None = None) -> Result:
        """Run a client to its end. Raises SystemExit with its output when it fails."""
        roots = self.roots()
        before, waited, began = cpu_seconds(roots), waited_for_a_core(roots), time.monotonic()
        words = self.words(command, *arguments)
        done = (client or self.client).run(*words, timeout=500)
        if done.returncode != 0:
            raise SystemExit(f"{self.name}: {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
        return Result(
            json.loads(done.stdout.splitlines()[-1]),
            cpu_seconds(roots) - before,
            waited_for_a_core(roots) - waited,
            time.monotonic() - began,
        )

    def spawn(self, name: str, command: str, *arguments: int, client: MeshPod | None = None) -> Process:
        """Start a client; whoever asks ends it."""
        pod = client or self.client
        machine = pod.mesh.machine
        name = f"{name}-{pod.name}-{len(machine.processes)}"  # each has an output of its own
        return machine.spawn(name, self.words(command, *arguments), namespace=pod.pod.namespace)


def _serve(pod: MeshPod) -> None:
    command = [sys.executable, "-m", "tests.bench.load", "serve", str(PORT)]
    server = pod.mesh.machine.spawn(f"load-{pod.name}", command, namespace=pod.pod.namespace)
    server.wait_until(lambda: "listening" in server.output(), what="listening", timeout=30)


def _pods(mesh: Mesh, layout: Layout, mark: str, others: int, *, captured: bool) -> list[MeshPod]:
    """The server's pod, the client's, and others beside the client."""
    near, far = f"{mark}1", f"{mark}{layout.nodes}"
    names = ["s", "c", *(f"o{number}" for number in range(others))]
    return [
        mesh.node(far if name == "s" else near).pod(f"{mark}{name}", captured=captured, registered=captured)
        for name in names
    ]


@dataclass(frozen=True)
class Base:
    """Another ztunnel to compare with: the checkout whose code it runs, and the interpreter that runs it."""

    checkout: Path
    python: str = sys.executable

    @property
    def command(self) -> list[str]:
        """The interpreter, without its working directory in the path: this checkout's ztunnel would win."""
        return [self.python, "-P"]

    @property
    def variables(self) -> dict[str, str]:
        """What makes it find the checkout's code."""
        return {"PYTHONPATH": str(self.checkout)}


def _require_code_of(base: Base) -> None:
    """Raises RuntimeError unless the base's processes would run the code of its checkout."""
    found = subprocess.run(
        [*base.command, "-c", "import ztunnel; print(ztunnel.__file__)"],
        env=os.environ | base.variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()
    if not Path(found).is_relative_to(base.checkout):
        raise RuntimeError(f"the base of the comparison would run {found}, not the code of {base.checkout}")


@contextlib.contextmanager
def opened(
    layout: Layout,
    wanted: Sequence[str],
    *,
    others: int = 1,
    environment: Mapping[str, str] | None = None,
    base: Base | None = None,
) -> Iterator[list[Pair]]:
    """The pairs wanted, served and ready; nothing of them is left afterwards.

    others: further client pods of each pair. environment: further variables of our ztunnels. base: for
    the pair `BASE`.
    """
    variables = {"LOG_FORMAT": "plain", "RUST_LOG": "info", "ZTUNNEL_WORKER_THREADS": "1"}
    variables |= environment or {}
    of_base = ("b1", "b2") if base else ()
    if base:
        _require_code_of(base)
    deployment = NodeDeployment(
        {node: base.variables for node in of_base if base},
        {node: [*base.command, "-m", "ztunnel.cli", "proxy", "ztunnel"] for node in of_base if base},
    )
    with Mesh.open(deployment=deployment, environment=variables) as mesh:
        made: dict[str, list[MeshPod]] = {}
        for name, mark in ((DIRECT, "d"), (OURS, "z"), (ENVOY, "e"), (BASE, "b")):
            if name in wanted:
                made[name] = _pods(mesh, layout, mark, others, captured=name in {OURS, BASE})
        mesh.start()
        pairs = []
        for name, (server, client, *further) in made.items():
            _serve(server)
            pair = Pair(name, client, server, further)
            if name in {OURS, BASE}:
                nodes = [deployment.nodes[name_of_node] for name_of_node in _nodes(client, server)]
                pair.node = nodes[0]
                pair.roots = lambda nodes=nodes: [node.current.process.pid for node in nodes]  # type: ignore[misc]
            elif name == ENVOY:
                envoys = EnvoyZtunnel(
                    mesh, [client, *further], server, PORT, separate=layout.nodes > 1
                ).processes
                pair.roots = lambda envoys=envoys: [one.pid for one in envoys]  # type: ignore[misc]
            pairs.append(pair)
        yield pairs


def _nodes(*pods: MeshPod) -> list[str]:
    return list(dict.fromkeys(pod.pod.node.name for pod in pods))
