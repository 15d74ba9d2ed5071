"""An honest client of port 15008 with a tunnel of its own, to measure what attacks on others do to it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import trio

from tests.support.data_plane import Control
from tests.support.hostile_peer import dial, receive, send_all
from ztunnel.hbone import DataReceived, HboneClient, Responded
from ztunnel.model.identity import Identity

HONEST = Identity("cluster.local", "default", "honest")


class Neighbour:
    """One accepted stream to an application that echoes; ``async with`` opens and closes it."""

    def __init__(self, control: Control, authority: str) -> None:
        self._control = control
        self._authority = authority
        self._hbone = HboneClient()

    async def __aenter__(self) -> Self:
        self._tls = await dial(self._control, HONEST)
        self._number = self._hbone.connect(self._authority, [])
        with trio.fail_after(30):
            while not any(isinstance(event, Responded) for event in await self._step()):
                pass
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tls.close_notify()
        self._tls.close()

    async def _step(self) -> list[object]:
        await send_all(self._tls, b"".join(self._hbone.take_output()))
        data = await receive(self._tls)
        assert data, "the tunnel has ended"
        return list(self._hbone.receive(data))

    async def exchange(self, data: bytes) -> None:
        """Send bytes and receive them again."""
        assert self._hbone.send_data(self._number, data) == len(data)
        received = b""
        with trio.fail_after(60):
            while len(received) < len(data):
                for event in await self._step():
                    if isinstance(event, DataReceived):
                        received += event.data
                        self._hbone.acknowledge(event.stream_id, len(event.data))
        assert received == data
