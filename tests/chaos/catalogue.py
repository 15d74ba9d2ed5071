"""The faults: what each does to a running mesh, and how it is taken away again.

A fault is an async context manager: inside it is there, behind it is gone, though its consequences may not
be. What a cluster does by itself is part of the end of a fault: a kubelet starts a killed ztunnel again. An
end waits for nothing that another fault of the round may hold up: `mesh_ready` is asked when all are gone.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from itertools import count
from random import Random

import trio

from tests.support.conversations import Applications
from tests.support.fake_cni import NoZtunnelError
from tests.support.node_deployment import NodeZtunnel
from tests.support.pod import MeshPod
from tests.support.two_nodes import TwoNodes
from ztunnel.messages import PodInfo

Fault = Callable[[TwoNodes, Applications, Random], AbstractAsyncContextManager[None]]


def _some_node(mesh: TwoNodes, random: Random) -> NodeZtunnel:
    return mesh.node(random.choice([mesh.client, mesh.server]))


@asynccontextmanager
async def ztunnel_killed(mesh: TwoNodes, applications: Applications, random: Random) -> AsyncIterator[None]:
    """SIGKILL; a new one is started afterwards."""
    node = _some_node(mesh, random)
    applications.killed()
    node.current.process.signal(signal.SIGKILL)
    try:
        yield
    finally:
        if node.current.process.returncode is not None:  # else an upgrade has brought a new one
            node.launch()


@asynccontextmanager
async def ztunnel_stopped(mesh: TwoNodes, _: Applications, random: Random) -> AsyncIterator[None]:
    """SIGSTOP: it is there, and does nothing."""
    process = _some_node(mesh, random).current.process
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


@asynccontextmanager
async def ztunnel_slow(mesh: TwoNodes, _: Applications, random: Random) -> AsyncIterator[None]:
    """Stopped for four fifths of the time."""
    process = _some_node(mesh, random).current.process

    async def stutter() -> None:
        while True:
            process.signal(signal.SIGSTOP)
            await trio.sleep(0.08)
            process.signal(signal.SIGCONT)
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stutter)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
    process.signal(signal.SIGCONT)


@asynccontextmanager
async def upgrade(mesh: TwoNodes, _: Applications, random: Random) -> AsyncIterator[None]:
    """A successor takes the node over. No connection may fail for it, but those that outlive the drain."""
    await _some_node(mesh, random).upgrade(TERMINATION_GRACE_PERIOD_SECONDS="8")
    yield


_tables = count()


def _nft(pod: MeshPod, text: str) -> None:
    with pod.pod.namespace.entered():
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, capture_output=True)


@asynccontextmanager
async def _dropping(pod: MeshPod, rule: str) -> AsyncIterator[None]:
    """Packets of a pod that match are lost, on their way in and out."""
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority -400; policy accept; "
        f'{"iifname" if hook == "prerouting" else "oifname"} != "lo" {rule} drop; }}\n'
        for hook in ("prerouting", "postrouting")
    )
    table = f"inet chaos{next(_tables)}"
    _nft(pod, f"table {table} {{\n{chains}}}\n")
    try:
        yield
    finally:
        _nft(pod, f"delete table {table}\n")


def loss(percent: int) -> Fault:
    """Packets of the server's pod are lost at random."""

    @asynccontextmanager
    async def fault(mesh: TwoNodes, _: Applications, __: Random) -> AsyncIterator[None]:
        async with _dropping(mesh.server, f"numgen random mod 100 < {percent}"):
            yield

    return fault


@asynccontextmanager
async def partition(mesh: TwoNodes, _: Applications, __: Random) -> AsyncIterator[None]:
    """Nothing gets to the server's pod, or from it."""
    async with _dropping(mesh.server, "meta l4proto tcp"):
        yield


@asynccontextmanager
async def mtu_black_hole(mesh: TwoNodes, _: Applications, __: Random) -> AsyncIterator[None]:
    """Small packets pass, large ones are lost without a word."""
    async with _dropping(mesh.server, "meta length > 900"):
        yield


@asynccontextmanager
async def cni_restarted(mesh: TwoNodes, _: Applications, random: Random) -> AsyncIterator[None]:
    """The CNI agent is gone for a while."""
    agent = _some_node(mesh, random).cni
    await trio.to_thread.run_sync(agent.close)
    try:
        yield
    finally:
        agent.listen()


@asynccontextmanager
async def mesh_garbage(mesh: TwoNodes, _: Applications, random: Random) -> AsyncIterator[None]:
    """The control plane lies: what it says of the mesh cannot be read. The last good state stays in force."""
    good = mesh.mesh.file.read_bytes()
    mesh.mesh.file.write_bytes(random.choice([b"", b"workloads: [", b"\xff\xfe", good[: len(good) // 2]]))
    try:
        yield
    finally:
        mesh.mesh.write_file()


@asynccontextmanager
async def policy_churn(mesh: TwoNodes, _: Applications, __: Random) -> AsyncIterator[None]:
    """Policies that refuse nobody come and go, so that every connection is asked about again and again."""

    async def churn() -> None:
        for number in range(10_000):
            mesh.mesh.policies[1:] = []
            if number % 2:
                mesh.mesh.policy(
                    "noise", action="Deny", rules=[[[{"destinationPorts": [1]}]]], workloads=[mesh.server]
                )
            mesh.mesh.write_file()
            await trio.sleep(0.15)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(churn)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
    mesh.mesh.policies[1:] = []
    mesh.mesh.write_file()


@asynccontextmanager
async def descriptors_exhausted(mesh: TwoNodes, _: Applications, random: Random) -> AsyncIterator[None]:
    """The process may open next to nothing."""
    pid = _some_node(mesh, random).current.process.pid
    before = None
    with suppress(ProcessLookupError, FileNotFoundError, PermissionError):  # it has been killed
        used = len(os.listdir(f"/proc/{pid}/fd"))
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 3, before[1]))
    try:
        yield
    finally:
        if before is not None:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@asynccontextmanager
async def namespace_gone(mesh: TwoNodes, _: Applications, __: Random) -> AsyncIterator[None]:
    """Pods come and are gone before anybody is told; then the CNI says so."""
    node = mesh.node(mesh.server)
    names = []
    try:
        # Another fault may be that no ztunnel answers: a pod that is not taken stays with the CNI agent.
        with suppress(NoZtunnelError, TimeoutError):
            for number in range(5):
                pod = node.node.pod(f"ghost{len(node.homes)}{number}")
                uid = f"ghost-{pod.name}"
                names.append(uid)
                info = PodInfo(pod.name, "default", "ghost")
                try:
                    await trio.to_thread.run_sync(node.cni.add_pod, uid, info, pod.namespace.descriptor)
                finally:
                    pod.namespace.close()
        yield
    finally:
        for uid in names:
            with suppress(NoZtunnelError, TimeoutError):
                await trio.to_thread.run_sync(node.cni.delete_pod, uid)


@asynccontextmanager
async def application_killed(_: TwoNodes, applications: Applications, __: Random) -> AsyncIterator[None]:
    """The server's application is gone, with its connections."""
    async with applications.down():
        yield


@asynccontextmanager
async def application_stalled(_: TwoNodes, applications: Applications, __: Random) -> AsyncIterator[None]:
    """The server's application takes connections and neither reads nor writes."""
    async with applications.stalled():
        yield


def mesh_ready(mesh: TwoNodes) -> bool:
    """Whether each node's newest ztunnel is ready and knows the CNI agent's pods."""
    return all(
        node.current.ready() and any(one.ready and not one.closed for one in node.cni.connections)
        for node in mesh.deployment.nodes.values()
    )


CATALOGUE: dict[str, Fault] = {
    "ztunnel killed": ztunnel_killed,
    "ztunnel stopped": ztunnel_stopped,
    "ztunnel slow": ztunnel_slow,
    "ztunnel upgraded": upgrade,
    "packets lost, 5 %": loss(5),
    "packets lost, 30 %": loss(30),
    "partition": partition,
    "MTU black hole": mtu_black_hole,
    "CNI agent restarted": cni_restarted,
    "mesh unreadable": mesh_garbage,
    "policies churn": policy_churn,
    "descriptors exhausted": descriptors_exhausted,
    "namespaces gone": namespace_gone,
    "application killed": application_killed,
    "application stalled": application_stalled,
}
