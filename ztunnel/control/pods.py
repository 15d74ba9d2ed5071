"""Starting and stopping pods on a data plane, and waiting for its word that their sockets are bound."""

from __future__ import annotations

import os

import trio

from ztunnel.control.link import DataPlaneLink
from ztunnel.inpod.errors import PodStartError
from ztunnel.messages import FromDataPlane, PodAdded, PodFailed, PodInfo, PodRemoved, PodStarted


class PodStarter:
    """The `ztunnel.inpod.client.PodManager` of a process with one data plane."""

    def __init__(self, link: DataPlaneLink) -> None:
        self._link = link
        self._waiting: dict[str, trio.MemorySendChannel[str | None]] = {}

    async def start(self, uid: str, info: PodInfo, netns: int | None, *, inbound_only: bool = False) -> None:
        """Have a pod's sockets opened; returns when they are bound.

        netns: the descriptor of its network namespace, which stays the caller's; None for our own.
        inbound_only: as in `ztunnel.messages.PodAdded`. Raises PodStartError; when that is raised, or the
        call is cancelled, the pod is stopped again.
        """
        answer, outcome = trio.open_memory_channel[str | None](1)
        self._waiting[uid] = answer
        started = False
        try:
            duplicate = None if netns is None else os.dup(netns)
            await self._link.send(PodAdded(uid, info, duplicate, inbound_only))
            error = await outcome.receive()
            if error is not None:
                raise PodStartError(error)
            started = True
        finally:
            if self._waiting.get(uid) is answer:
                del self._waiting[uid]
            if not started:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await self._link.send(PodRemoved(uid))

    async def stop(self, uid: str) -> None:
        """Have a pod's listeners and connections closed at once."""
        await self._link.send(PodRemoved(uid))

    def on_message(self, message: FromDataPlane) -> None:
        """Take what the data plane says of pods; other messages are none of ours."""
        match message:
            case PodStarted():
                self._answer(message.uid, None)
            case PodFailed():
                self._answer(message.uid, message.error)

    def _answer(self, uid: str, error: str | None) -> None:
        waiting = self._waiting.get(uid)
        if waiting is not None:
            waiting.send_nowait(error)
