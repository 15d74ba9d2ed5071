"""No byte of one identity's connection travels as another's: real processes, two workers, upgrades, rotation.

Pods of one node speak to endpoints that the test plays, which note for each stream whose certificate the
tunnel was made with. Meanwhile, in a random order: a pod's place (address and namespace) is given to a pod of
another service account, an endpoint's address to another identity, with and without the mesh being told
first; a second ztunnel takes the node over; a worker is killed; and certificates, which live ten seconds, are
renewed. Each connection brings a token that says what was true when it was made.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from random import Random

import pytest
import trio

from tests.support.census import take_census
from tests.support.fake_cni import NoZtunnelError
from tests.support.mesh import Mesh
from tests.support.node_deployment import NodeDeployment, NodeZtunnel
from tests.support.noting_endpoint import Seen, note_streams
from tests.support.pod import MeshPod, eventually
from tests.support.processes import families
from tests.support.raw_tls import KeyPair, TlsChoices
from tests.support.traffic import read_all
from ztunnel.messages import PodInfo

ACCOUNTS = ("red", "green", "blue")
ROUNDS = 25
ENVIRONMENT = {"ZTUNNEL_WORKER_THREADS": "2", "SECRET_TTL": "10s", "TERMINATION_GRACE_PERIOD_SECONDS": "3"}


class World:
    """What is true now, what the mesh was told, and what the endpoints saw."""

    def __init__(
        self, mesh: Mesh, deployment: NodeDeployment, clients: list[MeshPod], endpoints: list[MeshPod]
    ) -> None:
        self.mesh, self.deployment = mesh, deployment
        self.clients, self.endpoints = clients, endpoints
        self.random = Random(0)
        self.living = {pod.ipv4: pod.serviceaccount for pod in endpoints}
        self.uids = {pod.ipv4: pod.uid for pod in clients}
        self.generation = 0
        self.seen: list[Seen] = []
        self.answered = 0
        root = KeyPair.load(mesh.root)
        self.choices = {
            account: TlsChoices(root.issue(f"spiffe://cluster.local/ns/default/sa/{account}"))
            for account in ACCOUNTS
        }

    @property
    def node(self) -> NodeZtunnel:
        """What the clients' node runs."""
        return self.deployment.nodes["a"]

    async def replace_client(self) -> None:
        """A pod goes, and one of another service account has its place, address and all."""
        pod = self.random.choice(self.clients)
        with suppress(NoZtunnelError):  # one that drains may just have ended
            await trio.to_thread.run_sync(self.node.cni.delete_pod, self.uids[pod.ipv4])
        pod.serviceaccount = self.random.choice(ACCOUNTS)
        self.generation += 1
        uid = self.uids[pod.ipv4] = f"{pod.uid}-{self.generation}"
        told_first = self.random.random() < 0.5
        if told_first:
            await self.mesh.update()
        add = partial(self.node.cni.add_pod, uid, PodInfo(pod.name, "default", pod.serviceaccount))

        async def enrol() -> None:
            with suppress(NoZtunnelError):  # it is in the next one's snapshot
                await trio.to_thread.run_sync(add, pod.pod.namespace.descriptor)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(enrol)
            if not told_first:
                await trio.sleep(self.random.choice([0, 0.05]))
                await self.mesh.update()

    async def replace_endpoint(self) -> None:
        """An endpoint's address is another identity's; the mesh is told now, or with a later change."""
        pod = self.random.choice(self.endpoints)
        self.living[pod.ipv4] = self.random.choice(ACCOUNTS)
        if self.random.random() < 0.6:
            pod.serviceaccount = self.living[pod.ipv4]
            await self.mesh.update()

    async def upgrade(self) -> None:
        """Another ztunnel takes the node over, and is ready."""
        await self.node.upgrade()

    async def kill_worker(self) -> None:
        """One of the node's workers is gone; another takes its place."""
        children = families([self.node.current.process.pid])[1:]
        workers = families(children[:1])[1:]  # the first child starts them
        if workers:  # else all have just been killed, and the new ones are on their way
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(workers), signal.SIGKILL)

    async def change(self) -> None:
        """Something changes."""
        how = self.random.choices(
            [self.replace_client, self.replace_endpoint, self.upgrade, self.kill_worker], [6, 6, 1, 2]
        )[0]
        await how()

    async def serve(self, pod: MeshPod, stream: trio.SocketStream) -> None:
        """One connection to an endpoint: whoever lives there when it comes answers it to its end."""
        account = self.living[pod.ipv4]
        await note_streams(stream, self.choices[account], account, pod.ipv4, self.seen)

    async def connect(self) -> None:
        """One connection of a pod. Whether it succeeds is not the question here."""
        client, endpoint = self.random.choice(self.clients), self.random.choice(self.endpoints)
        before = client.serviceaccount
        with suppress(OSError, trio.BrokenResourceError, trio.TooSlowError):
            with trio.fail_after(20):
                async with await client.connect(endpoint.ipv4, 8080) as stream:
                    words = f"{before} {client.serviceaccount} {endpoint.ipv4} {endpoint.serviceaccount}"
                    token = f"{words} {self.random.random()}".encode()
                    await stream.send_all(token)
                    await stream.send_eof()
                    answer = await read_all(stream)
            if answer:
                assert answer == token
                self.answered += 1

    def check(self, *, told: bool) -> None:
        """Every stream was its client's, and, where nothing changed meanwhile, its endpoint's."""
        for seen in self.seen:
            before, after, address, account, _ = seen.data.decode().split()
            wanted = {f"spiffe://cluster.local/ns/default/sa/{who}" for who in (before, after)}
            assert seen.client in wanted, seen
            assert seen.address == address, seen
            if told:
                assert seen.server == account, seen
        tokens = [seen.data for seen in self.seen]
        assert len(set(tokens)) == len(tokens)


@pytest.fixture
def mesh_of_world() -> Iterator[World]:
    deployment = NodeDeployment()
    with Mesh.open(deployment=deployment, environment=ENVIRONMENT) as mesh:
        clients = [mesh.node("a").pod(f"c{number}", serviceaccount=ACCOUNTS[number]) for number in range(3)]
        endpoints = [
            mesh.node("b").pod(f"e{number}", serviceaccount=ACCOUNTS[number], captured=False)
            for number in range(2)
        ]
        mesh.start()
        yield World(mesh, deployment, clients, endpoints)
        for ztunnel in deployment.nodes["a"].ztunnels:
            assert "Traceback" not in ztunnel.process.output(), ztunnel.process.output()[-8000:]
        name = mesh.machine.name
    # A worker outlives a control process that was killed until it notices.
    trio.run(eventually, lambda: not take_census(name).processes, "rid of its processes")
    census = take_census(name)
    assert census.empty, census


@asynccontextmanager
async def living(world: World, seed: int) -> AsyncIterator[World]:
    world.random = Random(seed)
    async with trio.open_nursery() as nursery:
        for pod in world.endpoints:
            listeners = [pod.listen(15008)]
            nursery.start_soon(trio.serve_listeners, partial(world.serve, pod), listeners)
        yield world
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(2))
async def test_one_connection_after_the_other(mesh_of_world: World, seed: int) -> None:
    async with living(mesh_of_world, seed) as world:
        for _ in range(ROUNDS):
            await world.change()
            for _ in range(3):
                await world.connect()
        await world.upgrade()  # whatever the seed has chosen
        await world.kill_worker()
        await eventually(lambda: len(families([world.node.current.process.pid])) >= 4, "two workers", 30)
        for _ in range(10):
            await world.connect()
        world.check(told=True)
        assert world.answered >= ROUNDS
        assert len({seen.client for seen in world.seen}) > 1
        assert len({seen.server for seen in world.seen}) > 1


@pytest.mark.parametrize("seed", range(2))
async def test_all_at_once(mesh_of_world: World, seed: int) -> None:
    """Changes while connections are being made: each may go as either, but its bytes stay together."""
    async with living(mesh_of_world, seed) as world:
        stop = trio.Event()

        async def connect_without_pause() -> None:
            while not stop.is_set():
                await world.connect()

        with trio.fail_after(240):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(connect_without_pause)
                changes = 0
                # A busy machine makes fewer connections between two changes, so it gets more changes.
                while changes < ROUNDS or world.answered < ROUNDS:
                    await world.change()
                    changes += 1
                    await trio.sleep(world.random.choice([0, 0.01, 0.1]))
                stop.set()
        world.check(told=False)
