"""A peer for tests that sends single frames, and shows the frames that it receives as short texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from ztunnel.hbone import Event, HboneClient, HboneConnection, HboneServer, HboneSettings

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CONNECT = [(":method", "CONNECT"), (":authority", "10.88.0.5:8080")]


def frame(kind: int, stream_id: int, body: bytes = b"", flags: int = 0) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + body


def data(stream_id: int, body: bytes = b"", *, end: bool = False, padding: int | None = None) -> bytes:
    made = DataFrame(stream_id, body)
    if end:
        made.flags.add("END_STREAM")
    if padding is not None:
        made.flags.add("PADDED")
        made.pad_length = padding
    return made.serialize()


def settings(values: dict[int, int] | None = None, *, ack: bool = False) -> bytes:
    made = SettingsFrame(0, settings=values or {})
    if ack:
        made.flags.add("ACK")
    return made.serialize()


def window_update(stream_id: int, increment: int) -> bytes:
    return WindowUpdateFrame(stream_id, increment).serialize()


def reset(stream_id: int, code: int) -> bytes:
    return RstStreamFrame(stream_id, code).serialize()


def ping(opaque: bytes, *, ack: bool = False) -> bytes:
    made = PingFrame(0, opaque)
    if ack:
        made.flags.add("ACK")
    return made.serialize()


def goaway(last: int, code: int = 0, debug: bytes = b"") -> bytes:
    return GoAwayFrame(0, last, code, debug).serialize()


def split(output: bytes) -> list[tuple[Any, bytes]]:
    frames: list[tuple[Any, bytes]] = []
    while output:
        parsed, length = Frame.parse_frame_header(memoryview(output[:9]))
        body = output[9 : 9 + length]
        assert len(body) == length
        parsed.parse_body(memoryview(body))
        frames.append((parsed, body))
        output = output[9 + length :]
    return frames


class Peer:
    """Sends frames to one connection of ours, and records what comes back."""

    def __init__(self, connection: HboneConnection) -> None:
        self.connection = connection
        self.encoder = Encoder()
        self.decoder: Any = Decoder()

    def headers(
        self, stream_id: int, fields: Iterable[tuple[Any, Any]], *, end: bool = False, cut: int = 0
    ) -> bytes:
        """Returns a HEADERS frame, and with ``cut`` CONTINUATION frames of so many bytes."""
        block = self.encoder.encode(list(fields))
        parts = [block[at : at + cut] for at in range(0, len(block), cut)] if cut else [block]
        made: list[Frame] = [HeadersFrame(stream_id, parts[0])]
        made += [ContinuationFrame(stream_id, part) for part in parts[1:]]
        made[-1].flags.add("END_HEADERS")
        if end:
            made[0].flags.add("END_STREAM")
        return b"".join(part.serialize() for part in made)

    def say(self, *wire: bytes) -> list[Any]:
        return self.connection.receive(b"".join(wire))

    def hear(self) -> list[str]:
        """Returns what our side wrote, one text for each frame."""
        return [self.tell(parsed, body) for parsed, body in split(b"".join(self.connection.take_output()))]

    def tell(self, parsed: Frame, body: bytes) -> str:
        name = type(parsed).__name__.removesuffix("Frame").upper()
        text = f"{name} {parsed.stream_id}"
        if isinstance(parsed, DataFrame):
            text += f" {len(parsed.data)}"
        elif isinstance(parsed, HeadersFrame):
            text += "".join(f" {n}={v}" for n, v in self.decoder.decode(body))
        elif isinstance(parsed, WindowUpdateFrame):
            text += f" +{parsed.window_increment}"
        elif isinstance(parsed, RstStreamFrame):
            text += f" {parsed.error_code}"
        elif isinstance(parsed, GoAwayFrame):
            text += f" last={parsed.last_stream_id} code={parsed.error_code}"
        elif isinstance(parsed, PingFrame):
            text += f" {parsed.opaque_data.hex()}"
        flags = sorted(flag for flag in parsed.flags if flag in {"END_STREAM", "ACK"})
        return " ".join([text, *flags])


def server(settings_: HboneSettings | None = None) -> tuple[Any, Peer]:
    """Returns a server whose peer has finished the exchange of settings."""
    connection = HboneServer(settings_)
    peer = Peer(connection)
    assert peer.say(PREFACE, settings(), settings(ack=True)) == []
    connection.take_output()
    return connection, peer


def client(settings_: HboneSettings | None = None, **values: int) -> tuple[Any, Peer]:
    """Returns a client whose peer has finished the exchange of settings; the peer's windows are large."""
    connection = HboneClient(settings_)
    peer = Peer(connection)
    peer.say(settings({4: 4 << 20, 5: 1 << 20}), settings(ack=True), window_update(0, (16 << 20) - 65_535))
    connection.take_output()
    return connection, peer


def accepted(settings_: HboneSettings | None = None) -> tuple[Any, Peer]:
    """Returns a server with stream 1 accepted."""
    connection, peer = server(settings_)
    peer.say(peer.headers(1, CONNECT))
    assert connection.accept(1)
    connection.take_output()
    return connection, peer


def connected(settings_: HboneSettings | None = None) -> tuple[Any, Peer]:
    """Returns a client with stream 1 answered with 200."""
    connection, peer = client(settings_)
    assert connection.connect("10.88.0.5:8080", []) == 1
    peer.say(peer.headers(1, [(":status", "200")]))
    connection.take_output()
    return connection, peer


def exchange(one: HboneConnection, other: HboneConnection) -> tuple[list[Event], list[Event]]:
    """Pass output back and forth until both are silent. Returns the events of each."""
    seen: tuple[list[Event], list[Event]] = ([], [])
    while True:
        there, back = b"".join(one.take_output()), b"".join(other.take_output())
        if not there and not back:
            return seen
        seen[1].extend(other.receive(there))
        seen[0].extend(one.receive(back))
