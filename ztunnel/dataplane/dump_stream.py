"""The config dump's part in a data plane: a stream in short steps, no faster than it is taken.

Whoever asked has taken what it got when it says so (`DumpTaken`); only a few pieces are sent ahead of that.
So neither the whole dump nor much of it is ever in memory, however slowly somebody reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
import trio

from ztunnel.bounds import Bounds
from ztunnel.messages import DumpChunk, DumpSection, DumpTaken, DumpWanted, FromDataPlane
from ztunnel.state.dump import dump_policies, dump_services, dump_staged, dump_workloads
from ztunnel.state.store import MeshStore

PIECE = 64
"""Items in a piece: each takes some ten microseconds."""

AHEAD = 8
"""Pieces that are sent before the first of them was taken."""

_SECTIONS: dict[DumpSection, Callable[[MeshStore], Iterable[object]]] = {
    DumpSection.WORKLOADS: dump_workloads,
    DumpSection.SERVICES: dump_services,
    DumpSection.POLICIES: dump_policies,
    DumpSection.STAGED_SERVICES: dump_staged,
}


class Dumps:
    """The dumps that are being sent, by the number of the question."""

    def __init__(self, store: MeshStore, send: Callable[[FromDataPlane], None], bounds: Bounds) -> None:
        self._store = store
        self._send = send
        self._patience = bounds.control.dump_reader
        self._under_way: dict[int, tuple[trio.Semaphore, trio.CancelScope]] = {}

    def handle(self, message: DumpWanted | DumpTaken, nursery: trio.Nursery) -> None:
        """Begin a dump, as a task of the nursery, or go on with one."""
        if isinstance(message, DumpWanted):
            nursery.start_soon(self.send, message, name=f"dump of {message.section.value}")
        else:
            self.taken(message)

    def taken(self, message: DumpTaken) -> None:
        """A piece was taken, or nobody wants any more. Nothing to do for a dump that is over."""
        room, scope = self._under_way.get(message.number, (None, None))
        if room is not None and message.more:
            room.release()
        elif scope is not None:
            scope.cancel()

    async def send(self, wanted: DumpWanted) -> None:
        """Send a section of the dump. Ends early when nobody takes a piece for a minute, or wants no more."""
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
    """Returns the items as JSON, some at a time; none where the section says that it is time for a pause."""
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
