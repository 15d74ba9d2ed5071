"""One worker and one pod that all workers serve, as the control side keeps them."""

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
    """Starts processes; see `ztunnel.dataplane.fork_server.ForkServer`."""

    sock: socket.socket

    def order(self, worker: socket.socket) -> None:
        """Ask for a worker that talks over this socket, which stays the caller's."""

    def told(self) -> list[tuple[int, int]]:
        """Process ids and exit statuses of workers that have ended. Raises EOFError when it has itself."""


@dataclass(eq=False)
class Worker:
    """One worker. synced: it knows the mesh and the pods, and is told of each change."""

    number: int
    link: DataPlaneLink
    pid: int | None = None
    synced: bool = False


@dataclass(eq=False)
class SharedPod:
    """A pod that all workers serve: what they are told, and what the control side keeps of it."""

    message: PodAdded
    listeners: PodListeners
    starting: set[Worker] = field(default_factory=set)
    started: bool = False
    announced: bool = False

    def shared(self) -> PodAdded:
        """Returns the message for one more worker, with descriptors of its own. Raises OSError."""
        listeners = self.listeners.shared()
        netns = self.message.netns
        return msgspec.structs.replace(
            self.message, netns=None if netns is None else os.dup(netns), listeners=listeners
        )

    def close(self) -> None:
        """Close what is kept."""
        self.listeners.close()
        if self.message.netns is not None:
            os.close(self.message.netns)


def kill(worker: Worker) -> None:
    """Kill a worker that has said its process id and still runs."""
    if worker.pid is not None:
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
