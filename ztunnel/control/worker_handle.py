"""The control side's records of one worker, and of one pod that all workers serve."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ztunnel.control.link import DataPlaneLink
from ztunnel.messages import PodAdded
from ztunnel.proxy.pod_listeners import PodListeners


class Forks(Protocol):
    """Starts processes (see `ztunnel.dataplane.fork_server.ForkServer`)."""

    sock: socket.socket

    def order(self, worker: socket.socket) -> None:
        """Start a worker that communicates over this socket, which the caller closes."""

    def told(self) -> list[tuple[int, int]]:
        """Returns process ids and exit statuses of ended workers.

        Raises EOFError when the fork server has ended.
        """


@dataclass(eq=False)
class Worker:
    """One worker. ``synced``: it has the mesh and the pods, and gets each change."""

    number: int
    link: DataPlaneLink
    pid: int | None = None
    synced: bool = False


@dataclass(eq=False)
class SharedPod:
    """A pod that all workers serve: the message for them, and the control side's sockets."""

    message: PodAdded
    listeners: PodListeners
    starting: set[Worker] = field(default_factory=set)
    started: bool = False
    announced: bool = False

    def shared(self) -> PodAdded:
        """Returns the message for one more worker, with duplicated descriptors. Raises OSError."""
        listeners = self.listeners.shared()
        netns = self.message.netns
        return msgspec.structs.replace(
            self.message, netns=None if netns is None else os.dup(netns), listeners=listeners
        )

    def close(self) -> None:
        """Close the control side's sockets of the pod."""
        self.listeners.close()
        if self.message.netns is not None:
            os.close(self.message.netns)


def kill(worker: Worker) -> None:
    """Kill a worker that has reported its process id and still runs."""
    if worker.pid is not None:
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
