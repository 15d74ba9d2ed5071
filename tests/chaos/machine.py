"""Faults of the node itself: disk, descriptors, memory, clock, namespaces."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from random import Random

import trio

from tests.chaos.processes import restart_if_dead
from tests.chaos.scene import LIFETIME, Fault, Scene
from tests.support.fake_cni import NoZtunnelError
from tests.support.processes import families
from tests.support.whole_mesh import faketime_library, full
from ztunnel.bounds import DEFAULTS
from ztunnel.messages import PodInfo

_GONE = (ProcessLookupError, FileNotFoundError, PermissionError)
"""What a process says that has been killed meanwhile."""

_ghosts = count()


def _address_space(pid: int) -> int:
    """Bytes of it that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


@asynccontextmanager
async def disk_full(scene: Scene, _: Random) -> AsyncIterator[None]:
    """Not one more page fits where the logs go."""
    with full(scene.mesh.disk):
        yield


@asynccontextmanager
async def descriptors_exhausted(scene: Scene, random: Random) -> AsyncIterator[None]:
    """The processes of a node may open next to nothing."""
    before: dict[int, tuple[int, int]] = {}
    for pid in families([scene.some_node(random).current.process.pid]):
        with suppress(*_GONE):
            used = len(os.listdir(f"/proc/{pid}/fd"))
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 3, limits[1]))
            before[pid] = limits
    try:
        yield
    finally:
        for pid, limits in before.items():
            with suppress(*_GONE):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


@asynccontextmanager
async def memory_exhausted(scene: Scene, random: Random) -> AsyncIterator[None]:
    """The kernel gives a node's processes no more memory. Whichever ends for it is started again.

    Some end at once, a worker for instance; a control process that hangs for it does so within
    `ControlBounds.loop_hung`.
    """
    node = scene.some_node(random)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    pids = families([node.current.process.pid])
    for pid in pids:
        with suppress(*_GONE):
            used = _address_space(pid)
            resource.prlimit(pid, resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        for pid in families(pids):  # and what they have started meanwhile
            with suppress(*_GONE):
                resource.prlimit(pid, resource.RLIMIT_AS, unlimited)
        with trio.move_on_after(2 * DEFAULTS.control.loop_hung):
            while not await trio.to_thread.run_sync(node.current.ready):  # a process
                restart_if_dead(node)
                await trio.sleep(0.2)


@asynccontextmanager
async def clock_jumps(scene: Scene, random: Random) -> AsyncIterator[None]:
    """A node's wall clock is set, and set back in the end."""
    node = scene.some_node(random)
    scene.mesh.set_clock(node, random.choice([-86_400, -3600, -15, 15, 3600, 86_400]))
    try:
        yield
    finally:
        scene.mesh.set_clock(node, 0)
    # For so long certificates from before the jump hide that none is renewed any more.
    await trio.sleep(LIFETIME)


@asynccontextmanager
async def namespaces_gone(scene: Scene, _: Random) -> AsyncIterator[None]:
    """Pods come and are gone before anybody is told; then the CNI says so."""
    node = scene.mesh.node(scene.mesh.server)
    uids = []
    try:
        # Another fault may be that no ztunnel answers: a pod that is not taken stays with the CNI agent.
        with suppress(NoZtunnelError, TimeoutError):
            for _one in range(5):
                # Addresses of their own: what is left of the one before may still be going.
                number, subnet = next(_ghosts), node.node.index
                name = f"ghost{number}"
                ipv4, ipv6 = f"10.77.{subnet}.{100 + number % 150}", f"fd77:{subnet}::{0x1000 + number:x}"
                pod = node.node.pod(name, ipv4=ipv4, ipv6=ipv6)
                node.node.pods.remove(pod)
                uids.append(f"ghost-{name}")
                info = PodInfo(name, "default", "ghost")
                try:
                    await trio.to_thread.run_sync(node.cni.add_pod, uids[-1], info, pod.namespace.descriptor)
                finally:
                    pod.namespace.close()
        yield
    finally:
        for uid in uids:
            with suppress(NoZtunnelError, TimeoutError):
                await trio.to_thread.run_sync(node.cni.delete_pod, uid)


FAULTS: dict[str, Fault] = {
    "disk full": disk_full,
    "descriptors exhausted": descriptors_exhausted,
    "memory exhausted": memory_exhausted,
    "namespaces gone": namespaces_gone,
}
if faketime_library() is not None:
    FAULTS["clock jumps"] = clock_jumps
