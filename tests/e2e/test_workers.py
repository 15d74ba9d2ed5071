"""A ztunnel with several worker processes: from outside it is one, and it outlives any of its workers."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import AsyncExitStack

import pytest
import trio

from tests.support.pod import MeshPod, eventually
from tests.support.processes import families
from tests.support.quiet import quiet
from tests.support.traffic import echo, serve
from tests.support.two_nodes import TwoNodes

WORKERS = 3


@pytest.fixture(scope="module")
def nodes():
    with TwoNodes.open({"ZTUNNEL_WORKER_THREADS": str(WORKERS)}) as made:
        yield made


def workers(nodes: TwoNodes, pod: MeshPod) -> dict[int, int]:
    """The process ids of the workers that serve a pod, by their numbers, as the log tells them."""
    found = {}
    for entry in nodes.node(pod).current.log_lines("a worker has started"):
        [worker] = re.findall(r'"worker":(\d+)', entry)
        [pid] = re.findall(r'"pid":(\d+)', entry)
        found[int(worker)] = int(pid)
    return found


async def talk(stream: trio.SocketStream, word: bytes = b"hello") -> None:
    with trio.fail_after(30):
        await stream.send_all(word)
        received = b""
        while len(received) < len(word):
            data = await stream.receive_some()
            assert data, "the connection has ended"
            received += data
    assert received == word


async def test_all_look_like_one(nodes):
    ztunnel = nodes.node(nodes.client).current
    assert len(families([ztunnel.process.pid])) == 2 + WORKERS  # this, the fork server, the workers
    opened = nodes.client.metric("istio_tcp_connections_opened_total", reporter="source")
    closed = nodes.client.metric("istio_tcp_connections_closed_total", reporter="source")
    async with serve(nodes.server, 8080, echo), AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(await nodes.client.connect(nodes.vip, 80)) for _ in range(12)
        ]
        for stream in streams:
            await talk(stream)
        state = nodes.client.config_dump()["workloadState"][nodes.client.uid]
        assert len(state["connections"]["outbound"]) == 12
        assert nodes.client.metric("istio_tcp_connections_opened_total", reporter="source") == opened + 12
        assert nodes.client.metric("tokio_num_workers") == WORKERS
        for stream in streams:
            await stream.aclose()
        total = "istio_tcp_connections_closed_total"
        await nodes.client.metric_reaches(closed + 12, total, reporter="source")
    tasks = ztunnel.http("GET", 15000, "/debug/tasks")[1]
    processes = [ztunnel.process.pid, *workers(nodes, nodes.client).values()]
    assert {str(pid) for pid in processes} == set(re.findall(r"^process (\d+)", tasks, re.MULTILINE))
    assert tasks.count("pod default/client") == WORKERS


async def test_each_task_has_an_age_and_each_descriptor_a_role_in_every_process(nodes):
    ztunnel = nodes.node(nodes.client).current
    async with serve(nodes.server, 8080, echo), await nodes.client.connect(nodes.vip, 80) as stream:
        await talk(stream)
        trees = json.loads(ztunnel.http("GET", 15000, "/debug/tasks?format=json")[1])
        descriptors = json.loads(ztunnel.http("GET", 15000, "/debug/sockets")[1])
    served = workers(nodes, nodes.client).values()
    assert {tree["pid"] for tree in trees} == {ztunnel.process.pid, *served}
    for tree in trees:
        aged = {task["name"] for task in tree["tasks"] if "age_seconds" in task}
        assert "log writer" in aged
        assert ("pod default/client" in aged) == (tree["pid"] != ztunnel.process.pid)
    assert {one["pid"] for one in descriptors} == {ztunnel.process.pid, *served}
    assert [one for one in descriptors if not one["role"]] == []


async def test_levels_reach_every_worker(nodes):
    ztunnel = nodes.node(nodes.client).current
    quiet([nodes.client])
    assert ztunnel.http("POST", 15000, "/logging?level=access=off,info")[0] == 200
    before = len(nodes.client.access_log())
    async with serve(nodes.server, 8080, echo):
        for _ in range(5):
            async with await nodes.client.connect(nodes.vip, 80) as stream:
                await talk(stream)
        assert ztunnel.http("POST", 15000, "/logging?reset")[0] == 200
        assert len(nodes.client.access_log()) == before


async def test_a_policy_is_in_force_in_all(nodes):
    key = nodes.mesh.policy("nobody", action="Deny", rules=[[[{"destinationPorts": [8080]}]]])
    async with serve(nodes.server, 8080, echo):
        await nodes.mesh.update()
        for _ in range(3 * WORKERS):
            with pytest.raises((ConnectionResetError, trio.BrokenResourceError, AssertionError)):
                async with await nodes.client.connect(nodes.server.ipv4, 8080) as stream:
                    await talk(stream)
        nodes.mesh.remove_policy(key)
        await nodes.mesh.update()
        async with await nodes.client.connect(nodes.server.ipv4, 8080) as stream:
            await talk(stream)


def holders(nodes: TwoNodes, pod: MeshPod) -> dict[int, int]:
    """Which worker serves each of a pod's outgoing connections, by the application's port."""
    numbers = {pid: number for number, pid in workers(nodes, pod).items()}
    found = {}
    page = nodes.node(pod).current.http("GET", 15000, "/debug/tasks")[1]
    for part in re.split(r"^process ", page, flags=re.MULTILINE)[1:]:
        for port in re.findall(rf"outbound {re.escape(pod.ipv4)}:(\d+)", part):
            found[int(port)] = numbers[int(part.split()[0])]
    return found


async def is_alive(stream: trio.SocketStream) -> bool:
    try:
        await talk(stream)
    except (trio.BrokenResourceError, AssertionError):
        return False
    return True


async def test_a_killed_worker_costs_only_its_own_connections(nodes):
    """Under traffic: no new connection fails, those of other workers go on, and there is a new worker."""
    failures: list[str] = []
    stopping = trio.Event()

    async def connect_again_and_again() -> None:
        while not stopping.is_set():
            try:
                stream = await nodes.client.connect(nodes.vip, 80)
            except ConnectionResetError:
                # A worker had accepted it. One that nobody accepts is refused, or nothing comes.
                failures.append("lost with the worker that served it")
                continue
            except OSError as error:
                failures.append(f"connect: {error}")
                continue
            async with stream:
                if not await is_alive(stream):
                    failures.append("lost with the worker that served it")

    killed = 0
    async with serve(nodes.server, 8080, echo), trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(connect_again_and_again)
        kept: dict[int, trio.SocketStream] = {}
        while len(kept) < 20 or len(set(holders(nodes, nodes.client).values())) < 2:
            stream = await nodes.client.connect(nodes.vip, 80)
            await talk(stream)
            kept[stream.socket.getsockname()[1]] = stream
        for pod in (nodes.client, nodes.server):
            for number in range(1, WORKERS + 1):
                held = holders(nodes, nodes.client)
                pid = workers(nodes, pod)[number]
                os.kill(pid, signal.SIGKILL)
                killed += 1
                await eventually(lambda: workers(nodes, pod)[number] != pid, "replaced", 20)  # noqa: B023
                if pod is nodes.client:
                    for port, stream in list(kept.items()):
                        assert await is_alive(stream) == (held[port] != number), (port, number, held)
                        if held[port] == number:
                            await kept.pop(port).aclose()
        stopping.set()
        for stream in kept.values():
            await stream.aclose()
    # What a worker was serving when it was killed is lost: at most one connection of each client.
    assert len(failures) <= 4 * killed, failures
    assert not [failure for failure in failures if failure.startswith("connect")], failures
    async with serve(nodes.server, 8080, echo):
        for _ in range(3 * WORKERS):
            async with await nodes.client.connect(nodes.vip, 80) as stream:
                await talk(stream)
