"""Faults of what tells ztunnel something: istiod, the CA, the resolver, the CNI agent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from random import Random

import grpc
import trio

from tests.chaos.scene import Fault, Scene
from tests.support.control_plane import deny, workload
from tests.support.fake_istiod import CertificateLie
from tests.support.fake_resolver import silent
from ztunnel.pb.istio import workload as pb
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE

ONLY_THE_CLIENT = "default/only-the-client"
_numbers = count()


@asynccontextmanager
async def istiod_stopped(scene: Scene, _: Random) -> AsyncIterator[None]:
    """Its connections are cut, and nobody listens."""
    await trio.to_thread.run_sync(scene.mesh.istiod.kill)
    try:
        yield
    finally:
        scene.mesh.controlled.serve()


@asynccontextmanager
async def istiod_restarted(scene: Scene, random: Random) -> AsyncIterator[None]:
    """Several times, as in a rollout that fails."""

    async def again() -> None:
        while True:
            await trio.sleep(random.uniform(0.2, 1))
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(scene.mesh.istiod.kill)
                scene.mesh.controlled.serve()

    async with _meanwhile(again):
        yield


@asynccontextmanager
async def istiod_slow(scene: Scene, random: Random) -> AsyncIterator[None]:
    """Streams end, and each answer on the new ones takes seconds; or there is none at all."""
    istiod = scene.mesh.istiod
    hangs = random.random() < 0.5
    istiod.misbehaviour.delay = random.uniform(0.5, 3)
    istiod.misbehaviour.hang = hangs
    istiod.end_streams(grpc.StatusCode.UNAVAILABLE, "slow from now on")
    try:
        yield
    finally:
        istiod.misbehaviour.delay = 0.0
        if hangs:
            istiod.resume()


@asynccontextmanager
async def istiod_garbage(scene: Scene, _: Random) -> AsyncIterator[None]:
    """What it says cannot be read at all."""
    istiod = scene.mesh.istiod
    istiod.misbehaviour.garbage = True
    istiod.end_streams(grpc.StatusCode.OK)
    try:
        yield
    finally:
        istiod.misbehaviour.garbage = False
        istiod.end_streams(grpc.StatusCode.OK)


@asynccontextmanager
async def istiod_contradictory(scene: Scene, random: Random) -> AsyncIterator[None]:
    """It says now this, now that of the server, some of which cannot be; policies stay as they are."""
    mesh, istiod = scene.mesh, scene.mesh.istiod
    double = f"{mesh.server.uid}-double"

    def tell_a_lie() -> None:
        match random.randrange(6):
            case 0:
                mesh.put_server(ONLY_THE_CLIENT, service_account="somebody-else")
            case 1:
                twin = workload(mesh.server, policies=[ONLY_THE_CLIENT], uid=double, name="server-double")
                istiod.put(double, pb.Address(workload=twin))
            case 2:
                istiod.put(mesh.server.uid, b"\x0a\x7fno workload", type_url=ADDRESS_TYPE)
            case 3:
                istiod.put(ONLY_THE_CLIENT, b"\x0a\x7fno policy", type_url=AUTHORIZATION_TYPE)
            case 4:
                istiod.push(type_url=ADDRESS_TYPE, removed=["nobody", double, "", "//"])
            case 5:
                mesh.put_server(ONLY_THE_CLIENT, addresses=[b"\x01\x02\x03"])

    async def lie() -> None:
        while True:
            tell_a_lie()
            await trio.sleep(random.uniform(0.01, 0.3))
            scene.tell_truth()
            await trio.sleep(random.uniform(0.01, 0.3))

    async with _meanwhile(lie):
        yield
    istiod.remove(double)
    scene.tell_truth()


@asynccontextmanager
async def policy_churn(scene: Scene, random: Random) -> AsyncIterator[None]:
    """Policies that refuse nobody come and go, so that every connection is asked about again and again."""
    noise = f"noise-{next(_numbers)}"

    async def churn() -> None:
        while True:
            scene.mesh.put_policy(deny(noise, port=1, selector=True))
            scene.mesh.put_server(ONLY_THE_CLIENT, f"default/{noise}")
            await trio.sleep(random.uniform(0.02, 0.2))
            scene.tell_truth()
            scene.mesh.istiod.remove(f"default/{noise}", type_url=AUTHORIZATION_TYPE)
            await trio.sleep(random.uniform(0.02, 0.2))

    async with _meanwhile(churn):
        yield
    scene.tell_truth()
    scene.mesh.istiod.remove(f"default/{noise}", type_url=AUTHORIZATION_TYPE)


@asynccontextmanager
async def ca_stopped(scene: Scene, _: Random) -> AsyncIterator[None]:
    """Nobody listens."""
    await trio.to_thread.run_sync(scene.mesh.authority.kill)
    try:
        yield
    finally:
        scene.mesh.serve_certificates()


@asynccontextmanager
async def ca_slow(scene: Scene, random: Random) -> AsyncIterator[None]:
    """Each certificate takes seconds."""
    scene.mesh.authority.misbehaviour.delay = random.uniform(1, 4)
    try:
        yield
    finally:
        scene.mesh.authority.misbehaviour.delay = 0.0


def ca_lies(lie: CertificateLie) -> Fault:
    """Its certificates are wrong in one way."""

    @asynccontextmanager
    async def fault(scene: Scene, _: Random) -> AsyncIterator[None]:
        scene.mesh.authority.misbehaviour.certificate = lie
        try:
            yield
        finally:
            scene.mesh.authority.misbehaviour.certificate = None

    return fault


@asynccontextmanager
async def resolver_down(scene: Scene, _: Random) -> AsyncIterator[None]:
    """Nobody listens there."""
    async with scene.names.down():
        yield


def resolver(behaviour: str) -> Fault:
    """It is silent, slow, or lies."""

    @asynccontextmanager
    async def fault(scene: Scene, random: Random) -> AsyncIterator[None]:
        names = scene.names
        match behaviour:
            case "silent":
                names.behave = silent
            case "slow":
                names.delay = random.uniform(0.5, 2.5)
            case "lying":
                names.behave = names.lying(random)
        try:
            yield
        finally:
            names.behave, names.delay = names.honest, 0.0

    return fault


@asynccontextmanager
async def cni_restarted(scene: Scene, random: Random) -> AsyncIterator[None]:
    """The CNI agent is gone for a while."""
    agent = scene.some_node(random).cni
    await trio.to_thread.run_sync(agent.close)
    try:
        yield
    finally:
        agent.listen()


@asynccontextmanager
async def _meanwhile(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


FAULTS: dict[str, Fault] = {
    "istiod stopped": istiod_stopped,
    "istiod restarted": istiod_restarted,
    "istiod slow": istiod_slow,
    "istiod unreadable": istiod_garbage,
    "istiod contradictory": istiod_contradictory,
    "policies churn": policy_churn,
    "CA stopped": ca_stopped,
    "CA slow": ca_slow,
    "CA: another identity": ca_lies(CertificateLie.IDENTITY),
    "CA: expired": ca_lies(CertificateLie.EXPIRED),
    "CA: not our key": ca_lies(CertificateLie.KEY),
    "CA: another root": ca_lies(CertificateLie.AUTHORITY),
    "resolver down": resolver_down,
    "resolver silent": resolver("silent"),
    "resolver slow": resolver("slow"),
    "resolver lying": resolver("lying"),
    "CNI agent restarted": cni_restarted,
}
