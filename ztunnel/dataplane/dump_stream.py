"""The data plane's part of the config dump: a stream of pieces, sent no faster than they are read.

The receiver acknowledges each piece (`DumpTaken`), and only a few pieces are sent ahead. So most of the dump
is never in memory at the same time, however slowly it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
import trio

from ztunnel.bounds import Bounds
from ztunnel.dataplane.mesh_dump import dump_policies, dump_services, dump_staged, dump_workloads
from ztunnel.messages import DumpChunk, DumpSection, DumpTaken, DumpWanted, FromDataPlane
from ztunnel.state.store import MeshStore

PIECE = 64
"""Items in one piece: each takes about ten microseconds."""

AHEAD = 8
"""Pieces that are sent before the first acknowledgement."""

_SECTIONS: dict[DumpSection, Callable[[MeshStore], Iterable[object]]] = {
    DumpSection.WORKLOADS: dump_workloads,
    DumpSection.SERVICES: dump_services,
    DumpSection.POLICIES: dump_policies,
    DumpSection.STAGED_SERVICES: dump_staged,
}


class Dumps:
    """The dumps in progress, by the number of the question."""

    def __init__(self, store: MeshStore, send: Callable[[FromDataPlane], None], bounds: Bounds) -> None:
        self._store = store
        self._send = send
        self._patience = bounds.control.dump_reader
        self._under_way: dict[int, tuple[trio.Semaphore, trio.CancelScope]] = {}

    def handle(self, message: DumpWanted | DumpTaken, nursery: trio.Nursery) -> None:
        """Start a dump as a task of the nursery, or continue one."""
        if isinstance(message, DumpWanted):
            nursery.start_soon(self.send, message, name=f"dump of {message.section.value}")
        else:
            self.taken(message)

    def taken(self, message: DumpTaken) -> None:
        """A piece was acknowledged, or no more is wanted. Does nothing for a dump that has ended."""
        room, scope = self._under_way.get(message.number, (None, None))
        if room is not None and message.more:
            room.release()
        elif scope is not None:
            scope.cancel()

    async def send(self, wanted: DumpWanted) -> None:
        """Send a section of the dump.

        Ends early when no piece is acknowledged for a minute, or no more is wanted.
        """
        room = trio.Semaphore(AHEAD)
        with trio.CancelScope() as scope:
            self._under_way[wanted.number] = room, scope
            try:
                for items in _pieces(_SECTIONS[wanted.section](self._store)):
                    await trio.lowlevel.checkpoint()
                    if not items:
                        continue
                    with trio.move_on_after(self._patience) as waiting:
                        await room.acquire()
                    if waiting.cancelled_caught:
                        return
                    self._send(DumpChunk(wanted.number, items, last=False))
                self._send(DumpChunk(wanted.number, (), last=True))
            finally:
                del self._under_way[wanted.number]


def _pieces(items: Iterable[object]) -> Iterator[tuple[bytes, ...]]:
    """Returns pieces of JSON; an empty one where the section asks for a pause."""
    encode = msgspec.json.Encoder(order="sorted").encode
    piece: list[bytes] = []
    for item in items:
        if item is None:
            yield ()
            continue
        piece.append(encode(item))
        if len(piece) == PIECE:
            yield tuple(piece)
            piece = []
    yield tuple(piece)
