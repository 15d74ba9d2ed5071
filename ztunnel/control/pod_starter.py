"""Starts and stops pods on a data plane, and waits until their sockets are bound."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count

import trio

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.control.link import DataPlanes
from ztunnel.inpod.zds_errors import PodStartError
from ztunnel.messages import (
    FromDataPlane,
    PodAdded,
    PodFailed,
    PodInfo,
    PodRemoved,
    PodStarted,
    PodStopped,
)


class PodStarter:
    """The `ztunnel.inpod.zds_client.PodManager` of a process with one data plane.

    A uid identifies a pod but not its start: a pod may be started again, in another namespace, while its
    earlier start is still ending. So each start has a number, and the data plane's answers contain it.

    on_ended: called with the uid of a running pod that has ended without having been stopped.
    """

    def __init__(
        self,
        link: DataPlanes,
        on_ended: Callable[[str], None] = lambda _: None,
        bounds: ControlBounds = DEFAULTS.control,
    ) -> None:
        self._bounds = bounds
        self._link = link
        self._on_ended = on_ended
        self._attempts = count(1)
        self._waiting: dict[int, trio.MemorySendChannel[str | None]] = {}
        self._running: dict[str, int] = {}

    async def start(self, uid: str, info: PodInfo, netns: int | None, *, inbound_only: bool = False) -> None:
        """Open a pod's sockets. Returns when they are bound.

        netns: the descriptor of its network namespace, which the caller closes; None for our own.
            inbound_only: as in `ztunnel.messages.PodAdded`.

        Raises PodStartError. After that, and after a cancellation, the pod is stopped.
        """
        answer, outcome = trio.open_memory_channel[str | None](1)
        attempt = next(self._attempts)
        self._waiting[attempt] = answer
        started = False
        try:
            try:
                duplicate = None if netns is None else os.dup(netns)
            except OSError as error:
                raise PodStartError(f"{error.strerror} (os error {error.errno})") from error
            await self._link.send(PodAdded(uid, info, duplicate, inbound_only, attempt))
            error_text = await outcome.receive()
            if error_text is not None:
                raise PodStartError(error_text)
            started = True
        finally:
            del self._waiting[attempt]
            if not started:
                self._running.pop(uid, None)
                with trio.CancelScope(shield=True), trio.move_on_after(self._bounds.pod_removal):
                    await self._link.send(PodRemoved(uid))

    async def stop(self, uid: str) -> None:
        """Close a pod's listeners and connections at once."""
        self._running.pop(uid, None)
        await self._link.send(PodRemoved(uid))

    def on_message(self, message: FromDataPlane) -> None:
        """Process what the data plane reports about pods; ignore other messages."""
        match message:
            case PodStarted():
                if message.attempt in self._waiting:
                    self._running[message.uid] = message.attempt
                self._answer(message.attempt, None)
            case PodFailed():
                self._answer(message.attempt, message.error)
            case PodStopped():
                if self._running.get(message.uid) == message.attempt:
                    del self._running[message.uid]
                    self._on_ended(message.uid)

    def _answer(self, attempt: int, error: str | None) -> None:
        waiting = self._waiting.get(attempt)
        if waiting is not None:
            waiting.send_nowait(error)
