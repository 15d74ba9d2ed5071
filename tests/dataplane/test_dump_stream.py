"""The config dump comes in pieces, no faster than they are taken."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
import pytest
import trio

from tests.support import big_meshes
from ztunnel.bounds import DEFAULTS
from ztunnel.control.link import DataPlaneLink
from ztunnel.dataplane.dump_stream import AHEAD, PIECE, Dumps
from ztunnel.messages import DumpChunk, DumpSection, DumpTaken, DumpWanted, FromDataPlane, ToDataPlane
from ztunnel.state.store import MeshStore

SIZE = 2 * AHEAD * PIECE


@pytest.fixture(scope="module")
def store() -> MeshStore:
    store = MeshStore(None)
    assert store.apply(big_meshes.sync(SIZE)).rejected == []
    return store


class Sent(list[FromDataPlane]):
    @property
    def items(self) -> int:
        return sum(len(chunk.items) for chunk in self if isinstance(chunk, DumpChunk))


async def test_only_some_pieces_are_sent_ahead(store: MeshStore, autojump_clock):
    sent = Sent()
    dumps = Dumps(store, sent.append, DEFAULTS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dumps.send, DumpWanted(7, DumpSection.WORKLOADS))
        await trio.testing.wait_all_tasks_blocked()
        assert sent.items == AHEAD * PIECE
        dumps.taken(DumpTaken(7))
        dumps.taken(DumpTaken(8))
        await trio.testing.wait_all_tasks_blocked()
        assert sent.items == (AHEAD + 1) * PIECE
        for _ in range(AHEAD):
            dumps.taken(DumpTaken(7))
    assert sent.items == SIZE
    assert isinstance(sent[-1], DumpChunk)
    assert sent[-1].last
    dumps.taken(DumpTaken(7))
    dumps.taken(DumpTaken(7, more=False))


@pytest.mark.parametrize("stop", [True, False])
async def test_a_dump_that_nobody_takes_ends(stop: bool, store: MeshStore, autojump_clock):
    sent = Sent()
    dumps = Dumps(store, sent.append, DEFAULTS)
    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dumps.send, DumpWanted(7, DumpSection.WORKLOADS))
        await trio.testing.wait_all_tasks_blocked()
        if stop:
            dumps.taken(DumpTaken(7, more=False))
    assert trio.current_time() - before == (0 if stop else DEFAULTS.control.dump_reader)
    assert sent.items == AHEAD * PIECE
    assert not any(chunk.last for chunk in sent if isinstance(chunk, DumpChunk))


async def with_link(nursery: trio.Nursery, store: MeshStore) -> DataPlaneLink:
    """A link to a data plane that does nothing but dumps."""
    to_plane, plane_inbox = trio.open_memory_channel[ToDataPlane](0)
    from_plane, link_inbox = trio.open_memory_channel[FromDataPlane](float("inf"))
    dumps = Dumps(store, from_plane.send_nowait, DEFAULTS)

    async def plane() -> None:
        async for message in plane_inbox:
            assert isinstance(message, DumpTaken | DumpWanted)
            dumps.handle(message, nursery)

    link = DataPlaneLink(to_plane, link_inbox, lambda message: None)
    nursery.start_soon(plane)
    nursery.start_soon(link.run)
    return link


def uids(items: tuple[msgspec.Raw, ...]) -> list[str]:
    return [msgspec.json.decode(item)["uid"] for item in items]


async def test_the_link_takes_all_of_it_in_order(store: MeshStore, autojump_clock):
    async with trio.open_nursery() as nursery:
        link = await with_link(nursery, store)
        found: list[str] = []
        async for items in link.dump(DumpSection.WORKLOADS):
            found += uids(items)
            await trio.sleep(DEFAULTS.control.dump_reader / 2)
        assert found == sorted(store.workloads.uids())
        nursery.cancel_scope.cancel()


async def test_the_link_says_when_it_wants_no_more(store: MeshStore, autojump_clock):
    async with trio.open_nursery() as nursery:
        link = await with_link(nursery, store)
        pieces = link.dump(DumpSection.WORKLOADS)
        assert isinstance(pieces, AsyncGenerator)
        async with aclosing(pieces):
            async for items in pieces:
                assert len(items) == PIECE
                break
        await trio.testing.wait_all_tasks_blocked()
        names = {task.name for task in nursery.child_tasks}
        assert not [name for name in names if name.startswith("dump of")]
        nursery.cancel_scope.cancel()


def test_no_step_of_a_big_section_does_the_work_of_all(store: MeshStore):
    """With more keys than are sorted at once, there are pauses, and the order is the same."""
    from ztunnel.dataplane import mesh_dump

    items = list(mesh_dump.dump_workloads(store))
    assert None not in items
    many = MeshStore(None)
    many.apply(big_meshes.sync(2 * mesh_dump._RUN))
    items = list(mesh_dump.dump_workloads(many))
    assert items.count(None) == 2
    assert [item["uid"] for item in items if item is not None] == sorted(many.workloads.uids())
