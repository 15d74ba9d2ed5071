"""Meshes for tests. They need root and say so where they have none."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.e2e.census import take_census
from tests.e2e.mesh import Mesh
from tests.e2e.pod import MeshPod
from ztunnel.demo.namespaces import may_make_namespaces


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here, and skip it where it cannot work."""
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    for item in mine:
        item.add_marker(pytest.mark.e2e)
    if mine and not (os.geteuid() == 0 and may_make_namespaces()):
        for item in mine:
            item.add_marker(pytest.mark.skip(reason="needs root and the right to make network namespaces"))


@dataclass
class StandardMesh:
    """Two nodes; three pods served by ztunnel; two that are not, one of them known to the mesh."""

    mesh: Mesh
    client: MeshPod
    other: MeshPod
    server: MeshPod
    legacy: MeshPod
    outside: MeshPod
    vip: str


@pytest.fixture(scope="session")
def _standard_mesh() -> Iterator[StandardMesh]:
    with Mesh.open(environment={"UNSTABLE_ENABLE_SOCKS5": "true"}) as mesh:
        client = mesh.node("a").pod("client")
        other = mesh.node("a").pod("other", namespace="elsewhere")
        server = mesh.node("b").pod("server")
        legacy = mesh.node("b").pod("legacy", captured=False, protocol="TCP")
        outside = mesh.node("b").pod("outside", captured=False, registered=False)
        vip = mesh.service("web", ports={80: 8080}, endpoints=[server])
        mesh.start()
        yield StandardMesh(mesh, client, other, server, legacy, outside, vip)
        for pod in (client, other, server):
            status = pod.ztunnel.process.stop(grace=10)
            assert status == 0, (
                f"{pod.name}'s ztunnel ended with {status}:\n{pod.ztunnel.process.output()[-4000:]}"
            )
        name = mesh.machine.name
    census = take_census(name)
    assert census.empty, census


@pytest.fixture
async def standard(_standard_mesh: StandardMesh) -> AsyncIterator[StandardMesh]:
    """The mesh that most tests share. A test's changes are undone; its connections must have ended."""
    mesh = _standard_mesh.mesh
    policies = copy.deepcopy(mesh.policies)
    workloads = {pod.name: copy.deepcopy(pod.workload) for pod in mesh.pods}
    pods = [_standard_mesh.client, _standard_mesh.other, _standard_mesh.server]
    yield _standard_mesh
    if policies != mesh.policies or workloads != {pod.name: pod.workload for pod in mesh.pods}:
        mesh.policies[:] = policies
        for pod in mesh.pods:
            pod.workload = workloads[pod.name]
        await mesh.update()
    await settle(pods)


async def settle(pods: list[MeshPod], timeout: float = 10) -> None:
    """Wait until no ztunnel holds an application's connection any more; tunnels may stay pooled."""
    deadline = time.monotonic() + timeout
    while any(applications_connected(pod) for pod in pods) and time.monotonic() < deadline:  # noqa: ASYNC110 - in another process
        await trio.sleep(0.05)
    for pod in pods:
        assert pod.ztunnel.process.returncode is None, pod.ztunnel.process.output()[-4000:]
        left = applications_connected(pod)
        assert not left, f"{pod.name}'s ztunnel still holds {left} application connections"
        assert not pod.ztunnel.log_lines("Traceback"), pod.ztunnel.process.output()[-8000:]


def applications_connected(pod: MeshPod) -> int:
    """How many connections with applications a pod's ztunnel has: opened and not yet closed."""
    samples = pod.ztunnel.metrics()
    opened = sum(sample.value for sample in samples if sample.name == "istio_tcp_connections_opened_total")
    closed = sum(sample.value for sample in samples if sample.name == "istio_tcp_connections_closed_total")
    return int(opened - closed)


@pytest.fixture
def fresh_mesh() -> Iterator[Mesh]:
    """An empty mesh of the test's own; nothing of it may be left afterwards."""
    with Mesh.open() as mesh:
        name = mesh.machine.name
        yield mesh
    census = take_census(name)
    assert census.empty, census
