from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import trio
import trio.testing

from ztunnel.loop.bulk import SMALL_PIECE, make_room, piece
from ztunnel.loop.watch import Watch

LARGE = 4 * SMALL_PIECE


class Pair(NamedTuple):
    near: socket.socket
    far: socket.socket


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        yield Pair(near, far)


async def test_whoever_waits_for_a_message_runs_first(pair, nursery):
    read: list[bytes] = []
    with Watch(pair.near) as watch:

        async def reader() -> None:
            watch.emptied()
            await watch.readable()
            read.append(pair.near.recv(100))

        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        with trio.testing.assert_no_checkpoints():
            await make_room()
        pair.far.send(b"word")
        await make_room()
        assert read == [b"word"]
        with trio.testing.assert_no_checkpoints():
            await make_room()


async def test_no_room_is_made_for_other_bulk_data(pair, nursery):
    with Watch(pair.near) as watch:
        watch.bulk = True
        watch.emptied()
        nursery.start_soon(watch.readable)
        await trio.testing.wait_all_tasks_blocked()
        pair.far.send(b"much")
        with trio.testing.assert_no_checkpoints():
            await make_room()
        assert piece(LARGE) == LARGE
        # Its task was woken all the same: the nursery ends.


async def test_room_is_made_for_what_trio_itself_waits_for(pair, nursery):
    with Watch(socket.socket()) as watch, watch.sock:
        nursery.start_soon(trio.lowlevel.wait_readable, pair.near)
        await trio.testing.wait_all_tasks_blocked()
        pair.far.send(b"word")
        with trio.testing.assert_checkpoints():
            await make_room()
        # The event that was polled is not lost: the nursery ends.


async def test_messages_without_end_do_not_keep_bulk_data_from_moving(pair, nursery):
    with Watch(pair.near) as watch:
        said = 0

        async def talk_to_itself() -> None:
            nonlocal said
            while True:
                pair.far.send(b"word")
                await watch.readable()
                pair.near.recv(100)
                watch.emptied()
                said += 1

        nursery.start_soon(talk_to_itself)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        for _ in range(100):
            before = said
            await make_room()
            assert said - before <= 4
        assert said > 50
        nursery.cancel_scope.cancel()


async def test_pieces_are_small_while_there_are_messages(pair, nursery):
    with Watch(pair.near) as watch:
        watch.emptied()
        nursery.start_soon(watch.readable)
        await trio.testing.wait_all_tasks_blocked()
        assert piece(LARGE) == LARGE
        pair.far.send(b"word")
        await make_room()
        pieces = [piece(LARGE) for _ in range(1000)]
    assert pieces[0] == SMALL_PIECE
    assert pieces == sorted(pieces)
    assert pieces[-1] == LARGE


async def test_a_piece_is_not_larger_than_asked_for(pair, nursery):
    with Watch(pair.near) as watch:
        watch.emptied()
        nursery.start_soon(watch.readable)
        await trio.testing.wait_all_tasks_blocked()
        pair.far.send(b"word")
        await make_room()
        assert piece(100) == 100


async def test_without_an_epoll_of_the_loop_nobody_is_known_to_wait(pair, monkeypatch):
    monkeypatch.delattr(select, "EPOLLEXCLUSIVE")
    with Watch(pair.near):
        pair.far.send(b"word")
        with trio.testing.assert_no_checkpoints():
            await make_room()
        assert piece(LARGE) == LARGE
