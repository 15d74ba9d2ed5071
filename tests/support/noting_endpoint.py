"""An endpoint that records, for each stream, the identity of the client and its own."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import trio

from tests.support.raw_hbone import RawHbone
from tests.support.raw_tls import RawTls, TlsAlertError, TlsChoices, TlsEndError


@dataclass
class Seen:
    """A stream as its endpoint saw it: the client's SPIFFE ID, the endpoint's name, its address."""

    client: str
    server: str
    address: str
    data: bytes


async def note_streams(
    stream: trio.SocketStream, choices: TlsChoices, server: str, address: str, seen: list[Seen]
) -> None:
    """Serve one HBONE connection to its end: record each stream's bytes and send them back."""
    ends = (TlsAlertError, TlsEndError, trio.BrokenResourceError, trio.ClosedResourceError)
    async with stream:
        with suppress(*ends):
            tls = RawTls(stream, choices, server=True)
            await tls.handshake()
            connection = RawHbone(tls, server=True)
            await connection.start()
            await _answer(connection, tls, server, address, seen)


async def _answer(connection: RawHbone, tls: RawTls, server: str, address: str, seen: list[Seen]) -> None:
    accepted: set[int] = set()
    ended: set[int] = set()
    while True:
        for number, one in list(connection.streams.items()):
            if one.headers and number not in accepted:
                accepted.add(number)
                connection.h2.send_headers(number, [(":status", "200")])
            if one.ended and number in accepted and number not in ended:
                ended.add(number)
                data = bytes(one.data)
                seen.append(Seen(tls.peer_uri(), server, address, data))
                connection.h2.send_data(number, data, end_stream=True)
        await connection.flush()
        await connection.step()
