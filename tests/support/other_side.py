"""For tests of waits that end when the other side ends: bounds of minutes, and a silent address."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from tests.support.data_plane import Control
from ztunnel.bounds import DEFAULTS
from ztunnel.messages import Topic
from ztunnel.observe.logging import LogRecord
from ztunnel.proxy.phase import Phase

SOON = 20  # seconds, on a busy machine; these waits used to last until their peer chose otherwise


async def until(condition: Callable[[], object]) -> None:
    while True:
        if condition():
            return
        await trio.sleep(0.02)


def gave_up(records: Iterable[LogRecord]) -> list[LogRecord]:
    """Returns the access log lines that say so."""
    text = "client disconnected before the connection was established"
    return [record for record in records if record.fields.get("error") == text]


async def fill(stream: trio.SocketStream) -> None:
    """Send until the buffers are full."""
    with trio.move_on_after(1):
        while True:
            await stream.send_all(bytes(1 << 20))


def _queued(listener: socket.socket) -> int:
    """Returns how many connections wait to be accepted: ``tcpi_unacked`` of a listener."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int.from_bytes(info[24:28], sys.byteorder)


@asynccontextmanager
async def nobody_accepts(ip: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """Yields an address where a dial gets no answer, because the listener's backlog is full."""
    with socket.create_server((ip, port), backlog=0) as full:
        filling: list[socket.socket] = []
        try:
            for _ in range(8):
                sock = socket.socket()
                sock.setblocking(False)
                filling.append(sock)
                sock.connect_ex(full.getsockname())
            with trio.fail_after(SOON):
                await until(lambda: _queued(full))
            number: int = full.getsockname()[1]
            yield number
        finally:
            for sock in filling:
                sock.close()


async def until_open(control: Control, count: int) -> None:
    """Wait until so many connections are open."""
    with trio.fail_after(SOON):
        while True:
            if len(await control.ask(Topic.CONNECTIONS, state="open")) == count:
                return
            await trio.sleep(0.05)


async def until_waiting_for(control: Control, phase: Phase) -> None:
    """Wait until a connection has come so far."""
    with trio.fail_after(SOON):
        while True:
            open_ones = await control.ask(Topic.CONNECTIONS, state="open")
            if any(one["waitsFor"] == phase.value for one in open_ones):
                return
            await trio.sleep(0.05)


async def until_none_is_open(control: Control) -> None:
    await until_open(control, 0)


PATIENT = replace(DEFAULTS, connection=replace(DEFAULTS.connection, dial_timeout=300.0))
"""With these bounds a wait lasts for minutes, unless the other side's end ends it."""
