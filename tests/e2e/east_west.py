"""A network gateway played by hand: it ends the outer tunnel and passes on what is inside, byte by byte."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

import trio

from tests.support.pod import MeshPod
from tests.support.raw_hbone import HBONE_PORT, RawHbone, RawServer, RawStream, raw_server
from tests.support.raw_tls import TlsChoices


class Gateway:
    """Where hosts lead: ``targets`` has the pod behind each, at its HBONE port. ``resets``: codes seen."""

    def __init__(self, pod: MeshPod, targets: Mapping[str, MeshPod]) -> None:
        self.pod = pod
        self.targets = dict(targets)
        self.resets: list[int] = []
        self.server: RawServer | None = None

    @property
    def authorities(self) -> list[str]:
        """What was asked for, in order."""
        assert self.server is not None
        return [dict(request.headers)[":authority"] for request in self.server.requests]

    async def serve(self, connection: RawHbone) -> None:
        """Serve one outer tunnel."""
        news = trio.lowlevel.ParkingLot()
        started: set[int] = set()
        async with trio.open_nursery() as nursery:
            while True:
                await connection.step()
                for number, stream in connection.streams.items():
                    if stream.headers and number not in started:
                        started.add(number)
                        nursery.start_soon(self._carry, connection, stream, news)
                news.unpark_all()

    async def _carry(self, connection: RawHbone, stream: RawStream, news: trio.lowlevel.ParkingLot) -> None:
        host = dict(stream.headers)[":authority"].rpartition(":")[0]
        try:
            inside = await self.pod.connect(self.targets[host].ipv4, HBONE_PORT)
        except (OSError, KeyError):
            connection.h2.send_headers(stream.number, [(":status", "503")], end_stream=True)
            await connection.flush()
            return
        async with inside:
            connection.h2.send_headers(stream.number, [(":status", "200")])
            await connection.flush()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._inwards, stream, inside, news)
                nursery.start_soon(self._outwards, connection, stream, inside, news)

    async def _inwards(
        self, stream: RawStream, inside: trio.SocketStream, news: trio.lowlevel.ParkingLot
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                if stream.reset is not None:
                    # As gateways do: what is still on its way is given up.
                    self.resets.append(stream.reset)
                    await inside.aclose()
                    return
                if stream.data:
                    data = bytes(stream.data)
                    stream.data.clear()
                    await inside.send_all(data)
                elif stream.ended:
                    await inside.send_eof()
                    return
                else:
                    await news.park()

    async def _outwards(
        self,
        connection: RawHbone,
        stream: RawStream,
        inside: trio.SocketStream,
        news: trio.lowlevel.ParkingLot,
    ) -> None:
        number = stream.number
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in inside:
                view = memoryview(data)
                while view and stream.reset is None:
                    window = connection.h2.local_flow_control_window(number)
                    room = min(window, connection.h2.max_outbound_frame_size, len(view))
                    if not room:
                        await news.park()
                        continue
                    connection.h2.send_data(number, bytes(view[:room]))
                    view = view[room:]
                    await connection.flush()
        if stream.reset is None:
            connection.h2.end_stream(number)
            await connection.flush()


@contextlib.asynccontextmanager
async def gateway(
    pod: MeshPod, choices: TlsChoices, targets: Mapping[str, MeshPod]
) -> AsyncIterator[Gateway]:
    """Play a network gateway in a pod inside the ``async with``."""
    played = Gateway(pod, targets)
    async with raw_server(pod, choices, played.serve) as server:
        played.server = server
        yield played
