"""The client against the agent that the e2e tests use, which is written after the real one."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from tests.support.fake_cni import FakeCni, NoZtunnelError
from tests.support.namespaces import namespace_of, needs_namespaces, open_descriptors
from ztunnel.demo.machine import Machine
from ztunnel.inpod.zds_client import ZdsClient
from ztunnel.inpod.zds_errors import PodStartError
from ztunnel.inpod.zds_session import PodCounts
from ztunnel.messages import PodInfo
from ztunnel.model.address import SocketAddress
from ztunnel.netns.namespace import Namespace
from ztunnel.sockets.factories import NamespaceSockets, SpareSockets
from ztunnel.sockets.listen import BindError, Listener, SocketOptions, listen

pytestmark = needs_namespaces
INFO = PodInfo("pod", "ns", "sa")
PORTS = (15008, 15006, 15001)


class Listeners:
    """A pod manager that binds the real ports in the real namespace, and serves nothing."""

    def __init__(self) -> None:
        self.pods: dict[str, tuple[Namespace, NamespaceSockets, list[Listener]]] = {}
        self._spares = SpareSockets()

    async def start(self, uid: str, info: PodInfo, netns: int) -> None:
        del info
        namespace = Namespace.duplicate(netns)
        factory = NamespaceSockets(namespace, spares=self._spares)
        listeners: list[Listener] = []
        self.pods[uid] = (namespace, factory, listeners)
        try:
            for port in PORTS:
                address = SocketAddress(ip_address("::"), port)
                listeners.append(
                    await listen(address, factory=factory, options=SocketOptions(mark=1337), reuse_port=False)
                )
        except BindError as error:
            await self.stop(uid)
            raise PodStartError(error.brief) from error
        except BaseException:
            await self.stop(uid)
            raise

    async def stop(self, uid: str) -> None:
        namespace, factory, listeners = self.pods.pop(uid)
        for listener in listeners:
            listener.close()
        factory.close()
        namespace.close()


class Node:
    def __init__(self, cni: FakeCni, machine: Machine) -> None:
        self.cni = cni
        self.machine = machine
        self.listeners = Listeners()
        self.readiness: list[bool] = []
        self.client = self.another(self.listeners)

    def another(self, listeners: Listeners) -> ZdsClient:
        return ZdsClient(
            str(self.cni.path), listeners, on_ready=self.readiness.append, randomness=random.Random(0)
        )

    async def add(self, uid: str, netns: int) -> str:
        return (await trio.to_thread.run_sync(self.cni.add_pod, uid, INFO, netns)).error

    async def delete(self, uid: str) -> list[str]:
        return [ack.error for ack in await trio.to_thread.run_sync(self.cni.delete_pod, uid)]

    async def wait_ready(self, count: int = 1) -> None:
        await trio.to_thread.run_sync(self.cni.wait_ready, count)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    before = open_descriptors()
    with Machine.open() as machine, FakeCni(tmp_path / "zds") as cni:
        a_node = Node(cni, machine)
        async with running(a_node.client):
            await a_node.wait_ready()
            yield a_node
        for uid in list(a_node.listeners.pods):
            await a_node.listeners.stop(uid)
        await trio.to_thread.run_sync(cni.close)
        assert not any(connection.unsolicited for connection in cni.connections)
    # Spare sockets may still be on their way from the namespace; they are closed when they arrive.
    with trio.fail_after(60):
        while open_descriptors() != before:  # noqa: ASYNC110 - nothing tells of a close
            await trio.sleep(0.01)


@asynccontextmanager
async def running(client: ZdsClient) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        yield
        nursery.cancel_scope.cancel()


async def test_a_pods_sockets_are_bound_in_its_namespace_when_the_ack_comes(node: Node) -> None:
    pod = node.machine.namespace("pod")
    assert await node.add("a", pod.descriptor) == ""
    _, _, listeners = node.listeners.pods["a"]
    assert [namespace_of(listener.sock) for listener in listeners] == [pod.inode] * 3
    assert all(listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 1337 for listener in listeners)
    assert node.readiness == [True]
    assert await node.delete("a") == [""]
    assert node.listeners.pods == {}


async def test_a_taken_port_is_a_nack_and_the_pod_comes_up_when_the_port_is_free(node: Node) -> None:
    pod = node.machine.namespace("pod")
    with pod.entered():
        taken = socket.socket(socket.AF_INET6)
    with taken:
        taken.bind(("::", 15006))
        taken.listen()
        error = await node.add("a", pod.descriptor)
        assert error == "failure to start proxy : Bind([::]:15006, Address already in use (os error 98))"
        assert node.listeners.pods == {}
        assert node.client.counts() == PodCounts(active=0, pending=1, started=0, stopped=0)
    assert await node.add("a", pod.descriptor) == ""
    assert node.client.counts() == PodCounts(active=1, pending=0, started=1, stopped=0)


async def test_a_pod_whose_namespace_is_none_is_a_nack(node: Node) -> None:
    with Path("/dev/null").open() as null:
        error = await node.add("a", null.fileno())
    assert error == (
        "failure to start proxy : Bind([::]:15008, "
        "failed to enter network namespace: Invalid argument (os error 22))"
    )
    assert await node.delete("a") == [""]


async def test_a_hundred_pods_in_one_snapshot(tmp_path: Path) -> None:
    before = open_descriptors()
    with Machine.open() as machine, FakeCni(tmp_path / "zds") as cni:
        for number in range(100):
            netns = machine.namespace(f"p{number}").descriptor
            with pytest.raises(NoZtunnelError):
                cni.add_pod(f"uid-{number}", INFO, netns)
        node = Node(cni, machine)
        async with running(node.client):
            await node.wait_ready()
            assert node.client.counts() == PodCounts(active=100, pending=0, started=100, stopped=0)
        assert [ack.request for ack in cni.acks] == [
            *(f"add uid-{number}" for number in range(100)),
            "snapshot_sent",
        ]
        assert {ack.error for ack in cni.acks} == {""}
        for uid in list(node.listeners.pods):
            await node.listeners.stop(uid)
        await trio.to_thread.run_sync(cni.close)
    assert open_descriptors() == before


async def test_an_agent_that_restarts_finds_its_pods_running_and_keeps_those_it_cannot_find(
    node: Node,
) -> None:
    pods = [node.machine.namespace(name) for name in ("one", "two", "three")]
    for uid, pod in zip("abc", pods, strict=True):
        await node.add(uid, pod.descriptor)
    await trio.to_thread.run_sync(node.cni.close)
    assert node.client.counts().active == 3
    node.cni.forget_namespace("a")
    with pytest.raises(NoZtunnelError):
        await node.add("c", node.machine.namespace("three-again").descriptor)
    node.cni.listen()
    await node.wait_ready()
    assert [ack.request for ack in node.cni.connections[-1].acks] == [
        "keep a", "add b", "add c", "snapshot_sent",
    ]  # fmt: skip
    assert node.client.counts() == PodCounts(active=3, pending=0, started=4, stopped=1)
    assert node.readiness == [True, False, True]


async def test_new_pods_go_to_the_newest_ztunnel_and_deletes_to_both(node: Node) -> None:
    pod, other = node.machine.namespace("pod"), node.machine.namespace("other")
    await node.add("a", pod.descriptor)
    await trio.to_thread.run_sync(partial(node.cni.forget_namespace, "a"))
    newer = Listeners()
    async with running(node.another(newer)):
        await node.wait_ready(2)
        assert await node.add("b", other.descriptor) == ""
        assert set(newer.pods) == {"b"}
        assert await node.delete("a") == ["", ""]
        assert await node.delete("b") == ["", ""]
    assert newer.pods == {}
    assert node.listeners.pods == {}
