"""Peers of 15008 that never come to a sound handshake: bounded in time, and no harm to others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from tests.support.data_plane import echo, running_plane, server
from tests.support.hostile_peer import dial
from tests.support.logs import capture_logs
from tests.support.neighbour import Neighbour
from ztunnel.bounds import DEFAULTS

SOON = replace(DEFAULTS, connection=replace(DEFAULTS.connection, handshake_timeout=1.0))
RECORD = b"\x16\x03\x01\x40\x00"
"""The head of a TLS record that promises 16 KiB of handshake."""

SPEECHES: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "nothing": (b"", lambda _: b""),
    "half of a ClientHello": (RECORD + b"\x01\x00\x3f\xfc\x03\x03", lambda _: b""),
    "a ClientHello, byte by byte": (RECORD + b"\x01\x00\x3f\xfc\x03\x03", lambda n: bytes([n % 256])),
    "records without end": (b"", lambda _: RECORD + bytes(16_384)),
    "plain HTTP/1": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", lambda _: b""),
    "plain HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", lambda _: b""),
    "alerts": (b"", lambda _: b"\x15\x03\x03\x00\x02\x01\x00"),
    "garbage": (b"", lambda n: bytes(range(n % 256)) * 10),
}


async def speak(speech: tuple[bytes, Callable[[int], bytes]]) -> None:
    """Say it until the server ends the connection."""
    first, more = speech
    stream = await trio.open_tcp_stream("127.0.0.1", 15008)
    over = trio.Event()

    async def say() -> None:
        try:
            await stream.send_all(first)
            number = 0
            while True:
                number += 1
                await stream.send_all(more(number))
                await trio.sleep(0.01)
        except trio.BrokenResourceError:
            over.set()

    async def listen() -> None:
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        over.set()

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(say)
        nursery.start_soon(listen)
        await over.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", SPEECHES)
async def test_who_does_not_shake_hands_is_gone_soon_and_holds_up_nobody(name: str) -> None:
    async with (
        running_plane(bounds=SOON) as control,
        server(echo) as port,
        Neighbour(control, f"127.0.0.1:{port}") as neighbour,
    ):
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(speak, SPEECHES[name])
                await neighbour.exchange(b"meanwhile")
            await neighbour.exchange(b"after")


async def test_a_connection_that_says_nothing_is_no_warning() -> None:
    async with running_plane(bounds=SOON):
        with capture_logs("debug") as lines:
            stream = await trio.open_tcp_stream("127.0.0.1", 15008)
            await stream.aclose()
            with trio.fail_after(10):
                while not any("before its first byte" in line.message for line in lines):  # noqa: ASYNC110
                    await trio.sleep(0.01)
        assert [line for line in lines if line.message == "connection failed"] == []


async def test_handshakes_for_nothing_make_their_own_address_wait() -> None:
    limits = replace(DEFAULTS.connection, handshakes_owed=3, handshake_pause=3600.0)
    async with (
        running_plane(bounds=replace(DEFAULTS, connection=limits)) as control,
        server(echo) as port,
        Neighbour(control, f"127.0.0.1:{port}") as neighbour,
    ):
        for _ in range(3):
            (await dial(control)).close()
        with capture_logs("warn") as lines, trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial, control)
                while not any(line.fields.get("code") == "ZT-TLS-042" for line in lines):  # noqa: ASYNC110
                    await trio.sleep(0.01)
                (await dial(control, source="127.0.0.2")).close()
                await neighbour.exchange(b"meanwhile")
                nursery.cancel_scope.cancel()
