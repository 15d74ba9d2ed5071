"""A reset is noticed on a socket that nobody reads, and an ordinary end is not taken for one."""

from __future__ import annotations

import os
import socket

import trio

from tests.support.traffic import reset
from tests.support.tunnels import plain_pair
from ztunnel.sockets.hangup import Hangups


async def test_a_reset_is_noticed_while_unread_bytes_lie_before_it():
    noticed = trio.Event()
    near, far = plain_pair()
    with near, Hangups(0.01) as hangups:
        await far.send_all(b"unread")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hangups.run)
            with hangups.watch(near, noticed.set) as hangup:
                assert len(hangups) == 1
                reset(far)
                with trio.fail_after(10):
                    await noticed.wait()
            assert hangup.happened
            assert len(hangups) == 0
            nursery.cancel_scope.cancel()
        assert near.recv(100) == b"unread", "what came before is kept"


async def test_ends_and_data_are_no_hangups():
    calls: list[int] = []
    near, far = plain_pair()
    with near, Hangups() as hangups, hangups.watch(near, lambda: calls.append(1)) as hangup:
        await far.send_all(b"data")
        hangups.look()
        await far.send_eof()
        await trio.lowlevel.wait_readable(near)
        hangups.look()
        near.shutdown(socket.SHUT_WR)
        assert await far.receive_some(1) == b""
        hangups.look()
        assert not calls
        assert not hangup.happened
        await far.aclose()


async def test_an_error_that_was_read_is_nobodys_business_any_more():
    near, far = plain_pair()
    with near, Hangups() as hangups, hangups.watch(near) as hangup:
        reset(far)
        await trio.lowlevel.wait_readable(near)
        try:
            near.recv(1)
        except ConnectionResetError:
            pass
        hangups.look()
        assert not hangup.happened


async def test_a_number_that_has_become_anothers_stays_watched():
    near, far = plain_pair()
    other, other_far = plain_pair()
    with Hangups() as hangups:
        first = hangups.watch(near)
        first.__enter__()
        descriptor = near.fileno()
        near.close()
        os.dup2(other.fileno(), descriptor)
        taken = socket.socket(fileno=descriptor)
        with taken, hangups.watch(taken) as second:
            first.__exit__(None, None, None)
            other.close()
            reset(other_far)
            await trio.lowlevel.wait_readable(taken)
            hangups.look()
            assert second.happened
            assert not first.happened
    await far.aclose()


async def test_after_its_end_nothing_is_watched():
    near, far = plain_pair()
    hangups = Hangups()
    hangups.close()
    with near, hangups.watch(near) as hangup:
        assert len(hangups) == 0
        assert not hangup.happened
    await far.aclose()
