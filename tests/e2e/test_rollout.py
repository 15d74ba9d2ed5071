"""A rollout under load loses no request: ten pods go, ten come, some at the addresses of those that went.

What is hard about it is done on purpose. A pod refuses new connections, then ends, then is taken from its
ztunnel, and its interface is deleted, all before the mesh is told. A new pod is told of before it listens. An
address gets a new pod while the mesh still has the old one there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import trio

from tests.support.census import take_census
from tests.support.mesh import Mesh
from tests.support.node_deployment import NodeDeployment
from tests.support.pod import MeshPod
from tests.support.traffic import read_all, read_exactly
from ztunnel.demo.network import netlink
from ztunnel.demo.redirection import RedirectionOptions

PODS = 10
WORKERS = 6
PORT = 8080


class Application:
    """A server in one pod that can stop without losing a connection that it has, as a good one does."""

    def __init__(self, pod: MeshPod) -> None:
        self.pod = pod
        self._listener = pod.socket()
        self._listener.setblocking(False)
        self._listener.bind((pod.ipv4, PORT))
        self._listener.listen(1024)
        self._stopped = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        with self._listener:
            async with trio.open_nursery() as self._nursery:
                with self._stopped:
                    # A wait that was over already does not see that `stop` has closed the listener.
                    while not self._stopped.cancel_called:
                        self._accept_waiting()
                        await trio.lowlevel.wait_readable(self._listener)

    def _accept_waiting(self) -> None:
        assert self._nursery is not None
        try:
            while True:
                accepted, _ = self._listener.accept()
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
                self._nursery.start_soon(self._serve, stream)
        except BlockingIOError:
            return

    def stop(self) -> None:
        """Take what the kernel has accepted, then refuse."""
        self._accept_waiting()
        self._listener.close()
        self._stopped.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            request = await read_exactly(stream, 20)
            await trio.sleep(random.random() / 50)
            await stream.send_all(request + self.pod.name.encode())
            await stream.send_eof()
            await read_all(stream)


@dataclass
class Load:
    """Workers that ask the service again and again, and what came of it."""

    client: MeshPod
    vip: str

    def __post_init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.waiting: set[int] = set()
        self.stopping = False
        self._number = 0
        self._ended = trio.lowlevel.ParkingLot()

    async def work(self) -> None:
        while not self.stopping:
            self._number += 1
            number = self._number
            self.waiting.add(number)
            try:
                self.answers[await self._ask(number)] += 1
            except (OSError, trio.BrokenResourceError, trio.TooSlowError, AssertionError) as error:
                self.failures.append(f"request {number}: {error!r}")
            self.waiting.discard(number)
            self._ended.unpark_all()

    async def _ask(self, number: int) -> str:
        request = f"request {number:012}".encode()
        with trio.fail_after(30):
            async with await self.client.connect(self.vip, 80) as stream:
                await stream.send_all(request)
                answer = await read_all(stream, 30)
                await stream.send_eof()
        assert answer.startswith(request), answer
        return answer[20:].decode()

    async def settle(self) -> None:
        """Wait until the requests that are under way now have their answers."""
        now = set(self.waiting)
        while now & self.waiting:
            await self._ended.park()

    async def at_least(self, count: int) -> None:
        """Wait for so many more answers."""
        goal = self.answers.total() + count
        while self.answers.total() < goal and not self.failures:
            await self._ended.park()


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh.open(deployment=NodeDeployment()) as opened:
        yield opened
        name = opened.machine.name
    census = take_census(name)
    assert census.empty, census


def server(mesh: Mesh, name: str, ipv4: str | None = None) -> MeshPod:
    hostname = "default/web.default.svc.cluster.local"
    return mesh.node("b").pod(
        name, serviceaccount="web", ipv4=ipv4, workload={"services": {hostname: {80: PORT}}}
    )


def unplug(pod: MeshPod) -> None:
    """Delete a pod's interface on its node, and with it the route to its address."""
    with netlink(pod.pod.node.namespace) as node:
        (index,) = node.link_lookup(ifname=f"veth-{pod.name}")
        node.link("del", index=index)


async def test_ten_endpoints_roll_under_load_without_a_failed_request(mesh: Mesh) -> None:
    client = mesh.node("a").pod("client")
    vip = mesh.service("web", ports={80: PORT})
    old = [server(mesh, f"old-{number}") for number in range(PODS)]
    mesh.start()
    load = Load(client, vip)
    applications: dict[str, Application] = {}

    async with trio.open_nursery() as nursery:

        def run(pod: MeshPod) -> None:
            application = applications[pod.name] = Application(pod)
            nursery.start_soon(application.run)

        for pod in old:
            run(pod)
        for _ in range(WORKERS):
            nursery.start_soon(load.work)
        await load.at_least(60)
        with trio.fail_after(120):
            for number, leaving in enumerate(old):
                reuse = number % 3 == 0
                # The application ends; the mesh is not told yet.
                applications.pop(leaving.name).stop()
                await load.settle()
                await load.at_least(10)
                # The pod ends.
                mesh.deployment.remove(mesh, leaving)
                unplug(leaving)
                await load.at_least(10)
                # Another takes its place, or its address, and is served before the mesh is told of either.
                file = mesh.file.read_text()
                make = partial(server, mesh, f"new-{number}", leaving.ipv4 if reuse else None)
                arriving = await trio.to_thread.run_sync(make)
                mesh.pods.remove(arriving)
                mesh.network.redirect(arriving.pod, RedirectionOptions())
                assert isinstance(mesh.deployment, NodeDeployment)
                await trio.to_thread.run_sync(mesh.deployment.nodes["b"].add, arriving)
                assert mesh.file.read_text() == file
                await load.at_least(10)
                mesh.pods.append(arriving)
                mesh.pods.remove(leaving)
                mesh.write_file()
                await load.at_least(10)
                # Only now does it listen.
                run(arriving)
        await load.at_least(100)
        load.stopping = True
        await load.settle()
        for application in applications.values():
            application.stop()
    total = load.answers.total()
    assert load.failures == [], f"{len(load.failures)} of {total} failed"
    assert {name for name in load.answers if name.startswith("new-")}, load.answers
    saved = client.log(message="trying another endpoint")
    assert saved, "the rollout was harmless"
    errors = [entry for entry in client.access_log() if "error" in entry]
    assert errors == []
    why = Counter(entry["error"] for entry in saved)
    print(f"{total} requests; tried again elsewhere: {dict(why)}")
