"""Whatever dies when: in the end every worker knows the mesh, the pods and the settings that are in force.

A random sequence of changes is made while workers are killed at random moments and are slow at times. What a
worker was told, in its order, must come to what is true.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
import trio

from tests.control.test_workers import INFO, Fakes, FakeWorker, running, until
from ztunnel.bounds import ControlBounds
from ztunnel.control.workers import Workers
from ztunnel.messages import (
    LogLevels,
    MeshDelta,
    PodAdded,
    PodRemoved,
    Resource,
    ResourceKind,
    RevocationsChanged,
    ToDataPlane,
)

NAMES = ("a", "b", "c", "d")
CHANGES = 60
BOUNDS = ControlBounds(worker_short_life=0.0)  # who dies is replaced at once, however often


@dataclass
class Known:
    """What is true, or what a worker was told of it."""

    mesh: dict[str, bytes] = field(default_factory=dict)
    pods: dict[str, int] = field(default_factory=dict)
    levels: str = ""
    lists: tuple[bytes, ...] = ()

    def take(self, message: object) -> None:
        match message:
            case MeshDelta():
                self.mesh |= {one.name: bytes(one.body) for one in message.resources}
                for name in message.removed:
                    self.mesh.pop(name, None)
            case PodAdded():
                self.pods[message.uid] = message.attempt
            case PodRemoved():
                self.pods.pop(message.uid, None)
            case LogLevels():
                self.levels = message.filter
            case RevocationsChanged():
                self.lists = message.crls

    @classmethod
    def by(cls, worker: FakeWorker) -> Known:
        known = cls()
        for message in worker.told:
            known.take(message)
        return known


async def change(workers: Workers, random: Random, truth: Known, number: int) -> None:
    """One change of something, and what is true from then on."""
    name = random.choice(NAMES)
    message: ToDataPlane
    match random.randrange(6):
        case 0 | 1:
            resources = (Resource(name, b"%d" % number),)
            message = MeshDelta(1, ResourceKind.ADDRESS, resources, ())
        case 2:
            message = MeshDelta(1, ResourceKind.ADDRESS, (), (name,))
        case 3:
            message = PodAdded(f"pod-{name}", INFO, attempt=number)
        case 4:
            message = PodRemoved(f"pod-{name}")
        case _:
            text = str(number)
            message = LogLevels(text) if random.random() < 0.5 else RevocationsChanged((text.encode(),))
    truth.take(message)
    if isinstance(message, MeshDelta):
        await workers.apply(message)
    else:
        await workers.send(message)


async def disturb(fakes: Fakes, random: Random) -> None:
    """Kill workers, and let those that come be slow for a while."""
    while True:
        await trio.sleep(random.choice([0, 0.001, 0.01]))
        living = [fake for fake in fakes.all if not fake.scope.cancel_called]
        if living and random.random() < 0.4:
            random.choice(living).scope.cancel()
        if fakes.slow is not None:
            fakes.slow.set()
        fakes.slow = trio.Event() if random.random() < 0.5 else None


@pytest.mark.parametrize("seed", range(15))
async def test_every_worker_knows_what_is_in_force(seed: int, autojump_clock: trio.abc.Clock):
    random, truth = Random(seed), Known()
    async with running(2, BOUNDS) as (workers, fakes, _):
        await workers.apply(MeshDelta(1, ResourceKind.ADDRESS, (), ()))
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disturb, fakes, Random(seed))
                for number in range(CHANGES):
                    await change(workers, random, truth, number)
                    await trio.sleep(random.choice([0, 0, 0.004]))
                nursery.cancel_scope.cancel()
        if fakes.slow is not None:
            fakes.slow.set()

        def living() -> list[FakeWorker]:
            return [fake for fake in fakes.all if not fake.scope.cancel_called]

        await until(lambda: len(living()) == 2 and all(Known.by(fake) == truth for fake in living()))
        assert len(fakes.all) > 4, "hardly any worker has died"
