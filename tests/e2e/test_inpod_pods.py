"""Many pods on a node: they come at once, come and go under traffic, fail, vanish, and leave nothing behind.

Most pods here are bare network namespaces: that is all that ztunnel needs of a pod that nobody talks to.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

import pytest
import trio

from tests.support.census import open_descriptors
from tests.support.fake_cni import Ack
from tests.support.node_deployment import NodeZtunnel
from tests.support.pod import eventually
from tests.support.traffic import echo, read_exactly, serve
from tests.support.two_nodes import TwoNodes
from ztunnel.demo.dedicated import Ztunnel
from ztunnel.demo.namespaces import OwnedNamespace
from ztunnel.demo.network import netlink
from ztunnel.messages import PodInfo

PODS = 100
PORTS = {15001, 15006, 15008, 15053}
IN_USE = "failure to start proxy : Bind([::]:15008, Address already in use (os error 98))"


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with TwoNodes.open({"ISTIO_META_DNS_CAPTURE": "true"}) as opened:
        yield opened


class BarePods:
    """Network namespaces with nothing in them but loopback, each a pod ``bare-<n>``."""

    def __init__(self, count: int) -> None:
        self._stack = ExitStack()
        self.namespaces: dict[str, OwnedNamespace] = {}
        for number in range(count):
            self.namespaces[f"bare-{number}"] = self.make()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def make(self) -> OwnedNamespace:
        """One more namespace."""
        namespace = OwnedNamespace.make("bare")
        self._stack.callback(namespace.close)
        with netlink(namespace) as routes:
            routes.link("set", index=1, state="up")
        return namespace


def info(uid: str) -> PodInfo:
    return PodInfo(uid, "bare", "bare")


def add(node: NodeZtunnel, uid: str, namespace: OwnedNamespace) -> Ack:
    return node.cni.add_pod(uid, info(uid), namespace.descriptor)


def listening(namespace: OwnedNamespace) -> set[int]:
    """The ports of a namespace that TCP listens on, or UDP is bound to."""
    ports = set()
    with namespace.entered():
        for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
            for line in Path("/proc/thread-self/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == state:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def memory(ztunnel: Ztunnel) -> int:
    """Proportional set size in KiB."""
    text = Path(f"/proc/{ztunnel.process.pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def descriptor_count(pid: int) -> int:
    return len(open_descriptors(pid))


def tasks(ztunnel: Ztunnel) -> list[str]:
    """The names of its tasks, without ages and places."""
    lines = ztunnel.http("GET", 15000, "/debug/tasks")[1].splitlines()
    return [line for line in lines if "pod " in line or "bare" in line]


def states(ztunnel: Ztunnel) -> dict[str, str]:
    """What the config dump says of each pod, by name."""
    dump = json.loads(ztunnel.http("GET", 15000, "/config_dump")[1])
    return {pod["info"]["name"]: pod["state"] for pod in dump["workloadState"].values()}


def counts(ztunnel: Ztunnel) -> dict[str, int]:
    """The ``workload_manager`` metrics by the rest of their names."""
    prefix = "workload_manager_"
    return {
        sample.name.removeprefix(prefix): int(sample.value)
        for sample in ztunnel.metrics()
        if sample.name.startswith(prefix)
    }


async def echoes(stream: trio.SocketStream, data: bytes = b"hello") -> None:
    await stream.send_all(data)
    assert await read_exactly(stream, len(data)) == data


async def test_every_descriptor_of_a_node_has_a_role(nodes):
    async with serve(nodes.server, 8080, echo), await nodes.client.connect(nodes.vip, 80) as stream:
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 5) == b"hello"
        for pod in (nodes.client, nodes.server):
            shown = json.loads(nodes.node(pod).current.http("GET", 15000, "/debug/sockets")[1])
            assert [one for one in shown if not one["role"]] == []
            roles = {one["role"] for one in shown if one["pod"] == f"default/{pod.name}"}
            assert {"application", "dns listener", "outbound listener"} <= roles


async def test_a_hundred_pods_come_at_once_and_go_and_leave_nothing(nodes):
    node = nodes.node(nodes.client)
    pid = node.current.process.pid
    with BarePods(PODS) as pods:
        one = pods.make()
        # What is made once and kept: helper thread, allocator arenas.
        assert add(node, "first", one).error == ""
        node.cni.delete_pod("first")
        await eventually(lambda: not [task for task in tasks(node.current) if "bare" in task], "gone")
        descriptors = descriptor_count(pid)
        before, known = memory(node.current), counts(node.current)
        for uid, namespace in pods.namespaces.items():
            node.cni.cache_pod(uid, info(uid), namespace.descriptor)
        dropped = list(node.cni.connections)  # not those that it opens meanwhile
        for connection in dropped:
            connection.drop()
            connection.join()
        node.cni.wait_ready()
        later = [connection for connection in node.cni.connections if connection not in dropped]
        acks = [ack for connection in later for ack in connection.acks if ack.request.startswith("add bare-")]
        assert len(acks) == PODS
        assert {ack.error for ack in acks} == {""}
        assert all(listening(namespace) >= PORTS for namespace in pods.namespaces.values())
        assert states(node.current) == dict.fromkeys([*pods.namespaces, "client", "neighbour"], "Up")
        assert counts(node.current)["active_proxy_count"] == PODS + 2
        each = (memory(node.current) - before) / PODS
        seconds = [ack.seconds for ack in acks]
        print(
            f"{PODS} pods in {sum(seconds):.2f} s; an ack takes {statistics.median(seconds) * 1000:.1f} ms, "
            f"the slowest {max(seconds) * 1000:.1f} ms; a pod takes {each:.0f} KiB"
        )
        assert each < 300
        for uid in pods.namespaces:
            assert [ack.error for ack in node.cni.delete_pod(uid)] == [""]
        await eventually(lambda: not [task for task in tasks(node.current) if "bare" in task], "gone")
        assert not any(listening(namespace) for namespace in pods.namespaces.values())
        await eventually(lambda: descriptor_count(pid) <= descriptors, "without descriptors of theirs")
        assert set(states(node.current)) == {"client", "neighbour"}
        assert counts(node.current) == {
            "active_proxy_count": 2,
            "pending_proxy_count": 0,
            "proxies_started_total": known["proxies_started_total"] + PODS,
            "proxies_stopped_total": known["proxies_stopped_total"] + PODS,
        }


async def test_pods_come_and_go_under_traffic_and_disturb_nobody(nodes):
    node, client, neighbour = nodes.node(nodes.client), nodes.client, nodes.neighbour
    done = trio.Event()
    carried = 0

    async def traffic() -> None:
        nonlocal carried
        while not done.is_set():
            async with await client.connect(neighbour.ipv4, 8080) as stream:
                await echoes(stream)
            carried += 1

    acks: list[Ack] = []

    async def come_and_go(uid: str, namespace: OwnedNamespace) -> None:
        acks.append(await trio.to_thread.run_sync(add, node, uid, namespace))
        assert listening(namespace) >= PORTS
        await trio.sleep(0.5)
        acks.extend(await trio.to_thread.run_sync(node.cni.delete_pod, uid))

    with BarePods(30) as pods:
        async with (
            serve(neighbour, 8080) as application,
            await client.connect(neighbour.ipv4, 8080) as lasting,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(traffic)
            async with trio.open_nursery() as changes:
                for uid, namespace in pods.namespaces.items():
                    changes.start_soon(come_and_go, uid, namespace)
                    await trio.sleep(0.1)
                    await echoes(lasting)
            done.set()
    assert {ack.error for ack in acks} == {""}
    assert application.failures == []
    slowest = max(ack.seconds for ack in acks if ack.request.startswith("add"))
    print(f"{carried} connections while 10 pods a second came and went; slowest ack {slowest * 1000:.0f} ms")
    assert carried


async def test_a_pod_that_restarts_is_served_in_its_new_namespace_at_once(nodes):
    node = nodes.node(nodes.client)
    with BarePods(0) as pods:
        old, new = pods.make(), pods.make()
        assert add(node, "same", old).error == ""
        with old.entered():
            sock = socket.socket()
        sock.settimeout(5)
        sock.connect(("127.0.0.1", 15008))
        started = counts(node.current)["proxies_started_total"]
        # The same namespace changes nothing.
        assert add(node, "same", old).error == ""
        assert counts(node.current)["proxies_started_total"] == started
        assert add(node, "same", new).error == ""
        assert listening(new) >= PORTS
        assert counts(node.current)["proxies_started_total"] == started + 1
        with sock, contextlib.suppress(ConnectionResetError):
            assert await trio.to_thread.run_sync(sock.recv, 1) == b""
        await eventually(lambda: not listening(old), "closed in the old namespace")
        assert states(node.current)["same"] == "Up"
        established = {
            (line["component"], line["address"], line["transparent"])
            for line in nodes.client.log(message="listener established", proxy={"wl": "bare/same"})
        }
        assert established == {
            ("inbound", "[::]:15008", True),
            ("inbound plaintext", "[::]:15006", True),
            ("outbound", "[::]:15001", True),
        }
        node.cni.delete_pod("same")
        await eventually(lambda: not listening(new), "closed")


async def test_a_pod_that_vanishes_takes_its_connections_and_no_others(nodes):
    mesh, node, client, neighbour = nodes.mesh, nodes.node(nodes.client), nodes.client, nodes.neighbour
    fleeting = mesh.node("a").pod("fleeting")
    mesh.start()
    await mesh.update()
    async with (
        serve(neighbour, 8080),
        await client.connect(neighbour.ipv4, 8080) as lasting,
        await fleeting.connect(neighbour.ipv4, 8080) as doomed,
    ):
        await echoes(lasting)
        await echoes(doomed)
        with netlink(fleeting.pod.namespace) as routes:
            routes.link("del", index=routes.link_lookup(ifname="eth0")[0])
        mesh.remove_pod(fleeting)
        await eventually(lambda: "fleeting" not in states(node.current), "gone")
        await eventually(lambda: not [task for task in tasks(node.current) if "fleeting" in task], "gone")
        await echoes(lasting)
    ends = await client.logged(src__workload="fleeting", direction="outbound")
    assert [line["error"] for line in ends] == ["connection closed due to connection drain"]
    await mesh.update()


async def test_a_pod_whose_port_is_taken_waits_for_it_and_harms_no_other(nodes):
    node, ztunnel = nodes.node(nodes.client), nodes.node(nodes.client).current
    with BarePods(0) as pods:
        taken, free = pods.make(), pods.make()
        with taken.entered():
            occupant = socket.socket(socket.AF_INET6)
        with occupant:
            occupant.bind(("::", 15008))
            occupant.listen()
            assert add(node, "blocked", taken).error == IN_USE
            # What it had bound before is closed again.
            assert listening(taken) == {15008}
            assert states(ztunnel)["blocked"] == "Pending"
            assert counts(ztunnel)["pending_proxy_count"] == 1
            # A failed add does not change readiness by itself; the next message does.
            assert ztunnel.ready()
            assert add(node, "unblocked", free).error == ""
            assert states(ztunnel)["unblocked"] == "Up"
            assert ztunnel.http("GET", 15021, "/healthz/ready") == (
                500,
                "not ready, pending: workload proxy manager\n",
            )
        # It is tried again every five seconds.
        await eventually(lambda: states(ztunnel)["blocked"] == "Up", "started", 8)
        assert listening(taken) >= PORTS
        assert counts(ztunnel)["pending_proxy_count"] == 0
        await eventually(ztunnel.ready, "ready again")
        for uid in ("blocked", "unblocked"):
            node.cni.delete_pod(uid)


async def test_pods_are_served_while_the_agent_is_away(nodes):
    node, ztunnel = nodes.node(nodes.client), nodes.node(nodes.client).current
    assert ztunnel.ready()
    with BarePods(2) as pods:
        for uid, namespace in pods.namespaces.items():
            assert add(node, uid, namespace).error == ""
        node.cni.close()
        await eventually(lambda: not ztunnel.ready(), "not ready")
        text = ztunnel.http("GET", 15021, "/healthz/ready?verbose")[1]
        assert text.startswith(
            "not ready, pending: workload proxy manager\nworkload proxy manager: pending for "
        )
        failed = partial(ztunnel.log_lines, "failed to connect to the Istio CNI node agent over")
        await eventually(failed, "a line about it")
        assert states(ztunnel)["bare-0"] == "Up"
        assert all(listening(namespace) >= PORTS for namespace in pods.namespaces.values())
        async with (
            serve(nodes.neighbour, 8080),
            await nodes.client.connect(nodes.neighbour.ipv4, 8080) as stream,
        ):
            await echoes(stream)
            # The agent cannot find one namespace when it is back, and has lost the other pod.
            node.cni.forget_namespace("bare-0")
            with contextlib.suppress(Exception):
                node.cni.delete_pod("bare-1")
            node.cni.listen()
            await eventually(ztunnel.ready, "ready again", 20)
            await echoes(stream)
        await eventually(lambda: not listening(pods.namespaces["bare-1"]), "stopped")
        assert listening(pods.namespaces["bare-0"]) >= PORTS
        assert "bare-1" not in states(ztunnel)
        node.cni.delete_pod("bare-0")
