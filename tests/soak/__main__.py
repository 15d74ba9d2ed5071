"""Traffic of all kinds for a long time, with what the ztunnels hold: ``python -m tests.soak --minutes 10``.

Bulk, short connections, idle ones, resets, pods that come and go with identities of their own, policies that
change, certificates that are renewed all the time, all at once on two nodes with two workers each. Every few
seconds memory and descriptors of both ztunnels are looked at, workers included. In the end all traffic stops,
and as many sockets must be open as after a first such while. Exit status 0: so it is, memory was flat, and no
byte was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from statistics import median

import trio

from tests.soak.chart import chart
from tests.support.census import open_descriptors
from tests.support.control_plane import deny
from tests.support.conversations import (
    DENIED_PORT,
    OPEN_PORT,
    Applications,
    nonblocking,
    only_the_client,
)
from tests.support.processes import families, own_memory
from tests.support.traffic import reset, serve
from tests.support.whole_mesh import WholeMesh
from ztunnel.messages import PodInfo
from ztunnel.xds.xds_session import AUTHORIZATION_TYPE

LIFETIME = 20.0
"""Seconds that a certificate is valid."""

SAMPLE_SECONDS = 5.0
SHORT_PORT = 7070
WARM_UP = 15.0
"""Seconds of traffic before anything counts: caches, pools and stocks fill."""

SPARE = 16
"""Sockets more or less that pods have in stock for their next dials (`ztunnel.sockets.factories`)."""

HISTORY = 1000
"""Past connections that each worker remembers: full after a minute, so that what grows later is a leak."""

IDLE = 200
"""Connections that stay open and say nothing."""

TOLERATED_GROWTH = 0.05
"""Of the median of the second quarter, which the last quarter's may have more."""

PEAK_MEMORY = 0.05
"""MB that each descriptor may cost by which more were open at once than ever before: malloc keeps a peak."""


class Soak:
    """The traffic, and what was sampled meanwhile."""

    def __init__(self, mesh: WholeMesh, applications: Applications, pause: float) -> None:
        self.mesh = mesh
        self.applications = applications
        self.pause = pause
        self.nodes = {"client's node": mesh.node(mesh.client), "server's node": mesh.node(mesh.server)}
        self.seconds: list[float] = []
        self.memory: dict[str, list[float]] = {name: [] for name in self.nodes}
        self.descriptors: dict[str, list[float]] = {name: [] for name in self.nodes}
        self.connections = 0
        self.churned = [self.nodes["client's node"].node.pod(f"churn{number}") for number in range(4)]

    async def traffic(self, seconds: float) -> None:
        """All of it, for so long."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.idle)
                nursery.start_soon(self.churn)
                for number in range(4):
                    nursery.start_soon(self.conversations, number)
                for number in range(3):
                    nursery.start_soon(self.short, 100 + number)

    def sockets(self, name: str) -> int:
        """How many sockets a node's ztunnel has open. Not pipes: a few are kept in stock."""
        return sum(text.startswith("socket:") for text in self.descriptors_of(name))

    def descriptors_of(self, name: str) -> list[str]:
        """What a node's ztunnel has open, in all its processes."""
        pids = families([self.nodes[name].current.process.pid])
        return [text for pid in pids for text in open_descriptors(pid)]

    def held(self, name: str) -> tuple[float, int]:
        """Memory in MB, and descriptors, of a node's ztunnel, all its processes together.

        Its own memory: pages that its processes share are counted once, those of files not at all, since
        they count more or less as other programs map the same ones.
        """
        pids = families([self.nodes[name].current.process.pid])
        return sum(map(own_memory, pids)) * 1024 / 1e6, len(self.descriptors_of(name))

    async def sample(self) -> None:
        """Look at both, every few seconds."""
        began = trio.current_time()
        while True:
            self.seconds.append(trio.current_time() - began)
            for name in self.nodes:
                memory, descriptors = self.held(name)
                self.memory[name].append(round(memory, 1))
                self.descriptors[name].append(descriptors)
            await trio.sleep(SAMPLE_SECONDS)

    async def conversations(self, number: int) -> None:
        """Whole conversations of all sizes, over HBONE and in plaintext, and some that policy denies."""
        random = Random(number)
        mesh = self.mesh
        while True:
            pod, port = random.choice(
                [(mesh.client, OPEN_PORT)] * 4 + [(mesh.outside, OPEN_PORT), (mesh.neighbour, DENIED_PORT)]
            )
            await self.applications.converse(pod, mesh.server.ipv4, port, random)
            self.connections += 1
            await trio.sleep(self.pause)

    async def short(self, number: int) -> None:
        """Connections that end in one of many ways: at once, with a reset, half-closed, in mid-sentence."""
        random = Random(number)
        while True:
            sock = trio.socket.from_stdlib_socket(nonblocking(self.mesh.client.socket()))
            stream = trio.SocketStream(sock)
            try:
                with trio.move_on_after(10):
                    await sock.connect((self.mesh.server.ipv4, SHORT_PORT))
                    how = random.randrange(4)
                    if how:
                        await stream.send_all(bytes(how * 10))
                    if how == 2:
                        await stream.send_eof()
                    if how == 3:
                        reset(stream)
            except (OSError, trio.BrokenResourceError):
                pass
            await trio.aclose_forcefully(stream)
            self.connections += 1
            await trio.sleep(0.002 + self.pause)

    async def idle(self) -> None:
        """Connections that stay open until cancelled."""
        async with AsyncExitStack() as streams:
            for _ in range(IDLE):
                await streams.enter_async_context(
                    await self.mesh.client.connect(self.mesh.server.ipv4, SHORT_PORT)
                )
            await trio.Event().wait()

    async def churn(self) -> None:
        """Pods come and go, and policies."""
        node = self.nodes["client's node"]
        pods = self.churned
        round_ = 0
        while True:
            pod = pods[round_ % len(pods)]
            uid = f"churn-{round_}"
            info = PodInfo(pod.name, "default", f"churn-{round_ % 7}")
            await trio.to_thread.run_sync(node.cni.add_pod, uid, info, pod.namespace.descriptor)
            policy = deny(f"churn-{round_}", port=1, selector=True)
            if round_ % 2:
                self.mesh.put_policy(policy)
                self.mesh.put_server("default/only-the-client", f"default/{policy.name}")
            with trio.CancelScope(shield=True):
                await trio.sleep(0.5)
                await trio.to_thread.run_sync(node.cni.delete_pod, uid)
            if round_ % 2:
                self.mesh.put_server("default/only-the-client")
                self.mesh.istiod.remove(f"default/{policy.name}", type_url=AUTHORIZATION_TYPE)
            round_ += 1


async def take_anything(stream: trio.SocketStream) -> None:
    """The application of the short and the idle connections."""
    while await stream.receive_some():
        pass


async def run(minutes: float, pause: float, directory: Path | None) -> int:
    """Returns the exit status."""
    environment = {"ZTUNNEL_CONNECTION_HISTORY": str(HISTORY)}
    with WholeMesh.open(lifetime=LIFETIME, environment=environment) as mesh:
        mesh.put_policy(only_the_client(mesh.client))
        mesh.put_server("default/only-the-client")
        await trio.to_thread.run_sync(mesh.istiod.wait_settled, AUTHORIZATION_TYPE)
        applications = Applications(mesh.server, mesh.neighbour)
        soak = Soak(mesh, applications, pause)
        left: dict[str, int] = {}
        async with serve(mesh.server, SHORT_PORT, take_anything), trio.open_nursery() as nursery:
            nursery.start_soon(applications.run)
            await soak.traffic(WARM_UP)
            await trio.sleep(10)
            base = {name: soak.sockets(name) for name in soak.nodes}
            async with trio.open_nursery() as sampling:
                sampling.start_soon(soak.sample)
                await soak.traffic(minutes * 60)
                sampling.cancel_scope.cancel()
            with trio.move_on_after(90):
                while True:
                    left = {name: soak.sockets(name) - base[name] - SPARE for name in soak.nodes}
                    if all(number <= 0 for number in left.values()):
                        break
                    await trio.sleep(1)
            nursery.cancel_scope.cancel()
        problems = list(applications.violations)
        problems += [f"{name}: {number} sockets too many" for name, number in left.items() if number > 0]
        problems += grown(soak)
        for node in soak.nodes.values():
            if "Traceback" in node.current.process.output():
                problems.append(f"a traceback in the log of {node.node.name}")
    report(soak, minutes, problems, directory)
    return 1 if problems else 0


def grown(soak: Soak) -> list[str]:
    """Whose memory is larger in the last quarter than in the second, for no more connections at once."""
    found = []
    for name, values in soak.memory.items():
        quarter = len(values) // 4
        early, late = median(values[quarter : 2 * quarter] or values), median(values[-quarter:] or values)
        used = soak.descriptors[name]
        peak = max(0.0, max(used, default=0) - max(used[: 2 * quarter], default=0))
        if late > early * (1 + TOLERATED_GROWTH) + 2 + PEAK_MEMORY * peak:
            found.append(f"memory of the {name} grew from {early:.1f} to {late:.1f} MB")
    return found


def report(soak: Soak, minutes: float, problems: list[str], directory: Path | None) -> None:
    """Print what came of it; write chart and samples into ``directory``."""
    for name in soak.nodes:
        memory, descriptors = soak.memory[name], soak.descriptors[name]
        print(
            f"{name}: memory {memory[0]:.1f} MB first, {memory[-1]:.1f} last, {max(memory):.1f} most; "
            f"descriptors {descriptors[0]:.0f}, {descriptors[-1]:.0f}, {max(descriptors):.0f}"
        )
    issued = len(soak.mesh.authority.issued)
    print(f"{minutes:g} minutes, {soak.connections} connections, {issued} certificates")
    if not problems:
        print("no problem")
    for problem in problems:
        print(f"PROBLEM: {problem}")
    if directory is not None:
        panels = {"own memory, MB": soak.memory, "open descriptors": soak.descriptors}
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "soak.svg").write_text(chart(soak.seconds, panels))
        samples = {"seconds": soak.seconds, "memory": soak.memory, "descriptors": soak.descriptors}
        (directory / "soak.json").write_text(json.dumps(samples))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--pause", type=float, default=0.02, help="seconds between two connections of a client"
    )
    parser.add_argument("--write", type=Path, help="a directory for the chart and the samples")
    arguments = parser.parse_args()
    status: int = trio.run(run, arguments.minutes, arguments.pause, arguments.write)
    return status


if __name__ == "__main__":
    sys.exit(main())
