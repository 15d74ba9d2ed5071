"""The ZDS client of a node with its agent, and a pod manager that records its calls."""

from __future__ import annotations

import os
import random
from contextlib import asynccontextmanager, contextmanager

import trio

from tests.support.cni_agent import Agent
from tests.support.logs import capture_logs
from tests.support.namespaces import open_descriptors
from ztunnel.inpod.zds_client import ZdsClient
from ztunnel.inpod.zds_errors import PodStartError
from ztunnel.messages import PodInfo

INFO = PodInfo("pod", "ns", "sa")


class Manager:
    """Records its calls. ``broken``: the error of a pod's start, by uid. ``stuck``: pods that never start."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken: dict[str, str] = {}
        self.stuck: set[str] = set()
        self.infos: dict[str, PodInfo] = {}
        self.namespaces: dict[str, os.stat_result] = {}
        self.gate = trio.Event()
        self.gate.set()

    async def start(self, uid: str, info: PodInfo, netns: int) -> None:
        self.calls.append(f"start {uid}")
        self.namespaces[uid] = os.fstat(netns)
        self.infos[uid] = info
        await self.gate.wait()
        if uid in self.stuck:
            await trio.sleep(1000)
        if uid in self.broken:
            raise PodStartError(self.broken[uid])

    async def stop(self, uid: str) -> None:
        self.calls.append(f"stop {uid}")


class Node:
    """A running client with its agent."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.manager = Manager()
        self.readiness: list[bool] = []
        self.client = ZdsClient(
            str(agent.path), self.manager, on_ready=self.readiness.append, randomness=random.Random(0)
        )


@asynccontextmanager
async def node(tmp_path):
    before = open_descriptors()
    with capture_logs(), Agent(tmp_path / "zds.sock") as agent:
        a_node = Node(agent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a_node.client.run)
            yield a_node
            nursery.cancel_scope.cancel()
    assert open_descriptors() == before, "a descriptor was leaked"


@contextmanager
def some_file(number=0):
    """A descriptor to pass. Its identity (device and inode) tells which one it is."""
    descriptor = os.open(("/proc/self/ns/net", "/proc/self/ns/uts", "/dev/null")[number], os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
