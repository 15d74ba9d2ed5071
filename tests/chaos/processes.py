"""Faults of processes: ztunnel, its workers, the application. What a kubelet does is part of an end."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

import trio

from tests.chaos.scene import Fault, Scene
from tests.support.node_deployment import NodeZtunnel
from tests.support.processes import families

READY = 120.0
"""Seconds that an upgrade waits for the successor, whatever else is wrong meanwhile."""


def send(pid: int, number: int) -> None:
    """A signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def restart_if_dead(node: NodeZtunnel) -> None:
    """What a kubelet does."""
    if node.current.process.returncode is not None:
        node.launch()


@asynccontextmanager
async def ztunnel_killed(scene: Scene, random: Random) -> AsyncIterator[None]:
    """SIGKILL; a new one is started afterwards."""
    node = scene.some_node(random)
    node.current.process.signal(signal.SIGKILL)
    try:
        yield
    finally:
        restart_if_dead(node)  # unless an upgrade has brought a new one


@asynccontextmanager
async def ztunnel_stopped(scene: Scene, random: Random) -> AsyncIterator[None]:
    """SIGSTOP: it is there, and does nothing."""
    pids = families([scene.some_node(random).current.process.pid])
    for pid in pids:
        send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            send(pid, signal.SIGCONT)


@asynccontextmanager
async def ztunnel_slow(scene: Scene, random: Random) -> AsyncIterator[None]:
    """Stopped for four fifths of the time."""
    root = scene.some_node(random).current.process.pid

    async def stutter() -> None:
        while True:
            pids = families([root])
            try:
                for pid in pids:
                    send(pid, signal.SIGSTOP)
                await trio.sleep(0.08)
            finally:
                for pid in pids:
                    send(pid, signal.SIGCONT)
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stutter)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def upgrade(scene: Scene, random: Random) -> AsyncIterator[None]:
    """A successor takes the node over. No connection may fail for it, but those that outlive the drain."""
    node = scene.some_node(random)
    old = node.current
    node.launch({"TERMINATION_GRACE_PERIOD_SECONDS": "8"})

    async def end_the_old_one() -> None:
        with trio.move_on_after(READY):
            while not await trio.to_thread.run_sync(node.current.ready):  # noqa: ASYNC110  # another process
                await trio.sleep(0.1)
            old.process.signal(signal.SIGTERM)

    scene.nursery.start_soon(end_the_old_one)
    yield


def _workers(scene: Scene, random: Random) -> list[int]:
    """The worker processes of a node; the first of its children starts them."""
    root = scene.some_node(random).current.process.pid
    (children, *_) = [families([child]) for child in families([root])[1:]] or [[]]
    return children[1:]


def worker(number: signal.Signals) -> Fault:
    """One worker process is killed, or stopped until the end."""

    @asynccontextmanager
    async def fault(scene: Scene, random: Random) -> AsyncIterator[None]:
        workers = _workers(scene, random)
        pid = random.choice(sorted(workers)) if workers else None  # none: another fault has killed all
        if pid is not None:
            send(pid, number)
        try:
            yield
        finally:
            if pid is not None and number == signal.SIGSTOP:
                send(pid, signal.SIGCONT)

    return fault


@asynccontextmanager
async def workers_killed(scene: Scene, random: Random) -> AsyncIterator[None]:
    """All of a node's workers at once, and whoever starts them."""
    root = scene.some_node(random).current.process.pid
    for pid in families([root])[1:]:
        send(pid, signal.SIGKILL)
    yield


@asynccontextmanager
async def application_killed(scene: Scene, _: Random) -> AsyncIterator[None]:
    """The server's application is gone, with its connections."""
    async with scene.applications.down():
        yield


@asynccontextmanager
async def application_stalled(scene: Scene, _: Random) -> AsyncIterator[None]:
    """The server's application takes connections and neither reads nor writes."""
    async with scene.applications.stalled():
        yield


FAULTS: dict[str, Fault] = {
    "ztunnel killed": ztunnel_killed,
    "ztunnel stopped": ztunnel_stopped,
    "ztunnel slow": ztunnel_slow,
    "ztunnel upgraded": upgrade,
    "worker killed": worker(signal.SIGKILL),
    "worker stopped": worker(signal.SIGSTOP),
    "workers killed, all": workers_killed,
    "application killed": application_killed,
    "application stalled": application_stalled,
}
