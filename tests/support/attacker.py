"""Carries out an attack on port 15008, and records what the server answers.

An attacker that reads also answers PING: on a busy machine an attack lasts longer than a tunnel waits for it.
"""

from __future__ import annotations

import math

import trio
from hyperframe.frame import Frame, GoAwayFrame, PingFrame

from tests.support.attacks import HELLO, Attack
from tests.support.data_plane import Control
from tests.support.hostile_peer import dial, receive, send_all
from ztunnel.tls.socket_and_stream_tls import SocketTls
from ztunnel.tls.tls_errors import TlsError


class Answer:
    """The frames that an attacked server sends back."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.over = trio.Event()
        self._asked, self.pings = trio.open_memory_channel[bytes](math.inf)
        self._left = b""

    async def read(self, tls: SocketTls) -> None:
        try:
            while piece := await receive(tls):
                self._take(piece)
        except (OSError, TlsError):
            pass
        self.over.set()

    def _take(self, piece: bytes) -> None:
        self._left += piece
        while len(self._left) >= 9:
            parsed, length = Frame.parse_frame_header(memoryview(self._left[:9]))
            if len(self._left) < 9 + length:
                return
            if isinstance(parsed, GoAwayFrame):
                parsed.parse_body(memoryview(self._left[9 : 9 + length]))
                self.code = parsed.error_code
            elif isinstance(parsed, PingFrame) and "ACK" not in parsed.flags:
                parsed.parse_body(memoryview(self._left[9 : 9 + length]))
                self._asked.send_nowait(parsed.opaque_data)
            self._left = self._left[9 + length :]


async def carry_out(attack: Attack, tls: SocketTls, authority: str) -> Answer:
    """Attack until the server ends the connection, or the attack is over. Then ``tls`` is closed."""
    answer = Answer()
    sending = trio.Lock()

    async def send(data: bytes) -> None:
        async with sending:
            await send_all(tls, data)

    async def acknowledge() -> None:
        try:
            async for opaque in answer.pings:
                await send(PingFrame(0, opaque, flags=["ACK"]).serialize())
        except (OSError, TlsError):
            pass

    try:
        async with trio.open_nursery() as nursery:
            if attack.reads:
                nursery.start_soon(answer.read, tls)
                nursery.start_soon(acknowledge)
            try:
                await send(HELLO)
                for number, piece in enumerate(attack.wire(authority)):
                    if answer.over.is_set() or (not attack.codes and number == attack.pieces):
                        break
                    await send(piece)
            except (OSError, TlsError):
                pass
            if not attack.reads:
                nursery.start_soon(answer.read, tls)
            if attack.codes:
                await answer.over.wait()
            nursery.cancel_scope.cancel()
    finally:
        tls.close()
    return answer


async def attacked(control: Control, attack: Attack, port: int) -> Answer:
    # Answers that nobody reads fill the kernel's buffers first; with small ones that is soon.
    buffer = None if attack.reads else 4096
    with trio.fail_after(120):
        tls = await dial(control, receive_buffer=buffer)
        return await carry_out(attack, tls, f"127.0.0.1:{port}")
