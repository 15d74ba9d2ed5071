"""Meshes for tests. They need root and say so where they have none."""

from __future__ import annotations

import copy
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.census import take_census
from tests.support.mesh import Mesh
from tests.support.pod import MeshPod, eventually
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
    """Two nodes; three pods served by ztunnel; three that are not, one of them known to the mesh.

    ``crowd`` is as ``outside``; the ports of its connections are chosen by one suite, and by nobody else.
    """

    mesh: Mesh
    client: MeshPod
    other: MeshPod
    server: MeshPod
    legacy: MeshPod
    outside: MeshPod
    crowd: MeshPod
    vip: str


@pytest.fixture(scope="session")
def _standard_mesh() -> Iterator[StandardMesh]:
    with Mesh.open(environment={"UNSTABLE_ENABLE_SOCKS5": "true"}) as mesh:
        client = mesh.node("a").pod("client")
        other = mesh.node("a").pod("other", namespace="elsewhere")
        server = mesh.node("b").pod("server")
        legacy = mesh.node("b").pod("legacy", captured=False, protocol="TCP")
        outside = mesh.node("b").pod("outside", captured=False, registered=False)
        crowd = mesh.node("b").pod("crowd", captured=False, registered=False)
        vip = mesh.service("web", ports={80: 8080}, endpoints=[server])
        mesh.start()
        yield StandardMesh(mesh, client, other, server, legacy, outside, crowd, vip)
        for pod in (client, other, server):
            status = pod.ztunnel.process.stop(grace=60)
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


async def settle(pods: list[MeshPod], timeout: float = 30) -> None:
    """Wait until no ztunnel holds an application's connection any more, and all are logged.

    Tunnels may stay pooled.
    """
    for pod in pods:
        await _settle(pod, timeout)


async def _settle(pod: MeshPod, timeout: float) -> None:
    process = pod.ztunnel.process
    assert process.returncode is None, process.output()[-4000:]
    await eventually(lambda: connections(pod)[1:] == (0, 0), f"rid of {pod.name}'s connections", timeout)
    assert not pod.ztunnel.log_lines("Traceback"), process.output()[-8000:]


def connections(pod: MeshPod) -> tuple[int, int, int]:
    """Of a pod's ztunnel: connections opened so far, those not closed, those closed and not logged yet."""
    samples = pod.ztunnel.metrics()
    opened = sum(sample.value for sample in samples if sample.name == "istio_tcp_connections_opened_total")
    closed = sum(sample.value for sample in samples if sample.name == "istio_tcp_connections_closed_total")
    logged = len(pod.ztunnel.log_lines('"message":"connection complete"'))
    return int(opened), int(opened - closed), int(closed) - logged


@pytest.fixture
def fresh_mesh() -> Iterator[Mesh]:
    """An empty mesh of the test's own; nothing of it may be left afterwards."""
    with Mesh.open() as mesh:
        name = mesh.machine.name
        yield mesh
    census = take_census(name)
    assert census.empty, census
